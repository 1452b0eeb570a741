//! Receipts: whatever a host presents, no request is paid twice, nothing that the boot did not sign is paid at all, and
//! what was done to an honest chain is found.
//!
//! The input is a list of steps of 4 bytes: which receipt of an honest chain, which file, and what is done to it; the rest
//! is presented as it is.
#![no_main]

use std::collections::{BTreeMap, HashSet};

use chrysalis_protocol::ledger::{Ledger, Place};
use chrysalis_protocol::receipt::{RECEIPT_LEN, Receipt, ReceiptKey, hash, payer_tag};
use chrysalis_protocol::secret::Secret;
use chrysalis_protocol::statement::{GpuFlags, Kind, ServingPolicy, Statement, Tee};
use libfuzzer_sys::fuzz_target;

const CHAIN: usize = 6;

fuzz_target!(|bytes: &[u8]| {
    let key = ReceiptKey::from_seed(&Secret::from([3; 32])).expect("any seed is one");
    let policy = ServingPolicy::default();
    let statement = statement(&key, &policy);
    let honest = chain(&key, &statement, bytes.first().copied().unwrap_or(0));
    let mut ledger = Ledger::new(Some(HashSet::from([payer_tag(b"voucher")])), false);
    ledger.state(&statement, &policy).expect("it is its own");
    let (mut taken, mut files) = (0, BTreeMap::new());
    let mut tags = HashSet::new();
    let (steps, rest) = bytes.as_chunks::<4>();
    for &[which, file, at, change] in steps {
        let mut receipt = honest[usize::from(which) % CHAIN];
        let offset = usize::from(at) + usize::from(file & 0x80);
        receipt[offset % RECEIPT_LEN] ^= change;
        if change == 0 {
            let read = Receipt::verify(&receipt, &key.public_key()).expect("it is honest");
            tags.insert(read.request_tag);
        } else {
            assert!(Receipt::verify(&receipt, &key.public_key()).is_err());
        }
        let number = files.entry(file & 3).or_insert(0_usize);
        *number += 1;
        let place = Place { file: usize::from(file & 3) + 1, number: *number };
        ledger.take(place, &receipt);
        taken += 1;
    }
    assert!(Receipt::verify(rest, &key.public_key()).is_err());
    ledger.take(Place { file: 9, number: 1 }, rest);
    let account = ledger.close();
    assert_eq!(account.receipts, taken + 1);
    let paid: u64 = account.payers.values().map(|sum| sum.requests).sum();
    assert!(paid <= tags.len() as u64, "{paid} paid of {}", tags.len());
    let in_order = steps.iter().zip(0..).all(|(step, number)| {
        step[0] % CHAIN as u8 == number && step[1] & 3 == steps[0][1] & 3 && step[3] == 0
    });
    // What remains is the rest that is no receipt.
    if in_order && steps.len() <= CHAIN {
        assert_eq!(account.findings.len(), 1);
        assert_eq!(paid, tags.len() as u64);
    }
});

/// Receipts in the order of signing; the first bit of `shape` makes the first two one stream's.
fn chain(key: &ReceiptKey, statement: &Statement, shape: u8) -> Vec<[u8; RECEIPT_LEN]> {
    let mut previous = [0; 32];
    let signed = (0..CHAIN as u8).map(|number| {
        let stream = if shape & 0x80 != 0 { number.max(1) } else { number };
        let receipt = Receipt {
            last: stream == number && (shape & 0x80 == 0 || number > 0),
            cancelled: number == 2,
            failed: number == 3,
            index: number.into(),
            epoch: statement.epoch,
            boot_id: statement.boot_id,
            serial: stream.into(),
            reasoning_units: 64,
            request_tag: [stream; 32],
            payer_tag: payer_tag(b"voucher"),
            content_digest: statement.content_digest,
            statement_digest: statement.digest(),
            prompt_units: u32::MAX - 63,
            output_units: 64 * (u32::from(number) + 1),
            cached_units: 0,
            quantum: 64,
            previous,
        };
        let signed = receipt.sign(key);
        previous = hash(&signed);
        signed
    });
    signed.collect()
}

fn statement(key: &ReceiptKey, policy: &ServingPolicy) -> Statement {
    Statement {
        kind: Kind::Serve,
        tee: Tee::Simulated,
        gpu_required: false,
        debug_build: false,
        epoch: 1,
        boot_id: [1; 16],
        nonce: [0; 32],
        key_config_digest: [2; 48],
        receipt_key: key.public_key(),
        content_digest: [3; 48],
        package_digest: [4; 48],
        policy_digest: policy.digest(),
        gpu_digest: [0; 48],
        gpu_count: 0,
        gpu_flags: GpuFlags::default(),
        model_svn: 1,
        prev_digest: [0; 48],
        runtime_digest: [5; 48],
        launch_config_digest: [6; 32],
        uptime_ms: 1,
    }
}
