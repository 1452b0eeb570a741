//! Weights in the layout of the kernels; `upload.rs` and `repack.rs` bring them there.
//!
//! Rows are stored in pairs of panels: 32 rows, two vectors of 16 lanes, one lane to a row (rows
//! beyond the last are as if their stored bytes were zero). F32 and F16 keep their values:
//! `[pair][column][32 rows]`. BF16 keeps two columns in a word, `[pair][two columns][32 rows]`, the first
//! in its low half; an odd last column has zeros beside it. E4M3: `f8.rs`. Quantised types keep the width of their codes (4, 5, 6 or 8 bits a value) and the stored form of their
//! scales, so that a pass over the weights reads as many bytes as ggml's file has:
//!
//! - codes `[pair][group of 32][panel]`: eight steps of 64 bytes, byte `4 * lane + i` of step `s` is
//!   column `4 * s + i` of the row `lane`. Narrow types hold the low halves of the codes of step `s`
//!   and `s + 4` in the low and high halves of 64 bytes, then the upper bits of step `s` at bit `s`
//!   of 64 more bytes (5-bit) or the bit pairs of steps `s` and `s + 4` at bits `2 * (s % 4)` of the
//!   first and second 64 (6-bit).
//! - f16 scales `[pair][stored group][panel]`: 16 scales, then 16 minima where the type has them.
//! - K types: before the codes of a pair, `[stored group][panel]` 256 bytes of small scales: for each
//!   sub-group 16 scales and 16 minima (Q6_K: 16 times 16 signed scales).

use super::bf16::WordColumn;
use super::f8::Eights;
use crate::dtype::Dtype;
use crate::memory::Aligned;
use crate::quant;

/// Rows of a pair of panels.
pub(super) const PAIR: usize = 32;

/// Weights of a linear layer or an embedding.
#[derive(Debug)]
pub struct Matrix {
    pub(super) rows: usize,
    pub(super) cols: usize,
    pub(super) data: Data,
}

/// The values by the width of their storage.
#[derive(Debug)]
pub(super) enum Data {
    F32(Aligned<f32>),
    F16(Aligned<u16>),
    Bf16(Aligned<u8>),
    F8(Eights),
    Quantised(Quantised),
}

/// Codes and scales.
#[derive(Debug)]
pub(super) struct Quantised {
    pub(super) format: Format,
    pub(super) halves: Aligned<u16>,
    pub(super) codes: Aligned<u8>,
}

/// Sizes of a quantised layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Format {
    pub(super) dtype: Dtype,
    /// Bits of a code.
    pub(super) bits: usize,
    /// Whether groups have a minimum; else codes have an offset.
    pub(super) min: bool,
    /// Groups of 32 columns in a row.
    pub(super) groups: usize,
    /// Groups of 32 in a stored group.
    pub(super) per_stored: usize,
}

impl Format {
    pub(super) fn new(dtype: Dtype, cols: usize) -> Option<Self> {
        let (bits, min) = match dtype {
            Dtype::Q4_0 => (4, false),
            Dtype::Q4_1 | Dtype::Q4K => (4, true),
            Dtype::Q5_0 => (5, false),
            Dtype::Q5_1 | Dtype::Q5K => (5, true),
            Dtype::Q6K => (6, false),
            Dtype::Q8_0 => (8, false),
            Dtype::F32 | Dtype::F16 | Dtype::Bf16 | Dtype::F8E4M3 => return None,
        };
        Some(Self { dtype, bits, min, groups: cols / 32, per_stored: dtype.group_len() / 32 })
    }

    /// Bytes of the codes of a group of 32 in one panel.
    pub(super) fn group_bytes(self) -> usize {
        self.bits * 64
    }

    /// Bytes of the small scales of a pair.
    pub(super) fn small_bytes(self) -> usize {
        if self.per_stored == 1 { 0 } else { self.groups / self.per_stored * 512 }
    }

    /// Bytes of a pair: small scales and codes.
    pub(super) fn pair_bytes(self) -> usize {
        self.small_bytes() + self.groups * 2 * self.group_bytes()
    }

    /// f16 values of one panel in a stored group.
    pub(super) fn halves_len(self) -> usize {
        if self.min { 32 } else { 16 }
    }

    /// f16 values of a pair.
    pub(super) fn pair_halves(self) -> usize {
        self.groups / self.per_stored * 2 * self.halves_len()
    }
}

impl Matrix {
    /// Writes row `row`, dequantised, to `out`.
    pub(super) fn read_row(&self, row: usize, out: &mut [f32]) {
        assert!(row < self.rows && out.len() == self.cols, "row {row} of {}", self.rows);
        let (pair, lane) = (row / PAIR, row % PAIR);
        let first = pair * PAIR * self.cols + lane;
        match &self.data {
            Data::F32(values) => {
                let values = values[first..].iter().step_by(PAIR);
                out.iter_mut().zip(values).for_each(|(out, x)| *out = *x);
            }
            Data::F16(values) => {
                let values = values[first..].iter().step_by(PAIR);
                out.iter_mut().zip(values).for_each(|(out, x)| {
                    *out = half::f16::from_bits(*x).to_f32();
                });
            }
            Data::Bf16(_) => {
                for (out, column) in out.chunks_mut(2).zip(self.word_columns(pair)) {
                    let values = column[4 * lane..].as_chunks().0;
                    out.iter_mut().zip(values).for_each(|(out, x)| {
                        *out = half::bf16::from_le_bytes(*x).to_f32();
                    });
                }
            }
            Data::F8(data) => data.read_row(pair, lane, out),
            Data::Quantised(q) => q.read_row(pair, lane / 16, lane % 16, out),
        }
    }
}

impl Matrix {
    /// The pair of panels `pair` of BF16 weights; nothing of others.
    pub(super) fn word_columns(&self, pair: usize) -> &[WordColumn] {
        let Data::Bf16(bytes) = &self.data else { return &[] };
        let columns = self.cols.div_ceil(2);
        &bytes.as_chunks().0[pair * columns..][..columns]
    }
}

impl Quantised {
    fn read_row(&self, pair: usize, panel: usize, lane: usize, out: &mut [f32]) {
        let format = self.format;
        let pair_codes = &self.codes[pair * format.pair_bytes()..][..format.pair_bytes()];
        let (small, codes) = pair_codes.split_at(format.small_bytes());
        let halves = &self.halves[pair * format.pair_halves()..][..format.pair_halves()];
        let offset = quant::offset(format.dtype);
        for (g, out) in out.chunks_exact_mut(32).enumerate() {
            let codes = &codes[(g * 2 + panel) * format.group_bytes()..][..format.group_bytes()];
            let stored = g / format.per_stored * 2 + panel;
            let halves = &halves[stored * format.halves_len()..][..format.halves_len()];
            let f16 = |at: usize| half::f16::from_bits(halves[at]).to_f32();
            let d = f16(lane);
            let d_min = if format.min { f16(16 + lane) } else { 0.0 };
            for (i, out) in out.iter_mut().enumerate() {
                let (scale, min) = match format.dtype {
                    Dtype::Q4K | Dtype::Q5K => {
                        let small = &small[stored * 256 + g % 8 * 32..][..32];
                        (d * f32::from(small[lane]), -(d_min * f32::from(small[16 + lane])))
                    }
                    Dtype::Q6K => {
                        let sub = g % 8 * 2 + i / 16;
                        let small = small[stored * 256 + sub * 16 + lane];
                        (d * f32::from(small.cast_signed()), 0.0)
                    }
                    _ => (d, d_min),
                };
                let q = (i32::from(code(codes, format.bits, lane, i)) - offset) as f32;
                *out = if format.min { scale * q + min } else { scale * q };
            }
        }
    }
}

/// The code of column `i` of the row `lane` in a packed group.
fn code(codes: &[u8], bits: usize, lane: usize, i: usize) -> u8 {
    let (step, byte) = (i / 4, 4 * lane + i % 4);
    if bits == 8 {
        return codes[step * 64 + byte];
    }
    let low = (codes[step % 4 * 64 + byte] >> (step / 4 * 4)) & 15;
    let high = match bits {
        5 => (codes[256 + byte] >> step) & 1,
        6 => (codes[256 + step / 4 * 64 + byte] >> (step % 4 * 2)) & 3,
        _ => 0,
    };
    low | (high << 4)
}
