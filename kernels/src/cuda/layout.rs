//! How a matrix lies on the device, value by value as `cuda/tiles.cuh` says it: what the tests hold uploads to.
#![expect(clippy::unwrap_used, reason = "it fails as tests do")]

use super::weights::Form;
use crate::dtype::Dtype;
use crate::quant::{self, Unpacked};

/// A stored matrix as the kernels read it; what is beyond its rows and columns is zero.
pub(super) fn packed(dtype: Dtype, rows: usize, cols: usize, bytes: &[u8]) -> Vec<u8> {
    let form = Form::of(dtype);
    let mut out = vec![0; form.bytes(rows, cols).unwrap()];
    let (len, group_bytes) = (dtype.group_len(), dtype.group_bytes());
    let mut group = Unpacked::default();
    for (n, block) in bytes.chunks_exact(group_bytes).enumerate() {
        let (row, first_col) = (n * len / cols, n * len % cols);
        if dtype == Dtype::F8E4M3 {
            group.codes[..len].copy_from_slice(&block[4..]);
        } else if len > 1 {
            quant::unpack(dtype, block, &mut group);
        }
        for at in 0..len {
            let col = first_col + at;
            if form == Form::F32 {
                let place = 4 * (row * cols.next_multiple_of(8) + col);
                out[place..][..4].copy_from_slice(block);
                continue;
            }
            let record_bytes = form.record_bytes();
            let tile = (row / 64 * cols.div_ceil(64) + col / 64) * 4 + row % 64 / 16;
            let record = &mut out[tile * record_bytes..][..record_bytes];
            place(form, dtype, (row % 16, col % 64), (at, block, &group), record);
        }
    }
    out
}

/// Stored bytes of any kind whose scales are numbers.
pub(super) fn stored(dtype: Dtype, rows: usize, cols: usize) -> Vec<u8> {
    let mut state = 1 + (rows * cols) as u32;
    let mut bytes: Vec<u8> = std::iter::repeat_with(|| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state.to_be_bytes()[0]
    })
    .take(rows * dtype.row_bytes(cols).unwrap())
    .collect();
    for group in bytes.chunks_mut(dtype.group_bytes()) {
        let halves: &[usize] = match dtype {
            Dtype::F32 | Dtype::F16 | Dtype::Bf16 => &[],
            Dtype::F8E4M3 => {
                // Every code is a number.
                group[4..].iter_mut().for_each(|code| *code ^= u8::from(*code & 0x7f == 0x7f));
                &[2]
            }
            Dtype::Q6K => &[208],
            Dtype::Q8_0 | Dtype::Q4_0 | Dtype::Q5_0 => &[0],
            _ => &[0, 2],
        };
        // No exponent of all ones.
        halves.iter().for_each(|at| group[at + 1] &= 0xbf);
    }
    bytes
}

/// Puts value `at` of a group into its record, with its scales.
fn place(
    form: Form,
    dtype: Dtype,
    (row, col): (usize, usize),
    (at, block, group): (usize, &[u8], &Unpacked),
    record: &mut [u8],
) {
    let (g, high, step, half) = (row % 8, row / 8, col / 16, col / 32);
    let lane = g * 4 + col % 8 / 2;
    let number = (col % 16 / 8 * 2 + high) * 2 + col % 2;
    let code = group.codes[at];
    match form {
        Form::F32 => {}
        Form::F16 | Form::Bf16 => {
            record[(step * 32 + lane) * 16 + number * 2..][..2].copy_from_slice(block);
        }
        Form::Q8_0 | Form::Wide | Form::F8 => {
            let signed = code.wrapping_sub(quant::offset(dtype) as u8);
            let code = if form == Form::Wide { signed ^ 0x80 } else { signed };
            record[half * 512 + lane * 16 + step % 2 * 8 + number] = code;
        }
        Form::Q4_0 | Form::Q4_1 | Form::Q4K => {
            let (byte, shift) = (number % 2 * 2 + number / 4, number / 2 % 2 * 4);
            record[lane * 16 + step * 4 + byte] |= code << shift;
        }
    }
    match form {
        Form::F32 | Form::F16 | Form::Bf16 => {}
        Form::Q8_0 | Form::Q4_0 => {
            let first = if form == Form::Q8_0 { 1024 } else { 512 };
            record[first + g * 8 + half * 4 + high * 2..][..2].copy_from_slice(&block[..2]);
        }
        Form::F8 => record[1024 + g * 8 + high * 4..][..4].copy_from_slice(&block[..4]),
        Form::Q4_1 => {
            record[512 + g * 16 + half * 8 + high * 4..][..4].copy_from_slice(&block[..4]);
        }
        Form::Q4K => {
            let scales = &mut record[512 + g * 16 + high * 8..][..8];
            scales[..4].copy_from_slice(&block[..4]);
            let (scale, minimum) = quant::k_scale_min(&block[4..16], at / 32);
            scales[4 + half * 2..][..2].copy_from_slice(&[scale, minimum]);
        }
        Form::Wide => {
            let k = |at| quant::k_scale_min(&block[4..16], at / 32);
            let (scales, (scale, minimum)) = match dtype {
                Dtype::Q5K => ([block[0], block[1], block[2], block[3]], k(at)),
                Dtype::Q6K => ([block[208], block[209], 0, 0], (block[192 + at / 16], 0)),
                _ => ([block[0], block[1], block[2], block[3] ^ 0x80], (1, 1)),
            };
            record[1024 + g * 16 + half * 8 + high * 4..][..4].copy_from_slice(&scales);
            let codes = &mut record[1152 + g * 16 + step * 4 + high * 2..][..2];
            codes.copy_from_slice(&[scale, minimum]);
        }
    }
}
