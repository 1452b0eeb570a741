//! Revocation lists: none that no ARK signed is read. The input is a list, and a change to an honest
//! one: a place, how many bytes go, what comes instead.
#![no_main]
#![allow(dead_code, reason = "the tests write more than this target")]

#[path = "../../attestation/tests/suite/simulated/der.rs"]
mod der;
#[path = "../../attestation/tests/suite/simulated/issue.rs"]
mod issue;
#[path = "../../attestation/tests/suite/simulated/revocations.rs"]
mod revocations;

use std::sync::LazyLock;

use aws_lc_rs::rsa::KeyPair;
use chrysalis_attestation::verifier::RevocationList;
use libfuzzer_sys::fuzz_target;
use revocations::ListDraft;

fuzz_target!(|bytes: &[u8]| {
    assert!(RevocationList::open(bytes).is_err());
    if let [high, low, gone, new @ ..] = bytes {
        let at = usize::from(u16::from_be_bytes([*high, *low])) % HONEST.len();
        let end = (at + usize::from(*gone)).min(HONEST.len());
        let mut changed = HONEST.clone();
        changed.splice(at..end, new.iter().copied());
        assert_eq!(RevocationList::open(&changed).is_ok(), changed == *HONEST);
    }
});

static HONEST: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let key = include_bytes!("../../attestation/src/roots/simulated/ark_key.pk8");
    let key = KeyPair::from_pkcs8(key).expect("the published key is a key");
    ListDraft::of(&[1, 7]).sign(&key).expect("the key signs")
});
