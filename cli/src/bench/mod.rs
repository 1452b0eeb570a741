//! `chrysalis bench`: the bare engine, like llama-bench, with the share of the machine's limit (docs/benchmarks.md).
//!
//! Prefill: `batch` prompts of random tokens, timed until each has its first token. Decode: the tokens after that, timed
//! while all sequences run. The limits are measured in the same run, after everything else, so that they take no part in
//! the memory that is reported.

mod cost;
mod limits;
mod measure;
mod profile;
mod report;

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use chrysalis_kernels::cpu::{ActivationBits, Cpu, CpuOptions};
use chrysalis_kernels::device::{CacheDtype, Device};
use chrysalis_kernels::probe;
use chrysalis_kernels::profile::Profiled;
use chrysalis_runtime::compute;
use chrysalis_runtime::engine::{Engine, EngineLimits};
use chrysalis_runtime::load::{LoadOptions, LoadReport};

use crate::args::{ActivationPrecision, BenchArgs, ComputeDevice, KvDtype};
use crate::bench::cost::ModelCost;
use crate::bench::limits::Machine;
use crate::bench::measure::{Load, Speeds};
use crate::bench::profile::Profile;
use crate::bench::report::{Memory, Report, Row};
use crate::engine_setup::{self, BLOCK, Opened};
use crate::error::CliError;
use crate::output;

/// Runs `chrysalis bench`.
///
/// # Errors
/// [`CliError`] when the package or the engine fails.
pub fn run(args: &BenchArgs) -> Result<(), CliError> {
    let empty = args.prompt.contains(&0) || args.batch.contains(&0) || args.repeat == 0;
    if empty || args.generate < 2 {
        return Err(CliError::Usage(
            "--prompt, --batch and --repeat are 1 or more, --generate is 2 or more",
        ));
    }
    let opened = engine_setup::open(&args.package, args.key.as_deref())?;
    if args.profile && args.device == ComputeDevice::Cuda {
        return Err(CliError::Usage("--profile is of the processor's operations, not of a card's"));
    }
    let options = cpu_options(args);
    let cost = ModelCost::new(opened.package.meta(), cache_dtype(args))?;

    let start = Instant::now();
    let (mut engine, device, stages) = match args.device {
        ComputeDevice::Cpu => engine(args, &opened, Arc::new(Cpu::new(options)?))?,
        ComputeDevice::Cuda => engine(args, &opened, Arc::new(compute::card(None)?))?,
    };
    let load_seconds = start.elapsed().as_secs_f64();
    let speeds = each_row(args, |prompt, batch| {
        measure::run(&mut engine, load(args, &cost, prompt, batch), &mut |_| {})
    })?;
    let kv_bytes = cost.kv_bytes_per_token() * kv_tokens(args) as u64;
    let memory = Memory::now(cost.weight_bytes, kv_bytes);
    drop(engine);
    let counts = if args.profile { Some(profiles(args, &opened, &cost, options)?) } else { None };

    // A card's limits are not those of the machine that it is in.
    let machine = match args.device {
        ComputeDevice::Cpu => {
            Some(Machine(probe::measure(options, &probe::READ_SIZES, PROBE_TIME)?))
        }
        ComputeDevice::Cuda => None,
    };
    let rows = speeds.iter().map(|(prompt, batch, runs)| {
        Row::new((*prompt, args.generate, *batch), runs, &cost, machine.as_ref())
    });
    let profiles = counts.zip(machine.as_ref()).map(|(counts, machine)| {
        let profile = |(prompt, batch, runs): &(usize, usize, Vec<_>)| {
            let end = (*prompt + args.generate) as u64;
            let working_set = cost.pass(*batch as u64, end, 1).stored_bytes;
            Profile::new((*prompt, *batch), runs, machine, working_set)
        };
        counts.iter().map(profile).collect()
    });
    let report = Report {
        package: args.package.display().to_string(),
        device,
        load_seconds,
        load: stages.into(),
        memory,
        cost: cost.per_token(),
        limits: machine.as_ref().map(|machine| machine.report(cost.weight_bytes)),
        rows: rows.collect(),
        profiles,
    };
    if args.json { output::json(&report) } else { report.print() }
}

/// What was measured `--repeat` times: prompt, batch, runs.
type Measured<T> = Vec<(usize, usize, Vec<T>)>;

/// Measures every prompt length with every batch.
fn each_row<T>(
    args: &BenchArgs,
    mut measure: impl FnMut(usize, usize) -> Result<T, CliError>,
) -> Result<Measured<T>, CliError> {
    let bar = output::spinner(args.json, "measuring");
    let mut rows = Vec::new();
    for &prompt in &args.prompt {
        for &batch in &args.batch {
            let mut runs = Vec::new();
            for repeat in 1..=args.repeat {
                bar.set_message(format!("prompt {prompt}, batch {batch}, run {repeat}"));
                runs.push(measure(prompt, batch)?);
                bar.tick();
            }
            rows.push((prompt, batch, runs));
        }
    }
    bar.finish_and_clear();
    Ok(rows)
}

/// Every row once more, on a device that counts what it does: runs of their own, so that counting slows no row down.
fn profiles(
    args: &BenchArgs,
    opened: &Opened,
    cost: &ModelCost,
    options: CpuOptions,
) -> Result<Measured<profile::Run>, CliError> {
    let device = Arc::new(Profiled::new(Cpu::new(options)?));
    let (mut engine, ..) = engine(args, opened, Arc::clone(&device))?;
    each_row(args, |prompt, batch| {
        let mut run = profile::Run::default();
        device.take();
        let load = load(args, cost, prompt, batch);
        let speeds = measure::run(&mut engine, load, &mut |phase| {
            run.set(phase, device.take());
        })?;
        let Speeds { prefill, decode, .. } = speeds;
        Ok(run.lasting(prefill, decode))
    })
}

/// The package on a device, with room for the longest row and the widest, its description, and what loading took.
fn engine<D: Device>(
    args: &BenchArgs,
    opened: &Opened,
    device: Arc<D>,
) -> Result<(Engine, String, LoadReport), CliError> {
    let (longest, widest) = (most(&args.prompt), most(&args.batch));
    let options = LoadOptions {
        threads: args.threads,
        max_tokens: step_tokens(args),
        max_logit_rows: widest,
        kv_tokens: kv_tokens(args),
        block_size: BLOCK,
        cache_dtype: cache_dtype(args),
    };
    let (model, stages) = engine_setup::shared_model(opened, device, options)?;
    let description = model.describe();
    let limits = EngineLimits {
        max_sequences: narrow(widest),
        max_waiting: narrow(widest),
        max_tokens_per_step: narrow(step_tokens(args)),
        max_prompt: narrow(longest),
        max_output: narrow(args.generate + overlap(args)),
    };
    Ok((Engine::new(model, limits)?, description, stages))
}

fn load(args: &BenchArgs, cost: &ModelCost, prompt: usize, batch: usize) -> Load {
    let (generate, overlap, vocab_size) = (args.generate, overlap(args), cost.vocab_size);
    Load { prompt, batch, generate, overlap, vocab_size }
}

/// Positions that are reserved for all sequences together.
fn kv_tokens(args: &BenchArgs) -> usize {
    let context = most(&args.prompt) + args.generate + overlap(args);
    context.next_multiple_of(BLOCK) * most(&args.batch)
}

/// Steps that the prompts take at most: tokens that the first sequence has when the last one begins.
fn overlap(args: &BenchArgs) -> usize {
    let (longest, widest) = (most(&args.prompt), most(&args.batch));
    (longest * widest).div_ceil(step_tokens(args) - widest) + 1
}

/// Tokens of a step, half of them at least for prompts.
fn step_tokens(args: &BenchArgs) -> usize {
    STEP_TOKENS.max(2 * most(&args.batch))
}

fn threads(args: &BenchArgs) -> usize {
    let all = || thread::available_parallelism().map_or(1, usize::from);
    args.threads.unwrap_or_else(all).max(1)
}

fn cpu_options(args: &BenchArgs) -> CpuOptions {
    let activation_bits = match args.activation_bits {
        ActivationPrecision::Adaptive => ActivationBits::Adaptive,
        ActivationPrecision::Eight => ActivationBits::Eight,
        ActivationPrecision::Sixteen => ActivationBits::Sixteen,
    };
    CpuOptions { threads: Some(threads(args)), activation_bits, ..CpuOptions::default() }
}

fn cache_dtype(args: &BenchArgs) -> CacheDtype {
    match args.kv_dtype {
        KvDtype::F16 => CacheDtype::F16,
        KvDtype::F32 => CacheDtype::F32,
        KvDtype::Int8 => CacheDtype::I8,
        KvDtype::Bf16 => CacheDtype::Bf16,
        KvDtype::Fp8 => CacheDtype::F8,
    }
}

fn most(values: &[usize]) -> usize {
    values.iter().max().copied().unwrap_or(1)
}

fn narrow(value: usize) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}

/// Tokens of a prefill step, as the enclave has by default.
const STEP_TOKENS: usize = 512;
/// For all limits together.
const PROBE_TIME: Duration = Duration::from_secs(3);
