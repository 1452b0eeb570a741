//! Whole steps of a decoder with random 8-bit weights, as the engine asks for them: tokens a second of decode, alone and
//! sixteen at once, and of a prompt.

#![expect(clippy::panic, reason = "a bench that cannot run has nobody to report to")]

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use chrysalis_benches::{Random, assert_near, assert_same, print_limits};
use chrysalis_kernels::cpu::{ActivationBits, Cpu, CpuOptions};
use chrysalis_kernels::device::{CacheDtype, Device};
use chrysalis_kernels::reference::Reference;
use chrysalis_kernels::{Batch, Dtype, WantLogits};
use chrysalis_models::config::ModelConfig;
use chrysalis_models::decoder::{Decoder, DecoderLimits, Model, ModelError};
use chrysalis_models::weights::{TensorSpec, WeightLoader, expected_tensors};
use chrysalis_protocol::package::{Architecture, Generation, Rope};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};

const VOCAB: u32 = 8192;
const PROMPT: usize = 128;
const WIDEST: usize = 16;
const BLOCK: usize = 16;
/// Blocks of a sequence.
const BLOCKS: usize = PROMPT / BLOCK;
/// Tokens that the reference can be asked for in a second.
const SHORT: usize = 6;
/// Activations in 16 bits, through all layers.
const TOLERANCE: f64 = 1e-3;
/// Adaptive ones, which are measured: random values have hardly a group that gets more than 8 bits.
const ADAPTIVE_TOLERANCE: f64 = 5e-2;

/// Six layers of the width of SmolLM2-135M.
fn architecture() -> Architecture {
    let rope = Rope { theta: 10_000.0, rope_dim: 64, ..Rope::default() };
    Architecture {
        hidden_size: 576,
        intermediate_size: 1536,
        num_layers: 6,
        num_heads: 9,
        num_kv_heads: 3,
        head_dim: 64,
        vocab_size: VOCAB,
        max_position_embeddings: 2048,
        tied_embeddings: true,
        qk_norm: false,
        sandwich_norms: false,
        qkv_bias: false,
        o_bias: false,
        mlp_bias: false,
        activation: 1,
        rms_norm_eps: 1e-5,
        embedding_scale: 1.0,
        // Random q and k are large; trained ones are not, and their softmax is no maximum.
        attention_scale: 0.002,
        attn_logit_softcap: 0.0,
        final_logit_softcap: 0.0,
        sliding_window: 0,
        sliding_layers: [0; 8],
        rope_global: rope,
        rope_local: Rope::default(),
        generation: Generation { top_p: 1.0, repetition_penalty: 1.0, ..Generation::default() },
    }
}

/// The same random weights on any device.
fn decoder<D: Device>(device: D) -> Result<Decoder<D>, Box<dyn Error>> {
    let (config, device) = (ModelConfig::try_from(&architecture())?, Arc::new(device));
    let tensors = expected_tensors(&config);
    let specs: Vec<_> = tensors
        .iter()
        .map(|(name, dims)| {
            let dtype = if dims.len() == 2 { Dtype::Q8_0 } else { Dtype::F32 };
            TensorSpec { name, dtype: dtype as u16, dims }
        })
        .collect();
    let mut random = Random(4);
    let loader = WeightLoader::new(&*device, &config, &specs)?;
    for (index, spec) in specs.iter().enumerate() {
        let bytes = match *spec.dims {
            [rows, cols] => random.matrix(Dtype::Q8_0, rows as usize, cols as usize),
            _ => random.matrix(Dtype::F32, 1, spec.dims.iter().product::<u32>() as usize),
        };
        loader.write(index, 0, &bytes)?;
    }
    let weights = loader.finish()?;
    let limits = DecoderLimits {
        max_tokens: PROMPT,
        max_logit_rows: WIDEST,
        num_blocks: WIDEST * BLOCKS,
        block_size: BLOCK,
        cache_dtype: CacheDtype::F16,
    };
    Ok(Decoder::new(device, config, weights, limits)?)
}

/// `tokens` tokens from `start` on of each of the first `sequences` sequences, which all say the same.
fn batch(sequences: usize, start: usize, tokens: usize) -> Batch {
    let ids: Vec<u32> = (start..start + tokens).map(|i| (i * 7919) as u32 % VOCAB).collect();
    let mut batch = Batch::default();
    for sequence in 0..sequences {
        let blocks: Vec<u32> = (0..BLOCKS).map(|i| (sequence * BLOCKS + i) as u32).collect();
        batch.push(&ids, start as u32, &blocks, WantLogits::Last);
    }
    batch
}

/// One step, and the logits of its first row.
fn forward(model: &mut impl Model, batch: &Batch) -> Result<Vec<f32>, ModelError> {
    let mut logits = vec![0.0; VOCAB as usize];
    model.forward(batch)?;
    model.logits(0, &mut logits)?;
    Ok(logits)
}

fn steps(c: &mut Criterion) {
    bench(c).unwrap_or_else(|error| panic!("{error}"));
}

fn bench(c: &mut Criterion) -> Result<(), Box<dyn Error>> {
    print_limits()?;
    let mut model = decoder(Cpu::new(CpuOptions::default())?)?;
    let truth = forward(&mut decoder(Reference)?, &batch(1, 0, SHORT))?;
    let short = batch(1, 0, SHORT);
    assert_near("logits", &forward(&mut model, &short)?, &truth, ADAPTIVE_TOLERANCE);
    let activation_bits = ActivationBits::Sixteen;
    let exact = Cpu::new(CpuOptions { activation_bits, ..CpuOptions::default() })?;
    assert_near("exact logits", &forward(&mut decoder(exact)?, &short)?, &truth, TOLERANCE);

    // A prompt read at once and one read token by token end in the same bits, so one is the other's check.
    for position in 0..PROMPT - 1 {
        forward(&mut model, &batch(WIDEST, position, 1))?;
    }
    let last = forward(&mut model, &batch(1, PROMPT - 1, 1))?;
    let mut group = c.benchmark_group("step");
    for (name, sequences, start, tokens) in
        [("decode", 1, PROMPT - 1, 1), ("decode", WIDEST, PROMPT - 1, 1), ("prefill", 1, 0, PROMPT)]
    {
        let batch = batch(sequences, start, tokens);
        group.throughput(Throughput::Elements((sequences * tokens) as u64));
        group.bench_function(BenchmarkId::new(name, sequences * tokens), |b| {
            b.iter(|| assert!(model.forward(&batch).is_ok()));
        });
        assert_same(name, &forward(&mut model, &batch)?, &last);
    }
    group.finish();
    Ok(())
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_secs(1));
    targets = steps
}
criterion_main!(benches);
