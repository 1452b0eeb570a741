//! Attention in the shape of SmolLM2-135M over an f16 cache: a prompt (operations a second), and one token after many
//! (bytes of K and V a second).

#![expect(clippy::panic, reason = "a bench that cannot run has nobody to report to")]

use std::time::Duration;

use chrysalis_benches::{Random, assert_near, buffer, print_limits, read, step};
use chrysalis_kernels::cpu::{Cpu, CpuOptions};
use chrysalis_kernels::device::{
    Attention, CacheDtype, CacheShape, Device, DeviceError, RopeParams, RopeStore,
};
use chrysalis_kernels::profile::positions_seen;
use chrysalis_kernels::reference::Reference;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};

const HEADS: usize = 9;
const KV_HEADS: usize = 3;
const HEAD_DIM: usize = 64;
const BLOCK: usize = 16;
/// What differs in the last bit of an f32 may be rounded the other way in the cache.
const TOLERANCE: f64 = 3e-4;

/// A sequence whose last tokens ask for attention over all of it.
struct Scene<D: Device> {
    q: D::Buffer,
    cache: D::Cache,
    step: D::Step,
    out: D::Buffer,
}

impl<D: Device> Scene<D> {
    /// K and V of all `positions` are in the cache, queries of the last `tokens` are at hand.
    fn new(device: &D, positions: usize, tokens: usize) -> Result<Self, DeviceError> {
        let mut random = Random(2);
        let (width, kv_width) = (HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM);
        let num_blocks = positions.div_ceil(BLOCK);
        let mut cache = device.cache(CacheShape {
            num_layers: 1,
            num_blocks,
            block_size: BLOCK,
            num_kv_heads: KV_HEADS,
            head_dim: HEAD_DIM,
            dtype: CacheDtype::F16,
        })?;
        // Blocks lie in an order of their own.
        let blocks: Vec<u32> = (0..num_blocks as u32).rev().collect();
        let mut input = |width| buffer(device, positions, width, &random.values(positions * width));
        let (mut q, mut k, v) = (input(width)?, input(kv_width)?, input(kv_width)?);
        let inv_freq = (0..HEAD_DIM / 2).map(|i| 1e4f32.powf(-(i as f32) / 32.0)).collect();
        let rope = RopeParams { inv_freq, attention_factor: 1.0, max_positions: positions };
        device.rope_store(
            &step(device, positions, 0, &blocks)?,
            RopeStore {
                layer: 0,
                q: &mut q,
                k: &mut k,
                v: &v,
                q_norm: None,
                k_norm: None,
                eps: 1e-6,
                rope: &device.rope(&rope)?,
                cache: &mut cache,
            },
        );
        let q = buffer(device, tokens, width, &random.values(tokens * width))?;
        let step = step(device, tokens, positions - tokens, &blocks)?;
        Ok(Self { q, cache, step, out: device.buffer(tokens, width)? })
    }

    fn attend(&mut self, device: &D) {
        let Self { q, cache, step, out } = self;
        let scale = 1.0 / (HEAD_DIM as f32).sqrt();
        let (softcap, window) = (None, None);
        device.attention(step, Attention { layer: 0, q, cache, scale, softcap, window, out });
    }
}

fn attention(c: &mut Criterion) {
    bench(c).unwrap_or_else(|error| panic!("{error}"));
}

fn bench(c: &mut Criterion) -> Result<(), DeviceError> {
    print_limits()?;
    let cpu = Cpu::new(CpuOptions::default())?;
    for (group, positions, tokens) in [
        ("attention/prefill", 512, 512),
        ("attention/decode", 512, 1),
        ("attention/decode", 4096, 1),
    ] {
        let mut scene = Scene::new(&cpu, positions, tokens)?;
        let throughput = if tokens == 1 {
            Throughput::Bytes((2 * 2 * KV_HEADS * HEAD_DIM * positions) as u64)
        } else {
            let seen = positions_seen(0, tokens as u64, None);
            Throughput::Elements(4 * (HEADS * HEAD_DIM) as u64 * seen)
        };
        let mut group = c.benchmark_group(group);
        group.throughput(throughput);
        group.bench_function(BenchmarkId::from_parameter(positions), |b| {
            b.iter(|| scene.attend(&cpu));
        });
        group.finish();
        let mut truth = Scene::new(&Reference, positions, tokens)?;
        truth.attend(&Reference);
        for row in [0, tokens / 2, tokens - 1] {
            let found = read(&cpu, &scene.out, row, HEADS * HEAD_DIM)?;
            let expected = read(&Reference, &truth.out, row, HEADS * HEAD_DIM)?;
            assert_near("attention", &found, &expected, TOLERANCE);
        }
    }
    Ok(())
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_secs(1));
    targets = attention
}
criterion_main!(benches);
