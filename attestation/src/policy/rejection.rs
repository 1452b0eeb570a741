//! Why an enclave is refused: the step that failed first, under a name that never changes.

use chrysalis_protocol::bundle::BundleError;
use chrysalis_protocol::codec::CodecError;
use chrysalis_protocol::freshness::FreshnessError;
use chrysalis_protocol::statement::{Kind, StatementError, Tee};
use thiserror::Error;

use super::file::hex;
use super::{GpuDemandError, PlatformError, SignedFileError, TdError};
use crate::verifier::gpu::GpuError;
use crate::verifier::{HardwareId, TdxError, VerifyError};

/// Why an enclave is refused. [`Self::step`] is the step of docs/formats.md, section 1.6;
/// [`Self::code`] is stable and meant for programs.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
#[non_exhaustive]
pub enum Rejection {
    /// Step 1: the sections of the bundle.
    #[error("the bundle's framing: {0}")]
    Bundle(#[from] BundleError),
    /// Step 2: the statement's layout.
    #[error("the statement: {0}")]
    Statement(StatementError),
    /// Step 2: the statement is for another purpose.
    #[error("the statement's kind is {found:?}, not {expected:?}")]
    Kind {
        /// Its kind.
        found: Kind,
        /// The kind that was asked for.
        expected: Kind,
    },
    /// Step 2: a simulated platform, which the policy does not accept.
    #[error("the platform is simulated, which proves nothing; allow_simulated is false")]
    Simulated,
    /// Step 2: a platform that the policy does not speak of.
    #[error("evidence of {tee:?} is not accepted: the policy has no table for it")]
    Tee {
        /// The platform.
        tee: Tee,
    },
    /// Step 2: a debug build of the runtime.
    #[error("the runtime is a debug build")]
    DebugBuild,
    /// Step 3: the report is too short to hold report data, or they are no report data of ours.
    #[error("report_data: {0}")]
    ReportData(StatementError),
    /// Step 3: the report commits to something else.
    #[error("report_data commits to another {field} than the statement's")]
    ReportDataMismatch {
        /// `kind`, `epoch` or `digest`.
        field: &'static str,
    },
    /// Step 4: no certificate of the signing key.
    #[error("the bundle has no certificate of the report's signing key (section 0x81)")]
    EndorsementMissing,
    /// Step 4: the report is not authentic.
    #[error(transparent)]
    Evidence(#[from] VerifyError),
    /// Step 4: the platform is authentic, and not good enough.
    #[error(transparent)]
    Platform(#[from] PlatformError),
    /// Step 4: no collateral for a TDX quote.
    #[error("the bundle has no TDX collateral (section 0x82)")]
    CollateralMissing,
    /// Step 4: the quote is not authentic, or its machine not up to date.
    #[error(transparent)]
    Quote(#[from] TdxError),
    /// Step 4: the TD is authentic, and not one that is wanted.
    #[error(transparent)]
    Td(#[from] TdError),
    /// Step 5: a section is not the one whose digest the statement has.
    #[error("the {section} is not the one that the statement commits to")]
    Digest {
        /// `key_config`, `policy`, `package` or `content`.
        section: &'static str,
    },
    /// Step 5: a section's layout.
    #[error("the {section}: {reason}")]
    Layout {
        /// `key_config`, `policy` or `package`.
        section: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// Step 5: the sealing key is of another epoch than the statement.
    #[error("the sealing key is of epoch {found}, the statement of epoch {expected}")]
    KeyEpoch {
        /// The key configuration's epoch.
        found: u32,
        /// The statement's.
        expected: u32,
    },
    /// Step 5: the package has another security version than the statement says.
    #[error("the package's security version is {found}, the statement's {expected}")]
    PackageSvn {
        /// The package's version.
        found: u32,
        /// The statement's.
        expected: u32,
    },
    /// Step 6: the enclave serves otherwise than the policy demands.
    #[error("the attested serving policy's {field} is not within the demand")]
    Serving {
        /// The field of the serving policy.
        field: &'static str,
    },
    /// Step 7: another model.
    #[error("content digest {} is not among the policy's {count}", hex(found))]
    Model {
        /// The attested content digest.
        found: [u8; 48],
        /// How many the policy has.
        count: usize,
    },
    /// Step 7: an old model.
    #[error("the model's security version is {found}, below {minimum}")]
    ModelSvn {
        /// The attested version.
        found: u32,
        /// The policy's minimum.
        minimum: u32,
    },
    /// Step 7: the publisher did not sign the package.
    #[error("the package's signature: {reason}")]
    PublisherSignature {
        /// What is wrong with it.
        reason: String,
    },
    /// Step 7: signed by somebody else.
    #[error("publisher {} is not among the policy's {count}", hex(found))]
    Publisher {
        /// SHA-256 of the key that signed.
        found: [u8; 32],
        /// How many the policy has.
        count: usize,
    },
    /// Step 8: the GPUs' evidence is not authentic, or not this statement's.
    #[error(transparent)]
    GpuEvidence(#[from] GpuError),
    /// Step 8: the GPUs are authentic, and not what is demanded.
    #[error(transparent)]
    GpuDemand(#[from] GpuDemandError),
    /// Step 9: a genuine machine, but not one of those that are trusted.
    #[error("machine {} is not among the {count} that the policy pins", hex(found.as_bytes()))]
    Chip {
        /// `CHIP_ID`, or PPID.
        found: HardwareId,
        /// How many the policy pins.
        count: usize,
    },
    /// Step 9: the registry is not for this time.
    #[error(transparent)]
    Registry(#[from] SignedFileError),
    /// Step 9: a genuine machine, but not one that the registry lists.
    #[error(
        "machine {} is not among the {count} of the platform registry, version {version}",
        hex(found.as_bytes())
    )]
    Unregistered {
        /// `CHIP_ID`, or PPID.
        found: HardwareId,
        /// The registry's number.
        version: u32,
        /// How many it lists.
        count: usize,
    },
    /// Step 10: fresh evidence is demanded, and the caller gave no challenge.
    #[error("max_age is fresh, and there is no challenge to be fresh for")]
    ChallengeMissing,
    /// Step 10: the evidence is not over the caller's challenge.
    #[error("the evidence is not over this challenge: it was made for another one, or before")]
    Stale,
    /// Step 10: the freshness section's layout.
    #[error("the freshness section: {0}")]
    Freshness(#[from] FreshnessError),
    /// Step 10: the freshness statement refreshes another enclave's, or another epoch's, statement.
    #[error("the freshness statement does not refresh this statement")]
    FreshnessMismatch,
}

impl Rejection {
    /// The step of docs/formats.md, section 1.6.
    #[must_use]
    pub const fn step(&self) -> u8 {
        match self {
            Self::Bundle(_) => 1,
            Self::Statement(_)
            | Self::Kind { .. }
            | Self::Simulated
            | Self::Tee { .. }
            | Self::DebugBuild => 2,
            Self::ReportData(_) | Self::ReportDataMismatch { .. } => 3,
            Self::EndorsementMissing
            | Self::Evidence(_)
            | Self::Platform(_)
            | Self::CollateralMissing
            | Self::Quote(_)
            | Self::Td(_) => 4,
            Self::Digest { .. }
            | Self::Layout { .. }
            | Self::KeyEpoch { .. }
            | Self::PackageSvn { .. } => 5,
            Self::Serving { .. } => 6,
            Self::Model { .. }
            | Self::ModelSvn { .. }
            | Self::PublisherSignature { .. }
            | Self::Publisher { .. } => 7,
            Self::GpuEvidence(_) | Self::GpuDemand(_) => 8,
            Self::Chip { .. } | Self::Registry(_) | Self::Unregistered { .. } => 9,
            Self::ChallengeMissing | Self::Stale | Self::Freshness(_) | Self::FreshnessMismatch => {
                10
            }
        }
    }

    /// The stable name of this refusal.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Bundle(_) => "bundle.framing",
            Self::Statement(StatementError::Codec(CodecError::Reserved { .. })) => {
                "statement.reserved"
            }
            Self::Statement(_) => "statement.layout",
            Self::Kind { .. } => "statement.kind",
            Self::Simulated => "statement.simulated",
            Self::Tee { .. } => "statement.tee",
            Self::DebugBuild => "statement.debug_build",
            Self::ReportData(_) => "report_data.layout",
            Self::ReportDataMismatch { field: "kind" } => "report_data.kind",
            Self::ReportDataMismatch { field: "epoch" } => "report_data.epoch",
            Self::ReportDataMismatch { .. } => "report_data.digest",
            Self::EndorsementMissing => "certificate.missing",
            Self::Evidence(error) => error.code(),
            Self::Platform(error) => error.code(),
            Self::CollateralMissing => "tdx.collateral_missing",
            Self::Quote(error) => error.code(),
            Self::Td(error) => error.code(),
            Self::Digest { section: "key_config" } => "key_config.digest",
            Self::Digest { section: "policy" } => "serving_policy.digest",
            Self::Digest { section: "content" } => "package.content_digest",
            Self::Digest { .. } => "package.digest",
            Self::Layout { section: "key_config", .. } => "key_config.layout",
            Self::Layout { section: "policy", .. } => "serving_policy.layout",
            Self::Layout { .. } => "package.layout",
            Self::KeyEpoch { .. } => "key_config.epoch",
            Self::PackageSvn { .. } => "package.svn",
            Self::Serving { .. } => "serving_policy.demand",
            Self::Model { .. } => "model.content_digest",
            Self::ModelSvn { .. } => "model.svn",
            Self::PublisherSignature { .. } => "model.signature",
            Self::Publisher { .. } => "model.publisher",
            Self::GpuEvidence(error) => error.code(),
            Self::GpuDemand(error) => error.code(),
            Self::Chip { .. } => "chip.not_pinned",
            Self::Registry(error) => error.code(),
            Self::Unregistered { .. } => "chip.not_registered",
            Self::ChallengeMissing => "freshness.no_challenge",
            Self::Stale => "freshness.stale",
            Self::Freshness(_) => "freshness.layout",
            Self::FreshnessMismatch => "freshness.mismatch",
        }
    }
}
