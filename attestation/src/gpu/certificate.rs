//! Certificates of NVIDIA's hierarchies: the one profile that all of them have, read strictly.
//!
//! X.509 version 3 (RFC 5280), ECDSA with SHA-384 on P-384 throughout, no chain building: the
//! certificates come in order, the last one is the pinned root, byte for byte. The enclave reads
//! its GPU's chain with this file before it lets the GPU see anything, and a client reads the same
//! chain, the chains of manifests and OCSP responders with it: one reader, so that no two readings
//! can differ. It is small enough to be in an enclave, which a general parser is not.

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::signature::{ECDSA_P384_SHA384_ASN1, UnparsedPublicKey};
use thiserror::Error;

use super::der::{
    BIT_STRING, BOOLEAN, Der, INTEGER, OBJECT_IDENTIFIER, OCTET_STRING, PRINTABLE_STRING, SEQUENCE,
    SET, UTF8_STRING, bit_string, explicit, time,
};

/// Why a chain of certificates does not lead to a pinned root.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
#[non_exhaustive]
pub enum ChainError {
    /// Not a certificate of this profile, in its one encoding.
    #[error("certificate {index} of the chain: its {field} is not strict der of the profile")]
    Der {
        /// Counted from the leaf, 0.
        index: usize,
        /// The field that could not be read.
        field: &'static str,
    },
    /// There are too few or too many certificates.
    #[error("a chain of {found} certificates, not of 2 to {CHAIN_CERTIFICATES_MAX}")]
    Length {
        /// How many there are.
        found: usize,
    },
    /// The last certificate is not the pinned root.
    #[error("the chain ends in {found}, not in the pinned {expected}")]
    Root {
        /// SHA-256 of the last certificate, in hexadecimal.
        found: String,
        /// The root that is pinned.
        expected: &'static str,
    },
    /// A critical extension that we do not know.
    #[error("certificate {index} of the chain has an unknown critical extension")]
    CriticalExtension {
        /// Counted from the leaf.
        index: usize,
    },
    /// The issuer's name is not the subject of the next certificate.
    #[error("certificate {index} of the chain was not issued under the next one's name")]
    Issuer {
        /// Counted from the leaf.
        index: usize,
    },
    /// The next certificate's key did not sign this one.
    #[error("certificate {index} of the chain is not signed by the next one's key")]
    Signature {
        /// Counted from the leaf.
        index: usize,
    },
    /// A certificate that signs others may not.
    #[error("certificate {index} of the chain may not issue certificates, or not that deep")]
    Authority {
        /// Counted from the leaf.
        index: usize,
    },
    /// The leaf may issue certificates, or may not sign.
    #[error("the chain's first certificate is not one of a key that signs data")]
    Leaf,
    /// The time is outside a certificate's validity.
    #[error(
        "certificate {index} of the chain is valid from {not_before} to {not_after}, not at {now}"
    )]
    Validity {
        /// Counted from the leaf.
        index: usize,
        /// First second, Unix time.
        not_before: u64,
        /// Last second, Unix time.
        not_after: u64,
        /// The caller's time.
        now: u64,
    },
}

/// A certificate of the profile; nothing about it is proved yet.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Certificate<'a> {
    /// All of it.
    pub(crate) der: &'a [u8],
    tbs: &'a [u8],
    /// Content of the INTEGER.
    pub(crate) serial: &'a [u8],
    issuer: &'a [u8],
    /// The name, whole.
    pub(crate) subject: &'a [u8],
    not_before: u64,
    not_after: u64,
    /// Uncompressed P-384 point.
    pub(crate) point: &'a [u8; POINT_LEN],
    /// May issue; with at most so many authorities below.
    authority: Option<Option<u8>>,
    key_usage: u8,
    /// Is for signing OCSP responses.
    pub(crate) ocsp_signing: bool,
    /// What DICE says of the firmware that holds the key.
    pub(crate) fwid: Option<Fwid<'a>>,
    signature: &'a [u8],
    unknown_critical: bool,
}

/// The extension 2.23.133.5.4.1: which device key vouches for which firmware.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Fwid<'a> {
    /// The device's key, an uncompressed P-384 point.
    pub(crate) device: &'a [u8; POINT_LEN],
    /// SHA-384 of the firmware.
    pub(crate) digest: &'a [u8; 48],
}

impl<'a> Certificate<'a> {
    /// Reads the next certificate off `der`. The error is the field that could not be read.
    pub(crate) fn read(der: &mut Der<'a>) -> Result<Self, &'static str> {
        let whole = der.next(SEQUENCE).ok_or("frame")?;
        let mut outer = Der::new(whole.value);
        let signed = outer.next(SEQUENCE).ok_or("signed part")?;
        outer.next(SEQUENCE).filter(|tlv| tlv.whole == ECDSA_SHA384).ok_or("algorithm")?;
        let signature = outer.next(BIT_STRING).and_then(bit_string).ok_or("signature")?;
        outer.end().ok_or("frame")?;

        let mut tbs = Der::new(signed.value);
        tbs.next(explicit(0)).filter(|tlv| tlv.value == VERSION_3).ok_or("version")?;
        let serial = tbs.next(INTEGER).filter(|tlv| minimal(tlv.value)).ok_or("serial number")?;
        tbs.next(SEQUENCE).filter(|tlv| tlv.whole == ECDSA_SHA384).ok_or("algorithm")?;
        let issuer = tbs.next(SEQUENCE).ok_or("issuer")?.whole;
        let (not_before, not_after) = tbs.inside(SEQUENCE).and_then(validity).ok_or("validity")?;
        let subject = tbs.next(SEQUENCE).ok_or("subject")?.whole;
        let point = tbs.next(SEQUENCE).and_then(|tlv| key(tlv.whole)).ok_or("key")?;
        let mut certificate = Self {
            der: whole.whole,
            tbs: signed.whole,
            serial: serial.value,
            issuer,
            subject,
            not_before,
            not_after,
            point,
            authority: None,
            key_usage: 0,
            ocsp_signing: false,
            fwid: None,
            signature,
            unknown_critical: false,
        };
        let mut extensions = tbs
            .inside(explicit(3))
            .and_then(|mut list| list.inside(SEQUENCE).filter(|_| list.is_empty()))
            .ok_or("extensions")?;
        tbs.end().ok_or("extensions")?;
        let mut seen: Vec<&[u8]> = Vec::new();
        while !extensions.is_empty() {
            let extension = extensions.inside(SEQUENCE).ok_or("extensions")?;
            certificate.extension(extension, &mut seen).ok_or("extension")?;
        }
        Ok(certificate)
    }

    fn extension(&mut self, mut extension: Der<'a>, seen: &mut Vec<&'a [u8]>) -> Option<()> {
        let oid = extension.next(OBJECT_IDENTIFIER)?.value;
        let critical = match extension.optional(BOOLEAN) {
            None => false,
            Some(tlv) if tlv.value == [0xFF] => true,
            Some(_) => return None,
        };
        let value = extension.next(OCTET_STRING)?.value;
        extension.end()?;
        if seen.contains(&oid) {
            return None;
        }
        seen.push(oid);
        let mut der = Der::new(value);
        match oid {
            BASIC_CONSTRAINTS => {
                let mut fields = der.inside(SEQUENCE)?;
                let authority = match fields.optional(BOOLEAN) {
                    None => false,
                    Some(tlv) if tlv.value == [0xFF] => true,
                    Some(_) => return None,
                };
                let depth = match fields.optional(INTEGER).map(|tlv| tlv.value) {
                    None => None,
                    Some([depth @ 0..=0x7F]) if authority => Some(*depth),
                    Some(_) => return None,
                };
                fields.end()?;
                self.authority = authority.then_some(depth);
            }
            KEY_USAGE => {
                self.key_usage = match der.next(BIT_STRING)?.value {
                    [0..=7, usage] => *usage,
                    _ => return None,
                };
            }
            EXTENDED_KEY_USAGE => {
                let mut purposes = der.inside(SEQUENCE)?;
                while !purposes.is_empty() {
                    self.ocsp_signing |= purposes.next(OBJECT_IDENTIFIER)?.value == OCSP_SIGNING;
                }
            }
            FWID => {
                self.fwid = Some(fwid(&mut der)?);
            }
            _ => {
                self.unknown_critical |= critical;
                return Some(());
            }
        }
        der.end()
    }

    /// Whether `issuer`'s key signed this certificate under its name, and might.
    pub(crate) fn issued_by(
        &self,
        index: usize,
        issuer: &Self,
        authorities_below: usize,
    ) -> Result<(), ChainError> {
        if self.issuer != issuer.subject {
            return Err(ChainError::Issuer { index });
        }
        let deep_enough = issuer
            .authority
            .is_some_and(|depth| depth.is_none_or(|depth| usize::from(depth) >= authorities_below));
        if !deep_enough || issuer.key_usage & KEY_CERT_SIGN == 0 {
            return Err(ChainError::Authority { index: index.saturating_add(1) });
        }
        issuer.signed(self.tbs, self.signature).ok_or(ChainError::Signature { index })
    }

    /// Whether this certificate's key made the DER `signature` over `message`.
    pub(crate) fn signed(&self, message: &[u8], signature: &[u8]) -> Option<()> {
        UnparsedPublicKey::new(&ECDSA_P384_SHA384_ASN1, self.point).verify(message, signature).ok()
    }

    /// Whether this is a key that signs data, and not one that issues.
    pub(crate) fn signs_data(&self) -> Result<(), ChainError> {
        if self.authority.is_some() || self.key_usage & DIGITAL_SIGNATURE == 0 {
            return Err(ChainError::Leaf);
        }
        Ok(())
    }

    pub(crate) const fn valid_at(&self, index: usize, now: u64) -> Result<(), ChainError> {
        let Self { not_before, not_after, .. } = *self;
        if now < not_before || now > not_after {
            return Err(ChainError::Validity { index, not_before, not_after, now });
        }
        Ok(())
    }

    pub(crate) const fn known_extensions(&self, index: usize) -> Result<(), ChainError> {
        if self.unknown_critical {
            return Err(ChainError::CriticalExtension { index });
        }
        Ok(())
    }

    /// The subject's common name.
    pub(crate) fn common_name(&self) -> Option<&'a str> {
        attribute(self.subject, COMMON_NAME)
    }

    /// The subject's serial number: for a device, its own.
    pub(crate) fn device_serial(&self) -> Option<&'a str> {
        attribute(self.subject, SERIAL_NUMBER)
    }
}

/// A chain that leads to the pinned root, the leaf first. [`verify`] is its only source.
#[derive(Clone, Debug)]
pub(crate) struct Chain<'a>(Vec<Certificate<'a>>);

impl<'a> Chain<'a> {
    pub(crate) fn certificates(&self) -> &[Certificate<'a>] {
        &self.0
    }
}

/// A root that is compiled in.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pinned {
    pub(crate) name: &'static str,
    pub(crate) der: &'static [u8],
}

/// Checks a chain of certificates in DER, back to back, leaf first.
///
/// `now` is absent in the enclave alone: its clock is the host's, and NVIDIA's device certificates
/// have no end.
pub(crate) fn verify(
    chain: &[u8],
    root: Pinned,
    now: Option<u64>,
) -> Result<Chain<'_>, ChainError> {
    // 1. Every certificate is one of the profile.
    let certificates = list(chain)?;
    let found = certificates.len();
    if !(2..=CHAIN_CERTIFICATES_MAX).contains(&found) {
        return Err(ChainError::Length { found });
    }

    // 2. The last one is the pinned root, by its bytes.
    if let Some(last) = certificates.last()
        && last.der != root.der
    {
        return Err(ChainError::Root { found: fingerprint(last.der), expected: root.name });
    }

    // 3. Each was issued by the next: name, right to issue, signature.
    for (index, (certificate, issuer)) in
        certificates.iter().zip(certificates.iter().skip(1)).enumerate()
    {
        certificate.issued_by(index, issuer, index)?;
    }

    // 4. The first one is for signing, and issues nothing. A responder's key is online: what it
    // signs is a status, never a report or a manifest.
    if let Some(leaf) = certificates.first() {
        leaf.signs_data()?;
        if leaf.ocsp_signing {
            return Err(ChainError::Leaf);
        }
    }

    // 5. All are valid at the caller's time.
    if let Some(now) = now {
        for (index, certificate) in certificates.iter().enumerate() {
            certificate.valid_at(index, now)?;
        }
    }
    Ok(Chain(certificates))
}

/// The certificates of a chain, nothing about which is proved.
pub(crate) fn list(chain: &[u8]) -> Result<Vec<Certificate<'_>>, ChainError> {
    let mut der = Der::new(chain);
    let mut certificates = Vec::new();
    while !der.is_empty() && certificates.len() <= CHAIN_CERTIFICATES_MAX {
        let index = certificates.len();
        let certificate =
            Certificate::read(&mut der).map_err(|field| ChainError::Der { index, field })?;
        certificate.known_extensions(index)?;
        certificates.push(certificate);
    }
    Ok(certificates)
}

fn fingerprint(der: &[u8]) -> String {
    digest(&SHA256, der).as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn validity(mut fields: Der<'_>) -> Option<(u64, u64)> {
    let validity = (time(fields.any()?)?, time(fields.any()?)?);
    fields.end()?;
    Some(validity)
}

/// The point of a SubjectPublicKeyInfo.
fn key(spki: &[u8]) -> Option<&[u8; POINT_LEN]> {
    spki.strip_prefix(P384_KEY)?.try_into().ok().filter(|point: &&[u8; POINT_LEN]| point[0] == 4)
}

/// CompositeDeviceID: version 1, the device's key, digest of the firmware that it vouches for.
fn fwid<'a>(der: &mut Der<'a>) -> Option<Fwid<'a>> {
    let mut fields = der.inside(SEQUENCE)?;
    fields.next(INTEGER).filter(|tlv| tlv.value == [1])?;
    let device = key(fields.next(SEQUENCE)?.whole)?;
    let mut digest = fields.inside(SEQUENCE)?;
    fields.end()?;
    digest.next(OBJECT_IDENTIFIER).filter(|tlv| tlv.value == SHA_384)?;
    let value = digest.next(OCTET_STRING)?.value.try_into().ok()?;
    digest.end()?;
    Some(Fwid { device, digest: value })
}

/// The one attribute of this kind in a name.
fn attribute<'a>(name: &'a [u8], kind: &[u8]) -> Option<&'a str> {
    let mut sets = Der::new(name).inside(SEQUENCE)?;
    let mut found = None;
    while !sets.is_empty() {
        let mut pairs = sets.inside(SET)?;
        let mut pair = pairs.inside(SEQUENCE)?;
        pairs.end()?;
        let oid = pair.next(OBJECT_IDENTIFIER)?.value;
        let value = pair.any()?;
        pair.end()?;
        if oid == kind {
            let text = [UTF8_STRING, PRINTABLE_STRING].contains(&value.tag);
            if found.is_some() || !text {
                return None;
            }
            found = Some(std::str::from_utf8(value.value).ok()?);
        }
    }
    found
}

/// A non-negative integer without a leading zero too many.
const fn minimal(value: &[u8]) -> bool {
    match value {
        [] | [0x80..=0xFF, ..] | [0, 0..=0x7F, ..] => false,
        [0..=0x7F, ..] => true,
    }
}

const POINT_LEN: usize = 97;
const CHAIN_CERTIFICATES_MAX: usize = 8;
const VERSION_3: &[u8] = b"\x02\x01\x02";
/// `ecdsa-with-SHA384`, whole.
pub(crate) const ECDSA_SHA384: &[u8] = b"\x30\x0a\x06\x08\x2a\x86\x48\xce\x3d\x04\x03\x03";
/// SubjectPublicKeyInfo of a P-384 key, up to the point.
const P384_KEY: &[u8] =
    b"\x30\x76\x30\x10\x06\x07\x2a\x86\x48\xce\x3d\x02\x01\x06\x05\x2b\x81\x04\x00\x22\x03\x62\x00";
const SHA_384: &[u8] = b"\x60\x86\x48\x01\x65\x03\x04\x02\x02";
const COMMON_NAME: &[u8] = b"\x55\x04\x03";
const SERIAL_NUMBER: &[u8] = b"\x55\x04\x05";
const BASIC_CONSTRAINTS: &[u8] = b"\x55\x1d\x13";
const KEY_USAGE: &[u8] = b"\x55\x1d\x0f";
const EXTENDED_KEY_USAGE: &[u8] = b"\x55\x1d\x25";
const OCSP_SIGNING: &[u8] = b"\x2b\x06\x01\x05\x05\x07\x03\x09";
/// 2.23.133.5.4.1.
const FWID: &[u8] = b"\x67\x81\x05\x05\x04\x01";
const DIGITAL_SIGNATURE: u8 = 0x80;
const KEY_CERT_SIGN: u8 = 0x04;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_serial_number_has_one_encoding() {
        for (value, is) in [
            (&[][..], false),
            (&[0x80], false),
            (&[0, 0x7F], false),
            (&[0], true),
            (&[0x7F], true),
            (&[0, 0x80], true),
        ] {
            assert_eq!(minimal(value), is, "{value:02x?}");
        }
    }
}
