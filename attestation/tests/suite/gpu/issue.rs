//! Issues certificates of NVIDIA's profile: ECDSA with SHA-384 on P-384, whatever they claim.

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{
    ECDSA_P384_SHA384_ASN1_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _,
};

use super::der::{bit_string, integer, seq, tlv};

/// A certificate to be signed.
#[derive(Clone)]
pub(crate) struct CertificateDraft {
    pub version: u8,
    pub serial: u8,
    /// Names, whole.
    pub issuer: Vec<u8>,
    pub subject: Vec<u8>,
    pub not_before: &'static str,
    pub not_after: &'static str,
    pub point: Vec<u8>,
    /// Object identifier's content, critical, value.
    pub extensions: Vec<(Vec<u8>, bool, Vec<u8>)>,
    /// The algorithm of the signature, whole: signed, and beside the signature.
    pub algorithms: [&'static [u8]; 2],
}

impl CertificateDraft {
    /// A certificate that may issue others.
    pub(crate) fn authority(serial: u8, issuer: &[u8], subject: &[u8], point: &[u8]) -> Self {
        Self {
            version: 2,
            serial,
            issuer: issuer.to_vec(),
            subject: subject.to_vec(),
            not_before: "20260101000000Z",
            not_after: "99991231235959Z",
            point: point.to_vec(),
            extensions: vec![
                (BASIC_CONSTRAINTS.to_vec(), true, seq(&[tlv(0x01, &[0xFF])])),
                (KEY_USAGE.to_vec(), true, b"\x03\x02\x02\x04".to_vec()),
            ],
            algorithms: [ECDSA_SHA384; 2],
        }
    }

    /// A certificate of a key that signs data.
    pub(crate) fn signer(serial: u8, issuer: &[u8], subject: &[u8], point: &[u8]) -> Self {
        let mut draft = Self::authority(serial, issuer, subject, point);
        draft.extensions = vec![(KEY_USAGE.to_vec(), true, b"\x03\x02\x07\x80".to_vec())];
        draft
    }

    pub(crate) fn sign(&self, key: &Key) -> Vec<u8> {
        let tbs = self.signed();
        let signature = bit_string(&key.sign_der(&tbs));
        seq(&[tbs, self.algorithms[1].to_vec(), signature])
    }

    /// What is signed of it.
    pub(crate) fn signed(&self) -> Vec<u8> {
        let extensions: Vec<_> = self
            .extensions
            .iter()
            .map(|(oid, critical, value)| {
                let flag = if *critical { tlv(0x01, &[0xFF]) } else { Vec::new() };
                seq(&[tlv(0x06, oid), flag, tlv(0x04, value)])
            })
            .collect();
        let time = |text: &str| tlv(0x18, text.as_bytes());
        seq(&[
            tlv(0xA0, &integer(self.version)),
            integer(self.serial),
            self.algorithms[0].to_vec(),
            self.issuer.clone(),
            seq(&[time(self.not_before), time(self.not_after)]),
            self.subject.clone(),
            spki(&self.point),
            tlv(0xA3, &seq(&extensions)),
        ])
    }
}

/// A P-384 key that signs in both forms.
pub(crate) struct Key {
    der: EcdsaKeyPair,
    fixed: EcdsaKeyPair,
}

impl Key {
    pub(crate) fn generate() -> Self {
        let key = EcdsaKeyPair::generate(&ECDSA_P384_SHA384_FIXED_SIGNING).unwrap();
        Self::from_pkcs8(key.to_pkcs8v1().unwrap().as_ref())
    }

    pub(crate) fn from_pkcs8(bytes: &[u8]) -> Self {
        Self {
            der: EcdsaKeyPair::from_pkcs8(&ECDSA_P384_SHA384_ASN1_SIGNING, bytes).unwrap(),
            fixed: EcdsaKeyPair::from_pkcs8(&ECDSA_P384_SHA384_FIXED_SIGNING, bytes).unwrap(),
        }
    }

    /// Uncompressed.
    pub(crate) fn point(&self) -> &[u8] {
        self.fixed.public_key().as_ref()
    }

    pub(crate) fn sign_der(&self, message: &[u8]) -> Vec<u8> {
        self.der.sign(&SystemRandom::new(), message).unwrap().as_ref().to_vec()
    }

    /// r || s.
    pub(crate) fn sign_fixed(&self, message: &[u8]) -> Vec<u8> {
        self.fixed.sign(&SystemRandom::new(), message).unwrap().as_ref().to_vec()
    }
}

/// SubjectPublicKeyInfo of a P-384 point.
pub(crate) fn spki(point: &[u8]) -> Vec<u8> {
    let curve =
        seq(&[tlv(0x06, b"\x2a\x86\x48\xce\x3d\x02\x01"), tlv(0x06, b"\x2b\x81\x04\x00\x22")]);
    seq(&[curve, bit_string(point)])
}

/// CompositeDeviceID.
pub(crate) fn fwid_extension(device: &[u8], fwid: &[u8]) -> (Vec<u8>, bool, Vec<u8>) {
    let digest = seq(&[tlv(0x06, b"\x60\x86\x48\x01\x65\x03\x04\x02\x02"), tlv(0x04, fwid)]);
    (b"\x67\x81\x05\x05\x04\x01".to_vec(), false, seq(&[integer(1), spki(device), digest]))
}

pub(crate) fn device_name(common_name: &str, serial: &str) -> Vec<u8> {
    seq(&[attribute(b"\x55\x04\x05", serial), attribute(b"\x55\x04\x03", common_name)])
}

pub(crate) fn common_name(name: &str) -> Vec<u8> {
    seq(&[attribute(b"\x55\x04\x03", name)])
}

pub(crate) fn root_name() -> Vec<u8> {
    common_name("Chrysalis simulated GPU root, proves nothing")
}

fn attribute(oid: &[u8], value: &str) -> Vec<u8> {
    tlv(0x31, &seq(&[tlv(0x06, oid), tlv(0x0C, value.as_bytes())]))
}

pub(crate) fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::new();
    for chunk in bytes.chunks(3) {
        let mut group = [0; 4];
        group[1..=chunk.len()].copy_from_slice(chunk);
        let bits = u32::from_be_bytes(group);
        for i in 0..4 {
            let digit = DIGITS[(bits >> (18 - 6 * i)) as usize & 63];
            out.push(if i <= chunk.len() { char::from(digit) } else { '=' });
        }
    }
    out
}

pub(crate) const ECDSA_SHA384: &[u8] = b"\x30\x0a\x06\x08\x2a\x86\x48\xce\x3d\x04\x03\x03";
pub(crate) const BASIC_CONSTRAINTS: &[u8] = b"\x55\x1d\x13";
pub(crate) const KEY_USAGE: &[u8] = b"\x55\x1d\x0f";
