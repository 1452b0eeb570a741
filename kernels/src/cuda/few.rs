//! Products of few rows (`cuda/linear_few.cu`): one launch makes the rows, multiplies them, and adds what comes out.

use super::device::{Cuda, count};
use super::driver::Driver;
use super::params::{FewParams, InputParams, LinearParams};
use super::products::{CHUNK, Kernel, Launch};
use super::residual::{Product, memory_of};
use crate::device::{DeviceError, Input};

impl<D: Driver> Cuda<D> {
    /// Products of rows that every block makes for itself. One of a single matrix waits for what is done with it.
    pub(super) fn multiply_alone(
        &self,
        rows: usize,
        input: Input<'_, Self>,
        made: InputParams,
        fine: bool,
        Launch { kernel, outputs }: &Launch<'_, D>,
    ) -> Result<(), DeviceError> {
        let (products, works) = self.products(kernel, outputs);
        let linear = LinearParams {
            rows: 0,
            rest: 0,
            partials: 0,
            tickets: 0,
            products,
            num_rows: count(rows),
            split: 0,
        };
        let input_params = InputParams { span: made.cols.max(1), ..made };
        let params = FewParams {
            linear,
            input: input_params,
            sums: 0,
            works: count(works),
            fine: fine.into(),
        };
        let (grid, shared) = (self.few_blocks(kernel, works), count(kernel.shared));
        let [output] = **outputs else {
            return self.launch_shared(&kernel.name, [grid, 1, 1], FEW_THREADS, shared, &params);
        };
        let mut reads = memory_of(input);
        reads.push(output.weight.memory().clone());
        reads.extend(output.bias.map(|bias| bias.memory.clone()));
        let (kernel, out) = (kernel.name.clone(), output.out.memory.clone());
        self.wait_to_multiply(Product { kernel, grid, shared, params, rows, out, reads })
    }

    /// Blocks that fit on the card at once, or as many as there are works.
    pub(super) fn few_blocks(&self, kernel: &Kernel, works: usize) -> u32 {
        let together = if 2 * (kernel.shared + DECLARED + RESERVED) <= self.limits.shared + RESERVED
        {
            2
        } else {
            1
        };
        count(works.min(together * self.driver().multiprocessors()).max(1))
    }
}

/// Bytes of shared memory of a block that has so many rows, and each `operands` times.
pub(super) fn few_shared(rows: usize, cols: usize, operands: usize) -> usize {
    WARPS * RING_BYTES + operands * rows * cols.div_ceil(CHUNK) * 2 * CHUNK
}

/// Threads of a block.
pub(super) const FEW_THREADS: u32 = 256;
/// Of `linear_few.cu`.
pub(super) const WARPS: usize = 8;
/// Of `linear_few.cu`.
const RING_BYTES: usize = 8192;
/// Shared memory that the kernel declares.
pub(super) const DECLARED: usize = 9 << 10;
/// What the driver takes of it for each block.
const RESERVED: usize = 1 << 10;
/// Rows that blocks make for themselves.
pub(super) const ALONE_ROWS: usize = 2;
