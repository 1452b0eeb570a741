//! E4M3 weights: a byte a weight, one f32 scale for 128 columns of a row, as they are stored.
//!
//! Codes become the bf16 words of `bf16.rs`, which hold every one of them exactly, a group of a pair of panels at a time, in
//! memory of the thread. An output is one chain over the groups: the sum of a group, made as those of BF16 weights are, times
//! the scale of the weights, is added to what came before. So weights are exact, and activations as fine as for BF16.
//!
//! Layout: codes `[pair][four columns][32 rows]` of four bytes, scales `[pair][group][32 rows]`.

use std::ops::Range;

use super::bf16::{self, Block, WordColumn};
use super::linear::Input;
use super::matrix::PAIR;
use super::simd::{LANES, Simd, Task};
use super::tiles::Tile;
use crate::dtype::Dtype;
use crate::memory::Aligned;
use crate::quant::e4m3;

/// Codes and scales of a matrix.
#[derive(Debug)]
pub(super) struct Eights {
    pub(super) codes: Aligned<u8>,
    pub(super) scales: Aligned<f32>,
}

impl Eights {
    /// Writes row `lane` of a pair, dequantised, to `out`, which is as wide as the matrix.
    pub(super) fn read_row(&self, pair: usize, lane: usize, out: &mut [f32]) {
        let (codes, scales) = self.pair(pair, out.len());
        let codes = codes.as_chunks::<4>().0.iter().skip(lane).step_by(PAIR);
        let groups = scales.iter().flat_map(|scales| [scales[lane]; GROUP / 4]);
        for ((out, codes), scale) in out.chunks_mut(4).zip(codes).zip(groups) {
            out.iter_mut().zip(codes).for_each(|(out, code)| *out = scale * e4m3::decode(*code));
        }
    }

    /// The codes of a pair, and its scales by group.
    fn pair(&self, pair: usize, cols: usize) -> (&[u8], &[[f32; PAIR]]) {
        let groups = cols / GROUP;
        let codes = &self.codes[pair * PAIR * cols..][..PAIR * cols];
        (codes, &self.scales.as_chunks().0[pair * groups..][..groups])
    }

    /// One pair of panels over all rows of the tile. `scratch` has room for [`WORDS_BYTES`].
    #[inline(always)]
    pub(super) fn multiply<S: Simd>(
        &self,
        s: S,
        (pair, width): (usize, usize),
        input: Input<'_>,
        cols: &Range<usize>,
        (out, scratch): (&mut Tile<'_, f32>, &mut [u8]),
    ) {
        let (codes, scales) = self.pair(pair, width);
        if scales.is_empty() {
            for t in out.rows.clone() {
                out.row(t)[cols.clone()].fill(0.0);
            }
        }
        let words = &mut scratch.as_chunks_mut::<{ size_of::<WordColumn>() }>().0[..GROUP / 2];
        for (n, (scales, codes)) in scales.iter().zip(codes.chunks(PAIR * GROUP)).enumerate() {
            s.call(Widen { codes, words: &mut *words });
            let block = Block { first: n * GROUP / 2, weights: words, scales: Some(scales) };
            match input.bf16 {
                Some(proof) => input.quantised.bf16.block((proof, input.amx), block, cols, out),
                None => bf16::block(s, (input.x, width), block, cols, out),
            }
        }
    }
}

/// From the codes of a group to words of two bf16.
struct Widen<'a> {
    codes: &'a [u8],
    words: &'a mut [WordColumn],
}

impl Task for Widen<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let fours = self.codes.as_chunks::<{ 4 * PAIR }>().0;
        for (n, (codes, words)) in fours.iter().zip(self.words.as_chunks_mut().0).enumerate() {
            for line in 0..2 {
                s.prefetch(self.codes, PREFETCH + n * 4 * PAIR + line * 64);
            }
            let [first, second] = words;
            let columns =
                first.as_chunks_mut::<4>().0.iter_mut().zip(second.as_chunks_mut::<4>().0);
            for (codes, (first, second)) in codes.as_chunks::<4>().0.iter().zip(columns) {
                let codes = u32::from_le_bytes(*codes);
                *first = word(codes << 24, codes << 16).to_le_bytes();
                *second = word(codes << 8, codes).to_le_bytes();
            }
        }
    }
}

/// Two codes, each in the highest byte, as bf16, the first in the low half.
#[inline(always)]
fn word(low: u32, high: u32) -> u32 {
    (widened(low) >> 16) | (widened(high) & 0xffff_0000)
}

/// The bits of the f32 of the code in the highest byte. A loop of it becomes vectors.
#[inline(always)]
fn widened(code: u32) -> u32 {
    // Sign, exponent and mantissa where an f32 has them; 2^120 makes up for the bias, below the normal values too.
    let bits = (code.cast_signed() >> 4).cast_unsigned() & 0x87f0_0000;
    let value = (f32::from_bits(bits) * f32::from_bits((127 + 120) << 23)).to_bits();
    if code & 0x7f00_0000 == 0x7f00_0000 { f32::NAN.to_bits() } else { value }
}

/// A pair of stored rows.
pub(super) struct Repack<'a> {
    /// 32 rows of `row_bytes`.
    pub(super) rows: &'a [u8],
    pub(super) row_bytes: usize,
    pub(super) codes: &'a mut [u8],
    pub(super) scales: &'a mut [f32],
}

impl Task for Repack<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { rows, row_bytes: stride, codes, scales } = self;
        for (panel, rows) in rows.chunks_exact((LANES * stride).max(1)).enumerate() {
            let groups = codes.chunks_exact_mut(PAIR * GROUP).zip(scales.chunks_exact_mut(PAIR));
            for (g, (codes, scales)) in groups.enumerate() {
                let at = g * Dtype::F8E4M3.group_bytes();
                let rows = &rows[at..];
                for (lane, scale) in scales[panel * LANES..][..LANES].iter_mut().enumerate() {
                    let mut bytes = [0; SCALE];
                    bytes.copy_from_slice(&rows[lane * stride..][..SCALE]);
                    *scale = f32::from_le_bytes(bytes);
                }
                for (n, codes) in codes.chunks_exact_mut(16 * PAIR).enumerate() {
                    let fours = simd.columns(&rows[SCALE + 16 * n..], stride);
                    for (codes, x) in codes.chunks_exact_mut(4 * PAIR).zip(fours) {
                        simd.store_b(x, &mut codes[panel * 4 * LANES..]);
                    }
                }
            }
        }
    }
}

/// Columns that share a scale.
const GROUP: usize = Dtype::F8E4M3.group_len();
/// Bytes of a stored scale, in front of its codes.
const SCALE: usize = Dtype::F8E4M3.group_bytes() - GROUP;
/// How far ahead codes are asked for.
const PREFETCH: usize = 8192;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_becomes_its_bf16() {
        for code in 0..=u8::MAX {
            let (found, expected) =
                (widened(u32::from(code) << 24 | 0x5a_5a5a), e4m3::decode(code));
            if expected.is_nan() {
                assert!(f32::from_bits(found).is_nan(), "{code:#x}");
            } else {
                assert_eq!(found, expected.to_bits(), "{code:#x}");
            }
        }
    }
}
