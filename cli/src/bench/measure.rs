//! One run of the engine: all prompts in, all tokens out, and the time of both phases.

use std::time::{Duration, Instant};

use chrysalis_kernels::device::Crossings;
use chrysalis_runtime::engine::{Engine, Event, NewSequence, Sampling, SequenceId, StepStatus};
use zeroize::Zeroizing;

use super::narrow;
use crate::error::CliError;

/// A part of a run.
#[derive(Clone, Copy, Debug)]
pub enum Phase {
    /// From the first step until every sequence has its first token.
    Prefill,
    /// From there until every sequence has the tokens that were asked for.
    Decode,
}

/// What is run.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// Tokens of each prompt.
    pub prompt: usize,
    /// Sequences at once.
    pub batch: usize,
    /// Tokens that every sequence has in the end.
    pub generate: usize,
    /// Tokens that the first sequence may have before the last one has begun.
    pub overlap: usize,
    /// Tokens of the vocabulary.
    pub vocab_size: u32,
}

/// What one run took.
#[derive(Clone, Copy, Debug)]
pub struct Speeds {
    /// Time of the prompts.
    pub prefill: Duration,
    /// Time of the tokens that came after.
    pub decode: Duration,
    /// Tokens of all prompts.
    pub prompted: usize,
    /// Tokens of all sequences in the time of `decode`.
    pub decoded: usize,
    /// Steps in the time of `decode`.
    pub steps: usize,
    /// What went between host and device in that time, where they are two.
    pub crossed: Option<Crossings>,
}

/// Runs `load.batch` sequences at once; `ended` is told the end of each phase.
///
/// # Errors
/// [`CliError`] when the engine fails.
pub fn run(
    engine: &mut Engine,
    load: Load,
    ended: &mut dyn FnMut(Phase),
) -> Result<Speeds, CliError> {
    begin(engine, load)?;
    let start = Instant::now();
    let mut first_tokens = vec![false; load.batch];
    while first_tokens.contains(&false) {
        for id in step(engine)?.0 {
            first_tokens[id.0 as usize] = true;
        }
    }
    let prefill = start.elapsed();
    ended(Phase::Prefill);
    let start = Instant::now();
    let before = engine.crossings();
    let (mut decoded, steps) = (0, load.generate - 1);
    for _ in 0..steps {
        decoded += step(engine)?.0.len();
    }
    let decode = start.elapsed();
    let crossed = engine.crossings().zip(before).map(|(now, before)| now.since(before));
    ended(Phase::Decode);
    // Those that began early may have had more tokens; all go now.
    (0..load.batch).for_each(|index| engine.cancel(SequenceId(index as u64)));
    while step(engine)?.1 != StepStatus::Idle {}
    let prompted = load.prompt * load.batch;
    Ok(Speeds { prefill, decode, prompted, decoded, steps, crossed })
}

fn begin(engine: &mut Engine, load: Load) -> Result<(), CliError> {
    let max_output = narrow(load.generate + load.overlap).min(engine.max_output(load.prompt));
    for index in 0..load.batch as u64 {
        engine.add(NewSequence {
            id: SequenceId(index),
            prompt: Zeroizing::new(random_tokens(load.prompt, load.vocab_size, index)),
            max_output,
            sampling: Sampling::greedy(),
            seed: 0,
            stop_token_ids: Vec::new(),
            logprobs: None,
        })?;
    }
    Ok(())
}

/// One step, and whose tokens came.
fn step(engine: &mut Engine) -> Result<(Vec<SequenceId>, StepStatus), CliError> {
    let mut events = Vec::new();
    let status = engine.step(&mut events)?;
    let tokens = events.into_iter().filter_map(|event| match event {
        Event::Token { id, .. } => Some(id),
        _ => None,
    });
    Ok((tokens.collect(), status))
}

/// Pseudo-random tokens: the same for every run, so that runs compare.
fn random_tokens(count: usize, vocab_size: u32, seed: u64) -> Vec<u32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(1);
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 33) as u32 % vocab_size.max(1)
    };
    (0..count).map(|_| next()).collect()
}
