//! The owner's terms come to their end while requests come and go.

use chrysalis_protocol::frame::FrameKind;
use chrysalis_protocol::messages::{CloseCode, Hello, State, Status};
use chrysalis_protocol::response::ErrorCode;

use super::harness::{Host, body};
use crate::engine::FinishReason;
use crate::hub::Handler;
use crate::lease::Lease;

/// A host whose enclave got its key for so many seconds and tokens.
fn leased(seconds: u32, tokens: u64) -> Host {
    Host::with("", |parts| parts.lease = Lease::new(seconds, tokens, 0))
}

#[test]
fn after_its_time_an_enclave_finishes_what_runs_and_ends() {
    let mut host = leased(60, 0);
    host.pass(59_999);
    let (late_context, late) = host.ask((2, 1), &body(&[5], 10));
    host.pass(1);
    let sealed = host.seal(&body(&[5], 10));
    host.submit((2, 2), &sealed.bytes);
    assert_eq!(host.close_code((2, 2)), Some(CloseCode::Draining));
    host.frame((3, 0), FrameKind::Hello, &Hello.to_bytes());
    let status = host.sent[&(3, 0)].last().unwrap();
    assert_eq!(Status::from_bytes(&status.body).unwrap().state, State::Draining);
    assert!(!host.gateway.is_done());
    host.tokens(late.unwrap(), &[8]);
    host.finish(late.unwrap(), FinishReason::Length);
    host.pass(2_000);
    assert_eq!(host.hear((2, 1), late_context).tokens(), [8]);
    assert!(host.gateway.is_done());
}

#[test]
fn a_frame_that_comes_before_the_tick_finds_the_lease_over_too() {
    let mut host = leased(60, 0);
    let sealed = host.seal(&body(&[5], 10));
    host.now = 60_000;
    host.submit((1, 1), &sealed.bytes);
    assert_eq!(host.close_code((1, 1)), Some(CloseCode::Draining));
}

#[test]
fn an_answer_is_cut_to_what_the_lease_has_left() {
    let mut host = leased(0, 100);
    let sealed = host.seal(&body(&[5; 30], 500));
    host.submit((1, 1), &sealed.bytes);
    assert_eq!(host.added().pop().unwrap().max_output, 70);
    // All is promised: the next one is refused by a sealed error, and nothing shows outside.
    let (context, sequence) = host.ask((1, 2), &body(&[5], 1));
    assert_eq!(sequence, None);
    host.pass(2_000);
    assert_eq!(host.hear((1, 2), context).error(), Some(ErrorCode::Draining));
    assert!(!host.gateway.is_done());
}

#[test]
fn what_an_answer_does_not_use_is_there_for_the_next_until_the_last_quantum() {
    let mut host = leased(0, 400);
    for (stream, output, left) in [(1, 100_u32, 290), (2, 200, 80), (3, 30, 40)] {
        let (_, sequence) = host.ask((1, stream), &body(&[5; 10], 400));
        let sequence = sequence.unwrap();
        host.tokens(sequence, &vec![7; output as usize]);
        host.finish(sequence, FinishReason::Stop);
        host.pass(5_000);
        assert_eq!(host.close_code((1, stream)), Some(CloseCode::Ok));
        assert_eq!(host.gateway.is_done(), left < 64, "{left}");
        let mut lease = host.gateway.parts.lease;
        assert_eq!(lease.promise(0, u32::MAX).unwrap().0, left);
    }
    let sealed = host.seal(&body(&[5], 1));
    host.submit((1, 9), &sealed.bytes);
    assert_eq!(host.close_code((1, 9)), Some(CloseCode::Draining));
}

#[test]
fn a_client_that_leaves_gives_back_what_it_did_not_use() {
    let mut host = leased(0, 1_000);
    let (_, sequence) = host.ask((1, 1), &body(&[5; 100], 900));
    assert!(sequence.is_some());
    assert_eq!(host.gateway.parts.lease.promise(0, 1), None);
    host.close(1);
    let mut lease = host.gateway.parts.lease;
    assert_eq!(lease.promise(0, u32::MAX).unwrap().0, 900);
}
