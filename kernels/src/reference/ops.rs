//! The arithmetic of the reference device, on slices.

use crate::device::{Activation, CACHE_GROUP, CacheDtype};
use crate::quant::e4m3;

/// Sum of products, first to last.
pub(super) fn dot(x: &[f32], y: &[f32]) -> f32 {
    x.iter().zip(y).map(|(x, y)| x * y).sum()
}

/// `x = x / sqrt(mean(x²) + eps) * weight` (Zhang & Sennrich 2019, arXiv:1910.07467).
pub(super) fn rms_norm(x: &mut [f32], weight: &[f32], eps: f32) {
    let mean = dot(x, x) / x.len() as f32;
    let factor = 1.0 / (mean + eps).sqrt();
    for (x, weight) in x.iter_mut().zip(weight) {
        *x = *x * factor * weight;
    }
}

/// `x = exp(x - max) / sum`.
pub(super) fn softmax(x: &mut [f32]) {
    let max = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut sum = 0.0;
    for x in x.iter_mut() {
        *x = (*x - max).exp();
        sum += *x;
    }
    for x in x {
        *x /= sum;
    }
}

/// The non-linearity of the gated MLP.
pub(super) fn activate(activation: Activation, x: f32) -> f32 {
    match activation {
        Activation::Silu => x / (1.0 + (-x).exp()),
        Activation::GeluTanh => {
            let inner = SQRT_2_OVER_PI * (x + 0.044_715 * x * x * x);
            0.5 * x * (1.0 + inner.tanh())
        }
        Activation::GeluErf => {
            let x = f64::from(x);
            (0.5 * x * (1.0 + erf(x * std::f64::consts::FRAC_1_SQRT_2))) as f32
        }
    }
}

/// Writes a head of K or V in the precision of the cache.
pub(super) fn store(dtype: CacheDtype, values: &[f32], out: &mut [f32]) {
    for (values, out) in values.chunks(CACHE_GROUP).zip(out.chunks_mut(CACHE_GROUP)) {
        let largest = values.iter().fold(0f32, |largest, x| largest.max(x.abs()));
        let scale = largest / if dtype == CacheDtype::F8 { e4m3::MAX } else { 127.0 };
        let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
        let inverse = if inverse.is_finite() { inverse } else { 0.0 };
        for (out, value) in out.iter_mut().zip(values) {
            *out = match dtype {
                CacheDtype::F32 => *value,
                CacheDtype::F16 => half::f16::from_f32(*value).to_f32(),
                CacheDtype::I8 => (value * inverse).round_ties_even() * scale,
                CacheDtype::Bf16 => half::bf16::from_f32(*value).to_f32(),
                CacheDtype::F8 => e4m3::decode(e4m3::encode(value * inverse)) * scale,
            };
        }
    }
}

/// The error function by its Maclaurin series (|x| < 3) or the continued fraction of `erfc`
/// (Abramowitz & Stegun 7.1.5 and 7.1.14); within 1e-12.
fn erf(x: f64) -> f64 {
    let magnitude = x.abs();
    if magnitude < 3.0 {
        let (mut term, mut sum) = (x, x);
        for n in 1..80 {
            let n = f64::from(n);
            term *= -x * x / n;
            sum += term / (2.0 * n + 1.0);
        }
        return sum * std::f64::consts::FRAC_2_SQRT_PI;
    }
    let tail = (1..=60).rev().fold(magnitude, |tail, n| magnitude + f64::from(n) / 2.0 / tail);
    let erfc = (-x * x).exp() / tail * (std::f64::consts::FRAC_2_SQRT_PI / 2.0);
    (1.0 - erfc).copysign(x)
}

const SQRT_2_OVER_PI: f32 = 0.797_884_6;

/// The lowest index of the largest value; nothing when there is none, or one is infinite or not a number.
pub(super) fn argmax(x: &[f32]) -> Option<u32> {
    let mut best: Option<(u32, f32)> = None;
    for (index, x) in (0..).zip(x) {
        if !x.is_finite() {
            return None;
        }
        if best.is_none_or(|(_, max)| *x > max) {
            best = Some((index, *x));
        }
    }
    best.map(|(index, _)| index)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn erf_has_its_published_values() {
        // Abramowitz & Stegun, table 7.1 and 7.3.
        for (x, expected) in [
            (0.0, 0.0),
            (0.5, 0.520_499_877_8),
            (1.0, 0.842_700_792_9),
            (2.0, 0.995_322_265_0),
            (3.5, 0.999_999_256_9),
        ] {
            assert!((erf(x) - expected).abs() < 1e-10, "erf({x}) = {}", erf(x));
            assert!((erf(-x) + expected).abs() < 1e-10, "erf(-{x})");
        }
    }

    #[test]
    fn softmax_survives_large_scores() {
        let mut x = [1000.0, 1000.0, -1000.0];
        softmax(&mut x);
        assert_eq!(x, [0.5, 0.5, 0.0]);
    }
}
