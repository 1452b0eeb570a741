//! Hybrid public key encryption (RFC 9180) with the one suite there is: X-Wing (ML-KEM-768 with
//! X25519), HKDF-SHA256, AES-256-GCM, mode base.

use ::hpke::aead::{AeadCtxR, AeadCtxS, AeadTag, AesGcm256};
use ::hpke::kdf::HkdfSha256;
use ::hpke::kem::XWing;
use ::hpke::{Deserializable, Kem, OpModeR, OpModeS, Serializable};
use rand_core::CryptoRng;
use thiserror::Error;

use crate::rand_core;
use crate::secret::Secret;

/// X-Wing's number in the registry of KEMs.
pub const KEM_ID: u16 = 0x647A;
/// HKDF-SHA256's number in the registry of KDFs.
pub const KDF_ID: u16 = 0x0001;
/// AES-256-GCM's number in the registry of AEADs.
pub const AEAD_ID: u16 = 0x0002;
/// Length of a public key, in bytes.
pub const SEALING_KEY_LEN: usize = 1216;
/// Length of an encapsulated key, in bytes.
pub const ENC_LEN: usize = 1120;
/// Length of an authentication tag, in bytes.
pub const TAG_LEN: usize = 16;

/// Why nothing was sealed or opened. A refusal does not say more on purpose.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
#[non_exhaustive]
pub enum HpkeError {
    /// The public key is not one of the KEM.
    #[error("the public key is not an X-Wing key")]
    InvalidPublicKey,
    /// Decapsulation or authentication failed.
    #[error("the ciphertext was refused")]
    Refused,
    /// Nothing can be sealed with this context any more.
    #[error("the plaintext cannot be sealed")]
    CannotSeal,
}

/// A public key that requests and package keys are sealed to.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct SealingKey(<XWing as Kem>::PublicKey);

impl SealingKey {
    /// Reads a public key of [`SEALING_KEY_LEN`] bytes.
    ///
    /// # Errors
    /// [`HpkeError::InvalidPublicKey`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, HpkeError> {
        let key = <XWing as Kem>::PublicKey::from_bytes(bytes);
        key.map(Self).map_err(|_| HpkeError::InvalidPublicKey)
    }

    /// The encoding.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; SEALING_KEY_LEN] {
        self.0.to_bytes().into()
    }
}

/// A private key with its public key; the private key is wiped on drop.
#[derive(Clone)]
#[expect(missing_debug_implementations, reason = "a secret is never printed")]
pub struct KemKeyPair {
    private: <XWing as Kem>::PrivateKey,
    public: SealingKey,
}

impl KemKeyPair {
    /// A fresh key pair.
    #[must_use]
    pub fn generate(rng: &mut impl CryptoRng) -> Self {
        Self::derive(&Secret::random(rng))
    }

    /// The key pair of `seed` (DeriveKeyPair of the suite's KEM).
    #[must_use]
    pub fn derive(seed: &Secret<32>) -> Self {
        let (private, public) = XWing::derive_keypair(seed.expose());
        Self { private, public: SealingKey(public) }
    }

    /// The public key.
    #[must_use]
    pub const fn sealing_key(&self) -> &SealingKey {
        &self.public
    }
}

/// The sender's context.
#[expect(missing_debug_implementations, reason = "a secret is never printed")]
pub struct Sender(AeadCtxS<AesGcm256, HkdfSha256, XWing>);

impl Sender {
    /// SetupBaseS: the encapsulated key and the context.
    ///
    /// # Errors
    /// [`HpkeError::CannotSeal`] when encapsulation fails.
    pub fn setup(
        to: &SealingKey,
        info: &[u8],
        rng: &mut impl CryptoRng,
    ) -> Result<([u8; ENC_LEN], Self), HpkeError> {
        let setup = ::hpke::setup_sender_with_rng::<AesGcm256, HkdfSha256, XWing>;
        let (enc, context) =
            setup(&OpModeS::Base, &to.0, info, rng).map_err(|_| HpkeError::CannotSeal)?;
        Ok((enc.to_bytes().into(), Self(context)))
    }

    /// Seals `buffer` in place at the next sequence number and yields the tag.
    ///
    /// # Errors
    /// [`HpkeError::CannotSeal`] when the sequence numbers are used up.
    pub fn seal(&mut self, aad: &[u8], buffer: &mut [u8]) -> Result<[u8; TAG_LEN], HpkeError> {
        let tag = self.0.seal_inout_detached(buffer.into(), aad);
        tag.map(|tag| tag.to_bytes().into()).map_err(|_| HpkeError::CannotSeal)
    }

    /// A secret that the receiver derives too.
    ///
    /// # Panics
    /// When `label` has 64 KiB or more: labels are constants.
    #[must_use]
    pub fn export(&self, label: &[u8]) -> Secret<32> {
        Secret::fill(|out| assert!(self.0.export(label, out).is_ok(), "a label is short"))
    }
}

/// The receiver's context.
#[expect(missing_debug_implementations, reason = "a secret is never printed")]
pub struct Receiver(AeadCtxR<AesGcm256, HkdfSha256, XWing>);

impl Receiver {
    /// SetupBaseR.
    ///
    /// # Errors
    /// [`HpkeError::Refused`] when decapsulation fails.
    pub fn setup(keys: &KemKeyPair, enc: &[u8; ENC_LEN], info: &[u8]) -> Result<Self, HpkeError> {
        let enc = <XWing as Kem>::EncappedKey::from_bytes(enc).map_err(|_| HpkeError::Refused)?;
        let context = ::hpke::setup_receiver(&OpModeR::Base, &keys.private, &enc, info);
        context.map(Self).map_err(|_| HpkeError::Refused)
    }

    /// Opens `buffer` in place at the next sequence number.
    ///
    /// # Errors
    /// [`HpkeError::Refused`]; the buffer's contents are then undefined.
    pub fn open(
        &mut self,
        aad: &[u8],
        buffer: &mut [u8],
        tag: &[u8; TAG_LEN],
    ) -> Result<(), HpkeError> {
        let tag = AeadTag::from_bytes(tag).map_err(|_| HpkeError::Refused)?;
        let opened = self.0.open_inout_detached(buffer.into(), aad, &tag);
        opened.map_err(|_| HpkeError::Refused)
    }

    /// A secret that the sender derives too.
    ///
    /// # Panics
    /// When `label` has 64 KiB or more: labels are constants.
    #[must_use]
    pub fn export(&self, label: &[u8]) -> Secret<32> {
        Secret::fill(|out| assert!(self.0.export(label, out).is_ok(), "a label is short"))
    }
}
