//! Randomness by seed, one of everything, and the ways to spoil bytes.

use core::convert::Infallible;

use chrysalis_protocol::hash::sha256;
use chrysalis_protocol::hpke::KemKeyPair;
use chrysalis_protocol::rand_core::{TryCryptoRng, TryRng};
use chrysalis_protocol::receipt::{Receipt, ReceiptKey, payer_tag};
use chrysalis_protocol::request::{Options, Prompt, RequestBody, SealTo};
use chrysalis_protocol::secret::Secret;
use chrysalis_protocol::statement::{GpuFlags, KeyConfig, Kind, ServingPolicy, Statement, Tee};

/// SHA-256( seed || counter ), block after block.
pub(crate) struct SeededRng {
    seed: [u8; 32],
    counter: u64,
}

impl SeededRng {
    pub(crate) fn new(name: &str) -> Self {
        Self { seed: sha256(&[name.as_bytes()]), counter: 0 }
    }

    pub(crate) fn array<const N: usize>(&mut self) -> [u8; N] {
        let mut array = [0; N];
        let Ok(()) = self.try_fill_bytes(&mut array);
        array
    }
}

impl TryRng for SeededRng {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        Ok(u32::from_be_bytes(self.array()))
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        Ok(u64::from_be_bytes(self.array()))
    }

    fn try_fill_bytes(&mut self, out: &mut [u8]) -> Result<(), Infallible> {
        for chunk in out.chunks_mut(32) {
            let block = sha256(&[&self.seed, &self.counter.to_be_bytes()]);
            self.counter += 1;
            chunk.copy_from_slice(&block[..chunk.len()]);
        }
        Ok(())
    }
}

impl TryCryptoRng for SeededRng {}

/// Plays back the randomness that a vector names.
pub(crate) struct Replay(pub(crate) Vec<u8>);

impl TryRng for Replay {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        panic!("only bytes are drawn")
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        panic!("only bytes are drawn")
    }

    fn try_fill_bytes(&mut self, out: &mut [u8]) -> Result<(), Infallible> {
        out.copy_from_slice(&self.0.drain(..out.len()).collect::<Vec<_>>());
        Ok(())
    }
}

impl TryCryptoRng for Replay {}

pub(crate) fn key_pair() -> KemKeyPair {
    KemKeyPair::derive(&Secret::from(SeededRng::new("sealing key").array()))
}

pub(crate) fn receipt_key() -> ReceiptKey {
    ReceiptKey::from_seed(&Secret::from(SeededRng::new("receipt key").array())).unwrap()
}

pub(crate) fn key_config() -> KeyConfig {
    KeyConfig { epoch: 7, sealing_key: key_pair().sealing_key().clone() }
}

pub(crate) fn policy() -> ServingPolicy {
    ServingPolicy { kv_sharing: true, ack_window: 512, ..ServingPolicy::default() }
}

pub(crate) fn statement() -> Statement {
    let mut rng = SeededRng::new("statement");
    Statement {
        kind: Kind::Serve,
        tee: Tee::SevSnp,
        gpu_required: true,
        debug_build: false,
        epoch: 7,
        boot_id: rng.array(),
        nonce: rng.array(),
        key_config_digest: key_config().digest(),
        receipt_key: receipt_key().public_key(),
        content_digest: rng.array(),
        package_digest: rng.array(),
        policy_digest: policy().digest(),
        gpu_digest: rng.array(),
        gpu_count: 2,
        gpu_flags: GpuFlags { cc_on: true, ppcie: true, nvlink_clear: true },
        model_svn: 3,
        prev_digest: rng.array(),
        runtime_digest: rng.array(),
        launch_config_digest: rng.array(),
        uptime_ms: 86_400_001,
    }
}

pub(crate) fn seal_to(keys: &KemKeyPair) -> SealTo<'_> {
    SealTo {
        statement_digest: statement().digest(),
        key_id: key_config().key_id(),
        sealing_key: keys.sealing_key(),
    }
}

/// A request with every option, of the smallest size.
pub(crate) fn body() -> RequestBody {
    let mut rng = SeededRng::new("body");
    let mut options = Options {
        temperature: Some(0.7),
        top_p: Some(0.95),
        top_k: Some(40),
        min_p: Some(0.05),
        repetition_penalty: Some(1.1),
        presence_penalty: Some(-0.5),
        frequency_penalty: Some(0.25),
        logprobs: Some(2),
        voucher: Some(b"voucher".to_vec().into()),
        cache_salt: Some(Secret::from(rng.array())),
        session_id: Some(Secret::from(rng.array())),
        grammar: Some(b"root ::= object".to_vec().into()),
        ..Options::default()
    };
    options.logit_bias.extend([(5, -100.0), (9, 2.5)]);
    options.stop_token_ids.extend([2, 32_007]);
    RequestBody {
        stream: true,
        want_logprobs: true,
        max_output: 256,
        request_id: rng.array(),
        seed: 0x0123_4567_89AB_CDEF,
        options,
        prompt: Prompt::tokens([1, 15_043, 3_186]),
    }
}

/// The plainest request of `num_tokens` tokens.
pub(crate) fn plain_body(num_tokens: usize) -> RequestBody {
    RequestBody {
        stream: true,
        want_logprobs: false,
        max_output: 16,
        request_id: [9; 16],
        seed: 1,
        options: Options::default(),
        prompt: Prompt::tokens((0..num_tokens as u32).collect::<Vec<_>>()),
    }
}

pub(crate) fn receipt(index: u16, previous: [u8; 32]) -> Receipt {
    let mut rng = SeededRng::new("receipt");
    Receipt {
        last: true,
        cancelled: false,
        failed: false,
        index,
        epoch: 7,
        boot_id: statement().boot_id,
        serial: 41,
        reasoning_units: 64,
        request_tag: rng.array(),
        payer_tag: payer_tag(b"voucher"),
        content_digest: statement().content_digest,
        statement_digest: statement().digest(),
        prompt_units: 1_024,
        output_units: 256,
        cached_units: 512,
        quantum: 64,
        previous,
    }
}

/// `bytes` with each of its bits flipped in turn.
pub(crate) fn flips(bytes: &[u8]) -> impl Iterator<Item = (usize, Vec<u8>)> {
    (0..bytes.len() * 8).map(|bit| {
        let mut flipped = bytes.to_vec();
        flipped[bit / 8] ^= 1 << (bit % 8);
        (bit, flipped)
    })
}

/// `bytes` cut at every place, and with one byte more.
pub(crate) fn cuts_and_one_more(bytes: &[u8]) -> impl Iterator<Item = Vec<u8>> {
    let longer = [bytes, &[0]].concat();
    (0..bytes.len()).map(|len| bytes[..len].to_vec()).chain([longer])
}
