//! What the enclave asks of its host (docs/formats.md, section 4): bytes of the package and the
//! package key. The host is not trusted with either: the bytes are checked against the package's
//! roots, and the key comes sealed.

use crate::codec::{Reader, Writer};
use crate::frame::BODY_MAX;
use crate::key_release;
use crate::messages::MessageError;

/// The longest range of a blob in one frame, in bytes.
pub const BLOB_RANGE_MAX: usize = BODY_MAX - 16;

/// BLOB_REQ: blob u32 | len u32 | offset u64.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct BlobReq {
    /// Number of the blob.
    pub blob: u32,
    /// Length of the range in bytes, at most [`BLOB_RANGE_MAX`].
    pub len: u32,
    /// Where the range starts in the blob.
    pub offset: u64,
}

impl BlobReq {
    /// The encoding.
    #[must_use]
    pub fn to_bytes(self) -> Vec<u8> {
        let mut writer = Writer::new();
        writer.u32(self.blob).u32(self.len).u64(self.offset);
        writer.into_bytes()
    }

    /// Reads the body.
    ///
    /// # Errors
    /// [`MessageError`] names the field that is wrong.
    pub fn from_bytes(body: &[u8]) -> Result<Self, MessageError> {
        let mut reader = Reader::new(body);
        let request = Self { blob: reader.u32()?, len: reader.u32()?, offset: reader.u64()? };
        reader.finish()?;
        check_blob_range(request.len as usize)?;
        Ok(request)
    }
}

/// BLOB_RESP: blob u32 | zero u32 | offset u64 | bytes. Answers exactly one BLOB_REQ.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct BlobResp<'a> {
    /// Number of the blob.
    pub blob: u32,
    /// Where the range starts in the blob.
    pub offset: u64,
    /// The range.
    pub bytes: &'a [u8],
}

impl<'a> BlobResp<'a> {
    /// The encoding.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut writer = Writer::new();
        writer.u32(self.blob).u32(0).u64(self.offset).bytes(self.bytes);
        writer.into_bytes()
    }

    /// Reads the body.
    ///
    /// # Errors
    /// [`MessageError`] names the field that is wrong.
    pub fn from_bytes(body: &'a [u8]) -> Result<Self, MessageError> {
        let mut reader = Reader::new(body);
        let blob = reader.u32()?;
        reader.zeros(4)?;
        let response = Self { blob, offset: reader.u64()?, bytes: reader.rest() };
        check_blob_range(response.bytes.len())?;
        Ok(response)
    }
}

/// KEYREL_REQ: package_id 16 | package_digest 48. The host asks a key broker for a challenge,
/// fetches evidence of kind 2 over it, and brings what the broker seals in KEYREL_RESP.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct KeyrelReq {
    /// The package whose key is needed.
    pub package_id: [u8; 16],
    /// The package's identity.
    pub package_digest: [u8; 48],
}

impl KeyrelReq {
    /// The encoding.
    #[must_use]
    pub fn to_bytes(self) -> Vec<u8> {
        [self.package_id.as_slice(), &self.package_digest].concat()
    }

    /// Reads the body.
    ///
    /// # Errors
    /// [`MessageError::Codec`].
    pub fn from_bytes(body: &[u8]) -> Result<Self, MessageError> {
        let mut reader = Reader::new(body);
        let request = Self { package_id: reader.array()?, package_digest: reader.array()? };
        reader.finish()?;
        Ok(request)
    }
}

/// KEYREL_RESP: a sealed [`key_release::KeyRelease`].
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct KeyrelResp {
    /// The sealed release.
    pub sealed: Box<[u8; key_release::SEALED_LEN]>,
}

impl KeyrelResp {
    /// The encoding.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        self.sealed.to_vec()
    }

    /// Reads the body.
    ///
    /// # Errors
    /// [`MessageError::Codec`].
    pub fn from_bytes(body: &[u8]) -> Result<Self, MessageError> {
        let mut reader = Reader::new(body);
        let sealed = Box::new(reader.array()?);
        reader.finish()?;
        Ok(Self { sealed })
    }
}

const fn check_blob_range(len: usize) -> Result<(), MessageError> {
    if len == 0 || len > BLOB_RANGE_MAX { Err(MessageError::BlobRange { len }) } else { Ok(()) }
}
