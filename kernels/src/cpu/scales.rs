//! Packed weights to what the inner loop multiplies: f32 scales and minima, unsigned byte codes.

use std::ops::Range;

use super::matrix::{Format, PAIR};
use super::simd::Simd;
use crate::dtype::Dtype;

/// The codes of step `step` (four columns by 16 rows) of a packed group.
#[inline(always)]
pub(super) fn codes<S: Simd, const BITS: usize>(s: S, group: &[u8], step: usize) -> S::B {
    if BITS == 8 {
        return s.load_b(&group[step * 64..]);
    }
    let packed = s.load_b(&group[step % 4 * 64..]);
    let low = if step < 4 { s.mask_b(packed, 15) } else { s.mask_b(s.shr_b(packed, 4), 15) };
    match BITS {
        5 => {
            let high = s.load_b(&group[256..]);
            let high = match step {
                0..4 => s.shl_b(high, 4 - step as u32),
                _ => s.shr_b(high, step as u32 - 4),
            };
            s.or_b(low, s.mask_b(high, 16))
        }
        6 => {
            let high = s.load_b(&group[256 + step / 4 * 64..]);
            let high = match step % 4 {
                0 => s.shl_b(high, 4),
                1 => s.shl_b(high, 2),
                2 => high,
                _ => s.shr_b(high, 2),
            };
            s.or_b(low, s.mask_b(high, 48))
        }
        _ => low,
    }
}

/// Unpacks `packed` (whole groups of both panels) to a byte a code.
#[inline(always)]
pub(super) fn unpack_codes<S: Simd>(s: S, format: Format, packed: &[u8], out: &mut [u8]) {
    match format.bits {
        4 => unpack_width::<S, 4>(s, packed, out),
        5 => unpack_width::<S, 5>(s, packed, out),
        _ => unpack_width::<S, 6>(s, packed, out),
    }
}

#[inline(always)]
fn unpack_width<S: Simd, const BITS: usize>(s: S, packed: &[u8], out: &mut [u8]) {
    for (packed, out) in packed.chunks_exact(BITS * 64).zip(out.chunks_exact_mut(512)) {
        for step in 0..8 {
            s.store_b(codes::<S, BITS>(s, packed, step), &mut out[step * 64..]);
        }
    }
}

/// f32 values of a group's scales: both panels' scales, then their minima or, for Q6_K, the scales
/// of the second half.
pub(super) const RECORD: usize = 2 * PAIR;

/// Writes a record for each of some groups of a pair, with the roundings of `quant::unpack`.
#[inline(always)]
pub(super) fn expand<S: Simd>(
    s: S,
    format: Format,
    groups: Range<usize>,
    halves: &[u16],
    small: &[u8],
    out: &mut [f32],
) {
    // Blocks hold whole stored groups.
    let outs = out.chunks_mut(RECORD * format.per_stored);
    for (g, out) in groups.step_by(format.per_stored).zip(outs) {
        let stored = g / format.per_stored;
        for panel in 0..2 {
            let half = &halves[(stored * 2 + panel) * format.halves_len()..][..format.halves_len()];
            // Those of the next pair, which come between two runs of codes.
            s.prefetch(half, 2 * format.pair_halves());
            let d = s.load_f16(half);
            let (first, second) = (panel * 16, PAIR + panel * 16);
            if format.per_stored == 1 {
                s.store(d, &mut out[first..]);
                if format.min {
                    s.store(s.load_f16(&half[16..]), &mut out[second..]);
                }
                continue;
            }
            let small = &small[(stored * 2 + panel) * 256..][..256];
            let small = small.chunks_exact(32).zip(out.chunks_exact_mut(RECORD));
            if format.dtype == Dtype::Q6K {
                for (small, out) in small {
                    s.store(s.mul(d, s.load_i8(small)), &mut out[first..]);
                    s.store(s.mul(d, s.load_i8(&small[16..])), &mut out[second..]);
                }
            } else {
                let minus_min = s.sub(s.splat(0.0), s.load_f16(&half[16..]));
                for (small, out) in small {
                    s.store(s.mul(d, s.load_u8(small)), &mut out[first..]);
                    s.store(s.mul(minus_min, s.load_u8(&small[16..])), &mut out[second..]);
                }
            }
        }
    }
}
