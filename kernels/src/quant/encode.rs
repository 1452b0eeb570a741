//! The encoders: ggml's reference rounding for the types that have a simple one.

use super::{QuantError, e4m3};
use crate::dtype::Dtype;

/// Appends `values` to `out`, encoded as ggml's reference quantisers do (nearest, no search). [`Dtype::F8E4M3`] has as scale a
/// 448th of the largest magnitude, and the codes nearest to the quotients.
///
/// # Errors
/// [`QuantError::Length`] when the values are not whole groups, [`QuantError::NoEncoder`] for
/// Q5_0, Q5_1 and the K types.
pub fn quantize(dtype: Dtype, values: &[f32], out: &mut Vec<u8>) -> Result<(), QuantError> {
    let group = dtype.group_len();
    if !values.len().is_multiple_of(group) {
        return Err(QuantError::Length { dtype, bytes: 0, values: values.len() });
    }
    match dtype {
        Dtype::F32 => out.extend(values.iter().flat_map(|x| x.to_le_bytes())),
        Dtype::F16 => {
            out.extend(values.iter().flat_map(|x| half::f16::from_f32(*x).to_le_bytes()));
        }
        Dtype::Bf16 => {
            out.extend(values.iter().flat_map(|x| half::bf16::from_f32(*x).to_le_bytes()));
        }
        Dtype::Q8_0 => values.chunks_exact(group).for_each(|x| q8_0(x, out)),
        Dtype::Q4_0 => values.chunks_exact(group).for_each(|x| q4_0(x, out)),
        Dtype::Q4_1 => values.chunks_exact(group).for_each(|x| q4_1(x, out)),
        Dtype::F8E4M3 => values.chunks_exact(group).for_each(|x| f8_e4m3(x, out)),
        Dtype::Q5_0 | Dtype::Q5_1 | Dtype::Q4K | Dtype::Q5K | Dtype::Q6K => {
            return Err(QuantError::NoEncoder { dtype });
        }
    }
    Ok(())
}

fn q8_0(x: &[f32], out: &mut Vec<u8>) {
    let scale = x.iter().fold(0f32, |max, x| max.max(x.abs())) / 127.0;
    let inverse = inverse(scale);
    push_f16(scale, out);
    out.extend(x.iter().map(|x| ((x * inverse).round() as i8).cast_unsigned()));
}

fn q4_0(x: &[f32], out: &mut Vec<u8>) {
    // The value of largest magnitude, with its sign, becomes code 0 (-8).
    let extreme = x.iter().fold(0f32, |max, x| if x.abs() > max.abs() { *x } else { max });
    let scale = extreme / -8.0;
    let inverse = inverse(scale);
    push_f16(scale, out);
    push_nibbles(x, out, |x| x * inverse + 8.5);
}

fn q4_1(x: &[f32], out: &mut Vec<u8>) {
    let min = x.iter().copied().fold(f32::MAX, f32::min);
    let max = x.iter().copied().fold(f32::MIN, f32::max);
    let scale = (max - min) / 15.0;
    let inverse = inverse(scale);
    push_f16(scale, out);
    push_f16(min, out);
    push_nibbles(x, out, |x| (x - min) * inverse + 0.5);
}

fn f8_e4m3(x: &[f32], out: &mut Vec<u8>) {
    let scale = x.iter().fold(0f32, |max, x| max.max(x.abs())) / e4m3::MAX;
    out.extend(scale.to_le_bytes());
    // No quotient has a divisor of zero: such a group is zeros.
    let divisor = if scale == 0.0 { f32::INFINITY } else { scale };
    out.extend(x.iter().map(|x| e4m3::encode(x / divisor)));
}

fn inverse(scale: f32) -> f32 {
    if scale == 0.0 { 0.0 } else { 1.0 / scale }
}

fn push_f16(value: f32, out: &mut Vec<u8>) {
    out.extend(half::f16::from_f32(value).to_le_bytes());
}

/// Truncates `code(x)`; value `i` in the low half of byte `i`, value `i + 16` in its high half.
fn push_nibbles(x: &[f32], out: &mut Vec<u8>, code: impl Fn(f32) -> f32) {
    let (low, high) = x.split_at(16);
    out.extend(low.iter().zip(high).map(|(low, high)| {
        let (low, high) = (code(*low) as u8, code(*high) as u8);
        low.min(15) | (high.min(15) << 4)
    }));
}
