//! Step 8: what a policy demands of GPUs, as a table of its file and as rules.

use chrysalis_protocol::bundle::Bundle;
use chrysalis_protocol::statement::Statement;
use serde::Deserialize;
use thiserror::Error;

use super::file::{Out, PolicyError, quoted, required};
use super::{AppraisalPolicy, Rejection};
use crate::gpu::GpuRoots;
use crate::verifier::Roots;
use crate::verifier::gpu::{DeviceFacts, VerifiedGpus, verify_gpus};

/// What the enclave's GPUs have to be, beyond the rules that always hold.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct GpuDemand {
    /// How many there are.
    pub count: u16,
    /// Drivers that are accepted; empty where any that NVIDIA vouches for is.
    pub drivers: Vec<String>,
    /// VBIOS versions that are accepted, of GPUs and switches; empty as above.
    pub vbios: Vec<String>,
    /// Whether driver and VBIOS have to be compared with NVIDIA's manifests.
    pub require_rims: bool,
    /// Whether every certificate has to come with a good status.
    pub require_ocsp: bool,
    /// Whether GPUs in protected PCIe mode are accepted, which isolates several Hoppers together.
    pub allow_ppcie: bool,
    /// Whether links between GPUs may carry plaintext.
    pub allow_nvlink_clear: bool,
}

/// Why GPUs that are authentic are not good enough, or not accepted at all.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
#[non_exhaustive]
pub enum GpuDemandError {
    /// The policy has no table for GPUs, and there are some.
    #[error("{count} gpus are stated, and the policy has no [gpu] table that accepts any")]
    NotAccepted {
        /// The statement's number.
        count: u16,
    },
    /// Another number.
    #[error("{found} gpus are stated, not {expected}")]
    Count {
        /// The statement's number.
        found: u16,
        /// The policy's.
        expected: u16,
    },
    /// The bundle has evidence of no GPU.
    #[error("the bundle has no gpu evidence (section 5)")]
    EvidenceMissing,
    /// The bundle has evidence of GPUs that are not stated.
    #[error("the bundle has gpu evidence, and the statement no gpus")]
    EvidenceUnstated,
    /// The enclave does not state that confidential computing is on.
    #[error("confidential computing is not stated to be on")]
    CcOff,
    /// Protected PCIe.
    #[error("the gpus are in protected pcie mode; allow_ppcie is false")]
    Ppcie,
    /// Plaintext on NVLink.
    #[error("links between gpus carry plaintext; allow_nvlink_clear is false")]
    NvlinkClear,
    /// Several GPUs in protected PCIe mode, and links that are said to be encrypted.
    #[error("links between gpus in protected pcie mode carry plaintext, and that is not stated")]
    NvlinkUnstated,
    /// A report says otherwise than the statement about protected PCIe.
    #[error("gpu {index} reports protected pcie {report:?}, the statement has {stated}")]
    PpcieMismatch {
        /// Counted from 0.
        index: usize,
        /// In the report, if it says anything.
        report: Option<bool>,
        /// In the statement.
        stated: bool,
    },
    /// The report does not say which firmware made it.
    #[error("device {index} does not report its firmware id; its driver or vbios is too old")]
    FwidMissing {
        /// Counted from 0.
        index: usize,
    },
    /// A driver that is not listed.
    #[error("gpu {index} runs driver {found}, which the policy does not list")]
    Driver {
        /// Counted from 0.
        index: usize,
        /// Its driver.
        found: String,
    },
    /// A VBIOS that is not listed.
    #[error("device {index} has vbios {found}, which the policy does not list")]
    Vbios {
        /// Counted from 0.
        index: usize,
        /// Its VBIOS.
        found: String,
    },
    /// No manifest was given.
    #[error(
        "there is no manifest of the {what} of device {index}: give {name}, as NVIDIA publishes it, \
         with --endorsements"
    )]
    RimMissing {
        /// Counted from 0.
        index: usize,
        /// `driver` or `vbios`.
        what: &'static str,
        /// The name under which NVIDIA publishes it.
        name: String,
    },
    /// Certificates without a status.
    #[error(
        "{} certificates of gpus and manifests came without a status: {}; give OCSP responses with \
         --endorsements (verify --wanted writes the requests)",
        certificates.len(),
        certificates.join(", ")
    )]
    OcspMissing {
        /// Whose they are, with their serial numbers.
        certificates: Vec<String>,
    },
}

impl GpuDemandError {
    /// The stable name of this refusal.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::NotAccepted { .. } => "gpu.not_accepted",
            Self::Count { .. } => "gpu.count",
            Self::EvidenceMissing => "gpu.evidence_missing",
            Self::EvidenceUnstated => "gpu.evidence_unstated",
            Self::CcOff => "gpu.cc_off",
            Self::Ppcie => "gpu.ppcie",
            Self::NvlinkClear => "gpu.nvlink_clear",
            Self::NvlinkUnstated => "gpu.nvlink_unstated",
            Self::PpcieMismatch { .. } => "gpu.ppcie_mismatch",
            Self::FwidMissing { .. } => "gpu.fwid_missing",
            Self::Driver { .. } => "gpu.driver",
            Self::Vbios { .. } => "gpu.vbios",
            Self::RimMissing { .. } => "gpu.rim.missing",
            Self::OcspMissing { .. } => "gpu.ocsp.missing",
        }
    }
}

/// Step 8: number, flags, evidence, and what the evidence says.
pub(super) fn appraise(
    policy: &AppraisalPolicy,
    bundle: &Bundle<'_>,
    statement: &Statement,
    roots: Roots,
    now: u64,
) -> Result<Option<VerifiedGpus>, Rejection> {
    let count = statement.gpu_count;
    let Some(demand) = &policy.gpu else {
        return match (count, bundle.gpu) {
            (0, None) => Ok(None),
            (0, Some(_)) => Err(GpuDemandError::EvidenceUnstated.into()),
            _ => Err(GpuDemandError::NotAccepted { count }.into()),
        };
    };
    demand.flags(statement)?;
    let evidence = bundle.gpu.ok_or(GpuDemandError::EvidenceMissing)?;
    // A simulated enclave has simulated GPUs: NVIDIA's keys never stand behind one that proves
    // nothing, and the published key never behind one that proves something.
    let roots = if roots == Roots::Simulated { GpuRoots::Simulated } else { GpuRoots::Nvidia };
    let gpus = verify_gpus(evidence, bundle.endorsements.gpu_rim, statement, roots, now)?;
    for (index, device) in gpus.devices().iter().enumerate() {
        demand.device(index, device, statement.gpu_flags.ppcie)?;
    }
    if demand.require_ocsp && !gpus.without_status().is_empty() {
        let missing = gpus.without_status().iter();
        let certificates = missing.map(|wanted| wanted.certificate.clone()).collect();
        return Err(GpuDemandError::OcspMissing { certificates }.into());
    }
    Ok(Some(gpus))
}

impl GpuDemand {
    /// What the statement says of all GPUs together.
    fn flags(&self, statement: &Statement) -> Result<(), GpuDemandError> {
        let (found, expected) = (statement.gpu_count, self.count);
        if found != expected {
            return Err(GpuDemandError::Count { found, expected });
        }
        let flags = statement.gpu_flags;
        if flags.ppcie && !self.allow_ppcie {
            return Err(GpuDemandError::Ppcie);
        }
        // Protected PCIe is a mode of its own, in which the other one is off.
        if !flags.cc_on && !flags.ppcie {
            return Err(GpuDemandError::CcOff);
        }
        if flags.nvlink_clear && !self.allow_nvlink_clear {
            return Err(GpuDemandError::NvlinkClear);
        }
        if flags.ppcie && found > 1 && !flags.nvlink_clear {
            return Err(GpuDemandError::NvlinkUnstated);
        }
        Ok(())
    }

    /// What one device's report says.
    fn device(
        &self,
        index: usize,
        device: &DeviceFacts,
        stated: bool,
    ) -> Result<(), GpuDemandError> {
        if !device.fwid {
            return Err(GpuDemandError::FwidMissing { index });
        }
        let listed = |list: &[String], found: &str| {
            list.is_empty() || list.iter().any(|entry| entry.eq_ignore_ascii_case(found))
        };
        if !listed(&self.vbios, &device.vbios) {
            return Err(GpuDemandError::Vbios { index, found: device.vbios.clone() });
        }
        if let Some(driver) = &device.driver {
            if device.ppcie != Some(stated) {
                let report = device.ppcie;
                return Err(GpuDemandError::PpcieMismatch { index, report, stated });
            }
            if !listed(&self.drivers, driver) {
                return Err(GpuDemandError::Driver { index, found: driver.clone() });
            }
            if self.require_rims && !device.driver_compared {
                let name = device.driver_manifest.clone().unwrap_or_default();
                return Err(GpuDemandError::RimMissing { index, what: "driver", name });
            }
        }
        if self.require_rims && !device.vbios_compared {
            let version = || format!("{} {}", device.chip, device.vbios);
            let name = device.vbios_manifest.clone().unwrap_or_else(version);
            return Err(GpuDemandError::RimMissing { index, what: "vbios", name });
        }
        Ok(())
    }

    pub(super) fn write(&self, out: &mut Out) {
        out.say("\n# GPUs. Without this table an enclave that has any is refused.\n[gpu]");
        out.say("# How many there are.");
        out.key("count", self.count);
        out.say("# Versions that are accepted; with an empty list, all that NVIDIA signed.");
        let list = |values: &[String]| {
            let values: Vec<String> = values.iter().map(|value| quoted(value)).collect();
            format!("[{}]", values.join(", "))
        };
        out.key("drivers", list(&self.drivers));
        out.key("vbios", list(&self.vbios));
        out.say("# Firmware and driver must measure as NVIDIA's signed manifests say.");
        out.key("require_rims", self.require_rims);
        out.say("# Every certificate must come with NVIDIA's word that it was not revoked.");
        out.key("require_ocsp", self.require_ocsp);
        out.say("# Several Hoppers together run in protected PCIe mode, and their links in clear:");
        out.say("# whoever has a probe on the board reads what passes between them.");
        out.key("allow_ppcie", self.allow_ppcie);
        out.key("allow_nvlink_clear", self.allow_nvlink_clear);
    }
}

/// The table as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct GpuFile {
    count: Option<u16>,
    drivers: Option<Vec<String>>,
    vbios: Option<Vec<String>>,
    require_rims: Option<bool>,
    require_ocsp: Option<bool>,
    allow_ppcie: Option<bool>,
    allow_nvlink_clear: Option<bool>,
}

impl GpuFile {
    pub(super) fn check(self) -> Result<GpuDemand, PolicyError> {
        let count = required(self.count, "gpu.count", "count = 1, or more")?;
        if count == 0 {
            let (key, value) = ("gpu.count", "0".to_owned());
            let expected = "at least 1; leave the table out where there is no gpu".to_owned();
            return Err(PolicyError::Value { key, value, expected });
        }
        Ok(GpuDemand {
            count,
            drivers: required(self.drivers, "gpu.drivers", "drivers = [\"<version>\"], or []")?,
            vbios: required(self.vbios, "gpu.vbios", "vbios = [\"<version>\"], or []")?,
            require_rims: required(self.require_rims, "gpu.require_rims", "require_rims = true")?,
            require_ocsp: required(self.require_ocsp, "gpu.require_ocsp", "require_ocsp = true")?,
            allow_ppcie: required(self.allow_ppcie, "gpu.allow_ppcie", "allow_ppcie = false")?,
            allow_nvlink_clear: required(
                self.allow_nvlink_clear,
                "gpu.allow_nvlink_clear",
                "allow_nvlink_clear = false",
            )?,
        })
    }
}
