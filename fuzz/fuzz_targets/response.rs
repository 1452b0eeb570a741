//! Responses: whatever is done to a sealed one, the client gets a prefix of it or a refusal, and
//! an end only when it is whole.
//!
//! The input is edits: offset u16, then the byte to put there.
#![no_main]

use chrysalis_fuzz::{Constant, exchange};
use chrysalis_protocol::response::{Accept, FinishReason, Inner, ResponseOpener};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let (mut opener, honest, inners) = answered();
    let mut changed = honest.clone();
    for edit in bytes.as_chunks::<3>().0 {
        let offset = usize::from(u16::from_be_bytes([edit[0], edit[1]]));
        match changed.get_mut(offset) {
            Some(byte) => *byte = edit[2],
            None if edit[2] & 1 == 0 => changed.truncate(usize::from(edit[2]) * 8),
            None => changed.push(edit[2]),
        }
    }
    let mut opened = Vec::new();
    let portion = usize::from(bytes.first().copied().unwrap_or(0)) * 4 + 1;
    for bytes in changed.chunks(portion) {
        if opener.push(bytes, &mut opened).is_err() {
            break;
        }
    }
    assert!(opened.iter().zip(&inners).all(|(frame, inner)| frame.inner == *inner));
    assert!(opened.len() <= inners.len());
    assert_eq!(opener.finish().is_ok(), changed == honest);
});

/// A client that waits for a response, the response, and what is in it.
fn answered() -> (ResponseOpener, Vec<u8>, Vec<Inner>) {
    let (sealed, mut opener) = exchange();
    let secret = opener.take_response_secret().expect("a frame was opened");
    let mut sealer = secret.into_sealer(&mut Constant);
    let mut bytes = sealer.head().to_vec();
    let request_hash = sealed.context.request_hash();
    let mut inners = vec![
        Inner::Accept(Accept { request_hash, boot_id: [1; 16], serial: 1 }),
        Inner::Dummy,
        Inner::Tokens(vec![1, 2, 3].into()),
    ];
    for inner in &inners {
        bytes.extend(sealer.seal(inner).expect("the order is right"));
    }
    let end = sealer.end(FinishReason::Stop, 1, 0, [0; 32]);
    bytes.extend(sealer.seal(&end).expect("the end is right"));
    inners.push(end);
    (sealed.context.into_opener(), bytes, inners)
}
