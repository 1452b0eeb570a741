//! The gated MLP of one layer: `down(activation(gate(x)) * up(x))`.

use chrysalis_kernels::device::{Activation, Device, DeviceError, Input};

use crate::config::ModelConfig;
use crate::layout::MlpLayout;

/// Activations of the MLP, `[max_tokens, intermediate_size]` each, shared by all layers.
#[derive(Debug)]
pub(crate) struct Mlp<D: Device> {
    gate: D::Buffer,
    up: D::Buffer,
}

impl<D: Device> Mlp<D> {
    pub(crate) fn new(
        device: &D,
        config: &ModelConfig,
        max_tokens: usize,
    ) -> Result<Self, DeviceError> {
        let buffer = || device.buffer(max_tokens, config.intermediate_size);
        Ok(Self { gate: buffer()?, up: buffer()? })
    }

    /// From `input` to `output`, `[rows, hidden_size]` both.
    pub(crate) fn forward(
        &mut self,
        device: &D,
        rows: usize,
        weights: &MlpLayout<D::Matrix, D::Vector>,
        activation: Activation,
        input: Input<'_, D>,
        output: &mut D::Buffer,
    ) {
        let Self { gate, up } = self;
        device.linear(rows, input, &mut [weights.gate.to(gate), weights.up.to(up)]);
        let gated = Input::Gated { activation, gate, up };
        device.linear(rows, gated, &mut [weights.down.to(output)]);
    }
}
