//! The evidence of one GPU or NVLink switch: report, certificates, nonce (docs/formats.md, 1.4).
//!
//! [`verify_device`] is what the enclave asks before it lets a GPU see anything, and what a client
//! asks first of all. What only a client judges, with manifests, certificate status and its own
//! clock, is in `verifier::gpu`.
#![cfg_attr(
    not(feature = "verifier"),
    expect(dead_code, reason = "the enclave compares no measurements and reads no status")
)]

pub(crate) mod certificate;
pub(crate) mod der;
pub(crate) mod pem;
pub(crate) mod set;
mod spdm;

use aws_lc_rs::signature::{ECDSA_P384_SHA384_FIXED, UnparsedPublicKey};
use chrysalis_protocol::gpu::Device;
use thiserror::Error;

pub use certificate::ChainError;
use certificate::{Certificate, Chain, Pinned};
pub use pem::chain_from_pem;
pub use set::SetError;
pub(crate) use spdm::Report;
pub use spdm::SpdmError;

/// Which pinned roots a device's certificates have to lead to.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum GpuRoots {
    /// NVIDIA's: a report under them was made by a genuine device.
    Nvidia,
    /// This project's published key: a report under it proves nothing.
    Simulated,
}

impl GpuRoots {
    pub(crate) const fn device(self) -> Pinned {
        match self {
            Self::Nvidia => Pinned { name: "NVIDIA Device Identity CA", der: NVIDIA_DEVICE_ROOT },
            Self::Simulated => SIMULATED_GPU_ROOT,
        }
    }

    /// The root of manifests.
    #[cfg(feature = "verifier")]
    pub(crate) const fn rim(self) -> Pinned {
        match self {
            Self::Nvidia => Pinned { name: "NVIDIA CoRIM signing Root CA", der: NVIDIA_RIM_ROOT },
            Self::Simulated => SIMULATED_GPU_ROOT,
        }
    }
}

/// Why a device's report is not authentic.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
#[non_exhaustive]
pub enum DeviceError {
    /// The report is not well formed.
    #[error(transparent)]
    Report(#[from] SpdmError),
    /// The report is over another nonce: made for another statement, or before.
    #[error("the report is over the nonce {found:02x?}, not {expected:02x?}")]
    Nonce {
        /// In the report.
        found: [u8; 32],
        /// Of the statement.
        expected: [u8; 32],
    },
    /// The certificates do not vouch for the key.
    #[error(transparent)]
    Chain(#[from] ChainError),
    /// The subject of the device's certificate does not name a device.
    #[error("the device's certificate names no device")]
    Name,
    /// The device's certificate names neither a GPU nor a switch.
    #[error("the certified device is a {chip}, neither a gpu nor an nvlink switch")]
    Kind {
        /// What it names.
        chip: String,
    },
    /// The certified key did not sign the report.
    #[error("the certified key did not sign the report")]
    Signature,
    /// The certificate of the attestation key does not say which firmware holds it.
    #[error("the attestation key's certificate has no firmware id")]
    FwidMissing,
    /// The firmware id in the certificate is of another device's key.
    #[error("the attestation key's firmware id is vouched for by another key than the device's")]
    FwidDevice,
    /// The report is of other firmware than the certificate.
    #[error(
        "the certificate is for the firmware {certificate:02x?}, the report is of {report:02x?}"
    )]
    Fwid {
        /// In the certificate.
        certificate: [u8; 48],
        /// In the report.
        report: [u8; 48],
    },
}

impl DeviceError {
    /// The stable name of this refusal.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Report(_) => "gpu.report.layout",
            Self::Nonce { .. } => "gpu.report.nonce",
            Self::Chain(error) => match error {
                ChainError::Der { .. } => "gpu.certificate.der",
                ChainError::Length { .. } => "gpu.certificate.length",
                ChainError::Root { .. } => "gpu.certificate.root",
                ChainError::CriticalExtension { .. } => "gpu.certificate.critical_extension",
                ChainError::Issuer { .. } => "gpu.certificate.issuer",
                ChainError::Signature { .. } => "gpu.certificate.signature",
                ChainError::Authority { .. } => "gpu.certificate.authority",
                ChainError::Leaf => "gpu.certificate.leaf",
                ChainError::Validity { .. } => "gpu.certificate.validity",
            },
            Self::Name => "gpu.certificate.name",
            Self::Kind { .. } => "gpu.certificate.kind",
            Self::Signature => "gpu.report.signature",
            Self::FwidMissing => "gpu.certificate.fwid",
            Self::FwidDevice => "gpu.certificate.fwid_device",
            Self::Fwid { .. } => "gpu.report.fwid",
        }
    }
}

/// What kind of device a report is of.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum DeviceKind {
    /// A GPU.
    Gpu,
    /// An NVLink switch.
    Switch,
}

/// A device whose report and certificates are good. [`verify_device`] is its only source.
///
/// Good means: made by firmware of a device that NVIDIA vouches for, over the expected nonce.
/// Whether that firmware is the published one, the manifests say.
#[derive(Clone, Debug)]
pub struct VerifiedDevice<'a> {
    pub(crate) report: Report<'a>,
    pub(crate) chain: Chain<'a>,
    kind: DeviceKind,
    chip: String,
    serial: &'a str,
    vbios: String,
    driver: Option<String>,
}

impl<'a> VerifiedDevice<'a> {
    /// GPU or switch.
    #[must_use]
    pub const fn kind(&self) -> DeviceKind {
        self.kind
    }

    /// The chip, as manifests name it: `GH100`, `LS10`.
    #[must_use]
    pub fn chip(&self) -> &str {
        &self.chip
    }

    /// The device's number in NVIDIA's certificate.
    #[must_use]
    pub const fn serial(&self) -> &'a str {
        self.serial
    }

    /// The VBIOS version, `96.00.9F.00.01`.
    #[must_use]
    pub fn vbios(&self) -> &str {
        &self.vbios
    }

    /// Whether `other` is the same device, or claims the same attestation key.
    #[must_use]
    pub fn same_device(&self, other: &VerifiedDevice<'_>) -> bool {
        let pairs = self.chain.certificates().iter().zip(other.chain.certificates());
        self.serial == other.serial
            || pairs.take(2).any(|(ours, theirs)| ours.point == theirs.point)
    }

    /// The driver's version, `550.90.07`; a switch has none.
    #[must_use]
    pub fn driver(&self) -> Option<&str> {
        self.driver.as_deref()
    }
}

/// Verifies the evidence of one device over `nonce`, at Unix time `now`. Only the enclave has no
/// time: its clock is the host's.
///
/// # Errors
/// The first check that fails, in the order of the numbers in the source.
pub fn verify_device<'a>(
    evidence: &Device<'a>,
    nonce: &[u8; 32],
    roots: GpuRoots,
    now: Option<u64>,
) -> Result<VerifiedDevice<'a>, DeviceError> {
    // 1. Layout.
    let report = Report::parse(evidence.report)?;

    // 2. "nonce equality": made for this statement.
    if report.nonce != *nonce {
        return Err(DeviceError::Nonce { found: report.nonce, expected: *nonce });
    }

    // 3. "chain to NVIDIA's pinned root": the attestation key is one of a genuine device, which the
    // second certificate names.
    let chain = certificate::verify(evidence.chain, roots.device(), now)?;
    let [key, device, ..] = chain.certificates() else {
        return Err(DeviceError::Name);
    };
    let (key, device) = (*key, *device);
    let serial = device.device_serial().ok_or(DeviceError::Name)?;

    // 4. "ECDSA P-384 over request(37 B) || response up to the 96-byte signature". (r, n - s)
    // verifies as well, so the bytes of a report identify nothing.
    UnparsedPublicKey::new(&ECDSA_P384_SHA384_FIXED, key.point)
        .verify(report.signed, report.signature)
        .map_err(|_| DeviceError::Signature)?;

    // 5. "FWID match": the device vouched for this key in this firmware.
    let fwid = key.fwid.ok_or(DeviceError::FwidMissing)?;
    if fwid.device != device.point {
        return Err(DeviceError::FwidDevice);
    }
    if let Some(found) = report.fwid()?
        && found != *fwid.digest
    {
        return Err(DeviceError::Fwid { certificate: *fwid.digest, report: found });
    }

    let Runs { kind, chip, vbios, driver } = Runs::of(&report, &device)?;
    Ok(VerifiedDevice { report, chain, kind, chip, serial, vbios, driver })
}

/// What a device is and what it runs, as its report and its certificate say.
pub(crate) struct Runs {
    pub(crate) kind: DeviceKind,
    pub(crate) chip: String,
    pub(crate) vbios: String,
    pub(crate) driver: Option<String>,
}

impl Runs {
    /// `device` is the second certificate of the chain.
    pub(crate) fn of(report: &Report<'_>, device: &Certificate<'_>) -> Result<Self, DeviceError> {
        let name = device.common_name().and_then(|name| name.split(' ').next());
        let chip: String = name.ok_or(DeviceError::Name)?.chars().filter(|c| *c != '_').collect();
        // NVIDIA's root certifies more than GPUs and switches.
        let (kind, driver) = match chip.as_bytes() {
            [b'G', ..] => (DeviceKind::Gpu, Some(report.driver()?)),
            [b'L', b'S', ..] => (DeviceKind::Switch, None),
            _ => return Err(DeviceError::Kind { chip }),
        };
        Ok(Self { kind, chip, vbios: report.vbios()?, driver })
    }
}

const NVIDIA_DEVICE_ROOT: &[u8] = include_bytes!("../roots/nvidia/device_root.der");
#[cfg(feature = "verifier")]
const NVIDIA_RIM_ROOT: &[u8] = include_bytes!("../roots/nvidia/rim_root.der");
const SIMULATED_GPU_ROOT: Pinned =
    Pinned { name: "simulated GPU root", der: include_bytes!("../roots/simulated/gpu_root.der") };
