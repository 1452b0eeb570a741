//! Signed files, floors and platform registries: none is read but the one that was signed.
#![no_main]

use chrysalis_attestation::policy::{FLOORS_SIGNER, Floors, Registry};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    assert_eq!(Floors::open(bytes, &FLOORS_SIGNER).is_ok(), bytes == BUILT_IN);
    // The same with the head put right, so that the records are reached.
    let mut file = BUILT_IN.to_vec();
    for (to, from) in file[8..].iter_mut().zip(bytes) {
        *to ^= from;
    }
    assert_eq!(Floors::open(&file, &FLOORS_SIGNER).is_ok(), file == BUILT_IN);
    // The signer of floors has signed no registry: its head over the same bytes.
    file[..8].copy_from_slice(b"CHRY-PR1");
    assert!(Registry::open(&file, &FLOORS_SIGNER).is_err());
});

const BUILT_IN: &[u8] = include_bytes!("../../attestation/src/floors/amd.floors");
