//! Weight groups: exactly ggml's block layouts, and one of our own in [`e4m3`], to f32 and (the simple types) back.
//!
//! Every quantised type of ggml is the same sentence with other widths: sub-groups of 32 values (Q6_K: 16)
//! with unsigned codes, one scale and, in some types, one minimum:
//! `value = scale * (code - offset) + minimum`. [`unpack`] reads a group into that form; the devices
//! repack from it, [`dequantize`] multiplies it out in ggml's order of operations, bit for bit.

pub mod e4m3;
mod encode;
mod unpack;

use crate::dtype::Dtype;
pub use encode::quantize;
pub use unpack::{Unpacked, k_scale_min, offset, sub_group_len, unpack};

/// Why values could not be converted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum QuantError {
    /// The bytes are not whole groups, or not as many as the values need.
    #[error("{dtype:?}: {bytes} bytes do not hold {values} values")]
    Length {
        /// Storage type.
        dtype: Dtype,
        /// Bytes given.
        bytes: usize,
        /// Values given or asked for.
        values: usize,
    },
    /// There is no encoder for this type; such weights come ready-made from a file.
    #[error("{dtype:?} cannot be encoded")]
    NoEncoder {
        /// Storage type.
        dtype: Dtype,
    },
}

/// Decodes whole groups: `out[i]` is the value that ggml computes, bit for bit; of [`Dtype::F8E4M3`] what the code stands for
/// times the scale, in f32.
///
/// # Errors
/// [`QuantError::Length`] when `bytes` are not exactly the groups of `out`.
pub fn dequantize(dtype: Dtype, bytes: &[u8], out: &mut [f32]) -> Result<(), QuantError> {
    if dtype.row_bytes(out.len()) != Some(bytes.len()) {
        return Err(QuantError::Length { dtype, bytes: bytes.len(), values: out.len() });
    }
    match dtype {
        Dtype::F32 => {
            for (value, b) in out.iter_mut().zip(bytes.as_chunks::<4>().0) {
                *value = f32::from_le_bytes(*b);
            }
        }
        Dtype::F16 => {
            for (value, b) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
                *value = half::f16::from_le_bytes(*b).to_f32();
            }
        }
        Dtype::Bf16 => {
            for (value, b) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
                *value = half::bf16::from_le_bytes(*b).to_f32();
            }
        }
        Dtype::F8E4M3 => {
            let groups = bytes.chunks_exact(dtype.group_bytes());
            for (group, out) in groups.zip(out.chunks_exact_mut(dtype.group_len())) {
                let Some((scale, codes)) = group.split_first_chunk() else { continue };
                let scale = f32::from_le_bytes(*scale);
                out.iter_mut()
                    .zip(codes)
                    .for_each(|(out, code)| *out = scale * e4m3::decode(*code));
            }
        }
        _ => dequantize_groups(dtype, bytes, out),
    }
    Ok(())
}

fn dequantize_groups(dtype: Dtype, bytes: &[u8], out: &mut [f32]) {
    let mut group = Unpacked::default();
    let offset = offset(dtype);
    let sub_len = sub_group_len(dtype);
    let values = out.chunks_exact_mut(dtype.group_len());
    for (block, values) in bytes.chunks_exact(dtype.group_bytes()).zip(values) {
        unpack(dtype, block, &mut group);
        for (sub, values) in values.chunks_exact_mut(sub_len).enumerate() {
            let codes = &group.codes[sub * sub_len..][..sub_len];
            for (value, code) in values.iter_mut().zip(codes) {
                let q = (i32::from(*code) - offset) as f32;
                *value = match offset {
                    0 => group.scales[sub] * q + group.mins[sub],
                    _ => group.scales[sub] * q,
                };
            }
        }
    }
}
