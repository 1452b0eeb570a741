//! Evidence by configfs-tsm, the kernel's one interface for SEV-SNP and TDX (Linux 6.7 and later;
//! Documentation/ABI/testing/configfs-tsm-report): make an entry, write 64 bytes, read the report.
//!
//! Other programs of the guest may write to an entry too, so the kernel counts the writes of each;
//! a report is taken only if exactly ours came between. `auxblob`, certificates that the host
//! gives, is not read: the enclave has no parser for it, and the host can add them to a bundle.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

use chrysalis_protocol::codec::Reader;
use chrysalis_protocol::statement::Tee;

use super::{Attester, AttesterError, Evidence};
use crate::quote::Quote;
use crate::report::SignedReport;

/// The few file operations of the interface, so that tests can stand in for the kernel.
pub trait Configfs: Send {
    /// Makes an entry, which the kernel fills with attributes.
    ///
    /// # Errors
    /// The kernel's.
    fn make(&mut self, entry: &Path) -> io::Result<()>;
    /// Writes an attribute, in one piece.
    ///
    /// # Errors
    /// The kernel's.
    fn write(&mut self, attribute: &Path, bytes: &[u8]) -> io::Result<()>;
    /// Reads an attribute.
    ///
    /// # Errors
    /// The kernel's; [`io::ErrorKind::FileTooLarge`] beyond what any report has.
    fn read(&mut self, attribute: &Path) -> io::Result<Vec<u8>>;
    /// Removes an entry.
    ///
    /// # Errors
    /// The kernel's.
    fn remove(&mut self, entry: &Path) -> io::Result<()>;
}

/// The kernel's own.
#[derive(Clone, Copy, Debug)]
pub struct Kernel;

impl Configfs for Kernel {
    fn make(&mut self, entry: &Path) -> io::Result<()> {
        fs::create_dir(entry)
    }

    fn write(&mut self, attribute: &Path, bytes: &[u8]) -> io::Result<()> {
        OpenOptions::new().write(true).open(attribute)?.write_all(bytes)
    }

    fn read(&mut self, attribute: &Path) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        File::open(attribute)?.take(BLOB_MAX.saturating_add(1)).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > BLOB_MAX {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        Ok(bytes)
    }

    fn remove(&mut self, entry: &Path) -> io::Result<()> {
        fs::remove_dir(entry)
    }
}

/// The guest's platform, asked by configfs-tsm.
pub struct Tsm {
    fs: Box<dyn Configfs>,
    root: PathBuf,
    rtmr3: PathBuf,
    tee: Tee,
    entries: u64,
}

impl fmt::Debug for Tsm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tsm").field("root", &self.root).field("tee", &self.tee).finish()
    }
}

impl Tsm {
    /// The platform of this guest, by the interface below `root` (`/` on a running system).
    ///
    /// # Errors
    /// [`AttesterError`] says what is missing: an interface, a driver, a privilege.
    pub fn open(root: &Path, fs: Box<dyn Configfs>) -> Result<Self, AttesterError> {
        let mut tsm = Self {
            fs,
            root: root.join(REPORTS),
            rtmr3: root.join(RTMR3),
            tee: Tee::SevSnp,
            entries: 0,
        };
        let found = tsm.with_entry(|fs, entry| read_text(fs, &entry.join("provider")))?;
        tsm.tee = match found.as_str() {
            SNP_PROVIDER => Tee::SevSnp,
            TDX_PROVIDER => Tee::Tdx,
            _ => return Err(AttesterError::Provider { found, expected: "sev_guest or tdx_guest" }),
        };
        Ok(tsm)
    }

    /// Does something with an entry of its own, which is gone afterwards.
    fn with_entry<T>(
        &mut self,
        act: impl FnOnce(&mut dyn Configfs, &Path) -> Result<T, AttesterError>,
    ) -> Result<T, AttesterError> {
        let entry = self.make_entry()?;
        let done = act(&mut *self.fs, &entry);
        let removed = self.fs.remove(&entry);
        let done = done?;
        removed.map_err(|error| failed("remove", &entry, &error))?;
        Ok(done)
    }

    /// An entry with a name that nobody has. One that an earlier process left behind is passed by.
    fn make_entry(&mut self) -> Result<PathBuf, AttesterError> {
        for _ in 0..NAMES_MAX {
            self.entries = self.entries.wrapping_add(1);
            let name = format!("chrysalis-{}-{}", std::process::id(), self.entries);
            let entry = self.root.join(name);
            match self.fs.make(&entry) {
                Ok(()) => return Ok(entry),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(self.no_entry(&entry, &error)),
            }
        }
        Err(AttesterError::Entries { root: self.root.clone() })
    }

    fn no_entry(&self, entry: &Path, error: &io::Error) -> AttesterError {
        let root = self.root.clone();
        match error.kind() {
            io::ErrorKind::NotFound => AttesterError::NoInterface { root },
            io::ErrorKind::PermissionDenied => AttesterError::Privilege { path: root },
            _ if error.raw_os_error() == Some(ENXIO) => AttesterError::NoDriver { root },
            _ => failed("make", entry, error),
        }
    }

    /// The platform's bytes over `report_data`: complete, and over nothing else.
    fn report(&mut self, report_data: &[u8; 64]) -> Result<Vec<u8>, AttesterError> {
        let tee = self.tee;
        let blob = self.with_entry(|fs, entry| {
            let expected = if tee == Tee::Tdx { TDX_PROVIDER } else { SNP_PROVIDER };
            let found = read_text(fs, &entry.join("provider"))?;
            if found != expected {
                return Err(AttesterError::Provider { found, expected });
            }
            privilege_level(fs, entry)?;
            undisturbed(fs, entry, report_data)
        })?;
        let (bytes, found) = match tee {
            Tee::Tdx => {
                // Drivers hand out their whole buffer, zeros behind the quote.
                let quote = Quote::parse_padded(&blob).map_err(|e| wrong(&e))?;
                (quote.bytes.to_vec(), quote.report.report_data)
            }
            Tee::SevSnp | Tee::Simulated => {
                let found = SignedReport::parse(&blob).map_err(|e| wrong(&e))?.report.report_data;
                (blob, found)
            }
        };
        if found != *report_data {
            return Err(AttesterError::OtherReport);
        }
        Ok(bytes)
    }
}

impl Attester for Tsm {
    fn tee(&self) -> Tee {
        self.tee
    }

    fn attest(&mut self, report_data: &[u8; 64]) -> Result<Evidence, AttesterError> {
        Ok(Evidence { report: self.report(report_data)?, endorsements: Vec::new() })
    }

    fn launch_config_digest(&mut self) -> Result<[u8; 32], AttesterError> {
        // Over zeros, which are no report data of ours: nobody can use it as evidence.
        let report = self.report(&[0; 64])?;
        match self.tee {
            Tee::Tdx => {
                let quote = Quote::parse(&report).map_err(|e| wrong(&e))?;
                quote.report.launch_config_digest().ok_or(AttesterError::ConfigId)
            }
            Tee::SevSnp | Tee::Simulated => {
                Ok(SignedReport::parse(&report).map_err(|e| wrong(&e))?.report.host_data)
            }
        }
    }

    fn measure_package(&mut self, package_digest: &[u8; 48]) -> Result<bool, AttesterError> {
        if self.tee != Tee::Tdx {
            return Ok(false);
        }
        match self.fs.write(&self.rtmr3, package_digest) {
            Ok(()) => Ok(true),
            // Kernels before 6.16: a policy that wants the register extended will refuse.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(failed("extend", &self.rtmr3, &error)),
        }
    }
}

/// Asks at the highest level that the guest has: 0, or the one that an SVSM leaves to it. TDX has
/// no such levels.
fn privilege_level(fs: &mut dyn Configfs, entry: &Path) -> Result<(), AttesterError> {
    let floor = entry.join("privlevel_floor");
    let found = match fs.read(&floor) {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed("read", &floor, &error)),
    };
    let level = found.trim_ascii();
    match level {
        b"0" => Ok(()),
        b"1" | b"2" | b"3" => {
            let path = entry.join("privlevel");
            fs.write(&path, level).map_err(|error| failed("write", &path, &error))
        }
        _ => {
            let found = String::from_utf8_lossy(level).into_owned();
            Err(AttesterError::Attribute { path: floor, found })
        }
    }
}

/// Writes the report data and reads the report, until nobody else wrote in between.
fn undisturbed(
    fs: &mut dyn Configfs,
    entry: &Path,
    report_data: &[u8; 64],
) -> Result<Vec<u8>, AttesterError> {
    for _ in 0..ATTEMPTS_MAX {
        let before = generation(fs, entry)?;
        let path = entry.join("inblob");
        fs.write(&path, report_data).map_err(|error| failed("write", &path, &error))?;
        let path = entry.join("outblob");
        let blob = fs.read(&path).map_err(|error| failed("read", &path, &error))?;
        if generation(fs, entry)? == before.wrapping_add(1) {
            return Ok(blob);
        }
    }
    Err(AttesterError::Disturbed { attempts: ATTEMPTS_MAX })
}

fn generation(fs: &mut dyn Configfs, entry: &Path) -> Result<u64, AttesterError> {
    let path = entry.join("generation");
    let text = read_text(fs, &path)?;
    text.parse().map_err(|_| AttesterError::Attribute { path, found: text })
}

/// An attribute that is a short text; the kernel ends it with a line feed.
fn read_text(fs: &mut dyn Configfs, path: &Path) -> Result<String, AttesterError> {
    let bytes = fs.read(path).map_err(|error| failed("read", path, &error))?;
    let mut reader = Reader::new(&bytes);
    let text = reader.bytes(bytes.len().min(TEXT_MAX)).unwrap_or_default();
    Ok(String::from_utf8_lossy(text).trim().to_owned())
}

fn failed(what: &'static str, path: &Path, error: &io::Error) -> AttesterError {
    if error.kind() == io::ErrorKind::PermissionDenied {
        return AttesterError::Privilege { path: path.to_owned() };
    }
    AttesterError::Interface { what, path: path.to_owned(), reason: error.to_string() }
}

fn wrong(error: &dyn fmt::Display) -> AttesterError {
    AttesterError::Report { reason: error.to_string() }
}

/// Below the root of the file system.
pub(super) const REPORTS: &str = "sys/kernel/config/tsm/report";
/// Extends the register by what is written (Linux 6.16 and later).
const RTMR3: &str = "sys/devices/virtual/misc/tdx_guest/measurements/rtmr3:sha384";
const SNP_PROVIDER: &str = "sev_guest";
const TDX_PROVIDER: &str = "tdx_guest";
/// A quote has some 5 KB; the kernel allows 32.
const BLOB_MAX: u64 = 64 << 10;
const TEXT_MAX: usize = 64;
const NAMES_MAX: usize = 64;
const ATTEMPTS_MAX: usize = 5;
/// "No such device or address": no driver is registered.
const ENXIO: i32 = 6;
