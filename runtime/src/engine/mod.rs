//! The engine: sequences in, tokens out. Continuous batching, chunked prefill, a paged KV cache
//! and preemption, over any model. Pure: no clock, no I/O, no thread, and randomness only from
//! the sequences' seeds, so that a seeded simulator drives it.
//!
//! A promise, kept together with the model's batch invariance: the tokens of a sequence are the
//! same bits whatever else runs, however its prompt is cut into chunks, and whether it is
//! preempted.

mod batch;
mod blocks;
mod changes;
mod error;
mod logprobs;
mod lookup;
mod report;
mod sampling;
mod scheduler;
mod sequence;

#[cfg(test)]
mod fake;
#[cfg(test)]
mod simulate;

use std::fmt;

use chrysalis_kernels::Batch;
use chrysalis_kernels::device::Crossings;
use chrysalis_models::decoder::{Model, ModelError};
use zeroize::Zeroizing;

pub use error::{AddError, EngineError, SamplingError};
pub use report::{Counters, Event, StepStatus};
pub use sampling::{LOGIT_BIAS_MAX, Sampling};
pub use scheduler::StepShape;
pub use sequence::{
    FinishReason, LOGPROBS_MAX, NewSequence, STOP_TOKENS_MAX, SequenceId, TokenLogprobs,
};

use blocks::BlockPool;
use changes::Changes;
use scheduler::{Chunk, Scheduler};
use sequence::Sequence;

/// What the engine takes on. The model's own limits also hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EngineLimits {
    /// Sequences that run at once.
    pub max_sequences: u32,
    /// Sequences that wait, beyond those that can run.
    pub max_waiting: u32,
    /// Tokens in one step, prompts and output together.
    pub max_tokens_per_step: u32,
    /// Tokens in a prompt.
    pub max_prompt: u32,
    /// Tokens put out for a sequence.
    pub max_output: u32,
}

/// Runs sequences over one model.
pub struct Engine {
    model: Box<dyn Model>,
    limits: EngineLimits,
    scheduler: Scheduler,
    changes: Changes,
    plan: Vec<Chunk>,
    batch: Batch,
    /// The token after each row of logits of the last step, `[max_logit_rows]`; none where the row is not finite.
    chosen: Zeroizing<Vec<Option<u32>>>,
    /// One row, for log-probabilities, `[vocab_size]`.
    logits: Zeroizing<Vec<f32>>,
    /// Ends that the next step reports.
    ended: Vec<Event>,
    next_ticket: u64,
    failures: u32,
    counters: Counters,
}

impl Engine {
    /// An engine without sequences. The model's blocks are all clear.
    ///
    /// # Errors
    /// [`EngineError::LimitZero`] for limits, the engine's or the model's, that leave no room.
    pub fn new(model: Box<dyn Model>, limits: EngineLimits) -> Result<Self, EngineError> {
        let reserved = model.limits();
        let max_tokens = reserved.max_tokens.min(limits.max_tokens_per_step as usize);
        let max_running = reserved.max_logit_rows.min(limits.max_sequences as usize);
        for (name, limit) in [
            ("the number of running sequences", max_running),
            ("the number of tokens in a step", max_tokens),
            ("the number of blocks", reserved.num_blocks),
            ("the block size", reserved.block_size),
            ("the vocabulary", model.vocab_size()),
        ] {
            if limit == 0 {
                return Err(EngineError::LimitZero { name });
            }
        }
        let vocab_size = model.vocab_size();
        let blocks = BlockPool::new(reserved.num_blocks, reserved.block_size);
        let mut batch = Batch::default();
        batch.tokens.reserve_exact(max_tokens);
        Ok(Self {
            scheduler: Scheduler::new(blocks, max_running, max_tokens, reserved.max_logit_rows),
            changes: Changes::new(vocab_size),
            plan: Vec::with_capacity(max_running),
            batch,
            chosen: Zeroizing::new(vec![None; reserved.max_logit_rows]),
            logits: Zeroizing::new(vec![0.0; vocab_size]),
            ended: Vec::new(),
            next_ticket: 0,
            failures: 0,
            counters: Counters::default(),
            model,
            limits,
        })
    }

    /// The same engine, which fills its steps as `shape` says.
    #[must_use]
    pub fn shaped(mut self, shape: StepShape) -> Self {
        self.scheduler.set_shape(shape);
        self
    }

    /// Takes a sequence; it waits for its turn.
    ///
    /// # Errors
    /// What is wrong with it. [`AddError::Busy`] alone may pass with time.
    pub fn add(&mut self, new: NewSequence) -> Result<(), AddError> {
        self.check(&new)?;
        self.scheduler.add(Sequence::new(new, self.next_ticket));
        self.next_ticket += 1;
        self.counters.added += 1;
        Ok(())
    }

    /// The largest output that a sequence with a prompt of `prompt_tokens` may ask for; zero if
    /// there is none.
    pub fn max_output(&self, prompt_tokens: usize) -> u32 {
        let room = self.max_context().saturating_sub(prompt_tokens);
        u32::try_from(room).unwrap_or(u32::MAX).min(self.limits.max_output)
    }

    /// Ends a sequence. The next step clears its blocks and reports
    /// [`FinishReason::Cancelled`]; if it has finished already, nothing happens.
    pub fn cancel(&mut self, id: SequenceId) {
        if let Some(ticket) = self.scheduler.find(id).map(|sequence| sequence.ticket) {
            let mut events = std::mem::take(&mut self.ended);
            self.finish(ticket, FinishReason::Cancelled, &mut events);
            self.ended = events;
        }
    }

    /// Holds a sequence back, or lets it go on, because its tokens cannot be delivered. It keeps
    /// its place in the order, and its blocks until another sequence needs them.
    pub fn set_paused(&mut self, id: SequenceId, paused: bool) {
        if let Some(sequence) = self.scheduler.find(id) {
            sequence.paused = paused;
        }
    }

    /// Runs the model once over what is due, and adds what happened to `events`.
    ///
    /// # Errors
    /// The model's. `events` then says which sequences ended with [`FinishReason::Error`]; the
    /// others go on with the next step, if the caller makes one.
    pub fn step(&mut self, events: &mut Vec<Event>) -> Result<StepStatus, EngineError> {
        events.append(&mut self.ended);
        let mut plan = std::mem::take(&mut self.plan);
        self.scheduler.plan(&mut plan);
        let result = self.run(&plan, events);
        self.plan = plan;
        result
    }

    /// What the engine did and has.
    pub fn counters(&self) -> Counters {
        Counters {
            preemptions: self.scheduler.preemptions(),
            waiting: saturate(self.scheduler.num_waiting()),
            running: saturate(self.scheduler.num_running()),
            free_blocks: saturate(self.scheduler.blocks.num_free()),
            num_blocks: saturate(self.scheduler.blocks.num_blocks()),
            ..self.counters
        }
    }

    /// The model, for its description.
    pub fn model(&self) -> &dyn Model {
        self.model.as_ref()
    }

    /// Positions of the longest sequence that the model and the whole KV cache hold.
    pub fn max_context(&self) -> usize {
        self.model.max_positions().min(self.scheduler.blocks.num_positions())
    }

    fn check(&mut self, new: &NewSequence) -> Result<(), AddError> {
        let sequences = self.scheduler.num_waiting() + self.scheduler.num_running();
        let max = self.scheduler.max_running() + self.limits.max_waiting as usize;
        if sequences >= max {
            return Err(AddError::Busy { sequences, max });
        }
        if self.scheduler.find(new.id).is_some() {
            return Err(AddError::IdInUse);
        }
        self.check_lengths(new.prompt.len(), new.max_output as usize)?;
        let vocab_size = self.model.vocab_size();
        let unknown = |&id: &u32| id as usize >= vocab_size;
        if let Some(index) = new.prompt.iter().position(unknown) {
            return Err(AddError::TokenOutOfRange { index, vocab_size });
        }
        let bias = &new.sampling.logit_bias;
        if let Some(index) = bias.iter().position(|(id, _)| unknown(id)) {
            return Err(AddError::BiasOutOfRange { index, vocab_size });
        }
        if new.stop_token_ids.len() > STOP_TOKENS_MAX {
            let tokens = new.stop_token_ids.len();
            return Err(AddError::TooManyStopTokens { tokens, max: STOP_TOKENS_MAX });
        }
        if let Some(wanted) = new.logprobs.filter(|&wanted| wanted > LOGPROBS_MAX) {
            return Err(AddError::TooManyLogprobs { wanted, max: LOGPROBS_MAX });
        }
        Ok(new.sampling.check()?)
    }

    fn check_lengths(&self, prompt: usize, output: usize) -> Result<(), AddError> {
        let max = self.limits.max_prompt as usize;
        if prompt == 0 {
            return Err(AddError::PromptEmpty);
        }
        if prompt > max {
            return Err(AddError::PromptTooLong { tokens: prompt, max });
        }
        let max = self.limits.max_output as usize;
        if output == 0 {
            return Err(AddError::OutputZero);
        }
        if output > max {
            return Err(AddError::OutputTooLong { tokens: output, max });
        }
        let (tokens, max) = (prompt.saturating_add(output), self.max_context());
        if tokens > max {
            return Err(AddError::ContextTooLong { tokens, max });
        }
        Ok(())
    }

    fn run(&mut self, plan: &[Chunk], events: &mut Vec<Event>) -> Result<StepStatus, EngineError> {
        // Before the model writes: a block that changed hands must not show what was in it.
        if let Err(error) = self.clear_released() {
            plan.iter().for_each(|chunk| self.scheduler.settle(chunk, None));
            return Err(error);
        }
        if plan.is_empty() {
            return Ok(StepStatus::Idle);
        }
        batch::fill(&mut self.batch, plan, &mut self.scheduler, &mut self.changes);
        if let Err(source) = self.forward() {
            for chunk in plan {
                self.finish(chunk.ticket, FinishReason::Error, events);
            }
            self.clear_released()?;
            self.failures = self.failures.saturating_add(1);
            return Err(EngineError::Forward { failures: self.failures, source });
        }
        let status = self.count(plan);
        let failed = self.take_tokens(plan, events);
        self.clear_released()?;
        if let Some(source) = failed {
            self.failures = self.failures.saturating_add(1);
            return Err(EngineError::Logits { failures: self.failures, source });
        }
        self.failures = 0;
        Ok(status)
    }

    /// Runs the model over the batch, which chooses its tokens.
    fn forward(&mut self) -> Result<(), ModelError> {
        self.model.forward(&self.batch)?;
        let rows = self.batch.draws.len();
        match self.chosen.get_mut(..rows) {
            Some(chosen) if rows > 0 => self.model.sample(chosen),
            _ => Ok(()),
        }
    }

    /// Moves every sequence of the plan on, and takes the token that was chosen for each that has no more.
    /// Returns the first failure to read logits.
    fn take_tokens(&mut self, plan: &[Chunk], events: &mut Vec<Event>) -> Option<ModelError> {
        let mut failed = None;
        let mut first_row = 0;
        for chunk in plan {
            let Some(sequence) = self.scheduler.running(chunk.ticket) else {
                continue;
            };
            sequence.computed += chunk.len;
            if !chunk.last {
                let (computed, total) = (sequence.computed, sequence.tokens().len());
                let (computed, total) = (saturate(computed), saturate(total));
                events.push(Event::Progress { id: sequence.id, computed, total });
                continue;
            }
            match self.take_rows(chunk, first_row, events) {
                Ok(None) => {}
                Ok(Some(reason)) => self.finish(chunk.ticket, reason, events),
                Err(error) => {
                    self.finish(chunk.ticket, FinishReason::Error, events);
                    failed.get_or_insert(error);
                }
            }
            first_row += chunk.num_rows();
        }
        failed
    }

    /// Takes the token after a chunk, and, while the chosen ones are those of its draft, the
    /// next: they were chosen as they would be without a draft. Returns how the sequence ends, if
    /// it does.
    fn take_rows(
        &mut self,
        chunk: &Chunk,
        first_row: usize,
        events: &mut Vec<Event>,
    ) -> Result<Option<FinishReason>, ModelError> {
        self.counters.drafted_tokens += chunk.num_drafted() as u64;
        let mut right = 0;
        loop {
            if let Some(reason) = self.take_token(chunk.ticket, first_row + right, events)? {
                return Ok(Some(reason));
            }
            let (Some(draft), Some(sequence)) =
                (&chunk.draft, self.scheduler.running(chunk.ticket))
            else {
                return Ok(None);
            };
            if !sequence.confirm(draft, right) {
                self.scheduler.settle(chunk, Some(right));
                return Ok(None);
            }
            right += 1;
            self.counters.confirmed_tokens += 1;
        }
    }

    /// Takes the token that was chosen from a row of logits. Returns how the sequence ends, if it does.
    fn take_token(
        &mut self,
        ticket: u64,
        row: usize,
        events: &mut Vec<Event>,
    ) -> Result<Option<FinishReason>, ModelError> {
        let Some(sequence) = self.scheduler.running(ticket) else {
            return Ok(None);
        };
        let Some(token) = self.chosen.get(row).copied().flatten() else {
            return Ok(Some(FinishReason::Error));
        };
        let mut logprobs = None;
        if let Some(count) = sequence.logprobs {
            self.model.logits(row, &mut self.logits)?;
            logprobs = logprobs::logprobs(&self.logits, count, token);
        }
        let (put_out, end) = sequence.accept(token);
        if put_out {
            self.counters.output_tokens += 1;
            events.push(Event::Token { id: sequence.id, token, logprobs });
        }
        Ok(end)
    }

    /// Takes a sequence out and reports its end.
    fn finish(&mut self, ticket: u64, reason: FinishReason, events: &mut Vec<Event>) {
        let Some(sequence) = self.scheduler.remove(ticket) else {
            return;
        };
        match reason {
            FinishReason::Stop | FinishReason::Length => self.counters.completed += 1,
            FinishReason::Cancelled => self.counters.cancelled += 1,
            FinishReason::Error | FinishReason::Busy => self.counters.failed += 1,
        }
        events.push(Event::Finished {
            id: sequence.id,
            reason,
            prompt_tokens: saturate(sequence.num_prompt()),
            output_tokens: saturate(sequence.num_output()),
        });
    }

    fn count(&mut self, plan: &[Chunk]) -> StepStatus {
        let tokens = |decode| -> usize {
            plan.iter().filter(|chunk| chunk.decode == decode).map(|chunk| chunk.len).sum()
        };
        let (prefill_tokens, decode_tokens) = (saturate(tokens(false)), saturate(tokens(true)));
        self.counters.steps += 1;
        self.counters.prefill_tokens += u64::from(prefill_tokens);
        self.counters.decode_tokens += u64::from(decode_tokens);
        StepStatus::Ran { prefill_tokens, decode_tokens, sequences: saturate(plan.len()) }
    }

    /// What went between host and device so far, where they are two.
    pub fn crossings(&self) -> Option<Crossings> {
        self.model.crossings()
    }

    /// Clears on the device what sequences gave up. After a failure it is tried again before the
    /// next forward pass, which does not happen without.
    fn clear_released(&mut self) -> Result<(), EngineError> {
        let model = &mut self.model;
        self.scheduler
            .blocks
            .clear_released(|blocks| model.clear_blocks(blocks))
            .map_err(|source| EngineError::Clear { source })
    }
}

impl Drop for Engine {
    /// Clears what is left in the KV cache.
    fn drop(&mut self) {
        self.scheduler.remove_all();
        batch::wipe(&mut self.batch);
        // There is nobody left to tell; the model clears or frees its memory next.
        drop(self.clear_released());
    }
}

impl fmt::Debug for Engine {
    /// Counters alone.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine").field("counters", &self.counters()).finish_non_exhaustive()
    }
}

/// For counts that limits keep far below the largest.
fn saturate(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests;
