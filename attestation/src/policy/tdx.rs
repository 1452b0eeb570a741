//! A TD that is authentic and on an up-to-date machine: is it the one that the policy wants?
//! docs/threat-model.md, section 4, "TDX".

use chrysalis_protocol::hash::sha384;
use chrysalis_protocol::statement::Statement;
use thiserror::Error;

use super::AppraisalPolicy;
use super::file::hex;
use crate::quote::td_attributes;
use crate::verifier::{INTEL_ROOT, TdxPlatformDemand, VerifiedQuote};

/// What a TDX machine and its guest have to be, beyond the rules that always hold.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct TdxDemand {
    /// What the machine has to be.
    pub machine: TdxPlatformDemand,
    /// `RTMR0`: the firmware's configuration; not empty.
    pub rtmr0: Vec<[u8; 48]>,
    /// `RTMR1`: the kernel; not empty.
    pub rtmr1: Vec<[u8; 48]>,
    /// `RTMR2`: its command line and initial file system; not empty.
    pub rtmr2: Vec<[u8; 48]>,
    /// `RTMR3`: what the enclave measured itself; not empty.
    pub rtmr3: Vec<Rtmr3>,
    /// TDX modules, `MRSEAM`; empty where any that Intel calls up to date will do.
    pub mr_seam: Vec<[u8; 48]>,
    /// Who signed the TDX module; all zeros is Intel.
    pub mr_signer_seam: [u8; 48],
    /// `MROWNER`; zeros unless the image's owner sets it.
    pub mr_owner: [u8; 48],
    /// `MROWNERCONFIG`; zeros unless the image's owner sets it.
    pub mr_owner_config: [u8; 48],
    /// The extended CPU features that a guest may have. x87 and SSE it always has.
    pub xfam_allowed: u64,
    /// Another root than Intel's, DER: for tests and simulators. A policy file cannot set it.
    pub dangerous_root: Option<Vec<u8>>,
}

/// A value of `RTMR3`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Rtmr3 {
    /// Extended once, with the digest of the package in the statement: a register only grows, so no
    /// second program can state another package.
    Package,
    /// This value.
    Value([u8; 48]),
}

/// Why an authentic TD is not wanted.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
#[non_exhaustive]
pub enum TdError {
    /// A bit of the attributes is not as demanded.
    #[error("{rule}: td_attributes are {value:#x}")]
    Attributes {
        /// The stable name of the refusal.
        code: &'static str,
        /// What is demanded.
        rule: &'static str,
        /// The attributes.
        value: u64,
    },
    /// A service TD is bound, and may change what the guest is.
    #[error("mr_service_td is {}, not zero", hex(found))]
    ServiceTd {
        /// Its hash.
        found: [u8; 48],
    },
    /// Features that the policy does not allow, or without x87 and SSE.
    #[error("xfam is {found:#x}; allowed is {allowed:#x}, with bits 0 and 1")]
    Xfam {
        /// `XFAM`.
        found: u64,
        /// The policy's mask.
        allowed: u64,
    },
    /// A register is not among the policy's values.
    #[error("{register} {} is not among the policy's {count}", hex(found))]
    Register {
        /// The stable name of the refusal.
        code: &'static str,
        /// Its name.
        register: &'static str,
        /// Its value.
        found: [u8; 48],
        /// How many values the policy has.
        count: usize,
    },
    /// The host launched the guest with another configuration than the statement names.
    #[error(
        "mr_config_id is {}, not the statement's launch_config_digest {} and 16 zeros",
        hex(found),
        hex(expected)
    )]
    ConfigId {
        /// `MRCONFIGID`.
        found: [u8; 48],
        /// The statement's digest.
        expected: [u8; 32],
    },
}

impl TdError {
    /// The stable name of this refusal.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Attributes { code, .. } | Self::Register { code, .. } => code,
            Self::ServiceTd { .. } => "tdx.service_td",
            Self::Xfam { .. } => "tdx.xfam",
            Self::ConfigId { .. } => "tdx.config_id",
        }
    }
}

impl TdxDemand {
    /// The root certificate that a quote is judged by.
    pub(super) fn root(&self) -> &[u8] {
        self.dangerous_root.as_deref().unwrap_or(INTEL_ROOT)
    }
}

/// Applies the rules, in order, to an authentic quote over `statement`.
pub(super) fn appraise(
    policy: &AppraisalPolicy,
    demand: &TdxDemand,
    quote: &VerifiedQuote,
    statement: &Statement,
) -> Result<(), TdError> {
    let report = quote.report();

    // 1. Attributes; those that no policy could allow, the verifier has refused.
    let value = report.td_attributes;
    if let Some(&(_, code, rule)) = ATTRIBUTES.iter().find(|&&(mask, ..)| value & mask != 0) {
        return Err(TdError::Attributes { code, rule, value });
    }
    if let Some(found) = report.later.map(|later| later.mr_service_td).filter(|hash| *hash != ZERO)
    {
        return Err(TdError::ServiceTd { found });
    }

    // 2. Features of the CPU that the guest may use.
    let (found, allowed) = (report.xfam, demand.xfam_allowed);
    if found & !(allowed | XFAM_FIXED) != 0 || found & XFAM_FIXED != XFAM_FIXED {
        return Err(TdError::Xfam { found, allowed });
    }

    // 3. The TDX module.
    let any_module = demand.mr_seam.is_empty();
    if !any_module {
        register("tdx.mr_seam", "mr_seam", report.mr_seam, &demand.mr_seam)?;
    }
    let signers = [demand.mr_signer_seam];
    register("tdx.mr_signer_seam", "mr_signer_seam", report.mr_signer_seam, &signers)?;

    // 4. The image, by what the module and the firmware measured.
    register("tdx.mr_td", "mr_td", report.mr_td, &policy.measurements)?;
    let [rtmr0, rtmr1, rtmr2, rtmr3] = report.rtmrs;
    register("tdx.rtmr0", "rtmr0", rtmr0, &demand.rtmr0)?;
    register("tdx.rtmr1", "rtmr1", rtmr1, &demand.rtmr1)?;
    register("tdx.rtmr2", "rtmr2", rtmr2, &demand.rtmr2)?;
    let package = package_rtmr(&statement.package_digest);
    let values: Vec<_> = demand
        .rtmr3
        .iter()
        .map(|value| match value {
            Rtmr3::Package => package,
            Rtmr3::Value(value) => *value,
        })
        .collect();
    register("tdx.rtmr3", "rtmr3", rtmr3, &values)?;

    // 5. Launched as the statement says, and by nobody else's wish.
    let (found, expected) = (report.mr_config_id, statement.launch_config_digest);
    if report.launch_config_digest() != Some(expected) {
        return Err(TdError::ConfigId { found, expected });
    }
    register("tdx.mr_owner", "mr_owner", report.mr_owner, &[demand.mr_owner])?;
    let owner_configs = [demand.mr_owner_config];
    register("tdx.mr_owner_config", "mr_owner_config", report.mr_owner_config, &owner_configs)
}

/// `RTMR3` of an enclave that extended it once, with the digest of its package.
#[must_use]
pub fn package_rtmr(package_digest: &[u8; 48]) -> [u8; 48] {
    sha384(&[&ZERO, package_digest])
}

fn register(
    code: &'static str,
    register: &'static str,
    found: [u8; 48],
    values: &[[u8; 48]],
) -> Result<(), TdError> {
    if values.contains(&found) {
        return Ok(());
    }
    Err(TdError::Register { code, register, found, count: values.len() })
}

/// Bits; code; the rule in words.
#[rustfmt::skip]
const ATTRIBUTES: [(u64, &str, &str); 5] = [
    (td_attributes::DEBUG, "tdx.debug", "no debugging by the host"),
    (td_attributes::PROFILING, "tdx.profiling", "no profiling by the host"),
    (td_attributes::SERVTD_EXT, "tdx.service_td", "no service TDs"),
    (td_attributes::TPA, "tdx.provisioning_agent", "no provisioning agent of TDX Connect"),
    (td_attributes::PERFMON, "tdx.perfmon", "no performance counters in the guest"),
];

const ZERO: [u8; 48] = [0; 48];
/// x87 and SSE state.
const XFAM_FIXED: u64 = 0b11;
/// What a policy allows that says nothing: AVX, AVX-512, PKRU, CET, user interrupts, AMX. Neither
/// processor tracing nor branch records, which show a guest's way to whoever configures them.
pub const XFAM_DEFAULT: u64 =
    XFAM_FIXED | 1 << 2 | 0b111 << 5 | 1 << 9 | 0b11 << 11 | 1 << 14 | 0b11 << 17;
