//! What the engine tells its caller.

use super::sequence::{FinishReason, SequenceId, TokenLogprobs};

/// What happened to a sequence. No `Debug`: a token is part of a secret answer.
#[derive(Clone, PartialEq)]
#[expect(missing_debug_implementations, reason = "holds tokens of a secret answer")]
pub enum Event {
    /// A token was put out.
    Token {
        /// The sequence.
        id: SequenceId,
        /// The token.
        token: u32,
        /// If the sequence asked for them.
        logprobs: Option<TokenLogprobs>,
    },
    /// A chunk of the prompt was computed, and it was not the last.
    Progress {
        /// The sequence.
        id: SequenceId,
        /// Tokens computed so far. Falls back when the sequence was preempted.
        computed: u32,
        /// Tokens to compute before the next token is put out.
        total: u32,
    },
    /// The sequence is over; its blocks are cleared.
    Finished {
        /// The sequence.
        id: SequenceId,
        /// Why.
        reason: FinishReason,
        /// Tokens in its prompt.
        prompt_tokens: u32,
        /// Tokens put out. A stop token is not among them.
        output_tokens: u32,
    },
}

/// What a step did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StepStatus {
    /// No sequence can run: there is none, or all are paused.
    Idle,
    /// The model ran once.
    Ran {
        /// Tokens of prompts, and tokens computed again after a preemption.
        prefill_tokens: u32,
        /// Tokens past the prompt, one for each sequence; drafts are not among them.
        decode_tokens: u32,
        /// Sequences in the step.
        sequences: u32,
    },
}

/// What the engine did since it was built, and what is in it now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Steps in which the model ran.
    pub steps: u64,
    /// Tokens of prompts, and tokens computed again after a preemption.
    pub prefill_tokens: u64,
    /// Tokens past the prompt, but for those of drafts.
    pub decode_tokens: u64,
    /// Tokens that were drafted.
    pub drafted_tokens: u64,
    /// Tokens that were drafted and then chosen, so that no step of their own computed them.
    pub confirmed_tokens: u64,
    /// Tokens put out.
    pub output_tokens: u64,
    /// Sequences taken.
    pub added: u64,
    /// Sequences that ended with [`FinishReason::Stop`] or [`FinishReason::Length`].
    pub completed: u64,
    /// Sequences that ended with [`FinishReason::Cancelled`].
    pub cancelled: u64,
    /// Sequences that ended with [`FinishReason::Error`].
    pub failed: u64,
    /// Times that a sequence gave up its blocks and had to wait again.
    pub preemptions: u64,
    /// Sequences that wait.
    pub waiting: u32,
    /// Sequences that run.
    pub running: u32,
    /// Blocks that no sequence has.
    pub free_blocks: u32,
    /// Blocks of the KV cache.
    pub num_blocks: u32,
}
