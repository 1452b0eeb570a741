//! A token's numbers are the same bits in any batch, in any chunk, and whether its step was recorded or not.

use std::error::Error;
use std::sync::Arc;

use chrysalis_benches::upload;
use chrysalis_kernels::device::{Activation, CacheDtype, Device, DeviceError, Input, Linear};
use chrysalis_kernels::profile::Profiled;
use chrysalis_kernels::{Batch, Dtype, WantLogits};
use chrysalis_models::decoder::{Decoder, Model};

use crate::args::Size;
use crate::checks::{Check, Context, Outcome, Place};
use crate::common::{Random, bits, buffer, read};
use crate::linear::{product, with_spikes};
use crate::model::{
    BLOCK, LLAMA_1B, LLAMA_8B, Shape, Strip, TINY, batch, decoder, room, token, weights,
};
use crate::operations::cases;
use crate::report::Row;
use crate::subject::Subject;

pub(crate) fn checks<D: Subject>(size: Size) -> Vec<Check> {
    let mut checks = vec![
        Check::new("invariance/products", 60, products::<D>),
        Check::new("invariance/gates", 60, gates::<D>),
        Check::new("invariance/attention", 60, attention::<D>),
    ];
    checks.push(Check::unopened("invariance/recorded", 60, recorded::<D>));
    for dtype in size.pick(
        &[Dtype::Bf16][..],
        &[Dtype::Bf16, Dtype::Q4_1],
        &[Dtype::Bf16, Dtype::F8E4M3, Dtype::Q4_1],
    ) {
        checks.push(Check::new(format!("invariance/model-{}", dtype.name()), 60, |c| {
            model::<D>(c, *dtype)
        }));
    }
    checks
}

/// A gate that a device makes where its products are, on the way to the next one, has the bits of one that is made apart.
fn gates<D: Subject>(context: &Context<'_, D>) -> Outcome {
    let (cols, inner) = context.size.pick((64, 128), (512, 8192), (1024, 14_336));
    let activations = [Activation::Silu, Activation::GeluTanh, Activation::GeluErf];
    for (dtype, activation) in [Dtype::Bf16, Dtype::Q8_0, Dtype::Q4_1].into_iter().zip(activations)
    {
        let (device, mut random) = (&*context.device, Random(17));
        let mut weight = |out, cols| {
            let stored = random.matrix(dtype, out, cols);
            upload(device, dtype, (out, cols), &stored)
        };
        let weights = [weight(inner, cols)?, weight(inner, cols)?, weight(cols, inner)?];
        let mut differ = Vec::new();
        for rows in [1, 5, 40, 100, 130, 256, 600] {
            let [together, apart] = [false, true]
                .map(|apart| gated(device, &weights, (rows, cols, inner), activation, apart));
            differ.extend((together? != apart?).then_some(rows));
        }
        let what = format!("gates of {}, {activation:?}", dtype.name());
        let mut row = Row::holds(what, differ.is_empty());
        row.detail =
            if differ.is_empty() { String::new() } else { format!("{differ:?} rows differ") };
        context.note(&row)?;
    }
    Ok(())
}

/// A layer's feed-forward product of rows that are no norm; `apart`: the gate is waited for.
fn gated<D: Device>(
    device: &D,
    [gates, ups, downs]: &[D::Matrix; 3],
    (rows, cols, inner): (usize, usize, usize),
    activation: Activation,
    apart: bool,
) -> Result<Vec<u32>, DeviceError> {
    let x = buffer(device, rows, cols, &Random(19).values(rows * cols));
    let [mut gate, mut up] = [device.buffer(rows, inner)?, device.buffer(rows, inner)?];
    let mut out = device.buffer(rows, cols)?;
    let outputs = &mut [
        Linear { weight: gates, bias: None, out: &mut gate },
        Linear { weight: ups, bias: None, out: &mut up },
    ];
    device.linear(rows, Input::Rows(&x), outputs);
    if apart {
        device.finish()?;
    }
    let input = Input::Gated { activation, gate: &gate, up: &up };
    device.linear(rows, input, &mut [Linear { weight: downs, bias: None, out: &mut out }]);
    device.finish()?;
    Ok(bits(&read(device, &out, rows, cols)))
}

/// Rows of an odd product, in batches of 1 to 300.
fn products<D: Subject>(context: &Context<'_, D>) -> Outcome {
    let (out, cols) = (35, 768);
    let most = context.size.pick(40, 300, 300);
    for dtype in Dtype::ALL {
        let mut random = Random(7);
        let weight = random.matrix(dtype, out, cols);
        let x = with_spikes(random.values(most * cols));
        let device = &*context.device;
        let all = bits(&product(device, dtype, (out, cols, most), &weight, &x, None));
        let parts = [
            (0, 1),
            (most - 1, 1),
            (3, 2),
            (5, 4),
            (4, 5),
            (1, 16),
            (2, 17),
            (7, 33),
            (9, 130),
            (30, 257),
        ];
        let parts = parts.into_iter().filter(|(first, count)| first + count <= most);
        let differ = parts.filter(|(first, count)| {
            let x = &x[first * cols..][..count * cols];
            let some = product(device, dtype, (out, cols, *count), &weight, x, None);
            bits(&some) != all[first * out..][..count * out]
        });
        let differ: Vec<_> = differ.collect();
        let mut row = Row::holds(dtype.name(), differ.is_empty());
        row.detail =
            if differ.is_empty() { String::new() } else { format!("rows {differ:?} differ") };
        context.note(&row)?;
    }
    Ok(())
}

/// A sequence in one piece, in pieces of seven, token by token, and beside another.
fn attention<D: Subject>(context: &Context<'_, D>) -> Outcome {
    let cases = cases();
    let few = context.size.pick(&[3, 9][..], &[], &[]);
    for (n, case) in cases.iter().enumerate().filter(|(n, _)| few.is_empty() || few.contains(n)) {
        let device = &*context.device;
        let whole = bits(&case.chunks(device, &[case.tokens]));
        let sevens = [vec![7; case.tokens / 7], vec![1; case.tokens % 7]].concat();
        let chunked = [&[1, case.tokens - 1], &sevens[..], &vec![1; case.tokens]];
        let same = chunked.into_iter().all(|chunks| bits(&case.chunks(device, chunks)) == whole);
        context.note(&Row::holds(format!("case {n} in chunks"), same))?;
        if case.tokens > 1 {
            let both = bits(&case.with_neighbours(device, &[case.tokens / 2]));
            context.note(&Row::holds(
                format!("case {n} beside another"),
                both[..whole.len()] == whole,
            ))?;
        }
    }
    Ok(())
}

/// A whole decoder: the last token's logits however the prompt came, and whoever else is in the step.
fn model<D: Subject>(context: &Context<'_, D>, dtype: Dtype) -> Outcome {
    let (run, strip) = Run::new(context, dtype)?;
    let tokens = run.tokens;
    let mut model = run.open(&context.device, dtype, &strip, CacheDtype::F16)?;
    let whole = run.chunks(&mut model, &[tokens])?;
    for &chunk in context.size.pick(&[1, 7][..], &[1, 7, 64, 128], &[1, 7, 64, 128]) {
        let chunks: Vec<_> = (0..tokens).step_by(chunk).map(|at| chunk.min(tokens - at)).collect();
        // Decoding every token of a long prompt takes long and shows no more than the last ones.
        let first: usize = chunks.iter().rev().skip(LAST_STEPS).sum();
        let chunks = if first > 0 {
            [vec![first], chunks[chunks.len() - LAST_STEPS..].to_vec()].concat()
        } else {
            chunks
        };
        let same = run.chunks(&mut model, &chunks)? == whole;
        context.note(&Row::holds(format!("{tokens} tokens, at last {chunk} at a time"), same))?;
    }
    for others in context.size.pick(&[3][..], &[1, 15, 63], &[1, 3, 15, 16, 63, 127]) {
        let same = run.beside(&mut model, *others)? == whole;
        context.note(&Row::holds(format!("the last token beside {others} others"), same))?;
    }
    Ok(())
}

/// The same bits from recorded steps and from a device that counts: it waits after each operation, and so records nothing. Of one
/// sequence, of few and of many, over every cache, with heads of 64 values and of 128.
fn recorded<D: Subject>(place: &Place) -> Outcome {
    let (small, large) = (LLAMA_1B.with_layers(2), LLAMA_8B.with_layers(1));
    for shape in place.size.pick(&[TINY][..], &[small, large], &[small, large]) {
        let (run, strip) = Run::of(place, *shape, Dtype::Bf16)?;
        for cache in D::CACHES {
            // One device is gone before the next takes the card's memory.
            let recorded = run.steps(&Arc::new(D::open()?), place.size, &strip, *cache)?;
            let counted = Arc::new(Profiled::new(D::open()?));
            let one_by_one = run.steps(&counted, place.size, &strip, *cache)?;
            for ((sequences, logits), (_, expected)) in recorded.iter().zip(&one_by_one) {
                let name = shape.name;
                let what =
                    format!("{name}: steps of {sequences}, recorded and not, cache {cache:?}");
                place.note(&Row::holds(what, logits == expected))?;
            }
        }
    }
    Ok(())
}

/// So many sequences, and the logits of their last step.
type Logits = (usize, Vec<u32>);

/// A prompt through a decoder.
struct Run {
    shape: Shape,
    tokens: usize,
    blocks: usize,
}

impl Run {
    fn new(place: &Place, dtype: Dtype) -> Result<(Self, Strip), Box<dyn Error>> {
        let shape = place.size.pick(TINY, LLAMA_1B.with_layers(2), LLAMA_1B.with_layers(2));
        Self::of(place, shape, dtype)
    }

    fn of(place: &Place, shape: Shape, dtype: Dtype) -> Result<(Self, Strip), Box<dyn Error>> {
        let tokens = place.size.pick(13, 150, 301);
        let strip = Strip::new(dtype, place.size.pick(1 << 16, 1 << 24, 1 << 24))?;
        Ok((Self { shape, tokens, blocks: tokens.div_ceil(BLOCK) }, strip))
    }

    fn open<D: Device>(
        &self,
        device: &Arc<D>,
        dtype: Dtype,
        strip: &Strip,
        cache: CacheDtype,
    ) -> Result<Decoder<D>, Box<dyn Error>> {
        let (weights, _) = weights(&**device, &self.shape, dtype, strip)?;
        let positions = MOST * self.blocks * BLOCK;
        decoder(device, &self.shape, weights, room(self.tokens.max(MOST), MOST, positions, cache))
    }

    fn chunks(&self, model: &mut impl Model, chunks: &[usize]) -> Result<Vec<u32>, Box<dyn Error>> {
        let mut start = 0;
        for tokens in chunks {
            model.forward(&batch(&self.shape, 1, start, *tokens, self.blocks, WantLogits::Last))?;
            start += tokens;
        }
        self.logits(model, 0)
    }

    /// The last token in a step with the last tokens of other sequences, at other positions.
    fn beside(&self, model: &mut impl Model, others: usize) -> Result<Vec<u32>, Box<dyn Error>> {
        let last = self.tokens - 1;
        model.forward(&batch(&self.shape, 1, 0, last, self.blocks, WantLogits::None))?;
        let mut step = Batch::default();
        // It stands in the middle.
        for other in 1..=others {
            if other == others / 2 + 1 {
                let table = self.table(0);
                step.push(&[token(&self.shape, last)], last as u32, &table, WantLogits::Last);
            }
            step.push(
                &[other as u32],
                (other % self.tokens) as u32,
                &self.table(other),
                WantLogits::Last,
            );
        }
        model.forward(&step)?;
        self.logits(model, others / 2)
    }

    /// Logits of the last step of one sequence, and of so many together.
    fn steps<D: Device>(
        &self,
        device: &Arc<D>,
        size: Size,
        strip: &Strip,
        cache: CacheDtype,
    ) -> Result<Vec<Logits>, Box<dyn Error>> {
        let mut model = self.open(device, Dtype::Bf16, strip, cache)?;
        let last = [vec![self.tokens - 9], vec![1; 9]].concat();
        let mut all = vec![(1, self.chunks(&mut model, &last)?)];
        for &sequences in size.pick(&[3][..], &[3, 40], &[3, 40, 100]) {
            all.push((sequences, self.together(&mut model, sequences)?));
        }
        Ok(all)
    }

    /// Sequences, each after a prompt of its own length, in three steps of them all: the logits of each in the last.
    fn together(
        &self,
        model: &mut impl Model,
        sequences: usize,
    ) -> Result<Vec<u32>, Box<dyn Error>> {
        let prompt = |sequence: usize| 1 + sequence * 7 % (self.tokens - 3);
        for sequence in 0..sequences {
            let tokens: Vec<_> = (0..prompt(sequence)).map(|at| token(&self.shape, at)).collect();
            let mut batch = Batch::default();
            batch.push(&tokens, 0, &self.table(sequence), WantLogits::None);
            model.forward(&batch)?;
        }
        for n in 0..3 {
            let mut step = Batch::default();
            for sequence in 0..sequences {
                let (at, table) = (prompt(sequence) + n, self.table(sequence));
                step.push(&[token(&self.shape, at)], at as u32, &table, WantLogits::Last);
            }
            model.forward(&step)?;
        }
        let logits = (0..sequences).map(|sequence| self.logits(model, sequence));
        Ok(logits.collect::<Result<Vec<_>, _>>()?.concat())
    }

    fn table(&self, sequence: usize) -> Vec<u32> {
        (0..self.blocks).map(|i| (sequence * self.blocks + i) as u32).collect()
    }

    fn logits(&self, model: &impl Model, index: usize) -> Result<Vec<u32>, Box<dyn Error>> {
        let mut logits = vec![0.0; self.shape.vocab as usize];
        model.logits(index, &mut logits)?;
        Ok(bits(&logits))
    }
}

/// Sequences of a step.
const MOST: usize = 128;
/// Steps at the end of a prompt that come chunk by chunk.
const LAST_STEPS: usize = 5;
