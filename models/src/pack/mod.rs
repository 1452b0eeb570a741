//! The packager: from a [`Source`] to the files of a package (docs/formats.md, section 2).
//!
//! Weights stream through: a piece of a tensor is read, converted where that is asked for, and
//! handed to the package writer. All files are written under temporary names and get their own at
//! the end, `NAME.chry` last; an error or a kill before that leaves no package.

use std::path::{Path, PathBuf};

use chrysalis_kernels::quant::QuantError;
use chrysalis_protocol::package::{
    ClientBundleError, Meta, MetaError, PackageError, PackageOptions, PackageWriter,
};

use self::convert::Converter;
pub use self::convert::PackDtype;
pub use self::files::FileError;
use self::files::Staging;
use crate::source::{Source, SourceError};
use crate::text::TextError;

mod bundle;
mod convert;
mod files;

/// What a package is made with.
#[derive(Clone)]
#[expect(missing_debug_implementations, reason = "it borrows two private keys")]
pub struct PackOptions<'a> {
    /// Keys, identity and security version.
    pub package: PackageOptions<'a>,
    /// How matrices are stored.
    pub dtype: PackDtype,
    /// The model's name; the source's where there is none.
    pub name: Option<String>,
    /// The model's licence, by its short name; the source's where there is none.
    pub licence: Option<String>,
    /// Replaces files that are there.
    pub force: bool,
    /// Makes a package without a client bundle: its model can only be asked in token ids.
    pub without_text: bool,
}

impl<'a> PackOptions<'a> {
    /// The source as it is, never in the place of a file that is there.
    pub const fn new(package: PackageOptions<'a>) -> Self {
        Self {
            package,
            dtype: PackDtype::Keep,
            name: None,
            licence: None,
            force: false,
            without_text: false,
        }
    }
}

/// How far a packer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Bytes of weights that are in the package.
    pub done: u64,
    /// All of them.
    pub total: u64,
}

/// What a packer made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackSummary {
    /// The identity of the model, the same sealed or not.
    pub content_digest: [u8; 48],
    /// The identity of the package.
    pub package_digest: [u8; 48],
    /// The publisher's Ed25519 public key.
    pub publisher: [u8; 32],
    /// The random name of the package.
    pub package_id: [u8; 16],
    /// Every file, `NAME.chry` first.
    pub files: Vec<PathBuf>,
    /// How many tensors there are.
    pub num_tensors: usize,
    /// Bytes of all files.
    pub bytes: u64,
}

/// Why there is no package.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PackError {
    /// The weights cannot be read.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// Tokenizer or chat template cannot be taken over.
    #[error(transparent)]
    Text(#[from] TextError),
    /// The client bundle cannot be written.
    #[error(transparent)]
    ClientBundle(#[from] ClientBundleError),
    /// The description of the package is not well-formed.
    #[error(transparent)]
    Meta(#[from] MetaError),
    /// The package writer refused.
    #[error(transparent)]
    Package(#[from] PackageError),
    /// A file cannot be written.
    #[error(transparent)]
    File(#[from] FileError),
    /// Values that could not be converted.
    #[error("tensor {name}: {error}")]
    Convert {
        /// Its canonical name.
        name: String,
        /// Why not.
        error: QuantError,
    },
}

/// Packs `source` into `output` (`NAME.chry`), its blobs `NAME.bNNNN` and the client bundle
/// `NAME.client`, all in the same folder. `progress` is called after each piece.
///
/// # Errors
/// [`PackError`]; no file is left under its final name.
pub fn pack(
    source: &Source,
    output: &Path,
    options: &PackOptions<'_>,
    mut progress: impl FnMut(Progress),
) -> Result<PackSummary, PackError> {
    let mut staging = Staging::new(output, options.force)?;
    let bundle = if options.without_text { Vec::new() } else { bundle::make(source)? };
    let meta = meta(source, options, &bundle)?;
    let total = meta.tensors.iter().map(|tensor| tensor.len).sum();
    let mut done = 0;
    let num_tensors = meta.tensors.len();

    let mut writer = PackageWriter::new(&options.package, meta, &mut staging)?;
    let mut converter = Converter::default();
    for (index, tensor) in source.tensors().iter().enumerate() {
        let mut first = 0;
        while first < tensor.num_rows() {
            let count = convert::rows_at_once(tensor).min(tensor.num_rows() - first);
            let bytes = converter.read(source, index, first, count, options.dtype)?;
            writer.write(index, bytes)?;
            done += bytes.len() as u64;
            first += count;
            progress(Progress { done, total });
        }
    }
    let finished = writer.finish()?;
    let (public, file) = (finished.public, finished.file);
    if !bundle.is_empty() {
        staging.write_client_bundle(&bundle)?;
    }
    let (files, bytes) = staging.commit(&file)?;
    Ok(PackSummary {
        content_digest: public.content_digest(),
        package_digest: public.package_digest(),
        publisher: public.signature().public_key,
        package_id: public.header().package_id,
        files,
        num_tensors,
        bytes,
    })
}

/// The description of the package.
fn meta(source: &Source, options: &PackOptions<'_>, bundle: &[u8]) -> Result<Meta, PackError> {
    let name = printable(options.name.as_deref().unwrap_or_else(|| source.name()));
    let name = if name.is_empty() { "model".to_owned() } else { name };
    let licence = options.licence.as_deref().or_else(|| source.licence());
    let tensors = source.tensors().iter().map(|tensor| {
        let dtype = convert::target(tensor, options.dtype);
        (tensor.name.clone(), dtype as u16, tensor.dims.clone())
    });
    let licence = printable(licence.unwrap_or_default());
    Ok(Meta::new(source.architecture().clone(), &name, &licence, bundle, tensors)?)
}

/// A text as a field of the meta takes it: no control characters, at most 64 bytes.
fn printable(text: &str) -> String {
    let mut out = String::new();
    for char in text.trim().chars().filter(|char| !char.is_control()) {
        if out.len() + char.len_utf8() > chrysalis_protocol::package::NAME_MAX {
            break;
        }
        out.push(char);
    }
    out
}
