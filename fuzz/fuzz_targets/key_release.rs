//! Key releases: sealed bytes as they come are refused; a sealed plaintext of any kind is read, or refused, and what is
//! read has that one encoding.
#![no_main]

use chrysalis_fuzz::{Constant, keys};
use chrysalis_protocol::hpke::Sender;
use chrysalis_protocol::key_release::{SEALED_LEN, open};
use chrysalis_protocol::messages::{KeyrelReq, KeyrelResp};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let statement = [5; 48];
    // Nobody made these for this key.
    assert!(open(keys(), &statement, bytes).is_err());
    if let Ok(request) = KeyrelReq::from_bytes(bytes) {
        assert_eq!(request.to_bytes(), bytes);
    }
    assert_eq!(KeyrelResp::from_bytes(bytes).is_ok(), bytes.len() == SEALED_LEN);

    // A broker that seals something else than a release.
    let keys = keys();
    let info = [b"chrysalis1 keyrelease\0".as_slice(), &statement].concat();
    let (enc, mut sender) =
        Sender::setup(keys.sealing_key(), &info, &mut Constant).expect("the key is right");
    let mut plaintext = [0; PLAIN_LEN];
    let len = bytes.len().min(PLAIN_LEN);
    plaintext[..len].copy_from_slice(&bytes[..len]);
    let mut sealed = plaintext;
    let tag = sender.seal(&[], &mut sealed).expect("it is the first");
    let sealed = [enc.as_slice(), &sealed, &tag].concat();
    let Ok(release) = open(keys, &statement, &sealed) else {
        return;
    };
    let written = [
        b"CHRY-KR1".as_slice(),
        &release.package_id,
        release.package_key.expose(),
        &release.min_model_svn.to_be_bytes(),
        &release.lease_seconds.to_be_bytes(),
        &release.lease_tokens.to_be_bytes(),
        &[0; 24],
    ];
    assert_eq!(written.concat(), plaintext);
});

const PLAIN_LEN: usize = 96;
