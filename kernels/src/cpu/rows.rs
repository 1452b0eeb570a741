//! The operations that work on a row at a time: norms, gates, sums, rotation.
//!
//! Sums run in 16 lanes from the first value to the last, then over the lanes; the order depends on
//! the length of the row alone.

use super::simd::{LANES, Simd, Task};
use crate::device::Activation;

/// `out = x / sqrt(mean(x²) + eps) * weight`.
pub(super) struct RmsNorm<'a> {
    pub(super) x: &'a [f32],
    pub(super) weight: &'a [f32],
    pub(super) eps: f32,
    pub(super) out: &'a mut [f32],
}

impl Task for RmsNorm<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { x, weight, eps, out } = self;
        let factor = norm_factor(s, x, eps);
        combine(s, x, weight, out, Scaled { factor });
    }
}

/// `out = activation(gate) * up`.
pub(super) struct Gate<'a> {
    pub(super) activation: Activation,
    pub(super) gate: &'a [f32],
    pub(super) up: &'a [f32],
    pub(super) out: &'a mut [f32],
}

impl Task for Gate<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { activation, gate, up, out } = self;
        match activation {
            Activation::Silu => combine(s, gate, up, out, Silu),
            Activation::GeluTanh => combine(s, gate, up, out, GeluTanh),
            Activation::GeluErf => combine(s, gate, up, out, GeluErf),
        }
    }
}

/// A function of two vectors. A trait and not a closure: a closure that the compiler declines to
/// inline would be compiled without the instruction set.
trait Lanewise: Copy {
    fn apply<S: Simd>(self, s: S, a: S::F, b: S::F) -> S::F;
}

/// `a * factor * b`.
#[derive(Clone, Copy)]
struct Scaled {
    factor: f32,
}

impl Lanewise for Scaled {
    #[inline(always)]
    fn apply<S: Simd>(self, s: S, a: S::F, b: S::F) -> S::F {
        s.mul(s.mul(a, s.splat(self.factor)), b)
    }
}

/// `silu(a) * b`.
#[derive(Clone, Copy)]
struct Silu;

impl Lanewise for Silu {
    #[inline(always)]
    fn apply<S: Simd>(self, s: S, a: S::F, b: S::F) -> S::F {
        let e = s.exp(s.sub(s.splat(0.0), a));
        s.mul(s.div(a, s.add(s.splat(1.0), e)), b)
    }
}

/// `gelu(a) * b` by tanh.
#[derive(Clone, Copy)]
struct GeluTanh;

impl Lanewise for GeluTanh {
    #[inline(always)]
    fn apply<S: Simd>(self, s: S, a: S::F, b: S::F) -> S::F {
        let cube = s.mul(s.mul(a, a), a);
        let inner = s.mul(s.fma(cube, s.splat(0.044_715), a), s.splat(SQRT_2_OVER_PI));
        let half = s.mul(s.splat(0.5), a);
        s.mul(s.mul(half, s.add(s.splat(1.0), s.tanh(inner))), b)
    }
}

/// `gelu(a) * b` by erf.
#[derive(Clone, Copy)]
struct GeluErf;

impl Lanewise for GeluErf {
    #[inline(always)]
    fn apply<S: Simd>(self, s: S, a: S::F, b: S::F) -> S::F {
        let half = s.mul(s.splat(0.5), a);
        let erf = erf(s, s.mul(a, s.splat(std::f32::consts::FRAC_1_SQRT_2)));
        s.mul(s.mul(half, s.add(s.splat(1.0), erf)), b)
    }
}

/// `sum += x`.
pub(super) struct Add<'a> {
    pub(super) x: &'a [f32],
    pub(super) sum: &'a mut [f32],
}

impl Task for Add<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        self.sum.iter_mut().zip(self.x).for_each(|(sum, x)| *sum += x);
    }
}

/// `x = cap * tanh(x / cap)`.
pub(super) struct Softcap<'a> {
    pub(super) cap: f32,
    pub(super) x: &'a mut [f32],
}

impl Task for Softcap<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let mut chunks = self.x.chunks_exact_mut(LANES);
        for x in &mut chunks {
            let y = s.load(x);
            s.store(softcap(s, self.cap, y), x);
        }
        let tail = chunks.into_remainder();
        if !tail.is_empty() {
            let y = load_tail(s, tail);
            store_tail(s, softcap(s, self.cap, y), tail);
        }
    }
}

/// Norm (where there is one), then rotation of pairs `(i, i + half)` of each head of a row.
pub(super) struct Rotate<'a> {
    pub(super) row: &'a mut [f32],
    pub(super) head_dim: usize,
    pub(super) norm: Option<&'a [f32]>,
    pub(super) eps: f32,
    /// `[half]` each.
    pub(super) cos: &'a [f32],
    pub(super) sin: &'a [f32],
}

impl Task for Rotate<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { row, head_dim, norm, eps, cos, sin } = self;
        let half = cos.len();
        for head in row.chunks_exact_mut(head_dim) {
            if let Some(weight) = norm {
                let factor = norm_factor(s, head, eps);
                head.iter_mut().zip(weight).for_each(|(x, weight)| *x = *x * factor * weight);
            }
            let (a, b) = head.split_at_mut(half);
            for (((a, b), cos), sin) in a.iter_mut().zip(b).zip(cos).zip(sin) {
                (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
            }
        }
    }
}

#[inline(always)]
pub(super) fn softcap<S: Simd>(s: S, cap: f32, x: S::F) -> S::F {
    s.mul(s.splat(cap), s.tanh(s.div(x, s.splat(cap))))
}

/// `1 / sqrt(mean(x²) + eps)`.
#[inline(always)]
fn norm_factor<S: Simd>(s: S, x: &[f32], eps: f32) -> f32 {
    1.0 / (mean_square(s, x) + eps).sqrt()
}

/// `sqrt(mean(x²))`.
#[inline(always)]
pub(super) fn root_mean_square<S: Simd>(s: S, x: &[f32]) -> f32 {
    mean_square(s, x).sqrt()
}

#[inline(always)]
fn mean_square<S: Simd>(s: S, x: &[f32]) -> f32 {
    let mut sum = s.splat(0.0);
    let chunks = x.chunks_exact(LANES);
    let tail = chunks.remainder();
    for x in chunks {
        let x = s.load(x);
        sum = s.fma(x, x, sum);
    }
    if !tail.is_empty() {
        let x = load_tail(s, tail);
        sum = s.fma(x, x, sum);
    }
    s.sum(sum) / x.len() as f32
}

/// The largest magnitude, infinity where a value is not a number.
#[inline(always)]
pub(super) fn largest_magnitude<S: Simd>(s: S, x: &[f32]) -> f32 {
    let (mut largest, zero) = (s.splat(0.0), s.splat(0.0));
    let mut sum = zero;
    for x in x.chunks(LANES) {
        let x = load_tail(s, x);
        let magnitude = s.max(x, s.sub(zero, x));
        largest = s.max(largest, magnitude);
        sum = s.add(sum, s.mul(x, zero));
    }
    // A maximum may drop what is not a number; a sum does not.
    if s.sum(sum) == 0.0 { s.largest(largest) } else { f32::INFINITY }
}

/// The values, then zeros.
#[inline(always)]
pub(super) fn load_tail<S: Simd>(s: S, x: &[f32]) -> S::F {
    let mut values = [0.0; LANES];
    values[..x.len()].copy_from_slice(x);
    s.load(&values)
}

#[inline(always)]
pub(super) fn store_tail<S: Simd>(s: S, x: S::F, out: &mut [f32]) {
    let mut values = [0.0; LANES];
    s.store(x, &mut values);
    let len = out.len();
    out.copy_from_slice(&values[..len]);
}

/// `out[i] = f(a[i], b[i])`.
#[inline(always)]
fn combine<S: Simd>(s: S, a: &[f32], b: &[f32], out: &mut [f32], f: impl Lanewise) {
    let (a, b) = (&a[..out.len()], &b[..out.len()]);
    let whole = out.len() / LANES * LANES;
    for (i, out) in out[..whole].chunks_exact_mut(LANES).enumerate() {
        let y = f.apply(s, s.load(&a[i * LANES..]), s.load(&b[i * LANES..]));
        s.store(y, out);
    }
    if whole < out.len() {
        let y = f.apply(s, load_tail(s, &a[whole..]), load_tail(s, &b[whole..]));
        store_tail(s, y, &mut out[whole..]);
    }
}

/// The error function; absolute error below 5e-7 (Abramowitz & Stegun 7.1.26).
#[inline(always)]
fn erf<S: Simd>(s: S, x: S::F) -> S::F {
    let (zero, one) = (s.splat(0.0), s.splat(1.0));
    let magnitude = s.max(x, s.sub(zero, x));
    let t = s.div(one, s.fma(magnitude, s.splat(0.327_591_1), one));
    let mut p = s.splat(1.061_405_4);
    for c in [-1.453_152, 1.421_413_7, -0.284_496_74, 0.254_829_6] {
        p = s.fma(p, t, s.splat(c));
    }
    let tail = s.mul(s.mul(p, t), s.exp(s.sub(zero, s.mul(magnitude, magnitude))));
    let positive = s.sub(one, tail);
    // The sign of x, as ±1 where it matters: erf is odd and zero at zero.
    let sign = s.min(s.max(s.mul(x, s.splat(1e30)), s.splat(-1.0)), one);
    s.mul(positive, sign)
}

const SQRT_2_OVER_PI: f32 = 0.797_884_6;
