//! The memory that launches of products share: rows as tiles, and sums that are split.

use std::sync::Arc;

use super::device::{Cuda, Scratch};
use super::driver::Driver;
use super::products::{CHUNK, Launch, ROW_CHUNK_BYTES, ROW_TILE};
use crate::device::DeviceError;

/// What launches need of the memory between them.
#[derive(Default)]
pub(super) struct Needs {
    /// For sums that are split or kept, and the bytes of all.
    pub(super) slots: usize,
    pub(super) partials: usize,
    /// Bytes of the rows that one may make of its products.
    pub(super) gated: usize,
}

impl Needs {
    pub(super) fn and(&mut self, other: &Self) {
        self.slots = self.slots.max(other.slots);
        self.partials = self.partials.max(other.partials);
        self.gated = self.gated.max(other.gated);
    }
}

/// Addresses of what products need beside their arguments, and the memory that most of them are in.
pub(super) struct Space<D: Driver> {
    pub(super) memory: Option<Arc<D::Memory>>,
    pub(super) tiles: u64,
    pub(super) rest: u64,
    pub(super) partials: u64,
    pub(super) tickets: u64,
}

impl<D: Driver> Cuda<D> {
    /// What the largest of these launches needs.
    pub(super) fn needs(&self, launches: &[Launch<'_, D>], rows: usize) -> Needs {
        let mut needs = Needs::default();
        for launch in launches {
            let Launch { kernel, outputs } = launch;
            let works: usize = outputs.iter().map(|output| kernel.works(output)).sum();
            let [x, y, _] = self.grid(kernel, works, rows);
            let slots = if kernel.split || kernel.keeps() { (x * y) as usize } else { 0 };
            let gated = launch.gated_outs().map_or(0, |outs| operand_bytes(rows, outs));
            needs.and(&Needs { slots, partials: slots * kernel.slot_bytes, gated });
        }
        needs
    }

    /// Memory for the rows as they are multiplied, behind those that are made of what comes out, and for sums that are split.
    pub(super) fn space(
        &self,
        scratch: &mut Scratch<D>,
        operand: usize,
        fine: bool,
        &Needs { slots, partials, gated }: &Needs,
    ) -> Result<Space<D>, DeviceError> {
        let operands = operand * if fine { 2 } else { 1 };
        let bytes = gated + operands + partials;
        let tiles = scratch.at_least(self.driver(), bytes)? + gated as u64;
        Ok(Space {
            memory: scratch.memory(),
            tiles,
            rest: if fine { tiles + operand as u64 } else { 0 },
            partials: tiles + operands as u64,
            tickets: scratch.tickets(self.driver(), slots)?,
        })
    }
}

/// Of so many rows as tiles.
pub(super) fn operand_bytes(rows: usize, cols: usize) -> usize {
    rows.div_ceil(ROW_TILE) * cols.div_ceil(CHUNK) * ROW_CHUNK_BYTES
}
