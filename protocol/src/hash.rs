//! SHA-256, SHA-384 and HKDF over the parts of a message, without joining them first.

use aws_lc_rs::{digest, hkdf};

use crate::secret::Secret;

/// SHA-256 of `parts`, one after the other.
#[must_use]
pub fn sha256(parts: &[&[u8]]) -> [u8; 32] {
    digest_of(&digest::SHA256, parts)
}

/// SHA-384 of `parts`, one after the other.
#[must_use]
pub fn sha384(parts: &[&[u8]]) -> [u8; 48] {
    digest_of(&digest::SHA384, parts)
}

/// A SHA-256 that takes its input as it comes.
#[derive(Clone)]
#[expect(missing_debug_implementations, reason = "its state may depend on plaintext")]
pub struct Sha256(digest::Context);

impl Sha256 {
    /// The hash of nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self(digest::Context::new(&digest::SHA256))
    }

    /// Hashes `bytes` after what came before.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The hash of everything so far.
    #[must_use]
    pub fn finish(&self) -> [u8; 32] {
        to_array(&self.0.clone().finish())
    }
}

impl Default for Sha256 {
    fn default() -> Self {
        Self::new()
    }
}

/// HKDF-SHA256's pseudorandom key (RFC 5869), from which output keys are expanded.
#[expect(missing_debug_implementations, reason = "it is a key")]
pub struct Prk(hkdf::Prk);

impl Prk {
    /// HKDF-Extract.
    #[must_use]
    pub fn extract(salt: &[u8], secret: &[u8]) -> Self {
        Self(hkdf::Salt::new(hkdf::HKDF_SHA256, salt).extract(secret))
    }

    /// HKDF-Expand to `N` bytes.
    ///
    /// # Panics
    /// When `N` is more than HKDF-SHA256 yields, 8,160 bytes.
    #[must_use]
    pub fn expand<const N: usize>(&self, info: &[&[u8]]) -> Secret<N> {
        Secret::fill(|out| {
            let filled = self.0.expand(info, OutputLen(N)).and_then(|okm| okm.fill(out));
            assert!(filled.is_ok(), "HKDF-SHA256 yields no {N} bytes");
        })
    }
}

struct OutputLen(usize);

impl hkdf::KeyType for OutputLen {
    fn len(&self) -> usize {
        self.0
    }
}

fn digest_of<const N: usize>(algorithm: &'static digest::Algorithm, parts: &[&[u8]]) -> [u8; N] {
    let mut context = digest::Context::new(algorithm);
    for part in parts {
        context.update(part);
    }
    to_array(&context.finish())
}

fn to_array<const N: usize>(digest: &digest::Digest) -> [u8; N] {
    let mut array = [0; N];
    array.copy_from_slice(digest.as_ref());
    array
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from_hex(text: &str) -> Vec<u8> {
        (0..text.len())
            .step_by(2)
            .map(|i| u8::from_str_radix(&text[i..i + 2], 16).unwrap())
            .collect()
    }

    #[test]
    fn hashing_in_parts_is_hashing_at_once() {
        // FIPS 180-4, "abc".
        let expected = from_hex("ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        assert_eq!(sha256(&[b"a", b"", b"bc"]).to_vec(), expected);
        let mut hash = Sha256::new();
        hash.update(b"ab");
        hash.update(b"c");
        assert_eq!(hash.finish().to_vec(), expected);
    }

    #[test]
    fn hkdf_gives_the_published_output() {
        // RFC 5869, test case 1.
        let prk = Prk::extract(&from_hex("000102030405060708090a0b0c"), &[0x0b; 22]);
        let okm = prk.expand::<42>(&[&from_hex("f0f1f2f3f4f5f6f7f8f9")]);
        let expected = "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf\
                        34007208d5b887185865";
        assert_eq!(okm.expose().to_vec(), from_hex(expected));
    }
}
