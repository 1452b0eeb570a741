//! How fast: first what the card can do at all, then whole steps as an engine asks for them, as a share of that.

use std::error::Error;
use std::sync::Arc;
use std::time::Instant;

use chrysalis_benches::{buffer, upload};
use chrysalis_kernels::device::{Activation, CacheDtype, Crossings, Device, Input, Linear};
use chrysalis_kernels::profile::Profiled;
use chrysalis_kernels::{Batch, Draw, Dtype, WantLogits};
use chrysalis_models::decoder::{Decoder, Model};

use crate::args::Size;
use crate::checks::{Check, Context, Outcome, Place};
use crate::common::Random;
use crate::limits::{COPY, MATRIX};
use crate::load;
use crate::model::{BLOCK, LLAMA_1B, LLAMA_8B, Shape, Strip, TINY, batch, decoder, room, weights};
use crate::report::{Row, Timed};
use crate::subject::Subject;

pub(crate) fn checks<D: Subject>(size: Size) -> Vec<Check> {
    let mut checks = vec![
        Check::new("bench/limits", 30, limits::<D>),
        Check::new("bench/sealing", 20, sealing::<D>),
    ];
    checks.push(Check::unopened("bench/ways", 90, ways::<D>));
    let types = size.pick(&[Dtype::Bf16][..], &TYPES, &TYPES);
    for shape in size.pick(&[TINY][..], &[LLAMA_8B, LLAMA_1B], &[LLAMA_8B, LLAMA_1B]) {
        for dtype in types {
            let name = format!("bench/{}-{}", shape.name, dtype.name());
            checks.push(Check::new(name, 60, |c| model::<D>(c, *shape, *dtype)));
        }
        for dtype in size.pick(&[Dtype::Bf16][..], &[Dtype::Bf16, Dtype::Q4_1], &TYPES) {
            let name = |what| format!("bench/{what}-{}-{}", shape.name, dtype.name());
            checks.push(Check::unopened(name("profile"), 40, |c| profile::<D>(c, *shape, *dtype)));
        }
    }
    checks
}

/// A draw as most requests ask for it.
fn usual(row: u32, index: usize) -> Draw {
    Draw {
        temperature: 0.8,
        top_k: 40,
        top_p: 0.95,
        seed: u64::from(row),
        index: index as u64,
        ..Draw::greedy(row)
    }
}

/// Weights of the goals: as published, in eight bits, in four.
const TYPES: [Dtype; 3] = [Dtype::Bf16, Dtype::F8E4M3, Dtype::Q4_1];

/// A copy within the device, and a large product through our own kernel.
fn limits<D: Subject>(context: &Context<'_, D>) -> Outcome {
    let device = &*context.device;
    let bytes = context.size.pick(1 << 16, 1 << 30, 1 << 30);
    let copied = device.copy(bytes)?.map_or_else(|| selected(context, bytes), Ok)?;
    // Every byte is read and written.
    context.note(&Row::figure(COPY, 2.0 * bytes as f64 / copied / 1e9, "GB/s"))?;
    let n: usize = context.size.pick(64, 8192, 8192);
    let strip = Strip::new(Dtype::Bf16, 2 * n * n)?;
    let weight = upload(device, Dtype::Bf16, (n, n), &strip.of(2)[..2 * n * n])?;
    let x = buffer(device, n, n, &Random(3).values(n * n))?;
    let mut out = device.buffer(n, n)?;
    let seconds = median(context.size.pick(1, 9, 9), || {
        device.linear(
            n,
            Input::Rows(&x),
            &mut [Linear { weight: &weight, bias: None, out: &mut out }],
        );
        Ok(device.finish()?)
    })?;
    context.note(&Row::figure(MATRIX, 2.0 * (n as f64).powi(3) / seconds / 1e12, "TFLOP/s"))?;
    Ok(())
}

/// Products of an 8B by every way that the device has, so that the limits between them can be set: a gate and what it gates, and both
/// with the product that takes what is gated.
fn ways<D: Subject>(place: &Place) -> Outcome {
    let (inner, cols) = place.size.pick((64, 256), (14_336, 4096), (14_336, 4096));
    let most = place.size.pick(2, 2048, 2048);
    let strip = Strip::new(Dtype::Bf16, 2 * inner * cols)?;
    let values = Random(5).values(most * cols);
    // The device that knows them is gone before another one takes the card's memory.
    let ways = D::open()?.ways();
    for way in ways {
        let device = D::open_way(way)?;
        let matrix = |outs, cols| {
            upload(&device, Dtype::Bf16, (outs, cols), &strip.of(2)[..2 * outs * cols])
        };
        let (gate, up, down) = (matrix(inner, cols)?, matrix(inner, cols)?, matrix(cols, inner)?);
        let x = buffer(&device, most, cols, &values)?;
        let (mut g, mut u) = (device.buffer(most, inner)?, device.buffer(most, inner)?);
        let mut y = device.buffer(most, cols)?;
        for rows in [1, 8, 16, 32, 64, 128, 256, 2048].into_iter().filter(|rows| *rows <= most) {
            for (all, matrices, what) in [(false, 2, ""), (true, 3, ", and what takes their gate")]
            {
                let seconds = median(place.size.pick(1, 7, 15), || {
                    let gate = Linear { weight: &gate, bias: None, out: &mut g };
                    let up = Linear { weight: &up, bias: None, out: &mut u };
                    device.linear(rows, Input::Rows(&x), &mut [gate, up]);
                    if all {
                        let activation = Activation::Silu;
                        let input = Input::Gated { activation, gate: &g, up: &u };
                        let down = Linear { weight: &down, bias: None, out: &mut y };
                        device.linear(rows, input, &mut [down]);
                    }
                    Ok(device.finish()?)
                })?;
                let weights = matrices * inner * cols;
                let (bytes, operations) = (2.0 * weights as f64, 2.0 * (rows * weights) as f64);
                let work = Timed { bytes, operations, seconds };
                let what = format!("{rows} rows by {way}{what}");
                place.note(&Row { work: Some(work), ..Row::figure(what, 1e6 * seconds, "µs") })?;
            }
        }
    }
    Ok(())
}

/// Seconds in which an operation that only copies rows copies so many bytes.
fn selected<D: Subject>(context: &Context<'_, D>, bytes: usize) -> Result<f64, Box<dyn Error>> {
    let (device, cols) = (&*context.device, 4096);
    let rows = bytes.div_ceil(4 * cols);
    let (x, mut out) = (device.buffer(rows, cols)?, device.buffer(rows, cols)?);
    let mut batch = Batch::default();
    batch.push(&vec![0; rows], 0, &[], WantLogits::All);
    let mut step = device.step(rows)?;
    device.set_step(&mut step, &batch);
    median(context.size.pick(1, 9, 9), || {
        device.select(&step, &x, &mut out);
        Ok(device.finish()?)
    })
}

/// What a session adds to a token on the host, beside the card.
fn sealing<D: Subject>(context: &Context<'_, D>) -> Outcome {
    let frames = context.size.pick(10, 1000, 1000);
    let seconds = load::seal_frames(frames)?;
    context.note(&Row::figure("a frame of one token is sealed in", 1e6 * seconds, "µs"))?;
    Ok(())
}

/// Decode of 1 to 256 sequences, and prompts.
fn model<D: Subject>(context: &Context<'_, D>, shape: Shape, dtype: Dtype) -> Outcome {
    let strip = Strip::new(dtype, context.size.pick(1 << 16, 1 << 26, 1 << 26))?;
    let (weights, uploaded) = weights(&*context.device, &shape, dtype, &strip)?;
    let rate = uploaded.bytes as f64 / uploaded.seconds / 1e9;
    let what =
        format!("upload of {} MB from {} threads", uploaded.bytes / 1_000_000, uploaded.threads);
    context.note(&Row::figure(what, rate, "GB/s"))?;
    let widest = context.size.pick(3, 256, 256);
    let longest = context.size.pick(11, 8192, 8192);
    let chunk = context.size.pick(8, 2048, 2048);
    let (start, steps) = steps(context.size);
    let positions = (widest * (start + steps).next_multiple_of(BLOCK)).max(longest);
    let limits = room(chunk.max(widest), widest, positions, CacheDtype::F16);
    let mut model = decoder(&context.device, &shape, weights, limits)?;
    let frame = load::seal_frames(context.size.pick(2, 500, 500))?;
    let bench = Bench { context, shape, dtype, frame };
    for sequences in context.size.pick(&[1, 3][..], &[1, 16, 64], &[1, 16, 64, 256]) {
        bench.decode(&mut model, *sequences)?;
    }
    for tokens in context.size.pick(&[11][..], &[512, 2048], &[512, 2048, 8192]) {
        bench.prefill(&mut model, *tokens, chunk)?;
    }
    Ok(())
}

struct Bench<'a, D: Subject> {
    context: &'a Context<'a, D>,
    shape: Shape,
    dtype: Dtype,
    /// Seconds in which a frame of an answer is sealed.
    frame: f64,
}

impl<D: Subject> Bench<'_, D> {
    /// Steps as an engine makes them: each waits for the tokens of the one before.
    fn decode(&self, model: &mut Decoder<D>, sequences: usize) -> Outcome {
        let (start, steps) = steps(self.context.size);
        let blocks = (start + steps).div_ceil(BLOCK);
        let mut tokens = vec![None; sequences];
        let (mut with, mut without) = (Vec::new(), Vec::new());
        let batches: Vec<_> = (start..start + steps)
            .map(|start| {
                let mut batch = batch(&self.shape, sequences, start, 1, blocks, WantLogits::Last);
                (0..sequences as u32).for_each(|row| batch.draws.push(usual(row, start), &[]));
                batch
            })
            .collect();
        for step in &batches {
            let begun = Instant::now();
            model.forward(step)?;
            self.context.device.finish()?;
            without.push(begun.elapsed().as_secs_f64());
        }
        let before = self.context.device.crossings();
        for step in &batches {
            let begun = Instant::now();
            model.forward(step)?;
            model.sample(&mut tokens)?;
            with.push(begun.elapsed().as_secs_f64());
        }
        let (with, without) = (middle(&mut with), middle(&mut without));
        let work = self.shape.cost(self.dtype, sequences, start + steps / 2, 1, with);
        let what = format!("decode of {sequences}");
        self.row(what, sequences as f64 / with, work)?;
        let sealing = 100.0 * self.frame * sequences as f64 / with;
        let what = format!("sealing of {sequences} tokens on one core");
        self.context.note(&Row::figure(what, sealing, "% of a step"))?;
        if let (Some(before), Some(after)) = (before, self.context.device.crossings()) {
            self.crossings(sequences, steps, after.since(before))?;
        }
        let share = 100.0 * (1.0 - without / with);
        self.context.note(
            &Row::below(
                format!("choice of {sequences} tokens"),
                share,
                SAMPLING_PERCENT,
                "% of a step",
            )
            .measured(self.context.size),
        )?;
        Ok(())
    }

    /// A step is one copy in, one out, one wait, and no reservation.
    fn crossings(&self, sequences: usize, steps: usize, made: Crossings) -> Outcome {
        let each = |count: u64| count as f64 / steps as f64;
        let ok = each(made.copies_in) <= 1.0
            && each(made.copies_out) <= 1.0
            && each(made.waits) <= 1.0
            && made.reservations == 0;
        let mut row = Row::holds(format!("crossings of {sequences}"), ok);
        row.detail = format!(
            "a step: {} copies in of {} bytes, {} out of {}, {} waits, {} launches, {} records, {} reservations",
            each(made.copies_in),
            each(made.bytes_in),
            each(made.copies_out),
            each(made.bytes_out),
            each(made.waits),
            each(made.launches),
            each(made.replays),
            each(made.reservations)
        );
        self.context.note(&row)?;
        Ok(())
    }

    /// A prompt in chunks; the logits of its last token are wanted.
    fn prefill(&self, model: &mut Decoder<D>, tokens: usize, chunk: usize) -> Outcome {
        let blocks = tokens.div_ceil(BLOCK);
        let steps: Vec<_> = (0..tokens)
            .step_by(chunk)
            .map(|at| {
                let count = chunk.min(tokens - at);
                let want = if at + count == tokens { WantLogits::Last } else { WantLogits::None };
                let mut batch = batch(&self.shape, 1, at, count, blocks, want);
                if want == WantLogits::Last {
                    batch.draws.push(Draw::greedy(0), &[]);
                }
                batch
            })
            .collect();
        let seconds = median(self.context.size.pick(1, 3, 5), || {
            steps.iter().try_for_each(|step| model.forward(step))?;
            model.sample(&mut [None])?;
            Ok(())
        })?;
        let work = self.shape.cost(self.dtype, 1, 0, tokens, seconds);
        self.row(format!("prefill of {tokens}"), tokens as f64 / seconds, work)
    }

    fn row(&self, what: String, rate: f64, work: Timed) -> Outcome {
        self.context.note(&Row { work: Some(work), ..Row::figure(what, rate, "tokens/s") })?;
        Ok(())
    }
}

/// Where the time of a step goes, operation by operation, each waited for: launches and waits are in these figures, and not in
/// those of whole steps.
fn profile<D: Subject>(context: &Place, shape: Shape, dtype: Dtype) -> Outcome {
    let shape = shape.with_layers(4);
    let strip = Strip::new(dtype, context.size.pick(1 << 16, 1 << 26, 1 << 26))?;
    let device = Arc::new(Profiled::new(D::open()?));
    let (weights, _) = weights(&*device, &shape, dtype, &strip)?;
    let (start, _) = steps(context.size);
    let prompt = context.size.pick(9, 2048, 2048);
    let (some, many) = context.size.pick((1, 2), (64, 256), (64, 256));
    let positions = |tokens: usize| (start + tokens).next_multiple_of(BLOCK);
    let limits =
        room(prompt.max(many), many, positions(prompt).max(many * positions(1)), CacheDtype::F16);
    let mut model = decoder(&device, &shape, weights, limits)?;
    for (sequences, tokens) in [(1, 1), (some, 1), (many, 1), (1, prompt)] {
        let name = match tokens {
            1 => format!("decode of {sequences}"),
            _ => format!("prefill of {tokens}"),
        };
        let blocks = positions(tokens) / BLOCK;
        let step = batch(&shape, sequences, start, tokens, blocks, WantLogits::Last);
        model.forward(&step)?;
        device.finish()?;
        device.take();
        let runs = context.size.pick(1, 10, 20);
        for _ in 0..runs {
            model.forward(&step)?;
            device.finish()?;
        }
        for operation in device.take() {
            let calls = f64::from(operation.calls as u32);
            let seconds = operation.time.as_secs_f64() / calls;
            let work = operation.work;
            let timed = Timed {
                bytes: (work.stored_bytes + work.activation_bytes) as f64 / calls,
                operations: work.operations() as f64 / calls,
                seconds,
            };
            let what = format!("{name}: {} x {}", operation.calls / runs as u64, operation.name);
            context
                .note(&Row { work: Some(timed), ..Row::figure(what, 1e6 * seconds, "µs each") })?;
        }
    }
    Ok(())
}

/// Seconds of one run, the median of several after one that is not counted.
pub(crate) fn median(
    runs: usize,
    mut run: impl FnMut() -> Result<(), Box<dyn Error>>,
) -> Result<f64, Box<dyn Error>> {
    run()?;
    let mut times = Vec::new();
    for _ in 0..runs {
        let begun = Instant::now();
        run()?;
        times.push(begun.elapsed().as_secs_f64());
    }
    Ok(middle(&mut times))
}

fn middle(times: &mut [f64]) -> f64 {
    times.sort_by(f64::total_cmp);
    times.get(times.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Positions before the steps that are measured, and how many are.
fn steps(size: Size) -> (usize, usize) {
    size.pick((5, 2), (128, 16), (128, 24))
}

/// The goal for the choice of tokens.
const SAMPLING_PERCENT: f64 = 3.0;
