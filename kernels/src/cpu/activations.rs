//! Activations for integer dot products: groups of 32 as signed bytes with one f32 scale.
//!
//! With 8 bits a value is `scale * code`; with 16 it is `scale * (256 * high + low)`, two planes of
//! bytes, and the products are exact sums of two byte products. A row is one run of words:
//! `[group][plane][8 words of 4 codes]`, then per group the scale, the scaled sum (for minima), and
//! minus offset times the sum of the codes for each offset that weight types have (for Q6_K in
//! halves of 16), where the integer sums start.

use zeroize::Zeroize;

use super::isa::Level;
use super::pool::Pool;
use super::simd::{Simd, Task};
use super::tiles::{self, Grid};
use crate::dtype::Dtype;
use crate::quant;

/// Quantised rows; the memory is kept between calls and wiped at the end.
#[derive(Default)]
pub(super) struct Activations {
    words: Vec<i32>,
    splits: Vec<usize>,
    groups: usize,
    planes: usize,
}

/// One row, cut into its parts.
#[derive(Clone, Copy)]
pub(super) struct ActivationRow<'a> {
    /// `[group][plane][8]`.
    pub(super) codes: &'a [i32],
    /// Bits of the f32 scales, `[group]`.
    pub(super) scales: &'a [i32],
    /// What the weight type needs: bits of the scaled sums, or the starts, `[group]` or `[group][2]`.
    pub(super) sums: &'a [i32],
}

impl std::fmt::Debug for Activations {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Activations({} groups)", self.groups)
    }
}

impl Drop for Activations {
    fn drop(&mut self) {
        self.words.zeroize();
    }
}

impl Activations {
    /// Quantises `rows` rows of `x`.
    pub(super) fn set(
        &mut self,
        (level, pool): (Level, &Pool),
        planes: usize,
        rows: usize,
        (x, cols): (&[f32], usize),
    ) {
        (self.groups, self.planes) = (cols / 32, planes);
        let width = self.width();
        if self.words.len() < rows * width {
            self.words.zeroize();
            self.words.resize(rows * width, 0);
        }
        self.splits.clear();
        self.splits.extend((0..rows).step_by(ROWS_PER_TILE));
        self.splits.push(rows);
        let (groups, small) = (self.groups, rows <= ROWS_PER_TILE);
        let grid = Grid::new(&mut self.words, width, &self.splits, width.max(1));
        tiles::for_each(pool, small, &mut [grid], &|_, mut tile, _| {
            for t in tile.rows.clone() {
                let x = &x[t * cols..][..cols];
                level.run(Quantise {
                    x,
                    out: tile.row(t),
                    groups,
                    planes,
                });
            }
        });
    }

    fn width(&self) -> usize {
        self.groups * (self.planes * 8 + PARTS)
    }

    /// Row `t`, with the sums that `dtype` needs.
    pub(super) fn row(&self, t: usize, dtype: Dtype) -> ActivationRow<'_> {
        let row = &self.words[t * self.width()..][..self.width()];
        let (codes, parts) = row.split_at(self.groups * self.planes * 8);
        let part = |i: usize, len: usize| &parts[i * self.groups..][..len * self.groups];
        let sums = match quant::offset(dtype) {
            8 => part(2, 1),
            16 => part(3, 1),
            128 => part(4, 1),
            32 => part(5, 2),
            _ => part(1, 1),
        };
        ActivationRow {
            codes,
            scales: part(0, 1),
            sums,
        }
    }
}

struct Quantise<'a> {
    x: &'a [f32],
    out: &'a mut [i32],
    groups: usize,
    planes: usize,
}

impl Task for Quantise<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self {
            x,
            out,
            groups,
            planes,
        } = self;
        let (codes, parts) = out.split_at_mut(groups * planes * 8);
        for (g, (x, codes)) in x
            .chunks_exact(32)
            .zip(codes.chunks_exact_mut(planes * 8))
            .enumerate()
        {
            let (a, b) = (s.load(x), s.load(&x[16..]));
            let zero = s.splat(0.0);
            let magnitude = s.max(s.max(a, s.sub(zero, a)), s.max(b, s.sub(zero, b)));
            let limit = if planes == 1 { 127.0 } else { 32_639.0 };
            let largest = s.largest(magnitude);
            let scale = largest / limit;
            let inverse = if largest > 0.0 { limit / largest } else { 0.0 };
            let inverse = s.splat(if inverse.is_finite() { inverse } else { 0.0 });
            let (a, b) = (s.round(s.mul(a, inverse)), s.round(s.mul(b, inverse)));
            if planes == 1 {
                codes[..4].copy_from_slice(&s.pack_i8(a));
                codes[4..8].copy_from_slice(&s.pack_i8(b));
            } else {
                for (i, x) in [a, b].into_iter().enumerate() {
                    let high = s.shr_i::<8>(s.add_i(x, s.splat_i(128)));
                    let low = s.sub_i(x, s.shl_i::<8>(high));
                    codes[i * 4..][..4].copy_from_slice(&s.pack_i8(high));
                    codes[8 + i * 4..][..4].copy_from_slice(&s.pack_i8(low));
                }
            }
            let (sum_a, sum_b) = (s.sum_i(a), s.sum_i(b));
            let sum = sum_a + sum_b;
            let mut put = |part: usize, x: i32| parts[part * groups + g] = x;
            put(0, scale.to_bits().cast_signed());
            put(1, (scale * sum as f32).to_bits().cast_signed());
            put(2, -8 * sum);
            put(3, -16 * sum);
            put(4, -128 * sum);
            parts[5 * groups + 2 * g] = -32 * sum_a;
            parts[5 * groups + 2 * g + 1] = -32 * sum_b;
        }
    }
}

/// Words beside the codes: scale, scaled sum, starts for the offsets 8, 16, 128, and 32 twice.
const PARTS: usize = 7;
const ROWS_PER_TILE: usize = 8;
