//! Is this evidence authentic? Signatures and certificates only; whether the platform is liked is
//! [`crate::policy`]'s question. Rules 1 to 5 of docs/threat-model.md, "Evidence".

mod evidence;
pub mod gpu;
mod pem;
mod revocation;
mod roots;
mod tdx;
mod x509;

use aws_lc_rs::signature::{ECDSA_P384_SHA384_FIXED, UnparsedPublicKey};
use thiserror::Error;

pub use evidence::{HardwareId, PlatformEvidence};
pub use pem::{PemError, certificate_from_pem};
pub(crate) use revocation::{IssuedBy, check as check_revocation};
pub use revocation::{RevocationError, RevocationList};
use roots::Issuer;
pub use roots::Roots;
pub use tdx::{
    CollateralError, INTEL_ROOT, TdxError, TdxPlatformDemand, VerifiedQuote,
    tdx_collateral_from_json, verify_tdx,
};
use x509::verify_certificate;
pub use x509::{CertificateError, EndorsedKey};

use crate::report::{Product, Report, ReportError, SignedReport, SigningKey, Tcb};

/// Why a report is not authentic.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
#[non_exhaustive]
pub enum VerifyError {
    /// The report is not well formed.
    #[error(transparent)]
    Report(#[from] ReportError),
    /// The chip hides its identity, so no certificate can be matched to it.
    #[error("mask_chip_key is set: the report is not signed")]
    MaskChipKey,
    /// The signing key's certificate does not vouch for it.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    /// The certificate is for other patch levels than the report states.
    #[error("the certificate is for {certificate}, the report states {reported}")]
    Tcb {
        /// Patch levels in the certificate.
        certificate: Tcb,
        /// `REPORTED_TCB`.
        reported: Tcb,
    },
    /// The certificate is for another chip.
    #[error("the certificate is for chip {certificate:02x?}, the report is of {reported:02x?}")]
    ChipId {
        /// `hwid` of the certificate.
        certificate: Vec<u8>,
        /// `CHIP_ID`.
        reported: Vec<u8>,
    },
    /// The signing key did not sign the report.
    #[error("the certified key did not sign the report")]
    Signature,
}

impl VerifyError {
    /// The stable name of this refusal.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Report(error) => error.code(),
            Self::MaskChipKey => "report.mask_chip_key",
            Self::Certificate(error) => error.code(),
            Self::Tcb { .. } => "certificate.tcb",
            Self::ChipId { .. } => "certificate.chip_id",
            Self::Signature => "report.signature",
        }
    }
}

/// A report whose signature and certificate are good. [`verify_snp`] is its only source.
///
/// Good means: made by the firmware of a chip of this product at these patch levels. Whether those
/// are enough, and what runs in the guest, is for [`crate::policy`] to say.
#[derive(Clone, Debug)]
pub struct VerifiedReport {
    report: Report,
    product: Product,
    roots: Roots,
    csp_id: Option<String>,
    issued_by: IssuedBy,
}

impl VerifiedReport {
    /// The claims.
    #[must_use]
    pub const fn report(&self) -> &Report {
        &self.report
    }

    /// The product.
    #[must_use]
    pub const fn product(&self) -> Product {
        self.product
    }

    /// The keys it was judged by.
    #[must_use]
    pub const fn roots(&self) -> Roots {
        self.roots
    }

    /// The pinned certificate above the signing key's.
    pub(crate) const fn issued_by(&self) -> &IssuedBy {
        &self.issued_by
    }

    /// The cloud provider that the signing key was loaned to, for a VLEK.
    #[must_use]
    pub fn csp_id(&self) -> Option<&str> {
        self.csp_id.as_deref()
    }
}

/// Verifies an SEV-SNP report with the certificate of its signing key, at Unix time `now`.
///
/// # Errors
/// The first check that fails, in the order of the numbers in the source.
pub fn verify_snp(
    report: &[u8],
    certificate: &[u8],
    roots: Roots,
    now: u64,
) -> Result<VerifiedReport, VerifyError> {
    // 1. Length, version, reserved bytes, TCB layouts. 2. Algorithm and signing key.
    // 3. The product, by the CPU's identity in the report.
    let SignedReport { report, product, signed, signature } = SignedReport::parse(report)?;
    if report.mask_chip_key {
        return Err(VerifyError::MaskChipKey);
    }

    // 4. The certificate of the signing key, by the pinned key of that product: for the patch
    // levels and the chip that the report states.
    let issuer = Issuer::pinned(roots, product, report.signing_key)?;
    let key = verify_certificate(certificate, &issuer, report.signing_key, product, now)?;
    if key.tcb != report.reported_tcb {
        return Err(VerifyError::Tcb { certificate: key.tcb, reported: report.reported_tcb });
    }
    if let Some(hwid) = &key.hwid {
        let len = product.hwid_len();
        let (chip_id, rest) = report.chip_id.split_at_checked(len).unwrap_or_default();
        if hwid.as_slice() != chip_id || rest.iter().any(|&byte| byte != 0) {
            let reported = report.chip_id.to_vec();
            return Err(VerifyError::ChipId { certificate: hwid.clone(), reported });
        }
    }

    // 5. ECDSA P-384 with SHA-384 over the raw bytes. (r, n - s) verifies as well, so the bytes of
    // a report identify nothing; the statement's digest does.
    UnparsedPublicKey::new(&ECDSA_P384_SHA384_FIXED, &key.point)
        .verify(signed, &signature)
        .map_err(|_| VerifyError::Signature)?;
    let issued_by = IssuedBy { name: issuer.name, serial: issuer.serial };
    Ok(VerifiedReport { report, product, roots, csp_id: key.csp_id, issued_by })
}

/// Verifies the certificate of a signing key alone.
///
/// # Errors
/// The first check that fails.
pub fn verify_signing_key(
    certificate: &[u8],
    kind: SigningKey,
    product: Product,
    roots: Roots,
    now: u64,
) -> Result<EndorsedKey, CertificateError> {
    let issuer = Issuer::pinned(roots, product, kind)?;
    verify_certificate(certificate, &issuer, kind, product, now)
}
