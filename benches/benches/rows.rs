//! The operations that go over activations row by row, at the widths of SmolLM2-135M: bytes read and written a second, of
//! one row (decode) and of many (prefill). And the choice of tokens from a large vocabulary.

#![expect(clippy::panic, reason = "a bench that cannot run has nobody to report to")]

use std::time::Duration;

use chrysalis_benches::{Random, assert_near, buffer, print_limits, read, step, upload};
use chrysalis_kernels::cpu::{Cpu, CpuOptions};
use chrysalis_kernels::device::{
    Activation, CacheDtype, CacheShape, Device, DeviceError, Input, RopeParams, RopeStore,
};
use chrysalis_kernels::reference::{Reference, choose};
use chrysalis_kernels::{Batch, Draw, Dtype};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};

const ROWS: [usize; 2] = [1, 512];
const HIDDEN: usize = 576;
const INNER: usize = 1536;
const KV: usize = 192;
const HEAD_DIM: usize = 64;
const BLOCK: usize = 16;
/// Tokens of Gemma 3.
const VOCABULARY: usize = 262_144;
const LOGIT_ROWS: usize = 16;
/// Other orders of summation and an exponential within 2e-7.
const TOLERANCE: f64 = 2e-6;

/// Input and output of every operation.
struct Scene<D: Device> {
    rows: usize,
    step: D::Step,
    table: D::Matrix,
    norm: D::Vector,
    hidden: D::Buffer,
    normed: D::Buffer,
    gate: D::Buffer,
    up: D::Buffer,
    gated: D::Buffer,
    q: D::Buffer,
    k: D::Buffer,
    v: D::Buffer,
    rope: D::Rope,
    cache: D::Cache,
}

impl<D: Device> Scene<D> {
    fn new(device: &D, rows: usize) -> Result<Self, DeviceError> {
        let mut random = Random(3);
        let num_blocks = rows.div_ceil(BLOCK);
        let blocks: Vec<u32> = (0..num_blocks as u32).collect();
        let stored = random.matrix(Dtype::Q8_0, rows, HIDDEN);
        let inv_freq = (0..HEAD_DIM / 2).map(|i| 1e4f32.powf(-(i as f32) / 32.0)).collect();
        let rope = RopeParams { inv_freq, attention_factor: 1.0, max_positions: rows };
        let cache = CacheShape {
            num_layers: 1,
            num_blocks,
            block_size: BLOCK,
            num_kv_heads: KV / HEAD_DIM,
            head_dim: HEAD_DIM,
            dtype: CacheDtype::F16,
        };
        let mut input = |cols| buffer(device, rows, cols, &random.values(rows * cols));
        Ok(Self {
            rows,
            step: step(device, rows, 0, &blocks)?,
            table: upload(device, Dtype::Q8_0, (rows, HIDDEN), &stored)?,
            hidden: input(HIDDEN)?,
            normed: device.buffer(rows, HIDDEN)?,
            gate: input(INNER)?,
            up: input(INNER)?,
            gated: device.buffer(rows, INNER)?,
            q: input(HIDDEN)?,
            k: input(KV)?,
            v: input(KV)?,
            norm: device.vector(&random.values(HIDDEN))?,
            rope: device.rope(&rope)?,
            cache: device.cache(cache)?,
        })
    }

    fn embed(&mut self, device: &D) {
        device.embed(&self.step, &self.table, 0.5, &mut self.hidden);
    }

    fn rms_norm(&mut self, device: &D) {
        let input = Input::Normed { x: &self.hidden, weight: &self.norm, eps: 1e-6 };
        device.add(self.rows, input, &mut self.normed);
    }

    fn gate(&mut self, device: &D) {
        let (activation, gate, up) = (Activation::Silu, &self.gate, &self.up);
        device.add(self.rows, Input::Gated { activation, gate, up }, &mut self.gated);
    }

    /// Turns q and k on from where they are: a rotation keeps their length.
    fn rope_store(&mut self, device: &D) {
        let Self { q, k, v, rope, cache, .. } = self;
        let args =
            RopeStore { layer: 0, q, k, v, q_norm: None, k_norm: None, eps: 1e-6, rope, cache };
        device.rope_store(&self.step, args);
    }

    /// The last row of each result.
    fn results(&self, device: &D) -> Result<[Vec<f32>; 4], DeviceError> {
        let last = self.rows - 1;
        Ok([
            read(device, &self.hidden, last, HIDDEN)?,
            read(device, &self.normed, last, HIDDEN)?,
            read(device, &self.gated, last, INNER)?,
            read(device, &self.q, last, HIDDEN)?,
        ])
    }
}

type Operation<D> = fn(&mut Scene<D>, &D);

fn operations<D: Device>() -> [(&'static str, Operation<D>); 4] {
    [
        ("embed", Scene::embed),
        ("rms_norm", Scene::rms_norm),
        ("gate", Scene::gate),
        ("rope_store", Scene::rope_store),
    ]
}

fn rows(c: &mut Criterion) {
    bench(c).unwrap_or_else(|error| panic!("{error}"));
}

fn bench(c: &mut Criterion) -> Result<(), DeviceError> {
    print_limits()?;
    let cpu = Cpu::new(CpuOptions::default())?;
    for rows in ROWS {
        let (mut scene, mut truth) = (Scene::new(&cpu, rows)?, Scene::new(&Reference, rows)?);
        operations().iter().for_each(|(_, run)| run(&mut scene, &cpu));
        operations().iter().for_each(|(_, run)| run(&mut truth, &Reference));
        for (found, expected) in scene.results(&cpu)?.iter().zip(truth.results(&Reference)?) {
            assert_near("rows", found, &expected, TOLERANCE);
        }
        for (name, run) in operations() {
            let bytes = match name {
                "embed" => HIDDEN / 32 * 34 + 4 * HIDDEN,
                "rms_norm" => 3 * 4 * HIDDEN,
                "gate" => 4 * 4 * INNER,
                _ => 2 * 4 * (HIDDEN + KV) + 4 * KV + 2 * 2 * KV,
            };
            let mut group = c.benchmark_group(name);
            group.throughput(Throughput::Bytes((rows * bytes) as u64));
            group.bench_function(BenchmarkId::from_parameter(rows), |b| {
                b.iter(|| run(&mut scene, &cpu));
            });
            group.finish();
        }
        // Again and again the same, but of q, which went on turning, and of sums, which begin anew.
        (scene.normed, scene.gated) = (cpu.buffer(rows, HIDDEN)?, cpu.buffer(rows, INNER)?);
        scene.rms_norm(&cpu);
        scene.gate(&cpu);
        let (found, expected) = (scene.results(&cpu)?, truth.results(&Reference)?);
        for (found, expected) in found.iter().zip(&expected).take(3) {
            assert_near("rows", found, expected, TOLERANCE);
        }
    }
    Ok(())
}

fn sample(c: &mut Criterion) {
    bench_sample(c).unwrap_or_else(|error| panic!("{error}"));
}

fn bench_sample(c: &mut Criterion) -> Result<(), DeviceError> {
    let cpu = Cpu::new(CpuOptions::default())?;
    let values = Random(4).values(LOGIT_ROWS * VOCABULARY);
    let mut x = buffer(&cpu, LOGIT_ROWS, VOCABULARY, &values)?;
    let greedy = Draw::greedy(0);
    let cut = Draw { temperature: 0.8, top_p: 0.95, top_k: 40, ..greedy };
    for (name, draw) in [
        ("greedy", greedy),
        ("all", Draw { temperature: 1.0, ..greedy }),
        ("top_k 40, top_p 0.95", cut),
        ("top_p 0.95", Draw { top_k: 0, ..cut }),
    ] {
        for rows in [1, LOGIT_ROWS] {
            let mut batch = Batch::default();
            (0..rows as u32).for_each(|row| batch.draws.push(Draw { row, ..draw }, &[]));
            let mut step = cpu.step(1)?;
            cpu.set_step(&mut step, &batch);
            let mut found = vec![None; rows];
            let mut group = c.benchmark_group(format!("sample, {name}"));
            group.throughput(Throughput::Bytes((rows * 4 * VOCABULARY) as u64));
            group.bench_function(BenchmarkId::from_parameter(rows), |b| {
                b.iter(|| cpu.sample(&step, &mut x, &mut found));
            });
            group.finish();
            for ((draw, edits), (found, row)) in
                batch.draws.iter().zip(found.iter().zip(values.chunks(VOCABULARY)))
            {
                assert_eq!(*found, choose(row, draw, edits), "{name}");
            }
        }
    }
    Ok(())
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(100))
        .measurement_time(Duration::from_millis(400));
    targets = rows, sample
}
criterion_main!(benches);
