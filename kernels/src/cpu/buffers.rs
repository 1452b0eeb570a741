//! What the CPU device holds beside weights and the cache: activations, norms, steps.

use std::fmt;
use std::ops::Range;

use super::TOKENS_PER_TILE;
use super::attention::Part;
use crate::batch::Batch;
use crate::device::DeviceError;
use crate::memory::Aligned;

/// Activations, `[rows, cols]`; wiped on drop and never printed.
pub struct Buffer {
    pub(super) rows: usize,
    pub(super) cols: usize,
    pub(super) data: Aligned<f32>,
}

/// Weights of a norm or a bias.
pub struct Vector(pub(super) Aligned<f32>);

/// The batch of the step, and its tokens cut into the tiles of attention.
#[derive(Debug, Default)]
pub struct Step {
    pub(super) batch: Batch,
    /// First token of each tile, and the end.
    pub(super) splits: Vec<usize>,
    /// Sequence of each tile.
    pub(super) sequences: Vec<usize>,
}

impl Buffer {
    /// Zeros.
    pub(super) fn new(rows: usize, cols: usize) -> Result<Self, DeviceError> {
        let too_large =
            DeviceError::OutOfMemory { what: "activations", bytes: usize::MAX, left: None };
        let len = rows.checked_mul(cols).ok_or(too_large)?;
        Ok(Self { rows, cols, data: Aligned::zeroed("activations", len)? })
    }

    pub(super) fn row(&self, t: usize) -> &[f32] {
        assert!(t < self.rows, "row {t} of {}", self.rows);
        &self.data[t * self.cols..][..self.cols]
    }

    pub(super) fn row_mut(&mut self, t: usize) -> &mut [f32] {
        assert!(t < self.rows, "row {t} of {}", self.rows);
        &mut self.data[t * self.cols..][..self.cols]
    }
}

impl Step {
    /// Takes the batch and cuts its tokens into tiles of one sequence each.
    pub(super) fn set(&mut self, batch: &Batch) {
        self.batch.clone_from(batch);
        self.splits.clear();
        self.sequences.clear();
        for s in 0..batch.num_sequences() {
            for first in batch.rows(s).step_by(TOKENS_PER_TILE) {
                self.splits.push(first);
                self.sequences.push(s);
            }
        }
        self.splits.push(batch.num_tokens());
    }
}

impl Step {
    /// Heads of the tokens `rows`, which are a tile or within one.
    pub(super) fn part(&self, rows: Range<usize>, heads: Range<usize>) -> Part<'_> {
        let tile = self.splits.partition_point(|first| *first <= rows.start) - 1;
        Part { blocks: self.batch.blocks(self.sequences[tile]), rows, heads }
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buffer({} x {})", self.rows, self.cols)
    }
}

impl fmt::Debug for Vector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Vector({})", self.0.len())
    }
}
