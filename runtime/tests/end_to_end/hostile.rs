//! Somebody does not keep to the rules: the disk, the host, or another owner.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::Ordering;
use std::time::Duration;

use chrysalis_attestation::policy::ReleaseError;
use chrysalis_client::{ClientError, Connection};
use chrysalis_protocol::frame::{self, FrameKind};
use chrysalis_protocol::key_release::SEALED_LEN;
use chrysalis_protocol::messages::{CloseCode, KeyrelResp};
use chrysalis_protocol::statement::{Kind, PadProfile};
use chrysalis_runtime::boot::BootError;
use chrysalis_runtime::limits::Limits;
use chrysalis_runtime::load::LoadError;

use crate::support::{Model, OPEN, Pack, QUICK, Running, SEALED, ask, body, key};

#[test]
fn the_key_of_another_package_never_leaves_its_owner() {
    let model = Model::new(&SEALED);
    let running = Running::start(&model, QUICK).unwrap();
    let refused = running.release(&model, &key(4));
    assert!(matches!(refused, Err(ClientError::Release(ReleaseError::Key { .. }))));
    // The enclave still takes the right one.
    running.release(&model, model.key.as_ref().unwrap()).unwrap();
    running.wait_until_serving();
    running.enclave.stop().unwrap();
}

#[test]
fn a_release_that_was_not_sealed_to_the_enclave_is_rejected_and_the_wait_goes_on() {
    let model = Model::new(&SEALED);
    let running = Running::start(&model, QUICK).unwrap();
    let chrysalis_client::Address::Unix(path) = &running.address else {
        panic!("a socket file");
    };
    let mut stream = UnixStream::connect(path).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let sealed = Box::new([7; SEALED_LEN]);
    let mut bytes = Vec::new();
    let body = KeyrelResp { sealed }.to_bytes();
    frame::write(FrameKind::KeyrelResp, 3, &body, &mut bytes);
    stream.write_all(&bytes).unwrap();
    let mut reply = [0; 28];
    stream.read_exact(&mut reply).unwrap();
    let (reply, _) = frame::split(&reply).unwrap().unwrap();
    assert_eq!((reply.kind, reply.stream), (FrameKind::Close, 3));
    assert_eq!(reply.body[0], CloseCode::Rejected as u8);
    running.release(&model, model.key.as_ref().unwrap()).unwrap();
    running.wait_until_serving();
    running.enclave.stop().unwrap();
}

#[test]
fn an_owner_refuses_an_enclave_that_is_not_what_his_policy_names() {
    let mut model = Model::new(&SEALED);
    model.policy.measurements[0][0] ^= 1;
    let running = Running::start(&model, QUICK).unwrap();
    let refused = running.release(&model, model.key.as_ref().unwrap());
    assert!(matches!(refused, Err(ClientError::Rejected(_))));
    running.enclave.stop().unwrap();
}

#[test]
fn a_swapped_model_policy_or_purpose_is_refused_before_anything_is_sealed() {
    let model = Model::new(&OPEN);
    let running = Running::serving(&model, QUICK);
    let other = Model::new(&Pack { recorded: "tiny-qwen3", ..OPEN });
    let mut connection = running.connect();
    let mut refused = |change: &dyn Fn(&mut Model)| {
        let mut changed = Model::new(&OPEN);
        change(&mut changed);
        match connection.verify(&changed.policy) {
            Err(ClientError::Rejected(rejection)) => rejection.code(),
            Err(error) => panic!("{error}"),
            Ok(_) => panic!("it was accepted"),
        }
    };
    let content = other.policy.content_digests[0];
    assert_eq!(
        refused(&|model| model.policy.content_digests = vec![content]),
        "model.content_digest"
    );
    assert_eq!(
        refused(&|model| model.policy.serving.pad_profiles = vec![PadProfile::Tick]),
        "serving_policy.demand"
    );
    assert_eq!(refused(&|model| model.policy.minimum_svn = 2), "model.svn");
    assert_eq!(refused(&|model| model.policy.publishers = vec![[1; 32]]), "model.publisher");
    assert_eq!(refused(&|model| model.policy.allow_simulated = false), "statement.simulated");
    assert!(connection.verify(&model.policy).is_ok());
    drop(connection);
    running.enclave.stop().unwrap();
}

#[test]
fn evidence_for_a_key_release_is_no_evidence_for_questions() {
    let model = Model::new(&SEALED);
    let running = Running::start(&model, QUICK).unwrap();
    let mut connection = Connection::open(&running.address).unwrap();
    let (bundle, challenge) = connection.evidence(Kind::KeyRelease).unwrap();
    let refused = model.policy.appraise(&bundle, &challenge).unwrap_err();
    assert_eq!(refused.code(), "statement.kind");
    assert!(model.policy.appraise_key_release(&bundle, &challenge).is_ok());
    running.enclave.stop().unwrap();
}

#[test]
fn a_request_that_is_carried_to_another_enclave_is_not_opened_there() {
    let model = Model::new(&OPEN);
    let first = Running::serving(&model, QUICK);
    let socket = model.folder.path().join("other");
    let second = Running::start_at(&model.path, &socket, QUICK, Limits::default()).unwrap();
    second.wait_until_serving();
    let (_connection, enclave) = first.verified(&model);
    let mut elsewhere = second.connect();
    assert!(matches!(
        ask(&mut elsewhere, &enclave, &body(&[5], 3)),
        Err(ClientError::Refused { code: CloseCode::KeyUnknown })
    ));
    drop(elsewhere);
    second.enclave.stop().unwrap();
    first.enclave.stop().unwrap();
}

#[test]
fn weights_that_are_changed_while_the_enclave_waits_end_the_boot_and_nothing_is_served() {
    let model = Model::new(&SEALED);
    let running = Running::start(&model, QUICK).unwrap();
    model.damage("b0000");
    running.release(&model, model.key.as_ref().unwrap()).unwrap();
    let error = running.enclave.wait().unwrap_err();
    assert!(matches!(error, BootError::Load(LoadError::Package(_))), "{error}");
    assert!(matches!(
        Connection::open(&running.address),
        Err(ClientError::Connect { .. } | ClientError::Closed)
    ));
}

#[test]
fn weights_that_are_missing_or_short_end_the_boot() {
    for cut in [None, Some(1_000)] {
        let model = Model::new(&OPEN);
        let blob = model.path.with_extension("b0000");
        match cut {
            None => fs::remove_file(blob).unwrap(),
            Some(len) => {
                fs::OpenOptions::new().write(true).open(blob).unwrap().set_len(len).unwrap();
            }
        }
        let running = Running::start(&model, QUICK).unwrap();
        let error = running.enclave.wait().unwrap_err();
        assert!(matches!(error, BootError::Load(LoadError::Package(_))), "{error}");
    }
}

#[test]
fn a_changed_header_or_meta_is_refused_at_once_or_with_the_key() {
    let model = Model::new(&SEALED);
    let whole = fs::read(&model.path).unwrap();
    for at in [0, 20, 100, 300, 600, whole.len() - 1] {
        let mut bytes = whole.clone();
        bytes[at] ^= 1;
        fs::write(&model.path, &bytes).unwrap();
        let error = match Running::start(&model, QUICK) {
            Err(error) => error,
            Ok(running) => {
                // What is sealed shows with the key only.
                running.release(&model, model.key.as_ref().unwrap()).unwrap();
                running.enclave.wait().unwrap_err()
            }
        };
        assert!(matches!(error, BootError::Package(_)), "byte {at}: {error}");
    }
}

#[test]
fn a_client_bundle_that_was_changed_is_refused_by_enclave_and_client() {
    let with_text = Pack { licence: Some(100), ..OPEN };
    let mut model = Model::new(&with_text);
    let running = Running::serving(&model, QUICK);
    model.policy.client_bundles[0][0] ^= 1;
    let mut connection = running.connect();
    assert!(matches!(
        connection.client_bundle(&model.policy),
        Err(ClientError::BundleDigest { .. })
    ));
    drop(connection);
    running.enclave.stop().unwrap();

    model.damage("client");
    let running = Running::start(&model, QUICK).unwrap();
    let error = running.enclave.wait().unwrap_err();
    assert!(matches!(error, BootError::ClientBundle(_)), "{error}");
}

#[test]
fn a_package_that_is_missing_or_too_old_is_a_named_error() {
    let model = Model::new(&OPEN);
    let socket = model.folder.path().join("socket");
    let missing = model.folder.path().join("missing.chry");
    let error = Running::start_at(&missing, &socket, QUICK, Limits::default()).err();
    assert!(matches!(error, Some(BootError::File(_))));
    let error = Running::start(&model, "min_model_svn = 2").err();
    assert!(matches!(error, Some(BootError::ModelSvn { found: 1, minimum: 2 })));
}

#[test]
fn one_connection_more_than_allowed_is_closed_and_the_others_stay() {
    let model = Model::new(&OPEN);
    let socket = model.folder.path().join("socket");
    let limits = Limits { connections: 2, ..Limits::default() };
    let running = Running::start_at(&model.path, &socket, QUICK, limits).unwrap();
    running.wait_until_serving();
    let first = running.verified(&model);
    let (mut second, enclave) = running.verified(&model);
    assert!(matches!(Connection::open(&running.address), Err(ClientError::Closed)));
    drop(first);
    assert!(ask(&mut second, &enclave, &body(&[5], 3)).is_ok());
    drop(second);
    running.enclave.stop().unwrap();
}

#[test]
fn bytes_that_are_no_frames_end_their_connection_only() {
    let model = Model::new(&OPEN);
    let running = Running::serving(&model, QUICK);
    let (mut connection, enclave) = running.verified(&model);
    let chrysalis_client::Address::Unix(path) = &running.address else {
        panic!("a socket file");
    };
    for bytes in [&b"GET / HTTP/1.1\r\nHost: enclave\r\n\r\n"[..], &[0; 100]] {
        let mut stream = UnixStream::connect(path).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        stream.write_all(bytes).unwrap();
        assert_eq!(stream.read(&mut [0; 10]).unwrap_or(0), 0);
    }
    assert!(ask(&mut connection, &enclave, &body(&[5], 3)).is_ok());
    drop(connection);
    running.enclave.stop().unwrap();
}

#[test]
fn an_enclave_that_is_stopped_in_the_middle_leaves_an_answer_that_is_visibly_cut() {
    let model = Model::new(&OPEN);
    let running = Running::serving(&model, "tick_ms = 50\nthreads = 1\nkv_tokens = 1024");
    let (mut connection, enclave) = running.verified(&model);
    let mut answer = connection.ask(&enclave, &body(&[5], 100)).unwrap();
    assert!(answer.next_delta().unwrap().is_some());
    running.enclave.stop().unwrap();
    assert!(matches!(answer.finish(), Err(ClientError::Closed)));
}

#[test]
fn a_host_that_asks_and_does_not_read_is_reset_and_the_others_are_served() {
    let model = Model::new(&OPEN);
    let socket = model.folder.path().join("socket");
    let limits = Limits { outbox_bytes: 50_000, ..Limits::default() };
    let running = Running::start_at(&model.path, &socket, QUICK, limits).unwrap();
    running.wait_until_serving();
    let (mut connection, enclave) = running.verified(&model);
    let mut deaf = UnixStream::connect(&socket).unwrap();
    deaf.set_write_timeout(Some(Duration::from_secs(5))).unwrap();
    let mut ping = Vec::new();
    frame::write(FrameKind::Ping, 0, &[1; 8], &mut ping);
    let pings = ping.repeat(100);
    let error = (0..1_000).find_map(|_| deaf.write_all(&pings).err()).unwrap();
    assert!(matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset), "{error}");
    assert!(ask(&mut connection, &enclave, &body(&[5], 3)).is_ok());
    assert_eq!(running.enclave.counters().resets.load(Ordering::Relaxed), 1);
    drop(connection);
    running.enclave.stop().unwrap();
}
