//! Logits of whole decoders: a small real model against what the reference said where the binary was built, and random ones of
//! real shapes against sixteen-bit activations on the host.

use std::sync::Arc;

use chrysalis_kernels::Dtype;
use chrysalis_kernels::device::CacheDtype;
use chrysalis_models::decoder::Model;

use crate::args::Size;
use crate::checks::{Check, Context, Outcome};
use crate::model::{LLAMA_1B, LLAMA_8B, Shape, Strip, TINY, decoder, room, token, weights};
use crate::real_model::{self, Expected, columns};
use crate::report::Row;
use crate::subject::{Subject, oracle};

pub(crate) fn checks<D: Subject>(size: Size) -> Vec<Check> {
    let mut checks = Vec::new();
    if size > Size::Tiny {
        checks.push(Check::new("logits/real-model", 60, real::<D>));
    }
    let types = size.pick(
        &[Dtype::Bf16, Dtype::Q4_1][..],
        &[Dtype::Bf16, Dtype::Q4_1],
        &[Dtype::Bf16, Dtype::F8E4M3, Dtype::Q4_1],
    );
    let shapes = size.pick(&[TINY][..], &[LLAMA_1B], &[LLAMA_1B, LLAMA_8B]);
    for shape in shapes {
        for dtype in types {
            let name = format!("logits/{}-{}", shape.name, dtype.name());
            checks.push(Check::new(name, 60, |c| random::<D>(c, *shape, *dtype)));
        }
    }
    checks
}

/// The goals: 1e-2 of the logits' size, 99 % of the likeliest tokens.
fn real<D: Subject>(context: &Context<'_, D>) -> Outcome {
    let recorded = real_model::recorded(&context.data)?;
    let tokens = &recorded.tokens;
    let (mut model, report) =
        real_model::open(context.device.clone(), &context.data, tokens.len(), CacheDtype::F16)?;
    context.note(&Row::text("load", report.to_string()))?;
    let mut compared = Compared::default();
    real_model::logits(&mut model, tokens, |row, logits| {
        compared.add(row, &recorded.rows[row], logits);
    })?;
    context.note(&Row::below(
        "logits of a real model",
        compared.error(),
        D::logits_error(),
        "error",
    ))?;
    context.note(&Row::least("likeliest tokens", compared.agreement(), 0.99, "agree"))?;
    decided(context, &compared)
}

/// Few layers of a real shape. The logits of random weights lie close together, so that agreement is asked for only where the
/// likeliest token is clear of the next.
fn random<D: Subject>(context: &Context<'_, D>, shape: Shape, dtype: Dtype) -> Outcome {
    let shape = shape.with_layers(2);
    let strip = Strip::new(dtype, context.size.pick(1 << 16, 1 << 25, 1 << 25))?;
    let tokens: Vec<u32> = (0..context.size.pick(9, 48, 48)).map(|at| token(&shape, at)).collect();
    let limits = |cache| room(64, 64, tokens.len(), cache);
    let host = Arc::new(oracle()?);
    let (host_weights, _) = weights(&*host, &shape, dtype, &strip)?;
    let mut host = decoder(&host, &shape, host_weights, limits(CacheDtype::F32))?;
    let mut expected = Vec::new();
    real_model::logits(&mut host, &tokens, |row, logits| expected.push(Expected::of(row, logits)))?;
    drop(host);
    let (device_weights, _) = weights(&*context.device, &shape, dtype, &strip)?;
    let mut model = decoder(&context.device, &shape, device_weights, limits(CacheDtype::F16))?;
    let mut compared = Compared::default();
    real_model::logits(&mut model, &tokens, |row, logits| {
        compared.add(row, &expected[row], logits);
    })?;
    context.note(&Row::below(model.describe(), compared.error(), D::logits_error(), "error"))?;
    context.note(&Row::figure("likeliest tokens", compared.agreement(), "agree"))?;
    decided(context, &compared)
}

fn decided<D: Subject>(context: &Context<'_, D>, compared: &Compared) -> Outcome {
    let mut row = Row::holds("likeliest tokens that are clear of the next", compared.wrong() == 0);
    row.detail = format!("{} of {} rows", compared.clear(), compared.rows.len());
    context.note(&row)?;
    Ok(())
}

/// Sums over the rows that were compared.
#[derive(Default)]
struct Compared {
    difference: f64,
    size: f64,
    values: usize,
    /// Margin in the reference, and whether the likeliest token is the same.
    rows: Vec<(f32, bool)>,
}

impl Compared {
    fn add(&mut self, row: usize, expected: &Expected, logits: &[f32]) {
        for (found, expected) in columns(row, logits.len()).map(|at| logits[at]).zip(&expected.some)
        {
            let difference = f64::from(found) - f64::from(*expected);
            self.difference += difference * difference;
            self.size += f64::from(*expected) * f64::from(*expected);
            self.values += 1;
        }
        let (top, _) = real_model::top(logits);
        self.rows.push((expected.margin, top == expected.top));
    }

    fn error(&self) -> f64 {
        (self.difference / self.size).sqrt()
    }

    fn agreement(&self) -> f64 {
        self.rows.iter().filter(|(_, same)| *same).count() as f64 / self.rows.len() as f64
    }

    /// Eight times what a logit differs by: each of two may.
    fn is_clear(&self, margin: f32) -> bool {
        f64::from(margin) > 8.0 * (self.difference / self.values as f64).sqrt()
    }

    fn clear(&self) -> usize {
        self.rows.iter().filter(|(margin, _)| self.is_clear(*margin)).count()
    }

    fn wrong(&self) -> usize {
        self.rows.iter().filter(|(margin, same)| self.is_clear(*margin) && !same).count()
    }
}
