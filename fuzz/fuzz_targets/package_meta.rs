//! The meta of a package: no panic, and one encoding for each.
#![no_main]

use chrysalis_protocol::package::Meta;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(meta) = Meta::from_bytes(bytes) {
        assert!(
            meta.to_bytes().is_ok_and(|again| again == bytes),
            "a meta has one encoding"
        );
        assert!(
            meta.tensors
                .iter()
                .all(|tensor| tensor.offset + tensor.len <= meta.data_len())
        );
    }
});
