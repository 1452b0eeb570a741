//! Arguments of the kernels: the structs of `kernels/cuda`, field by field. Addresses are the device's, zero is none.
#![expect(unsafe_code, reason = "each struct is asserted to be the kernel's")]

use super::driver::Params;

/// A struct of a kernel's source, with the size that both languages assert.
macro_rules! params {
    ($($(#[$doc:meta])* $name:ident, $size:literal { $($field:ident: $type:ty),* $(,)? })*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug)]
        #[repr(C)]
        pub(super) struct $name {
            $(pub(super) $field: $type),*
        }
        // No padding: the fields fill it.
        const _: () = assert!(size_of::<$name>() == $size && 0 $(+ size_of::<$type>())* == $size);
        // SAFETY: `repr(C)`, without padding by the assertion above, and of the size that the kernel's source asserts.
        unsafe impl Params for $name {}
    )*};
}
#[cfg(all(test, feature = "cuda-host"))]
pub(super) use params;

params! {
    /// `common.cuh`.
    StepParams, 48 { num_tokens: u64, tokens: u64, positions: u64, sequences: u64, cu_blocks: u64, block_tables: u64 }
    /// `common.cuh`.
    CacheLayer, 48 {
        k: u64, v: u64, k_scales: u64, v_scales: u64, block_size: u32, num_kv_heads: u32, head_dim: u32, kind: u32,
    }
    /// `tiles.cuh`; F32 matrices by the same struct, `weights.cuh`.
    Tiles, 16 { records: u64, rows: u32, cols: u32 }
    /// `input.cuh`.
    InputParams, 32 { x: u64, other: u64, kind: u32, cols: u32, span: u32, eps: f32 }
    /// `input.cu`.
    InputRows, 40 { input: InputParams, out: u64 }
    /// `input_tiles.cuh`.
    InputTiles, 96 {
        input: InputParams, added: InputParams, sum: u64, tiles: u64, rest: u64, half: u32, num_rows: u32,
    }
    /// `pack.cu`.
    Pack, 32 { stored: u64, records: u64, rows: u32, cols: u32, first_tile: u32, unused: u32 }
    /// `embed.cu`.
    Embed, 80 { step: StepParams, table: Tiles, out: u64, scale: f32, unused: u32 }
    /// `linear_f32.cu`.
    LinearF32, 48 { x: u64, bias: u64, out: u64, weight: Tiles, rows: u32, unused: u32 }
    /// `linear.cuh`.
    Product, 40 { weight: Tiles, bias: u64, out: u64, first: u32, parts: u32 }
    /// `linear.cuh`.
    LinearParams, 176 {
        rows: u64, rest: u64, partials: u64, tickets: u64, products: [Product; 3], gated: u64, num_rows: u32, split: u32,
        gate: u32, half: u32,
    }
    /// `linear_few.cu`.
    FewParams, 232 {
        linear: LinearParams, input: InputParams, sums: u64, works: u32, group: u32, fine: u32, unused: u32,
    }
    /// `select.cu`.
    Select, 32 { x: u64, rows: u64, out: u64, cols: u32, unused: u32 }
    /// `softcap.cu`.
    Softcap, 24 { x: u64, len: u64, cap: f32, unused: u32 }
    /// `sample.cuh`.
    Sample, 72 {
        x: u64, keys: u64, draws: u64, edits: u64, cuts: u64, bins: u64, pieces: u64,
        cols: u32, cut: u32, drawn: u32, undo: u32,
    }
    /// `clear.cu`.
    Clear, 1016 { plane: u64, bytes: u64, num_blocks: u64, blocks: [u32; LIST] }
    /// `angles.cu`.
    Angles, 72 { step: StepParams, inv_freq: u64, out: u64, pairs: u32, factor: f32 }
    /// `rope_store.cu`.
    Heads, 64 {
        q: u64, k: u64, v: u64, q_norm: u64, k_norm: u64, angles: u64, num_heads: u32, pairs: u32, eps: f32, unused: u32,
    }
    /// `rope_store.cu`.
    RopeStoreParams, 160 { step: StepParams, cache: CacheLayer, heads: Heads }
    /// `attention_token.cuh`.
    TokenAttention, 248 { attention: AttentionParams, heads: Heads, tiles: u64, tile_rows: u32, half: u32 }
    /// `attention.cuh`.
    AttentionParams, 168 {
        step: StepParams, cache: CacheLayer, q: u64, out: u64, records: u64, num_heads: u32, window: u32,
        max_spans: u32, first_token: u32, end_token: u32, scale: f32, softcap: f32, ring: u32, tickets: u64, turns: u32,
        group: u32,
    }
}

/// Numbers that a launch can carry among its arguments.
pub(super) const LIST: usize = 248;

/// Lists of at most as many numbers, and how many each has.
pub(super) fn lists(numbers: &[u32]) -> impl Iterator<Item = (u32, [u32; LIST])> {
    numbers.chunks(LIST).map(|chunk| {
        let mut list = [0; LIST];
        list[..chunk.len()].copy_from_slice(chunk);
        (chunk.len() as u32, list)
    })
}

impl Heads {
    /// None that anybody turns.
    pub(super) const NONE: Self = Self {
        q: 0,
        k: 0,
        v: 0,
        q_norm: 0,
        k_norm: 0,
        angles: 0,
        num_heads: 0,
        pairs: 0,
        eps: 0.0,
        unused: 0,
    };
}

impl InputParams {
    /// What is not there.
    pub(super) const NONE: Self = Self { x: 0, other: 0, kind: 0, cols: 0, span: 0, eps: 0.0 };

    /// The grid of a kernel that makes so many rows.
    pub(super) fn grid(&self, rows: usize) -> [u32; 3] {
        [rows as u32, self.cols.div_ceil(self.span).max(1), 1]
    }
}

impl Product {
    /// What is not there: behind every work.
    pub(super) const NONE: Self = Self {
        weight: Tiles { records: 0, rows: 0, cols: 0 },
        bias: 0,
        out: 0,
        first: u32::MAX,
        parts: 1,
    };
}
