//! The tokens of greedy sequences, which the device finds: their logits never leave it.

use chrysalis_models::decoder::{Model, ModelError};
use zeroize::Zeroizing;

use super::error::NotFinite;
use super::scheduler::{Chunk, Scheduler};

/// The likeliest token of each row of the last step that a greedy sequence asked for.
pub(super) struct Likeliest {
    /// Ascending.
    rows: Vec<u32>,
    /// One for each of them.
    tokens: Zeroizing<Vec<Option<u32>>>,
}

impl Likeliest {
    /// Reserves all memory, so that no copy stays behind when a list grows.
    pub(super) fn new(max_rows: usize) -> Self {
        let tokens = Zeroizing::new(Vec::with_capacity(max_rows));
        Self { rows: Vec::with_capacity(max_rows), tokens }
    }

    /// Asks for all rows of the greedy sequences of `plan`, whose step the model has made.
    ///
    /// # Errors
    /// The model's.
    pub(super) fn find(
        &mut self,
        model: &dyn Model,
        plan: &[Chunk],
        scheduler: &mut Scheduler,
    ) -> Result<(), ModelError> {
        self.rows.clear();
        let mut first_row = 0u32;
        for chunk in plan {
            let Some(sequence) = scheduler.running(chunk.ticket) else {
                continue;
            };
            // A step has fewer than 2^32 rows: its tokens are counted in as many bits.
            let next_row = first_row.saturating_add(super::saturate(chunk.num_rows()));
            if sequence.takes_likeliest() {
                self.rows.extend(first_row..next_row);
            }
            first_row = next_row;
        }
        self.tokens.clear();
        self.tokens.resize(self.rows.len(), None);
        if self.rows.is_empty() { Ok(()) } else { model.argmax(&self.rows, &mut self.tokens) }
    }

    /// The token of this row, where a greedy sequence asked for it.
    pub(super) fn of(&self, row: usize) -> Option<Result<u32, NotFinite>> {
        let at = self.rows.binary_search(&u32::try_from(row).ok()?).ok()?;
        Some(self.tokens.get(at).copied().flatten().ok_or(NotFinite))
    }
}
