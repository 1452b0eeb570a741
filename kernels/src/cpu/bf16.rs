//! Products with BF16 weights: two columns to a word, as `vdpbf16ps` takes them.
//!
//! Where the CPU has that instruction ([`Avx512Bf16`]), an activation is the nearest bf16 (relative error
//! 2^-8 at most), as in the programs that such models come from; with sixteen bits, as the output matrix has
//! them, the sum of that and the bf16 nearest to the rest (2^-17). Every output is a chain for each of the
//! two, block after block of [`BLOCK_WORDS`] words; at the end of a block the second chain is added to the
//! first. A block with scales (E4M3) has sums of its own, and is as long as they say. Where there are tiles, see `amx_bf16.rs`. On other CPUs it is one fused multiply-add a column, from the first to the
//! last, in f32.

use std::ops::Range;

use super::ActivationBits;
use super::amx::Amx;
use super::amx_bf16;
use super::avx512_bf16::Avx512Bf16;
use super::input::{ROWS_PER_TILE, Source};
use super::matrix::PAIR;
use super::pool::Pool;
use super::simd::{Simd, Task};
use super::tiles::{self, Grid, Tile};
use crate::device::DeviceError;
use crate::memory::Aligned;

/// Two columns of the 32 rows of a pair of panels: 32 words of two bf16, the first in the low half.
pub(super) type WordColumn = [u8; 4 * PAIR];

/// Rows of activations as words of two bf16; the memory is kept between calls and wiped at the end.
pub(super) struct Words {
    words: Aligned<i32>,
    splits: Vec<usize>,
    /// Words of one part of a row: whole steps of the tile unit, zeros where the row ends before.
    width: usize,
    /// Whether rows have a second part.
    fine: bool,
}

impl Words {
    pub(super) fn new() -> Result<Self, DeviceError> {
        let words = Aligned::zeroed("bf16 activations", 0)?;
        Ok(Self { words, splits: Vec::new(), width: 0, fine: false })
    }

    /// Rounds the first `rows` rows. Makes room for all of them when there is none.
    ///
    /// # Panics
    /// When there is no memory.
    pub(super) fn set(
        &mut self,
        (proof, pool): (Avx512Bf16, &Pool),
        bits: ActivationBits,
        rows: usize,
        source: &Source<'_>,
    ) {
        self.fine = bits == ActivationBits::Sixteen;
        self.width = source.cols.div_ceil(2).next_multiple_of(amx_bf16::STEP);
        let (columns, width, row_words) = (source.cols.div_ceil(2), self.width, self.row_words());
        let len = source.capacity * row_words;
        if self.words.len() < len {
            let room = Aligned::zeroed("bf16 activations", len).map(|words| self.words = words);
            assert!(room.is_ok(), "memory for bf16 activations");
        }
        self.splits.clear();
        self.splits.extend((0..rows).step_by(ROWS_PER_TILE));
        self.splits.push(rows);
        let fine = self.fine;
        let grid = Grid::new(&mut self.words, row_words, &self.splits, row_words.max(1));
        let small = rows <= ROWS_PER_TILE;
        tiles::for_each(pool, small, &mut [grid], &|_, mut tile, worker| {
            for t in tile.rows.clone() {
                let row = tile.row(t);
                let (high, low) = row.split_at_mut(width);
                let low = if fine { &mut low[..width] } else { &mut low[..0] };
                high[columns..].fill(0);
                low.iter_mut().skip(columns).for_each(|word| *word = 0);
                let (used, high) = (columns.min(low.len()), &mut high[..columns]);
                let low = &mut low[..used];
                source.with(t, worker, |x| proof.split(x, high, low));
            }
        });
    }

    fn row_words(&self) -> usize {
        // A line more: rows a whole number of pages apart would meet in the same places of the first-level cache.
        (if self.fine { 2 } else { 1 }) * self.width + LINE_WORDS
    }

    /// One pair of panels, `[width]`, over all rows of the tile; results go to the columns `cols` of it.
    pub(super) fn pair(
        &self,
        (proof, amx): (Avx512Bf16, Option<Amx>),
        weights: &[WordColumn],
        cols: &Range<usize>,
        out: &mut Tile<'_, f32>,
    ) {
        if weights.is_empty() {
            for t in out.rows.clone() {
                out.row(t)[cols.clone()].fill(0.0);
            }
            return;
        }
        let block_words = if amx.is_some() { TILE_BLOCK_WORDS } else { BLOCK_WORDS };
        // The tile unit takes whole steps: what is left of the last comes with zeros.
        let mut end = [[0; size_of::<WordColumn>()]; amx_bf16::STEP];
        let step = if amx.is_some() { amx_bf16::STEP } else { 1 };
        let whole = weights.len() / step * step;
        end[..weights.len() - whole].copy_from_slice(&weights[whole..]);
        let end = (whole < weights.len()).then_some(&end[..]);
        let mut first = 0;
        for weights in weights[..whole].chunks(block_words).chain(end) {
            self.block((proof, amx), Block { first, weights, scales: None }, cols, out);
            first += weights.len();
        }
    }

    /// One block over all rows of the tile; blocks come in the order of their columns.
    pub(super) fn block(
        &self,
        (proof, amx): (Avx512Bf16, Option<Amx>),
        block: Block<'_>,
        cols: &Range<usize>,
        out: &mut Tile<'_, f32>,
    ) {
        if let Some(amx) = amx {
            return self.tiles(amx, block, cols, out);
        }
        let (words, width) = (&self.words[..], self.width);
        let strip = Strip { proof, words, width, row_words: self.row_words(), cols };
        if self.fine {
            strip.rows::<FINE_ROWS, 2>(block, out);
        } else {
            strip.rows::<COARSE_ROWS, 1>(block, out);
        }
    }

    /// The same by the tile unit; the block is whole steps.
    fn tiles(&self, amx: Amx, block: Block<'_>, cols: &Range<usize>, out: &mut Tile<'_, f32>) {
        let rows = out.rows.clone();
        for t in rows.clone().step_by(amx_bf16::ROWS) {
            let count = (rows.end - t).min(amx_bf16::ROWS);
            let mut sums = amx_bf16::Sums([[0.0; PAIR]; amx_bf16::ROWS]);
            for (m, sums) in sums.0[..count].iter_mut().enumerate() {
                block.begin(&out.row(t + m)[cols.clone()], sums);
            }
            let rows_at = amx_bf16::Rows {
                words: &self.words[t * self.row_words() + block.first..],
                apart: self.row_words(),
                count,
                part: self.width,
                parts: if self.fine { 2 } else { 1 },
            };
            if t == rows.start && block.is_stored() {
                amx_bf16::multiply::<true>(amx, rows_at, block.weights, &mut sums);
            } else {
                amx_bf16::multiply::<false>(amx, rows_at, block.weights, &mut sums);
            }
            for (m, sums) in sums.0[..count].iter().enumerate() {
                block.end(sums, &mut out.row(t + m)[cols.clone()]);
            }
        }
    }
}

/// One pair of panels and the rows of activations.
#[derive(Clone, Copy)]
struct Strip<'a> {
    proof: Avx512Bf16,
    words: &'a [i32],
    width: usize,
    row_words: usize,
    cols: &'a Range<usize>,
}

/// Some word columns of a pair.
#[derive(Clone, Copy)]
pub(super) struct Block<'a> {
    /// Words of a row in front of them.
    pub(super) first: usize,
    pub(super) weights: &'a [WordColumn],
    /// What the sums of this block are multiplied by, where they have a scale.
    pub(super) scales: Option<&'a [f32; PAIR]>,
}

impl Block<'_> {
    /// What the sums begin with: those in `out`, where they are not of this block alone.
    #[inline(always)]
    fn begin(&self, out: &[f32], sums: &mut [f32; PAIR]) {
        if self.first > 0 && self.scales.is_none() {
            sums[..out.len()].copy_from_slice(out);
        }
    }

    /// Keeps them.
    #[inline(always)]
    fn end(&self, sums: &[f32; PAIR], out: &mut [f32]) {
        let Some(scales) = self.scales else {
            return out.copy_from_slice(&sums[..out.len()]);
        };
        if self.first == 0 {
            out.fill(0.0);
        }
        for ((out, sum), scale) in out.iter_mut().zip(sums).zip(scales) {
            *out += sum * scale;
        }
    }

    /// Whether the words lie among others of the matrix, so that those behind them will be read too.
    fn is_stored(&self) -> bool {
        self.scales.is_none()
    }
}

impl Strip<'_> {
    /// All rows of the tile, `R` at a time and what is left by smaller numbers.
    fn rows<const R: usize, const PARTS: usize>(self, block: Block<'_>, out: &mut Tile<'_, f32>) {
        let rows = out.rows.clone();
        let mut t = rows.start;
        while t < rows.end {
            let left = rows.end - t;
            t += match (left, t == rows.start && block.is_stored()) {
                (left, true) if left >= R => self.chunk::<R, PARTS, true>(block, t, out),
                (left, false) if left >= R => self.chunk::<R, PARTS, false>(block, t, out),
                (4.., true) => self.chunk::<4, PARTS, true>(block, t, out),
                (4.., false) => self.chunk::<4, PARTS, false>(block, t, out),
                (2.., true) => self.chunk::<2, PARTS, true>(block, t, out),
                (2.., false) => self.chunk::<2, PARTS, false>(block, t, out),
                (_, true) => self.chunk::<1, PARTS, true>(block, t, out),
                (_, false) => self.chunk::<1, PARTS, false>(block, t, out),
            };
        }
    }

    /// Rows from `t` on; sums continue those in `out` behind the first block. Returns their number.
    fn chunk<const R: usize, const PARTS: usize, const FIRST: bool>(
        self,
        block: Block<'_>,
        t: usize,
        out: &mut Tile<'_, f32>,
    ) -> usize {
        let mut sums = [[0f32; PAIR]; R];
        let row = |m: usize| &self.words[(t + m) * self.row_words..][..self.row_words];
        let rows: [&[i32]; R] = std::array::from_fn(|m| &row(m)[block.first..]);
        for (m, sums) in sums.iter_mut().enumerate() {
            block.begin(&out.row(t + m)[self.cols.clone()], sums);
        }
        self.proof.multiply::<R, PARTS, FIRST>(rows, self.width, block.weights, &mut sums);
        for (m, sums) in sums.iter().enumerate() {
            block.end(sums, &mut out.row(t + m)[self.cols.clone()]);
        }
        R
    }
}

/// One pair of panels over all rows of the tile, where the CPU has no sum of bf16.
#[inline(always)]
pub(super) fn pair<S: Simd>(
    s: S,
    x: &[f32],
    width: usize,
    weights: &[WordColumn],
    cols: &Range<usize>,
    out: &mut Tile<'_, f32>,
) {
    for n in 0..weights.len().div_ceil(BLOCK_WORDS).max(1) {
        let first = n * BLOCK_WORDS;
        let weights = &weights[first..weights.len().min(first + BLOCK_WORDS)];
        block(s, (x, width), Block { first, weights, scales: None }, cols, out);
    }
}

/// One block of it, over rows of `width` values.
#[inline(always)]
pub(super) fn block<S: Simd>(
    s: S,
    (x, width): (&[f32], usize),
    block: Block<'_>,
    cols: &Range<usize>,
    out: &mut Tile<'_, f32>,
) {
    let rows = out.rows.clone();
    let x = |t: usize| &x[t * width..][..width][2 * block.first..];
    let mut t = rows.start;
    while S::MANY_REGISTERS && t + 8 <= rows.end {
        let x = std::array::from_fn(|m| x(t + m));
        s.call(Chunk::<8> { x, block, t, cols, out: &mut *out });
        t += 8;
    }
    while t < rows.end {
        s.call(Chunk::<1> { x: [x(t)], block, t, cols, out: &mut *out });
        t += 1;
    }
}

/// `R` rows by both panels of a block.
struct Chunk<'a, 'b, const R: usize> {
    /// From the first column of the block on.
    x: [&'a [f32]; R],
    block: Block<'a>,
    t: usize,
    cols: &'a Range<usize>,
    out: &'a mut Tile<'b, f32>,
}

impl<const R: usize> Task for Chunk<'_, '_, R> {
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { x, block, t, cols, out } = self;
        let mut carry = [[0f32; PAIR]; R];
        for (m, carry) in carry.iter_mut().enumerate() {
            block.begin(&out.row(t + m)[cols.clone()], carry);
        }
        let mut sums: [[S::F; 2]; R] =
            std::array::from_fn(|m| [s.load(&carry[m]), s.load(&carry[m][16..])]);
        for (k, word) in block.weights.iter().enumerate() {
            let (first, second) = (s.load_bf16_pairs(word), s.load_bf16_pairs(&word[64..]));
            // The last word may have one column only; its other half is zero.
            for half in 0..2.min(x[0].len() - 2 * k) {
                for m in 0..R {
                    let x = s.splat(x[m][2 * k + half]);
                    let [a, b] = sums[m];
                    sums[m] = [s.fma(x, first[half], a), s.fma(x, second[half], b)];
                }
            }
        }
        for (m, carry) in carry.iter_mut().enumerate() {
            s.store(sums[m][0], carry);
            s.store(sums[m][1], &mut carry[16..]);
            block.end(carry, &mut out.row(t + m)[cols.clone()]);
        }
    }
}

/// Words of weights that stay in the first-level cache while rows pass: 16 KiB. Part of the order of sums.
pub(super) const BLOCK_WORDS: usize = 128;
/// The same for the tile unit: 32 KiB.
const TILE_BLOCK_WORDS: usize = 256;
/// Words of a cache line.
const LINE_WORDS: usize = 16;
/// Rows that go over a block together: as many chains as the instruction's latency and the registers
/// want.
const FINE_ROWS: usize = 4;
const COARSE_ROWS: usize = 8;
