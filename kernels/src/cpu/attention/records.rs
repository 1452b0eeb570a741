//! What a query has after some spans: the sum of V, its weight, the largest score.

use crate::cpu::simd::{LANES, Simd, Task};

/// Values of a record: a head, whole vectors, then the weight, the largest score, and room.
pub(in crate::cpu) fn record_len(head_dim: usize) -> usize {
    head_dim.next_multiple_of(LANES) + LANES
}

/// Joins the records of a later span, one query after the other, to those of the spans before.
pub(in crate::cpu) struct Join<'a> {
    pub(in crate::cpu) head_dim: usize,
    pub(in crate::cpu) records: &'a mut [f32],
    pub(in crate::cpu) span: &'a [f32],
}

impl Task for Join<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (len, values) = (record_len(self.head_dim), self.head_dim.next_multiple_of(LANES));
        for (record, span) in self.records.chunks_exact_mut(len).zip(self.span.chunks_exact(len)) {
            join(s, values, record, span);
        }
    }
}

/// One query's sum over spans so far, and that of the next. A span that it does not see has no weight.
#[inline(always)]
pub(super) fn join<S: Simd>(s: S, values: usize, record: &mut [f32], span: &[f32]) {
    let (weight, largest) = (record[values], record[values + 1]);
    let (span_weight, span_largest) = (span[values], span[values + 1]);
    if span_weight == 0.0 {
        return;
    }
    if weight == 0.0 {
        record.copy_from_slice(span);
        return;
    }
    let highest = largest.max(span_largest);
    let mut factors = [0.0; LANES];
    (factors[0], factors[1]) = (largest - highest, span_largest - highest);
    let e = s.exp(s.load(&factors));
    s.store(e, &mut factors);
    let (a, b) = (s.splat(factors[0]), s.splat(factors[1]));
    let sums = record[..values].chunks_exact_mut(LANES).zip(span.chunks_exact(LANES));
    for (record, span) in sums {
        let sum = s.fma(s.load(record), a, s.mul(s.load(span), b));
        s.store(sum, record);
    }
    record[values] = weight * factors[0] + span_weight * factors[1];
    record[values + 1] = highest;
}

/// Writes the heads of one row: sums of V over their weights.
pub(in crate::cpu) struct Finish<'a> {
    pub(in crate::cpu) head_dim: usize,
    pub(in crate::cpu) records: &'a [f32],
    pub(in crate::cpu) out: &'a mut [f32],
}

impl Task for Finish<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let records = self.records.chunks_exact(record_len(self.head_dim));
        for (out, record) in self.out.chunks_exact_mut(self.head_dim).zip(records) {
            let factor = 1.0 / record[self.head_dim.next_multiple_of(LANES)];
            out.iter_mut().zip(record).for_each(|(out, x)| *out = x * factor);
        }
    }
}
