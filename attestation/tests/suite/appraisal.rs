//! One altered claim to a row, one named refusal: the policy matrix over the simulated platform. Step
//! 4 has a table of its own: `snp/refused.rs`.

use crate::simulated::{Parts, World, key_config_digest};
use chrysalis_attestation::attester::simulated::{CHIP_ID, TCB};
use chrysalis_attestation::policy::{MaxAge, PlatformTrust};
use chrysalis_attestation::verifier::HardwareId;
use chrysalis_protocol::statement::{Kind, PadProfile, Tee};

/// Expected step and code; what is changed before the statement is made; after it is signed.
type Row = (u8, &'static str, fn(&mut World), fn(&mut Parts));

#[test]
fn the_honest_enclave_is_accepted() {
    let mut world = World::honest();
    world.serving.max_output = 7;
    world.link();
    let verified =
        world.policy.appraise(&world.parts().bundle(), &world.challenge).expect("it is honest");
    assert_eq!(verified.statement(), &world.statement);
    assert_eq!(verified.serving_policy(), &world.serving);
    assert_eq!(verified.content_digest(), world.statement.content_digest);
    assert_eq!(verified.measurement(), world.report.measurement);
    assert_eq!(verified.statement_digest(), world.statement.digest());
    assert_eq!(verified.seal_to().sealing_key, &world.key_config.sealing_key);
    assert_eq!(verified.receipt_key(), world.statement.receipt_key);
    assert_eq!(verified.hardware_id(), HardwareId::Chip(CHIP_ID));
    assert_eq!(verified.evidence().tcb(), TCB.to_string());
    assert!(verified.simulated() && verified.fresh());
    let explained = verified.explain();
    assert!(explained.not_proved[0].contains("simulated"));
    let claims = verified.claims();
    assert_eq!((claims.tee.as_str(), claims.chip_id.as_str()), ("simulated", chip_hex().as_str()));
    assert_eq!(claims.product, "Genoa");
    let snp = claims.snp.expect("it is a report of AMD's form");
    assert_eq!((snp.floors_version, snp.floors_expire_unix), (1, 1_830_297_600));
}

#[test]
fn each_rule_refuses_its_one_altered_claim() {
    let tables = [STATEMENT, SECTIONS, MODEL];
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
    // No window at all, and one that is wider than what is demanded.
    (6, "serving_policy.demand", |w| w.policy.serving.max_ack_window = Some(u32::MAX), |_| {}),
    (6, "serving_policy.demand", |w| { w.policy.serving.max_ack_window = Some(511);
        w.serving.ack_window = 512; w.link(); }, |_| {}),
    (7, "model.content_digest", |w| { w.header.data_root[0] ^= 1; w.link(); }, |_| {}),
    (7, "model.svn", |w| { w.header.model_svn = 2; w.statement.model_svn = 2; w.link(); }, |_| {}),
    (7, "model.signature", |_| {}, |p| *p.package.last_mut().unwrap() ^= 1),
    (7, "model.signature", |_| {}, |p| p.package[264] ^= 1),
    (7, "model.publisher", |w| w.policy.publishers = vec![[0; 32]], |_| {}),
    (8, "gpu.not_accepted",
     |w| { w.statement.gpu_count = 1; w.statement.gpu_digest = [1; 48]; }, |_| {}),
    (8, "gpu.evidence_unstated", |_| {}, |p| p.gpu = Some(vec![1])),
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

#[test]
fn a_demanded_ack_window_is_met_by_one_of_that_size_or_a_smaller_one() {
    for window in [1, 511, 512] {
        let mut world = World::honest();
        world.policy.serving.max_ack_window = Some(512);
        world.serving.ack_window = window;
        world.link();
        let appraised = world.policy.appraise(&world.parts().bundle(), &world.challenge);
        assert!(appraised.is_ok(), "{window}");
    }
}

fn chip_hex() -> String {
    CHIP_ID.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn a_result_is_told_in_the_words_of_rats() {
    let world = World::honest();
    let bundle = world.parts().bundle();
    let enclave = world.policy.appraise(&bundle, &world.challenge).unwrap();
    let eat = enclave.eat(&world.challenge);
    assert_eq!((eat.iat, eat.dbgstat), (world.challenge.now_unix, "disabled-since-boot"));
    // 0xC4 thirty-two times, and sixteen times 0xB0.
    assert_eq!(eat.eat_nonce.as_deref(), Some("xMTExMTExMTExMTExMTExMTExMTExMTExMTExMTExMQ"));
    assert_eq!(eat.bootseed, "sLCwsLCwsLCwsLCwsLCwsA");
    let ear = enclave.ear(&world.challenge);
    assert_eq!(ear.submods.cpu.status, "none");
    let zero = ear.submods.cpu.vector;
    assert_eq!((zero.hardware, zero.executables, zero.instance_identity), (0, 0, 0));
}
