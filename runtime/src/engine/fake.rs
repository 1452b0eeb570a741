//! A model for tests whose logits are a function of everything that it reads back from its KV
//! cache: a wrong table, position or chunk, a block that was not cleared or that two sequences
//! share changes what it says. A slot is written once, but for those of drafts.

use std::collections::HashSet;
use std::sync::{Arc, Mutex};

use chrysalis_kernels::device::{CacheDtype, DeviceError};
use chrysalis_kernels::reference::choose;
use chrysalis_kernels::sampling::uniform;
use chrysalis_kernels::{Batch, Draws};
use chrysalis_models::decoder::{DecoderLimits, Model, ModelError};

pub(super) struct Fake {
    vocab_size: usize,
    max_positions: usize,
    limits: DecoderLimits,
    /// The token at each slot, `[num_blocks, block_size]`; none if clear.
    cache: Vec<Option<u32>>,
    /// Whether a slot has only a drafted token, which another may replace.
    drafted: Vec<bool>,
    /// How much more likely the token is that a rule makes of the last one. The text then repeats
    /// itself, more or less.
    habit: f32,
    logits: Vec<Vec<f32>>,
    draws: Draws,
    pub(super) faults: Arc<Mutex<Faults>>,
}

/// What goes wrong next.
#[derive(Default)]
pub(super) struct Faults {
    pub(super) forward: bool,
    pub(super) sample: bool,
    pub(super) clear: bool,
    pub(super) not_finite: bool,
    /// Slots that hold a token.
    pub(super) slots_in_use: usize,
}

impl Fake {
    pub(super) fn new(vocab_size: usize, max_positions: usize, limits: DecoderLimits) -> Self {
        let slots = limits.num_blocks * limits.block_size;
        Self {
            vocab_size,
            max_positions,
            limits,
            cache: vec![None; slots],
            drafted: vec![false; slots],
            habit: 0.0,
            logits: Vec::new(),
            draws: Draws::default(),
            faults: Arc::default(),
        }
    }

    pub(super) fn with_habit(self, habit: f32) -> Self {
        Self { habit, ..self }
    }

    /// Computes one row of a batch for sequence `s`; `drafted` tokens may be replaced later.
    fn row(&mut self, batch: &Batch, s: usize, row: usize, drafted: bool) {
        let (blocks, position) = (batch.blocks(s), batch.positions[row] as usize);
        let slot = self.slot(blocks, position);
        let before = self.cache[slot].replace(batch.tokens[row]);
        let replaceable = std::mem::replace(&mut self.drafted[slot], drafted);
        assert!(before.is_none() || replaceable, "position {position} was written or not cleared");
        if batch.logit_rows.contains(&(row as u32)) {
            let history = (0..=position).map(|p| self.cache[self.slot(blocks, p)]);
            let history: Vec<u32> = history.map(|t| t.unwrap_or(u32::MAX)).collect();
            self.logits.push(logits_of(&history, self.vocab_size, self.habit));
        }
    }

    fn slot(&self, blocks: &[u32], position: usize) -> usize {
        let block_size = self.limits.block_size;
        blocks[position / block_size] as usize * block_size + position % block_size
    }

    fn failure(&self) -> ModelError {
        DeviceError::OutOfMemory { what: "a test", bytes: 0, left: None }.into()
    }
}

impl Model for Fake {
    fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    fn max_positions(&self) -> usize {
        self.max_positions
    }

    fn limits(&self) -> &DecoderLimits {
        &self.limits
    }

    fn forward(&mut self, batch: &Batch) -> Result<(), ModelError> {
        assert!(batch.num_tokens() <= self.limits.max_tokens, "too many tokens");
        assert!(batch.logit_rows.len() <= self.limits.max_logit_rows, "too many rows");
        let mut owned = HashSet::new();
        assert!(batch.block_tables.iter().all(|block| owned.insert(block)), "a block is shared");
        if std::mem::take(&mut self.faults.lock().unwrap().forward) {
            return Err(self.failure());
        }
        self.logits.clear();
        self.draws.clone_from(&batch.draws);
        for s in 0..batch.num_sequences() {
            let rows = batch.rows(s);
            // What comes before the chunk stays.
            for position in 0..batch.positions[rows.start] as usize {
                let slot = self.slot(batch.blocks(s), position);
                self.drafted[slot] = false;
            }
            for row in rows.clone() {
                // Only the rows before drafted tokens have logits.
                let drafted = row > rows.start && batch.logit_rows.contains(&(row as u32 - 1));
                self.row(batch, s, row, drafted);
            }
        }
        let mut faults = self.faults.lock().unwrap();
        faults.slots_in_use = self.cache.iter().flatten().count();
        if std::mem::take(&mut faults.not_finite) {
            self.logits.iter_mut().for_each(|row| row[0] = f32::NAN);
        }
        Ok(())
    }

    fn logits(&self, index: usize, out: &mut [f32]) -> Result<(), ModelError> {
        out.copy_from_slice(&self.logits[index]);
        Ok(())
    }

    fn sample(&mut self, out: &mut [Option<u32>]) -> Result<(), ModelError> {
        if std::mem::take(&mut self.faults.lock().unwrap().sample) {
            return Err(self.failure());
        }
        assert_eq!(self.draws.len(), out.len(), "a token for each draw");
        for (out, (draw, edits)) in out.iter_mut().zip(self.draws.iter()) {
            *out = choose(&self.logits[draw.row as usize], draw, edits);
        }
        Ok(())
    }

    fn clear_blocks(&mut self, blocks: &[u32]) -> Result<(), ModelError> {
        let mut faults = self.faults.lock().unwrap();
        if std::mem::take(&mut faults.clear) {
            return Err(self.failure());
        }
        let block_size = self.limits.block_size;
        for &block in blocks {
            self.cache[block as usize * block_size..][..block_size].fill(None);
            self.drafted[block as usize * block_size..][..block_size].fill(false);
        }
        faults.slots_in_use = self.cache.iter().flatten().count();
        Ok(())
    }

    fn describe(&self) -> String {
        "fake".into()
    }
}

/// What the fake says after `history`.
pub(super) fn logits_of(history: &[u32], vocab_size: usize, habit: f32) -> Vec<f32> {
    let seed = history.iter().fold(1u64, |hash, &token| {
        (hash ^ u64::from(token)).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(29)
    });
    let last = u64::from(history.last().copied().unwrap_or_default());
    let usual = (last * 5 + 1) % vocab_size as u64;
    let logit = |token| {
        let habit = if token == usual { habit } else { 0.0 };
        (uniform(seed, token) * 8.0 - 4.0) as f32 + habit
    };
    (0..vocab_size as u64).map(logit).collect()
}

/// Limits of a small KV cache.
pub(super) fn limits(num_blocks: usize, block_size: usize) -> DecoderLimits {
    DecoderLimits {
        max_tokens: 64,
        max_logit_rows: 64,
        num_blocks,
        block_size,
        cache_dtype: CacheDtype::F32,
    }
}
