//! Activations for integer dot products: groups of 32 as signed bytes with one f32 scale.
//!
//! With 8 bits a value is `scale * code`; with 16 it is `scale * (256 * high + low)`, two planes of
//! bytes, and the products are exact sums of two byte products. A row is a record for each group:
//! `[plane][8 words of 4 codes]`, then the [`Part`]s. With 8 bits a record is one cache line.

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

/// What follows the codes of a group, a word each.
pub(super) struct Part;

impl Part {
    /// Bits of the f32 scale.
    pub(super) const SCALE: usize = 0;
    /// Bits of the sum of the values, for minima.
    pub(super) const SUM: usize = 1;
    /// Where the integer sum starts for weights whose codes have an offset: minus the offset times
    /// the sum of the codes. Zero for those that have none.
    pub(super) const START_0: usize = 7;
    const START_8: usize = 2;
    const START_16: usize = 3;
    const START_128: usize = 4;
    /// And the next one for the second half: Q6_K has two scales to a group.
    const START_32: usize = 5;
    /// Parts of a group.
    pub(super) const COUNT: usize = 8;

    /// The start for a weight type.
    pub(super) fn start(dtype: Dtype) -> usize {
        match quant::offset(dtype) {
            8 => Self::START_8,
            16 => Self::START_16,
            128 => Self::START_128,
            32 => Self::START_32,
            _ => Self::START_0,
        }
    }
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
        let small = rows <= ROWS_PER_TILE;
        let grid = Grid::new(&mut self.words, width, &self.splits, width.max(1));
        tiles::for_each(pool, small, &mut [grid], &|_, mut tile, _| {
            for t in tile.rows.clone() {
                let x = &x[t * cols..][..cols];
                level.run(Quantise { x, out: tile.row(t), planes });
            }
        });
    }

    fn width(&self) -> usize {
        self.groups * (self.planes * 8 + Part::COUNT)
    }

    /// Row `t`: records of the groups.
    pub(super) fn row(&self, t: usize) -> &[i32] {
        &self.words[t * self.width()..][..self.width()]
    }
}

struct Quantise<'a> {
    x: &'a [f32],
    out: &'a mut [i32],
    planes: usize,
}

impl Task for Quantise<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { x, out, planes } = self;
        let records = out.chunks_exact_mut(planes * 8 + Part::COUNT);
        for (x, record) in x.chunks_exact(32).zip(records) {
            let (codes, parts) = record.split_at_mut(planes * 8);
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
            parts[Part::SCALE] = scale.to_bits().cast_signed();
            parts[Part::SUM] = (scale * sum as f32).to_bits().cast_signed();
            parts[Part::START_8] = -8 * sum;
            parts[Part::START_16] = -16 * sum;
            parts[Part::START_128] = -128 * sum;
            parts[Part::START_32] = -32 * sum_a;
            parts[Part::START_32 + 1] = -32 * sum_b;
            parts[Part::START_0] = 0;
        }
    }
}

const ROWS_PER_TILE: usize = 8;
