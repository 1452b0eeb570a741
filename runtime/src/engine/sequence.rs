//! One request in the engine: its tokens, how far their keys and values are computed, its blocks.

use chrysalis_kernels::Edit;
use zeroize::Zeroizing;

use super::changes::{Changes, Kept};
use super::lookup::{Draft, Speculation};
use super::sampling::Sampling;

/// Names a sequence; chosen by the caller, unique among those that have not finished.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SequenceId(pub u64);

/// What a caller asks of the engine. No `Debug`: it holds a prompt.
#[derive(Clone)]
#[expect(missing_debug_implementations, reason = "holds a prompt")]
pub struct NewSequence {
    /// Its name in events.
    pub id: SequenceId,
    /// The tokens to continue, wiped on drop.
    pub prompt: Zeroizing<Vec<u32>>,
    /// The most tokens to put out.
    pub max_output: u32,
    /// How a token is chosen.
    pub sampling: Sampling,
    /// Where the random numbers come from: the same seed gives the same tokens.
    pub seed: u64,
    /// Tokens that end the sequence and are not put out: the model's end-of-sequence tokens and
    /// the request's own, at most [`STOP_TOKENS_MAX`].
    pub stop_token_ids: Vec<u32>,
    /// Report log-probabilities, with so many alternatives, at most [`LOGPROBS_MAX`].
    pub logprobs: Option<u8>,
}

/// Why a sequence ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// A stop token was chosen.
    Stop,
    /// The output limit was reached.
    Length,
    /// The caller cancelled it.
    Cancelled,
    /// The model failed, or its logits were not finite.
    Error,
    /// It was never taken ([`AddError::Busy`](super::AddError::Busy)); for callers that answer
    /// with an event, the engine does not say it.
    Busy,
}

/// The log-probabilities at one output token: of the model's own distribution, before bias,
/// penalties and temperature. Wiped on drop.
#[derive(Clone, PartialEq)]
#[expect(missing_debug_implementations, reason = "tells what a secret answer says")]
pub struct TokenLogprobs {
    /// Of the chosen token.
    pub logprob: f32,
    /// The most likely tokens with theirs, best first, equal ones by id.
    pub alternatives: Vec<(u32, f32)>,
}

impl Drop for TokenLogprobs {
    fn drop(&mut self) {
        zeroize::Zeroize::zeroize(&mut self.logprob);
        zeroize::Zeroize::zeroize(&mut self.alternatives);
    }
}

/// A sequence on its way.
pub(super) struct Sequence {
    pub(super) id: SequenceId,
    /// Order of arrival, never reused.
    pub(super) ticket: u64,
    pub(super) sampling: Sampling,
    pub(super) seed: u64,
    pub(super) logprobs: Option<u8>,
    /// While the caller cannot take more, the sequence keeps its place but does not run.
    pub(super) paused: bool,
    /// Leading tokens whose keys and values are in the blocks.
    pub(super) computed: usize,
    pub(super) blocks: Vec<u32>,
    /// Prompt, then output; never reallocated, so that no copy stays behind.
    tokens: Zeroizing<Vec<u32>>,
    num_prompt: usize,
    max_output: usize,
    stop_token_ids: Vec<u32>,
    pub(super) speculation: Speculation,
    kept: Kept,
}

impl Sequence {
    pub(super) fn new(new: NewSequence, ticket: u64) -> Self {
        let max_output = new.max_output as usize;
        let num_prompt = new.prompt.len();
        let mut tokens = Zeroizing::new(Vec::with_capacity(num_prompt + max_output));
        tokens.extend_from_slice(&new.prompt);
        Self {
            id: new.id,
            ticket,
            sampling: new.sampling,
            seed: new.seed,
            logprobs: new.logprobs,
            paused: false,
            computed: 0,
            blocks: Vec::new(),
            tokens,
            num_prompt,
            max_output,
            stop_token_ids: new.stop_token_ids,
            speculation: Speculation::default(),
            kept: Kept::default(),
        }
    }

    /// What bias and penalties do to the logits of the next token.
    pub(super) fn edits(&mut self, changes: &mut Changes) -> &[Edit] {
        let parts = self.tokens.split_at_checked(self.num_prompt).unwrap_or_default();
        self.kept.edits(changes, &self.sampling, parts, self.num_prompt + self.max_output)
    }

    /// All tokens known so far, `[prompt + output]`.
    pub(super) fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// The prompt and the output.
    pub(super) fn parts(&self) -> (&[u32], &[u32]) {
        self.tokens.split_at_checked(self.num_prompt).unwrap_or_default()
    }

    /// Tokens in the prompt.
    pub(super) fn num_prompt(&self) -> usize {
        self.num_prompt
    }

    /// Tokens put out so far.
    pub(super) fn num_output(&self) -> usize {
        self.tokens.len() - self.num_prompt
    }

    /// Tokens that the model has yet to see. One: the next step decodes.
    pub(super) fn remaining(&self) -> usize {
        self.tokens.len() - self.computed
    }

    /// A draft of at most `max` tokens to follow those that are known. The token that the model
    /// chooses after the draft also has room in the output.
    pub(super) fn draft(&mut self, max: usize) -> Option<Draft> {
        let room = self.max_output - self.num_output();
        self.speculation.draft(&self.tokens, max.min(room.saturating_sub(1)))
    }

    /// Whether the token that was chosen last is the one at `index` of the draft. Then its keys
    /// and values are in the blocks.
    pub(super) fn confirm(&mut self, draft: &Draft, index: usize) -> bool {
        let right =
            index < draft.len && self.tokens.last().copied() == draft.token(&self.tokens, index);
        self.computed += usize::from(right);
        right
    }

    /// Takes the chosen token. Returns whether it is put out, and how the sequence ends, if so.
    pub(super) fn accept(&mut self, token: u32) -> (bool, Option<FinishReason>) {
        if self.stop_token_ids.contains(&token) {
            return (false, Some(FinishReason::Stop));
        }
        self.tokens.push(token);
        let full = self.num_output() >= self.max_output;
        (true, full.then_some(FinishReason::Length))
    }
}

/// The most stop tokens of one sequence: all that a request may name, and the model's own.
pub const STOP_TOKENS_MAX: usize = 256 + 8;
/// The most alternatives for one output token.
pub const LOGPROBS_MAX: u8 = 20;

#[cfg(test)]
mod tests {
    use super::{FinishReason, NewSequence, Sequence, SequenceId};
    use crate::engine::Sampling;

    fn sequence(max_output: u32) -> Sequence {
        let new = NewSequence {
            id: SequenceId(1),
            prompt: vec![5, 6].into(),
            max_output,
            sampling: Sampling::default(),
            seed: 0,
            stop_token_ids: vec![9],
            logprobs: None,
        };
        Sequence::new(new, 0)
    }

    #[test]
    fn a_stop_token_ends_the_sequence_and_is_not_put_out() {
        let mut sequence = sequence(3);
        assert_eq!(sequence.accept(9), (false, Some(FinishReason::Stop)));
        assert_eq!((sequence.num_prompt(), sequence.num_output()), (2, 0));
    }

    #[test]
    fn the_last_allowed_token_is_put_out_and_ends_the_sequence() {
        let mut sequence = sequence(2);
        let capacity = sequence.tokens.capacity();
        assert_eq!(sequence.accept(7), (true, None));
        assert_eq!(sequence.accept(8), (true, Some(FinishReason::Length)));
        assert_eq!(sequence.parts(), (&[5, 6][..], &[7, 8][..]));
        assert_eq!(sequence.tokens.capacity(), capacity);
    }
}
