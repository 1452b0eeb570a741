//! V of one position, weighed for several queries at once.

use crate::cpu::cache::{Element, VECTORS};
use crate::cpu::simd::{LANES, Simd};

/// Some vectors of V of one position, from vector `d` on.
pub(super) struct Values<'a, T> {
    pub(super) v: &'a [[T; LANES]],
    pub(super) d: usize,
    /// Of the groups of the position, an f32 each, or nothing.
    pub(super) scales: &'a [[u8; 4]],
}

impl<T: Element> Values<'_, T> {
    /// `sums[n] += weights[n] * v`.
    #[inline(always)]
    pub(super) fn add<S: Simd, const N: usize, const D: usize>(
        self,
        s: S,
        weights: [f32; N],
        sums: &mut [[S::F; D]; N],
    ) {
        let mut v: [S::F; D] = [s.splat(0.0); D];
        for (i, v) in v.iter_mut().enumerate() {
            *v = T::load(s, &self.v[i]);
            if T::SCALED {
                let scale = f32::from_le_bytes(self.scales[(self.d + i) / VECTORS]);
                *v = s.mul(*v, s.splat(scale));
            }
        }
        for n in 0..N {
            let weight = s.splat(weights[n]);
            for i in 0..D {
                sums[n][i] = s.fma(weight, v[i], sums[n][i]);
            }
        }
    }
}
