//! Making a package: tensors go in as bytes, one after the other; sealed segments come out.

use std::io;

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use zeroize::Zeroizing;

use super::error::PackageError;
use super::header::{
    BLOB_COUNT_MAX, BLOB_LOG2, Header, PUBLIC_LEN, PublicHeader, SEGMENT_LOG2, SIDE_SEGMENT_LOG2,
    SignatureBlock, publisher_key_id,
};
use super::keys::{Domain, KeySchedule, PackageKey, Position, package_digest, signed_message};
use super::meta::Meta;
use super::tree;
use crate::codec::Writer;

/// Takes the data segments as they are stored. The caller makes blobs of them.
pub trait BlobSink {
    /// Appends `bytes` to blob `blob`. Blobs come in ascending order, each without a gap.
    ///
    /// # Errors
    /// Whatever stops the packer.
    fn append(&mut self, blob: u32, bytes: &[u8]) -> io::Result<()>;
}

/// What a package is made with, apart from its contents.
#[derive(Clone, Copy)]
#[expect(missing_debug_implementations, reason = "it borrows two private keys")]
pub struct PackageOptions<'a> {
    /// Random. Keys and nonces come from it: never use one for two packages.
    pub package_id: [u8; 16],
    /// Security version.
    pub model_svn: u32,
    /// Logarithm of a segment's bytes, 20 to 22.
    pub segment_log2: u8,
    /// Logarithm of a blob's bytes, at most 34.
    pub blob_log2: u8,
    /// Seals the package; without it everybody can read the weights.
    pub key: Option<&'a PackageKey>,
    /// Signs the header.
    pub publisher: &'a Ed25519KeyPair,
}

impl<'a> PackageOptions<'a> {
    /// The usual sizes, security version 1, open.
    #[must_use]
    pub const fn new(package_id: [u8; 16], publisher: &'a Ed25519KeyPair) -> Self {
        let (segment_log2, blob_log2) = (SEGMENT_LOG2, BLOB_LOG2);
        Self { package_id, model_svn: 1, segment_log2, blob_log2, key: None, publisher }
    }
}

/// Measures and seals segments as they fill. Memory: one segment, and 48 bytes for each one done.
#[expect(missing_debug_implementations, reason = "it holds keys and weights")]
pub struct PackageWriter<'a, S> {
    /// The roots are still zero.
    header: Header,
    publisher: &'a Ed25519KeyPair,
    keys: Option<KeySchedule>,
    meta: Meta,
    sink: S,
    /// The segment that is filling.
    segment: Zeroizing<Vec<u8>>,
    segment_size: usize,
    /// Done segments: chaining values, tags, and the hash of the first one alone.
    chaining_values: Vec<[u8; 32]>,
    tags: Vec<[u8; 16]>,
    alone: Option<blake3::Hash>,
    /// Where the next byte belongs: a byte of the data, a byte of a tensor.
    position: u64,
    tensor: usize,
    tensor_position: u64,
}

/// A finished package.
#[expect(missing_debug_implementations, reason = "the sink need not have it")]
pub struct Finished<S> {
    /// Header and signature, with the digests.
    pub public: PublicHeader,
    /// The bytes of `NAME.chry`.
    pub file: Vec<u8>,
    /// The sink, which has got every blob.
    pub sink: S,
}

impl<'a, S: BlobSink> PackageWriter<'a, S> {
    /// A writer that is due the first byte of the first tensor of `meta`.
    ///
    /// # Errors
    /// [`PackageError`] when options or meta are out of bounds.
    pub fn new(options: &PackageOptions<'a>, meta: Meta, sink: S) -> Result<Self, PackageError> {
        let meta_bytes = meta.to_bytes()?;
        let mut header = Header {
            sealed: options.key.is_some(),
            segment_log2: options.segment_log2,
            blob_log2: options.blob_log2,
            package_id: options.package_id,
            data_len: meta.data_len(),
            meta_len: u64::try_from(meta_bytes.len()).unwrap_or(u64::MAX),
            model_svn: options.model_svn,
            meta_root: blake3::hash(&meta_bytes).into(),
            data_root: [0; 32],
            table_root: [0; 32],
            key_commit: [0; 32],
            publisher_key_id: publisher_key_id(&public_key(options.publisher)?),
        };
        // Too many blobs are refused below, and cost no more than the most that are allowed.
        let blobs = header.blob_count().min(BLOB_COUNT_MAX);
        let schedule = |key| KeySchedule::new(key, &header.package_id, blobs);
        let keys = options.key.map(schedule).transpose()?;
        header.key_commit = keys.as_ref().map_or([0; 32], |keys| *keys.commit());
        header.check()?;
        let segment_size = 1_usize.checked_shl(header.segment_log2.into()).unwrap_or(0);
        Ok(Self {
            header,
            publisher: options.publisher,
            keys,
            meta,
            sink,
            segment: Zeroizing::new(Vec::with_capacity(segment_size)),
            segment_size,
            chaining_values: Vec::new(),
            tags: Vec::new(),
            alone: None,
            position: 0,
            tensor: 0,
            tensor_position: 0,
        })
    }

    /// Takes the next bytes of tensor `tensor`: all of tensor 0 in order, then tensor 1, and so on.
    ///
    /// # Errors
    /// [`PackageError::TensorOrder`], [`PackageError::TensorOverrun`], [`PackageError::Write`].
    pub fn write(&mut self, tensor: usize, bytes: &[u8]) -> Result<(), PackageError> {
        let due = self.meta.tensors.get(self.tensor).filter(|_| tensor == self.tensor);
        let Some(record) = due else {
            return Err(PackageError::TensorOrder { found: tensor, expected: self.tensor });
        };
        let (start, len) = (record.offset, record.len);
        let found = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        let expected = len.saturating_sub(self.tensor_position);
        if found > expected {
            return Err(PackageError::TensorOverrun { tensor, found, expected });
        }
        if self.tensor_position == 0 {
            // Fewer than 256 bytes lie between two tensors.
            let gap = usize::try_from(start.saturating_sub(self.position)).unwrap_or(0);
            self.push([0; 256].get(..gap).unwrap_or(&[]))?;
        }
        self.push(bytes)?;
        self.tensor_position = self.tensor_position.saturating_add(found);
        if self.tensor_position == len {
            self.tensor = self.tensor.saturating_add(1);
            self.tensor_position = 0;
        }
        Ok(())
    }

    /// Seals the last segment, signs, and lays out the package file.
    ///
    /// # Errors
    /// [`PackageError::Unfinished`] when bytes are missing, [`PackageError::Write`].
    pub fn finish(mut self) -> Result<Finished<S>, PackageError> {
        if self.position != self.header.data_len {
            let (found, expected) = (self.position, self.header.data_len);
            return Err(PackageError::Unfinished { found, expected });
        }
        if !self.segment.is_empty() {
            self.flush()?;
        }
        let table = self.table();
        let root = tree::join(&self.chaining_values).or(self.alone);
        self.header.data_root = root.map_or([0; 32], Into::into);
        self.header.table_root = blake3::hash(table.as_slice()).into();
        let message = signed_message(&package_digest(&self.header));
        let signature = self.publisher.try_sign(&message);
        let signature = signature.map_err(|_| PackageError::Crypto { step: "signing" })?;
        let signature = SignatureBlock {
            public_key: public_key(self.publisher)?,
            signature: signature.as_ref().try_into().map_err(|_| PackageError::Signature)?,
        };
        let file = self.file(&signature, table.as_slice())?;
        let public = PublicHeader::from_parts(self.header, signature)?;
        Ok(Finished { public, file, sink: self.sink })
    }

    fn push(&mut self, mut bytes: &[u8]) -> Result<(), PackageError> {
        while !bytes.is_empty() {
            let space = self.segment_size.saturating_sub(self.segment.len());
            let (now, later) = bytes.split_at_checked(space).unwrap_or((bytes, &[]));
            self.segment.extend_from_slice(now);
            self.position = self.position.saturating_add(now.len() as u64);
            bytes = later;
            if self.segment.len() == self.segment_size {
                self.flush()?;
            }
        }
        Ok(())
    }

    /// Measures, seals and hands on the segment that is full, or is the last one.
    fn flush(&mut self) -> Result<(), PackageError> {
        let index = self.chaining_values.len() as u64;
        let count = self.header.segment_count();
        let Some(place) = self.header.place(index) else {
            return Err(PackageError::SegmentIndex { found: index, count });
        };
        let measured = tree::measure(self.header.segment_log2, index, &self.segment);
        let last = index.saturating_add(1) == count;
        let position = Position { domain: Domain::Data, index, last };
        let tag = match &self.keys {
            Some(keys) => keys.seal(place.blob, position, &mut self.segment)?,
            None => [0; 16],
        };
        self.sink.append(place.blob, &self.segment).map_err(|source| PackageError::Write {
            segment: index,
            blob: place.blob,
            source,
        })?;
        self.chaining_values.push(measured.chaining_value);
        self.tags.push(tag);
        self.alone.get_or_insert(measured.alone);
        self.segment.clear();
        Ok(())
    }

    fn table(&self) -> Writer {
        let mut table = Writer::new();
        for (chaining_value, tag) in self.chaining_values.iter().zip(&self.tags) {
            table.bytes(chaining_value).bytes(tag);
        }
        table
    }

    fn file(&self, signature: &SignatureBlock, table: &[u8]) -> Result<Vec<u8>, PackageError> {
        let mut file = Writer::new();
        file.bytes(&self.header.to_bytes()).bytes(&signature.to_bytes());
        pad(&mut file);
        self.append_side(&mut file, Domain::Meta, &self.meta.to_bytes()?)?;
        pad(&mut file);
        self.append_side(&mut file, Domain::Table, table)?;
        Ok(file.into_bytes())
    }

    /// Appends meta or table: as it is, or in sealed segments, each followed by its tag.
    fn append_side(
        &self,
        file: &mut Writer,
        domain: Domain,
        plain: &[u8],
    ) -> Result<(), PackageError> {
        let Some(keys) = &self.keys else {
            file.bytes(plain);
            return Ok(());
        };
        let mut segments = plain.chunks(1 << SIDE_SEGMENT_LOG2).zip(0_u64..).peekable();
        while let Some((plain, index)) = segments.next() {
            let mut sealed = Zeroizing::new(plain.to_vec());
            let last = segments.peek().is_none();
            let tag = keys.seal(0, Position { domain, index, last }, &mut sealed)?;
            file.bytes(&sealed).bytes(&tag);
        }
        Ok(())
    }
}

fn pad(file: &mut Writer) {
    let end = file.len().checked_next_multiple_of(PUBLIC_LEN).unwrap_or(usize::MAX);
    file.zeros(end.saturating_sub(file.len()));
}

fn public_key(pair: &Ed25519KeyPair) -> Result<[u8; 32], PackageError> {
    let key = pair.public_key().as_ref().try_into();
    key.map_err(|_| PackageError::Crypto { step: "reading the publisher's key" })
}
