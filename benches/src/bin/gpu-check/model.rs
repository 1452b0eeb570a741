//! Decoders of real shapes with random weights: one strip of values, uploaded again and again.

use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Instant;

use chrysalis_kernels::device::{CacheDtype, Device};
use chrysalis_kernels::profile::positions_seen;
use chrysalis_kernels::{Batch, Dtype, WantLogits, quant};
use chrysalis_models::config::ModelConfig;
use chrysalis_models::decoder::{Decoder, DecoderLimits};
use chrysalis_models::weights::{TensorSpec, WeightLoader, Weights, expected_tensors};
use chrysalis_protocol::package::{Architecture, Generation, Rope};

use crate::common::Random;
use crate::report::Timed;

/// A Llama.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    pub(crate) name: &'static str,
    hidden: u32,
    intermediate: u32,
    pub(crate) layers: u32,
    heads: u32,
    kv_heads: u32,
    head_dim: u32,
    pub(crate) vocab: u32,
    tied: bool,
}

/// Name, type and dimensions.
pub(crate) type Tensor = (String, Dtype, Vec<u32>);

/// Llama 3.2 1B.
pub(crate) const LLAMA_1B: Shape = Shape {
    name: "1b",
    hidden: 2048,
    intermediate: 8192,
    layers: 16,
    heads: 32,
    kv_heads: 8,
    head_dim: 64,
    vocab: 128_256,
    tied: true,
};

/// Llama 3.1 8B.
pub(crate) const LLAMA_8B: Shape = Shape {
    name: "8b",
    hidden: 4096,
    intermediate: 14_336,
    layers: 32,
    heads: 32,
    kv_heads: 8,
    head_dim: 128,
    vocab: 128_256,
    tied: false,
};

/// Small enough for the emulator.
pub(crate) const TINY: Shape = Shape {
    name: "tiny",
    hidden: 256,
    intermediate: 512,
    layers: 2,
    heads: 4,
    kv_heads: 2,
    head_dim: 64,
    vocab: 515,
    tied: false,
};

impl Shape {
    /// The same with fewer layers.
    pub(crate) fn with_layers(self, layers: u32) -> Self {
        Self { layers: layers.min(self.layers), ..self }
    }

    pub(crate) fn architecture(&self) -> Architecture {
        Architecture {
            hidden_size: self.hidden,
            intermediate_size: self.intermediate,
            num_layers: self.layers,
            num_heads: self.heads,
            num_kv_heads: self.kv_heads,
            head_dim: self.head_dim,
            vocab_size: self.vocab,
            max_position_embeddings: 16_384,
            tied_embeddings: self.tied,
            qk_norm: false,
            sandwich_norms: false,
            qkv_bias: false,
            o_bias: false,
            mlp_bias: false,
            activation: 1,
            rms_norm_eps: 1e-5,
            embedding_scale: 1.0,
            attention_scale: (self.head_dim as f32).sqrt().recip(),
            attn_logit_softcap: 0.0,
            final_logit_softcap: 0.0,
            sliding_window: 0,
            sliding_layers: [0; 8],
            rope_global: Rope { theta: 500_000.0, rope_dim: self.head_dim, ..Rope::default() },
            rope_local: Rope::default(),
            generation: Generation { top_p: 1.0, repetition_penalty: 1.0, ..Generation::default() },
        }
    }

    pub(crate) fn config(&self) -> Result<ModelConfig, Box<dyn Error>> {
        Ok(ModelConfig::try_from(&self.architecture())?)
    }

    /// Names, types and shapes of its tensors.
    pub(crate) fn tensors(&self, dtype: Dtype) -> Result<Vec<Tensor>, Box<dyn Error>> {
        let tensors = expected_tensors(&self.config()?).into_iter();
        let typed = |(name, dims): (String, Vec<u32>)| -> Tensor {
            (name, if dims.len() == 2 { dtype } else { Dtype::F32 }, dims)
        };
        Ok(tensors.map(typed).collect())
    }

    /// What a step costs at least: every matrix that is multiplied read once, as stored; K and V of every position that a
    /// sequence sees; two operations for each weight and token, four for each value of q and position it meets. The output
    /// matrix multiplies one token of each sequence.
    pub(crate) fn cost(
        &self,
        dtype: Dtype,
        sequences: usize,
        start: usize,
        tokens: usize,
        seconds: f64,
    ) -> Timed {
        let head = f64::from(self.head_dim);
        let (hidden, layers) = (f64::from(self.hidden), f64::from(self.layers));
        let (q, kv) = (f64::from(self.heads) * head, f64::from(self.kv_heads) * head);
        let layer = hidden * (2.0 * q + 2.0 * kv + 3.0 * f64::from(self.intermediate));
        let output = hidden * f64::from(self.vocab);
        let value_bytes = dtype.group_bytes() as f64 / dtype.group_len() as f64;
        let (n, tokens_each) = (sequences as f64, tokens as f64);
        let seen = positions_seen(start as u64, tokens as u64, None) as f64;
        Timed {
            bytes: (layers * layer + output) * value_bytes
                + n * layers * (start + tokens) as f64 * 2.0 * kv * 2.0,
            operations: 2.0 * n * (tokens_each * layers * layer + output)
                + n * layers * 4.0 * q * seen,
            seconds,
        }
    }
}

/// Random values of a type, as they are stored, cut so that rows of a matrix do not repeat.
pub(crate) struct Strip {
    matrix: Vec<u8>,
    vector: Vec<u8>,
}

impl Strip {
    /// Values within ±0.035, so that activations keep their size from layer to layer; norms within 0.1 of one.
    pub(crate) fn new(dtype: Dtype, bytes: usize) -> Result<Self, Box<dyn Error>> {
        let groups = (bytes / dtype.group_bytes()).max(1) | 1;
        let mut random = Random(dtype as u64 + 77);
        let values: Vec<f32> =
            (0..groups * dtype.group_len()).map(|_| 0.035 * random.value()).collect();
        let mut matrix = Vec::new();
        quant::quantize(dtype, &values, &mut matrix)?;
        let vector =
            (0..1 << 15).flat_map(|_| (1.0 + 0.1 * random.value()).to_le_bytes()).collect();
        Ok(Self { matrix, vector })
    }

    /// For a tensor of so many dimensions.
    pub(crate) fn of(&self, dims: usize) -> &[u8] {
        if dims == 2 { &self.matrix } else { &self.vector }
    }
}

/// What an upload took.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Uploaded {
    pub(crate) bytes: u64,
    pub(crate) seconds: f64,
    pub(crate) threads: usize,
}

/// Random weights on a device, as a loader of packages brings them: pieces, from several threads.
pub(crate) fn weights<D: Device>(
    device: &D,
    shape: &Shape,
    dtype: Dtype,
    strip: &Strip,
) -> Result<(Weights<D>, Uploaded), Box<dyn Error>> {
    let (config, tensors) = (shape.config()?, shape.tensors(dtype)?);
    let specs: Vec<_> = tensors
        .iter()
        .map(|(name, dtype, dims)| TensorSpec { name, dtype: *dtype as u16, dims })
        .collect();
    let begun = Instant::now();
    let loader = WeightLoader::new(device, &config, &specs)?;
    let mut pieces = Vec::new();
    let mut bytes = 0;
    for (index, (_, dtype, dims)) in tensors.iter().enumerate() {
        let values: usize = dims.iter().map(|dim| *dim as usize).product();
        let len = values / dtype.group_len() * dtype.group_bytes();
        let whole = strip.of(dims.len());
        pieces.extend(
            (0..len)
                .step_by(whole.len())
                .map(|at| (index, at, &whole[..whole.len().min(len - at)])),
        );
        bytes += len as u64;
    }
    let next = AtomicUsize::new(0);
    let threads = thread::available_parallelism().map_or(1, usize::from).min(16);
    let place = || {
        while let Some((index, at, piece)) = pieces.get(next.fetch_add(1, Ordering::Relaxed)) {
            loader.write(*index, *at as u64, piece).map_err(|error| error.to_string())?;
        }
        Ok::<(), String>(())
    };
    thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(place)).collect();
        workers.into_iter().try_for_each(|worker| {
            worker.join().unwrap_or_else(|_| Err("a thread that uploads panicked".to_owned()))
        })
    })?;
    let weights = loader.finish()?;
    device.finish()?;
    Ok((weights, Uploaded { bytes, seconds: begun.elapsed().as_secs_f64(), threads }))
}

/// A decoder with these weights.
pub(crate) fn decoder<D: Device>(
    device: &Arc<D>,
    shape: &Shape,
    weights: Weights<D>,
    limits: DecoderLimits,
) -> Result<Decoder<D>, Box<dyn Error>> {
    Ok(Decoder::new(device.clone(), shape.config()?, weights, limits)?)
}

/// Room for so many tokens of a step, rows of logits, and positions in all sequences.
pub(crate) fn room(
    max_tokens: usize,
    max_logit_rows: usize,
    positions: usize,
    cache_dtype: CacheDtype,
) -> DecoderLimits {
    DecoderLimits {
        max_tokens,
        max_logit_rows,
        num_blocks: positions.div_ceil(BLOCK),
        block_size: BLOCK,
        cache_dtype,
    }
}

/// `tokens` tokens from position `start` on of each of `sequences`, which all say the same, each in `blocks` blocks of its
/// own.
pub(crate) fn batch(
    shape: &Shape,
    sequences: usize,
    start: usize,
    tokens: usize,
    blocks: usize,
    want: WantLogits,
) -> Batch {
    let ids: Vec<u32> = (start..start + tokens).map(|i| token(shape, i)).collect();
    let mut batch = Batch::default();
    for sequence in 0..sequences {
        let table: Vec<u32> = (0..blocks).map(|i| (sequence * blocks + i) as u32).collect();
        batch.push(&ids, start as u32, &table, want);
    }
    batch
}

/// The token at a position of every sequence.
pub(crate) fn token(shape: &Shape, position: usize) -> u32 {
    ((position * 7919 + 13) % shape.vocab as usize) as u32
}

pub(crate) const BLOCK: usize = 16;
