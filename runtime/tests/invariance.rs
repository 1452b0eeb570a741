//! Batch invariance: the tokens of a request are the same whatever else runs, however its prompt is cut, on any number of
//! threads, with drafts or without. On tiny models always; on the real one where `chrysalis demo` (or CHRYSALIS_MODELS) has left it.

#![expect(clippy::unwrap_used, reason = "what cannot be set up is a failed test")]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use chrysalis_kernels::cpu::{Cpu, CpuOptions};
use chrysalis_kernels::device::CacheDtype;
use chrysalis_models::config::ModelConfig;
use chrysalis_models::decoder::{Decoder, DecoderLimits};
use chrysalis_models::source;
use chrysalis_models::weights::{TensorSpec, WeightLoader};
use chrysalis_runtime::engine::{
    Engine, EngineLimits, Event, NewSequence, Sampling, SequenceId, StepShape, StepStatus,
};
use zeroize::Zeroizing;

const OUTPUT: u32 = 64;
const PROMPT: u32 = 45;

/// How one run differs from another.
#[derive(Clone, Copy, Debug)]
struct Run {
    threads: usize,
    tokens_per_step: usize,
    strangers: u64,
    /// Blocks of the cache: few of them make sequences give up their place and begin again.
    blocks: usize,
    /// Tokens of a draft.
    draft: u32,
}

fn engine(model: &Path, run: Run) -> (Engine, u32) {
    let device =
        Cpu::new(CpuOptions { threads: Some(run.threads), ..CpuOptions::default() }).unwrap();
    let source = source::open(model).unwrap();
    let config = ModelConfig::try_from(source.architecture()).unwrap();
    let specs: Vec<_> = source
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
        loader.write(index, 0, &bytes).unwrap();
    }
    let weights = loader.finish().unwrap();
    let vocab_size = u32::try_from(config.vocab_size()).unwrap();
    let limits = DecoderLimits {
        max_tokens: run.tokens_per_step.max(9),
        max_logit_rows: 9 + 4 * run.draft as usize,
        num_blocks: run.blocks,
        block_size: 16,
        cache_dtype: CacheDtype::F16,
    };
    let decoder = Decoder::new(Arc::new(device), config, weights, limits).unwrap();
    let limits = EngineLimits {
        max_sequences: 9,
        max_waiting: 9,
        max_tokens_per_step: u32::try_from(run.tokens_per_step.max(9)).unwrap(),
        max_prompt: 128,
        max_output: OUTPUT,
    };
    let shape = StepShape { max_prefill_with_decode: 40, max_draft: run.draft };
    (Engine::new(Box::new(decoder), limits).unwrap().shaped(shape), vocab_size)
}

/// The greedy answer to the same prompt every time, among strangers with other prompts, and how many tokens of drafts
/// were right.
fn answer(model: &Path, run: Run) -> (Vec<u32>, u64) {
    let (mut engine, vocab_size) = engine(model, run);
    let sequence = |id: u64| {
        let length = PROMPT + (id as u32 * 7) % 30;
        let prompt = (0..length).map(|i| (i * 37 + id as u32 * 101 + 5) % vocab_size).collect();
        NewSequence {
            id: SequenceId(id),
            prompt: Zeroizing::new(prompt),
            max_output: OUTPUT,
            sampling: Sampling::greedy(),
            seed: 0,
            stop_token_ids: Vec::new(),
            logprobs: None,
        }
    };
    // Half of the strangers come before, half after.
    for id in 1..=run.strangers / 2 {
        engine.add(sequence(id)).unwrap();
    }
    let mut events = Vec::new();
    engine.step(&mut events).unwrap();
    engine.add(sequence(0)).unwrap();
    for id in run.strangers / 2 + 1..=run.strangers {
        engine.add(sequence(id)).unwrap();
    }
    let mut tokens = Vec::new();
    while engine.step(&mut events).unwrap() != StepStatus::Idle {}
    for event in events {
        if let Event::Token { id: SequenceId(0), token, .. } = event {
            tokens.push(token);
        }
    }
    (tokens, engine.counters().confirmed_tokens)
}

fn check(model: &Path) {
    let alone = Run { threads: 1, tokens_per_step: 512, strangers: 0, blocks: 128, draft: 0 };
    let (expected, _) = answer(model, alone);
    assert_eq!(expected.len(), OUTPUT as usize);
    let runs = [
        Run { threads: 2, ..alone },
        Run { tokens_per_step: 9, ..alone },
        Run { tokens_per_step: 17, ..alone },
        Run { strangers: 7, ..alone },
        Run { threads: 2, strangers: 7, tokens_per_step: 33, ..alone },
        Run { threads: 2, strangers: 7, tokens_per_step: 64, blocks: 24, ..alone },
        Run { draft: 2, ..alone },
        Run { draft: 8, ..alone },
        Run { threads: 2, strangers: 7, tokens_per_step: 33, blocks: 24, draft: 8 },
    ];
    let mut confirmed = 0;
    for run in runs {
        let (found, right) = answer(model, run);
        assert_eq!(found, expected, "{} {run:?}", model.display());
        confirmed += right;
    }
    assert!(confirmed > 0, "{}: no draft was right, so none was tried", model.display());
}

#[test]
fn the_tokens_of_a_tiny_model_do_not_depend_on_company_chunks_or_threads() {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/tests/data");
    for name in ["tiny-llama3", "tiny-qwen3", "tiny-gemma3"] {
        check(&data.join(name));
    }
}

#[test]
fn the_tokens_of_the_real_model_do_not_depend_on_company_chunks_or_threads() {
    let of = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let folder = of("CHRYSALIS_MODELS").or_else(|| {
        let cache = of("XDG_CACHE_HOME").or_else(|| of("HOME").map(|home| home.join(".cache")));
        cache.map(|cache| cache.join("chrysalis"))
    });
    match folder.map(|folder| folder.join("smollm2-135m-instruct-q4_1.gguf")) {
        Some(model) if model.exists() => check(&model),
        _ => println!("skipped: no real model; run `cargo run --release -- demo` first"),
    }
}
