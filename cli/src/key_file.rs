//! Key files: the package key as hex text, the publisher's Ed25519 key as PKCS#8. Mode 0600, never replaced.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use aws_lc_rs::signature::Ed25519KeyPair;
use chrysalis_protocol::package::PackageKey;
use chrysalis_protocol::secret::Secret;
use chrysalis_runtime::rng::SystemRng;
use zeroize::{Zeroize, Zeroizing};

use crate::error::CliError;
use crate::hex;

/// Reads a package key.
///
/// # Errors
/// [`CliError::KeyFile`] when it is no key file.
pub fn read(path: &Path) -> Result<PackageKey, CliError> {
    let text = Zeroizing::new(fs::read_to_string(path).map_err(CliError::io(path))?);
    let mut lines = text.lines();
    let form = || CliError::KeyFile {
        path: path.to_owned(),
        expected: "a package key (`chrysalis package key 1`)",
    };
    if lines.next() != Some(HEAD) {
        return Err(form());
    }
    let mut bytes = hex::decode(lines.next().unwrap_or_default()).ok_or_else(form)?;
    let array: Result<[u8; 32], _> = bytes.as_slice().try_into();
    bytes.zeroize();
    let key = array.map(|mut array| PackageKey::new(Secret::take(&mut array)));
    if lines.any(|line| !line.trim().is_empty()) {
        return Err(form());
    }
    key.map_err(|_| form())
}

/// Reads a package key, or makes one where the file does not exist. Tells whether it was made.
///
/// # Errors
/// [`CliError`] names the file.
pub fn read_or_create(path: &Path) -> Result<(PackageKey, bool), CliError> {
    if path.exists() {
        return read(path).map(|key| (key, false));
    }
    let key = PackageKey::new(Secret::random(&mut SystemRng::default()));
    let text = Zeroizing::new(format!("{HEAD}\n{}\n", hex::encode(key.expose())));
    create(path, text.as_bytes())?;
    Ok((key, true))
}

/// Reads a publisher's key pair, or makes one where the file does not exist. Tells whether it was made.
///
/// # Errors
/// [`CliError`] names the file.
pub fn publisher(path: &Path) -> Result<(Ed25519KeyPair, bool), CliError> {
    let form =
        |_| CliError::KeyFile { path: path.to_owned(), expected: "an Ed25519 key in PKCS#8 (DER)" };
    let made = !path.exists();
    if made {
        let pair = Ed25519KeyPair::generate().map_err(|_| CliError::KeyGeneration)?;
        let document = pair.to_pkcs8().map_err(|_| CliError::KeyGeneration)?;
        create(path, document.as_ref())?;
    }
    let bytes = Zeroizing::new(fs::read(path).map_err(CliError::io(path))?);
    Ed25519KeyPair::from_pkcs8(&bytes).map(|pair| (pair, made)).map_err(form)
}

/// A new file that only its owner reads; one that exists is an error.
fn create(path: &Path, bytes: &[u8]) -> Result<(), CliError> {
    let write = || -> io::Result<()> {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        file.write_all(bytes)?;
        file.sync_all()
    };
    write().map_err(CliError::io(path))
}

const HEAD: &str = "chrysalis package key 1";

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_key_is_made_once_and_for_its_owner_only() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.key");
        let (first, made) = read_or_create(&path).unwrap();
        assert!(made);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let (second, made) = read_or_create(&path).unwrap();
        assert!(!made && first.expose() == second.expose());
    }

    #[test]
    fn what_is_no_key_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.key");
        for text in ["", "chrysalis package key 1\n", "chrysalis package key 1\n00\n", "0011\n"] {
            fs::write(&path, text).unwrap();
            assert!(matches!(read(&path), Err(CliError::KeyFile { .. })), "{text:?}");
        }
    }
}
