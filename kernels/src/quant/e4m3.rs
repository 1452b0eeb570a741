//! E4M3, eight bits of floating point (OCP OFP8, "e4m3fn"): a sign, four bits of exponent with bias 7, three of mantissa. There
//! are no infinities; all ones behind the sign is not a number, so the largest value is 448. Every value is a bf16 and an f16.

/// The largest value.
pub const MAX: f32 = 448.0;

/// What a code stands for. Exact.
pub const fn decode(code: u8) -> f32 {
    VALUES[code as usize]
}

/// The code of the nearest value, ties to the even mantissa; beyond the largest value that one, infinities too (as PTX's
/// `cvt.rn.satfinite.e4m3x2.f32`). What is not a number becomes 0x7f.
pub fn encode(x: f32) -> u8 {
    if x.is_nan() {
        return NAN;
    }
    let sign = if x.is_sign_negative() { 0x80 } else { 0 };
    let x = x.abs().min(MAX);
    if x < LEAST_NORMAL {
        // A multiple of 2^-9; eight of them are the code of the least normal value.
        return sign | (x * STEPS).round_ties_even() as u8;
    }
    let even = x.to_bits() >> DROPPED & 1;
    let rounded = x.to_bits() + (1 << (DROPPED - 1)) - 1 + even;
    sign | ((rounded - REBIAS) >> DROPPED) as u8
}

/// The value behind each code.
static VALUES: [f32; 256] = {
    let mut values = [0.0; 256];
    let mut code = 0;
    while code < 256 {
        let magnitude = code as u32 & 0x7f;
        let value = match magnitude {
            0..8 => magnitude as f32 / STEPS,
            0x7f => f32::NAN,
            _ => f32::from_bits((magnitude << DROPPED) + REBIAS),
        };
        values[code] = if code < 128 { value } else { -value };
        code += 1;
    }
    values
};

const NAN: u8 = 0x7f;
/// 2^-6.
const LEAST_NORMAL: f32 = 1.0 / 64.0;
/// Steps of the values below that, in one: 2^9.
const STEPS: f32 = 512.0;
/// Bits of an f32's mantissa that a code has no room for.
const DROPPED: u32 = 20;
/// Between the biases of the exponents, 127 and 7.
const REBIAS: u32 = 120 << 23;

#[cfg(test)]
mod tests {
    use super::*;

    /// The value by the definition, in f64.
    fn meaning(code: u8) -> f64 {
        let (exponent, mantissa) = (i32::from(code >> 3 & 15), f64::from(code & 7));
        let magnitude = match (exponent, code & 7) {
            (15, 7) => f64::NAN,
            (0, _) => mantissa / 8.0 * 2f64.powi(-6),
            _ => (1.0 + mantissa / 8.0) * 2f64.powi(exponent - 7),
        };
        if code < 128 { magnitude } else { -magnitude }
    }

    #[test]
    fn every_code_means_what_the_format_says() {
        for code in 0..=255 {
            let (found, expected) = (decode(code), meaning(code));
            if code & 0x7f == 0x7f {
                assert!(found.is_nan() && expected.is_nan(), "{code:#x}");
                continue;
            }
            assert_eq!(f64::from(found).to_bits(), expected.to_bits(), "{code:#x}");
            // Exact in sixteen bits.
            assert_eq!(found.to_bits() & 0xffff, 0, "{code:#x}");
            assert_eq!(half::f16::from_f32(found).to_f32(), found, "{code:#x}");
        }
        assert_eq!(decode(0x7e), MAX);
    }

    #[test]
    fn every_value_has_its_code() {
        for code in (0..=255).filter(|code| code & 0x7f != 0x7f) {
            assert_eq!(encode(decode(code)), code, "{code:#x}");
        }
    }

    #[test]
    fn what_lies_between_two_values_goes_to_the_nearer_and_a_tie_to_the_even_one() {
        for low in 0..0x7e {
            let high = low + 1;
            let middle = f32::midpoint(decode(low), decode(high));
            let even = low + low % 2;
            for (x, expected) in
                [(middle.next_down(), low), (middle, even), (middle.next_up(), high)]
            {
                assert_eq!(encode(x), expected, "{x:e}");
                assert_eq!(encode(-x), expected | 0x80, "{x:e}");
            }
        }
    }

    #[test]
    fn every_bf16_goes_to_the_nearest_value() {
        for bits in 0..=u16::MAX {
            let x = half::bf16::from_bits(bits).to_f32();
            let found = encode(x);
            if x.is_nan() {
                assert_eq!(found, NAN, "{bits:#x}");
                continue;
            }
            let x = f64::from(x.clamp(-MAX, MAX));
            let distance = |code: u8| (meaning(code) - x).abs();
            let nearest = (0..=255).map(distance).fold(f64::INFINITY, f64::min);
            assert_eq!(distance(found), nearest, "{bits:#x}");
            assert_eq!(found >> 7, u8::from(x.is_sign_negative()), "{bits:#x}");
        }
    }

    #[test]
    fn what_is_too_large_becomes_the_largest_value() {
        for x in [448.0, 449.0, 464.0, 480.0, 1e30, f32::MAX, f32::INFINITY] {
            assert_eq!((encode(x), encode(-x)), (0x7e, 0xfe), "{x}");
        }
        assert_eq!((encode(f32::NAN), encode(-f32::NAN)), (NAN, NAN));
        assert_eq!((encode(f32::MIN_POSITIVE), encode(-0.0)), (0, 0x80));
    }
}
