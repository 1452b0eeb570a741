//! Certificates of signing keys. The input is a certificate, and a change to an honest one: a place,
//! how many bytes go, what comes instead.
#![no_main]

use chrysalis_attestation::report::{Product, SigningKey};
use chrysalis_attestation::verifier::{Roots, verify_signing_key};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    judge(bytes);
    if let [high, low, gone, new @ ..] = bytes {
        let at = usize::from(u16::from_be_bytes([*high, *low])) % HONEST.len();
        let end = (at + usize::from(*gone)).min(HONEST.len());
        let mut changed = HONEST.to_vec();
        changed.splice(at..end, new.iter().copied());
        if changed != HONEST {
            judge(&changed);
        }
    }
});

fn judge(der: &[u8]) {
    if der == HONEST {
        return;
    }
    for product in [Product::Milan, Product::Genoa, Product::Turin] {
        for kind in [SigningKey::Vcek, SigningKey::Vlek] {
            for roots in [Roots::Amd, Roots::Simulated] {
                assert!(verify_signing_key(der, kind, product, roots, 1_800_000_000).is_err());
            }
        }
    }
}

const HONEST: &[u8] = include_bytes!("../../attestation/src/roots/simulated/vcek.der");
