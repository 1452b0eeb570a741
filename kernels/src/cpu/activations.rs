//! Activations for integer dot products: groups of 32 as signed bytes with one f32 scale.
//!
//! A row has a record of one cache line for each group: `[8 words of 4 codes]`, then the [`Part`]s. A
//! value is `scale * code`, within `scale / 2`. Where that is not fine enough, the group has a second
//! record, for the rest, with 1/254 of the scale: its products are added after those of the first
//! records of the same block of groups. Which groups have one depends on the row alone: in adaptive
//! mode those whose largest value is over [`quantise::FINE_ABOVE`] times the row's root mean square, which
//! carry nearly all of the error.

mod quantise;

use super::input::{ROWS_PER_TILE, Source};
use super::isa::Level;
use super::linear::BLOCK_GROUPS;
use super::pool::Pool;
use super::tile_rows::TileRows;
use super::tiles::{self, Grid};
use super::{ActivationBits, bf16};
use crate::device::DeviceError;
use crate::dtype::Dtype;
use crate::memory::Aligned;
use crate::quant;
use quantise::Quantise;

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
    /// The same rows for the tile unit, where there is one.
    pub(super) tiles: TileRows,
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
        let words = Aligned::zeroed("quantised", 0)?;
        let (bf16, tiles) = (bf16::Words::new()?, TileRows::new()?);
        Ok(Self { words, splits: Vec::new(), groups: 0, bf16, tiles })
    }

    /// Makes room for `rows` rows of `cols` values.
    pub(super) fn reserve(
        &mut self,
        level: Level,
        rows: usize,
        cols: usize,
    ) -> Result<(), DeviceError> {
        if level.amx().is_some() {
            self.tiles.reserve(rows, cols / 32)?;
        }
        let len = rows * width(cols / 32);
        if self.words.len() < len {
            self.words = Aligned::zeroed("quantised activations", len)?;
        }
        Ok(())
    }

    /// Quantises `rows` rows; there is room for them.
    pub(super) fn set(
        &mut self,
        (level, pool): (Level, &Pool),
        bits: ActivationBits,
        rows: usize,
        source: &Source<'_>,
    ) {
        self.groups = source.cols / 32;
        let width = width(self.groups);
        self.splits.clear();
        self.splits.extend((0..rows).step_by(ROWS_PER_TILE));
        self.splits.push(rows);
        let small = rows <= ROWS_PER_TILE;
        let grid = Grid::new(&mut self.words, width, &self.splits, width.max(1));
        tiles::for_each(pool, small, &mut [grid], &|_, mut tile, worker| {
            for t in tile.rows.clone() {
                source.with(t, worker, |x| level.run(Quantise { x, out: tile.row(t), bits }));
            }
        });
        if level.amx().is_some() {
            let (words, groups) = (&self.words[..], self.groups);
            self.tiles.set(pool, (rows, groups), &|t| row(words, groups, t));
        }
    }

    /// Row `t`.
    #[inline(always)]
    pub(super) fn row(&self, t: usize) -> Row<'_> {
        row(&self.words, self.groups, t)
    }
}

#[inline(always)]
fn row(words: &[i32], groups: usize, t: usize) -> Row<'_> {
    let width = width(groups);
    Row { words: &words[t * width..][..width], groups }
}

/// Words of a row: first records, room for as many second ones, their number in each block.
fn width(groups: usize) -> usize {
    (2 * groups + groups.div_ceil(BLOCK_GROUPS).div_ceil(RECORD_WORDS)) * RECORD_WORDS
}

/// The start for a weight type.
pub(super) const fn start(dtype: Dtype) -> usize {
    Part::start(quant::offset(dtype))
}
