//! Reference integrity manifests: none is believed, whatever its XML.
#![no_main]

use chrysalis_attestation::gpu::GpuRoots;
use chrysalis_attestation::verifier::gpu::Rim;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    for roots in [GpuRoots::Nvidia, GpuRoots::Simulated] {
        assert!(Rim::verify(bytes, roots, 1_800_000_000).is_err());
    }
});
