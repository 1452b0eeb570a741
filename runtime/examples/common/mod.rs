//! A model in a GGUF file with its engine, for the examples that measure.

use std::error::Error;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use chrysalis_kernels::cpu::{Cpu, CpuOptions};
use chrysalis_kernels::device::CacheDtype;
use chrysalis_models::config::ModelConfig;
use chrysalis_models::decoder::{Decoder, DecoderLimits};
use chrysalis_models::source::Source;
use chrysalis_models::weights::{TensorSpec, WeightLoader};
use chrysalis_runtime::engine::{Engine, EngineLimits};

/// Loads the weights and makes an engine of at most `max_sequences`, with `context` positions for each, and rows of
/// logits for `drafts` tokens besides.
pub(crate) fn engine(
    source: &Source,
    threads: usize,
    max_sequences: usize,
    context: usize,
    drafts: usize,
) -> Result<Engine, Box<dyn Error>> {
    let device = Cpu::new(CpuOptions { threads: Some(threads), ..CpuOptions::default() })?;
    let config = ModelConfig::try_from(source.architecture())?;
    let specs: Vec<_> = source
        .tensors()
        .iter()
        .map(|tensor| TensorSpec {
            name: &tensor.name,
            dtype: tensor.dtype as u16,
            dims: &tensor.dims,
        })
        .collect();
    let loader = WeightLoader::new(&device, &config, &specs)?;
    let mut bytes = Vec::new();
    for index in 0..source.tensors().len() {
        source.read(index, &mut bytes)?;
        loader.write(index, 0, &bytes)?;
    }
    let weights = loader.finish()?;
    let limits = DecoderLimits {
        max_tokens: STEP_TOKENS,
        max_logit_rows: max_sequences + drafts,
        num_blocks: max_sequences * context.div_ceil(BLOCK_SIZE),
        block_size: BLOCK_SIZE,
        cache_dtype: CacheDtype::F16,
    };
    let decoder = Decoder::new(Arc::new(device), config, weights, limits)?;
    let limits = EngineLimits {
        max_sequences: u32::try_from(max_sequences)?,
        max_waiting: 64,
        max_tokens_per_step: u32::try_from(STEP_TOKENS)?,
        max_prompt: u32::try_from(context)?,
        max_output: u32::try_from(context)?,
    };
    Ok(Engine::new(Box::new(decoder), limits)?)
}

/// Time since some moment: with one thread, in which that thread ran (Linux counts it about every 4 ms), so that others
/// on the machine do not count; with more threads, by the clock on the wall.
pub(crate) fn now(threads: usize) -> Duration {
    static BEGIN: OnceLock<Instant> = OnceLock::new();
    let ran = || {
        let text = std::fs::read_to_string("/proc/thread-self/schedstat").ok()?;
        text.split(' ').next()?.parse().ok().map(Duration::from_nanos)
    };
    let wall = || BEGIN.get_or_init(Instant::now).elapsed();
    if threads == 1 { ran().unwrap_or_else(wall) } else { wall() }
}

/// `GGUF [THREADS]` of the command line.
pub(crate) fn arguments() -> Result<(Source, usize), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let path = args.next().ok_or("MODEL.gguf [THREADS]")?;
    let threads = args.next().map_or(Ok(1), |threads| threads.parse())?;
    Ok((chrysalis_models::source::open(Path::new(&path))?, threads))
}

const STEP_TOKENS: usize = 512;
const BLOCK_SIZE: usize = 16;
