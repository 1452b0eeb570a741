//! The largest value of rows of logits: every thread looks at pieces of them, and the caller joins what was found.

use super::simd::{LANES, Simd, Task};
use super::tiles::{self, Grid};
use super::{Buffer, Cpu, SMALL, lock};
use crate::memory;

impl Cpu {
    /// [`Device::argmax`](crate::device::Device::argmax). The pieces show in no result: a comparison rounds nothing.
    pub(super) fn largest(&self, x: &Buffer, wanted: &[u32], out: &mut [Option<u32>]) {
        assert_eq!(wanted.len(), out.len(), "a token for each row");
        let num_pieces = x.cols.div_ceil(PIECE);
        let shared = &mut *lock(&self.shared);
        let (splits, partial) = (&mut shared.splits, &mut shared.partial);
        splits.clear();
        splits.extend(0..=wanted.len());
        memory::resize(partial, wanted.len() * num_pieces);
        let grid = Grid::new(partial, num_pieces, splits, 1);
        let small = wanted.len() * x.cols < SMALL;
        tiles::for_each(&self.pool, small, &mut [grid], &|_, mut tile, _| {
            let (i, first) = (tile.rows.start, tile.cols.start * PIECE);
            let row = x.row(wanted[i] as usize);
            let x = &row[first..(first + PIECE).min(row.len())];
            self.level.run(Largest { x, out: &mut tile.row(i)[0] });
        });
        out.fill(None);
        let pieces = partial.chunks_exact(num_pieces.max(1));
        for ((out, wanted), pieces) in out.iter_mut().zip(wanted).zip(pieces) {
            *out = first_largest(x.row(*wanted as usize), pieces);
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
