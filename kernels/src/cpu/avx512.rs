//! The vocabulary on AVX-512 with VNNI: one register to a vector.
#![expect(unsafe_code, reason = "calls of instructions that not every CPU has")]

#[allow(clippy::wildcard_imports, reason = "the names of instructions, by the dozen")]
use std::arch::x86_64::*;

use super::simd::{Simd, Task, sixteen_rows};

/// Proof that the CPU has AVX-512 F, BW, VL and VNNI, and AVX2, FMA and F16C.
#[derive(Clone, Copy, Debug)]
pub(super) struct Avx512(());

impl Avx512 {
    pub(super) fn detect() -> Option<Self> {
        let has = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vnni")
            && is_x86_feature_detected!("avx2")
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
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
fn run<T: Task>(simd: Avx512, task: T) {
    task.run(simd);
}

/// One instruction, or one of the functions below.
macro_rules! proven {
    ($call:expr) => {{
        // SAFETY: `self` proves that the CPU has the instruction; a pointer comes from a slice that
        // was just cut to the length that the instruction reads or writes.
        unsafe { $call }
    }};
}

impl Simd for Avx512 {
    type F = __m512;
    type I = __m512i;
    type B = __m512i;
    const MANY_REGISTERS: bool = true;

    #[inline(always)]
    fn call<T: Task>(self, task: T) {
        self.run(task);
    }
    #[inline(always)]
    fn splat(self, x: f32) -> __m512 {
        proven!(_mm512_set1_ps(x))
    }
    #[inline(always)]
    fn load(self, x: &[f32]) -> __m512 {
        let x = x[..16].as_ptr();
        proven!(_mm512_loadu_ps(x))
    }
    #[inline(always)]
    fn store(self, x: __m512, out: &mut [f32]) {
        let out = out[..16].as_mut_ptr();
        proven!(_mm512_storeu_ps(out, x));
    }
    #[inline(always)]
    fn load_f16(self, x: &[u16]) -> __m512 {
        let x = x[..16].as_ptr().cast::<__m256i>();
        let x = proven!(_mm256_loadu_si256(x));
        proven!(_mm512_cvtph_ps(x))
    }
    #[inline(always)]
    fn store_f16(self, x: __m512, out: &mut [u16]) {
        let out = out[..16].as_mut_ptr().cast::<__m256i>();
        let x = proven!(_mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(x));
        proven!(_mm256_storeu_si256(out, x));
    }
    #[inline(always)]
    fn load_bf16_pairs(self, x: &[u8]) -> [__m512; 2] {
        let words = self.load_b(x);
        let mask = self.splat_i(0xffff_0000u32.cast_signed());
        let high = proven!(_mm512_and_si512(words, mask));
        [self.bits_to_f(self.shl_i::<16>(words)), self.bits_to_f(high)]
    }
    #[inline(always)]
    fn load_u8(self, x: &[u8]) -> __m512 {
        let x = x[..16].as_ptr().cast::<__m128i>();
        let x = proven!(_mm_loadu_si128(x));
        let x = proven!(_mm512_cvtepu8_epi32(x));
        proven!(_mm512_cvtepi32_ps(x))
    }
    #[inline(always)]
    fn load_i8(self, x: &[u8]) -> __m512 {
        let x = x[..16].as_ptr().cast::<__m128i>();
        let x = proven!(_mm_loadu_si128(x));
        let x = proven!(_mm512_cvtepi8_epi32(x));
        proven!(_mm512_cvtepi32_ps(x))
    }
    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        proven!(_mm512_add_ps(a, b))
    }
    #[inline(always)]
    fn sub(self, a: __m512, b: __m512) -> __m512 {
        proven!(_mm512_sub_ps(a, b))
    }
    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        proven!(_mm512_mul_ps(a, b))
    }
    #[inline(always)]
    fn div(self, a: __m512, b: __m512) -> __m512 {
        proven!(_mm512_div_ps(a, b))
    }
    #[inline(always)]
    fn max(self, a: __m512, b: __m512) -> __m512 {
        proven!(_mm512_max_ps(a, b))
    }
    #[inline(always)]
    fn min(self, a: __m512, b: __m512) -> __m512 {
        proven!(_mm512_min_ps(a, b))
    }
    #[inline(always)]
    fn fma(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        proven!(_mm512_fmadd_ps(a, b, c))
    }
    #[inline(always)]
    fn sum(self, x: __m512) -> f32 {
        proven!(sum(x))
    }
    #[inline(always)]
    fn largest(self, x: __m512) -> f32 {
        proven!(_mm512_reduce_max_ps(x))
    }
    #[inline(always)]
    fn round(self, x: __m512) -> __m512i {
        proven!(_mm512_cvtps_epi32(x))
    }
    #[inline(always)]
    fn bits_to_f(self, x: __m512i) -> __m512 {
        proven!(_mm512_castsi512_ps(x))
    }
    #[inline(always)]
    fn splat_i(self, x: i32) -> __m512i {
        proven!(_mm512_set1_epi32(x))
    }
    #[inline(always)]
    fn add_i(self, a: __m512i, b: __m512i) -> __m512i {
        proven!(_mm512_add_epi32(a, b))
    }
    #[inline(always)]
    fn sub_i(self, a: __m512i, b: __m512i) -> __m512i {
        proven!(_mm512_sub_epi32(a, b))
    }
    #[inline(always)]
    fn shl_i<const N: u32>(self, x: __m512i) -> __m512i {
        proven!(_mm512_slli_epi32::<N>(x))
    }
    #[inline(always)]
    fn shr_i<const N: u32>(self, x: __m512i) -> __m512i {
        proven!(_mm512_srai_epi32::<N>(x))
    }
    #[inline(always)]
    fn max_i(self, a: __m512i, b: __m512i) -> __m512i {
        proven!(_mm512_max_epi32(a, b))
    }
    #[inline(always)]
    fn store_i(self, x: __m512i, out: &mut [i32]) {
        let out = out[..16].as_mut_ptr().cast::<__m512i>();
        proven!(_mm512_storeu_si512(out, x));
    }
    #[inline(always)]
    fn magnitude(self, x: __m512) -> __m512i {
        let mask = self.splat_i(i32::MAX);
        let x = proven!(_mm512_castps_si512(x));
        proven!(_mm512_and_si512(x, mask))
    }
    #[inline(always)]
    fn sum_rows(self, rows: &[[i32; 16]; 16]) -> __m512i {
        proven!(reduce_rows::<true>(rows))
    }
    #[inline(always)]
    fn largest_rows(self, rows: &[[i32; 16]; 16]) -> __m512i {
        proven!(reduce_rows::<false>(rows))
    }
    #[inline(always)]
    fn sum_i(self, x: __m512i) -> i32 {
        proven!(_mm512_reduce_add_epi32(x))
    }
    #[inline(always)]
    fn pack_i8(self, x: __m512i) -> [i32; 4] {
        let x = proven!(_mm512_cvtepi32_epi8(x));
        let mut words = [0; 4];
        let out = words.as_mut_ptr().cast::<__m128i>();
        proven!(_mm_storeu_si128(out, x));
        words
    }
    #[inline(always)]
    fn to_f(self, x: __m512i) -> __m512 {
        proven!(_mm512_cvtepi32_ps(x))
    }
    #[inline(always)]
    fn load_b(self, x: &[u8]) -> __m512i {
        let x = x[..64].as_ptr().cast::<__m512i>();
        proven!(_mm512_loadu_si512(x))
    }
    #[inline(always)]
    fn store_b(self, x: __m512i, out: &mut [u8]) {
        let out = out[..64].as_mut_ptr().cast::<__m512i>();
        proven!(_mm512_storeu_si512(out, x));
    }
    #[inline(always)]
    fn mask_b(self, x: __m512i, mask: u8) -> __m512i {
        let mask = proven!(_mm512_set1_epi8(mask.cast_signed()));
        proven!(_mm512_and_si512(x, mask))
    }
    #[inline(always)]
    fn or_b(self, a: __m512i, b: __m512i) -> __m512i {
        proven!(_mm512_or_si512(a, b))
    }
    #[inline(always)]
    fn shr_b(self, x: __m512i, by: u32) -> __m512i {
        let by = proven!(_mm_cvtsi32_si128(by.cast_signed()));
        proven!(_mm512_srl_epi16(x, by))
    }
    #[inline(always)]
    fn shl_b(self, x: __m512i, by: u32) -> __m512i {
        let by = proven!(_mm_cvtsi32_si128(by.cast_signed()));
        proven!(_mm512_sll_epi16(x, by))
    }
    #[inline(always)]
    fn dot<const WIDE: bool>(self, acc: __m512i, w: __m512i, a: i32) -> __m512i {
        let a = self.splat_i(a);
        proven!(_mm512_dpbusd_epi32(acc, w, a))
    }
    #[inline(always)]
    fn flip_b(self, x: __m512i, mask: u8) -> __m512i {
        let mask = proven!(_mm512_set1_epi8(mask.cast_signed()));
        proven!(_mm512_xor_si512(x, mask))
    }
    #[inline(always)]
    fn b_to_f(self, x: __m512i) -> __m512 {
        proven!(_mm512_castsi512_ps(x))
    }
    #[inline(always)]
    fn columns(self, rows: &[u8], stride: usize) -> [__m512i; 4] {
        proven!(columns(rows, stride))
    }
    #[inline(always)]
    fn sort_b(self, x: __m512i) -> __m512i {
        proven!(sort_bytes(x))
    }
    #[inline(always)]
    fn store_halves(self, x: __m512i, out: &mut [u16], apart: usize) {
        let low = proven!(_mm512_cvtepi32_epi16(x));
        let high = proven!(_mm512_srli_epi32::<16>(x));
        let high = proven!(_mm512_cvtepi32_epi16(high));
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

/// Lane pairs at distance 8, 4, 2, 1.
#[inline]
#[target_feature(enable = "avx512f,avx512dq,avx2,fma")]
fn sum(x: __m512) -> f32 {
    let x = _mm256_add_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps::<1>(x));
    let x = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
    let x = _mm_add_ps(x, _mm_movehl_ps(x, x));
    let x = _mm_add_ss(x, _mm_shuffle_ps::<1>(x, x));
    _mm_cvtss_f32(x)
}

/// Sums or largest values of 16 rows, a lane each: neighbouring rows are interleaved and joined until
/// one vector is left.
#[inline]
#[target_feature(enable = "avx512f")]
fn reduce_rows<const SUM: bool>(rows: &[[i32; 16]; 16]) -> __m512i {
    let load = |i: usize| {
        let row = rows[i].as_ptr().cast::<__m512i>();
        // SAFETY: a row has 16 words.
        unsafe { _mm512_loadu_si512(row) }
    };
    let join = |a, b| if SUM { _mm512_add_epi32(a, b) } else { _mm512_max_epi32(a, b) };
    let two = |i: usize| {
        let (a, b) = (load(i), load(i + 1));
        join(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b))
    };
    let four = |i: usize| {
        let (a, b) = (two(i), two(i + 2));
        join(_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b))
    };
    // Each quarter now has a part of each of four rows.
    let quarters = |a, b| {
        let even = _mm512_shuffle_i32x4::<0b10_00_10_00>(a, b);
        join(even, _mm512_shuffle_i32x4::<0b11_01_11_01>(a, b))
    };
    let low = quarters(four(0), four(4));
    quarters(low, quarters(four(8), four(12)))
}

#[inline]
#[target_feature(enable = "avx512f")]
fn columns(rows: &[u8], stride: usize) -> [__m512i; 4] {
    let start = sixteen_rows(rows, stride).as_ptr();
    let row = |i: usize| {
        let at = start.wrapping_add(i * stride).cast::<__m128i>();
        // SAFETY: `i` is below 16, and `sixteen_rows` cut the slice to end 16 bytes behind the start of the last row.
        unsafe { _mm_loadu_si128(at) }
    };
    // Rows `i`, `i + 4`, `i + 8` and `i + 12`: the quarter `q` has row `4 * q + i`.
    let four = |i: usize| {
        let x = _mm512_castsi128_si512(row(i));
        let x = _mm512_inserti32x4::<1>(x, row(i + 4));
        let x = _mm512_inserti32x4::<2>(x, row(i + 8));
        _mm512_inserti32x4::<3>(x, row(i + 12))
    };
    // Four words by four vectors, in each quarter.
    let (a, b, c, d) = (four(0), four(1), four(2), four(3));
    let (low_ab, low_cd) = (_mm512_unpacklo_epi32(a, b), _mm512_unpacklo_epi32(c, d));
    let (high_ab, high_cd) = (_mm512_unpackhi_epi32(a, b), _mm512_unpackhi_epi32(c, d));
    [
        _mm512_unpacklo_epi64(low_ab, low_cd),
        _mm512_unpackhi_epi64(low_ab, low_cd),
        _mm512_unpacklo_epi64(high_ab, high_cd),
        _mm512_unpackhi_epi64(high_ab, high_cd),
    ]
}

/// Within each quarter first, then words across quarters.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn sort_bytes(x: __m512i) -> __m512i {
    let within = _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    let across = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    let x = _mm512_shuffle_epi8(x, _mm512_broadcast_i32x4(within));
    _mm512_permutexvar_epi32(across, x)
}
