//! What a weight file says of its model, in Hugging Face's words or in GGUF's, as an
//! [`Architecture`]. A kind of model is a row of `FAMILIES`, never code of its own.

use std::collections::BTreeSet;

use chrysalis_protocol::package::{Architecture, Rope};

pub(crate) use self::hugging_face::family as family_of;
pub use self::hugging_face::from_hugging_face;
pub(crate) use self::hugging_face::has_fp8_blocks;
use crate::source::gguf::GgufError;

pub(crate) mod gguf;
mod hugging_face;
mod rope;

/// Why the description of a model is no architecture that we run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ArchitectureError {
    /// A kind of model that is not in the table.
    #[error("architecture {found} is unknown; known are {}", known())]
    Unknown {
        /// What the file says.
        found: String,
    },
    /// A field that must be there.
    #[error("{0} is missing")]
    Missing(String),
    /// A field of another type or outside its range.
    #[error("{field} is {found}, not {expected}")]
    Field {
        /// Its name, with the names of what it lies in.
        field: String,
        /// What it must be.
        expected: &'static str,
        /// What it is.
        found: String,
    },
    /// A part of a model that the decoder does not have.
    #[error("{field} is {found}, which is not supported")]
    Unsupported {
        /// Its name.
        field: String,
        /// What it is.
        found: String,
    },
    /// Rotary factors that no parameters we know produce.
    #[error(
        "rope_freqs.weight is not llama3 scaling by {factor}: factor {index} is {found}, \
         not {expected}"
    )]
    RopeFactors {
        /// The factor of the scaling that was tried.
        factor: f32,
        /// Which factor differs first.
        index: usize,
        /// What the scaling gives.
        expected: f32,
        /// What the file has.
        found: f32,
    },
    /// The metadata of a GGUF file.
    #[error(transparent)]
    Gguf(#[from] GgufError),
}

/// A kind of model: what its files leave unsaid.
#[derive(Debug)]
pub(crate) struct Family {
    /// Names in `architectures` of config.json.
    pub(crate) hugging_face: &'static [&'static str],
    /// `general.architecture` of a GGUF file; nothing where GGUF files call it by another's name.
    pub(crate) gguf: Option<&'static str>,
    /// What Hugging Face's configuration class has where config.json is silent.
    pub(crate) defaults: Defaults,
    /// Which projections have a bias.
    pub(crate) bias: Bias,
    /// Q and K are normalised for each head.
    pub(crate) qk_norm: bool,
    /// Norms after attention and MLP too; the norm before the MLP is `pre_feedforward_layernorm`.
    pub(crate) sandwich_norms: bool,
    /// The embedding is multiplied by the root of the hidden size. (Hugging Face rounds that root
    /// to the dtype of the weights; like llama.cpp we keep it in f32.)
    pub(crate) scaled_embedding: bool,
    /// Hugging Face's norm weights lack the 1 that is added to them (GGUF's have it).
    pub(crate) norms_lack_one: bool,
    /// Prefixes of tensors that belong to no decoder: eyes, and what joins them to it.
    pub(crate) pictures: &'static [&'static str],
    /// The rows of q and k in GGUF files are permuted within each head.
    pub(crate) permuted_in_gguf: bool,
    /// Which layers slide.
    pub(crate) window: Window,
    /// The number of layers of the one model whose `query_pre_attn_scalar`, which GGUF files
    /// leave out, is the hidden size over the heads. In all others it is the head's size.
    pub(crate) wide_layers: Option<u32>,
    /// Theta of sliding layers where nothing is said; the global one where there is none.
    pub(crate) local_theta: Option<f32>,
}

/// Values of a configuration class.
#[derive(Debug)]
pub(crate) struct Defaults {
    pub(crate) num_heads: Option<u32>,
    pub(crate) num_kv_heads: Option<u32>,
    /// Hidden size over heads where there is none.
    pub(crate) head_dim: Option<u32>,
    pub(crate) vocab_size: Option<u32>,
    pub(crate) max_position_embeddings: Option<u32>,
    pub(crate) theta: f32,
    pub(crate) activation: &'static str,
    pub(crate) tied: bool,
    pub(crate) sliding_window: Option<u32>,
    /// The inverse square of the attention's scale; the head dimension where there is none.
    pub(crate) query_pre_attn_scalar: Option<f32>,
    pub(crate) attn_logit_softcap: f32,
    pub(crate) final_logit_softcap: f32,
}

/// Which projections have a bias.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bias {
    Never,
    /// q, k and v always, the output never.
    Qkv,
    /// As `attention_bias` and `mlp_bias` say: q, k, v and output together.
    AsSaid,
}

/// Which layers slide where there is a window and `layer_types` does not say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Window {
    /// There is no window, whatever the file says.
    None,
    /// All.
    All,
    /// With `use_sliding_window` those from `max_window_layers` on.
    FromLayer,
    /// All but each n-th, counted from one.
    Pattern(u32),
}

const PLAIN: Defaults = Defaults {
    num_heads: None,
    num_kv_heads: None,
    head_dim: None,
    vocab_size: None,
    max_position_embeddings: None,
    theta: 10_000.0,
    activation: "silu",
    tied: false,
    sliding_window: None,
    query_pre_attn_scalar: None,
    attn_logit_softcap: 0.0,
    final_logit_softcap: 0.0,
};

const LLAMA: Family = Family {
    // SmolLM2, Yi and DeepSeek's distillations call themselves Llama or Qwen2.
    hugging_face: &["LlamaForCausalLM"],
    gguf: Some("llama"),
    defaults: PLAIN,
    bias: Bias::AsSaid,
    qk_norm: false,
    sandwich_norms: false,
    scaled_embedding: false,
    norms_lack_one: false,
    pictures: &[],
    permuted_in_gguf: true,
    window: Window::None,
    wide_layers: None,
    local_theta: None,
};

/// Every kind of model that we run.
pub(crate) const FAMILIES: [Family; 6] = [
    LLAMA,
    Family {
        hugging_face: &["MistralForCausalLM"],
        gguf: None,
        defaults: Defaults { num_kv_heads: Some(8), ..PLAIN },
        bias: Bias::Never,
        window: Window::All,
        ..LLAMA
    },
    Family {
        hugging_face: &["Qwen2ForCausalLM"],
        gguf: Some("qwen2"),
        bias: Bias::Qkv,
        permuted_in_gguf: false,
        window: Window::FromLayer,
        ..LLAMA
    },
    Family {
        hugging_face: &["Qwen3ForCausalLM"],
        gguf: Some("qwen3"),
        defaults: Defaults { head_dim: Some(128), ..PLAIN },
        qk_norm: true,
        permuted_in_gguf: false,
        window: Window::FromLayer,
        ..LLAMA
    },
    Family {
        hugging_face: &["Gemma2ForCausalLM"],
        gguf: Some("gemma2"),
        defaults: Defaults {
            num_kv_heads: Some(4),
            head_dim: Some(256),
            max_position_embeddings: Some(8_192),
            activation: "gelu_pytorch_tanh",
            tied: true,
            sliding_window: Some(4_096),
            query_pre_attn_scalar: Some(256.0),
            attn_logit_softcap: 50.0,
            final_logit_softcap: 30.0,
            ..PLAIN
        },
        wide_layers: Some(46),
        sandwich_norms: true,
        scaled_embedding: true,
        norms_lack_one: true,
        permuted_in_gguf: false,
        window: Window::Pattern(2),
        ..LLAMA
    },
    Family {
        hugging_face: &["Gemma3ForCausalLM", "Gemma3ForConditionalGeneration"],
        gguf: Some("gemma3"),
        defaults: Defaults {
            num_heads: Some(8),
            num_kv_heads: Some(4),
            head_dim: Some(256),
            vocab_size: Some(262_208),
            max_position_embeddings: Some(131_072),
            theta: 1_000_000.0,
            activation: "gelu_pytorch_tanh",
            tied: true,
            sliding_window: Some(4_096),
            query_pre_attn_scalar: Some(256.0),
            ..PLAIN
        },
        wide_layers: Some(62),
        qk_norm: true,
        sandwich_norms: true,
        scaled_embedding: true,
        norms_lack_one: true,
        pictures: &[
            "vision_tower.",
            "model.vision_tower.",
            "multi_modal_projector.",
            "model.multi_modal_projector.",
        ],
        permuted_in_gguf: false,
        window: Window::Pattern(6),
        local_theta: Some(10_000.0),
        ..LLAMA
    },
];

impl Family {
    /// The factor on embeddings.
    fn embedding_scale(&self, hidden_size: u32) -> f32 {
        if self.scaled_embedding { (hidden_size as f32).sqrt() } else { 1.0 }
    }
}

/// Names of every known architecture, for the message.
fn known() -> String {
    let names =
        FAMILIES.iter().flat_map(|family| family.hugging_face.iter().copied().chain(family.gguf));
    names.collect::<Vec<_>>().join(", ")
}

/// The number of an activation by Hugging Face's name.
fn activation(field: &str, name: &str) -> Result<u32, ArchitectureError> {
    match name {
        "silu" | "swish" => Ok(ACTIVATION_SILU),
        "gelu_pytorch_tanh" | "gelu_new" | "gelu_fast" => Ok(ACTIVATION_GELU_TANH),
        "gelu" => Ok(ACTIVATION_GELU_ERF),
        _ => {
            let (field, found) = (field.to_owned(), name.to_owned());
            Err(ArchitectureError::Unsupported { field, found })
        }
    }
}

/// Writes the window and the layers that use it: those for which `slides` is true. A window that
/// no position can leave, and that changes no rotary embedding, is none.
fn set_window(
    architecture: &mut Architecture,
    window: Option<u32>,
    local: Rope,
    slides: impl Fn(u32) -> bool,
) {
    let positions = architecture.max_position_embeddings;
    let Some(window) = window
        .filter(|window| *window > 0 && (*window < positions || local != architecture.rope_global))
    else {
        return;
    };
    for layer in (0..architecture.num_layers).filter(|layer| slides(*layer)) {
        if let Some(word) = architecture.sliding_layers.get_mut(layer as usize / 32) {
            *word |= 1 << (layer % 32);
        }
    }
    if architecture.sliding_layers != [0; 8] {
        architecture.sliding_window = window;
        architecture.rope_local = local;
    }
}

/// The layers count of a file, before anything is counted by it.
fn layers(field: &str, found: u32) -> Result<u32, ArchitectureError> {
    if (1..=LAYERS_MAX).contains(&found) {
        return Ok(found);
    }
    let (field, found) = (field.to_owned(), found.to_string());
    Err(ArchitectureError::Field { field, expected: "between 1 and 256", found })
}

/// At most eight ids, none twice, in the order in which they came.
fn end_ids(field: &str, ids: impl IntoIterator<Item = u32>) -> Result<Vec<u32>, ArchitectureError> {
    let mut seen = BTreeSet::new();
    let ids: Vec<u32> = ids.into_iter().filter(|id| seen.insert(*id)).collect();
    if ids.len() > EOS_MAX {
        let (field, found) = (field.to_owned(), format!("a list of {}", ids.len()));
        return Err(ArchitectureError::Field { field, expected: "at most 8 token ids", found });
    }
    Ok(ids)
}

const ACTIVATION_SILU: u32 = 1;
const ACTIVATION_GELU_TANH: u32 = 2;
const ACTIVATION_GELU_ERF: u32 = 3;
const LAYERS_MAX: u32 = 256;
const EOS_MAX: usize = 8;
