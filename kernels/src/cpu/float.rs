//! Products with F32 and F16 weights: exact widening, f32 accumulation.

use std::ops::Range;

use super::matrix::PAIR;
use super::simd::{Simd, Task};
use super::tiles::Tile;
use crate::memory::Plain;

/// f32, or the bits of an f16.
pub(super) trait Stored: Plain {
    /// 16 of them as f32.
    fn widen<S: Simd>(s: S, x: &[Self]) -> S::F;
}

impl Stored for f32 {
    #[inline(always)]
    fn widen<S: Simd>(s: S, x: &[Self]) -> S::F {
        s.load(x)
    }
}

impl Stored for u16 {
    #[inline(always)]
    fn widen<S: Simd>(s: S, x: &[Self]) -> S::F {
        s.load_f16(x)
    }
}

/// One pair of panels, `weights` `[width, 32]`, over all rows of the tile; results go to the
/// columns `cols` of the tile.
#[inline(always)]
pub(super) fn pair<S: Simd, T: Stored>(
    s: S,
    x: &[f32],
    width: usize,
    weights: &[T],
    cols: Range<usize>,
    out: &mut Tile<'_, f32>,
) {
    let rows = out.rows.clone();
    for first in (0..width.max(1)).step_by(BLOCK) {
        let block = first..(first + BLOCK).min(width);
        let weights = &weights[block.start * PAIR..block.end * PAIR];
        let x = |t: usize| &x[t * width..][..width][block.clone()];
        let (mut t, resume) = (rows.start, first > 0);
        while S::MANY_REGISTERS && t + 8 <= rows.end {
            let (x, cols, out) = (std::array::from_fn(|m| x(t + m)), cols.clone(), &mut *out);
            s.call(Chunk::<T, 8> { x, weights, resume, t, cols, out });
            t += 8;
        }
        while t < rows.end {
            let (x, cols, out) = ([x(t)], cols.clone(), &mut *out);
            s.call(Chunk::<T, 1> { x, weights, resume, t, cols, out });
            t += 1;
        }
    }
}

/// `R` rows by both panels of a block; sums continue those in `out` when `resume`.
struct Chunk<'a, 'b, T, const R: usize> {
    x: [&'a [f32]; R],
    weights: &'a [T],
    resume: bool,
    t: usize,
    cols: Range<usize>,
    out: &'a mut Tile<'b, f32>,
}

impl<T: Stored, const R: usize> Task for Chunk<'_, '_, T, R> {
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { x, weights, resume, t, cols, out } = self;
        let mut carry = [[0f32; PAIR]; R];
        if resume {
            for (m, carry) in carry.iter_mut().enumerate() {
                carry[..cols.len()].copy_from_slice(&out.row(t + m)[cols.clone()]);
            }
        }
        let mut sums: [[S::F; 2]; R] =
            std::array::from_fn(|m| [s.load(&carry[m]), s.load(&carry[m][16..])]);
        for (k, weights) in weights.chunks_exact(PAIR).enumerate() {
            let w = [T::widen::<S>(s, weights), T::widen::<S>(s, &weights[16..])];
            for m in 0..R {
                let x = s.splat(x[m][k]);
                sums[m] = [s.fma(x, w[0], sums[m][0]), s.fma(x, w[1], sums[m][1])];
            }
        }
        for (m, carry) in carry.iter_mut().enumerate() {
            s.store(sums[m][0], carry);
            s.store(sums[m][1], &mut carry[16..]);
            out.row(t + m)[cols.clone()].copy_from_slice(&carry[..cols.len()]);
        }
    }
}

/// Columns of weights that stay in the first-level cache while rows pass: 32 KiB of f32.
const BLOCK: usize = 256;
