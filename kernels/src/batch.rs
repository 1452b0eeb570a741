//! The tokens of one step: several sequences end to end, each with its positions and KV blocks.

use std::fmt;

use zeroize::Zeroize;

use crate::sampling::Draws;

/// Which rows of a sequence's chunk need logits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WantLogits {
    /// A prefill chunk that is not the last one.
    None,
    /// The last token of the chunk: the next token is sampled from it.
    Last,
    /// Every token (perplexity, speculative verification).
    All,
}

/// A ragged batch. All vectors are flat; sequence `s` owns tokens `cu_seqlens_q[s]..cu_seqlens_q[s + 1]`
/// and table entries `cu_blocks[s]..cu_blocks[s + 1]`. Its tokens are secret: never printed, wiped on drop.
#[derive(Clone, Default, PartialEq)]
pub struct Batch {
    /// `[num_tokens]`.
    pub tokens: Vec<u32>,
    /// Position of each token in its sequence, `[num_tokens]`.
    pub positions: Vec<u32>,
    /// Prefix sums of chunk lengths, `[num_sequences + 1]`; empty for an empty batch.
    pub cu_seqlens_q: Vec<u32>,
    /// Block tables end to end: entry `i` of a sequence holds positions `i * block_size ..`.
    pub block_tables: Vec<u32>,
    /// Prefix sums of table lengths, `[num_sequences + 1]`; empty for an empty batch.
    pub cu_blocks: Vec<u32>,
    /// Token rows whose logits are wanted, ascending.
    pub logit_rows: Vec<u32>,
    /// The tokens to choose; their rows are indices into `logit_rows`.
    pub draws: Draws,
}

impl fmt::Debug for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Batch({} tokens of {} sequences)", self.num_tokens(), self.num_sequences())
    }
}

impl Drop for Batch {
    fn drop(&mut self) {
        self.tokens.zeroize();
    }
}

impl Batch {
    /// Forgets everything, keeps the memory.
    pub fn clear(&mut self) {
        self.tokens.clear();
        self.positions.clear();
        self.cu_seqlens_q.clear();
        self.block_tables.clear();
        self.cu_blocks.clear();
        self.logit_rows.clear();
        self.draws.clear();
    }

    /// Appends a chunk of a sequence: `tokens` at positions `start..start + tokens.len()`, with the
    /// sequence's whole block table. Returns the range of its rows in `logit_rows`.
    ///
    /// # Panics
    /// When `tokens` is empty or the batch exceeds `u32` counts.
    #[expect(clippy::expect_used, reason = "counts are bounded by the engine's limits")]
    pub fn push(
        &mut self,
        tokens: &[u32],
        start: u32,
        blocks: &[u32],
        want: WantLogits,
    ) -> std::ops::Range<usize> {
        assert!(!tokens.is_empty(), "a chunk has at least one token");
        let first = u32::try_from(self.tokens.len()).expect("fewer than 2^32 tokens in a step");
        let count = u32::try_from(tokens.len()).expect("fewer than 2^32 tokens in a chunk");
        if self.cu_seqlens_q.is_empty() {
            self.cu_seqlens_q.push(0);
            self.cu_blocks.push(0);
        }
        self.tokens.extend_from_slice(tokens);
        self.positions.extend(start..start + count);
        self.cu_seqlens_q.push(first + count);
        self.block_tables.extend_from_slice(blocks);
        self.cu_blocks
            .push(u32::try_from(self.block_tables.len()).expect("fewer than 2^32 table entries"));
        let begin = self.logit_rows.len();
        match want {
            WantLogits::None => {}
            WantLogits::Last => self.logit_rows.push(first + count - 1),
            WantLogits::All => self.logit_rows.extend(first..first + count),
        }
        begin..self.logit_rows.len()
    }

    /// Tokens in the step.
    pub fn num_tokens(&self) -> usize {
        self.tokens.len()
    }

    /// Sequences in the step.
    pub fn num_sequences(&self) -> usize {
        self.cu_seqlens_q.len().saturating_sub(1)
    }

    /// Rows of tokens of sequence `s`.
    pub fn rows(&self, s: usize) -> std::ops::Range<usize> {
        self.cu_seqlens_q[s] as usize..self.cu_seqlens_q[s + 1] as usize
    }

    /// Block table of sequence `s`.
    pub fn blocks(&self, s: usize) -> &[u32] {
        &self.block_tables[self.cu_blocks[s] as usize..self.cu_blocks[s + 1] as usize]
    }
}
