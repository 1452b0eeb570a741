//! The metadata of a GGUF file.

use chrysalis_protocol::package::{Architecture, Generation, Rope};

use super::hugging_face::{neutral, whole_quotient};
use super::{
    ArchitectureError, Bias, FAMILIES, Family, Window, activation, end_ids, layers, rope,
    set_window,
};
use crate::source::gguf::{Metadata, Value};

/// What a GGUF file says by its tensors alone.
#[derive(Clone, Debug, Default)]
pub(crate) struct TensorFacts {
    /// There is an `output.weight`.
    pub(crate) output: bool,
    /// There is a `blk.0.attn_q.bias`.
    pub(crate) qkv_bias: bool,
    /// There is a `blk.0.attn_output.bias`.
    pub(crate) o_bias: bool,
    /// There is a `blk.0.ffn_up.bias`.
    pub(crate) mlp_bias: bool,
    /// The values of `rope_freqs.weight`.
    pub(crate) rope_freqs: Option<Vec<f32>>,
}

/// The row of the table that a file names.
pub(crate) fn family(metadata: &Metadata) -> Result<&'static Family, ArchitectureError> {
    let found = metadata.require(ARCHITECTURE, metadata.text(ARCHITECTURE)?)?;
    FAMILIES
        .iter()
        .find(|family| family.gguf == Some(found))
        .ok_or_else(|| ArchitectureError::Unknown { found: found.to_owned() })
}

/// The architecture of a model in a GGUF file.
///
/// # Errors
/// [`ArchitectureError`] names the key that is missing, wrong or not supported.
pub(crate) fn from_gguf(
    metadata: &Metadata,
    facts: &TensorFacts,
) -> Result<Architecture, ArchitectureError> {
    let family = family(metadata)?;
    let keys = Keys { metadata, prefix: family.gguf.unwrap_or_default() };
    refuse_unsupported(&keys)?;
    let mut architecture = shape(family, &keys, facts)?;
    let head_dim = architecture.head_dim;
    let rope_dim = keys.u32("rope.dimension_count")?.unwrap_or(head_dim);
    if family.permuted_in_gguf && rope_dim != head_dim {
        // The permutation mixes values that turn with values that do not.
        let (field, found) = (keys.key("rope.dimension_count"), rope_dim.to_string());
        return Err(ArchitectureError::Unsupported { field, found });
    }
    let theta = keys.f32("rope.freq_base")?.unwrap_or(family.defaults.theta);
    architecture.rope_global = rope::from_gguf(
        rope::plain(theta, rope_dim),
        metadata,
        keys.prefix,
        architecture.max_position_embeddings,
        facts.rope_freqs.as_deref(),
    )?;
    window(family, &keys, &mut architecture)?;
    architecture.generation = sampling(metadata)?;
    Ok(architecture)
}

/// What would change the numbers and is not known to the decoder.
fn refuse_unsupported(keys: &Keys<'_>) -> Result<(), ArchitectureError> {
    let causal = keys.metadata.bool(&keys.key("attention.causal"))?;
    if causal == Some(false) {
        let (field, found) = (keys.key("attention.causal"), "false".to_owned());
        return Err(ArchitectureError::Unsupported { field, found });
    }
    let experts = keys.u32("expert_count")?.unwrap_or(0);
    if experts > 0 {
        let (field, found) = (keys.key("expert_count"), experts.to_string());
        return Err(ArchitectureError::Unsupported { field, found });
    }
    Ok(())
}

/// Everything but rotary embeddings, windows and sampling.
fn shape(
    family: &Family,
    keys: &Keys<'_>,
    facts: &TensorFacts,
) -> Result<Architecture, ArchitectureError> {
    let defaults = &family.defaults;
    let hidden_size = keys.require("embedding_length")?;
    let num_heads = keys.require("attention.head_count")?;
    let head_dim = match keys.u32("attention.key_length")? {
        Some(head_dim) => head_dim,
        None => whole_quotient(&keys.key("embedding_length"), hidden_size, num_heads)?,
    };
    if let Some(found) = keys.u32("attention.value_length")?.filter(|found| *found != head_dim) {
        let (field, found) = (keys.key("attention.value_length"), found.to_string());
        let expected = "equal to attention.key_length";
        return Err(ArchitectureError::Field { field, expected, found });
    }
    let num_layers = layers(&keys.key("block_count"), keys.require("block_count")?)?;
    let scale = match keys.f32("attention.scale")? {
        Some(scale) if scale != 0.0 => scale,
        _ if family.wide_layers == Some(num_layers) => {
            (hidden_size as f32 / num_heads.max(1) as f32).sqrt().recip()
        }
        _ => (head_dim as f32).sqrt().recip(),
    };
    let softcap =
        |name: &str, default: f32| Ok::<_, ArchitectureError>(keys.f32(name)?.unwrap_or(default));
    let eps = keys.f32("attention.layer_norm_rms_epsilon")?;
    let eps_key = keys.key("attention.layer_norm_rms_epsilon");
    Ok(Architecture {
        hidden_size,
        intermediate_size: keys.require("feed_forward_length")?,
        num_layers,
        num_heads,
        num_kv_heads: keys.u32("attention.head_count_kv")?.unwrap_or(num_heads),
        head_dim,
        vocab_size: vocab_size(keys)?,
        max_position_embeddings: keys.require("context_length")?,
        tied_embeddings: !facts.output,
        qk_norm: family.qk_norm,
        sandwich_norms: family.sandwich_norms,
        qkv_bias: family.bias == Bias::Qkv || facts.qkv_bias,
        o_bias: facts.o_bias,
        mlp_bias: facts.mlp_bias,
        activation: activation(ARCHITECTURE, defaults.activation)?,
        rms_norm_eps: eps.ok_or(ArchitectureError::Missing(eps_key))?,
        embedding_scale: family.embedding_scale(hidden_size),
        attention_scale: scale,
        attn_logit_softcap: softcap("attn_logit_softcapping", defaults.attn_logit_softcap)?,
        final_logit_softcap: softcap("final_logit_softcapping", defaults.final_logit_softcap)?,
        sliding_window: 0,
        sliding_layers: [0; 8],
        rope_global: rope::plain(defaults.theta, head_dim),
        rope_local: Rope::default(),
        generation: neutral(None, Vec::new()),
    })
}

fn vocab_size(keys: &Keys<'_>) -> Result<u32, ArchitectureError> {
    if let Some(vocab_size) = keys.u32("vocab_size")? {
        return Ok(vocab_size);
    }
    let tokens = keys.metadata.require(TOKENS, keys.metadata.texts(TOKENS)?)?;
    u32::try_from(tokens.len()).map_err(|_| ArchitectureError::Field {
        field: TOKENS.to_owned(),
        expected: "a list shorter than 2^32",
        found: tokens.len().to_string(),
    })
}

/// Which layers slide, and how far they see.
fn window(
    family: &Family,
    keys: &Keys<'_>,
    architecture: &mut Architecture,
) -> Result<(), ArchitectureError> {
    let window = keys.u32("attention.sliding_window")?;
    let global = architecture.rope_global;
    let local = match family.local_theta {
        Some(default) => {
            let theta = keys.f32("rope.freq_base_swa")?.unwrap_or(default);
            rope::plain(theta, global.rope_dim)
        }
        None => global,
    };
    let pattern_key = keys.key("attention.sliding_window_pattern");
    if let Some(Value::Bools(slides)) = keys.metadata.get(&pattern_key) {
        set_window(architecture, window, local, |layer| {
            slides.get(layer as usize).copied().unwrap_or(false)
        });
        return Ok(());
    }
    let pattern = keys.metadata.u32(&pattern_key)?;
    set_window(architecture, window, local, |layer| match family.window {
        Window::Pattern(default) => {
            let pattern = pattern.unwrap_or(default).max(1);
            !(layer + 1).is_multiple_of(pattern)
        }
        // Qwen's published models have a window in their configuration and it is switched off.
        Window::FromLayer => false,
        // Mistral calls itself llama here; a file that names a window means all layers.
        Window::None | Window::All => true,
    });
    Ok(())
}

/// Special tokens, and defaults of sampling where the file has them.
fn sampling(metadata: &Metadata) -> Result<Generation, ArchitectureError> {
    let mut ids = Vec::new();
    for name in ["eos", "eot", "eom"] {
        ids.extend(metadata.u32(&format!("tokenizer.ggml.{name}_token_id"))?);
    }
    ids.extend(end_tokens(metadata)?);
    let bos = metadata.u32("tokenizer.ggml.bos_token_id")?;
    let mut defaults = neutral(bos, end_ids("tokenizer.ggml.eos_token_id", ids)?);
    let or = |name: &str, neutral: f32| {
        let value = metadata.f32(&format!("general.sampling.{name}"))?;
        Ok::<_, ArchitectureError>(value.unwrap_or(neutral))
    };
    defaults.temperature = or("temp", defaults.temperature)?;
    defaults.top_p = or("top_p", defaults.top_p)?;
    defaults.min_p = or("min_p", defaults.min_p)?;
    defaults.repetition_penalty = or("penalty_repeat", defaults.repetition_penalty)?;
    let top_k = metadata.get("general.sampling.top_k");
    if let Some(Value::Integer(top_k)) = top_k {
        defaults.top_k = u32::try_from(*top_k).unwrap_or(0);
    }
    Ok(defaults)
}

/// Ids of the control tokens that end a turn or a text by their spelling: files of chat models
/// often name only one of several.
fn end_tokens(metadata: &Metadata) -> Result<Vec<u32>, ArchitectureError> {
    let tokens = metadata.texts(TOKENS)?.unwrap_or_default();
    let types = metadata.integers("tokenizer.ggml.token_type")?.unwrap_or_default();
    let controls = tokens.iter().zip(types).enumerate().filter(|(_, (token, kind))| {
        **kind == TOKEN_CONTROL && END_TOKENS.contains(&token.as_str())
    });
    Ok(controls.filter_map(|(id, _)| u32::try_from(id).ok()).collect())
}

/// The keys of one architecture: `PREFIX.name`.
struct Keys<'a> {
    metadata: &'a Metadata,
    prefix: &'static str,
}

impl Keys<'_> {
    fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.prefix)
    }

    fn u32(&self, name: &str) -> Result<Option<u32>, ArchitectureError> {
        Ok(self.metadata.u32(&self.key(name))?)
    }

    fn f32(&self, name: &str) -> Result<Option<f32>, ArchitectureError> {
        Ok(self.metadata.f32(&self.key(name))?)
    }

    fn require(&self, name: &str) -> Result<u32, ArchitectureError> {
        let key = self.key(name);
        Ok(self.metadata.require(&key, self.metadata.u32(&key)?)?)
    }
}

const ARCHITECTURE: &str = "general.architecture";
const TOKENS: &str = "tokenizer.ggml.tokens";
const TOKEN_CONTROL: i64 = 3;

const END_TOKENS: [&str; 8] = [
    "<|eot_id|>",
    "<|eom_id|>",
    "<|im_end|>",
    "<|end|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<｜end▁of▁sentence｜>",
];
