//! Data that verifiers go by and that outlives a program: a signed file with a number, a date and
//! an end, of records that ascend. docs/formats.md, section 1.7. [`Floors`](super::Floors) and
//! [`Registry`](super::Registry) are such files.

use std::fmt;

use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use chrysalis_protocol::codec::{CodecError, Reader, Writer};
use thiserror::Error;

use super::file::hex;

/// Why bytes are no such file, or why it says nothing now.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
#[non_exhaustive]
pub enum SignedFileError {
    /// Too short, too long, another magic, or a reserved byte that is not zero.
    #[error("the {file}: {reason}")]
    Layout {
        /// Which file.
        file: FileKind,
        /// What is wrong with it.
        reason: CodecError,
    },
    /// A field has a value that it cannot have.
    #[error("the {file}: {field} is {value}, {rule}")]
    Field {
        /// Which file.
        file: FileKind,
        /// The field.
        field: &'static str,
        /// Its value.
        value: u64,
        /// What it has to be.
        rule: &'static str,
    },
    /// Signed by somebody else than the policy says.
    #[error("the {file} is signed by {}, not by {}", hex(found), hex(expected))]
    Signer {
        /// Which file.
        file: FileKind,
        /// The key in the file.
        found: [u8; 32],
        /// The key that the policy, or this program, names.
        expected: [u8; 32],
    },
    /// The signature is not the signer's.
    #[error("the signer did not sign the {file}")]
    Signature {
        /// Which file.
        file: FileKind,
    },
    /// The caller's time is before the file's date, or after its end.
    #[error("the {file}, version {version}, holds from {issued} to {expires}, not at {now}")]
    Expired {
        /// Which file.
        file: FileKind,
        /// Its number.
        version: u32,
        /// Its date, Unix time.
        issued: u64,
        /// Its last second, Unix time.
        expires: u64,
        /// The caller's time.
        now: u64,
    },
    /// An older file than the policy accepts.
    #[error("the {file} is version {found}, older than {minimum}")]
    Version {
        /// Which file.
        file: FileKind,
        /// Its number.
        found: u32,
        /// The policy's minimum.
        minimum: u32,
    },
}

impl SignedFileError {
    /// The stable name of this refusal.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Layout { file, .. } | Self::Field { file, .. } => file.codes().layout,
            Self::Signer { file, .. } => file.codes().signer,
            Self::Signature { file } => file.codes().signature,
            Self::Expired { file, .. } => file.codes().expired,
            Self::Version { file, .. } => file.codes().version,
        }
    }
}

/// What such a file is about.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum FileKind {
    /// Firmware below which no machine is accepted.
    Floors,
    /// Machines that somebody vouches for.
    Registry,
}

impl FileKind {
    const fn magic(self) -> &'static [u8; 8] {
        match self {
            Self::Floors => b"CHRY-FL1",
            Self::Registry => b"CHRY-PR1",
        }
    }

    /// What is signed before the file's bytes, so that no file stands in for one of another kind.
    const fn domain(self) -> &'static [u8] {
        match self {
            Self::Floors => b"chrysalis1 floors\0",
            Self::Registry => b"chrysalis1 registry\0",
        }
    }

    const fn codes(self) -> Codes {
        match self {
            Self::Floors => Codes {
                layout: "floors.layout",
                signer: "floors.signer",
                signature: "floors.signature",
                expired: "floors.expired",
                version: "floors.version",
            },
            Self::Registry => Codes {
                layout: "registry.layout",
                signer: "registry.signer",
                signature: "registry.signature",
                expired: "registry.expired",
                version: "registry.version",
            },
        }
    }
}

impl fmt::Display for FileKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Floors => "floors file",
            Self::Registry => "platform registry",
        })
    }
}

struct Codes {
    layout: &'static str,
    signer: &'static str,
    signature: &'static str,
    expired: &'static str,
    version: &'static str,
}

/// One record of such a file.
pub trait SignedRecord: Sized {
    /// Which file it belongs to.
    const FILE: FileKind;
    /// The most records that a file has.
    const COUNT_MAX: u32;

    /// Writes the record.
    fn write(&self, out: &mut Writer);

    /// Reads a record that [`Self::write`] wrote, and no other.
    ///
    /// # Errors
    /// The field that has no value of a record.
    fn read(reader: &mut Reader<'_>) -> Result<Self, SignedFileError>;

    /// Whether the record may come directly after `last`; where not, the field and value that do
    /// not ascend.
    ///
    /// # Errors
    /// They do not.
    fn after(&self, last: &Self) -> Result<(), (&'static str, u64)>;
}

/// What a file says.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Table<R> {
    /// Number of the file, from 1, higher in each later one.
    pub version: u32,
    /// Its date, Unix time: it says nothing about earlier times.
    pub issued: u64,
    /// Its last second, Unix time.
    pub expires: u64,
    /// The records, ascending.
    pub records: Vec<R>,
}

impl<R: SignedRecord> Table<R> {
    /// The file, signed by `key`.
    #[must_use]
    pub fn sign(&self, key: &Ed25519KeyPair) -> Vec<u8> {
        let mut out = Writer::new();
        out.bytes(R::FILE.magic()).u32(self.version).u32(self.records.len() as u32);
        out.u64(self.issued).u64(self.expires).bytes(key.public_key().as_ref());
        for record in &self.records {
            record.write(&mut out);
        }
        let signature = key.sign(&message::<R>(out.as_slice()));
        out.bytes(signature.as_ref());
        out.into_bytes()
    }

    /// Reads what stands before the signature.
    fn parse(signed: &[u8]) -> Result<(Self, [u8; 32]), SignedFileError> {
        let mut r = Reader::new(signed);
        r.magic(R::FILE.magic()).map_err(layout::<R>)?;
        let version = r.u32().map_err(layout::<R>)?;
        require(R::FILE, version != 0, "version", version.into(), "not 1 or higher")?;
        let count = r.u32().map_err(layout::<R>)?;
        let fits = (1..=R::COUNT_MAX).contains(&count);
        require(R::FILE, fits, "count", count.into(), "not 1 or more, or too many")?;
        let issued = r.u64().map_err(layout::<R>)?;
        let expires = r.u64().map_err(layout::<R>)?;
        require(R::FILE, issued < expires, "expires", expires, "not after the file's date")?;
        let signer = r.array().map_err(layout::<R>)?;
        let mut records: Vec<R> = Vec::new();
        for _ in 0..count {
            let record = R::read(&mut r)?;
            if let Some(Err((field, value))) = records.last().map(|last| record.after(last)) {
                require(R::FILE, false, field, value, "not ascending")?;
            }
            records.push(record);
        }
        r.finish().map_err(layout::<R>)?;
        Ok((Self { version, issued, expires, records }, signer))
    }
}

/// A file whose signature is good. [`Self::open`] is its only source; whether it holds now is asked
/// by [`Self::holds`].
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct SignedFile<R> {
    table: Table<R>,
    signer: [u8; 32],
}

impl<R: SignedRecord> SignedFile<R> {
    /// Reads a file that `signer` has to have signed.
    ///
    /// # Errors
    /// [`SignedFileError`] names the field, the key or the signature that is wrong.
    pub fn open(bytes: &[u8], signer: &[u8; 32]) -> Result<Self, SignedFileError> {
        let short = CodecError::Short { needed: SIGNATURE_LEN, left: bytes.len() };
        let parts = bytes.split_last_chunk::<SIGNATURE_LEN>();
        let (signed, signature) = parts.ok_or_else(|| layout::<R>(short))?;
        let (table, found) = Table::parse(signed)?;
        if found != *signer {
            return Err(SignedFileError::Signer { file: R::FILE, found, expected: *signer });
        }
        UnparsedPublicKey::new(&ED25519, signer)
            .verify(&message::<R>(signed), signature)
            .map_err(|_| SignedFileError::Signature { file: R::FILE })?;
        Ok(Self { table, signer: found })
    }

    /// What the file says.
    #[must_use]
    pub const fn table(&self) -> &Table<R> {
        &self.table
    }

    /// Who signed it.
    #[must_use]
    pub const fn signer(&self) -> &[u8; 32] {
        &self.signer
    }

    /// Whether the file says something at Unix time `now`, and is numbered `minimum_version` or
    /// higher.
    ///
    /// # Errors
    /// [`SignedFileError::Expired`], [`SignedFileError::Version`].
    pub fn holds(&self, minimum_version: u32, now: u64) -> Result<(), SignedFileError> {
        let Table { version, issued, expires, .. } = self.table;
        let file = R::FILE;
        if now < issued || now > expires {
            return Err(SignedFileError::Expired { file, version, issued, expires, now });
        }
        if version < minimum_version {
            return Err(SignedFileError::Version {
                file,
                found: version,
                minimum: minimum_version,
            });
        }
        Ok(())
    }
}

fn message<R: SignedRecord>(signed: &[u8]) -> Vec<u8> {
    [R::FILE.domain(), signed].concat()
}

/// Bytes that are no file of this kind.
pub(super) const fn layout<R: SignedRecord>(reason: CodecError) -> SignedFileError {
    SignedFileError::Layout { file: R::FILE, reason }
}

/// A field that has a value it cannot have, unless `holds`.
pub(super) const fn require(
    file: FileKind,
    holds: bool,
    field: &'static str,
    value: u64,
    rule: &'static str,
) -> Result<(), SignedFileError> {
    if holds { Ok(()) } else { Err(SignedFileError::Field { file, field, value, rule }) }
}

const SIGNATURE_LEN: usize = 64;
