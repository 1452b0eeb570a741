//! The broker's master key: package keys lie in the store sealed under it, and bound to the licence they were stored with.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use chrysalis_protocol::hash::{Prk, sha256};
use chrysalis_protocol::package::PackageKey;
use chrysalis_protocol::rand_core::CryptoRng;
use chrysalis_protocol::secret::Secret;

use super::error::BrokerError;
use crate::error::CliError;
use crate::key_file;

/// Length of a sealed package key: nonce, key, tag.
pub const SEALED_KEY_LEN: usize = NONCE_LEN + 32 + 16;

/// The key under which package keys are stored.
pub struct MasterKey(Prk);

impl MasterKey {
    /// Reads the key; a file that others can read is refused.
    ///
    /// # Errors
    /// [`BrokerError::MasterMode`], and what is wrong with the file.
    pub fn read(path: &Path) -> Result<Self, CliError> {
        let mode = fs::metadata(path).map_err(CliError::io(path))?.permissions().mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(BrokerError::MasterMode { path: path.to_owned(), mode }.into());
        }
        Ok(Self::new(&key_file::read_secret(path, key_file::MASTER)?))
    }

    /// Reads the key, or makes one where the file does not exist. Tells whether it was made.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn read_or_create(path: &Path) -> Result<(Self, bool), CliError> {
        if path.exists() {
            return Self::read(path).map(|key| (key, false));
        }
        let secret = key_file::create_secret(path, key_file::MASTER)?;
        Ok((Self::new(&secret), true))
    }

    fn new(secret: &Secret<32>) -> Self {
        Self(Prk::extract(b"chrysalis1 broker", secret.expose()))
    }

    /// What a store remembers its master key by. It tells nothing of the key.
    pub fn mark(&self) -> [u8; 32] {
        *self.0.expand::<32>(&[b"mark"]).expose()
    }

    /// Seals a package key for the store; nothing when the system has no randomness.
    pub fn seal(
        &self,
        package_id: &[u8; 16],
        licence: &[u8],
        key: &PackageKey,
        rng: &mut impl CryptoRng,
    ) -> Option<[u8; SEALED_KEY_LEN]> {
        let mut sealed = [0; SEALED_KEY_LEN];
        let (nonce, rest) = sealed.split_at_mut(NONCE_LEN);
        let (body, tag) = rest.split_at_mut(32);
        rng.fill_bytes(nonce);
        body.copy_from_slice(key.expose());
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        let aad = Aad::from(bound_to(package_id, licence));
        let made = self.aead()?.seal_in_place_separate_tag(nonce, aad, body).ok()?;
        tag.copy_from_slice(made.as_ref());
        Some(sealed)
    }

    /// Opens a stored package key; nothing when it, its licence or its package are others than when it was sealed.
    pub fn open(
        &self,
        package_id: &[u8; 16],
        licence: &[u8],
        sealed: &[u8; SEALED_KEY_LEN],
    ) -> Option<PackageKey> {
        let (nonce, body) = sealed.split_at(NONCE_LEN);
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        let aad = Aad::from(bound_to(package_id, licence));
        let aead = self.aead()?;
        let mut opened = false;
        let key = Secret::fill(|out| {
            let (body, tag) = body.split_at(out.len());
            opened = aead.open_separate_gather(nonce, aad, body, tag, out).is_ok();
        });
        opened.then(|| PackageKey::new(key))
    }

    fn aead(&self) -> Option<LessSafeKey> {
        let key = self.0.expand::<32>(&[b"package keys"]);
        UnboundKey::new(&AES_256_GCM, key.expose()).ok().map(LessSafeKey::new)
    }
}

/// What a sealed key is bound to: it opens for this package under this licence only.
fn bound_to(package_id: &[u8; 16], licence: &[u8]) -> Vec<u8> {
    let mut bound = b"chrysalis1 broker key\0".to_vec();
    bound.extend(package_id);
    bound.extend(sha256(&[licence]));
    bound
}

#[cfg(test)]
mod tests {
    use chrysalis_runtime::rng::SystemRng;

    use super::*;

    #[test]
    fn a_stored_key_opens_for_its_package_and_licence_only() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("master.key");
        let (master, made) = MasterKey::read_or_create(&path).unwrap();
        assert!(made);
        let again = MasterKey::read(&path).unwrap();
        assert_eq!(again.mark(), master.mark());
        let key = PackageKey::new(Secret::from([7; 32]));
        let sealed = master.seal(&[1; 16], b"licence", &key, &mut SystemRng::default()).unwrap();
        let opened = again.open(&[1; 16], b"licence", &sealed).unwrap();
        assert!(opened.expose() == key.expose());
        assert!(again.open(&[2; 16], b"licence", &sealed).is_none());
        assert!(again.open(&[1; 16], b"license", &sealed).is_none());
        for at in 0..SEALED_KEY_LEN {
            let mut other = sealed;
            other[at] ^= 1;
            assert!(again.open(&[1; 16], b"licence", &other).is_none(), "byte {at}");
        }
        let other = MasterKey::new(&Secret::from([9; 32]));
        assert!(other.open(&[1; 16], b"licence", &sealed).is_none());
        assert_ne!(other.mark(), master.mark());
    }

    #[test]
    fn a_master_key_that_others_can_read_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("master.key");
        MasterKey::read_or_create(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let refused = MasterKey::read(&path).map(|_| ());
        assert!(matches!(
            refused,
            Err(CliError::Broker(BrokerError::MasterMode { mode: 0o640, .. }))
        ));
    }
}
