//! What it costs to judge receipts, on one core: a signature alone, and the whole ledger (signature, evidence, chain,
//! sums). A payment network checks each receipt once; 20,000 a second is the figure that checks.md asks for.

use std::collections::HashSet;
use std::hint::black_box;
use std::time::Duration;

use chrysalis_protocol::hash::sha256;
use chrysalis_protocol::ledger::{Account, Ledger, Place};
use chrysalis_protocol::receipt::{RECEIPT_LEN, Receipt, ReceiptKey, hash, payer_tag};
use chrysalis_protocol::secret::Secret;
use chrysalis_protocol::statement::{GpuFlags, Kind, ServingPolicy, Statement, Tee};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

const COUNT: u64 = 1_000;

/// A boot, what it states, and receipts of it.
struct Boot {
    statement: Statement,
    policy: ServingPolicy,
    receipts: Vec<[u8; RECEIPT_LEN]>,
}

impl Boot {
    fn new() -> Option<Self> {
        let key = ReceiptKey::from_seed(&Secret::from([3; 32])).ok()?;
        let policy = ServingPolicy::default();
        let statement = Statement {
            kind: Kind::Serve,
            tee: Tee::SevSnp,
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
        };
        let mut previous = [0; 32];
        let receipts = (0..COUNT).map(|serial| {
            let receipt = receipt(&statement, &policy, serial, previous).sign(&key);
            previous = hash(&receipt);
            receipt
        });
        let receipts = receipts.collect();
        Some(Self { statement, policy, receipts })
    }

    fn judge(&self) -> Account {
        let mut ledger = Ledger::new(Some(HashSet::from([payer_tag(b"voucher")])), false);
        assert_eq!(ledger.state(&self.statement, &self.policy), Ok(()));
        for (number, receipt) in (1..).zip(&self.receipts) {
            ledger.take(Place { file: 1, number }, black_box(receipt));
        }
        ledger.close()
    }
}

fn receipt(
    statement: &Statement,
    policy: &ServingPolicy,
    serial: u64,
    previous: [u8; 32],
) -> Receipt {
    Receipt {
        last: true,
        cancelled: false,
        failed: false,
        index: 0,
        epoch: statement.epoch,
        boot_id: statement.boot_id,
        serial,
        reasoning_units: 0,
        request_tag: sha256(&[&serial.to_be_bytes()]),
        payer_tag: payer_tag(b"voucher"),
        content_digest: statement.content_digest,
        statement_digest: statement.digest(),
        prompt_units: 1_024,
        output_units: 256,
        cached_units: 0,
        quantum: policy.billing_quantum.into(),
        previous,
    }
}

fn receipts(c: &mut Criterion) {
    let Some(boot) = Boot::new() else { return };
    let account = boot.judge();
    assert!(account.findings.is_empty(), "the receipts are honest");
    assert_eq!(account.payers.values().map(|sum| sum.requests).sum::<u64>(), COUNT);
    let mut group = c.benchmark_group("receipts");
    group.throughput(Throughput::Elements(COUNT));
    group.bench_function("signature", |b| {
        b.iter(|| {
            let key = &boot.statement.receipt_key;
            let all = boot.receipts.iter().all(|bytes| Receipt::verify(bytes, key).is_ok());
            assert!(all, "each is signed");
        });
    });
    group.bench_function("ledger", |b| {
        b.iter(|| assert!(boot.judge().findings.is_empty()));
    });
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_secs(1));
    targets = receipts
}
criterion_main!(benches);
