//! A package opened for measuring: the bare decoder, without a session around it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use chrysalis_kernels::device::Device;
use chrysalis_models::decoder::Model;
use chrysalis_protocol::package::{Package, PublicHeader};
use chrysalis_runtime::files::PackageFiles;
use chrysalis_runtime::load::{self, LoadOptions, LoadReport};
use serde::Serialize;

use crate::error::CliError;
use crate::key_file;

/// A package that was opened with its key, if it needs one.
pub struct Opened {
    /// The package.
    pub package: Package,
    /// Where its files lie.
    pub files: PackageFiles,
}

/// Opens a package. Without a key file the one beside a sealed package is tried.
///
/// # Errors
/// [`CliError`] names the file or the check.
pub fn open(path: &Path, key: Option<&Path>) -> Result<Opened, CliError> {
    let files = PackageFiles::new(path);
    let main = files.main()?;
    let public = PublicHeader::parse(&main).map_err(CliError::package(path))?;
    let key = match (public.header().sealed, key) {
        (false, None) => None,
        (_, Some(file)) => Some(key_file::read(file)?),
        (true, None) => {
            let beside = path.with_extension("key");
            if !beside.exists() {
                return Err(CliError::KeyNeeded { package: path.to_owned() });
            }
            Some(key_file::read(&beside)?)
        }
    };
    let package = Package::open(&main, key.as_ref()).map_err(CliError::package(path))?;
    Ok(Opened { package, files })
}

/// What a load took, for a report.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct LoadFigures {
    bytes: u64,
    threads: usize,
    wall_s: f64,
    bytes_per_second: f64,
    /// Summed over threads, as are the next two.
    read_s: f64,
    decrypt_and_measure_s: f64,
    place_s: f64,
}

impl From<LoadReport> for LoadFigures {
    fn from(report: LoadReport) -> Self {
        let LoadReport { bytes, threads, stages, wall } = report;
        Self {
            bytes,
            threads,
            wall_s: wall.as_secs_f64(),
            bytes_per_second: report.bytes_per_second(),
            read_s: stages.read.as_secs_f64(),
            decrypt_and_measure_s: stages.open.as_secs_f64(),
            place_s: stages.place.as_secs_f64(),
        }
    }
}

/// Places an opened package on a device.
///
/// # Errors
/// [`CliError`] names the tensor, segment or reservation.
pub fn model(
    opened: &Opened,
    device: impl Device,
    options: LoadOptions,
) -> Result<(Box<dyn Model>, LoadReport), CliError> {
    shared_model(opened, Arc::new(device), options)
}

/// As [`model`], on a device that somebody else holds too.
///
/// # Errors
/// [`CliError`] names the tensor, segment or reservation.
pub fn shared_model<D: Device>(
    opened: &Opened,
    device: Arc<D>,
    options: LoadOptions,
) -> Result<(Box<dyn Model>, LoadReport), CliError> {
    let blobs = || opened.files.blobs();
    let (decoder, report) = load::decoder(device, &opened.package, blobs, options, |_| {})?;
    Ok((Box::new(decoder), report))
}

/// Reads a text file, at most a gibibyte.
///
/// # Errors
/// [`CliError::Io`] names the file.
pub fn read_text(path: &Path) -> Result<String, CliError> {
    let error = |source: io::Error| CliError::Io { path: PathBuf::from(path), source };
    fs::read_to_string(path).map_err(error)
}

/// Positions of a KV block.
pub const BLOCK: usize = 16;
