//! From 32 stored rows to a pair of panels, in the layout of `matrix.rs`: columns of words become
//! vectors, and halves, quarters and single bits of bytes change places between them.
//!
//! Vectors go through loops and not through closures of the standard library: those are not always
//! inlined, and alone they are compiled without the instruction set.

use super::matrix::Format;
use super::simd::{LANES, Simd, Task};
use crate::dtype::Dtype;

/// A pair of f32 rows.
pub(super) struct Floats<'a> {
    /// 32 rows of `row_bytes`.
    pub(super) rows: &'a [u8],
    pub(super) row_bytes: usize,
    /// `[column][32 rows]`.
    pub(super) out: &'a mut [f32],
}

/// A pair of f16 rows.
pub(super) struct Halves<'a> {
    /// 32 rows of `row_bytes`.
    pub(super) rows: &'a [u8],
    pub(super) row_bytes: usize,
    /// `[column][32 rows]`.
    pub(super) out: &'a mut [u16],
}

/// A pair of bf16 rows.
pub(super) struct Words<'a> {
    /// 32 rows of `row_bytes`.
    pub(super) rows: &'a [u8],
    pub(super) row_bytes: usize,
    /// `[two columns][32 rows]`, four bytes each; zero.
    pub(super) out: &'a mut [u8],
}

/// A pair of quantised rows.
pub(super) struct Quantities<'a> {
    pub(super) format: Format,
    /// 32 rows of `row_bytes`.
    pub(super) rows: &'a [u8],
    pub(super) row_bytes: usize,
    /// `[stored group][panel]`.
    pub(super) halves: &'a mut [u16],
    /// Small scales `[stored group][panel]`, then codes `[group][panel]`.
    pub(super) codes: &'a mut [u8],
}

impl Task for Floats<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { rows, row_bytes: stride, out } = self;
        for (panel, rows) in rows.chunks_exact(LANES * stride).enumerate() {
            for at in blocks(stride) {
                let out = &mut out[at * 8 + panel * LANES..];
                for (j, x) in simd.columns(&rows[at..], stride).into_iter().enumerate() {
                    simd.store(simd.b_to_f(x), &mut out[j * 32..]);
                }
            }
            if stride < BLOCK {
                for (lane, row) in rows.chunks_exact(stride).enumerate() {
                    for (column, x) in row.as_chunks().0.iter().enumerate() {
                        out[column * 32 + panel * LANES + lane] = f32::from_le_bytes(*x);
                    }
                }
            }
        }
    }
}

impl Task for Halves<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { rows, row_bytes: stride, out } = self;
        for (panel, rows) in rows.chunks_exact(LANES * stride).enumerate() {
            for at in blocks(stride) {
                let out = &mut out[at * 16 + panel * LANES..];
                for (j, x) in simd.columns(&rows[at..], stride).into_iter().enumerate() {
                    simd.store_halves(x, &mut out[j * 64..], 32);
                }
            }
            if stride < BLOCK {
                for (lane, row) in rows.chunks_exact(stride).enumerate() {
                    for (column, x) in row.as_chunks().0.iter().enumerate() {
                        out[column * 32 + panel * LANES + lane] = u16::from_le_bytes(*x);
                    }
                }
            }
        }
    }
}

impl Task for Words<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { rows, row_bytes: stride, out } = self;
        let whole = stride / BLOCK * BLOCK;
        for (panel, rows) in rows.chunks_exact((LANES * stride).max(1)).enumerate() {
            for at in (0..whole).step_by(BLOCK) {
                let out = &mut out[at * 32 + panel * 64..];
                for (j, x) in simd.columns(&rows[at..], stride).into_iter().enumerate() {
                    simd.store_b(x, &mut out[j * 128..]);
                }
            }
            // Up to seven columns; the word of the last may lack its second half.
            for (lane, row) in rows.chunks_exact(stride).enumerate() {
                for (j, x) in row[whole..].chunks(4).enumerate() {
                    out[whole * 32 + j * 128 + panel * 64 + 4 * lane..][..x.len()]
                        .copy_from_slice(x);
                }
            }
        }
    }
}

/// Where blocks of 16 bytes start in a row; the last may go over bytes of the one before again.
#[inline(always)]
fn blocks(row_bytes: usize) -> impl Iterator<Item = usize> {
    let last = row_bytes.checked_sub(BLOCK);
    let tail = last.filter(|_| !row_bytes.is_multiple_of(BLOCK));
    (0..row_bytes / BLOCK).map(|n| n * BLOCK).chain(tail)
}

impl Task for Quantities<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        match self.format.dtype {
            Dtype::Q4_0 => simple::<S, 4, 0>(simd, self),
            Dtype::Q4_1 => simple::<S, 4, 1>(simd, self),
            Dtype::Q5_0 => simple::<S, 5, 0>(simd, self),
            Dtype::Q5_1 => simple::<S, 5, 1>(simd, self),
            Dtype::Q8_0 => simple::<S, 8, 0>(simd, self),
            Dtype::Q4K => super_groups::<S, 4>(simd, self),
            Dtype::Q5K => super_groups::<S, 5>(simd, self),
            Dtype::Q6K => super_groups::<S, 6>(simd, self),
            Dtype::F32 | Dtype::F16 | Dtype::Bf16 | Dtype::F8E4M3 => {}
        }
    }
}

/// Types that store 32 values together: scale, minimum if `MIN` is one, fifth bits, codes.
#[expect(clippy::needless_pass_by_value, reason = "a bundle of borrows")]
#[inline(always)]
fn simple<S: Simd, const BITS: usize, const MIN: usize>(simd: S, pair: Quantities<'_>) {
    let stride = pair.row_bytes;
    let (scales, group_bytes) = (2 + 2 * MIN, 2 + 2 * MIN + 4 * BITS);
    let halves = pair.halves.chunks_exact_mut(LANES * (1 + MIN));
    let targets = halves.zip(pair.codes.chunks_exact_mut(64 * BITS));
    for (n, (halves, codes)) in targets.enumerate() {
        let (group, panel) = (n / 2, n % 2);
        let groups = &pair.rows[panel * LANES * stride + group * group_bytes..];
        put_halves(halves, groups, stride);
        if BITS == 8 {
            for (half, out) in codes.chunks_exact_mut(256).enumerate() {
                let x = simd.columns(&groups[scales + 16 * half..], stride);
                for (x, out) in x.into_iter().zip(out.chunks_exact_mut(64)) {
                    simd.store_b(simd.flip_b(x, 0x80), out);
                }
            }
            continue;
        }
        // Byte `i` has the values `i` and `i + 16`: the steps 0 to 3, and in the high halves 4 to 7.
        let low = simd.columns(&groups[scales + 4 * (BITS - 4)..], stride);
        put(simd, low, codes, 64);
        if BITS == 5 {
            let mut words = [0; LANES];
            for (lane, word) in words.iter_mut().enumerate() {
                *word = u32::from_le_bytes(read(groups, scales + lane * stride));
            }
            for (out, word) in codes[256..].as_chunks_mut().0.iter_mut().zip(words) {
                *out = bits_by_step(word).to_le_bytes();
            }
        }
    }
}

/// K types: 256 values stored together, eight groups of 32.
#[expect(clippy::needless_pass_by_value, reason = "a bundle of borrows")]
#[inline(always)]
fn super_groups<S: Simd, const BITS: usize>(simd: S, pair: Quantities<'_>) {
    let (format, stride) = (pair.format, pair.row_bytes);
    let dtype = format.dtype;
    let (small, codes) = pair.codes.split_at_mut(format.small_bytes());
    let targets =
        small.chunks_exact_mut(256).zip(pair.halves.chunks_exact_mut(format.halves_len()));
    for (n, (small, halves)) in targets.enumerate() {
        let (stored, panel) = (n / 2, n % 2);
        let groups = &pair.rows[panel * LANES * stride + stored * dtype.group_bytes()..];
        if BITS == 6 {
            put_halves(halves, &groups[208..], stride);
            let scales = simd.columns(&groups[192..], stride);
            for (x, small) in scales.into_iter().zip(small.chunks_exact_mut(64)) {
                simd.store_b(simd.sort_b(x), small);
            }
        } else {
            put_k_scales(simd, groups, stride, small, halves);
        }
        let codes = &mut codes[(stored * 16 + panel) * format.group_bytes()..];
        match BITS {
            4 => nibbles(simd, &groups[16..], stride, codes, 256),
            5 => q5_k(simd, groups, stride, codes),
            _ => q6_k(simd, groups, stride, codes),
        }
    }
}

/// Four times 32 bytes: byte `i` has the value `i` of a group, and of the next group in its high half.
#[inline(always)]
fn nibbles<S: Simd>(simd: S, groups: &[u8], stride: usize, codes: &mut [u8], group_bytes: usize) {
    for k in 0..4 {
        let mut even = simd.columns(&groups[32 * k..], stride);
        let mut odd = simd.columns(&groups[32 * k + 16..], stride);
        exchange_all(simd, &mut even, &mut odd);
        put(simd, even, &mut codes[4 * k * group_bytes..], 64);
        put(simd, odd, &mut codes[(4 * k + 2) * group_bytes..], 64);
    }
}

#[inline(always)]
fn q5_k<S: Simd>(simd: S, groups: &[u8], stride: usize, codes: &mut [u8]) {
    nibbles(simd, &groups[48..], stride, codes, 320);
    // Bit `g` of byte `i` of 32 is the fifth bit of the value `i` of group `g`: step by group, to be group by step.
    let mut low = simd.columns(&groups[16..], stride);
    let mut high = simd.columns(&groups[32..], stride);
    exchange_all(simd, &mut low, &mut high);
    for (half, [a, b, c, d]) in [low, high].into_iter().enumerate() {
        let ((a, c), (b, d)) = (exchange::<S, 2>(simd, a, c), exchange::<S, 2>(simd, b, d));
        let ((a, b), (c, d)) = (exchange::<S, 1>(simd, a, b), exchange::<S, 1>(simd, c, d));
        put(simd, [a, b, c, d], &mut codes[half * 8 * 320 + 256..], 2 * 320);
    }
}

#[inline(always)]
fn q6_k<S: Simd>(simd: S, groups: &[u8], stride: usize, codes: &mut [u8]) {
    for half in 0..2 {
        let codes = &mut codes[half * 8 * 384..];
        for k in 0..2 {
            // Byte `i` of 32 has the value `i` of a group, and of the group after the next in its high half.
            let at = 64 * half + 32 * k;
            let mut first = simd.columns(&groups[at..], stride);
            let mut third = simd.columns(&groups[at + 16..], stride);
            exchange_all(simd, &mut first, &mut third);
            put(simd, first, &mut codes[2 * k * 384..], 64);
            put(simd, third, &mut codes[(2 * k + 4) * 384..], 64);
        }
        for steps in 0..2 {
            // Bit pair `g` of byte `i` of 32 belongs to the value `i` of group `g` of four.
            let [a, b, c, d] = simd.columns(&groups[128 + 32 * half + 16 * steps..], stride);
            let ((a, c), (b, d)) = (exchange::<S, 4>(simd, a, c), exchange::<S, 4>(simd, b, d));
            let ((a, b), (c, d)) = (exchange::<S, 2>(simd, a, b), exchange::<S, 2>(simd, c, d));
            put(simd, [a, b, c, d], &mut codes[256 + 64 * steps..], 2 * 384);
        }
    }
}

/// Scale and minimum of 16 stored groups, then for each of eight groups of 32 the small ones.
#[inline(always)]
fn put_k_scales<S: Simd>(
    simd: S,
    groups: &[u8],
    stride: usize,
    small: &mut [u8],
    halves: &mut [u16],
) {
    let [head, a, b, c] = simd.columns(groups, stride);
    simd.store_halves(head, halves, LANES);
    // `quant::k_scale_min`, four groups in a word.
    let low = [simd.mask_b(a, 63), simd.mask_b(b, 63)];
    let (a, b) = (simd.mask_b(simd.shr_b(a, 2), 0x30), simd.mask_b(simd.shr_b(b, 2), 0x30));
    let d = simd.shr_b(c, 4);
    let high = [simd.or_b(simd.mask_b(c, 15), a), simd.or_b(simd.mask_b(d, 15), b)];
    for (four, small) in [low, high].into_iter().zip(small.chunks_exact_mut(128)) {
        for (which, x) in four.into_iter().enumerate() {
            let mut sorted = [0; 64];
            simd.store_b(simd.sort_b(x), &mut sorted);
            for (small, x) in small.chunks_exact_mut(32).zip(sorted.as_chunks::<LANES>().0) {
                small[which * LANES..][..LANES].copy_from_slice(x);
            }
        }
    }
}

/// The f16 values at the start of 16 stored groups, one after the other.
#[inline(always)]
fn put_halves(halves: &mut [u16], groups: &[u8], stride: usize) {
    for (i, halves) in halves.chunks_exact_mut(LANES).enumerate() {
        for (lane, half) in halves.iter_mut().enumerate() {
            *half = u16::from_le_bytes(read(groups, 2 * i + lane * stride));
        }
    }
}

#[inline(always)]
fn read<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&bytes[at..][..N]);
    out
}

/// Stores vectors that many bytes apart.
#[inline(always)]
fn put<S: Simd>(simd: S, x: [S::B; 4], out: &mut [u8], apart: usize) {
    for (j, x) in x.into_iter().enumerate() {
        simd.store_b(x, &mut out[j * apart..]);
    }
}

/// The high half of each byte of `a` changes places with the low half of that of `b`.
#[inline(always)]
fn exchange_all<S: Simd>(simd: S, a: &mut [S::B; 4], b: &mut [S::B; 4]) {
    for (a, b) in a.iter_mut().zip(b) {
        (*a, *b) = exchange::<S, 4>(simd, *a, *b);
    }
}

/// In every run of `2 * N` bits the high `N` of `a` change places with the low `N` of `b`: a step of a
/// transposition.
#[inline(always)]
fn exchange<S: Simd, const N: u32>(simd: S, a: S::B, b: S::B) -> (S::B, S::B) {
    let mask = match N {
        4 => 0x0f,
        2 => 0x33,
        _ => 0x55,
    };
    let low = simd.shl_b(simd.mask_b(b, mask), N);
    let high = simd.mask_b(simd.shr_b(a, N), mask);
    (simd.or_b(simd.mask_b(a, mask), low), simd.or_b(high, simd.mask_b(b, !mask)))
}

/// Bit `4 * s + i` goes to bit `8 * i + s`: five bits of an index turn by two, in four exchanges.
#[inline(always)]
fn bits_by_step(mut x: u32) -> u32 {
    for (by, mask) in [(14, 0x0000_cccc), (7, 0x00aa_00aa), (2, 0x0c0c_0c0c), (1, 0x2222_2222)] {
        let differ = ((x >> by) ^ x) & mask;
        x ^= differ ^ (differ << by);
    }
    x
}

/// Bytes of a row that [`Simd::columns`] takes.
const BLOCK: usize = 16;

#[cfg(test)]
mod tests;
