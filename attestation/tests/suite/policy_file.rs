//! A policy file states everything, and a file that does not is told what to write.

use crate::simulated::World;
use chrysalis_attestation::attester::simulated::{CHIP_ID, TCB};
use chrysalis_attestation::policy::{AppraisalPolicy, MaxAge, PlatformTrust, PolicyError};
use chrysalis_attestation::report::{Product, Tcb};
use chrysalis_protocol::statement::PadProfile;

#[test]
fn a_written_policy_is_read_back() {
    let mut policy = World::honest().policy;
    assert_eq!(AppraisalPolicy::from_toml(&policy.to_toml()), Ok(policy.clone()));

    policy.platform = PlatformTrust::AnyGenuine;
    policy.max_age = MaxAge::Epoch;
    policy.allow_simulated = false;
    policy.serving.pad_profiles = vec![PadProfile::Off];
    policy.serving.require_oblivious_embed = true;
    policy.snp.tcb_floors = vec![
        (Product::Genoa, TCB),
        (Product::Turin, Tcb { fmc: Some(1), bootloader: 1, tee: 1, snp: 4, microcode: 0x51 }),
    ];
    policy.snp.required_mitigations = 0x3F;
    policy.snp.loaned_key_providers = vec!["CN=\"a\" provider".to_owned()];
    policy.dangerous.allow_milan = true;
    policy.dangerous.allow_smt = true;
    policy.dangerous.allow_debug_build = true;
    assert_eq!(AppraisalPolicy::from_toml(&policy.to_toml()), Ok(policy));
}

#[test]
fn each_expectation_that_is_left_out_is_named() {
    let text = World::honest().policy.to_toml();
    let expectations = [
        "content_digests",
        "publishers",
        "client_bundles",
        "minimum_svn",
        "measurements",
        "allow_simulated",
        "platform",
        "chip_ids",
        "max_age",
        "serving.pad_profiles",
        "serving.min_tick_ms",
        "serving.max_tick_ms",
        "serving.min_length_quantum",
        "serving.min_billing_quantum",
        "serving.max_epoch_seconds",
        "serving.max_epoch_requests",
        "serving.allow_text_mode",
        "serving.allow_kv_sharing",
        "serving.allow_spec_decode",
        "serving.allow_moe_on_cpu",
        "serving.require_oblivious_embed",
    ];
    for key in expectations {
        match AppraisalPolicy::from_toml(&without(&text, key)) {
            Err(PolicyError::Missing { key: named, write }) => {
                assert_eq!(named, key);
                let last = key.rsplit('.').next().unwrap();
                assert!(write.contains(last), "{key}: {write}");
            }
            other => panic!("{key}: {other:?}"),
        }
    }
    let head = text.split("[serving]").next().unwrap();
    let refused = AppraisalPolicy::from_toml(head);
    assert!(matches!(refused, Err(PolicyError::Missing { key: "[serving]", .. })), "{refused:?}");
}

#[test]
fn an_unknown_key_an_empty_list_and_a_wrong_value_are_refused() {
    let text = World::honest().policy.to_toml();
    for line in ["allow_simulate = true", "platforms = \"pinned\"", "dangerous = true"] {
        let refused = AppraisalPolicy::from_toml(&format!("{line}\n{text}"));
        assert!(matches!(refused, Err(PolicyError::Toml(_))), "{line}: {refused:?}");
    }
    let refused = AppraisalPolicy::from_toml(&format!("{text}\nlogging = 1\n"));
    assert!(matches!(refused, Err(PolicyError::Toml(_))), "{refused:?}");

    let empty = format!("measurements = []\n{}", without(&text, "measurements"));
    let refused = AppraisalPolicy::from_toml(&empty);
    assert!(matches!(refused, Err(PolicyError::Empty { key: "measurements", .. })), "{refused:?}");

    let chip: String = CHIP_ID.iter().map(|byte| format!("{byte:02x}")).collect();
    for (from, to) in [
        (chip.as_str(), "00"),
        (chip.as_str(), &"g".repeat(128)),
        ("\"pinned\"", "\"anybody\""),
        ("\"pinned\"", "\"registry\""),
        ("\"fresh\"", "\"recent\""),
        ("\"tick\"", "\"none\""),
    ] {
        let refused = AppraisalPolicy::from_toml(&text.replace(from, to));
        assert!(matches!(refused, Err(PolicyError::Value { .. })), "{to}: {refused:?}");
    }
    let refused = AppraisalPolicy::from_toml(&text.replace("\"pinned\"", "\"any-genuine\""));
    assert!(matches!(refused, Err(PolicyError::ChipIds { .. })), "{refused:?}");
}

/// The file without one key, also where its value takes several lines.
fn without(text: &str, key: &str) -> String {
    let start = format!("{} = ", key.rsplit('.').next().unwrap());
    let mut out = String::new();
    let mut inside = false;
    for line in text.lines() {
        if line.starts_with(&start) {
            inside = line.ends_with('[');
        } else if inside {
            inside = line != "]";
        } else {
            out.push_str(line);
            out.push('\n');
        }
    }
    out
}
