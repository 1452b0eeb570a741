//! The decoder against the original: tiny random models of each architecture, with logits recorded
//! from PyTorch by `scripts/record-oracles.py`, on every device that this machine has.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "helpers of tests, which say how far off they are"
)]

#[cfg(feature = "cuda-host")]
mod cuda;
#[path = "../support/mod.rs"]
mod support;

use std::path::PathBuf;

use chrysalis_kernels::batch::{Batch, WantLogits};
use chrysalis_kernels::cpu::{Cpu, CpuOptions, Isa};
use chrysalis_kernels::device::{CacheDtype, Device};
use chrysalis_kernels::reference::Reference;
use chrysalis_models::decoder::{Decoder, DecoderLimits, Model};
use chrysalis_models::source::{self, Source};
use chrysalis_protocol::package::Architecture;

use support::{decoder, error, step};

const MODELS: [&str; 8] =
    ["llama3", "llama-yarn", "llama-linear", "mistral", "qwen2", "qwen3", "gemma2", "gemma3"];

/// Largest difference over largest logit. Weights and cache are f32, so that only the order of sums
/// and the roundings of exp, tanh and erf differ: 2e-6 is usual.
const TOLERANCE: f32 = 2e-5;

#[test]
fn the_reference_device_computes_the_logits_of_the_original() {
    for name in MODELS {
        check(&Oracle::open(name), Reference);
    }
}

#[test]
fn every_instruction_set_computes_the_logits_of_the_original() {
    for name in MODELS {
        let oracle = Oracle::open(name);
        for cpu in cpus() {
            check(&oracle, cpu);
        }
    }
}

#[test]
fn chunked_prefill_changes_no_bit() {
    for name in MODELS {
        let oracle = Oracle::open(name);
        chunks_change_nothing(&oracle, Reference);
        for cpu in cpus() {
            chunks_change_nothing(&oracle, cpu);
        }
    }
}

#[test]
fn strangers_in_the_batch_change_no_bit() {
    for name in MODELS {
        let oracle = Oracle::open(name);
        strangers_change_nothing(&oracle, Reference);
        for cpu in cpus() {
            strangers_change_nothing(&oracle, cpu);
        }
    }
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    for name in MODELS {
        let oracle = Oracle::open(name);
        let [one, many] = [1, 3].map(|threads| {
            let cpu = cpu(None, threads);
            whole(&oracle, &mut oracle.decoder(cpu, &oracle.architecture()))
        });
        assert_eq!(one, many, "{name}");
    }
}

/// The oracles would be worth little if a part could be left out unseen.
#[test]
fn a_part_left_out_shows_in_the_logits() {
    type Change = fn(&mut Architecture);
    let no_window: Change = |a| (a.sliding_window, a.sliding_layers) = (0, [0; 8]);
    let plain_rope: Change = |a| a.rope_global.kind = 0;
    let changes: [(&str, &str, Change); 12] = [
        ("mistral", "window", no_window),
        ("gemma2", "window", no_window),
        ("gemma3", "window and local rope", no_window),
        ("gemma3", "local rope", |a| a.rope_local = a.rope_global),
        ("llama3", "scaling", plain_rope),
        ("llama-yarn", "scaling", plain_rope),
        ("llama-yarn", "attention factor", |a| {
            a.rope_global.attention_factor = 1.0;
        }),
        ("llama-linear", "scaling", plain_rope),
        ("llama-linear", "exact gelu", |a| a.activation = 1),
        ("gemma2", "attention cap", |a| a.attn_logit_softcap = 0.0),
        ("gemma2", "final cap", |a| a.final_logit_softcap = 0.0),
        ("gemma3", "embedding scale", |a| a.embedding_scale = 1.0),
    ];
    for (name, part, change) in changes {
        let oracle = Oracle::open(name);
        let mut architecture = oracle.architecture();
        change(&mut architecture);
        let found = whole(&oracle, &mut oracle.decoder(Reference, &architecture));
        let error = error(&found, &oracle.logits);
        assert!(error > 100.0 * TOLERANCE, "{name} without its {part} is only {error} off");
    }
}

#[test]
fn a_cache_of_halves_stays_close() {
    for name in MODELS {
        let oracle = Oracle::open(name);
        let limits = DecoderLimits { cache_dtype: CacheDtype::F16, ..LIMITS };
        let mut model = oracle.decoder_within(Reference, &oracle.architecture(), limits);
        let error = error(&whole(&oracle, &mut model), &oracle.logits);
        // Half precision rounds K and V by 2^-11; these models are sharper than trained ones.
        assert!(error < 5e-3, "{name}: {error}");
    }
}

fn check<D: Device>(oracle: &Oracle, device: D) {
    let mut model = oracle.decoder(device, &oracle.architecture());
    let found = whole(oracle, &mut model);
    let error = error(&found, &oracle.logits);
    println!("{:<13} {error:.1e}  {}", oracle.name, model.describe());
    assert!(error <= TOLERANCE, "{}: {error} on {}", oracle.name, model.describe());
}

fn chunks_change_nothing<D: Device>(oracle: &Oracle, device: D) {
    let mut model = oracle.decoder(device, &oracle.architecture());
    let expected = whole(oracle, &mut model);
    for chunk in [1, 7, 16] {
        model.clear_blocks(&[5, 0, 3, 1, 4]).unwrap();
        let mut found = Vec::new();
        for (index, tokens) in oracle.tokens.chunks(chunk).enumerate() {
            let mut batch = Batch::default();
            let start = (index * chunk) as u32;
            batch.push(tokens, start, &[5, 0, 3, 1, 4], WantLogits::All);
            found.extend(step(&mut model, &batch));
        }
        assert_eq!(found, expected, "{} in chunks of {chunk} on {}", oracle.name, model.describe());
    }
}

/// Our sequence in chunks of 5, with one stranger before it, whose chunk grows, and one behind it
/// that decodes.
fn strangers_change_nothing<D: Device>(oracle: &Oracle, device: D) {
    let mut model = oracle.decoder(device, &oracle.architecture());
    let expected = whole(oracle, &mut model);
    let vocab_size = model.vocab_size();
    let (mut before, mut found) = (0, Vec::new());
    for (index, tokens) in oracle.tokens.chunks(5).enumerate() {
        let mut batch = Batch::default();
        let stranger: Vec<u32> =
            (0..1 + index as u32 % 4).map(|i| (i * 37 + before) % 251).collect();
        batch.push(&stranger, before, &[9, 2, 6], WantLogits::Last);
        before += stranger.len() as u32;
        batch.push(tokens, (index * 5) as u32, &[4, 7, 0, 8, 1], WantLogits::All);
        batch.push(&[index as u32 + 11], index as u32, &[5], WantLogits::Last);
        let logits = step(&mut model, &batch);
        found.extend_from_slice(&logits[vocab_size..logits.len() - vocab_size]);
    }
    assert_eq!(found, expected, "{} on {}", oracle.name, model.describe());
}

/// Logits of every token, in one step.
fn whole(oracle: &Oracle, model: &mut impl Model) -> Vec<f32> {
    let mut batch = Batch::default();
    batch.push(&oracle.tokens, 0, &[2, 7, 1, 8, 3], WantLogits::All);
    step(model, &batch)
}

fn cpus() -> Vec<Cpu> {
    Isa::available().into_iter().map(|isa| cpu(Some(isa), 2)).collect()
}

fn cpu(isa: Option<Isa>, threads: usize) -> Cpu {
    Cpu::new(CpuOptions { threads: Some(threads), isa, ..CpuOptions::default() }).unwrap()
}

/// A recorded model.
struct Oracle {
    name: &'static str,
    source: Source,
    tokens: Vec<u32>,
    logits: Vec<f32>,
}

impl Oracle {
    fn open(name: &'static str) -> Self {
        let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
            .join("tests/data")
            .join(format!("tiny-{name}"));
        let tokens = std::fs::read_to_string(folder.join("tokens.txt")).unwrap();
        let logits = std::fs::read(folder.join("logits.f32")).unwrap();
        let (logits, []) = logits.as_chunks::<4>() else {
            panic!("{name}: logits are f32");
        };
        Self {
            name,
            source: source::open(&folder).unwrap(),
            tokens: tokens.split_whitespace().map(|token| token.parse().unwrap()).collect(),
            logits: logits.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect(),
        }
    }

    fn architecture(&self) -> Architecture {
        self.source.architecture().clone()
    }

    fn decoder<D: Device>(&self, device: D, architecture: &Architecture) -> Decoder<D> {
        self.decoder_within(device, architecture, LIMITS)
    }

    fn decoder_within<D: Device>(
        &self,
        device: D,
        architecture: &Architecture,
        limits: DecoderLimits,
    ) -> Decoder<D> {
        decoder(device, &self.source, architecture, limits)
    }
}

/// Blocks of 10 positions: no chunk and no window ends where a block does.
const LIMITS: DecoderLimits = DecoderLimits {
    max_tokens: 64,
    max_logit_rows: 64,
    num_blocks: 10,
    block_size: 10,
    cache_dtype: CacheDtype::F32,
};
