//! A device that counts computes the same, and counts what there is.

use crate::common::{Random, bits, buffer, matrix, read};
use chrysalis_kernels::cpu::{Cpu, CpuOptions};
use chrysalis_kernels::device::{
    Attention, CacheDtype, CacheShape, Device, Input, Linear, RopeParams, RopeStore,
};
use chrysalis_kernels::profile::{Profiled, Work};
use chrysalis_kernels::{Batch, Draw, Dtype, WantLogits};

const TOKENS: usize = 20;
const WIDTH: usize = 64;
const KV_WIDTH: usize = 32;

/// Products, rotation and attention of one layer.
fn layer<D: Device>(device: &D) -> Vec<f32> {
    let mut random = Random(1);
    let x = buffer(device, TOKENS, WIDTH, &random.values(TOKENS * WIDTH));
    let mut weight = |dtype, rows| {
        let bytes = random.matrix(dtype, rows, WIDTH);
        matrix(device, dtype, rows, WIDTH, &bytes)
    };
    let weights =
        [weight(Dtype::Q8_0, WIDTH), weight(Dtype::Q8_0, KV_WIDTH), weight(Dtype::Bf16, KV_WIDTH)];
    let mut outputs = [WIDTH, KV_WIDTH, KV_WIDTH].map(|cols| device.buffer(TOKENS, cols).unwrap());
    let mut products: Vec<_> = weights
        .iter()
        .zip(&mut outputs)
        .map(|(weight, out)| Linear { weight, bias: None, out })
        .collect();
    device.linear(TOKENS, Input::Rows(&x), &mut products);
    let [mut q, mut k, v] = outputs;

    let shape = CacheShape {
        num_layers: 1,
        num_blocks: 2,
        block_size: 16,
        num_kv_heads: 2,
        head_dim: 16,
        dtype: CacheDtype::F16,
    };
    let mut cache = device.cache(shape).unwrap();
    let rope = RopeParams { inv_freq: vec![0.1; 8], attention_factor: 1.0, max_positions: 32 };
    let rope = device.rope(&rope).unwrap();
    let mut batch = Batch::default();
    batch.push(&[0; TOKENS], 0, &[1, 0], WantLogits::Last);
    let mut step = device.step(TOKENS).unwrap();
    device.set_step(&mut step, &batch);
    let (layer, eps, norm) = (0, 1e-6, None);
    let (q_norm, k_norm) = (norm, norm);
    let (q_mut, k, cache_mut) = (&mut q, &mut k, &mut cache);
    device.rope_store(
        &step,
        RopeStore { layer, q: q_mut, k, v: &v, q_norm, k_norm, eps, rope: &rope, cache: cache_mut },
    );
    let mut out = device.buffer(TOKENS, WIDTH).unwrap();
    let (scale, softcap, window) = (0.3, None, Some(5));
    let args = Attention { layer, q: &q, cache: &cache, scale, softcap, window, out: &mut out };
    device.attention(&step, args);
    read(device, &out, TOKENS, WIDTH)
}

#[test]
fn a_device_that_counts_computes_the_same_and_counts_what_there_is() {
    let options = CpuOptions { threads: Some(2), ..CpuOptions::default() };
    let plain = Cpu::new(options).unwrap();
    let profiled = Profiled::new(Cpu::new(options).unwrap());
    assert_eq!(bits(&layer(&profiled)), bits(&layer(&plain)));
    assert!(profiled.describe().starts_with(&plain.describe()));

    let values = Random(2).values(2 * WIDTH);
    let mut x = buffer(&profiled, 2, WIDTH, &values);
    let mut largest = [None; 2];
    let mut batch = Batch::default();
    (0..2).for_each(|row| batch.draws.push(Draw::greedy(row), &[]));
    let mut step = profiled.step(1).unwrap();
    profiled.set_step(&mut step, &batch);
    profiled.sample(&step, &mut x, &mut largest).unwrap();
    for (found, row) in largest.iter().zip(values.chunks(WIDTH)) {
        assert!(row.iter().all(|x| *x <= row[found.unwrap() as usize]));
    }

    let operations = profiled.take();
    let work = |name: &str| {
        let operation = operations.iter().find(|operation| operation.name == name);
        let operation = operation.unwrap_or_else(|| panic!("{name} is not in {operations:?}"));
        assert!(operation.calls > 0 && !operation.time.is_zero(), "{operation:?}");
        operation.work
    };
    let tokens = TOKENS as u64;
    let linear = Work {
        // 96 rows of two groups of 34 bytes, 32 rows of 64 times two.
        stored_bytes: 96 * 68 + 32 * 128,
        activation_bytes: tokens * 4 * (64 + 128),
        int8: tokens * 2 * 96 * 64,
        bf16: tokens * 2 * 32 * 64,
        f32: 0,
    };
    assert_eq!(work("linear mixed [64+32+32, 64]"), linear);
    let kv_bytes = 2 * 2 * KV_WIDTH as u64;
    assert_eq!(work("rope_store").stored_bytes, tokens * kv_bytes);
    // 1, 2, 3, 4, then always 5 positions, each met by 64 values of q, twice, a multiply and an add.
    let attention = work("attention");
    assert_eq!(
        (attention.stored_bytes, attention.f32),
        (tokens * kv_bytes, 4 * 64 * (10 + 16 * 5))
    );
    let sample = Work { activation_bytes: 2 * 4 * 64, f32: 2 * 64, ..Work::default() };
    assert_eq!(work("sample"), sample);
    let downloads = operations.iter().find(|operation| operation.name == "download").unwrap();
    assert_eq!(downloads.calls, tokens);
    assert!(profiled.take().is_empty());
}
