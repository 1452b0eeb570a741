//! What a session costs on top of the engine: a request is sealed and opened, and an answer's frames are sealed. One
//! request costs one decapsulation; a frame of 256 bytes carries up to 62 tokens.

use std::hint::black_box;
use std::time::Duration;

use chrysalis_protocol::hpke::KemKeyPair;
use chrysalis_protocol::rand_core::UnwrapErr;
use chrysalis_protocol::request::{
    HEAD_LEN, Head, Options, Prompt, RequestBody, RequestError, RequestOpener, SealTo,
    SealedRequest, seal,
};
use chrysalis_protocol::response::{Accept, Inner, ResponseSealer, TOKENS_MAX};
use chrysalis_protocol::secret::Secret;
use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use getrandom::SysRng;

const FRAMES: usize = 64;
const STATEMENT: [u8; 48] = [7; 48];

/// The two ends of a session.
struct Ends {
    keys: KemKeyPair,
    body: RequestBody,
}

impl Ends {
    fn new(num_tokens: u32) -> Self {
        let body = RequestBody {
            stream: true,
            want_logprobs: false,
            max_output: 4096,
            request_id: [9; 16],
            seed: 1,
            options: Options::default(),
            prompt: Prompt::tokens((0..num_tokens).collect::<Vec<_>>()),
        };
        Self { keys: KemKeyPair::derive(&Secret::from([3; 32])), body }
    }

    fn seal(&self) -> Result<SealedRequest, RequestError> {
        let to = SealTo {
            statement_digest: STATEMENT,
            key_id: [1; 8],
            sealing_key: self.keys.sealing_key(),
        };
        seal(&to, &self.body, &mut UnwrapErr(SysRng))
    }

    /// Opens a request, and begins its response.
    fn open(&self, sealed: &[u8]) -> Result<Opened, String> {
        let (head, frames) = sealed.split_at_checked(HEAD_LEN).ok_or("no head")?;
        let text = |error: RequestError| error.to_string();
        let head = Head::from_bytes(head).map_err(|error| error.to_string())?;
        let mut opener = RequestOpener::new(&head, &self.keys, &STATEMENT).map_err(text)?;
        opener.push(frames).map_err(text)?;
        let secret = opener.take_response_secret().ok_or("no frame was opened")?;
        let opened = opener.finish().map_err(text)?;
        let mut sealer = secret.into_sealer(&mut UnwrapErr(SysRng));
        let accept = Accept { request_hash: opened.request_hash, boot_id: [2; 16], serial: 1 };
        let accept = sealer.seal(&Inner::Accept(accept)).map_err(|error| error.to_string())?;
        let begun = [sealer.head().as_slice(), &accept].concat();
        Ok(Opened { body: opened.body, sealer, begun })
    }
}

/// What an enclave has after a request came.
struct Opened {
    body: RequestBody,
    sealer: ResponseSealer,
    /// Bytes of the response so far.
    begun: Vec<u8>,
}

fn requests(c: &mut Criterion) {
    let mut group = c.benchmark_group("seal/request");
    for num_tokens in [100, 4_000] {
        let ends = Ends::new(num_tokens);
        let sealed = ends.seal().map(|sealed| sealed.bytes).unwrap_or_default();
        let opened = ends.open(&sealed);
        assert!(opened.is_ok_and(|opened| opened.body == ends.body), "the request comes back");
        group.throughput(Throughput::Bytes(sealed.len() as u64));
        group.bench_function(BenchmarkId::new("seal", num_tokens), |b| {
            b.iter(|| assert!(ends.seal().is_ok_and(|x| x.bytes.len() == sealed.len())));
        });
        group.bench_function(BenchmarkId::new("open", num_tokens), |b| {
            b.iter(|| assert!(ends.open(black_box(&sealed)).is_ok()));
        });
    }
    group.finish();
}

fn frames(c: &mut Criterion) {
    let ends = Ends::new(100);
    let tokens = |n: usize| Inner::Tokens((n as u32..).take(TOKENS_MAX).collect::<Vec<_>>().into());
    let inners: Vec<_> = (0..FRAMES).map(tokens).collect();
    assert_eq!(round_trip(&ends, &inners), Ok(true), "the client opens the answer");
    let Ok(sealed) = ends.seal() else { return };
    let mut group = c.benchmark_group("seal/response");
    group.throughput(Throughput::Elements(FRAMES as u64));
    group.bench_function("frames", |b| {
        b.iter_batched_ref(
            || ends.open(&sealed.bytes).map(|opened| opened.sealer),
            |sealer| {
                let Ok(sealer) = sealer else { return };
                assert!(inners.iter().all(|inner| sealer.seal(black_box(inner)).is_ok()));
                assert_eq!(sealer.num_frames() as usize, FRAMES + 1);
            },
            BatchSize::SmallInput,
        );
    });
    group.finish();
}

/// Whether the client opens what the enclave sealed, frame by frame.
fn round_trip(ends: &Ends, inners: &[Inner]) -> Result<bool, String> {
    let sealed = ends.seal().map_err(|error| error.to_string())?;
    let Opened { mut sealer, begun: mut bytes, .. } = ends.open(&sealed.bytes)?;
    for inner in inners {
        bytes.extend(sealer.seal(inner).map_err(|error| error.to_string())?);
    }
    let mut opened = Vec::new();
    let mut opener = sealed.context.into_opener();
    opener.push(&bytes, &mut opened).map_err(|error| error.to_string())?;
    // ACCEPT came first.
    Ok(opened.iter().skip(1).map(|frame| &frame.inner).eq(inners))
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_secs(1));
    targets = requests, frames
}
criterion_main!(benches);
