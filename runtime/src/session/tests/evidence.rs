//! Evidence on request, judged by the client's own policy.

use chrysalis_attestation::policy::{Challenge, MaxAge, Rejection, VerifiedEnclave};
use chrysalis_protocol::frame::FrameKind;
use chrysalis_protocol::messages::{
    Assembler, CLIENT_BUNDLE_PIECES, ClientBundleReq, CloseCode, EvidenceReq, PIECE_MAX, Piece,
};
use chrysalis_protocol::statement::Kind;

use super::super::StreamId;
use super::harness::{Host, policy};

fn ask(host: &mut Host, id: StreamId, kind: Kind, nonce: [u8; 32]) {
    host.frame(id, FrameKind::EvidenceReq, &EvidenceReq { kind, nonce }.to_bytes());
}

pub(super) fn bundle(host: &Host, id: StreamId) -> Option<Vec<u8>> {
    let mut assembler = Assembler::new(1 << 20);
    let mut whole = None;
    for sent in host.sent.get(&id)? {
        assert_eq!(sent.kind, FrameKind::Evidence);
        whole = assembler.push(&Piece::from_bytes(&sent.body).unwrap()).unwrap();
    }
    whole
}

fn appraise(bundle: &[u8], max_age: MaxAge, nonce: [u8; 32]) -> Result<VerifiedEnclave, Rejection> {
    let challenge =
        Challenge { nonce: (max_age == MaxAge::Fresh).then_some(nonce), now_unix: 1_800_000_000 };
    policy(max_age).appraise(bundle, &challenge)
}

#[test]
fn the_evidence_of_an_epoch_is_made_once_and_accepted() {
    let mut host = Host::new("");
    for stream in 1..=5 {
        ask(&mut host, (1, stream), Kind::Serve, [8; 32]);
        let bundle = bundle(&host, (1, stream)).unwrap();
        let enclave = appraise(&bundle, MaxAge::Epoch, [8; 32]).unwrap();
        assert_eq!(
            enclave.statement_digest(),
            host.gateway.parts.epochs.current().statement_digest
        );
        assert!(appraise(&bundle, MaxAge::Fresh, [8; 32]).is_err());
    }
    assert_eq!(host.platform.asked, 1);
}

#[test]
fn many_challenges_share_one_report_and_each_is_proved_fresh_for_its_own() {
    let mut host = Host::new("");
    let ids: Vec<_> = (0..21).map(|n: u8| ((u64::from(n % 3)), 1 + u64::from(n))).collect();
    for (n, &id) in (0..).zip(&ids) {
        ask(&mut host, id, Kind::Freshness, [n; 32]);
        host.pass(0);
    }
    assert!(host.sent.is_empty(), "nothing before the batch is due");
    host.pass(20);
    assert_eq!(host.platform.asked, 2);
    for (n, &id) in (0..).zip(&ids) {
        let bundle = bundle(&host, id).unwrap();
        let enclave = appraise(&bundle, MaxAge::Fresh, [n; 32]).unwrap();
        assert!(enclave.fresh());
        assert!(appraise(&bundle, MaxAge::Fresh, [n + 1; 32]).is_err());
    }
    host.assert_empty();
}

#[test]
fn challenges_of_a_host_that_left_are_forgotten_and_too_many_are_busy() {
    let mut host = Host::with("", |parts| parts.limits.freshness_batch = 2);
    host.platform.is_slow = true;
    for stream in 1..=5 {
        ask(&mut host, (stream % 2, stream), Kind::Freshness, [stream as u8; 32]);
    }
    // Two are with the platform, two are gathered.
    assert_eq!(host.close_code((1, 5)), Some(CloseCode::Busy));
    host.close(1);
    host.platform.is_slow = false;
    host.pass(250);
    for stream in [1, 3] {
        assert!(bundle(&host, (1, stream)).is_none());
    }
    for stream in [2, 4] {
        assert!(bundle(&host, (0, stream)).is_some());
    }
    host.assert_empty();
}

#[test]
fn challenges_that_come_one_by_one_cost_four_reports_a_second_and_wait_a_quarter_of_one() {
    let mut host = Host::new("");
    for n in 0..400_u64 {
        ask(&mut host, (1, 1 + n), Kind::Freshness, [(n % 251) as u8; 32]);
        host.pass(5);
    }
    // Two seconds, from the first batch on; the first epoch's report is one of them.
    assert!((8..=10).contains(&host.platform.asked), "{} reports", host.platform.asked);
    host.pass(250);
    for n in 0..400 {
        let answered = host.sent[&(1, 1 + n)][0].at_ms;
        let waited = answered - n * 5;
        assert!(waited <= 250, "challenge {n} waited {waited} ms");
    }
    host.assert_empty();
}

#[test]
fn a_full_batch_goes_out_at_once_and_the_next_waits_for_the_platform() {
    let mut host = Host::new("");
    host.platform.is_slow = true;
    let nonce = |n: u64| chrysalis_protocol::hash::sha256(&[&n.to_be_bytes()]);
    for n in 0..2_049 {
        ask(&mut host, (n % 7, 1 + n), Kind::Freshness, nonce(n));
    }
    // A thousand and twenty-four are with the platform, as many are gathered, and there is no room for one more.
    assert_eq!(host.close_code((2_048 % 7, 2_049)), Some(CloseCode::Busy));
    host.attest();
    assert_eq!(host.platform.asked, 2);
    host.platform.is_slow = false;
    host.pass(250);
    assert_eq!(host.platform.asked, 3, "2,048 clients, two reports");
    for n in (0..2_048).step_by(31) {
        let bundle = bundle(&host, (n % 7, 1 + n)).unwrap();
        assert!(appraise(&bundle, MaxAge::Fresh, nonce(n)).unwrap().fresh());
    }
    host.assert_empty();
}

#[test]
fn a_platform_that_does_not_answer_holds_up_nobody_for_long() {
    let mut host = Host::new("epoch_max_seconds = 10");
    host.platform.is_slow = true;
    ask(&mut host, (1, 1), Kind::Freshness, [1; 32]);
    ask(&mut host, (2, 1), Kind::Freshness, [2; 32]);
    host.pass(100);
    ask(&mut host, (1, 2), Kind::Freshness, [3; 32]);
    host.close(2);
    host.pass(10_000);
    assert_eq!(host.close_code((1, 1)), Some(CloseCode::Busy));
    assert_eq!(host.close_code((1, 2)), Some(CloseCode::Busy));
    host.assert_empty();
    // What comes in the end is for nobody, and the next batch and the next epoch are asked for.
    host.attest();
    assert!(bundle(&host, (2, 1)).is_none_or(|_| false));
    ask(&mut host, (1, 3), Kind::Freshness, [4; 32]);
    host.platform.is_slow = false;
    host.pass(1_000);
    assert_eq!(host.gateway.parts.epochs.current().number, 2);
    let bundle = bundle(&host, (1, 3)).unwrap();
    assert!(appraise(&bundle, MaxAge::Fresh, [4; 32]).unwrap().fresh());
}

#[test]
fn an_epoch_that_ends_while_a_batch_is_attested_waits_for_it() {
    let mut host = Host::new("epoch_max_seconds = 10");
    host.platform.is_slow = true;
    host.pass(9_900);
    ask(&mut host, (1, 1), Kind::Freshness, [1; 32]);
    host.pass(500);
    host.attest();
    let first = bundle(&host, (1, 1)).unwrap();
    assert_eq!(appraise(&first, MaxAge::Fresh, [1; 32]).unwrap().statement().epoch, 1);
    ask(&mut host, (1, 2), Kind::Freshness, [2; 32]);
    host.platform.is_slow = false;
    host.pass(500);
    let second = bundle(&host, (1, 2)).unwrap();
    assert_eq!(appraise(&second, MaxAge::Fresh, [2; 32]).unwrap().statement().epoch, 2);
}

#[test]
fn a_platform_without_evidence_closes_every_challenge() {
    let mut host = Host::new("");
    host.platform.is_broken = true;
    ask(&mut host, (1, 1), Kind::Freshness, [1; 32]);
    ask(&mut host, (1, 2), Kind::Freshness, [2; 32]);
    host.pass(20);
    for stream in [1, 2] {
        assert_eq!(host.close_code((1, stream)), Some(CloseCode::Internal));
    }
    host.assert_empty();
}

#[test]
fn a_serving_enclave_asks_for_no_key() {
    let mut host = Host::new("");
    ask(&mut host, (1, 1), Kind::KeyRelease, [1; 32]);
    assert_eq!(host.close_code((1, 1)), Some(CloseCode::Rejected));
    host.frame((1, 2), FrameKind::KeyrelResp, &[0; 10]);
    assert_eq!(host.close_code((1, 2)), Some(CloseCode::Rejected));
}

#[test]
fn evidence_of_the_wrong_policy_model_or_age_is_not_accepted() {
    let mut host = Host::new("");
    ask(&mut host, (1, 1), Kind::Serve, [8; 32]);
    let bundle = bundle(&host, (1, 1)).unwrap();
    let challenge = Challenge { nonce: None, now_unix: 1_800_000_000 };
    let right = policy(MaxAge::Epoch);
    assert!(right.appraise(&bundle, &challenge).is_ok());
    let mut wrong = vec![right; 5];
    wrong[0].content_digests[0][0] ^= 1;
    wrong[1].publishers[0][0] ^= 1;
    wrong[2].minimum_svn = 6;
    wrong[3].serving.max_epoch_seconds = 60;
    wrong[4].allow_simulated = false;
    let codes: Vec<_> = wrong
        .iter()
        .map(|policy| policy.appraise(&bundle, &challenge).unwrap_err().code())
        .collect();
    let mut distinct = codes.clone();
    distinct.sort_unstable();
    distinct.dedup();
    assert_eq!(distinct.len(), codes.len(), "{codes:?}");
}

#[test]
fn a_large_client_bundle_comes_in_windows() {
    let whole: Vec<u8> = (0..3_000_000_u32).map(|at| (at % 251) as u8).collect();
    let mut host = Host::with("", |parts| parts.client_bundle.clone_from(&whole));
    let mut assembler = Assembler::new(1 << 30);
    let mut joined = None;
    let mut offset = 0;
    for stream in 1..=3 {
        assert!(joined.is_none());
        let id = (1, stream);
        let request = ClientBundleReq { offset };
        host.frame(id, FrameKind::ClientBundleReq, &request.to_bytes());
        assert!(host.sent[&id].len() <= CLIENT_BUNDLE_PIECES);
        for sent in &host.sent[&id] {
            let piece = Piece::from_bytes(&sent.body).unwrap();
            joined = assembler.push(&piece).unwrap();
        }
        offset += (CLIENT_BUNDLE_PIECES * PIECE_MAX) as u64;
    }
    assert!(joined == Some(whole));
    for offset in [3_000_000, u64::MAX] {
        let id = (1, offset);
        let request = ClientBundleReq { offset };
        host.frame(id, FrameKind::ClientBundleReq, &request.to_bytes());
        assert_eq!(host.close_code(id), Some(CloseCode::Rejected));
    }
}
