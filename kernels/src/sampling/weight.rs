//! From a logit to its distance, and from that to its share. Only additions, multiplications and comparisons of f32 in a
//! fixed order, none of them contracted: the same bits on every machine, a card included (`cuda/sample.cuh`).

/// What distances and shares of a row depend on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Weight {
    /// The largest logit.
    pub(crate) max: f32,
    /// One over the temperature.
    pub(crate) scale: f32,
    /// Weights below this are none.
    pub(crate) min_p: f32,
}

impl Weight {
    /// How far a logit lies below the largest, in multiples of 2^-18. It does not grow with the logit.
    #[inline(always)]
    pub(crate) fn distance(self, logit: f32) -> u32 {
        let t = (self.max - logit) * self.scale;
        let t = if t < FAR { t } else { FAR };
        // Between 32 and 64 an f32 has 18 binary places: the addition rounds, and the low bits are the number.
        (t + PLACES).to_bits() - PLACES.to_bits()
    }

    /// The share of a distance, in multiples of 2^-39.
    #[inline(always)]
    pub(crate) fn share(self, distance: u32) -> u64 {
        share_of(self.weight(distance))
    }

    /// The sum of the shares of those whose distance is below `limit`.
    #[inline(always)]
    pub(crate) fn sum(self, row: &[f32], limit: u32) -> u64 {
        let mut lanes = [0u64; LANES];
        let (chunks, tail) = row.as_chunks::<LANES>();
        for chunk in chunks {
            // Two loops, each over one type, so that both become vector instructions.
            let mut weights = [0.0; LANES];
            for i in 0..LANES {
                weights[i] = self.weight_below(chunk[i], limit);
            }
            for i in 0..LANES {
                lanes[i] += share_of(weights[i]);
            }
        }
        let mut sum: u64 = lanes.into_iter().sum();
        for x in tail {
            sum += share_of(self.weight_below(*x, limit));
        }
        sum
    }

    #[inline(always)]
    fn weight_below(self, logit: f32, limit: u32) -> f32 {
        let distance = self.distance(logit);
        let weight = self.weight(distance);
        if distance < limit { weight } else { 0.0 }
    }

    #[inline(always)]
    fn weight(self, distance: u32) -> f32 {
        let weight = exp(PLACES - f32::from_bits(distance + PLACES.to_bits()));
        if weight < self.min_p { 0.0 } else { weight }
    }
}

/// A weight in multiples of 2^-39.
#[inline(always)]
fn share_of(weight: f32) -> u64 {
    // Between 2^13 and 2^14 an f64 has 39 binary places.
    (f64::from(weight) + SHARES).to_bits() - SHARES.to_bits()
}

/// e^x for x <= 0, within 2e-7 of it; zero below -87. After Cephes' `expf` (Moshier).
#[inline(always)]
#[expect(clippy::excessive_precision, reason = "as published")]
pub(super) fn exp(x: f32) -> f32 {
    // Adding and subtracting 1.5 * 2^23 rounds to the nearest integer, left in the low bits.
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = x - n * 0.693_359_375 - n * -2.121_944_40e-4;
    let mut p = 1.987_569_150_0e-4;
    p = p * r + 1.398_199_950_7e-3;
    p = p * r + 8.333_451_907_3e-3;
    p = p * r + 4.166_579_589_4e-2;
    p = p * r + 1.666_666_545_9e-1;
    p = p * r + 5.000_000_120_1e-1;
    let y = p * (r * r) + r + 1.0;
    let power = shifted.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127) << 23;
    if x < -87.0 { 0.0 } else { y * f32::from_bits(power) }
}

/// 1.5 * 2^23.
const ROUND: f32 = 12_582_912.0;
/// Where distances end.
const FAR: f32 = 31.0;
const PLACES: f32 = 32.0;
const SHARES: f64 = 8_192.0;
/// Sums that go on beside each other.
const LANES: usize = 16;

#[cfg(test)]
mod tests {
    use super::{Weight, exp};
    use crate::sampling::uniform;

    #[test]
    fn exp_is_close_and_exact_at_zero() {
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(-88.0), 0.0);
        for i in 0..870_000 {
            let x = -(i as f32) * 1e-4;
            let (got, want) = (f64::from(exp(x)), f64::from(x).exp());
            assert!((got / want - 1.0).abs() < 2e-7, "{x}: {got} {want}");
        }
    }

    #[test]
    fn a_distance_is_that_of_its_logit_and_does_not_grow_with_it() {
        let weight = Weight { max: 3.0, scale: 1.0 / 0.7, min_p: 0.0 };
        let mut before = 0;
        for i in 0..300_000 {
            let logit = 3.0 - i as f32 * 1e-4;
            let distance = weight.distance(logit);
            let exact = ((3.0 - f64::from(logit)) / 0.7).min(31.0) * f64::from(1 << 18);
            // The rounding of the product, and that of the sum.
            assert!((f64::from(distance) - exact).abs() < 0.5 + exact * 2e-7, "{logit}");
            assert!(distance >= before, "{logit}");
            before = distance;
        }
        assert_eq!(before, 31 << 18);
        let extreme = Weight { max: 3e38, scale: 1_000.0, min_p: 0.0 };
        assert_eq!((extreme.distance(3e38), extreme.distance(-3e38)), (0, 31 << 18));
    }

    #[test]
    fn a_share_is_the_exponential_of_its_distance_and_nothing_where_that_is_far_or_too_unlikely() {
        let weight = Weight { max: 0.0, scale: 1.0, min_p: 0.0 };
        assert_eq!(weight.share(0), 1 << 39);
        assert_eq!(weight.share(31 << 18), 0);
        for distance in (0..31 << 18).step_by(977) {
            let exact = (-f64::from(distance) / f64::from(1 << 18)).exp() * (1u64 << 39) as f64;
            let found = weight.share(distance) as f64;
            assert!((found - exact).abs() < 0.5 + exact * 2e-7, "{distance}");
        }
        let cut = Weight { min_p: 0.1, ..weight };
        for distance in (0..4 << 18).step_by(977) {
            let likely = exp(-(distance as f32) / 262_144.0) >= 0.1;
            assert_eq!(cut.share(distance), if likely { weight.share(distance) } else { 0 });
        }
    }

    #[test]
    fn the_sum_is_that_of_the_shares_one_by_one() {
        for len in [0, 1, 16, 33, 5_000] {
            let row: Vec<f32> = (0..len).map(|i| uniform(3, i) as f32 * -30.0).collect();
            let weight = Weight { max: 0.0, scale: 0.7, min_p: 0.01 };
            for limit in [0, 1 << 18, u32::MAX] {
                let near = |x: &&f32| weight.distance(**x) < limit;
                let naive: u64 =
                    row.iter().filter(near).map(|x| weight.share(weight.distance(*x))).sum();
                assert_eq!(weight.sum(&row, limit), naive);
            }
        }
    }
}
