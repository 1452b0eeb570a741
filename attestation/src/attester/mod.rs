//! Produces evidence inside the enclave (RFC 9334: the attester). docs/attestation.md.
//!
//! One trait: 64 bytes of `report_data` in, a platform report and its endorsements out. What those
//! bytes commit to is the caller's matter (`chrysalis_protocol::statement`).

pub mod simulated;

use chrysalis_protocol::statement::Tee;
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
}

/// Why no evidence was made.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
#[non_exhaustive]
pub enum AttesterError {
    /// The simulated platform's key is not a P-384 key in PKCS#8.
    #[error("the simulated platform's key is not a P-384 key in PKCS#8")]
    Key,
    /// The signature could not be made.
    #[error("the report could not be signed")]
    Sign,
}
