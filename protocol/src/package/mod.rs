//! The sealed model package: what the weights are, and the proof that they are these weights
//! (docs/formats.md, section 2).
//!
//! Files: `NAME.chry` (header, signature, meta, segment table), blobs `NAME.bNNNN` (the data, sealed
//! in place), `NAME.client` (what clients need). [`PackageWriter`] makes them, [`PublicHeader`]
//! reads what needs no key, and a [`Package`] is the proof that header, signature, meta and table
//! belong together; only it opens data segments.

mod architecture;
mod client_bundle;
mod error;
mod header;
mod keys;
mod meta;
mod reader;
mod tree;
mod writer;

pub use architecture::{Architecture, Generation, Rope};
pub use client_bundle::{CLIENT_BUNDLE_MAX, ClientBundle};
pub use error::{ClientBundleError, MetaError, PackageError};
pub use header::{
    BLOB_COUNT_MAX, BLOB_LOG2, BLOB_LOG2_MAX, DATA_LEN_MAX, HEADER_LEN, Header, PUBLIC_LEN, Place,
    PublicHeader, SEGMENT_LOG2, SEGMENT_LOG2_MAX, SEGMENT_LOG2_MIN, SIGNATURE_LEN, SignatureBlock,
};
pub use keys::{PackageKey, content_digest, package_digest};
pub use meta::{
    META_LEN_MAX, Meta, NAME_MAX, TENSORS_MAX, TensorRecord, client_bundle_digest, dtype_group,
    tensor_len,
};
pub use reader::{BlobSource, Package, Piece};
pub use writer::{BlobSink, Finished, PackageOptions, PackageWriter};
