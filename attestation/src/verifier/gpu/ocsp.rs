//! Whether a certificate was revoked: OCSP responses (RFC 6960) that the host staples to the
//! bundle. Signed by the issuer, or by a responder that the issuer itself certified; one
//! certificate a response, the certificate named by SHA-256 or SHA-384, with an end of validity.
//! A nonce is neither needed nor looked at: the caller's time bounds the age.

use aws_lc_rs::digest::{SHA256, SHA384, digest};
use thiserror::Error;

use crate::gpu::certificate::{Certificate, ChainError, ECDSA_SHA384};
use crate::gpu::der::{
    BIT_STRING, Der, ENUMERATED, GENERALIZED_TIME, INTEGER, NULL, OBJECT_IDENTIFIER, OCTET_STRING,
    SEQUENCE, Tlv, bit_string, explicit, time,
};

/// Why a certificate's status is not believed, or not good.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
#[non_exhaustive]
pub enum OcspError {
    /// Not a successful response of the subset, in strict DER.
    #[error("the certificate status is no ocsp response of the profile: its {field}")]
    Form {
        /// What could not be read.
        field: &'static str,
    },
    /// The responder is not one that the certificate's issuer named.
    #[error("the certificate status' responder: {0}")]
    Responder(ChainError),
    /// The responder's certificate is not for signing statuses.
    #[error("the certificate status' responder may not sign statuses")]
    Purpose,
    /// The responder did not sign it.
    #[error("the responder did not sign the certificate status")]
    Signature,
    /// The time is outside its validity.
    #[error("the certificate status is valid from {this_update} to {next_update}, not at {now}")]
    Validity {
        /// First second, Unix time.
        this_update: u64,
        /// Last second, Unix time.
        next_update: u64,
        /// The caller's time.
        now: u64,
    },
    /// The certificate was revoked.
    #[error("certificate {serial:02x?} was revoked")]
    Revoked {
        /// Its serial number.
        serial: Vec<u8>,
    },
    /// The responder does not know the certificate.
    #[error("the responder does not know certificate {serial:02x?}")]
    Unknown {
        /// Its serial number.
        serial: Vec<u8>,
    },
}

impl OcspError {
    /// The stable name of this refusal.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Form { .. } => "gpu.ocsp.form",
            Self::Responder(_) => "gpu.ocsp.responder",
            Self::Purpose => "gpu.ocsp.purpose",
            Self::Signature => "gpu.ocsp.signature",
            Self::Validity { .. } => "gpu.ocsp.validity",
            Self::Revoked { .. } => "gpu.ocsp.revoked",
            Self::Unknown { .. } => "gpu.ocsp.unknown",
        }
    }
}

/// A response, taken apart; nothing about it is proved yet.
#[derive(Debug)]
pub struct Status<'a> {
    signed: &'a [u8],
    signature: &'a [u8],
    responder: Option<Certificate<'a>>,
    name_hash: &'a [u8],
    key_hash: &'a [u8],
    serial: &'a [u8],
    state: State,
    this_update: u64,
    next_update: u64,
}

#[derive(Clone, Copy, Debug)]
enum State {
    Good,
    Revoked,
    Unknown,
}

impl<'a> Status<'a> {
    /// Reads a response.
    ///
    /// # Errors
    /// [`OcspError::Form`] names the field that could not be read.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, OcspError> {
        let mut field = "frame";
        Self::read(bytes, &mut field).ok_or(OcspError::Form { field })
    }

    /// `field` is where it ended, when there is nothing.
    fn read(bytes: &'a [u8], field: &mut &'static str) -> Option<Self> {
        let mut all = Der::new(bytes);
        let mut response = all.inside(SEQUENCE)?;
        all.end()?;
        *field = "status";
        response.next(ENUMERATED).filter(|tlv| tlv.value == [0])?;
        let mut wrapped = response.inside(explicit(0))?;
        response.end()?;
        let mut typed = wrapped.inside(SEQUENCE)?;
        wrapped.end()?;
        *field = "type";
        typed.next(OBJECT_IDENTIFIER).filter(|tlv| tlv.value == BASIC)?;
        let mut octets = typed.inside(OCTET_STRING)?;
        typed.end()?;
        let mut basic = octets.inside(SEQUENCE)?;
        octets.end()?;
        let signed = basic.next(SEQUENCE)?;
        *field = "algorithm";
        basic.next(SEQUENCE).filter(|tlv| tlv.whole == ECDSA_SHA384)?;
        let signature = basic.next(BIT_STRING).and_then(bit_string)?;
        *field = "responder's certificate";
        let responder = match basic.optional(explicit(0)) {
            None => None,
            Some(list) => {
                let mut list = Der::new(list.value);
                let mut certificates = list.inside(SEQUENCE)?;
                list.end()?;
                let responder = Certificate::read(&mut certificates).ok()?;
                certificates.end()?;
                Some(responder)
            }
        };
        basic.end()?;

        *field = "responder";
        let mut data = Der::new(signed.value);
        data.any().filter(|tlv| [explicit(1), explicit(2)].contains(&tlv.tag))?;
        data.next(GENERALIZED_TIME).and_then(time)?;
        let mut responses = data.inside(SEQUENCE)?;
        data.optional(explicit(1));
        data.end()?;
        *field = "single response";
        let mut single = responses.inside(SEQUENCE)?;
        responses.end()?;
        let (name_hash, key_hash, serial) = single.inside(SEQUENCE).and_then(certificate_id)?;
        *field = "certificate's state";
        let state = state(single.any()?)?;
        *field = "times";
        let this_update = single.next(GENERALIZED_TIME).and_then(time)?;
        let mut next = single.inside(explicit(0))?;
        let next_update = next.next(GENERALIZED_TIME).and_then(time)?;
        next.end()?;
        single.optional(explicit(1));
        single.end()?;
        let signed = signed.whole;
        Some(Self {
            signed,
            signature,
            responder,
            name_hash,
            key_hash,
            serial,
            state,
            this_update,
            next_update,
        })
    }

    /// When the responder knew it.
    pub(super) const fn made(&self) -> u64 {
        self.this_update
    }

    /// Whether this is about `certificate`, which `issuer` issued.
    pub(super) fn is_about(&self, certificate: &Certificate<'_>, issuer: &Certificate<'_>) -> bool {
        let algorithm = if self.name_hash.len() == 32 { &SHA256 } else { &SHA384 };
        self.serial == certificate.serial
            && self.name_hash == digest(algorithm, issuer.subject).as_ref()
            && self.key_hash == digest(algorithm, issuer.point).as_ref()
    }

    /// Whether it is signed for `issuer`, valid at `now`, and good.
    pub(super) fn check(&self, issuer: &Certificate<'_>, now: u64) -> Result<(), OcspError> {
        let signer = match &self.responder {
            None => issuer,
            Some(responder) => {
                let chain = responder
                    .known_extensions(0)
                    .and_then(|()| responder.issued_by(0, issuer, 0))
                    .and_then(|()| responder.signs_data())
                    .and_then(|()| responder.valid_at(0, now));
                chain.map_err(OcspError::Responder)?;
                if !responder.ocsp_signing {
                    return Err(OcspError::Purpose);
                }
                responder
            }
        };
        signer.signed(self.signed, self.signature).ok_or(OcspError::Signature)?;
        let Self { this_update, next_update, .. } = *self;
        if now < this_update || now > next_update {
            return Err(OcspError::Validity { this_update, next_update, now });
        }
        let serial = self.serial.to_vec();
        match self.state {
            State::Good => Ok(()),
            State::Revoked => Err(OcspError::Revoked { serial }),
            State::Unknown => Err(OcspError::Unknown { serial }),
        }
    }
}

/// Hash of the issuer's name, hash of its key, serial number.
fn certificate_id(mut id: Der<'_>) -> Option<(&[u8], &[u8], &[u8])> {
    let mut algorithm = id.inside(SEQUENCE)?;
    let len = match algorithm.next(OBJECT_IDENTIFIER)?.value {
        SHA_256 => 32,
        SHA_384 => 48,
        _ => return None,
    };
    algorithm.optional(NULL).is_none_or(|null| null.value.is_empty()).then_some(())?;
    algorithm.end()?;
    let name = id.next(OCTET_STRING).filter(|tlv| tlv.value.len() == len)?.value;
    let key = id.next(OCTET_STRING).filter(|tlv| tlv.value.len() == len)?.value;
    let serial = id.next(INTEGER)?.value;
    id.end()?;
    Some((name, key, serial))
}

/// good [0] NULL, revoked [1] with time and reason, unknown [2] NULL.
const fn state(tlv: Tlv<'_>) -> Option<State> {
    match (tlv.tag, tlv.value) {
        (0x80, []) => Some(State::Good),
        (0xA1, _) => Some(State::Revoked),
        (0x82, []) => Some(State::Unknown),
        _ => None,
    }
}

/// `id-pkix-ocsp-basic`.
const BASIC: &[u8] = b"\x2b\x06\x01\x05\x05\x07\x30\x01\x01";
const SHA_256: &[u8] = b"\x60\x86\x48\x01\x65\x03\x04\x02\x01";
const SHA_384: &[u8] = b"\x60\x86\x48\x01\x65\x03\x04\x02\x02";
