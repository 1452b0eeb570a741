//! Every operation against the reference, with random input at odd sizes; what is written must be written wholly, so outputs
//! begin as NaN.

use std::time::Instant;

use chrysalis_benches::upload;
use chrysalis_kernels::device::{Activation, CacheDtype, CacheShape, Device, Input, Linear};
use chrysalis_kernels::reference::Reference;
use chrysalis_kernels::{Batch, Dtype, WantLogits, quant};

use crate::args::Size;
use crate::checks::{Check, Context, Outcome, Place};
use crate::common::{Random, bits, buffer, matrix, read, relative_error};
use crate::linear::{SHAPES, embedded, product, with_spikes};
use crate::operations::{Case, all_rows, cases, gate};
use crate::operations::{ERROR, I8_CACHE_ERROR};
use crate::report::Row;
use crate::sampling::{choices, largest};
use crate::subject::{OWN_WAY, Subject, oracle};

pub(crate) fn checks<D: Subject>(size: Size) -> Vec<Check> {
    let mut checks = Vec::new();
    for dtype in Dtype::ALL {
        checks.push(Check::new(format!("kernels/products-{}", dtype.name()), 30, move |c| {
            products::<D>(c, dtype)
        }));
    }
    checks.push(Check::unopened("kernels/ways", 40, ways::<D>));
    checks.push(Check::new("kernels/rows", 30, rows::<D>));
    checks.push(Check::new("kernels/attention", 60, attention::<D>));
    checks.push(Check::new("kernels/tokens", 60, tokens::<D>));
    if size > Size::Tiny {
        for dtype in LARGE {
            checks.push(Check::new(format!("kernels/large-{}", dtype.name()), 60, move |c| {
                large::<D>(c, dtype)
            }));
        }
        checks.push(Check::new("kernels/long-attention", 60, long_attention::<D>));
    }
    checks
}

/// Each family once, for tools that slow everything down a hundred times.
pub(crate) fn small<D: Subject>(context: &Context<'_, D>) -> Outcome {
    for dtype in Dtype::ALL {
        product_case(context, dtype, (33, 256, 2), 1)?;
        product_case(context, dtype, (40, 512, 19), 2)?;
    }
    rows(context)?;
    let cases = cases();
    [0, 2, 7].into_iter().try_for_each(|n| attention_case(context, &cases[n], n))?;
    tokens(context)
}

/// Types of large products: those that can be encoded quickly.
const LARGE: [Dtype; 4] = [Dtype::Bf16, Dtype::F8E4M3, Dtype::Q4_1, Dtype::Q8_0];

fn products<D: Subject>(context: &Context<'_, D>, dtype: Dtype) -> Outcome {
    for (n, shape) in SHAPES.into_iter().enumerate() {
        product_case(context, dtype, shape, n)?;
    }
    if dtype.group_len() == 1 {
        for shape in [(5, 1, 3), (31, 7, 5), (17, 777, 2), (20, 264, 17)] {
            product_case(context, dtype, shape, 7)?;
        }
    }
    if D::takes_anything(dtype) {
        not_finite(context, dtype)?;
    }
    // Rows of the embedding are exact; a zero may have the other sign.
    let (rows, cols) = (37, if dtype.group_len() == 1 { 515 } else { 512 });
    let bytes = Random(9).matrix(dtype, rows, cols);
    let tokens = [0, 36, 15, 16, 31, 32];
    let found = embedded(&*context.device, dtype, rows, cols, &bytes, &tokens);
    let exact = found == embedded(&Reference, dtype, rows, cols, &bytes, &tokens);
    context.note(&Row::holds("rows come back exactly", exact))?;
    Ok(())
}

fn product_case<D: Subject>(
    context: &Context<'_, D>,
    dtype: Dtype,
    (out, cols, rows): (usize, usize, usize),
    n: usize,
) -> Outcome {
    let mut random = Random(n as u64 + 1);
    let weight = random.matrix(dtype, out, cols);
    let (x, bias) = (random.values(rows * cols), random.values(out));
    let bias = n.is_multiple_of(2).then_some(&bias[..]);
    let expected = product(&Reference, dtype, (out, cols, rows), &weight, &x, bias);
    let found = product(&*context.device, dtype, (out, cols, rows), &weight, &x, bias);
    // One output may be a small difference of large products.
    let limit = if out * rows < 64 { 8.0 } else { 1.0 } * D::product_error(dtype);
    let what = format!("{out} x {cols}, {rows} rows");
    context.note(&Row::below(what, relative_error(&found, &expected), limit, "error"))?;
    Ok(())
}

/// Every way to compute a product gives the same bits as the others of its family, for every type. A device's own choice is one of
/// them; whether two families agree is a matter of how the card adds.
fn ways<D: Subject>(place: &Place) -> Outcome {
    let shapes = [(35, 768, 3), (70, 256, 21), (200, 1024, 70), (1030, 512, 130)];
    let few = place.size.pick(&shapes[..2], &shapes, &shapes);
    let ways = D::open()?.ways();
    let mut families: Vec<(&str, Vec<_>)> = Vec::new();
    for way in ways.iter().rev() {
        let device = D::open_way(way)?;
        let mut wrong = Vec::new();
        for (n, dtype) in Dtype::ALL.into_iter().enumerate() {
            let product = |&(out, cols, rows): &(usize, usize, usize)| {
                let mut random = Random(29);
                let weight = random.matrix(dtype, out, cols);
                let x = with_spikes(random.values(rows * cols));
                bits(&product(&device, dtype, (out, cols, rows), &weight, &x, None))
            };
            let found: Vec<_> = few.iter().map(product).collect();
            let of = |family: &str| families.iter().position(|(name, _)| *name == family);
            let family = way.split(',').next().unwrap_or_default();
            let known = of(family).unwrap_or_else(|| {
                families.push((family, Vec::new()));
                families.len() - 1
            });
            if families.len() > 1 && family == OWN_WAY {
                // It comes last.
                let same = families.iter().any(|(_, types)| types.get(n) == Some(&found));
                wrong.extend((!same).then_some(dtype.name()));
            } else if let Some(expected) = families[known].1.get(n) {
                wrong.extend((*expected != found).then_some(dtype.name()));
            } else {
                families[known].1.push(found);
            }
        }
        let mut row = Row::holds(format!("products by {way}"), wrong.is_empty());
        row.detail = if wrong.is_empty() { String::new() } else { format!("others for {wrong:?}") };
        place.note(&row)?;
    }
    if let [(_, first), (_, second), ..] = &families[..] {
        let same = if first == second { "the same bits" } else { "other bits" };
        place.note(&Row::text("two families of kernels give", same))?;
    }
    Ok(())
}

/// A value that is not finite spoils its own row and no other.
fn not_finite<D: Subject>(context: &Context<'_, D>, dtype: Dtype) -> Outcome {
    let (out, cols, rows) = (18, 512, 7);
    let mut random = Random(17);
    let weight = random.matrix(dtype, out, cols);
    let x = random.values(rows * cols);
    let mut broken = x.clone();
    for (row, value) in [(1, f32::NAN), (4, f32::INFINITY)] {
        broken[row * cols + 300] = value;
    }
    let product = |x: &[f32]| product(&*context.device, dtype, (out, cols, rows), &weight, x, None);
    let (whole, found) = (product(&x), product(&broken));
    let others = found.chunks(out).zip(whole.chunks(out)).enumerate();
    let mut kept = others.filter(|(row, _)| ![1, 4].contains(row)).map(|(_, rows)| rows);
    let kept = kept.all(|(found, whole)| bits(found) == bits(whole));
    context.note(&Row::holds("a row with a NaN leaves the others alone", kept))?;
    Ok(())
}

/// Norms, gates, sums, soft caps, and inputs that are made on the way to a product.
fn rows<D: Subject>(context: &Context<'_, D>) -> Outcome {
    let device = &*context.device;
    for cols in context.size.pick(
        &[1, 15, 576][..],
        &[1, 15, 100, 576, 4096],
        &[1, 15, 100, 576, 4096, 14_337],
    ) {
        for rows in [0, 1, 7] {
            let expected = all_rows(&Reference, rows, *cols);
            let found = all_rows(device, rows, *cols);
            let error =
                found.iter().zip(&expected).map(|(a, b)| relative_error(a, b)).fold(0.0, f64::max);
            context.note(&Row::below(format!("{rows} rows of {cols}"), error, ERROR, "error"))?;
        }
    }
    let x = [-1e9, -200.0, -90.0, -10.0, -1e-3, -0.0, 0.0, 1e-3, 10.0, 90.0, 200.0, 1e9];
    for activation in [Activation::Silu, Activation::GeluTanh, Activation::GeluErf] {
        let expected = gate(&Reference, activation, 1, x.len(), &x, &[1.0; 12]);
        let found = gate(device, activation, 1, x.len(), &x, &[1.0; 12]);
        let error =
            |(found, expected): (&f32, &f32)| (found - expected).abs() / expected.abs().max(1.0);
        let error = found.iter().zip(&expected).map(error).fold(0.0, f32::max);
        context.note(&Row::below(
            format!("{activation:?} from end to end"),
            f64::from(error),
            2e-6,
            "error",
        ))?;
    }
    made_on_the_way(context)
}

fn made_on_the_way<D: Subject>(context: &Context<'_, D>) -> Outcome {
    let (out, cols, device) = (20, 256, &*context.device);
    for rows in [1, 9] {
        let mut random = Random(23);
        let (x, y) = (random.values(rows * cols), random.values(rows * cols));
        let norm = random.values(cols);
        let bytes = random.matrix(Dtype::Bf16, out, cols);
        let expected = made(&Reference, (out, cols, rows), [&x, &y], &norm, &bytes)?;
        let found = made(device, (out, cols, rows), [&x, &y], &norm, &bytes)?;
        for (what, (found, expected)) in
            ["norm", "gate"].into_iter().zip(found.iter().zip(&expected))
        {
            // The input's rounding to bf16, where a device rounds it, is of another number than in a plain product.
            let limit = 2.0 * D::product_error(Dtype::Bf16);
            let what = format!("{what} on the way to a product, {rows} rows");
            context.note(&Row::below(what, relative_error(found, expected), limit, "error"))?;
        }
    }
    Ok(())
}

/// The same product of a norm and of a gate.
fn made<D: Device>(
    device: &D,
    (out, cols, rows): (usize, usize, usize),
    [x, y]: [&[f32]; 2],
    norm: &[f32],
    bytes: &[u8],
) -> Result<[Vec<f32>; 2], chrysalis_kernels::DeviceError> {
    let (x, y) = (buffer(device, rows, cols, x), buffer(device, rows, cols, y));
    let norm = device.vector(norm)?;
    let weight = matrix(device, Dtype::Bf16, out, cols, bytes);
    let (activation, gate, up) = (Activation::Silu, &x, &y);
    let inputs =
        [Input::Normed { x: &x, weight: &norm, eps: 1e-5 }, Input::Gated { activation, gate, up }];
    Ok(inputs.map(|input| {
        let mut y = buffer(device, rows, out, &vec![f32::NAN; rows * out]);
        device.linear(rows, input, &mut [Linear { weight: &weight, bias: None, out: &mut y }]);
        read(device, &y, rows, out)
    }))
}

fn attention<D: Subject>(context: &Context<'_, D>) -> Outcome {
    let cases = cases();
    let few = context.size.pick(&[3, 5, 9][..], &[], &[]);
    for (n, case) in cases.iter().enumerate().filter(|(n, _)| few.is_empty() || few.contains(n)) {
        attention_case(context, case, n)?;
    }
    Ok(())
}

fn attention_case<D: Subject>(context: &Context<'_, D>, case: &Case, n: usize) -> Outcome {
    let expected = case.chunks(&Reference, &[case.tokens]);
    let found = case.chunks(&*context.device, &[case.tokens]);
    let what = format!(
        "case {n}: {} tokens, {} of {} heads of {}, {:?}",
        case.tokens, case.num_heads, case.cache.num_kv_heads, case.cache.head_dim, case.cache.dtype
    );
    let error = relative_error(&found, &expected);
    context.note(&Row::below(what, error, D::attention_error(case.cache.dtype), "error"))?;
    Ok(())
}

/// A context of several spans, with the heads of real models; the reference takes a second for each.
fn long_attention<D: Subject>(context: &Context<'_, D>) -> Outcome {
    let tokens = context.size.pick(300, 600, 1100);
    for (n, (num_heads, num_kv_heads, head_dim, dtype, window)) in [
        (4, 1, 128, CacheDtype::F16, None),
        (8, 2, 64, CacheDtype::F16, None),
        (4, 2, 256, CacheDtype::F16, Some(512)),
        (4, 1, 128, CacheDtype::I8, None),
    ]
    .into_iter()
    .enumerate()
    {
        let num_blocks = tokens / 16 + 3;
        let cache =
            CacheShape { num_layers: 2, num_blocks, block_size: 16, num_kv_heads, head_dim, dtype };
        let case = Case {
            tokens,
            num_heads,
            cache,
            rope_dim: head_dim,
            norms: false,
            softcap: None,
            window,
        };
        attention_case(context, &case, 100 + n)?;
    }
    Ok(())
}

/// Selected rows, and the choice of tokens from rows of all kinds.
fn tokens<D: Subject>(context: &Context<'_, D>) -> Outcome {
    let device = &*context.device;
    let values = Random(4).values(6 * 20);
    let x = buffer(device, 6, 20, &values);
    let mut batch = Batch::default();
    batch.push(&[0, 0], 0, &[], WantLogits::Last);
    batch.push(&[0], 0, &[], WantLogits::None);
    batch.push(&[0, 0, 0], 0, &[], WantLogits::All);
    let mut step = device.step(6)?;
    device.set_step(&mut step, &batch);
    let mut out = buffer(device, 4, 20, &[f32::NAN; 80]);
    device.select(&step, &x, &mut out);
    let expected: Vec<f32> =
        [1, 3, 4, 5].iter().flat_map(|t| values[t * 20..(t + 1) * 20].to_vec()).collect();
    context.note(&Row::holds("selected rows", read(device, &out, 4, 20) == expected))?;
    for cols in context.size.pick(
        &[1, 64, 4_097][..],
        &[1, 15, 4_095, 128_256],
        &[1, 15, 4_095, 4_096, 4_097, 9_000, 128_256],
    ) {
        let (found, expected) = largest(device, *cols);
        context.note(&Row::holds(format!("the largest of {cols} columns"), found == expected))?;
        let (found, expected) = choices(device, 7, *cols, context.size.pick(20, 100, 400));
        context.note(&Row::holds(format!("draws from {cols} columns"), found == expected))?;
    }
    Ok(())
}

/// Products of real shapes for every kind of number of rows, against sixteen-bit activations on all of the host's threads; and
/// the same bits for a row in each.
fn large<D: Subject>(context: &Context<'_, D>, dtype: Dtype) -> Outcome {
    let oracle = oracle()?;
    let shapes = context.size.pick(
        &[(512, 1024)][..],
        &[(1024, 4096)],
        &[(1024, 4096), (4096, 14_336), (28_672, 2048)],
    );
    let counts: &[usize] =
        &[300, 1, 2, 3, 7, 15, 16, 17, 31, 33, 63, 64, 65, 100, 127, 128, 129, 255, 256, 257];
    for &(out, cols) in shapes {
        let (most, mut random) = (300, Random(31));
        let values: Vec<f32> = (0..out * cols).map(|_| 0.035 * random.value()).collect();
        let mut bytes = Vec::new();
        quant::quantize(dtype, &values, &mut bytes)?;
        let x = with_spikes(random.values(most * cols));
        let expected = made_of(&oracle, dtype, (out, cols), &bytes, &x, &[most])?.concat();
        let begun = Instant::now();
        let found = made_of(&*context.device, dtype, (out, cols), &bytes, &x, counts)?;
        let seconds = begun.elapsed().as_secs_f64();
        let error = relative_error(&found[0], &expected);
        let what = format!("{out} x {cols}, {most} rows");
        context.note(&Row::below(what, error, D::product_error(dtype) + ORACLE_ERROR, "error"))?;
        let all = bits(&found[0]);
        let differ = counts.iter().zip(&found).filter(|(_, rows)| bits(rows) != all[..rows.len()]);
        let differ: Vec<_> = differ.map(|(count, _)| *count).collect();
        let mut row = Row::holds(
            format!("{out} x {cols}: the same bits in {} sizes of a batch", counts.len()),
            differ.is_empty(),
        );
        row.detail = if differ.is_empty() {
            format!("{seconds:.1} s")
        } else {
            format!("not with {differ:?} rows")
        };
        context.note(&row)?;
    }
    Ok(())
}

/// The first rows of `x` through one weight, for each of the counts.
fn made_of<D: Device>(
    device: &D,
    dtype: Dtype,
    (out, cols): (usize, usize),
    bytes: &[u8],
    x: &[f32],
    counts: &[usize],
) -> Result<Vec<Vec<f32>>, chrysalis_kernels::DeviceError> {
    let weight = upload(device, dtype, (out, cols), bytes)?;
    let nan = vec![f32::NAN; counts.iter().max().map_or(0, |most| most * out)];
    counts
        .iter()
        .map(|&rows| {
            let x = chrysalis_benches::buffer(device, rows, cols, &x[..rows * cols])?;
            let mut y = chrysalis_benches::buffer(device, rows, out, &nan[..rows * out])?;
            device.linear(
                rows,
                Input::Rows(&x),
                &mut [Linear { weight: &weight, bias: None, out: &mut y }],
            );
            device.finish()?;
            Ok(read(device, &y, rows, out))
        })
        .collect()
}

/// Of sixteen bits of an activation.
const ORACLE_ERROR: f64 = 6e-5;

/// What a cache of this type may add to the error of attention, whose queries and weights tensor cores take in 16 bits.
pub(crate) fn cache_error(dtype: CacheDtype) -> f64 {
    match dtype {
        CacheDtype::F32 => ERROR,
        CacheDtype::F16 => 1.2e-3,
        CacheDtype::Bf16 => 6e-3,
        CacheDtype::I8 => I8_CACHE_ERROR,
        CacheDtype::F8 => 4e-3,
    }
}
