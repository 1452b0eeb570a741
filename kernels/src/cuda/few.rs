//! Products of few rows (`cuda/linear_few.cu`): one launch makes the rows, multiplies them, and adds what comes out.

use super::device::{Cuda, count};
use super::driver::Driver;
use super::params::{FewParams, InputParams, LinearParams};
use super::products::{CHUNK, Launch, Space, TILE_ROWS};
use super::residual::{Product, memory_of};
use crate::device::{DeviceError, Input, Linear};

impl<D: Driver> Cuda<D> {
    /// Products of rows that every block makes for itself, as `made` says, or of those in `space`. One of a single matrix waits for
    /// what is done with it, and so do two of which one may gate the other.
    pub(super) fn multiply_few(
        &self,
        rows: usize,
        input: Input<'_, Self>,
        made: Option<InputParams>,
        space: &Space,
        Launch { kernel, outputs }: &Launch<'_, D>,
    ) -> Result<(), DeviceError> {
        let (products, works) = self.products(kernel, outputs);
        let none = InputParams { x: 0, other: 0, kind: 0, cols: 0, span: 0, eps: 0.0 };
        let linear = LinearParams {
            rows: if made.is_some() { 0 } else { space.tiles },
            rest: space.rest,
            partials: 0,
            tickets: 0,
            products,
            num_rows: count(rows),
            split: 0,
        };
        let params = FewParams {
            linear,
            input: made.map_or(none, |made| InputParams { span: made.cols.max(1), ..made }),
            sums: 0,
            gated: 0,
            works: count(works),
            group: count(kernel.group),
            fine: u32::from(space.rest != 0),
            gate: 0,
            half: 0,
            ahead: count(self.limits.few_ahead / kernel.record_bytes),
        };
        let (grid, shared) = (self.few_blocks(works), count(kernel.shared));
        let waits = match **outputs {
            // Nobody adds logits.
            [_] => space.rest == 0,
            [gate, up] => made.is_some() && may_gate(gate, up),
            _ => false,
        };
        if !waits {
            return self.launch_shared(&kernel.name, [grid, 1, 1], FEW_THREADS, shared, &params);
        }
        let mut reads = memory_of(input);
        for output in outputs {
            reads.push(output.weight.memory().clone());
            reads.extend(output.bias.map(|bias| bias.memory.clone()));
        }
        let outs = outputs.iter().map(|output| output.out.memory.clone()).collect();
        let kernel = kernel.name.clone();
        self.wait_to_multiply(Product { kernel, grid, shared, params, rows, outs, reads })
    }

    /// One fills a multiprocessor.
    fn few_blocks(&self, works: usize) -> u32 {
        count(works.min(self.driver().multiprocessors()).max(1))
    }

    /// Has the two products that wait make their gate, as tiles of f16 or bf16 at this address.
    pub(super) fn make_gate(&self, product: &mut Product<D>, kind: u32, half: bool, tiles: u64) {
        let FewParams { linear: LinearParams { products: [first, ..], .. }, .. } = product.params;
        let works = first.weight.rows as usize / TILE_ROWS;
        product.params.gate = kind;
        product.params.gated = tiles;
        product.params.half = u32::from(half);
        product.params.group = 2 * first.parts;
        product.params.works = count(works);
        product.grid = self.few_blocks(works);
    }
}

/// Whether the kernel could make a gate of them: whole chunks, and two sums at the same place.
fn may_gate<D: Driver>(gate: &Linear<'_, Cuda<D>>, up: &Linear<'_, Cuda<D>>) -> bool {
    let rows = gate.weight.rows;
    rows == up.weight.rows && rows.is_multiple_of(CHUNK) && gate.bias.is_none() && up.bias.is_none()
}

/// Whether blocks make these rows for themselves: one or two, unless each value is dear.
pub(super) fn makes_rows<D: Driver>(rows: usize, input: Input<'_, Cuda<D>>) -> bool {
    rows <= 2 && !matches!(input, Input::Gated { .. })
}

/// Bytes of shared memory of a block that has so many rows, and each `operands` times.
pub(super) fn few_shared(rows: usize, cols: usize, operands: usize) -> usize {
    WARPS * RING_BYTES + operands * rows * cols.div_ceil(CHUNK) * 2 * CHUNK
}

/// Threads of a block.
pub(super) const FEW_THREADS: u32 = 512;
/// Of `linear_few.cu`.
const WARPS: usize = 16;
/// Of `linear_few.cu`.
const RING_BYTES: usize = 8192;
/// Shared memory that the kernel declares, and what the driver takes for itself.
pub(super) const DECLARED: usize = 18 << 10;
