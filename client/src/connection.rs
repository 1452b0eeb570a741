//! A connection to an enclave: evidence, the client bundle, key release, and questions.

use std::time::{SystemTime, UNIX_EPOCH};

use chrysalis_attestation::policy::{
    AppraisalPolicy, Challenge, MaxAge, ReleaseTerms, VerifiedEnclave, VerifiedKeyRelease,
};
use chrysalis_protocol::bundle::BUNDLE_MAX;
use chrysalis_protocol::frame::FrameKind;
use chrysalis_protocol::key_release::SEALED_LEN;
use chrysalis_protocol::messages::{
    Assembler, CLIENT_BUNDLE_PIECES, ClientBundleReq, Close, CloseCode, EvidenceReq, Hello,
    KeyrelReq, KeyrelResp, Limits, Open, Piece, State, Status,
};
use chrysalis_protocol::package::{CLIENT_BUNDLE_MAX, PackageKey};
use chrysalis_protocol::rand_core::{Rng, UnwrapErr};
use chrysalis_protocol::request::{self, HEAD_LEN, Head, RequestBody};
use chrysalis_protocol::statement::Kind;
use getrandom::SysRng;

use crate::address::Address;
use crate::answer::Answer;
use crate::endorse::Endorsing;
use crate::error::ClientError;
use crate::wire::{Received, Wire};

/// A connection that has exchanged HELLO. Nothing about the other end is believed yet.
#[derive(Debug)]
pub struct Connection {
    wire: Wire,
    limits: Limits,
    state: State,
    awaits: Option<KeyrelReq>,
    next_stream: u64,
    endorsing: Endorsing,
}

impl Connection {
    /// Connects and exchanges HELLO.
    ///
    /// # Errors
    /// [`ClientError::Connect`] when nobody listens, and what a peer can do wrong.
    pub fn open(address: &Address) -> Result<Self, ClientError> {
        let mut wire = Wire::connect(address)?;
        wire.send(FrameKind::Hello, 0, &Hello.to_bytes())?;
        let ack = expect(wire.receive()?, FrameKind::HelloAck)?;
        let status = expect(wire.receive()?, FrameKind::Status)?;
        let state = Status::from_bytes(&status.body)?.state;
        let awaits = match state {
            State::AwaitingKey => {
                let request = expect(wire.receive()?, FrameKind::KeyrelReq)?;
                Some(KeyrelReq::from_bytes(&request.body)?)
            }
            _ => None,
        };
        let limits = Limits::from_bytes(&ack.body)?;
        let endorsing = Endorsing::default();
        Ok(Self { wire, limits, state, awaits, next_stream: 1, endorsing })
    }

    /// Completes the evidence that is fetched from now on.
    pub fn endorse(&mut self, endorsing: Endorsing) {
        self.endorsing = endorsing;
    }

    /// What the enclave said it was doing when the connection was opened.
    pub fn state(&self) -> State {
        self.state
    }

    /// Asks again what the enclave is doing.
    ///
    /// # Errors
    /// What a peer can do wrong.
    pub fn refresh_state(&mut self) -> Result<State, ClientError> {
        self.wire.send(FrameKind::Ping, 0, &[0; 8])?;
        loop {
            let received = self.wire.receive()?;
            match received.kind {
                FrameKind::Pong | FrameKind::KeyrelReq => {}
                FrameKind::Status => {
                    self.state = Status::from_bytes(&received.body)?.state;
                    return Ok(self.state);
                }
                found => return Err(ClientError::Unexpected { found }),
            }
        }
    }

    /// Fetches the evidence of a serving enclave over a fresh challenge and appraises it.
    ///
    /// # Errors
    /// [`ClientError::Rejected`] names the step that failed; nothing can be sealed then.
    pub fn verify(&mut self, policy: &AppraisalPolicy) -> Result<VerifiedEnclave, ClientError> {
        let (bundle, challenge) = self.serving_evidence(policy)?;
        Ok(policy.appraise(&bundle, &challenge)?)
    }

    /// Fetches what [`verify`](Self::verify) judges, for somebody who keeps it: as old as the policy allows.
    ///
    /// # Errors
    /// [`ClientError::State`] when the enclave does not serve, and what a peer can do wrong.
    pub fn serving_evidence(
        &mut self,
        policy: &AppraisalPolicy,
    ) -> Result<(Vec<u8>, Challenge), ClientError> {
        self.expect_serving()?;
        let kind = match policy.max_age {
            MaxAge::Fresh => Kind::Freshness,
            MaxAge::Epoch => Kind::Serve,
        };
        let (bundle, mut challenge) = self.evidence(kind)?;
        if policy.max_age == MaxAge::Epoch {
            // The epoch's evidence answers no challenge, and none is demanded of it.
            challenge.nonce = None;
        }
        Ok((bundle, challenge))
    }

    /// Fetches evidence of a kind over a fresh challenge, without judging it.
    ///
    /// # Errors
    /// What a peer can do wrong.
    pub fn evidence(&mut self, kind: Kind) -> Result<(Vec<u8>, Challenge), ClientError> {
        let mut nonce = [0; 32];
        rng().fill_bytes(&mut nonce);
        let bundle = self.evidence_over(kind, nonce)?;
        Ok((bundle, Challenge { nonce: Some(nonce), now_unix: now_unix() }))
    }

    /// Fetches evidence of a kind over somebody's challenge.
    fn evidence_over(&mut self, kind: Kind, nonce: [u8; 32]) -> Result<Vec<u8>, ClientError> {
        let stream = self.stream();
        self.wire.send(FrameKind::EvidenceReq, stream, &EvidenceReq { kind, nonce }.to_bytes())?;
        let limit = u32::try_from(BUNDLE_MAX).unwrap_or(u32::MAX);
        let bundle = self.assemble(stream, FrameKind::Evidence, limit)?;
        Ok(self.endorsing.complete(bundle))
    }

    /// Fetches the client bundle and compares its BLAKE3 with those that the policy lists.
    ///
    /// # Errors
    /// [`ClientError::BundleDigest`] when it is another one.
    pub fn client_bundle(&mut self, policy: &AppraisalPolicy) -> Result<Vec<u8>, ClientError> {
        self.expect_serving()?;
        let bundle = self.fetch_client_bundle()?;
        let found = chrysalis_protocol::package::client_bundle_digest(&bundle);
        if !policy.client_bundles.contains(&found) {
            let found = found.iter().map(|byte| format!("{byte:02x}")).collect();
            return Err(ClientError::BundleDigest { found });
        }
        Ok(bundle)
    }

    /// Asks for the bundle a window at a time, so that the enclave never has more than that in its outbox.
    fn fetch_client_bundle(&mut self) -> Result<Vec<u8>, ClientError> {
        let mut assembler = Assembler::new(u32::try_from(CLIENT_BUNDLE_MAX).unwrap_or(u32::MAX));
        let mut offset = 0;
        loop {
            let stream = self.stream();
            let request = ClientBundleReq { offset };
            self.wire.send(FrameKind::ClientBundleReq, stream, &request.to_bytes())?;
            for _ in 0..CLIENT_BUNDLE_PIECES {
                let received = self.receive(stream, FrameKind::ClientBundle)?;
                let piece = Piece::from_bytes(&received.body)?;
                offset = u64::from(piece.offset).saturating_add(piece.bytes.len() as u64);
                if let Some(whole) = assembler.push(&piece)? {
                    return Ok(whole);
                }
            }
        }
    }

    /// As the owner of a package: verifies an enclave that waits for its key, and seals the key to it.
    ///
    /// # Errors
    /// [`ClientError::Rejected`] when the evidence is not good enough, [`ClientError::Release`] when the key is another
    /// package's; the key has not left then.
    pub fn release(
        &mut self,
        policy: &AppraisalPolicy,
        key: &PackageKey,
        terms: &ReleaseTerms,
    ) -> Result<VerifiedKeyRelease, ClientError> {
        self.awaited_package()?;
        let (bundle, challenge) = self.evidence(Kind::KeyRelease)?;
        let verified = policy.appraise_key_release(&bundle, &challenge)?;
        self.bring_key(Box::new(verified.seal(key, terms, &mut rng())?))?;
        Ok(verified)
    }

    /// As a host, between an enclave and a key broker: which package's key the enclave waits for.
    ///
    /// # Errors
    /// [`ClientError::State`] when it waits for none.
    pub fn awaited_package(&self) -> Result<KeyrelReq, ClientError> {
        let hint = "it does not need a key";
        self.awaits
            .filter(|_| self.state == State::AwaitingKey)
            .ok_or(ClientError::State { state: self.state, hint })
    }

    /// As a host: fetches evidence for a key release over the broker's challenge. The host cannot judge it, nor need it.
    ///
    /// # Errors
    /// What a peer can do wrong.
    pub fn key_evidence(&mut self, challenge: [u8; 32]) -> Result<Vec<u8>, ClientError> {
        self.evidence_over(Kind::KeyRelease, challenge)
    }

    /// As a host: brings what the broker sealed, on the connection that the evidence came over.
    ///
    /// # Errors
    /// [`ClientError::Refused`] when it is not the key that the enclave asked for.
    pub fn bring_key(&mut self, sealed: Box<[u8; SEALED_LEN]>) -> Result<(), ClientError> {
        let stream = self.stream();
        self.wire.send(FrameKind::KeyrelResp, stream, &KeyrelResp { sealed }.to_bytes())?;
        let close = Close::from_bytes(&self.receive(stream, FrameKind::Close)?.body)?;
        match close.code {
            CloseCode::Ok => Ok(()),
            code => Err(ClientError::Refused { code }),
        }
    }

    /// Seals a request to a verified enclave and sends it.
    ///
    /// # Errors
    /// [`ClientError::Request`] when the request cannot be sealed, and what a peer can do wrong.
    pub fn ask(
        &mut self,
        enclave: &VerifiedEnclave,
        body: &RequestBody,
    ) -> Result<Answer<'_>, ClientError> {
        let sealed = request::seal(&enclave.seal_to(), body, &mut rng())?;
        let stream = self.stream();
        let (head, frames) =
            sealed.bytes.split_at_checked(HEAD_LEN).unwrap_or((&sealed.bytes, &[]));
        let sealed_len = u32::try_from(sealed.bytes.len()).unwrap_or(u32::MAX);
        let head =
            Head::from_bytes(head).map_err(chrysalis_protocol::messages::MessageError::from)?;
        self.wire.send(FrameKind::Open, stream, &Open { sealed_len, head }.to_bytes())?;
        for chunk in frames.chunks(DATA_BYTES) {
            self.wire.send(FrameKind::HostData, stream, chunk)?;
        }
        self.wire.send(FrameKind::End, stream, &[])?;
        let terms = (enclave.receipt_key(), enclave.serving_policy().ack_window);
        let window = self.limits.egress_frames;
        Ok(Answer::new(&mut self.wire, stream, window, sealed.context, terms))
    }

    /// Asks the enclave to finish what runs and end.
    ///
    /// # Errors
    /// What a peer can do wrong.
    pub fn drain(&mut self) -> Result<(), ClientError> {
        self.wire.send(FrameKind::Drain, 0, &[])
    }

    fn expect_serving(&self) -> Result<(), ClientError> {
        let hint = match self.state {
            State::Serving => return Ok(()),
            State::Loading => "try again in a moment",
            State::AwaitingKey => "its owner releases the key with `chrysalis release`",
            State::Draining => "it takes no requests any more",
        };
        Err(ClientError::State { state: self.state, hint })
    }

    fn stream(&mut self) -> u64 {
        self.next_stream += 1;
        self.next_stream
    }

    fn assemble(
        &mut self,
        stream: u64,
        kind: FrameKind,
        limit: u32,
    ) -> Result<Vec<u8>, ClientError> {
        let mut assembler = Assembler::new(limit);
        loop {
            let received = self.receive(stream, kind)?;
            if let Some(whole) = assembler.push(&Piece::from_bytes(&received.body)?)? {
                return Ok(whole);
            }
        }
    }

    /// The next frame of a stream; a close in its place is a refusal.
    fn receive(&mut self, stream: u64, kind: FrameKind) -> Result<Received, ClientError> {
        loop {
            let received = self.wire.receive()?;
            match received.kind {
                found if found == kind && received.stream == stream => return Ok(received),
                FrameKind::Close if received.stream == stream => {
                    return Err(ClientError::Refused {
                        code: Close::from_bytes(&received.body)?.code,
                    });
                }
                FrameKind::Status | FrameKind::KeyrelReq => {}
                // An earlier stream of this connection that was given up.
                _ if received.stream < stream => {}
                found => return Err(ClientError::Unexpected { found }),
            }
        }
    }
}

fn expect(received: Received, kind: FrameKind) -> Result<Received, ClientError> {
    if received.kind == kind {
        Ok(received)
    } else {
        Err(ClientError::Unexpected { found: received.kind })
    }
}

fn rng() -> UnwrapErr<SysRng> {
    UnwrapErr(SysRng)
}

fn now_unix() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Bytes of a sealed request in one DATA frame.
const DATA_BYTES: usize = 60 << 10;
