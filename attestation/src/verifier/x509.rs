//! The certificate of a chip's signing key: strict DER, one pinned issuer, no chain building.
//!
//! Layouts: AMD 57230 (VCEK and KDS), tables 6 to 9; RFC 5280; RSASSA-PSS parameters by RFC 4055.

use aws_lc_rs::signature::{RSA_PSS_2048_8192_SHA384, UnparsedPublicKey};
use thiserror::Error;
use x509_cert::Certificate;
use x509_cert::certificate::Version;
use x509_cert::der::asn1::{Ia5StringRef, ObjectIdentifier, OctetStringRef};
use x509_cert::der::{Decode, Encode};
use x509_cert::ext::Extension;
use x509_cert::spki::SubjectPublicKeyInfoOwned;

use super::roots::Issuer;
use crate::report::{Product, SigningKey, Tcb};

/// Why a certificate does not vouch for a signing key.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
#[non_exhaustive]
pub enum CertificateError {
    /// Not a certificate, or not the one encoding that DER allows.
    #[error("the certificate is not strict der: {0}")]
    Der(String),
    /// The version is not 3, or a unique identifier is present.
    #[error("the certificate is not a plain version 3 certificate")]
    Version,
    /// The signature algorithm is not RSASSA-PSS with SHA-384 and 48 bytes of salt.
    #[error("the certificate's signature algorithm is not rsassa-pss, sha-384, salt 48")]
    Algorithm,
    /// The issuer is not the pinned one.
    #[error("the certificate's issuer is not the pinned {expected}")]
    Issuer {
        /// The pinned issuer.
        expected: &'static str,
    },
    /// The subject is not the kind of key that the report names.
    #[error("the certificate's subject is {found:?}, not {expected}")]
    Subject {
        /// The common name found.
        found: String,
        /// The common name of the kind of key that signed the report.
        expected: &'static str,
    },
    /// The pinned issuer's key did not sign this certificate.
    #[error("the pinned {issuer} did not sign the certificate")]
    Signature {
        /// The pinned issuer.
        issuer: &'static str,
    },
    /// The time is outside the certificate's validity.
    #[error("the certificate is valid from {not_before} to {not_after}, not at {now}")]
    Validity {
        /// First second, Unix time.
        not_before: u64,
        /// Last second, Unix time.
        not_after: u64,
        /// The caller's time.
        now: u64,
    },
    /// The key is not an uncompressed point of P-384.
    #[error("the certificate's key is not an uncompressed point of p-384")]
    Key,
    /// A critical extension that we do not know.
    #[error("critical extension {oid} is unknown")]
    CriticalExtension {
        /// The extension.
        oid: String,
    },
    /// An extension is missing, there twice, or not of the type that AMD's table says.
    #[error("extension {oid} is {problem}")]
    Extension {
        /// The extension.
        oid: ObjectIdentifier,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// The product's name is not that of the report's CPU.
    #[error("the certificate is for {found:?}, the report's cpu is {expected}")]
    Product {
        /// The name in the certificate.
        found: String,
        /// The product by the report's CPU.
        expected: Product,
    },
    /// A pinned root in this program is damaged.
    #[error("pinned certificate {name} cannot be read")]
    Pinned {
        /// Which one.
        name: &'static str,
    },
}

impl CertificateError {
    /// The stable name of this refusal.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Der(_) => "certificate.der",
            Self::Version => "certificate.version",
            Self::Algorithm => "certificate.algorithm",
            Self::Issuer { .. } => "certificate.issuer",
            Self::Subject { .. } => "certificate.subject",
            Self::Signature { .. } => "certificate.signature",
            Self::Validity { .. } => "certificate.validity",
            Self::Key => "certificate.key",
            Self::CriticalExtension { .. } => "certificate.critical_extension",
            Self::Extension { .. } => "certificate.extension",
            Self::Product { .. } => "certificate.product",
            Self::Pinned { .. } => "certificate.pinned",
        }
    }
}

/// A signing key that a pinned AMD key vouches for.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct EndorsedKey {
    /// Uncompressed P-384 point.
    pub point: [u8; 97],
    /// The patch levels that the key stands for.
    pub tcb: Tcb,
    /// The chip, for a VCEK.
    pub hwid: Option<Vec<u8>>,
    /// The cloud provider, for a VLEK.
    pub csp_id: Option<String>,
}

/// Checks that `issuer` vouches for the key in the certificate `der`, for `product`, at `now`.
pub(super) fn verify_certificate(
    der: &[u8],
    issuer: &Issuer,
    kind: SigningKey,
    product: Product,
    now: u64,
) -> Result<EndorsedKey, CertificateError> {
    // 1. One encoding: what was parsed, written again, is what was received.
    let certificate = parse(der)?;
    let tbs = certificate.tbs_certificate();

    // 2. A plain version 3 certificate, RSASSA-PSS named alike inside and outside.
    if tbs.version() != Version::V3
        || tbs.issuer_unique_id().is_some()
        || tbs.subject_unique_id().is_some()
    {
        return Err(CertificateError::Version);
    }
    let algorithm = encode(certificate.signature_algorithm())?;
    if algorithm != encode(tbs.signature())? || !PSS_SHA384.contains(&algorithm.as_slice()) {
        return Err(CertificateError::Algorithm);
    }

    // 3. Issued by the pinned key of the product, under its name. No chain is built.
    if encode(tbs.issuer())? != issuer.subject {
        return Err(CertificateError::Issuer { expected: issuer.name });
    }
    let signature = certificate.signature().as_bytes().unwrap_or_default();
    if !signed_by(issuer, &encode(tbs)?, signature) {
        return Err(CertificateError::Signature { issuer: issuer.name });
    }

    // 4. Valid at the caller's time.
    let validity = tbs.validity();
    let not_before = validity.not_before.to_unix_duration().as_secs();
    let not_after = validity.not_after.to_unix_duration().as_secs();
    for (not_before, not_after) in [(not_before, not_after), (issuer.not_before, issuer.not_after)]
    {
        if now < not_before || now > not_after {
            return Err(CertificateError::Validity { not_before, not_after, now });
        }
    }

    // 5. The subject and the extensions of the kind of key that signed the report.
    let expected = match kind {
        SigningKey::Vcek => "SEV-VCEK",
        SigningKey::Vlek => "SEV-VLEK",
    };
    let found = tbs.subject().common_name().ok().flatten();
    let found = found.map_or_else(String::new, |name| name.value().into_owned());
    if found != expected {
        return Err(CertificateError::Subject { found, expected });
    }
    let extensions = Extensions::new(tbs.extensions().map_or(&[], Vec::as_slice))?;
    let name = extensions.text(PRODUCT_NAME)?;
    // "Genoa", or with a stepping: "Milan-B0".
    if !name.split('-').next().is_some_and(|name| product.certificate_names().contains(&name)) {
        return Err(CertificateError::Product { found: name, expected: product });
    }
    Ok(EndorsedKey {
        point: point(tbs.subject_public_key_info())?,
        tcb: extensions.tcb(product)?,
        hwid: match kind {
            SigningKey::Vcek => Some(extensions.hwid(product.hwid_len())?),
            SigningKey::Vlek => extensions.absent(HWID).map(|()| None)?,
        },
        csp_id: match kind {
            SigningKey::Vcek => extensions.absent(CSP_ID).map(|()| None)?,
            SigningKey::Vlek => Some(extensions.text(CSP_ID)?),
        },
    })
}

/// Whether `issuer` signed `message`: RSASSA-PSS with SHA-384 and 48 bytes of salt.
pub(super) fn signed_by(issuer: &Issuer, message: &[u8], signature: &[u8]) -> bool {
    UnparsedPublicKey::new(&RSA_PSS_2048_8192_SHA384, &issuer.key)
        .verify(message, signature)
        .is_ok()
}

/// A certificate whose only encoding is `der`.
pub(super) fn parse(der: &[u8]) -> Result<Certificate, CertificateError> {
    let certificate =
        Certificate::from_der(der).map_err(|error| CertificateError::Der(error.to_string()))?;
    if encode(&certificate)? == der {
        Ok(certificate)
    } else {
        Err(CertificateError::Der("written again, it differs".to_owned()))
    }
}

pub(super) fn encode(value: &impl Encode) -> Result<Vec<u8>, CertificateError> {
    value.to_der().map_err(|error| CertificateError::Der(error.to_string()))
}

/// The uncompressed P-384 point of a SubjectPublicKeyInfo.
fn point(spki: &SubjectPublicKeyInfoOwned) -> Result<[u8; 97], CertificateError> {
    let curve = spki.algorithm.parameters.as_ref().and_then(|any| any.decode_as().ok());
    if spki.algorithm.oid != EC_PUBLIC_KEY || curve != Some(SECP384R1) {
        return Err(CertificateError::Key);
    }
    let bytes = spki.subject_public_key.as_bytes().unwrap_or_default();
    let point: [u8; 97] = bytes.try_into().map_err(|_| CertificateError::Key)?;
    if matches!(point, [4, ..]) { Ok(point) } else { Err(CertificateError::Key) }
}

/// The extensions of a certificate, each at most once, none critical and unknown.
struct Extensions<'a>(&'a [Extension]);

impl<'a> Extensions<'a> {
    fn new(extensions: &'a [Extension]) -> Result<Self, CertificateError> {
        for (count, extension) in extensions.iter().enumerate() {
            let oid = extension.extn_id;
            let known = KNOWN.contains(&oid);
            if extension.critical && !known {
                return Err(CertificateError::CriticalExtension { oid: oid.to_string() });
            }
            if extensions.iter().take(count).any(|earlier| earlier.extn_id == oid) {
                return Err(CertificateError::Extension { oid, problem: "there twice" });
            }
        }
        Ok(Self(extensions))
    }

    fn find(&self, oid: ObjectIdentifier) -> Option<&'a [u8]> {
        let extension = self.0.iter().find(|extension| extension.extn_id == oid)?;
        Some(extension.extn_value.as_bytes())
    }

    fn bytes(&self, oid: ObjectIdentifier) -> Result<&'a [u8], CertificateError> {
        self.find(oid).ok_or(CertificateError::Extension { oid, problem: "missing" })
    }

    fn absent(&self, oid: ObjectIdentifier) -> Result<(), CertificateError> {
        match self.find(oid) {
            None => Ok(()),
            Some(_) => {
                Err(CertificateError::Extension { oid, problem: "not for this kind of key" })
            }
        }
    }

    /// The chip's identity: bare, as AMD's key service wrote it first, or in the OCTET STRING that
    /// its specification has. `len` bytes tell which.
    fn hwid(&self, len: usize) -> Result<Vec<u8>, CertificateError> {
        let bytes = self.bytes(HWID)?;
        match <&OctetStringRef>::from_der(bytes) {
            Ok(inner) if bytes.len() != len => Ok(inner.as_bytes().to_vec()),
            _ => Ok(bytes.to_vec()),
        }
    }

    fn text(&self, oid: ObjectIdentifier) -> Result<String, CertificateError> {
        match Ia5StringRef::from_der(self.bytes(oid)?) {
            Ok(text) => Ok(text.as_str().to_owned()),
            Err(_) => Err(CertificateError::Extension { oid, problem: "not an ia5 string" }),
        }
    }

    fn level(&self, oid: ObjectIdentifier) -> Result<u8, CertificateError> {
        u8::from_der(self.bytes(oid)?)
            .map_err(|_| CertificateError::Extension { oid, problem: "not an integer below 256" })
    }

    fn tcb(&self, product: Product) -> Result<Tcb, CertificateError> {
        for oid in RESERVED_LEVELS {
            if self.find(oid).is_some() && self.level(oid)? != 0 {
                return Err(CertificateError::Extension { oid, problem: "reserved and not zero" });
            }
        }
        let fmc = match product {
            Product::Turin => Some(self.level(FMC)?),
            Product::Milan | Product::Genoa => self.absent(FMC).map(|()| None)?,
        };
        Ok(Tcb {
            fmc,
            bootloader: self.level(BOOTLOADER)?,
            tee: self.level(TEE)?,
            snp: self.level(SNP)?,
            microcode: self.level(MICROCODE)?,
        })
    }
}

const EC_PUBLIC_KEY: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.2.1");
const SECP384R1: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.132.0.34");

const STRUCT_VERSION: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.4.1.3704.1.1");
const PRODUCT_NAME: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.4.1.3704.1.2");
const BOOTLOADER: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.4.1.3704.1.3.1");
const TEE: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.4.1.3704.1.3.2");
const SNP: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.4.1.3704.1.3.3");
const RESERVED_LEVELS: [ObjectIdentifier; 4] = [
    ObjectIdentifier::new_unwrap("1.3.6.1.4.1.3704.1.3.4"),
    ObjectIdentifier::new_unwrap("1.3.6.1.4.1.3704.1.3.5"),
    ObjectIdentifier::new_unwrap("1.3.6.1.4.1.3704.1.3.6"),
    ObjectIdentifier::new_unwrap("1.3.6.1.4.1.3704.1.3.7"),
];
const MICROCODE: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.4.1.3704.1.3.8");
const FMC: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.4.1.3704.1.3.9");
const HWID: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.4.1.3704.1.4");
const CSP_ID: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.4.1.3704.1.5");
/// The extensions whose content this file judges.
const KNOWN: [ObjectIdentifier; 9] =
    [STRUCT_VERSION, PRODUCT_NAME, BOOTLOADER, TEE, SNP, MICROCODE, FMC, HWID, CSP_ID];

/// The two encodings that AMD uses of `rsassaPss` with SHA-384, MGF1 with SHA-384 and 48 bytes of
/// salt: without the trailer field, and (older certificates) with its default written out.
pub(super) const PSS_SHA384: [&[u8]; 2] = [
    b"\x30\x41\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0a\x30\x34\
      \xa0\x0f\x30\x0d\x06\x09\x60\x86\x48\x01\x65\x03\x04\x02\x02\x05\x00\
      \xa1\x1c\x30\x1a\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x08\
      \x30\x0d\x06\x09\x60\x86\x48\x01\x65\x03\x04\x02\x02\x05\x00\
      \xa2\x03\x02\x01\x30",
    b"\x30\x46\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0a\x30\x39\
      \xa0\x0f\x30\x0d\x06\x09\x60\x86\x48\x01\x65\x03\x04\x02\x02\x05\x00\
      \xa1\x1c\x30\x1a\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x08\
      \x30\x0d\x06\x09\x60\x86\x48\x01\x65\x03\x04\x02\x02\x05\x00\
      \xa2\x03\x02\x01\x30\xa3\x03\x02\x01\x01",
];
