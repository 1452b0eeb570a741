//! Collateral from and to the forms in which others have it.

use chrysalis_protocol::tdx_collateral::TdxCollateral;
use dcap_qvl::QuoteCollateralV3;
use thiserror::Error;

use super::super::pem;

/// Why a file is no collateral.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
#[non_exhaustive]
pub enum CollateralError {
    /// Not the JSON in which clients of Intel's service keep collateral.
    #[error("the collateral's JSON: {reason}")]
    Json {
        /// What is wrong with it.
        reason: String,
    },
    /// An issuer chain is not PEM.
    #[error("the collateral's {field} is not PEM with lines of 64 characters")]
    Chain {
        /// Its name.
        field: &'static str,
    },
    /// A signature has another length.
    #[error("the collateral's {field} has {len} bytes, not 64")]
    Signature {
        /// Its name.
        field: &'static str,
        /// Its length.
        len: usize,
    },
}

/// Reads the JSON in which clients of Intel's provisioning service (PCCS) keep collateral.
///
/// # Errors
/// [`CollateralError`] names what is wrong.
pub fn tdx_collateral_from_json(text: &str) -> Result<TdxCollateral, CollateralError> {
    let file: QuoteCollateralV3 = serde_json::from_str(text)
        .map_err(|error| CollateralError::Json { reason: error.to_string() })?;
    Ok(TdxCollateral {
        tcb_info_signer: signer("tcb_info_issuer_chain", &file.tcb_info_issuer_chain)?,
        tcb_info_signature: signature("tcb_info_signature", &file.tcb_info_signature)?,
        qe_identity_signer: signer("qe_identity_issuer_chain", &file.qe_identity_issuer_chain)?,
        qe_identity_signature: signature("qe_identity_signature", &file.qe_identity_signature)?,
        root_crl: file.root_ca_crl,
        pck_crl: file.pck_crl,
        tcb_info: file.tcb_info,
        qe_identity: file.qe_identity,
    })
}

/// The form that `dcap-qvl` takes. The platform's own chain stays in the quote.
pub(super) fn into_qvl(collateral: TdxCollateral) -> QuoteCollateralV3 {
    QuoteCollateralV3 {
        pck_crl_issuer_chain: String::new(),
        root_ca_crl: collateral.root_crl,
        pck_crl: collateral.pck_crl,
        tcb_info_issuer_chain: pem::encode(&[collateral.tcb_info_signer]),
        tcb_info: collateral.tcb_info,
        tcb_info_signature: collateral.tcb_info_signature.to_vec(),
        qe_identity_issuer_chain: pem::encode(&[collateral.qe_identity_signer]),
        qe_identity: collateral.qe_identity,
        qe_identity_signature: collateral.qe_identity_signature.to_vec(),
        pck_certificate_chain: None,
    }
}

/// The first certificate; its issuer is the root, which is pinned.
fn signer(field: &'static str, chain: &str) -> Result<Vec<u8>, CollateralError> {
    let mut chain = pem::decode(chain.as_bytes()).unwrap_or_default().into_iter();
    chain.next().ok_or(CollateralError::Chain { field })
}

fn signature(field: &'static str, bytes: &[u8]) -> Result<[u8; 64], CollateralError> {
    bytes.try_into().map_err(|_| CollateralError::Signature { field, len: bytes.len() })
}
