//! `ModelConfig`: the checked form of [`Architecture`], one struct for every decoder we run.

use chrysalis_kernels::device::Activation;
use chrysalis_protocol::package::{Architecture, Generation};

use crate::rope::RopeConfig;
pub use crate::rope::RopeError;

/// Why an architecture is not one that the decoder can run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// A whole number outside its limits.
    #[error("{field} is {value}, outside {min}..={max}")]
    Range {
        /// Field of [`Architecture`].
        field: &'static str,
        /// What it says.
        value: u32,
        /// Least that is allowed.
        min: u32,
        /// Most that is allowed.
        max: u32,
    },
    /// A number that is not finite, or has the wrong sign.
    #[error("{field} is {value}, not {expected}")]
    Float {
        /// Field of [`Architecture`].
        field: &'static str,
        /// What it says.
        value: f32,
        /// What it should have been.
        expected: &'static str,
    },
    /// Query heads that do not divide evenly among the KV heads.
    #[error("{num_heads} query heads do not divide among {num_kv_heads} kv heads")]
    HeadGroups {
        /// Query heads.
        num_heads: u32,
        /// KV heads.
        num_kv_heads: u32,
    },
    /// A layer is marked as sliding that does not exist.
    #[error("layer {layer} of {num_layers} is marked as sliding")]
    SlidingLayer {
        /// The layer marked.
        layer: usize,
        /// Layers of the decoder.
        num_layers: usize,
    },
    /// Some layers slide, but there is no window, or the other way round.
    #[error("the sliding window is {window} and {layers} layers use it")]
    SlidingWindow {
        /// Positions of the window.
        window: u32,
        /// Layers marked as sliding.
        layers: usize,
    },
    /// A rotary embedding that cannot be computed.
    #[error("the rotary embedding of {layers} layers: {error}")]
    Rope {
        /// `global` or `local`.
        layers: &'static str,
        /// What is wrong with it.
        error: RopeError,
    },
}

/// A decoder that [`crate::decoder::Decoder`] can run. Made only from an [`Architecture`] that
/// passed every check, so its fields are read without doubt.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    pub(crate) hidden_size: usize,
    pub(crate) intermediate_size: usize,
    pub(crate) num_layers: usize,
    pub(crate) num_heads: usize,
    pub(crate) num_kv_heads: usize,
    pub(crate) head_dim: usize,
    pub(crate) vocab_size: usize,
    pub(crate) max_positions: usize,
    pub(crate) tied_embeddings: bool,
    pub(crate) qk_norm: bool,
    pub(crate) sandwich_norms: bool,
    pub(crate) qkv_bias: bool,
    pub(crate) o_bias: bool,
    pub(crate) mlp_bias: bool,
    pub(crate) activation: Activation,
    pub(crate) rms_norm_eps: f32,
    pub(crate) embedding_scale: f32,
    pub(crate) attention_scale: f32,
    pub(crate) attn_logit_softcap: Option<f32>,
    pub(crate) final_logit_softcap: Option<f32>,
    pub(crate) sliding: Option<Sliding>,
    pub(crate) rope_global: RopeConfig,
    generation: Generation,
}

/// The layers that see only the last positions, and their rotary embedding.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Sliding {
    /// A token sees itself and `window - 1` positions before it.
    pub(crate) window: usize,
    /// Rotary embedding of these layers.
    pub(crate) rope: RopeConfig,
    /// Bit `i % 32` of word `i / 32`: layer `i` slides.
    layers: [u32; 8],
}

impl ModelConfig {
    /// Tokens of the vocabulary: the length of a row of logits.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// Positions the model was made for.
    pub fn max_positions(&self) -> usize {
        self.max_positions
    }

    /// Layers of the decoder.
    pub fn num_layers(&self) -> usize {
        self.num_layers
    }

    /// Values that one position adds to the KV cache, over all layers, K and V.
    pub fn cache_values_per_token(&self) -> usize {
        2 * self.num_layers * self.num_kv_heads * self.head_dim
    }

    /// The window of layer `layer`, where it slides.
    pub fn layer_window(&self, layer: usize) -> Option<usize> {
        self.sliding
            .as_ref()
            .filter(|sliding| is_marked(&sliding.layers, layer))
            .map(|sliding| sliding.window)
    }

    /// Special tokens, and what to sample with where a request does not say.
    pub fn generation(&self) -> &Generation {
        &self.generation
    }

    /// Width of all query heads together.
    pub(crate) fn q_size(&self) -> usize {
        self.num_heads * self.head_dim
    }

    /// Width of all heads of K, and of V, together.
    pub(crate) fn kv_size(&self) -> usize {
        self.num_kv_heads * self.head_dim
    }
}

impl TryFrom<&Architecture> for ModelConfig {
    type Error = ConfigError;

    fn try_from(a: &Architecture) -> Result<Self, ConfigError> {
        let num_layers = range("num_layers", a.num_layers, 1, 256)?;
        let head_dim = range("head_dim", a.head_dim, 2, HEAD_DIM_MAX)?;
        let vocab_size = range("vocab_size", a.vocab_size, 1, VOCAB_MAX)?;
        let max_positions =
            range("max_position_embeddings", a.max_position_embeddings, 1, POSITIONS_MAX)?;
        let num_heads = range("num_heads", a.num_heads, 1, HEADS_MAX)?;
        let num_kv_heads = range("num_kv_heads", a.num_kv_heads, 1, a.num_heads)?;
        if !num_heads.is_multiple_of(num_kv_heads) {
            return Err(ConfigError::HeadGroups {
                num_heads: a.num_heads,
                num_kv_heads: a.num_kv_heads,
            });
        }
        let rope = |layers, rope| {
            RopeConfig::new(rope, head_dim, max_positions)
                .map_err(|error| ConfigError::Rope { layers, error })
        };
        Ok(Self {
            hidden_size: range("hidden_size", a.hidden_size, 1, HIDDEN_MAX)?,
            intermediate_size: range(
                "intermediate_size",
                a.intermediate_size,
                1,
                INTERMEDIATE_MAX,
            )?,
            num_layers,
            num_heads,
            num_kv_heads,
            head_dim,
            vocab_size,
            max_positions,
            tied_embeddings: a.tied_embeddings,
            qk_norm: a.qk_norm,
            sandwich_norms: a.sandwich_norms,
            qkv_bias: a.qkv_bias,
            o_bias: a.o_bias,
            mlp_bias: a.mlp_bias,
            activation: activation(a.activation)?,
            rms_norm_eps: positive("rms_norm_eps", a.rms_norm_eps)?,
            embedding_scale: positive("embedding_scale", a.embedding_scale)?,
            attention_scale: positive("attention_scale", a.attention_scale)?,
            attn_logit_softcap: softcap("attn_logit_softcap", a.attn_logit_softcap)?,
            final_logit_softcap: softcap("final_logit_softcap", a.final_logit_softcap)?,
            sliding: match check_sliding(a, num_layers)? {
                None => None,
                Some(window) => Some(Sliding {
                    window,
                    rope: rope("local", &a.rope_local)?,
                    layers: a.sliding_layers,
                }),
            },
            rope_global: rope("global", &a.rope_global)?,
            generation: check_generation(&a.generation, a.vocab_size)?,
        })
    }
}

/// The window, where at least one layer uses it.
fn check_sliding(a: &Architecture, num_layers: usize) -> Result<Option<usize>, ConfigError> {
    let layers_max = a.sliding_layers.len() * 32;
    if let Some(layer) = (num_layers..layers_max).find(|&layer| is_marked(&a.sliding_layers, layer))
    {
        return Err(ConfigError::SlidingLayer { layer, num_layers });
    }
    let layers = (0..num_layers).filter(|&layer| is_marked(&a.sliding_layers, layer)).count();
    match (a.sliding_window, layers) {
        (0, 0) => Ok(None),
        (0, _) | (_, 0) => Err(ConfigError::SlidingWindow { window: a.sliding_window, layers }),
        (window, _) => Ok(Some(window as usize)),
    }
}

fn check_generation(generation: &Generation, vocab_size: u32) -> Result<Generation, ConfigError> {
    let ids = generation.bos_token_id.iter().chain(&generation.eos_token_ids);
    for &id in ids {
        range("a special token", id, 0, vocab_size - 1)?;
    }
    for (field, value) in [
        ("temperature", generation.temperature),
        ("top_p", generation.top_p),
        ("min_p", generation.min_p),
        ("repetition_penalty", generation.repetition_penalty),
    ] {
        if !value.is_finite() || value < 0.0 {
            return Err(ConfigError::Float { field, value, expected: "finite and at least 0" });
        }
    }
    Ok(generation.clone())
}

fn is_marked(layers: &[u32; 8], layer: usize) -> bool {
    layers.get(layer / 32).is_some_and(|word| word >> (layer % 32) & 1 == 1)
}

fn range(field: &'static str, value: u32, min: u32, max: u32) -> Result<usize, ConfigError> {
    if (min..=max).contains(&value) {
        Ok(value as usize)
    } else {
        Err(ConfigError::Range { field, value, min, max })
    }
}

fn positive(field: &'static str, value: f32) -> Result<f32, ConfigError> {
    if value.is_finite() && value > 0.0 {
        Ok(value)
    } else {
        Err(ConfigError::Float { field, value, expected: "finite and above 0" })
    }
}

fn softcap(field: &'static str, value: f32) -> Result<Option<f32>, ConfigError> {
    if value == 0.0 { Ok(None) } else { positive(field, value).map(Some) }
}

fn activation(code: u32) -> Result<Activation, ConfigError> {
    match code {
        1 => Ok(Activation::Silu),
        2 => Ok(Activation::GeluTanh),
        3 => Ok(Activation::GeluErf),
        value => Err(ConfigError::Range { field: "activation", value, min: 1, max: 3 }),
    }
}

/// Limits that keep every product of sizes far from overflow and every reservation sane.
const HIDDEN_MAX: u32 = 1 << 16;
const INTERMEDIATE_MAX: u32 = 1 << 20;
const HEADS_MAX: u32 = 1 << 10;
const HEAD_DIM_MAX: u32 = 1 << 10;
const VOCAB_MAX: u32 = 1 << 21;
const POSITIONS_MAX: u32 = 1 << 24;

#[cfg(test)]
pub(crate) mod tests {
    use chrysalis_protocol::package::Rope;

    use super::*;

    /// Two layers, everything that is optional switched off.
    pub(crate) fn tiny() -> Architecture {
        let rope = Rope { theta: 10_000.0, rope_dim: 8, ..Rope::default() };
        Architecture {
            hidden_size: 32,
            intermediate_size: 64,
            num_layers: 2,
            num_heads: 4,
            num_kv_heads: 2,
            head_dim: 8,
            vocab_size: 50,
            max_position_embeddings: 100,
            tied_embeddings: true,
            qk_norm: false,
            sandwich_norms: false,
            qkv_bias: false,
            o_bias: false,
            mlp_bias: false,
            activation: 1,
            rms_norm_eps: 1e-6,
            embedding_scale: 1.0,
            attention_scale: 0.35,
            attn_logit_softcap: 0.0,
            final_logit_softcap: 0.0,
            sliding_window: 0,
            sliding_layers: [0; 8],
            rope_global: rope,
            rope_local: Rope::default(),
            generation: Generation { top_p: 1.0, repetition_penalty: 1.0, ..Generation::default() },
        }
    }

    #[test]
    fn a_layer_slides_where_its_bit_is_set() {
        let mut a = tiny();
        (a.sliding_window, a.sliding_layers[0], a.rope_local) = (16, 0b10, a.rope_global);
        let config = ModelConfig::try_from(&a).unwrap();
        assert_eq!([0, 1, 2].map(|layer| config.layer_window(layer)), [None, Some(16), None]);
    }

    #[test]
    fn an_architecture_that_cannot_run_is_refused_by_name() {
        type Change = fn(&mut Architecture);
        let cases: [(Change, &str); 17] = [
            (|a| a.hidden_size = 0, "hidden_size is 0, outside 1..=65536"),
            (|a| a.num_layers = 257, "num_layers is 257, outside 1..=256"),
            (|a| a.num_kv_heads = 3, "4 query heads do not divide among 3 kv heads"),
            (|a| a.num_kv_heads = 5, "num_kv_heads is 5, outside 1..=4"),
            (|a| a.vocab_size = u32::MAX, "vocab_size is 4294967295, outside 1..=2097152"),
            (
                |a| a.max_position_embeddings = 0,
                "max_position_embeddings is 0, outside 1..=16777216",
            ),
            (|a| a.activation = 4, "activation is 4, outside 1..=3"),
            (|a| a.rms_norm_eps = 0.0, "rms_norm_eps is 0, not finite and above 0"),
            (|a| a.attention_scale = f32::NAN, "attention_scale is NaN, not finite and above 0"),
            (|a| a.final_logit_softcap = -1.0, "final_logit_softcap is -1, not finite and above 0"),
            (|a| a.sliding_window = 4, "the sliding window is 4 and 0 layers use it"),
            (|a| a.sliding_layers[0] = 1, "the sliding window is 0 and 1 layers use it"),
            (|a| a.sliding_layers[7] = 1, "layer 224 of 2 is marked as sliding"),
            (
                |a| a.rope_global.rope_dim = 10,
                "the rotary embedding of global layers: 10 rotated values in a head of 8",
            ),
            (
                |a| (a.sliding_window, a.sliding_layers[0]) = (4, 1),
                "the rotary embedding of local layers: 0 rotated values in a head of 8",
            ),
            (|a| a.generation.eos_token_ids = vec![50], "a special token is 50, outside 0..=49"),
            (|a| a.generation.min_p = -0.1, "min_p is -0.1, not finite and at least 0"),
        ];
        assert!(ModelConfig::try_from(&tiny()).is_ok());
        for (change, refusal) in cases {
            let mut a = tiny();
            change(&mut a);
            assert_eq!(ModelConfig::try_from(&a).unwrap_err().to_string(), refusal);
        }
    }
}
