//! One altered claim to a row, one named refusal: the policy matrix over the simulated platform.

use crate::simulated::issue::{amd, integer, seq, tlv};
use crate::simulated::{Parts, World, key_config_digest};
use chrysalis_attestation::attester::simulated::{CHIP_ID, TCB};
use chrysalis_attestation::policy::{MaxAge, PlatformTrust};
use chrysalis_attestation::report::{
    Cpuid, Firmware, Product, SigningKey, Tcb, guest_policy, platform_info,
};
use chrysalis_attestation::verifier::HardwareId;
use chrysalis_protocol::statement::{Kind, PadProfile, Tee};

/// Expected step and code; what is changed before the statement is made; after it is signed.
type Row = (u8, &'static str, fn(&mut World), fn(&mut Parts));

const OLDER: Tcb = Tcb { snp: TCB.snp - 1, ..TCB };

#[test]
fn the_honest_enclave_is_accepted() {
    let world = World::honest();
    let verified =
        world.policy.appraise(&world.parts().bundle(), &world.challenge).expect("it is honest");
    assert_eq!(verified.statement(), &world.statement);
    assert_eq!(verified.statement_digest(), world.statement.digest());
    assert_eq!(verified.seal_to().sealing_key, &world.key_config.sealing_key);
    assert_eq!(verified.receipt_key(), world.statement.receipt_key);
    assert_eq!(verified.hardware_id(), HardwareId::Chip(CHIP_ID));
    assert_eq!(verified.evidence().tcb(), TCB.to_string());
    assert!(verified.simulated() && verified.fresh());
    let explained = verified.explain();
    assert!(explained.not_proved[0].contains("simulated"));
    assert_eq!(verified.claims().chip_id, chip_hex());
}

#[test]
fn an_honest_turin_and_an_overridden_rule_are_accepted() {
    let mut world = World::honest();
    turin(&mut world);
    world.policy.platform = PlatformTrust::AnyGenuine;
    world.policy.snp.required_mitigations = 0b11;
    assert_eq!(world.appraise(&world.parts()), Ok(()));

    let mut world = World::honest();
    milan(&mut world);
    world.policy.dangerous.allow_milan = true;
    assert_eq!(world.appraise(&world.parts()), Ok(()));

    let mut world = World::honest();
    world.report.policy |= guest_policy::SMT;
    world.report.platform_info |= platform_info::SMT;
    world.policy.dangerous.allow_smt = true;
    assert_eq!(world.appraise(&world.parts()), Ok(()));

    let mut world = World::honest();
    loaned(&mut world);
    world.policy.snp.loaned_key_providers = vec!["CN=a-provider".to_owned()];
    assert_eq!(world.appraise(&world.parts()), Ok(()));

    let mut world = World::honest();
    world.statement.debug_build = true;
    world.policy.dangerous.allow_debug_build = true;
    assert_eq!(world.appraise(&world.parts()), Ok(()));
}

#[test]
fn each_rule_refuses_its_one_altered_claim() {
    let tables = [STATEMENT, REPORT, CERTIFICATE, PLATFORM, SECTIONS, MODEL];
    let mut count = 0;
    for &(step, code, before, after) in tables.into_iter().flatten() {
        let mut world = World::honest();
        before(&mut world);
        let mut parts = world.parts();
        after(&mut parts);
        let rejection = world.appraise(&parts).expect_err(code);
        assert_eq!((rejection.step(), rejection.code()), (step, code), "{rejection}");
        assert!(!rejection.to_string().is_empty());
        count += 1;
    }
    println!("{count} altered claims, each refused by its own rule");
}

/// Steps 1 to 3.
#[rustfmt::skip]
const STATEMENT: &[Row] = &[
    (1, "bundle.framing", |_| {}, |p| p.statement.clear()),
    (2, "statement.reserved", |_| {}, |p| p.statement[511] = 1),
    (2, "statement.layout", |_| {}, |p| p.statement[0] = b'D'),
    (2, "statement.layout", |_| {}, |p| p.statement.push(0)),
    (2, "statement.layout", |_| {}, |p| p.statement[11] &= !4),
    (2, "statement.kind", |w| w.statement.kind = Kind::KeyRelease, |_| {}),
    (2, "statement.kind", |w| w.statement.kind = Kind::Freshness, |_| {}),
    (2, "statement.simulated", |w| w.policy.allow_simulated = false, |_| {}),
    (2, "statement.tee", |w| w.statement.tee = Tee::Tdx, |_| {}),
    (2, "statement.debug_build", |w| w.statement.debug_build = true, |_| {}),
    (3, "report_data.layout", |_| {}, |p| p.report.truncate(0x8F)),
    (3, "report_data.layout", |_| {}, |p| p.report[0x50] ^= 1),
    (3, "report_data.layout", |_| {}, |p| p.report[0x59] = 1),
    (3, "report_data.kind", |_| {}, |p| p.report[0x58] = 2),
    (3, "report_data.epoch", |_| {}, |p| p.report[0x5F] ^= 1),
    (3, "report_data.digest", |_| {}, |p| p.report[0x60] ^= 1),
    (3, "report_data.digest", |_| {}, |p| p.statement[40] ^= 1),
];

/// Step 4, rules 1, 2, 3 and 5: the report itself.
#[rustfmt::skip]
const REPORT: &[Row] = &[
    (4, "report.length", |_| {}, |p| p.report.push(0)),
    (4, "report.version", |w| w.report.version = 2, |_| {}),
    (4, "report.version", |w| w.report.version = 6, |_| {}),
    (4, "report.reserved", |_| {}, |p| p.report[0x4C] = 1),
    (4, "report.reserved", |_| {}, |p| p.report[0x18B] = 1),
    (4, "report.reserved", |_| {}, |p| p.report[0x1EB] = 1),
    (4, "report.reserved", |_| {}, |p| p.report[0x1F8] = 1),
    (4, "report.reserved", |_| {}, |p| p.report[0x2A0 + 48] = 1),
    (4, "report.reserved", |_| {}, |p| p.report[0x2A0 + 72 + 71] = 1),
    (4, "report.reserved", |_| {}, |p| p.report[0x330] = 1),
    (4, "report.reserved", |_| {}, |p| p.report[0x49F] = 1),
    (4, "report.tcb_reserved", |_| {}, |p| p.report[0x182] = 1),
    (4, "report.signature_algorithm", |_| {}, |p| p.report[0x34] = 2),
    (4, "report.signing_key", |_| {}, |p| p.report[0x48] = 7 << 2),
    (4, "report.signing_key", |_| {}, |p| p.report[0x4B] = 0x80),
    (4, "report.mask_chip_key", |w| w.report.mask_chip_key = true, |_| {}),
    (4, "report.product", |w| w.report.cpuid = cpu(0x19, 0x20), |_| {}),
    (4, "report.product", |w| w.report.cpuid = cpu(0x1A, 0x12), |_| {}),
    (4, "report.product", |w| w.report.cpuid = cpu(0x17, 0x31), |_| {}),
    (4, "report.signature", |_| {}, |p| p.report[0x140] ^= 1),
    (4, "report.signature", |_| {}, |p| p.report[0x2A0] ^= 1),
];

/// Step 4, rule 4: the certificate of the signing key.
#[rustfmt::skip]
const CERTIFICATE: &[Row] = &[
    (4, "certificate.missing", |_| {}, |p| p.vcek = None),
    (4, "certificate.der", |_| {}, |p| p.vcek.as_mut().unwrap().push(0)),
    (4, "certificate.der", |_| {}, |p| p.vcek.as_mut().unwrap().truncate(900)),
    (4, "certificate.der", |w| w.honest_vcek().write_default = true, |_| {}),
    (4, "certificate.version", |w| w.honest_vcek().version = 1, |_| {}),
    (4, "certificate.algorithm", sha256_inside, |_| {}),
    (4, "certificate.issuer", |w| w.honest_vcek().issuer = "SEV-Genoa".to_owned(), |_| {}),
    // Simulated evidence under a statement that says it is genuine.
    (4, "certificate.issuer", |w| w.statement.tee = Tee::SevSnp, |_| {}),
    (4, "certificate.signature", |_| {}, |p| *p.vcek.as_mut().unwrap().last_mut().unwrap() ^= 1),
    (4, "certificate.validity", |w| w.challenge.now_unix = 1_700_000_000, |_| {}),
    (4, "certificate.validity", |w| w.honest_vcek().not_after = "260531235959Z".to_owned(), |_| {}),
    (4, "certificate.validity",
     |w| w.honest_vcek().not_before = "260602000000Z".to_owned(), |_| {}),
    (4, "certificate.subject", |w| w.honest_vcek().subject = "SEV-VLEK".to_owned(), |_| {}),
    (4, "certificate.key",
     |w| w.honest_vcek().spki = seq(&[seq(&[tlv(6, b"\x2b\x65\x70")]), tlv(3, &[0; 33])]), |_| {}),
    (4, "certificate.key", compressed_point, |_| {}),
    (4, "certificate.critical_extension", |w| extension(w, b"\x55\x1d\x1e", true), |_| {}),
    (4, "certificate.extension", |w| extension(w, &amd(&[3, 1]), false), |_| {}),
    (4, "certificate.extension", |w| extension(w, &amd(&[3, 9]), false), |_| {}),
    (4, "certificate.extension", |w| extension(w, &amd(&[5]), false), |_| {}),
    (4, "certificate.extension", |w| without(w, &amd(&[3, 1])), |_| {}),
    (4, "certificate.extension", |w| without(w, &amd(&[3, 2])), |_| {}),
    (4, "certificate.extension", |w| without(w, &amd(&[3, 3])), |_| {}),
    (4, "certificate.extension", |w| without(w, &amd(&[3, 8])), |_| {}),
    (4, "certificate.extension", |w| without(w, &amd(&[4])), |_| {}),
    (4, "certificate.extension", |w| without(w, &amd(&[2])), |_| {}),
    (4, "certificate.extension", reserved_level, |_| {}),
    (4, "certificate.product", |w| vcek(w, "Turin", TCB, &CHIP_ID), |_| {}),
    (4, "certificate.product", |w| w.report.cpuid = cpu(0x19, 0x01), |_| {}),
    (4, "certificate.tcb", |w| vcek(w, "Genoa", OLDER, &CHIP_ID), |_| {}),
    (4, "certificate.tcb", |w| w.report.reported_tcb = OLDER, |_| {}),
    (4, "certificate.chip_id", |w| vcek(w, "Genoa", TCB, &[7; 64]), |_| {}),
    (4, "certificate.chip_id", |w| vcek(w, "Genoa", TCB, &CHIP_ID[..8]), |_| {}),
    (4, "certificate.chip_id", |w| w.report.chip_id[63] ^= 1, |_| {}),
    // Eight bytes identify a Turin; the others have to be zero.
    (4, "certificate.chip_id", |w| { turin(w); w.report.chip_id[8] = 1; }, |_| {}),
];

/// Step 4, rules 2, 3 and 6 to 10: the state of the platform.
#[rustfmt::skip]
const PLATFORM: &[Row] = &[
    (4, "platform.product", milan, |_| {}),
    (4, "platform.loaned_key", loaned, |_| {}),
    (4, "platform.tcb_order", |w| w.report.committed_tcb = OLDER, |_| {}),
    (4, "platform.tcb_order", |w| w.report.current_tcb = OLDER, |_| {}),
    (4, "platform.provisional_firmware", |w| w.report.current_tcb.microcode += 1, |_| {}),
    (4, "platform.provisional_firmware", |w| w.report.current_firmware = firmware(59), |_| {}),
    (4, "platform.tcb_floor", |w| w.report.launch_tcb.snp = 0x16, |_| {}),
    (4, "platform.tcb_floor", |w| all_tcbs(w, Tcb { snp: 0x16, ..TCB }), |_| {}),
    (4, "platform.tcb_floor",
     |w| w.policy.snp.tcb_floors = vec![(Product::Genoa, Tcb { microcode: 0x55, ..TCB })], |_| {}),
    (4, "guest_policy.unknown", |w| w.report.policy |= 1 << 26, |_| {}),
    (4, "guest_policy.reserved_one", |w| w.report.policy &= !guest_policy::RESERVED_ONE, |_| {}),
    (4, "guest_policy.debug", |w| w.report.policy |= guest_policy::DEBUG, |_| {}),
    (4, "guest_policy.migrate_ma", |w| w.report.policy |= guest_policy::MIGRATE_MA, |_| {}),
    (4, "guest_policy.smt", |w| w.report.policy |= guest_policy::SMT, |_| {}),
    (4, "guest_policy.cxl", |w| w.report.policy |= guest_policy::CXL_ALLOW, |_| {}),
    (4, "guest_policy.aes_256_xts", |w| w.report.policy &= !guest_policy::MEM_AES_256_XTS, |_| {}),
    (4, "guest_policy.rapl", |w| w.report.policy &= !guest_policy::RAPL_DIS, |_| {}),
    (4, "guest_policy.ciphertext",
     |w| { turin(w); w.report.policy &= !guest_policy::CIPHERTEXT_HIDING; }, |_| {}),
    (4, "guest_policy.page_swap", |w| w.report.policy &= !guest_policy::PAGE_SWAP_DISABLE, |_| {}),
    (4, "platform_info.unknown", |w| w.report.platform_info |= 1 << 6, |_| {}),
    (4, "platform_info.smt", |w| w.report.platform_info |= platform_info::SMT, |_| {}),
    (4, "platform_info.ecc", |w| w.report.platform_info &= !platform_info::ECC, |_| {}),
    (4, "platform_info.rapl", |w| w.report.platform_info &= !platform_info::RAPL_DIS, |_| {}),
    (4, "platform_info.ciphertext",
     |w| { turin(w); w.report.platform_info &= !platform_info::CIPHERTEXT_HIDING; }, |_| {}),
    (4, "platform_info.alias",
     |w| w.report.platform_info &= !platform_info::ALIAS_CHECK_COMPLETE, |_| {}),
    (4, "platform.vmpl", |w| w.report.vmpl = 1, |_| {}),
    (4, "platform.migration_agent", |w| w.report.report_id_ma[31] = 0xFE, |_| {}),
    (4, "platform.measurement", |w| w.report.measurement[0] ^= 1, |_| {}),
    (4, "platform.host_data", |w| w.report.host_data[0] ^= 1, |_| {}),
    (4, "platform.host_data", |w| w.statement.launch_config_digest[0] ^= 1, |_| {}),
    (4, "platform.mitigations", |w| w.policy.snp.required_mitigations = 1, |_| {}),
    (4, "platform.mitigations",
     |w| { turin(w); w.report.launch_mitigations = 1; w.policy.snp.required_mitigations = 3; }, |_| {}),
    (4, "platform.mitigations",
     |w| { turin(w); w.report.current_mitigations = 1; w.policy.snp.required_mitigations = 2; },
     |_| {}),
];

/// Step 5: other sections than those that the statement commits to.
#[rustfmt::skip]
const SECTIONS: &[Row] = &[
    (5, "key_config.digest", |w| w.key_config.epoch = 8, |_| {}),
    (5, "key_config.digest", |_| {}, |p| p.key_config.push(0)),
    (5, "key_config.epoch", |w| { w.key_config.epoch = 8; w.link(); }, |_| {}),
    (5, "key_config.layout",
     |w| w.statement.key_config_digest = key_config_digest(b"none"),
     |p| p.key_config = b"none".to_vec()),
    (5, "serving_policy.digest", |w| w.serving.max_output = 1, |_| {}),
    (5, "serving_policy.layout", |w| { w.serving.tick_ms = 0; w.link(); }, |_| {}),
    (5, "package.digest", |w| w.header.data_root[0] ^= 1, |_| {}),
    (5, "package.layout", |_| {}, |p| p.package.push(0)),
    (5, "package.layout", |_| {}, |p| p.package.truncate(256)),
    (5, "package.layout", |_| {}, |p| p.package[257] = 2),
    (5, "package.layout", |w| { w.header.segment_log2 = 30; w.link(); }, |_| {}),
    (5, "package.content_digest", |w| w.statement.content_digest[0] ^= 1, |_| {}),
    (5, "package.svn", |w| w.statement.model_svn = 4, |_| {}),
];

/// Steps 6 to 10.
#[rustfmt::skip]
const MODEL: &[Row] = &[
    (6, "serving_policy.demand",
     |w| { w.serving.pad_profile = PadProfile::Off; w.link(); }, |_| {}),
    (6, "serving_policy.demand", |w| { w.serving.tick_ms = 51; w.link(); }, |_| {}),
    // A host that chooses a quick tick or small quanta sees what the profile hides.
    (6, "serving_policy.demand", |w| { w.serving.tick_ms = 49; w.link(); }, |_| {}),
    (6, "serving_policy.demand", |w| { w.serving.length_quantum = 15; w.link(); }, |_| {}),
    (6, "serving_policy.demand", |w| { w.serving.billing_quantum = 63; w.link(); }, |_| {}),
    (6, "serving_policy.demand", |w| { w.serving.epoch_max_seconds = 3_601; w.link(); }, |_| {}),
    (6, "serving_policy.demand", |w| { w.serving.epoch_max_requests += 1; w.link(); }, |_| {}),
    (6, "serving_policy.demand", |w| { w.serving.text_mode = true; w.link(); }, |_| {}),
    (6, "serving_policy.demand", |w| { w.serving.kv_sharing = true; w.link(); }, |_| {}),
    (6, "serving_policy.demand", |w| { w.serving.spec_decode = true; w.link(); }, |_| {}),
    (6, "serving_policy.demand", |w| { w.serving.moe_on_cpu = true; w.link(); }, |_| {}),
    (6, "serving_policy.demand", |w| w.policy.serving.require_oblivious_embed = true, |_| {}),
    (7, "model.content_digest", |w| { w.header.data_root[0] ^= 1; w.link(); }, |_| {}),
    (7, "model.svn", |w| { w.header.model_svn = 2; w.statement.model_svn = 2; w.link(); }, |_| {}),
    (7, "model.signature", |_| {}, |p| *p.package.last_mut().unwrap() ^= 1),
    (7, "model.signature", |_| {}, |p| p.package[264] ^= 1),
    (7, "model.publisher", |w| w.policy.publishers = vec![[0; 32]], |_| {}),
    (8, "gpu.unverifiable",
     |w| { w.statement.gpu_count = 1; w.statement.gpu_digest = [1; 48]; }, |_| {}),
    (8, "gpu.unverifiable", |_| {}, |p| p.gpu = Some(vec![1])),
    (9, "chip.not_pinned", |w| w.policy.platform = PlatformTrust::Pinned(vec![HardwareId::Chip([0; 64])]), |_| {}),
    (10, "freshness.no_challenge", |w| w.challenge.nonce = None, |_| {}),
    (10, "freshness.stale", |w| w.challenge.nonce = Some([9; 32]), |_| {}),
    (10, "freshness.stale",
     |w| { w.challenge.nonce = Some([9; 32]); w.policy.max_age = MaxAge::Epoch; }, |_| {}),
    (10, "freshness.stale", |w| w.statement.nonce = [0; 32], |_| {}),
    // Zero is how a statement says that it answers no challenge.
    (10, "freshness.stale",
     |w| { w.statement.nonce = [0; 32]; w.challenge.nonce = Some([0; 32]); }, |_| {}),
    (10, "freshness.layout", |w| w.statement.nonce = [0; 32], |p| p.freshness = Some(vec![0; 9])),
];

fn cpu(family: u8, model: u8) -> Cpuid {
    Cpuid { family, model, stepping: 0 }
}

fn firmware(minor: u8) -> Firmware {
    Firmware { major: 1, minor, build: 1 }
}

fn all_tcbs(world: &mut World, tcb: Tcb) {
    let report = &mut world.report;
    report.current_tcb = tcb;
    report.reported_tcb = tcb;
    report.committed_tcb = tcb;
    report.launch_tcb = tcb;
    let (name, hwid) = match tcb.fmc {
        Some(_) => ("Turin", report.chip_id[..8].to_vec()),
        None => ("Genoa", report.chip_id.to_vec()),
    };
    world.vcek(name, tcb, &hwid);
}

/// An honest Turin, version 5.
fn turin(world: &mut World) {
    world.report.version = 5;
    world.report.cpuid = cpu(0x1A, 0x02);
    world.report.chip_id = [0; 64];
    world.report.chip_id[..8].copy_from_slice(b"turin #1");
    world.report.policy |= guest_policy::CIPHERTEXT_HIDING;
    world.report.platform_info |= platform_info::CIPHERTEXT_HIDING;
    world.report.launch_mitigations = 0b111;
    world.report.current_mitigations = 0b111;
    all_tcbs(world, Tcb { fmc: Some(1), bootloader: 1, tee: 1, snp: 4, microcode: 0x51 });
}

/// A Milan in the best state that a Milan can be in.
fn milan(world: &mut World) {
    world.report.cpuid = cpu(0x19, 0x01);
    world.report.policy &= !guest_policy::MEM_AES_256_XTS;
    world.vcek("Milan-B0", TCB, &CHIP_ID);
}

/// The honest platform, signing with a key loaned to a provider.
fn loaned(world: &mut World) {
    world.report.signing_key = SigningKey::Vlek;
    let draft = world.honest_vcek();
    draft.subject = "SEV-VLEK".to_owned();
    draft.extensions.retain(|(oid, ..)| *oid != amd(&[4]));
    draft.extensions.push((amd(&[5]), false, tlv(0x16, b"CN=a-provider")));
}

fn vcek(world: &mut World, product: &str, tcb: Tcb, hwid: &[u8]) {
    world.vcek(product, tcb, hwid);
}

fn extension(world: &mut World, oid: &[u8], critical: bool) {
    world.honest_vcek().extensions.push((oid.to_vec(), critical, integer(0)));
}

fn without(world: &mut World, oid: &[u8]) {
    world.honest_vcek().extensions.retain(|(other, ..)| other != oid);
}

fn reserved_level(world: &mut World) {
    world.honest_vcek().extensions.push((amd(&[3, 5]), false, integer(1)));
}

fn sha256_inside(world: &mut World) {
    let draft = world.honest_vcek();
    let at = draft.algorithm.windows(2).position(|w| w == b"\x02\x02").expect("sha-384");
    draft.algorithm[at + 1] = 1;
}

fn compressed_point(world: &mut World) {
    let draft = world.honest_vcek();
    let ec = seq(&[tlv(6, b"\x2a\x86\x48\xce\x3d\x02\x01"), tlv(6, b"\x2b\x81\x04\x00\x22")]);
    let point = [&[0, 2], [0x11; 48].as_slice()].concat();
    draft.spki = seq(&[ec, tlv(3, &point)]);
}

fn chip_hex() -> String {
    CHIP_ID.iter().map(|byte| format!("{byte:02x}")).collect()
}
