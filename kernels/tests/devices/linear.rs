//! Products on every way to compute: against the reference, and against themselves in other batches.

use crate::common::{Random, bits, buffer, cpus, matrix, read, relative_error};
use chrysalis_kernels::Dtype;
use chrysalis_kernels::cpu::{ActivationBits, Cpu, CpuOptions, Isa};
use chrysalis_kernels::device::{Activation, Device, DeviceError, Input, Linear, Upload as _};
use chrysalis_kernels::reference::Reference;

/// Rounding of f32 sums in another order.
pub(crate) const FLOAT_ERROR: f64 = 1e-6;
/// Two bf16 to an activation: each within 2^-17 of it.
const TWO_BF16_ERROR: f64 = 4e-6;
/// One bf16 to an activation: each within 2^-8 of it, 0.15 % on average.
pub(crate) const ONE_BF16_ERROR: f64 = 2e-3;
/// 8-bit activations: steps of 1/127 of the largest of 32, so an error of 0.29 steps in values of
/// about 0.35 of the largest: 0.65 %, and up to twice that where a case has few outputs.
const EIGHT_BIT_ERROR: f64 = 1.3e-2;
/// 16-bit activations: the same, 257 times finer.
const SIXTEEN_BIT_ERROR: f64 = 5.5e-5;

/// Out features, in features (a multiple of 256), rows: tails of panels, of tiles, several blocks.
pub(crate) const SHAPES: [(usize, usize, usize); 7] = [
    (1, 256, 1),
    (33, 256, 2),
    (100, 1024, 7),
    (64, 512, 1),
    (40, 1792, 19),
    (7, 768, 70),
    (0, 256, 3),
];

#[test]
fn products_agree_with_the_reference() {
    for cpu in cpus() {
        for dtype in Dtype::ALL {
            for (n, (out, cols, rows)) in SHAPES.into_iter().enumerate() {
                let mut random = Random(n as u64 + 1);
                let weight = random.matrix(dtype, out, cols);
                let (x, bias) = (random.values(rows * cols), random.values(out));
                let bias = (n % 2 == 0).then_some(&bias[..]);
                let expected = product(&Reference, dtype, (out, cols, rows), &weight, &x, bias);
                let found = product(&cpu, dtype, (out, cols, rows), &weight, &x, bias);
                let error = relative_error(&found, &expected);
                let limit = limit(&cpu, dtype);
                // A handful of outputs is no average, and one may be a small difference of large products.
                let limit = match out * rows {
                    1 if [Dtype::Bf16, Dtype::F8E4M3].contains(&dtype) => 32.0 * limit,
                    0..16 => 4.0 * limit,
                    _ => limit,
                };
                let case = format!("{dtype:?} {out} x {cols}, {rows} rows, {}", cpu.describe());
                assert!(error < limit, "{case}: {error:e}");
            }
        }
    }
}

/// Whether weights meet integers; else they meet floats.
fn takes_integers(dtype: Dtype) -> bool {
    !matches!(dtype, Dtype::F32 | Dtype::F16 | Dtype::Bf16 | Dtype::F8E4M3)
}

/// What an error may be, on average.
fn limit(cpu: &Cpu, dtype: Dtype) -> f64 {
    let how = cpu.describe();
    let rounds = how.contains("Avx512Bf16") || how.contains("Amx");
    match dtype {
        Dtype::Bf16 | Dtype::F8E4M3 if rounds && how.contains("16-bit") => TWO_BF16_ERROR,
        Dtype::Bf16 | Dtype::F8E4M3 if rounds => ONE_BF16_ERROR,
        dtype if !takes_integers(dtype) => FLOAT_ERROR,
        _ if how.contains("16-bit") => SIXTEEN_BIT_ERROR,
        _ => EIGHT_BIT_ERROR,
    }
}

#[test]
fn float_types_take_any_number_of_columns_and_rows() {
    // One column, an odd one behind a word, several blocks and a tail, a whole number of blocks.
    for (out, cols) in [(45, 1), (31, 7), (70, 777), (33, 1024)] {
        let most = 33;
        for dtype in [Dtype::F32, Dtype::F16, Dtype::Bf16] {
            let mut random = Random(13);
            let weight = random.matrix(dtype, out, cols);
            let x = with_spikes(random.values(most * cols));
            let expected = product(&Reference, dtype, (out, cols, most), &weight, &x, None);
            for cpu in cpus() {
                let all = product(&cpu, dtype, (out, cols, most), &weight, &x, None);
                let case = format!("{dtype:?} {out} x {cols}, {}", cpu.describe());
                let error = relative_error(&all, &expected);
                // A few columns are no average.
                let limit = if cols < 16 { 4.0 } else { 1.0 } * limit(&cpu, dtype);
                assert!(error < limit, "{case}: {error:e}");
                for rows in [1, 2, 3, 5, 16] {
                    for first in [0, most - rows] {
                        let x = &x[first * cols..][..rows * cols];
                        let some = product(&cpu, dtype, (out, cols, rows), &weight, x, None);
                        let expected = &all[first * out..][..rows * out];
                        assert_eq!(bits(&some), bits(expected), "{case}, rows {first}+{rows}");
                    }
                }
            }
        }
    }
}

#[test]
fn what_is_not_finite_stays_in_its_row() {
    let (out, cols, rows) = (40, 515, 11);
    for dtype in [Dtype::F32, Dtype::F16, Dtype::Bf16] {
        let mut random = Random(17);
        let weight = random.matrix(dtype, out, cols);
        let x = random.values(rows * cols);
        let mut broken = x.clone();
        for (row, value) in [(1, f32::NAN), (4, f32::INFINITY), (10, f32::NEG_INFINITY)] {
            broken[row * cols + 300] = value;
        }
        for cpu in cpus() {
            let whole = product(&cpu, dtype, (out, cols, rows), &weight, &x, None);
            let found = product(&cpu, dtype, (out, cols, rows), &weight, &broken, None);
            for (row, (found, whole)) in found.chunks(out).zip(whole.chunks(out)).enumerate() {
                if [1, 4, 10].contains(&row) {
                    assert!(found.iter().all(|y| !y.is_finite()), "{dtype:?} {cpu:?} row {row}");
                } else {
                    assert_eq!(bits(found), bits(whole), "{dtype:?} {cpu:?} row {row}");
                }
            }
        }
    }
}

#[test]
fn tiles_and_vectors_give_the_same_bits() {
    let isas: Vec<_> = Isa::available().into_iter().filter(|isa| *isa >= Isa::Avx512).collect();
    for dtype in Dtype::ALL.into_iter().filter(|dtype| takes_integers(*dtype)) {
        for (out, cols, rows) in [(100, 1792, 37), (33, 256, 64)] {
            let mut random = Random(19);
            let weight = random.matrix(dtype, out, cols);
            let x = with_spikes(random.values(rows * cols));
            let mut results = isas.iter().map(|isa| {
                let options =
                    CpuOptions { isa: Some(*isa), threads: Some(2), ..CpuOptions::default() };
                let cpu = Cpu::new(options).unwrap();
                bits(&product(&cpu, dtype, (out, cols, rows), &weight, &x, None))
            });
            let Some(first) = results.next() else { return };
            assert!(results.all(|result| result == first), "{dtype:?} {out} x {cols}");
        }
    }
}

#[test]
fn a_row_is_the_same_in_any_batch_and_on_any_number_of_threads() {
    let (out, cols, rows) = (100, 1024, 37);
    for isa in Isa::available() {
        for activation_bits in
            [ActivationBits::Eight, ActivationBits::Adaptive, ActivationBits::Sixteen]
        {
            for dtype in Dtype::ALL {
                let mut random = Random(7);
                let weight = random.matrix(dtype, out, cols);
                let x = with_spikes(random.values(rows * cols));
                let mut seen = Vec::new();
                for threads in [1, 3] {
                    let options =
                        CpuOptions { threads: Some(threads), isa: Some(isa), activation_bits };
                    let cpu = Cpu::new(options).unwrap();
                    let all = product(&cpu, dtype, (out, cols, rows), &weight, &x, None);
                    for (first, count) in [(0, 1), (36, 1), (3, 2), (5, 3), (8, 6), (1, 20)] {
                        let x = &x[first * cols..][..count * cols];
                        let some = product(&cpu, dtype, (out, cols, count), &weight, x, None);
                        let expected = &all[first * out..][..count * out];
                        assert_eq!(
                            bits(&some),
                            bits(expected),
                            "{dtype:?} {isa:?} rows {first}+{count}"
                        );
                    }
                    seen.push(bits(&all));
                }
                assert_eq!(seen[0], seen[1], "{dtype:?} {isa:?} threads");
            }
        }
    }
}

/// A model's activations: a few values far above the others, here in some groups of 32 and not in most.
pub(crate) fn with_spikes(mut x: Vec<f32>) -> Vec<f32> {
    x.iter_mut().step_by(173).for_each(|x| *x *= 40.0);
    x
}

#[test]
fn adaptive_activations_are_fine_where_the_large_values_are() {
    let (out, cols, rows) = (70, 1792, 7);
    let quantised = Dtype::ALL
        .into_iter()
        .filter(|dtype| takes_integers(*dtype) && cols % dtype.group_len() == 0);
    for dtype in quantised {
        let mut random = Random(11);
        let weight = random.matrix(dtype, out, cols);
        let x = with_spikes(random.values(rows * cols));
        let expected = product(&Reference, dtype, (out, cols, rows), &weight, &x, None);
        for isa in Isa::available() {
            let error = |activation_bits| {
                let cpu =
                    Cpu::new(CpuOptions { threads: Some(2), isa: Some(isa), activation_bits });
                let found = product(&cpu.unwrap(), dtype, (out, cols, rows), &weight, &x, None);
                relative_error(&found, &expected)
            };
            let eight = error(ActivationBits::Eight);
            let adaptive = error(ActivationBits::Adaptive);
            let sixteen = error(ActivationBits::Sixteen);
            let case = format!("{dtype:?} {isa:?}: {eight:e} {adaptive:e} {sixteen:e}");
            // Groups without a spike keep eight bits: finer than eight everywhere, coarser than sixteen.
            assert!(adaptive < eight / 4.0 && adaptive > 2.0 * sixteen, "{case}");
        }
    }
}

#[test]
fn outputs_that_share_an_input_do_not_touch_each_other() {
    let (cols, rows) = (256, 5);
    for cpu in cpus() {
        let mut random = Random(3);
        let x = random.values(rows * cols);
        let types = [(Dtype::Q4K, 48), (Dtype::F16, 20), (Dtype::Q6K, 33), (Dtype::Q8_0, 64)];
        let bytes: Vec<_> =
            types.iter().map(|(dtype, out)| random.matrix(*dtype, *out, cols)).collect();
        let weights: Vec<_> = (types.iter().zip(&bytes))
            .map(|((dtype, out), bytes)| matrix(&cpu, *dtype, *out, cols, bytes))
            .collect();
        let input = buffer(&cpu, rows, cols, &x);
        let mut outs: Vec<_> = types.iter().map(|(_, n)| cpu.buffer(rows, *n).unwrap()).collect();
        let mut outputs: Vec<_> = (weights.iter().zip(&mut outs))
            .map(|(weight, out)| Linear { weight, bias: None, out })
            .collect();
        cpu.linear(rows, Input::Rows(&input), &mut outputs);
        for ((dtype, out), (bytes, found)) in types.into_iter().zip(bytes.iter().zip(&outs)) {
            let alone = product(&cpu, dtype, (out, cols, rows), bytes, &x, None);
            assert_eq!(bits(&read(&cpu, found, rows, out)), bits(&alone), "{dtype:?}");
        }
    }
}

#[test]
fn an_input_that_is_made_on_the_way_is_the_one_made_before() {
    let (out, cols) = (40, 1792);
    for cpu in cpus() {
        for rows in [1, 9, 40] {
            let mut random = Random(23);
            let (x, y) = (random.values(rows * cols), random.values(rows * cols));
            let (x, y) = (buffer(&cpu, rows, cols, &x), buffer(&cpu, rows, cols, &y));
            let norm = cpu.vector(&random.values(cols)).unwrap();
            for dtype in Dtype::ALL {
                let weight = matrix(&cpu, dtype, out, cols, &random.matrix(dtype, out, cols));
                let (activation, gate, up) = (Activation::Silu, &x, &y);
                for input in [
                    Input::Normed { x: &x, weight: &norm, eps: 1e-5 },
                    Input::Gated { activation, gate, up },
                ] {
                    let mut before = cpu.buffer(rows, cols).unwrap();
                    cpu.add(rows, input, &mut before);
                    let product = |input| {
                        let mut outs = [(); 2].map(|()| cpu.buffer(rows, out).unwrap());
                        let [linear, logits] = &mut outs;
                        let output = Linear { weight: &weight, bias: None, out: linear };
                        cpu.linear(rows, input, &mut [output]);
                        cpu.logits(rows, input, &weight, logits);
                        outs.map(|out_rows| bits(&read(&cpu, &out_rows, rows, out)))
                    };
                    let case = format!("{dtype:?}, {rows} rows, {}", cpu.describe());
                    assert_eq!(product(input), product(Input::Rows(&before)), "{case}");
                }
            }
        }
    }
}

#[test]
fn a_row_of_zeros_gives_the_bias() {
    for cpu in cpus() {
        let weight = Random(1).matrix(Dtype::Q5_1, 40, 256);
        let bias = Random(2).values(40);
        let found = product(&cpu, Dtype::Q5_1, (40, 256, 1), &weight, &[0.0; 256], Some(&bias));
        assert_eq!(found, bias);
    }
}

#[test]
fn rows_of_every_type_come_back_from_the_packed_layout_exactly() {
    for cpu in cpus() {
        for dtype in Dtype::ALL {
            let (rows, cols) = (37, if dtype.group_len() == 1 { 515 } else { 512 });
            let bytes = Random(9).matrix(dtype, rows, cols);
            let tokens = [0, 36, 15, 16, 31, 32];
            let found = embedded(&cpu, dtype, rows, cols, &bytes, &tokens);
            let expected = embedded(&Reference, dtype, rows, cols, &bytes, &tokens);
            assert_eq!(bits(&found), bits(&expected), "{dtype:?}");
        }
    }
}

#[test]
fn a_wrong_upload_is_refused() {
    let cpu = Cpu::new(CpuOptions::default()).unwrap();
    for device_error in [
        cpu.begin_matrix(Dtype::Q4K, 2, 255).unwrap_err(),
        Reference.begin_matrix(Dtype::Q4K, 2, 255).unwrap_err(),
    ] {
        assert!(matches!(device_error, DeviceError::Shape { group: 256, .. }));
    }
    let bytes = Random(1).matrix(Dtype::Q8_0, 3, 64);
    let upload = cpu.begin_matrix(Dtype::Q8_0, 3, 64).unwrap();
    upload.write(0, &bytes[..200]).unwrap();
    let twice = upload.write(198, &bytes[..3]).unwrap_err();
    assert!(matches!(twice, DeviceError::UploadTwice { offset: 198 }));
    let long = upload.write(200, &bytes[..5]).unwrap_err();
    assert!(matches!(long, DeviceError::UploadLength { expected: 204, found: 205 }));
    let short = upload.finish().unwrap_err();
    assert!(matches!(short, DeviceError::UploadLength { expected: 204, found: 200 }));
}

pub(crate) fn product<D: Device>(
    device: &D,
    dtype: Dtype,
    (out, cols, rows): (usize, usize, usize),
    weight: &[u8],
    x: &[f32],
    bias: Option<&[f32]>,
) -> Vec<f32> {
    let weight = matrix(device, dtype, out, cols, weight);
    let bias = bias.map(|bias| device.vector(bias).unwrap());
    let x = buffer(device, rows, cols, x);
    // What a product leaves out shows.
    let mut y = buffer(device, rows, out, &vec![f32::NAN; rows * out]);
    let output = Linear { weight: &weight, bias: bias.as_ref(), out: &mut y };
    device.linear(rows, Input::Rows(&x), &mut [output]);
    read(device, &y, rows, out)
}

pub(crate) fn embedded<D: Device>(
    device: &D,
    dtype: Dtype,
    rows: usize,
    cols: usize,
    bytes: &[u8],
    tokens: &[u32],
) -> Vec<f32> {
    let table = matrix(device, dtype, rows, cols, bytes);
    let mut batch = chrysalis_kernels::Batch::default();
    batch.push(tokens, 0, &[], chrysalis_kernels::WantLogits::None);
    let mut step = device.step(tokens.len()).unwrap();
    device.set_step(&mut step, &batch);
    let mut out = device.buffer(tokens.len(), cols).unwrap();
    device.embed(&step, &table, 1.5, &mut out);
    read(device, &out, tokens.len(), cols)
}
