//! A gateway without threads: frames are handed to it, what it sends is kept with its time.

use std::collections::HashMap;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, LazyLock};

use aws_lc_rs::digest;
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use chrysalis_attestation::attester::AttesterError;
use chrysalis_attestation::attester::simulated::Simulated;
use chrysalis_attestation::policy::{
    AppraisalPolicy, Dangerous, MaxAge, PlatformTrust, ServingDemand, SnpDemand,
};
use chrysalis_protocol::frame::{Frame, FrameKind, split};
use chrysalis_protocol::messages::{Close, CloseCode, Credit, Open};
use chrysalis_protocol::package::{Generation, Header, PublicHeader, SignatureBlock};
use chrysalis_protocol::receipt::{self, ReceiptKey};
use chrysalis_protocol::request::{
    HEAD_LEN, Head, Options, Prompt, RequestBody, RequestContext, SealTo, SealedRequest, seal,
};
use chrysalis_protocol::response::{End, Inner, ResponseError};
use chrysalis_protocol::secret::Secret;
use chrysalis_protocol::statement::{PadProfile, Statement, Tee};

use super::super::{Gateway, GatewayParts, ModelFacts, Receipts, StreamId};
use crate::boot::SIMULATED_MEASUREMENT;
use crate::config::LaunchConfig;
use crate::counters::Counters;
use crate::engine::{Event, FinishReason, NewSequence, SequenceId};
use crate::epoch::{Epoch, Epochs, Identity, Stated};
use crate::hub::{ConnectionId, Handler, Output};
use crate::lease::Lease;
use crate::limits::Limits;
use crate::rng::SystemRng;
use crate::worker::Command;

pub(super) const BOOT: [u8; 16] = [7; 16];
pub(super) const VOCAB: u32 = 1_000;
pub(super) const EOS: u32 = 2;

/// A frame that the gateway sent.
pub(super) struct Sent {
    pub(super) at_ms: u64,
    pub(super) kind: FrameKind,
    pub(super) body: Vec<u8>,
}

/// The host, and the engine behind the gateway.
pub(super) struct Host {
    pub(super) gateway: Gateway,
    pub(super) commands: Receiver<Command>,
    pub(super) now: u64,
    pub(super) sent: HashMap<StreamId, Vec<Sent>>,
    pub(super) receipts: Vec<Vec<u8>>,
    pub(super) resets: Vec<ConnectionId>,
    pub(super) platform: Platform,
    pub(super) receipt_key: [u8; 32],
}

/// The simulated platform, with a counter and switches.
pub(super) struct Platform {
    inner: Simulated,
    questions: Receiver<Statement>,
    /// Reports that were asked for, the first epoch's among them.
    pub(super) asked: usize,
    /// Questions that it made no report for.
    pub(super) failed: usize,
    /// It makes no report.
    pub(super) is_broken: bool,
    /// It answers only when [`Host::attest`] is called.
    pub(super) is_slow: bool,
}

static PUBLISHER: LazyLock<Ed25519KeyPair> =
    LazyLock::new(|| Ed25519KeyPair::from_seed_unchecked(&[3; 32]).unwrap());

static PACKAGE: LazyLock<PublicHeader> = LazyLock::new(|| {
    let public_key: [u8; 32] = PUBLISHER.public_key().as_ref().try_into().unwrap();
    let key_id = digest::digest(&digest::SHA256, &public_key);
    let header = Header {
        sealed: false,
        segment_log2: 21,
        blob_log2: 30,
        package_id: [1; 16],
        data_len: 4_096,
        meta_len: 1_024,
        model_svn: 5,
        meta_root: [2; 32],
        data_root: [3; 32],
        table_root: [4; 32],
        key_commit: [0; 32],
        publisher_key_id: key_id.as_ref().try_into().unwrap(),
    };
    let digest = chrysalis_protocol::package::package_digest(&header);
    let message = [b"chrysalis1 pkgsig\0".as_slice(), &digest].concat();
    let signature = PUBLISHER.sign(&message).as_ref().try_into().unwrap();
    let block = SignatureBlock { public_key, signature };
    PublicHeader::from_parts(header, block).unwrap()
});

impl Host {
    /// With a launch config.
    pub(super) fn new(config: &str) -> Self {
        Self::with(config, |_| {})
    }

    /// With a launch config, and parts that `change` changes.
    pub(super) fn with(config: &str, change: impl FnOnce(&mut GatewayParts)) -> Self {
        let config = LaunchConfig::parse(config.as_bytes()).unwrap();
        let mut inner = Simulated::new(config.digest(), SIMULATED_MEASUREMENT).unwrap();
        let (ask, questions) = channel();
        let receipt_key = ReceiptKey::from_seed(&Secret::from([9; 32])).unwrap();
        let public_key = receipt_key.public_key();
        let identity = Identity {
            gpu_required: false,
            tee: Tee::Simulated,
            boot_id: BOOT,
            receipt_key: public_key,
            content_digest: PACKAGE.content_digest(),
            package_digest: PACKAGE.package_digest(),
            model_svn: PACKAGE.header().model_svn,
            package_head: PACKAGE.to_bytes().to_vec(),
            policy: config.serving_policy(),
            runtime_digest: [0; 48],
            launch_config_digest: config.digest(),
        };
        let mut rng = SystemRng::default();
        let first = Epoch::begin(&identity, None, &mut inner, &mut rng, 0).unwrap();
        let limits = Limits::default();
        let (engine, commands) = channel();
        let mut parts = GatewayParts {
            identity,
            limits,
            config,
            platform: Box::new(move |statement| ask.send(statement).unwrap()),
            epochs: Epochs::new(first, limits.epoch_grace_ms),
            receipts: Receipts::new(receipt_key),
            lease: Lease::UNLIMITED,
            model: ModelFacts {
                vocab_size: VOCAB as usize,
                max_context: 8_192,
                generation: Generation {
                    eos_token_ids: vec![EOS],
                    temperature: 0.5,
                    top_p: 0.75,
                    repetition_penalty: 1.0,
                    ..Generation::default()
                },
            },
            client_bundle: Vec::new(),
            counters: Arc::new(Counters::default()),
            engine: Box::new(move |command| engine.send(command).unwrap()),
        };
        change(&mut parts);
        Self {
            gateway: Gateway::new(parts),
            commands,
            now: 0,
            sent: HashMap::new(),
            receipts: Vec::new(),
            resets: Vec::new(),
            platform: Platform {
                inner,
                questions,
                asked: 1,
                failed: 0,
                is_broken: false,
                is_slow: false,
            },
            receipt_key: public_key,
        }
    }

    /// Hands over one frame.
    pub(super) fn frame(&mut self, (connection, stream): StreamId, kind: FrameKind, body: &[u8]) {
        let mut out = Vec::new();
        let frame = Frame { kind, stream, body };
        self.gateway.frame(connection, &frame, self.now, &mut out);
        self.deliver(out);
        if !self.platform.is_slow {
            self.attest();
        }
    }

    /// The host leaves.
    pub(super) fn close(&mut self, connection: ConnectionId) {
        let mut out = Vec::new();
        self.gateway.closed(connection, &mut out);
        self.deliver(out);
    }

    /// The platform answers what it was asked; whether it was asked anything.
    pub(super) fn attest(&mut self) -> bool {
        let mut out = Vec::new();
        let before = self.platform.asked;
        while let Ok(statement) = self.platform.questions.try_recv() {
            self.platform.asked += 1;
            let evidence = if self.platform.is_broken {
                self.platform.failed += 1;
                Err(AttesterError::Sign)
            } else {
                Stated::new(&mut self.platform.inner, statement)
            };
            self.gateway.attested(evidence, self.now, &mut out);
        }
        self.deliver(out);
        self.platform.asked > before
    }

    /// What the hub does with outputs.
    fn deliver(&mut self, outputs: Vec<Output>) {
        for output in outputs {
            match output {
                Output::Send(connection, bytes) => {
                    let (frame, rest) = split(&bytes).unwrap().unwrap();
                    assert!(rest.is_empty() && !frame.kind.is_from_host());
                    if frame.kind == FrameKind::Receipt {
                        self.receipts.push(frame.body.to_vec());
                    }
                    let sent = self.sent.entry((connection, frame.stream)).or_default();
                    sent.push(Sent {
                        at_ms: self.now,
                        kind: frame.kind,
                        body: frame.body.to_vec(),
                    });
                }
                Output::Reset(connection) => {
                    self.resets.push(connection);
                    self.close(connection);
                }
            }
        }
    }

    /// Time passes, and the session is woken whenever it asks for it. One that asks for the past would spin.
    pub(super) fn pass(&mut self, ms: u64) {
        let end = self.now + ms;
        loop {
            let wake = self.gateway.next_wake_ms().unwrap_or(u64::MAX);
            self.now = wake.clamp(self.now, end);
            self.tick();
            assert!(self.gateway.next_wake_ms().is_none_or(|at| at > self.now), "it would spin");
            if self.now == end {
                return;
            }
        }
    }

    /// The clock jumps, and the session is woken once.
    pub(super) fn tick(&mut self) {
        let mut out = Vec::new();
        self.gateway.tick(self.now, &mut out);
        self.deliver(out);
        // What comes in between is followed by another tick.
        if !self.platform.is_slow && self.attest() {
            self.tick();
        }
    }

    /// Seals a request to the current epoch, as a client that verified it would.
    pub(super) fn seal(&self, body: &RequestBody) -> SealedRequest {
        let epoch = self.gateway.parts.epochs.current();
        let to = SealTo {
            statement_digest: epoch.statement_digest,
            key_id: epoch.key_id,
            sealing_key: &epoch.key_config.sealing_key,
        };
        seal(&to, body, &mut SystemRng::default()).unwrap()
    }

    /// OPEN alone.
    pub(super) fn open(&mut self, id: StreamId, sealed: &[u8]) {
        let body = open_body(sealed);
        self.frame(id, FrameKind::Open, &body);
    }

    /// OPEN, DATA and END.
    pub(super) fn submit(&mut self, id: StreamId, sealed: &[u8]) {
        self.open(id, sealed);
        for chunk in sealed[HEAD_LEN..].chunks(60_000) {
            self.frame(id, FrameKind::HostData, chunk);
        }
        self.frame(id, FrameKind::End, &[]);
    }

    /// Seals and submits; the engine's name for it comes back too, when the engine got it.
    pub(super) fn ask(
        &mut self,
        id: StreamId,
        body: &RequestBody,
    ) -> (RequestContext, Option<SequenceId>) {
        let sealed = self.seal(body);
        self.submit(id, &sealed.bytes);
        let sequence = self.added().pop().map(|new| new.id);
        (sealed.context, sequence)
    }

    /// Commands to the engine since the last look.
    pub(super) fn commands(&self) -> Vec<Command> {
        self.commands.try_iter().collect()
    }

    /// Sequences that the engine was given since the last look, and nothing else.
    pub(super) fn added(&self) -> Vec<NewSequence> {
        let added = self.commands().into_iter().map(|command| match command {
            Command::Add(new) => *new,
            Command::Cancel(id) | Command::Pause(id, _) => panic!("{id:?} was not only added"),
        });
        added.collect()
    }

    /// Sequences that the engine was told to forget since the last look.
    pub(super) fn cancelled(&self) -> Vec<SequenceId> {
        let commands = self.commands().into_iter();
        let cancelled = commands.filter_map(|command| match command {
            Command::Cancel(id) => Some(id),
            Command::Add(_) | Command::Pause(..) => None,
        });
        cancelled.collect()
    }

    pub(super) fn events(&mut self, events: Vec<Event>) {
        let mut out = Vec::new();
        self.gateway.engine(events, self.now, &mut out);
        self.deliver(out);
    }

    /// The engine puts out tokens.
    pub(super) fn tokens(&mut self, id: SequenceId, tokens: &[u32]) {
        let events = tokens.iter().map(|&token| Event::Token { id, token, logprobs: None });
        self.events(events.collect());
    }

    /// The engine is done with a sequence.
    pub(super) fn finish(&mut self, id: SequenceId, reason: FinishReason) {
        self.events(vec![Event::Finished { id, reason, prompt_tokens: 0, output_tokens: 0 }]);
    }

    pub(super) fn grant(&mut self, id: StreamId, frames: u32) {
        self.frame(id, FrameKind::HostCredit, &Credit { frames }.to_bytes());
    }

    /// How the host was told that a stream ended.
    pub(super) fn close_code(&self, id: StreamId) -> Option<CloseCode> {
        let closes: Vec<_> = self
            .sent
            .get(&id)
            .into_iter()
            .flatten()
            .filter(|sent| sent.kind == FrameKind::Close)
            .collect();
        assert!(closes.len() < 2, "{id:?} was closed twice");
        closes.first().map(|sent| Close::from_bytes(&sent.body).unwrap().code)
    }

    /// Opens what a stream received, as its client would.
    pub(super) fn hear(&self, id: StreamId, context: RequestContext) -> Heard {
        let mut opener = context.into_opener();
        let mut heard = Heard {
            inners: Vec::new(),
            frames_ms: Vec::new(),
            end: Err(ResponseError::AfterFinal),
            receipt: None,
        };
        for sent in self.sent.get(&id).into_iter().flatten() {
            match sent.kind {
                FrameKind::EnclaveData => {
                    let mut opened = Vec::new();
                    opener.push(&sent.body, &mut opened).unwrap();
                    for frame in opened {
                        heard.inners.push(frame.inner);
                        heard.frames_ms.push(sent.at_ms);
                    }
                }
                FrameKind::Receipt => {
                    assert!(heard.receipt.is_none(), "a second receipt");
                    heard.receipt = Some(sent.body.clone());
                }
                _ => {}
            }
        }
        heard.end = opener.finish();
        if let Ok(end) = &heard.end {
            let receipt = heard.receipt.as_ref().unwrap();
            assert_eq!(end.receipt_hash, receipt::hash(receipt));
        }
        heard
    }

    /// Nothing is left of any request.
    pub(super) fn assert_empty(&self) {
        assert_eq!(self.gateway.streams.len(), 0, "streams");
        assert_eq!(self.gateway.by_sequence.len(), 0, "sequences");
        assert_eq!(self.gateway.reports.num_waiting(), 0, "challenges");
        assert_eq!(self.gateway.request_bytes, 0, "bytes of requests");
    }
}

/// An answer that was opened.
pub(super) struct Heard {
    pub(super) inners: Vec<Inner>,
    pub(super) frames_ms: Vec<u64>,
    pub(super) end: Result<End, ResponseError>,
    pub(super) receipt: Option<Vec<u8>>,
}

impl Heard {
    pub(super) fn tokens(&self) -> Vec<u32> {
        let ids = self.inners.iter().filter_map(|inner| match inner {
            Inner::Tokens(ids) => Some(ids.to_vec()),
            _ => None,
        });
        ids.flatten().collect()
    }

    pub(super) fn error(&self) -> Option<chrysalis_protocol::response::ErrorCode> {
        self.inners.iter().find_map(|inner| match inner {
            Inner::Error(code) => Some(*code),
            _ => None,
        })
    }

    pub(super) fn is_accepted(&self) -> bool {
        matches!(self.inners.first(), Some(Inner::Accept(accept)) if accept.boot_id == BOOT)
    }
}

/// A request of token ids with no options.
pub(super) fn body(prompt: &[u32], max_output: u32) -> RequestBody {
    RequestBody {
        stream: true,
        want_logprobs: false,
        max_output,
        request_id: [0; 16],
        seed: 1,
        options: Options::default(),
        prompt: Prompt::tokens(prompt),
    }
}

pub(super) fn open_body(sealed: &[u8]) -> Vec<u8> {
    Open {
        sealed_len: u32::try_from(sealed.len()).unwrap(),
        head: Head::from_bytes(&sealed[..HEAD_LEN]).unwrap(),
    }
    .to_bytes()
}

/// What a client of this enclave would demand.
pub(super) fn policy(max_age: MaxAge) -> AppraisalPolicy {
    AppraisalPolicy {
        content_digests: vec![PACKAGE.content_digest()],
        publishers: vec![PACKAGE.header().publisher_key_id],
        client_bundles: vec![[0; 32]],
        minimum_svn: 5,
        measurements: vec![SIMULATED_MEASUREMENT],
        allow_simulated: true,
        platform: PlatformTrust::AnyGenuine,
        max_age,
        serving: ServingDemand {
            pad_profiles: vec![PadProfile::Tick],
            min_tick_ms: 50,
            max_tick_ms: 50,
            min_length_quantum: 16,
            min_billing_quantum: 64,
            max_epoch_seconds: 3_600,
            max_epoch_requests: 1 << 20,
            allow_text_mode: false,
            allow_kv_sharing: false,
            allow_spec_decode: false,
            allow_moe_on_cpu: false,
            require_oblivious_embed: false,
            max_ack_window: None,
        },
        snp: SnpDemand::default(),
        gpu: None,
        tdx: None,
        dangerous: Dangerous { allow_debug_build: cfg!(debug_assertions), ..Dangerous::default() },
    }
}
