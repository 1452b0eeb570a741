//! The attention of one layer: q, k and v, rotation and cache, the scores, the output matrix.

use chrysalis_kernels::device::{self, Device, DeviceError, Input, RopeStore};

use crate::config::ModelConfig;
use crate::layout::AttentionLayout;

/// Activations of attention, shared by all layers.
#[derive(Debug)]
pub(crate) struct Attention<D: Device> {
    /// `[max_tokens, num_heads * head_dim]`.
    q: D::Buffer,
    /// `[max_tokens, num_kv_heads * head_dim]`.
    k: D::Buffer,
    /// `[max_tokens, num_kv_heads * head_dim]`.
    v: D::Buffer,
    /// `[max_tokens, num_heads * head_dim]`.
    mixed: D::Buffer,
}

/// What the attention of one layer is called with.
pub(crate) struct LayerCall<'a, D: Device> {
    /// The layer.
    pub(crate) index: usize,
    /// Tokens of the step.
    pub(crate) rows: usize,
    /// Positions seen, where the layer slides.
    pub(crate) window: Option<usize>,
    pub(crate) rope: &'a D::Rope,
    pub(crate) step: &'a D::Step,
    pub(crate) weights: &'a AttentionLayout<D::Matrix, D::Vector>,
    pub(crate) config: &'a ModelConfig,
}

impl<D: Device> Attention<D> {
    pub(crate) fn new(
        device: &D,
        config: &ModelConfig,
        max_tokens: usize,
    ) -> Result<Self, DeviceError> {
        Ok(Self {
            q: device.buffer(max_tokens, config.q_size())?,
            k: device.buffer(max_tokens, config.kv_size())?,
            v: device.buffer(max_tokens, config.kv_size())?,
            mixed: device.buffer(max_tokens, config.q_size())?,
        })
    }

    /// From `input` to `output`, `[rows, hidden_size]` both.
    pub(crate) fn forward(
        &mut self,
        device: &D,
        call: &LayerCall<'_, D>,
        cache: &mut D::Cache,
        input: Input<'_, D>,
        output: &mut D::Buffer,
    ) {
        let LayerCall { rows, weights, config, .. } = *call;
        let Self { q, k, v, mixed } = self;
        device.linear(rows, input, &mut [weights.q.to(q), weights.k.to(k), weights.v.to(v)]);
        device.rope_store(
            call.step,
            RopeStore {
                layer: call.index,
                q,
                k,
                v,
                q_norm: weights.q_norm.as_ref(),
                k_norm: weights.k_norm.as_ref(),
                eps: config.rms_norm_eps,
                rope: call.rope,
                cache,
            },
        );
        device.attention(
            call.step,
            device::Attention {
                layer: call.index,
                q,
                cache,
                scale: config.attention_scale,
                softcap: config.attn_logit_softcap,
                window: call.window,
                out: mixed,
            },
        );
        device.linear(rows, Input::Rows(mixed), &mut [weights.output.to(output)]);
    }
}
