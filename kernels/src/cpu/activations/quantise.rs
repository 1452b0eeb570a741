//! Rounding of a row to records, 16 groups at a time: a lane to a group where groups are reduced.

use super::{Part, RECORD_WORDS, Record};
use crate::cpu::linear::BLOCK_GROUPS;
use crate::cpu::simd::{LANES, Simd, Task};
use crate::cpu::{ActivationBits, rows};

/// Writes the records of one row.
pub(super) struct Quantise<'a> {
    pub(super) x: &'a [f32],
    /// First records, room for as many second ones, the number of second ones in each block.
    pub(super) out: &'a mut [i32],
    pub(super) bits: ActivationBits,
}

impl Task for Quantise<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { x, out, bits } = self;
        let x = x.as_chunks().0;
        let (first, rest) = out.split_at_mut(x.len() * RECORD_WORDS);
        let (second, counts) = rest.split_at_mut(x.len() * RECORD_WORDS);
        let above = match bits {
            ActivationBits::Eight => f32::INFINITY,
            ActivationBits::Adaptive => FINE_ABOVE * rows::root_mean_square(s, x.as_flattened()),
            ActivationBits::Sixteen => -1.0,
        };
        counts.fill(0);
        let mut row = Row { above, second: second.as_chunks_mut().0, counts };
        let first = first.as_chunks_mut().0;
        for (n, (x, first)) in x.chunks(LANES).zip(first.chunks_mut(LANES)).enumerate() {
            row.groups(s, n * LANES, x, first);
        }
    }
}

/// Where second records go.
struct Row<'a> {
    /// Groups whose largest value is not at most that have one.
    above: f32,
    second: &'a mut [Record],
    counts: &'a mut [i32],
}

impl Row<'_> {
    /// Up to 16 groups from number `start` on. No closures here: one that the compiler declines to
    /// inline is compiled without the instructions.
    #[inline(always)]
    fn groups<S: Simd>(&mut self, s: S, start: usize, x: &[[f32; 32]], first: &mut [Record]) {
        let mut a_rows = [[0; LANES]; LANES];
        for (x, row) in x.iter().zip(&mut a_rows) {
            let (a, b) = (s.load(x), s.load(&x[LANES..]));
            s.store_i(s.max_i(s.magnitude(a), s.magnitude(b)), row);
        }
        // As integers, so that what is not a number is the largest, and stays one in the scale.
        let largest = s.bits_to_f(s.largest_rows(&a_rows));
        let limit = s.splat(CODE_MAX);
        let scale = s.div(largest, limit);
        let scales = stored(s, scale);
        let inverses = stored(s, s.div(limit, largest));
        let largest = stored(s, largest);
        let mut b_rows = [[0; LANES]; LANES];
        let mut fine = [0f32; LANES];
        for (i, (x, first)) in x.iter().zip(&mut *first).enumerate() {
            // Zero for a group of zeros, and where there is no number.
            let inverse = if inverses[i].is_finite() { inverses[i] } else { 0.0 };
            let inverse = s.splat(inverse);
            let scaled = [s.mul(s.load(x), inverse), s.mul(s.load(&x[LANES..]), inverse)];
            let codes = [s.round(scaled[0]), s.round(scaled[1])];
            s.store_i(codes[0], &mut a_rows[i]);
            s.store_i(codes[1], &mut b_rows[i]);
            first[..4].copy_from_slice(&s.pack_i8(codes[0]));
            first[4..8].copy_from_slice(&s.pack_i8(codes[1]));
            let coarse_enough = largest[i] <= self.above;
            if !coarse_enough {
                fine[i] = self.refine(s, start + i, scales[i], scaled, codes);
            }
        }
        let (a_sums, b_sums) = (s.sum_rows(&a_rows), s.sum_rows(&b_rows));
        let sums = s.add_i(a_sums, b_sums);
        let values = stored(s, s.mul(scale, s.to_f(sums)));
        let mut halves = [[0; LANES]; 2];
        s.store_i(a_sums, &mut halves[0]);
        s.store_i(b_sums, &mut halves[1]);
        for (i, first) in first.iter_mut().enumerate() {
            finish(first, scales[i], [halves[0][i], halves[1][i]]);
            // Never minus zero, so adding nothing changes nothing.
            first[Part::SUM] = (values[i] + fine[i]).to_bits().cast_signed();
        }
    }

    /// Writes the second record of group `g`; returns the sum of its values.
    #[inline(always)]
    fn refine<S: Simd>(
        &mut self,
        s: S,
        g: usize,
        scale: f32,
        [a, b]: [S::F; 2],
        codes: [S::I; 2],
    ) -> f32 {
        let (block, limit) = (g / BLOCK_GROUPS, s.splat(CODE_MAX));
        let count = &mut self.counts[block];
        let record = &mut self.second[block * BLOCK_GROUPS + *count as usize];
        *count += 1;
        // Within half a code.
        let (a, b) = (s.sub(a, s.to_f(codes[0])), s.sub(b, s.to_f(codes[1])));
        let (a, b) = (s.mul(a, s.splat(FINER)), s.mul(b, s.splat(FINER)));
        let lowest = s.splat(-CODE_MAX);
        let a = s.round(s.max(s.min(a, limit), lowest));
        let b = s.round(s.max(s.min(b, limit), lowest));
        record[..4].copy_from_slice(&s.pack_i8(a));
        record[4..8].copy_from_slice(&s.pack_i8(b));
        let (a_sum, b_sum) = (s.sum_i(a), s.sum_i(b));
        let scale = scale / FINER;
        finish(record, scale, [a_sum, b_sum]);
        record[Part::SUM] = g as i32;
        scale * (a_sum + b_sum) as f32
    }
}

/// Writes the scale and where sums start, given the sums of the first and last 16 codes.
#[inline(always)]
fn finish(record: &mut Record, scale: f32, [a, b]: [i32; 2]) {
    record[Part::SCALE] = scale.to_bits().cast_signed();
    record[Part::START_8] = -8 * (a + b);
    record[Part::START_16] = -16 * (a + b);
    record[Part::START_128] = -128 * (a + b);
    record[Part::START_32] = -32 * a;
    record[Part::START_32 + 1] = -32 * b;
    record[Part::START_0] = 0;
}

/// The lanes.
#[inline(always)]
fn stored<S: Simd>(s: S, x: S::F) -> [f32; LANES] {
    let mut out = [0.0; LANES];
    s.store(x, &mut out);
    out
}

const CODE_MAX: f32 = 127.0;
/// Codes of a second record in one of the first.
const FINER: f32 = 254.0;
/// Groups whose largest value is over so many root mean squares of the row get a second record: a
/// fifth of them on SmolLM2, and with them the likeliest token is the float model's at 99.3 % of all
/// positions, without at 95.7 %.
pub(super) const FINE_ABOVE: f32 = 3.5;
