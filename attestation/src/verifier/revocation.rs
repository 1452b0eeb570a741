//! AMD's revocation lists, as optional data: which issuers of signing keys an ARK has withdrawn.
//!
//! Strict DER, signed by a pinned ARK. Nothing is fetched: a list is a file that the verifier's
//! user has. Layout: RFC 5280, section 5; where AMD offers it: AMD 57230, "Get CRL".

use thiserror::Error;
use x509_cert::certificate::Version;
use x509_cert::crl::CertificateList;
use x509_cert::der::Decode;
use x509_cert::der::asn1::ObjectIdentifier;

use super::roots::Issuer;
use super::x509::{PSS_SHA384, encode, signed_by};
use super::{CertificateError, Roots};
use crate::report::Product;

/// Why a file is no revocation list that this program can go by, or what the list says.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
#[non_exhaustive]
pub enum RevocationError {
    /// Not a revocation list, or not the one encoding that DER allows.
    #[error("the revocation list is not strict der: {0}")]
    Der(String),
    /// Not a version 2 list.
    #[error("the revocation list is not of version 2")]
    Version,
    /// The signature algorithm is not RSASSA-PSS with SHA-384 and 48 bytes of salt.
    #[error("the revocation list's signature algorithm is not rsassa-pss, sha-384, salt 48")]
    Algorithm,
    /// No pinned ARK has the issuer's name.
    #[error("the revocation list's issuer is no pinned ark")]
    Issuer,
    /// The pinned ARK did not sign the list.
    #[error("the pinned {issuer} did not sign the revocation list")]
    Signature {
        /// The pinned ARK.
        issuer: &'static str,
    },
    /// The list does not say until when it holds.
    #[error("the revocation list has no next update")]
    NextUpdate,
    /// A critical extension, which could say that the list is not a whole one.
    #[error("the revocation list's critical extension {oid} is unknown")]
    CriticalExtension {
        /// The extension.
        oid: ObjectIdentifier,
    },
    /// A pinned root in this program is damaged.
    #[error(transparent)]
    Pinned(#[from] CertificateError),
    /// The time is outside the list's validity.
    #[error("the revocation list holds from {this_update} to {next_update}, not at {now}")]
    Validity {
        /// First second, Unix time.
        this_update: u64,
        /// Last second, Unix time.
        next_update: u64,
        /// The caller's time.
        now: u64,
    },
    /// A list is demanded, and none is of the ARK in question.
    #[error("a revocation list is demanded, and there is none of the ark of {product}")]
    Missing {
        /// The product.
        product: Product,
    },
    /// The issuer of the signing key's certificate was withdrawn.
    #[error("the {issuer}, which issued the signing key's certificate, is revoked")]
    Revoked {
        /// The pinned issuer.
        issuer: &'static str,
    },
}

impl RevocationError {
    /// The stable name of this refusal.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Der(_) => "crl.der",
            Self::Version => "crl.version",
            Self::Algorithm => "crl.algorithm",
            Self::Issuer => "crl.issuer",
            Self::Signature { .. } => "crl.signature",
            Self::NextUpdate => "crl.next_update",
            Self::CriticalExtension { .. } => "crl.critical_extension",
            Self::Pinned(error) => error.code(),
            Self::Validity { .. } => "crl.validity",
            Self::Missing { .. } => "crl.missing",
            Self::Revoked { .. } => "certificate.revoked",
        }
    }
}

/// A list that a pinned ARK signed. [`Self::open`] is its only source; it says nothing about time.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct RevocationList {
    /// The ARK's name, in DER: no two pinned ones are alike.
    issuer: Vec<u8>,
    this_update: u64,
    next_update: u64,
    serials: Vec<Vec<u8>>,
}

impl RevocationList {
    /// Reads a list in DER and verifies its signature.
    ///
    /// # Errors
    /// The first check that fails, in the order of the numbers in the source.
    pub fn open(der: &[u8]) -> Result<Self, RevocationError> {
        // 1. One encoding: what was parsed, written again, is what was received.
        let list = CertificateList::<x509_cert::certificate::Rfc5280>::from_der(der)
            .map_err(|error| RevocationError::Der(error.to_string()))?;
        if encode(&list)? != der {
            return Err(RevocationError::Der("written again, it differs".to_owned()));
        }
        let tbs = &list.tbs_cert_list;

        // 2. Version 2, RSASSA-PSS named alike inside and outside.
        if tbs.version != Version::V2 {
            return Err(RevocationError::Version);
        }
        let algorithm = encode(&list.signature_algorithm)?;
        if algorithm != encode(&tbs.signature)? || !PSS_SHA384.contains(&algorithm.as_slice()) {
            return Err(RevocationError::Algorithm);
        }

        // 3. Issued and signed by a pinned ARK.
        let issuer = encode(&tbs.issuer)?;
        let arks = Issuer::arks()?;
        let ark = arks.iter().find(|ark| ark.subject == issuer).ok_or(RevocationError::Issuer)?;
        if !signed_by(ark, &encode(tbs)?, list.signature.as_bytes().unwrap_or_default()) {
            return Err(RevocationError::Signature { issuer: ark.name });
        }

        // 4. A whole list with an end: a part of one, or one of several issuers, says so by a
        // critical extension.
        let next_update = tbs.next_update.ok_or(RevocationError::NextUpdate)?;
        let revoked = tbs.revoked_certificates.as_deref().unwrap_or_default();
        let entries = revoked.iter().flat_map(|entry| entry.crl_entry_extensions.iter().flatten());
        let extensions = tbs.crl_extensions.iter().flatten();
        if let Some(extension) = extensions.chain(entries).find(|extension| extension.critical) {
            return Err(RevocationError::CriticalExtension { oid: extension.extn_id });
        }
        Ok(Self {
            issuer,
            this_update: tbs.this_update.to_unix_duration().as_secs(),
            next_update: next_update.to_unix_duration().as_secs(),
            serials: revoked.iter().map(|entry| entry.serial_number.as_bytes().to_vec()).collect(),
        })
    }

    /// First second of its validity, Unix time.
    #[must_use]
    pub const fn this_update(&self) -> u64 {
        self.this_update
    }

    /// Last second of its validity, Unix time.
    #[must_use]
    pub const fn next_update(&self) -> u64 {
        self.next_update
    }
}

/// Whether `lists` let the issuer of a `product`'s signing key stand at Unix time `now`; with
/// `required`, one of them has to be of that issuer's ARK.
pub(crate) fn check<'a>(
    lists: impl IntoIterator<Item = &'a RevocationList> + 'a,
    required: bool,
    (roots, product): (Roots, Product),
    issuer: &IssuedBy,
    now: u64,
) -> Result<(), RevocationError> {
    let ark = Issuer::ark(roots, product)?.subject;
    let mut found = false;
    for list in lists.into_iter().filter(|list| list.issuer == ark) {
        let RevocationList { this_update, next_update, .. } = *list;
        if now < this_update || now > next_update {
            return Err(RevocationError::Validity { this_update, next_update, now });
        }
        if list.serials.contains(&issuer.serial) {
            return Err(RevocationError::Revoked { issuer: issuer.name });
        }
        found = true;
    }
    if required && !found {
        return Err(RevocationError::Missing { product });
    }
    Ok(())
}

/// The pinned certificate that issued a signing key's.
#[derive(Clone, Debug)]
pub(crate) struct IssuedBy {
    pub(super) name: &'static str,
    pub(super) serial: Vec<u8>,
}
