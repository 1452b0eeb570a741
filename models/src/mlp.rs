//! The gated MLP of one layer: `down(activation(gate(x)) * up(x))`.

use chrysalis_kernels::device::{Activation, Device, DeviceError};

use crate::config::ModelConfig;
use crate::layout::MlpLayout;

/// Activations of the MLP, `[max_tokens, intermediate_size]` each, shared by all layers.
#[derive(Debug)]
pub(crate) struct Mlp<D: Device> {
    gate: D::Buffer,
    up: D::Buffer,
    gated: D::Buffer,
}

impl<D: Device> Mlp<D> {
    pub(crate) fn new(
        device: &D,
        config: &ModelConfig,
        max_tokens: usize,
    ) -> Result<Self, DeviceError> {
        let buffer = || device.buffer(max_tokens, config.intermediate_size);
        Ok(Self { gate: buffer()?, up: buffer()?, gated: buffer()? })
    }

    /// From `input` to `output`, `[tokens, hidden_size]` both.
    pub(crate) fn forward(
        &mut self,
        device: &D,
        rows: usize,
        weights: &MlpLayout<D::Matrix, D::Vector>,
        activation: Activation,
        input: &D::Buffer,
        output: &mut D::Buffer,
    ) {
        let Self { gate, up, gated } = self;
        device.linear(rows, input, &mut [weights.gate.to(gate), weights.up.to(up)]);
        device.gate(rows, activation, gate, up, gated);
        device.linear(rows, gated, &mut [weights.down.to(output)]);
    }
}
