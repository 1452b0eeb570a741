//! Quantised rows as the tile unit takes them: sixteen at a time, each group of theirs one piece of memory.
//!
//! A tile has the codes of sixteen rows, eight words each, then each of their [`Part`]s, sixteen words. The second records of
//! a group are in a tile of their own, one behind the other, with a head that says of which rows they are.

use super::activations::{Part, RECORD_WORDS, Row};
use super::linear::BLOCK_GROUPS;
use super::pool::Pool;
use super::tiles::{self, Grid};
use crate::device::DeviceError;
use crate::memory::Aligned;

/// Rows of a tile.
pub(super) const TILE_ROWS: usize = 16;
/// A group of sixteen rows: codes, then parts.
pub(super) type Tile = [i32; TILE_ROWS * RECORD_WORDS];
/// Second records of a group: a head, then codes and parts.
pub(super) type FineTile = [i32; HEAD + TILE_ROWS * RECORD_WORDS];

/// Where a part of all rows begins in a tile.
pub(super) const fn part(part: usize) -> usize {
    CODES + (part - Part::SCALE) * TILE_ROWS
}

/// What the head of a [`FineTile`] says.
#[derive(Clone, Copy, Debug)]
pub(super) struct Head;

impl Head {
    /// Its group.
    pub(super) const GROUP: usize = 0;
    /// How many rows have a second record.
    pub(super) const COUNT: usize = 1;
    /// Which, from here on: numbers below 16.
    const ROWS: usize = 2;
}

/// Rows of a fine tile, in the order of its records.
pub(super) fn fine_rows(tile: &FineTile) -> impl Iterator<Item = usize> {
    let count = tile[Head::COUNT] as usize;
    (0..count).map(|j| (tile[Head::ROWS + j / 4] >> (8 * (j % 4)) & 15) as usize)
}

/// Rows in tiles; the memory is kept between calls and wiped at the end.
pub(super) struct TileRows {
    words: Aligned<i32>,
    splits: Vec<usize>,
    groups: usize,
}

/// Sixteen rows.
#[derive(Clone, Copy)]
pub(super) struct Chunk<'a> {
    words: &'a [i32],
    groups: usize,
}

impl<'a> Chunk<'a> {
    /// Tiles from group `first` on.
    pub(super) fn tiles(self, first: usize) -> &'a [Tile] {
        let words = &self.words[..self.groups * TILE_WORDS];
        words[first * TILE_WORDS..].as_chunks().0
    }

    /// Tiles of second records of block `block`, in ascending order of their groups.
    pub(super) fn fine(self, block: usize) -> &'a [FineTile] {
        let (fine, counts) =
            self.words[self.groups * TILE_WORDS..].split_at(self.groups * FINE_WORDS);
        fine[block * BLOCK_GROUPS * FINE_WORDS..].as_chunks().0[..counts[block] as usize].as_ref()
    }
}

impl TileRows {
    pub(super) fn new() -> Result<Self, DeviceError> {
        Ok(Self { words: Aligned::zeroed("tiles", 0)?, splits: Vec::new(), groups: 0 })
    }

    /// Makes room for `rows` rows of `groups` groups.
    pub(super) fn reserve(&mut self, rows: usize, groups: usize) -> Result<(), DeviceError> {
        let len = rows / TILE_ROWS * width(groups);
        if self.words.len() < len {
            self.words = Aligned::zeroed("tiles of activations", len)?;
        }
        Ok(())
    }

    /// Takes over as many of `rows` rows as fill tiles; there is room for them.
    pub(super) fn set<'a>(
        &mut self,
        pool: &Pool,
        (rows, groups): (usize, usize),
        row: &(dyn Fn(usize) -> Row<'a> + Sync),
    ) {
        self.groups = groups;
        let width = width(groups);
        self.splits.clear();
        self.splits.extend(0..=rows / TILE_ROWS);
        let small = rows < 2 * TILE_ROWS;
        let grid = Grid::new(&mut self.words, width, &self.splits, width.max(1));
        tiles::for_each(pool, small, &mut [grid], &|_, mut tile, _| {
            for chunk in tile.rows.clone() {
                let rows = std::array::from_fn(|m| row(chunk * TILE_ROWS + m));
                fill(&rows, groups, tile.row(chunk));
            }
        });
    }

    /// The chunk that begins with row `t`, a multiple of sixteen.
    pub(super) fn chunk(&self, t: usize) -> Chunk<'_> {
        assert!(t.is_multiple_of(TILE_ROWS), "row {t} begins a chunk");
        let width = width(self.groups);
        Chunk { words: &self.words[t / TILE_ROWS * width..][..width], groups: self.groups }
    }
}

fn fill(rows: &[Row<'_>; TILE_ROWS], groups: usize, out: &mut [i32]) {
    let (first, rest) = out.split_at_mut(groups * TILE_WORDS);
    let (fine, counts) = rest.split_at_mut(groups * FINE_WORDS);
    for (g, tile) in first.as_chunks_mut::<TILE_WORDS>().0.iter_mut().enumerate() {
        for (m, row) in rows.iter().enumerate() {
            put(tile, m, &row.groups(g)[0]);
        }
    }
    let fine = fine.as_chunks_mut::<FINE_WORDS>().0;
    for (block, fine) in fine.chunks_mut(BLOCK_GROUPS).enumerate() {
        let mut records = rows.map(|row| row.fine(block));
        let mut fine = fine.iter_mut();
        let mut count = 0;
        for g in block * BLOCK_GROUPS..((block + 1) * BLOCK_GROUPS).min(groups) {
            let mut tile: Option<&mut FineTile> = None;
            for (m, records) in records.iter_mut().enumerate() {
                let Some((record, rest)) = records.split_first() else { continue };
                if record[Part::SUM] as usize != g {
                    continue;
                }
                *records = rest;
                if tile.is_none() {
                    tile = fine.next();
                    count += 1;
                    if let Some(tile) = &mut tile {
                        tile[..HEAD].fill(0);
                        tile[Head::GROUP] = g as i32;
                    }
                }
                // There are as many tiles as groups.
                if let Some(tile) = &mut tile {
                    push(tile, m, record);
                }
            }
        }
        counts[block] = count;
    }
}

/// Adds the second record of row `m`.
fn push(tile: &mut FineTile, m: usize, record: &[i32; RECORD_WORDS]) {
    let j = tile[Head::COUNT] as usize;
    tile[Head::COUNT] += 1;
    tile[Head::ROWS + j / 4] |= (m as i32) << (8 * (j % 4));
    if let Some(tile) = tile[HEAD..].as_chunks_mut().0.first_mut() {
        put(tile, j, record);
    }
}

/// Writes a record as number `m` of a tile. Of known lengths: no calls.
fn put(tile: &mut Tile, m: usize, record: &[i32; RECORD_WORDS]) {
    let (codes, parts) = tile.split_at_mut(CODES);
    if let (Some(to), Some(from)) =
        (codes[m * Part::SCALE..].first_chunk_mut::<{ Part::SCALE }>(), record.first_chunk())
    {
        *to = *from;
    }
    for (p, part) in parts.chunks_exact_mut(TILE_ROWS).enumerate() {
        part[m] = record[Part::SCALE + p];
    }
}

/// Words of a chunk: tiles, room for as many of second records, their number in each block.
fn width(groups: usize) -> usize {
    let counts = groups.div_ceil(BLOCK_GROUPS).next_multiple_of(RECORD_WORDS);
    groups * (TILE_WORDS + FINE_WORDS) + counts
}

const TILE_WORDS: usize = TILE_ROWS * RECORD_WORDS;
const FINE_WORDS: usize = HEAD + TILE_WORDS;
/// Words before the codes of second records.
pub(super) const HEAD: usize = 16;
/// Words of the codes of a tile.
const CODES: usize = TILE_ROWS * Part::SCALE;
