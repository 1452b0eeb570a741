//! Products of few rows (`cuda/linear_few.cu`): one launch makes the rows, multiplies them, and adds what comes out.

use super::device::{Cuda, count};
use super::driver::Driver;
use super::params::{FewParams, InputParams, LinearParams};
use super::products::{CHUNK, Launch};
use super::residual::{Product, ProductParams, memory_of};
use super::space::Space;
use crate::device::{DeviceError, Input};

impl<D: Driver> Cuda<D> {
    /// Products of rows that every block makes for itself, as `made` says, or of those in `space`. One of a single matrix waits for
    /// what is done with it, and so do two of which one may gate the other.
    pub(super) fn multiply_few(
        &self,
        rows: usize,
        input: Input<'_, Self>,
        made: Option<InputParams>,
        space: &Space<D>,
        launch: &Launch<'_, D>,
    ) -> Result<(), DeviceError> {
        let Launch { kernel, outputs } = launch;
        let (products, works) = self.products(kernel, outputs);
        let linear = LinearParams {
            rows: if made.is_some() { 0 } else { space.tiles },
            rest: space.rest,
            partials: 0,
            tickets: 0,
            products,
            gated: 0,
            num_rows: count(rows),
            split: 0,
            gate: 0,
            half: 0,
        };
        let params = FewParams {
            linear,
            input: made
                .map_or(InputParams::NONE, |made| InputParams { span: made.cols.max(1), ..made }),
            sums: 0,
            works: count(works),
            group: count(kernel.group),
            fine: u32::from(space.rest != 0),
            unused: 0,
        };
        let (grid, shared) = (self.few_blocks(works), count(kernel.shared));
        let gating = self.gating(launch, rows);
        // Nobody adds logits.
        let may_be_added = outputs.len() == 1 && space.rest == 0;
        if gating.is_none() && !may_be_added {
            return self.launch_shared(&kernel.name, grid, FEW_THREADS, shared, &params);
        }
        let mut reads = launch.reads(space);
        reads.extend(memory_of(input));
        self.wait_to_multiply(Product {
            kernel: kernel.name.clone(),
            grid,
            threads: FEW_THREADS,
            shared,
            params: ProductParams::Few(params),
            gating,
            rows,
            outs: launch.writes(),
            reads,
        })
    }

    /// One fills a multiprocessor.
    pub(super) fn few_blocks(&self, works: usize) -> [u32; 3] {
        [count(works.min(self.driver().multiprocessors()).max(1)), 1, 1]
    }
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
