//! A sealed response on its way out: tokens wait for their frame, frames for their tick and for credit.

use std::collections::VecDeque;

use chrysalis_protocol::receipt::{self, RECEIPT_LEN};
use chrysalis_protocol::response::{
    self, Accept, ErrorCode, FinishReason, Inner, ResponseError, ResponseSealer, TOKENS_MAX,
    logprobs_max,
};
use zeroize::Zeroizing;

use super::acks::{Acks, Refused};
use super::receipts::{Meter, Receipts, Usage};
use crate::engine::{self, Event, SequenceId};
use crate::epoch::Identity;
use crate::lease::Promise;
use crate::limits::Limits;
use crate::pacer::Pacer;

/// One answer.
pub(super) struct Answer {
    sealer: ResponseSealer,
    pacer: Pacer,
    meter: Meter,
    /// Frames that the host still takes.
    credit: u32,
    /// Since when a frame waits for credit.
    stalled_ms: Option<u64>,
    /// Whether the engine was told to hold the sequence back.
    paused: bool,
    /// Frames that go before any token.
    queue: VecDeque<Inner>,
    /// Tokens without a frame yet.
    tokens: Zeroizing<Vec<u32>>,
    /// Their log probabilities, where they were asked for.
    logprobs: VecDeque<engine::TokenLogprobs>,
    wants_logprobs: Option<u8>,
    /// What the client says of it, where the policy has an ACK window.
    acks: Option<Acks>,
    /// The engine's name for it, while the engine works on it.
    pub(super) sequence: Option<SequenceId>,
    prompt_tokens: u32,
    /// What the lease holds for it.
    pub(super) promise: Promise,
    outcome: Option<FinishReason>,
}

/// What is known of an answer when its request is accepted.
pub(super) struct Accepted {
    pub(super) accept: Accept,
    pub(super) sequence: SequenceId,
    pub(super) prompt_tokens: u32,
    pub(super) wants_logprobs: Option<u8>,
    pub(super) acks: Option<Acks>,
}

/// The end of an answer.
pub(super) struct Ended {
    pub(super) receipt: [u8; RECEIPT_LEN],
    pub(super) prompt_tokens: u32,
    pub(super) output_tokens: u32,
}

impl Answer {
    pub(super) fn accepted(
        sealer: ResponseSealer,
        pacer: Pacer,
        meter: Meter,
        credit: u32,
        accepted: Accepted,
    ) -> Self {
        let mut answer = Self::new(sealer, pacer, meter, credit, Inner::Accept(accepted.accept));
        answer.sequence = Some(accepted.sequence);
        answer.prompt_tokens = accepted.prompt_tokens;
        answer.wants_logprobs = accepted.wants_logprobs;
        answer.acks = accepted.acks;
        answer
    }

    pub(super) fn refused(
        sealer: ResponseSealer,
        pacer: Pacer,
        meter: Meter,
        credit: u32,
        code: ErrorCode,
    ) -> Self {
        let mut answer = Self::new(sealer, pacer, meter, credit, Inner::Error(code));
        answer.outcome = Some(FinishReason::Error);
        answer
    }

    fn new(sealer: ResponseSealer, pacer: Pacer, meter: Meter, credit: u32, first: Inner) -> Self {
        Self {
            sealer,
            pacer,
            meter,
            credit,
            stalled_ms: None,
            paused: false,
            queue: VecDeque::from([first]),
            tokens: Zeroizing::default(),
            logprobs: VecDeque::new(),
            wants_logprobs: None,
            acks: None,
            sequence: None,
            prompt_tokens: 0,
            promise: Promise::default(),
            outcome: None,
        }
    }

    /// Tokens that the model has read and written for it.
    pub(super) fn used(&self) -> u64 {
        let waiting = self.tokens.len() as u64;
        u64::from(self.prompt_tokens) + u64::from(self.sealer.num_tokens()) + waiting
    }

    /// The head of the response, which goes out before the first frame.
    pub(super) fn head(&self) -> &[u8] {
        self.sealer.head()
    }

    /// Takes what the engine says.
    pub(super) fn take(&mut self, event: Event) {
        if self.outcome.is_some() {
            return;
        }
        match event {
            Event::Token { token, logprobs, .. } => {
                self.tokens.push(token);
                self.logprobs.extend(logprobs);
            }
            Event::Progress { computed, total, .. } => {
                // Only the newest is worth a frame.
                if self.tokens.is_empty() {
                    self.queue.retain(|inner| !matches!(inner, Inner::Progress { .. }));
                    self.queue.push_back(Inner::Progress { done: computed, total });
                }
            }
            Event::Finished { reason, .. } => self.finish(reason),
        }
    }

    fn finish(&mut self, reason: engine::FinishReason) {
        self.sequence = None;
        self.outcome = Some(match reason {
            engine::FinishReason::Stop => FinishReason::Stop,
            engine::FinishReason::Length => FinishReason::Length,
            engine::FinishReason::Cancelled => FinishReason::Cancelled,
            engine::FinishReason::Busy => self.fail(ErrorCode::Busy),
            engine::FinishReason::Error => self.fail(ErrorCode::Internal),
        });
    }

    /// An error ends the output: tokens that have no frame yet are not sent.
    fn fail(&mut self, code: ErrorCode) -> FinishReason {
        self.tokens = Zeroizing::default();
        self.logprobs.clear();
        self.queue.push_back(Inner::Error(code));
        FinishReason::Error
    }

    /// Nobody waits for the rest. What has no frame yet is dropped; the length stays within its quantum.
    pub(super) fn cancel(&mut self) -> Option<SequenceId> {
        if let Some(acks) = &mut self.acks {
            acks.waive();
        }
        let held = self.acks.is_some() && !self.tokens.is_empty();
        if self.outcome.is_none() || held {
            self.outcome = Some(FinishReason::Cancelled);
            self.tokens = Zeroizing::default();
            self.logprobs.clear();
        }
        self.sequence.take()
    }

    /// The host takes more frames.
    pub(super) fn grant(&mut self, frames: u32, limits: &Limits) {
        if frames == 0 {
            return;
        }
        self.credit =
            self.credit.saturating_add(frames).min(limits.egress_frames.saturating_mul(2));
        self.stalled_ms = None;
    }

    pub(super) fn is_immediate(&self) -> bool {
        self.pacer.is_immediate()
    }

    pub(super) fn is_due(&self, now_ms: u64) -> bool {
        self.stalled_ms.is_none() && self.pacer.is_due(now_ms)
    }

    /// Takes what the client says of the answer; an answer without an ACK window hears nothing.
    pub(super) fn ack(&mut self, bytes: &[u8]) -> Result<(), Refused> {
        let (frames, tokens) = (self.sealer.num_frames(), self.sealer.num_tokens());
        self.acks.as_mut().map_or(Ok(()), |acks| acks.take(bytes, frames, tokens))
    }

    /// Whether its client has let it wait for an ACK for too long.
    pub(super) fn is_unheard(&self, now_ms: u64, limits: &Limits) -> bool {
        let due = self.acks.as_ref().and_then(|acks| acks.overdue_ms(limits.ack_wait_ms));
        due.is_some_and(|due_ms| now_ms >= due_ms)
    }

    /// When time alone changes something: the next tick, or the end of the host's or the client's patience.
    pub(super) fn next_ms(&self, limits: &Limits) -> Option<u64> {
        let next = match self.stalled_ms {
            Some(since) => Some(since.saturating_add(limits.egress_stall_ms).saturating_add(1)),
            None => (!self.is_immediate()).then(|| self.pacer.next_ms()),
        };
        let unheard = self.acks.as_ref().and_then(|acks| acks.overdue_ms(limits.ack_wait_ms));
        next.into_iter().chain(unheard).min()
    }

    /// The sequence whose engine must learn that nobody takes its tokens for now, or that they are taken again.
    pub(super) fn change_pause(&mut self) -> Option<(SequenceId, bool)> {
        let paused = self.stalled_ms.is_some() || self.room() <= self.tokens.len();
        let changed = std::mem::replace(&mut self.paused, paused) != paused;
        self.sequence.filter(|_| changed).map(|id| (id, paused))
    }

    /// Whether the host has left it without credit for too long.
    pub(super) fn is_stalled(&self, now_ms: u64, limit_ms: u64) -> bool {
        self.stalled_ms.is_some_and(|since| now_ms.saturating_sub(since) > limit_ms)
    }

    /// Seals the frames that are due. After the final one comes the receipt.
    pub(super) fn pump(
        &mut self,
        now_ms: u64,
        identity: &Identity,
        receipts: &mut Receipts,
        due: &mut Vec<[u8; response::FRAME_LEN]>,
    ) -> Result<Option<Ended>, ResponseError> {
        let ended = self.seal_due(now_ms, identity, receipts, due);
        let held = !self.tokens.is_empty() && self.room() == 0;
        let unended = self.tokens.is_empty() && self.outcome.is_some();
        if let Some(acks) = &mut self.acks {
            acks.wait(held || (unended && !acks.may_end()), now_ms);
        }
        ended
    }

    fn seal_due(
        &mut self,
        now_ms: u64,
        identity: &Identity,
        receipts: &mut Receipts,
        due: &mut Vec<[u8; response::FRAME_LEN]>,
    ) -> Result<Option<Ended>, ResponseError> {
        loop {
            if !self.is_immediate() && !self.pacer.is_due(now_ms) {
                return Ok(None);
            }
            if self.credit == 0 {
                if self.has_next() {
                    self.stalled_ms.get_or_insert(now_ms);
                }
                return Ok(None);
            }
            let Some(next) = self.next() else {
                return Ok(None);
            };
            self.credit -= 1;
            self.pacer.advance();
            let Next::End(reason) = next else {
                if let Next::Frame(inner) = next {
                    due.push(self.sealer.seal(&inner)?);
                }
                continue;
            };
            let failed = reason == FinishReason::Error;
            let output_tokens = self.sealer.num_tokens();
            // A fault before the first token is not the payer's, nor is an answer of which nothing reached him: its
            // prompt is not billed.
            let unheard = self.acks.as_ref().is_some_and(|acks| !acks.reached());
            let unbilled = unheard || (failed && output_tokens == 0);
            let prompt_tokens = if unbilled { 0 } else { self.prompt_tokens };
            let cancelled = reason == FinishReason::Cancelled;
            let usage = Usage { cancelled, failed, prompt_tokens, output_tokens };
            let receipt = receipts.sign(identity, &self.meter, usage);
            let end = self.sealer.end(reason, prompt_tokens, 0, receipt::hash(&receipt));
            due.push(self.sealer.seal(&end)?);
            return Ok(Some(Ended { receipt, prompt_tokens, output_tokens }));
        }
    }

    /// Whether [`Self::next`] has a frame.
    fn has_next(&self) -> bool {
        let tokens = !self.tokens.is_empty() && self.room() > 0;
        !self.queue.is_empty() || tokens || !self.is_immediate() || self.reason().is_some()
    }

    /// Tokens that may go out before the client has said that others are here.
    fn room(&self) -> usize {
        let sent = self.sealer.num_tokens();
        self.acks.as_ref().map_or(usize::MAX, |acks| acks.room(sent) as usize)
    }

    /// Why the answer ends, when nothing of it is left.
    fn reason(&self) -> Option<FinishReason> {
        let heard = self.acks.as_ref().is_none_or(Acks::may_end);
        self.outcome.filter(|_| heard && self.tokens.is_empty())
    }

    /// What the next frame says; nothing where frames need not go out without something in them.
    fn next(&mut self) -> Option<Next> {
        if let Some(inner) = self.queue.pop_front() {
            return Some(Next::Frame(inner));
        }
        let room = self.room();
        if !self.tokens.is_empty() && room > 0 {
            return Some(Next::Frame(self.next_tokens(room)));
        }
        match self.reason() {
            Some(reason) if self.pacer.may_end() => Some(Next::End(reason)),
            _ if self.is_immediate() => None,
            _ => Some(Next::Frame(Inner::Dummy)),
        }
    }

    /// As many tokens as fit a frame and there is room for; with log probabilities, as many as fit the frame that follows.
    fn next_tokens(&mut self, room: usize) -> Inner {
        let most = match self.wants_logprobs {
            None => TOKENS_MAX,
            Some(alternatives) => logprobs_max(alternatives).max(1),
        };
        let count = self.tokens.len().min(most).min(room);
        let ids: Vec<u32> = self.tokens.drain(..count).collect();
        if self.wants_logprobs.is_some() {
            let entries = ids.iter().zip(self.logprobs.drain(..count.min(self.logprobs.len())));
            let entries = entries.map(|(id, logprobs)| response::TokenLogprobs {
                token: (*id, logprobs.logprob),
                alternatives: logprobs.alternatives.clone(),
            });
            self.queue.push_back(Inner::Logprobs(Zeroizing::new(entries.collect())));
        }
        Inner::Tokens(Zeroizing::new(ids))
    }
}

/// What a frame will say.
enum Next {
    Frame(Inner),
    /// The final one, for this reason.
    End(FinishReason),
}
