//! Reads one stored group into codes, scales and minima (`ggml-quants.c`, `dequantize_row_*`).

use crate::dtype::Dtype;

/// One group in the common form: `value = scale * (code - offset) + minimum` for each sub-group.
#[derive(Clone, Copy, Debug)]
pub struct Unpacked {
    /// Unsigned codes, in the order of the values; only the first `group_len` count.
    pub codes: [u8; 256],
    /// Scale of each sub-group.
    pub scales: [f32; 16],
    /// Minimum of each sub-group; zero for types with an offset.
    pub mins: [f32; 16],
}

impl Default for Unpacked {
    fn default() -> Self {
        Self { codes: [0; 256], scales: [0.0; 16], mins: [0.0; 16] }
    }
}

/// What is subtracted from a code: types without a minimum are symmetric about it.
pub const fn offset(dtype: Dtype) -> i32 {
    match dtype {
        Dtype::Q4_0 => 8,
        Dtype::Q5_0 => 16,
        Dtype::Q8_0 => 128,
        Dtype::Q6K => 32,
        _ => 0,
    }
}

/// Values that share a scale.
pub const fn sub_group_len(dtype: Dtype) -> usize {
    match dtype {
        Dtype::Q6K => 16,
        Dtype::F32 | Dtype::F16 | Dtype::Bf16 => 1,
        _ => 32,
    }
}

/// The 6-bit scale and minimum of sub-group `j` (0..8) of a Q4_K or Q5_K group.
pub fn k_scale_min(packed: &[u8], j: usize) -> (u8, u8) {
    if j < 4 {
        (packed[j] & 63, packed[j + 4] & 63)
    } else {
        (
            (packed[j + 4] & 15) | ((packed[j - 4] >> 6) << 4),
            (packed[j + 4] >> 4) | ((packed[j] >> 6) << 4),
        )
    }
}

/// Reads the stored group `block` of a quantised type.
///
/// # Panics
/// When `block` is shorter than a group, or the codes of `dtype` are no integers.
pub fn unpack(dtype: Dtype, block: &[u8], out: &mut Unpacked) {
    match dtype {
        Dtype::Q4_0 => {
            out.scales[0] = f16(block, 0);
            nibbles(&block[2..18], &mut out.codes);
        }
        Dtype::Q4_1 => {
            (out.scales[0], out.mins[0]) = (f16(block, 0), f16(block, 2));
            nibbles(&block[4..20], &mut out.codes);
        }
        Dtype::Q5_0 => {
            out.scales[0] = f16(block, 0);
            nibbles(&block[6..22], &mut out.codes);
            fifth_bits(&block[2..6], &mut out.codes);
        }
        Dtype::Q5_1 => {
            (out.scales[0], out.mins[0]) = (f16(block, 0), f16(block, 2));
            nibbles(&block[8..24], &mut out.codes);
            fifth_bits(&block[4..8], &mut out.codes);
        }
        Dtype::Q8_0 => {
            out.scales[0] = f16(block, 0);
            for (code, q) in out.codes.iter_mut().zip(&block[2..34]) {
                *code = q ^ 0x80;
            }
        }
        Dtype::Q4K => {
            k_scales(block, out);
            k_nibbles(&block[16..144], &mut out.codes);
        }
        Dtype::Q5K => {
            k_scales(block, out);
            k_nibbles(&block[48..176], &mut out.codes);
            for (sub, codes) in out.codes.chunks_exact_mut(32).enumerate() {
                for (code, high) in codes.iter_mut().zip(&block[16..48]) {
                    *code |= ((high >> sub) & 1) << 4;
                }
            }
        }
        Dtype::Q6K => unpack_q6k(block, out),
        Dtype::F32 | Dtype::F16 | Dtype::Bf16 | Dtype::F8E4M3 => panic_float(dtype),
    }
}

#[expect(clippy::panic, reason = "a float type has no integers: the caller's own mistake")]
fn panic_float(dtype: Dtype) -> ! {
    panic!("the codes of {dtype:?} are no integers")
}

fn f16(block: &[u8], at: usize) -> f32 {
    half::f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// 16 bytes: value `i` in the low half of byte `i`, value `i + 16` in its high half.
fn nibbles(packed: &[u8], codes: &mut [u8; 256]) {
    for (i, byte) in packed.iter().enumerate() {
        codes[i] = byte & 15;
        codes[i + 16] = byte >> 4;
    }
}

fn fifth_bits(packed: &[u8], codes: &mut [u8; 256]) {
    for (i, code) in codes.iter_mut().take(32).enumerate() {
        *code |= ((packed[i / 8] >> (i % 8)) & 1) << 4;
    }
}

/// 128 bytes: each 32 bytes hold two sub-groups, the first in the low halves.
fn k_nibbles(packed: &[u8], codes: &mut [u8; 256]) {
    for (packed, codes) in packed.chunks_exact(32).zip(codes.chunks_exact_mut(64)) {
        for (i, byte) in packed.iter().enumerate() {
            codes[i] = byte & 15;
            codes[i + 32] = byte >> 4;
        }
    }
}

fn k_scales(block: &[u8], out: &mut Unpacked) {
    let (d, d_min) = (f16(block, 0), f16(block, 2));
    for j in 0..8 {
        let (scale, min) = k_scale_min(&block[4..16], j);
        out.scales[j] = d * f32::from(scale);
        out.mins[j] = -(d_min * f32::from(min));
    }
}

/// 128 bytes of low halves, 64 of upper bit pairs, 16 signed scales, the f16 scale.
fn unpack_q6k(block: &[u8], out: &mut Unpacked) {
    let (low, high, scales) = (&block[..128], &block[128..192], &block[192..208]);
    let d = f16(block, 208);
    for (value, scale) in out.scales.iter_mut().zip(scales) {
        *value = d * f32::from(scale.cast_signed());
    }
    for half in 0..2 {
        let (low, high) = (&low[half * 64..], &high[half * 32..]);
        let codes = &mut out.codes[half * 128..][..128];
        for i in 0..32 {
            codes[i] = (low[i] & 15) | ((high[i] & 3) << 4);
            codes[i + 32] = (low[i + 32] & 15) | (((high[i] >> 2) & 3) << 4);
            codes[i + 64] = (low[i] >> 4) | (((high[i] >> 4) & 3) << 4);
            codes[i + 96] = (low[i + 32] >> 4) | ((high[i] >> 6) << 4);
        }
    }
}
