//! Why a model package is refused: one variant for each check, with what was found and what was due.

use std::io;

use thiserror::Error;

use crate::codec::CodecError;

/// Why a package, or one of its segments, is refused or cannot be written.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum PackageError {
    /// A fixed layout was cut, too long, of another magic, or not zero where it is reserved.
    #[error("{part}: {source}")]
    Layout {
        /// The part of the package file.
        part: &'static str,
        /// What is wrong.
        source: CodecError,
    },
    /// The flags are neither "open" (0) nor "sealed" (3).
    #[error("header flags are {found:#06x}, neither 0x0000 nor 0x0003")]
    Flags {
        /// The flags found.
        found: u16,
    },
    /// The AEAD does not match the flags.
    #[error("header aead is {found}, expected {expected} for these flags")]
    Aead {
        /// The number found.
        found: u16,
        /// The number that goes with the flags.
        expected: u16,
    },
    /// The hash is not BLAKE3-256.
    #[error("header hash is {found}, expected {expected}")]
    Hash {
        /// The number found.
        found: u16,
        /// BLAKE3-256.
        expected: u16,
    },
    /// The segment size is out of range.
    #[error("segments of 2^{found} bytes, expected 2^20 to 2^22")]
    SegmentLog2 {
        /// The logarithm found.
        found: u8,
    },
    /// The blob size is out of range.
    #[error("blobs of 2^{found} bytes, expected 2^{min} to 2^{max}")]
    BlobLog2 {
        /// The logarithm found.
        found: u8,
        /// A segment.
        min: u8,
        /// The largest.
        max: u8,
    },
    /// There is no data, or too much of it.
    #[error("{found} bytes of data, expected 1 to {max}")]
    DataLen {
        /// The length found.
        found: u64,
        /// The largest.
        max: u64,
    },
    /// The meta has an impossible length.
    #[error("{found} bytes of meta, expected {min} to {max}")]
    MetaLen {
        /// The length found.
        found: u64,
        /// A meta of one tensor.
        min: u64,
        /// A meta of the most tensors.
        max: u64,
    },
    /// The number of segments is not what the length of the data makes.
    #[error("{found} segments, expected {expected}")]
    SegmentCount {
        /// The number found.
        found: u64,
        /// The number that the data makes.
        expected: u64,
    },
    /// The number of blobs is not what the length of the data makes.
    #[error("{found} blobs, expected {expected}")]
    BlobCount {
        /// The number found.
        found: u32,
        /// The number that the data makes.
        expected: u64,
    },
    /// The data takes more blobs than a package may have.
    #[error("{found} blobs, at most {max}")]
    TooManyBlobs {
        /// The number that the data makes.
        found: u64,
        /// The most.
        max: u64,
    },
    /// A sealed package has no key commitment, or an open one has one.
    #[error("key commitment present: {found}, expected {expected}")]
    KeyCommitPresence {
        /// Whether it is not zero.
        found: bool,
        /// Whether the package is sealed.
        expected: bool,
    },
    /// The signature is not Ed25519.
    #[error("signature algorithm is {found}, expected {expected}")]
    SignatureAlgorithm {
        /// The number found.
        found: u16,
        /// Ed25519.
        expected: u16,
    },
    /// The public key is not the one that the header names.
    #[error("publisher key id is {found:02x?}, the header says {expected:02x?}")]
    PublisherKeyId {
        /// SHA-256 of the public key in the signature block.
        found: [u8; 32],
        /// The header's publisher key id.
        expected: [u8; 32],
    },
    /// The publisher's signature does not verify.
    #[error("the publisher's signature does not verify")]
    Signature,
    /// The package file is not exactly as long as its header says.
    #[error("the package file has {found} bytes, expected {expected}")]
    FileLen {
        /// The length found.
        found: u64,
        /// The length that the header makes.
        expected: u64,
    },
    /// The package is sealed and no key was given.
    #[error("the package is sealed and no key was given")]
    KeyMissing,
    /// A key was given, but the package is open: its owner expected it to be sealed.
    #[error("a key was given, but the package is not sealed")]
    KeyUnexpected,
    /// The key is not the one that the header commits to.
    #[error("the key is not the one that the header commits to")]
    WrongKey,
    /// A sealed segment of the meta does not open.
    #[error("segment {segment} of the meta does not open")]
    MetaSeal {
        /// Its index.
        segment: u64,
    },
    /// A sealed segment of the table does not open.
    #[error("segment {segment} of the table does not open")]
    TableSeal {
        /// Its index.
        segment: u64,
    },
    /// The meta is another one.
    #[error("the meta hashes to {found}, the header says {expected}")]
    MetaRoot {
        /// Its BLAKE3.
        found: blake3::Hash,
        /// The header's `meta_root`.
        expected: blake3::Hash,
    },
    /// The segment table is another one.
    #[error("the table hashes to {found}, the header says {expected}")]
    TableRoot {
        /// Its BLAKE3.
        found: blake3::Hash,
        /// The header's `table_root`.
        expected: blake3::Hash,
    },
    /// The table's chaining values do not join to the data's hash.
    #[error("the chaining values join to {found}, the header says {expected}")]
    DataRoot {
        /// What they join to.
        found: blake3::Hash,
        /// The header's `data_root`.
        expected: blake3::Hash,
    },
    /// An open package has a GCM tag in its table.
    #[error("segment {segment} of an open package has a tag")]
    TagPresence {
        /// Its index.
        segment: u64,
    },
    /// The meta is malformed.
    #[error("meta: {0}")]
    Meta(#[from] MetaError),
    /// The tensors do not cover the data exactly.
    #[error("the tensors end at byte {found}, the data at {expected}")]
    DataCover {
        /// Where the last tensor ends.
        found: u64,
        /// The header's `data_len`.
        expected: u64,
    },
    /// There is no such segment.
    #[error("segment {found} of {count}")]
    SegmentIndex {
        /// The index asked for.
        found: u64,
        /// How many there are.
        count: u64,
    },
    /// The buffer is not as long as the segment.
    #[error("segment {segment} got {found} bytes, expected {expected}")]
    SegmentLen {
        /// Its index.
        segment: u64,
        /// The buffer's length.
        found: u64,
        /// The segment's length.
        expected: u64,
    },
    /// The GCM tag of a data segment does not verify. (Its value tells about private weights.)
    #[error("segment {segment} does not open")]
    SegmentSeal {
        /// Its index.
        segment: u64,
    },
    /// A data segment is not the one that was measured. (Its hash tells about private weights.)
    #[error("segment {segment} is not the one in the table")]
    SegmentHash {
        /// Its index.
        segment: u64,
    },
    /// The bytes between two tensors are not zero.
    #[error("the gap before byte {offset} of segment {segment} is not zero")]
    GapNotZero {
        /// The segment's index.
        segment: u64,
        /// Where the gap ends within the segment.
        offset: u64,
    },
    /// The source of blobs failed.
    #[error("segment {segment} cannot be read from blob {blob}: {source}")]
    Read {
        /// The segment's index.
        segment: u64,
        /// The blob's index.
        blob: u32,
        /// Why.
        source: io::Error,
    },
    /// The sink of blobs failed.
    #[error("segment {segment} cannot be written to blob {blob}: {source}")]
    Write {
        /// The segment's index.
        segment: u64,
        /// The blob's index.
        blob: u32,
        /// Why.
        source: io::Error,
    },
    /// The writer got another tensor than the one that is due.
    #[error("tensor {found} was written, {expected} is due")]
    TensorOrder {
        /// The tensor's index.
        found: usize,
        /// The one that is due.
        expected: usize,
    },
    /// The writer got more bytes than the tensor has.
    #[error("tensor {tensor} got {found} bytes, {expected} were left")]
    TensorOverrun {
        /// Its index.
        tensor: usize,
        /// How many it got.
        found: u64,
        /// How many it had left.
        expected: u64,
    },
    /// The writer was finished early.
    #[error("{found} bytes of data were written, expected {expected}")]
    Unfinished {
        /// How many were written.
        found: u64,
        /// How many the meta announced.
        expected: u64,
    },
    /// The cryptographic library refused an operation that cannot fail.
    #[error("the cryptographic library failed at {step}")]
    Crypto {
        /// Which operation.
        step: &'static str,
    },
}

/// Why a meta is refused.
#[derive(Clone, Debug, Error, PartialEq)]
#[non_exhaustive]
pub enum MetaError {
    /// It was cut, too long, or not zero where it is reserved.
    #[error(transparent)]
    Codec(#[from] CodecError),
    /// The architecture block is of another version.
    #[error("architecture version is {found}, expected {expected}")]
    Version {
        /// The version found.
        found: u32,
        /// The version known.
        expected: u32,
    },
    /// A number of the architecture block is not one of those that are defined.
    #[error("{field} is {found}, expected {min} to {max}")]
    Range {
        /// The field.
        field: &'static str,
        /// Its value.
        found: u32,
        /// The smallest defined.
        min: u32,
        /// The largest defined.
        max: u32,
    },
    /// An architecture flag that is not defined is set.
    #[error("architecture flags are {found:#010x}, known are {known:#010x}")]
    Flags {
        /// The flags found.
        found: u32,
        /// All flags that are defined.
        known: u32,
    },
    /// A float is infinite, not a number, or negative zero.
    #[error("{field} is {found:?}, expected a finite number and no negative zero")]
    Float {
        /// The field.
        field: &'static str,
        /// Its value.
        found: f32,
    },
    /// An absent value is not zero, so that there would be two encodings.
    #[error("{field} is absent, but not zero")]
    AbsentNotZero {
        /// The field.
        field: &'static str,
    },
    /// A text is empty, too long, not UTF-8, or holds a control character.
    #[error("{field} is not 1 to 64 bytes of printable UTF-8")]
    Text {
        /// The field.
        field: &'static str,
    },
    /// There is no tensor, or there are too many.
    #[error("{found} tensors, expected 1 to {max}")]
    TensorCount {
        /// How many there are.
        found: u64,
        /// The most.
        max: u64,
    },
    /// Two tensors have one name.
    #[error("tensor {tensor} has the name of another one")]
    DuplicateName {
        /// The later one's index.
        tensor: usize,
    },
    /// The storage type is unknown.
    #[error("tensor {tensor} has the unknown dtype {found}")]
    Dtype {
        /// Its index.
        tensor: usize,
        /// The number found.
        found: u16,
    },
    /// A tensor flag is set; none is defined.
    #[error("tensor {tensor} has flags {found:#010x}, none is defined")]
    TensorFlags {
        /// Its index.
        tensor: usize,
        /// The flags found.
        found: u32,
    },
    /// The dimensions are none, more than eight, zero, or too large together.
    #[error("tensor {tensor} has impossible dimensions {dims:?}")]
    Dims {
        /// Its index.
        tensor: usize,
        /// The dimensions found.
        dims: Vec<u32>,
    },
    /// A row does not divide into groups of its storage type.
    #[error("tensor {tensor} has rows of {cols} values, not a multiple of {group}")]
    Groups {
        /// Its index.
        tensor: usize,
        /// Values in a row.
        cols: u32,
        /// Values in a group.
        group: u32,
    },
    /// The length is not what dimensions and storage type make.
    #[error("tensor {tensor} has {found} bytes, expected {expected}")]
    TensorLen {
        /// Its index.
        tensor: usize,
        /// The length found.
        found: u64,
        /// The length that dimensions and dtype make.
        expected: u64,
    },
    /// A tensor does not start at the first multiple of 256 after the one before.
    #[error("tensor {tensor} starts at byte {found}, expected {expected}")]
    Offset {
        /// Its index.
        tensor: usize,
        /// The offset found.
        found: u64,
        /// The offset due.
        expected: u64,
    },
    /// The tensors are longer than a package may be.
    #[error("tensor {tensor} ends beyond the {max} bytes that a package may hold")]
    TooLong {
        /// Its index.
        tensor: usize,
        /// The most.
        max: u64,
    },
    /// The client bundle has another length.
    #[error("the client bundle has {found} bytes, expected {expected}")]
    ClientBundleLen {
        /// The length found.
        found: u64,
        /// The length in the meta.
        expected: u64,
    },
    /// The client bundle is another one.
    #[error("the client bundle hashes to {found}, expected {expected}")]
    ClientBundleHash {
        /// Its BLAKE3.
        found: blake3::Hash,
        /// The hash in the meta.
        expected: blake3::Hash,
    },
}

/// Why a client bundle is refused.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
#[non_exhaustive]
pub enum ClientBundleError {
    /// It was cut, of another magic, or not zero where it is reserved.
    #[error(transparent)]
    Codec(#[from] CodecError),
    /// It is too long.
    #[error("the client bundle has {found} bytes, at most {max}")]
    TooLong {
        /// The length found.
        found: usize,
        /// The most.
        max: usize,
    },
    /// An entry does not come after the one before.
    #[error("entry type {found} follows {before}")]
    Order {
        /// The later type.
        found: u16,
        /// The earlier type.
        before: u16,
    },
    /// An entry is of an unknown type.
    #[error("entry type {found} is unknown")]
    UnknownType {
        /// The type found.
        found: u16,
    },
    /// An entry is empty; absence is the only encoding of nothing.
    #[error("entry type {found} is empty")]
    Empty {
        /// Its type.
        found: u16,
    },
    /// A text is not UTF-8.
    #[error("entry type {found} is not UTF-8 from byte {at}")]
    NotUtf8 {
        /// Its type.
        found: u16,
        /// Where the text stops being UTF-8.
        at: usize,
    },
    /// There is no tokenizer.
    #[error("the client bundle has no tokenizer")]
    NoTokenizer,
}
