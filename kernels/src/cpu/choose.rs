//! The choice of tokens. For the largest logits every thread looks at pieces of the rows, and the caller joins what was
//! found; a row that is drawn from is one thread's.

use super::simd::{LANES, Simd, Task};
use super::tiles::{self, Grid};
use super::{Buffer, Common, Cpu, SMALL, lock};
use crate::memory;
use crate::sampling::{Chooser, Draw, Draws};

impl Cpu {
    /// [`Device::sample`](crate::device::Device::sample).
    pub(super) fn choose(&self, draws: &Draws, x: &mut Buffer, out: &mut [Option<u32>]) {
        assert_eq!(draws.len(), out.len(), "a token for each draw");
        let shared = &mut *lock(&self.shared);
        memory::resize(&mut shared.replaced, draws.edits().len());
        let mut replaced = shared.replaced.iter_mut();
        for (draw, edits) in draws.iter() {
            let row = x.row_mut(draw.row as usize);
            for (edit, replaced) in edits.iter().zip(&mut replaced) {
                let logit = &mut row[edit.token as usize];
                *replaced = *logit;
                *logit = edit.of(*logit);
            }
        }
        let places = |greedy| {
            let draws = draws.iter().map(|(draw, _)| draw).enumerate();
            draws.filter(move |(_, draw)| (draw.temperature == 0.0) == greedy)
        };
        self.largest(shared, x, places(true).map(|(i, draw)| (i, draw.row as usize)), out);
        self.drawn(shared, x, &places(false).collect::<Vec<_>>(), out);
        let mut replaced = shared.replaced.iter();
        for (draw, edits) in draws.iter() {
            let row = x.row_mut(draw.row as usize);
            for (edit, replaced) in edits.iter().zip(&mut replaced) {
                row[edit.token as usize] = *replaced;
            }
        }
    }

    /// Draws from rows, and writes each token to its place in `out`.
    fn drawn(
        &self,
        shared: &mut Common,
        x: &Buffer,
        draws: &[(usize, &Draw)],
        out: &mut [Option<u32>],
    ) {
        let Common { splits, chosen, .. } = shared;
        splits.clear();
        splits.extend(0..=draws.len());
        memory::resize(chosen, draws.len());
        let grid = Grid::new(chosen, 1, splits, 1);
        let small = draws.len() * x.cols < SMALL;
        tiles::for_each(&self.pool, small, &mut [grid], &|_, mut tile, worker| {
            let i = tile.rows.start;
            let draw = draws[i].1;
            let chooser = &mut self.worker(worker).chooser;
            let (row, token) = (x.row(draw.row as usize), &mut tile.row(i)[0]);
            self.level.run(Drawn { chooser, row, draw, token });
        });
        for ((place, _), token) in draws.iter().zip(chosen) {
            out[*place] = u32::try_from(*token).ok();
        }
    }

    /// Finds the largest logits of rows, given with their places in `out`. The pieces show in no result: a comparison rounds
    /// nothing.
    fn largest(
        &self,
        shared: &mut Common,
        x: &Buffer,
        wanted: impl Iterator<Item = (usize, usize)>,
        out: &mut [Option<u32>],
    ) {
        let wanted: Vec<_> = wanted.collect();
        let num_pieces = x.cols.div_ceil(PIECE);
        let (splits, partial) = (&mut shared.splits, &mut shared.partial);
        splits.clear();
        splits.extend(0..=wanted.len());
        memory::resize(partial, wanted.len() * num_pieces);
        let grid = Grid::new(partial, num_pieces, splits, 1);
        let small = wanted.len() * x.cols < SMALL;
        tiles::for_each(&self.pool, small, &mut [grid], &|_, mut tile, _| {
            let (i, first) = (tile.rows.start, tile.cols.start * PIECE);
            let row = x.row(wanted[i].1);
            let x = &row[first..(first + PIECE).min(row.len())];
            self.level.run(Largest { x, out: &mut tile.row(i)[0] });
        });
        for (i, (place, row)) in wanted.into_iter().enumerate() {
            let pieces = &partial[i * num_pieces..][..num_pieces];
            out[place] = first_largest(x.row(row), pieces);
        }
    }
}

/// Where the row first has its largest value: nothing when a piece has no largest. `pieces` are the largest values of
/// its pieces.
fn first_largest(row: &[f32], pieces: &[f32]) -> Option<u32> {
    if pieces.iter().any(|x| x.is_nan()) {
        return None;
    }
    let (mut piece, mut max) = (0, *pieces.first()?);
    for (i, x) in pieces.iter().enumerate() {
        if *x > max {
            (piece, max) = (i, *x);
        }
    }
    let first = piece * PIECE;
    let at = row[first..].iter().position(|x| *x == max)?;
    u32::try_from(first + at).ok()
}

/// A draw from a row; what it finds is negative where there is no token.
struct Drawn<'a> {
    chooser: &'a mut Chooser,
    row: &'a [f32],
    draw: &'a Draw,
    token: &'a mut i32,
}

impl Task for Drawn<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        // Plain code, which the compiler makes vectors of: the arithmetic is every device's.
        let token = self.chooser.choose(self.row, self.draw);
        *self.token = token.and_then(|token| i32::try_from(token).ok()).unwrap_or(-1);
    }
}

/// The largest of some values, NaN when one of them is infinite or not a number.
struct Largest<'a> {
    /// At least one.
    x: &'a [f32],
    out: &'a mut f32,
}

impl Task for Largest<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let zero = s.splat(0.0);
        // Several chains, so that none waits for another. What is finite has the product zero with zero.
        let mut max = [s.splat(self.x[0]); CHAINS];
        let mut bad = [zero; CHAINS];
        let (chunks, rest) = self.x.as_chunks::<{ CHAINS * LANES }>();
        for chunk in chunks {
            for i in 0..CHAINS {
                let x = s.load(&chunk[i * LANES..]);
                max[i] = s.max(max[i], x);
                bad[i] = s.fma(x, zero, bad[i]);
            }
        }
        for x in rest.chunks(LANES) {
            // Zeros that fill up would be taken for values.
            let mut values = [self.x[0]; LANES];
            values[..x.len()].copy_from_slice(x);
            let x = s.load(&values);
            max[0] = s.max(max[0], x);
            bad[0] = s.fma(x, zero, bad[0]);
        }
        for i in 1..CHAINS {
            max[0] = s.max(max[0], max[i]);
            bad[0] = s.add(bad[0], bad[i]);
        }
        *self.out = s.largest(max[0]) + s.sum(bad[0]);
    }
}

const CHAINS: usize = 4;
/// Values of a piece: they stay in the first-level cache until the largest is found among them.
const PIECE: usize = 4096;
