//! The load of a package of several segments: the same weights on any number of threads, and for every hostile source an
//! end that names the first segment that is wrong.

#![expect(clippy::unwrap_used, clippy::panic, reason = "what cannot be set up is a failed test")]

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use aws_lc_rs::signature::Ed25519KeyPair;
use chrysalis_kernels::cpu::{Cpu, CpuOptions};
use chrysalis_kernels::device::CacheDtype;
use chrysalis_models::config::ModelConfig;
use chrysalis_models::decoder::{Decoder, DecoderLimits};
use chrysalis_models::weights::{TensorSpec, WeightLoader, Weights, expected_tensors};
use chrysalis_protocol::package::{
    Architecture, BlobSink, BlobSource, Finished, Generation, Meta, Package, PackageError,
    PackageKey, PackageOptions, PackageWriter, Rope,
};
use chrysalis_protocol::secret::Secret;
use chrysalis_runtime::engine::{
    Engine, EngineLimits, Event, NewSequence, Sampling, SequenceId, StepStatus,
};
use chrysalis_runtime::load::{self, LoadError, LoadOptions};

#[test]
fn any_number_of_threads_places_the_same_weights() {
    let made = Made::new();
    let expected = made.tokens(made.plainly());
    assert!(expected.iter().any(|token| *token != expected[0]), "{expected:?}");
    for threads in [1, 2, 5] {
        let (reads, mut counts) = (AtomicUsize::new(0), Vec::new());
        let source = || Source { made: &made, reads: &reads, wrong: None };
        let (cpu, config) = (cpu(), made.config());
        let loaded = |count| counts.push(count);
        let (weights, report) =
            load::weights(&cpu, &config, &made.package, source, Some(threads), loaded).unwrap();
        assert_eq!(made.tokens(weights), expected, "{threads} threads");
        assert_eq!(counts, (1..=made.package.num_segments()).collect::<Vec<_>>());
        assert_eq!((report.threads, report.bytes), (threads, made.plain_len()));
        let bytes = report.bytes_per_second() * report.wall.as_secs_f64();
        assert!((bytes - made.plain_len() as f64).abs() < 1.0, "{report}");
        assert_eq!(reads.into_inner() as u64, made.package.num_segments(), "read once");
    }
}

#[test]
fn a_source_that_fails_lies_or_is_short_ends_the_load_with_the_first_segment_of_it() {
    let made = Made::new();
    for threads in [1, 4] {
        for wrong in 0..made.package.num_segments() {
            for how in [How::Fail, How::Lie, How::Short] {
                let error = made.refused(threads, wrong, how);
                let named = match (how, &error) {
                    (How::Lie, PackageError::SegmentSeal { segment })
                    | (How::Fail | How::Short, PackageError::Read { segment, .. }) => *segment,
                    _ => panic!("{how:?} at {wrong}: {error}"),
                };
                assert_eq!(named, wrong, "{how:?} on {threads} threads");
            }
        }
    }
}

#[test]
fn a_thread_that_panics_ends_the_load() {
    let made = Made::new();
    let (cpu, config, reads) = (cpu(), made.config(), AtomicUsize::new(0));
    let source = || Source { made: &made, reads: &reads, wrong: Some((2, How::Panic)) };
    let loaded = load::weights(&cpu, &config, &made.package, source, Some(3), |_| {});
    assert!(matches!(loaded, Err(LoadError::Panicked)));
    assert!(reads.into_inner() <= 2 + 3, "nobody takes another segment");
}

#[test]
fn the_decoder_that_is_reserved_has_the_weights() {
    let made = Made::new();
    let reads = AtomicUsize::new(0);
    let source = || Source { made: &made, reads: &reads, wrong: None };
    let options = LoadOptions {
        threads: Some(2),
        max_tokens: 16,
        max_logit_rows: 1,
        kv_tokens: 64,
        block_size: 16,
        cache_dtype: CacheDtype::F16,
    };
    let loaded = load::decoder(Arc::new(cpu()), &made.package, source, options, |_| {});
    assert_eq!(tokens(loaded.unwrap().0), made.tokens(made.plainly()));
}

/// What a source does wrong, from some segment on.
#[derive(Clone, Copy, Debug)]
enum How {
    Fail,
    Lie,
    Short,
    Panic,
}

struct Source<'a> {
    made: &'a Made,
    reads: &'a AtomicUsize,
    wrong: Option<(u64, How)>,
}

impl BlobSource for Source<'_> {
    fn read_at(&mut self, _blob: u32, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        buf.copy_from_slice(&self.made.blob.0[offset as usize..][..buf.len()]);
        match self.wrong {
            Some((first, how)) if offset >> SEGMENT_LOG2 >= first => match how {
                How::Fail => Err(io::Error::other("the disk is gone")),
                How::Short => Err(io::ErrorKind::UnexpectedEof.into()),
                How::Lie => {
                    let middle = buf.len() / 2;
                    buf[middle] ^= 4;
                    Ok(())
                }
                How::Panic => panic!("as asked"),
            },
            _ => Ok(()),
        }
    }
}

#[derive(Default)]
struct Blob(Vec<u8>);

impl BlobSink for Blob {
    fn append(&mut self, _blob: u32, bytes: &[u8]) -> io::Result<()> {
        self.0.extend_from_slice(bytes);
        Ok(())
    }
}

/// A sealed package of several segments whose ends cut rows and panels.
struct Made {
    package: Package,
    blob: Blob,
    tensors: Vec<Vec<u8>>,
}

impl Made {
    fn new() -> Self {
        let config = ModelConfig::try_from(&architecture()).unwrap();
        // Numbers of bf16 and f32: matrices and vectors.
        let dtype = |dims: &[u32]| if dims.len() == 2 { 30 } else { 0 };
        let tensors: Vec<_> = (expected_tensors(&config).into_iter())
            .map(|(name, dims)| (name, dtype(&dims), dims))
            .collect();
        let meta = Meta::new(architecture(), "tiny", "", &[], tensors).unwrap();
        let mut state = 1u64;
        let tensors: Vec<_> = (meta.tensors.iter())
            .map(|tensor| values(tensor.dtype, tensor.len, &mut state))
            .collect();
        let key = PackageKey::new(Secret::from([2; 32]));
        let publisher = Ed25519KeyPair::from_seed_unchecked(&[1; 32]).unwrap();
        let mut options = PackageOptions::new([1; 16], &publisher);
        (options.key, options.segment_log2) = (Some(&key), SEGMENT_LOG2);
        let mut writer = PackageWriter::new(&options, meta, Blob::default()).unwrap();
        for (index, bytes) in tensors.iter().enumerate() {
            writer.write(index, bytes).unwrap();
        }
        let Finished { file, sink: blob, .. } = writer.finish().unwrap();
        let package = Package::open(&file, Some(&key)).unwrap();
        assert!(package.num_segments() >= 4, "{} segments", package.num_segments());
        Self { package, blob, tensors }
    }

    fn config(&self) -> ModelConfig {
        ModelConfig::try_from(&self.package.meta().architecture).unwrap()
    }

    fn plain_len(&self) -> u64 {
        self.package.public().header().data_len
    }

    /// The weights without a package: each tensor in one piece.
    fn plainly(&self) -> Weights<Cpu> {
        let specs: Vec<_> = self.package.meta().tensors.iter().map(TensorSpec::from).collect();
        let (cpu, config) = (cpu(), self.config());
        let loader = WeightLoader::new(&cpu, &config, &specs).unwrap();
        for (index, bytes) in self.tensors.iter().enumerate() {
            loader.write(index, 0, bytes).unwrap();
        }
        loader.finish().unwrap()
    }

    fn tokens(&self, weights: Weights<Cpu>) -> Vec<u32> {
        let limits = DecoderLimits {
            max_tokens: 16,
            max_logit_rows: 1,
            num_blocks: 4,
            block_size: 16,
            cache_dtype: CacheDtype::F16,
        };
        tokens(Decoder::new(Arc::new(cpu()), self.config(), weights, limits).unwrap())
    }

    fn refused(&self, threads: usize, first: u64, how: How) -> PackageError {
        let (cpu, config, reads) = (cpu(), self.config(), AtomicUsize::new(0));
        let source = || Source { made: self, reads: &reads, wrong: Some((first, how)) };
        match load::weights(&cpu, &config, &self.package, source, Some(threads), |_| {}) {
            Err(LoadError::Package(error)) => error,
            Err(error) => panic!("{error}"),
            Ok(_) => panic!("a wrong segment was taken"),
        }
    }
}

fn cpu() -> Cpu {
    Cpu::new(CpuOptions { threads: Some(1), ..CpuOptions::default() }).unwrap()
}

/// What the decoder says to a prompt, greedily.
fn tokens(decoder: Decoder<Cpu>) -> Vec<u32> {
    let limits = EngineLimits {
        max_sequences: 1,
        max_waiting: 0,
        max_tokens_per_step: 16,
        max_prompt: 16,
        max_output: 16,
    };
    let mut engine = Engine::new(Box::new(decoder), limits).unwrap();
    let new = NewSequence {
        id: SequenceId(0),
        prompt: vec![1, 20, 300].into(),
        max_output: 16,
        sampling: Sampling::greedy(),
        seed: 0,
        stop_token_ids: Vec::new(),
        logprobs: None,
    };
    engine.add(new).unwrap();
    let mut events = Vec::new();
    while engine.step(&mut events).unwrap() != StepStatus::Idle {}
    let token = |event| if let Event::Token { token, .. } = event { Some(token) } else { None };
    events.into_iter().filter_map(token).collect()
}

/// Pseudo-random numbers within a tenth of zero, as bf16 or f32.
fn values(dtype: u16, len: u64, state: &mut u64) -> Vec<u8> {
    let mut value = || {
        *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (((*state >> 40) as f32 / (1u32 << 24) as f32 - 0.5) / 5.0).to_le_bytes()
    };
    match dtype {
        0 => (0..len / 4).flat_map(|_| value()).collect(),
        _ => (0..len / 2).flat_map(|_| value()[2..].to_vec()).collect(),
    }
}

fn architecture() -> Architecture {
    Architecture {
        hidden_size: 256,
        intermediate_size: 512,
        num_layers: 2,
        num_heads: 4,
        num_kv_heads: 2,
        head_dim: 64,
        vocab_size: 8003,
        max_position_embeddings: 100,
        tied_embeddings: true,
        qk_norm: false,
        sandwich_norms: false,
        qkv_bias: true,
        o_bias: false,
        mlp_bias: false,
        activation: 1,
        rms_norm_eps: 1e-6,
        embedding_scale: 1.0,
        attention_scale: 0.125,
        attn_logit_softcap: 0.0,
        final_logit_softcap: 0.0,
        sliding_window: 0,
        sliding_layers: [0; 8],
        rope_global: Rope { theta: 10_000.0, rope_dim: 64, ..Rope::default() },
        rope_local: Rope::default(),
        generation: Generation { top_p: 1.0, repetition_penalty: 1.0, ..Generation::default() },
    }
}

/// The smallest that there is: more ends of segments to cut tensors.
const SEGMENT_LOG2: u8 = 20;
