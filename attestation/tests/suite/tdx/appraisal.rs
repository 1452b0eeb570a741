//! One altered claim to a row, one named refusal: the rules for TDX.

use chrysalis_attestation::policy::{
    AppraisalPolicy, PlatformTrust, Rejection, Rtmr3, package_rtmr,
};
use chrysalis_attestation::quote::{TdReport15, td_attributes};
use chrysalis_attestation::verifier::HardwareId;
use chrysalis_protocol::freshness::{Freshness, Tree};
use chrysalis_protocol::statement::{Kind, Statement};
use chrysalis_protocol::tdx_collateral::TdxCollateral;

use super::intel::{Intel, PPID};
use super::{TdWorld, demand};
use crate::simulated::{NONCE, Parts, World};

/// Expected step and code; what is changed before the quote is made; after it is signed.
type Row = (u8, &'static str, fn(&mut TdWorld), fn(&mut Parts));

#[test]
fn the_honest_td_is_accepted() {
    let mut td = TdWorld::honest();
    let parts = td.parts();
    let verified =
        td.world.policy.appraise(&parts.bundle(), &td.world.challenge).expect("it is honest");
    assert_eq!(verified.hardware_id(), HardwareId::Ppid(PPID));
    assert_eq!(verified.measurement(), td.td.mr_td);
    assert!(!verified.simulated() && verified.fresh());
    let claims = verified.claims();
    assert_eq!((claims.tee.as_str(), claims.snp), ("tdx", None));
    let tdx = claims.tdx.expect("it is a TD");
    assert_eq!((tdx.tcb_status.as_str(), tdx.fmspc.as_str()), ("UpToDate", "b0c06f000000"));
    assert_eq!((tdx.tcb_evaluation, tdx.advisories.len()), (18, 1));
    assert_eq!(claims.product, "TDX b0c06f000000");
    assert_eq!((claims.platform, claims.waived.len()), ("pinned", 0));
    assert!(verified.explain().proved[0].contains("Intel"));
}

#[test]
fn later_versions_and_what_a_policy_allows_are_accepted() {
    let honest: [fn(&mut TdWorld); 11] = [
        |w| {
            later(w, 3);
        },
        |w| {
            later(w, 4);
        },
        |w| w.world.policy.platform = PlatformTrust::AnyGenuine,
        |w| {
            w.intel.tcb_status = "SWHardeningNeeded";
            w.demand().machine.allow_sw_hardening_needed = true;
        },
        |w| {
            w.intel.flags = [Some(true); 3];
            w.world.policy.dangerous.allow_smt = true;
            w.demand().machine.allow_dynamic_platform = true;
            w.demand().machine.allow_cached_keys = true;
        },
        |w| w.demand().machine.minimum_tcb_evaluation = 18,
        // The first second and the last one.
        |w| {
            w.intel.tcb_window = ["2026-06-01T00:00:00Z"; 2];
            w.intel.identity_window = ["2026-06-01T00:00:00Z"; 2];
            w.intel.crl_this_update = "260601000000Z";
        },
        |w| w.demand().mr_seam = vec![[0; 48], [0x5E; 48]],
        |w| {
            w.td.rtmrs[3] = [7; 48];
            w.demand().rtmr3 = vec![Rtmr3::Package, Rtmr3::Value([7; 48])];
        },
        |w| {
            w.td.mr_owner = [1; 48];
            w.td.mr_owner_config = [2; 48];
            w.demand().mr_owner = [1; 48];
            w.demand().mr_owner_config = [2; 48];
        },
        |w| {
            w.td.mr_signer_seam = [3; 48];
            w.intel.module_signer = [3; 48];
            w.demand().mr_signer_seam = [3; 48];
        },
    ];
    for (index, change) in honest.into_iter().enumerate() {
        let mut td = TdWorld::honest();
        change(&mut td);
        assert_eq!(appraise(&mut td), Ok(()), "{index}");
    }
}

#[test]
fn each_rule_refuses_its_one_altered_claim() {
    let mut count = 0;
    for &(step, code, before, after) in [QUOTE, VENDOR, GUEST].into_iter().flatten() {
        let mut td = TdWorld::honest();
        before(&mut td);
        let mut parts = td.parts();
        after(&mut parts);
        let rejection = td.world.appraise(&parts).expect_err(code);
        assert_eq!((rejection.step(), rejection.code()), (step, code), "{rejection}");
        assert!(!rejection.to_string().is_empty());
        count += 1;
    }
    println!("{count} altered claims, each refused by its own rule");
}

/// Layout of the quote, and what it commits to.
#[rustfmt::skip]
const QUOTE: &[Row] = &[
    (2, "statement.tee", |w| w.world.policy.tdx = None, |_| {}),
    (3, "report_data.layout", |_| {}, |p| p.report.truncate(600)),
    (3, "report_data.layout", |_| {}, |p| p.report[48 + 520] ^= 1),
    (3, "report_data.digest", |_| {}, |p| p.report[48 + 520 + 63] ^= 1),
    (3, "report_data.layout", |w| later(w, 3), |p| p.report[0] = 4),
    (4, "tdx.length", |_| {}, |p| { p.report.pop(); }),
    (4, "tdx.length", |_| {}, |p| p.report[48 + 584] ^= 1),
    (4, "tdx.trailing", |_| {}, |p| p.report.push(0)),
    (4, "tdx.length", |_| {}, |p| longer(p, &[SIGNATURE_LEN])),
    (4, "tdx.length", |_| {}, |p| longer(p, &[SIGNATURE_LEN, OUTER_LEN])),
    (4, "tdx.version", |_| {}, |p| p.report[0] = 3),
    (4, "tdx.version", |w| w.intel.version = 6, |_| {}),
    (4, "tdx.tee_type", |w| w.intel.tee_type = 0, |_| {}),
    (4, "tdx.key_type", |w| w.intel.key_type = 3, |_| {}),
    (4, "tdx.vendor", |_| {}, |p| p.report[12] ^= 1),
    (4, "tdx.body", |w| later(w, 3), |p| p.report[48] = 1),
    (4, "tdx.body", |w| later(w, 3), |p| p.report[50] ^= 1),
    (4, "tdx.certification", |_| {}, |p| p.report[48 + 584 + 4 + 128] = 5),
    (4, "tdx.certification", |_| {}, |p| p.report[INNER_TYPE] = 4),
    (4, "tdx.collateral_missing", |_| {}, |p| p.collateral = None),
    (4, "tdx.collateral", |_| {}, |p| p.collateral.as_mut().unwrap().push(0)),
    (4, "tdx.collateral", |_| {}, |p| { p.collateral.as_mut().unwrap().pop(); }),
    (4, "tdx.collateral", |_| {}, |p| p.collateral.as_mut().unwrap()[7] = b'2'),
    (4, "tdx.collateral", |_| {}, not_text),
    (4, "tdx.attributes_reserved", |w| w.td.td_attributes |= 1 << 40, |_| {}),
    (4, "tdx.attributes_reserved", |w| w.td.td_attributes |= 1 << 31, |_| {}),
    (4, "tdx.migratable", |w| w.td.td_attributes |= td_attributes::MIGRATABLE, |_| {}),
    (4, "tdx.sept_ve_disable", |w| w.td.td_attributes = 0, |_| {}),
    (4, "tdx.certificate_chain", |w| w.intel.chain = &[0, 1], |_| {}),
    (4, "tdx.certificate_chain", |w| w.intel.chain = &[0, 2], |_| {}),
    (4, "tdx.certificate_chain", |w| w.intel.chain = &[0, 1, 1, 2], |_| {}),
    (4, "tdx.certificate_chain", |_| {}, |p| { let at = p.report.len() - 60; p.report[at] = b'!'; }),
    (4, "tdx.certificate_chain", |_| {}, another_root),
];

/// What the vendor says.
#[rustfmt::skip]
const VENDOR: &[Row] = &[
    (4, "tdx.authenticity", |_| {}, |p| p.report[48 + 100] ^= 1),
    (4, "tdx.authenticity", |_| {}, |p| p.report[48 + 584 + 4] ^= 1),
    (4, "tdx.authenticity", |_| {}, |p| p.report[48 + 584 + 4 + 64] ^= 1),
    (4, "tdx.authenticity", |_| {}, |p| p.report[QE_REPORT + 64] ^= 1),
    (4, "tdx.authenticity", |_| {}, |p| p.report[QE_REPORT + 384] ^= 1),
    (4, "tdx.authenticity", |_| {}, |p| p.report[QE_REPORT + 384 + 64 + 2] ^= 1),
    (4, "tdx.authenticity", |w| w.intel.revoked = true, |_| {}),
    (4, "tdx.authenticity", |w| w.intel.qe_signer = [0; 32], |_| {}),
    (4, "tdx.authenticity", |w| w.intel.tcb_fmspc = Some([0; 6]), |_| {}),
    (4, "tdx.authenticity", |w| w.intel.tcb_id = "SGX", |_| {}),
    (4, "tdx.authenticity", |w| w.intel.tcb_pce_id = "0001", |_| {}),
    (4, "tdx.authenticity", |w| w.intel.module_signer = [1; 48], |_| {}),
    (4, "tdx.tcb_status", |w| w.intel.tcb_status = "Revoked", |_| {}),
    (4, "tdx.tcb_status", |w| w.td.tee_tcb_svn = [0; 16], |_| {}),
    (4, "tdx.authenticity", |w| w.td.seam_attributes = 1, |_| {}),
    (4, "tdx.authenticity", |_| {}, |p| collateral(p, |c| c.tcb_info_signature[0] ^= 1)),
    (4, "tdx.authenticity", |_| {}, |p| collateral(p, |c| c.qe_identity_signature[63] ^= 1)),
    (4, "tdx.authenticity", |_| {}, |p| collateral(p, |c| c.tcb_info = c.tcb_info.replace(":18", ":19"))),
    (4, "tdx.authenticity", |_| {}, |p| collateral(p, |c| *c.root_crl.last_mut().unwrap() ^= 1)),
    (4, "tdx.authenticity", |_| {}, |p| collateral(p, |c| c.pck_crl = c.root_crl.clone())),
    (4, "tdx.time", |w| w.intel.tcb_window[1] = "2026-05-31T23:59:59Z", |_| {}),
    (4, "tdx.time", |w| w.intel.tcb_window[0] = "2026-06-02T00:00:00Z", |_| {}),
    (4, "tdx.time", |w| w.intel.identity_window[1] = "2026-05-31T23:59:59Z", |_| {}),
    (4, "tdx.time", |w| w.intel.identity_window[0] = "2026-06-02T00:00:00Z", |_| {}),
    (4, "tdx.time", |w| w.intel.crl_next_update = "260531235959Z", |_| {}),
    (4, "tdx.time", |w| w.intel.crl_this_update = "260602000000Z", |_| {}),
    (4, "tdx.time", |w| w.intel.pck_not_after = "260531235959Z", |_| {}),
    (4, "tdx.time", |w| w.world.challenge.now_unix = 1_600_000_000, |_| {}),
    (4, "tdx.ppid", |w| { w.intel.ppid.pop(); }, |_| {}),
    (4, "tdx.tcb_status", |w| w.intel.tcb_status = "OutOfDate", |_| {}),
    (4, "tdx.tcb_status", |w| w.intel.tcb_status = "SWHardeningNeeded", |_| {}),
    (4, "tdx.tcb_status", |w| w.intel.tcb_status = "ConfigurationNeeded", |_| {}),
    (4, "tdx.tcb_status", |w| w.intel.identity_status = "OutOfDate", |_| {}),
    (4, "tdx.tcb_status",
     |w| { w.intel.tcb_status = "ConfigurationAndSWHardeningNeeded";
           w.demand().machine.allow_sw_hardening_needed = true; }, |_| {}),
    (4, "tdx.tcb_evaluation", |w| w.demand().machine.minimum_tcb_evaluation = 19, |_| {}),
    (4, "tdx.dynamic_platform", |w| w.intel.flags[0] = Some(true), |_| {}),
    (4, "tdx.dynamic_platform", |w| w.intel.flags[0] = None, |_| {}),
    (4, "tdx.cached_keys", |w| w.intel.flags[1] = Some(true), |_| {}),
    (4, "tdx.cached_keys", |w| w.intel.flags[1] = None, |_| {}),
    (4, "tdx.smt", |w| w.intel.flags[2] = Some(true), |_| {}),
    (4, "tdx.smt", |w| w.intel.flags[2] = None, |_| {}),
];

/// The guest, and which machine.
#[rustfmt::skip]
const GUEST: &[Row] = &[
    (4, "tdx.debug", |w| w.td.td_attributes |= td_attributes::DEBUG, |_| {}),
    (4, "tdx.profiling", |w| w.td.td_attributes |= 1 << 4, |_| {}),
    (4, "tdx.profiling", |w| w.td.td_attributes |= 1 << 6, |_| {}),
    (4, "tdx.provisioning_agent", |w| w.td.td_attributes |= td_attributes::TPA, |_| {}),
    (4, "tdx.perfmon", |w| w.td.td_attributes |= td_attributes::PERFMON, |_| {}),
    (4, "tdx.service_td", |w| { later(w, 3); w.td.later.as_mut().unwrap().mr_service_td = [1; 48]; }, |_| {}),
    (4, "tdx.service_td", |w| { later(w, 4); w.td.td_attributes |= td_attributes::SERVTD_EXT; }, |_| {}),
    (4, "tdx.xfam", |w| w.td.xfam |= 1 << 8, |_| {}),
    (4, "tdx.xfam", |w| w.td.xfam |= 1 << 63, |_| {}),
    (4, "tdx.xfam", |w| w.td.xfam &= !1, |_| {}),
    (4, "tdx.xfam", |w| w.td.xfam &= !2, |_| {}),
    (4, "tdx.xfam", |w| w.demand().xfam_allowed = 0x3, |_| {}),
    (4, "tdx.mr_seam", |w| w.demand().mr_seam = vec![[0; 48]], |_| {}),
    (4, "tdx.mr_signer_seam", |w| w.demand().mr_signer_seam = [1; 48], |_| {}),
    (4, "tdx.mr_td", |w| w.td.mr_td[0] ^= 1, |_| {}),
    (4, "tdx.rtmr0", |w| w.td.rtmrs[0][0] ^= 1, |_| {}),
    (4, "tdx.rtmr1", |w| w.td.rtmrs[1][0] ^= 1, |_| {}),
    (4, "tdx.rtmr2", |w| w.td.rtmrs[2][0] ^= 1, |_| {}),
    (4, "tdx.rtmr3", |w| w.td.rtmrs[3] = [0; 48], |_| {}),
    // Extended for another package, or by a second program.
    (4, "tdx.rtmr3", |w| w.td.rtmrs[3] = package_rtmr(&[0; 48]), |_| {}),
    (4, "tdx.config_id", |w| w.td.mr_config_id[0] ^= 1, |_| {}),
    (4, "tdx.config_id", |w| w.td.mr_config_id[32] = 1, |_| {}),
    (4, "tdx.config_id", |w| w.world.statement.launch_config_digest[0] ^= 1, |_| {}),
    (4, "tdx.mr_owner", |w| w.td.mr_owner[0] = 1, |_| {}),
    (4, "tdx.mr_owner_config", |w| w.td.mr_owner_config[47] = 1, |_| {}),
    (9, "chip.not_pinned", |w| w.intel.ppid = vec![0; 16], |_| {}),
    // A pin of zeros is none: whoever hides his machine's id could be meant.
    (9, "chip.not_pinned",
     |w| { w.intel.ppid = vec![0; 16];
           w.world.policy.platform = PlatformTrust::Pinned(vec![HardwareId::Ppid([0; 16])]); }, |_| {}),
    (9, "chip.not_pinned",
     |w| w.world.policy.platform = PlatformTrust::Pinned(vec![HardwareId::Chip([0xB1; 64])]), |_| {}),
    (10, "freshness.stale", |w| w.world.challenge.nonce = Some([9; 32]), |_| {}),
];

#[test]
fn a_quote_under_another_root_than_intels_is_refused() {
    let mut td = TdWorld::honest();
    let parts = td.parts();
    td.demand().dangerous_root = None;
    let rejection = td.world.appraise(&parts).expect_err("nobody signed it");
    assert_eq!(rejection.code(), "tdx.certificate_chain");
}

#[test]
fn evidence_of_one_platform_is_not_accepted_for_another() {
    // A simulated report under a statement that says TDX, and a quote under one that says simulated.
    let mut world = World::honest();
    world.policy.tdx = Some(demand());
    let simulated = world.parts();
    let mut td = TdWorld::honest();
    td.world.policy.allow_simulated = true;
    let quote = td.parts();
    let mixed = Parts { report: simulated.report.clone(), ..quote.clone() };
    assert_eq!(td.world.appraise(&mixed).expect_err("no quote").step(), 3);
    let mixed = Parts { report: quote.report, collateral: quote.collateral, ..simulated };
    assert_eq!(world.appraise(&mixed).expect_err("no report").step(), 3);
}

#[test]
fn a_batch_quote_refreshes_the_same_td_only() {
    let challenge = [0x77; 32];
    let fresh = |change: fn(&mut TdWorld)| {
        let mut td = TdWorld::honest();
        td.world.statement.nonce = [0; 32];
        td.world.challenge.nonce = Some(challenge);
        let path = Tree::new(&[NONCE, challenge]).unwrap().path(1).expect("the second nonce");
        let refresh = Statement {
            kind: Kind::Freshness,
            nonce: path.root(&challenge),
            prev_digest: td.world.statement.digest(),
            ..td.world.statement.clone()
        };
        let mut other = td.clone();
        change(&mut other);
        td.intel.later_ppid = Some(other.intel.ppid.clone());
        let (mut parts, quote) = td.parts_and(Some((&refresh, &other.td)));
        let section = Freshness { statement: &refresh.to_bytes(), report: &quote, path };
        parts.freshness = Some(section.to_bytes());
        td.world.appraise(&parts).map_err(|rejection| rejection.code())
    };
    assert_eq!(fresh(|_| {}), Ok(()));
    assert_eq!(fresh(|w| w.td.tee_tcb_svn[0] = 2), Err("freshness.mismatch"));
    assert_eq!(fresh(|w| w.td.xfam = 0x3), Err("freshness.mismatch"));
    assert_eq!(fresh(|w| w.td.mr_td[0] ^= 1), Err("tdx.mr_td"));
    // The same guest, to the last bit, on another machine of the same make.
    assert_eq!(fresh(|w| w.intel.ppid[0] ^= 1), Err("freshness.mismatch"));
}

#[test]
fn every_flipped_bit_of_a_quote_and_its_collateral_is_refused() {
    let mut td = TdWorld::honest();
    let parts = td.parts();
    let collateral = parts.collateral.clone().unwrap();
    let mut count = 0;
    // Every bit of the signed part and of the signatures; of the rest, which takes long, a share.
    for bit in (0..(48 + 584 + 4 + 128 + 6) * 8).chain((0..parts.report.len() * 8).step_by(37)) {
        let mut parts = parts.clone();
        parts.report[bit / 8] ^= 1 << (bit % 8);
        assert!(td.world.appraise(&parts).is_err(), "bit {bit} of the quote");
        count += 1;
    }
    for bit in (0..collateral.len() * 8).step_by(31) {
        let mut parts = parts.clone();
        parts.collateral.as_mut().unwrap()[bit / 8] ^= 1 << (bit % 8);
        assert!(td.world.appraise(&parts).is_err(), "bit {bit} of the collateral");
        count += 1;
    }
    for len in 0..parts.report.len() {
        let mut parts = parts.clone();
        parts.report.truncate(len);
        assert!(td.world.appraise(&parts).is_err(), "cut at {len}");
        count += 1;
    }
    println!("{count} flipped bits and cuts of a quote and its collateral, none accepted");
}

#[test]
fn a_policy_with_tdx_is_written_and_read_back() {
    let mut policy = TdWorld::honest().world.policy;
    let back = AppraisalPolicy::from_toml(&policy.to_toml()).expect("it was written by us");
    assert_eq!(back, policy);
    policy.tdx.as_mut().unwrap().rtmr3 = vec![Rtmr3::Package, Rtmr3::Value([7; 48])];
    policy.tdx.as_mut().unwrap().mr_seam = vec![[8; 48]];
    policy.tdx.as_mut().unwrap().machine.allow_cached_keys = true;
    let text = policy.to_toml();
    assert_eq!(AppraisalPolicy::from_toml(&text).as_ref(), Ok(&policy));
    for key in ["rtmr0", "rtmr1", "rtmr2", "rtmr3"] {
        let renamed = text.replace(&format!("\n{key} ="), "\nmr_seam_2 =");
        assert!(AppraisalPolicy::from_toml(&renamed).is_err(), "{key}");
        let start = text.find(&format!("\n{key} =")).expect("the key is there");
        let end = start + text[start..].find(']').expect("a list") + 1;
        let without = [&text[..start], &text[end..]].concat();
        let error = AppraisalPolicy::from_toml(&without).expect_err(key).to_string();
        assert!(error.contains(&format!("tdx.{key}")), "{error}");
        let empty = [&text[..start], &format!("\n{key} = []"), &text[end..]].concat();
        let error = AppraisalPolicy::from_toml(&empty).expect_err(key).to_string();
        assert!(error.contains("is empty"), "{error}");
    }
}

#[test]
fn what_a_policy_gives_up_is_told() {
    let mut td = TdWorld::honest();
    td.intel.tcb_status = "SWHardeningNeeded";
    td.intel.flags[2] = Some(true);
    td.demand().machine.allow_sw_hardening_needed = true;
    td.world.policy.dangerous.allow_smt = true;
    td.world.policy.platform = PlatformTrust::AnyGenuine;
    let parts = td.parts();
    let verified = td.world.policy.appraise(&parts.bundle(), &td.world.challenge).expect("allowed");
    assert_eq!(
        (verified.claims().platform, verified.waived()),
        ("any-genuine", &["dangerous_allow_smt"][..])
    );
    let told = verified.explain().not_proved.join("\n");
    for words in ["dangerous_allow_smt", "INTEL-SA-00001", "Who holds the machine"] {
        assert!(told.contains(words), "{words}: {told}");
    }
}

fn appraise(td: &mut TdWorld) -> Result<(), Rejection> {
    let parts = td.parts();
    td.world.appraise(&parts)
}

/// A quote of version 5, with a body of TDX 1.5.
fn later(td: &mut TdWorld, body: u16) {
    td.intel.version = 5;
    td.intel.body = body;
    td.td.later = Some(TdReport15 { tee_tcb_svn2: td.td.tee_tcb_svn, mr_service_td: [0; 48] });
}

/// One byte behind the last one of each part whose length stands at these places.
fn longer(parts: &mut Parts, lengths: &[usize]) {
    parts.report.push(0);
    for &at in lengths {
        let len = parts.report[at..].first_chunk().map(|len| u32::from_le_bytes(*len));
        parts.report[at..at + 4].copy_from_slice(&(len.unwrap() + 1).to_le_bytes());
    }
}

fn collateral(parts: &mut Parts, change: fn(&mut TdxCollateral)) {
    let section = parts.collateral.as_mut().unwrap();
    let mut collateral = TdxCollateral::parse(section).expect("it was written by us");
    change(&mut collateral);
    *section = collateral.to_bytes();
}

fn not_text(parts: &mut Parts) {
    let section = parts.collateral.as_mut().unwrap();
    let at = section.windows(5).position(|window| window == b"{\"id\"").expect("a text");
    section[at] = 0xFF;
}

/// The chain's last certificate is not the root that is trusted.
fn another_root(parts: &mut Parts) {
    let other = Intel::honest().make(&[TdWorld::honest().td]).quotes.remove(0);
    let last = |quote: &[u8]| {
        let begin = b"-----BEGIN";
        quote.windows(begin.len()).rposition(|window| window == begin).expect("a chain")
    };
    let (to, from) = (last(&parts.report), last(&other));
    let len = parts.report.len() - to;
    // Signatures in DER differ in length by a byte or two; padded text does not always.
    if other.len() - from == len {
        parts.report[to..].copy_from_slice(&other[from..]);
    } else {
        parts.report[to + 100] ^= 3;
    }
}

/// Length of everything behind the body, in version 4; of the certification data in it.
const SIGNATURE_LEN: usize = 48 + 584;
const OUTER_LEN: usize = SIGNATURE_LEN + 4 + 128 + 2;
/// Where the quoting enclave's report begins, in version 4.
const QE_REPORT: usize = 48 + 584 + 4 + 128 + 6;
/// Behind its signature and its authentication data: the type of the inner certification data.
const INNER_TYPE: usize = QE_REPORT + 384 + 64 + 2 + 32;
