//! The vocabulary on AVX2 with FMA and F16C: two registers to a vector.
#![expect(unsafe_code, reason = "calls of instructions that not every CPU has")]

#[allow(clippy::wildcard_imports, reason = "the names of instructions, by the dozen")]
use std::arch::x86_64::*;

use super::simd::{Simd, Task, sixteen_rows};

/// Proof that the CPU has AVX2, FMA and F16C.
#[derive(Clone, Copy, Debug)]
pub(super) struct Avx2(());

impl Avx2 {
    pub(super) fn detect() -> Option<Self> {
        let has = is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c");
        has.then_some(Self(()))
    }

    /// Runs the task inside a function compiled for this instruction set.
    pub(super) fn run<T: Task>(self, task: T) {
        // SAFETY: `self` proves that the CPU has every feature that `run` enables.
        unsafe { run(self, task) }
    }
}

#[inline(never)]
#[target_feature(enable = "avx2,fma,f16c")]
fn run<T: Task>(simd: Avx2, task: T) {
    task.run(simd);
}

/// Lanes 0 to 7 and 8 to 15 of f32.
#[derive(Clone, Copy)]
pub(super) struct F(__m256, __m256);

/// Lanes 0 to 7 and 8 to 15 of i32, or bytes 0 to 31 and 32 to 63.
#[derive(Clone, Copy)]
pub(super) struct I(__m256i, __m256i);

/// One instruction, or one of the functions below.
macro_rules! proven {
    ($call:expr) => {{
        // SAFETY: `self` proves that the CPU has the instruction; a pointer comes from a slice that
        // was just cut to the length that the instruction reads or writes.
        unsafe { $call }
    }};
}

impl Simd for Avx2 {
    type F = F;
    type I = I;
    type B = I;
    const MANY_REGISTERS: bool = false;
    const DOT_TAKES_ALL: bool = false;

    #[inline(always)]
    fn call<T: Task>(self, task: T) {
        self.run(task);
    }
    #[inline(always)]
    fn splat(self, x: f32) -> F {
        let x = proven!(_mm256_set1_ps(x));
        F(x, x)
    }
    #[inline(always)]
    fn load(self, x: &[f32]) -> F {
        let (low, high) = (x[..8].as_ptr(), x[8..16].as_ptr());
        F(proven!(_mm256_loadu_ps(low)), proven!(_mm256_loadu_ps(high)))
    }
    #[inline(always)]
    fn store(self, x: F, out: &mut [f32]) {
        let (low, high) = out[..16].split_at_mut(8);
        let (low, high) = (low.as_mut_ptr(), high.as_mut_ptr());
        proven!(_mm256_storeu_ps(low, x.0));
        proven!(_mm256_storeu_ps(high, x.1));
    }
    #[inline(always)]
    fn load_f16(self, x: &[u16]) -> F {
        let (low, high) = (x[..8].as_ptr().cast(), x[8..16].as_ptr().cast());
        let (low, high) = (proven!(_mm_loadu_si128(low)), proven!(_mm_loadu_si128(high)));
        F(proven!(_mm256_cvtph_ps(low)), proven!(_mm256_cvtph_ps(high)))
    }
    #[inline(always)]
    fn store_f16(self, x: F, out: &mut [u16]) {
        let (low, high) = out[..16].split_at_mut(8);
        let (low, high) = (low.as_mut_ptr().cast(), high.as_mut_ptr().cast());
        let x0 = proven!(_mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(x.0));
        let x1 = proven!(_mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(x.1));
        proven!(_mm_storeu_si128(low, x0));
        proven!(_mm_storeu_si128(high, x1));
    }
    #[inline(always)]
    fn load_bf16_pairs(self, x: &[u8]) -> [F; 2] {
        let words = self.load_b(x);
        let low = self.shl_i::<16>(words);
        let mask = self.splat_i(0xffff_0000u32.cast_signed());
        let high = I(
            proven!(_mm256_and_si256(words.0, mask.0)),
            proven!(_mm256_and_si256(words.1, mask.1)),
        );
        [self.bits_to_f(low), self.bits_to_f(high)]
    }
    #[inline(always)]
    fn load_u8(self, x: &[u8]) -> F {
        let (low, high) = (x[..8].as_ptr().cast(), x[8..16].as_ptr().cast());
        let (low, high) = (proven!(_mm_loadl_epi64(low)), proven!(_mm_loadl_epi64(high)));
        let (low, high) = (proven!(_mm256_cvtepu8_epi32(low)), proven!(_mm256_cvtepu8_epi32(high)));
        F(proven!(_mm256_cvtepi32_ps(low)), proven!(_mm256_cvtepi32_ps(high)))
    }
    #[inline(always)]
    fn load_i8(self, x: &[u8]) -> F {
        let (low, high) = (x[..8].as_ptr().cast(), x[8..16].as_ptr().cast());
        let (low, high) = (proven!(_mm_loadl_epi64(low)), proven!(_mm_loadl_epi64(high)));
        let (low, high) = (proven!(_mm256_cvtepi8_epi32(low)), proven!(_mm256_cvtepi8_epi32(high)));
        F(proven!(_mm256_cvtepi32_ps(low)), proven!(_mm256_cvtepi32_ps(high)))
    }
    #[inline(always)]
    fn add(self, a: F, b: F) -> F {
        F(proven!(_mm256_add_ps(a.0, b.0)), proven!(_mm256_add_ps(a.1, b.1)))
    }
    #[inline(always)]
    fn sub(self, a: F, b: F) -> F {
        F(proven!(_mm256_sub_ps(a.0, b.0)), proven!(_mm256_sub_ps(a.1, b.1)))
    }
    #[inline(always)]
    fn mul(self, a: F, b: F) -> F {
        F(proven!(_mm256_mul_ps(a.0, b.0)), proven!(_mm256_mul_ps(a.1, b.1)))
    }
    #[inline(always)]
    fn div(self, a: F, b: F) -> F {
        F(proven!(_mm256_div_ps(a.0, b.0)), proven!(_mm256_div_ps(a.1, b.1)))
    }
    #[inline(always)]
    fn max(self, a: F, b: F) -> F {
        F(proven!(_mm256_max_ps(a.0, b.0)), proven!(_mm256_max_ps(a.1, b.1)))
    }
    #[inline(always)]
    fn min(self, a: F, b: F) -> F {
        F(proven!(_mm256_min_ps(a.0, b.0)), proven!(_mm256_min_ps(a.1, b.1)))
    }
    #[inline(always)]
    fn fma(self, a: F, b: F, c: F) -> F {
        let low = proven!(_mm256_fmadd_ps(a.0, b.0, c.0));
        F(low, proven!(_mm256_fmadd_ps(a.1, b.1, c.1)))
    }
    #[inline(always)]
    fn sum(self, x: F) -> f32 {
        proven!(sum(x))
    }
    #[inline(always)]
    fn largest(self, x: F) -> f32 {
        proven!(largest(x))
    }
    #[inline(always)]
    fn round(self, x: F) -> I {
        I(proven!(_mm256_cvtps_epi32(x.0)), proven!(_mm256_cvtps_epi32(x.1)))
    }
    #[inline(always)]
    fn bits_to_f(self, x: I) -> F {
        F(proven!(_mm256_castsi256_ps(x.0)), proven!(_mm256_castsi256_ps(x.1)))
    }
    #[inline(always)]
    fn splat_i(self, x: i32) -> I {
        let x = proven!(_mm256_set1_epi32(x));
        I(x, x)
    }
    #[inline(always)]
    fn add_i(self, a: I, b: I) -> I {
        I(proven!(_mm256_add_epi32(a.0, b.0)), proven!(_mm256_add_epi32(a.1, b.1)))
    }
    #[inline(always)]
    fn sub_i(self, a: I, b: I) -> I {
        I(proven!(_mm256_sub_epi32(a.0, b.0)), proven!(_mm256_sub_epi32(a.1, b.1)))
    }
    #[inline(always)]
    fn shl_i<const N: u32>(self, x: I) -> I {
        let by = proven!(_mm_cvtsi32_si128(N.cast_signed()));
        I(proven!(_mm256_sll_epi32(x.0, by)), proven!(_mm256_sll_epi32(x.1, by)))
    }
    #[inline(always)]
    fn shr_i<const N: u32>(self, x: I) -> I {
        let by = proven!(_mm_cvtsi32_si128(N.cast_signed()));
        I(proven!(_mm256_sra_epi32(x.0, by)), proven!(_mm256_sra_epi32(x.1, by)))
    }
    #[inline(always)]
    fn max_i(self, a: I, b: I) -> I {
        I(proven!(_mm256_max_epi32(a.0, b.0)), proven!(_mm256_max_epi32(a.1, b.1)))
    }
    #[inline(always)]
    fn store_i(self, x: I, out: &mut [i32]) {
        let (low, high) = out[..16].split_at_mut(8);
        let (low, high) = (low.as_mut_ptr().cast(), high.as_mut_ptr().cast());
        proven!(_mm256_storeu_si256(low, x.0));
        proven!(_mm256_storeu_si256(high, x.1));
    }
    #[inline(always)]
    fn magnitude(self, x: F) -> I {
        let mask = self.splat_i(i32::MAX).0;
        let (low, high) = (proven!(_mm256_castps_si256(x.0)), proven!(_mm256_castps_si256(x.1)));
        I(proven!(_mm256_and_si256(low, mask)), proven!(_mm256_and_si256(high, mask)))
    }
    #[inline(always)]
    fn sum_rows(self, rows: &[[i32; 16]; 16]) -> I {
        I(proven!(reduce_rows::<true>(&rows[..8])), proven!(reduce_rows::<true>(&rows[8..])))
    }
    #[inline(always)]
    fn largest_rows(self, rows: &[[i32; 16]; 16]) -> I {
        I(proven!(reduce_rows::<false>(&rows[..8])), proven!(reduce_rows::<false>(&rows[8..])))
    }
    #[inline(always)]
    fn sum_i(self, x: I) -> i32 {
        proven!(sum_i(x))
    }
    #[inline(always)]
    fn pack_i8(self, x: I) -> [i32; 4] {
        let x = proven!(pack_i8(x));
        let mut words = [0; 4];
        let out = words.as_mut_ptr().cast::<__m128i>();
        proven!(_mm_storeu_si128(out, x));
        words
    }
    #[inline(always)]
    fn to_f(self, x: I) -> F {
        F(proven!(_mm256_cvtepi32_ps(x.0)), proven!(_mm256_cvtepi32_ps(x.1)))
    }
    #[inline(always)]
    fn load_b(self, x: &[u8]) -> I {
        let (low, high) = (x[..32].as_ptr().cast(), x[32..64].as_ptr().cast());
        I(proven!(_mm256_loadu_si256(low)), proven!(_mm256_loadu_si256(high)))
    }
    #[inline(always)]
    fn store_b(self, x: I, out: &mut [u8]) {
        let (low, high) = out[..64].split_at_mut(32);
        let (low, high) = (low.as_mut_ptr().cast(), high.as_mut_ptr().cast());
        proven!(_mm256_storeu_si256(low, x.0));
        proven!(_mm256_storeu_si256(high, x.1));
    }
    #[inline(always)]
    fn mask_b(self, x: I, mask: u8) -> I {
        let mask = proven!(_mm256_set1_epi8(mask.cast_signed()));
        I(proven!(_mm256_and_si256(x.0, mask)), proven!(_mm256_and_si256(x.1, mask)))
    }
    #[inline(always)]
    fn or_b(self, a: I, b: I) -> I {
        I(proven!(_mm256_or_si256(a.0, b.0)), proven!(_mm256_or_si256(a.1, b.1)))
    }
    #[inline(always)]
    fn shr_b(self, x: I, by: u32) -> I {
        let by = proven!(_mm_cvtsi32_si128(by.cast_signed()));
        I(proven!(_mm256_srl_epi16(x.0, by)), proven!(_mm256_srl_epi16(x.1, by)))
    }
    #[inline(always)]
    fn shl_b(self, x: I, by: u32) -> I {
        let by = proven!(_mm_cvtsi32_si128(by.cast_signed()));
        I(proven!(_mm256_sll_epi16(x.0, by)), proven!(_mm256_sll_epi16(x.1, by)))
    }
    #[inline(always)]
    fn dot<const WIDE: bool>(self, acc: I, w: I, a: i32) -> I {
        let a = self.splat_i(a);
        if WIDE {
            I(proven!(dot_wide(acc.0, w.0, a.0)), proven!(dot_wide(acc.1, w.1, a.0)))
        } else {
            I(proven!(dot(acc.0, w.0, a.0)), proven!(dot(acc.1, w.1, a.0)))
        }
    }
    #[inline(always)]
    fn flip_b(self, x: I, mask: u8) -> I {
        let mask = proven!(_mm256_set1_epi8(mask.cast_signed()));
        I(proven!(_mm256_xor_si256(x.0, mask)), proven!(_mm256_xor_si256(x.1, mask)))
    }
    #[inline(always)]
    fn b_to_f(self, x: I) -> F {
        self.bits_to_f(x)
    }
    #[inline(always)]
    fn columns(self, rows: &[u8], stride: usize) -> [I; 4] {
        proven!(columns(rows, stride))
    }
    #[inline(always)]
    fn sort_b(self, x: I) -> I {
        proven!(sort_bytes(x))
    }
    #[inline(always)]
    fn store_halves(self, x: I, out: &mut [u16], apart: usize) {
        let (low, high) = proven!(split_halves(x));
        let at = out[..16].as_mut_ptr().cast::<__m256i>();
        proven!(_mm256_storeu_si256(at, low));
        let at = out[apart..][..16].as_mut_ptr().cast::<__m256i>();
        proven!(_mm256_storeu_si256(at, high));
    }
    #[inline(always)]
    fn prefetch<T>(self, x: &[T], at: usize) {
        let x = x.as_ptr().cast::<i8>().wrapping_add(at);
        // A prefetch of any address is harmless: it never faults.
        proven!(_mm_prefetch::<_MM_HINT_T0>(x));
    }
}

/// Sums of four products of codes up to 127: `maddubs` cannot saturate, as 2 * 127 * 128 < 2^15.
#[inline]
#[target_feature(enable = "avx2")]
fn dot(acc: __m256i, w: __m256i, a: __m256i) -> __m256i {
    let pairs = _mm256_maddubs_epi16(w, a);
    _mm256_add_epi32(acc, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
}

/// The same for codes up to 255: even and odd bytes are widened to 16 bits first.
#[inline]
#[target_feature(enable = "avx2")]
fn dot_wide(acc: __m256i, w: __m256i, a: __m256i) -> __m256i {
    let even_w = _mm256_and_si256(w, _mm256_set1_epi16(255));
    let even_a = _mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(a));
    let (odd_w, odd_a) = (_mm256_srli_epi16::<8>(w), _mm256_srai_epi16::<8>(a));
    let even = _mm256_madd_epi16(even_w, even_a);
    _mm256_add_epi32(acc, _mm256_add_epi32(even, _mm256_madd_epi16(odd_w, odd_a)))
}

/// Lane pairs at distance 8, 4, 2, 1.
#[inline]
#[target_feature(enable = "avx2")]
fn sum(x: F) -> f32 {
    let x = _mm256_add_ps(x.0, x.1);
    let x = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
    let x = _mm_add_ps(x, _mm_movehl_ps(x, x));
    let x = _mm_add_ss(x, _mm_shuffle_ps::<1>(x, x));
    _mm_cvtss_f32(x)
}

#[inline]
#[target_feature(enable = "avx2")]
fn largest(x: F) -> f32 {
    let x = _mm256_max_ps(x.0, x.1);
    let x = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
    let x = _mm_max_ps(x, _mm_movehl_ps(x, x));
    let x = _mm_max_ss(x, _mm_shuffle_ps::<1>(x, x));
    _mm_cvtss_f32(x)
}

/// Sums or largest values of eight rows, a lane each: neighbouring rows are interleaved and joined until
/// one vector is left.
#[inline]
#[target_feature(enable = "avx2")]
fn reduce_rows<const SUM: bool>(rows: &[[i32; 16]]) -> __m256i {
    let join = |a, b| if SUM { _mm256_add_epi32(a, b) } else { _mm256_max_epi32(a, b) };
    let one = |i: usize| {
        let (low, high) = rows[i].split_at(8);
        let (low, high) = (low.as_ptr().cast(), high.as_ptr().cast());
        // SAFETY: each half of a row has eight words.
        let low = unsafe { _mm256_loadu_si256(low) };
        // SAFETY: as before.
        join(low, unsafe { _mm256_loadu_si256(high) })
    };
    let two = |i: usize| {
        let (a, b) = (one(i), one(i + 1));
        join(_mm256_unpacklo_epi32(a, b), _mm256_unpackhi_epi32(a, b))
    };
    // Each half has a part of each of four rows.
    let four = |i: usize| {
        let (a, b) = (two(i), two(i + 2));
        join(_mm256_unpacklo_epi64(a, b), _mm256_unpackhi_epi64(a, b))
    };
    let (a, b) = (four(0), four(4));
    let even = _mm256_permute2x128_si256::<0b0010_0000>(a, b);
    join(even, _mm256_permute2x128_si256::<0b0011_0001>(a, b))
}

#[inline]
#[target_feature(enable = "avx2")]
fn sum_i(x: I) -> i32 {
    let x = _mm256_add_epi32(x.0, x.1);
    let x = _mm_add_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256::<1>(x));
    let x = _mm_add_epi32(x, _mm_shuffle_epi32::<0b01_00_11_10>(x));
    let x = _mm_add_epi32(x, _mm_shuffle_epi32::<0b10_11_00_01>(x));
    _mm_cvtsi128_si32(x)
}

#[inline]
#[target_feature(enable = "avx2")]
fn pack_i8(x: I) -> __m128i {
    // The packs work on 128-bit halves; the permutation puts the quarters back in order.
    let x = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packs_epi32(x.0, x.1));
    _mm_packs_epi16(_mm256_castsi256_si128(x), _mm256_extracti128_si256::<1>(x))
}

#[inline]
#[target_feature(enable = "avx2")]
fn columns(rows: &[u8], stride: usize) -> [I; 4] {
    let start = sixteen_rows(rows, stride).as_ptr();
    let row = |i: usize| {
        let at = start.wrapping_add(i * stride).cast::<__m128i>();
        // SAFETY: `i` is below 16, and `sixteen_rows` cut the slice to end 16 bytes behind the start of the last row.
        unsafe { _mm_loadu_si128(at) }
    };
    // Rows `i` and `i + 4`: the halves have the rows from 0 and from 4.
    let two = |i: usize| _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(row(i)), row(i + 4));
    let [a, b, c, d] = transpose([two(0), two(1), two(2), two(3)]);
    let [e, f, g, h] = transpose([two(8), two(9), two(10), two(11)]);
    [I(a, e), I(b, f), I(c, g), I(d, h)]
}

/// Four words by four vectors, in each half.
#[inline]
#[target_feature(enable = "avx2")]
fn transpose([a, b, c, d]: [__m256i; 4]) -> [__m256i; 4] {
    let (low_ab, low_cd) = (_mm256_unpacklo_epi32(a, b), _mm256_unpacklo_epi32(c, d));
    let (high_ab, high_cd) = (_mm256_unpackhi_epi32(a, b), _mm256_unpackhi_epi32(c, d));
    [
        _mm256_unpacklo_epi64(low_ab, low_cd),
        _mm256_unpackhi_epi64(low_ab, low_cd),
        _mm256_unpacklo_epi64(high_ab, high_cd),
        _mm256_unpackhi_epi64(high_ab, high_cd),
    ]
}

/// Bytes within each quarter, words across two of them, then the two registers.
#[inline]
#[target_feature(enable = "avx2")]
fn sort_bytes(x: I) -> I {
    let within = _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    let within = _mm256_broadcastsi128_si256(within);
    let across = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    let a = _mm256_permutevar8x32_epi32(_mm256_shuffle_epi8(x.0, within), across);
    let b = _mm256_permutevar8x32_epi32(_mm256_shuffle_epi8(x.1, within), across);
    let (even, odd) = (_mm256_unpacklo_epi64(a, b), _mm256_unpackhi_epi64(a, b));
    let low = _mm256_permute2x128_si256::<0x20>(even, odd);
    I(low, _mm256_permute2x128_si256::<0x31>(even, odd))
}

/// The low halves of the lanes, and the high ones.
#[inline]
#[target_feature(enable = "avx2")]
fn split_halves(x: I) -> (__m256i, __m256i) {
    let low = |x| _mm256_blend_epi16::<0b1010_1010>(x, _mm256_setzero_si256());
    let low = _mm256_packus_epi32(low(x.0), low(x.1));
    let high = |x| _mm256_srli_epi32::<16>(x);
    let high = _mm256_packus_epi32(high(x.0), high(x.1));
    // The packs work on 128-bit halves; the permutation puts the quarters back in order.
    let low = _mm256_permute4x64_epi64::<0b11_01_10_00>(low);
    (low, _mm256_permute4x64_epi64::<0b11_01_10_00>(high))
}
