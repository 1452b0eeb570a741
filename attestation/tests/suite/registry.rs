//! Machines that a signed registry lists are trusted, and no others, and only while it holds.

use aws_lc_rs::signature::KeyPair;
use chrysalis_attestation::attester::simulated::CHIP_ID;
use chrysalis_attestation::policy::{
    AppraisalPolicy, FileKind, Floors, FromFile, PlatformTrust, PolicyError, Registry,
    RegistryTable, RegistryTrust, SignedFileError, TrustedBy,
};
use chrysalis_attestation::verifier::HardwareId;

use crate::simulated::{NOW, World, floors_key};
use crate::tdx::TdWorld;

#[test]
fn a_listed_machine_is_accepted_and_named() {
    let mut world = World::honest();
    world.policy.platform = trust(|_| {});
    let enclave = world.policy.appraise(&world.parts().bundle(), &world.challenge).expect("listed");
    assert_eq!(enclave.trusted_by(), TrustedBy::Registry { version: 3, expires: NOW });
    assert_eq!(enclave.claims().platform, "registry");
    // Of a simulated machine that is no proof.
    assert!(!enclave.explain().proved.iter().any(|fact| fact.contains("registry")));

    let mut td = TdWorld::honest();
    td.world.policy.platform = trust(|_| {});
    let parts = td.parts();
    let enclave = td.world.policy.appraise(&parts.bundle(), &td.world.challenge).expect("listed");
    assert!(enclave.explain().proved.iter().any(|fact| fact.contains("registry, version 3")));
}

/// A change to the registry or to the policy's trust in it, and the refusal.
type Row = (&'static str, fn(&mut RegistryTable), u32);

#[rustfmt::skip]
const ROWS: &[Row] = &[
    ("chip.not_registered", |t| { t.records.remove(0); }, 0),
    ("chip.not_registered", |t| t.records[0] = HardwareId::Chip([1; 64]), 0),
    ("registry.expired", |t| t.expires = NOW - 1, 0),
    ("registry.expired", |t| (t.issued, t.expires) = (NOW + 1, NOW + 2), 0),
    ("registry.version", |_| {}, 4),
    ("registry.version", |t| t.version = 1, 3),
];

#[test]
fn each_rule_of_the_registry_refuses_its_one_altered_claim() {
    for &(code, change, minimum_version) in ROWS {
        let mut world = World::honest();
        world.policy.platform = trust(change);
        let PlatformTrust::Registry(registry) = &mut world.policy.platform else { unreachable!() };
        registry.minimum_version = minimum_version;
        let refused = world.appraise(&world.parts()).expect_err(code);
        assert_eq!((refused.step(), refused.code()), (9, code), "{refused}");
    }
    // The number that is asked for is enough, and a date of now.
    let mut world = World::honest();
    world.policy.platform = trust(|table| (table.issued, table.expires) = (NOW, NOW + 1));
    let PlatformTrust::Registry(registry) = &mut world.policy.platform else { unreachable!() };
    registry.minimum_version = 3;
    assert_eq!(world.appraise(&world.parts()), Ok(()));
}

#[test]
fn every_flipped_bit_cut_and_extension_of_a_registry_is_refused() {
    let (file, signer) = signed(|_| {});
    let opened = Registry::open(&file, &signer).expect("it was just signed");
    assert_eq!(opened.table(), &table());
    for bit in 0..file.len() * 8 {
        let mut file = file.clone();
        file[bit / 8] ^= 1 << (bit % 8);
        let refused = Registry::open(&file, &signer).expect_err("a flipped bit");
        let codes = ["registry.layout", "registry.signer", "registry.signature"];
        assert!(codes.contains(&refused.code()), "bit {bit}: {refused}");
    }
    for len in 0..file.len() {
        assert!(Registry::open(&file[..len], &signer).is_err(), "cut at {len}");
    }
    assert!(Registry::open(&[&file[..], &[0]].concat(), &signer).is_err());
    println!("{} flipped bits of a registry, none accepted", file.len() * 8);
}

#[test]
fn files_of_another_kind_and_of_another_signer_are_refused() {
    let (file, signer) = signed(|_| {});
    assert_eq!(Floors::open(&file, &signer).expect_err("no floors").code(), "floors.layout");
    let floors = Floors::built_in().expect("the program is whole").table().sign(&floors_key());
    assert_eq!(Registry::open(&floors, &signer).expect_err("none").code(), "registry.layout");
    // The one's bytes under the other's name: the signature says for what it was made.
    let magic = [b"CHRY-FL1", &file[8..]].concat();
    assert!(Floors::open(&magic, &signer).is_err());
    let other = [7; 32];
    let refused = Registry::open(&file, &other).expect_err("another signer");
    let file = FileKind::Registry;
    assert_eq!(refused, SignedFileError::Signer { file, found: signer, expected: other });
}

/// A field, and how a signer gets it wrong.
type Wrong = (&'static str, fn(&mut RegistryTable));

#[test]
fn each_field_with_a_value_that_it_cannot_have_is_named() {
    let wrong: [Wrong; 8] = [
        ("version", |t| t.version = 0),
        ("count", |t| t.records.clear()),
        ("count", |t| t.records = vec![HardwareId::Ppid([1; 16]); (1 << 16) + 1]),
        ("expires", |t| t.expires = t.issued),
        ("id", |t| t.records.swap(0, 1)),
        ("id", |t| t.records[1] = t.records[0]),
        ("id", |t| t.records[1] = HardwareId::Ppid([0; 16])),
        ("id", |t| t.records = vec![HardwareId::Chip([0; 64])]),
    ];
    for (name, change) in wrong {
        let (file, signer) = signed(change);
        match Registry::open(&file, &signer) {
            Err(SignedFileError::Field { field, .. }) => assert_eq!(field, name),
            other => panic!("{name}: {other:?}"),
        }
    }
    // A kind that is none, reserved bytes, and bytes behind a short id.
    let (file, signer) = signed(|_| {});
    let second = 64 + 72;
    for (at, value) in [(0, b'X'), (64, 0), (second, 3), (65, 1), (71, 1), (second + 8 + 16, 1)] {
        let mut file = file.clone();
        file[at] = value;
        let refused = Registry::open(&file, &signer).expect_err("an unknown value");
        assert_eq!(refused.code(), "registry.layout", "{at}: {refused}");
    }
}

#[test]
fn a_policy_with_a_registry_is_written_and_read_back() {
    let mut world = World::honest();
    world.policy.platform = trust(|_| {});
    let text = world.policy.to_toml();
    let (file, _) = signed(|_| {});
    let mut read = |path: &str| match path {
        "test.registry" => Ok(file.clone()),
        _ => Err("no such file".to_owned()),
    };
    assert_eq!(AppraisalPolicy::from_toml_with(&text, &mut read).as_ref(), Ok(&world.policy));

    for (from, to, expected) in [
        ("registry = \"test.registry\"", "", "registry"),
        ("registry_signer = ", "# ", "registry_signer"),
        ("test.registry", "other.registry", "registry"),
        ("registry_signer = \"", "registry_signer = \"00", "registry_signer"),
        ("platform = \"registry\"", "platform = \"any-genuine\"", "registry"),
        ("platform = \"registry\"", "platform = \"pinned\"", "registry"),
        ("platform = \"registry\"", "platform = \"registry\"\nchip_ids = []", "chip_ids"),
    ] {
        assert!(text.contains(from), "{from}");
        let key = match AppraisalPolicy::from_toml_with(&text.replacen(from, to, 1), &mut read) {
            Err(
                PolicyError::Missing { key, .. }
                | PolicyError::Value { key, .. }
                | PolicyError::File { key, .. }
                | PolicyError::Platform { key, .. },
            ) => key,
            other => panic!("{to}: {other:?}"),
        };
        assert_eq!(key, expected, "{to}");
    }
    let zeros = text.replace("platform = \"registry\"", "platform = \"pinned\"");
    let zeros: String = zeros
        .lines()
        .filter(|line| !line.starts_with("registry"))
        .fold(format!("chip_ids = [\"{}\"]\n", "0".repeat(128)), |text, line| text + line + "\n");
    let refused = AppraisalPolicy::from_toml(&zeros);
    assert!(matches!(refused, Err(PolicyError::Value { key: "chip_ids", .. })), "{refused:?}");
}

/// A registry of the simulated chip and the made-up platform, with a change.
fn signed(change: impl FnOnce(&mut RegistryTable)) -> (Vec<u8>, [u8; 32]) {
    let mut table = table();
    change(&mut table);
    let signer = floors_key().public_key().as_ref().try_into().expect("32 bytes");
    (table.sign(&floors_key()), signer)
}

fn table() -> RegistryTable {
    let records = vec![HardwareId::Chip(CHIP_ID), HardwareId::Ppid([0xB1; 16])];
    RegistryTable { version: 3, issued: NOW - 9, expires: NOW, records }
}

fn trust(change: impl FnOnce(&mut RegistryTable)) -> PlatformTrust {
    let (file, signer) = signed(change);
    let value = Registry::open(&file, &signer).expect("it was just signed");
    let file = FromFile { path: "test.registry".to_owned(), value };
    PlatformTrust::Registry(RegistryTrust { file, minimum_version: 0 })
}
