//! A host that does not take what is sent, or does not send what it began.

use chrysalis_protocol::frame::FrameKind;
use chrysalis_protocol::messages::CloseCode;
use chrysalis_protocol::request::HEAD_LEN;

use super::harness::{Host, body};
use crate::engine::{FinishReason, SequenceId};
use crate::hub::Handler;
use crate::worker::Command;

const SLOW: (u64, u64) = (1, 1);
const FAST: (u64, u64) = (2, 1);

fn pauses(host: &Host) -> Vec<(SequenceId, bool)> {
    let commands = host.commands().into_iter();
    let pauses = commands.filter_map(|command| match command {
        Command::Pause(id, paused) => Some((id, paused)),
        Command::Add(_) | Command::Cancel(_) => None,
    });
    pauses.collect()
}

#[test]
fn a_stream_without_credit_is_held_back_and_closed_while_others_go_on() {
    for config in ["", "pad_profile = 0", "pad_profile = 2"] {
        let mut host = Host::new(config);
        let (slow_context, slow) = host.ask(SLOW, &body(&[5], 2_000));
        let (fast_context, fast) = host.ask(FAST, &body(&[5], 2_000));
        let (slow, fast) = (slow.unwrap(), fast.unwrap());
        let mut paused_at = None;
        let mut closed_at = None;
        for token in 0..800 {
            host.tokens(fast, &[token]);
            host.grant(FAST, 1);
            if closed_at.is_none() {
                host.tokens(slow, &[token]);
            }
            host.pass(50);
            for command in host.commands() {
                match command {
                    Command::Pause(id, true) if id == slow => paused_at = Some(host.now),
                    Command::Cancel(id) if id == slow => closed_at = Some(host.now),
                    _ => panic!("a command about another sequence"),
                }
            }
        }
        let frames = host.hear(SLOW, slow_context);
        assert_eq!(frames.inners.len(), 64, "{config}");
        assert!(frames.end.is_err());
        assert_eq!(host.close_code(SLOW), Some(CloseCode::Rejected));
        let patience = closed_at.unwrap() - paused_at.unwrap();
        assert!((30_000..=30_100).contains(&patience), "{patience} ms");
        host.finish(fast, FinishReason::Stop);
        for _ in 0..100 {
            host.grant(FAST, 64);
            host.pass(1_000);
        }
        let heard = host.hear(FAST, fast_context);
        assert_eq!(heard.tokens(), (0..800).collect::<Vec<_>>());
        host.assert_empty();
    }
}

#[test]
fn credit_lets_a_stream_go_on_where_it_was() {
    let mut host = Host::new("");
    let (context, sequence) = host.ask(SLOW, &body(&[5], 1_000));
    let sequence = sequence.unwrap();
    host.pass(20_000);
    assert_eq!(pauses(&host), [(sequence, true)]);
    host.tokens(sequence, &[1, 2, 3]);
    host.finish(sequence, FinishReason::Stop);
    host.grant(SLOW, 1_000_000);
    for _ in 0..10 {
        host.pass(10_000);
        host.grant(SLOW, 64);
    }
    assert!(pauses(&host).is_empty(), "it had finished");
    let heard = host.hear(SLOW, context);
    assert_eq!(heard.tokens(), [1, 2, 3]);
    assert_eq!(heard.inners.len() % 16, 0);
    host.assert_empty();
}

#[test]
fn a_paused_sequence_is_resumed_with_credit() {
    let mut host = Host::new("");
    let (_, sequence) = host.ask(SLOW, &body(&[5], 1_000));
    let sequence = sequence.unwrap();
    host.pass(5_000);
    assert_eq!(pauses(&host), [(sequence, true)]);
    host.grant(SLOW, 128);
    assert_eq!(pauses(&host), [(sequence, false)]);
}

#[test]
fn a_grant_of_nothing_buys_no_time() {
    let mut host = Host::new("");
    host.ask(SLOW, &body(&[5], 1_000));
    host.pass(4_000);
    for _ in 0..30 {
        assert_eq!(host.close_code(SLOW), None);
        host.grant(SLOW, 0);
        host.pass(1_000);
    }
    assert_eq!(host.close_code(SLOW), Some(CloseCode::Rejected));
}

#[test]
fn credit_is_not_saved_up_without_limit() {
    let mut host = Host::new("pad_profile = 0");
    let (context, sequence) = host.ask(SLOW, &body(&[5], 1_000));
    for _ in 0..10 {
        host.grant(SLOW, u32::MAX);
    }
    for token in 0..500 {
        host.tokens(sequence.unwrap(), &[token]);
    }
    assert_eq!(host.hear(SLOW, context).inners.len(), 1 + 128);
}

#[test]
fn the_session_asks_to_be_woken_for_a_stalled_stream() {
    let mut host = Host::new("");
    host.ask(SLOW, &body(&[5], 1_000));
    host.pass(3_200);
    // The frame of tick 64 found no credit.
    assert_eq!(host.gateway.next_wake_ms(), Some(3_200 + 30_001));
}

#[test]
fn a_request_that_stops_coming_is_closed_and_its_bytes_are_free() {
    let mut host = Host::new("");
    let sealed = host.seal(&body(&[5], 10)).bytes;
    host.open(SLOW, &sealed);
    host.pass(29_000);
    host.frame(SLOW, FrameKind::HostData, &sealed[HEAD_LEN..1_300]);
    host.pass(29_000);
    assert_eq!(host.close_code(SLOW), None);
    host.pass(2_000);
    assert_eq!(host.close_code(SLOW), Some(CloseCode::Rejected));
    host.assert_empty();
}

#[test]
fn a_request_that_trickles_is_closed_in_the_end() {
    let mut host = Host::new("");
    let sealed = host.seal(&body(&[5], 10)).bytes;
    host.open(SLOW, &sealed);
    for byte in sealed[HEAD_LEN..].iter().take(6) {
        host.pass(20_000);
        assert_eq!(host.close_code(SLOW), None);
        host.frame(SLOW, FrameKind::HostData, &[*byte]);
    }
    host.pass(1_000);
    assert_eq!(host.close_code(SLOW), Some(CloseCode::Rejected));
    host.assert_empty();
}
