//! Produces evidence inside the enclave (RFC 9334: the attester). docs/attestation.md.
//!
//! One trait: 64 bytes of `report_data` in, a platform report and its endorsements out. What those
//! bytes commit to is the caller's matter (`chrysalis_protocol::statement`).

#[cfg(feature = "gpu")]
pub mod gpu;
pub mod simulated;

use chrysalis_protocol::statement::{GpuFlags, Statement, Tee};
use thiserror::Error;

/// Bundle type of a VCEK or VLEK certificate in DER (formats.md 1.5).
pub const ENDORSEMENT_VCEK: u16 = 0x81;

/// A platform's report over 64 bytes, and the certificates that vouch for it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Evidence {
    /// The platform's report: 1,184 bytes for SEV-SNP.
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
}
