//! OCSP responses and certificates in PEM: read or refused.
#![no_main]

use chrysalis_attestation::gpu::chain_from_pem;
use chrysalis_attestation::verifier::gpu::Status;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let _ = Status::parse(bytes);
    let _ = chain_from_pem(bytes);
});
