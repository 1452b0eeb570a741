//! Products with weights of every type, at a shape of a small decoder and one of a larger one: few rows (decode, bytes of
//! weights a second, from memory) and many (prefill, operations a second).

#![expect(clippy::panic, reason = "a bench that cannot run has nobody to report to")]

use std::time::Duration;

use chrysalis_benches::{
    Random, assert_near, assert_same, buffer, is_test, print_limits, read, upload,
};
use chrysalis_kernels::Dtype;
use chrysalis_kernels::cpu::{ActivationBits, Buffer, Cpu, CpuOptions, Matrix};
use chrysalis_kernels::device::{Device, DeviceError, Input, Linear};
use chrysalis_kernels::reference::Reference;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};

/// Out features, in features: SmolLM2-135M's last matrix of a layer, and one of a larger model's.
const SHAPES: [(usize, usize); 2] = [(576, 1536), (2048, 8192)];
const ROWS: [usize; 5] = [1, 4, 16, 128, 512];
/// Up to here weights decide, from here on arithmetic.
const DECODE_ROWS: usize = 16;
/// Weights that a decode bench goes through, so that they come from memory and not from a cache.
const WORKING_SET: usize = 256 << 20;
/// Activations in 16 bits with one scale to 32.
const TOLERANCE: f64 = 2e-4;
/// Adaptive ones, which are measured: random values have hardly a group that gets more than 8 bits.
const ADAPTIVE_TOLERANCE: f64 = 1.3e-2;

fn products(c: &mut Criterion) {
    bench(c).unwrap_or_else(|error| panic!("{error}"));
}

fn bench(c: &mut Criterion) -> Result<(), DeviceError> {
    print_limits()?;
    let cpu = Cpu::new(CpuOptions::default())?;
    let activation_bits = ActivationBits::Sixteen;
    let exact = Cpu::new(CpuOptions { activation_bits, ..CpuOptions::default() })?;
    for dtype in Dtype::ALL {
        for shape in SHAPES {
            of_shape(c, (&cpu, &exact), dtype, shape)?;
        }
    }
    Ok(())
}

fn of_shape(
    c: &mut Criterion,
    (cpu, exact): (&Cpu, &Cpu),
    dtype: Dtype,
    (out, cols): (usize, usize),
) -> Result<(), DeviceError> {
    let mut random = Random(1);
    let (stored, values) = (random.matrix(dtype, out, cols), random.values(512 * cols));
    let copies = if is_test() { 1 } else { WORKING_SET.div_ceil(stored.len()) };
    let weights = (0..copies).map(|_| upload(cpu, dtype, (out, cols), &stored));
    let weights = weights.collect::<Result<Vec<_>, _>>()?;
    // What the first row is in truth, and on this device alone.
    let expected = product(&Reference, dtype, (out, cols), &stored, &values[..cols])?;
    let alone = product(cpu, dtype, (out, cols), &stored, &values[..cols])?;
    assert_near(dtype.name(), &alone, &expected, ADAPTIVE_TOLERANCE);
    let exact = product(exact, dtype, (out, cols), &stored, &values[..cols])?;
    assert_near(dtype.name(), &exact, &expected, TOLERANCE);

    let name = format!("{} {out}x{cols}", dtype.name());
    for rows in ROWS {
        let x = buffer(cpu, rows, cols, &values[..rows * cols])?;
        let mut y = cpu.buffer(rows, out)?;
        let (group, throughput) = if rows <= DECODE_ROWS {
            ("linear/decode", Throughput::Bytes(stored.len() as u64))
        } else {
            ("linear/prefill", Throughput::Elements((2 * rows * out * cols) as u64))
        };
        let mut group = c.benchmark_group(group);
        group.throughput(throughput);
        let mut next = weights.iter().cycle();
        group.bench_function(BenchmarkId::new(&name, rows), |b| {
            b.iter(|| multiply(cpu, rows, &x, next.next().unwrap_or(&weights[0]), &mut y));
        });
        group.finish();
        assert_same(&name, &read(cpu, &y, 0, out)?, &alone);
    }
    Ok(())
}

fn multiply(cpu: &Cpu, rows: usize, x: &Buffer, weight: &Matrix, out: &mut Buffer) {
    cpu.linear(rows, Input::Rows(x), &mut [Linear { weight, bias: None, out }]);
}

/// One row times a matrix, on any device.
fn product<D: Device>(
    device: &D,
    dtype: Dtype,
    (out, cols): (usize, usize),
    stored: &[u8],
    x: &[f32],
) -> Result<Vec<f32>, DeviceError> {
    let weight = &upload(device, dtype, (out, cols), stored)?;
    let (x, mut y) = (buffer(device, 1, cols, x)?, device.buffer(1, out)?);
    device.linear(1, Input::Rows(&x), &mut [Linear { weight, bias: None, out: &mut y }]);
    read(device, &y, 0, out)
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(100))
        .measurement_time(Duration::from_millis(400));
    targets = products
}
criterion_main!(benches);
