//! Passes over one row of logits, `[vocab_size]`. Only additions, multiplications and comparisons
//! in a fixed order: the result is the same bits on every machine.

use std::cmp::Ordering;

use super::error::NotFinite;

/// A token and its logit.
pub(super) type Candidate = (u32, f32);

/// The largest logit of a row without infinities and NaNs.
///
/// # Errors
/// The row is empty or an element is infinite or not a number.
pub(super) fn max(row: &[f32]) -> Result<f32, NotFinite> {
    let mut max = [f32::NEG_INFINITY; LANES];
    let mut bad = [false; LANES];
    let (chunks, tail) = row.as_chunks::<LANES>();
    let mut pass = |chunk: &[f32; LANES]| {
        for ((&x, max), bad) in chunk.iter().zip(&mut max).zip(&mut bad) {
            *max = if x > *max { x } else { *max };
            *bad |= x.to_bits() & EXPONENT == EXPONENT;
        }
    };
    chunks.iter().for_each(&mut pass);
    if let Some(&filler) = tail.first() {
        let mut last = [filler; LANES];
        last.iter_mut().zip(tail).for_each(|(slot, &x)| *slot = x);
        pass(&last);
    }
    if row.is_empty() || bad.contains(&true) {
        return Err(NotFinite);
    }
    Ok(max.into_iter().fold(f32::NEG_INFINITY, f32::max))
}

/// The lowest id among the largest logits; `max` is the largest.
pub(super) fn argmax(row: &[f32], max: f32) -> Option<u32> {
    let index = row.iter().position(|&x| x == max)?;
    u32::try_from(index).ok()
}

/// Turns a logit into its weight: the probability relative to that of the largest logit, at a
/// temperature, and zero below a share of it.
#[derive(Clone, Copy)]
pub(super) struct Weight {
    pub(super) max: f32,
    /// One over the temperature.
    pub(super) scale: f32,
    pub(super) min_p: f32,
}

impl Weight {
    /// The weight in `[0, 1]`; 1 for the largest.
    #[inline(always)]
    pub(super) fn of(self, logit: f32) -> f32 {
        let weight = exp((logit - self.max) * self.scale);
        if weight < self.min_p { 0.0 } else { weight }
    }

    /// The sum of all weights.
    pub(super) fn sum(self, row: &[f32]) -> f64 {
        let mut lanes = [0.0f64; LANES];
        let (chunks, tail) = row.as_chunks::<LANES>();
        for chunk in chunks {
            // Two loops, each over one type, so that both become vector instructions.
            let mut weights = [0.0f32; LANES];
            for (weight, &x) in weights.iter_mut().zip(chunk) {
                *weight = self.of(x);
            }
            for (lane, weight) in lanes.iter_mut().zip(weights) {
                *lane += f64::from(weight);
            }
        }
        lanes.iter_mut().zip(tail).for_each(|(lane, &x)| *lane += f64::from(self.of(x)));
        lanes.into_iter().sum()
    }

    /// The sum of the weights of candidates, in their order.
    pub(super) fn sum_of(self, candidates: &[Candidate]) -> f64 {
        candidates.iter().map(|&(_, logit)| f64::from(self.of(logit))).sum()
    }
}

/// The `count` largest logits, best first, the lower id first among equals. Infinitely small
/// ones are left out.
pub(super) fn largest(row: &[f32], count: usize, out: &mut Vec<Candidate>) {
    gather(row, count, out);
    out.sort_unstable_by(best_first);
}

/// As [`largest`], in any order.
pub(super) fn gather(row: &[f32], count: usize, out: &mut Vec<Candidate>) {
    out.clear();
    if count == 0 {
        return;
    }
    // What is not above the floor is not among the best: so many are known to be at least that.
    let mut floor = f32::NEG_INFINITY;
    let full = count.saturating_add(count.max(256)).min(row.len());
    for (id, chunk) in (0u32..).step_by(CHUNK).zip(row.chunks(CHUNK)) {
        if !chunk.iter().fold(false, |any, &x| any | (x > floor)) {
            continue;
        }
        out.extend((id..).zip(chunk.iter().copied()).filter(|&(_, x)| x > floor));
        if out.len() >= full {
            floor = keep(out, count).unwrap_or(floor);
        }
    }
    keep(out, count);
}

/// The last of the shortest run of best candidates whose weights sum up to `enough`; of all, if
/// they never do. Reorders the candidates, and does not sort them.
pub(super) fn boundary(
    candidates: &mut [Candidate],
    weight: Weight,
    mut enough: f64,
) -> Option<Candidate> {
    let mut part = candidates;
    while part.len() > 1 {
        let half = part.len() / 2;
        part.select_nth_unstable_by(half, best_first);
        let (best, rest) = part.split_at_mut(half);
        let sum = weight.sum_of(best);
        if sum >= enough {
            part = best;
        } else {
            enough -= sum;
            part = rest;
        }
    }
    part.first().copied()
}

/// Cuts to the `count` best, in any order; returns the least of them if any were cut.
fn keep(out: &mut Vec<Candidate>, count: usize) -> Option<f32> {
    if out.len() <= count {
        return None;
    }
    let (_, &mut (_, least), _) = out.select_nth_unstable_by(count - 1, best_first);
    out.truncate(count);
    Some(least)
}

/// A total order on candidates without NaN.
fn best_first(a: &Candidate, b: &Candidate) -> Ordering {
    b.1.partial_cmp(&a.1).unwrap_or(Ordering::Equal).then(a.0.cmp(&b.0))
}

/// e^x for x <= 0, within 2e-7 of it; zero below -87. After Cephes' `expf` (Moshier).
#[inline(always)]
#[expect(clippy::excessive_precision, reason = "as published")]
fn exp(x: f32) -> f32 {
    // Adding and subtracting 1.5 * 2^23 rounds to the nearest integer, left in the low bits.
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = x - n * 0.693_359_375 - n * -2.121_944_40e-4;
    let mut p = 1.987_569_150_0e-4;
    p = p * r + 1.398_199_950_7e-3;
    p = p * r + 8.333_451_907_3e-3;
    p = p * r + 4.166_579_589_4e-2;
    p = p * r + 1.666_666_545_9e-1;
    p = p * r + 5.000_000_120_1e-1;
    let y = p * (r * r) + r + 1.0;
    let power = shifted.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127) << 23;
    if x < -87.0 { 0.0 } else { y * f32::from_bits(power) }
}

/// 1.5 * 2^23.
const ROUND: f32 = 12_582_912.0;
/// All ones in infinities and NaNs alone.
const EXPONENT: u32 = 0x7F80_0000;
/// Independent partial results; fixed, so that sums do not depend on the machine.
const LANES: usize = 16;
/// Elements looked at together for one above the floor.
const CHUNK: usize = 64;

#[cfg(test)]
mod tests {
    use super::{Weight, argmax, exp, largest, max};
    use crate::engine::random::uniform;

    fn row(seed: u64, len: usize) -> Vec<f32> {
        (0..len)
            .map(|i| (uniform(seed, i as u64) * 40.0 - 20.0).round() as f32 / 2.0 + 0.0)
            .collect()
    }

    #[test]
    fn exp_is_close_and_exact_at_zero() {
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(-88.0), 0.0);
        for i in 0..870_000 {
            let x = -(i as f32) * 1e-4;
            let (got, want) = (f64::from(exp(x)), f64::from(x).exp());
            assert!((got / want - 1.0).abs() < 2e-7, "{x}: {got} {want}");
        }
    }

    #[test]
    fn the_largest_equal_a_full_sort() {
        for seed in 0..40 {
            for len in [1, 15, 16, 17, 63, 64, 65, 700, 3_000] {
                let row = row(seed, len);
                let mut sorted: Vec<_> = (0..).zip(row.iter().copied()).collect();
                sorted.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
                for count in [1, 2, 20, len / 2, len, len + 1] {
                    let mut out = Vec::new();
                    largest(&row, count, &mut out);
                    assert!(out == sorted[..count.min(len)], "seed {seed}, {count} of {len}");
                }
                assert_eq!(max(&row), Ok(sorted[0].1));
                assert_eq!(argmax(&row, sorted[0].1), Some(sorted[0].0));
            }
        }
    }

    #[test]
    fn the_sum_is_that_of_the_weights_one_by_one() {
        for len in [1, 16, 33, 5_000] {
            let row = row(3, len);
            for min_p in [0.0, 0.3] {
                let weight = Weight { max: max(&row).unwrap(), scale: 0.7, min_p };
                let naive: f64 = row.iter().map(|&x| f64::from(weight.of(x))).sum();
                assert!((weight.sum(&row) / naive - 1.0).abs() < 1e-12);
            }
        }
    }

    #[test]
    fn a_row_with_an_infinity_or_a_nan_has_no_largest() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for at in [0, 15, 16, 36] {
                let mut row = vec![1.0; 37];
                row[at] = bad;
                assert!(max(&row).is_err(), "{bad} at {at}");
            }
        }
        assert!(max(&[]).is_err());
    }
}
