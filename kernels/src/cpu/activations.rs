//! Activations for integer dot products: groups of 32 as signed bytes with one f32 scale.
//!
//! A row has a record of one cache line for each group: `[8 words of 4 codes]`, then the [`Part`]s. A
//! value is `scale * code`, within `scale / 2`. Where that is not fine enough, the group has a second
//! record, for the rest, with 1/254 of the scale: its products are added after those of the first
//! records of the same block of groups. Which groups have one depends on the row alone: in adaptive
//! mode those whose largest value is over [`FINE_ABOVE`] times the row's root mean square, which
//! carry nearly all of the error.

use super::isa::Level;
use super::linear::BLOCK_GROUPS;
use super::pool::Pool;
use super::simd::{LANES, Simd, Task};
use super::tiles::{self, Grid};
use super::{ActivationBits, bf16, rows};
use crate::device::DeviceError;
use crate::dtype::Dtype;
use crate::memory::Aligned;
use crate::quant;

/// Words of a record.
pub(super) const RECORD_WORDS: usize = 16;
/// A group of a row: codes and parts.
pub(super) type Record = [i32; RECORD_WORDS];

/// Quantised rows; the memory is kept between calls and wiped at the end.
pub(super) struct Activations {
    words: Aligned<i32>,
    splits: Vec<usize>,
    groups: usize,
    /// The same rows for BF16 weights.
    pub(super) bf16: bf16::Words,
}

/// What follows the codes of a group, a word each.
pub(super) struct Part;

impl Part {
    /// Bits of the f32 scale.
    pub(super) const SCALE: usize = 8;
    /// Bits of the sum of the values, for minima; in a second record the index of its group.
    pub(super) const SUM: usize = 9;
    const START_8: usize = 10;
    const START_16: usize = 11;
    const START_128: usize = 12;
    const START_32: usize = 13;
    /// Zero, for weights whose codes have no offset.
    const START_0: usize = 15;

    /// Where the integer sum starts for weights whose codes have an offset: minus the offset times
    /// the sum of the codes. Q6_K has two scales to a group, and its second start in the next word.
    pub(super) const fn start(offset: i32) -> usize {
        match offset {
            8 => Self::START_8,
            16 => Self::START_16,
            128 => Self::START_128,
            32 => Self::START_32,
            _ => Self::START_0,
        }
    }
}

/// The records of one row.
#[derive(Clone, Copy)]
pub(super) struct Row<'a> {
    words: &'a [i32],
    groups: usize,
}

impl<'a> Row<'a> {
    /// First records from group `first` on.
    #[inline(always)]
    pub(super) fn groups(self, first: usize) -> &'a [Record] {
        self.words[first * RECORD_WORDS..self.groups * RECORD_WORDS].as_chunks().0
    }

    /// Second records of block `block`, in ascending order of their groups.
    #[inline(always)]
    pub(super) fn fine(self, block: usize) -> &'a [Record] {
        let count = self.words[2 * self.groups * RECORD_WORDS + block] as usize;
        let first = self.groups + block * BLOCK_GROUPS;
        self.words[first * RECORD_WORDS..][..count * RECORD_WORDS].as_chunks().0
    }
}

impl std::fmt::Debug for Activations {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Activations({} groups)", self.groups)
    }
}

impl Activations {
    pub(super) fn new() -> Result<Self, DeviceError> {
        let (words, bf16) = (Aligned::zeroed("quantised", 0)?, bf16::Words::new()?);
        Ok(Self { words, splits: Vec::new(), groups: 0, bf16 })
    }

    /// Makes room for `rows` rows of `cols` values.
    pub(super) fn reserve(&mut self, rows: usize, cols: usize) -> Result<(), DeviceError> {
        let len = rows * width(cols / 32);
        if self.words.len() < len {
            self.words = Aligned::zeroed("quantised activations", len)?;
        }
        Ok(())
    }

    /// Quantises `rows` rows of `x`; there is room for them.
    pub(super) fn set(
        &mut self,
        (level, pool): (Level, &Pool),
        bits: ActivationBits,
        rows: usize,
        (x, cols): (&[f32], usize),
    ) {
        self.groups = cols / 32;
        let width = width(self.groups);
        self.splits.clear();
        self.splits.extend((0..rows).step_by(ROWS_PER_TILE));
        self.splits.push(rows);
        let small = rows <= ROWS_PER_TILE;
        let grid = Grid::new(&mut self.words, width, &self.splits, width.max(1));
        tiles::for_each(pool, small, &mut [grid], &|_, mut tile, _| {
            for t in tile.rows.clone() {
                let x = &x[t * cols..][..cols];
                level.run(Quantise { x, out: tile.row(t), bits });
            }
        });
    }

    /// Row `t`.
    #[inline(always)]
    pub(super) fn row(&self, t: usize) -> Row<'_> {
        let width = width(self.groups);
        Row { words: &self.words[t * width..][..width], groups: self.groups }
    }
}

/// Words of a row: first records, room for as many second ones, their number in each block.
fn width(groups: usize) -> usize {
    (2 * groups + groups.div_ceil(BLOCK_GROUPS).div_ceil(RECORD_WORDS)) * RECORD_WORDS
}

struct Quantise<'a> {
    x: &'a [f32],
    out: &'a mut [i32],
    bits: ActivationBits,
}

impl Task for Quantise<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { x, out, bits } = self;
        let groups = x.len() / 32;
        let (first, rest) = out.split_at_mut(groups * RECORD_WORDS);
        let (second, counts) = rest.split_at_mut(groups * RECORD_WORDS);
        let above = match bits {
            ActivationBits::Eight => f32::INFINITY,
            ActivationBits::Adaptive => FINE_ABOVE * rows::root_mean_square(s, x),
            ActivationBits::Sixteen => -1.0,
        };
        let first = first.as_chunks_mut::<RECORD_WORDS>().0.chunks_mut(BLOCK_GROUPS);
        let second = second.as_chunks_mut::<RECORD_WORDS>().0.chunks_mut(BLOCK_GROUPS);
        let blocks = x.chunks(32 * BLOCK_GROUPS).zip(first.zip(second)).zip(counts).enumerate();
        for (block, ((x, (first, second)), count)) in blocks {
            let mut fine = 0;
            for (g, (x, first)) in x.as_chunks().0.iter().zip(first).enumerate() {
                if quantise(s, x, above, first, &mut second[fine]) {
                    second[fine][Part::SUM] = (block * BLOCK_GROUPS + g) as i32;
                    fine += 1;
                }
            }
            *count = fine as i32;
        }
    }
}

/// Writes the first record of a group and, when its largest value is `above` that, the second.
/// Returns whether it did.
#[inline(always)]
fn quantise<S: Simd>(
    s: S,
    x: &[f32; 32],
    above: f32,
    first: &mut Record,
    second: &mut Record,
) -> bool {
    // No closures here: one that the compiler declines to inline is compiled without the instructions.
    let (zero, limit) = (s.splat(0.0), s.splat(CODE_MAX));
    let (a, b) = (s.load(x), s.load(&x[LANES..]));
    let magnitude = s.max(s.max(a, s.sub(zero, a)), s.max(b, s.sub(zero, b)));
    let largest = s.largest(magnitude);
    let scale = largest / CODE_MAX;
    let inverse = if largest > 0.0 { CODE_MAX / largest } else { 0.0 };
    let inverse = s.splat(if inverse.is_finite() { inverse } else { 0.0 });
    let (a, b) = (s.mul(a, inverse), s.mul(b, inverse));
    let (code_a, code_b) = (s.round(a), s.round(b));
    let coarse = scale * put(s, scale, [code_a, code_b], first) as f32;
    if largest <= above {
        first[Part::SUM] = coarse.to_bits().cast_signed();
        return false;
    }
    // Within half a code; a value that is not a number stays one in the first record's scale.
    let (a, b) = (s.sub(a, s.to_f(code_a)), s.sub(b, s.to_f(code_b)));
    let (a, b) = (s.mul(a, s.splat(FINER)), s.mul(b, s.splat(FINER)));
    let lowest = s.sub(zero, limit);
    let (a, b) = (s.max(s.min(a, limit), lowest), s.max(s.min(b, limit), lowest));
    let finer = scale / FINER;
    let fine = finer * put(s, finer, [s.round(a), s.round(b)], second) as f32;
    first[Part::SUM] = (coarse + fine).to_bits().cast_signed();
    true
}

/// Writes codes, scale and starts; returns the sum of the codes.
#[inline(always)]
fn put<S: Simd>(s: S, scale: f32, [a, b]: [S::I; 2], record: &mut Record) -> i32 {
    record[..4].copy_from_slice(&s.pack_i8(a));
    record[4..8].copy_from_slice(&s.pack_i8(b));
    let (sum_a, sum_b) = (s.sum_i(a), s.sum_i(b));
    let sum = sum_a + sum_b;
    record[Part::SCALE] = scale.to_bits().cast_signed();
    record[Part::START_8] = -8 * sum;
    record[Part::START_16] = -16 * sum;
    record[Part::START_128] = -128 * sum;
    record[Part::START_32] = -32 * sum_a;
    record[Part::START_32 + 1] = -32 * sum_b;
    record[Part::START_0] = 0;
    sum
}

/// The start for a weight type.
pub(super) const fn start(dtype: Dtype) -> usize {
    Part::start(quant::offset(dtype))
}

const CODE_MAX: f32 = 127.0;
/// Codes of a second record in one of the first.
const FINER: f32 = 254.0;
/// Groups whose largest value is over so many root mean squares of the row get a second record: a
/// fifth of them on SmolLM2, and with them the likeliest token is the float model's at 99.3 % of all
/// positions, without at 95.7 %.
const FINE_ABOVE: f32 = 3.5;
const ROWS_PER_TILE: usize = 8;
