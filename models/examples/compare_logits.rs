//! Compares our logits of a model with reference logits recorded by `scripts/record-logits.py`:
//! top-1 agreement, KL divergence, perplexity. Exits with 1 when they are outside the given limits.
//!
//! ```text
//! cargo run --release -p chrysalis-models --example compare_logits -- MODEL TOKENS LOGITS \
//!     [--min-top1 0.97] [--max-kl 0.01] [--device cpu|reference] [--cache f16|f32]
//!     [--activation-bits 8|16|adaptive] [--threads N] [--chunk N]
//! ```
//! MODEL is a GGUF file or a Hugging Face folder, TOKENS a text file of token ids, LOGITS raw
//! little-endian f32, `[tokens, vocab]`, or the likeliest tokens of it that `scripts/compact-logits.py` kept (`.top`); all
//! others then count as one, which makes the divergence a lower bound, and a tight one.

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
    if reference.is_finite() {
        writeln!(out, "perplexity  {ours:.4}, reference {reference:.4}")?;
    }
    // A NaN is outside every limit.
    let within = top1 >= options.min_top1 && kl <= options.max_kl;
    Ok(if within { ExitCode::SUCCESS } else { ExitCode::FAILURE })
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
    /// `reference` has `(token, log probability)`, the likeliest first where it is not all of them.
    fn add(&mut self, ours: &[f32], reference: &[(u32, f64)], next: Option<u32>) {
        let ours_log = log_sum_exp(ours);
        let log_q = |token: u32| f64::from(ours[token as usize]) - ours_log;
        let (mut kl, mut rest_p, mut rest_q) = (0.0, 1.0, 1.0);
        for &(token, log_p) in reference {
            kl += log_p.exp() * (log_p - log_q(token));
            rest_p -= log_p.exp();
            rest_q -= log_q(token).exp();
        }
        if reference.len() < ours.len() && rest_p > 0.0 && rest_q > 0.0 {
            kl += rest_p * (rest_p / rest_q).ln();
        }
        // The first among equals, as greedy sampling takes it.
        let likeliest = reference.iter().rev().max_by(|a, b| a.1.total_cmp(&b.1));
        self.rows += 1;
        self.agreed +=
            usize::from(likeliest.is_some_and(|(token, _)| top(ours) == Some(*token as usize)));
        self.kl_sum += kl;
        self.kl_max = self.kl_max.max(kl);
        if let Some(next) = next {
            self.surprise[0] -= log_q(next);
            let known = reference.iter().find(|(token, _)| *token == next);
            self.surprise[1] -= known.map_or(f64::NAN, |(_, log_p)| *log_p);
        }
    }
}

fn compare(
    model: &mut dyn Model,
    tokens: &[u32],
    options: &Options,
) -> Result<Comparison, Box<dyn Error>> {
    let vocab_size = model.vocab_size();
    let mut recorded = Recorded::open(&options.logits, tokens.len(), vocab_size)?;
    let blocks: Vec<u32> = (0..tokens.len().div_ceil(BLOCK_SIZE) as u32).collect();
    let mut ours = vec![0.0; vocab_size];
    let (mut batch, mut found) = (Batch::default(), Comparison::default());
    for (index, chunk) in tokens.chunks(options.chunk).enumerate() {
        let start = index * options.chunk;
        batch.clear();
        batch.push(chunk, start as u32, &blocks, WantLogits::All);
        model.forward(&batch)?;
        for row in 0..chunk.len() {
            model.logits(row, &mut ours)?;
            let reference = recorded.row()?;
            found.add(&ours, &reference, tokens.get(start + row + 1).copied());
        }
    }
    Ok(found)
}

/// Reference rows, one after the other.
struct Recorded {
    reader: BufReader<File>,
    /// Pairs of a row, or whole rows.
    top: Option<usize>,
    row: Vec<u8>,
}

impl Recorded {
    fn open(path: &str, rows: usize, vocab_size: usize) -> Result<Self, Box<dyn Error>> {
        let file = File::open(path)?;
        let len = file.metadata()?.len();
        let mut reader = BufReader::with_capacity(1 << 20, file);
        let top = if path.ends_with(".top") {
            let mut head = [0; 16];
            reader.read_exact(&mut head)?;
            let word = |at: usize| {
                u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]])
            };
            if &head[..8] != b"CHRYTOP1" || word(8) as usize != rows {
                return Err(format!("{path} is not the likeliest tokens of {rows} rows").into());
            }
            Some(word(12) as usize)
        } else {
            None
        };
        let row = top.map_or(vocab_size * 4, |top| top * 8);
        let expected = (rows * row + if top.is_some() { 16 } else { 0 }) as u64;
        if len != expected {
            return Err(format!("{path} is not {expected} bytes long").into());
        }
        Ok(Self { reader, top, row: vec![0; row] })
    }

    /// The next row's tokens and their log probabilities.
    fn row(&mut self) -> Result<Vec<(u32, f64)>, Box<dyn Error>> {
        self.reader.read_exact(&mut self.row)?;
        let (words, _) = self.row.as_chunks::<4>();
        if self.top.is_some() {
            let (pairs, _) = words.as_chunks::<2>();
            let pair = |[id, log_p]: &[[u8; 4]; 2]| {
                (u32::from_le_bytes(*id), f64::from(f32::from_le_bytes(*log_p)))
            };
            return Ok(pairs.iter().map(pair).collect());
        }
        let logits: Vec<f32> = words.iter().map(|word| f32::from_le_bytes(*word)).collect();
        let log = log_sum_exp(&logits);
        Ok((0..).zip(logits.iter().map(|&logit| f64::from(logit) - log)).collect())
    }
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
    let loader = WeightLoader::new(&device, &config, &specs)?;
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
    Ok(Box::new(Decoder::new(Arc::new(device), config, weights, limits)?))
}

fn log_sum_exp(logits: &[f32]) -> f64 {
    let max = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    max + logits.iter().map(|&x| (f64::from(x) - max).exp()).sum::<f64>().ln()
}

fn top(logits: &[f32]) -> Option<usize> {
    (0..logits.len()).rev().max_by(|&a, &b| logits[a].total_cmp(&logits[b]))
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
            let value = arguments.next().ok_or_else(|| format!("{flag} needs a value"))?;
            match (flag.as_str(), value.as_str()) {
                ("--min-top1", value) => options.min_top1 = value.parse()?,
                ("--max-kl", value) => options.max_kl = value.parse()?,
                ("--device", "reference") => options.reference = true,
                ("--device", "cpu") => options.reference = false,
                ("--cache", "f16") => options.cache = CacheDtype::F16,
                ("--cache", "int8") => options.cache = CacheDtype::I8,
                ("--cache", "f32") => options.cache = CacheDtype::F32,
                ("--threads", value) => options.cpu.threads = Some(value.parse()?),
                ("--activation-bits", "adaptive") => {}
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
