//! Hexadecimal text of digests and keys.

use std::fmt::Write;

/// Lower-case hex.
#[must_use]
pub fn encode(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len().saturating_mul(2)), |mut text, byte| {
        // Writing to a string cannot fail.
        let _written = write!(text, "{byte:02x}");
        text
    })
}

/// Bytes of hex text of either case, or nothing when it is no such text.
#[must_use]
pub fn decode(text: &str) -> Option<Vec<u8>> {
    if !text.bytes().all(|byte| byte.is_ascii_hexdigit()) || !text.len().is_multiple_of(2) {
        return None;
    }
    let (pairs, _) = text.as_bytes().as_chunks::<2>();
    pairs.iter().map(|pair| u8::from_str_radix(str::from_utf8(pair).ok()?, 16).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hex_goes_both_ways() {
        assert_eq!(encode(&[0, 0x7F, 0xFF]), "007fff");
        assert_eq!(decode("007fFF"), Some(vec![0, 0x7F, 0xFF]));
        assert_eq!(decode("0"), None);
        assert_eq!(decode("+1"), None);
    }
}
