//! Sealed responses: what was sealed comes out in order, everything else is refused.

use chrysalis_protocol::request::{HEAD_LEN, Head, RequestContext, RequestOpener, seal};
use chrysalis_protocol::response::{
    Accept, ErrorCode, FRAME_LEN, FinishReason, HEAD_LEN as RESPONSE_HEAD_LEN, Inner, InnerError,
    OpenedFrame, PAYLOAD_MAX, ResponseError, ResponseSealer, TOKENS_MAX, TokenLogprobs,
    logprobs_max,
};
use zeroize::Zeroizing;

use crate::support::{SeededRng, key_pair, plain_body, seal_to, statement};

#[test]
fn a_response_comes_back_in_whatever_portions() {
    let (frames, bytes) = honest();
    for portion in [1, 7, 276, 10_000] {
        let mut opener = context().into_opener();
        let mut opened = Vec::new();
        for bytes in bytes.chunks(portion) {
            opener.push(bytes, &mut opened).unwrap();
        }
        assert!(opener.is_finished());
        let end = opener.finish().unwrap();
        assert_eq!(end.output_tokens, 65);
        assert!(opened.iter().map(|frame| &frame.inner).eq(&frames));
        let counts: Vec<u32> = opened.iter().map(|frame| frame.cumulative_tokens).collect();
        assert_eq!(counts, [0, 0, 0, 3, 3, 65, 65]);
    }
}

#[test]
fn every_flipped_bit_of_a_response_is_refused() {
    let (mut sealer, hash) = sealer();
    let mut bytes = sealer.head().to_vec();
    bytes.extend(sealer.seal(&accept(hash)).unwrap());
    bytes.extend(sealer.seal(&sealer.end(FinishReason::Stop, 3, 0, [0; 32])).unwrap());
    assert!(open(&bytes).is_ok());
    for bit in 0..bytes.len() * 8 {
        let mut flipped = bytes.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        assert!(open(&flipped).is_err(), "bit {bit}");
    }
}

#[test]
fn every_cut_of_a_response_is_a_truncation_and_a_byte_more_is_refused() {
    let (_, bytes) = honest();
    for len in 0..bytes.len() {
        let frames = (len.saturating_sub(RESPONSE_HEAD_LEN) / FRAME_LEN) as u32;
        assert_eq!(open(&bytes[..len]).err(), Some(ResponseError::Truncated { frames }));
    }
    let longer = [&bytes[..], &[0]].concat();
    assert_eq!(open(&longer).err(), Some(ResponseError::AfterFinal));
}

#[test]
fn frames_dropped_swapped_doubled_or_replaced_are_refused() {
    let (_, bytes) = honest();
    let (head, rest) = bytes.split_at(RESPONSE_HEAD_LEN);
    let frames: Vec<&[u8]> = rest.chunks(FRAME_LEN).collect();
    let refused = |order: &[usize]| {
        let frames = order.iter().flat_map(|i| frames[*i]).copied();
        open(&head.iter().copied().chain(frames).collect::<Vec<_>>()).err()
    };
    let honest: Vec<usize> = (0..frames.len()).collect();
    assert_eq!(refused(&honest), None);
    for at in 0..frames.len() - 1 {
        let mut dropped = honest.clone();
        dropped.remove(at);
        assert_eq!(refused(&dropped), Some(ResponseError::Refused), "{at} dropped");
        let mut doubled = honest.clone();
        doubled.insert(at, at);
        assert_eq!(refused(&doubled), Some(ResponseError::Refused), "{at} doubled");
        for other in at + 1..frames.len() {
            let mut swapped = honest.clone();
            swapped.swap(at, other);
            assert_eq!(refused(&swapped), Some(ResponseError::Refused), "{at} and {other}");
            let mut replaced = honest.clone();
            replaced[at] = other;
            assert_eq!(refused(&replaced), Some(ResponseError::Refused), "{at} by {other}");
        }
    }
}

#[test]
fn a_response_to_another_request_or_under_another_nonce_is_refused() {
    let (_, bytes) = honest();
    let keys = key_pair();
    let body = plain_body(3);
    let other = seal(&seal_to(&keys), &body, &mut SeededRng::new("another")).unwrap();
    let mut opener = other.context.into_opener();
    assert_eq!(opener.push(&bytes, &mut Vec::new()), Err(ResponseError::Refused));
    assert_eq!(opener.finish().err(), Some(ResponseError::Refused), "a refusal is repeated");
    let mut other_nonce = bytes;
    other_nonce[8] ^= 1;
    assert_eq!(open(&other_nonce).err(), Some(ResponseError::Refused));
}

#[test]
fn frames_before_a_refused_one_are_kept() {
    let (_, mut bytes) = honest();
    bytes[RESPONSE_HEAD_LEN + 2 * FRAME_LEN + 9] ^= 1;
    let mut opened = Vec::new();
    assert_eq!(context().into_opener().push(&bytes, &mut opened), Err(ResponseError::Refused));
    assert_eq!(opened.len(), 2);
}

#[test]
fn the_sealer_seals_nothing_that_the_client_would_refuse() {
    use ResponseError as E;
    let accept = || accept(sealer().1);
    let failed = || Inner::Error(ErrorCode::TooLong);
    let text = Inner::Text { text: Zeroizing::new("a".into()), tokens: 1 };
    let end = |reason| sealer().0.end(reason, 3, 0, [0; 32]);
    let (stop, error) = (end(FinishReason::Stop), end(FinishReason::Error));
    let end_after_2 = {
        let mut other = accepted();
        other.seal(&tokens(&[2])).unwrap();
        other.end(FinishReason::Stop, 3, 0, [0; 32])
    };
    let cached = sealer().0.end(FinishReason::Stop, 3, 4, [0; 32]);
    let count = E::TokenCount { stated: 0, counted: 1 };
    let over = E::CachedCount { cached: 4, prompt: 3 };
    let table = [
        (vec![], accept(), None),
        (vec![], tokens(&[1]), Some(E::AcceptOrder)),
        (vec![accept()], accept(), Some(E::AcceptOrder)),
        (vec![failed()], error.clone(), None),
        (vec![failed()], stop.clone(), Some(E::AfterError)),
        (vec![], error, Some(E::AfterError)),
        (vec![accept(), failed()], tokens(&[1]), Some(E::AfterError)),
        (vec![stop.clone()], Inner::Dummy, Some(E::AfterFinal)),
        (vec![accept(), tokens(&[1])], text, Some(E::MixedOutput)),
        (vec![accept(), tokens(&[1])], stop, Some(count)),
        (vec![accept(), tokens(&[1])], end_after_2, Some(E::OutputHash)),
        (vec![], cached, Some(over)),
        (vec![accept(), tokens(&[1])], logprobs(&[1], 0), None),
        (vec![accept(), tokens(&[1])], logprobs(&[2], 0), Some(E::LogprobsTokens)),
        (vec![accept(), tokens(&[1])], logprobs(&[1, 1], 0), Some(E::LogprobsTokens)),
    ];
    for (row, (before, inner, expected)) in table.iter().enumerate() {
        let (mut sealer, _) = sealer();
        for inner in before {
            sealer.seal(inner).unwrap();
        }
        assert_eq!(sealer.seal(inner).err(), *expected, "row {row}");
        let sealed = before.len() as u32 + u32::from(expected.is_none());
        assert_eq!(sealer.num_frames(), sealed, "row {row}");
    }
}

#[test]
fn an_inner_frame_that_does_not_fit_is_not_sealed() {
    let refused = |inner: &Inner| match accepted().seal(inner) {
        Err(ResponseError::Inner(refused)) => Some(refused),
        Err(other) => panic!("{other}"),
        Ok(_) => None,
    };
    assert_eq!(refused(&tokens(&[7; TOKENS_MAX])), None);
    let len = |kind, len| Some(InnerError::PayloadLen { kind, len });
    assert_eq!(refused(&tokens(&[7; TOKENS_MAX + 1])), len(2, 252));
    assert_eq!(refused(&tokens(&[])), len(2, 0));
    let text = |len| Inner::Text { text: Zeroizing::new("a".repeat(len)), tokens: 1 };
    assert_eq!(refused(&text(PAYLOAD_MAX)), None);
    assert_eq!(refused(&text(PAYLOAD_MAX + 1)), len(3, 249));
    let progress = InnerError::Progress { done: 2, total: 1 };
    assert_eq!(refused(&Inner::Progress { done: 2, total: 1 }), Some(progress));
    let mut wrong = logprobs(&[7], 1);
    if let Inner::Logprobs(entries) = &mut wrong {
        entries[0].token.1 = f32::NAN;
    }
    assert_eq!(refused(&wrong), Some(InnerError::Logprob));
    assert_eq!(refused(&Inner::Logprobs(Zeroizing::default())), len(7, 0));
    let mut uneven = logprobs(&[7, 7], 1);
    if let Inner::Logprobs(entries) = &mut uneven {
        entries[1].alternatives.push((1, 0.0));
        entries[1].alternatives.push((1, 0.0));
    }
    let alternatives = InnerError::Alternatives { found: 3, expected: 1 };
    assert_eq!(refused(&uneven), Some(alternatives));
}

#[test]
fn as_many_log_probabilities_fit_as_are_promised() {
    for alternatives in [0, 1, 5, 20] {
        let max = logprobs_max(alternatives);
        let mut sealer = accepted();
        sealer.seal(&tokens(&vec![7; max])).unwrap();
        assert!(sealer.seal(&logprobs(&vec![7; max], alternatives.into())).is_ok());
        let mut sealer = accepted();
        sealer.seal(&tokens(&vec![7; max + 1])).unwrap();
        assert!(sealer.seal(&logprobs(&vec![7; max + 1], alternatives.into())).is_err());
    }
}

#[test]
fn a_failed_request_ends_without_an_accept() {
    let (mut sealer, _) = sealer();
    let mut bytes = sealer.head().to_vec();
    bytes.extend(sealer.seal(&Inner::Error(ErrorCode::Malformed)).unwrap());
    bytes.extend(sealer.seal(&Inner::Dummy).unwrap());
    bytes.extend(sealer.seal(&sealer.end(FinishReason::Error, 0, 0, [0; 32])).unwrap());
    let opened = open(&bytes).unwrap();
    assert!(opened[0].inner == Inner::Error(ErrorCode::Malformed));
}

#[test]
fn an_accept_of_another_request_is_refused() {
    let (mut sealer, _) = sealer();
    let mut bytes = sealer.head().to_vec();
    bytes.extend(sealer.seal(&accept([1; 32])).unwrap());
    assert_eq!(open(&bytes).err(), Some(ResponseError::RequestHash));
}

#[test]
fn text_comes_back_with_its_count_of_tokens() {
    let text = |text: &str, tokens| Inner::Text { text: Zeroizing::new(text.into()), tokens };
    let frames = [text("Grüß", 2), text("", 1), text(" Gott", 1)];
    let (mut sealer, hash) = sealer();
    let mut bytes = sealer.head().to_vec();
    bytes.extend(sealer.seal(&accept(hash)).unwrap());
    for frame in &frames {
        bytes.extend(sealer.seal(frame).unwrap());
    }
    bytes.extend(sealer.seal(&sealer.end(FinishReason::Length, 3, 0, [0; 32])).unwrap());
    let opened = open(&bytes).unwrap();
    assert!(opened[1..4].iter().map(|frame| &frame.inner).eq(&frames));
    assert_eq!(opened[4].cumulative_tokens, 4);
}

fn honest() -> (Vec<Inner>, Vec<u8>) {
    let (mut sealer, hash) = sealer();
    let mut bytes = sealer.head().to_vec();
    let mut frames = vec![
        accept(hash),
        Inner::Progress { done: 2, total: 3 },
        Inner::Dummy,
        tokens(&[5, 6, 7]),
        logprobs(&[5, 6, 7], 1),
        tokens(&[8; TOKENS_MAX]),
    ];
    for frame in &frames {
        bytes.extend(sealer.seal(frame).unwrap());
    }
    let end = sealer.end(FinishReason::Stop, 3, 2, [4; 32]);
    bytes.extend(sealer.seal(&end).unwrap());
    assert!(sealer.is_finished());
    frames.push(end);
    (frames, bytes)
}

fn open(bytes: &[u8]) -> Result<Vec<OpenedFrame>, ResponseError> {
    let mut opener = context().into_opener();
    let mut opened = Vec::new();
    opener.push(bytes, &mut opened)?;
    opener.finish()?;
    Ok(opened)
}

fn context() -> RequestContext {
    let keys = key_pair();
    seal(&seal_to(&keys), &plain_body(3), &mut SeededRng::new("seal")).unwrap().context
}

fn sealer() -> (ResponseSealer, [u8; 32]) {
    let keys = key_pair();
    let sealed = seal(&seal_to(&keys), &plain_body(3), &mut SeededRng::new("seal")).unwrap();
    let head = Head::from_bytes(&sealed.bytes[..HEAD_LEN]).unwrap();
    let mut opener = RequestOpener::new(&head, &keys, &statement().digest()).unwrap();
    opener.push(&sealed.bytes[HEAD_LEN..]).unwrap();
    let secret = opener.take_response_secret().unwrap();
    let sealer = secret.into_sealer(&mut SeededRng::new("response"));
    (sealer, opener.finish().unwrap().request_hash)
}

fn accepted() -> ResponseSealer {
    let (mut sealer, hash) = sealer();
    sealer.seal(&accept(hash)).unwrap();
    sealer
}

fn accept(request_hash: [u8; 32]) -> Inner {
    Inner::Accept(Accept { request_hash, boot_id: [2; 16], serial: 3 })
}

fn tokens(ids: &[u32]) -> Inner {
    Inner::Tokens(Zeroizing::new(ids.to_vec()))
}

fn logprobs(ids: &[u32], alternatives: usize) -> Inner {
    let entry = |id: &u32| TokenLogprobs {
        token: (*id, -0.5),
        alternatives: vec![(9, -1.5); alternatives],
    };
    Inner::Logprobs(Zeroizing::new(ids.iter().map(entry).collect()))
}
