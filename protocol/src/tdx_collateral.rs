//! TDX collateral (docs/formats.md, section 1.5, type 0x82): what Intel says about a platform.
//!
//! Certificates and lists are DER and the signed texts are as Intel wrote them: one encoding, so
//! that every bit of the section is signed by somebody or has to be what it is. Only the framing is
//! read here.

use thiserror::Error;

use crate::codec::{CodecError, Reader, Writer};

/// Collateral, unverified.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct TdxCollateral {
    /// The root's revocation list, DER.
    pub root_crl: Vec<u8>,
    /// The revocation list of the authority behind the platform's certificate, DER.
    pub pck_crl: Vec<u8>,
    /// The certificate whose key signed `tcb_info`, DER; its issuer is the root.
    pub tcb_info_signer: Vec<u8>,
    /// Patch levels and what Intel thinks of them, JSON as it was signed.
    pub tcb_info: String,
    /// Over `tcb_info`: r and s.
    pub tcb_info_signature: [u8; 64],
    /// The certificate whose key signed `qe_identity`, DER; its issuer is the root.
    pub qe_identity_signer: Vec<u8>,
    /// Who the quoting enclave is, JSON as it was signed.
    pub qe_identity: String,
    /// Over `qe_identity`: r and s.
    pub qe_identity_signature: [u8; 64],
}

/// Why bytes are no collateral.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
#[non_exhaustive]
pub enum TdxCollateralError {
    /// Cut short, too long, or of another kind.
    #[error("the collateral: {0}")]
    Codec(#[from] CodecError),
    /// A signed text is no text.
    #[error("the collateral's {field} is not UTF-8")]
    NotText {
        /// `tcb_info` or `qe_identity`.
        field: &'static str,
    },
}

impl TdxCollateral {
    /// Reads a section.
    ///
    /// # Errors
    /// [`TdxCollateralError`] names what is wrong.
    pub fn parse(bytes: &[u8]) -> Result<Self, TdxCollateralError> {
        let mut r = Reader::new(bytes);
        r.magic(MAGIC)?;
        // The fields are read in the order in which they are written here.
        let collateral = Self {
            root_crl: item(&mut r)?,
            pck_crl: item(&mut r)?,
            tcb_info_signer: item(&mut r)?,
            tcb_info: text(&mut r, "tcb_info")?,
            tcb_info_signature: r.array()?,
            qe_identity_signer: item(&mut r)?,
            qe_identity: text(&mut r, "qe_identity")?,
            qe_identity_signature: r.array()?,
        };
        r.finish()?;
        Ok(collateral)
    }

    /// The encoding.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut w = Writer::new();
        w.bytes(MAGIC);
        put(&mut w, &self.root_crl);
        put(&mut w, &self.pck_crl);
        put(&mut w, &self.tcb_info_signer);
        put(&mut w, self.tcb_info.as_bytes());
        w.bytes(&self.tcb_info_signature);
        put(&mut w, &self.qe_identity_signer);
        put(&mut w, self.qe_identity.as_bytes());
        w.bytes(&self.qe_identity_signature);
        w.into_bytes()
    }
}

fn item(r: &mut Reader<'_>) -> Result<Vec<u8>, CodecError> {
    let len = r.u32()? as usize;
    r.bytes(len).map(<[u8]>::to_vec)
}

fn text(r: &mut Reader<'_>, field: &'static str) -> Result<String, TdxCollateralError> {
    String::from_utf8(item(r)?).map_err(|_| TdxCollateralError::NotText { field })
}

fn put(w: &mut Writer, bytes: &[u8]) {
    w.u32(bytes.len() as u32).bytes(bytes);
}

const MAGIC: &[u8; 8] = b"CHRY-TC1";
