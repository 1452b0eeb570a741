//! The one table of a decoder's tensors: their names (GGUF's), their shapes, and where each belongs.

use std::collections::BTreeMap;

use chrysalis_kernels::device::{Device, Linear};

use crate::config::ModelConfig;
use crate::weights::WeightError;

/// All tensors of a decoder, with `M` in the place of each matrix and `V` in that of each vector.
#[derive(Debug)]
pub struct Layout<M, V> {
    /// `[vocab_size, hidden_size]`.
    pub(crate) embedding: M,
    /// `[vocab_size, hidden_size]`; the embedding serves where there is none.
    pub(crate) output: Option<M>,
    pub(crate) output_norm: V,
    pub(crate) layers: Vec<LayerLayout<M, V>>,
}

/// Tensors of one layer.
#[derive(Debug)]
pub(crate) struct LayerLayout<M, V> {
    pub(crate) attn_norm: V,
    pub(crate) attention: AttentionLayout<M, V>,
    pub(crate) post_attention_norm: Option<V>,
    pub(crate) ffn_norm: V,
    pub(crate) mlp: MlpLayout<M, V>,
    pub(crate) post_ffw_norm: Option<V>,
}

/// Tensors of the attention of one layer.
#[derive(Debug)]
pub(crate) struct AttentionLayout<M, V> {
    pub(crate) q: LinearLayout<M, V>,
    pub(crate) k: LinearLayout<M, V>,
    pub(crate) v: LinearLayout<M, V>,
    pub(crate) output: LinearLayout<M, V>,
    pub(crate) q_norm: Option<V>,
    pub(crate) k_norm: Option<V>,
}

/// Tensors of the gated MLP of one layer.
#[derive(Debug)]
pub(crate) struct MlpLayout<M, V> {
    pub(crate) gate: LinearLayout<M, V>,
    pub(crate) up: LinearLayout<M, V>,
    pub(crate) down: LinearLayout<M, V>,
}

/// A matrix and its bias.
#[derive(Debug)]
pub(crate) struct LinearLayout<M, V> {
    pub(crate) weight: M,
    pub(crate) bias: Option<V>,
}

impl<M, V> LinearLayout<M, V> {
    /// This product, into `out`.
    pub(crate) fn to<'a, D>(&'a self, out: &'a mut D::Buffer) -> Linear<'a, D>
    where
        D: Device<Matrix = M, Vector = V>,
    {
        Linear { weight: &self.weight, bias: self.bias.as_ref(), out }
    }
}

/// Where the tensors of a layout come from.
pub(crate) trait Supply {
    type Matrix;
    type Vector;

    /// The matrix of this name, `[rows, cols]`.
    fn matrix(
        &mut self,
        name: String,
        rows: usize,
        cols: usize,
    ) -> Result<Self::Matrix, WeightError>;

    /// The vector of this name, `[len]`.
    fn vector(&mut self, name: String, len: usize) -> Result<Self::Vector, WeightError>;
}

impl<M, V> Layout<M, V> {
    /// The one table of names and shapes.
    pub(crate) fn from_supply(
        config: &ModelConfig,
        supply: &mut impl Supply<Matrix = M, Vector = V>,
    ) -> Result<Self, WeightError> {
        let (hidden, vocab) = (config.hidden_size, config.vocab_size);
        Ok(Self {
            embedding: supply.matrix("token_embd.weight".to_owned(), vocab, hidden)?,
            output: (!config.tied_embeddings)
                .then(|| supply.matrix("output.weight".to_owned(), vocab, hidden))
                .transpose()?,
            output_norm: supply.vector("output_norm.weight".to_owned(), hidden)?,
            layers: (0..config.num_layers)
                .map(|layer| LayerLayout::from_supply(config, layer, supply))
                .collect::<Result<_, _>>()?,
        })
    }
}

impl<M, V> LayerLayout<M, V> {
    fn from_supply(
        config: &ModelConfig,
        layer: usize,
        supply: &mut impl Supply<Matrix = M, Vector = V>,
    ) -> Result<Self, WeightError> {
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        let (q, kv) = (config.q_size(), config.kv_size());
        let (qkv_bias, o_bias, mlp_bias) = (config.qkv_bias, config.o_bias, config.mlp_bias);
        let mut at = Place { supply, layer };
        Ok(Self {
            attn_norm: at.vector("attn_norm.weight", hidden)?,
            attention: AttentionLayout {
                q: at.linear("attn_q", q, hidden, qkv_bias)?,
                k: at.linear("attn_k", kv, hidden, qkv_bias)?,
                v: at.linear("attn_v", kv, hidden, qkv_bias)?,
                output: at.linear("attn_output", hidden, q, o_bias)?,
                q_norm: at.optional(config.qk_norm, "attn_q_norm.weight", config.head_dim)?,
                k_norm: at.optional(config.qk_norm, "attn_k_norm.weight", config.head_dim)?,
            },
            post_attention_norm: at.optional(
                config.sandwich_norms,
                "post_attention_norm.weight",
                hidden,
            )?,
            ffn_norm: at.vector("ffn_norm.weight", hidden)?,
            mlp: MlpLayout {
                gate: at.linear("ffn_gate", inner, hidden, mlp_bias)?,
                up: at.linear("ffn_up", inner, hidden, mlp_bias)?,
                down: at.linear("ffn_down", hidden, inner, mlp_bias)?,
            },
            post_ffw_norm: at.optional(config.sandwich_norms, "post_ffw_norm.weight", hidden)?,
        })
    }
}

/// A layer's part of a supply.
struct Place<'a, S> {
    supply: &'a mut S,
    layer: usize,
}

impl<S: Supply> Place<'_, S> {
    fn vector(&mut self, name: &str, len: usize) -> Result<S::Vector, WeightError> {
        self.supply.vector(format!("blk.{}.{name}", self.layer), len)
    }

    fn optional(
        &mut self,
        exists: bool,
        name: &str,
        len: usize,
    ) -> Result<Option<S::Vector>, WeightError> {
        exists.then(|| self.vector(name, len)).transpose()
    }

    fn linear(
        &mut self,
        name: &str,
        rows: usize,
        cols: usize,
        bias: bool,
    ) -> Result<LinearLayout<S::Matrix, S::Vector>, WeightError> {
        Ok(LinearLayout {
            weight: self.supply.matrix(format!("blk.{}.{name}.weight", self.layer), rows, cols)?,
            bias: self.optional(bias, &format!("{name}.bias"), rows)?,
        })
    }
}

/// Names and shapes of every tensor that a decoder of this shape has.
pub fn expected_tensors(config: &ModelConfig) -> BTreeMap<String, Vec<u32>> {
    let mut table = Table::default();
    // A table supplies whatever it is asked for.
    let _layout = Layout::from_supply(config, &mut table);
    table.0
}

#[derive(Default)]
struct Table(BTreeMap<String, Vec<u32>>);

impl Supply for Table {
    type Matrix = ();
    type Vector = ();

    fn matrix(&mut self, name: String, rows: usize, cols: usize) -> Result<(), WeightError> {
        // Sizes are far below 2^32 in a checked config: see its limits.
        self.0.insert(name, vec![rows as u32, cols as u32]);
        Ok(())
    }

    fn vector(&mut self, name: String, len: usize) -> Result<(), WeightError> {
        self.0.insert(name, vec![len as u32]);
        Ok(())
    }
}
