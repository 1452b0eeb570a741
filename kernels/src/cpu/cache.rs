//! The paged KV cache of the CPU device, laid out for attention.
//!
//! In a layer, K is `[block][head][value][slot]` (slots rounded up to 16), so that 16 scores at
//! 16 positions come from one vector of lanes without a sum across them; V is
//! `[block][head][slot][value]` (values rounded up to 16). Where values are bytes, those of a head in
//! a block are followed by their f32 scales, K's `[group][slot]`, V's `[slot][group]`.

use std::fmt;

use super::pool::Pool;
use super::rows;
use super::simd::{LANES, Simd, Task};
use super::tiles::{self, Grid};
use crate::batch::Batch;
use crate::device::{CACHE_GROUP, CacheDtype, CacheShape, DeviceError};
use crate::memory::{Aligned, Plain, bytes_of};

/// K and V of all layers; wiped on drop.
pub struct Cache {
    pub(super) layout: Layout,
    pub(super) data: Data,
}

/// K and V by element type.
pub(super) enum Data {
    F32([Aligned<f32>; 2]),
    F16([Aligned<u16>; 2]),
    I8([Aligned<u8>; 2]),
}

/// Where things lie.
#[derive(Clone, Copy, Debug)]
pub(super) struct Layout {
    pub(super) shape: CacheShape,
    /// Slots of a block, rounded up.
    pub(super) slots: usize,
    /// Values of a head, rounded up.
    pub(super) values: usize,
}

impl Layout {
    /// Elements of K of a head in a block, scales included.
    fn k_head(&self) -> usize {
        self.shape.head_dim * self.slots + self.k_scales()
    }

    /// Elements of V of a head in a block, scales included.
    fn v_head(&self) -> usize {
        self.shape.block_size * self.values + self.v_scales()
    }

    /// Groups of a head's values that have scales.
    pub(super) fn groups(&self) -> usize {
        match self.shape.dtype {
            CacheDtype::F32 | CacheDtype::F16 | CacheDtype::Bf16 => 0,
            CacheDtype::I8 | CacheDtype::F8 => self.shape.head_dim.div_ceil(CACHE_GROUP),
        }
    }

    /// Bytes of the scales of K of a head in a block.
    fn k_scales(&self) -> usize {
        size_of::<f32>() * self.groups() * self.slots
    }

    /// Bytes of the scales of V of a head in a block.
    fn v_scales(&self) -> usize {
        size_of::<f32>() * self.groups() * self.shape.block_size
    }

    /// Values of a whole layer, given those of a head in a block.
    fn layer(&self, head: usize) -> usize {
        self.shape.num_blocks * self.shape.num_kv_heads * head
    }
}

/// An element of the cache.
pub(super) trait Element: Plain {
    /// 16 of them.
    fn load<S: Simd>(s: S, x: &[Self]) -> S::F;
    /// 16 of them.
    fn store<S: Simd>(s: S, x: S::F, out: &mut [Self]);
    const ZERO: Self;
    /// Whether values have scales.
    const SCALED: bool;
    /// Writes scale number `at`, where there are scales.
    fn set_scale(scales: &mut [Self], at: usize, scale: f32);
    /// The scales as bytes, none where there are none.
    fn scales(scales: &[Self]) -> &[u8];
}

impl Element for f32 {
    const ZERO: Self = 0.0;
    const SCALED: bool = false;
    fn set_scale(_: &mut [Self], _: usize, _: f32) {}
    #[inline(always)]
    fn scales(_: &[Self]) -> &[u8] {
        &[]
    }
    #[inline(always)]
    fn load<S: Simd>(s: S, x: &[Self]) -> S::F {
        s.load(x)
    }
    #[inline(always)]
    fn store<S: Simd>(s: S, x: S::F, out: &mut [Self]) {
        s.store(x, out);
    }
}

impl Element for u16 {
    const ZERO: Self = 0;
    const SCALED: bool = false;
    fn set_scale(_: &mut [Self], _: usize, _: f32) {}
    #[inline(always)]
    fn scales(_: &[Self]) -> &[u8] {
        &[]
    }
    #[inline(always)]
    fn load<S: Simd>(s: S, x: &[Self]) -> S::F {
        s.load_f16(x)
    }
    #[inline(always)]
    fn store<S: Simd>(s: S, x: S::F, out: &mut [Self]) {
        s.store_f16(x, out);
    }
}

/// A signed byte.
impl Element for u8 {
    const ZERO: Self = 0;
    const SCALED: bool = true;
    fn set_scale(scales: &mut [Self], at: usize, scale: f32) {
        scales.as_chunks_mut().0[at] = scale.to_le_bytes();
    }
    #[inline(always)]
    fn scales(scales: &[Self]) -> &[u8] {
        scales
    }
    #[inline(always)]
    fn load<S: Simd>(s: S, x: &[Self]) -> S::F {
        s.load_i8(x)
    }
    #[inline(always)]
    fn store<S: Simd>(s: S, x: S::F, out: &mut [Self]) {
        let words = s.pack_i8(s.round(x));
        for (out, word) in out[..LANES].as_chunks_mut::<4>().0.iter_mut().zip(words) {
            *out = word.to_le_bytes();
        }
    }
}

/// K or V of one head in one block.
#[derive(Clone, Copy)]
pub(super) struct Head<'a, T> {
    /// K `[value][slot]`, V `[slot][value]`.
    pub(super) values: &'a [T],
    /// K `[group][slot]`, V `[slot][group]`, an f32 each; or nothing.
    pub(super) scales: &'a [u8],
}

/// K and V of one layer.
#[derive(Clone, Copy)]
pub(super) struct Layer<'a, T> {
    pub(super) layout: Layout,
    k: &'a [T],
    v: &'a [T],
}

impl<'a, T: Element> Layer<'a, T> {
    pub(super) fn new(layout: Layout, [k, v]: &'a [Aligned<T>; 2], layer: usize) -> Self {
        let (k_len, v_len) = (layout.layer(layout.k_head()), layout.layer(layout.v_head()));
        Self { layout, k: &k[layer * k_len..][..k_len], v: &v[layer * v_len..][..v_len] }
    }

    #[inline(always)]
    pub(super) fn k(&self, block: u32, kv_head: usize) -> Head<'a, T> {
        self.head(self.k, (self.layout.k_head(), self.layout.k_scales()), block, kv_head)
    }

    #[inline(always)]
    pub(super) fn v(&self, block: u32, kv_head: usize) -> Head<'a, T> {
        self.head(self.v, (self.layout.v_head(), self.layout.v_scales()), block, kv_head)
    }

    #[inline(always)]
    fn head(
        &self,
        all: &'a [T],
        (len, scales): (usize, usize),
        block: u32,
        kv_head: usize,
    ) -> Head<'a, T> {
        let head = block as usize * self.layout.shape.num_kv_heads + kv_head;
        let (values, scales) = all[head * len..][..len].split_at(len - scales);
        Head { values, scales: T::scales(scales) }
    }
}

impl Cache {
    pub(super) fn new(shape: CacheShape) -> Result<Self, DeviceError> {
        let slots = shape.block_size.next_multiple_of(LANES);
        let layout = Layout { shape, slots, values: shape.head_dim.next_multiple_of(LANES) };
        let count = shape.num_layers * shape.num_blocks * shape.num_kv_heads;
        let (k, v) = (count * layout.k_head(), count * layout.v_head());
        let data = match shape.dtype {
            CacheDtype::F32 => Data::F32([
                Aligned::zeroed_sparse("KV cache", k)?,
                Aligned::zeroed_sparse("KV cache", v)?,
            ]),
            CacheDtype::F16 => Data::F16([
                Aligned::zeroed_sparse("KV cache", k)?,
                Aligned::zeroed_sparse("KV cache", v)?,
            ]),
            CacheDtype::I8 => Data::I8([
                Aligned::zeroed_sparse("KV cache", k)?,
                Aligned::zeroed_sparse("KV cache", v)?,
            ]),
            dtype @ (CacheDtype::Bf16 | CacheDtype::F8) => {
                return Err(DeviceError::CacheDtype { device: "CPU", dtype });
            }
        };
        Ok(Self { layout, data })
    }

    /// Zeroes blocks in every layer.
    pub(super) fn clear(&mut self, blocks: &[u32]) {
        match &mut self.data {
            Data::F32(data) => clear(&self.layout, data, blocks),
            Data::F16(data) => clear(&self.layout, data, blocks),
            Data::I8(data) => clear(&self.layout, data, blocks),
        }
    }
}

fn clear<T: Element>(layout: &Layout, [k, v]: &mut [Aligned<T>; 2], blocks: &[u32]) {
    let heads = layout.shape.num_kv_heads;
    for (data, head) in [(k, layout.k_head()), (v, layout.v_head())] {
        for layer in data.chunks_exact_mut(layout.layer(head).max(1)) {
            for block in blocks {
                layer[*block as usize * heads * head..][..heads * head].fill(T::ZERO);
            }
        }
    }
}

/// What a step writes to the cache of a layer.
pub(super) struct Store<'a> {
    pub(super) batch: &'a Batch,
    /// `[tokens, num_kv_heads * head_dim]` each.
    pub(super) k: &'a [f32],
    pub(super) v: &'a [f32],
    pub(super) layer: usize,
}

impl Store<'_> {
    /// Writes K and V of every token at its slot; a tile is one head of K or of V.
    pub(super) fn run(&self, pool: &Pool, level: super::isa::Level, cache: &mut Cache) {
        let layout = cache.layout;
        match &mut cache.data {
            Data::F32(data) => self.tiles(pool, level, &layout, data),
            Data::F16(data) => self.tiles(pool, level, &layout, data),
            Data::I8(data) => self.tiles(pool, level, &layout, data),
        }
    }

    fn tiles<T: Element>(
        &self,
        pool: &Pool,
        level: super::isa::Level,
        layout: &Layout,
        [k, v]: &mut [Aligned<T>; 2],
    ) {
        let (heads, blocks) = (layout.shape.num_kv_heads, layout.shape.num_blocks);
        let (k_head, v_head) = (layout.k_head(), layout.v_head());
        let splits = [0, blocks];
        let k = &mut k[self.layer * layout.layer(k_head)..][..layout.layer(k_head)];
        let v = &mut v[self.layer * layout.layer(v_head)..][..layout.layer(v_head)];
        let k = Grid::new(k, heads * k_head, &splits, k_head);
        let v = Grid::new(v, heads * v_head, &splits, v_head);
        let small = self.batch.num_tokens() < 16;
        tiles::for_each(pool, small, &mut [k, v], &|which, mut tile, _| {
            let (source, width) = if which == 0 { (self.k, k_head) } else { (self.v, v_head) };
            let head = tile.cols.start / width;
            let (dim, block_size) = (layout.shape.head_dim, layout.shape.block_size);
            for s in 0..self.batch.num_sequences() {
                let (blocks, rows) = (self.batch.blocks(s), self.batch.rows(s));
                let mut t = rows.start;
                while t < rows.end {
                    let values = &source[(t * heads + head) * dim..];
                    let position = self.batch.positions[t] as usize;
                    let slot = position % block_size;
                    let out = tile.row(blocks[position / block_size] as usize);
                    let vectors = slot.is_multiple_of(LANES) && slot + LANES <= block_size;
                    if which == 0 && !T::SCALED && vectors && t + LANES <= rows.end {
                        let (out, stride) = (&mut out[slot..], layout.slots);
                        level.run(Transpose { values, apart: heads * dim, dim, out, stride });
                        t += LANES;
                        continue;
                    }
                    let values = &values[..dim];
                    level.run(if which == 0 {
                        let (out, scales) = out.split_at_mut(width - layout.k_scales());
                        let (stride, scale_stride) = (layout.slots, layout.slots);
                        let (out, scale) = (&mut out[slot..], slot);
                        Write { values, out, stride, scales, scale, scale_stride }
                    } else {
                        let (out, scales) = out.split_at_mut(width - layout.v_scales());
                        let (stride, scale_stride) = (1, 1);
                        let out = &mut out[slot * layout.values..][..layout.values];
                        let scale = slot * layout.groups();
                        Write { values, out, stride, scales, scale, scale_stride }
                    });
                    t += 1;
                }
            }
        });
    }
}

/// Writes the values of a head of 16 tokens, which are `apart` from each other, as columns of 16 slots.
struct Transpose<'a, T> {
    values: &'a [f32],
    apart: usize,
    dim: usize,
    out: &'a mut [T],
    stride: usize,
}

impl<T: Element> Task for Transpose<'_, T> {
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { values, apart, dim, out, stride } = self;
        let whole = dim / WORDS * WORDS;
        for at in (0..whole).step_by(WORDS) {
            let columns = s.columns(bytes_of(&values[at..]), apart * size_of::<f32>());
            for (j, column) in columns.into_iter().enumerate() {
                T::store(s, s.b_to_f(column), &mut out[(at + j) * stride..]);
            }
        }
        for at in whole..dim {
            let column: [f32; LANES] = std::array::from_fn(|t| values[t * apart + at]);
            T::store(s, s.load(&column), &mut out[at * stride..]);
        }
    }
}

/// Converts values and writes them at a stride, and their scales, if they have some, from number
/// `scale` on at a stride of their own.
struct Write<'a, T> {
    values: &'a [f32],
    out: &'a mut [T],
    stride: usize,
    scales: &'a mut [T],
    scale: usize,
    scale_stride: usize,
}

impl<T: Element> Task for Write<'_, T> {
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { values: all, out, stride, scales, scale: first_scale, scale_stride } = self;
        let mut factor = 1.0;
        for (i, values) in all.chunks(LANES).enumerate() {
            if T::SCALED && i % VECTORS == 0 {
                let group = &all[i * LANES..];
                let group = &group[..group.len().min(CACHE_GROUP)];
                let scale = rows::largest_magnitude(s, group) / CODE_MAX;
                T::set_scale(scales, first_scale + i / VECTORS * scale_stride, scale);
                factor = if scale > 0.0 { 1.0 / scale } else { 0.0 };
                factor = if factor.is_finite() { factor } else { 0.0 };
            }
            let mut converted = [T::ZERO; LANES];
            let x = rows::load_tail(s, values);
            T::store(s, if T::SCALED { s.mul(x, s.splat(factor)) } else { x }, &mut converted);
            let out = out[i * LANES * stride..].iter_mut().step_by(stride);
            out.zip(&converted[..values.len()]).for_each(|(out, x)| *out = *x);
        }
    }
}

/// Values of a row that [`Simd::columns`] takes at once.
const WORDS: usize = 4;
/// Vectors of a group.
pub(super) const VECTORS: usize = CACHE_GROUP / LANES;
const CODE_MAX: f32 = 127.0;

impl fmt::Debug for Cache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Cache({:?})", self.layout.shape)
    }
}
