//! The decoder on the CUDA device, its kernels emulated: against the original, and with its decode steps as graphs.

use std::sync::Once;

use chrysalis_kernels::batch::{Batch, WantLogits};
use chrysalis_kernels::cuda::{
    Card, CardOptions, Cuda, Driver, Emulated, FAKE_IMAGE, load_fake_driver,
};
use chrysalis_kernels::device::{CacheDtype, Crossings, Device};
use chrysalis_kernels::reference::choose;
use chrysalis_kernels::sampling::{Draw, Edit};
use chrysalis_models::decoder::{Decoder, DecoderLimits, Model};
use chrysalis_protocol::package::Architecture;

use super::{MODELS, Oracle, check, chunks_change_nothing, strangers_change_nothing, whole};

fn emulated() -> Cuda<Emulated> {
    Cuda::new(Emulated::default())
}

/// The driver over a card, on a driver library that runs the emulated kernels.
fn card() -> Cuda<Card> {
    static LOADED: Once = Once::new();
    LOADED.call_once(load_fake_driver);
    Cuda::new(Card::open(FAKE_IMAGE, CardOptions { number: 0, memory: Some(32 << 20) }).unwrap())
}

#[test]
fn the_cuda_kernels_compute_the_logits_of_the_original() {
    for name in MODELS {
        let oracle = Oracle::open(name);
        check(&oracle, emulated());
        let emulated = whole(&oracle, &mut oracle.decoder(emulated(), &oracle.architecture()));
        let card = whole(&oracle, &mut oracle.decoder(card(), &oracle.architecture()));
        assert!(card == emulated, "{name}: a card computes what the emulator does");
    }
}

/// Chunks of one token are decode steps, and so graphs; the whole prompt is none.
#[test]
fn neither_chunks_nor_strangers_nor_graphs_change_a_bit() {
    for name in ["llama3", "gemma2", "qwen3"] {
        let oracle = Oracle::open(name);
        chunks_change_nothing(&oracle, emulated());
        strangers_change_nothing(&oracle, emulated());
    }
}

#[test]
fn decode_steps_as_graphs_are_those_without() {
    graphs_change_nothing(emulated);
    graphs_change_nothing(card);
}

#[test]
fn a_decode_step_is_one_copy_in_one_out_and_one_wait() {
    a_step_crosses_once_each_way(emulated);
    a_step_crosses_once_each_way(card);
}

/// Positions beyond a span of attention, so that graphs of several reaches are made.
const LONG: DecoderLimits = DecoderLimits {
    max_tokens: 64,
    max_logit_rows: 12,
    num_blocks: 325,
    block_size: 10,
    cache_dtype: CacheDtype::F16,
};

/// Sequences come and go, so that steps of several sizes share a graph and fill more or less of it.
fn graphs_change_nothing<D: Driver>(device: impl Fn() -> Cuda<D>) {
    for name in ["llama3", "gemma3"] {
        let oracle = Oracle::open(name);
        let architecture = Architecture { max_position_embeddings: 1024, ..oracle.architecture() };
        let decoder = || oracle.decoder_within(device(), &architecture, LONG);
        let (mut alone, mut together) = (decoder(), decoder());
        let mut replays = 0;
        for step in 0..8_u32 {
            let sequences = [1, 3, 12, 9, 2, 3, 10, 4][step as usize];
            // Some cross the end of their first span on the way.
            let position = |s: u32| if s.is_multiple_of(2) { step } else { 252 + step };
            let token = |s: u32| (step * 31 + s * 7) % 251;
            let blocks = |s: u32| -> Vec<u32> { (27 * s..27 * (s + 1)).rev().collect() };
            let (mut all, mut each) = (Batch::default(), Vec::new());
            for s in 0..sequences {
                all.push(&[token(s)], position(s), &blocks(s), WantLogits::Last);
            }
            // A draft beside it keeps a step from being one of decode size.
            for s in 0..sequences {
                let mut batch = Batch::default();
                batch.push(&[token(s)], position(s), &blocks(s), WantLogits::Last);
                batch.push(&[1], 0, &[324], WantLogits::None);
                alone.forward(&batch).unwrap();
                each.push(row(&alone, 0));
            }
            together.forward(&all).unwrap();
            let found: Vec<_> = (0..sequences as usize).map(|s| row(&together, s)).collect();
            assert!(found == each, "{name}, step {step}");
            replays = together.crossings().unwrap().replays;
        }
        assert_eq!(alone.crossings().unwrap().replays, 0, "no graph alone");
        assert_eq!(replays, 8, "each step is a graph");
    }
}

fn row<D: Device>(model: &Decoder<D>, index: usize) -> Vec<u32> {
    let mut logits = vec![f32::NAN; model.vocab_size()];
    model.logits(index, &mut logits).unwrap();
    assert!(logits.iter().all(|x| x.is_finite()));
    logits.iter().map(|x| x.to_bits()).collect()
}

fn a_step_crosses_once_each_way<D: Driver>(device: impl Fn() -> Cuda<D>) {
    let oracle = Oracle::open("llama3");
    let mut model = oracle.decoder(device(), &oracle.architecture());
    let mut step = |position: u32| {
        let mut batch = Batch::default();
        for s in 0..3 {
            batch.push(&[5 + s], position, &[s], WantLogits::Last);
            batch.draws.push(Draw::greedy(s), &[]);
        }
        let before = model.crossings().unwrap();
        model.forward(&batch).unwrap();
        model.sample(&mut [None; 3]).unwrap();
        model.crossings().unwrap().since(before)
    };
    // The first one makes the graph: even that neither waits nor reserves.
    for position in 0..4 {
        let crossed = step(position);
        let expected = Crossings {
            copies_in: 1,
            bytes_in: crossed.bytes_in,
            copies_out: 1,
            bytes_out: 3 * 8,
            waits: 1,
            launches: 1,
            replays: 1,
            reservations: 0,
        };
        assert_eq!(crossed, expected, "at position {position}");
        assert!(crossed.bytes_in < 512, "{crossed:?}");
    }
    // Draws with both cuts and edits, that keep few tokens or more: more launches, and no other crossing; the tokens are those that
    // the logits mean.
    let edit = Edit { bias: 3.0, ..Edit::none(7) };
    for (top_k, launches) in [(60, 3), (257, 7)] {
        let draw = |row| Draw { temperature: 1.5, top_k, top_p: 0.9, seed: 3, ..Draw::greedy(row) };
        let mut batch = Batch::default();
        for s in 0..3 {
            batch.push(&[5 + s], 4, &[s], WantLogits::Last);
            batch.draws.push(draw(s), &[edit]);
        }
        let before = model.crossings().unwrap();
        let mut tokens = [None; 3];
        model.forward(&batch).unwrap();
        model.sample(&mut tokens).unwrap();
        let crossed = model.crossings().unwrap().since(before);
        let counts = (crossed.copies_in, crossed.copies_out, crossed.waits, crossed.reservations);
        assert_eq!((counts, crossed.replays, crossed.launches), ((1, 1, 1, 0), 1, launches));
        for (s, token) in tokens.into_iter().enumerate() {
            let mut logits = vec![f32::NAN; model.vocab_size()];
            model.logits(s, &mut logits).unwrap();
            assert_eq!(token, choose(&logits, &draw(s as u32), &[edit]), "row {s}");
        }
    }
    let before = model.crossings().unwrap();
    model.clear_blocks(&[0, 1, 2]).unwrap();
    let cleared = model.crossings().unwrap().since(before);
    assert_eq!((cleared.copies_in, cleared.waits, cleared.reservations), (0, 0, 0), "clearing");
    // A prompt, which no graph has: the launches, and no other crossing.
    let before = model.crossings().unwrap();
    let mut batch = Batch::default();
    batch.push(&oracle.tokens, 0, &[2, 7, 1, 8, 3], WantLogits::Last);
    batch.draws.push(Draw::greedy(0), &[]);
    model.forward(&batch).unwrap();
    model.sample(&mut [None]).unwrap();
    let crossed = model.crossings().unwrap().since(before);
    let counts = (crossed.copies_in, crossed.copies_out, crossed.waits, crossed.reservations);
    assert_eq!((counts, crossed.replays), ((1, 1, 1, 0), 0), "a prompt");
}
