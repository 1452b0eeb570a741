//! Requests: the sealed form is refused in whatever portions it comes, and the plaintext, which a
//! client writes as it likes, is written back to the same bytes when it is read.
#![no_main]

use std::sync::LazyLock;

use chrysalis_protocol::hpke::KemKeyPair;
use chrysalis_protocol::request::{HEAD_LEN, Head, RequestBody, RequestOpener, padded_len};
use chrysalis_protocol::secret::Secret;
use libfuzzer_sys::fuzz_target;

static KEYS: LazyLock<KemKeyPair> = LazyLock::new(|| KemKeyPair::derive(&Secret::from([7; 32])));

fuzz_target!(|bytes: &[u8]| {
    open(bytes);
    let mut plaintext = bytes.to_vec();
    plaintext.resize(padded_len(bytes.len()).unwrap_or(bytes.len()), 0);
    if let Ok(body) = RequestBody::from_padded(&plaintext) {
        let written = body.to_padded().expect("what was read can be sealed");
        let (same, padding) = plaintext.split_at(written.len());
        assert_eq!(written.expose(), same);
        assert!(padding.iter().all(|byte| *byte == 0));
    }
});

/// Nobody sealed these bytes, so no frame of them opens.
fn open(bytes: &[u8]) {
    let Some((head, rest)) = bytes.split_at_checked(HEAD_LEN) else {
        return;
    };
    let Ok(head) = Head::from_bytes(head) else {
        return;
    };
    assert_eq!(head.to_bytes(), bytes[..HEAD_LEN]);
    let mut opener = RequestOpener::new(&head, &KEYS, &[0; 48]).expect("decapsulation is total");
    let portion = usize::from(rest.first().copied().unwrap_or(0)) + 1;
    for bytes in rest.chunks(portion) {
        let _ = opener.push(bytes);
    }
    assert_eq!(opener.frames_opened(), 0);
    assert!(opener.take_response_secret().is_none());
    assert!(opener.finish().is_err());
}
