//! A stream of frames: what splits off is written back to the same bytes.
#![no_main]

use chrysalis_protocol::frame;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let mut rest = bytes;
    let mut written = Vec::new();
    while let Ok(Some((frame, after))) = frame::split(rest) {
        frame::write(frame.kind, frame.stream, frame.body, &mut written);
        rest = after;
    }
    assert_eq!(written, bytes[..bytes.len() - rest.len()]);
});
