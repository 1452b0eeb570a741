//! Products of the CUDA device: which kernel, how sums are split, and the memory between the launches.
//!
//! F32 matrices are multiplied in f32. All others go through tensor cores (`cuda/linear.cuh`): rows become f16, for bf16 matrices
//! bf16, in front of the output matrix two of them each. Which kernel computes a row, and with which others, shows in no bit of it.

use super::device::{Cuda, count};
use super::driver::Driver;
use super::few::{DECLARED, FEW_THREADS, few_shared, makes_rows};
use super::image_has;
use super::params::Product;
use super::space::operand_bytes;
use super::weights::Form;
use crate::device::{DeviceError, Input, Linear};

/// Where one kernel for products takes over from another: constants of speed, which change no bit (docs/benchmarks-gpu.md).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProductLimits {
    /// Rows up to which weights stream past tiles of eight.
    pub few_rows: usize,
    /// Bytes of shared memory that a block can have: where they are enough for few rows, those stay there.
    pub shared: usize,
    /// Rows up to which they stream past tiles of 32. Above, arithmetic is what is short.
    pub some_rows: usize,
    /// Whether Hopper's instructions are there (`linear_wgmma.cu`); then they multiply any number of rows.
    pub wgmma: bool,
    /// Of those, rows up to which a block has 64 outs, so that two are in a multiprocessor.
    pub narrow_rows: usize,
    /// Of those, blocks from which on 256 rows go together.
    pub wide_blocks: usize,
    /// Blocks of 256 rows up to which they do so too where each part of a sum has one: no more than run at the same time.
    pub wide_parts: usize,
    /// Chunks that each part of a sum has then at least where weights are multiplied as they are stored, half as many where there
    /// are no more rows: sums go to memory and back behind each part. To make f16 of codes costs more than that.
    pub wide_chunks: usize,
    /// Blocks from which on each of them sums all parts: fewer do not fill a card.
    pub whole_blocks: usize,
}

impl ProductLimits {
    /// For a card of this architecture ([`Driver::architecture`]). An image that was cut to other cards runs on it as PTX, and has
    /// no kernels of Hopper's.
    pub fn of(architecture: u32) -> Self {
        let wgmma = architecture == 90 && image_has("90a");
        Self {
            few_rows: 8,
            shared: match architecture {
                80 | 87 => 163 << 10,
                90 | 100 => 227 << 10,
                _ => 99 << 10,
            },
            some_rows: 32,
            wgmma,
            narrow_rows: 64,
            wide_blocks: 128,
            wide_parts: 128,
            wide_chunks: 60,
            whole_blocks: if wgmma { 96 } else { 128 },
        }
    }
}

/// Parts of a sum, by the matrix' shape alone: a power of two, eight at most, with which there are 256 blocks of 64 outs or fewer, and
/// each part has four chunks of 64 columns or more. A matrix with as many blocks as that has whole sums: parts cost time where there
/// are many rows.
pub(super) fn splits(outs: usize, cols: usize) -> usize {
    let wanted = 256 / outs.div_ceil(BLOCK_ROWS).max(1);
    let most = wanted.min(cols.div_ceil(CHUNK) / 4).clamp(1, 8);
    1 << most.ilog2()
}

impl<D: Driver> Cuda<D> {
    /// Products; `fine`: with two 16-bit values for each of a row.
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
        let (half, brain): (Vec<_>, Vec<_>) =
            tiled.into_iter().partition(|output| output.weight.form.is_half());
        let kinds = [&exact, &half, &brain].iter().filter(|outputs| !outputs.is_empty()).count();
        for outputs in [half, brain].iter().filter(|outputs| !outputs.is_empty()) {
            self.multiply_tiles(rows, input, fine, outputs, kinds == 1)?;
        }
        self.multiply_exactly(rows, input, &exact)
    }

    /// Products on tensor cores, of matrices that are all multiplied as f16 or all as bf16; `alone`, if nothing else takes this input.
    fn multiply_tiles(
        &self,
        rows: usize,
        input: Input<'_, Self>,
        fine: bool,
        outputs: &[&Linear<'_, Self>],
        alone: bool,
    ) -> Result<(), DeviceError> {
        let made = self.input(rows, input);
        let half = outputs[0].weight.form.is_half();
        let launches = self.launches(rows, fine, outputs);
        let mut needs = self.needs(&launches, rows);
        // What a launch makes of its products lies where it leaves room for it, and is read there.
        let takes = alone && !fine && needs.gated == 0;
        if self.is_planning() {
            // Fewer rows may be split where more are not: the first of every tile, and the most that are few.
            let few = Some(self.limits.few_rows).filter(|few| *few < rows);
            for fewer in (1..rows).step_by(ROW_TILE).chain(few) {
                needs.and(&self.needs(&self.launches(fewer, fine, outputs), fewer));
            }
        }
        let few = launches.iter().all(|launch| launch.kernel.group > 0);
        let makes = few && makes_rows(rows, input);
        let operand = if makes { 0 } else { operand_bytes(rows, made.cols as usize) };
        let mut scratch = self.scratch();
        let space = self.space(&mut scratch, operand, fine, &needs)?;
        let gated = takes && self.products_gate(rows, input, made, half, space.tiles)?;
        let attended =
            alone && !fine && !makes && self.attention_makes(rows, made, half, space.tiles)?;
        if !gated && !attended && !makes {
            self.make_tiles(rows, input, made, half, &space)?;
        }
        for launch in &launches {
            if few {
                let made = makes.then_some(made);
                self.multiply_few(rows, input, made, &space, launch)?;
            } else {
                self.multiply(rows, launch, &space)?;
            }
        }
        Ok(())
    }

    /// Outputs of one form share a launch, as many as its arguments have room for.
    fn launches<'a>(
        &self,
        rows: usize,
        fine: bool,
        tiled: &[&'a Linear<'a, Self>],
    ) -> Vec<Launch<'a, D>> {
        let mut together: Vec<Vec<&'a Linear<'a, Self>>> = Vec::new();
        for output in tiled {
            let form = output.weight.form;
            let open = together
                .iter_mut()
                .find(|outputs| outputs[0].weight.form == form && outputs.len() < PRODUCTS);
            match open {
                Some(outputs) => outputs.push(output),
                None => together.push(vec![output]),
            }
        }
        let launches = together.into_iter().map(|outputs| {
            let outs: Vec<usize> = outputs.iter().map(|output| output.weight.rows).collect();
            let (form, cols) = (outputs[0].weight.form, outputs[0].weight.cols);
            let kernel = Kernel::new(&self.limits, form, &outs, cols, rows, fine);
            Launch { kernel, outputs }
        });
        launches.collect()
    }

    /// Groups of rows by works; or as many blocks as there are multiprocessors.
    pub(super) fn grid(&self, kernel: &Kernel, works: usize, rows: usize) -> [u32; 3] {
        let (groups, most) = (rows.div_ceil(kernel.group_rows), self.driver().multiprocessors());
        match kernel.keeps() {
            true => [count((groups * works).min(most).max(1)), 1, 1],
            false => [count(groups), count(works), 1],
        }
    }

    /// Arguments of the products of a launch, and how many works they are.
    pub(super) fn products(
        &self,
        kernel: &Kernel,
        outputs: &[&Linear<'_, Self>],
    ) -> ([Product; PRODUCTS], usize) {
        let (driver, mut works) = (self.driver(), 0);
        let mut products = [Product::NONE; PRODUCTS];
        for (product, output) in products.iter_mut().zip(outputs) {
            *product = Product {
                weight: output.weight.params(driver),
                bias: output.bias.map_or(0, |bias| bias.address(driver, output.out.cols)),
                out: output.out.address(driver),
                first: count(works),
                parts: count(parts(output)),
            };
            works += kernel.works(output);
        }
        (products, works)
    }
}

/// A kernel for products, and what its source says of its blocks.
pub(super) struct Kernel {
    pub(super) name: String,
    pub(super) threads: u32,
    pub(super) shared: usize,
    /// Shared memory with which it makes a gate of two products, zero where it cannot.
    pub(super) gating: usize,
    /// Warps of a work of `linear_few.cu`, which has works of its own kind; zero of the others.
    pub(super) group: usize,
    group_rows: usize,
    pub(super) block_outs: usize,
    /// Sums of a block, in f32.
    pub(super) slot_bytes: usize,
    /// Each part of a sum is a work of its own; `stream` kernels know no other way.
    pub(super) split: bool,
}

impl Kernel {
    /// For products of so many outs each.
    fn new(
        limits: &ProductLimits,
        form: Form,
        outs: &[usize],
        cols: usize,
        rows: usize,
        fine: bool,
    ) -> Self {
        let shared = few_shared(rows, cols, if fine { 2 } else { 1 });
        if rows <= limits.few_rows.min(ROW_TILE) && shared + DECLARED <= limits.shared {
            return Self {
                gating: if fine { 0 } else { shared },
                ..Self::few(form, outs, cols, shared)
            };
        }
        let mut kernel = match (limits.wgmma, rows <= limits.some_rows.max(limits.few_rows)) {
            (true, _) => Self::wgmma(limits, form, outs, cols, rows, fine),
            (false, true) => Self::stream(limits, form, rows),
            (false, false) => Self::tiles(form, fine),
        };
        kernel.split |= kernel.blocks(outs, rows) < limits.whole_blocks;
        kernel
    }

    /// One of `linear_few.cu`.
    fn few(form: Form, outs: &[usize], cols: usize, shared: usize) -> Self {
        let group = outs.iter().map(|outs| splits(*outs, cols)).max().unwrap_or(1);
        Self {
            name: format!("linear_few_{}", form.name()),
            threads: FEW_THREADS,
            shared,
            gating: 0,
            group,
            group_rows: ROW_TILE,
            block_outs: BLOCK_ROWS,
            slot_bytes: 0,
            split: false,
        }
    }

    /// One of `linear_mma.cu`, for few rows.
    fn stream(limits: &ProductLimits, form: Form, rows: usize) -> Self {
        let group_rows = if rows <= limits.few_rows { 8 } else { 32 };
        Self {
            name: format!("linear_stream_{}_{group_rows}", form.name()),
            threads: 128,
            shared: 0,
            gating: 0,
            group: 0,
            group_rows,
            block_outs: BLOCK_ROWS,
            slot_bytes: 4 * BLOCK_ROWS * group_rows,
            split: true,
        }
    }

    /// One of `linear_mma.cu`, for many rows.
    fn tiles(form: Form, fine: bool) -> Self {
        let operands = if fine { 2 } else { 1 };
        let (block_outs, group_rows) = (2 * BLOCK_ROWS, 128 / operands);
        let stage = 8 * form.record_bytes() + 16 * ROW_CHUNK_BYTES;
        let stages = if 4 * stage <= 98 * 1024 { 4 } else { 3 };
        Self {
            name: format!("linear_tiles_{}_{operands}", form.name()),
            threads: 256,
            shared: stages * stage,
            gating: 0,
            group: 0,
            group_rows,
            block_outs,
            slot_bytes: 4 * block_outs * group_rows,
            split: false,
        }
    }

    /// One of `linear_wgmma.cu`. Shared memory: a third, half or all of a multiprocessor's.
    fn wgmma(
        limits: &ProductLimits,
        form: Form,
        outs: &[usize],
        cols: usize,
        rows: usize,
        fine: bool,
    ) -> Self {
        let with = |group_rows: usize, groups: usize, kibibytes: usize| {
            let (block_outs, operands) = (groups * BLOCK_ROWS, if fine { 2 } else { 1 });
            let operand = group_rows / ROW_TILE * ROW_CHUNK_BYTES;
            let stage = 128 + groups * 4 * form.record_bytes() + operands * operand;
            let gate_bytes =
                if groups > 1 { 4 * GATE_ROWS } else { group_rows / 2 } * 4 * BLOCK_ROWS;
            let with = |behind| (kibibytes * 1024 - 16 - behind) / stage * stage + 16 + behind;
            Self {
                name: format!("linear_wgmma_{}_{group_rows}", form.name()),
                threads: if groups == 1 { 160 } else { 384 },
                shared: with(0),
                gating: if group_rows > 8 && !fine { with(gate_bytes) } else { 0 },
                group: 0,
                group_rows,
                block_outs,
                slot_bytes: 4 * block_outs * group_rows,
                split: group_rows == 8,
            }
        };
        let wide = with(256, 2, 227);
        let enough = limits.wide_chunks / if rows <= wide.group_rows { 2 } else { 1 };
        let long = outs.iter().all(|outs| cols.div_ceil(CHUNK) / splits(*outs, cols) >= enough);
        match rows {
            _ if rows <= limits.few_rows => with(8, 1, 72),
            _ if rows <= limits.some_rows => with(32, 1, 110),
            _ if rows <= limits.narrow_rows => with(64, 1, 110),
            // It has all parts of a sum in a block.
            _ if !fine
                && rows > 128
                && wide.blocks(outs, rows) >= limits.wide_blocks.max(limits.whole_blocks)
                && (form != Form::Bf16 || long) =>
            {
                wide
            }
            _ if !fine && rows > 128 && wide.fits_in_parts(limits, outs, cols, rows) => wide,
            _ => with(128, 2, 227),
        }
    }

    /// Its blocks go from work to work, and keep sums of parts in slots of their own.
    pub(super) fn keeps(&self) -> bool {
        self.group_rows == 256 && !self.split
    }

    /// Whether it is split, as its blocks are few, and its parts are not too many.
    fn fits_in_parts(
        &self,
        limits: &ProductLimits,
        outs: &[usize],
        cols: usize,
        rows: usize,
    ) -> bool {
        let parts = |outs: &usize| outs.div_ceil(self.block_outs) * splits(*outs, cols);
        let all = outs.iter().map(parts).sum::<usize>() * rows.div_ceil(self.group_rows);
        self.blocks(outs, rows) < limits.whole_blocks && all <= limits.wide_parts
    }

    /// Blocks with all parts of a sum in one.
    fn blocks(&self, outs: &[usize], rows: usize) -> usize {
        let of_a_group: usize = outs.iter().map(|outs| outs.div_ceil(self.block_outs)).sum();
        of_a_group * rows.div_ceil(self.group_rows)
    }

    pub(super) fn works<D: Driver>(&self, output: &Linear<'_, Cuda<D>>) -> usize {
        if self.group > 0 {
            return output.weight.rows.div_ceil(TILE_ROWS).div_ceil(self.group / parts(output));
        }
        output.weight.rows.div_ceil(self.block_outs) * if self.split { parts(output) } else { 1 }
    }
}

/// Products that share a launch: one form, one to [`PRODUCTS`].
pub(super) struct Launch<'a, D: Driver> {
    pub(super) kernel: Kernel,
    pub(super) outputs: Vec<&'a Linear<'a, Cuda<D>>>,
}

pub(super) fn parts<D: Driver>(output: &Linear<'_, Cuda<D>>) -> usize {
    splits(output.weight.rows, output.weight.cols)
}

/// Of `linear.cuh`.
const PRODUCTS: usize = 3;
/// Of `linear_wgmma.cu`.
const GATE_ROWS: usize = 32;
/// Of `tiles.cuh`.
const BLOCK_ROWS: usize = 64;
/// Of `tiles.cuh`.
pub(super) const CHUNK: usize = 64;
/// Of `tiles.cuh`.
pub(super) const TILE_ROWS: usize = 16;
/// Of `tiles.cuh`.
pub(super) const ROW_TILE: usize = 8;
/// Of `tiles.cuh`.
pub(super) const ROW_CHUNK_BYTES: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_are_split_by_the_shape_alone_and_no_part_is_short() {
        let cases = [
            ((4096, 4096), 4),
            ((1024, 4096), 8),
            ((14_336, 4096), 1),
            ((3000, 4096), 4),
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
