//! Freshness, ACKs and receipts between a real client and a real enclave.

use std::collections::HashSet;

use chrysalis_client::{Contact, ReceiptFile};
use chrysalis_protocol::ledger::{Ledger, Place};
use chrysalis_protocol::receipt::{RECEIPT_LEN, payer_tag, round_up};

use crate::support::{Model, OPEN, QUICK, Running, ask, body, prompts};

#[test]
fn the_first_contact_is_fresh_and_later_ones_are_of_the_epoch_until_the_boot_is_another() {
    let model = Model::new(&OPEN);
    let mut contact = Contact::new(model.policy.clone());
    let running = Running::serving(&model, QUICK);
    let first = contact.verify(&mut running.connect()).unwrap();
    let again = contact.verify(&mut running.connect()).unwrap();
    assert!(first.fresh() && !again.fresh());
    assert_eq!(first.statement_digest(), again.statement_digest());
    running.enclave.stop().unwrap();

    let running = Running::serving(&model, QUICK);
    let other = contact.verify(&mut running.connect()).unwrap();
    assert!(other.fresh() && other.receipt_key() != first.receipt_key());
    assert!(!contact.verify(&mut running.connect()).unwrap().fresh());
    running.enclave.stop().unwrap();
}

#[test]
fn answers_come_whole_through_the_least_of_windows_and_are_billed_as_they_are() {
    let model = Model::new(&OPEN);
    let prompts = prompts(4);
    let expected = model.bare(&prompts, 80);
    let configs = [
        "pad_profile = 0\nack_window = 1",
        "pad_profile = 0\nack_window = 70",
        "pad_profile = 1\ntick_ms = 2\nack_window = 8",
    ];
    for config in configs {
        let config = format!("{config}\nbilling_quantum = 16\nthreads = 2\nkv_tokens = 1024");
        let running = Running::serving(&model, &config);
        let (mut connection, enclave) = running.verified(&model);
        for (prompt, expected) in prompts.iter().zip(&expected) {
            let (tokens, summary) = ask(&mut connection, &enclave, &body(prompt, 80)).unwrap();
            assert_eq!(&tokens, expected, "{config}");
            let receipt = summary.receipt.unwrap();
            assert_eq!(receipt.prompt_units, round_up(prompt.len() as u32, 16), "{config}");
            assert_eq!(receipt.output_units, round_up(tokens.len() as u32, 16), "{config}");
        }
        drop(connection);
        running.enclave.stop().unwrap();
    }
}

#[test]
fn receipts_that_a_client_kept_are_what_its_ledger_owes() {
    let model = Model::new(&OPEN);
    let running = Running::serving(&model, QUICK);
    let (mut connection, enclave) = running.verified(&model);
    let path = model.folder.path().join("receipts");
    let mut units = 0;
    {
        let mut kept = ReceiptFile::append_to(&path).unwrap();
        for prompt in prompts(3) {
            let mut body = body(&prompt, 10);
            body.options.voucher = Some(b"secret".to_vec().into());
            let (_, summary) = ask(&mut connection, &enclave, &body).unwrap();
            units += u64::from(summary.receipt.unwrap().prompt_units);
            kept.add(&summary.receipt_bytes).unwrap();
        }
    }
    let mut ledger = Ledger::new(Some(HashSet::from([payer_tag(b"secret")])), false);
    ledger.state(enclave.statement(), enclave.serving_policy()).unwrap();
    let bytes = std::fs::read(&path).unwrap();
    for (number, receipt) in (1..).zip(bytes.chunks(RECEIPT_LEN)) {
        ledger.take(Place { file: 1, number }, receipt);
    }
    let account = ledger.close();
    assert_eq!(account.findings, []);
    let sum = account.payers[&payer_tag(b"secret")];
    assert_eq!((sum.requests, sum.prompt_units), (3, units));
    drop(connection);
    running.enclave.stop().unwrap();
}
