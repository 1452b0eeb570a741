//! Products of the CUDA kernels, emulated: against a model that rounds as they do, and against each other bit for bit.

use crate::common::{Random, bits, buffer, matrix, read, relative_error};
use crate::linear::{FLOAT_ERROR, ONE_BF16_ERROR, SHAPES, product, with_spikes};
use chrysalis_kernels::cuda::{Cuda, Emulated, ProductLimits};
use chrysalis_kernels::device::{Activation, Device, Input, Linear};
use chrysalis_kernels::reference::Reference;
use chrysalis_kernels::{Dtype, quant};

/// Sums of rounded values in f32, in another order than the model's: the rounding itself is a hundred times coarser, so that a
/// wrong value or scale does not hide in it.
const ROUNDED_ERROR: f64 = 1e-5;
/// Weights and activations each rounded to bf16.
const BF16_ERROR: f64 = 2.0 * ONE_BF16_ERROR;
/// The same of f16, which has three bits more.
const F16_ERROR: f64 = BF16_ERROR / 8.0;
/// Scales and minima that were rounded by themselves, of values that are small differences of both.
const F16_SCALES_ERROR: f64 = 6e-4;

/// One type of each form that tensor cores multiply.
pub(crate) const FORMS: [Dtype; 8] = [
    Dtype::Bf16,
    Dtype::F16,
    Dtype::Q8_0,
    Dtype::Q4_0,
    Dtype::Q4_1,
    Dtype::Q4K,
    Dtype::Q6K,
    Dtype::F8E4M3,
];

fn cuda() -> Cuda<Emulated> {
    Cuda::new(Emulated::default())
}

/// The kernels of Hopper, which the emulator has too.
fn hopper() -> Cuda<Emulated> {
    Cuda::with_limits(Emulated::default(), ProductLimits::of(90))
}

/// Every kernel for any number of rows, with sums split and whole.
fn kernels() -> Vec<Cuda<Emulated>> {
    let all = usize::MAX;
    let any = ProductLimits { few_rows: 0, some_rows: 0, whole_blocks: 0, ..ProductLimits::of(80) };
    let (wide_blocks, wide_parts) = (all, 0);
    let wgmma = ProductLimits { wgmma: true, narrow_rows: 0, wide_blocks, wide_parts, ..any };
    [
        ProductLimits { few_rows: 8, ..any },
        ProductLimits { few_rows: all, shared: 0, ..any },
        ProductLimits { some_rows: all, ..any },
        any,
        ProductLimits { whole_blocks: all, ..any },
        ProductLimits { few_rows: all, shared: 0, ..wgmma },
        ProductLimits { some_rows: all, ..wgmma },
        ProductLimits { narrow_rows: all, whole_blocks: all, ..wgmma },
        wgmma,
        ProductLimits { whole_blocks: all, ..wgmma },
        ProductLimits { wide_blocks: 0, wide_chunks: 0, ..wgmma },
        ProductLimits { wide_parts: all, whole_blocks: all, ..wgmma },
    ]
    // So few that blocks which go from work to work have more than one.
    .map(|limits| Cuda::with_limits(Emulated::with_multiprocessors(2), limits))
    .into()
}

/// To what is multiplied: bf16 for weights of bf16; f16 of a sixteenth for rows and of sixteen times for all others.
fn round(dtype: Dtype, x: f32, factor: f32) -> f32 {
    match dtype {
        Dtype::F32 => x,
        Dtype::Bf16 => half::bf16::from_f32(x).to_f32(),
        _ => half::f16::from_f32(x * factor).to_f32() / factor,
    }
}

/// How far from [`model`] a product may be. Scales that are rounded by themselves are not in it.
fn model_error(dtype: Dtype) -> f64 {
    match dtype {
        Dtype::Q4K | Dtype::Q5K | Dtype::Q6K | Dtype::F8E4M3 => F16_SCALES_ERROR,
        _ => ROUNDED_ERROR,
    }
}

/// The product of what the kernels multiply, in f64: `fine` with two values for one of a row.
fn model(
    dtype: Dtype,
    (out, cols, rows): (usize, usize, usize),
    weight: &[u8],
    x: &[f32],
    bias: Option<&[f32]>,
    fine: bool,
) -> Vec<f32> {
    let mut values = vec![0.0; out * cols];
    quant::dequantize(dtype, weight, &mut values).unwrap();
    let weight = |w: f32| f64::from(round(dtype, w, 16.0));
    let row = |x: f32| {
        let rounded = round(dtype, x, 1.0 / 16.0);
        let rest = if fine { round(dtype, x - rounded, 1.0 / 16.0) } else { 0.0 };
        f64::from(rounded) + f64::from(rest)
    };
    let mut found = Vec::new();
    for x in x.chunks_exact(cols).take(rows) {
        for (j, w) in values.chunks_exact(cols).enumerate() {
            let sum: f64 = w.iter().zip(x).map(|(w, x)| weight(*w) * row(*x)).sum();
            found.push((sum + f64::from(bias.map_or(0.0, |bias| bias[j]))) as f32);
        }
    }
    found
}

fn logits<D: Device>(
    device: &D,
    dtype: Dtype,
    (out, cols, rows): (usize, usize, usize),
    weight: &[u8],
    x: &[f32],
) -> Vec<f32> {
    let weight = matrix(device, dtype, out, cols, weight);
    let x = buffer(device, rows, cols, x);
    let mut y = device.buffer(rows, out).unwrap();
    device.logits(rows, Input::Rows(&x), &weight, &mut y);
    read(device, &y, rows, out)
}

/// Where there are few outputs, one may be a small difference of large products.
fn few(outs: usize) -> f64 {
    if outs < 64 { 8.0 } else { 1.0 }
}

#[test]
fn products_agree_with_the_model_and_the_reference() {
    for dtype in Dtype::ALL {
        for (n, shape) in SHAPES.into_iter().enumerate() {
            let (out, cols, rows) = shape;
            let mut random = Random(n as u64 + 1);
            let weight = random.matrix(dtype, out, cols);
            let (x, bias) = (random.values(rows * cols), random.values(out));
            let bias = (n % 2 == 0).then_some(&bias[..]);
            let found = product(&cuda(), dtype, shape, &weight, &x, bias);
            let case = format!("{dtype:?} {out} x {cols}, {rows} rows");
            // Emulated, both families sum the same products in the same order.
            let hopper = product(&hopper(), dtype, shape, &weight, &x, bias);
            assert!(bits(&hopper) == bits(&found), "{case}, Hopper's kernels");
            let error = relative_error(&found, &model(dtype, shape, &weight, &x, bias, false));
            assert!(error < few(out * rows) * model_error(dtype), "{case}, model: {error:e}");
            let error =
                relative_error(&found, &product(&Reference, dtype, shape, &weight, &x, bias));
            let limit = match dtype {
                Dtype::F32 => FLOAT_ERROR,
                Dtype::Bf16 => BF16_ERROR,
                _ => F16_ERROR + model_error(dtype),
            };
            assert!(error < few(out * rows) * limit, "{case}, reference: {error:e}");
        }
    }
}

#[test]
fn awkward_sizes_agree_with_the_model_and_nothing_is_written_beside_them() {
    let types = [Dtype::F16, Dtype::Bf16, Dtype::Q8_0, Dtype::Q4_0, Dtype::Q5_1];
    for (n, out) in [1, 5, 17, 63, 65, 200].into_iter().enumerate() {
        for (m, cols) in [32, 64, 96, 576].into_iter().enumerate() {
            let (dtype, rows) = (types[(n + m) % types.len()], [1, 3, 9, 33][(n + 2 * m) % 4]);
            let mut random = Random(31);
            let bytes = random.matrix(dtype, out, cols);
            let (x, bias) = (random.values(rows * cols), random.values(out));
            let bias = (m % 2 == 0).then_some(&bias[..]);
            let device = if (n + m) % 3 == 0 { cuda() } else { hopper() };
            let weight = matrix(&device, dtype, out, cols, &bytes);
            let vector = bias.map(|bias| device.vector(bias).unwrap());
            let input = buffer(&device, rows, cols, &x);
            let mut y = device.buffer(rows + 7, out).unwrap();
            let output = Linear { weight: &weight, bias: vector.as_ref(), out: &mut y };
            device.linear(rows, Input::Rows(&input), &mut [output]);
            let found = read(&device, &y, rows + 7, out);
            let expected = model(dtype, (out, cols, rows), &bytes, &x, bias, false);
            let error = relative_error(&found[..rows * out], &expected);
            let case = format!("{dtype:?} {out} x {cols}, {rows} rows");
            assert!(error < few(out * rows) * ROUNDED_ERROR, "{case}: {error:e}");
            let beside = &found[rows * out..];
            assert!(beside.iter().all(|y| y.to_bits() == u32::MAX), "{case}");
        }
    }
}

#[test]
fn logits_are_products_of_finer_rows() {
    for dtype in [Dtype::Bf16, Dtype::F16, Dtype::Q8_0, Dtype::Q4K, Dtype::Q6K, Dtype::F8E4M3] {
        for (out, rows) in [(33, 1), (200, 3), (70, 21), (130, 70)] {
            let shape = (out, 512, rows);
            let mut random = Random(5);
            let (weight, x) = (random.matrix(dtype, out, 512), random.values(rows * 512));
            let found = logits(&cuda(), dtype, shape, &weight, &x);
            let fine = relative_error(&found, &model(dtype, shape, &weight, &x, None, true));
            let limit = few(out * rows) * model_error(dtype);
            assert!(fine < limit, "{dtype:?} {shape:?}: {fine:e}");
            let coarse = relative_error(&found, &model(dtype, shape, &weight, &x, None, false));
            // Where scales are rounded, that is as much.
            let rounded = match dtype {
                Dtype::Bf16 => 100.0 * ROUNDED_ERROR,
                Dtype::F16 | Dtype::Q8_0 => 10.0 * ROUNDED_ERROR,
                _ => 0.0,
            };
            assert!(coarse > rounded, "{dtype:?} {shape:?}: {coarse:e}");
        }
    }
}

#[test]
fn a_row_has_the_same_bits_in_every_kernel_and_any_batch() {
    // Two parts of four and five chunks; blocks of outputs that end in the middle.
    let (out, most) = (150, 200);
    for dtype in Dtype::ALL.into_iter().filter(|dtype| *dtype != Dtype::F32) {
        let cols = if dtype.group_len() > 32 { 512 } else { 576 };
        let mut random = Random(7);
        let weight = random.matrix(dtype, out, cols);
        let x = with_spikes(random.values(most * cols));
        let all = product(&cuda(), dtype, (out, cols, most), &weight, &x, None);
        for rows in [1, 2, 7, 8, 9, 31, 33, 64, 127, 129] {
            let first = (most - rows) / 2;
            let x = &x[first * cols..][..rows * cols];
            let expected = bits(&all[first * out..][..rows * out]);
            for device in [cuda(), hopper()] {
                let some = product(&device, dtype, (out, cols, rows), &weight, x, None);
                assert_eq!(bits(&some), expected, "{dtype:?} rows {first}+{rows}");
            }
        }
    }
}

#[test]
fn the_kernel_shows_in_no_bit() {
    // Three parts of four chunks; a second block of outputs and a second group of rows.
    let (out, cols, most) = (150, 768, 130);
    for dtype in FORMS {
        let mut random = Random(8);
        let weight = random.matrix(dtype, out, cols);
        let (x, bias) = (with_spikes(random.values(most * cols)), random.values(out));
        for rows in [1, most] {
            let results = kernels().into_iter().map(|device| {
                let x = &x[..rows * cols];
                let linear = product(&device, dtype, (out, cols, rows), &weight, x, Some(&bias));
                let logits = logits(&device, dtype, (out, cols, rows), &weight, x);
                (bits(&linear), bits(&logits))
            });
            let results: Vec<_> = results.collect();
            for (n, result) in results.iter().enumerate() {
                assert!(*result == results[0], "{dtype:?}, {rows} rows, kernel {n}");
            }
        }
    }
}

#[test]
fn outputs_that_share_an_input_do_not_touch_each_other() {
    let types = [
        (Dtype::Q4K, 48),
        (Dtype::F32, 20),
        (Dtype::Q4K, 200),
        (Dtype::Bf16, 70),
        (Dtype::Q6K, 33),
        (Dtype::Q4K, 64),
        (Dtype::Q4K, 130),
        (Dtype::Q4K, 0),
    ];
    let cols = 512;
    for rows in [1, 40] {
        let (device, mut random) = (cuda(), Random(3));
        let x = random.values(rows * cols);
        let bytes: Vec<_> =
            types.iter().map(|(dtype, out)| random.matrix(*dtype, *out, cols)).collect();
        let weights: Vec<_> = (types.iter().zip(&bytes))
            .map(|((dtype, out), bytes)| matrix(&device, *dtype, *out, cols, bytes))
            .collect();
        let input = buffer(&device, rows, cols, &x);
        let mut outs: Vec<_> =
            types.iter().map(|(_, n)| device.buffer(rows, *n).unwrap()).collect();
        let mut outputs: Vec<_> = (weights.iter().zip(&mut outs))
            .map(|(weight, out)| Linear { weight, bias: None, out })
            .collect();
        device.linear(rows, Input::Rows(&input), &mut outputs);
        for ((dtype, out), (bytes, found)) in types.into_iter().zip(bytes.iter().zip(&outs)) {
            let alone = product(&cuda(), dtype, (out, cols, rows), bytes, &x, None);
            assert_eq!(bits(&read(&device, found, rows, out)), bits(&alone), "{dtype:?} {out}");
        }
    }
}

#[test]
fn a_sum_that_waits_for_its_norm_has_the_bits_of_one_that_does_not() {
    let (cols, out, dtype) = (300, 70, Dtype::Bf16);
    for (rows, large) in [(1, false), (9, false), (2, true)] {
        // More than a thread keeps in registers.
        let cols = if large { 4500 } else { cols };
        let run = |together: bool, finish: bool| {
            let (device, mut random) = (cuda(), Random(29));
            let [a, b, c] = [(); 3].map(|()| random.values(rows * cols));
            let [first, second, start] = [a, b, c].map(|x| buffer(&device, rows, cols, &x));
            let norm = device.vector(&random.values(cols)).unwrap();
            let weight = matrix(&device, dtype, out, cols, &random.matrix(dtype, out, cols));
            let mut sum = start;
            let mut seen = Vec::new();
            for input in [
                Input::Rows(&first),
                Input::Normed { x: &first, weight: &norm, eps: 1e-5 },
                Input::Gated { activation: Activation::GeluTanh, gate: &first, up: &second },
            ] {
                device.add(rows, input, &mut sum);
                if finish {
                    device.finish().unwrap();
                }
                let mut y = device.buffer(rows, out).unwrap();
                let normed = Input::Normed { x: &sum, weight: &norm, eps: 1e-6 };
                if together {
                    let output = Linear { weight: &weight, bias: None, out: &mut y };
                    device.linear(rows, normed, &mut [output]);
                } else {
                    device.logits(rows, normed, &weight, &mut y);
                }
                seen.push((
                    bits(&read(&device, &y, rows, out)),
                    bits(&read(&device, &sum, rows, cols)),
                ));
            }
            seen
        };
        for together in [true, false] {
            assert!(run(together, false) == run(together, true), "{rows} x {cols}");
        }
    }
}

#[test]
fn a_sum_is_made_before_anybody_else_sees_it_and_outlives_what_it_adds() {
    let (rows, cols, device) = (3, 40, cuda());
    let mut random = Random(37);
    let values = [(); 3].map(|()| random.values(rows * cols));
    let mut sum = buffer(&device, rows, cols, &values[0]);
    for values in &values[1..] {
        // Dropped while the addition waits.
        let more = buffer(&device, rows, cols, values);
        device.add(rows, Input::Rows(&more), &mut sum);
    }
    let expected: Vec<f32> =
        (0..rows * cols).map(|i| values[0][i] + values[1][i] + values[2][i]).collect();
    assert_eq!(read(&device, &sum, rows, cols), expected);
    // The norm of other rows than were added to.
    let norm = device.vector(&vec![1.0; cols]).unwrap();
    let more = buffer(&device, rows, cols, &values[1]);
    device.add(rows, Input::Rows(&more), &mut sum);
    let weight = matrix(&device, Dtype::Bf16, 5, cols, &random.matrix(Dtype::Bf16, 5, cols));
    let mut y = device.buffer(1, 5).unwrap();
    let normed = Input::Normed { x: &sum, weight: &norm, eps: 1e-6 };
    device.linear(1, normed, &mut [Linear { weight: &weight, bias: None, out: &mut y }]);
    let expected: Vec<f32> = expected.iter().zip(&values[1]).map(|(sum, x)| sum + x).collect();
    assert_eq!(read(&device, &sum, rows, cols), expected);
}

#[test]
fn f16_operands_reach_to_a_million_and_a_row_beyond_spoils_no_other() {
    let (out, cols) = (70, 128);
    let mut random = Random(41);
    let mut x = random.values(3 * cols);
    (x[5], x[cols + 9], x[2 * cols + 7]) = (1.04e6, 1e-7, 1.1e6);
    for dtype in [Dtype::F16, Dtype::Q8_0, Dtype::F8E4M3] {
        let weight = random.matrix(dtype, out, cols);
        for device in [cuda(), hopper()] {
            let found = product(&device, dtype, (out, cols, 3), &weight, &x, None);
            let fine = logits(&device, dtype, (out, cols, 3), &weight, &x);
            let expected = product(&Reference, dtype, (out, cols, 3), &weight, &x, None);
            for found in [&found, &fine] {
                assert!(found[2 * out..].iter().all(|y| !y.is_finite()), "{dtype:?}, too large");
                for row in [0, 1] {
                    let of = |all: &[f32]| all[row * out..][..out].to_vec();
                    let error = relative_error(&of(found), &of(&expected));
                    assert!(error < F16_ERROR + model_error(dtype), "{dtype:?} {row}: {error:e}");
                }
            }
        }
    }
}

#[test]
fn matrices_of_two_kinds_take_the_same_gate() {
    let (cols, hidden) = (64, 128);
    for rows in [1, 9] {
        let mut random = Random(43);
        let values = random.values(rows * cols);
        let inner = [0, 1].map(|_| random.matrix(Dtype::Q8_0, hidden, cols));
        let outer = [Dtype::Q8_0, Dtype::Bf16, Dtype::F32]
            .map(|dtype| (dtype, random.matrix(dtype, cols, hidden)));
        // All that take it at once, or each after a gate of its own.
        let run = |takers: &[usize]| {
            let device = cuda();
            let x = buffer(&device, rows, cols, &values);
            let inner = inner.each_ref().map(|w| matrix(&device, Dtype::Q8_0, hidden, cols, w));
            let mut made = [0, 1].map(|_| device.buffer(rows, hidden).unwrap());
            let [gate, up] = &mut made;
            let outputs = inner.iter().zip([gate, up]);
            let mut outputs: Vec<_> =
                outputs.map(|(weight, out)| Linear { weight, bias: None, out }).collect();
            device.linear(rows, Input::Rows(&x), &mut outputs);
            let weights: Vec<_> = (takers.iter())
                .map(|n| matrix(&device, outer[*n].0, cols, hidden, &outer[*n].1))
                .collect();
            let mut outs: Vec<_> =
                takers.iter().map(|_| device.buffer(rows, cols).unwrap()).collect();
            let mut outputs: Vec<_> = (weights.iter().zip(&mut outs))
                .map(|(weight, out)| Linear { weight, bias: None, out })
                .collect();
            let [gate, up] = &made;
            let input = Input::Gated { activation: Activation::Silu, gate, up };
            device.linear(rows, input, &mut outputs);
            outs.iter().map(|out| bits(&read(&device, out, rows, cols))).collect::<Vec<_>>()
        };
        let together = run(&[0, 1, 2]);
        for n in [0, 1, 2] {
            assert_eq!(run(&[n])[0], together[n], "{rows} rows, {:?}", outer[n].0);
        }
    }
}
