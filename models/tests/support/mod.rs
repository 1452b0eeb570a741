//! A decoder with the weights of a source, and the logits of a step.

use std::sync::Arc;

use chrysalis_kernels::batch::Batch;
use chrysalis_kernels::device::Device;
use chrysalis_kernels::sampling::Draw;
use chrysalis_models::config::ModelConfig;
use chrysalis_models::decoder::{Decoder, DecoderLimits, Model, ModelError};
use chrysalis_models::source::Source;
use chrysalis_models::weights::{TensorSpec, WeightLoader};
use chrysalis_protocol::package::Architecture;

/// Loads the weights of `source`, as `architecture` has them, on a device.
pub(crate) fn decoder<D: Device>(
    device: D,
    source: &Source,
    architecture: &Architecture,
    limits: DecoderLimits,
) -> Decoder<D> {
    let config = ModelConfig::try_from(architecture).unwrap();
    let specs: Vec<TensorSpec<'_>> = source
        .tensors()
        .iter()
        .map(|tensor| TensorSpec {
            name: &tensor.name,
            dtype: tensor.dtype as u16,
            dims: &tensor.dims,
        })
        .collect();
    let loader = WeightLoader::new(&device, &config, &specs).unwrap();
    let mut bytes = Vec::new();
    for index in 0..source.tensors().len() {
        source.read(index, &mut bytes).unwrap();
        // Odd pieces: an upload must not care where they end.
        let mut offset = 0;
        for piece in bytes.chunks(1013) {
            loader.write(index, offset, piece).unwrap();
            offset += piece.len() as u64;
        }
    }
    let weights = loader.finish().unwrap();
    Decoder::new(Arc::new(device), config, weights, limits).unwrap()
}

/// All rows of logits of one step, end to end.
pub(crate) fn step(model: &mut impl Model, batch: &Batch) -> Vec<f32> {
    let mut batch = batch.clone();
    (0..batch.logit_rows.len() as u32).for_each(|row| batch.draws.push(Draw::greedy(row), &[]));
    model.forward(&batch).unwrap();
    let vocab_size = model.vocab_size();
    let mut logits = vec![f32::NAN; batch.logit_rows.len() * vocab_size];
    for (index, row) in logits.chunks_mut(vocab_size).enumerate() {
        model.logits(index, row).unwrap();
    }
    let mut likeliest = vec![None; batch.logit_rows.len()];
    model.sample(&mut likeliest).unwrap();
    for (token, row) in likeliest.into_iter().zip(logits.chunks(vocab_size)) {
        let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let first = row.iter().position(|x| *x == max);
        assert_eq!(token.map(|token| token as usize), first, "{}", model.describe());
    }
    let more = model.sample(&mut vec![None; batch.logit_rows.len() + 1]);
    assert!(matches!(more, Err(ModelError::Draws { .. })));
    logits
}

/// Largest difference over largest expected magnitude; infinite where something is not a number.
pub(crate) fn error(found: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(found.len(), expected.len());
    let largest = expected.iter().fold(0.0, |max: f32, x| max.max(x.abs()));
    found.iter().zip(expected).fold(0.0, |max: f32, (a, b)| {
        let difference = (a - b).abs() / largest;
        if difference.is_nan() { f32::INFINITY } else { max.max(difference) }
    })
}
