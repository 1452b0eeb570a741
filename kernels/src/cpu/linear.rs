//! Products with weight matrices: one tile is some pairs of panels by some rows of activations.
//!
//! Every output is one chain: for quantised types, group after group of 32 (Q6_K: 16) an exact
//! integer sum, times the activation's scale, then one fused multiply-add with the weight's scale
//! and one with its minimum; for float types column after column one fused multiply-add. The chain
//! is the same in every kernel below, so a row's results do not depend on how many rows there are,
//! how they are tiled or who computes them.

use super::activations::{Activations, Part};
use super::float;
use super::matrix::{Data, Format, Matrix, PAIR, Quantised};
use super::scales::{self, RECORD};
use super::simd::{Simd, Task};
use super::tiles::Tile;
use crate::dtype::Dtype;

/// A worker's memory for one unpacked block of weights.
pub(super) struct Scratch {
    codes: Vec<u8>,
    scales: Vec<f32>,
}

impl Default for Scratch {
    fn default() -> Self {
        Self { codes: vec![0; BLOCK_GROUPS * 2 * 512], scales: vec![0.0; BLOCK_GROUPS * RECORD] }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        zeroize::Zeroize::zeroize(&mut self.codes);
        zeroize::Zeroize::zeroize(&mut self.scales);
    }
}

/// The input of a product in the forms that weight types need.
#[derive(Clone, Copy)]
pub(super) struct Input<'a> {
    /// `[rows, cols]`.
    pub(super) x: &'a [f32],
    /// The same, quantised, where an output needs it.
    pub(super) quantised: &'a Activations,
    /// Byte planes of the quantised form.
    pub(super) planes: usize,
}

/// One tile of one product.
pub(super) struct LinearTile<'a, 'b> {
    pub(super) input: Input<'a>,
    pub(super) weight: &'a Matrix,
    pub(super) bias: Option<&'a [f32]>,
    pub(super) out: Tile<'b, f32>,
    pub(super) scratch: &'a mut Scratch,
}

impl Task for LinearTile<'_, '_> {
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { input, weight, bias, mut out, scratch } = self;
        for first in out.cols.clone().step_by(PAIR) {
            let last = (first + PAIR).min(out.cols.end);
            let cols = first - out.cols.start..last - out.cols.start;
            match &weight.data {
                Data::F32(data) => {
                    let data = &data[first * weight.cols..][..PAIR * weight.cols];
                    float::pair::<S, f32, false>(
                        s,
                        input.x,
                        weight.cols,
                        data,
                        cols.clone(),
                        &mut out,
                    );
                }
                Data::Half(data) => {
                    let data = &data[first * weight.cols..][..PAIR * weight.cols];
                    if weight.dtype == Dtype::Bf16 {
                        float::pair::<S, u16, true>(
                            s,
                            input.x,
                            weight.cols,
                            data,
                            cols.clone(),
                            &mut out,
                        );
                    } else {
                        float::pair::<S, u16, false>(
                            s,
                            input.x,
                            weight.cols,
                            data,
                            cols.clone(),
                            &mut out,
                        );
                    }
                }
                Data::Quantised(q) => {
                    let mut strip =
                        Strip { q, pair: first / PAIR, input, cols: cols.clone(), out: &mut out };
                    if input.planes == 1 {
                        strip.run::<S, 1>(s, scratch);
                    } else {
                        strip.run::<S, 2>(s, scratch);
                    }
                }
            }
            if let Some(bias) = bias {
                for t in out.rows.clone() {
                    let out = &mut out.row(t)[cols.clone()];
                    out.iter_mut().zip(&bias[first..last]).for_each(|(out, bias)| *out += bias);
                }
            }
        }
    }
}

/// One pair of panels of a quantised matrix, over the rows of a tile.
struct Strip<'a, 'b, 'c> {
    q: &'a Quantised,
    pair: usize,
    input: Input<'a>,
    /// Columns of the tile that this pair fills.
    cols: std::ops::Range<usize>,
    out: &'b mut Tile<'c, f32>,
}

/// One block of groups of a pair, ready to multiply.
#[derive(Clone, Copy)]
struct Block<'a> {
    first: usize,
    groups: usize,
    /// `[group][panel]` packed or unpacked codes.
    codes: &'a [u8],
    /// Records of the groups' scales.
    scales: &'a [f32],
}

impl Strip<'_, '_, '_> {
    #[inline(always)]
    fn run<S: Simd, const PLANES: usize>(&mut self, s: S, scratch: &mut Scratch) {
        let format = self.q.format;
        let pair = &self.q.codes[self.pair * format.pair_bytes()..][..format.pair_bytes()];
        let (small, codes) = pair.split_at(format.small_bytes());
        let halves = &self.q.halves[self.pair * format.pair_halves()..][..format.pair_halves()];
        let group_bytes = 2 * format.group_bytes();
        if format.groups == 0 {
            for t in self.out.rows.clone() {
                self.out.row(t)[self.cols.clone()].fill(0.0);
            }
        }
        for first in (0..format.groups).step_by(BLOCK_GROUPS) {
            let groups = BLOCK_GROUPS.min(format.groups - first);
            let range = first..first + groups;
            scales::expand(s, format, range, halves, small, &mut scratch.scales);
            let codes = &codes[first * group_bytes..][..groups * group_bytes];
            let scales = &scratch.scales[..];
            let block = Block { first, groups, codes, scales };
            // Few rows: the codes are unpacked in registers. More: once into the scratch memory.
            if (self.out.rows.len() <= 4 && !S::PLAIN) || format.bits == 8 {
                self.rows_of::<S, PLANES>(s, format, format.bits, block);
            } else {
                scales::unpack_codes(s, format, codes, &mut scratch.codes);
                let block = Block { codes: &scratch.codes, ..block };
                self.rows_of::<S, PLANES>(s, format, 8, block);
            }
        }
    }

    /// Picks the kernel for the width of the codes as they now are.
    #[inline(always)]
    fn rows_of<S: Simd, const PLANES: usize>(
        &mut self,
        s: S,
        format: Format,
        bits: usize,
        block: Block<'_>,
    ) {
        let wide = format.bits == 8 && !S::DOT_TAKES_ALL;
        if S::PLAIN {
            return match format.bits {
                6 => self.rows::<S, PLANES, 8, 2, false>(s, block),
                _ => self.rows::<S, PLANES, 8, 1, false>(s, block),
            };
        }
        match (bits, format.bits) {
            (4, _) => self.rows::<S, PLANES, 4, 1, false>(s, block),
            (5, _) => self.rows::<S, PLANES, 5, 1, false>(s, block),
            (6, _) => self.rows::<S, PLANES, 6, 2, false>(s, block),
            (_, 6) => self.rows::<S, PLANES, 8, 2, false>(s, block),
            _ if wide && !S::DOT_TAKES_ALL => self.rows::<S, PLANES, 8, 1, true>(s, block),
            _ => self.rows::<S, PLANES, 8, 1, false>(s, block),
        }
    }

    /// All rows of the tile, as many at a time as registers hold.
    #[inline(always)]
    fn rows<
        S: Simd,
        const PLANES: usize,
        const BITS: usize,
        const SUBS: usize,
        const WIDE: bool,
    >(
        &mut self,
        s: S,
        block: Block<'_>,
    ) {
        let rows = self.out.rows.clone();
        let mut t = rows.start;
        if S::MANY_REGISTERS && PLANES == 1 {
            while t + 4 <= rows.end {
                let strip = &mut *self;
                s.call(Chunk::<PLANES, BITS, SUBS, WIDE, 4, 2> { strip, t, block });
                t += 4;
            }
        }
        if BITS == 8 && !S::PLAIN {
            while t + 2 <= rows.end {
                let strip = &mut *self;
                if S::MANY_REGISTERS {
                    s.call(Chunk::<PLANES, BITS, SUBS, WIDE, 2, 2> { strip, t, block });
                } else {
                    s.call(Chunk::<PLANES, BITS, SUBS, WIDE, 2, 1> { strip, t, block });
                }
                t += 2;
            }
        }
        while t < rows.end {
            let strip = &mut *self;
            if S::MANY_REGISTERS {
                s.call(Chunk::<PLANES, BITS, SUBS, WIDE, 1, 2> { strip, t, block });
            } else {
                s.call(Chunk::<PLANES, BITS, SUBS, WIDE, 1, 1> { strip, t, block });
            }
            t += 1;
        }
    }
}

/// `R` rows by both panels of a block, `N` panels at a time; sums continue those of the block before.
struct Chunk<
    'a,
    's,
    'b,
    'c,
    const PLANES: usize,
    const BITS: usize,
    const SUBS: usize,
    const WIDE: bool,
    const R: usize,
    const N: usize,
> {
    strip: &'a mut Strip<'s, 'b, 'c>,
    t: usize,
    block: Block<'a>,
}

impl<
    const PLANES: usize,
    const BITS: usize,
    const SUBS: usize,
    const WIDE: bool,
    const R: usize,
    const N: usize,
> Task for Chunk<'_, '_, '_, '_, PLANES, BITS, SUBS, WIDE, R, N>
{
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { strip, t, block } = self;
        let Format { dtype, min, .. } = strip.q.format;
        let quantised = strip.input.quantised;
        let records = block.first * (8 * PLANES + Part::COUNT);
        let rows: [_; R] = std::array::from_fn(|m| &quantised.row(t + m)[records..]);
        let mut carry = [[0f32; PAIR]; R];
        if block.first > 0 {
            for (m, carry) in carry.iter_mut().enumerate() {
                let out = &strip.out.row(t + m)[strip.cols.clone()];
                carry[..out.len()].copy_from_slice(out);
            }
        }
        for panel in (0..2).step_by(N) {
            let mut sums: [[S::F; N]; R] = std::array::from_fn(|m| {
                std::array::from_fn(|n| s.load(&carry[m][(panel + n) * 16..]))
            });
            kernel::<S, PLANES, BITS, SUBS, WIDE, R, N>(
                s,
                (dtype, min),
                block,
                panel,
                &rows,
                &mut sums,
            );
            for (carry, sums) in carry.iter_mut().zip(sums) {
                for (n, sum) in sums.into_iter().enumerate() {
                    s.store(sum, &mut carry[(panel + n) * 16..]);
                }
            }
        }
        for (m, carry) in carry.iter().enumerate() {
            let out = &mut strip.out.row(t + m)[strip.cols.clone()];
            out.copy_from_slice(&carry[..out.len()]);
        }
    }
}

/// The inner loop: `R` rows by `N` panels over the groups of a block.
#[inline(always)]
fn kernel<
    S: Simd,
    const PLANES: usize,
    const BITS: usize,
    const SUBS: usize,
    const WIDE: bool,
    const R: usize,
    const N: usize,
>(
    s: S,
    (dtype, min): (Dtype, bool),
    block: Block<'_>,
    panel: usize,
    rows: &[&[i32]; R],
    sums: &mut [[S::F; N]; R],
) {
    let (group_bytes, record) = (BITS * 64, 8 * PLANES + Part::COUNT);
    // Masks, so that the compiler sees that the index lies within a record.
    let start = Part::start(dtype) & 7;
    let groups = block.codes.chunks_exact(2 * group_bytes).zip(block.scales.chunks_exact(RECORD));
    for (g, (codes, scales)) in groups.take(block.groups).enumerate() {
        let codes = &codes[panel * group_bytes..][..N * group_bytes];
        let mut x = [&rows[0][..0]; R];
        for m in 0..R {
            x[m] = &rows[m][g * record..][..record];
        }
        if BITS != 8 || R == 1 {
            for line in 0..N * BITS {
                s.prefetch(codes, PREFETCH + 64 * line);
            }
        }
        for sub in 0..SUBS {
            let zero = s.splat_i(0);
            let (mut low, mut high) = ([[zero; N]; R], [[zero; N]; R]);
            for m in 0..R {
                low[m] = [s.splat_i(x[m][8 * PLANES + ((start + sub) & 7)]); N];
            }
            for step in sub * 8 / SUBS..(sub + 1) * 8 / SUBS {
                let mut w = [scales::codes::<S, BITS>(s, codes, step); N];
                if N == 2 {
                    w[N - 1] = scales::codes::<S, BITS>(s, &codes[(N - 1) * group_bytes..], step);
                }
                for m in 0..R {
                    for n in 0..N {
                        if PLANES == 2 {
                            high[m][n] = s.dot::<WIDE>(high[m][n], w[n], x[m][step]);
                        }
                        let last = x[m][(PLANES - 1) * 8 + step];
                        low[m][n] = s.dot::<WIDE>(low[m][n], w[n], last);
                    }
                }
            }
            for m in 0..R {
                let scale = s.splat(f32::from_bits(x[m][8 * PLANES + Part::SCALE].cast_unsigned()));
                for n in 0..N {
                    let mut sum = low[m][n];
                    if PLANES == 2 {
                        sum = s.add_i(sum, s.shl_i::<8>(high[m][n]));
                    }
                    let weight = s.load(&scales[sub * PAIR + (panel + n) * 16..]);
                    sums[m][n] = s.fma(s.mul(s.to_f(sum), scale), weight, sums[m][n]);
                }
            }
        }
        if min {
            for m in 0..R {
                let sum = s.splat(f32::from_bits(x[m][8 * PLANES + Part::SUM].cast_unsigned()));
                for n in 0..N {
                    let min = s.load(&scales[PAIR + (panel + n) * 16..]);
                    sums[m][n] = s.fma(min, sum, sums[m][n]);
                }
            }
        }
    }
}

/// Groups in a block: 768 columns, 24 KiB of unpacked codes in the first-level cache. A multiple
/// of the 8 groups that a K type stores together.
pub(super) const BLOCK_GROUPS: usize = 24;
/// How far ahead weights are asked for when each is used once.
const PREFETCH: usize = 4096;
