//! Whatever a peer sends, the answer is a proof or a refusal: no panic, no overflow.

use chrysalis_attestation::policy::AppraisalPolicy;
use chrysalis_attestation::report::{Product, SignedReport, SigningKey};
use chrysalis_attestation::verifier::{Roots, verify_signing_key, verify_snp};
use proptest::collection::vec;
use proptest::prelude::*;

use crate::simulated::{NOW, World};

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn random_bytes_are_refused(bytes in vec(any::<u8>(), 0..2_048)) {
        let world = World::honest();
        prop_assert!(world.policy.appraise(&bytes, &world.challenge).is_err());
        prop_assert!(verify_snp(&bytes, &bytes, Roots::Simulated, NOW).is_err());
        for kind in [SigningKey::Vcek, SigningKey::Vlek] {
            let key = verify_signing_key(&bytes, kind, Product::Genoa, Roots::Amd, NOW);
            prop_assert!(key.is_err());
        }
    }

    #[test]
    fn a_report_that_parses_is_written_back_as_it_was(
        bytes in vec(any::<u8>(), 0x2A0),
        version in 3_u32..=5,
        cpu in prop::sample::select(vec![[0x19, 0x01], [0x19, 0x11], [0x1A, 0x02]]),
    ) {
        // Random bytes, with the fields that have only one value put right.
        let mut report = [bytes, vec![0; 512]].concat();
        report[..4].copy_from_slice(&version.to_le_bytes());
        report[0x34..0x38].copy_from_slice(&1_u32.to_le_bytes());
        report[0x188..0x18A].copy_from_slice(&cpu);
        report[0x48..0x50].fill(0);
        for tcb in [0x38, 0x180, 0x1E0, 0x1F0] {
            report[tcb + 2..tcb + 7].fill(0);
        }
        for range in [0x18B..0x1A0, 0x1EB..0x1EC, 0x1EF..0x1F0, 0x208..0x2A0] {
            report[range].fill(0);
        }
        if version < 5 {
            report[0x1F8..0x208].fill(0);
        }
        let parsed = SignedReport::parse(&report).expect("every field was put right");
        prop_assert_eq!(parsed.report.to_signed_bytes(), &report[..0x2A0]);
    }

    #[test]
    fn random_text_is_no_policy(text in "\\PC{0,200}") {
        prop_assert!(AppraisalPolicy::from_toml(&text).is_err());
    }
}
