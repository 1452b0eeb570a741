//! How a product with weight matrices is cut into tiles and shared by threads.

use super::buffers::Buffer;
use super::linear::{Input, LinearTile};
use super::matrix::{self, Matrix};
use super::tiles::{self, Grid};
use super::{ActivationBits, Cpu, lock};
use crate::device::Linear;

impl Cpu {
    /// Quantises the input as the weights need it, then computes all outputs in one pass.
    pub(super) fn products(
        &self,
        bits: ActivationBits,
        rows: usize,
        x: &Buffer,
        outputs: &mut [Linear<'_, Self>],
    ) {
        assert!(rows <= x.rows, "{rows} rows of {}", x.rows);
        let quantised = |matrix: &Matrix| matches!(matrix.data, matrix::Data::Quantised(_));
        let shared = &mut *lock(&self.shared);
        if outputs.iter().any(|output| quantised(output.weight)) {
            let (how, rows_max) = ((self.level, &self.pool), x.rows);
            let x = (&x.data[..], x.cols);
            let room = shared.activations.reserve(self.level, rows_max, x.1);
            assert!(room.is_ok(), "memory for quantised activations");
            shared.activations.set(how, bits, rows, x);
        }
        let bf16 = |output: &Linear<'_, Self>| matches!(output.weight.data, matrix::Data::Bf16(_));
        let bf16 = self.level.bf16().filter(|_| outputs.iter().any(bf16));
        if let Some(bf16) = bf16 {
            shared.activations.bf16.set((bf16, &self.pool), bits, rows, x);
        }
        let pairs = outputs.iter().map(|o| o.weight.rows.div_ceil(matrix::PAIR)).sum();
        let (tile_rows, tile_pairs) = tile_shape(rows, x.cols, pairs, self.pool.num_threads());
        shared.splits.clear();
        shared.splits.extend((0..rows).step_by(tile_rows));
        shared.splits.push(rows);
        let (mut grids, mut weights) = (Vec::new(), Vec::new());
        for Linear { weight, bias, out } in outputs {
            assert_eq!((weight.cols, weight.rows), (x.cols, out.cols), "shape of a product");
            let width = tile_pairs * matrix::PAIR;
            grids.push(Grid::new(&mut out.data, out.cols, &shared.splits, width));
            weights.push((*weight, bias.map(|bias| &bias.0[..])));
        }
        let amx = self.level.amx();
        let input = Input { x: &x.data, quantised: &shared.activations, bf16, amx };
        let small = rows * pairs * matrix::PAIR * x.cols < SMALL_PRODUCT;
        tiles::for_each(&self.pool, small, &mut grids, &|which, out, worker| {
            let (weight, bias) = weights[which];
            let scratch = &mut self.worker(worker).linear;
            self.level.run(LinearTile { input, weight, bias, out, scratch });
        });
    }
}

/// Rows and pairs of panels in a tile of a product: enough tiles for all threads, and activations
/// that stay in the second-level cache. The cut shows in no result.
fn tile_shape(rows: usize, cols: usize, pairs: usize, threads: usize) -> (usize, usize) {
    if rows <= 16 {
        return (rows.max(1), (pairs / (4 * threads)).max(1));
    }
    let wanted = 8 * threads;
    let resident = (STRIP_BYTES / (2 * cols).max(1)).max(64);
    let mut strips = wanted.div_ceil(pairs.max(1)).max(rows.div_ceil(resident));
    if rows >= STRIP_ROWS * threads {
        strips = strips.next_multiple_of(threads);
    }
    (rows.div_ceil(strips).next_multiple_of(16), 1)
}

/// Multiplications below which a product stays on the caller's thread.
const SMALL_PRODUCT: usize = 65_536;
/// Quantised activations (two bytes a value) that a strip of tiles goes over again and again.
const STRIP_BYTES: usize = 1 << 20;
/// Rows for each thread from which on every thread has strips of its own. It goes over all weights with
/// them, and finds what it wrote of them in the operation before.
const STRIP_ROWS: usize = 64;
