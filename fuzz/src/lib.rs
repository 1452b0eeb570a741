//! What several targets need: the same random bytes each time, and a request that was sealed and opened.

use std::convert::Infallible;

use chrysalis_protocol::hpke::KemKeyPair;
use chrysalis_protocol::rand_core::{TryCryptoRng, TryRng};
use chrysalis_protocol::request::{
    HEAD_LEN, Head, Options, Prompt, RequestBody, RequestOpener, SealTo, SealedRequest, seal,
};
use chrysalis_protocol::secret::Secret;

/// The same bytes each time, so that a finding is found again.
pub struct Constant;

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

/// A key pair of an enclave.
pub fn keys() -> KemKeyPair {
    KemKeyPair::derive(&Secret::from([7; 32]))
}

/// A sealed request, and its other end, to which all of it came.
pub fn exchange() -> (SealedRequest, RequestOpener) {
    let keys = keys();
    let to = SealTo { statement_digest: [0; 48], key_id: [0; 8], sealing_key: keys.sealing_key() };
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
    opener.push(&sealed.bytes[HEAD_LEN..]).expect("the frames are right");
    (sealed, opener)
}
