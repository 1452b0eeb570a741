//! Times candle on a GGUF file: one shape in one process, in the conventions of `chrysalis bench`.
//!
//! `candle-peer MODEL PROMPT GENERATE BATCH REPEAT`, threads from `RAYON_NUM_THREADS`; JSON on standard output. BATCH
//! sequences of PROMPT random tokens each (prefill: one call for one sequence, a token at a time for more, which candle
//! cannot do otherwise, so that only their decode is worth a look), then GENERATE - 1 steps of one token a sequence
//! (decode), after a short pass that is not counted. No sampling. candle's cache is f32 and of its own making.

use std::env;
use std::error::Error;
use std::fs::File;
use std::time::Instant;

use candle_core::quantized::gguf_file::Content;
use candle_core::{Device, Tensor};
use candle_transformers::models::{quantized_gemma3, quantized_llama};

enum Model {
    Llama(quantized_llama::ModelWeights),
    Gemma3(quantized_gemma3::ModelWeights),
}

struct Shape {
    prompt: usize,
    generate: usize,
    batch: usize,
    repeat: usize,
}

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = env::args().collect();
    let [_, path, numbers @ ..] = args.as_slice() else { return Err(USAGE.into()) };
    let numbers = numbers.iter().map(|n| n.parse()).collect::<Result<Vec<usize>, _>>()?;
    let &[prompt, generate, batch, repeat] = numbers.as_slice() else { return Err(USAGE.into()) };
    if generate < 2 {
        return Err("GENERATE is 2 or more".into());
    }
    let shape = Shape { prompt, generate, batch, repeat };
    let start = Instant::now();
    let (mut model, vocab) = load(path)?;
    let load_s = start.elapsed().as_secs_f64();
    run(
        &mut model,
        &Shape { prompt: prompt.min(WARM_TOKENS), generate: 2, batch: 1, repeat: 1 },
        vocab,
    )?;
    let mut rates = Vec::new();
    for _ in 0..shape.repeat {
        rates.push(run(&mut model, &shape, vocab)?);
    }
    let (prefill, decode): (Vec<f64>, Vec<f64>) = rates.into_iter().unzip();
    println!("{{\"load_s\": {load_s}, \"prefill\": {prefill:?}, \"decode\": {decode:?}}}");
    Ok(())
}

/// The model and the number of its tokens.
fn load(path: &str) -> Result<(Model, usize), Box<dyn Error>> {
    let mut file = File::open(path)?;
    let content = Content::read(&mut file)?;
    let architecture =
        content.metadata.get("general.architecture").ok_or("no architecture")?.to_string()?.clone();
    let embedding = content.tensor_infos.get("token_embd.weight").ok_or("no token_embd.weight")?;
    let vocab = embedding.shape.dims2()?.0;
    let model = match architecture.as_str() {
        "llama" => Model::Llama(quantized_llama::ModelWeights::from_gguf(
            content,
            &mut file,
            &Device::Cpu,
        )?),
        "gemma3" => Model::Gemma3(quantized_gemma3::ModelWeights::from_gguf(
            content,
            &mut file,
            &Device::Cpu,
        )?),
        other => return Err(format!("{other} is not timed here").into()),
    };
    Ok((model, vocab))
}

/// Prefill and decode, tokens a second over all sequences.
fn run(model: &mut Model, shape: &Shape, vocab: usize) -> candle_core::Result<(f64, f64)> {
    let mut state = 1u64;
    let start = Instant::now();
    // Its models take the last row of a batch as a view that its matrix product refuses, unless that is the only row.
    let part = if shape.batch == 1 { shape.prompt } else { 1 };
    for position in (0..shape.prompt).step_by(part) {
        forward(model, shape.batch, part, position, vocab, &mut state)?;
    }
    let prefilled = start.elapsed().as_secs_f64();
    for step in 0..shape.generate - 1 {
        forward(model, shape.batch, 1, shape.prompt + step, vocab, &mut state)?;
    }
    let decoded = start.elapsed().as_secs_f64() - prefilled;
    let prefill = (shape.batch * shape.prompt) as f64 / prefilled;
    Ok((prefill, (shape.batch * (shape.generate - 1)) as f64 / decoded))
}

/// One call on random tokens; position 0 starts the cache anew.
fn forward(
    model: &mut Model,
    batch: usize,
    tokens: usize,
    position: usize,
    vocab: usize,
    state: &mut u64,
) -> candle_core::Result<()> {
    let mut next = || {
        *state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((*state >> 33) % vocab as u64) as u32
    };
    let ids: Vec<u32> = (0..batch * tokens).map(|_| next()).collect();
    let ids = Tensor::from_vec(ids, (batch, tokens), &Device::Cpu)?;
    let logits = match model {
        Model::Llama(model) => model.forward(&ids, position)?,
        Model::Gemma3(model) => model.forward(&ids, position)?,
    };
    let first = logits.flatten_all()?.get(0)?.to_scalar::<f32>()?;
    if first.is_finite() {
        Ok(())
    } else {
        Err(candle_core::Error::Msg("the logits are not finite".into()))
    }
}

const USAGE: &str = "candle-peer MODEL PROMPT GENERATE BATCH REPEAT";
const WARM_TOKENS: usize = 128;
