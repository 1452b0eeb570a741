//! Products of many rows, and two that wait for the product which takes what one gates of the other: then their launch writes the
//! tiles that it multiplies, and neither of their sums (`cuda/gate.cuh`).

use std::sync::Arc;

use super::device::{Cuda, count};
use super::driver::Driver;
use super::params::LinearParams;
use super::products::{CHUNK, Launch, TILE_ROWS, parts};
use super::residual::{Product, ProductParams};
use super::space::Space;
use crate::device::DeviceError;

/// What is another in a launch that makes a gate.
pub(super) struct Gating {
    grid: [u32; 3],
    shared: u32,
    /// Of `linear_few.cu`: warps of a work, and works.
    group: u32,
    works: u32,
}

impl<D: Driver> Product<D> {
    /// Whether the products that wait make their gate, as tiles of f16 or bf16 at this address: from here on they write nothing else.
    pub(super) fn make_gate(&mut self, kind: u32, half: bool, tiles: u64) -> bool {
        let Some(gating) = &self.gating else { return false };
        (self.grid, self.shared) = (gating.grid, gating.shared);
        let linear = match &mut self.params {
            ProductParams::Few(params) => {
                (params.group, params.works) = (gating.group, gating.works);
                &mut params.linear
            }
            ProductParams::Many(linear) => linear,
        };
        // A work has outs of both.
        linear.products[1].first = u32::MAX;
        (linear.gate, linear.half, linear.gated) = (kind, u32::from(half), tiles);
        true
    }
}

impl<D: Driver> Launch<'_, D> {
    /// Outs of each of its two products, where it can make a gate of them: whole chunks, and two sums at the same place.
    pub(super) fn gated_outs(&self) -> Option<usize> {
        let [gate, up] = self.outputs[..] else { return None };
        let outs = gate.weight.rows;
        let alike = outs == up.weight.rows && outs.is_multiple_of(CHUNK);
        let gates = self.kernel.gating > 0 && !self.kernel.split && alike;
        (gates && gate.bias.is_none() && up.bias.is_none()).then_some(outs)
    }

    /// The memory that it reads, but for what becomes of an input in the launch itself.
    pub(super) fn reads(&self, space: &Space<D>) -> Vec<Arc<D::Memory>> {
        let mut reads = space.memory.clone().into_iter().collect::<Vec<_>>();
        for output in &self.outputs {
            reads.push(output.weight.memory().clone());
            reads.extend(output.bias.map(|bias| bias.memory.clone()));
        }
        reads
    }

    pub(super) fn writes(&self) -> Vec<Arc<D::Memory>> {
        self.outputs.iter().map(|output| output.out.memory.clone()).collect()
    }
}

impl<D: Driver> Cuda<D> {
    /// How this launch makes a gate, where it can.
    pub(super) fn gating(&self, launch: &Launch<'_, D>, rows: usize) -> Option<Gating> {
        let (kernel, outs) = (&launch.kernel, launch.gated_outs()?);
        let shared = count(kernel.gating);
        if kernel.group > 0 {
            let (group, works) = (2 * parts(launch.outputs[0]), outs / TILE_ROWS);
            let (grid, group, works) = (self.few_blocks(works), count(group), count(works));
            return Some(Gating { grid, shared, group, works });
        }
        let grid = self.grid(kernel, 2 * outs / kernel.block_outs, rows);
        Some(Gating { grid, shared, group: 0, works: 0 })
    }

    /// Products of the rows in `space`.
    pub(super) fn multiply(
        &self,
        rows: usize,
        launch: &Launch<'_, D>,
        space: &Space<D>,
    ) -> Result<(), DeviceError> {
        let Launch { kernel, outputs } = launch;
        let (products, works) = self.products(kernel, outputs);
        let params = LinearParams {
            rows: space.tiles,
            rest: space.rest,
            partials: space.partials,
            tickets: space.tickets,
            products,
            gated: 0,
            num_rows: count(rows),
            split: u32::from(kernel.split),
            gate: 0,
            half: 0,
        };
        let (grid, shared) = (self.grid(kernel, works, rows), count(kernel.shared));
        let gating = self.gating(launch, rows);
        if gating.is_none() {
            return self.launch_shared(&kernel.name, grid, kernel.threads, shared, &params);
        }
        self.wait_to_multiply(Product {
            kernel: kernel.name.clone(),
            grid,
            threads: kernel.threads,
            shared,
            params: ProductParams::Many(params),
            gating,
            rows,
            outs: launch.writes(),
            reads: launch.reads(space),
        })
    }
}
