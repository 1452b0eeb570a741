//! SEV-SNP reports: what is read is written back to the same bytes, and none that was not signed is
//! authentic. Cut or filled up to a report's length, with the fields that have one value put right,
//! so that few inputs end at the first check.
#![no_main]

use chrysalis_attestation::report::{REPORT_LEN, SIGNED_LEN, SignedReport};
use chrysalis_attestation::verifier::{Roots, verify_snp};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let _ = SignedReport::parse(bytes);
    let mut report = bytes.to_vec();
    report.resize(REPORT_LEN, 0);
    report[1..4].fill(0);
    report[0] = report[0] % 3 + 3;
    report[0x34..0x38].copy_from_slice(&1_u32.to_le_bytes());
    if let Ok(parsed) = SignedReport::parse(&report) {
        assert_eq!(parsed.report.to_signed_bytes(), report[..SIGNED_LEN]);
    }
    let vcek = include_bytes!("../../attestation/src/roots/simulated/vcek.der");
    assert!(verify_snp(&report, vcek, Roots::Simulated, 1_800_000_000).is_err());
});
