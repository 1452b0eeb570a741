//! Are the GPUs' reports authentic, made for this statement, and of published firmware? Step 8 of
//! docs/formats.md, section 1.6, up to what is a matter of taste ([`crate::policy`]).

mod ocsp;
mod rim;
mod topology;
mod wanted;
mod xml;

use chrysalis_protocol::gpu::{Device, GpuEndorsements, GpuSectionError};
use chrysalis_protocol::statement::{Statement, gpu_digest};
use thiserror::Error;

pub use ocsp::{OcspError, Status};
pub use rim::{Rim, RimError};
pub use topology::TopologyError;
pub use wanted::{WantedStatus, endorsements_of_use};
pub use xml::XmlError;

use crate::gpu::certificate::{Certificate, list};
use crate::gpu::{
    DeviceError, DeviceKind, GpuRoots, SetError, SpdmError, VerifiedDevice, set, verify_device,
};

/// Why the GPUs' evidence is not believed.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
#[non_exhaustive]
pub enum GpuError {
    /// The section's layout.
    #[error("the gpu evidence: {0}")]
    Section(GpuSectionError),
    /// The layout of what the host added.
    #[error("the gpu endorsements: {0}")]
    Endorsements(GpuSectionError),
    /// The evidence is not the statement's.
    #[error("the gpu evidence is not the one that the statement commits to")]
    Digest,
    /// A device's report is not authentic.
    #[error("device {index}: {error}")]
    Device {
        /// Counted from 0, in the order of the section.
        index: usize,
        /// Why.
        error: DeviceError,
    },
    /// The devices are not the stated ones.
    #[error(transparent)]
    Set(#[from] SetError),
    /// Links lead to what is not there.
    #[error(transparent)]
    Topology(#[from] TopologyError),
    /// A manifest is not believed.
    #[error("manifest {index}: {error}")]
    Rim {
        /// Counted from 0, in the order of the section.
        index: usize,
        /// Why.
        error: RimError,
    },
    /// A manifest is for nothing that is there.
    #[error("manifest {index}, of {product} {version}, is for none of the devices")]
    RimUnused {
        /// Counted from 0.
        index: usize,
        /// The chip that it is for.
        product: String,
        /// The version that it is for.
        version: String,
    },
    /// Two manifests expect something of the same measurement.
    #[error(
        "the manifests of driver and vbios of device {index} both have measurement {measurement}"
    )]
    RimOverlap {
        /// The device.
        index: usize,
        /// Counted from 0.
        measurement: usize,
    },
    /// Firmware or driver measure otherwise than the published ones.
    #[error("device {index} differs from its manifest {version} in measurements {differ:?}")]
    Measurements {
        /// The device.
        index: usize,
        /// The version that it states.
        version: String,
        /// Which ones, counted from 0.
        differ: Vec<usize>,
    },
    /// A certificate's status is not believed, or not good.
    #[error("certificate status {index}: {error}")]
    Ocsp {
        /// Counted from 0, in the order of the section.
        index: usize,
        /// Why.
        error: OcspError,
    },
    /// A status is of no certificate that is there.
    #[error("certificate status {index} is of none of the certificates")]
    OcspUnused {
        /// Counted from 0.
        index: usize,
    },
}

impl GpuError {
    /// The stable name of this refusal.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Section(_) => "gpu.layout",
            Self::Endorsements(_) => "gpu.endorsements",
            Self::Digest => "gpu.digest",
            Self::Device { error, .. } => error.code(),
            Self::Set(error) => error.code(),
            Self::Topology(error) => error.code(),
            Self::Rim { error, .. } => error.code(),
            Self::RimUnused { .. } => "gpu.rim.unused",
            Self::RimOverlap { .. } => "gpu.rim.overlap",
            Self::Measurements { .. } => "gpu.measurements",
            Self::Ocsp { error, .. } => error.code(),
            Self::OcspUnused { .. } => "gpu.ocsp.unused",
        }
    }
}

/// One device of a [`VerifiedGpus`], as its report and certificates have it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct DeviceFacts {
    /// GPU or switch.
    pub kind: DeviceKind,
    /// The chip, as manifests name it.
    pub chip: String,
    /// The device's number in NVIDIA's certificate.
    pub serial: String,
    /// The driver's version; a switch has none.
    pub driver: Option<String>,
    /// The VBIOS version.
    pub vbios: String,
    /// The name under which the driver's manifest is published; a switch has none.
    pub driver_manifest: Option<String>,
    /// The name under which the VBIOS' manifest is published, where the report says it.
    pub vbios_manifest: Option<String>,
    /// Whether a manifest of its driver was compared; a switch needs none.
    pub driver_compared: bool,
    /// Whether a manifest of its VBIOS was compared.
    pub vbios_compared: bool,
    /// Whether the report itself says which firmware made it. Drivers below 550 do not.
    pub fwid: bool,
    /// Whether it is in protected PCIe mode, where the report says so.
    pub ppcie: Option<bool>,
}

/// GPU evidence that is authentic and the statement's. [`verify_gpus`] is its only source.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct VerifiedGpus {
    devices: Vec<DeviceFacts>,
    without_status: Vec<WantedStatus>,
}

impl VerifiedGpus {
    /// GPUs in the statement's order, then switches.
    #[must_use]
    pub fn devices(&self) -> &[DeviceFacts] {
        &self.devices
    }

    /// The certificates that came without a status, of those that NVIDIA's responder knows: all
    /// but the roots and the attestation keys' own.
    #[must_use]
    pub fn without_status(&self) -> &[WantedStatus] {
        &self.without_status
    }
}

/// Verifies section 5 of a bundle, `evidence`, with section 0x83, at Unix time `now`.
///
/// # Errors
/// The first check that fails, in the order of the numbers in the source.
pub fn verify_gpus(
    evidence: &[u8],
    endorsements: Option<&[u8]>,
    statement: &Statement,
    roots: GpuRoots,
    now: u64,
) -> Result<VerifiedGpus, GpuError> {
    // 1. The evidence is the one that the statement commits to.
    if gpu_digest(evidence) != statement.gpu_digest {
        return Err(GpuError::Digest);
    }
    let entries = Device::parse_all(evidence).map_err(GpuError::Section)?;

    // 2. Each device is genuine, and reported for this statement.
    let nonce = statement.gpu_challenge();
    let device = |(index, entry)| {
        verify_device(entry, &nonce, roots, Some(now))
            .map_err(|error| GpuError::Device { index, error })
    };
    let devices = entries.iter().enumerate().map(device).collect::<Result<Vec<_>, _>>()?;

    // 3. As many GPUs as stated, then switches; none twice; one driver.
    set::check(&devices, statement.gpu_count)?;

    // 4. Links lead to the devices that are there.
    topology::check(&devices)?;

    // 5. Manifests: each is believed, each is for something, and what it is for matches.
    let endorsements = endorsements.map(GpuEndorsements::parse).transpose();
    let endorsements = endorsements.map_err(GpuError::Endorsements)?.unwrap_or_default();
    let rim = |(index, bytes): (usize, &&[u8])| {
        Rim::verify(bytes, roots, now).map_err(|error| GpuError::Rim { index, error })
    };
    let rims = endorsements.rims.iter().enumerate().map(rim).collect::<Result<Vec<_>, _>>()?;
    let mut facts = Vec::with_capacity(devices.len());
    for (index, device) in devices.iter().enumerate() {
        facts.push(compare(index, device, &rims)?);
    }
    let wanted = |rim: &Rim| {
        devices.iter().any(|device| {
            device.driver().into_iter().chain([device.vbios()]).any(|v| rim.is_for(device, v))
        })
    };
    if let Some((index, rim)) = rims.iter().enumerate().find(|(_, rim)| !wanted(rim)) {
        let (product, version) = (rim.product().to_owned(), rim.version().to_owned());
        return Err(GpuError::RimUnused { index, product, version });
    }

    // 6. Statuses: each is of one of the certificates, believed, and good.
    let without_status = statuses(&devices, &rims, &endorsements.statuses, now)?;
    Ok(VerifiedGpus { devices: facts, without_status })
}

/// Compares one device with the manifests of what it runs.
fn compare(
    index: usize,
    device: &VerifiedDevice<'_>,
    rims: &[Rim],
) -> Result<DeviceFacts, GpuError> {
    let broken = |error: SpdmError| GpuError::Device { index, error: error.into() };
    // Boards of different kinds share version numbers, so there may be several; one has to match.
    let matching = |version: &str| {
        let mut last = None;
        for rim in rims.iter().filter(|rim| rim.is_for(device, version)) {
            let (_, differ) = rim.compare(device).map_err(broken)?;
            if differ.is_empty() {
                return Ok(Some(rim));
            }
            last = Some(differ);
        }
        match last {
            None => Ok(None),
            Some(differ) => {
                Err(GpuError::Measurements { index, version: version.to_owned(), differ })
            }
        }
    };
    let driver = device.driver().map_or(Ok(None), matching)?;
    let vbios = matching(device.vbios())?;
    if let (Some(driver), Some(vbios)) = (driver, vbios)
        && let Some(measurement) = driver.overlap(vbios)
    {
        return Err(GpuError::RimOverlap { index, measurement });
    }
    let report = &device.report;
    Ok(DeviceFacts {
        kind: device.kind(),
        chip: device.chip().to_owned(),
        serial: device.serial().to_owned(),
        driver: device.driver().map(str::to_owned),
        vbios: device.vbios().to_owned(),
        driver_manifest: wanted::driver_manifest(device),
        vbios_manifest: wanted::vbios_manifest(device),
        driver_compared: driver.is_some() || device.kind() == DeviceKind::Switch,
        vbios_compared: vbios.is_some(),
        fwid: report.fwid().map_err(broken)?.is_some(),
        ppcie: report.ppcie().map_err(broken)?,
    })
}

/// The certificates without a status.
fn statuses(
    devices: &[VerifiedDevice<'_>],
    rims: &[Rim],
    statuses: &[&[u8]],
    now: u64,
) -> Result<Vec<WantedStatus>, GpuError> {
    let at = |index| move |error| GpuError::Ocsp { index, error };
    let mut parsed = Vec::with_capacity(statuses.len());
    for (index, bytes) in statuses.iter().enumerate() {
        parsed.push(Status::parse(bytes).map_err(at(index))?);
    }
    // A certificate and its issuer. NVIDIA's responder knows no attestation keys: a device makes
    // and certifies those itself.
    let mut pairs: Vec<(Certificate<'_>, Certificate<'_>)> = Vec::new();
    let chains = devices.iter().map(|device| (1, device.chain.certificates().to_vec()));
    let chains = chains.chain(rims.iter().map(|rim| (0, list(&rim.chain).unwrap_or_default())));
    for (first, chain) in chains {
        for (certificate, issuer) in chain.iter().zip(chain.iter().skip(1)).skip(first) {
            if !pairs.iter().any(|(known, _)| known.der == certificate.der) {
                pairs.push((*certificate, *issuer));
            }
        }
    }
    let mut stated = vec![false; pairs.len()];
    for (index, status) in parsed.iter().enumerate() {
        let about = pairs
            .iter()
            .zip(&mut stated)
            .find(|((certificate, issuer), _)| status.is_about(certificate, issuer));
        let Some(((_, issuer), stated)) = about else {
            return Err(GpuError::OcspUnused { index });
        };
        status.check(issuer, now).map_err(at(index))?;
        *stated = true;
    }
    let missing = pairs.iter().zip(&stated).filter(|(_, stated)| !**stated);
    Ok(missing.map(|((certificate, issuer), _)| WantedStatus::of(certificate, issuer)).collect())
}
