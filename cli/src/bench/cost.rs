//! What a model's steps cost at least: weights read once, K and V of every position seen, two operations for each
//! weight that a token passes through and for each value of K and V that a query meets.

use chrysalis_kernels::device::CacheDtype;
use chrysalis_kernels::dtype::Dtype;
use chrysalis_kernels::profile::{Work, positions_seen};
use chrysalis_models::config::ModelConfig;
use chrysalis_protocol::package::Meta;
use serde::Serialize;

use crate::error::CliError;

/// The cost of a model, by its parts.
#[derive(Debug)]
pub struct ModelCost {
    /// Bytes of all tensors.
    pub weight_bytes: u64,
    /// Tokens of the vocabulary.
    pub vocab_size: u32,
    /// Matrices that every token passes through; operations are those of one token.
    layers: Work,
    /// The output matrix, which only tokens pass whose logits are wanted.
    output: Work,
    /// The window of each layer.
    windows: Vec<Option<usize>>,
    /// Values of a token's query heads.
    q_size: u64,
    /// Bytes of K and V of a position, in one layer.
    kv_bytes: u64,
}

/// The cost of a token at an empty context, its logits included, as it is reported.
#[derive(Debug, Serialize)]
pub struct PerToken {
    weight_bytes_per_token: u64,
    int8_operations_per_token: u64,
    bf16_operations_per_token: u64,
    f32_operations_per_token: u64,
    /// That are added to each layer's reading by every position of context.
    kv_bytes_per_position: u64,
}

impl ModelCost {
    /// The embedding counts only where it is also the output matrix.
    ///
    /// # Errors
    /// [`CliError`] when the architecture is not one that we run.
    pub fn new(meta: &Meta, cache: CacheDtype) -> Result<Self, CliError> {
        let a = &meta.architecture;
        let config = ModelConfig::try_from(a).map_err(chrysalis_runtime::load::LoadError::from)?;
        let (mut layers, mut output) = (Work::default(), Work::default());
        for tensor in &meta.tensors {
            let (&[rows, cols], Some(dtype)) = (&tensor.dims[..], Dtype::from_code(tensor.dtype))
            else {
                continue;
            };
            let part = match &*tensor.name {
                "output.weight" => &mut output,
                "token_embd.weight" if a.tied_embeddings => &mut output,
                "token_embd.weight" => continue,
                _ => &mut layers,
            };
            let operations = 2 * u64::from(rows) * u64::from(cols);
            *part += Work { stored_bytes: tensor.len, ..Work::default() }
                .with_operations(dtype, operations);
        }
        Ok(Self {
            weight_bytes: meta.tensors.iter().map(|tensor| tensor.len).sum(),
            vocab_size: a.vocab_size,
            layers,
            output,
            windows: (0..config.num_layers()).map(|layer| config.layer_window(layer)).collect(),
            q_size: u64::from(a.num_heads) * u64::from(a.head_dim),
            kv_bytes: 2 * u64::from(a.num_kv_heads) * cache.head_bytes(a.head_dim as usize) as u64,
        })
    }

    /// One pass over the weights in which each of `batch` sequences takes `tokens` tokens after `context` positions, and
    /// wants the logits of its last one.
    pub fn pass(&self, batch: u64, context: u64, tokens: u64) -> Work {
        let mut work = times(self.layers, batch * tokens);
        work += times(self.output, batch);
        for window in &self.windows {
            let first = window.map_or(0, |window| (context + 1).saturating_sub(window as u64));
            work.stored_bytes += batch * (context + tokens - first) * self.kv_bytes;
            work.f32 += batch * 4 * self.q_size * positions_seen(context, tokens, *window);
        }
        work
    }

    /// Bytes that a position takes in the KV cache, in all layers.
    pub fn kv_bytes_per_token(&self) -> u64 {
        self.windows.len() as u64 * self.kv_bytes
    }

    /// As it is reported.
    pub fn per_token(&self) -> PerToken {
        let mut work = self.layers;
        work += self.output;
        PerToken {
            weight_bytes_per_token: work.stored_bytes,
            int8_operations_per_token: work.int8,
            bf16_operations_per_token: work.bf16,
            f32_operations_per_token: work.f32,
            kv_bytes_per_position: self.kv_bytes_per_token(),
        }
    }
}

impl PerToken {
    /// For people.
    pub fn line(&self) -> String {
        let operations = self.int8_operations_per_token
            + self.bf16_operations_per_token
            + self.f32_operations_per_token;
        format!(
            "a token: {:.1} MB of weights, {:.1} MOP; {} bytes of K and V a position",
            self.weight_bytes_per_token as f64 / 1e6,
            operations as f64 / 1e6,
            self.kv_bytes_per_position
        )
    }
}

/// The same bytes, and the operations of `tokens` tokens.
fn times(work: Work, tokens: u64) -> Work {
    let Work { int8, bf16, f32, .. } = work;
    Work { int8: int8 * tokens, bf16: bf16 * tokens, f32: f32 * tokens, ..work }
}
