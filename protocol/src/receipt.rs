//! Signed usage receipts (docs/formats.md, section 6): 320 bytes each, chained for each boot.
//!
//! A receipt holds no prompt, no answer, no hash of either and no exact count.

use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use thiserror::Error;

use crate::codec::{CodecError, Reader, Writer};
use crate::hash::sha256;
use crate::hpke::ENC_LEN;
use crate::secret::Secret;

/// Length of a signed receipt, in bytes.
pub const RECEIPT_LEN: usize = 320;

/// Why a receipt was refused.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
#[non_exhaustive]
pub enum ReceiptError {
    /// The length, the magic or a reserved byte is wrong.
    #[error(transparent)]
    Codec(#[from] CodecError),
    /// The signature is not one of the enclave's receipt key.
    #[error("the signature does not match the receipt key")]
    Signature,
    /// The seed is not one of an Ed25519 key.
    #[error("the seed makes no Ed25519 key")]
    Seed,
    /// An undefined flag is set.
    #[error("the flags are {found:#06x}, beyond the defined {FLAGS:#06x}")]
    Flags {
        /// What was read.
        found: u16,
    },
    /// A count is not a multiple of the quantum, or the quantum is 0.
    #[error("{field} are {units}, not a multiple of {quantum}")]
    Quantum {
        /// Which count.
        field: &'static str,
        /// The count.
        units: u32,
        /// The quantum.
        quantum: u32,
    },
    /// A part is larger than the whole.
    #[error("{field} are {part}, more than the {whole} they are part of")]
    Part {
        /// Which part.
        field: &'static str,
        /// The part.
        part: u32,
        /// The whole.
        whole: u32,
    },
    /// The receipt does not follow the previous one: there is a gap, or the order is wrong.
    #[error("the receipt does not follow the previous one of its boot")]
    Chain,
    /// The receipt is of another boot.
    #[error("the receipt is of boot {found:02x?}, not of {expected:02x?}")]
    Boot {
        /// The receipt's boot.
        found: [u8; 16],
        /// The chain's boot.
        expected: [u8; 16],
    },
}

/// What was used; counts are tokens, rounded up to a multiple of the quantum.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Receipt {
    /// The stream is over: no receipt of it follows.
    pub last: bool,
    /// The client cancelled.
    pub cancelled: bool,
    /// The stream ended with an error.
    pub failed: bool,
    /// Number of the receipt in its stream, from 0; counts are cumulative.
    pub index: u16,
    /// The epoch whose key opened the request.
    pub epoch: u32,
    /// The boot.
    pub boot_id: [u8; 16],
    /// The request's number in the boot.
    pub serial: u64,
    /// Reasoning tokens among the output; 0 where the model has none.
    pub reasoning_units: u32,
    /// [`request_tag`] of the sealed request.
    pub request_tag: [u8; 32],
    /// [`payer_tag`] of the request's voucher.
    pub payer_tag: [u8; 32],
    /// The model's identity.
    pub content_digest: [u8; 48],
    /// The serve statement that the request was sealed to.
    pub statement_digest: [u8; 48],
    /// Prompt tokens.
    pub prompt_units: u32,
    /// Output tokens.
    pub output_units: u32,
    /// Prompt tokens that were in the cache.
    pub cached_units: u32,
    /// The quantum, [`crate::statement::ServingPolicy::billing_quantum`]; not 0.
    pub quantum: u32,
    /// [`hash`] of the previous receipt of this boot; zero for the first.
    pub previous: [u8; 32],
}

impl Receipt {
    /// Signs the receipt.
    #[must_use]
    pub fn sign(&self, key: &ReceiptKey) -> [u8; RECEIPT_LEN] {
        let body = self.to_body();
        let signature = key.0.sign(&message(&body));
        let mut writer = Writer::with_capacity(RECEIPT_LEN);
        writer.bytes(&body).bytes(signature.as_ref());
        writer.into_array()
    }

    /// Reads a receipt that `receipt_key` signed.
    ///
    /// # Errors
    /// [`ReceiptError`] names the check that failed.
    pub fn verify(bytes: &[u8], receipt_key: &[u8; 32]) -> Result<Self, ReceiptError> {
        let mut reader = Reader::new(bytes);
        let body = reader.array::<BODY_LEN>()?;
        let signature = reader.array::<64>()?;
        reader.finish()?;
        UnparsedPublicKey::new(&ED25519, receipt_key)
            .verify(&message(&body), &signature)
            .map_err(|_| ReceiptError::Signature)?;
        Self::from_body(&body)
    }

    fn to_body(&self) -> [u8; BODY_LEN] {
        let flag = |mask, set| if set { mask } else { 0 };
        let flags = flag(LAST, self.last) | flag(CANCELLED, self.cancelled);
        let mut writer = Writer::with_capacity(BODY_LEN);
        writer.bytes(MAGIC).u16(flags | flag(FAILED, self.failed)).u16(self.index);
        writer.u32(self.epoch).bytes(&self.boot_id).u64(self.serial);
        writer.u32(self.reasoning_units).u32(0);
        writer.bytes(&self.request_tag).bytes(&self.payer_tag);
        writer.bytes(&self.content_digest).bytes(&self.statement_digest);
        writer.u32(self.prompt_units).u32(self.output_units).u32(self.cached_units);
        writer.u32(self.quantum).bytes(&self.previous);
        writer.into_array()
    }

    fn from_body(body: &[u8; BODY_LEN]) -> Result<Self, ReceiptError> {
        let mut reader = Reader::new(body);
        reader.magic(MAGIC)?;
        let found = reader.u16()?;
        if found & !FLAGS != 0 {
            return Err(ReceiptError::Flags { found });
        }
        let (index, epoch, boot_id) = (reader.u16()?, reader.u32()?, reader.array()?);
        let (serial, reasoning_units) = (reader.u64()?, reader.u32()?);
        reader.zeros(4)?;
        let receipt = Self {
            last: found & LAST != 0,
            cancelled: found & CANCELLED != 0,
            failed: found & FAILED != 0,
            index,
            epoch,
            boot_id,
            serial,
            reasoning_units,
            request_tag: reader.array()?,
            payer_tag: reader.array()?,
            content_digest: reader.array()?,
            statement_digest: reader.array()?,
            prompt_units: reader.u32()?,
            output_units: reader.u32()?,
            cached_units: reader.u32()?,
            quantum: reader.u32()?,
            previous: reader.array()?,
        };
        reader.finish()?;
        receipt.check_counts()?;
        Ok(receipt)
    }

    fn check_counts(&self) -> Result<(), ReceiptError> {
        let quantum = self.quantum;
        let counts = [
            ("prompt units", self.prompt_units),
            ("output units", self.output_units),
            ("cached units", self.cached_units),
            ("reasoning units", self.reasoning_units),
        ];
        for (field, units) in counts {
            if units.checked_rem(quantum) != Some(0) {
                return Err(ReceiptError::Quantum { field, units, quantum });
            }
        }
        let parts = [
            ("cached units", self.cached_units, self.prompt_units),
            ("reasoning units", self.reasoning_units, self.output_units),
        ];
        for (field, part, whole) in parts {
            if part > whole {
                return Err(ReceiptError::Part { field, part, whole });
            }
        }
        Ok(())
    }
}

/// Follows the receipts of one boot, in the order in which they were signed. Their epochs need not
/// ascend: an answer may outlast the key that opened its request by any number of rotations.
#[derive(Clone, Debug)]
pub struct Chain {
    receipt_key: [u8; 32],
    boot_id: [u8; 16],
    previous: [u8; 32],
}

impl Chain {
    /// The empty chain of a boot, as its verified statement names it.
    #[must_use]
    pub const fn new(receipt_key: [u8; 32], boot_id: [u8; 16]) -> Self {
        Self { receipt_key, boot_id, previous: [0; 32] }
    }

    /// Verifies the next receipt. After a refusal the chain is where it was.
    ///
    /// # Errors
    /// [`ReceiptError`] names the check that failed; [`ReceiptError::Chain`] shows a gap.
    pub fn verify_next(&mut self, bytes: &[u8]) -> Result<Receipt, ReceiptError> {
        let receipt = Receipt::verify(bytes, &self.receipt_key)?;
        let (found, expected) = (receipt.boot_id, self.boot_id);
        if found != expected {
            return Err(ReceiptError::Boot { found, expected });
        }
        if receipt.previous != self.previous {
            return Err(ReceiptError::Chain);
        }
        self.previous = hash(bytes);
        Ok(receipt)
    }

    /// [`hash`] of the last receipt; zero before the first.
    #[must_use]
    pub const fn last_hash(&self) -> [u8; 32] {
        self.previous
    }
}

/// The enclave's receipt key; it lives for one boot.
#[expect(missing_debug_implementations, reason = "a secret is never printed")]
pub struct ReceiptKey(Ed25519KeyPair);

impl ReceiptKey {
    /// The key of `seed`.
    ///
    /// # Errors
    /// [`ReceiptError::Seed`].
    pub fn from_seed(seed: &Secret<32>) -> Result<Self, ReceiptError> {
        let key = Ed25519KeyPair::from_seed_unchecked(seed.expose());
        key.map(Self).map_err(|_| ReceiptError::Seed)
    }

    /// The public key that the statement carries.
    #[must_use]
    pub fn public_key(&self) -> [u8; 32] {
        let mut key = [0; 32];
        key.copy_from_slice(self.0.public_key().as_ref());
        key
    }
}

/// SHA-256 of a signed receipt, with which the next one continues the chain.
#[must_use]
pub fn hash(receipt: &[u8]) -> [u8; 32] {
    sha256(&[receipt])
}

/// SHA-256( `"chrysalis1 rtag\0"` || enc ): whoever carried the request can match it.
#[must_use]
pub fn request_tag(enc: &[u8; ENC_LEN]) -> [u8; 32] {
    sha256(&[b"chrysalis1 rtag\0", enc])
}

/// SHA-256( `"chrysalis1 payer\0"` || voucher ); without a voucher it is empty.
#[must_use]
pub fn payer_tag(voucher: &[u8]) -> [u8; 32] {
    sha256(&[b"chrysalis1 payer\0", voucher])
}

/// `tokens` rounded up to a multiple of `quantum`; the largest multiple where that overflows.
#[must_use]
pub fn round_up(tokens: u32, quantum: u16) -> u32 {
    let quantum = u32::from(quantum.max(1));
    tokens.checked_next_multiple_of(quantum).unwrap_or_else(|| {
        let rest = u32::MAX.checked_rem(quantum).unwrap_or_default();
        u32::MAX.saturating_sub(rest)
    })
}

fn message(body: &[u8; BODY_LEN]) -> Vec<u8> {
    [b"chrysalis1 receipt\0".as_slice(), body].concat()
}

const MAGIC: &[u8; 8] = b"CHRY-RC1";
const BODY_LEN: usize = 256;
const LAST: u16 = 1;
const CANCELLED: u16 = 2;
const FAILED: u16 = 4;
const FLAGS: u16 = LAST | CANCELLED | FAILED;
