//! Produces evidence inside the enclave (RFC 9334: the attester). docs/attestation.md.
//!
//! One trait: 64 bytes of `report_data` in, a platform report and its endorsements out. What those
//! bytes commit to is the caller's matter (`chrysalis_protocol::statement`).

mod choice;
#[cfg(feature = "gpu")]
pub mod gpu;
#[cfg(feature = "gpu")]
mod nvml;
#[cfg(feature = "sev-ioctl")]
mod sev_guest;
pub mod simulated;
pub mod tsm;

use std::path::PathBuf;

use chrysalis_protocol::statement::{GpuFlags, Statement, Tee};
use thiserror::Error;

pub use choice::{Choice, Interfaces};

/// Bundle type of a VCEK or VLEK certificate in DER (formats.md 1.5).
pub const ENDORSEMENT_VCEK: u16 = 0x81;
/// Bundle type of TDX collateral (formats.md 1.6).
pub const ENDORSEMENT_TDX_COLLATERAL: u16 = 0x82;

/// A platform's report over 64 bytes, and the certificates that vouch for it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Evidence {
    /// The platform's report: 1,184 bytes for SEV-SNP, a quote for TDX.
    pub report: Vec<u8>,
    /// Certificates and collateral by their bundle type, 0x81 and above, ascending.
    pub endorsements: Vec<(u16, Vec<u8>)>,
}

/// Something that makes evidence.
pub trait Attester: Send {
    /// The platform.
    fn tee(&self) -> Tee;

    /// A report whose `report_data` is `report_data`.
    ///
    /// # Errors
    /// The platform did not make one.
    fn attest(&mut self, report_data: &[u8; 64]) -> Result<Evidence, AttesterError>;

    /// The GPUs' evidence over a statement's challenge, where the enclave has any.
    ///
    /// # Errors
    /// A GPU did not prove itself: there must be no statement then.
    fn attest_gpus(&mut self, _challenge: &[u8; 32]) -> Result<Option<GpuEvidence>, AttesterError> {
        Ok(None)
    }

    /// What the host gave with the launch, by this guest's own report: `HOST_DATA`, or the first 32
    /// bytes of `MRCONFIGID`.
    ///
    /// # Errors
    /// The platform made no report, or `MRCONFIGID` is not 32 bytes and zeros.
    fn launch_config_digest(&mut self) -> Result<[u8; 32], AttesterError>;

    /// Extends the register that is the guest's own with the package's digest, where the platform
    /// has one; whether it has.
    ///
    /// # Errors
    /// It has, and did not take it.
    fn measure_package(&mut self, _package_digest: &[u8; 48]) -> Result<bool, AttesterError> {
        Ok(false)
    }
}

/// What the GPUs gave for one statement.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct GpuEvidence {
    /// Section 5 of the bundle.
    pub section: Vec<u8>,
    /// For the statement.
    pub digest: [u8; 48],
    /// For the statement.
    pub count: u16,
    /// For the statement.
    pub flags: GpuFlags,
}

/// Evidence for a statement, which commits to the GPUs' part of it from now on.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Attested {
    /// The platform's report over the statement, with the GPUs' digest in it.
    pub evidence: Evidence,
    /// Section 5 of the bundle, where there are GPUs.
    pub gpus: Option<Vec<u8>>,
}

/// Has first the GPUs and then the platform attest `statement` (docs/formats.md, 1.4): the GPUs
/// sign a challenge made of all other fields, and the platform signs what they gave.
///
/// # Errors
/// The attester's: without evidence there is no statement.
pub fn attest_statement(
    attester: &mut dyn Attester,
    statement: &mut Statement,
) -> Result<Attested, AttesterError> {
    let gpus = attester.attest_gpus(&statement.gpu_challenge())?;
    if let Some(gpus) = &gpus {
        statement.gpu_digest = gpus.digest;
        statement.gpu_count = gpus.count;
        statement.gpu_flags = gpus.flags;
    }
    let evidence = attester.attest(&statement.report_data().to_bytes())?;
    Ok(Attested { evidence, gpus: gpus.map(|gpus| gpus.section) })
}

/// Why no evidence was made.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
#[non_exhaustive]
pub enum AttesterError {
    /// The simulated platform's key is not a P-384 key in PKCS#8.
    #[error("the simulated platform's key is not a P-384 key in PKCS#8")]
    Key,
    /// The GPUs did not prove themselves.
    #[cfg(feature = "gpu")]
    #[error("the gpus: {0}")]
    Gpu(#[from] gpu::GpuGateError),
    /// The signature could not be made.
    #[error("the report could not be signed")]
    Sign,
    /// No sign of a confidential VM.
    #[error(
        "this machine shows no confidential VM (neither {} nor /dev/sev-guest or /dev/tdx_guest); \
         `--attester simulated` runs anywhere and proves nothing",
        root.display()
    )]
    NoPlatform {
        /// Where reports would be asked for.
        root: PathBuf,
    },
    /// The kernel has no interface for reports.
    #[error(
        "{} is not there: mount configfs (`mount -t configfs none /sys/kernel/config`), and load \
         the driver of a kernel of 6.7 or later (CONFIG_TSM_REPORTS with CONFIG_SEV_GUEST or \
         CONFIG_TDX_GUEST_DRIVER)",
        root.display()
    )]
    NoInterface {
        /// Where it would be.
        root: PathBuf,
    },
    /// The interface is there, and nobody behind it.
    #[error(
        "{} has no provider: load `sev-guest` (CONFIG_SEV_GUEST) or `tdx-guest` \
         (CONFIG_TDX_GUEST_DRIVER); outside a confidential VM neither loads",
        root.display()
    )]
    NoDriver {
        /// The interface.
        root: PathBuf,
    },
    /// Only root may.
    #[error("no permission for {}: run as root of the guest", path.display())]
    Privilege {
        /// What was touched.
        path: PathBuf,
    },
    /// Another platform than the one that was asked for.
    #[error("the provider is {found:?}, not {expected}")]
    Provider {
        /// Its name.
        found: String,
        /// The names that are known.
        expected: &'static str,
    },
    /// The platform that was asked for is not this one.
    #[error("this guest runs on {found:?}, not on {wanted:?}")]
    OtherPlatform {
        /// The platform.
        found: Tee,
        /// The one that was asked for.
        wanted: Tee,
    },
    /// All names that were tried are taken.
    #[error("{} is full of entries that earlier processes left behind: remove them", root.display())]
    Entries {
        /// The interface.
        root: PathBuf,
    },
    /// An operation on the interface failed.
    #[error("could not {what} {}: {reason}", path.display())]
    Interface {
        /// The operation.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's reason.
        reason: String,
    },
    /// An attribute has another form than the interface's.
    #[error("{} is {found:?}, which is no number that it can be", path.display())]
    Attribute {
        /// The attribute.
        path: PathBuf,
        /// What it says.
        found: String,
    },
    /// Somebody else writes to our entries.
    #[error("another process of this guest wrote to the same entry in each of {attempts} attempts")]
    Disturbed {
        /// How often it was tried.
        attempts: usize,
    },
    /// The platform's bytes are no report that a verifier would take.
    #[error("the platform gave no usable report: {reason}")]
    Report {
        /// What is wrong with it.
        reason: String,
    },
    /// The platform's report is over other bytes.
    #[error("the platform gave a report over other bytes than those that were asked for")]
    OtherReport,
    /// `MRCONFIGID` is no launch config's digest.
    #[error("mr_config_id is not 32 bytes and 16 zeros: the host launched with something else")]
    ConfigId,
}
