//! Known answers: every file in `tests/vectors/` is held to its own expectation.
//!
//! A file is lines of `name = value`. `expect` is `accept`, `incomplete` or the refusal. A new case
//! is a new file. The files that this code writes are rewritten by setting UPDATE_VECTORS.

use std::fs;
use std::path::PathBuf;

use chrysalis_protocol::ack::ACK_LEN;
use chrysalis_protocol::bundle::Bundle;
use chrysalis_protocol::frame;
use chrysalis_protocol::freshness::{Freshness, Tree};
use chrysalis_protocol::gpu::{Device, GpuEndorsements};
use chrysalis_protocol::hpke::KemKeyPair;
use chrysalis_protocol::key_release::{self, KeyRelease};
use chrysalis_protocol::receipt::{Receipt, ReceiptKey, hash};
use chrysalis_protocol::request::{
    HEAD_LEN, Head, RequestBody, RequestContext, RequestOpener, SealTo, seal,
};
use chrysalis_protocol::response::{Accept, ErrorCode, FinishReason, Inner, TokenLogprobs};
use chrysalis_protocol::secret::Secret;
use chrysalis_protocol::statement::{
    KeyConfig, ReportData, ServingPolicy, Statement, StatementError, gpu_digest,
};
use chrysalis_protocol::tdx_collateral::TdxCollateral;
use zeroize::Zeroizing;

use crate::cases;
use crate::support::Replay;

type Fields = Vec<(String, String)>;

#[test]
fn the_vectors_are_the_ones_that_this_code_writes() {
    for case in cases::all() {
        let path = folder().join(format!("{}.txt", case.name));
        if std::env::var_os("UPDATE_VECTORS").is_some() {
            fs::write(&path, case.to_text()).unwrap();
        }
        let written = fs::read_to_string(&path).unwrap_or_default();
        assert!(written == case.to_text(), "{} is another one", case.name);
    }
}

#[test]
fn every_vector_meets_its_expectation() {
    let mut checked = 0;
    for entry in fs::read_dir(folder()).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        // The packages' vectors have their own test.
        if !name.ends_with(".txt") || name.starts_with("package_") {
            continue;
        }
        let text = fs::read_to_string(&path).unwrap();
        let line = |line: &str| {
            let (name, value) = line.split_once('=').unwrap();
            (name.trim().to_owned(), value.trim().to_owned())
        };
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        let fields: Fields = lines.map(line).collect();
        let found = check(&fields).map_or_else(|refusal| refusal, |()| "accept".to_owned());
        assert_eq!(found, get(&fields, "expect"), "{name}");
        checked += 1;
    }
    assert!(checked >= cases::all().len());
}

/// Holds a vector's values to each other; the error is the refusal.
fn check(fields: &Fields) -> Result<(), String> {
    match get(fields, "kind") {
        "frame" => check_frame(fields),
        "statement" => check_statement(fields),
        "report_data" => {
            let bytes = hex(fields, "bytes");
            let data = ReportData::from_bytes(&bytes).map_err(refusal)?;
            assert_eq!(data.to_bytes().as_slice(), bytes);
            assert_eq!(data.statement_digest.as_slice(), hex(fields, "digest"));
            Ok(())
        }
        "key_config" => check_key_config(fields),
        "policy" => {
            let bytes = hex(fields, "bytes");
            let policy = ServingPolicy::from_bytes(&bytes).map_err(refusal)?;
            assert_eq!(policy.to_bytes().as_slice(), bytes);
            assert_eq!(policy.digest().as_slice(), hex(fields, "digest"));
            Ok(())
        }
        "bundle" => {
            let bytes = hex(fields, "bytes");
            let bundle = Bundle::parse(&bytes).map_err(refusal)?;
            assert_eq!(bundle.to_bytes(), bytes);
            assert_eq!(bundle.statement, hex(fields, "statement"));
            assert_eq!(bundle.freshness, Some(hex(fields, "freshness").as_slice()));
            Ok(())
        }
        "tdx_collateral" => {
            let bytes = hex(fields, "bytes");
            let collateral = TdxCollateral::parse(&bytes).map_err(refusal)?;
            assert_eq!(collateral.to_bytes(), bytes);
            for (field, value) in [
                ("root_crl", &collateral.root_crl[..]),
                ("pck_crl", &collateral.pck_crl),
                ("tcb_info_signer", &collateral.tcb_info_signer),
                ("tcb_info", collateral.tcb_info.as_bytes()),
                ("tcb_info_signature", &collateral.tcb_info_signature),
                ("qe_identity_signer", &collateral.qe_identity_signer),
                ("qe_identity", collateral.qe_identity.as_bytes()),
                ("qe_identity_signature", &collateral.qe_identity_signature),
            ] {
                assert_eq!(value, hex(fields, field), "{field}");
            }
            Ok(())
        }
        "freshness" => check_freshness(fields),
        "gpu" => {
            let bytes = hex(fields, "bytes");
            let devices = Device::parse_all(&bytes).map_err(refusal)?;
            assert_eq!(Device::to_bytes(&devices), bytes);
            assert_eq!(devices[1].report, hex(fields, "report_1"));
            assert_eq!(gpu_digest(&bytes).as_slice(), hex(fields, "digest"));
            Ok(())
        }
        "gpu_endorsements" => {
            let bytes = hex(fields, "bytes");
            let endorsements = GpuEndorsements::parse(&bytes).map_err(refusal)?;
            assert_eq!(endorsements.to_bytes(), bytes);
            assert_eq!(endorsements.rims[1], hex(fields, "manifest_1"));
            Ok(())
        }
        "receipt" => check_receipt(fields),
        "request" => check_request(fields).map(drop),
        "response" => check_response(fields),
        "acks" => check_acks(fields),
        "key_release" => check_key_release(fields),
        other => panic!("{other} is no kind of vector"),
    }
}

fn check_frame(fields: &Fields) -> Result<(), String> {
    let bytes = hex(fields, "bytes");
    let Some((frame, rest)) = frame::split(&bytes).map_err(refusal)? else {
        return Err("incomplete".into());
    };
    assert!(rest.is_empty());
    assert_eq!(frame.kind.code().to_string(), get(fields, "frame_kind"));
    assert_eq!(frame.stream.to_string(), get(fields, "stream"));
    assert_eq!(frame.body, hex(fields, "body"));
    let mut written = Vec::new();
    frame::write(frame.kind, frame.stream, frame.body, &mut written);
    assert_eq!(written, bytes);
    Ok(())
}

fn check_statement(fields: &Fields) -> Result<(), String> {
    let bytes = hex(fields, "bytes");
    let statement = Statement::from_bytes(&bytes).map_err(refusal)?;
    assert_eq!(statement.to_bytes().as_slice(), bytes);
    assert_eq!(statement.digest().as_slice(), hex(fields, "digest"));
    assert_eq!(statement.report_data().to_bytes().as_slice(), hex(fields, "report_data"));
    assert_eq!(statement.gpu_challenge().as_slice(), hex(fields, "gpu_challenge"));
    Ok(())
}

fn check_key_config(fields: &Fields) -> Result<(), String> {
    let bytes = hex(fields, "bytes");
    let config = KeyConfig::from_bytes(&bytes).map_err(|error: StatementError| refusal(error))?;
    assert_eq!(config.to_bytes().as_slice(), bytes);
    assert_eq!(config.digest().as_slice(), hex(fields, "digest"));
    assert_eq!(config.key_id().as_slice(), hex(fields, "key_id"));
    assert_eq!(&config.sealing_key, keys(fields).sealing_key());
    Ok(())
}

fn check_freshness(fields: &Fields) -> Result<(), String> {
    let (bytes, all) = (hex(fields, "bytes"), hex(fields, "challenges"));
    let freshness = Freshness::parse(&bytes).map_err(refusal)?;
    assert_eq!(freshness.to_bytes(), bytes);
    let root = array(fields, "root");
    assert_eq!(Tree::new(all.as_chunks().0).unwrap().root(), root);
    assert_eq!(freshness.path.root(&array(fields, "challenge")), root);
    Ok(())
}

fn check_receipt(fields: &Fields) -> Result<(), String> {
    let bytes = hex(fields, "bytes");
    let receipt = Receipt::verify(&bytes, &array(fields, "public_key")).map_err(refusal)?;
    let key = ReceiptKey::from_seed(&Secret::from(array(fields, "seed"))).unwrap();
    assert_eq!(key.public_key().as_slice(), hex(fields, "public_key"));
    assert_eq!(receipt.sign(&key).as_slice(), bytes);
    assert_eq!(hash(&bytes).as_slice(), hex(fields, "hash"));
    assert_eq!(receipt.output_units.to_string(), get(fields, "output_units"));
    Ok(())
}

/// Opens the request and seals it again from its plaintext.
fn check_request(fields: &Fields) -> Result<(RequestContext, RequestOpener), String> {
    let (keys, sealed) = (keys(fields), hex(fields, "sealed"));
    let statement_digest = array(fields, "statement_digest");
    let head = Head::from_bytes(&sealed[..HEAD_LEN]).map_err(refusal)?;
    assert_eq!(head.request_tag().as_slice(), hex(fields, "request_tag"));
    let mut opener = RequestOpener::new(&head, &keys, &statement_digest).map_err(refusal)?;
    opener.push(&sealed[HEAD_LEN..]).map_err(refusal)?;

    let body = RequestBody::from_padded(&hex(fields, "plaintext")).map_err(refusal)?;
    let to = SealTo { statement_digest, key_id: head.key_id(), sealing_key: keys.sealing_key() };
    let again = seal(&to, &body, &mut Replay(hex(fields, "encapsulation"))).map_err(refusal)?;
    assert_eq!(again.bytes, sealed);
    assert_eq!(again.context.request_hash().as_slice(), hex(fields, "request_hash"));
    let mut other = RequestOpener::new(&head, &keys, &statement_digest).map_err(refusal)?;
    other.push(&sealed[HEAD_LEN..]).map_err(refusal)?;
    let opened = other.finish().map_err(refusal)?;
    assert!(opened.body == body);
    assert_eq!(opened.request_hash, again.context.request_hash());
    Ok((again.context, opener))
}

fn check_response(fields: &Fields) -> Result<(), String> {
    assert_eq!(response_from(fields), hex(fields, "response"));
    let (context, _) = check_request(fields)?;
    let mut opener = context.into_opener();
    let mut opened = Vec::new();
    opener.push(&hex(fields, "response"), &mut opened).map_err(refusal)?;
    opener.finish().map_err(refusal)?;
    let stated = fields.iter().filter(|(name, _)| name == "frame").map(|(_, value)| value);
    let found: Vec<String> = opened.iter().map(|frame| describe(&frame.inner)).collect();
    assert!(found.iter().eq(stated), "{found:?}");
    Ok(())
}

/// Seals the ACKs that a vector lists, and opens those that came in their place.
fn check_acks(fields: &Fields) -> Result<(), String> {
    let (context, opener) = check_request(fields)?;
    let mut opener = opener.finish().map_err(refusal)?.acks;
    let (_, mut sealer) = context.into_parts();
    let sent = get(fields, "sent").parse().unwrap();
    let tokens = fields.iter().filter(|(name, _)| name == "tokens").map(|(_, value)| value);
    let came = hex(fields, "acks");
    for (tokens, came) in tokens.zip(came.chunks(ACK_LEN)) {
        let tokens: u32 = tokens.parse().unwrap();
        let sealed = sealer.seal(tokens).map_err(refusal)?;
        assert_eq!(opener.open(came, sent).map_err(refusal)?, tokens);
        assert_eq!(sealed.as_slice(), came);
    }
    assert_eq!(opener.acked().unwrap().to_string(), get(fields, "acked"));
    Ok(())
}

/// The ACKs of a vector's request, one after another.
pub(crate) fn acks_from(fields: &Fields) -> Vec<u8> {
    let (_, mut sealer) = check_request(fields).unwrap().0.into_parts();
    let tokens = fields.iter().filter(|(name, _)| name == "tokens");
    tokens.flat_map(|(_, value)| sealer.seal(value.parse().unwrap()).unwrap()).collect()
}

/// Seals the frames that a response vector lists.
pub(crate) fn response_from(fields: &Fields) -> Vec<u8> {
    let (_, mut opener) = check_request(fields).unwrap();
    let secret = opener.take_response_secret().unwrap();
    let mut sealer = secret.into_sealer(&mut Replay(hex(fields, "response_nonce")));
    let mut bytes = sealer.head().to_vec();
    for (_, line) in fields.iter().filter(|(name, _)| name == "frame") {
        let words: Vec<&str> = line.split(' ').collect();
        let number = |at: usize| words[at].parse::<u32>().unwrap();
        let inner = match words[0] {
            "dummy" => Inner::Dummy,
            "accept" => Inner::Accept(Accept {
                request_hash: from_hex(words[1]).try_into().unwrap(),
                boot_id: from_hex(words[2]).try_into().unwrap(),
                serial: number(3).into(),
            }),
            "tokens" => Inner::Tokens((1..words.len()).map(number).collect::<Vec<_>>().into()),
            "text" => Inner::Text {
                text: Zeroizing::new(String::from_utf8(from_hex(words[2])).unwrap()),
                tokens: number(1),
            },
            "progress" => Inner::Progress { done: number(1), total: number(2) },
            "error" => Inner::Error(ErrorCode::try_from(number(1) as u16).unwrap()),
            "logprobs" => Inner::Logprobs(Zeroizing::new(logprobs(&words[1..]))),
            "end" => {
                let reason = FinishReason::try_from(number(1) as u8).unwrap();
                sealer.end(reason, number(2), number(3), [0; 32])
            }
            other => panic!("{other} is no frame"),
        };
        bytes.extend(sealer.seal(&inner).unwrap());
    }
    bytes
}

/// The number of alternatives, then id and log probability of each token and alternative.
fn logprobs(words: &[&str]) -> Vec<TokenLogprobs> {
    let alternatives: usize = words[0].parse().unwrap();
    let pair = |pair: &[&str]| (pair[0].parse().unwrap(), pair[1].parse().unwrap());
    let entry = |entry: &[&str]| {
        let mut pairs = entry.chunks(2).map(pair);
        TokenLogprobs { token: pairs.next().unwrap(), alternatives: pairs.collect() }
    };
    words[1..].chunks(2 * (1 + alternatives)).map(entry).collect()
}

fn describe(inner: &Inner) -> String {
    match inner {
        Inner::Dummy => "dummy".into(),
        Inner::Accept(accept) => {
            let (hash, boot) = (&accept.request_hash, &accept.boot_id);
            format!("accept {} {} {}", cases::to_hex(hash), cases::to_hex(boot), accept.serial)
        }
        Inner::Tokens(ids) => ids.iter().fold("tokens".into(), |line, id| format!("{line} {id}")),
        Inner::Text { text, tokens } => format!("text {tokens} {}", cases::to_hex(text.as_bytes())),
        Inner::Progress { done, total } => format!("progress {done} {total}"),
        Inner::Error(code) => format!("error {}", *code as u16),
        Inner::Logprobs(entries) => {
            let start = format!("logprobs {}", entries[0].alternatives.len());
            let pairs = entries
                .iter()
                .flat_map(|entry| core::iter::once(&entry.token).chain(&entry.alternatives));
            pairs.fold(start, |line, (id, logprob)| format!("{line} {id} {logprob}"))
        }
        Inner::End(end) => {
            format!("end {} {} {}", end.reason as u8, end.prompt_tokens, end.cached_tokens)
        }
    }
}

fn check_key_release(fields: &Fields) -> Result<(), String> {
    let (keys, sealed) = (keys(fields), hex(fields, "sealed"));
    let statement_digest = array(fields, "statement_digest");
    let release = key_release::open(keys.clone(), &statement_digest, &sealed).map_err(refusal)?;
    assert!(release == release_from(fields));
    let mut rng = Replay(hex(fields, "encapsulation"));
    let again = key_release::seal(keys.sealing_key(), &statement_digest, &release, &mut rng);
    assert_eq!(again.unwrap().as_slice(), sealed);
    Ok(())
}

/// The key release that a vector names.
pub(crate) fn release_from(fields: &Fields) -> KeyRelease {
    KeyRelease {
        package_id: array(fields, "package_id"),
        package_key: Secret::from(array(fields, "package_key")),
        min_model_svn: get(fields, "min_model_svn").parse().unwrap(),
        lease_seconds: get(fields, "lease_seconds").parse().unwrap(),
        lease_tokens: get(fields, "lease_tokens").parse().unwrap(),
    }
}

fn keys(fields: &Fields) -> KemKeyPair {
    KemKeyPair::derive(&Secret::from(array(fields, "seed")))
}

fn get<'a>(fields: &'a Fields, name: &str) -> &'a str {
    let field = fields.iter().find(|(other, _)| other == name);
    field.map_or_else(|| panic!("{name} is missing"), |(_, value)| value)
}

fn hex(fields: &Fields, name: &str) -> Vec<u8> {
    from_hex(get(fields, name))
}

fn array<const N: usize>(fields: &Fields, name: &str) -> [u8; N] {
    hex(fields, name).try_into().unwrap()
}

fn from_hex(text: &str) -> Vec<u8> {
    let digits = text.as_bytes().chunks(2);
    let byte = |pair| u8::from_str_radix(str::from_utf8(pair).unwrap(), 16).unwrap();
    digits.map(byte).collect()
}

fn refusal(error: impl core::fmt::Display) -> String {
    error.to_string()
}

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/vectors")
}
