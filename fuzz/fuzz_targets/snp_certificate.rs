//! Certificates of signing keys. The input is a certificate, and a change to an honest one: a place,
//! how many bytes go, what comes instead.
#![no_main]

use chrysalis_attestation::report::{Product, SigningKey};
use chrysalis_attestation::verifier::{Roots, verify_signing_key};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let [choice, bytes @ ..] = bytes else { return };
    judge(bytes, *choice);
    if let [high, low, gone, new @ ..] = bytes {
        let at = usize::from(u16::from_be_bytes([*high, *low])) % HONEST.len();
        let end = (at + usize::from(*gone)).min(HONEST.len());
        let mut changed = HONEST.to_vec();
        changed.splice(at..end, new.iter().copied());
        judge(&changed, *choice);
    }
});

/// By one of the twelve issuers: each reading of its certificate takes a while.
fn judge(der: &[u8], choice: u8) {
    let roots = [Roots::Simulated, Roots::Amd][usize::from(choice & 1)];
    let kind = [SigningKey::Vcek, SigningKey::Vlek][usize::from(choice >> 1 & 1)];
    let product = [Product::Genoa, Product::Turin, Product::Milan][usize::from(choice >> 2) % 3];
    let key = verify_signing_key(der, kind, product, roots, 1_800_000_000);
    let honest = (roots, kind, product) == (Roots::Simulated, SigningKey::Vcek, Product::Genoa);
    assert_eq!(key.is_ok(), honest && der == HONEST);
}

const HONEST: &[u8] = include_bytes!("../../attestation/src/roots/simulated/vcek.der");
