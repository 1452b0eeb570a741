//! Products in f32 (`cuda/linear_f32.cu`).

use super::device::{Cuda, count};
use super::driver::Driver;
use super::params::{InputRows, LinearF32};
use crate::device::{DeviceError, Input, Linear};

impl<D: Driver> Cuda<D> {
    /// Products of matrices that are all F32.
    pub(super) fn multiply_exactly(
        &self,
        rows: usize,
        input: Input<'_, Self>,
        outputs: &[&Linear<'_, Self>],
    ) -> Result<(), DeviceError> {
        if outputs.is_empty() {
            return Ok(());
        }
        let (driver, made) = (self.driver(), self.input(rows, input));
        let mut x = made.x;
        if made.kind != 0 {
            x = self.scratch().at_least(driver, 4 * rows * made.cols as usize)?;
            let params = InputRows { input: made, out: x };
            self.launch("input_rows", made.grid(rows), 256, &params)?;
        }
        for output in outputs {
            let outs = output.weight.rows;
            let (together, block_outs) = match rows {
                1 => (1, 16),
                2..=4 => (4, 16),
                _ => (16, 8),
            };
            let params = LinearF32 {
                x,
                bias: output.bias.map_or(0, |bias| bias.address(driver, outs)),
                out: output.out.address(driver),
                weight: output.weight.params(driver),
                rows: count(rows),
                unused: 0,
            };
            let grid = [count(outs.div_ceil(block_outs)), count(rows.div_ceil(together)), 1];
            self.launch(&format!("linear_f32_{together}"), grid, 128, &params)?;
        }
        Ok(())
    }
}
