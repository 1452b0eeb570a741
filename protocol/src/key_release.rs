//! A package key on its way from a key broker to an enclave (docs/formats.md, section 2, key
//! release): HPKE single shot to the key of a kind-2 statement.

use rand_core::CryptoRng;
use thiserror::Error;

use crate::codec::{CodecError, Reader, Writer};
use crate::hpke::{ENC_LEN, HpkeError, KemKeyPair, Receiver, SealingKey, Sender, TAG_LEN};
use crate::rand_core;
use crate::secret::{Secret, SecretBytes};

/// Length of a sealed key release, in bytes.
pub const SEALED_LEN: usize = ENC_LEN + PLAIN_LEN + TAG_LEN;

/// Why a key release was not sealed or opened.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
#[non_exhaustive]
pub enum KeyReleaseError {
    /// A length, the magic or a reserved byte is wrong.
    #[error(transparent)]
    Codec(#[from] CodecError),
    /// It was sealed to another key, for another statement, or changed on the way.
    #[error(transparent)]
    Hpke(#[from] HpkeError),
}

/// A package key and the terms that come with it.
#[expect(missing_debug_implementations, reason = "a secret is never printed")]
#[derive(Clone, Eq, PartialEq)]
pub struct KeyRelease {
    /// The package that the key opens.
    pub package_id: [u8; 16],
    /// The package key.
    pub package_key: Secret<32>,
    /// The lowest security version of the model that may be served.
    pub min_model_svn: u32,
    /// How long the key may be used, in seconds; 0 is without limit.
    pub lease_seconds: u32,
    /// How many tokens may be served with it; 0 is without limit.
    pub lease_tokens: u64,
}

/// Seals `release` to the enclave whose kind-2 statement has `statement_digest`.
///
/// # Errors
/// [`KeyReleaseError::Hpke`] when encapsulation fails.
pub fn seal(
    to: &SealingKey,
    statement_digest: &[u8; 48],
    release: &KeyRelease,
    rng: &mut impl CryptoRng,
) -> Result<[u8; SEALED_LEN], KeyReleaseError> {
    let (enc, mut sender) = Sender::setup(to, &info(statement_digest), rng)?;
    let mut plaintext = release.to_plaintext();
    let tag = sender.seal(&[], plaintext.expose_mut())?;
    let mut writer = Writer::with_capacity(SEALED_LEN);
    writer.bytes(&enc).bytes(plaintext.expose()).bytes(&tag);
    Ok(writer.into_array())
}

/// Opens a sealed release. The key pair is used once, so it is taken and wiped.
///
/// # Errors
/// [`KeyReleaseError`]; every cryptographic failure is the same.
#[expect(clippy::needless_pass_by_value, reason = "the key pair must not be used again")]
pub fn open(
    keys: KemKeyPair,
    statement_digest: &[u8; 48],
    sealed: &[u8],
) -> Result<KeyRelease, KeyReleaseError> {
    let mut reader = Reader::new(sealed);
    let enc = reader.array()?;
    let mut plaintext = SecretBytes::from(reader.bytes(PLAIN_LEN)?.to_vec());
    let tag = reader.array()?;
    reader.finish()?;
    let mut receiver = Receiver::setup(&keys, &enc, &info(statement_digest))?;
    receiver.open(&[], plaintext.expose_mut(), &tag)?;
    KeyRelease::from_plaintext(plaintext.expose())
}

impl KeyRelease {
    fn to_plaintext(&self) -> SecretBytes {
        let mut writer = Writer::with_capacity(PLAIN_LEN);
        writer.bytes(MAGIC).bytes(&self.package_id).bytes(self.package_key.expose());
        writer.u32(self.min_model_svn).u32(self.lease_seconds).u64(self.lease_tokens);
        writer.u32(0).zeros(20);
        writer.into_bytes().into()
    }

    fn from_plaintext(bytes: &[u8]) -> Result<Self, KeyReleaseError> {
        let mut reader = Reader::new(bytes);
        reader.magic(MAGIC)?;
        let release = Self {
            package_id: reader.array()?,
            package_key: Secret::take(&mut reader.array()?),
            min_model_svn: reader.u32()?,
            lease_seconds: reader.u32()?,
            lease_tokens: reader.u64()?,
        };
        reader.zeros(4 + 20)?;
        reader.finish()?;
        Ok(release)
    }
}

fn info(statement_digest: &[u8; 48]) -> Vec<u8> {
    [b"chrysalis1 keyrelease\0".as_slice(), statement_digest].concat()
}

const MAGIC: &[u8; 8] = b"CHRY-KR1";
const PLAIN_LEN: usize = 96;
