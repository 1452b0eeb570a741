//! Sections 5 and 0x83 of a bundle: what is read is written back as it was.
#![no_main]

use chrysalis_protocol::gpu::{Device, GpuEndorsements};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(devices) = Device::parse_all(bytes) {
        assert_eq!(Device::to_bytes(&devices), bytes);
    }
    if let Ok(endorsements) = GpuEndorsements::parse(bytes) {
        assert_eq!(endorsements.to_bytes(), bytes);
    }
});
