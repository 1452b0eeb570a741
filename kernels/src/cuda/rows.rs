//! Rows as products on tensor cores take them (`cuda/input.cu`, `cuda/norm.cu`): which kernel makes them, after what waits to be
//! added to them.

use super::device::{Cuda, count};
use super::driver::Driver;
use super::few::DECLARED;
use super::params::{InputParams, InputTiles};
use super::products::{CHUNK, ROW_TILE};
use super::space::Space;
use crate::device::{DeviceError, Input};

/// A kernel, and how it is launched.
struct Making {
    kernel: &'static str,
    grid: [u32; 3],
    shared: usize,
    /// Columns of a block.
    span: u32,
}

impl<D: Driver> Cuda<D> {
    /// Rows as tiles of f16 or bf16, after what waits to be added to them.
    pub(super) fn make_tiles(
        &self,
        rows: usize,
        input: Input<'_, Self>,
        made: InputParams,
        half: bool,
        space: &Space<D>,
    ) -> Result<(), DeviceError> {
        let waiting = self.take_added(rows, input);
        let (added, sum) = match &waiting {
            Some(waiting) => (waiting.input, made.x),
            None => (InputParams::NONE, 0),
        };
        let Space { tiles, rest, .. } = *space;
        let Making { kernel, grid, shared, span } = match made.kind {
            1 => self.normed(rows, made.cols),
            kind => self.as_they_are(rows, made.cols, kind != 0),
        };
        let input = InputParams { span, ..made };
        let (half, num_rows) = (u32::from(half), count(rows));
        let params = InputTiles { input, added, sum, tiles, rest, half, num_rows };
        self.launch_shared(kernel, grid, 256, count(shared), &params)
    }

    /// Norms: two rows a block where that leaves two blocks to each multiprocessor, and shared memory has room for them.
    fn normed(&self, rows: usize, cols: u32) -> Making {
        let pair_bytes = 2 * 4 * ((cols as usize).next_multiple_of(CHUNK) + 4);
        let many = rows > 2 * self.driver().multiprocessors();
        let (kernel, together, shared) = match many && pair_bytes + DECLARED <= self.limits.shared {
            true => ("normed_tiles_2", 2, pair_bytes),
            false => ("normed_tiles_1", 1, 0),
        };
        Making { kernel, grid: [count(rows.div_ceil(together)), 1, 1], shared, span: cols }
    }

    /// Rows and gates: a value for each thread to hold until there are eight blocks to each multiprocessor, then as many as it can.
    fn as_they_are(&self, rows: usize, cols: u32, gated: bool) -> Making {
        let groups = rows.div_ceil(ROW_TILE);
        let spans = |span: u32| cols.div_ceil(span).max(1);
        let many = groups * spans(SPAN) as usize > 8 * self.driver().multiprocessors();
        let held = if gated { 2 } else { 4 };
        let span = if many { held * SPAN } else { SPAN };
        Making { kernel: "input_tiles", grid: [count(groups), spans(span), 1], shared: 0, span }
    }
}

/// Of `input.cu`: columns of which a block's threads hold eight each, for eight rows.
const SPAN: u32 = 256;
