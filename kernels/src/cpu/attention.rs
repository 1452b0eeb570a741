//! Causal attention over the paged cache.
//!
//! Positions are cut into spans of [`SPAN`], counted from zero. A query goes through each span that it
//! sees alone: all scores, their largest, the exponentials and their sum, the weighted sum of V; then
//! the spans are joined in ascending order. Sums are in lanes by `position % 16` where there are
//! lanes, else over ascending positions. So a token's result does not depend on the chunk it came in,
//! on its neighbours in a tile, or on whether its spans were computed by one thread or by several.

mod records;
mod values;

use std::ops::Range;

use super::cache::{Element, Head, Layer};
use super::rows;
use super::simd::{LANES, Simd, Task};
use crate::device::CACHE_GROUP;
use crate::memory;
use records::join;
pub(super) use records::{Finish, Join, record_len};
use values::Values;

/// What the tiles of one call share.
#[derive(Clone, Copy)]
pub(super) struct Shared<'a, T> {
    pub(super) cache: Layer<'a, T>,
    /// Position of each token of the step.
    pub(super) positions: &'a [u32],
    /// `[tokens, num_heads * head_dim]`.
    pub(super) q: &'a [f32],
    pub(super) num_heads: usize,
    pub(super) scale: f32,
    pub(super) softcap: Option<f32>,
    pub(super) window: Option<usize>,
}

/// Some heads, which share a K and V head, of some tokens of one sequence.
#[derive(Clone)]
pub(super) struct Part<'a> {
    /// Block table of the sequence.
    pub(super) blocks: &'a [u32],
    pub(super) rows: Range<usize>,
    pub(super) heads: Range<usize>,
}

/// A part, over some of its spans.
pub(super) struct AttentionTile<'a, 'b, T> {
    pub(super) shared: Shared<'a, T>,
    pub(super) part: Part<'a>,
    /// Spans to go through; those that a query does not see leave its record as it is.
    pub(super) spans: Range<usize>,
    /// Row after row, head after head, [`record_len`] values: the sum of V, its weight, the largest score.
    pub(super) records: &'b mut [f32],
    pub(super) scratch: &'b mut Scratch,
}

/// Queries by [`TOGETHER`], scores of so many of them, and their records of one span; wiped on drop.
#[derive(Default)]
pub(super) struct Scratch {
    /// `[query / TOGETHER][value][query % TOGETHER]`.
    q: Vec<f32>,
    scores: Vec<f32>,
    span: Vec<f32>,
    pub(super) records: Vec<f32>,
}

impl Drop for Scratch {
    fn drop(&mut self) {
        zeroize::Zeroize::zeroize(&mut self.q);
        zeroize::Zeroize::zeroize(&mut self.scores);
        zeroize::Zeroize::zeroize(&mut self.span);
        zeroize::Zeroize::zeroize(&mut self.records);
    }
}

/// Spans that the tokens `rows` see.
pub(super) fn spans(positions: &[u32], rows: Range<usize>, window: Option<usize>) -> Range<usize> {
    let seen = positions[rows].iter().map(|position| seen(*position, window));
    let (first, end) =
        seen.fold((usize::MAX, 0), |(first, end), seen| (first.min(seen.start), end.max(seen.end)));
    first.min(end) / SPAN..end.div_ceil(SPAN)
}

/// Positions that the token at `position` sees.
fn seen(position: u32, window: Option<usize>) -> Range<usize> {
    let end = position as usize + 1;
    window.map_or(0, |window| end.saturating_sub(window))..end
}

/// One query: the positions `first..end` that it sees in the span at hand.
#[derive(Clone, Copy)]
struct Query {
    first: usize,
    end: usize,
}

/// Up to 16 slots of a block: K of one head, from the first value of these slots on.
#[derive(Clone, Copy)]
struct Slots<'a, T> {
    k: &'a [[T; LANES]],
    /// `[group][slot]`: from these slots' on, or nothing.
    scales: &'a [u8],
    /// What will be read after these and those beside them.
    ahead: &'a [[T; LANES]],
    position: usize,
    /// Slots that are there.
    len: usize,
}

impl<T: Element> Task for AttentionTile<'_, '_, T> {
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { shared, part, spans, records, scratch } = self;
        let len = record_len(shared.cache.layout.shape.head_dim);
        let count = part.rows.len() * part.heads.len();
        records[..count * len].fill(0.0);
        // From the last of few queries on there is still room for the weights of all.
        memory::resize(&mut scratch.scores, (TOGETHER + FEW) * STRIDE);
        memory::resize(&mut scratch.span, TOGETHER * len);
        shared.gather(&part, &mut scratch.q);
        for span in spans {
            let mut first = 0;
            while first < count {
                let together = match count - first {
                    TOGETHER.. if S::MANY_REGISTERS => TOGETHER,
                    left => left.min(FEW - first % FEW),
                };
                let (shared, part) = (&shared, &part);
                let records = &mut records[first * len..][..together * len];
                let scratch = &mut *scratch;
                match together {
                    TOGETHER => s.call(Together::<T, TOGETHER> {
                        shared,
                        part,
                        span,
                        first,
                        records,
                        scratch,
                    }),
                    1 => s.call(Together::<T, 1> { shared, part, span, first, records, scratch }),
                    2 => s.call(Together::<T, 2> { shared, part, span, first, records, scratch }),
                    3 => s.call(Together::<T, 3> { shared, part, span, first, records, scratch }),
                    _ => s.call(Together::<T, 4> { shared, part, span, first, records, scratch }),
                }
                first += together;
            }
        }
    }
}

/// `N` queries of a part from number `first` on, over one span.
struct Together<'a, 't, T, const N: usize> {
    shared: &'a Shared<'t, T>,
    part: &'a Part<'t>,
    span: usize,
    first: usize,
    records: &'a mut [f32],
    scratch: &'a mut Scratch,
}

impl<T: Element, const N: usize> Task for Together<'_, '_, T, N> {
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { shared, part, span, first, records, scratch } = self;
        let dim = shared.cache.layout.shape.head_dim;
        let queries: [Query; N] = std::array::from_fn(|n| {
            let row = part.rows.start + (first + n) / part.heads.len();
            let seen = seen(shared.positions[row], shared.window);
            let first = seen.start.max(span * SPAN);
            Query { first, end: seen.end.min((span + 1) * SPAN).max(first) }
        });
        let (number, at) = (first / TOGETHER, first % TOGETHER);
        let first = queries.iter().map(|q| q.first).min().unwrap_or(0);
        let end = queries.iter().map(|q| q.end).max().unwrap_or(0);
        if queries.iter().all(|q| q.first == q.end) {
            return;
        }
        let kv_head = part.heads.start * shared.cache.layout.shape.num_kv_heads / shared.num_heads;
        let (len, values) = (record_len(dim), dim.next_multiple_of(LANES));
        let base = first / LANES * LANES;
        let width = (end - base).next_multiple_of(LANES);
        let Scratch { q, scores, span: sums, .. } = scratch;
        let len_q = TOGETHER * dim;
        let q = q[number * len_q..][..len_q].as_chunks().0;
        let blocks = part.blocks;
        shared.score::<S, N>(s, (blocks, kv_head), (q, at), first..end, scores, base);
        for (n, query) in queries.iter().enumerate() {
            let scores = &mut scores[n * STRIDE..][..width];
            let (weight, largest) = softmax(s, query, base, scores);
            (sums[n * len + values], sums[n * len + values + 1]) = (weight, largest);
        }
        let range = (first, end, base);
        if S::MANY_REGISTERS {
            shared.weigh::<S, N>(s, (blocks, kv_head), scores, range, sums);
        } else {
            for n in 0..N {
                let (scores, sums) = (&scores[n * STRIDE..], &mut sums[n * len..]);
                shared.weigh::<S, 1>(s, (blocks, kv_head), scores, range, sums);
            }
        }
        for (record, span) in records.chunks_exact_mut(len).zip(sums.chunks_exact(len)) {
            join(s, values, record, span);
        }
    }
}

impl<T: Element> Shared<'_, T> {
    /// Brings the queries of a part into the order of [`Scratch::q`].
    fn gather(&self, part: &Part<'_>, out: &mut Vec<f32>) {
        let dim = self.cache.layout.shape.head_dim;
        let count = part.rows.len() * part.heads.len();
        let len = TOGETHER * dim;
        memory::resize(out, count.div_ceil(TOGETHER) * len);
        let queries =
            part.rows.clone().flat_map(|row| part.heads.clone().map(move |head| (row, head)));
        for (n, (row, head)) in queries.enumerate() {
            let q = &self.q[(row * self.num_heads + head) * dim..][..dim];
            let out: &mut [[f32; TOGETHER]] = out[n / TOGETHER * len..][..len].as_chunks_mut().0;
            out.iter_mut().zip(q).for_each(|(out, q)| out[n % TOGETHER] = *q);
        }
    }

    /// `scores[n * STRIDE + p - base] = q[n] · k[p]`, scaled and capped, for `p` in `range`.
    #[inline(always)]
    fn score<S: Simd, const N: usize>(
        &self,
        s: S,
        (blocks, kv_head): (&[u32], usize),
        q: (&[[f32; TOGETHER]], usize),
        range: Range<usize>,
        scores: &mut [f32],
        base: usize,
    ) {
        let shape = &self.cache.layout.shape;
        let size = shape.block_size;
        // Four vectors of slots at a time keep the multipliers busy; each score is the same alone.
        let nothing = Slots { k: &[], scales: &[], ahead: &[], position: 0, len: 0 };
        let mut waiting: [Slots<'_, T>; 4] = [nothing; 4];
        let mut count = 0;
        let held = range.start / size..range.end.div_ceil(size);
        for (index, block) in held.clone().zip(&blocks[held.clone()]) {
            let Head { values: k, scales } = self.cache.k(*block, kv_head);
            // After the last K of the span comes its first V.
            let later = index + AHEAD;
            let ahead = if later < held.end {
                self.cache.k(blocks[later], kv_head).values
            } else {
                let later = held.start + (later - held.end).min(held.len() - 1);
                self.cache.v(blocks[later], kv_head).values
            };
            for slot in (0..size).step_by(LANES) {
                let (position, len) = (index * size + slot, LANES.min(size - slot));
                if position + len <= range.start || position >= range.end {
                    continue;
                }
                let k = &k.as_chunks().0[slot / LANES..];
                let scales = if T::SCALED { &scales[slot * size_of::<f32>()..] } else { scales };
                let ahead = ahead.as_chunks().0;
                waiting[count] = Slots { k, scales, ahead, position, len };
                count += 1;
                let to = (&mut *scores, base);
                if N > FEW && count == 2 {
                    let waiting = [waiting[0], waiting[1]];
                    self.score_slots::<S, N, 2>(s, q, waiting, &range, to);
                    count = 0;
                } else if N <= FEW && S::MANY_REGISTERS && count == 4 {
                    self.score_slots::<S, N, 4>(s, q, waiting, &range, to);
                    count = 0;
                } else if !S::MANY_REGISTERS {
                    self.score_slots::<S, N, 1>(s, q, [waiting[0]], &range, to);
                    count = 0;
                }
            }
        }
        for slots in &waiting[..count] {
            let to = (&mut *scores, base);
            self.score_slots::<S, N, 1>(s, q, [*slots], &range, to);
        }
    }

    /// Scores of `C` vectors of slots; those within `range` are written.
    #[inline(always)]
    fn score_slots<S: Simd, const N: usize, const C: usize>(
        &self,
        s: S,
        (q, at): (&[[f32; TOGETHER]], usize),
        slots: [Slots<'_, T>; C],
        range: &Range<usize>,
        (scores, base): (&mut [f32], usize),
    ) {
        let step = self.cache.layout.slots / LANES;
        let mut sums = [[s.splat(0.0); C]; N];
        let mut scales = [s.splat(1.0); C];
        let k = slots.map(|slots| &slots.k[..(q.len() - 1) * step + 1]);
        for (d, q) in q.iter().enumerate() {
            if d % 2 == 0 {
                for slots in &slots {
                    s.prefetch(slots.ahead, d * step * size_of::<[T; LANES]>());
                }
            }
            if T::SCALED && d % CACHE_GROUP == 0 {
                let group = d / CACHE_GROUP * self.cache.layout.slots * size_of::<f32>();
                for c in 0..C {
                    scales[c] = s.b_to_f(s.load_b(&slots[c].scales[group..]));
                }
            }
            let mut k16 = [T::load(s, &k[0][d * step]); C];
            for c in 1..C {
                k16[c] = T::load(s, &k[c][d * step]);
            }
            if T::SCALED {
                for c in 0..C {
                    k16[c] = s.mul(k16[c], scales[c]);
                }
            }
            let q = &q[at..at + N];
            for n in 0..N {
                let q = s.splat(q[n]);
                for c in 0..C {
                    sums[n][c] = s.fma(q, k16[c], sums[n][c]);
                }
            }
        }
        // Through memory: what follows is too large to be repeated for each register.
        let mut products = [[[0.0; LANES]; C]; N];
        for n in 0..N {
            for c in 0..C {
                s.store(sums[n][c], &mut products[n][c]);
            }
        }
        for (n, products) in products.iter().enumerate() {
            for (slots, product) in slots.iter().zip(products) {
                let mut score = s.mul(s.load(product), s.splat(self.scale));
                if let Some(cap) = self.softcap {
                    score = rows::softcap(s, cap, score);
                }
                let from = slots.position.max(range.start);
                let to = (slots.position + slots.len).min(range.end);
                let out = &mut scores[n * STRIDE + from - base..n * STRIDE + to - base];
                if let Ok(out) = <&mut [f32; LANES]>::try_from(&mut *out) {
                    s.store(score, out);
                } else {
                    let mut values = [0.0; LANES];
                    s.store(score, &mut values);
                    out.copy_from_slice(&values[from - slots.position..to - slots.position]);
                }
            }
        }
    }

    /// `sums[n] = sum over p of weights[n * STRIDE + p - base] * v[p]`, `p` ascending from `first` to `end`. A
    /// query that does not see a position has no weight for it, and adding nothing changes nothing.
    #[inline(always)]
    fn weigh<S: Simd, const N: usize>(
        &self,
        s: S,
        sequence: (&[u32], usize),
        weights: &[f32],
        range: (usize, usize, usize),
        sums: &mut [f32],
    ) {
        let (vectors, mut d) = (self.cache.layout.values / LANES, 0);
        while N > FEW && d + 2 <= vectors {
            self.weigh_values::<S, N, 2>(s, sequence, weights, range, (sums, d));
            d += 2;
        }
        while d + 4 <= vectors {
            self.weigh_values::<S, N, 4>(s, sequence, weights, range, (sums, d));
            d += 4;
        }
        while d < vectors {
            self.weigh_values::<S, N, 1>(s, sequence, weights, range, (sums, d));
            d += 1;
        }
    }

    /// The same for `D` vectors of values from vector `d` on.
    #[inline(always)]
    fn weigh_values<S: Simd, const N: usize, const D: usize>(
        &self,
        s: S,
        (blocks, kv_head): (&[u32], usize),
        weights: &[f32],
        (first, end, base): (usize, usize, usize),
        (out, d): (&mut [f32], usize),
    ) {
        let (shape, vectors) = (self.cache.layout.shape, self.cache.layout.values / LANES);
        let (size, groups) = (shape.block_size, self.cache.layout.groups());
        let mut sums = [[s.splat(0.0); D]; N];
        let held = first / size..end.div_ceil(size);
        for (index, block) in held.clone().zip(&blocks[held.clone()]) {
            let Head { values: v, scales } = self.cache.v(*block, kv_head);
            // After the last V of the span comes the first K of the next, then that of the next head.
            let later = index + AHEAD;
            let ahead = if later < held.end {
                self.cache.v(blocks[later], kv_head).values
            } else if let Some(block) = blocks.get(later) {
                self.cache.k(*block, kv_head).values
            } else if kv_head + 1 < shape.num_kv_heads {
                self.cache.k(blocks[(later - blocks.len()).min(index)], kv_head + 1).values
            } else {
                v
            };
            let from = (index * size).max(first);
            let to = ((index + 1) * size).min(end);
            let v = &v.as_chunks::<LANES>().0[(from - index * size) * vectors + d..];
            let scales = &scales.as_chunks().0[(from - index * size) * groups..];
            let weights = &weights[from - base..];
            // Whole blocks have a known length, and a known place for every weight, which spares the loop its checks.
            if let (16, Some(weights)) = (to - from, weights.first_chunk::<WEIGHTS>()) {
                for p in 0..16 {
                    let at = (p * vectors + d) * size_of::<[T; LANES]>();
                    for line in 0..(D * size_of::<[T; LANES]>()).div_ceil(LINE) {
                        s.prefetch(ahead, at + line * LINE);
                    }
                    let v = Values { v: &v[p * vectors..], d, scales: &scales[p * groups..] };
                    v.add(s, std::array::from_fn(|n| weights[n * STRIDE + p]), &mut sums);
                }
            } else {
                for p in 0..to - from {
                    let v = Values { v: &v[p * vectors..], d, scales: &scales[p * groups..] };
                    v.add(s, std::array::from_fn(|n| weights[n * STRIDE + p]), &mut sums);
                }
            }
        }
        let len = record_len(shape.head_dim);
        for n in 0..N {
            for i in 0..D {
                s.store(sums[n][i], &mut out[n * len + (d + i) * LANES..]);
            }
        }
    }
}

/// `scores = exp(scores - largest)` where the query sees, else 0; returns their sum and the largest.
#[inline(always)]
fn softmax<S: Simd>(s: S, query: &Query, base: usize, scores: &mut [f32]) -> (f32, f32) {
    if query.first == query.end {
        scores.fill(0.0);
        return (0.0, 0.0);
    }
    scores[..query.first - base].fill(f32::NEG_INFINITY);
    scores[query.end - base..].fill(f32::NEG_INFINITY);
    let mut largest = s.splat(f32::NEG_INFINITY);
    for x in scores.chunks_exact(LANES) {
        largest = s.max(largest, s.load(x));
    }
    let highest = s.largest(largest);
    let largest = s.splat(highest);
    let mut sum = s.splat(0.0);
    for x in scores.chunks_exact_mut(LANES) {
        let e = s.exp(s.sub(s.load(x), largest));
        s.store(e, x);
        sum = s.add(sum, e);
    }
    (s.sum(sum), highest)
}

/// Positions that are gone through together. K and V of a span stay in the second-level cache while
/// the queries of a tile pass. Part of the order of sums.
pub(super) const SPAN: usize = 256;
const LINE: usize = 64;
/// Blocks of K or V by which reads are announced before they are due.
const AHEAD: usize = 4;
/// Queries that go through a span together where there are many registers: twelve by two vectors keep the multipliers busy
/// while two vectors are converted.
const TOGETHER: usize = 12;
/// As many at most else, and of what is left of a tile: four by four vectors.
const FEW: usize = 4;
/// From the scores of a query to those of the next: a known distance, and no multiple of the cache's.
const STRIDE: usize = SPAN + LANES;
/// From the first query's weights of 16 positions to the last one's.
const WEIGHTS: usize = (TOGETHER - 1) * STRIDE + LANES;
