//! Passes over one row of logits, `[vocab_size]`.

use super::weight;

/// The largest logit; nothing when the row is empty or an element is infinite or not a number.
#[inline(always)]
pub(super) fn max(row: &[f32]) -> Option<f32> {
    let mut max = [f32::NEG_INFINITY; LANES];
    // All ones in an exponent, where one of a lane has that.
    let mut exponents = [0; LANES];
    let (chunks, tail) = row.as_chunks::<LANES>();
    for chunk in chunks {
        pass(chunk, &mut max, &mut exponents);
    }
    if let Some(&filler) = tail.first() {
        let mut last = [filler; LANES];
        last[..tail.len()].copy_from_slice(tail);
        pass(&last, &mut max, &mut exponents);
    }
    if row.is_empty() || exponents.contains(&EXPONENT) {
        return None;
    }
    Some(max.into_iter().fold(f32::NEG_INFINITY, f32::max))
}

#[inline(always)]
fn pass(chunk: &[f32; LANES], max: &mut [f32; LANES], exponents: &mut [u32; LANES]) {
    for i in 0..LANES {
        max[i] = if chunk[i] > max[i] { chunk[i] } else { max[i] };
        exponents[i] = exponents[i].max(chunk[i].to_bits() & EXPONENT);
    }
}

/// Appends the tokens of the `count` largest logits to `out`, best first, the lower one first among equals.
pub fn largest(row: &[f32], count: usize, out: &mut Vec<u32>) {
    let order = |x: f32| {
        // Adding zero makes one zero of two. Then whole numbers in the order of the values, reversed.
        let bits = (x + 0.0).to_bits();
        if bits >> 31 == 0 { !(bits | 1 << 31) } else { bits }
    };
    let mut keys = zeroize::Zeroizing::new(Vec::with_capacity(room(count, row.len())));
    gather(row, count, order, &mut keys);
    keys.sort_unstable();
    out.extend(keys.iter().map(|key| *key as u32));
}

/// The log of the sum of `e^x` over the row, within 1e-6; nothing where it is not finite. In f64, and in another order on
/// other machines: for reports, and not for choices.
pub fn log_sum_exp(row: &[f32]) -> Option<f64> {
    let max = max(row)?;
    let mut lanes = [0.0f64; LANES];
    let (chunks, tail) = row.as_chunks::<LANES>();
    for chunk in chunks {
        // Two loops, each over one type, so that both become vector instructions.
        let weights = chunk.map(|x| weight::exp(x - max));
        for (lane, weight) in lanes.iter_mut().zip(weights) {
            *lane += f64::from(weight);
        }
    }
    lanes.iter_mut().zip(tail).for_each(|(lane, x)| *lane += f64::from(weight::exp(x - max)));
    Some(f64::from(max) + lanes.into_iter().sum::<f64>().ln())
}

/// The keys `order(logit) << 32 | token` of the `count` tokens whose keys are least, in any order. `order` does not grow with
/// the logit. `out` has [`room`].
#[inline(always)]
pub(super) fn gather(row: &[f32], count: usize, order: impl Fn(f32) -> u32, out: &mut Vec<u64>) {
    out.clear();
    if count == 0 {
        return;
    }
    // What is not above the floor is not among them: so many come before it.
    let mut floor = f32::NEG_INFINITY;
    let full = room(count, row.len()).saturating_sub(CHUNK);
    for (first, chunk) in (0u32..).step_by(CHUNK).zip(row.chunks(CHUNK)) {
        if !chunk.iter().fold(false, |any, &x| any | (x > floor)) {
            continue;
        }
        let above = (first..).zip(chunk).filter(|(_, x)| **x > floor);
        out.extend(above.map(|(token, x)| u64::from(order(*x)) << 32 | u64::from(token)));
        if out.len() > full {
            floor = keep(out, count)
                .and_then(|key| row.get(key as u32 as usize))
                .copied()
                .unwrap_or(floor);
        }
    }
    keep(out, count);
}

/// Keys that [`gather`] has at once.
pub(super) fn room(count: usize, len: usize) -> usize {
    count.saturating_add(count.max(256)).min(len).saturating_add(CHUNK)
}

/// Cuts to the `count` least, in any order; returns the largest of them if any were cut.
fn keep(keys: &mut Vec<u64>, count: usize) -> Option<u64> {
    if keys.len() <= count {
        return None;
    }
    let (_, &mut last, _) = keys.select_nth_unstable(count - 1);
    keys.truncate(count);
    Some(last)
}

/// All ones in infinities and NaNs alone.
const EXPONENT: u32 = 0x7F80_0000;
/// Independent partial results.
const LANES: usize = 32;
/// Elements looked at together for one above the floor.
const CHUNK: usize = 64;

#[cfg(test)]
mod tests {
    use super::{largest, log_sum_exp, max};
    use crate::sampling::uniform;

    fn row(seed: u64, len: usize) -> Vec<f32> {
        let value = |i| (uniform(seed, i) * 40.0 - 20.0).round() as f32 / 2.0;
        // Zeros of both signs are equal.
        (0..len as u64)
            .map(|i| if value(i) == 0.0 && i.is_multiple_of(2) { -0.0 } else { value(i) })
            .collect()
    }

    #[test]
    fn the_largest_equal_a_full_sort() {
        for seed in 0..40 {
            for len in [1, 15, 16, 17, 63, 64, 65, 700, 3_000] {
                let row = row(seed, len);
                let mut sorted: Vec<_> = (0..).zip(row.iter().copied()).collect();
                sorted.sort_by(|a, b| b.1.partial_cmp(&a.1).unwrap().then(a.0.cmp(&b.0)));
                for count in [0, 1, 2, 20, len / 2, len, len + 1] {
                    let mut out = Vec::new();
                    largest(&row, count, &mut out);
                    let expected = sorted.iter().take(count).map(|x| x.0);
                    assert!(out.iter().copied().eq(expected), "seed {seed}, {count} of {len}");
                }
                assert_eq!(max(&row), Some(sorted[0].1));
            }
        }
    }

    #[test]
    fn the_log_of_the_sum_is_that_of_f64() {
        for len in [1, 16, 33, 5_000] {
            let row = row(3, len);
            let exact = row.iter().map(|x| f64::from(*x).exp()).sum::<f64>().ln();
            assert!((log_sum_exp(&row).unwrap() - exact).abs() < 1e-6);
        }
        assert!(log_sum_exp(&[]).is_none());
    }

    #[test]
    fn a_row_with_an_infinity_or_a_nan_has_no_largest() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for at in [0, 15, 16, 36] {
                let mut row = vec![1.0; 37];
                row[at] = bad;
                assert!(max(&row).is_none(), "{bad} at {at}");
            }
        }
        assert!(max(&[]).is_none());
    }
}
