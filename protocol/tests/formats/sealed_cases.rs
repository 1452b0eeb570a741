//! The vectors of what is sealed: requests, responses and key releases.

use chrysalis_protocol::key_release;
use chrysalis_protocol::request::{Prompt, RequestBody, SealTo, seal};

use crate::cases::{Case, to_hex};
use crate::support::{Replay, SeededRng, body, key_config, key_pair, plain_body, statement};
use crate::vectors::{acks_from, release_from, response_from};

fn request_case(name: &'static str, about: &str, kind: &str, body: &RequestBody) -> Case {
    let keys = key_pair();
    let digest = statement().digest();
    let to = SealTo {
        statement_digest: digest,
        key_id: key_config().key_id(),
        sealing_key: keys.sealing_key(),
    };
    let encapsulation = SeededRng::new(name).array::<64>();
    let sealed = seal(&to, body, &mut Replay(encapsulation.to_vec())).unwrap();
    Case::new(name, about, kind, "accept")
        .hex("seed", SeededRng::new("sealing key").array::<32>())
        .hex("statement_digest", digest)
        .hex("encapsulation", encapsulation)
        .hex("plaintext", body.to_padded().unwrap().expose())
        .hex("sealed", &sealed.bytes)
        .hex("request_hash", sealed.context.request_hash())
        .hex("request_tag", sealed.context.request_tag())
}

pub(crate) fn requests() -> Vec<Case> {
    let mut text = plain_body(1);
    let json = r#"{"messages":[{"role":"user","content":"Grüß Gott"}]}"#;
    text.prompt = Prompt::Text(json.as_bytes().to_vec().into());
    let mut other_statement = request_case("request_tokens", "", "request", &body());
    other_statement.name = "request_other_statement";
    other_statement.about = "The client verified another statement".into();
    for (name, value) in &mut other_statement.fields {
        match *name {
            "expect" => *value = "the ciphertext was refused".into(),
            "statement_digest" => *value = to_hex(&[0; 48]),
            _ => {}
        }
    }
    vec![
        request_case("request_tokens", "token ids and every option", "request", &body()),
        request_case("request_text", "text and no option", "request", &text),
        request_case("request_frames", "two full frames", "request", &plain_body(8_000)),
        other_statement,
    ]
}

pub(crate) fn responses() -> Vec<Case> {
    let mut case = request_case("response", "every type of frame", "response", &plain_body(3));
    let accept = format!(
        "accept {} {} 17",
        case.fields.iter().find(|(name, _)| *name == "request_hash").unwrap().1,
        to_hex(&statement().boot_id)
    );
    let script = [
        &accept,
        "progress 1 3",
        "dummy",
        "tokens 5 6 7",
        "logprobs 1 5 -0.5 9 -1.25 6 -0.125 9 -2 7 0 9 -30",
        "tokens 4294967295",
        "end 1 3 1",
    ];
    for line in script {
        case = case.text("frame", line);
    }
    let nonce = SeededRng::new("response nonce").array::<32>();
    let mut failed =
        request_case("response_failed", "an error, no output", "response", &plain_body(3));
    for line in ["error 2", "dummy", "end 4 0 0"] {
        failed = failed.text("frame", line);
    }
    let mut text =
        request_case("response_text", "text and its count of tokens", "response", &plain_body(3));
    let hash = &text.fields.iter().find(|(name, _)| *name == "request_hash").unwrap().1;
    let accept = format!("accept {hash} {} 18", to_hex(&statement().boot_id));
    for line in [accept.as_str(), "text 2 4772c3bcc39f", "end 2 3 0"] {
        text = text.text("frame", line);
    }
    [case, failed, text]
        .into_iter()
        .map(|case| {
            let case = case.hex("response_nonce", nonce);
            let response = response_from(&case.fields_of());
            case.hex("response", response)
        })
        .collect()
}

pub(crate) fn acks() -> Vec<Case> {
    let case = |name, about, expect: &str, tokens: &[u64]| {
        let mut case = request_case(name, about, "acks", &plain_body(3)).number("sent", 70);
        case.fields[1].1 = expect.to_owned();
        for &tokens in tokens {
            case = case.number("tokens", tokens);
        }
        case
    };
    let with = |case: Case, change: fn(Vec<u8>) -> Vec<u8>| {
        let acks = change(acks_from(&case.fields_of()));
        case.number("acked", 70).hex("acks", acks)
    };
    let swapped = |mut acks: Vec<u8>| {
        acks.rotate_left(28);
        acks
    };
    vec![
        with(
            case(
                "acks",
                "at ACCEPT, after the first frame of tokens, at the end",
                "accept",
                &[0, 62, 70],
            ),
            |acks| acks,
        ),
        with(
            case(
                "acks_order",
                "the second ACK comes first",
                "the ciphertext was refused",
                &[62, 70],
            ),
            swapped,
        ),
        with(
            case(
                "acks_decreased",
                "an ACK takes tokens back",
                "an ACK of 61 tokens after one of 62",
                &[62, 61],
            ),
            |acks| acks,
        ),
        with(
            case(
                "acks_unsent",
                "71 of 70 tokens",
                "an ACK of 71 tokens, of which 70 were sent",
                &[71],
            ),
            |acks| acks,
        ),
    ]
}

pub(crate) fn releases() -> Vec<Case> {
    let digest = statement().digest();
    let case = Case::new("key_release", "a package key with its terms", "key_release", "accept")
        .hex("seed", SeededRng::new("sealing key").array::<32>())
        .hex("statement_digest", digest)
        .hex("encapsulation", SeededRng::new("key release").array::<64>())
        .hex("package_id", [1; 16])
        .hex("package_key", SeededRng::new("package key").array::<32>())
        .number("min_model_svn", 3)
        .number("lease_seconds", 86_400)
        .number("lease_tokens", 1_000_000);
    let release = release_from(&case.fields_of());
    let mut rng = Replay(SeededRng::new("key release").array::<64>().to_vec());
    let keys = key_pair();
    let sealed = key_release::seal(keys.sealing_key(), &digest, &release, &mut rng).unwrap();
    vec![case.hex("sealed", sealed)]
}
