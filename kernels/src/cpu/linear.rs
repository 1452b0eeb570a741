//! Products with weight matrices: one tile is some pairs of panels by some rows of activations.
//!
//! Every output is one chain. For quantised types, block after block of 24 groups: group after group
//! of 32 (Q6_K: 16) an exact integer sum, times the activation's scale, then one fused multiply-add
//! with the weight's scale and one with its minimum; then the same for those groups of the block that
//! have a second record, without minima. For F32 and F16 column after column one fused multiply-add; for BF16
//! see `bf16.rs`, for E4M3 `f8.rs`.
//! The chain is the same in every kernel below, so a row's results do not depend on how many rows
//! there are, how they are tiled or who computes them.

use std::ops::Range;

use super::activations::{self, Activations, Part, Record};
use super::amx::{self, Amx, Configured};
use super::avx512_bf16::Avx512Bf16;
use super::bf16;
use super::float;
use super::matrix::{Data, Format, Matrix, PAIR, Quantised};
use super::scales::{self, RECORD};
use super::simd::{Simd, Task};
use super::tile_rows::TILE_ROWS;
use super::tiles::Tile;
use crate::device::DeviceError;
use crate::memory::Aligned;

/// A worker's memory for one unpacked block of weights; wiped on drop.
pub(super) struct Scratch {
    codes: Aligned<u8>,
    scales: Aligned<f32>,
}

impl Scratch {
    pub(super) fn new() -> Result<Self, DeviceError> {
        Ok(Self {
            codes: Aligned::zeroed("unpacked weights", BLOCK_GROUPS * 2 * 512 + APART)?,
            scales: Aligned::zeroed("unpacked scales", BLOCK_GROUPS * RECORD + APART)?,
        })
    }
}

/// The input of a product in the forms that weight types need.
#[derive(Clone, Copy)]
pub(super) struct Input<'a> {
    /// `[rows, cols]`, where an output needs it.
    pub(super) x: &'a [f32],
    /// The same, quantised, where an output needs it.
    pub(super) quantised: &'a Activations,
    /// How BF16 and E4M3 weights are taken, where the CPU has sums of their products.
    pub(super) bf16: Option<Avx512Bf16>,
    /// How many rows meet quantised weights, and all rows BF16 and E4M3 ones, where the CPU has tiles.
    pub(super) amx: Option<Amx>,
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
                    float::pair(s, input.x, weight.cols, data, cols.clone(), &mut out);
                }
                Data::F16(data) => {
                    let data = &data[first * weight.cols..][..PAIR * weight.cols];
                    float::pair(s, input.x, weight.cols, data, cols.clone(), &mut out);
                }
                Data::Bf16(_) => {
                    let columns = weight.word_columns(first / PAIR);
                    if let Some(proof) = input.bf16 {
                        let units = (proof, input.amx);
                        input.quantised.bf16.pair(units, columns, &cols, &mut out);
                    } else {
                        bf16::pair(s, input.x, weight.cols, columns, &cols, &mut out);
                    }
                }
                Data::F8(data) => {
                    let at = (first / PAIR, weight.cols);
                    data.multiply(s, at, input, &cols, (&mut out, &mut scratch.codes));
                }
                Data::Quantised(q) => {
                    let mut strip =
                        Strip { q, pair: first / PAIR, input, cols: cols.clone(), out: &mut out };
                    strip.run(s, scratch);
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
    cols: Range<usize>,
    out: &'b mut Tile<'c, f32>,
}

/// One block of groups of a pair, ready to multiply.
#[derive(Clone, Copy)]
struct Block<'a> {
    first: usize,
    groups: usize,
    /// `[group][panel]` packed or unpacked codes.
    codes: &'a [u8],
    /// The same, packed, behind which lie those of the next block.
    packed: &'a [u8],
    /// Records of the groups' scales.
    scales: &'a [f32],
}

impl Strip<'_, '_, '_> {
    #[inline(always)]
    fn run<S: Simd>(&mut self, s: S, scratch: &mut Scratch) {
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
            let block = Block { first, groups, codes, packed: codes, scales };
            // Few rows: the codes are unpacked in registers. More: once into the scratch memory.
            if (self.out.rows.len() <= 4 && !S::PLAIN) || format.bits == 8 {
                self.rows_of::<S>(s, format, format.bits, block);
            } else {
                scales::unpack_codes(s, format, codes, &mut scratch.codes);
                let block = Block { codes: &scratch.codes, ..block };
                self.rows_of::<S>(s, format, 8, block);
            }
        }
    }

    /// Picks the kernel for the width of the codes as they now are.
    #[inline(always)]
    fn rows_of<S: Simd>(&mut self, s: S, format: Format, bits: usize, block: Block<'_>) {
        if S::PLAIN {
            return match format.bits {
                6 => self.rows::<S, 8, 2, false>(s, block),
                _ => self.rows::<S, 8, 1, false>(s, block),
            };
        }
        match (bits, format.bits) {
            (4, _) => self.rows::<S, 4, 1, false>(s, block),
            (5, _) => self.rows::<S, 5, 1, false>(s, block),
            (6, _) => self.rows::<S, 6, 2, false>(s, block),
            (_, 6) => self.rows::<S, 8, 2, false>(s, block),
            (_, 8) if !S::DOT_TAKES_ALL => self.rows::<S, 8, 1, true>(s, block),
            _ => self.rows::<S, 8, 1, false>(s, block),
        }
    }

    /// All rows of the tile, as many at a time as registers hold.
    #[inline(always)]
    fn rows<S: Simd, const BITS: usize, const SUBS: usize, const WIDE: bool>(
        &mut self,
        s: S,
        block: Block<'_>,
    ) {
        let rows = self.out.rows.clone();
        let mut t = rows.start;
        if BITS == 8
            && rows.len() >= TILED_ROWS
            && let Some(amx) = self.input.amx
        {
            t = self.tiles::<S, SUBS>(s, &amx.configure(), block);
        }
        while S::MANY_REGISTERS && t + 4 <= rows.end {
            let strip = &mut *self;
            s.call(Chunk::<BITS, SUBS, WIDE, 4, 2> { strip, t, block });
            t += 4;
        }
        while !S::PLAIN && t + 2 <= rows.end {
            let strip = &mut *self;
            if S::MANY_REGISTERS {
                s.call(Chunk::<BITS, SUBS, WIDE, 2, 2> { strip, t, block });
            } else {
                s.call(Chunk::<BITS, SUBS, WIDE, 2, 1> { strip, t, block });
            }
            t += 2;
        }
        while t < rows.end {
            let strip = &mut *self;
            if S::MANY_REGISTERS {
                s.call(Chunk::<BITS, SUBS, WIDE, 1, 2> { strip, t, block });
            } else {
                s.call(Chunk::<BITS, SUBS, WIDE, 1, 1> { strip, t, block });
            }
            t += 1;
        }
    }
}

impl Strip<'_, '_, '_> {
    /// All rows that fill tiles; codes have a byte. Returns the first of the others.
    #[inline(always)]
    fn tiles<S: Simd, const SUBS: usize>(
        &mut self,
        s: S,
        tiles: &Configured<SUBS>,
        block: Block<'_>,
    ) -> usize {
        let rows = self.out.rows.clone();
        let Format { dtype, min, .. } = self.q.format;
        let start = Some(activations::start(dtype) & 15).filter(|start| *start < 15);
        let Block { first, groups, codes, scales, .. } = block;
        for line in 0..block.packed.len() / LINE {
            s.prefetch(block.packed, block.packed.len() + line * LINE);
        }
        let mut t = rows.start;
        let mut sums = amx::Sums([[0.0; PAIR]; TILE_ROWS]);
        while t + TILE_ROWS <= rows.end {
            let chunk = self.input.quantised.tiles.chunk(t);
            let (fine, tiled) = (chunk.fine(first / BLOCK_GROUPS), &chunk.tiles(first)[..groups]);
            let job = amx::Block { tiles: tiled, fine, first, codes, scales, start, min };
            if first > 0 {
                sums.0 = self.carry::<TILE_ROWS>(t, first);
            }
            tiles.multiply(&job, &mut sums);
            for (m, sums) in sums.0.iter().enumerate() {
                self.keep(t + m, sums);
            }
            t += TILE_ROWS;
        }
        t
    }

    /// Sums of the blocks before, or zeros.
    #[inline(always)]
    fn carry<const R: usize>(&mut self, t: usize, first: usize) -> [[f32; PAIR]; R] {
        let mut carry = [[0f32; PAIR]; R];
        if first > 0 {
            for (m, carry) in carry.iter_mut().enumerate() {
                match &self.out.row(t + m)[self.cols.clone()] {
                    // Of a known length: no call.
                    whole if whole.len() == PAIR => carry.copy_from_slice(&whole[..PAIR]),
                    part => carry[..part.len()].copy_from_slice(part),
                }
            }
        }
        carry
    }

    /// Adds the second records of row `t`.
    #[inline(always)]
    fn fine<S: Simd, const BITS: usize, const SUBS: usize, const WIDE: bool, const N: usize>(
        &self,
        s: S,
        block: Block<'_>,
        t: usize,
        carry: &mut [f32; PAIR],
    ) {
        let start = activations::start(self.q.format.dtype) & 15;
        let records = self.input.quantised.row(t).fine(block.first / BLOCK_GROUPS);
        if records.is_empty() {
            return;
        }
        for panel in (0..2).step_by(N) {
            let carry = &mut carry[panel * 16..];
            let mut sums = [[s.load(carry); N]];
            for n in 1..N {
                sums[0][n] = s.load(&carry[n * 16..]);
            }
            for record in records {
                let g = record[Part::SUM] as usize - block.first;
                let group = Group::<BITS>::new(block, g, panel);
                group.dot::<S, SUBS, WIDE, 1, N>(s, start, [record], &mut sums);
            }
            for (n, sum) in sums[0].into_iter().enumerate() {
                s.store(sum, &mut carry[n * 16..]);
            }
        }
    }

    /// Writes the sums of row `t` out.
    #[inline(always)]
    fn keep(&mut self, t: usize, carry: &[f32; PAIR]) {
        match &mut self.out.row(t)[self.cols.clone()] {
            whole if whole.len() == PAIR => whole[..PAIR].copy_from_slice(carry),
            part => part.copy_from_slice(&carry[..part.len()]),
        }
    }
}

/// `R` rows by both panels of a block, `N` panels at a time; sums continue those of the block before.
struct Chunk<
    'a,
    's,
    'b,
    'c,
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

impl<const BITS: usize, const SUBS: usize, const WIDE: bool, const R: usize, const N: usize> Task
    for Chunk<'_, '_, '_, '_, BITS, SUBS, WIDE, R, N>
{
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { strip, t, block } = self;
        let Format { dtype, min, .. } = strip.q.format;
        // Masked, so that the compiler sees that it lies within a record.
        let start = activations::start(dtype) & 15;
        let rows: [_; R] = std::array::from_fn(|m| strip.input.quantised.row(t + m));
        let records: [&[Record]; R] = rows.map(|row| &row.groups(block.first)[..block.groups]);
        let ahead = Ahead::new(block, &strip.out.rows, t);
        let mut carry = strip.carry::<R>(t, block.first);
        for panel in (0..2).step_by(N) {
            let mut sums: [[S::F; N]; R] = std::array::from_fn(|m| {
                std::array::from_fn(|n| s.load(&carry[m][(panel + n) * 16..]))
            });
            for g in 0..block.groups {
                if panel == 0 {
                    ahead.prefetch::<S, BITS>(s, g);
                }
                let group = Group::<BITS>::new(block, g, panel);
                let records = records.map(|records| &records[g]);
                group.dot::<S, SUBS, WIDE, R, N>(s, start, records, &mut sums);
                if min {
                    group.minima(s, records, &mut sums);
                }
            }
            for (carry, sums) in carry.iter_mut().zip(sums) {
                for (n, sum) in sums.into_iter().enumerate() {
                    s.store(sum, &mut carry[(panel + n) * 16..]);
                }
            }
        }
        for (m, carry) in carry.iter_mut().enumerate() {
            strip.fine::<S, BITS, SUBS, WIDE, N>(s, block, t + m, carry);
            strip.keep(t + m, carry);
        }
    }
}

/// Weights that will be read later, asked for while rows pass through a block.
#[derive(Clone, Copy)]
struct Ahead<'a> {
    packed: &'a [u8],
    /// Bytes of a packed group, both panels.
    group: usize,
    /// From the packed block to the first byte that this chunk of rows asks for.
    distance: usize,
    /// Cache lines of each group that it asks for; all, when nothing is said.
    lines: Option<usize>,
}

impl<'a> Ahead<'a> {
    /// What the chunk of rows from `t` on asks for: where one chunk is all, what comes [`STREAM`]
    /// groups later; else the first four chunks share the next block.
    #[inline(always)]
    fn new(block: Block<'a>, rows: &Range<usize>, t: usize) -> Self {
        let packed = block.packed;
        let group = packed.len() / block.groups;
        let (chunk, chunks) = ((t - rows.start) / 4, (rows.len() / 4).clamp(1, 4));
        if rows.len() <= 4 {
            let lines = if t == rows.start { None } else { Some(0) };
            return Self { packed, group, distance: 0, lines };
        }
        let lines = (group / LINE).div_ceil(chunks);
        let distance = packed.len() + chunk * lines * LINE;
        let first = (t - rows.start).is_multiple_of(4) && chunk < chunks;
        Self { packed, group, distance, lines: Some(if first { lines } else { 0 }) }
    }

    /// For each group `g` of the block.
    #[inline(always)]
    fn prefetch<S: Simd, const BITS: usize>(self, s: S, g: usize) {
        if let Some(lines) = self.lines {
            for line in 0..lines {
                s.prefetch(self.packed, self.distance + g * self.group + line * LINE);
            }
        } else {
            // The codes are packed, so their width is known: no loop.
            for line in 0..2 * BITS {
                s.prefetch(self.packed, (STREAM + g) * 2 * BITS * LINE + line * LINE);
            }
        }
    }
}

/// One group of a block, from panel `panel` on.
#[derive(Clone, Copy)]
struct Group<'a, const BITS: usize> {
    /// From the codes of `panel` on.
    codes: &'a [u8],
    /// From the scales of `panel` on.
    scales: &'a [f32],
}

impl<'a, const BITS: usize> Group<'a, BITS> {
    #[inline(always)]
    fn new(block: Block<'a>, g: usize, panel: usize) -> Self {
        let codes = &block.codes[g * 2 * BITS * 64..][..2 * BITS * 64];
        let scales = &block.scales[g * RECORD..][..RECORD];
        Self { codes: &codes[panel * BITS * 64..], scales: &scales[panel * 16..] }
    }

    /// `sums[m][n] += scale of the weights * (scale of the record * integer sum)`.
    #[expect(clippy::needless_range_loop, reason = "indices that become registers")]
    #[inline(always)]
    fn dot<S: Simd, const SUBS: usize, const WIDE: bool, const R: usize, const N: usize>(
        self,
        s: S,
        start: usize,
        x: [&Record; R],
        sums: &mut [[S::F; N]; R],
    ) {
        for sub in 0..SUBS {
            let mut acc: [[S::I; N]; R] =
                std::array::from_fn(|m| [s.splat_i(x[m][(start + sub) & 15]); N]);
            for step in sub * 8 / SUBS..(sub + 1) * 8 / SUBS {
                let mut w = [scales::codes::<S, BITS>(s, self.codes, step); N];
                if N == 2 {
                    w[N - 1] = scales::codes::<S, BITS>(s, &self.codes[BITS * 64..], step);
                }
                for m in 0..R {
                    for n in 0..N {
                        acc[m][n] = s.dot::<WIDE>(acc[m][n], w[n], x[m][step]);
                    }
                }
            }
            for m in 0..R {
                let scale = s.splat(f32::from_bits(x[m][Part::SCALE].cast_unsigned()));
                for n in 0..N {
                    let weight = s.load(&self.scales[sub * PAIR + n * 16..]);
                    let sum = s.mul(s.to_f(acc[m][n]), scale);
                    sums[m][n] = s.fma(sum, weight, sums[m][n]);
                }
            }
        }
    }

    /// `sums[m][n] += minimum of the weights * sum of the values`.
    #[expect(clippy::needless_range_loop, reason = "indices that become registers")]
    #[inline(always)]
    fn minima<S: Simd, const R: usize, const N: usize>(
        self,
        s: S,
        x: [&Record; R],
        sums: &mut [[S::F; N]; R],
    ) {
        for m in 0..R {
            let sum = s.splat(f32::from_bits(x[m][Part::SUM].cast_unsigned()));
            for n in 0..N {
                let min = s.load(&self.scales[PAIR + n * 16..]);
                sums[m][n] = s.fma(min, sum, sums[m][n]);
            }
        }
    }
}

/// Groups in a block: 768 columns, 24 KiB of unpacked codes in the first-level cache. A multiple
/// of the 8 groups that a K type stores together. Part of the order of sums.
pub(super) const BLOCK_GROUPS: usize = 24;
/// Rows from which on tiles are faster than vectors, that of the first of them included.
const TILED_ROWS: usize = 32;
/// Values behind a worker's memory that nobody uses. What goes through its own again and again is
/// prefetched past the end, and would take the lines that another core is writing there: without
/// this two cores did no more than one where they do not share a cache.
const APART: usize = 64 << 10;
/// Groups by which weights are asked for ahead when each is used once: 8 KiB of four bits.
const STREAM: usize = 16;
const LINE: usize = 64;
