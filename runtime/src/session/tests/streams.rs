//! What an honest host sees of honest requests.

use chrysalis_protocol::frame::FrameKind;
use chrysalis_protocol::messages::{CloseCode, Hello, State, Status};
use chrysalis_protocol::receipt::Receipt;
use chrysalis_protocol::response::{self, ErrorCode, Inner};
use zeroize::Zeroizing;

use super::harness::{EOS, Host, VOCAB, body};
use crate::engine::{Event, FinishReason, SequenceId, TokenLogprobs};
use crate::hub::Handler;

const ID: (u64, u64) = (1, 1);

#[test]
fn without_padding_frames_go_out_as_they_come() {
    let mut host = Host::new("pad_profile = 0");
    let (context, sequence) = host.ask(ID, &body(&[5, 6, 7], 10));
    let sequence = sequence.unwrap();
    host.tokens(sequence, &[20, 21]);
    host.now = 3;
    host.tokens(sequence, &[22]);
    host.finish(sequence, FinishReason::Length);
    let heard = host.hear(ID, context);
    assert!(heard.is_accepted());
    assert_eq!(heard.tokens(), [20, 21, 22]);
    assert_eq!(heard.frames_ms, [0, 0, 3, 3]);
    let end = heard.end.unwrap();
    assert_eq!(
        (end.reason, end.prompt_tokens, end.output_tokens),
        (response::FinishReason::Length, 3, 3)
    );
    assert_eq!(host.close_code(ID), Some(CloseCode::Ok));
    host.assert_empty();
}

#[test]
fn a_tick_brings_one_frame_and_the_number_of_frames_tells_the_quantum_only() {
    for (tokens, frames) in [(0, 16), (1, 16), (14, 16), (15, 32), (16, 32), (40, 48)] {
        let mut host = Host::new("");
        host.now = 1_000;
        let (context, sequence) = host.ask(ID, &body(&[5], 100));
        let sequence = sequence.unwrap();
        for token in 0..tokens {
            host.tokens(sequence, &[token]);
            host.pass(50);
        }
        host.finish(sequence, FinishReason::Stop);
        host.pass(5_000);
        let heard = host.hear(ID, context);
        assert_eq!(heard.tokens(), (0..tokens).collect::<Vec<_>>());
        let ticks: Vec<_> = (0..frames).map(|tick| 1_000 + 50 * tick).collect();
        assert_eq!(heard.frames_ms, ticks, "{tokens} tokens");
        assert_eq!(host.close_code(ID), Some(CloseCode::Ok));
        host.assert_empty();
    }
}

#[test]
fn a_burst_of_tokens_shares_frames_and_waits_for_its_ticks() {
    let mut host = Host::new("");
    let (context, sequence) = host.ask(ID, &body(&[5], 500));
    let tokens: Vec<u32> = (0..150).collect();
    host.tokens(sequence.unwrap(), &tokens);
    host.finish(sequence.unwrap(), FinishReason::Stop);
    host.pass(800);
    let heard = host.hear(ID, context);
    assert_eq!(heard.tokens(), tokens);
    let counts = heard.inners.iter().map(|inner| match inner {
        Inner::Tokens(ids) => ids.len(),
        _ => 0,
    });
    assert_eq!(counts.take(5).collect::<Vec<_>>(), [0, 62, 62, 26, 0]);
    assert_eq!(heard.frames_ms.len(), 16);
}

#[test]
fn the_flat_profile_hides_how_long_the_answer_is() {
    for tokens in [0, 5, 30] {
        let mut host = Host::new("pad_profile = 2");
        let (context, sequence) = host.ask(ID, &body(&[5], 30));
        for token in 0..tokens {
            host.tokens(sequence.unwrap(), &[token]);
            host.pass(20);
        }
        host.finish(sequence.unwrap(), FinishReason::Stop);
        host.pass(10_000);
        let heard = host.hear(ID, context);
        assert_eq!(heard.frames_ms.len(), 32, "{tokens} tokens");
        assert!(heard.end.is_ok());
    }
}

#[test]
fn the_flat_profile_has_room_for_log_probabilities() {
    for tokens in [0, 30] {
        let mut host = Host::new("pad_profile = 2");
        let mut request = body(&[5], 30);
        (request.want_logprobs, request.options.logprobs) = (true, Some(20));
        let (context, sequence) = host.ask(ID, &request);
        let events = (0..tokens).map(|token| Event::Token {
            id: sequence.unwrap(),
            token,
            logprobs: Some(TokenLogprobs {
                logprob: -1.0,
                alternatives: (0..20).map(|id| (id, -2.0)).collect(),
            }),
        });
        host.events(events.collect());
        host.finish(sequence.unwrap(), FinishReason::Stop);
        host.pass(2_000);
        host.grant(ID, 64);
        host.pass(10_000);
        let heard = host.hear(ID, context);
        assert_eq!(heard.frames_ms.len(), 64, "{tokens} tokens");
        assert_eq!(heard.tokens().len(), tokens as usize);
    }
}

#[test]
fn log_probabilities_follow_their_tokens() {
    let mut host = Host::new("pad_profile = 0");
    let mut request = body(&[5], 100);
    (request.want_logprobs, request.options.logprobs) = (true, Some(2));
    let sealed = host.seal(&request);
    host.submit(ID, &sealed.bytes);
    let new = host.added().pop().unwrap();
    assert_eq!(new.logprobs, Some(2));
    let token = |token| Event::Token {
        id: new.id,
        token,
        logprobs: Some(TokenLogprobs {
            logprob: -0.5,
            alternatives: vec![(token, -0.5), (9, -3.0)],
        }),
    };
    host.events((100..125).map(token).collect());
    host.finish(new.id, FinishReason::Length);
    let heard = host.hear(ID, sealed.context);
    assert_eq!(heard.tokens(), (100..125).collect::<Vec<_>>());
    let mut waiting = Vec::new();
    let mut logged = 0;
    for inner in &heard.inners {
        match inner {
            Inner::Tokens(ids) => {
                assert!(waiting.is_empty() && ids.len() <= 10);
                waiting = ids.to_vec();
            }
            Inner::Logprobs(entries) => {
                let ids: Vec<_> = entries.iter().map(|entry| entry.token.0).collect();
                assert_eq!(ids, std::mem::take(&mut waiting));
                assert!(entries.iter().all(|entry| entry.token.1 == -0.5
                    && entry.alternatives == [(entry.token.0, -0.5), (9, -3.0)]));
                logged += ids.len();
            }
            _ => {}
        }
    }
    assert_eq!(logged, 25);
}

#[test]
fn only_the_newest_progress_waits_for_its_tick() {
    let mut host = Host::new("");
    let (context, sequence) = host.ask(ID, &body(&[5; 100], 5));
    let id = sequence.unwrap();
    let progress = |computed| Event::Progress { id, computed, total: 100 };
    host.events(vec![progress(10), progress(20), progress(30)]);
    host.pass(50);
    host.events(vec![progress(80)]);
    host.tokens(id, &[1]);
    host.finish(id, FinishReason::Stop);
    host.pass(2_000);
    let heard = host.hear(ID, context);
    let done = heard.inners.iter().filter_map(|inner| match inner {
        Inner::Progress { done, total: 100 } => Some(*done),
        _ => None,
    });
    assert_eq!(done.collect::<Vec<_>>(), [30, 80]);
    assert_eq!(heard.end.unwrap().prompt_tokens, 100);
}

#[test]
fn what_the_engine_cannot_do_is_a_sealed_error_in_the_same_rhythm() {
    for (reason, code) in
        [(FinishReason::Busy, ErrorCode::Busy), (FinishReason::Error, ErrorCode::Internal)]
    {
        let mut host = Host::new("");
        let (context, sequence) = host.ask(ID, &body(&[5], 10));
        host.pass(50);
        host.tokens(sequence.unwrap(), &[1]);
        host.finish(sequence.unwrap(), reason);
        host.pass(2_000);
        let heard = host.hear(ID, context);
        assert_eq!(heard.error(), Some(code));
        assert!(heard.is_accepted() && heard.tokens().is_empty());
        assert_eq!(heard.frames_ms.len(), 16);
        assert_eq!(heard.end.unwrap().reason, response::FinishReason::Error);
        let receipt = Receipt::verify(&heard.receipt.unwrap(), &host.receipt_key).unwrap();
        assert!(receipt.failed && !receipt.cancelled);
        assert_eq!(
            (receipt.prompt_units, receipt.output_units),
            (0, 0),
            "nothing came, nothing is owed"
        );
        host.assert_empty();
    }
}

#[test]
fn a_cancelled_answer_ends_with_what_was_sent_within_its_quantum() {
    let mut host = Host::new("");
    let (context, sequence) = host.ask(ID, &body(&[5], 100));
    let sequence = sequence.unwrap();
    host.tokens(sequence, &[1, 2]);
    host.pass(100);
    host.tokens(sequence, &[3]);
    host.frame(ID, FrameKind::Cancel, &[]);
    host.frame(ID, FrameKind::Cancel, &[]);
    assert_eq!(host.cancelled(), [sequence]);
    // The engine was already at it.
    host.tokens(sequence, &[4]);
    host.finish(sequence, FinishReason::Cancelled);
    host.pass(2_000);
    let heard = host.hear(ID, context);
    assert_eq!(heard.tokens(), [1, 2]);
    assert_eq!(heard.frames_ms.len(), 16);
    assert_eq!(heard.end.unwrap().reason, response::FinishReason::Cancelled);
    let receipt = Receipt::verify(&heard.receipt.unwrap(), &host.receipt_key).unwrap();
    assert!(receipt.cancelled && !receipt.failed);
    assert_eq!((receipt.prompt_units, receipt.output_units), (64, 64));
    host.assert_empty();
}

#[test]
fn a_host_that_leaves_takes_its_streams_and_no_others() {
    let mut host = Host::new("pad_profile = 0");
    let leaving: Vec<_> =
        (1..=3).map(|stream| host.ask((1, stream), &body(&[5], 10)).1.unwrap()).collect();
    let (context, staying) = host.ask((2, 1), &body(&[5], 10));
    let half = host.seal(&body(&[5], 10));
    host.open((1, 9), &half.bytes);
    assert!(host.gateway.request_bytes > 0);
    host.close(1);
    let mut cancelled = host.cancelled();
    cancelled.sort();
    assert_eq!(cancelled, leaving);
    for id in leaving {
        host.tokens(id, &[1]);
        host.finish(id, FinishReason::Cancelled);
    }
    host.tokens(staying.unwrap(), &[8]);
    host.finish(staying.unwrap(), FinishReason::Length);
    assert_eq!(host.hear((2, 1), context).tokens(), [8]);
    host.assert_empty();
}

#[test]
fn a_draining_enclave_finishes_what_runs_and_takes_nothing_new() {
    let mut host = Host::new("");
    let (context, sequence) = host.ask(ID, &body(&[5], 10));
    host.frame((2, 0), FrameKind::Drain, &[]);
    assert!(!host.gateway.is_done());
    let late = host.seal(&body(&[5], 10));
    host.submit((1, 2), &late.bytes);
    assert_eq!(host.close_code((1, 2)), Some(CloseCode::Draining));
    host.frame((3, 0), FrameKind::Hello, &Hello.to_bytes());
    let status = host.sent[&(3, 0)].last().unwrap();
    assert_eq!(Status::from_bytes(&status.body).unwrap().state, State::Draining);
    host.tokens(sequence.unwrap(), &[1]);
    host.finish(sequence.unwrap(), FinishReason::Stop);
    host.pass(2_000);
    assert!(host.hear(ID, context).end.is_ok());
    assert!(host.gateway.is_done());
}

#[test]
fn what_a_request_leaves_open_is_filled_in_from_the_package() {
    let mut host = Host::new("");
    let mut request = body(&[5; 8_000], 500);
    request.options.top_p = Some(0.5);
    request.options.stop_token_ids = Zeroizing::new(vec![30, 31]);
    let sealed = host.seal(&request);
    host.submit(ID, &sealed.bytes);
    let new = host.added().pop().unwrap();
    assert_eq!(new.sampling.temperature, 0.5);
    assert_eq!(new.sampling.top_p, 0.5);
    assert_eq!(new.stop_token_ids, [EOS, 30, 31]);
    // 8,192 positions hold 192 more tokens.
    assert_eq!(new.max_output, 192);
    assert_eq!((new.seed, new.logprobs), (1, None));
}

#[test]
fn every_list_that_a_request_may_have_is_one_that_the_engine_takes() {
    let mut host = Host::new("");
    let mut request = body(&[5], 10);
    let ids: Vec<u32> = (0..256).collect();
    request.options.stop_token_ids = Zeroizing::new(ids);
    request.options.logit_bias = Zeroizing::new((0..VOCAB).map(|id| (id, 1.0)).collect());
    let sealed = host.seal(&request);
    host.submit(ID, &sealed.bytes);
    let new = host.added().pop().unwrap();
    assert!(new.stop_token_ids.len() <= crate::engine::STOP_TOKENS_MAX);
    assert!(new.sampling.logit_bias.len() <= crate::engine::LOGIT_BIAS_MAX);
    assert!(new.sampling.check().is_ok());
}

#[test]
fn events_of_unknown_sequences_change_nothing() {
    let mut host = Host::new("");
    host.tokens(SequenceId(99), &[1]);
    host.finish(SequenceId(99), FinishReason::Stop);
    assert!(host.sent.is_empty());
    host.assert_empty();
}

#[test]
fn a_ping_comes_back_with_the_counters() {
    let mut host = Host::new("");
    host.frame((1, 0), FrameKind::Ping, b"12345678");
    let sent = &host.sent[&(1, 0)];
    assert_eq!((sent[0].kind, &sent[0].body[..]), (FrameKind::Pong, &b"12345678"[..]));
    assert_eq!(sent[1].kind, FrameKind::Status);
    assert_eq!(host.platform.asked, 1);
}
