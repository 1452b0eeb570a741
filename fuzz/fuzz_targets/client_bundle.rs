//! A client bundle from a hostile host: no panic, and one encoding for each.
#![no_main]

use chrysalis_protocol::package::ClientBundle;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(bundle) = ClientBundle::parse(bytes) {
        assert!(
            bundle.to_bytes().is_ok_and(|again| again == bytes),
            "a bundle has one encoding"
        );
    }
});
