//! Bytes that are wiped on drop, compared in constant time and never printed.
//!
//! Both types live on the heap, so that moving one leaves no copy behind.

use rand_core::CryptoRng;
use subtle::ConstantTimeEq;
use zeroize::Zeroize;

use crate::rand_core;

/// A secret of fixed length: a key, a seed.
#[expect(missing_debug_implementations, reason = "a secret is never printed")]
pub struct Secret<const N: usize>(Box<[u8; N]>);

impl<const N: usize> Secret<N> {
    /// Takes over `bytes` and wipes the caller's array.
    #[must_use]
    pub fn take(bytes: &mut [u8; N]) -> Self {
        let secret = Self::fill(|out| out.copy_from_slice(bytes));
        bytes.zeroize();
        secret
    }

    /// A secret that `write` fills in place, starting from zeros.
    #[must_use]
    pub fn fill(write: impl FnOnce(&mut [u8; N])) -> Self {
        let mut secret = Self(Box::new([0; N]));
        write(&mut secret.0);
        secret
    }

    /// A random secret.
    #[must_use]
    pub fn random(rng: &mut impl CryptoRng) -> Self {
        Self::fill(|out| rng.fill_bytes(out))
    }

    /// The bytes themselves; the name is there to be searched for.
    #[must_use]
    pub const fn expose(&self) -> &[u8; N] {
        &self.0
    }
}

impl<const N: usize> From<[u8; N]> for Secret<N> {
    fn from(mut bytes: [u8; N]) -> Self {
        Self::take(&mut bytes)
    }
}

impl<const N: usize> Clone for Secret<N> {
    fn clone(&self) -> Self {
        Self::fill(|out| out.copy_from_slice(self.expose()))
    }
}

impl<const N: usize> PartialEq for Secret<N> {
    fn eq(&self, other: &Self) -> bool {
        self.0.as_slice().ct_eq(other.0.as_slice()).into()
    }
}

impl<const N: usize> Eq for Secret<N> {}

impl<const N: usize> Drop for Secret<N> {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

/// A secret of any length: a prompt, an answer.
#[derive(Default)]
#[expect(missing_debug_implementations, reason = "a secret is never printed")]
pub struct SecretBytes(Vec<u8>);

impl SecretBytes {
    /// An empty secret that takes `capacity` bytes without moving them.
    #[must_use]
    pub fn with_capacity(capacity: usize) -> Self {
        Self(Vec::with_capacity(capacity))
    }

    /// Appends `bytes`; when the buffer has to grow, the old one is wiped.
    pub fn extend(&mut self, bytes: &[u8]) {
        let len = self.0.len().saturating_add(bytes.len());
        if len > self.0.capacity() {
            let mut larger = Vec::with_capacity(len.max(self.0.capacity().saturating_mul(2)));
            larger.extend_from_slice(&self.0);
            self.0.zeroize();
            self.0 = larger;
        }
        self.0.extend_from_slice(bytes);
    }

    /// The bytes themselves; the name is there to be searched for.
    #[must_use]
    pub fn expose(&self) -> &[u8] {
        &self.0
    }

    /// The bytes themselves, to be changed in place.
    #[must_use]
    pub fn expose_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }

    /// How many bytes there are.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl From<Vec<u8>> for SecretBytes {
    fn from(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }
}

impl Clone for SecretBytes {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl PartialEq for SecretBytes {
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl Eq for SecretBytes {}

impl Drop for SecretBytes {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_taken_array_is_wiped() {
        let mut bytes = [7; 32];
        let secret = Secret::take(&mut bytes);
        assert_eq!(bytes, [0; 32]);
        assert_eq!(secret.expose(), &[7; 32]);
    }

    #[test]
    fn growing_keeps_the_bytes() {
        let mut secret = SecretBytes::default();
        for byte in 0..100 {
            secret.extend(&[byte; 3]);
        }
        assert_eq!(secret.len(), 300);
        assert_eq!(secret.expose().last(), Some(&99));
    }
}
