//! Random numbers by place, not by order: the draw for an output token depends on the sequence's
//! seed and the token's index alone, so a request replays bit for bit in any batch.
//!
//! Source: Philox4x32-10, Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3".

/// The uniform number in `[0, 1)`, a multiple of 2^-53, for output token `index` of a sequence.
pub fn uniform(seed: u64, index: u64) -> f64 {
    bits(seed, index) as f64 * (1.0 / (1u64 << 53) as f64)
}

/// The same number, times 2^53.
pub(super) fn bits(seed: u64, index: u64) -> u64 {
    let (low, high) = halves(index);
    let (key_low, key_high) = halves(seed);
    let [a, b, ..] = philox([low, high, 0, 0], [key_low, key_high]);
    (u64::from(a) << 32 | u64::from(b)) >> 11
}

/// Ten rounds over a counter of four words with a key of two, the least significant word first.
fn philox(mut counter: [u32; 4], [mut key0, mut key1]: [u32; 2]) -> [u32; 4] {
    for _ in 0..10 {
        let [c0, c1, c2, c3] = counter;
        let (low0, high0) = halves(u64::from(c0) * 0xD251_1F53);
        let (low1, high1) = halves(u64::from(c2) * 0xCD9E_8D57);
        counter = [high1 ^ c1 ^ key0, low1, high0 ^ c3 ^ key1, low0];
        key0 = key0.wrapping_add(0x9E37_79B9);
        key1 = key1.wrapping_add(0xBB67_AE85);
    }
    counter
}

/// The low and the high word.
fn halves(value: u64) -> (u32, u32) {
    (value as u32, (value >> 32) as u32)
}

#[cfg(test)]
mod tests {
    use super::{philox, uniform};

    #[test]
    fn philox_gives_the_published_vectors() {
        let cases = [
            ([0; 4], [0; 2], [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]),
            ([u32::MAX; 4], [u32::MAX; 2], [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]),
            (
                [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
                [0xa409_3822, 0x299f_31d0],
                [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1],
            ),
        ];
        for (counter, key, expected) in cases {
            assert_eq!(philox(counter, key), expected);
        }
    }

    #[test]
    fn draws_depend_on_seed_and_index_and_fill_the_unit_interval() {
        assert_eq!(uniform(7, 3), uniform(7, 3));
        assert_ne!(uniform(7, 3), uniform(8, 3));
        assert_ne!(uniform(7, 3), uniform(7, 4));
        assert_ne!(uniform(7, 3), uniform(7 << 32, 3));
        let draws: Vec<f64> = (0..10_000).map(|index| uniform(1, index)).collect();
        assert!(draws.iter().all(|u| (0.0..1.0).contains(u)));
        let mut tenths = [0; 10];
        draws.iter().for_each(|u| tenths[(u * 10.0) as usize] += 1);
        assert!(tenths.iter().all(|n| (850..1_150).contains(n)), "{tenths:?}");
    }
}
