//! Which sequences run in a step and how many of their tokens. First come, first served: tokens
//! of running sequences first, then chunks of prompts, then newcomers; prompts get only a share of
//! a step that somebody's next token waits for. When blocks run out, the youngest sequence gives
//! up its own and waits; what it has put out so far stays and is computed again later, which
//! changes nothing, because logits do not depend on chunks or neighbours.

use std::collections::VecDeque;

use super::blocks::BlockPool;
use super::lookup::Draft;
use super::sequence::{Sequence, SequenceId};

/// What one sequence does in a step: `len` tokens from `start` on, then a draft.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Chunk {
    /// The sequence, by its order of arrival.
    pub(super) ticket: u64,
    pub(super) start: usize,
    pub(super) len: usize,
    /// The sequence has no more tokens after these: the next one is chosen.
    pub(super) last: bool,
    /// One token after the first chunk: the sequence is past its prompt.
    pub(super) decode: bool,
    /// A guess at the tokens after these, whose logits are then there if it was right.
    pub(super) draft: Option<Draft>,
}

impl Chunk {
    /// Tokens of the draft.
    pub(super) fn num_drafted(&self) -> usize {
        self.draft.map_or(0, |draft| draft.len)
    }

    /// Rows of logits.
    pub(super) fn num_rows(&self) -> usize {
        if self.last { 1 + self.num_drafted() } else { 0 }
    }
}

/// The sequences that have not finished, and the blocks.
pub(super) struct Scheduler {
    pub(super) blocks: BlockPool,
    /// By ticket; none of them holds a block.
    waiting: VecDeque<Sequence>,
    /// By ticket; each holds blocks for all of its tokens but perhaps the last.
    running: Vec<Sequence>,
    max_running: usize,
    max_tokens: usize,
    max_rows: usize,
    shape: StepShape,
    preemptions: u64,
}

/// How a step is filled. Nothing in it changes a token that is put out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StepShape {
    /// Tokens of prompts in a step that also moves sequences past their prompt on, whose next
    /// token waits for all of it. At least one, so that every prompt's turn comes. A step that
    /// has only prompts takes as many of their tokens as fit.
    pub max_prefill_with_decode: u32,
    /// Tokens of a sequence that are drafted from what it repeats (prompt lookup) and verified in
    /// one step, at most; 0: none. Drafts take the tokens and rows of logits of a step that are
    /// left over, and blocks that nobody needs. More than eight are never drafted.
    pub max_draft: u32,
}

impl Default for StepShape {
    /// As many tokens of prompts as fit, no drafts.
    fn default() -> Self {
        Self { max_prefill_with_decode: u32::MAX, max_draft: 0 }
    }
}

impl Scheduler {
    /// At most `max_running` sequences run at once, with at most `max_tokens` tokens and
    /// `max_rows` rows of logits in a step.
    pub(super) fn new(
        blocks: BlockPool,
        max_running: usize,
        max_tokens: usize,
        max_rows: usize,
    ) -> Self {
        Self {
            blocks,
            waiting: VecDeque::new(),
            running: Vec::with_capacity(max_running),
            // With a token and a row for each, a step moves every running sequence on.
            max_running: max_running.min(max_tokens).min(max_rows),
            max_tokens,
            max_rows,
            shape: StepShape::default(),
            preemptions: 0,
        }
    }

    pub(super) fn set_shape(&mut self, shape: StepShape) {
        self.shape = shape;
    }

    pub(super) fn num_waiting(&self) -> usize {
        self.waiting.len()
    }

    pub(super) fn num_running(&self) -> usize {
        self.running.len()
    }

    pub(super) fn max_running(&self) -> usize {
        self.max_running
    }

    pub(super) fn preemptions(&self) -> u64 {
        self.preemptions
    }

    /// The youngest comes last. Its ticket is the largest so far.
    pub(super) fn add(&mut self, sequence: Sequence) {
        self.waiting.push_back(sequence);
    }

    /// A sequence by its identifier.
    pub(super) fn find(&mut self, id: SequenceId) -> Option<&mut Sequence> {
        self.running.iter_mut().chain(&mut self.waiting).find(|sequence| sequence.id == id)
    }

    /// A running sequence by its ticket.
    pub(super) fn running(&mut self, ticket: u64) -> Option<&mut Sequence> {
        let at = self.place(ticket).ok()?;
        self.running.get_mut(at)
    }

    fn place(&self, ticket: u64) -> Result<usize, usize> {
        self.running.binary_search_by_key(&ticket, |sequence| sequence.ticket)
    }

    /// Takes a sequence out, wherever it is, and its blocks back.
    pub(super) fn remove(&mut self, ticket: u64) -> Option<Sequence> {
        if let Ok(at) = self.place(ticket) {
            let mut sequence = self.running.remove(at);
            self.blocks.release(&mut sequence.blocks);
            return Some(sequence);
        }
        let at = self.waiting.binary_search_by_key(&ticket, |sequence| sequence.ticket).ok()?;
        self.waiting.remove(at)
    }

    /// Takes every sequence out.
    pub(super) fn remove_all(&mut self) {
        for sequence in &mut self.running {
            self.blocks.release(&mut sequence.blocks);
        }
        self.running.clear();
        self.waiting.clear();
    }

    /// Fills `plan` with the chunks of the next step; empty if nothing can run. A sequence in the
    /// plan has blocks for its chunk.
    pub(super) fn plan(&mut self, plan: &mut Vec<Chunk>) {
        plan.clear();
        let mut budget = self.max_tokens;
        self.plan_decodes(plan, &mut budget);
        if plan.iter().any(|chunk| chunk.decode) {
            budget = budget.min(self.shape.max_prefill_with_decode.max(1) as usize);
        }
        self.plan_prefills(plan, &mut budget);
        self.admit(plan, &mut budget);
        self.plan_drafts(plan);
    }

    /// One token of each running sequence that is past its prompt, oldest first.
    fn plan_decodes(&mut self, plan: &mut Vec<Chunk>, budget: &mut usize) {
        let mut at = 0;
        while let Some(sequence) = self.running.get_mut(at) {
            if sequence.paused || sequence.remaining() != 1 || *budget == 0 {
                at += 1;
                continue;
            }
            let positions = sequence.tokens().len();
            if self.blocks.grow(&mut sequence.blocks, positions) {
                plan.push(sequence.chunk(1));
                *budget -= 1;
                at += 1;
                continue;
            }
            // Only a paused victim is older, and no paused sequence is in the plan.
            let victim = self.victim();
            self.preempt(victim);
            at -= usize::from(victim < at);
        }
    }

    /// Chunks of the prompts of running sequences, oldest first. Their blocks are there.
    fn plan_prefills(&mut self, plan: &mut Vec<Chunk>, budget: &mut usize) {
        for sequence in self.running.iter().filter(|s| !s.paused && s.remaining() > 1) {
            if *budget == 0 {
                break;
            }
            let chunk = sequence.chunk(*budget);
            *budget -= chunk.len;
            plan.push(chunk);
        }
    }

    /// Lets waiting sequences run, oldest first, while there are places, tokens, and blocks for
    /// all that is known of them. Nobody overtakes one that lacks blocks, so each one's turn comes.
    fn admit(&mut self, plan: &mut Vec<Chunk>, budget: &mut usize) {
        while *budget > 0 {
            let Some(next) = self.waiting.iter().find(|sequence| !sequence.paused) else {
                return;
            };
            let (ticket, positions) = (next.ticket, next.tokens().len());
            if !self.make_room(positions) {
                return;
            }
            let Some(mut sequence) = self.remove(ticket) else {
                return;
            };
            let grown = self.blocks.grow(&mut sequence.blocks, positions);
            assert!(grown, "room was made for the sequence");
            let chunk = sequence.chunk(*budget);
            *budget -= chunk.len;
            plan.push(chunk);
            let at = self.running.partition_point(|other| other.ticket < ticket);
            self.running.insert(at, sequence);
        }
    }

    /// Adds drafts to the decoding chunks, oldest first, with what the step has left over. Since
    /// each running sequence keeps a free block, and [`Scheduler::settle`] gives back what was
    /// not used, nobody waits or is preempted for a draft.
    fn plan_drafts(&mut self, plan: &mut [Chunk]) {
        let tokens: usize = plan.iter().map(|chunk| chunk.len).sum();
        let rows: usize = plan.iter().map(Chunk::num_rows).sum();
        let mut left = (self.max_tokens - tokens).min(self.max_rows - rows);
        for chunk in plan.iter_mut().filter(|chunk| chunk.decode && chunk.last && chunk.len == 1) {
            let spare = self.running.len();
            let at = self.place(chunk.ticket);
            let Some(sequence) = at.ok().and_then(|at| self.running.get_mut(at)) else {
                continue;
            };
            let known = sequence.tokens().len();
            let room = self.blocks.room(&sequence.blocks, spare).saturating_sub(known);
            let max = left.min(room).min(self.shape.max_draft as usize);
            if max == 0 {
                continue;
            }
            chunk.draft = sequence.draft(max);
            left -= chunk.num_drafted();
            let grown = self.blocks.grow(&mut sequence.blocks, known + chunk.num_drafted());
            assert!(grown, "there was room for the draft");
        }
    }

    /// After a step: no block is kept that was only for a draft. `right` is how many tokens of it
    /// were; none if the model did not run.
    pub(super) fn settle(&mut self, chunk: &Chunk, right: Option<usize>) {
        let (Some(draft), Ok(at)) = (&chunk.draft, self.place(chunk.ticket)) else {
            return;
        };
        let Some(sequence) = self.running.get_mut(at) else {
            return;
        };
        self.blocks.shrink(&mut sequence.blocks, sequence.computed);
        if let Some(right) = right {
            sequence.speculation.learn(draft.len, right);
        }
    }

    /// Whether one more sequence can run and have blocks for `positions`; paused ones make way.
    fn make_room(&mut self, positions: usize) -> bool {
        let (mut paused, mut paused_blocks) = (0, 0);
        for sequence in self.running.iter().filter(|sequence| sequence.paused) {
            paused += 1;
            paused_blocks += sequence.blocks.len();
        }
        // A spare block lets the others go on; without it the newcomer might soon be preempted.
        let alone = self.running.len() == paused;
        let needed = self.blocks.blocks_for(positions) + usize::from(!alone);
        if self.running.len() - paused >= self.max_running
            || needed > self.blocks.num_free() + paused_blocks
        {
            return false;
        }
        while self.running.len() >= self.max_running || needed > self.blocks.num_free() {
            let victim = self.victim();
            self.preempt(victim);
        }
        true
    }

    /// Who gives up its blocks: the youngest paused sequence, else the youngest.
    fn victim(&self) -> usize {
        let paused = self.running.iter().rposition(|sequence| sequence.paused);
        paused.unwrap_or_else(|| self.running.len().saturating_sub(1))
    }

    /// Puts a running sequence back among the waiting, to compute all of its tokens again.
    fn preempt(&mut self, at: usize) {
        let mut sequence = self.running.remove(at);
        self.blocks.release(&mut sequence.blocks);
        sequence.computed = 0;
        self.preemptions += 1;
        let at = self.waiting.partition_point(|other| other.ticket < sequence.ticket);
        self.waiting.insert(at, sequence);
    }
}

impl Sequence {
    /// The next chunk, of at most `budget` tokens.
    fn chunk(&self, budget: usize) -> Chunk {
        let len = self.remaining().min(budget);
        Chunk {
            ticket: self.ticket,
            start: self.computed,
            len,
            last: len == self.remaining(),
            decode: self.computed >= self.num_prompt(),
            draft: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Chunk, Scheduler, StepShape};
    use crate::engine::blocks::BlockPool;
    use crate::engine::sampling::Sampling;
    use crate::engine::sequence::{NewSequence, Sequence, SequenceId};

    fn sequence(ticket: u64, prompt: usize) -> Sequence {
        let new = NewSequence {
            id: SequenceId(ticket),
            prompt: vec![1; prompt].into(),
            max_output: 100,
            sampling: Sampling::greedy(),
            seed: 0,
            stop_token_ids: Vec::new(),
            logprobs: None,
        };
        Sequence::new(new, ticket)
    }

    fn scheduler(num_blocks: usize, max_running: usize, max_tokens: usize) -> Scheduler {
        Scheduler::new(BlockPool::new(num_blocks, 4), max_running, max_tokens, max_running)
    }

    /// Plans a step and does what a model would: every last chunk gives one more token.
    fn step(scheduler: &mut Scheduler) -> Vec<(u64, usize)> {
        let mut plan = Vec::new();
        scheduler.plan(&mut plan);
        scheduler.blocks.clear_released(|_| Ok::<_, ()>(())).unwrap();
        for &Chunk { ticket, start, len, last, .. } in &plan {
            let sequence = scheduler.running(ticket).unwrap();
            assert_eq!(sequence.computed, start);
            assert!(sequence.blocks.len() * 4 >= start + len);
            sequence.computed += len;
            if last {
                sequence.accept(2);
            }
        }
        plan.iter().map(|chunk| (chunk.ticket, chunk.len)).collect()
    }

    #[test]
    fn decodes_come_first_and_prompts_share_what_is_left_in_order() {
        let mut scheduler = scheduler(100, 8, 10);
        scheduler.add(sequence(0, 4));
        scheduler.add(sequence(1, 13));
        scheduler.add(sequence(2, 5));
        assert_eq!(step(&mut scheduler), [(0, 4), (1, 6)]);
        assert_eq!(step(&mut scheduler), [(0, 1), (1, 7), (2, 2)]);
        assert_eq!(step(&mut scheduler), [(0, 1), (1, 1), (2, 3)]);
        assert_eq!(step(&mut scheduler), [(0, 1), (1, 1), (2, 1)]);
    }

    #[test]
    fn a_step_that_decodes_takes_only_so_much_of_prompts() {
        let mut scheduler = scheduler(100, 8, 10);
        scheduler.set_shape(StepShape { max_prefill_with_decode: 3, max_draft: 0 });
        scheduler.add(sequence(0, 12));
        scheduler.add(sequence(1, 13));
        assert_eq!(step(&mut scheduler), [(0, 10)]);
        assert_eq!(step(&mut scheduler), [(0, 2), (1, 8)]);
        assert_eq!(step(&mut scheduler), [(0, 1), (1, 3)]);
        scheduler.add(sequence(2, 1));
        assert_eq!(step(&mut scheduler), [(0, 1), (1, 2), (2, 1)]);
        assert!(scheduler.remove(0).is_some());
        assert!(scheduler.remove(1).is_some());
        assert!(scheduler.remove(2).is_some());
        scheduler.add(sequence(3, 11));
        assert_eq!(step(&mut scheduler), [(3, 10)]);
    }

    #[test]
    fn every_prompts_turn_comes_whatever_share_of_a_step_it_gets() {
        let mut scheduler = scheduler(100, 3, 3);
        scheduler.set_shape(StepShape { max_prefill_with_decode: 0, max_draft: 0 });
        (0..3).for_each(|ticket| scheduler.add(sequence(ticket, 4)));
        assert_eq!(step(&mut scheduler), [(0, 3)]);
        assert_eq!(step(&mut scheduler), [(0, 1), (1, 2)]);
        assert_eq!(step(&mut scheduler), [(0, 1), (1, 1)]);
        // The last token of a prompt is as good as one past it.
        for _ in 0..5 {
            assert_eq!(step(&mut scheduler), [(0, 1), (1, 1), (2, 1)]);
        }
    }

    #[test]
    fn nobody_overtakes_a_sequence_that_waits_for_blocks() {
        let mut scheduler = scheduler(4, 8, 100);
        scheduler.add(sequence(0, 8));
        scheduler.add(sequence(1, 16));
        scheduler.add(sequence(2, 1));
        assert_eq!(step(&mut scheduler), [(0, 8)]);
        assert_eq!(step(&mut scheduler), [(0, 1)]);
        assert!(scheduler.remove(0).is_some());
        assert_eq!(step(&mut scheduler), [(1, 16)]);
        assert!(scheduler.remove(1).is_some());
        assert_eq!(step(&mut scheduler), [(2, 1)]);
    }

    #[test]
    fn the_youngest_gives_way_when_blocks_run_out_and_computes_again_what_it_had() {
        let mut scheduler = scheduler(4, 8, 100);
        scheduler.add(sequence(0, 4));
        scheduler.add(sequence(1, 4));
        assert_eq!(step(&mut scheduler), [(0, 4), (1, 4)]);
        for _ in 0..4 {
            assert_eq!(step(&mut scheduler), [(0, 1), (1, 1)]);
        }
        assert_eq!(scheduler.blocks.num_free(), 0);
        assert_eq!(step(&mut scheduler), [(0, 1)]);
        assert_eq!((scheduler.preemptions(), scheduler.num_waiting()), (1, 1));
        assert!(scheduler.remove(0).is_some());
        assert_eq!(step(&mut scheduler), [(1, 9)]);
    }

    #[test]
    fn places_are_limited() {
        let mut scheduler = scheduler(100, 2, 100);
        (0..3).for_each(|ticket| scheduler.add(sequence(ticket, 2)));
        assert_eq!(step(&mut scheduler), [(0, 2), (1, 2)]);
        assert_eq!(step(&mut scheduler), [(0, 1), (1, 1)]);
        assert!(scheduler.remove(1).is_some());
        assert_eq!(step(&mut scheduler), [(0, 1), (2, 2)]);
    }

    #[test]
    fn a_paused_sequence_does_not_run_and_makes_way() {
        let mut scheduler = scheduler(3, 8, 100);
        scheduler.add(sequence(0, 8));
        assert_eq!(step(&mut scheduler), [(0, 8)]);
        scheduler.find(SequenceId(0)).unwrap().paused = true;
        assert_eq!(step(&mut scheduler), []);
        scheduler.add(sequence(1, 8));
        assert_eq!(step(&mut scheduler), [(1, 8)]);
        assert_eq!(scheduler.preemptions(), 1);
        scheduler.find(SequenceId(0)).unwrap().paused = false;
        assert_eq!(step(&mut scheduler), [(1, 1)]);
        assert!(scheduler.remove(1).is_some());
        assert_eq!(step(&mut scheduler), [(0, 9)]);
    }

    #[test]
    fn an_older_paused_victim_does_not_shift_the_plan() {
        let mut scheduler = scheduler(3, 8, 100);
        scheduler.add(sequence(0, 4));
        scheduler.add(sequence(1, 4));
        scheduler.blocks = BlockPool::new(2, 4);
        assert_eq!(step(&mut scheduler), [(0, 4)]);
        scheduler.find(SequenceId(0)).unwrap().paused = true;
        assert_eq!(step(&mut scheduler), [(1, 4)]);
        assert_eq!(step(&mut scheduler), [(1, 1)]);
        assert_eq!((scheduler.num_running(), scheduler.num_waiting()), (1, 1));
    }
}
