//! SPDM reports and chains of certificates. The input is both: a length, the report, the chain.
#![no_main]

use chrysalis_attestation::gpu::{GpuRoots, verify_device};
use chrysalis_protocol::gpu::Device;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Some((len, rest)) = bytes.split_first_chunk::<2>() else {
        return;
    };
    let len = usize::from(u16::from_be_bytes(*len)).min(rest.len());
    let (report, chain) = rest.split_at(len);
    // The nonce is right, so that what comes behind it is looked at.
    let nonce = report.get(4..36).and_then(|nonce| nonce.try_into().ok()).unwrap_or([0; 32]);
    for roots in [GpuRoots::Nvidia, GpuRoots::Simulated] {
        for now in [None, Some(1_800_000_000)] {
            let root: &[u8] = match roots {
                GpuRoots::Nvidia => NVIDIA,
                GpuRoots::Simulated => SIMULATED,
            };
            for chain in [chain.to_vec(), [chain, root].concat()] {
                let device = Device { report, chain: &chain };
                assert!(verify_device(&device, &nonce, roots, now).is_err());
            }
        }
    }
});

const NVIDIA: &[u8] = include_bytes!("../../attestation/src/roots/nvidia/device_root.der");
const SIMULATED: &[u8] = include_bytes!("../../attestation/src/roots/simulated/gpu_root.der");
