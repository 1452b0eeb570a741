//! The plaintext of a request: one refusal to a row, the honest request first.

use chrysalis_protocol::request::{BodyError, Options, Prompt, RequestBody, TEXT_MAX, padded_len};

use crate::support::{body, plain_body};

/// Offset of the first option.
const OPTIONS: usize = 64;

#[test]
fn a_body_comes_back_with_every_option() {
    let body = body();
    let padded = body.to_padded().unwrap();
    assert_eq!(padded.len(), 1_024);
    assert!(RequestBody::from_padded(padded.expose()) == Ok(body));
}

#[test]
fn a_text_prompt_comes_back() {
    let mut body = plain_body(1);
    body.prompt = Prompt::Text(r#"{"messages":[]}"#.as_bytes().to_vec().into());
    let padded = body.to_padded().unwrap();
    assert!(RequestBody::from_padded(padded.expose()) == Ok(body));
}

#[test]
fn the_padded_length_is_one_of_fourteen() {
    assert_eq!(
        [0, 1_024, 1_025, 8 << 20].map(padded_len),
        [1 << 10, 1 << 10, 1 << 11, 8 << 20].map(Some)
    );
    assert_eq!(padded_len((8 << 20) + 1), None);
    for num_tokens in [1, 240, 241, 5_000] {
        let padded = plain_body(num_tokens).to_padded().unwrap();
        assert_eq!(Some(padded.len()), padded_len(64 + num_tokens * 4));
    }
    let long = plain_body(2 << 20).to_padded().err();
    assert_eq!(long, Some(BodyError::TooLong { len: 64 + (8 << 20) }));
}

#[test]
fn a_malformed_head_is_refused() {
    let refusal = |offset: usize, byte: u8| {
        let mut padded = plain_body(2).to_padded().unwrap().expose().to_vec();
        padded[offset] = byte;
        RequestBody::from_padded(&padded).err()
    };
    assert_eq!(refusal(8, 1), None);
    assert!(matches!(refusal(0, b'X'), Some(BodyError::Codec(_))), "magic");
    assert_eq!(refusal(8, 3), Some(BodyError::Mode { found: 3 }));
    assert_eq!(refusal(9, 4), Some(BodyError::Flags { found: 4 }));
    assert_eq!(refusal(11, 1), Some(BodyError::OptionOrder { found: 0, previous: 0 }));
    assert_eq!(refusal(15, 0), Some(BodyError::EmptyPrompt));
    assert_eq!(refusal(15, 7), Some(BodyError::PartialToken { len: 7 }));
    assert!(matches!(refusal(13, 1), Some(BodyError::Codec(_))), "a prompt beyond the end");
    assert!(matches!(refusal(15, 4), Some(BodyError::Codec(_))), "padding is not zero");
    assert_eq!(refusal(19, 0), Some(BodyError::NoOutput));
    assert!(matches!(refusal(63, 1), Some(BodyError::Codec(_))), "reserved");
    assert!(matches!(refusal(1_023, 1), Some(BodyError::Codec(_))), "padding");
}

#[test]
fn a_plaintext_of_another_length_is_refused() {
    let padded = plain_body(2).to_padded().unwrap();
    for len in [0, 512, 1_023] {
        let refused = RequestBody::from_padded(&padded.expose()[..len]).err();
        assert_eq!(refused, Some(BodyError::PaddedLen { len }));
    }
    let longer = [padded.expose(), &[0; 1_024]].concat();
    assert!(RequestBody::from_padded(&longer).is_ok(), "a larger size hides more");
    let longer = [padded.expose(), &[0; 1_025]].concat();
    let refused = RequestBody::from_padded(&longer).err();
    assert_eq!(refused, Some(BodyError::PaddedLen { len: 2_049 }));
}

#[test]
fn options_out_of_range_are_neither_sealed_nor_read() {
    let refusal = |change: &dyn Fn(&mut Options)| {
        let mut body = body();
        change(&mut body.options);
        body.to_padded().err()
    };
    let range = |option| Some(BodyError::OptionRange { option });
    let len = |option, len| Some(BodyError::OptionLen { option, len });
    assert_eq!(refusal(&|_| {}), None);
    for wrong in [f32::NAN, f32::INFINITY, -0.1, 100.1] {
        assert_eq!(refusal(&|o| o.temperature = Some(wrong)), range(1), "{wrong}");
        assert_eq!(refusal(&|o| o.min_p = Some(wrong)), range(4), "{wrong}");
    }
    assert_eq!(refusal(&|o| o.top_p = Some(0.0)), range(2));
    assert_eq!(refusal(&|o| o.repetition_penalty = Some(0.0)), range(5));
    assert_eq!(refusal(&|o| o.presence_penalty = Some(-101.0)), range(6));
    assert_eq!(refusal(&|o| o.frequency_penalty = Some(f32::NAN)), range(7));
    assert_eq!(refusal(&|o| o.logit_bias.push((10, f32::NEG_INFINITY))), range(8));
    assert_eq!(refusal(&|o| o.logit_bias.push((9, 0.0))), Some(BodyError::OptionIds { option: 8 }));
    assert_eq!(refusal(&|o| o.stop_token_ids.push(3)), Some(BodyError::OptionIds { option: 9 }));
    let many = |o: &mut Options| *o.stop_token_ids = (0..257).collect();
    assert_eq!(refusal(&many), len(9, 257 * 4));
    let many = |o: &mut Options| *o.logit_bias = (0..1_025).map(|id| (id, 0.0)).collect();
    assert_eq!(refusal(&many), len(8, 1_025 * 8));
    assert_eq!(refusal(&|o| o.logprobs = Some(21)), range(10));
    assert_eq!(refusal(&|o| o.voucher = Some(Vec::new().into())), len(11, 0));
    assert_eq!(refusal(&|o| o.voucher = Some(vec![1; 257].into())), len(11, 257));
    assert!(refusal(&|o| o.grammar = Some(vec![1; 65_536].into())).is_some());
    let mut unflagged = body();
    unflagged.want_logprobs = false;
    assert_eq!(unflagged.to_padded().err(), Some(BodyError::LogprobsFlag));
}

#[test]
fn options_out_of_order_doubled_unknown_or_of_another_length_are_refused() {
    let option = |kind: u16, value: &[u8]| {
        [&kind.to_be_bytes()[..], &(value.len() as u16).to_be_bytes(), value].concat()
    };
    let refusal = |options: &[Vec<u8>]| {
        let padded = plain_body(1).to_padded().unwrap();
        let (head, rest) = padded.expose().split_at(OPTIONS);
        let mut bytes = [head, &options.concat(), rest].concat();
        bytes[11] = options.len() as u8;
        bytes.truncate(1_024);
        RequestBody::from_padded(&bytes).err()
    };
    let (top_k, logprobs) = (option(3, &[0, 0, 0, 40]), option(10, &[2]));
    assert_eq!(refusal(&[]), None);
    assert_eq!(refusal(std::slice::from_ref(&top_k)), None);
    let order = |found, previous| Some(BodyError::OptionOrder { found, previous });
    assert_eq!(refusal(&[top_k.clone(), top_k.clone()]), order(3, 3));
    assert_eq!(refusal(&[logprobs, top_k]), order(3, 10));
    let unknown = Some(BodyError::UnknownOption { found: 15 });
    assert_eq!(refusal(&[option(15, b"x")]), unknown);
    for (kind, value) in [(1, &[0; 3][..]), (3, &[0; 5]), (8, &[0; 7]), (9, &[]), (10, &[])] {
        let len = value.len();
        assert_eq!(
            refusal(&[option(kind, value)]),
            Some(BodyError::OptionLen { option: kind, len })
        );
    }
    assert_eq!(
        refusal(&[option(12, &[0; 31])]),
        Some(BodyError::OptionLen { option: 12, len: 31 })
    );
    assert_eq!(
        refusal(&[option(13, &[0; 17])]),
        Some(BodyError::OptionLen { option: 13, len: 17 })
    );
}

#[test]
fn a_text_that_is_no_text_or_too_long_is_refused() {
    let refusal = |text: Vec<u8>| {
        let mut body = plain_body(1);
        body.prompt = Prompt::Text(text.into());
        body.to_padded().err()
    };
    assert_eq!(refusal(vec![b' '; TEXT_MAX]), None);
    let len = TEXT_MAX + 1;
    assert_eq!(refusal(vec![b' '; len]), Some(BodyError::TextTooLong { len }));
    assert_eq!(refusal(vec![0xFF]), Some(BodyError::Utf8));
    assert_eq!(refusal(Vec::new()), Some(BodyError::EmptyPrompt));
}
