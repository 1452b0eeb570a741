//! Cuts outputs into tiles that no two threads share.
#![expect(unsafe_code, reason = "threads write disjoint rectangles of one slice")]

use std::marker::PhantomData;
use std::ops::Range;

use super::pool::Pool;
use crate::memory::Plain;

/// A row-major slice cut into rectangles: rows at the given splits, columns at multiples of a width.
pub(super) struct Grid<'a, T> {
    start: *mut T,
    width: usize,
    splits: &'a [usize],
    tile_width: usize,
    borrowed: PhantomData<&'a mut [T]>,
}

// SAFETY: it stands for a `&mut [T]`, of which threads get disjoint parts.
unsafe impl<T: Send> Sync for Grid<'_, T> {}
// SAFETY: as for `&mut [T]`.
unsafe impl<T: Send> Send for Grid<'_, T> {}

/// One rectangle of a [`Grid`], borrowed alone.
pub(super) struct Tile<'a, T> {
    start: *mut T,
    width: usize,
    /// Rows, in numbers of the grid.
    pub(super) rows: Range<usize>,
    /// Columns, in numbers of the grid.
    pub(super) cols: Range<usize>,
    borrowed: PhantomData<&'a mut [T]>,
}

impl<'a, T: Plain> Grid<'a, T> {
    /// `data` is `[.., width]`; tile `(i, j)` has the rows `splits[i]..splits[i + 1]` and the columns
    /// `j * tile_width..` of it.
    pub(super) fn new(
        data: &'a mut [T],
        width: usize,
        splits: &'a [usize],
        tile_width: usize,
    ) -> Self {
        assert!(splits.is_sorted() && tile_width > 0, "a grid has ordered tiles");
        let rows = splits.last().copied().unwrap_or(0);
        assert!(rows.checked_mul(width).is_some_and(|len| len <= data.len()), "grid within data");
        Self { start: data.as_mut_ptr(), width, splits, tile_width, borrowed: PhantomData }
    }

    /// Strips of rows.
    fn strips(&self) -> usize {
        self.splits.len().saturating_sub(1)
    }

    /// Tiles of a strip.
    fn across(&self) -> usize {
        self.width.div_ceil(self.tile_width)
    }

    /// Tile number `across` of a strip.
    ///
    /// # Safety
    /// No other tile of this strip and number is alive.
    unsafe fn tile(&self, strip: usize, across: usize) -> Tile<'_, T> {
        let col = across * self.tile_width;
        Tile {
            start: self.start,
            width: self.width,
            rows: self.splits[strip]..self.splits[strip + 1],
            cols: col..(col + self.tile_width).min(self.width),
            borrowed: PhantomData,
        }
    }
}

impl<T: Plain> Tile<'_, T> {
    /// The tile's part of row `row` (in numbers of the grid).
    pub(super) fn row(&mut self, row: usize) -> &mut [T] {
        assert!(self.rows.contains(&row), "row of the tile");
        let at = row * self.width + self.cols.start;
        // SAFETY: `Grid::new` checked that its rows lie within the data, and `cols` ends within the
        // width, so `at` does too.
        let start = unsafe { self.start.add(at) };
        // SAFETY: the tile alone may touch its rows and columns, and `self` is borrowed alone.
        unsafe { std::slice::from_raw_parts_mut(start, self.cols.len()) }
    }
}

/// Calls `work(grid, tile, worker)` for every tile of every grid, on all threads, or on the
/// caller's alone when `small` (the work would not pay for waking anyone). Grids have as many strips
/// of rows as each other; all tiles of a strip come before the next, so that neighbours share their
/// rows, and threads keep theirs from one operation to the next where there are strips for all.
pub(super) fn for_each<T: Plain>(
    pool: &Pool,
    small: bool,
    grids: &mut [Grid<'_, T>],
    work: &(dyn Fn(usize, Tile<'_, T>, usize) + Sync),
) {
    let grids = &*grids;
    let strips = grids.first().map_or(0, Grid::strips);
    assert!(grids.iter().all(|grid| grid.strips() == strips), "grids of the same strips");
    let across: usize = grids.iter().map(Grid::across).sum();
    let one = |index: usize, worker: usize| {
        let (strip, mut at) = (index / across, index % across);
        for (which, grid) in grids.iter().enumerate() {
            if at < grid.across() {
                // SAFETY: each index comes once, and `grids` is borrowed alone.
                let tile = unsafe { grid.tile(strip, at) };
                return work(which, tile, worker);
            }
            at -= grid.across();
        }
    };
    let count = strips * across;
    if small {
        pool.alone(count, &one);
    } else {
        pool.run(count, &one);
    }
}
