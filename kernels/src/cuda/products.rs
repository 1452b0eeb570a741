//! Products of the CUDA device: which kernel, how sums are split, and the memory between the launches.
//!
//! F32 matrices are multiplied in f32. All others go through tensor cores (`cuda/linear.cuh`): rows become bf16, in front of the
//! output matrix two of them each. Which kernel computes a row, and with which others, shows in no bit of it.

use super::device::{Cuda, Scratch, count};
use super::driver::Driver;
use super::params::{InputParams, InputRows, InputTiles, LinearF32, LinearParams, Product};
use super::weights::Form;
use crate::device::{DeviceError, Input, Linear};

/// Where one kernel for products takes over from another: constants of speed, which change no bit. None has been measured on
/// a card.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProductLimits {
    /// Rows up to which weights stream past tiles of eight.
    pub few_rows: usize,
    /// Rows up to which they stream past tiles of 32. Above, arithmetic is what is short.
    pub some_rows: usize,
    /// Blocks from which on each of them sums all parts: fewer do not fill a card.
    pub whole_blocks: usize,
}

impl Default for ProductLimits {
    fn default() -> Self {
        Self { few_rows: 8, some_rows: 32, whole_blocks: 128 }
    }
}

/// Parts of a sum, by the matrix' shape alone: as many as give a large card some 256 blocks of 64 outs, each of four chunks of
/// 64 columns at least, eight at most.
pub(super) fn splits(outs: usize, cols: usize) -> usize {
    let wanted = 256_usize.div_ceil(outs.div_ceil(BLOCK_ROWS).max(1));
    wanted.min(cols.div_ceil(CHUNK) / 4).clamp(1, 8)
}

impl<D: Driver> Cuda<D> {
    /// Products; `fine`: with two bf16 for each value of a row.
    pub(super) fn try_linear(
        &self,
        rows: usize,
        input: Input<'_, Self>,
        fine: bool,
        outputs: &[Linear<'_, Self>],
    ) -> Result<(), DeviceError> {
        let made = self.input(rows, input);
        let cols = made.cols as usize;
        for Linear { weight, out, .. } in outputs {
            assert_eq!((weight.cols, weight.rows), (cols, out.cols), "a product");
            assert!(rows <= out.rows, "{rows} rows of {}", out.rows);
        }
        if rows == 0 {
            return Ok(());
        }
        let there = outputs.iter().filter(|output| output.weight.rows > 0);
        let (exact, tiled): (Vec<_>, Vec<_>) =
            there.partition(|output| output.weight.form == Form::F32);
        let launches = self.launches(rows, fine, &tiled);
        let mut split = split(&launches, rows);
        if self.is_planning() {
            // Fewer rows may be split where more are not.
            for fewer in (1..rows).step_by(ROW_TILE) {
                let other = self::split(&self.launches(fewer, fine, &tiled), fewer);
                split = (split.0.max(other.0), split.1.max(other.1));
            }
        }
        let operand = if tiled.is_empty() { 0 } else { operand_bytes(rows, cols) };
        let f32_rows = if exact.is_empty() { 0 } else { 4 * rows * cols };
        let mut scratch = self.scratch();
        let space = self.space(&mut scratch, operand, fine, split, f32_rows)?;
        if !launches.is_empty() {
            self.make_tiles(rows, input, made, &space)?;
        }
        for launch in &launches {
            self.multiply(rows, launch, &space)?;
        }
        self.multiply_exactly(rows, made, &exact, &space)
    }

    /// Outputs of one form share a launch, as many as its arguments have room for.
    fn launches<'a>(
        &self,
        rows: usize,
        fine: bool,
        tiled: &[&'a Linear<'a, Self>],
    ) -> Vec<Launch<'a, D>> {
        let mut launches: Vec<Launch<'a, D>> = Vec::new();
        for output in tiled {
            let form = output.weight.form;
            let open = launches.iter_mut().find(|launch| {
                launch.outputs[0].weight.form == form && launch.outputs.len() < PRODUCTS
            });
            match open {
                Some(launch) => launch.outputs.push(output),
                None => {
                    let kernel = Kernel::new(&self.limits, form, rows, fine);
                    launches.push(Launch { kernel, outputs: vec![output] });
                }
            }
        }
        for launch in &mut launches {
            let blocks: usize = launch.outputs.iter().map(|o| launch.kernel.blocks(o)).sum();
            let groups = rows.div_ceil(launch.kernel.group_rows);
            launch.kernel.split |= blocks * groups < self.limits.whole_blocks;
        }
        launches
    }

    /// Memory for the rows as they are multiplied, and for sums that are split: so many, in so many bytes.
    fn space(
        &self,
        scratch: &mut Scratch<D>,
        operand: usize,
        fine: bool,
        (slots, partials): (usize, usize),
        f32_rows: usize,
    ) -> Result<Space, DeviceError> {
        let operands = operand * if fine { 2 } else { 1 };
        let tiles = scratch.at_least(self.driver(), operands + partials + f32_rows)?;
        Ok(Space {
            tiles,
            rest: if fine { tiles + operand as u64 } else { 0 },
            partials: tiles + operands as u64,
            tickets: scratch.tickets(self.driver(), slots)?,
            f32_rows: tiles + (operands + partials) as u64,
        })
    }

    /// Rows as bf16 tiles, after what waits to be added to them.
    fn make_tiles(
        &self,
        rows: usize,
        input: Input<'_, Self>,
        made: InputParams,
        space: &Space,
    ) -> Result<(), DeviceError> {
        let waiting = self.take_added(rows, input);
        let (added, sum) = match &waiting {
            Some(waiting) => (InputParams { span: made.cols, ..waiting.input }, made.x),
            None => (InputParams { cols: 0, ..made }, 0),
        };
        let params = InputTiles { input: made, added, sum, tiles: space.tiles, rest: space.rest };
        self.launch("input_tiles", made.grid(rows), 256, &params)
    }

    fn multiply(
        &self,
        rows: usize,
        Launch { kernel, outputs }: &Launch<'_, D>,
        space: &Space,
    ) -> Result<(), DeviceError> {
        let driver = self.driver();
        let mut first = 0;
        let mut products = [Product::NONE; PRODUCTS];
        for (product, output) in products.iter_mut().zip(outputs) {
            *product = Product {
                weight: output.weight.params(driver),
                bias: output.bias.map_or(0, |bias| bias.address(driver, output.out.cols)),
                out: output.out.address(driver),
                first: count(first),
                parts: count(parts(output)),
            };
            first += kernel.works(output);
        }
        let params = LinearParams {
            rows: space.tiles,
            rest: space.rest,
            partials: space.partials,
            tickets: space.tickets,
            products,
            num_rows: count(rows),
            split: u32::from(kernel.split),
        };
        let grid = [count(rows.div_ceil(kernel.group_rows)), count(first), 1];
        self.launch_shared(&kernel.name, grid, kernel.threads, count(kernel.shared), &params)
    }

    /// Products in f32.
    fn multiply_exactly(
        &self,
        rows: usize,
        made: InputParams,
        outputs: &[&Linear<'_, Self>],
        space: &Space,
    ) -> Result<(), DeviceError> {
        let driver = self.driver();
        let mut x = made.x;
        if made.kind != 0 && !outputs.is_empty() {
            x = space.f32_rows;
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

/// A kernel for products, and what its source says of its blocks.
struct Kernel {
    name: String,
    threads: u32,
    shared: usize,
    group_rows: usize,
    block_outs: usize,
    /// Sums of a block, in f32.
    slot_bytes: usize,
    /// Each part of a sum is a work of its own; `stream` kernels know no other way.
    split: bool,
}

impl Kernel {
    /// One of `linear_mma.cu`.
    fn new(limits: &ProductLimits, form: Form, rows: usize, fine: bool) -> Self {
        let name = form.name();
        if rows <= limits.some_rows.max(limits.few_rows) {
            let group_rows = if rows <= limits.few_rows { 8 } else { 32 };
            return Self {
                name: format!("linear_stream_{name}_{group_rows}"),
                threads: 128,
                shared: 0,
                group_rows,
                block_outs: BLOCK_ROWS,
                slot_bytes: 4 * BLOCK_ROWS * group_rows,
                split: true,
            };
        }
        let operands = if fine { 2 } else { 1 };
        let (block_outs, group_rows) = (2 * BLOCK_ROWS, 128 / operands);
        let stage = 8 * form.record_bytes() + 16 * ROW_CHUNK_BYTES;
        let stages = if 4 * stage <= 99 * 1024 { 4 } else { 3 };
        Self {
            name: format!("linear_tiles_{name}_{operands}"),
            threads: 256,
            shared: stages * stage,
            group_rows,
            block_outs,
            slot_bytes: 4 * block_outs * group_rows,
            split: false,
        }
    }

    /// Blocks that a group of rows has for this product, with all parts of a sum in one.
    fn blocks<D: Driver>(&self, output: &Linear<'_, Cuda<D>>) -> usize {
        output.weight.rows.div_ceil(self.block_outs)
    }

    fn works<D: Driver>(&self, output: &Linear<'_, Cuda<D>>) -> usize {
        self.blocks(output) * if self.split { parts(output) } else { 1 }
    }
}

/// Products that share a launch: one form, one to [`PRODUCTS`].
struct Launch<'a, D: Driver> {
    kernel: Kernel,
    outputs: Vec<&'a Linear<'a, Cuda<D>>>,
}

impl<D: Driver> Launch<'_, D> {
    /// Works of all groups of rows.
    fn slots(&self, rows: usize) -> usize {
        let works: usize = self.outputs.iter().map(|output| self.kernel.works(output)).sum();
        works * rows.div_ceil(self.kernel.group_rows)
    }
}

/// Slots for sums that are split, and the bytes of all: what the largest of these launches needs.
fn split<D: Driver>(launches: &[Launch<'_, D>], rows: usize) -> (usize, usize) {
    let split = launches.iter().filter(|launch| launch.kernel.split);
    split.fold((0, 0), |(slots, bytes), launch| {
        let more = launch.slots(rows);
        (slots.max(more), bytes.max(more * launch.kernel.slot_bytes))
    })
}

fn operand_bytes(rows: usize, cols: usize) -> usize {
    rows.div_ceil(ROW_TILE) * cols.div_ceil(CHUNK) * ROW_CHUNK_BYTES
}

fn parts<D: Driver>(output: &Linear<'_, Cuda<D>>) -> usize {
    splits(output.weight.rows, output.weight.cols)
}

/// Addresses of what products need beside their arguments.
struct Space {
    tiles: u64,
    rest: u64,
    partials: u64,
    tickets: u64,
    f32_rows: u64,
}

/// Of `linear.cuh`.
const PRODUCTS: usize = 3;
/// Of `tiles.cuh`.
const BLOCK_ROWS: usize = 64;
/// Of `tiles.cuh`.
const CHUNK: usize = 64;
/// Of `tiles.cuh`.
const ROW_TILE: usize = 8;
/// Of `tiles.cuh`.
const ROW_CHUNK_BYTES: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_are_split_by_the_shape_alone_and_no_part_is_short() {
        let cases = [
            ((4096, 4096), 4),
            ((1024, 4096), 8),
            ((14_336, 4096), 2),
            ((4096, 14_336), 4),
            ((128_256, 4096), 1),
            ((576, 576), 2),
            ((5, 96), 1),
            ((0, 4096), 8),
            ((64, 0), 1),
        ];
        for ((outs, cols), expected) in cases {
            assert_eq!(splits(outs, cols), expected, "{outs} x {cols}");
        }
        for cols in (0..20_000).step_by(61) {
            let parts = splits(64, cols);
            assert!(parts == 1 || cols.div_ceil(CHUNK) / parts >= 4, "{cols} columns");
        }
    }
}
