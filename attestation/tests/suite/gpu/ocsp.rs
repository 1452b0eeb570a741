//! Writes certificate statuses: OCSP responses that say whatever a test wants.

use aws_lc_rs::digest::{SHA384, digest};

use super::der::{bit_string, integer, seq, tlv};
use super::issue::{CertificateDraft, ECDSA_SHA384, Key, common_name};

/// A status to be signed.
#[derive(Clone)]
pub(crate) struct StatusDraft {
    pub issuer_name: Vec<u8>,
    pub issuer_point: Vec<u8>,
    pub serial: u8,
    /// good, revoked or unknown, whole.
    pub state: Vec<u8>,
    pub this_update: &'static str,
    pub next_update: &'static str,
    /// `responseStatus`.
    pub outcome: u8,
    /// The tag of the responder's name.
    pub responder: u8,
    /// Changes the name of the certificate: algorithm, two digests, serial number.
    pub twist: fn(&mut [Vec<u8>; 4]),
}

impl StatusDraft {
    /// A good one of certificate `serial` of this issuer.
    pub(crate) fn good(issuer_name: &[u8], issuer: &Key, serial: u8) -> Self {
        Self {
            issuer_name: issuer_name.to_vec(),
            issuer_point: issuer.point().to_vec(),
            serial,
            state: tlv(0x80, &[]),
            this_update: "20260531000000Z",
            next_update: "20260602000000Z",
            outcome: 0,
            responder: 0xA1,
            twist: |_| {},
        }
    }

    /// Signed by `signer`, whose certificate goes along if it is not the issuer.
    pub(crate) fn sign(&self, signer: &Key, certificate: Option<&[u8]>) -> Vec<u8> {
        let data = self.signed();
        let signature = bit_string(&signer.sign_der(&data));
        let certificates =
            certificate.map_or_else(Vec::new, |der| tlv(0xA0, &seq(&[der.to_vec()])));
        let basic = seq(&[data, ECDSA_SHA384.to_vec(), signature, certificates]);
        let typed = seq(&[tlv(0x06, BASIC), tlv(0x04, &basic)]);
        seq(&[tlv(0x0A, &[self.outcome]), tlv(0xA0, &typed)])
    }

    /// What is signed of it.
    pub(crate) fn signed(&self) -> Vec<u8> {
        let hash = |bytes: &[u8]| tlv(0x04, digest(&SHA384, bytes).as_ref());
        let sha384 = seq(&[tlv(0x06, b"\x60\x86\x48\x01\x65\x03\x04\x02\x02"), tlv(0x05, &[])]);
        let time = |text: &str| tlv(0x18, text.as_bytes());
        let mut id =
            [sha384, hash(&self.issuer_name), hash(&self.issuer_point), integer(self.serial)];
        (self.twist)(&mut id);
        let single = seq(&[
            seq(&id),
            self.state.clone(),
            time(self.this_update),
            tlv(0xA0, &time(self.next_update)),
        ]);
        seq(&[
            tlv(self.responder, &common_name("simulated responder")),
            time(self.this_update),
            seq(&[single]),
        ])
    }
}

/// A responder that the issuer named, for signing statuses.
pub(crate) fn responder(issuer_name: &[u8], key: &Key) -> CertificateDraft {
    let name = common_name("simulated responder");
    let mut draft = CertificateDraft::signer(77, issuer_name, &name, key.point());
    let purpose = seq(&[tlv(0x06, b"\x2b\x06\x01\x05\x05\x07\x03\x09")]);
    draft.extensions.push((b"\x55\x1d\x25".to_vec(), false, purpose));
    draft
}

/// `id-pkix-ocsp-basic`.
pub(crate) const BASIC: &[u8] = b"\x2b\x06\x01\x05\x05\x07\x30\x01\x01";
