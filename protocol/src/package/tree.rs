//! BLAKE3 by segments: each has a chaining value of its own, and all of them join to the plain hash
//! of the data (BLAKE3 paper, section 2.1).

use blake3::hazmat::{HasherExt, Mode, merge_subtrees_non_root, merge_subtrees_root};

/// The chaining value of a subtree.
type Value = [u8; 32];

/// A segment's place in the tree, and its hash as if it were the whole data.
pub(super) struct Measured {
    pub(super) chaining_value: Value,
    /// The hash of the data when there is just this segment: a root has no chaining value.
    pub(super) alone: blake3::Hash,
}

/// Measures segment `index` of `2^segment_log2` bytes; only the last one is shorter, none empty.
pub(super) fn measure(segment_log2: u8, index: u64, bytes: &[u8]) -> Measured {
    let mut hasher = blake3::Hasher::new();
    hasher.set_input_offset(index.checked_shl(segment_log2.into()).unwrap_or(0));
    hasher.update(bytes);
    let chaining_value = hasher.finalize_non_root();
    // A root is only ever at offset zero.
    let alone = if index == 0 { hasher.finalize() } else { blake3::Hash::from_bytes([0; 32]) };
    Measured { chaining_value, alone }
}

/// The hash of the data that two or more segments make; nothing for fewer.
pub(super) fn join(chaining_values: &[Value]) -> Option<blake3::Hash> {
    let (left, right) = split(chaining_values)?;
    Some(merge_subtrees_root(&subtree(left)?, &subtree(right)?, Mode::Hash))
}

/// Depth: the logarithm of the number of segments, at most 22.
fn subtree(chaining_values: &[Value]) -> Option<Value> {
    if let [one] = chaining_values {
        return Some(*one);
    }
    let (left, right) = split(chaining_values)?;
    Some(merge_subtrees_non_root(&subtree(left)?, &subtree(right)?, Mode::Hash))
}

/// The left side is the largest power of two that leaves something to the right.
fn split(chaining_values: &[Value]) -> Option<(&[Value], &[Value])> {
    let left = chaining_values.len().div_ceil(2).checked_next_power_of_two()?;
    chaining_values.split_at_checked(left).filter(|(_, right)| !right.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chaining_values_join_to_the_plain_hash() {
        let data: Vec<u8> = (0..70 * 1024_u32).map(|i| (i ^ (i >> 7)) as u8).collect();
        for segment_log2 in [10, 11, 13] {
            let segment = 1_usize << segment_log2;
            for segments in 2..=(data.len() >> segment_log2) {
                for len in
                    [segments * segment - 1, segments * segment, segments * segment - segment + 1]
                {
                    let data = &data[..len];
                    let values: Vec<_> = data
                        .chunks(segment)
                        .enumerate()
                        .map(|(i, bytes)| measure(segment_log2, i as u64, bytes).chaining_value)
                        .collect();
                    assert_eq!(join(&values), Some(blake3::hash(data)), "{len} bytes");
                }
            }
        }
    }

    #[test]
    fn one_segment_is_the_root_and_joins_to_nothing() {
        let measured = measure(10, 0, b"short");
        assert_eq!(measured.alone, blake3::hash(b"short"));
        assert_ne!(measured.chaining_value, *measured.alone.as_bytes());
        assert_eq!(join(&[measured.chaining_value]), None);
        assert_eq!(join(&[]), None);
    }
}
