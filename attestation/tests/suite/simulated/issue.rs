//! Issues certificates of the simulated platform: honest ones for the fixtures, and any others for
//! the tests.

use aws_lc_rs::error::Unspecified;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeyPair;
use aws_lc_rs::signature::RSA_PSS_SHA384;
use chrysalis_attestation::report::Tcb;

pub(crate) use super::der::{bit_string, integer, seq, tlv};

/// Object identifier's content, critical, value.
pub(crate) type Extension = (Vec<u8>, bool, Vec<u8>);

/// A certificate to be signed.
#[derive(Clone)]
pub(crate) struct Draft {
    pub version: u8,
    pub serial: u8,
    pub issuer: String,
    pub subject: String,
    pub not_before: String,
    pub not_after: String,
    /// SubjectPublicKeyInfo.
    pub spki: Vec<u8>,
    pub extensions: Vec<Extension>,
    /// The algorithm named inside the signed part.
    pub algorithm: Vec<u8>,
    /// Write `critical FALSE`, the default, out in each extension: BER, not DER.
    pub write_default: bool,
}

impl Draft {
    /// The certificate of a signing key, as AMD's key service writes it.
    pub(crate) fn vcek(issuer: &str, product: &str, tcb: Tcb, hwid: &[u8], point: &[u8]) -> Self {
        let ec =
            seq(&[tlv(0x06, b"\x2a\x86\x48\xce\x3d\x02\x01"), tlv(0x06, b"\x2b\x81\x04\x00\x22")]);
        let mut extensions = vec![
            (amd(&[1]), false, integer(0)),
            (amd(&[2]), false, tlv(0x16, product.as_bytes())),
            (amd(&[3, 1]), false, integer(tcb.bootloader)),
            (amd(&[3, 2]), false, integer(tcb.tee)),
            (amd(&[3, 3]), false, integer(tcb.snp)),
            (amd(&[3, 8]), false, integer(tcb.microcode)),
            (amd(&[4]), false, hwid.to_vec()),
        ];
        if let Some(fmc) = tcb.fmc {
            extensions.push((amd(&[3, 9]), false, integer(fmc)));
        }
        Self {
            version: 2,
            serial: 0,
            issuer: issuer.to_owned(),
            subject: "SEV-VCEK".to_owned(),
            not_before: "260101000000Z".to_owned(),
            not_after: "460101000000Z".to_owned(),
            spki: seq(&[ec, bit_string(point)]),
            extensions,
            algorithm: pss_sha384(),
            write_default: false,
        }
    }

    /// The certificate, signed by `key`.
    pub(crate) fn sign(&self, key: &KeyPair) -> Result<Vec<u8>, Unspecified> {
        let extensions = extensions(&self.extensions, self.write_default);
        let tbs = seq(&[
            tlv(0xA0, &integer(self.version)),
            integer(self.serial),
            self.algorithm.clone(),
            name(&self.issuer),
            seq(&[tlv(0x17, self.not_before.as_bytes()), tlv(0x17, self.not_after.as_bytes())]),
            name(&self.subject),
            self.spki.clone(),
            tlv(0xA3, &extensions),
        ]);
        signed(tbs, key)
    }
}

/// Extensions; with `write_default` each says `critical FALSE` where that is so: BER, not DER.
pub(crate) fn extensions(extensions: &[Extension], write_default: bool) -> Vec<u8> {
    let parts: Vec<Vec<u8>> = extensions
        .iter()
        .map(|(oid, critical, value)| {
            let flag = match (critical, write_default) {
                (true, _) => tlv(0x01, &[0xFF]),
                (false, true) => tlv(0x01, &[0]),
                (false, false) => Vec::new(),
            };
            seq(&[tlv(0x06, oid), flag, tlv(0x04, value)])
        })
        .collect();
    seq(&parts)
}

/// A signed structure: what is signed, the algorithm, the signature.
pub(crate) fn signed(tbs: Vec<u8>, key: &KeyPair) -> Result<Vec<u8>, Unspecified> {
    let mut signature = vec![0; key.public_modulus_len()];
    key.sign(&RSA_PSS_SHA384, &SystemRandom::new(), &tbs, &mut signature)?;
    Ok(seq(&[tbs, pss_sha384(), bit_string(&signature)]))
}

/// Content of an object identifier below AMD's 1.3.6.1.4.1.3704.1.
pub(crate) fn amd(path: &[u8]) -> Vec<u8> {
    [b"\x2b\x06\x01\x04\x01\x9c\x78\x01", path].concat()
}

/// `rsassaPss` with SHA-384, MGF1 with SHA-384, 48 bytes of salt (RFC 4055).
pub(crate) fn pss_sha384() -> Vec<u8> {
    let sha384 = seq(&[tlv(0x06, b"\x60\x86\x48\x01\x65\x03\x04\x02\x02"), tlv(0x05, &[])]);
    let mgf1 = seq(&[tlv(0x06, b"\x2a\x86\x48\x86\xf7\x0d\x01\x01\x08"), sha384.clone()]);
    seq(&[
        tlv(0x06, b"\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0a"),
        seq(&[tlv(0xA0, &sha384), tlv(0xA1, &mgf1), tlv(0xA2, &integer(48))]),
    ])
}

/// O = Chrysalis simulation, proves nothing; CN = `common_name`.
pub(crate) fn name(common_name: &str) -> Vec<u8> {
    let attribute =
        |oid: &[u8], value: &str| tlv(0x31, &seq(&[tlv(0x06, oid), tlv(0x0C, value.as_bytes())]));
    seq(&[
        attribute(b"\x55\x04\x0a", "Chrysalis simulation, proves nothing"),
        attribute(b"\x55\x04\x03", common_name),
    ])
}
