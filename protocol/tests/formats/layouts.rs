//! Statement, key configuration, serving policy, report data, bundle and receipt.

use chrysalis_protocol::bundle::{BUNDLE_MAX, Bundle, BundleError, Endorsements};
use chrysalis_protocol::receipt::{Chain, Receipt, ReceiptError, hash, round_up};
use chrysalis_protocol::statement::{
    KeyConfig, ReportData, ServingPolicy, Statement, StatementError, Tee,
};

use crate::support::{
    cuts_and_one_more, flips, key_config, policy, receipt, receipt_key, statement,
};

#[test]
fn a_statement_comes_back() {
    let statement = statement();
    assert_eq!(Statement::from_bytes(&statement.to_bytes()), Ok(statement));
}

#[test]
fn every_flipped_bit_of_a_statement_is_refused_or_not_what_was_reported() {
    let bytes = statement().to_bytes();
    let reported = statement().report_data();
    for (bit, flipped) in flips(&bytes) {
        if let Ok(other) = Statement::from_bytes(&flipped) {
            assert_ne!(other.report_data(), reported, "bit {bit}");
            assert_eq!(other.to_bytes().as_slice(), flipped, "bit {bit}");
        }
    }
}

#[test]
fn every_cut_of_a_fixed_layout_is_refused() {
    for cut in cuts_and_one_more(&statement().to_bytes()) {
        assert!(Statement::from_bytes(&cut).is_err());
    }
    for cut in cuts_and_one_more(&key_config().to_bytes()) {
        assert!(KeyConfig::from_bytes(&cut).is_err());
    }
    for cut in cuts_and_one_more(&policy().to_bytes()) {
        assert!(ServingPolicy::from_bytes(&cut).is_err());
    }
    for cut in cuts_and_one_more(&statement().report_data().to_bytes()) {
        assert!(ReportData::from_bytes(&cut).is_err());
    }
}

#[test]
fn statements_that_contradict_themselves_are_refused() {
    let refusal = |change: &dyn Fn(&mut Statement)| {
        let mut statement = statement();
        change(&mut statement);
        Statement::from_bytes(&statement.to_bytes()).err()
    };
    assert_eq!(refusal(&|_| {}), None);
    let no_gpus = |s: &mut Statement| s.gpu_count = 0;
    assert_eq!(refusal(&no_gpus), Some(StatementError::GpuFields { count: 0 }));
    let no_digest = |s: &mut Statement| s.gpu_digest = [0; 48];
    assert_eq!(refusal(&no_digest), Some(StatementError::GpuFields { count: 2 }));

    let mut bytes = statement().to_bytes();
    bytes[11] |= 1 << 2;
    let simulated = StatementError::Simulated { flag: true, tee: Tee::SevSnp };
    assert_eq!(Statement::from_bytes(&bytes), Err(simulated));
    let mut bytes = statement().to_bytes();
    bytes[339] |= 1 << 2;
    assert_eq!(Statement::from_bytes(&bytes), Err(StatementError::GpuDevtools));
}

#[test]
fn the_gpu_challenge_commits_to_everything_but_the_gpus() {
    let honest = statement();
    let mut other_gpus = honest.clone();
    other_gpus.gpu_digest = [1; 48];
    other_gpus.gpu_count = 8;
    assert_eq!(honest.gpu_challenge(), other_gpus.gpu_challenge());
    let mut other_key = honest.clone();
    other_key.key_config_digest[0] ^= 1;
    assert_ne!(honest.gpu_challenge(), other_key.gpu_challenge());
}

#[test]
fn every_flipped_bit_of_what_a_statement_hashes_is_refused_or_another_digest() {
    let (config, policy) = (key_config(), policy());
    assert_eq!(KeyConfig::from_bytes(&config.to_bytes()), Ok(config.clone()));
    for (bit, flipped) in flips(&config.to_bytes()) {
        let other = KeyConfig::from_bytes(&flipped);
        assert!(other.refused_or(|other| other.digest() != config.digest()), "bit {bit}");
    }
    assert_eq!(ServingPolicy::from_bytes(&policy.to_bytes()), Ok(policy.clone()));
    for (bit, flipped) in flips(&policy.to_bytes()) {
        let other = ServingPolicy::from_bytes(&flipped);
        assert!(other.refused_or(|other| other.digest() != policy.digest()), "bit {bit}");
    }
    let reported = statement().report_data();
    assert_eq!(ReportData::from_bytes(&reported.to_bytes()), Ok(reported));
    for (bit, flipped) in flips(&reported.to_bytes()) {
        let other = ReportData::from_bytes(&flipped);
        assert!(other.refused_or(|other| other != reported), "bit {bit}");
    }
}

#[test]
fn a_bundle_comes_back_and_no_changed_one_passes_for_it() {
    let bundle = bundle();
    let bytes = bundle.to_bytes();
    assert_eq!(Bundle::parse(&bytes), Ok(bundle));
    for (bit, flipped) in flips(&bytes) {
        assert!(Bundle::parse(&flipped).refused_or(|other| other != bundle), "bit {bit}");
    }
    for cut in cuts_and_one_more(&bytes) {
        assert!(Bundle::parse(&cut).refused_or(|other| other != bundle));
    }
}

#[test]
fn a_bundle_out_of_order_doubled_unknown_empty_incomplete_or_long_is_refused() {
    let section = |kind: u16, value: &[u8]| {
        let len = (value.len() as u32).to_be_bytes();
        [&kind.to_be_bytes()[..], &[0, 0], &len, value].concat()
    };
    let bytes = bundle().to_bytes();
    let refusal = |more: &[u8]| Bundle::parse(&[&bytes, more].concat()).err();
    let after = |found| Some(BundleError::Order { found, previous: 0x83 });
    assert_eq!(refusal(&section(0x83, b"x")), after(0x83));
    assert_eq!(refusal(&section(7, b"x")), after(7));
    assert_eq!(refusal(&section(0x84, b"")), Some(BundleError::Empty { section: 0x84 }));
    assert_eq!(refusal(&section(0x85, b"x")), Some(BundleError::UnknownSection { found: 0x85 }));
    assert_eq!(refusal(&section(0x84, b"x")), None);
    let only = section(1, b"statement");
    assert_eq!(Bundle::parse(&only), Err(BundleError::Missing { section: 2 }));
    let long = vec![0; BUNDLE_MAX + 1];
    assert_eq!(Bundle::parse(&long), Err(BundleError::TooLong { len: BUNDLE_MAX + 1 }));
}

#[test]
fn a_receipt_comes_back_and_every_changed_one_is_refused() {
    let (key, receipt) = (receipt_key(), receipt(3, [5; 32]));
    let bytes = receipt.sign(&key);
    assert_eq!(Receipt::verify(&bytes, &key.public_key()), Ok(receipt));
    for (bit, flipped) in flips(&bytes) {
        assert!(Receipt::verify(&flipped, &key.public_key()).is_err(), "bit {bit}");
    }
    for cut in cuts_and_one_more(&bytes) {
        assert!(Receipt::verify(&cut, &key.public_key()).is_err());
    }
    for (bit, other_key) in flips(&key.public_key()) {
        let other_key = other_key.try_into().unwrap();
        assert!(Receipt::verify(&bytes, &other_key).is_err(), "bit {bit}");
    }
}

#[test]
fn a_signed_receipt_with_exact_or_impossible_counts_is_refused() {
    let refusal = |change: &dyn Fn(&mut Receipt)| {
        let mut receipt = receipt(0, [0; 32]);
        change(&mut receipt);
        Receipt::verify(&receipt.sign(&receipt_key()), &receipt_key().public_key()).err()
    };
    assert_eq!(refusal(&|_| {}), None);
    let quantum = |field, units, quantum| Some(ReceiptError::Quantum { field, units, quantum });
    assert_eq!(refusal(&|r| r.prompt_units = 1_000), quantum("prompt units", 1_000, 64));
    assert_eq!(refusal(&|r| r.quantum = 0), quantum("prompt units", 1_024, 0));
    let part = |field, part, whole| Some(ReceiptError::Part { field, part, whole });
    assert_eq!(refusal(&|r| r.cached_units = 1_088), part("cached units", 1_088, 1_024));
    assert_eq!(refusal(&|r| r.reasoning_units = 320), part("reasoning units", 320, 256));
}

#[test]
fn a_chain_shows_gaps_order_and_other_boots_whatever_the_epochs() {
    let key = receipt_key();
    let first = receipt(0, [0; 32]).sign(&key);
    let second = receipt(1, hash(&first)).sign(&key);
    let third = receipt(2, hash(&second)).sign(&key);
    let mut chain = Chain::new(key.public_key(), statement().boot_id);
    assert_eq!(chain.verify_next(&second), Err(ReceiptError::Chain));
    assert!(chain.verify_next(&first).is_ok());
    assert_eq!(chain.verify_next(&first), Err(ReceiptError::Chain));
    assert_eq!(chain.verify_next(&third), Err(ReceiptError::Chain));
    assert!(chain.verify_next(&second).is_ok());
    assert!(chain.verify_next(&third).is_ok());
    assert_eq!(chain.last_hash(), hash(&third));

    let mut old = receipt(3, hash(&third));
    old.epoch = 5;
    let old = old.sign(&key);
    assert!(chain.verify_next(&old).is_ok());
    let mut other_boot = receipt(4, hash(&old));
    other_boot.boot_id = [1; 16];
    let refused = chain.verify_next(&other_boot.sign(&key));
    assert!(matches!(refused, Err(ReceiptError::Boot { .. })));
}

#[test]
fn tokens_are_rounded_up_to_the_quantum() {
    assert_eq!([0, 1, 64, 65].map(|tokens| round_up(tokens, 64)), [0, 64, 64, 128]);
    assert_eq!(round_up(u32::MAX, 64), u32::MAX - 63);
    assert_eq!(round_up(5, 0), 5);
}

fn bundle() -> Bundle<'static> {
    Bundle {
        statement: b"statement",
        report: b"report",
        key_config: b"key config",
        policy: b"policy",
        gpu: Some(b"gpu"),
        package: b"package",
        freshness: None,
        endorsements: Endorsements {
            vcek: Some(b"vcek"),
            gpu_rim: Some(b"rim"),
            ..Endorsements::default()
        },
    }
}

/// `Err`, or an `Ok` of which `other` holds.
trait IsErrOr<T> {
    fn refused_or(self, other: impl FnOnce(T) -> bool) -> bool;
}

impl<T, E> IsErrOr<T> for Result<T, E> {
    fn refused_or(self, other: impl FnOnce(T) -> bool) -> bool {
        self.map_or(true, other)
    }
}
