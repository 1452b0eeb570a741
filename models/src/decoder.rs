//! The one forward pass: Llama, Mistral, Qwen 2 and 3, Gemma 2 and 3, each of them only data.

use std::sync::Arc;

use chrysalis_kernels::batch::{Batch, WantLogits};
use chrysalis_kernels::device::{
    CacheDtype, CacheShape, Crossings, Device, DeviceError, Input, Rows,
};
use chrysalis_kernels::sampling::{Draw, Edit};

use crate::attention::{Attention, LayerCall};
use crate::config::ModelConfig;
use crate::layout::Layout;
pub use crate::limits::BatchError;
use crate::limits::check_batch;
use crate::mlp::Mlp;
use crate::weights::Weights;

/// What a decoder reserves when it is made; nothing is reserved later.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DecoderLimits {
    /// Tokens of a step.
    pub max_tokens: usize,
    /// Rows of logits of a step.
    pub max_logit_rows: usize,
    /// Blocks of the KV cache, shared by all sequences.
    pub num_blocks: usize,
    /// Positions in a block.
    pub block_size: usize,
    /// Element type of the KV cache.
    pub cache_dtype: CacheDtype,
}

/// Why a step was not made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// The batch is not one that this decoder can take.
    #[error(transparent)]
    Batch(#[from] BatchError),
    /// Logits were asked for that the last step did not make.
    #[error("logits {index} of {rows} were asked for")]
    LogitRow {
        /// Row asked for.
        index: usize,
        /// Rows of the last step.
        rows: usize,
    },
    /// More or fewer tokens were asked for than the last step has draws.
    #[error("{expected} draws do not give {found} tokens")]
    Draws {
        /// Draws of the last step.
        expected: usize,
        /// Room given.
        found: usize,
    },
    /// A row of logits has another length.
    #[error("a row of {expected} logits does not fit {found} values")]
    LogitLength {
        /// Tokens of the vocabulary.
        expected: usize,
        /// Room given.
        found: usize,
    },
    /// A limit that leaves no room for any step.
    #[error("the limit {0} is zero")]
    Limit(&'static str),
    /// The device failed.
    #[error(transparent)]
    Device(#[from] DeviceError),
}

/// A decoder on some device, as the engine sees it.
pub trait Model: Send {
    /// Tokens of the vocabulary: the length of a row of logits.
    fn vocab_size(&self) -> usize;

    /// Positions that a sequence can have.
    fn max_positions(&self) -> usize;

    /// What was reserved.
    fn limits(&self) -> &DecoderLimits;

    /// Enqueues one step: K and V of every token go to the cache, and logits of the rows that the
    /// batch wants become available to [`Self::logits`]. Allocates nothing.
    ///
    /// # Errors
    /// [`ModelError::Batch`] before anything is done.
    fn forward(&mut self, batch: &Batch) -> Result<(), ModelError>;

    /// Waits, and copies the logits of `batch.logit_rows[index]` of the last step, `[vocab_size]`.
    ///
    /// # Errors
    /// [`ModelError::LogitRow`], [`ModelError::LogitLength`], [`ModelError::Device`].
    fn logits(&self, index: usize, out: &mut [f32]) -> Result<(), ModelError>;

    /// Waits, and chooses the token of each of the draws of the last step's batch, as [`chrysalis_kernels::sampling`] says;
    /// nothing where a logit is infinite or not a number. Once for a step. `out` has a place for each.
    ///
    /// # Errors
    /// [`ModelError::Draws`], [`ModelError::Device`].
    fn sample(&mut self, out: &mut [Option<u32>]) -> Result<(), ModelError>;

    /// Zeroes freed blocks in every layer, before another sequence gets them.
    ///
    /// # Errors
    /// [`ModelError::Batch`] for a block that does not exist.
    fn clear_blocks(&mut self, blocks: &[u32]) -> Result<(), ModelError>;

    /// The decoder and its device, for people.
    fn describe(&self) -> String;

    /// What went between host and device so far, where they are two.
    fn crossings(&self) -> Option<Crossings> {
        None
    }
}

/// A decoder whose weights, cache and activations live on device `D`.
#[derive(Debug)]
pub struct Decoder<D: Device> {
    device: Arc<D>,
    config: ModelConfig,
    limits: DecoderLimits,
    max_positions: usize,
    weights: Weights<D>,
    rope_global: D::Rope,
    rope_local: Option<D::Rope>,
    cache: D::Cache,
    step: D::Step,
    attention: Attention<D>,
    mlp: Mlp<D>,
    hidden: Hidden<D>,
    head: Head<D>,
    logit_rows: usize,
    draws: usize,
}

/// The residual stream and what is on its way into it, `[max_tokens, hidden_size]` each.
#[derive(Debug)]
struct Hidden<D: Device> {
    /// Sum of everything so far.
    sum: D::Buffer,
    /// Output of a part.
    output: D::Buffer,
}

/// From the residual stream to logits, only for the rows that want them.
#[derive(Debug)]
struct Head<D: Device> {
    /// `[max_logit_rows, hidden_size]`.
    selected: D::Buffer,
    /// `[max_logit_rows, vocab_size]`.
    logits: D::Buffer,
}

impl<D: Device> Decoder<D> {
    /// Reserves everything that steps within `limits` need.
    ///
    /// # Errors
    /// [`ModelError::Limit`], [`ModelError::Device`] when the device has no room.
    pub fn new(
        device: Arc<D>,
        config: ModelConfig,
        weights: Weights<D>,
        limits: DecoderLimits,
    ) -> Result<Self, ModelError> {
        for (name, limit) in [
            ("max_tokens", limits.max_tokens),
            ("max_logit_rows", limits.max_logit_rows),
            ("num_blocks", limits.num_blocks),
            ("block_size", limits.block_size),
        ] {
            if limit == 0 {
                return Err(ModelError::Limit(name));
            }
        }
        let (tokens, hidden) = (limits.max_tokens, config.hidden_size);
        let max_positions =
            config.max_positions.min(limits.num_blocks.saturating_mul(limits.block_size));
        let d = &*device;
        let mut decoder = Self {
            max_positions,
            rope_global: d.rope(&config.rope_global.params(max_positions))?,
            rope_local: match &config.sliding {
                Some(sliding) => Some(d.rope(&sliding.rope.params(max_positions))?),
                None => None,
            },
            cache: d.cache(cache_shape(&config, &limits))?,
            step: d.step(tokens)?,
            attention: Attention::new(d, &config, tokens)?,
            mlp: Mlp::new(d, &config, tokens)?,
            hidden: Hidden { sum: d.buffer(tokens, hidden)?, output: d.buffer(tokens, hidden)? },
            head: Head {
                selected: d.buffer(limits.max_logit_rows, hidden)?,
                logits: d.buffer(limits.max_logit_rows, config.vocab_size)?,
            },
            logit_rows: 0,
            draws: 0,
            device,
            config,
            limits,
            weights,
        };
        decoder.plan()?;
        Ok(decoder)
    }

    /// Shows the device the largest steps, so that what they need is reserved before the first one: prompts as long as a step
    /// is, and one token each of more and more sequences, all at the last position.
    fn plan(&mut self) -> Result<(), ModelError> {
        let device = Arc::clone(&self.device);
        let last = u32::try_from(self.max_positions.saturating_sub(1)).unwrap_or(u32::MAX);
        let whole = self.limits.max_tokens.min(self.max_positions);
        let most = self.limits.max_tokens.min(self.limits.max_logit_rows);
        device.plan(|| {
            let mut batch = Batch::default();
            batch.push(&vec![0; whole], last + 1 - whole as u32, &[], WantLogits::Last);
            self.enqueue(&batch);
            let powers = (0..).map(|n| 1usize << n).take_while(|n| *n < most);
            for sequences in powers.chain([most]) {
                batch.clear();
                for _ in 0..sequences {
                    batch.push(&[0], last, &[], WantLogits::Last);
                }
                self.enqueue(&batch);
            }
            for row in 0..most as u32 {
                let draw = Draw { temperature: 1.0, top_k: 1, top_p: 0.5, ..Draw::greedy(row) };
                batch.draws.push(draw, &[Edit::none(0)]);
            }
            self.device.set_step(&mut self.step, &batch);
            // What it needs is reserved, or the plan fails.
            drop(self.device.sample(&self.step, &mut self.head.logits, &mut vec![None; most]));
        })?;
        Ok(())
    }

    /// One step that is within the limits.
    fn enqueue(&mut self, batch: &Batch) {
        let rows = Rows { tokens: batch.num_tokens(), logits: batch.logit_rows.len() };
        let limits = &self.limits;
        let room = Rows { tokens: limits.max_tokens, logits: limits.max_logit_rows };
        self.device.set_step(&mut self.step, batch);
        let Some(rows) = self.device.begin(&mut self.step, rows, room) else {
            return;
        };
        self.device.embed(
            &self.step,
            &self.weights.embedding,
            self.config.embedding_scale,
            &mut self.hidden.sum,
        );
        for index in 0..self.config.num_layers {
            self.layer(index, rows.tokens);
        }
        if rows.logits > 0 {
            self.output(rows.logits);
        }
        self.device.end(&mut self.step);
    }

    /// Layer `index`: attention and MLP, each normalised on its way in, and on its way out too where
    /// the model has sandwich norms, and added to the residual stream.
    fn layer(&mut self, index: usize, rows: usize) {
        let (d, eps) = (&*self.device, self.config.rms_norm_eps);
        let Some(weights) = self.weights.layers.get(index) else {
            return;
        };
        let Hidden { sum, output } = &mut self.hidden;
        let window = self.config.layer_window(index);
        let local = self.rope_local.as_ref().filter(|_| window.is_some());

        let call = LayerCall {
            index,
            rows,
            window,
            rope: local.unwrap_or(&self.rope_global),
            step: &self.step,
            weights: &weights.attention,
            config: &self.config,
        };
        let input = Input::Normed { x: sum, weight: &weights.attn_norm, eps };
        self.attention.forward(d, &call, &mut self.cache, input, output);
        d.add(rows, normed(output, weights.post_attention_norm.as_ref(), eps), sum);

        let input = Input::Normed { x: sum, weight: &weights.ffn_norm, eps };
        self.mlp.forward(d, rows, &weights.mlp, self.config.activation, input, output);
        d.add(rows, normed(output, weights.post_ffw_norm.as_ref(), eps), sum);
    }

    /// The final norm and the output matrix, on the `rows` that want logits.
    fn output(&mut self, rows: usize) {
        let (d, config) = (&*self.device, &self.config);
        let Layout { embedding, output, output_norm, .. } = &self.weights;
        let Head { selected, logits } = &mut self.head;
        d.select(&self.step, &self.hidden.sum, selected);
        let input = Input::Normed { x: selected, weight: output_norm, eps: config.rms_norm_eps };
        d.logits(rows, input, output.as_ref().unwrap_or(embedding), logits);
        if let Some(cap) = config.final_logit_softcap {
            d.softcap(rows, cap, logits);
        }
    }
}

impl<D: Device> Model for Decoder<D> {
    fn vocab_size(&self) -> usize {
        self.config.vocab_size
    }

    fn max_positions(&self) -> usize {
        self.max_positions
    }

    fn limits(&self) -> &DecoderLimits {
        &self.limits
    }

    fn forward(&mut self, batch: &Batch) -> Result<(), ModelError> {
        (self.logit_rows, self.draws) = (0, 0);
        check_batch(batch, &self.limits, self.config.vocab_size, self.max_positions)?;
        if batch.num_tokens() > 0 {
            self.enqueue(batch);
            (self.logit_rows, self.draws) = (batch.logit_rows.len(), batch.draws.len());
        }
        Ok(())
    }

    fn logits(&self, index: usize, out: &mut [f32]) -> Result<(), ModelError> {
        if index >= self.logit_rows {
            return Err(ModelError::LogitRow { index, rows: self.logit_rows });
        }
        if out.len() != self.config.vocab_size {
            return Err(ModelError::LogitLength {
                expected: self.config.vocab_size,
                found: out.len(),
            });
        }
        Ok(self.device.download(&self.head.logits, index, out)?)
    }

    fn sample(&mut self, out: &mut [Option<u32>]) -> Result<(), ModelError> {
        let expected = std::mem::take(&mut self.draws);
        if out.len() != expected {
            return Err(ModelError::Draws { expected, found: out.len() });
        }
        Ok(self.device.sample(&self.step, &mut self.head.logits, out)?)
    }

    fn clear_blocks(&mut self, blocks: &[u32]) -> Result<(), ModelError> {
        let limit = self.limits.num_blocks;
        if let Some(&block) = blocks.iter().find(|&&block| block as usize >= limit) {
            return Err(BatchError::Block { block, limit }.into());
        }
        self.device.clear_blocks(&mut self.cache, blocks);
        Ok(())
    }

    fn describe(&self) -> String {
        let ModelConfig { num_layers, hidden_size, vocab_size, .. } = &self.config;
        format!(
            "{num_layers} layers of {hidden_size}, {vocab_size} tokens, on {}",
            self.device.describe()
        )
    }

    fn crossings(&self) -> Option<Crossings> {
        self.device.crossings()
    }
}

/// What a part adds to the residual stream: its output, normalised where the model has a norm there.
fn normed<'a, D: Device>(x: &'a D::Buffer, norm: Option<&'a D::Vector>, eps: f32) -> Input<'a, D> {
    norm.map_or(Input::Rows(x), |weight| Input::Normed { x, weight, eps })
}

fn cache_shape(config: &ModelConfig, limits: &DecoderLimits) -> CacheShape {
    CacheShape {
        num_layers: config.num_layers,
        num_blocks: limits.num_blocks,
        block_size: limits.block_size,
        num_kv_heads: config.num_kv_heads,
        head_dim: config.head_dim,
        dtype: limits.cache_dtype,
    }
}
