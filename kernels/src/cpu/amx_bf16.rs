//! Products with BF16 weights by the tile unit of Intel's servers (AMX-BF16): up to 32 rows by a pair of panels, 32 columns a
//! step.
//!
//! Word columns and rows of words lie as the unit wants them. An output is one chain over the steps of a block, of the
//! activations' first parts and then of their second ones, block after block; within a step the unit sums even and odd
//! columns apart. Those are not the sums of `vdpbf16ps`, so every row goes through the unit, however few there are.
//! Source: Intel 64 and IA-32 Architectures Software Developer's Manual, TDPBF16PS.
#![expect(unsafe_code, reason = "instructions that not every CPU with AVX-512 has")]

use std::arch::asm;
use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};

use super::amx::{Amx, Config};
use super::bf16::WordColumn;
use super::matrix::PAIR;

/// Rows that go through the unit together at most.
pub(super) const ROWS: usize = 32;
/// Words of a row, and word columns, that the unit takes in a step.
pub(super) const STEP: usize = 16;

/// Sums of some rows with a pair of panels.
#[repr(align(64))]
pub(super) struct Sums(pub(super) [[f32; PAIR]; ROWS]);

/// Rows of activations from the first word of a block on.
#[derive(Clone, Copy)]
pub(super) struct Rows<'a> {
    pub(super) words: &'a [i32],
    /// Words from a row to the next.
    pub(super) apart: usize,
    /// At most [`ROWS`].
    pub(super) count: usize,
    /// Words from a part of a row to the next.
    pub(super) part: usize,
    pub(super) parts: usize,
}

/// Adds the products of rows with a block of word columns, whole steps, to `sums`. `AHEAD` asks for weights that will be
/// read later.
///
/// # Panics
/// When rows or columns are not as said.
pub(super) fn multiply<const AHEAD: bool>(
    amx: Amx,
    rows: Rows<'_>,
    weights: &[WordColumn],
    sums: &mut Sums,
) {
    let Rows { words, apart, count, part, parts } = rows;
    assert!(weights.len().is_multiple_of(STEP) && (1..=ROWS).contains(&count), "whole steps");
    let last = (count - 1) * apart + (parts - 1) * part + weights.len();
    assert!(parts > 0 && last <= words.len(), "words of the rows");
    let _tiles = amx.with(&Config::bf16(count));
    let first = sums.0.as_mut_ptr();
    let second = first.wrapping_add(HALF);
    let row = apart * size_of::<i32>();
    // SAFETY: the tiles are configured for `count` rows, for which there is room in the sums.
    unsafe { load(first) };
    if count > HALF {
        // SAFETY: as before; these are the rows from the seventeenth on.
        unsafe { load_second(second) };
    }
    for part in (0..parts).map(|n| &words[n * part..]) {
        for (n, weights) in weights.chunks_exact(STEP).enumerate() {
            if AHEAD {
                ahead(weights);
            }
            let (a, b) = (part.as_ptr().wrapping_add(n * STEP), weights.as_ptr());
            // SAFETY: the tiles are configured; the rows have these words, and there are 16 word columns.
            unsafe { step(a, row, b) };
            if count > HALF {
                // SAFETY: as before.
                unsafe { step_second(a.wrapping_add(HALF * apart), row) };
            }
        }
    }
    // SAFETY: as for the loads.
    unsafe { store(first) };
    if count > HALF {
        // SAFETY: as for the loads.
        unsafe { store_second(second) };
    }
}

/// Asks for the weights that come after these, and after some more.
fn ahead(weights: &[WordColumn]) {
    let start = weights.as_ptr().cast::<i8>().wrapping_add(PREFETCH);
    for line in 0..size_of_val(weights) / 64 {
        // SAFETY: every CPU that has tiles has it, and it reads nothing.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(start.wrapping_add(line * 64)) };
    }
}

/// Moves the sums of sixteen rows: tiles $a and $b are the two panels.
macro_rules! sums {
    ($load:ident, $store:ident, $a:literal, $b:literal) => {
        /// # Safety
        /// The tiles are configured; there are as many rows of sums.
        #[inline(always)]
        unsafe fn $load(sums: *const [f32; PAIR]) {
            // SAFETY: the caller's.
            unsafe {
                asm!(
                    concat!("tileloadd ", $a, ", [{sums} + {line} * 1]"),
                    concat!("tileloadd ", $b, ", [{sums} + {line} * 1 + 64]"),
                    sums = in(reg) sums,
                    line = in(reg) size_of::<[f32; PAIR]>(),
                    options(nostack, readonly),
                );
            }
        }

        /// # Safety
        /// As for loading.
        #[inline(always)]
        unsafe fn $store(sums: *mut [f32; PAIR]) {
            // SAFETY: the caller's.
            unsafe {
                asm!(
                    concat!("tilestored [{sums} + {line} * 1], ", $a),
                    concat!("tilestored [{sums} + {line} * 1 + 64], ", $b),
                    sums = in(reg) sums,
                    line = in(reg) size_of::<[f32; PAIR]>(),
                    options(nostack),
                );
            }
        }
    };
}

sums!(load, store, "tmm0", "tmm1");
sums!(load_second, store_second, "tmm2", "tmm3");

/// The first sixteen rows by both panels of a step; the panels' tiles stay.
///
/// # Safety
/// The tiles are configured; sixteen words of as many rows, `row` bytes apart, and sixteen word columns are there.
#[inline(always)]
unsafe fn step(a: *const i32, row: usize, b: *const WordColumn) {
    // SAFETY: the caller's; no register but the tiles, which only this file and `amx.rs` use, is changed.
    unsafe {
        asm!(
            "tileloadd tmm6, [{b} + {column} * 1]",
            "tileloadd tmm4, [{a} + {row} * 1]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tileloadd tmm7, [{b} + {column} * 1 + 64]",
            "tdpbf16ps tmm1, tmm4, tmm7",
            a = in(reg) a,
            b = in(reg) b,
            row = in(reg) row,
            column = in(reg) size_of::<WordColumn>(),
            options(nostack, readonly),
        );
    }
}

/// The other rows by the panels of the last [`step`].
///
/// # Safety
/// As for [`step`].
#[inline(always)]
unsafe fn step_second(a: *const i32, row: usize) {
    // SAFETY: the caller's; as in `step`.
    unsafe {
        asm!(
            "tileloadd tmm5, [{a} + {row} * 1]",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm3, tmm5, tmm7",
            a = in(reg) a,
            row = in(reg) row,
            options(nostack, readonly),
        );
    }
}

/// Rows of a tile.
const HALF: usize = 16;
/// How far ahead weights are asked for.
const PREFETCH: usize = 8192;
