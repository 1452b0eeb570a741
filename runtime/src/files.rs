//! A package on the host's disk: the file, its blobs and its client bundle. Untrusted bytes, each read once, never mapped.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use chrysalis_protocol::package::{BlobSource, CLIENT_BUNDLE_MAX};

/// Why a file of a package could not be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FileError {
    /// The system said no.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// Its reason.
        source: io::Error,
    },
    /// Larger than any such file is.
    #[error("{path} has {found} bytes, {limit} at most")]
    TooLong {
        /// The file.
        path: PathBuf,
        /// Bytes found.
        found: u64,
        /// Bytes allowed.
        limit: u64,
    },
}

/// Where the parts of `NAME.chry` lie.
#[derive(Clone, Debug)]
pub struct PackageFiles {
    path: PathBuf,
}

impl PackageFiles {
    /// The package whose main file is `path`.
    pub fn new(path: &Path) -> Self {
        Self { path: path.to_owned() }
    }

    /// Header, signature, meta and table.
    ///
    /// # Errors
    /// [`FileError`].
    pub fn main(&self) -> Result<Vec<u8>, FileError> {
        read(&self.path, MAIN_MAX)
    }

    /// What clients need: opaque here, checked by them.
    ///
    /// # Errors
    /// [`FileError`].
    pub fn client_bundle(&self) -> Result<Vec<u8>, FileError> {
        read(&self.path.with_extension("client"), CLIENT_BUNDLE_MAX as u64)
    }

    /// The blobs, opened as they are needed.
    pub fn blobs(&self) -> Blobs {
        Blobs { path: self.path.clone(), open: None }
    }
}

/// Reads ranges of the blobs.
#[derive(Debug)]
pub struct Blobs {
    path: PathBuf,
    open: Option<(u32, File)>,
}

impl BlobSource for Blobs {
    fn read_at(&mut self, blob: u32, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let file = match &mut self.open {
            Some((open, file)) if *open == blob => file,
            slot => {
                let file = File::open(self.path.with_extension(format!("b{blob:04}")))?;
                &mut slot.insert((blob, file)).1
            }
        };
        file.read_exact_at(buf, offset)
    }
}

fn read(path: &Path, limit: u64) -> Result<Vec<u8>, FileError> {
    let io_error = |source| FileError::Io { path: path.to_owned(), source };
    let file = File::open(path).map_err(io_error)?;
    let found = file.metadata().map_err(io_error)?.len();
    if found > limit {
        return Err(FileError::TooLong { path: path.to_owned(), found, limit });
    }
    let mut bytes = Vec::new();
    // The size above is a hint of a hostile disk: the limit holds for what is read.
    file.take(limit).read_to_end(&mut bytes).map_err(io_error)?;
    Ok(bytes)
}

/// A main file holds the table: 48 bytes for each 2 MiB of weights, and a meta of 8 MiB.
const MAIN_MAX: u64 = 1 << 30;
