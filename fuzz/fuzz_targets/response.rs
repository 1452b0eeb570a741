//! Responses: whatever is done to a sealed one, the client gets a prefix of it or a refusal, and
//! an end only when it is whole.
//!
//! The input is edits: offset u16, then the byte to put there.
#![no_main]

use std::convert::Infallible;

use chrysalis_protocol::hpke::KemKeyPair;
use chrysalis_protocol::rand_core::{TryCryptoRng, TryRng};
use chrysalis_protocol::request::{
    HEAD_LEN, Head, Options, Prompt, RequestBody, RequestOpener, SealTo, seal,
};
use chrysalis_protocol::response::{Accept, FinishReason, Inner, ResponseOpener};
use chrysalis_protocol::secret::Secret;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let (mut opener, honest, inners) = exchange();
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
    assert!(
        opened
            .iter()
            .zip(&inners)
            .all(|(frame, inner)| frame.inner == *inner)
    );
    assert!(opened.len() <= inners.len());
    assert_eq!(opener.finish().is_ok(), changed == honest);
});

/// A client that waits for a response, the response, and what is in it.
fn exchange() -> (ResponseOpener, Vec<u8>, Vec<Inner>) {
    let keys = KemKeyPair::derive(&Secret::from([7; 32]));
    let to = SealTo {
        statement_digest: [0; 48],
        key_id: [0; 8],
        sealing_key: keys.sealing_key(),
    };
    let body = RequestBody {
        stream: true,
        want_logprobs: false,
        max_output: 8,
        request_id: [0; 16],
        seed: 0,
        options: Options::default(),
        prompt: Prompt::tokens([1]),
    };
    let sealed = seal(&to, &body, &mut Constant).expect("the body is right");
    let head = Head::from_bytes(&sealed.bytes[..HEAD_LEN]).expect("the head is right");
    let mut opener = RequestOpener::new(&head, &keys, &[0; 48]).expect("the key is right");
    opener
        .push(&sealed.bytes[HEAD_LEN..])
        .expect("the frames are right");
    let secret = opener.take_response_secret().expect("a frame was opened");
    let mut sealer = secret.into_sealer(&mut Constant);
    let mut bytes = sealer.head().to_vec();
    let request_hash = sealed.context.request_hash();
    let mut inners = vec![
        Inner::Accept(Accept {
            request_hash,
            boot_id: [1; 16],
            serial: 1,
        }),
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

/// The same bytes each time, so that a finding is found again.
struct Constant;

impl TryRng for Constant {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        Ok(7)
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        Ok(7)
    }

    fn try_fill_bytes(&mut self, out: &mut [u8]) -> Result<(), Infallible> {
        out.fill(7);
        Ok(())
    }
}

impl TryCryptoRng for Constant {}
