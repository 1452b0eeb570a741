//! Reports and certificates recorded from real machines. They are not part of the repository: see
//! `CHRYSALIS_VECTORS` in docs/howto-auditor.md; where they are absent, these tests say so and pass.

use std::fs;
use std::path::{Path, PathBuf};

use crate::simulated::World;
use chrysalis_attestation::policy::AppraisalPolicy;
use chrysalis_attestation::report::{Product, ReportError, SigningKey};
use chrysalis_attestation::verifier::{
    CertificateError, PlatformEvidence, Roots, VerifiedReport, VerifyError, verify_signing_key,
    verify_snp,
};
use chrysalis_protocol::statement::Tee;
use x509_cert::der::Decode;

/// ARK, ASK and ASVK of a product, as pinned.
macro_rules! pinned {
    ($product:literal) => {
        [
            include_bytes!(concat!("../../src/roots/", $product, "/ark.der")),
            include_bytes!(concat!("../../src/roots/", $product, "/ask.der")),
            include_bytes!(concat!("../../src/roots/", $product, "/asvk.der")),
        ]
    };
}

/// 2026-06-01, inside the validity of every recorded VCEK.
const JUNE_2026: u64 = 1_780_272_000;
/// 2025-06-01, inside the validity of the recorded VLEK.
const JUNE_2025: u64 = 1_748_736_000;

#[test]
fn genoa_and_turin_reports_are_authentic() {
    let Some(folder) = vectors() else { return };
    for (name, product, version) in
        [("genoa", Product::Genoa, 3), ("turin", Product::Turin, 5), ("milan", Product::Milan, 3)]
    {
        let verified = microsoft(&folder, name, JUNE_2026).expect("a genuine report");
        assert_eq!(verified.product(), product);
        assert_eq!(verified.report().version, version);
        assert_eq!(PlatformEvidence::Snp(Box::new(verified.clone())).tee(), Tee::SevSnp);
        assert_eq!(verified.report().policy, 0x3_001F);
        assert_ne!(verified.report().host_data, [0; 32]);
        assert_eq!(verified.report().to_signed_bytes(), report(&folder, name)[..0x2A0]);
    }
}

#[test]
fn every_flipped_bit_of_a_genuine_report_and_its_vcek_is_refused() {
    let Some(folder) = vectors() else { return };
    for name in ["genoa", "turin"] {
        let report = report(&folder, name);
        let vcek = certificate(&folder, name);
        let refused = |report: &[u8], vcek: &[u8], bit: usize| {
            let refused = verify_snp(report, vcek, Roots::Amd, JUNE_2026);
            refused.map(|_| ()).expect_err(&format!("bit {bit} of {name}")).code()
        };
        for bit in 0..report.len() * 8 {
            let code = refused(&flipped(&report, bit), &vcek, bit);
            // A flip in the CPU's identity, the chip's or the patch levels asks for another
            // certificate.
            let expected = code.starts_with("report.") || code.starts_with("certificate.");
            assert!(expected, "{name} {bit}: {code}");
        }
        for bit in 0..vcek.len() * 8 {
            let code = refused(&report, &flipped(&vcek, bit), bit);
            assert!(code.starts_with("certificate."), "{name} {bit}: {code}");
        }
        println!("{name}: {} flipped bits of the report, none accepted", report.len() * 8);
        println!("{name}: {} flipped bits of the certificate, none accepted", vcek.len() * 8);
    }
    println!("recorded, for comparison: of 5,440 flips of a real report `sev` 8.0 accepted 3,360");
}

#[test]
fn the_recorded_roots_are_the_pinned_ones() {
    let Some(folder) = vectors() else { return };
    let pinned: [(&str, [&[u8]; 3]); 3] =
        [("milan", pinned!("milan")), ("genoa", pinned!("genoa")), ("turin", pinned!("turin"))];
    for (product, [ark, ask, asvk]) in pinned {
        for (file, expected) in [("ark", ark), ("ask", ask), ("asvk", asvk)] {
            let path = format!("snp/amd_roots/{product}/{file}.der");
            assert_eq!(read(&folder, &path), expected, "{path}");
        }
        for (file, expected) in [("ark", ark), ("ask", ask)] {
            let path = format!("snp/microsoft_tav/{product}_{file}.pem");
            assert_eq!(pem(&folder, &path), [expected], "{path}");
        }
    }
    for (path, [ark, ask, _]) in [
        ("snp/milan/virtee_cert_chain_milan.pem", pinned[0].1),
        ("snp/turin/virtee_cert_chain_turin.pem", pinned[2].1),
    ] {
        let mut chain = pem(&folder, path);
        chain.sort();
        let mut expected = [ark.to_vec(), ask.to_vec()];
        expected.sort();
        assert_eq!(chain, expected, "{path}");
    }
}

#[test]
fn the_default_rules_judge_real_machines_by_name() {
    let Some(folder) = vectors() else { return };
    let mut policy = World::honest().policy;
    let judged = |policy: &AppraisalPolicy, verified: &VerifiedReport| {
        let report = verified.report();
        let mut policy = policy.clone();
        policy.measurements = vec![report.measurement];
        policy.appraise_report(verified, &report.host_data, JUNE_2026).map_err(|e| e.code())
    };
    let [milan, genoa, turin] =
        ["milan", "genoa", "turin"].map(|name| microsoft(&folder, name, JUNE_2026).expect(name));
    assert_eq!(judged(&policy, &milan), Err("platform.product"));
    // RMPocalypse; and all three were launched with a guest policy that demands nothing.
    assert_eq!(judged(&policy, &genoa), Err("platform.tcb_floor"));
    assert_eq!(judged(&policy, &turin), Err("guest_policy.abi"));
    policy.dangerous.allow_milan = true;
    assert_eq!(judged(&policy, &milan), Err("guest_policy.abi"));
    let vlek = read(&folder, "snp/milan/trustee_test-vlek.der");
    let loaned = read(&folder, "snp/milan/trustee_test-vlek-report.bin");
    let loaned = verify_snp(&loaned, &vlek, Roots::Amd, JUNE_2025).expect("a genuine report");
    assert_eq!(judged(&policy, &loaned), Err("platform.loaned_key"));
    policy.snp.loaned_key_providers = vec!["CN=cc-us-east-2.amazonaws.com".to_owned()];
    let later = judged(&policy, &loaned).expect_err("an old machine, at VMPL 1");
    assert!(later.starts_with("platform."), "{later}");
}

#[test]
fn a_report_is_not_believed_under_the_simulated_roots_or_another_products_key() {
    let Some(folder) = vectors() else { return };
    let genoa = report(&folder, "genoa");
    let refused = verify_snp(&genoa, &certificate(&folder, "genoa"), Roots::Simulated, JUNE_2026);
    assert_eq!(refused.map(|_| ()).map_err(|error| error.code()), Err("certificate.issuer"));
    let refused = verify_snp(&genoa, &certificate(&folder, "turin"), Roots::Amd, JUNE_2026);
    assert_eq!(refused.map(|_| ()).map_err(|error| error.code()), Err("certificate.issuer"));
}

#[test]
fn an_expired_vcek_is_refused() {
    let Some(folder) = vectors() else { return };
    for now in [JUNE_2025, 2_000_000_000] {
        let refused = microsoft(&folder, "genoa", now).expect_err("outside its validity");
        assert!(
            matches!(refused, VerifyError::Certificate(CertificateError::Validity { .. })),
            "{refused}"
        );
    }
}

#[test]
fn version_2_is_refused_because_the_product_would_be_a_guess() {
    let Some(folder) = vectors() else { return };
    let vcek = read(&folder, "snp/milan/trustee_test-vcek.der");
    let report = read(&folder, "snp/milan/trustee_test-report.bin");
    let refused = verify_snp(&report, &vcek, Roots::Amd, JUNE_2026).expect_err("version 2");
    assert_eq!(refused, VerifyError::Report(ReportError::Version { version: 2 }));

    let vcek = read(&folder, "snp/milan/virtee_vcek_milan.der");
    let text = String::from_utf8(read(&folder, "snp/milan/virtee_report_milan.hex"));
    let digits: Vec<u32> =
        text.expect("text").chars().filter_map(|digit| digit.to_digit(16)).collect();
    let report: Vec<u8> = digits.chunks_exact(2).map(|d| (d[0] << 4 | d[1]) as u8).collect();
    let refused = verify_snp(&report, &vcek, Roots::Amd, JUNE_2026).expect_err("version 2");
    assert_eq!(refused, VerifyError::Report(ReportError::Version { version: 2 }));
}

#[test]
fn chip_certificates_are_good_alone() {
    let Some(folder) = vectors() else { return };
    for (path, product, hwid_len) in [
        ("snp/turin/virtee_vcek_turin.der", Product::Turin, 8),
        ("snp/milan/virtee_vcek_milan.der", Product::Milan, 64),
        ("snp/milan/trustee_test-vcek.der", Product::Milan, 64),
    ] {
        let der = read(&folder, path);
        let key = verify_signing_key(&der, SigningKey::Vcek, product, Roots::Amd, JUNE_2026)
            .unwrap_or_else(|error| panic!("{path}: {error}"));
        assert_eq!(key.hwid.expect("a VCEK names its chip").len(), hwid_len);
    }
}

#[test]
fn invalid_chip_certificates_are_refused() {
    let Some(folder) = vectors() else { return };
    for name in ["legacy", "new"] {
        let der = read(&folder, &format!("snp/milan/trustee_test-vcek-invalid-{name}.der"));
        let refused =
            verify_signing_key(&der, SigningKey::Vcek, Product::Milan, Roots::Amd, JUNE_2026);
        assert_eq!(refused.map_err(|error| error.code()), Err("certificate.signature"), "{name}");
    }
}

#[test]
fn a_report_under_a_loaned_key_is_authentic_and_names_its_provider() {
    let Some(folder) = vectors() else { return };
    let report = read(&folder, "snp/milan/trustee_test-vlek-report.bin");
    let vlek = read(&folder, "snp/milan/trustee_test-vlek.der");
    let verified = verify_snp(&report, &vlek, Roots::Amd, JUNE_2025).expect("a genuine report");
    assert_eq!(verified.csp_id(), Some("CN=cc-us-east-2.amazonaws.com"));
    assert_eq!(verified.report().vmpl, 1);
    assert_eq!(verified.report().signing_key, SigningKey::Vlek);
}

fn microsoft(folder: &Path, name: &str, now: u64) -> Result<VerifiedReport, VerifyError> {
    verify_snp(&report(folder, name), &certificate(folder, name), Roots::Amd, now)
}

fn report(folder: &Path, name: &str) -> Vec<u8> {
    read(folder, &format!("snp/microsoft_tav/{name}_attestation_report.bin"))
}

fn certificate(folder: &Path, name: &str) -> Vec<u8> {
    let [der] = pem(folder, &format!("snp/microsoft_tav/{name}_vcek.pem")).try_into().expect("one");
    der
}

/// The DER of each certificate in a PEM file.
pub(crate) fn pem(folder: &Path, path: &str) -> Vec<Vec<u8>> {
    let text = String::from_utf8(read(folder, path)).expect("PEM is text");
    let mut found = Vec::new();
    for block in text.split("-----BEGIN CERTIFICATE-----").skip(1) {
        let (block, _) = block.split_once("-----END").expect("a block ends");
        let mut der = Vec::new();
        let mut bits = (0_u32, 0_u32);
        for byte in block.bytes() {
            let value = match byte {
                b'A'..=b'Z' => byte - b'A',
                b'a'..=b'z' => byte - b'a' + 26,
                b'0'..=b'9' => byte - b'0' + 52,
                b'+' => 62,
                b'/' => 63,
                _ => continue,
            };
            bits = ((bits.0 << 6 | u32::from(value)) & 0xFFFF, bits.1 + 6);
            if bits.1 >= 8 {
                bits.1 -= 8;
                der.push((bits.0 >> bits.1) as u8);
            }
        }
        x509_cert::Certificate::from_der(&der).expect("the PEM holds a certificate");
        found.push(der);
    }
    found
}

pub(crate) fn flipped(bytes: &[u8], bit: usize) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes[bit / 8] ^= 1 << (bit % 8);
    bytes
}

pub(crate) fn read(folder: &Path, path: &str) -> Vec<u8> {
    fs::read(folder.join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

pub(crate) fn vectors() -> Option<PathBuf> {
    let beside = concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/vectors");
    let folder = std::env::var_os("CHRYSALIS_VECTORS").map_or_else(|| beside.into(), PathBuf::from);
    if folder.join("snp").is_dir() {
        return Some(folder);
    }
    println!("skipped: vectors not found");
    None
}
