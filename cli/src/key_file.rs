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

/// What a file of 32 secret bytes is for: its first line, and the words for it.
#[derive(Clone, Copy, Debug)]
pub struct Form {
    head: &'static str,
    expected: &'static str,
}

/// The key of a package.
pub const PACKAGE: Form =
    Form { head: "chrysalis package key 1", expected: "a package key (`chrysalis package key 1`)" };

/// The master key of a key broker.
pub const MASTER: Form = Form {
    head: "chrysalis broker master key 1",
    expected: "a broker's master key (`chrysalis broker master key 1`)",
};

/// Reads a package key.
///
/// # Errors
/// [`CliError::KeyFile`] when it is no key file.
pub fn read(path: &Path) -> Result<PackageKey, CliError> {
    read_secret(path, PACKAGE).map(PackageKey::new)
}

/// Reads 32 secret bytes.
///
/// # Errors
/// [`CliError::KeyFile`] when the file has another form.
pub fn read_secret(path: &Path, form: Form) -> Result<Secret<32>, CliError> {
    let text = Zeroizing::new(fs::read_to_string(path).map_err(CliError::io(path))?);
    let mut lines = text.lines();
    let wrong = || CliError::KeyFile { path: path.to_owned(), expected: form.expected };
    if lines.next() != Some(form.head) {
        return Err(wrong());
    }
    let mut bytes = hex::decode(lines.next().unwrap_or_default()).ok_or_else(wrong)?;
    let array: Result<[u8; 32], _> = bytes.as_slice().try_into();
    bytes.zeroize();
    let secret = array.map(|mut array| Secret::take(&mut array));
    if lines.any(|line| !line.trim().is_empty()) {
        return Err(wrong());
    }
    secret.map_err(|_| wrong())
}

/// Makes 32 secret bytes and their file.
///
/// # Errors
/// [`CliError::Io`], also when the file is there.
pub fn create_secret(path: &Path, form: Form) -> Result<Secret<32>, CliError> {
    let secret = Secret::random(&mut SystemRng::default());
    let text = Zeroizing::new(format!("{}\n{}\n", form.head, hex::encode(secret.expose())));
    create(path, text.as_bytes())?;
    Ok(secret)
}

/// Reads a package key, or makes one where the file does not exist. Tells whether it was made.
///
/// # Errors
/// [`CliError`] names the file.
pub fn read_or_create(path: &Path) -> Result<(PackageKey, bool), CliError> {
    if path.exists() {
        return read(path).map(|key| (key, false));
    }
    Ok((PackageKey::new(create_secret(path, PACKAGE)?), true))
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
///
/// # Errors
/// [`CliError::Io`] names the file.
pub fn create(path: &Path, bytes: &[u8]) -> Result<(), CliError> {
    let write = || -> io::Result<()> {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        file.write_all(bytes)?;
        file.sync_all()
    };
    write().map_err(CliError::io(path))
}

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
