//! Products of bf16 by `vdpbf16ps`, the instruction that adds two of them to an f32.
//!
//! It flushes values below 2^-126 to zero and rounds every product and sum to the nearest f32, so its
//! results are not those of fused multiply-adds; they are the same for a row in every batch.
//! Source: Intel 64 and IA-32 Architectures Software Developer's Manual, VDPBF16PS.
#![expect(unsafe_code, reason = "instructions that not every CPU with AVX-512 has")]

use std::arch::x86_64::{
    __m256bh, __m512, __m512bh, __m512i, _MM_HINT_T0, _mm_prefetch, _mm512_add_ps,
    _mm512_cvtneps_pbh, _mm512_cvtpbh_ps, _mm512_dpbf16_ps, _mm512_loadu_ps, _mm512_set1_epi32,
    _mm512_set1_ps, _mm512_storeu_ps, _mm512_sub_ps,
};
use std::hint::black_box;

use super::bf16::{BLOCK_WORDS, WordColumn};
use super::matrix::PAIR;
use super::simd::LANES;

/// Proof that the CPU has AVX-512 F, VL and BF16.
#[derive(Clone, Copy, Debug)]
pub(super) struct Avx512Bf16(());

impl Avx512Bf16 {
    pub(super) fn detect() -> Option<Self> {
        let has = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512bf16");
        has.then_some(Self(()))
    }

    /// Writes a row as words of two bf16, and, where `low` has room for as many, what rounding took
    /// away as bf16 too. The columns that the last word lacks are zero.
    pub(super) fn split(self, x: &[f32], high: &mut [i32], low: &mut [i32]) {
        // SAFETY: `self` proves that the CPU has every feature that `split` enables.
        unsafe { split(x, high, low) }
    }

    /// Adds the products of `R` rows with a block of weights to `sums`. A row is `PARTS` runs of words,
    /// `apart` from each other, and each run is a chain of its own from the first word to the last; the
    /// second begins at zero and is added to the first at the end. `FIRST` asks for weights ahead.
    pub(super) fn multiply<const R: usize, const PARTS: usize, const FIRST: bool>(
        self,
        rows: [&[i32]; R],
        apart: usize,
        weights: &[WordColumn],
        sums: &mut [[f32; PAIR]; R],
    ) {
        // SAFETY: `self` proves that the CPU has every feature that `multiply` enables.
        unsafe { multiply::<R, PARTS, FIRST>(rows, apart, weights, sums) }
    }

    /// Sums in registers, for the probe: so many instructions, in `CHAINS` chains.
    pub(super) fn sums<const CHAINS: usize>(self, vectors: usize) {
        // SAFETY: `self` proves that the CPU has every feature that `in_registers` enables.
        unsafe { in_registers::<CHAINS>(vectors) }
    }
}

#[inline(never)]
#[target_feature(enable = "avx512f,avx512vl,avx512bf16")]
fn split(x: &[f32], high: &mut [i32], low: &mut [i32]) {
    let mut low = low.chunks_mut(LANES / 2);
    for (x, high) in x.chunks(LANES).zip(high.chunks_mut(LANES / 2)) {
        let mut padded = [0.0; LANES];
        padded[..x.len()].copy_from_slice(x);
        let padded = padded.as_ptr();
        // SAFETY: 16 values lie there.
        let x = unsafe { _mm512_loadu_ps(padded) };
        let rounded = _mm512_cvtneps_pbh(x);
        store(rounded, high);
        if let Some(low) = low.next() {
            store(_mm512_cvtneps_pbh(_mm512_sub_ps(x, _mm512_cvtpbh_ps(rounded))), low);
        }
    }
}

/// Stores the first words of eight.
#[inline]
#[target_feature(enable = "avx512f,avx512vl,avx512bf16")]
fn store(x: __m256bh, out: &mut [i32]) {
    // SAFETY: both are 32 bytes of plain numbers.
    let words = unsafe { std::mem::transmute::<__m256bh, [i32; LANES / 2]>(x) };
    out.copy_from_slice(&words[..out.len()]);
}

#[expect(clippy::needless_range_loop, reason = "indices that become registers")]
#[inline(never)]
#[target_feature(enable = "avx512f,avx512bf16")]
fn multiply<const R: usize, const PARTS: usize, const FIRST: bool>(
    rows: [&[i32]; R],
    apart: usize,
    weights: &[WordColumn],
    carry: &mut [[f32; PAIR]; R],
) {
    let words = weights.len().min(BLOCK_WORDS);
    let mut x: [[&[i32]; PARTS]; R] = [[&[]; PARTS]; R];
    let mut sums = [[[_mm512_set1_ps(0.0); 2]; PARTS]; R];
    for m in 0..R {
        for part in 0..PARTS {
            x[m][part] = &rows[m][part * apart..][..words];
        }
        for n in 0..2 {
            let carry = carry[m][n * LANES..][..LANES].as_ptr();
            // SAFETY: the slice was just cut to 16 values.
            sums[m][0][n] = unsafe { _mm512_loadu_ps(carry) };
        }
    }
    for k in 0..words {
        let line = weights[k].as_ptr();
        if FIRST {
            let ahead = line.cast::<i8>().wrapping_add(PREFETCH);
            _mm_prefetch::<_MM_HINT_T0>(ahead);
            _mm_prefetch::<_MM_HINT_T0>(ahead.wrapping_add(64));
        }
        let line = line.cast::<__m512bh>();
        // SAFETY: a word column has 128 bytes, and any bytes are 32 bf16.
        let low = unsafe { line.read_unaligned() };
        // SAFETY: as before; this is the second half.
        let high = unsafe { line.wrapping_add(1).read_unaligned() };
        let w = [low, high];
        for m in 0..R {
            for part in 0..PARTS {
                let x = _mm512_set1_epi32(x[m][part][k]);
                // SAFETY: both are 64 bytes of plain numbers.
                let x = unsafe { std::mem::transmute::<__m512i, __m512bh>(x) };
                for n in 0..2 {
                    sums[m][part][n] = _mm512_dpbf16_ps(sums[m][part][n], w[n], x);
                }
            }
        }
    }
    for m in 0..R {
        for n in 0..2 {
            let mut sum = sums[m][0][n];
            for part in 1..PARTS {
                sum = _mm512_add_ps(sum, sums[m][part][n]);
            }
            let carry = carry[m][n * LANES..][..LANES].as_mut_ptr();
            // SAFETY: the slice was just cut to 16 values.
            unsafe { _mm512_storeu_ps(carry, sum) };
        }
    }
}

#[inline(never)]
#[target_feature(enable = "avx512f,avx512bf16")]
fn in_registers<const CHAINS: usize>(vectors: usize) {
    let mut sums: [__m512; CHAINS] = [_mm512_set1_ps(0.0); CHAINS];
    // 32 times 0.5, as bf16.
    let halves = [0x3f00u16; 32];
    for _ in 0..vectors / CHAINS {
        let halves = black_box(&halves);
        // SAFETY: both are 64 bytes of plain numbers.
        let w = unsafe { std::mem::transmute::<[u16; 32], __m512bh>(*halves) };
        for sum in &mut sums {
            *sum = _mm512_dpbf16_ps(*sum, w, w);
        }
    }
    black_box(sums);
}

/// How far ahead weights are asked for by the first rows that use them.
const PREFETCH: usize = 8192;
