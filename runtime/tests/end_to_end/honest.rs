//! Everybody keeps to the rules.

use std::fs;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use chrysalis_attestation::policy::MaxAge;
use chrysalis_client::{Chat, ChatRequest, ClientError, Connection, Delta};
use chrysalis_models::text::Message;
use chrysalis_protocol::messages::State;
use chrysalis_protocol::request::Options;
use chrysalis_protocol::response::FinishReason;
use chrysalis_runtime::boot::BootError;

use crate::support::{Model, OPEN, Pack, QUICK, Running, SEALED, TERMS, ask, body, key, prompts};

#[test]
fn a_sealed_question_is_answered_as_the_bare_engine_answers() {
    let model = Model::new(&SEALED);
    let running = Running::serving(&model, "tick_ms = 2\nthreads = 1\nkv_tokens = 1024");
    let (mut connection, enclave) = running.verified(&model);
    assert!(enclave.simulated() && enclave.fresh());
    let prompts = prompts(3);
    let expected = model.bare(&prompts, 40);
    for (prompt, expected) in prompts.iter().zip(&expected) {
        let (tokens, summary) = ask(&mut connection, &enclave, &body(prompt, 40)).unwrap();
        assert_eq!(&tokens, expected);
        assert!(!tokens.is_empty());
        assert_eq!(summary.end.prompt_tokens as usize, prompt.len());
        assert_eq!(summary.end.output_tokens as usize, tokens.len());
        let receipt = summary.receipt.unwrap();
        assert_eq!(receipt.statement_digest, enclave.statement_digest());
        assert_eq!(receipt.content_digest, enclave.content_digest());
    }
    drop(connection);
    running.enclave.stop().unwrap();
}

#[test]
fn sixteen_clients_at_once_get_the_tokens_that_each_gets_alone() {
    let prompts = prompts(16);
    let model = Model::new(&OPEN);
    let expected = model.bare(&prompts, 64);
    for threads in [1, 2] {
        let config = format!("{QUICK}\nmax_tokens_per_step = 48").replace("threads = 2", "");
        let running = Running::serving(&model, &format!("{config}\nthreads = {threads}"));
        thread::scope(|scope| {
            for (prompt, expected) in prompts.iter().zip(&expected) {
                let (model, running) = (&model, &running);
                scope.spawn(move || {
                    let (mut connection, enclave) = running.verified(model);
                    for _ in 0..3 {
                        let answer = ask(&mut connection, &enclave, &body(prompt, 64));
                        assert_eq!(&answer.unwrap().0, expected);
                    }
                });
            }
        });
        let counters = running.enclave.counters();
        assert_eq!(counters.accepted.load(Ordering::Relaxed), 48);
        assert_eq!(counters.internal.load(Ordering::Relaxed), 0);
        running.enclave.stop().unwrap();
    }
}

#[test]
fn an_open_package_is_served_without_a_key() {
    let model = Model::new(&OPEN);
    let running = Running::serving(&model, QUICK);
    let (mut connection, enclave) = running.verified(&model);
    assert!(ask(&mut connection, &enclave, &body(&[5, 6], 4)).is_ok());
    let needless = connection.release(&model.policy, &key(1), &TERMS);
    assert!(matches!(needless, Err(ClientError::State { state: State::Serving, .. })));
    drop(connection);
    running.enclave.stop().unwrap();
}

#[test]
fn evidence_of_the_epoch_is_enough_for_a_policy_that_says_so() {
    let mut model = Model::new(&OPEN);
    model.policy.max_age = MaxAge::Epoch;
    let running = Running::serving(&model, QUICK);
    let (mut connection, enclave) = running.verified(&model);
    assert!(!enclave.fresh());
    assert!(ask(&mut connection, &enclave, &body(&[5, 6], 4)).is_ok());
    drop(connection);
    running.enclave.stop().unwrap();
}

#[test]
fn text_goes_in_and_comes_out_with_a_client_bundle_larger_than_any_queue() {
    let model = Model::new(&Pack { licence: Some(20 << 20), ..SEALED });
    let running = Running::serving(&model, QUICK);
    let (mut connection, enclave) = running.verified(&model);
    let chat = Chat::new(&connection.client_bundle(&model.policy).unwrap()).unwrap();
    let request = ChatRequest {
        messages: vec![Message::new("user", "How are you?")],
        raw: true,
        max_tokens: 20,
        seed: Some(0),
        options: Options::default(),
        stop: Vec::new(),
    };
    let body = chat.request(&request).unwrap();
    let mut answer = connection.ask(&enclave, &body).unwrap();
    let mut text = String::new();
    let streamed = chat.stream(&mut answer, &[], |piece| {
        text.push_str(piece);
        Ok::<_, ClientError>(())
    });
    streamed.unwrap();
    let summary = answer.finish().unwrap();
    assert_eq!(summary.end.prompt_tokens, 12);
    drop(connection);
    running.enclave.stop().unwrap();
}

#[test]
fn a_client_that_leaves_in_the_middle_does_no_harm() {
    let model = Model::new(&OPEN);
    let running = Running::serving(&model, QUICK);
    let prompts = prompts(4);
    let expected = model.bare(&prompts, 100);
    thread::scope(|scope| {
        for (prompt, expected) in prompts.iter().zip(&expected) {
            let (model, running) = (&model, &running);
            scope.spawn(move || {
                let (mut connection, enclave) = running.verified(model);
                for _ in 0..3 {
                    let answer = ask(&mut connection, &enclave, &body(prompt, 100));
                    assert_eq!(&answer.unwrap().0, expected);
                }
            });
        }
        for round in 0..8 {
            let (mut connection, enclave) = running.verified(&model);
            let mut answer = connection.ask(&enclave, &body(&[7; 30], 200)).unwrap();
            while !matches!(answer.next_delta().unwrap(), None | Some(Delta::Tokens(_))) {}
            if round % 2 == 0 {
                // Killed: it gives nothing up, its socket is just gone.
                std::mem::forget(answer);
            }
        }
    });
    running.enclave.stop().unwrap();
}

#[test]
fn an_answer_that_is_given_up_leaves_its_connection_usable() {
    let model = Model::new(&OPEN);
    let running = Running::serving(&model, QUICK);
    let (mut connection, enclave) = running.verified(&model);
    let expected = model.bare(&[vec![5, 6]], 30);
    for _ in 0..5 {
        let mut answer = connection.ask(&enclave, &body(&[9], 200)).unwrap();
        assert!(matches!(answer.next_delta(), Ok(Some(Delta::Accepted))));
        drop(answer);
        let (tokens, _) = ask(&mut connection, &enclave, &body(&[5, 6], 30)).unwrap();
        assert_eq!(tokens, expected[0]);
    }
    let mut answer = connection.ask(&enclave, &body(&[9], 200)).unwrap();
    answer.cancel().unwrap();
    let end = answer.finish().unwrap().end;
    assert!(matches!(
        end.reason,
        FinishReason::Cancelled | FinishReason::Length | FinishReason::Stop
    ));
    drop(connection);
    running.enclave.stop().unwrap();
}

#[test]
fn a_draining_enclave_ends_after_the_last_final_frame() {
    let model = Model::new(&OPEN);
    let config = "tick_ms = 5\nthreads = 1\nkv_tokens = 1024";
    let running = Running::serving(&model, config);
    let (mut connection, enclave) = running.verified(&model);
    let mut answer = connection.ask(&enclave, &body(&[5, 6, 7], 100)).unwrap();
    assert!(matches!(answer.next_delta(), Ok(Some(Delta::Accepted))));
    running.connect().drain().unwrap();
    let summary = answer.finish().unwrap();
    assert!(summary.receipt.is_some());
    running.enclave.wait().unwrap();
}

#[test]
fn an_enclave_that_is_stopped_leaves_its_socket_free() {
    let model = Model::new(&OPEN);
    for _ in 0..3 {
        let running = Running::serving(&model, QUICK);
        let connection = running.connect();
        let start = Instant::now();
        running.enclave.stop().unwrap();
        assert!(start.elapsed() < Duration::from_secs(2));
        drop(connection);
    }
}

#[test]
fn a_socket_that_somebody_serves_is_a_named_error() {
    let model = Model::new(&OPEN);
    let running = Running::serving(&model, QUICK);
    let error = Running::start(&model, QUICK).err().unwrap();
    assert!(matches!(
        &error,
        BootError::Listen { source, .. } if source.kind() == std::io::ErrorKind::AddrInUse
    ));
    assert!(error.to_string().contains("socket"), "{error}");
    // It did the first one no harm.
    let (mut connection, enclave) = running.verified(&model);
    assert!(ask(&mut connection, &enclave, &body(&[5], 3)).is_ok());
    drop(connection);
    running.enclave.stop().unwrap();
}

#[test]
fn nobody_at_the_address_is_a_named_error() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let address = chrysalis_client::Address::Unix(path.clone());
    assert!(matches!(Connection::open(&address), Err(ClientError::Connect { .. })));
    fs::write(path, "no socket").unwrap();
    assert!(matches!(Connection::open(&address), Err(ClientError::Connect { .. })));
}

#[test]
fn an_enclave_that_waits_for_its_key_can_be_stopped() {
    let model = Model::new(&SEALED);
    let running = Running::start(&model, QUICK).unwrap();
    let mut connection = Connection::open(&running.address).unwrap();
    assert_eq!(connection.state(), State::AwaitingKey);
    assert_eq!(connection.refresh_state().unwrap(), State::AwaitingKey);
    assert!(matches!(
        connection.verify(&model.policy),
        Err(ClientError::State { state: State::AwaitingKey, .. })
    ));
    running.enclave.stop().unwrap();
}
