//! `chrysalis bench`: the bare engine, like llama-bench, with the share of the machine's limit.
//!
//! Prefill: `batch` prompts of random tokens, timed until each has its first token. Decode: the tokens after that, timed
//! while all sequences run. The limits are measured in the same run: arithmetic for prefill, weight bytes over read
//! bandwidth (or arithmetic, whichever is slower) for decode.

use std::thread;
use std::time::{Duration, Instant};

use chrysalis_kernels::cpu::CpuOptions;
use chrysalis_kernels::dtype::Dtype;
use chrysalis_kernels::probe::{self, Limits};
use chrysalis_models::decoder::Model;
use chrysalis_protocol::package::Meta;
use chrysalis_runtime::engine::{
    Engine, EngineLimits, Event, NewSequence, Sampling, SequenceId, StepStatus,
};
use serde::Serialize;
use zeroize::Zeroizing;

use crate::args::BenchArgs;
use crate::engine_setup;
use crate::error::CliError;
use crate::output;

/// One row of the table.
#[derive(Debug, Serialize)]
struct Row {
    prompt: usize,
    generate: usize,
    batch: usize,
    threads: usize,
    prefill_tokens_per_s: f64,
    decode_tokens_per_s: f64,
    prefill_share_of_limit: f64,
    decode_share_of_limit: f64,
}

/// What the rows were measured on.
#[derive(Debug, Serialize)]
struct Report {
    package: String,
    device: String,
    weight_bytes_per_token: u64,
    int8_operations_per_token: u64,
    f32_operations_per_token: u64,
    read_gb_per_s: f64,
    int8_gop_per_s: f64,
    f32_gop_per_s: f64,
    rows: Vec<Row>,
}

/// Runs `chrysalis bench`.
///
/// # Errors
/// [`CliError`] when the package or the engine fails.
pub fn run(args: &BenchArgs) -> Result<(), CliError> {
    let longest = args.prompt.iter().max().copied().unwrap_or(1);
    let widest = args.batch.iter().max().copied().unwrap_or(1);
    let empty = args.prompt.contains(&0) || args.batch.contains(&0) || args.repeat == 0;
    if empty || args.generate < 2 {
        return Err(CliError::Usage(
            "--prompt, --batch and --repeat are 1 or more, --generate is 2 or more",
        ));
    }
    let opened = engine_setup::open(&args.package, args.key.as_deref())?;
    let context = (longest + args.generate + 16).next_multiple_of(16);
    let threads = args
        .threads
        .unwrap_or_else(|| thread::available_parallelism().map_or(1, usize::from))
        .max(1);
    let decoder = engine_setup::decoder(
        &opened,
        Some(threads),
        STEP_TOKENS.max(widest),
        widest,
        context * widest,
    )?;
    let meta = opened.package.meta();
    let device = Model::describe(&decoder);
    let limits = EngineLimits {
        max_sequences: narrow(widest),
        max_waiting: narrow(widest),
        max_tokens_per_step: narrow(STEP_TOKENS.max(widest)),
        max_prompt: narrow(longest),
        max_output: narrow(args.generate),
    };
    let mut engine = Engine::new(Box::new(decoder), limits)?;
    let cpu = CpuOptions { threads: Some(threads), ..CpuOptions::default() };
    let machine = probe::measure(cpu, PROBE_BYTES, PROBE_TIME)?;
    let work = work_per_token(meta);
    let report = Report {
        package: args.package.display().to_string(),
        device,
        weight_bytes_per_token: work.bytes,
        int8_operations_per_token: work.int8,
        f32_operations_per_token: work.f32,
        read_gb_per_s: machine.read_all / 1e9,
        int8_gop_per_s: machine.int8_all / 1e9,
        f32_gop_per_s: machine.f32_all / 1e9,
        rows: rows(args, &mut engine, meta, &work, &machine)?,
    };
    if args.json { output::json(&report) } else { print(&report) }
}

/// Every prompt length with every batch.
fn rows(
    args: &BenchArgs,
    engine: &mut Engine,
    meta: &Meta,
    work: &Work,
    machine: &Limits,
) -> Result<Vec<Row>, CliError> {
    let vocab_size = meta.architecture.vocab_size;
    let bar = output::spinner(args.json, "measuring");
    let mut rows = Vec::new();
    for &prompt in &args.prompt {
        for &batch in &args.batch {
            let mut runs = Vec::new();
            for repeat in 1..=args.repeat {
                bar.set_message(format!("prompt {prompt}, batch {batch}, run {repeat}"));
                runs.push(measure(engine, vocab_size, prompt, args.generate, batch)?);
                bar.tick();
            }
            rows.push(row(&runs, prompt, args.generate, batch, work, machine));
        }
    }
    bar.finish_and_clear();
    Ok(rows)
}

/// Prefill and decode speed of one run, tokens per second over all sequences.
type Speeds = (f64, f64);

/// Runs `batch` sequences at once.
fn measure(
    engine: &mut Engine,
    vocab_size: u32,
    prompt: usize,
    generate: usize,
    batch: usize,
) -> Result<Speeds, CliError> {
    for index in 0..batch {
        engine.add(NewSequence {
            id: SequenceId(index as u64),
            prompt: Zeroizing::new(random_tokens(prompt, vocab_size, index as u64)),
            max_output: narrow(generate),
            sampling: Sampling::greedy(),
            seed: 0,
            stop_token_ids: Vec::new(),
            logprobs: None,
        })?;
    }
    let mut events = Vec::new();
    let (mut begun, mut ended, mut decoded) = (0, 0, 0usize);
    let mut first_tokens = vec![false; batch];
    let start = Instant::now();
    let mut prefilled = None;
    let mut decode_end = Duration::ZERO;
    while ended < batch {
        if engine.step(&mut events)? == StepStatus::Idle && events.is_empty() {
            return Err(CliError::Usage(
                "the engine has no room for this row: fewer sequences or shorter prompts",
            ));
        }
        let now = start.elapsed();
        for event in events.drain(..) {
            match event {
                Event::Token { id, .. } => {
                    let seen = &mut first_tokens[id.0 as usize];
                    begun += usize::from(!std::mem::replace(seen, true));
                    if prefilled.is_some() && ended == 0 {
                        decoded += 1;
                        decode_end = now;
                    }
                }
                Event::Finished { .. } => ended += 1,
                Event::Progress { .. } => {}
            }
        }
        if begun == batch && prefilled.is_none() {
            prefilled = Some(now);
        }
    }
    let prefill = prefilled.unwrap_or_default();
    let decode = decode_end.saturating_sub(prefill);
    Ok((rate(prompt * batch, prefill), rate(decoded, decode)))
}

fn row(
    runs: &[Speeds],
    prompt: usize,
    generate: usize,
    batch: usize,
    work: &Work,
    machine: &Limits,
) -> Row {
    let prefill = median(runs.iter().map(|run| run.0).collect());
    let decode = median(runs.iter().map(|run| run.1).collect());
    let seconds = work.int8 as f64 / machine.int8_all + work.f32 as f64 / machine.f32_all;
    let arithmetic = 1.0 / seconds;
    let reading = machine.read_all / work.bytes as f64 * batch as f64;
    Row {
        prompt,
        generate,
        batch,
        threads: machine.threads,
        prefill_tokens_per_s: prefill,
        decode_tokens_per_s: decode,
        prefill_share_of_limit: prefill / arithmetic,
        decode_share_of_limit: decode / reading.min(arithmetic),
    }
}

/// What one token costs.
#[derive(Debug, Default)]
struct Work {
    /// Bytes of weights that are read.
    bytes: u64,
    /// Operations on quantised weights, two for each weight.
    int8: u64,
    /// Operations on other weights, two for each.
    f32: u64,
}

/// The work in the matrices. The embedding counts only where it is also the output matrix.
fn work_per_token(meta: &Meta) -> Work {
    let mut work = Work::default();
    for tensor in &meta.tensors {
        let embedding = tensor.name == "token_embd.weight" && !meta.architecture.tied_embeddings;
        let (2, false, Some(dtype)) =
            (tensor.dims.len(), embedding, Dtype::from_code(tensor.dtype))
        else {
            continue;
        };
        let operations = 2 * tensor.dims.iter().map(|&dim| u64::from(dim)).product::<u64>();
        work.bytes += tensor.len;
        match dtype {
            Dtype::F32 | Dtype::F16 | Dtype::Bf16 => work.f32 += operations,
            _ => work.int8 += operations,
        }
    }
    work
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

fn print(report: &Report) -> Result<(), CliError> {
    output::line(&format!(
        "{}: {} bytes of weights and {} operations a token; the machine reads {:.1} GB/s and does {:.0} GOP/s in int8, \
         {:.0} in f32",
        report.device,
        report.weight_bytes_per_token,
        report.int8_operations_per_token + report.f32_operations_per_token,
        report.read_gb_per_s,
        report.int8_gop_per_s,
        report.f32_gop_per_s
    ))?;
    output::line(
        "prompt generate batch threads   prefill tok/s  of limit   decode tok/s  of limit",
    )?;
    for row in &report.rows {
        output::line(&format!(
            "{:6} {:8} {:5} {:7} {:15.1} {:8.1} % {:13.1} {:8.1} %",
            row.prompt,
            row.generate,
            row.batch,
            row.threads,
            row.prefill_tokens_per_s,
            row.prefill_share_of_limit * 100.0,
            row.decode_tokens_per_s,
            row.decode_share_of_limit * 100.0
        ))?;
    }
    Ok(())
}

fn rate(count: usize, time: Duration) -> f64 {
    count as f64 / time.as_secs_f64().max(1e-9)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}

fn narrow(value: usize) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}

/// Tokens of a prefill step, as the enclave has by default.
const STEP_TOKENS: usize = 512;
/// Out of every cache.
const PROBE_BYTES: usize = 256 << 20;
/// For all limits together.
const PROBE_TIME: Duration = Duration::from_millis(1200);
