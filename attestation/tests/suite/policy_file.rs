//! A policy file states everything, and a file that does not is told what to write.

use std::collections::BTreeMap;

use crate::simulated::revocations::ListDraft;
use crate::simulated::{World, ark_key, floors_key};
use chrysalis_attestation::attester::simulated::{CHIP_ID, TCB};
use chrysalis_attestation::policy::{
    AppraisalPolicy, FloorTable, Floors, MaxAge, PlatformTrust, PolicyError,
};
use chrysalis_attestation::report::{Product, Tcb};
use chrysalis_attestation::verifier::HardwareId;
use chrysalis_protocol::statement::PadProfile;

#[test]
fn a_written_policy_is_read_back() {
    let mut policy = World::honest().policy;
    assert_eq!(AppraisalPolicy::from_toml(&policy.to_toml()), Ok(policy.clone()));

    policy.platform =
        PlatformTrust::Pinned(vec![HardwareId::Ppid([0xA5; 16]), HardwareId::Chip(CHIP_ID)]);
    assert_eq!(AppraisalPolicy::from_toml(&policy.to_toml()), Ok(policy.clone()));

    policy.platform = PlatformTrust::AnyGenuine;
    policy.max_age = MaxAge::Epoch;
    policy.allow_simulated = false;
    policy.serving.pad_profiles = vec![PadProfile::Off];
    policy.serving.require_oblivious_embed = true;
    policy.serving.max_ack_window = Some(512);
    policy.snp.tcb_floors = vec![
        (Product::Genoa, TCB),
        (Product::Turin, Tcb { fmc: Some(1), bootloader: 1, tee: 1, snp: 4, microcode: 0x51 }),
    ];
    policy.snp.required_mitigations = 0x3F;
    policy.snp.loaned_key_providers = vec!["CN=\"a\" provider".to_owned()];
    policy.dangerous.allow_milan = true;
    policy.dangerous.allow_smt = true;
    policy.dangerous.allow_debug_build = true;
    policy.dangerous.allow_provisional_firmware = true;
    policy.dangerous.allow_platform_bits = 1 << 6;
    policy.snp.floors_minimum_version = 3;
    policy.snp.require_revocation_list = true;
    policy.snp.require_tio = true;
    policy.snp.vmpl = 3;
    policy.snp.id_key_digests = vec![[1; 48], [2; 48]];
    policy.snp.author_key_digests = vec![[3; 48]];
    policy.snp.minimum_guest_svn = 4;
    policy.snp.family_ids = vec![[5; 16]];
    policy.snp.image_ids = vec![[6; 16]];
    assert_eq!(AppraisalPolicy::from_toml(&policy.to_toml()), Ok(policy));
}

#[test]
fn files_that_a_policy_names_are_read_with_it() {
    let mut world = World::honest();
    let list = ListDraft::of(&[7]);
    world.revoke(&list);
    world.floors(|table| table.version = 5);
    let text = world.policy.to_toml();

    let floors = Floors::built_in().expect("the program is whole").table().clone();
    let floors = FloorTable { version: 5, ..floors }.sign(&floors_key());
    let list = list.sign(&ark_key()).expect("the key signs");
    let mut files: BTreeMap<&str, Vec<u8>> = [("test.floors", floors), ("test.crl", list)].into();
    let read = |files: &BTreeMap<&str, Vec<u8>>, text: &str| {
        AppraisalPolicy::from_toml_with(text, &mut |path| {
            files.get(path).cloned().ok_or_else(|| format!("no file {path}"))
        })
    };
    assert_eq!(read(&files, &text), Ok(world.policy.clone()));

    // Without the key, the program's own has to have signed.
    let unpinned = without(&text, "snp.floors_signer");
    let refused = read(&files, &unpinned);
    assert!(matches!(refused, Err(PolicyError::File { key: "snp.floors", .. })), "{refused:?}");
    let own = include_bytes!("../../src/floors/amd.floors").to_vec();
    files.insert("test.floors", own);
    assert!(read(&files, &unpinned).is_ok());

    for (path, key) in [("test.floors", "snp.floors"), ("test.crl", "snp.revocation_lists")] {
        let mut files = files.clone();
        files.get_mut(path).unwrap()[100] ^= 1;
        let refused = read(&files, &unpinned).expect_err("a damaged file");
        assert!(matches!(refused, PolicyError::File { key: named, .. } if named == key));
        files.remove(path);
        let refused = read(&files, &unpinned).expect_err("no file");
        assert!(refused.to_string().contains(path), "{refused}");
    }
    let refused = AppraisalPolicy::from_toml(&text);
    assert!(matches!(refused, Err(PolicyError::File { .. })), "{refused:?}");
}

#[test]
fn values_that_the_snp_table_does_not_take_are_refused() {
    let text = World::honest().policy.to_toml();
    for (from, to) in [
        ("vmpl = 0", "vmpl = 4"),
        ("image_ids = []", "image_ids = [\"00\"]"),
        ("id_key_digests = []", "id_key_digests = [\"\"]"),
        ("floors_minimum_version = 0", &format!("floors_signer = \"{}\"", "0".repeat(64))),
    ] {
        assert!(text.contains(from), "{from}");
        let refused = AppraisalPolicy::from_toml(&text.replace(from, to));
        assert!(matches!(refused, Err(PolicyError::Value { .. })), "{to}: {refused:?}");
    }
    for (from, to) in [("require_tio", "require_toi"), ("vmpl = 0", "vmpl = -1")] {
        let refused = AppraisalPolicy::from_toml(&text.replace(from, to));
        assert!(matches!(refused, Err(PolicyError::Toml(_))), "{to}: {refused:?}");
    }
    // A policy from before the table existed still is one.
    let table = text.find("\n# SEV-SNP machines.").expect("the table is written");
    assert_eq!(AppraisalPolicy::from_toml(&text[..table]), Ok(World::honest().policy));
}

#[test]
fn an_ack_window_is_demanded_by_number_or_not_at_all() {
    let text = World::honest().policy.to_toml();
    let with = |line| AppraisalPolicy::from_toml(&text.replace("# max_ack_window = 512", line));
    let window = |line| with(line).map(|policy| policy.serving.max_ack_window);
    assert_eq!(window(""), Ok(None));
    assert_eq!(window("max_ack_window = 512"), Ok(Some(512)));
    assert!(matches!(window("max_ack_window = 0"), Err(PolicyError::Value { .. })));
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

    let empty = format!("chip_ids = []\n{}", without(&text, "chip_ids"));
    let refused = AppraisalPolicy::from_toml(&empty);
    assert!(matches!(refused, Err(PolicyError::Empty { key: "chip_ids", .. })), "{refused:?}");
    let empty = text.replace("pad_profiles = [\"tick\", \"flat\"]", "pad_profiles = []");
    let refused = AppraisalPolicy::from_toml(&empty);
    let key = "serving.pad_profiles";
    assert!(matches!(refused, Err(PolicyError::Empty { key: k, .. }) if k == key), "{refused:?}");

    let chip: String = CHIP_ID.iter().map(|byte| format!("{byte:02x}")).collect();
    for (from, to) in [
        (chip.as_str(), "00"),
        (chip.as_str(), &"g".repeat(128)),
        ("\"pinned\"", "\"anybody\""),
        ("\"fresh\"", "\"recent\""),
        ("\"tick\"", "\"none\""),
    ] {
        let refused = AppraisalPolicy::from_toml(&text.replace(from, to));
        assert!(matches!(refused, Err(PolicyError::Value { .. })), "{to}: {refused:?}");
    }
    let refused = AppraisalPolicy::from_toml(&text.replace("\"pinned\"", "\"any-genuine\""));
    assert!(matches!(refused, Err(PolicyError::Platform { key: "chip_ids", .. })), "{refused:?}");
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
