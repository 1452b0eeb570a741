//! The sealing key as clients see it (docs/formats.md, section 1.2): 1,240 bytes.

use crate::codec::{Reader, Writer};
use crate::hash::sha384;
use crate::hpke::{AEAD_ID, KDF_ID, KEM_ID, SEALING_KEY_LEN, SealingKey};
use crate::statement::StatementError;

/// Length of a [`KeyConfig`], in bytes.
pub const KEY_CONFIG_LEN: usize = 1240;

/// An epoch's public sealing key with the suite it is for.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct KeyConfig {
    /// The epoch of the key.
    pub epoch: u32,
    /// The public key.
    pub sealing_key: SealingKey,
}

impl KeyConfig {
    /// The encoding.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; KEY_CONFIG_LEN] {
        let mut writer = Writer::with_capacity(KEY_CONFIG_LEN);
        writer.bytes(MAGIC).u16(KEM_ID).u16(KDF_ID).u16(AEAD_ID).u16(0).u32(self.epoch);
        writer.u16(SEALING_KEY_LEN as u16).u16(0).bytes(&self.sealing_key.to_bytes());
        writer.into_array()
    }

    /// Reads a key configuration.
    ///
    /// # Errors
    /// [`StatementError`] names the field that is wrong.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, StatementError> {
        let mut reader = Reader::new(bytes);
        reader.magic(MAGIC)?;
        expect("KEM", reader.u16()?, KEM_ID)?;
        expect("KDF", reader.u16()?, KDF_ID)?;
        expect("AEAD", reader.u16()?, AEAD_ID)?;
        reader.zeros(2)?;
        let epoch = reader.u32()?;
        expect("key length", reader.u16()?, SEALING_KEY_LEN as u16)?;
        reader.zeros(2)?;
        let sealing_key = SealingKey::from_bytes(reader.bytes(SEALING_KEY_LEN)?)
            .map_err(|_| StatementError::PublicKey)?;
        reader.finish()?;
        Ok(Self { epoch, sealing_key })
    }

    /// SHA-384( `"chrysalis1 keyconfig\0"` || key configuration ).
    #[must_use]
    pub fn digest(&self) -> [u8; 48] {
        sha384(&[b"chrysalis1 keyconfig\0", &self.to_bytes()])
    }

    /// The key's name in a sealed request.
    #[must_use]
    pub fn key_id(&self) -> [u8; 8] {
        key_id(&self.digest())
    }
}

/// The first eight bytes of a key configuration's digest.
#[must_use]
pub fn key_id(key_config_digest: &[u8; 48]) -> [u8; 8] {
    let mut id = [0; 8];
    for (to, from) in id.iter_mut().zip(key_config_digest) {
        *to = *from;
    }
    id
}

const fn expect(field: &'static str, found: u16, expected: u16) -> Result<(), StatementError> {
    if found == expected { Ok(()) } else { Err(StatementError::Suite { field, found, expected }) }
}

const MAGIC: &[u8; 8] = b"CHRY-KC1";
