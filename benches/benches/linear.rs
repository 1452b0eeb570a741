//! Products with quantised weights at the shapes of small and large decoders: one row (decode, bytes
//! of weights a second) and 512 rows (prefill, multiply-adds a second). The machine's own limits are
//! printed first; a figure without its share of them is a rumour.

#![expect(clippy::panic, clippy::print_stderr, reason = "a bench reports to a terminal")]

use std::hint::black_box;
use std::time::Duration;

use chrysalis_kernels::cpu::{Buffer, Cpu, CpuOptions, Matrix};
use chrysalis_kernels::device::{Device, DeviceError, Linear, Upload as _};
use chrysalis_kernels::{Batch, Dtype, WantLogits, probe};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};

/// Out features, in features: the MLP and the output matrix of SmolLM2-135M, a layer of a larger one.
const SHAPES: [(usize, usize); 3] = [(1536, 576), (49152, 576), (2048, 8192)];
const TYPES: [Dtype; 3] = [Dtype::Q4_1, Dtype::Q8_0, Dtype::Q4K];
const PREFILL: usize = 512;
/// Weights that a decode bench goes through, so that they come from memory and not from a cache.
const WORKING_SET: usize = 256 << 20;

fn products(c: &mut Criterion) {
    bench(c).unwrap_or_else(|error| panic!("{error}"));
}

fn bench(c: &mut Criterion) -> Result<(), DeviceError> {
    let options = CpuOptions::default();
    let limits = probe::measure(options, 512 << 20, Duration::from_secs(3))?;
    eprintln!(
        "limits: read {:.1} GB/s on one thread, {:.1} on {}; int8 {:.0} and {:.0} GOP/s",
        limits.read_one / 1e9,
        limits.read_all / 1e9,
        limits.threads,
        limits.int8_one / 1e9,
        limits.int8_all / 1e9,
    );
    let cpu = Cpu::new(options)?;
    for dtype in TYPES {
        // K types store 256 columns together; 576 does not divide.
        for (rows, cols) in SHAPES.into_iter().filter(|(_, n)| n % dtype.group_len() == 0) {
            let bytes = dtype.row_bytes(cols).unwrap_or(0) * rows;
            let copies = WORKING_SET.div_ceil(bytes);
            let weights = (0..copies).map(|_| matrix(&cpu, dtype, rows, cols));
            let weights = weights.collect::<Result<Vec<_>, _>>()?;
            let shape = format!("{} {rows}x{cols}", dtype.name());

            let mut group = c.benchmark_group("decode");
            group.throughput(Throughput::Bytes(bytes as u64));
            let (x, mut out) = (input(&cpu, 1, cols)?, cpu.buffer(1, rows)?);
            let mut next = weights.iter().cycle();
            group.bench_function(BenchmarkId::from_parameter(&shape), |b| {
                b.iter(|| {
                    let weight = next.next().unwrap_or(&weights[0]);
                    cpu.linear(1, &x, &mut [Linear { weight, bias: None, out: &mut out }]);
                });
            });
            group.finish();
            assert_sane(&cpu, &out, rows)?;

            // Nobody wants the logits of a whole prompt.
            if rows < 10_000 {
                let mut group = c.benchmark_group("prefill");
                group.throughput(Throughput::Elements((2 * PREFILL * rows * cols) as u64));
                let (x, mut out) = (input(&cpu, PREFILL, cols)?, cpu.buffer(PREFILL, rows)?);
                let weight = &weights[0];
                group.bench_function(BenchmarkId::from_parameter(&shape), |b| {
                    b.iter(|| {
                        cpu.linear(
                            PREFILL,
                            &x,
                            &mut [Linear { weight, bias: None, out: &mut out }],
                        );
                    });
                });
                group.finish();
                assert_sane(&cpu, &out, rows)?;
            }
        }
    }
    Ok(())
}

/// Weights with varied codes and scales of about 0.01.
fn matrix(cpu: &Cpu, dtype: Dtype, rows: usize, cols: usize) -> Result<Matrix, DeviceError> {
    let mut upload = cpu.begin_matrix(dtype, rows, cols)?;
    let scale = 0x2100u16.to_le_bytes();
    let mut row: Vec<u8> =
        (0..dtype.row_bytes(cols).unwrap_or(0)).map(|i| (i * 167 % 251) as u8).collect();
    for group in row.chunks_exact_mut(dtype.group_bytes()) {
        group[..2].copy_from_slice(&scale);
        if dtype != Dtype::Q8_0 {
            group[2..4].copy_from_slice(&scale);
        }
    }
    for _ in 0..rows {
        upload.write(&row)?;
    }
    upload.finish()
}

/// Rows of varied values.
fn input(cpu: &Cpu, rows: usize, cols: usize) -> Result<Buffer, DeviceError> {
    let values =
        (0..rows * cols).flat_map(|i| ((i * 7919 % 997) as f32 / 997.0 - 0.5).to_le_bytes());
    let mut upload = cpu.begin_matrix(Dtype::F32, rows, cols)?;
    upload.write(&values.collect::<Vec<u8>>())?;
    let (table, tokens) = (upload.finish()?, (0..rows as u32).collect::<Vec<_>>());
    let mut batch = Batch::default();
    batch.push(&tokens, 0, &[], WantLogits::None);
    let (mut step, mut out) = (cpu.step(rows)?, cpu.buffer(rows, cols)?);
    cpu.set_step(&mut step, &batch);
    cpu.embed(&step, &table, 1.0, &mut out);
    Ok(out)
}

/// Every output was computed: all rows of the weights are the same, so all outputs are.
fn assert_sane(cpu: &Cpu, out: &Buffer, cols: usize) -> Result<(), DeviceError> {
    let mut row = vec![0.0; cols];
    cpu.download(out, 0, &mut row)?;
    assert!(row[0] != 0.0 && row.iter().all(|x| x.to_bits() == row[0].to_bits()), "{:?}", row[0]);
    black_box(row);
    Ok(())
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2));
    targets = products
}
criterion_main!(benches);
