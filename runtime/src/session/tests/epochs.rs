//! Replays, and the change of keys under load.

use chrysalis_protocol::messages::CloseCode;
use chrysalis_protocol::request::HEAD_LEN;

use super::harness::{Host, body};
use crate::engine::FinishReason;
use chrysalis_protocol::frame::FrameKind;

const HOUR_MS: u64 = 3_600_000;

#[test]
fn a_sealed_request_reaches_the_engine_once_however_often_it_is_sent() {
    let mut host = Host::new("");
    let sealed = host.seal(&body(&[5], 10)).bytes;
    host.submit((1, 1), &sealed);
    for stream in 2..10_000 {
        let id = (stream % 3, stream);
        host.submit(id, &sealed);
        assert_eq!(host.close_code(id), Some(CloseCode::Rejected));
    }
    assert_eq!(host.added().len(), 1);
    // Within the grace of its key, after the epoch has ended.
    host.pass(HOUR_MS + 1_000);
    host.submit((4, 1), &sealed);
    assert_eq!(host.close_code((4, 1)), Some(CloseCode::Rejected));
    // And after the grace.
    host.pass(600_000);
    host.submit((4, 2), &sealed);
    assert_eq!(host.close_code((4, 2)), Some(CloseCode::KeyUnknown));
    assert!(host.commands().iter().all(|command| !is_add(command)));
}

fn is_add(command: &crate::worker::Command) -> bool {
    matches!(command, crate::worker::Command::Add(_))
}

#[test]
fn of_copies_that_arrive_together_one_reaches_the_engine() {
    let mut host = Host::new("");
    let sealed = host.seal(&body(&[5], 10)).bytes;
    let ids: Vec<_> = (1..=20).map(|stream| (stream % 2, stream)).collect();
    for &id in &ids {
        host.open(id, &sealed);
    }
    for half in [&sealed[HEAD_LEN..1_500], &sealed[1_500..]] {
        for &id in &ids {
            host.frame(id, FrameKind::HostData, half);
        }
    }
    for &id in &ids {
        host.frame(id, FrameKind::End, &[]);
    }
    assert_eq!(host.added().len(), 1);
    let rejected = ids.iter().filter(|&&id| host.close_code(id) == Some(CloseCode::Rejected));
    assert_eq!(rejected.count(), 19);
}

#[test]
fn the_key_before_the_current_one_opens_requests_for_its_grace() {
    let mut host = Host::new("");
    let sealed: Vec<_> = (0..3).map(|_| host.seal(&body(&[5], 10)).bytes).collect();
    host.pass(HOUR_MS);
    assert_eq!(host.gateway.parts.epochs.current().number, 2);
    host.pass(599_999);
    host.submit((1, 1), &sealed[0]);
    assert_eq!(host.added().len(), 1);
    // Opened within the grace, its first bytes come after it.
    host.open((1, 2), &sealed[1]);
    host.pass(1);
    host.frame((1, 2), FrameKind::HostData, &sealed[1][HEAD_LEN..]);
    assert_eq!(host.close_code((1, 2)), Some(CloseCode::KeyUnknown));
    host.submit((1, 3), &sealed[2]);
    assert_eq!(host.close_code((1, 3)), Some(CloseCode::KeyUnknown));
    assert!(host.added().is_empty());
}

#[test]
fn a_key_that_was_never_there_is_unknown() {
    let mut host = Host::new("");
    let stranger = Host::new("").seal(&body(&[5], 10)).bytes;
    host.submit((1, 1), &stranger);
    assert_eq!(host.close_code((1, 1)), Some(CloseCode::KeyUnknown));
    host.assert_empty();
}

#[test]
fn a_key_that_has_taken_all_its_requests_is_followed_by_the_next() {
    let mut host = Host::new("epoch_max_requests = 3");
    let sealed: Vec<_> = (0..5).map(|_| host.seal(&body(&[5], 10)).bytes).collect();
    for (stream, sealed) in (1..).zip(&sealed[..4]) {
        host.submit((1, stream), sealed);
    }
    assert_eq!(host.added().len(), 3);
    assert_eq!(host.close_code((1, 4)), Some(CloseCode::KeyUnknown));
    host.tick();
    assert_eq!(host.gateway.parts.epochs.current().number, 2);
    // The full key goes on refusing; the next one takes requests.
    host.submit((1, 5), &sealed[4]);
    assert_eq!(host.close_code((1, 5)), Some(CloseCode::KeyUnknown));
    host.ask((1, 6), &body(&[5], 10)).1.unwrap();
}

#[test]
fn a_hundred_rotations_leave_no_stream_behind() {
    let mut host = Host::new("epoch_max_requests = 2\nepoch_max_seconds = 20\ntick_ms = 1000");
    let mut open = Vec::new();
    for round in 0..100 {
        let id = (round % 4, 1 + round);
        let (context, sequence) = host.ask(id, &body(&[5, 6], 400));
        let sequence = sequence.unwrap();
        open.push((id, context, sequence));
        // Half of the rotations come with the second request, the others with time.
        if round % 2 == 0 {
            let id = (9, 1 + round);
            let (context, sequence) = host.ask(id, &body(&[7], 400));
            open.push((id, context, sequence.unwrap()));
            host.pass(10);
        } else {
            host.pass(20_000);
        }
        for (id, _, sequence) in &open {
            host.tokens(*sequence, &[round as u32]);
            host.grant(*id, 64);
        }
        host.tick();
    }
    assert_eq!(host.gateway.parts.epochs.current().number, 101);
    let streams = open.len();
    for (_, _, sequence) in &open {
        host.finish(*sequence, FinishReason::Stop);
    }
    for _ in 0..100 {
        host.pass(1_000);
        for (id, ..) in &open {
            host.grant(*id, 64);
        }
    }
    let mut finished = 0;
    for (id, context, _) in open {
        let heard = host.hear(id, context);
        let tokens = heard.tokens();
        assert!(heard.end.is_ok(), "{id:?}: {:?}", heard.end);
        assert_eq!(tokens.last(), Some(&99));
        finished += 1;
    }
    assert_eq!((finished, streams), (150, 150));
    host.assert_empty();
}

#[test]
fn statements_are_chained_over_the_epochs() {
    let mut host = Host::new("epoch_max_seconds = 10");
    for number in 1..5 {
        let current = host.gateway.parts.epochs.current();
        let (digest, key_id) = (current.statement_digest, current.key_id);
        assert_eq!(current.number, number);
        host.pass(10_000);
        let next = host.gateway.parts.epochs.current();
        assert_eq!(next.statement.prev_digest, digest);
        assert_ne!(next.key_id, key_id);
    }
}

#[test]
fn a_platform_without_evidence_leaves_the_old_key_and_is_asked_again_each_second() {
    let mut host = Host::new("epoch_max_seconds = 10");
    host.platform.is_broken = true;
    host.pass(15_000);
    assert_eq!(host.gateway.parts.epochs.current().number, 1);
    let asked = host.platform.asked;
    assert!((6..=8).contains(&asked), "asked {asked} times");
    host.ask((1, 1), &body(&[5], 10)).1.unwrap();
    host.platform.is_broken = false;
    host.pass(1_000);
    assert_eq!(host.gateway.parts.epochs.current().number, 2);
}

#[test]
fn the_old_key_serves_on_while_the_platform_makes_the_next_report() {
    let mut host = Host::new("epoch_max_seconds = 10");
    host.platform.is_slow = true;
    host.pass(60_000);
    assert_eq!(host.gateway.parts.epochs.current().number, 1);
    let (context, sequence) = host.ask((1, 1), &body(&[5], 10));
    host.tokens(sequence.unwrap(), &[1, 2]);
    host.finish(sequence.unwrap(), FinishReason::Stop);
    host.pass(5_000);
    assert_eq!(host.hear((1, 1), context).tokens(), [1, 2], "no answer waits for a report");
    host.attest();
    assert_eq!(host.platform.asked, 2, "asked once, however long it took");
    let current = host.gateway.parts.epochs.current();
    assert_eq!((current.number, current.began_ms), (2, 10_000));
}
