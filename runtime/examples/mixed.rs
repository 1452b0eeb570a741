//! What long prompts do to those who are answered meanwhile:
//! `cargo run --release -p chrysalis-runtime --example mixed -- MODEL.gguf [THREADS]`
//!
//! One sequence decodes while prompts of 512 tokens come one after the other. For several limits of prefill in a step
//! that decodes: the time between two tokens of that sequence, and prefilled tokens a second.

use std::error::Error;
use std::time::Duration;

use chrysalis_runtime::engine::{Engine, Event, NewSequence, Sampling, SequenceId, StepShape};

mod common;

/// Of one run.
struct Measured {
    /// Between two tokens, ascending.
    gaps: Vec<Duration>,
    prefill_rate: f64,
    decoded: Vec<u32>,
}

#[expect(clippy::print_stdout, reason = "it is a program for a terminal")]
fn main() -> Result<(), Box<dyn Error>> {
    let (source, threads) = common::arguments()?;
    let mut engine = common::engine(&source, threads, 4, CONTEXT, 0)?;
    let mut expected: Option<Vec<u32>> = None;
    println!("limit  gap p50 ms  gap p99 ms  gap max ms  prefill tok/s  tokens while prefilling");
    for max_prefill_with_decode in [512, 256, 128, 64, 32] {
        let shape = StepShape { max_prefill_with_decode, ..StepShape::default() };
        engine = engine.shaped(shape);
        let run = measure(&mut engine, threads)?;
        let ms = |share: f64| {
            let at = ((run.gaps.len() - 1) as f64 * share).round() as usize;
            run.gaps.get(at).map_or(0.0, |gap| gap.as_secs_f64() * 1e3)
        };
        println!(
            "{max_prefill_with_decode:>5}  {:>10.1}  {:>10.1}  {:>10.1}  {:>13.0}  {:>6}",
            ms(0.5),
            ms(0.99),
            ms(1.0),
            run.prefill_rate,
            run.gaps.len(),
        );
        let first = expected.get_or_insert_with(|| run.decoded.clone());
        if !first.iter().zip(&run.decoded).all(|(a, b)| a == b) {
            return Err("the limit changed a token".into());
        }
    }
    Ok(())
}

/// Decodes one sequence, and measures while the prompts of others are computed.
fn measure(engine: &mut Engine, threads: usize) -> Result<Measured, Box<dyn Error>> {
    let sequence = |id: u64, prompt: u32, max_output| NewSequence {
        id: SequenceId(id),
        prompt: (0..prompt)
            .map(|i| 100 + (i * 37 + id as u32 * 101) % 10_000)
            .collect::<Vec<_>>()
            .into(),
        max_output,
        sampling: Sampling::greedy(),
        seed: 0,
        stop_token_ids: Vec::new(),
        logprobs: None,
    };
    engine.add(sequence(0, 32, CONTEXT as u32 - 32))?;
    let (mut events, mut gaps, mut decoded) = (Vec::new(), Vec::new(), Vec::new());
    while decoded.len() < 8 {
        step(engine, &mut events, &mut decoded)?;
    }
    for id in 1..=PROMPTS {
        engine.add(sequence(id, PROMPT, 1))?;
    }
    let (begin, mut done) = (common::now(threads), 0);
    while done < PROMPTS {
        let start = common::now(threads);
        done += step(engine, &mut events, &mut decoded)?;
        gaps.push(common::now(threads) - start);
    }
    let seconds = (common::now(threads) - begin).as_secs_f64();
    engine.cancel(SequenceId(0));
    engine.step(&mut events)?;
    gaps.sort_unstable();
    Ok(Measured { gaps, prefill_rate: (PROMPTS * u64::from(PROMPT)) as f64 / seconds, decoded })
}

/// Returns how many others finished.
fn step(
    engine: &mut Engine,
    events: &mut Vec<Event>,
    decoded: &mut Vec<u32>,
) -> Result<u64, Box<dyn Error>> {
    let mut done = 0;
    engine.step(events)?;
    for event in events.drain(..) {
        match event {
            Event::Token { id: SequenceId(0), token, .. } => decoded.push(token),
            Event::Finished { id: SequenceId(1..), .. } => done += 1,
            _ => {}
        }
    }
    Ok(done)
}

const CONTEXT: usize = 1_024;
const PROMPT: u32 = 512;
const PROMPTS: u64 = 8;
