//! The architecture block of a meta: a decoder as 60 numbers in 512 bytes (docs/formats.md, 2).
//!
//! This file proves only the encoding: known numbers, finite floats, zero where nothing is. That
//! the numbers make a model is for `models::config` to say.

use super::error::MetaError;
use crate::codec::{Reader, Writer};

/// What a decoder computes, apart from its weights. Layout: big-endian `u32` words in the order of
/// the fields, floats as their bits, zeros to 512 bytes.
#[derive(Clone, Debug, PartialEq)]
pub struct Architecture {
    /// Width of the residual stream.
    pub hidden_size: u32,
    /// Width inside the feed-forward block.
    pub intermediate_size: u32,
    /// Number of layers, at most 256.
    pub num_layers: u32,
    /// Query heads.
    pub num_heads: u32,
    /// Key and value heads.
    pub num_kv_heads: u32,
    /// Width of a head.
    pub head_dim: u32,
    /// Number of token ids.
    pub vocab_size: u32,
    /// Longest sequence that the model was made for.
    pub max_position_embeddings: u32,
    /// The output projection is the embedding.
    pub tied_embeddings: bool,
    /// Queries and keys are normed for each head.
    pub qk_norm: bool,
    /// Norms also stand behind attention and feed-forward (Gemma).
    pub sandwich_norms: bool,
    /// Query, key and value projections have biases.
    pub qkv_bias: bool,
    /// The output projection of attention has a bias.
    pub o_bias: bool,
    /// The feed-forward projections have biases.
    pub mlp_bias: bool,
    /// Non-linearity of the gate: 1 SiLU, 2 GELU by tanh, 3 GELU by the error function.
    pub activation: u32,
    /// Epsilon of every norm.
    pub rms_norm_eps: f32,
    /// Factor on embeddings; 1 is none.
    pub embedding_scale: f32,
    /// Factor on attention scores.
    pub attention_scale: f32,
    /// Soft cap of attention scores; 0 is none.
    pub attn_logit_softcap: f32,
    /// Soft cap of logits; 0 is none.
    pub final_logit_softcap: f32,
    /// Positions that a windowed layer sees; 0 is none.
    pub sliding_window: u32,
    /// Bit `i` of word `i / 32` (`i % 32`, lowest first): layer `i` has the window and `rope_local`.
    pub sliding_layers: [u32; 8],
    /// Rotary embedding of layers that see everything.
    pub rope_global: Rope,
    /// Rotary embedding of windowed layers.
    pub rope_local: Rope,
    /// What holds when a request names no option.
    pub generation: Generation,
}

/// A rotary embedding. Fields that the kind does not use are zero.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Rope {
    /// How frequencies are changed for long sequences: 0 not, 1 linear, 2 Llama 3, 3 YaRN.
    pub kind: u32,
    /// Base.
    pub theta: f32,
    /// Factor by which the context was stretched.
    pub factor: f32,
    /// Llama 3's low end.
    pub low_freq_factor: f32,
    /// Llama 3's high end.
    pub high_freq_factor: f32,
    /// Context before stretching.
    pub original_max_position: u32,
    /// YaRN's fast end.
    pub beta_fast: f32,
    /// YaRN's slow end.
    pub beta_slow: f32,
    /// YaRN's factor on scores; 0 derives it.
    pub attention_factor: f32,
    /// Values of a head that turn.
    pub rope_dim: u32,
}

/// What holds when a request names no option.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Generation {
    /// The token that opens a sequence.
    pub bos_token_id: Option<u32>,
    /// The tokens that end one, at most 8.
    pub eos_token_ids: Vec<u32>,
    /// Sampling temperature; 0 is greedy.
    pub temperature: f32,
    /// Nucleus; 1 is off.
    pub top_p: f32,
    /// Least share of the best token's probability; 0 is off.
    pub min_p: f32,
    /// Penalty of tokens that occurred; 1 is off.
    pub repetition_penalty: f32,
    /// Best tokens kept; 0 is off.
    pub top_k: u32,
}

impl Architecture {
    /// Bytes of the block.
    pub const LEN: usize = 512;
    /// Most layers.
    pub const LAYERS_MAX: u32 = 256;

    /// The block.
    ///
    /// # Errors
    /// What [`Self::from_bytes`] would refuse.
    pub fn to_bytes(&self) -> Result<[u8; Self::LEN], MetaError> {
        let mut out = Writer::with_capacity(Self::LEN);
        out.u32(VERSION).u32(self.flags());
        out.u32(self.hidden_size).u32(self.intermediate_size).u32(self.num_layers);
        out.u32(self.num_heads).u32(self.num_kv_heads).u32(self.head_dim);
        out.u32(self.vocab_size).u32(self.max_position_embeddings);
        out.u32(self.activation);
        out.f32(self.rms_norm_eps).f32(self.embedding_scale).f32(self.attention_scale);
        out.f32(self.attn_logit_softcap).f32(self.final_logit_softcap);
        out.u32(self.sliding_window);
        for word in self.sliding_layers {
            out.u32(word);
        }
        self.rope_global.write(&mut out);
        self.rope_local.write(&mut out);
        self.generation.write(&mut out)?;
        let bytes = out.into_array();
        Self::from_bytes(&bytes)?;
        Ok(bytes)
    }

    /// Reads the block.
    ///
    /// # Errors
    /// [`MetaError`], naming the field.
    pub fn from_bytes(bytes: &[u8; Self::LEN]) -> Result<Self, MetaError> {
        let input = &mut Reader::new(bytes);
        let version = input.u32()?;
        if version != VERSION {
            return Err(MetaError::Version { found: version, expected: VERSION });
        }
        let flags = input.u32()?;
        if flags & !FLAGS_KNOWN != 0 {
            return Err(MetaError::Flags { found: flags, known: FLAGS_KNOWN });
        }
        let has = |flag: u32| flags & flag != 0;
        let architecture = Self {
            tied_embeddings: has(TIED_EMBEDDINGS),
            qk_norm: has(QK_NORM),
            sandwich_norms: has(SANDWICH_NORMS),
            qkv_bias: has(QKV_BIAS),
            o_bias: has(O_BIAS),
            mlp_bias: has(MLP_BIAS),
            hidden_size: input.u32()?,
            intermediate_size: input.u32()?,
            num_layers: known("num_layers", input.u32()?, 1, Self::LAYERS_MAX)?,
            num_heads: input.u32()?,
            num_kv_heads: input.u32()?,
            head_dim: input.u32()?,
            vocab_size: input.u32()?,
            max_position_embeddings: input.u32()?,
            activation: known("activation", input.u32()?, 1, 3)?,
            rms_norm_eps: finite("rms_norm_eps", input)?,
            embedding_scale: finite("embedding_scale", input)?,
            attention_scale: finite("attention_scale", input)?,
            attn_logit_softcap: finite("attn_logit_softcap", input)?,
            final_logit_softcap: finite("final_logit_softcap", input)?,
            sliding_window: input.u32()?,
            sliding_layers: words(input)?,
            rope_global: Rope::read(input)?,
            rope_local: Rope::read(input)?,
            generation: Generation::read(input, has(HAS_BOS))?,
        };
        input.zeros(input.left())?;
        architecture.check_sliding_layers()?;
        Ok(architecture)
    }

    /// Whether layer `layer` sees only the window.
    #[must_use]
    pub fn is_sliding(&self, layer: u32) -> bool {
        let word = usize::try_from(layer >> 5).ok().and_then(|at| self.sliding_layers.get(at));
        word.is_some_and(|word| word >> (layer & 31) & 1 == 1)
    }

    const fn flags(&self) -> u32 {
        let mut flags = 0;
        flags |= if self.tied_embeddings { TIED_EMBEDDINGS } else { 0 };
        flags |= if self.qk_norm { QK_NORM } else { 0 };
        flags |= if self.sandwich_norms { SANDWICH_NORMS } else { 0 };
        flags |= if self.qkv_bias { QKV_BIAS } else { 0 };
        flags |= if self.o_bias { O_BIAS } else { 0 };
        flags |= if self.mlp_bias { MLP_BIAS } else { 0 };
        flags | if self.generation.bos_token_id.is_some() { HAS_BOS } else { 0 }
    }

    fn check_sliding_layers(&self) -> Result<(), MetaError> {
        if (self.num_layers..Self::LAYERS_MAX).any(|layer| self.is_sliding(layer)) {
            return Err(MetaError::AbsentNotZero { field: "sliding_layers" });
        }
        Ok(())
    }
}

impl Rope {
    fn write(&self, out: &mut Writer) {
        out.u32(self.kind);
        out.f32(self.theta).f32(self.factor);
        out.f32(self.low_freq_factor).f32(self.high_freq_factor);
        out.u32(self.original_max_position);
        out.f32(self.beta_fast).f32(self.beta_slow).f32(self.attention_factor);
        out.u32(self.rope_dim);
    }

    fn read(input: &mut Reader<'_>) -> Result<Self, MetaError> {
        Ok(Self {
            kind: known("rope kind", input.u32()?, 0, 3)?,
            theta: finite("rope theta", input)?,
            factor: finite("rope factor", input)?,
            low_freq_factor: finite("rope low_freq_factor", input)?,
            high_freq_factor: finite("rope high_freq_factor", input)?,
            original_max_position: input.u32()?,
            beta_fast: finite("rope beta_fast", input)?,
            beta_slow: finite("rope beta_slow", input)?,
            attention_factor: finite("rope attention_factor", input)?,
            rope_dim: input.u32()?,
        })
    }
}

impl Generation {
    /// Most tokens that end a sequence.
    pub const EOS_MAX: usize = 8;

    fn write(&self, out: &mut Writer) -> Result<(), MetaError> {
        let count = u32::try_from(self.eos_token_ids.len()).unwrap_or(u32::MAX);
        known("number of eos_token_ids", count, 0, EOS_MAX)?;
        out.u32(self.bos_token_id.unwrap_or(0)).u32(count);
        for slot in 0..Self::EOS_MAX {
            out.u32(self.eos_token_ids.get(slot).copied().unwrap_or(0));
        }
        out.f32(self.temperature).f32(self.top_p).f32(self.min_p).f32(self.repetition_penalty);
        out.u32(self.top_k);
        Ok(())
    }

    fn read(input: &mut Reader<'_>, has_bos: bool) -> Result<Self, MetaError> {
        let bos = input.u32()?;
        if !has_bos && bos != 0 {
            return Err(MetaError::AbsentNotZero { field: "bos_token_id" });
        }
        let count = known("number of eos_token_ids", input.u32()?, 0, EOS_MAX)?;
        let slots: [u32; Self::EOS_MAX] = words(input)?;
        let count = usize::try_from(count).unwrap_or(Self::EOS_MAX);
        let (used, unused) = slots.split_at_checked(count).unwrap_or((&slots, &[]));
        if unused.iter().any(|&id| id != 0) {
            return Err(MetaError::AbsentNotZero { field: "eos_token_ids" });
        }
        Ok(Self {
            bos_token_id: has_bos.then_some(bos),
            eos_token_ids: used.to_vec(),
            temperature: finite("temperature", input)?,
            top_p: finite("top_p", input)?,
            min_p: finite("min_p", input)?,
            repetition_penalty: finite("repetition_penalty", input)?,
            top_k: input.u32()?,
        })
    }
}

const fn known(field: &'static str, found: u32, min: u32, max: u32) -> Result<u32, MetaError> {
    if min <= found && found <= max {
        Ok(found)
    } else {
        Err(MetaError::Range { field, found, min, max })
    }
}

/// A finite number. Negative zero is refused: it equals zero, and one value has one encoding.
fn finite(field: &'static str, input: &mut Reader<'_>) -> Result<f32, MetaError> {
    let found = input.f32()?;
    if found.is_finite() && found.to_bits() != (-0.0_f32).to_bits() {
        Ok(found)
    } else {
        Err(MetaError::Float { field, found })
    }
}

fn words<const N: usize>(input: &mut Reader<'_>) -> Result<[u32; N], MetaError> {
    let mut words = [0; N];
    for word in &mut words {
        *word = input.u32()?;
    }
    Ok(words)
}

const VERSION: u32 = 1;
const EOS_MAX: u32 = 8;
const TIED_EMBEDDINGS: u32 = 1;
const QK_NORM: u32 = 1 << 1;
const SANDWICH_NORMS: u32 = 1 << 2;
const QKV_BIAS: u32 = 1 << 3;
const O_BIAS: u32 = 1 << 4;
const MLP_BIAS: u32 = 1 << 5;
const HAS_BOS: u32 = 1 << 6;
const FLAGS_KNOWN: u32 = (1 << 7) - 1;
