//! Requests and frames that are refused: plainly before a frame opened, sealed to the client after.

use chrysalis_protocol::frame::FrameKind;
use chrysalis_protocol::messages::CloseCode;
use chrysalis_protocol::request::{HEAD_LEN, Prompt, RequestBody, SealTo, seal};
use chrysalis_protocol::response::{self, ErrorCode};
use zeroize::Zeroizing;

use super::harness::{Host, VOCAB, body, open_body};
use crate::engine::FinishReason;
use crate::rng::SystemRng;

const ID: (u64, u64) = (1, 1);

type Change = fn(&mut RequestBody);

#[test]
fn what_the_policy_or_the_model_forbids_is_a_sealed_error_in_the_rhythm_of_an_answer() {
    let cases: [(Change, ErrorCode); 7] = [
        (|body| body.prompt = Prompt::Text(b"{}".to_vec().into()), ErrorCode::Policy),
        (|body| body.options.grammar = Some(b"root".to_vec().into()), ErrorCode::Unsupported),
        (|body| body.prompt = Prompt::tokens(vec![1; 5_001]), ErrorCode::TooLong),
        (|body| body.prompt = Prompt::tokens(vec![1; 8_192]), ErrorCode::TooLong),
        (|body| body.max_output = 101, ErrorCode::TooLong),
        (|body| body.prompt = Prompt::tokens(vec![1, VOCAB]), ErrorCode::Malformed),
        (|body| body.options.logit_bias = Zeroizing::new(vec![(VOCAB, 1.0)]), ErrorCode::Malformed),
    ];
    for (profile, frames) in [(0, 2), (1, 16), (2, 32)] {
        for (index, (change, code)) in cases.iter().enumerate() {
            let config = format!("pad_profile = {profile}\nmax_prompt = 5000\nmax_output = 100");
            let mut host = Host::new(&config);
            let mut request = body(&[5], 20);
            change(&mut request);
            let (context, sequence) = host.ask(ID, &request);
            assert!(sequence.is_none(), "case {index} reached the engine");
            host.grant(ID, 128);
            host.pass(10_000);
            let heard = host.hear(ID, context);
            assert_eq!(heard.error(), Some(*code), "case {index}");
            // Where the wanted length is too long itself, it counts as the longest that is allowed.
            let frames = if profile == 2 && request.max_output > 100 { 112 } else { frames };
            assert_eq!(heard.frames_ms.len(), frames, "case {index}, profile {profile}");
            assert_eq!(heard.end.unwrap().reason, response::FinishReason::Error);
            assert_eq!(host.close_code(ID), Some(CloseCode::Ok));
            host.assert_empty();
        }
    }
}

#[test]
fn a_request_that_is_cut_before_its_first_frame_opens_is_rejected_plainly() {
    let mut host = Host::new("");
    let sealed = host.seal(&body(&[5], 10));
    let data = &sealed.bytes[HEAD_LEN..];
    for len in 0..data.len() {
        let id = (1, 1 + len as u64);
        host.open(id, &sealed.bytes);
        host.frame(id, FrameKind::HostData, &data[..len]);
        host.frame(id, FrameKind::End, &[]);
        assert_eq!(host.close_code(id), Some(CloseCode::Rejected), "{len}");
    }
    assert!(host.commands().is_empty());
    host.assert_empty();
    // None of them was taken for the request itself.
    host.submit((2, 1), &sealed.bytes);
    assert_eq!(host.added().len(), 1);
}

#[test]
fn a_request_that_is_cut_or_changed_after_its_first_frame_gets_a_sealed_error() {
    // 32 KiB of plaintext: two full frames.
    let long = body(&[5; 5_000], 10);
    let first = 4 + 16_384 + 16;
    for len in [first, first + 1, first + 5_000, 2 * first - 1] {
        for flip in [false, true] {
            let mut host = Host::new("");
            let sealed = host.seal(&long);
            let mut data = sealed.bytes[HEAD_LEN..].to_vec();
            assert_eq!(data.len(), 2 * first);
            if flip {
                data[len] ^= 1;
            } else {
                data.truncate(len);
            }
            host.open(ID, &sealed.bytes);
            host.frame(ID, FrameKind::HostData, &data);
            host.frame(ID, FrameKind::End, &[]);
            host.pass(2_000);
            let heard = host.hear(ID, sealed.context);
            assert_eq!(heard.error(), Some(ErrorCode::Malformed), "{len} {flip}");
            assert_eq!(heard.frames_ms.len(), 16);
            assert!(host.commands().is_empty());
            // It counts as opened: the same bytes are a replay now.
            host.submit((2, 1), &sealed.bytes);
            assert_eq!(host.close_code((2, 1)), Some(CloseCode::Rejected));
            assert!(host.commands().is_empty());
            host.assert_empty();
        }
    }
}

#[test]
fn a_bit_that_is_flipped_in_the_data_is_rejected_plainly() {
    let mut host = Host::new("");
    let sealed = host.seal(&body(&[5], 10));
    let data = &sealed.bytes[HEAD_LEN..];
    for at in 0..data.len() {
        let mut flipped = data.to_vec();
        flipped[at] ^= 1 << (at % 8);
        let id = (1, 1 + at as u64);
        host.open(id, &sealed.bytes);
        host.frame(id, FrameKind::HostData, &flipped);
        host.frame(id, FrameKind::End, &[]);
        assert_eq!(host.close_code(id), Some(CloseCode::Rejected), "byte {at}");
    }
    assert!(host.commands().is_empty());
    host.assert_empty();
}

#[test]
fn every_cut_and_every_changed_byte_of_open_ends_without_an_answer() {
    let mut host = Host::new("");
    let sealed = host.seal(&body(&[5], 10));
    let open = open_body(&sealed.bytes);
    for len in 0..open.len() {
        let id = (1, 1 + len as u64);
        host.frame(id, FrameKind::Open, &open[..len]);
        assert_eq!(host.close_code(id), Some(CloseCode::Rejected), "{len}");
    }
    for at in 0..open.len() {
        let mut flipped = open.clone();
        flipped[at] ^= 1 << (at % 8);
        let id = (2, 1 + at as u64);
        host.frame(id, FrameKind::Open, &flipped);
        host.frame(id, FrameKind::HostData, &sealed.bytes[HEAD_LEN..]);
        host.frame(id, FrameKind::End, &[]);
        let key_id = (16..24).contains(&at);
        let expected = if key_id {
            CloseCode::KeyUnknown
        } else if at == 2 {
            // Another length that a request may have: less came than was announced, and the refusal is sealed.
            host.pass(2_000);
            CloseCode::Ok
        } else {
            CloseCode::Rejected
        };
        assert_eq!(host.close_code(id), Some(expected), "byte {at}");
    }
    assert!(host.commands().is_empty() && host.resets.is_empty());
    host.assert_empty();
}

#[test]
fn a_request_that_is_sealed_to_another_statement_is_rejected() {
    let mut host = Host::new("");
    let epoch = host.gateway.parts.epochs.current();
    let mut statement_digest = epoch.statement_digest;
    statement_digest[0] ^= 1;
    let to = SealTo {
        statement_digest,
        key_id: epoch.key_id,
        sealing_key: &epoch.key_config.sealing_key,
    };
    let sealed = seal(&to, &body(&[5], 10), &mut SystemRng::default()).unwrap();
    host.submit(ID, &sealed.bytes);
    assert_eq!(host.close_code(ID), Some(CloseCode::Rejected));
    assert!(host.commands().is_empty());
    host.assert_empty();
}

#[test]
fn frames_that_cannot_be_sent_by_a_host_reset_its_connection() {
    let sealed = Host::new("").seal(&body(&[5], 10)).bytes;
    let open = open_body(&sealed);
    let from_enclave = FrameKind::ALL.into_iter().filter(|kind| !kind.is_from_host());
    let wrong = from_enclave.map(|kind| (kind, 1, &[][..])).chain([
        (FrameKind::Open, 0, &open[..]),
        (FrameKind::Hello, 0, b"1234"),
        (FrameKind::EvidenceReq, 1, b"none"),
        (FrameKind::ClientBundleReq, 1, b"none"),
        (FrameKind::HostCredit, 1, b"none!"),
        (FrameKind::Ping, 0, b"seven.."),
        (FrameKind::End, 1, b"x"),
        (FrameKind::Cancel, 1, b"x"),
        (FrameKind::Drain, 0, b"x"),
        (FrameKind::BlobResp, 0, b""),
    ]);
    for (kind, stream, body) in wrong {
        let mut host = Host::new("");
        host.frame((7, stream), kind, body);
        assert_eq!(host.resets, [7], "{kind:?}");
        assert!(!host.gateway.draining);
        host.assert_empty();
    }
}

#[test]
fn a_stream_that_is_opened_twice_resets_the_connection_and_frees_its_sequences() {
    let mut host = Host::new("");
    let (_, sequence) = host.ask(ID, &body(&[5], 10));
    let again = host.seal(&body(&[5], 10));
    host.open(ID, &again.bytes);
    assert_eq!(host.resets, [1]);
    assert_eq!(host.cancelled(), [sequence.unwrap()]);
    host.assert_empty();
}

#[test]
fn frames_of_streams_that_are_not_there_are_ignored() {
    let mut host = Host::new("");
    host.frame(ID, FrameKind::HostData, b"data");
    host.frame(ID, FrameKind::End, &[]);
    host.frame(ID, FrameKind::Cancel, &[]);
    host.grant(ID, 5);
    assert!(host.sent.is_empty() && host.resets.is_empty());
    host.assert_empty();
}

#[test]
fn more_data_than_was_announced_is_rejected() {
    let mut host = Host::new("");
    let sealed = host.seal(&body(&[5], 10));
    host.open(ID, &sealed.bytes);
    let more = [&sealed.bytes[HEAD_LEN..], &[0]].concat();
    host.frame(ID, FrameKind::HostData, &more);
    assert_eq!(host.close_code(ID), Some(CloseCode::Rejected));
    assert!(host.commands().is_empty());
    host.assert_empty();
}

#[test]
fn a_request_may_come_in_small_frames_but_not_in_more_than_were_granted() {
    let mut host = Host::new("");
    let sealed = host.seal(&body(&[5], 10));
    host.open(ID, &sealed.bytes);
    for chunk in sealed.bytes[HEAD_LEN..].chunks(5) {
        host.frame(ID, FrameKind::HostData, chunk);
    }
    host.frame(ID, FrameKind::End, &[]);
    assert_eq!(host.added().len(), 1);

    let sealed = host.seal(&body(&[5], 10));
    host.open((1, 2), &sealed.bytes);
    for _ in 0..257 {
        assert_eq!(host.close_code((1, 2)), None);
        host.frame((1, 2), FrameKind::HostData, &[]);
    }
    assert_eq!(host.close_code((1, 2)), Some(CloseCode::Rejected));
}

#[test]
fn a_request_over_the_bytes_of_a_stream_is_rejected_and_one_over_the_total_is_busy() {
    let (small, large) = (body(&[5], 10), body(&[5; 5_000], 10));
    let mut host = Host::with("", |parts| {
        parts.limits.stream_request_bytes = 4_000;
        parts.limits.total_request_bytes = 5_000;
    });
    let sealed = host.seal(&large);
    host.open((1, 1), &sealed.bytes);
    assert_eq!(host.close_code((1, 1)), Some(CloseCode::Rejected));
    // Two of 2,188 bytes fit, three do not.
    let sealed: Vec<_> = (0..3).map(|_| host.seal(&small).bytes).collect();
    host.open((1, 2), &sealed[0]);
    host.open((1, 3), &sealed[1]);
    host.open((1, 4), &sealed[2]);
    assert_eq!(host.close_code((1, 4)), Some(CloseCode::Busy));
    host.frame((1, 2), FrameKind::Cancel, &[]);
    host.submit((1, 5), &sealed[2]);
    assert_eq!(host.added().len(), 1);
    host.close(1);
    host.assert_empty();
}

#[test]
fn streams_beyond_the_room_of_the_engine_are_busy_until_one_ends() {
    let mut host = Host::new("pad_profile = 0\nmax_sequences = 1\nmax_waiting = 1");
    let (_, first) = host.ask((1, 1), &body(&[5], 10));
    host.ask((1, 2), &body(&[5], 10));
    let third = host.seal(&body(&[5], 10));
    host.submit((1, 3), &third.bytes);
    assert_eq!(host.close_code((1, 3)), Some(CloseCode::Busy));
    host.finish(first.unwrap(), FinishReason::Stop);
    // BUSY came before the request was opened: it is no replay.
    host.submit((1, 4), &third.bytes);
    assert_eq!(host.added().len(), 1);
}
