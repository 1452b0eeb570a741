//! Rows on their way into an operation: as they are, normalised, or gated.
//!
//! Each is made when it is needed, in memory of the thread that needs it, and is still in its first cache when it is
//! rounded or added: a norm or a gate is no pass of its own over the activations.

use std::sync::Mutex;

use super::isa::Level;
use super::pool::Pool;
use super::rows::{Gate, RmsNorm};
use super::tiles::{self, Grid};
use super::{Cpu, Worker, lock};
use crate::device::Input;
use crate::memory;

/// The first `rows` rows of an [`Input`].
pub(super) struct Source<'a> {
    level: Level,
    workers: &'a [Mutex<Worker>],
    input: Input<'a, Cpu>,
    /// Rows that the buffer has, so that memory is reserved for all of them at once.
    pub(super) capacity: usize,
    pub(super) cols: usize,
}

/// A worker's memory for the row that it makes; wiped on drop.
#[derive(Default)]
pub(super) struct Scratch(Vec<f32>);

impl Drop for Scratch {
    fn drop(&mut self) {
        zeroize::Zeroize::zeroize(&mut self.0);
    }
}

impl<'a> Source<'a> {
    /// # Panics
    /// When there are fewer rows, or widths differ.
    pub(super) fn new(cpu: &'a Cpu, rows: usize, input: Input<'a, Cpu>) -> Self {
        let (capacity, cols) = match input {
            Input::Rows(x) => (x.rows, x.cols),
            Input::Normed { x, weight, .. } => {
                assert_eq!(x.cols, weight.0.len(), "norm width");
                (x.rows, x.cols)
            }
            Input::Gated { gate, up, .. } => {
                assert_eq!(gate.cols, up.cols, "gate width");
                (gate.rows.min(up.rows), gate.cols)
            }
        };
        assert!(rows <= capacity, "{rows} rows of {capacity}");
        Self { level: cpu.level, workers: &cpu.workers, input, capacity, cols }
    }

    /// Gives row `t` to `work`, on the thread of this worker.
    pub(super) fn with<T>(&self, t: usize, worker: usize, work: impl FnOnce(&[f32]) -> T) -> T {
        if let Input::Rows(x) = self.input {
            return work(x.row(t));
        }
        let row = &mut lock(&self.workers[worker]).input.0;
        if row.len() < self.cols {
            memory::resize(row, self.cols);
        }
        let out = &mut row[..self.cols];
        self.write(t, out);
        work(out)
    }

    /// All of the first `rows` rows, one behind the other; in `out` where they have to be made.
    pub(super) fn all<'b>(
        &'b self,
        pool: &Pool,
        rows: usize,
        (out, splits): (&'b mut Vec<f32>, &mut Vec<usize>),
    ) -> &'b [f32] {
        if let Input::Rows(x) = self.input {
            return &x.data;
        }
        memory::resize(out, self.capacity * self.cols);
        splits.clear();
        splits.extend((0..rows).step_by(ROWS_PER_TILE));
        splits.push(rows);
        let grid = Grid::new(out, self.cols, splits, self.cols.max(1));
        tiles::for_each(pool, rows <= ROWS_PER_TILE, &mut [grid], &|_, mut tile, _| {
            for t in tile.rows.clone() {
                self.write(t, tile.row(t));
            }
        });
        out
    }

    /// Makes row `t`.
    fn write(&self, t: usize, out: &mut [f32]) {
        match self.input {
            Input::Rows(x) => out.copy_from_slice(x.row(t)),
            Input::Normed { x, weight, eps } => {
                self.level.run(RmsNorm { x: x.row(t), weight: &weight.0, eps, out });
            }
            Input::Gated { activation, gate, up } => {
                self.level.run(Gate { activation, gate: gate.row(t), up: up.row(t), out });
            }
        }
    }
}

/// Rows that a thread takes at once.
pub(super) const ROWS_PER_TILE: usize = 8;
