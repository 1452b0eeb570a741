//! Receipts judged together: whatever a host does to them is found, and nothing of it is paid.

use std::collections::HashSet;

use chrysalis_protocol::ledger::{
    Account, FINDINGS_MAX, Fault, Finding, Ledger, LedgerError, Place,
};
use chrysalis_protocol::receipt::{RECEIPT_LEN, Receipt, ReceiptKey, hash, payer_tag};
use chrysalis_protocol::secret::Secret;
use chrysalis_protocol::statement::{Kind, ServingPolicy, Statement};

use crate::support::{SeededRng, flips, policy, receipt, receipt_key, statement};

type Signed = [u8; RECEIPT_LEN];

/// Receipts of one boot, one for each request, in the order of signing; `change` makes each what it is.
fn chain(count: u64, change: impl Fn(u64, &mut Receipt)) -> Vec<Signed> {
    let mut previous = [0; 32];
    let signed = (0..count).map(|number| {
        let mut next = receipt(0, previous);
        next.serial = number;
        next.request_tag = SeededRng::new(&format!("request {number}")).array();
        change(number, &mut next);
        let signed = next.sign(&receipt_key());
        previous = hash(&signed);
        signed
    });
    signed.collect()
}

fn honest(count: u64) -> Vec<Signed> {
    chain(count, |_, _| {})
}

fn ledger() -> Ledger {
    let mut ledger = Ledger::new(Some(HashSet::from([payer_tag(b"voucher")])), false);
    ledger.state(&statement(), &policy()).unwrap();
    ledger
}

fn judge_files(mut ledger: Ledger, files: &[Vec<Signed>]) -> Account {
    for (file, receipts) in (1..).zip(files) {
        for (number, receipt) in (1..).zip(receipts) {
            ledger.take(Place { file, number }, receipt);
        }
    }
    ledger.close()
}

fn judge(receipts: &[Signed]) -> Account {
    judge_files(ledger(), &[receipts.to_vec()])
}

fn codes(account: &Account) -> Vec<(usize, &'static str)> {
    account.findings.iter().map(|finding| (finding.place.number, finding.fault.code())).collect()
}

fn requests(account: &Account) -> u64 {
    account.payers.values().map(|sum| sum.requests).sum()
}

#[test]
fn honest_receipts_add_up_for_each_payer() {
    let mut ledger = Ledger::new(None, false);
    ledger.state(&statement(), &policy()).unwrap();
    let receipts = chain(10, |number, receipt| {
        receipt.cancelled = number == 3;
        receipt.failed = number == 4;
        receipt.payer_tag = payer_tag(&[(number % 2) as u8]);
    });
    // Two connections of one boot: each file is in order, and the chain runs through both.
    let file = |odd| receipts.iter().skip(odd).step_by(2).copied().collect::<Vec<_>>();
    let account = judge_files(ledger, &[file(1), file(0)]);
    assert_eq!(account.findings, []);
    assert_eq!(account.receipts, 10);
    assert_eq!(account.boots[&statement().boot_id], 10);
    let sum = account.payers[&payer_tag(&[0])];
    assert_eq!((sum.requests, sum.cancelled, sum.failed), (5, 0, 1));
    assert_eq!((sum.prompt_units, sum.output_units), (5 * 1_024, 5 * 256));
    assert_eq!((sum.cached_units, sum.reasoning_units), (5 * 512, 5 * 64));
    assert_eq!(account.payers[&payer_tag(&[1])].cancelled, 1);
}

#[test]
fn of_a_streams_receipts_the_last_one_counts() {
    let receipts = chain(3, |number, receipt| {
        receipt.serial = 0;
        receipt.request_tag = [1; 32];
        receipt.index = number as u16;
        receipt.last = number == 2;
        receipt.output_units = 64 * (number as u32 + 1);
    });
    let account = judge(&receipts);
    assert_eq!(account.findings, []);
    let sum = account.payers[&payer_tag(b"voucher")];
    assert_eq!((sum.requests, sum.output_units), (1, 192));
}

#[test]
fn every_flipped_bit_of_a_receipt_is_found_and_not_paid() {
    let receipts = honest(2);
    let mut count = 0;
    for (bit, flipped) in flips(&receipts[1]) {
        let flipped: Signed = flipped.try_into().unwrap();
        let account = judge(&[receipts[0], flipped]);
        let expected = if (128..256).contains(&bit) { "receipt.boot" } else { "receipt.forged" };
        assert_eq!(codes(&account), [(2, expected)], "bit {bit}");
        assert_eq!(requests(&account), 1, "bit {bit}");
        count += 1;
    }
    assert_eq!(count, RECEIPT_LEN * 8);
}

#[test]
fn a_cut_receipt_and_one_of_anybody_elses_key_are_found() {
    let signed = honest(1)[0];
    for len in 0..RECEIPT_LEN {
        let mut ledger = ledger();
        ledger.take(Place { file: 1, number: 1 }, &signed[..len]);
        assert_eq!(ledger.close().findings[0].fault, Fault::Cut { len });
    }
    let key = ReceiptKey::from_seed(&Secret::from([1; 32])).unwrap();
    let account = judge(&[receipt(0, [0; 32]).sign(&key)]);
    assert_eq!((codes(&account), requests(&account)), (vec![(1, "receipt.forged")], 0));
}

#[test]
fn what_a_receipt_says_of_its_boot_is_what_the_evidence_says() {
    type Change = fn(&mut Receipt);
    let rows: [(&str, Change); 8] = [
        ("receipt.boot", |r| r.boot_id[0] ^= 1),
        ("receipt.statement", |r| r.statement_digest[0] ^= 1),
        ("receipt.epoch", |r| r.epoch = 8),
        ("receipt.epoch", |r| r.statement_digest = statement().prev_digest),
        ("receipt.content", |r| r.content_digest[0] ^= 1),
        ("receipt.quantum", |r| r.quantum = 32),
        ("receipt.malformed", |r| r.output_units = 250),
        ("receipt.payer", |r| r.payer_tag = payer_tag(&[])),
    ];
    for (code, change) in rows {
        let account = judge(&chain(3, |number, receipt| {
            if number == 2 {
                change(receipt);
            }
        }));
        assert_eq!((codes(&account), requests(&account)), (vec![(3, code)], 2));
        assert!(!account.findings[0].fault.to_string().is_empty());
    }
}

#[test]
fn without_a_voucher_a_host_that_asks_itself_is_owed_by_nobody() {
    let guess = |number: u64, receipt: &mut Receipt| {
        receipt.payer_tag = payer_tag(&number.to_be_bytes());
    };
    let account = judge(&chain(50, guess));
    assert_eq!((account.findings.len(), requests(&account)), (50, 0));
    assert!(account.findings.iter().all(|finding| finding.fault == Fault::Payer));
    // Nor does it take the place of the request that somebody pays for.
    let both = chain(2, |number, receipt| {
        receipt.request_tag = [1; 32];
        if number == 0 {
            receipt.payer_tag = payer_tag(b"mine");
        }
    });
    assert_eq!((codes(&judge(&both)), requests(&judge(&both))), (vec![(1, "receipt.payer")], 1));
}

#[test]
fn what_is_repeated_left_out_or_moved_is_found() {
    let receipts = honest(6);
    let mut repeated = receipts.clone();
    repeated.push(receipts[2]);
    let account = judge(&repeated);
    assert_eq!((codes(&account), requests(&account)), (vec![(7, "receipt.repeated")], 6));

    for left_out in 0..5 {
        let mut fewer = receipts.clone();
        fewer.remove(left_out);
        assert_eq!(codes(&judge(&fewer)), [(left_out + 1, "chain.gap")]);
        let mut partial = Ledger::new(None, true);
        partial.state(&statement(), &policy()).unwrap();
        assert_eq!(judge_files(partial, &[fewer]).findings, []);
    }
    for (one, other) in [(0, 1), (1, 4), (0, 5), (4, 5)] {
        let mut moved = receipts.clone();
        moved.swap(one, other);
        let found = codes(&judge(&moved));
        assert!(!found.is_empty() && found.iter().all(|(_, code)| *code == "chain.order"));
    }
    // A receipt that was altered on the way leaves a gap behind it as well.
    let mut altered = receipts;
    altered[3][100] ^= 1;
    let expected = [(4, "receipt.forged"), (5, "chain.gap")];
    assert_eq!(codes(&judge(&altered)), expected);
}

#[test]
fn made_up_receipts_are_counted_and_not_all_listed() {
    let mut ledger = ledger();
    for number in 1..=FINDINGS_MAX + 5 {
        ledger.take(Place { file: 1, number }, &[0; RECEIPT_LEN]);
    }
    let account = ledger.close();
    assert_eq!((account.findings.len(), account.unlisted), (FINDINGS_MAX, 5));
    assert_eq!(account.receipts, FINDINGS_MAX + 5);
}

#[test]
fn two_that_follow_one_that_is_missing_are_a_fork_too() {
    let receipts = honest(3);
    let mut other = receipt(0, hash(&receipts[0]));
    other.request_tag = [1; 32];
    let other = other.sign(&receipt_key());
    let found = judge(&[receipts[1], other, receipts[2]]);
    assert_eq!(codes(&found), [(1, "chain.gap"), (2, "chain.fork")]);
}

#[test]
fn a_request_is_paid_once() {
    let twice = chain(2, |number, receipt| {
        receipt.request_tag = [1; 32];
        receipt.serial = 0;
        receipt.index = number as u16;
    });
    let account = judge(&twice);
    assert_eq!((codes(&account), requests(&account)), (vec![(2, "receipt.paid_twice")], 1));
    let of_another_stream = chain(2, |number, receipt| {
        receipt.request_tag = [1; 32];
        receipt.last = number == 1;
        receipt.index = number as u16;
    });
    assert_eq!(codes(&judge(&of_another_stream)), [(2, "receipt.paid_twice")]);

    let shrinking = chain(2, |number, receipt| {
        (receipt.request_tag, receipt.serial) = ([1; 32], 0);
        (receipt.last, receipt.index) = (number == 1, number as u16);
        receipt.output_units -= 64 * number as u32;
    });
    let expected = Fault::Stream { field: "output units" };
    let place = Place { file: 1, number: 2 };
    assert_eq!(judge(&shrinking).findings, [Finding { place, fault: expected }]);
}

#[test]
fn a_boot_that_signed_twice_at_one_place_is_found() {
    let receipts = honest(4);
    let mut other = receipt(0, hash(&receipts[1]));
    other.request_tag = [1; 32];
    let other = other.sign(&receipt_key());
    let found = judge_files(ledger(), &[receipts, vec![other]]).findings;
    let fault = Fault::Fork { other: Place { file: 1, number: 3 } };
    assert_eq!(found, [Finding { place: Place { file: 2, number: 1 }, fault }]);
}

#[test]
fn statements_of_a_boot_chain_and_receipts_of_all_its_epochs_count() {
    let first = Statement { epoch: 1, prev_digest: [0; 48], ..statement() };
    let second = Statement { epoch: 2, prev_digest: first.digest(), ..statement() };
    let third = Statement { epoch: 3, prev_digest: second.digest(), ..statement() };
    let receipts = chain(3, |number, receipt| {
        let of = [&third, &first, &second][number as usize];
        (receipt.epoch, receipt.statement_digest) = (of.epoch, of.digest());
    });
    let judge_by = |statements: &[&Statement]| {
        let mut ledger = Ledger::new(None, false);
        statements.iter().for_each(|statement| ledger.state(statement, &policy()).unwrap());
        codes(&judge_files(ledger, std::slice::from_ref(&receipts)))
    };
    assert_eq!(judge_by(&[&third, &first, &second]), []);
    // The third names the second, so that only the first is unknown.
    assert_eq!(judge_by(&[&third]), [(2, "receipt.statement")]);
    assert_eq!(judge_by(&[&first]), [(1, "receipt.statement"), (3, "receipt.statement")]);
}

#[test]
fn statements_that_contradict_each_other_judge_nothing() {
    let boot_id = statement().boot_id;
    let rows: [(&str, Statement); 6] = [
        ("receipt key", Statement { receipt_key: [1; 32], ..statement() }),
        ("model", Statement { content_digest: [1; 48], ..statement() }),
        ("epoch", Statement { uptime_ms: 1, ..statement() }),
        ("epoch before", Statement { epoch: 1, ..statement() }),
        ("epoch before", Statement { epoch: 8, prev_digest: [1; 48], ..statement() }),
        ("epoch before", Statement { epoch: 9, prev_digest: statement().digest(), ..statement() }),
    ];
    for (field, other) in rows {
        let refused = ledger().state(&other, &policy());
        assert_eq!(refused, Err(LedgerError::Contradiction { boot_id, field }));
    }
    assert_eq!(ledger().state(&statement(), &policy()), Ok(()), "the same again");
    let other_policy = ServingPolicy { billing_quantum: 32, ..policy() };
    assert_eq!(ledger().state(&statement(), &other_policy), Err(LedgerError::Policy));
    let other = Statement { policy_digest: other_policy.digest(), ..statement() };
    let field = "serving policy";
    let contradiction = LedgerError::Contradiction { boot_id, field };
    assert_eq!(ledger().state(&other, &other_policy), Err(contradiction));
    let release = Statement { kind: Kind::KeyRelease, ..statement() };
    assert!(matches!(ledger().state(&release, &policy()), Err(LedgerError::Kind { .. })));
}
