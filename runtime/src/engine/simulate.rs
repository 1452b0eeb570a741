//! Drives the engine by seed through everything at once: arrivals, cancellations, pauses, tiny
//! pools, every chunk size, drafts of every length, failures of the model. Each sequence must put out exactly what it
//! puts out alone, every block must come back clear, and everyone's turn must come.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use chrysalis_kernels::reference::choose;
use chrysalis_kernels::sampling::uniform;

use super::changes::Changes;
use super::fake::{Fake, Faults, limits, logits_of};
use super::{
    AddError, Counters, Engine, EngineLimits, Event, FinishReason, NewSequence, Sampling,
    SequenceId, StepShape, StepStatus,
};

#[test]
fn every_sequence_puts_out_what_it_puts_out_alone() {
    let mut total = Counters::default();
    for seed in 0..4_000 {
        let on_failure = PrintOnPanic(seed);
        let counters = Simulation::new(seed).run();
        drop(on_failure);
        total.preemptions += counters.preemptions;
        total.completed += counters.completed;
        total.cancelled += counters.cancelled;
        total.failed += counters.failed;
        total.output_tokens += counters.output_tokens;
        total.drafted_tokens += counters.drafted_tokens;
        total.confirmed_tokens += counters.confirmed_tokens;
    }
    // The seeds reach what they are for.
    assert!(total.completed > 15_000, "{total:?}");
    assert!(total.preemptions > 3_000, "{total:?}");
    assert!(total.cancelled > 3_000 && total.failed > 700, "{total:?}");
    assert!(total.drafted_tokens > 10_000 && total.confirmed_tokens > 3_000, "{total:?}");
}

struct PrintOnPanic(u64);

impl Drop for PrintOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("simulation failed with seed {}", self.0);
        }
    }
}

/// A sequence in the engine and what is known about it.
struct Expected {
    /// Tokens that it puts out alone, and how it ends then.
    tokens: Vec<u32>,
    reason: FinishReason,
    num_prompt: u32,
    seen: usize,
    cancelled: bool,
    paused: bool,
}

struct Simulation {
    seed: u64,
    draws: u64,
    engine: Engine,
    faults: Arc<Mutex<Faults>>,
    faulty: bool,
    habit: f32,
    live: BTreeMap<SequenceId, Expected>,
    to_add: u64,
}

impl Simulation {
    fn new(seed: u64) -> Self {
        let mut draws = 0;
        let mut draw = |range: std::ops::RangeInclusive<u32>| pick(seed, &mut draws, range);
        let mut reserved = limits(draw(1..=24) as usize, draw(1..=5) as usize);
        reserved.max_tokens = draw(1..=20) as usize;
        reserved.max_logit_rows = draw(1..=8) as usize;
        let engine_limits = EngineLimits {
            max_sequences: draw(1..=8),
            max_waiting: draw(0..=8),
            max_tokens_per_step: draw(1..=24),
            max_prompt: 24,
            max_output: 20,
        };
        let (faulty, to_add) = (draw(0..=4) == 0, u64::from(draw(1..=20)));
        let habit = [0.0, 4.0, 12.0][draw(0..=2) as usize];
        let model = Fake::new(VOCAB_SIZE, 40, reserved).with_habit(habit);
        let faults = Arc::clone(&model.faults);
        let engine = Engine::new(Box::new(model), engine_limits).unwrap();
        let engine = engine
            .shaped(StepShape { max_prefill_with_decode: draw(1..=24), max_draft: draw(0..=9) });
        Self { seed, draws, engine, faults, faulty, habit, live: BTreeMap::new(), to_add }
    }

    fn draw(&mut self, range: std::ops::RangeInclusive<u32>) -> u32 {
        pick(self.seed, &mut self.draws, range)
    }

    fn run(mut self) -> Counters {
        let mut events = Vec::new();
        for _ in 0..20_000 {
            self.meddle();
            events.clear();
            let result = self.engine.step(&mut events);
            assert!(self.faulty || result.is_ok());
            self.observe(&events);
            self.check_blocks();
            let runnable = self.live.values().any(|s| !s.paused && !s.cancelled);
            if result.is_ok_and(|status| status == StepStatus::Idle) {
                assert!(!runnable, "idle while a sequence could run");
            }
            if self.live.is_empty() && self.to_add == 0 {
                return self.end();
            }
        }
        panic!("a sequence starves");
    }

    /// Everything that the outside may do between two steps.
    fn meddle(&mut self) {
        while self.to_add > 0 && self.draw(0..=2) == 0 {
            let id = SequenceId(self.to_add);
            if self.add(id) {
                self.to_add -= 1;
            }
        }
        let ids: Vec<SequenceId> = self.live.keys().copied().collect();
        for id in ids {
            match self.draw(0..=99) {
                0 => {
                    self.engine.cancel(id);
                    self.live.get_mut(&id).unwrap().cancelled = true;
                }
                1..=3 => self.pause(id, true),
                4..=40 => self.pause(id, false),
                _ => {}
            }
        }
        if self.faulty {
            let (forward, clear, not_finite) =
                (self.draw(0..=49) == 0, self.draw(0..=19) == 0, self.draw(0..=49) == 0);
            let sample = self.draw(0..=49) == 0;
            let mut faults = self.faults.lock().unwrap();
            (faults.forward, faults.clear, faults.not_finite) = (forward, clear, not_finite);
            faults.sample = sample;
        }
    }

    fn pause(&mut self, id: SequenceId, paused: bool) {
        self.engine.set_paused(id, paused);
        self.live.get_mut(&id).unwrap().paused = paused;
    }

    /// Returns whether the sequence needs no second try.
    fn add(&mut self, id: SequenceId) -> bool {
        let before = self.draws;
        let new = self.sequence(id);
        let (tokens, reason) = alone(&new, self.habit);
        let num_prompt = new.prompt.len() as u32;
        match self.engine.add(new) {
            Ok(()) => {
                let (seen, cancelled, paused) = (0, false, false);
                let expected = Expected { tokens, reason, num_prompt, seen, cancelled, paused };
                assert!(self.live.insert(id, expected).is_none());
                true
            }
            Err(AddError::Busy { .. }) => {
                assert!(!self.live.is_empty());
                self.draws = before + 1;
                false
            }
            Err(AddError::ContextTooLong { tokens, max }) => {
                assert!(tokens > max);
                true
            }
            Err(error) => panic!("{error}"),
        }
    }

    fn sequence(&mut self, id: SequenceId) -> NewSequence {
        let prompt: Vec<u32> =
            (0..self.draw(1..=24)).map(|_| self.draw(0..=VOCAB_SIZE as u32 - 1)).collect();
        let sampling = match self.draw(0..=3) {
            0 => Sampling::greedy(),
            1 => Sampling { top_k: 4, top_p: 0.9, ..Sampling::default() },
            2 => Sampling {
                repetition_penalty: 1.3,
                presence_penalty: 0.5,
                frequency_penalty: 0.2,
                logit_bias: vec![(1, 2.0)],
                ..Sampling::default()
            },
            _ => Sampling { min_p: 0.05, temperature: 0.7, ..Sampling::default() },
        };
        NewSequence {
            id,
            prompt: prompt.into(),
            max_output: self.draw(1..=20),
            sampling,
            seed: u64::from(self.draw(0..=u32::MAX - 1)),
            stop_token_ids: vec![0; self.draw(0..=1) as usize],
            logprobs: Some(2).filter(|_| self.draw(0..=3) == 0),
        }
    }

    fn observe(&mut self, events: &[Event]) {
        for event in events {
            match event {
                Event::Token { id, token, .. } => {
                    let expected = self.live.get_mut(id).unwrap();
                    assert!(!expected.cancelled && !expected.paused);
                    assert!(expected.tokens.get(expected.seen) == Some(token), "another token");
                    expected.seen += 1;
                }
                Event::Progress { id, computed, total } => {
                    let expected = &self.live[id];
                    assert!(computed < total);
                    assert_eq!(*total, expected.num_prompt + expected.seen as u32);
                }
                &Event::Finished { id, reason, prompt_tokens, output_tokens } => {
                    let expected = self.live.remove(&id).unwrap();
                    assert_eq!(prompt_tokens, expected.num_prompt);
                    assert_eq!(output_tokens as usize, expected.seen);
                    assert_eq!(reason == FinishReason::Cancelled, expected.cancelled);
                    match reason {
                        FinishReason::Cancelled => {}
                        FinishReason::Error => assert!(self.faulty),
                        _ => {
                            assert_eq!(reason, expected.reason);
                            assert_eq!(expected.seen, expected.tokens.len());
                        }
                    }
                }
            }
        }
    }

    /// What a draft took is given back.
    fn check_blocks(&mut self) {
        let scheduler = &mut self.engine.scheduler;
        for &id in self.live.keys() {
            if let Some(sequence) = scheduler.find(id) {
                let (held, known) = (sequence.blocks.len(), sequence.tokens().len());
                assert!(held <= scheduler.blocks.blocks_for(known), "a block is held for nothing");
            }
        }
    }

    fn end(mut self) -> Counters {
        // The last blocks may still wait to be cleared, if that failed.
        *self.faults.lock().unwrap() = Faults::default();
        assert_eq!(self.engine.step(&mut Vec::new()).unwrap(), StepStatus::Idle);
        let counters = self.engine.counters();
        assert_eq!((counters.waiting, counters.running), (0, 0));
        assert_eq!(counters.free_blocks, counters.num_blocks, "a block is lost");
        drop(self.engine);
        assert_eq!(self.faults.lock().unwrap().slots_in_use, 0, "a block is not clear");
        counters
    }
}

/// What a sequence puts out without an engine.
fn alone(new: &NewSequence, habit: f32) -> (Vec<u32>, FinishReason) {
    let mut history = new.prompt.to_vec();
    let mut changes = Changes::new(VOCAB_SIZE);
    for _ in 0..new.max_output {
        let (prompt, output) = history.split_at(new.prompt.len());
        changes.begin(&new.sampling, prompt, output);
        let draw = new.sampling.draw(0, new.seed, output.len() as u64);
        let logits = logits_of(&history, VOCAB_SIZE, habit);
        let token = choose(&logits, &draw, changes.edits()).unwrap();
        if new.stop_token_ids.contains(&token) {
            return (history.split_off(new.prompt.len()), FinishReason::Stop);
        }
        history.push(token);
    }
    (history.split_off(new.prompt.len()), FinishReason::Length)
}

/// The next number of the seed, within `range`.
fn pick(seed: u64, draws: &mut u64, range: std::ops::RangeInclusive<u32>) -> u32 {
    *draws += 1;
    let count = f64::from(range.end() - range.start()) + 1.0;
    range.start() + (uniform(seed, *draws) * count) as u32
}

const VOCAB_SIZE: usize = 13;
