//! SEV-SNP: one table of rules, the signed floors, the revocation lists.

mod floors;
pub(crate) mod machines;
mod refused;
mod revocations;

use std::collections::BTreeSet;

use self::machines::{all_tcbs, loaned, milan, octet_string, turin};
use self::refused::{CERTIFICATE, PLATFORM, REPORT};
use crate::simulated::revocations::ListDraft;
use crate::simulated::{NOW, World};
use chrysalis_attestation::attester::simulated::{CHIP_ID, TCB};
use chrysalis_attestation::policy::PlatformTrust;
use chrysalis_attestation::report::{Firmware, Product, Tcb, guest_policy, platform_info};

#[test]
fn the_honest_machine_is_accepted_and_each_altered_claim_is_refused_by_its_rule() {
    let world = World::honest();
    assert_eq!(world.appraise(&world.parts()), Ok(()), "the honest row comes first");

    let mut rules = BTreeSet::new();
    let mut codes = BTreeSet::new();
    let mut count = 0;
    for &(rule, code, before, after) in [REPORT, CERTIFICATE, PLATFORM].into_iter().flatten() {
        let mut world = World::honest();
        before(&mut world);
        let mut parts = world.parts();
        after(&mut parts);
        let rejection = world.appraise(&parts).expect_err(code);
        assert_eq!((rejection.step(), rejection.code()), (4, code), "row {count}: {rejection}");
        assert!(!rejection.to_string().is_empty());
        rules.insert(rule);
        codes.insert(code);
        count += 1;
    }
    assert_eq!(rules, (1..=10).collect(), "each rule of the threat model has a row");
    println!("{count} altered claims, {} codes, each refused by its own rule", codes.len());
}

#[test]
fn every_code_of_step_4_that_the_documentation_names_has_a_row() {
    let rows = [REPORT, CERTIFICATE, PLATFORM].into_iter().flatten().map(|&(_, code, ..)| code);
    let mut rows: BTreeSet<&str> = rows.collect();
    rows.extend(floors::CODES);
    rows.extend(revocations::FILES.iter().map(|&(code, ..)| code));
    let documented: BTreeSet<&str> = documentation()
        .split('`')
        .filter(|word| PREFIXES.iter().any(|prefix| word.starts_with(prefix)))
        // A damaged program; nobody else can bring it about.
        .filter(|&code| code != "certificate.pinned")
        .collect();
    assert_eq!(rows, documented);
}

/// What it is; how the honest machine becomes it.
type Accepted = (&'static str, fn(&mut World));

/// What the rules let through, one to a row: the other side of each.
#[rustfmt::skip]
const ACCEPTED: &[Accepted] = &[
    ("version 4", |w| w.report.version = 4),
    ("Turin, version 5", |w| anywhere(w, turin)),
    ("mitigations that a Turin shows", |w| {
        anywhere(w, turin);
        w.policy.snp.required_mitigations = 0b11;
        w.floors(|t| t.records[2].mitigations = 0b100);
    }),
    ("Bergamo's name", |w| _ = w.vcek("Bergamo", TCB, &CHIP_ID)),
    ("Siena's name, with a stepping", |w| _ = w.vcek("Siena-B1", TCB, &CHIP_ID)),
    ("a Bergamo", |w| w.report.cpuid.model = 0xA0),
    ("the chip's identity in an OCTET STRING", |w| octet_string(w, &CHIP_ID)),
    ("a chip whose identity looks like an OCTET STRING", |w| anywhere(w, |w| {
        w.report.chip_id[..2].copy_from_slice(&[0x04, 62]);
        let chip_id = w.report.chip_id;
        w.vcek("Genoa", TCB, &chip_id);
    })),
    ("a certificate in its first second",
     |w| w.honest_vcek().not_before = "260601000000Z".to_owned()),
    ("a certificate in its last second",
     |w| w.honest_vcek().not_after = "260601000000Z".to_owned()),
    ("an author key, which nobody asked for", |w| w.report.author_key_en = true),
    ("Milan, where the policy says so", |w| {
        milan(w);
        w.policy.dangerous.allow_milan = true;
    }),
    ("Milan at its floor", |w| {
        milan(w);
        w.policy.dangerous.allow_milan = true;
        w.report.launch_tcb.snp = 0x18;
    }),
    ("a loaned key of a listed provider", |w| {
        loaned(w);
        w.policy.snp.loaned_key_providers = vec!["CN=a-provider".to_owned()];
    }),
    ("a list that revokes others", |w| {
        w.revoke(&ListDraft::of(&[1, 3]));
        w.policy.snp.require_revocation_list = true;
    }),
    ("a list in its first second", |w| w.revoke(&ListDraft::between("260601000000Z", "270601000000Z"))),
    ("a list in its last second", |w| w.revoke(&ListDraft::between("250601000000Z", "260601000000Z"))),
    ("floors in their first second", |w| w.floors(|t| t.issued = NOW)),
    ("floors in their last second", |w| w.floors(|t| (t.issued, t.expires) = (1, NOW))),
    ("floors of the lowest number", |w| w.policy.snp.floors_minimum_version = 1),
    ("patch levels at the floor", |w| w.floors(|t| t.records[1].tcb = TCB)),
    ("patch levels at the policy's floor", |w| w.policy.snp.tcb_floors = vec![
        (Product::Genoa, TCB),
        (Product::Milan, Tcb { snp: 0xFF, ..TCB }),
    ]),
    ("a reported level below the committed one", |w| {
        let older = Tcb { microcode: 0x54, ..TCB };
        all_tcbs(w, Tcb { microcode: 0x55, ..TCB });
        w.report.reported_tcb = older;
        w.report.launch_tcb = older;
        w.vcek("Genoa", older, &CHIP_ID);
    }),
    ("firmware at the floor", |w| w.floors(|t| t.records[1].firmware = FIRMWARE)),
    ("provisional firmware, where the policy says so", |w| {
        w.report.current_tcb.microcode += 1;
        w.report.current_firmware.build += 1;
        w.policy.dangerous.allow_provisional_firmware = true;
    }),
    ("a later interface than the floor's", |w| w.report.policy = w.report.policy & !0xFFFF | 0x0200),
    ("SMT, where the policy says so", |w| {
        w.report.policy |= guest_policy::SMT;
        w.report.platform_info |= platform_info::SMT;
        w.policy.dangerous.allow_smt = true;
    }),
    ("one socket", |w| w.report.policy |= guest_policy::SINGLE_SOCKET),
    ("page swaps, where the firmware cannot forbid them", |w| {
        w.report.current_firmware.minor = 57;
        w.report.committed_firmware.minor = 57;
        w.report.policy &= !guest_policy::PAGE_SWAP_DISABLE;
    }),
    ("ciphertext in sight on a Genoa, hidden", |w| {
        w.report.policy |= guest_policy::CIPHERTEXT_HIDING;
        w.report.platform_info |= platform_info::CIPHERTEXT_HIDING;
    }),
    ("transparent encryption, trusted I/O", |w| {
        w.report.platform_info |= platform_info::TSME | platform_info::TIO;
    }),
    ("trusted I/O, demanded", |w| {
        w.report.platform_info |= platform_info::TIO;
        w.policy.snp.require_tio = true;
    }),
    ("an unknown bit, where the policy says so", |w| {
        w.report.platform_info |= 1 << 6;
        w.policy.dangerous.allow_platform_bits = 1 << 6;
    }),
    ("the level below an SVSM", |w| (w.report.vmpl, w.policy.snp.vmpl) = (2, 2)),
    ("the guest's ID block as demanded", |w| {
        w.report.author_key_en = true;
        w.report.id_key_digest = [1; 48];
        w.report.author_key_digest = [2; 48];
        w.report.family_id = [3; 16];
        w.report.image_id = [4; 16];
        w.report.guest_svn = 5;
        w.policy.snp.id_key_digests = vec![[9; 48], [1; 48]];
        w.policy.snp.author_key_digests = vec![[2; 48]];
        w.policy.snp.family_ids = vec![[3; 16]];
        w.policy.snp.image_ids = vec![[4; 16]];
        w.policy.snp.minimum_guest_svn = 5;
    }),
    ("a debug build, where the policy says so", |w| {
        w.statement.debug_build = true;
        w.policy.dangerous.allow_debug_build = true;
    }),
];

#[test]
fn what_the_rules_let_through_is_accepted() {
    for (what, change) in ACCEPTED {
        let mut world = World::honest();
        change(&mut world);
        assert_eq!(world.appraise(&world.parts()), Ok(()), "{what}");
    }
}

#[test]
fn bits_are_where_amds_tables_have_them() {
    use guest_policy as guest;
    use platform_info as machine;
    let guest_bits = [
        (16, guest::SMT),
        (17, guest::RESERVED_ONE),
        (18, guest::MIGRATE_MA),
        (19, guest::DEBUG),
        (20, guest::SINGLE_SOCKET),
        (21, guest::CXL_ALLOW),
        (22, guest::MEM_AES_256_XTS),
        (23, guest::RAPL_DIS),
        (24, guest::CIPHERTEXT_HIDING),
        (25, guest::PAGE_SWAP_DISABLE),
    ];
    let machine_bits = [
        (0, machine::SMT),
        (1, machine::TSME),
        (2, machine::ECC),
        (3, machine::RAPL_DIS),
        (4, machine::CIPHERTEXT_HIDING),
        (5, machine::ALIAS_CHECK_COMPLETE),
        (7, machine::TIO),
    ];
    for (bit, mask) in guest_bits.into_iter().chain(machine_bits) {
        assert_eq!(mask, 1_u64 << bit, "bit {bit}");
    }
    assert_eq!((guest::KNOWN, machine::KNOWN), (0x03FF_FFFF, 0xBF));
}

#[test]
fn patch_levels_are_told_in_words() {
    let turin = Tcb { fmc: Some(1), bootloader: 2, tee: 3, snp: 4, microcode: 5 };
    assert_eq!(turin.to_string(), "fmc 1 boot loader 2 tee 3 snp 4 microcode 5");
    assert_eq!(TCB.to_string(), "boot loader 10 tee 0 snp 27 microcode 84");
    assert_eq!(Product::Genoa.to_string(), "Genoa");
    assert_eq!(FIRMWARE.to_string(), "1.58 build 1");
}

/// A machine other than the one that the policy pins.
fn anywhere(world: &mut World, machine: fn(&mut World)) {
    machine(world);
    world.policy.platform = PlatformTrust::AnyGenuine;
}

/// The honest machine's.
const FIRMWARE: Firmware = Firmware { major: 1, minor: 58, build: 1 };

fn documentation() -> &'static str {
    let page = include_str!("../../../../docs/attestation.md");
    let from = page.find("Step 4, authentic").expect("the page has the tables of step 4");
    let text = &page[from..];
    &text[..text.find("Step 4, TDX").or_else(|| text.find("## ")).unwrap_or(text.len())]
}

const PREFIXES: [&str; 8] = [
    "report.",
    "certificate.",
    "crl.",
    "floors.",
    "platform.",
    "guest_policy.",
    "platform_info.",
    "firmware.",
];
