//! How a product with weight matrices is cut into tiles and shared by threads.

use super::input::Source;
use super::linear::{self, LinearTile};
use super::matrix;
use super::tiles::{self, Grid};
use super::{ActivationBits, Common, Cpu, lock};
use crate::device::{Input, Linear};

impl Cpu {
    /// Quantises the input as the weights need it, then computes all outputs in one pass.
    pub(super) fn products(
        &self,
        bits: ActivationBits,
        rows: usize,
        input: Input<'_, Self>,
        outputs: &mut [Linear<'_, Self>],
    ) {
        let source = Source::new(self, rows, input);
        let Common { activations, made, splits, .. } = &mut *lock(&self.shared);
        let any = |kind: fn(&matrix::Data) -> bool| outputs.iter().any(|o| kind(&o.weight.data));
        if any(|data| matches!(data, matrix::Data::Quantised(_))) {
            let room = activations.reserve(self.level, source.capacity, source.cols);
            assert!(room.is_ok(), "memory for quantised activations");
            activations.set((self.level, &self.pool), bits, rows, &source);
        }
        let words = any(|data| matches!(data, matrix::Data::Bf16(_) | matrix::Data::F8(_)));
        let bf16 = self.level.bf16().filter(|_| words);
        if let Some(bf16) = bf16 {
            activations.bf16.set((bf16, &self.pool), bits, rows, &source);
        }
        let floats = any(|data| matches!(data, matrix::Data::F32(_) | matrix::Data::F16(_)));
        let x = if floats || (words && bf16.is_none()) {
            source.all(&self.pool, rows, (made, splits))
        } else {
            &[]
        };
        let cols = source.cols;
        let pairs = outputs.iter().map(|o| o.weight.rows.div_ceil(matrix::PAIR)).sum();
        let (tile_rows, tile_pairs) = tile_shape(rows, cols, pairs, self.pool.num_threads());
        splits.clear();
        splits.extend((0..rows).step_by(tile_rows));
        splits.push(rows);
        let (mut grids, mut weights) = (Vec::new(), Vec::new());
        for Linear { weight, bias, out } in outputs {
            assert_eq!((weight.cols, weight.rows), (cols, out.cols), "shape of a product");
            let width = tile_pairs * matrix::PAIR;
            grids.push(Grid::new(&mut out.data, out.cols, splits, width));
            weights.push((*weight, bias.map(|bias| &bias.0[..])));
        }
        let amx = self.level.amx();
        let input = linear::Input { x, quantised: activations, bf16, amx };
        let small = rows * pairs * matrix::PAIR * cols < SMALL_PRODUCT;
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
