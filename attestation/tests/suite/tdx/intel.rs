//! A vendor of our own in Intel's place: root, certificates, revocation lists, collateral, quotes.
//! Every part may be changed before it is signed.

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair,
    EcdsaSigningAlgorithm, KeyPair,
};
use chrysalis_attestation::quote::TdReport;
use chrysalis_protocol::hash::sha256;
use chrysalis_protocol::tdx_collateral::TdxCollateral;

use crate::simulated::issue::{bit_string, integer, seq, tlv};

/// What the vendor says, until a test changes it.
#[derive(Clone)]
pub(crate) struct Intel {
    pub ppid: Vec<u8>,
    /// Of the machine that made the later quotes, where it is another one.
    pub later_ppid: Option<Vec<u8>>,
    /// Of the platform's certificate: `DynamicPlatform`, `CachedKeys`, `SMTEnabled`; the processor
    /// authority's certificates have none.
    pub flags: [Option<bool>; 3],
    /// Whether the platform's certificate is on the list.
    pub revoked: bool,
    /// End of the platform's certificate, `YYMMDDhhmmssZ`; beginning and end of the lists.
    pub pck_not_after: &'static str,
    pub crl_this_update: &'static str,
    pub crl_next_update: &'static str,
    /// Issue and next update of TCB info and identity.
    pub tcb_window: [&'static str; 2],
    pub identity_window: [&'static str; 2],
    pub tcb_status: &'static str,
    pub identity_status: &'static str,
    pub evaluation: u32,
    pub fmspc: [u8; 6],
    /// Of the TCB info alone, where it is another platform's.
    pub tcb_fmspc: Option<[u8; 6]>,
    pub tcb_pce_id: &'static str,
    pub tcb_id: &'static str,
    /// What the quoting enclave is, and what the identity says that it is.
    pub qe_signer: [u8; 32],
    pub identity_signer: [u8; 32],
    pub module_signer: [u8; 48],
    /// The quote's version, its body's type.
    pub version: u16,
    pub body: u16,
    pub tee_type: u32,
    pub key_type: u16,
    /// Certificates in the quote, by their numbers: 0 leaf, 1 authority, 2 root.
    pub chain: &'static [usize],
}

/// What was made.
#[derive(Clone)]
pub(crate) struct Made {
    pub root: Vec<u8>,
    pub quotes: Vec<Vec<u8>>,
    pub collateral: TdxCollateral,
}

impl Intel {
    /// An up-to-date platform with SMT off, in the middle of 2026.
    pub(crate) fn honest() -> Self {
        Self {
            ppid: PPID.to_vec(),
            later_ppid: None,
            flags: [Some(false); 3],
            revoked: false,
            pck_not_after: "330101000000Z",
            crl_this_update: "260520000000Z",
            crl_next_update: "260701000000Z",
            tcb_window: ["2026-05-20T00:00:00Z", "2026-06-20T00:00:00Z"],
            identity_window: ["2026-05-20T00:00:00Z", "2026-06-20T00:00:00Z"],
            tcb_status: "UpToDate",
            identity_status: "UpToDate",
            evaluation: 18,
            fmspc: FMSPC,
            tcb_fmspc: None,
            tcb_pce_id: "0000",
            tcb_id: "TDX",
            qe_signer: [0x51; 32],
            identity_signer: [0x51; 32],
            module_signer: [0; 48],
            version: 4,
            body: 2,
            tee_type: 0x81,
            key_type: 2,
            chain: &[0, 1, 2],
        }
    }

    /// Root, collateral and a quote over each of `reports`.
    pub(crate) fn make(&self, reports: &[TdReport]) -> Made {
        let [root, authority, pck, signer, attestation] = [(); 5].map(|()| Key::new());
        let certificate = |serial, issuer: (&str, &Key), subject: (&str, &Key), kind, not_after| {
            Certificate { serial, issuer, subject, kind, not_after }.sign()
        };
        let long = "490101000000Z";
        let root_der = certificate(1, (ROOT, &root), (ROOT, &root), Kind::Authority, long);
        let authority_der =
            certificate(2, (ROOT, &root), (PLATFORM_CA, &authority), Kind::Authority, long);
        let platform = |ppid: &[u8]| {
            let kind = Kind::Platform(self.extension(ppid));
            let (issuer, subject) = ((PLATFORM_CA, &authority), (PCK, &pck));
            certificate(3, issuer, subject, kind, self.pck_not_after)
        };
        let signer_der = certificate(4, (ROOT, &root), (SIGNER, &signer), Kind::Leaf, long);
        let (tcb_info, qe_identity) = (self.tcb_info(), self.qe_identity());
        let collateral = TdxCollateral {
            root_crl: self.crl(ROOT, &root, None),
            pck_crl: self.crl(PLATFORM_CA, &authority, self.revoked.then_some(3)),
            tcb_info_signer: signer_der.clone(),
            tcb_info_signature: signer.fixed(tcb_info.as_bytes()),
            tcb_info,
            qe_identity_signer: signer_der,
            qe_identity_signature: signer.fixed(qe_identity.as_bytes()),
            qe_identity,
        };
        let chain = |ppid: &[u8]| -> String {
            let ders = [&platform(ppid), &authority_der, &root_der];
            self.chain.iter().map(|&number| pem(ders[number])).collect()
        };
        let first = chain(&self.ppid);
        let later = self.later_ppid.as_ref().map_or_else(|| first.clone(), |ppid| chain(ppid));
        let chains = std::iter::once(first).chain(std::iter::repeat(later));
        let quotes = reports.iter().zip(chains);
        let quotes = quotes
            .map(|(report, chain)| self.quote(report, &pck, &attestation, chain.as_bytes()))
            .collect();
        Made { root: root_der, quotes, collateral }
    }

    fn quote(&self, report: &TdReport, pck: &Key, attestation: &Key, chain: &[u8]) -> Vec<u8> {
        let mut signed = Vec::new();
        signed.extend(self.version.to_le_bytes());
        signed.extend(self.key_type.to_le_bytes());
        signed.extend(self.tee_type.to_le_bytes());
        signed.extend([0; 4]);
        signed.extend(b"\x93\x9a\x72\x33\xf7\x9c\x4c\xa9\x94\x0a\x0d\xb3\x95\x7f\x06\x07");
        signed.extend([0; 20]);
        let body = body(report, self.body);
        if self.version == 5 {
            signed.extend(self.body.to_le_bytes());
            signed.extend((body.len() as u32).to_le_bytes());
        }
        signed.extend(body);

        let key = &attestation.point()[1..];
        let authentication = [0xA7; 32];
        let enclave = self.enclave_report(&sha256(&[key, &authentication]));
        let mut certification = enclave.clone();
        certification.extend(pck.fixed(&enclave));
        certification.extend(32_u16.to_le_bytes());
        certification.extend(authentication);
        certification.extend(typed(5, chain));
        let mut signature = attestation.fixed(&signed).to_vec();
        signature.extend(key);
        signature.extend(typed(6, &certification));
        signed.extend((signature.len() as u32).to_le_bytes());
        signed.extend(signature);
        signed
    }

    /// The quoting enclave's report (Intel SDM, volume 3D, table 39-21).
    fn enclave_report(&self, data: &[u8; 32]) -> Vec<u8> {
        let mut out = vec![0; 48];
        out.extend([0x11, 0, 0, 0, 0, 0, 0, 0, 0xE7, 0, 0, 0, 0, 0, 0, 0]);
        out.extend([0x3E; 32]);
        out.extend([0; 32]);
        out.extend(self.qe_signer);
        out.extend([0; 96]);
        out.extend(2_u16.to_le_bytes());
        out.extend(4_u16.to_le_bytes());
        out.extend([0; 60]);
        out.extend(data);
        out.extend([0; 32]);
        out
    }

    fn tcb_info(&self) -> String {
        let [issue, next] = self.tcb_window;
        let fmspc = hex(&self.tcb_fmspc.unwrap_or(self.fmspc));
        let mut levels = ["{\"svn\":1}"; 16];
        let svns = levels.join(",");
        // The second one is the module's version, and zero where it has no identity of its own.
        levels[1] = "{\"svn\":0}";
        let module_svns = levels.join(",");
        format!(
            "{{\"id\":\"{}\",\"version\":3,\"issueDate\":\"{issue}\",\"nextUpdate\":\"{next}\",\
             \"fmspc\":\"{fmspc}\",\"pceId\":\"{}\",\"tcbType\":0,\
             \"tcbEvaluationDataNumber\":{},\
             \"tdxModule\":{{\"mrsigner\":\"{}\",\"attributes\":\"0000000000000000\",\
             \"attributesMask\":\"FFFFFFFFFFFFFFFF\"}},\
             \"tcbLevels\":[{{\"tcb\":{{\"sgxtcbcomponents\":[{svns}],\"pcesvn\":11,\
             \"tdxtcbcomponents\":[{module_svns}]}},\"tcbDate\":\"2026-01-01T00:00:00Z\",\
             \"tcbStatus\":\"{}\",\"advisoryIDs\":[\"INTEL-SA-00001\"]}}]}}",
            self.tcb_id,
            self.tcb_pce_id,
            self.evaluation,
            hex(&self.module_signer),
            self.tcb_status,
        )
    }

    fn qe_identity(&self) -> String {
        let [issue, next] = self.identity_window;
        format!(
            "{{\"id\":\"TD_QE\",\"version\":2,\"issueDate\":\"{issue}\",\"nextUpdate\":\"{next}\",\
             \"tcbEvaluationDataNumber\":{},\"miscselect\":\"00000000\",\
             \"miscselectMask\":\"FFFFFFFF\",\"attributes\":\"11000000000000000000000000000000\",\
             \"attributesMask\":\"FBFFFFFFFFFFFFFF0000000000000000\",\"mrsigner\":\"{}\",\
             \"isvprodid\":2,\"tcbLevels\":[{{\"tcb\":{{\"isvsvn\":4}},\
             \"tcbDate\":\"2026-01-01T00:00:00Z\",\"tcbStatus\":\"{}\"}}]}}",
            self.evaluation,
            hex(&self.identity_signer),
            self.identity_status,
        )
    }

    /// Value of the platform certificate's extension.
    fn extension(&self, ppid: &[u8]) -> Vec<u8> {
        let entry = |path: &[u8], value: Vec<u8>| seq(&[tlv(0x06, &sgx(path)), value]);
        let mut tcb: Vec<_> = (1..=16).map(|index| entry(&[2, index], integer(3))).collect();
        tcb.push(entry(&[2, 17], integer(11)));
        tcb.push(entry(&[2, 18], tlv(0x04, &[3; 16])));
        let flags: Vec<_> = (1..)
            .zip(self.flags)
            .filter_map(|(index, flag)| Some((index, flag?)))
            .map(|(index, set)| entry(&[7, index], tlv(0x01, &[if set { 0xFF } else { 0 }])))
            .collect();
        seq(&[
            entry(&[1], tlv(0x04, ppid)),
            entry(&[2], seq(&tcb)),
            entry(&[3], tlv(0x04, &[0, 0])),
            entry(&[4], tlv(0x04, &self.fmspc)),
            entry(&[5], tlv(0x0A, &[1])),
            entry(&[6], tlv(0x04, &[9; 16])),
            entry(&[7], seq(&flags)),
        ])
    }

    fn crl(&self, issuer: &str, key: &Key, revoked: Option<u8>) -> Vec<u8> {
        let this_update = time(self.crl_this_update);
        let revoked = match revoked {
            Some(serial) => seq(&[seq(&[integer(serial), this_update.clone()])]),
            None => Vec::new(),
        };
        let number = seq(&[tlv(0x06, b"\x55\x1d\x14"), tlv(0x04, &integer(1))]);
        key.sign(&[
            integer(1),
            ecdsa(),
            name(issuer),
            this_update,
            time(self.crl_next_update),
            revoked,
            tlv(0xA0, &seq(&[key.authority(), number])),
        ])
    }
}

/// A P-256 key.
struct Key(Vec<u8>);

impl Key {
    fn new() -> Self {
        let pkcs8 =
            EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &SystemRandom::new());
        Self(pkcs8.expect("a key").as_ref().to_vec())
    }

    fn pair(&self, algorithm: &'static EcdsaSigningAlgorithm) -> EcdsaKeyPair {
        EcdsaKeyPair::from_pkcs8(algorithm, &self.0).expect("it was a key")
    }

    fn point(&self) -> Vec<u8> {
        self.pair(&ECDSA_P256_SHA256_ASN1_SIGNING).public_key().as_ref().to_vec()
    }

    /// r and s.
    fn fixed(&self, message: &[u8]) -> [u8; 64] {
        let signature = self.pair(&ECDSA_P256_SHA256_FIXED_SIGNING);
        let signature = signature.sign(&SystemRandom::new(), message).expect("it signs");
        signature.as_ref().try_into().expect("64 bytes")
    }

    /// The parts as a sequence, signed as certificates and lists are.
    fn sign(&self, parts: &[Vec<u8>]) -> Vec<u8> {
        let signed = seq(parts);
        let signature = self.pair(&ECDSA_P256_SHA256_ASN1_SIGNING);
        let signature = signature.sign(&SystemRandom::new(), &signed).expect("it signs");
        seq(&[signed, ecdsa(), bit_string(signature.as_ref())])
    }

    /// The extension that names this key as the issuer's.
    fn authority(&self) -> Vec<u8> {
        let id = sha256(&[&self.point()]);
        seq(&[tlv(0x06, b"\x55\x1d\x23"), tlv(0x04, &seq(&[tlv(0x80, &id[..20])]))])
    }
}

enum Kind {
    Authority,
    Leaf,
    /// With Intel's extension.
    Platform(Vec<u8>),
}

struct Certificate<'a> {
    serial: u8,
    issuer: (&'a str, &'a Key),
    subject: (&'a str, &'a Key),
    kind: Kind,
    not_after: &'a str,
}

impl Certificate<'_> {
    fn sign(self) -> Vec<u8> {
        let critical =
            |oid: &[u8], value: &[u8]| seq(&[tlv(0x06, oid), tlv(0x01, &[0xFF]), tlv(0x04, value)]);
        let (usage, constraints) = match self.kind {
            Kind::Authority => (0b0000_0110, seq(&[tlv(0x01, &[0xFF])])),
            Kind::Leaf | Kind::Platform(_) => (0b1000_0000, seq(&[])),
        };
        let mut extensions = vec![
            self.issuer.1.authority(),
            critical(b"\x55\x1d\x0f", &tlv(0x03, &[if usage == 6 { 1 } else { 7 }, usage])),
            critical(b"\x55\x1d\x13", &constraints),
        ];
        if let Kind::Platform(extension) = self.kind {
            extensions.push(seq(&[tlv(0x06, &sgx(&[])), tlv(0x04, &extension)]));
        }
        let curve = seq(&[
            tlv(0x06, b"\x2a\x86\x48\xce\x3d\x02\x01"),
            tlv(0x06, b"\x2a\x86\x48\xce\x3d\x03\x01\x07"),
        ]);
        self.issuer.1.sign(&[
            tlv(0xA0, &integer(2)),
            integer(self.serial),
            ecdsa(),
            name(self.issuer.0),
            seq(&[time("260101000000Z"), time(self.not_after)]),
            name(self.subject.0),
            seq(&[curve, bit_string(&self.subject.1.point())]),
            tlv(0xA3, &seq(&extensions)),
        ])
    }
}

/// The body of a quote; types 3 and 4 have what TDX 1.5 adds.
fn body(report: &TdReport, kind: u16) -> Vec<u8> {
    let mut out = report.tee_tcb_svn.to_vec();
    out.extend(report.mr_seam);
    out.extend(report.mr_signer_seam);
    for bits in [report.seam_attributes, report.td_attributes, report.xfam] {
        out.extend(bits.to_le_bytes());
    }
    for register in [report.mr_td, report.mr_config_id, report.mr_owner, report.mr_owner_config] {
        out.extend(register);
    }
    out.extend(report.rtmrs.concat());
    out.extend(report.report_data);
    if kind > 2 {
        let later = report.later.expect("a report of TDX 1.5");
        out.extend(later.tee_tcb_svn2);
        out.extend(later.mr_service_td);
    }
    if kind == 4 {
        out.extend([0; 237]);
    }
    out
}

/// Certification data.
fn typed(kind: u16, data: &[u8]) -> Vec<u8> {
    [&kind.to_le_bytes(), (data.len() as u32).to_le_bytes().as_slice(), data].concat()
}

fn pem(der: &[u8]) -> String {
    const SYMBOLS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut base64 = String::new();
    for group in der.chunks(3) {
        let bits = group.iter().fold(0_u32, |bits, &byte| bits << 8 | u32::from(byte));
        let bits = bits << (8 * (3 - group.len()));
        for index in 0..4 {
            let symbol = SYMBOLS[(bits >> (18 - 6 * index) & 63) as usize];
            base64.push(if index > group.len() { '=' } else { char::from(symbol) });
        }
    }
    let lines: Vec<_> =
        base64.as_bytes().chunks(64).map(|line| String::from_utf8_lossy(line)).collect();
    format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"))
}

/// Below Intel's 1.2.840.113741.1.13.1.
fn sgx(path: &[u8]) -> Vec<u8> {
    [b"\x2a\x86\x48\x86\xf8\x4d\x01\x0d\x01", path].concat()
}

/// `ecdsa-with-SHA256`.
fn ecdsa() -> Vec<u8> {
    seq(&[tlv(0x06, b"\x2a\x86\x48\xce\x3d\x04\x03\x02")])
}

fn name(common_name: &str) -> Vec<u8> {
    seq(&[tlv(0x31, &seq(&[tlv(0x06, b"\x55\x04\x03"), tlv(0x0C, common_name.as_bytes())]))])
}

fn time(text: &str) -> Vec<u8> {
    tlv(0x17, text.as_bytes())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02X}")).collect()
}

pub(crate) const PPID: [u8; 16] = [0xB1; 16];
pub(crate) const FMSPC: [u8; 6] = [0xB0, 0xC0, 0x6F, 0, 0, 0];
const ROOT: &str = "Test root";
const PLATFORM_CA: &str = "Intel SGX PCK Platform CA";
const PCK: &str = "Intel SGX PCK Certificate";
const SIGNER: &str = "Test TCB signing";
