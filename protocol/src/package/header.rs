//! The 256-byte header of a package, its signature block, and what both prove without a key
//! (docs/formats.md, section 2).

use aws_lc_rs::digest;
use aws_lc_rs::signature::{ED25519, UnparsedPublicKey};

use super::error::PackageError;
use super::keys::{content_digest, package_digest, signed_message};
use super::meta::META_LEN_MAX;
use crate::codec::{CodecError, Reader, Writer};

/// Bytes of the header.
pub const HEADER_LEN: usize = 256;
/// Bytes of the signature block.
pub const SIGNATURE_LEN: usize = 104;
/// Bytes of header, signature block and zeros: where the meta starts.
pub const PUBLIC_LEN: usize = 512;
/// Logarithm of the usual segment: 2 MiB.
pub const SEGMENT_LOG2: u8 = 21;
/// Logarithm of the smallest segment.
pub const SEGMENT_LOG2_MIN: u8 = 20;
/// Logarithm of the largest segment.
pub const SEGMENT_LOG2_MAX: u8 = 22;
/// Logarithm of the usual blob: 16 GiB, 2^30 AES blocks under one key.
pub const BLOB_LOG2: u8 = 34;
/// Logarithm of the largest blob.
pub const BLOB_LOG2_MAX: u8 = 34;
/// Most blobs of a package.
pub const BLOB_COUNT_MAX: u64 = 1024;
/// Most bytes of data: 4 TiB, whose table is 100 MB at the usual segment.
pub const DATA_LEN_MAX: u64 = 1 << 42;

/// The header: sizes, roots and the key commitment. Its hash is the package's digest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// Whether data, meta and table are sealed.
    pub sealed: bool,
    /// Logarithm of a segment's bytes.
    pub segment_log2: u8,
    /// Logarithm of a blob's bytes.
    pub blob_log2: u8,
    /// Random name of this package; salt of its keys.
    pub package_id: [u8; 16],
    /// Bytes of data.
    pub data_len: u64,
    /// Bytes of plain meta.
    pub meta_len: u64,
    /// Security version: a fixed package has a higher one.
    pub model_svn: u32,
    /// BLAKE3 of the plain meta.
    pub meta_root: [u8; 32],
    /// BLAKE3 of the plain data.
    pub data_root: [u8; 32],
    /// BLAKE3 of the plain table.
    pub table_root: [u8; 32],
    /// Commitment to the package key; zero in an open package.
    pub key_commit: [u8; 32],
    /// SHA-256 of the publisher's Ed25519 public key.
    pub publisher_key_id: [u8; 32],
}

/// The publisher's Ed25519 public key and signature over the package's digest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignatureBlock {
    /// The public key.
    pub public_key: [u8; 32],
    /// The signature.
    pub signature: [u8; 64],
}

/// The first 512 bytes of a package file: a header whose publisher signed it. That the publisher
/// is one to trust is for the caller's policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublicHeader {
    header: Header,
    signature: SignatureBlock,
}

/// Where a data segment lies among the blobs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The blob's index.
    pub blob: u32,
    /// The segment's first byte in the blob.
    pub offset: u64,
    /// The segment's bytes: `2^segment_log2`, fewer in the last one.
    pub len: usize,
}

impl Header {
    /// The header's bytes.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; HEADER_LEN] {
        let mut out = Writer::with_capacity(HEADER_LEN);
        let (flags, aead) = if self.sealed { SEALED } else { OPEN };
        out.bytes(MAGIC).u16(flags).u16(aead).u16(HASH_BLAKE3);
        out.u8(self.segment_log2).u8(self.blob_log2);
        out.bytes(&self.package_id).u64(self.data_len).u64(self.meta_len);
        out.u64(self.segment_count()).u32(self.model_svn);
        out.u32(u32::try_from(self.blob_count()).unwrap_or(u32::MAX));
        out.bytes(&self.meta_root).bytes(&self.data_root).bytes(&self.table_root);
        out.bytes(&self.key_commit).bytes(&self.publisher_key_id);
        out.into_array()
    }

    /// Reads a header and checks every field against every other.
    ///
    /// # Errors
    /// [`PackageError`], naming the field.
    pub fn from_bytes(bytes: &[u8; HEADER_LEN]) -> Result<Self, PackageError> {
        let (header, segments, blobs) = read_header(bytes)
            .map_err(|source| PackageError::Layout { part: "header", source })??;
        header.check()?;
        if segments != header.segment_count() {
            let expected = header.segment_count();
            return Err(PackageError::SegmentCount { found: segments, expected });
        }
        if u64::from(blobs) != header.blob_count() {
            return Err(PackageError::BlobCount { found: blobs, expected: header.blob_count() });
        }
        Ok(header)
    }

    /// How many segments the data makes.
    #[must_use]
    pub fn segment_count(&self) -> u64 {
        chunks(self.data_len, self.segment_log2)
    }

    /// How many blobs the data makes.
    #[must_use]
    pub fn blob_count(&self) -> u64 {
        chunks(self.data_len, self.blob_log2)
    }

    /// Where segment `index` lies, if there is one.
    #[must_use]
    pub fn place(&self, index: u64) -> Option<Place> {
        let segment = 1_u64.checked_shl(self.segment_log2.into())?;
        let start = index.checked_mul(segment)?;
        let len = self.data_len.checked_sub(start).filter(|&left| left > 0)?.min(segment);
        let blob = start.checked_shr(self.blob_log2.into())?;
        Some(Place {
            blob: u32::try_from(blob).ok()?,
            offset: start.checked_sub(blob.checked_shl(self.blob_log2.into())?)?,
            len: usize::try_from(len).ok()?,
        })
    }

    /// Bytes of the plain segment table.
    #[must_use]
    pub fn table_len(&self) -> u64 {
        self.segment_count().saturating_mul(TABLE_ENTRY_LEN)
    }

    /// Bytes of the whole package file: known before anything behind the header is read.
    #[must_use]
    pub fn file_len(&self) -> u64 {
        self.table_start().saturating_add(self.stored_len(self.table_len()))
    }

    /// Where the table starts in the file.
    pub(super) fn table_start(&self) -> u64 {
        let meta_end = (PUBLIC_LEN as u64).saturating_add(self.stored_len(self.meta_len));
        meta_end.checked_next_multiple_of(PUBLIC_LEN as u64).unwrap_or(u64::MAX)
    }

    /// Bytes that `len` bytes of meta or table take in the file.
    pub(super) fn stored_len(&self, len: u64) -> u64 {
        let tags =
            if self.sealed { chunks(len, SIDE_SEGMENT_LOG2).saturating_mul(TAG_LEN) } else { 0 };
        len.saturating_add(tags)
    }

    /// Checks the fields that do not follow from one another.
    pub(super) fn check(&self) -> Result<(), PackageError> {
        if !(SEGMENT_LOG2_MIN..=SEGMENT_LOG2_MAX).contains(&self.segment_log2) {
            return Err(PackageError::SegmentLog2 { found: self.segment_log2 });
        }
        let (min, max) = (self.segment_log2, BLOB_LOG2_MAX);
        if !(min..=max).contains(&self.blob_log2) {
            return Err(PackageError::BlobLog2 { found: self.blob_log2, min, max });
        }
        if !(1..=DATA_LEN_MAX).contains(&self.data_len) {
            return Err(PackageError::DataLen { found: self.data_len, max: DATA_LEN_MAX });
        }
        if self.blob_count() > BLOB_COUNT_MAX {
            return Err(PackageError::TooManyBlobs {
                found: self.blob_count(),
                max: BLOB_COUNT_MAX,
            });
        }
        if !(META_LEN_MIN..=META_LEN_MAX).contains(&self.meta_len) {
            let (found, min, max) = (self.meta_len, META_LEN_MIN, META_LEN_MAX);
            return Err(PackageError::MetaLen { found, min, max });
        }
        let committed = self.key_commit != [0; 32];
        if committed != self.sealed {
            return Err(PackageError::KeyCommitPresence {
                found: committed,
                expected: self.sealed,
            });
        }
        Ok(())
    }
}

impl SignatureBlock {
    /// The block's bytes.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; SIGNATURE_LEN] {
        let mut out = Writer::with_capacity(SIGNATURE_LEN);
        out.u16(ALG_ED25519).zeros(6).bytes(&self.public_key).bytes(&self.signature);
        out.into_array()
    }

    /// Reads a block; nothing is verified yet.
    ///
    /// # Errors
    /// [`PackageError::SignatureAlgorithm`], or [`PackageError::Layout`].
    pub fn from_bytes(bytes: &[u8; SIGNATURE_LEN]) -> Result<Self, PackageError> {
        let read = |input: &mut Reader<'_>| {
            let algorithm = input.u16()?;
            input.zeros(6)?;
            Ok((algorithm, Self { public_key: input.array()?, signature: input.array()? }))
        };
        let (found, block) = read(&mut Reader::new(bytes))
            .map_err(|source| PackageError::Layout { part: "signature block", source })?;
        if found != ALG_ED25519 {
            return Err(PackageError::SignatureAlgorithm { found, expected: ALG_ED25519 });
        }
        Ok(block)
    }

    /// The block signs this header with the key that the header names.
    ///
    /// # Errors
    /// [`PackageError::PublisherKeyId`] or [`PackageError::Signature`].
    pub fn verify(&self, header: &Header) -> Result<(), PackageError> {
        let (found, expected) = (publisher_key_id(&self.public_key), header.publisher_key_id);
        if found != expected {
            return Err(PackageError::PublisherKeyId { found, expected });
        }
        let message = signed_message(&package_digest(header));
        UnparsedPublicKey::new(&ED25519, &self.public_key)
            .verify(&message, &self.signature)
            .map_err(|_| PackageError::Signature)
    }
}

impl PublicHeader {
    /// Reads the first 512 bytes of a package file (more may follow) and verifies the publisher's
    /// signature.
    ///
    /// # Errors
    /// [`PackageError`], naming the check.
    pub fn parse(bytes: &[u8]) -> Result<Self, PackageError> {
        let mut input = Reader::new(bytes);
        let part = |part| move |source| PackageError::Layout { part, source };
        let header = Header::from_bytes(&input.array().map_err(part("header"))?)?;
        let block = input.array().map_err(part("signature block"))?;
        let signature = SignatureBlock::from_bytes(&block)?;
        let padding = PUBLIC_LEN.saturating_sub(HEADER_LEN).saturating_sub(SIGNATURE_LEN);
        input.zeros(padding).map_err(part("zeros before the meta"))?;
        Self::from_parts(header, signature)
    }

    /// A header with a signature block that verifies.
    ///
    /// # Errors
    /// [`PackageError::PublisherKeyId`] or [`PackageError::Signature`].
    pub fn from_parts(header: Header, signature: SignatureBlock) -> Result<Self, PackageError> {
        signature.verify(&header)?;
        Ok(Self { header, signature })
    }

    /// The header.
    #[must_use]
    pub const fn header(&self) -> &Header {
        &self.header
    }

    /// The signature block.
    #[must_use]
    pub const fn signature(&self) -> &SignatureBlock {
        &self.signature
    }

    /// Header and signature block as evidence carries them.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; HEADER_LEN + SIGNATURE_LEN] {
        let mut out = Writer::new();
        out.bytes(&self.header.to_bytes()).bytes(&self.signature.to_bytes());
        out.into_array()
    }

    /// Reads what [`Self::to_bytes`] wrote: exactly header and signature block, verified.
    ///
    /// # Errors
    /// [`PackageError`], naming the check.
    pub fn from_evidence(bytes: &[u8]) -> Result<Self, PackageError> {
        let mut input = Reader::new(bytes);
        let layout = |source| PackageError::Layout { part: "header and signature", source };
        let header = input.array().map_err(layout)?;
        let block = input.array().map_err(layout)?;
        input.finish().map_err(layout)?;
        Self::from_parts(Header::from_bytes(&header)?, SignatureBlock::from_bytes(&block)?)
    }

    /// The model's identity, the same sealed or not.
    #[must_use]
    pub fn content_digest(&self) -> [u8; 48] {
        content_digest(&self.header)
    }

    /// The package's identity.
    #[must_use]
    pub fn package_digest(&self) -> [u8; 48] {
        package_digest(&self.header)
    }
}

/// SHA-256 of a publisher's public key.
pub(super) fn publisher_key_id(public_key: &[u8; 32]) -> [u8; 32] {
    let mut id = [0; 32];
    for (to, from) in id.iter_mut().zip(digest::digest(&digest::SHA256, public_key).as_ref()) {
        *to = *from;
    }
    id
}

/// The header and the two counts that must follow from it. Two layers of result: the layout, then
/// the numbers that decide what the layout means.
fn read_header(
    bytes: &[u8; HEADER_LEN],
) -> Result<Result<(Header, u64, u32), PackageError>, CodecError> {
    let mut input = Reader::new(bytes);
    input.magic(MAGIC)?;
    let (flags, aead, hash) = (input.u16()?, input.u16()?, input.u16()?);
    let sealed = flags == SEALED.0;
    if !sealed && flags != OPEN.0 {
        return Ok(Err(PackageError::Flags { found: flags }));
    }
    let expected = if sealed { SEALED.1 } else { OPEN.1 };
    if aead != expected {
        return Ok(Err(PackageError::Aead { found: aead, expected }));
    }
    if hash != HASH_BLAKE3 {
        return Ok(Err(PackageError::Hash { found: hash, expected: HASH_BLAKE3 }));
    }
    let (segment_log2, blob_log2) = (input.u8()?, input.u8()?);
    let package_id = input.array()?;
    let (data_len, meta_len, segments) = (input.u64()?, input.u64()?, input.u64()?);
    let (model_svn, blobs) = (input.u32()?, input.u32()?);
    let header = Header {
        sealed,
        segment_log2,
        blob_log2,
        package_id,
        data_len,
        meta_len,
        model_svn,
        meta_root: input.array()?,
        data_root: input.array()?,
        table_root: input.array()?,
        key_commit: input.array()?,
        publisher_key_id: input.array()?,
    };
    input.zeros(input.left())?;
    Ok(Ok((header, segments, blobs)))
}

/// How many pieces of `2^log2` bytes `len` bytes make, the last one short.
pub(super) fn chunks(len: u64, log2: u8) -> u64 {
    1_u64.checked_shl(log2.into()).map_or(1, |size| len.div_ceil(size))
}

/// Meta and table are sealed in pieces of 2 MiB, whatever the data's segment.
pub(super) const SIDE_SEGMENT_LOG2: u8 = 21;
/// Bytes of a GCM tag.
pub(super) const TAG_LEN: u64 = 16;
/// Bytes of a table entry: chaining value, tag.
pub(super) const TABLE_ENTRY_LEN: u64 = 48;
/// The shortest meta: fixed part and one tensor.
const META_LEN_MIN: u64 = 896;
const MAGIC: &[u8; 8] = b"CHRY-PK1";
const HASH_BLAKE3: u16 = 1;
const ALG_ED25519: u16 = 1;
/// Flags and AEAD of an open and of a sealed package (AES-256-GCM).
const OPEN: (u16, u16) = (0, 0);
const SEALED: (u16, u16) = (3, 2);
