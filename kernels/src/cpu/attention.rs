//! Causal attention over the paged cache.
//!
//! A tile is a few consecutive tokens by the query heads that share a K and V head, or one of
//! them. Each query makes two passes: all scores, then (after the softmax) the weighted sum of V,
//! position after position. Every sum is over absolute positions in ascending order, in lanes by
//! `position % 16` where there are lanes, so a token's result does not depend on the chunk it came in.

use std::ops::Range;

use super::cache::{Element, Layout};
use super::rows;
use super::simd::{LANES, Simd, Task};
use super::tiles::Tile;

/// One tile of attention.
pub(super) struct AttentionTile<'a, 'b, T> {
    pub(super) layout: Layout,
    /// The layer's K and V.
    pub(super) k: &'a [T],
    pub(super) v: &'a [T],
    /// Block table of the sequence.
    pub(super) blocks: &'a [u32],
    /// Position of each token of the step.
    pub(super) positions: &'a [u32],
    /// `[tokens, num_heads * head_dim]`.
    pub(super) q: &'a [f32],
    pub(super) num_heads: usize,
    pub(super) scale: f32,
    pub(super) softcap: Option<f32>,
    pub(super) window: Option<usize>,
    /// Rows: tokens of one sequence. Columns: whole heads that share a K and V head.
    pub(super) out: Tile<'b, f32>,
    pub(super) scores: &'a mut Vec<f32>,
}

/// One query: a head of a token.
#[derive(Clone, Copy)]
struct Query<'a> {
    q: &'a [f32],
    row: usize,
    /// Where in the tile's columns.
    col: usize,
    /// Positions it sees: `first..=last`.
    first: usize,
    last: usize,
}

/// Up to 16 slots of a block: K of one head from the first of them on.
#[derive(Clone, Copy)]
struct Slots<'a, T> {
    k: &'a [T],
    position: usize,
    /// Slots that are there.
    len: usize,
}

impl<T: Element> Task for AttentionTile<'_, '_, T> {
    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let dim = self.layout.shape.head_dim;
        let heads = self.out.cols.start / dim..self.out.cols.end / dim;
        let kv_head = heads.start * self.layout.shape.num_kv_heads / self.num_heads;
        let queries: Vec<Query<'_>> = (self.out.rows.clone())
            .flat_map(|row| heads.clone().map(move |head| (row, head)))
            .map(|(row, head)| {
                let last = self.positions[row] as usize;
                let first = self.window.map_or(0, |window| (last + 1).saturating_sub(window));
                let q = &self.q[(row * self.num_heads + head) * dim..][..dim];
                Query { q, row, col: (head - heads.start) * dim, first, last }
            })
            .collect();
        let mut rest = &queries[..];
        while !rest.is_empty() {
            let (now, later) = rest.split_at(rest.len().min(4));
            let tile = &mut self;
            match now {
                [a, b, c, d] => s.call(Together { tile, kv_head, queries: [*a, *b, *c, *d] }),
                [a, b, alone @ ..] => {
                    s.call(Together { tile: &mut *tile, kv_head, queries: [*a, *b] });
                    for a in alone {
                        s.call(Together { tile: &mut *tile, kv_head, queries: [*a] });
                    }
                }
                alone => {
                    for a in alone {
                        s.call(Together { tile: &mut *tile, kv_head, queries: [*a] });
                    }
                }
            }
            rest = later;
        }
    }
}

/// `N` queries of a tile.
struct Together<'a, 't, 'b, 'q, T, const N: usize> {
    tile: &'a mut AttentionTile<'t, 'b, T>,
    kv_head: usize,
    queries: [Query<'q>; N],
}

impl<T: Element, const N: usize> Task for Together<'_, '_, '_, '_, T, N> {
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        self.tile.queries(s, self.kv_head, self.queries);
    }
}

/// A range of positions of `N` queries.
struct Weigh<'a, 't, 'b, 'q, T, const N: usize> {
    tile: &'a mut AttentionTile<'t, 'b, T>,
    kv_head: usize,
    queries: [Query<'q>; N],
    weights: [&'a [f32]; N],
    range: Range<usize>,
    base: usize,
}

impl<T: Element, const N: usize> Task for Weigh<'_, '_, '_, '_, T, N> {
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { tile, kv_head, queries, weights, range, base } = self;
        tile.weigh(s, kv_head, queries, weights, range, base);
    }
}

impl<T: Element> AttentionTile<'_, '_, T> {
    /// `N` queries of one sequence and one K and V head.
    #[inline(always)]
    fn queries<S: Simd, const N: usize>(&mut self, s: S, kv_head: usize, queries: [Query<'_>; N]) {
        let first = queries.iter().map(|q| q.first).min().unwrap_or(0);
        let last = queries.iter().map(|q| q.last).max().unwrap_or(0);
        let base = first / LANES * LANES;
        let stride = (last + 1 - base).next_multiple_of(LANES);
        if self.scores.len() < N * stride {
            self.scores.resize(N * stride, 0.0);
        }
        let mut scores = std::mem::take(self.scores);
        self.score(s, kv_head, &queries, first..last + 1, &mut scores, (base, stride));
        let mut factors = [0.0; N];
        for ((query, scores), factor) in
            queries.iter().zip(scores.chunks_exact_mut(stride)).zip(&mut factors)
        {
            *factor = self.softmax(s, query, base, scores);
        }
        for query in &queries {
            self.out.row(query.row)[query.col..][..query.q.len()].fill(0.0);
        }
        let weights = std::array::from_fn(|n| &scores[n * stride..][..stride]);
        self.weigh_ranges(s, kv_head, queries, weights, base);
        for (query, factor) in queries.iter().zip(factors) {
            let out = &mut self.out.row(query.row)[query.col..][..query.q.len()];
            out.iter_mut().for_each(|x| *x *= factor);
        }
        *self.scores = scores;
    }

    /// The weighted sums of V: together over the positions that all queries see, before and after
    /// them each query alone, so that each goes through its own positions in ascending order.
    #[inline(always)]
    fn weigh_ranges<S: Simd, const N: usize>(
        &mut self,
        s: S,
        kv_head: usize,
        queries: [Query<'_>; N],
        weights: [&[f32]; N],
        base: usize,
    ) {
        let start = queries.iter().map(|q| q.first).max().unwrap_or(0);
        let end = queries.iter().map(|q| q.last + 1).min().unwrap_or(0);
        let end = end.max(start);
        for (query, weights) in queries.into_iter().zip(weights) {
            let (queries, weights) = ([query], [weights]);
            let range = query.first..start.min(query.last + 1);
            let tile = &mut *self;
            s.call(Weigh { tile, kv_head, queries, weights, range, base });
        }
        if S::MANY_REGISTERS {
            let (tile, range) = (&mut *self, start..end);
            s.call(Weigh { tile, kv_head, queries, weights, range, base });
        }
        for (query, weights) in queries.into_iter().zip(weights) {
            let (queries, weights) = ([query], [weights]);
            let first = if S::MANY_REGISTERS { end } else { start };
            let range = first.max(start.min(query.last + 1))..query.last + 1;
            let tile = &mut *self;
            s.call(Weigh { tile, kv_head, queries, weights, range, base });
        }
    }

    /// `scores[n][p - base] = q[n] · k[p]`, scaled and capped, for the blocks that hold `range`.
    #[inline(always)]
    fn score<S: Simd, const N: usize>(
        &self,
        s: S,
        kv_head: usize,
        queries: &[Query<'_>; N],
        range: Range<usize>,
        scores: &mut [f32],
        (base, stride): (usize, usize),
    ) {
        let shape = &self.layout.shape;
        let size = shape.block_size;
        // Four vectors of slots at a time keep the multipliers busy; each score is the same alone.
        let mut waiting: [Slots<'_, T>; 4] = [Slots { k: &[], position: 0, len: 0 }; 4];
        let mut count = 0;
        for index in range.start / size..range.end.div_ceil(size) {
            let head = self.blocks[index] as usize * shape.num_kv_heads + kv_head;
            let k = &self.k[head * self.layout.k_head()..][..self.layout.k_head()];
            for slot in (0..size).step_by(LANES) {
                let (position, len) = (index * size + slot, LANES.min(size - slot));
                if position + len <= range.start || position >= range.end {
                    continue;
                }
                waiting[count] = Slots { k: &k[slot..], position, len };
                count += 1;
                if S::MANY_REGISTERS && count == 4 {
                    self.score_slots(s, queries, waiting, &range, (&mut *scores, base, stride));
                    count = 0;
                } else if !S::MANY_REGISTERS {
                    let one = [waiting[0]];
                    self.score_slots(s, queries, one, &range, (&mut *scores, base, stride));
                    count = 0;
                }
            }
        }
        for slots in &waiting[..count] {
            self.score_slots(s, queries, [*slots], &range, (&mut *scores, base, stride));
        }
    }

    /// Scores of `C` vectors of slots; those within `range` are written.
    #[inline(always)]
    fn score_slots<S: Simd, const N: usize, const C: usize>(
        &self,
        s: S,
        queries: &[Query<'_>; N],
        slots: [Slots<'_, T>; C],
        range: &Range<usize>,
        (scores, base, stride): (&mut [f32], usize, usize),
    ) {
        let (dim, width) = (self.layout.shape.head_dim, self.layout.slots);
        let q: [&[f32]; N] = std::array::from_fn(|n| &queries[n].q[..dim]);
        let k = slots.map(|slots| &slots.k[..(dim - 1) * width + LANES]);
        let mut sums = [[s.splat(0.0); C]; N];
        for d in 0..dim {
            let mut k16 = [T::load(s, &k[0][d * width..]); C];
            for c in 1..C {
                k16[c] = T::load(s, &k[c][d * width..]);
            }
            for n in 0..N {
                let q = s.splat(q[n][d]);
                for c in 0..C {
                    sums[n][c] = s.fma(q, k16[c], sums[n][c]);
                }
            }
        }
        for (n, sums) in sums.into_iter().enumerate() {
            for (slots, sum) in slots.iter().zip(sums) {
                let mut sum = s.mul(sum, s.splat(self.scale));
                if let Some(cap) = self.softcap {
                    sum = rows::softcap(s, cap, sum);
                }
                let from = slots.position.max(range.start);
                let to = (slots.position + slots.len).min(range.end);
                let mut values = [0.0; LANES];
                s.store(sum, &mut values);
                let out = &mut scores[n * stride + from - base..n * stride + to - base];
                out.copy_from_slice(&values[from - slots.position..to - slots.position]);
            }
        }
    }

    /// `scores = exp(scores - max)` where the query sees, and returns one over their sum.
    #[inline(always)]
    fn softmax<S: Simd>(&self, s: S, query: &Query<'_>, base: usize, scores: &mut [f32]) -> f32 {
        let skip = (query.first - base) / LANES * LANES;
        let end = (query.last + 1 - base).next_multiple_of(LANES);
        scores[skip..query.first - base].fill(f32::NEG_INFINITY);
        scores[query.last + 1 - base..end].fill(f32::NEG_INFINITY);
        let scores = &mut scores[skip..end];
        let mut largest = s.splat(f32::NEG_INFINITY);
        for x in scores.chunks_exact(LANES) {
            largest = s.max(largest, s.load(x));
        }
        let largest = s.splat(s.largest(largest));
        let mut sum = s.splat(0.0);
        for x in scores.chunks_exact_mut(LANES) {
            let e = s.exp(s.sub(s.load(x), largest));
            s.store(e, x);
            sum = s.add(sum, e);
        }
        1.0 / s.sum(sum)
    }

    /// `out[n] += sum over p of weights[n][p - base] * v[p]`, `p` ascending.
    #[inline(always)]
    fn weigh<S: Simd, const N: usize>(
        &mut self,
        s: S,
        kv_head: usize,
        queries: [Query<'_>; N],
        weights: [&[f32]; N],
        range: Range<usize>,
        base: usize,
    ) {
        if range.is_empty() {
            return;
        }
        let dim = self.layout.shape.head_dim;
        let mut d = 0;
        while d + 4 * LANES <= dim {
            self.weigh_values::<S, N, 4>(s, kv_head, &queries, &weights, range.clone(), base, d);
            d += 4 * LANES;
        }
        while d < dim {
            self.weigh_values::<S, N, 1>(s, kv_head, &queries, &weights, range.clone(), base, d);
            d += LANES;
        }
    }

    #[inline(always)]
    #[expect(clippy::too_many_arguments, reason = "the innermost loop, split for its registers")]
    fn weigh_values<S: Simd, const N: usize, const D: usize>(
        &mut self,
        s: S,
        kv_head: usize,
        queries: &[Query<'_>; N],
        weights: &[&[f32]; N],
        range: Range<usize>,
        base: usize,
        d: usize,
    ) {
        let shape = self.layout.shape;
        let size = shape.block_size;
        let mut sums = [[s.splat(0.0); D]; N];
        for (query, sums) in queries.iter().zip(&mut sums) {
            let out = &self.out.row(query.row)[query.col..][..query.q.len()][d..];
            for (i, sum) in sums.iter_mut().enumerate() {
                *sum = rows::load_tail(s, &out[i * LANES..(i * LANES + LANES).min(out.len())]);
            }
        }
        for index in range.start / size..range.end.div_ceil(size) {
            let head = self.blocks[index] as usize * shape.num_kv_heads + kv_head;
            let v = &self.v[head * self.layout.v_head()..][..self.layout.v_head()];
            let from = (index * size).max(range.start);
            let to = ((index + 1) * size).min(range.end);
            let v = &v[(from - index * size) * self.layout.values..];
            let weights: [&[f32]; N] = std::array::from_fn(|n| &weights[n][from - base..to - base]);
            for (p, v) in v.chunks_exact(self.layout.values).take(to - from).enumerate() {
                let v: [S::F; D] = std::array::from_fn(|i| T::load(s, &v[d + i * LANES..]));
                for n in 0..N {
                    let weight = s.splat(weights[n][p]);
                    for i in 0..D {
                        sums[n][i] = s.fma(weight, v[i], sums[n][i]);
                    }
                }
            }
        }
        for (query, sums) in queries.iter().zip(sums) {
            let out = &mut self.out.row(query.row)[query.col..][..query.q.len()][d..];
            for (i, sum) in sums.into_iter().enumerate() {
                let end = (i * LANES + LANES).min(out.len());
                rows::store_tail(s, sum, &mut out[i * LANES..end]);
            }
        }
    }
}
