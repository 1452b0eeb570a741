//! Compares our logits of a model with reference logits recorded by `scripts/record-logits.py`:
//! top-1 agreement, KL divergence, perplexity. Exits with 1 when they are outside the given limits.
//!
//! ```text
//! cargo run --release -p chrysalis-models --example compare_logits -- MODEL TOKENS LOGITS \
//!     [--min-top1 0.97] [--max-kl 0.01] [--device cpu|reference] [--cache f16|f32]
//!     [--activation-bits 8|16] [--threads N] [--chunk N]
//! ```
//! MODEL is a GGUF file or a Hugging Face folder, TOKENS a text file of token ids, LOGITS raw
//! little-endian f32, `[tokens, vocab]`.

use std::error::Error;
use std::fs::File;
use std::io::{BufReader, Read, Write};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use chrysalis_kernels::batch::{Batch, WantLogits};
use chrysalis_kernels::cpu::{ActivationBits, Cpu, CpuOptions};
use chrysalis_kernels::device::{CacheDtype, Device};
use chrysalis_kernels::reference::Reference;
use chrysalis_models::config::ModelConfig;
use chrysalis_models::decoder::{Decoder, DecoderLimits, Model};
use chrysalis_models::source;
use chrysalis_models::weights::{TensorSpec, WeightLoader};

fn main() -> Result<ExitCode, Box<dyn Error>> {
    let options = Options::parse(std::env::args().skip(1))?;
    let tokens = std::fs::read_to_string(&options.tokens)?
        .split_whitespace()
        .map(str::parse)
        .collect::<Result<Vec<u32>, _>>()?;
    let mut model: Box<dyn Model> = match options.reference {
        true => open(Reference, &options, tokens.len())?,
        false => {
            let cpu = Cpu::new(options.cpu)?;
            open(cpu, &options, tokens.len())?
        }
    };
    let found = compare(&mut *model, &tokens, &options)?;
    let mut out = std::io::stdout().lock();
    let rows = found.rows as f64;
    let (top1, kl) = (found.agreed as f64 / rows, found.kl_sum / rows);
    writeln!(out, "{}", model.describe())?;
    writeln!(out, "tokens      {}", tokens.len())?;
    writeln!(out, "top-1       {top1:.5} (at least {})", options.min_top1)?;
    writeln!(out, "mean KL     {kl:.3e} (at most {})", options.max_kl)?;
    writeln!(out, "max KL      {:.3e}", found.kl_max)?;
    let [ours, reference] = found.surprise.map(|sum| (sum / (rows - 1.0)).exp());
    writeln!(out, "perplexity  {ours:.4}, reference {reference:.4}")?;
    // A NaN is outside every limit.
    let within = top1 >= options.min_top1 && kl <= options.max_kl;
    Ok(if within {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

#[derive(Default)]
struct Comparison {
    rows: usize,
    agreed: usize,
    kl_sum: f64,
    kl_max: f64,
    /// Sum of -log p(next token), ours and the reference's.
    surprise: [f64; 2],
}

impl Comparison {
    fn add(&mut self, ours: &[f32], reference: &[f32], next: Option<u32>) {
        let (ours_log, reference_log) = (log_sum_exp(ours), log_sum_exp(reference));
        let kl: f64 = ours
            .iter()
            .zip(reference)
            .map(|(&a, &b)| {
                let (log_q, log_p) = (f64::from(a) - ours_log, f64::from(b) - reference_log);
                log_p.exp() * (log_p - log_q)
            })
            .sum();
        self.rows += 1;
        self.agreed += usize::from(top(ours) == top(reference));
        self.kl_sum += kl;
        self.kl_max = self.kl_max.max(kl);
        if let Some(next) = next.map(|token| token as usize) {
            self.surprise[0] += ours_log - f64::from(ours[next]);
            self.surprise[1] += reference_log - f64::from(reference[next]);
        }
    }
}

fn compare(
    model: &mut dyn Model,
    tokens: &[u32],
    options: &Options,
) -> Result<Comparison, Box<dyn Error>> {
    let vocab_size = model.vocab_size();
    let file = File::open(&options.logits)?;
    let expected = tokens.len() as u64 * vocab_size as u64 * 4;
    if file.metadata()?.len() != expected {
        return Err(format!("{} is not {expected} bytes long", options.logits).into());
    }
    let mut reader = BufReader::with_capacity(1 << 20, file);
    let blocks: Vec<u32> = (0..tokens.len().div_ceil(BLOCK_SIZE) as u32).collect();
    let (mut ours, mut bytes) = (vec![0.0; vocab_size], vec![0; vocab_size * 4]);
    let (mut batch, mut found) = (Batch::default(), Comparison::default());
    for (index, chunk) in tokens.chunks(options.chunk).enumerate() {
        let start = index * options.chunk;
        batch.clear();
        batch.push(chunk, start as u32, &blocks, WantLogits::All);
        model.forward(&batch)?;
        for row in 0..chunk.len() {
            model.logits(row, &mut ours)?;
            reader.read_exact(&mut bytes)?;
            let reference: Vec<f32> = bytes
                .as_chunks::<4>()
                .0
                .iter()
                .map(|&b| f32::from_le_bytes(b))
                .collect();
            found.add(&ours, &reference, tokens.get(start + row + 1).copied());
        }
    }
    Ok(found)
}

fn open<D: Device>(
    device: D,
    options: &Options,
    num_tokens: usize,
) -> Result<Box<dyn Model>, Box<dyn Error>> {
    let source = source::open(Path::new(&options.model))?;
    let config = ModelConfig::try_from(source.architecture())?;
    let specs: Vec<TensorSpec<'_>> = source
        .tensors()
        .iter()
        .map(|tensor| TensorSpec {
            name: &tensor.name,
            dtype: tensor.dtype as u16,
            dims: &tensor.dims,
        })
        .collect();
    let mut loader = WeightLoader::new(&device, &config, &specs)?;
    let mut bytes = Vec::new();
    for index in 0..source.tensors().len() {
        source.read(index, &mut bytes)?;
        loader.write(index, 0, &bytes)?;
    }
    let weights = loader.finish()?;
    let limits = DecoderLimits {
        max_tokens: options.chunk,
        max_logit_rows: options.chunk,
        num_blocks: num_tokens.div_ceil(BLOCK_SIZE),
        block_size: BLOCK_SIZE,
        cache_dtype: options.cache,
    };
    Ok(Box::new(Decoder::new(
        Arc::new(device),
        config,
        weights,
        limits,
    )?))
}

fn log_sum_exp(logits: &[f32]) -> f64 {
    let max = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    max + logits
        .iter()
        .map(|&x| (f64::from(x) - max).exp())
        .sum::<f64>()
        .ln()
}

fn top(logits: &[f32]) -> Option<usize> {
    (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b]))
}

struct Options {
    model: String,
    tokens: String,
    logits: String,
    min_top1: f64,
    max_kl: f64,
    reference: bool,
    cache: CacheDtype,
    cpu: CpuOptions,
    chunk: usize,
}

impl Options {
    fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Self, Box<dyn Error>> {
        let mut place = || arguments.next().ok_or("MODEL TOKENS LOGITS are needed");
        let mut options = Self {
            model: place()?,
            tokens: place()?,
            logits: place()?,
            min_top1: 0.0,
            max_kl: f64::INFINITY,
            reference: false,
            cache: CacheDtype::F16,
            cpu: CpuOptions::default(),
            chunk: 64,
        };
        while let Some(flag) = arguments.next() {
            let value = arguments
                .next()
                .ok_or_else(|| format!("{flag} needs a value"))?;
            match (flag.as_str(), value.as_str()) {
                ("--min-top1", value) => options.min_top1 = value.parse()?,
                ("--max-kl", value) => options.max_kl = value.parse()?,
                ("--device", "reference") => options.reference = true,
                ("--device", "cpu") => options.reference = false,
                ("--cache", "f16") => options.cache = CacheDtype::F16,
                ("--cache", "f32") => options.cache = CacheDtype::F32,
                ("--threads", value) => options.cpu.threads = Some(value.parse()?),
                ("--activation-bits", "8") => options.cpu.activation_bits = ActivationBits::Eight,
                ("--activation-bits", "16") => {
                    options.cpu.activation_bits = ActivationBits::Sixteen;
                }
                ("--chunk", value) => options.chunk = value.parse::<usize>()?.max(1),
                _ => return Err(format!("{flag} {value} is not an option").into()),
            }
        }
        Ok(options)
    }
}

const BLOCK_SIZE: usize = 16;
