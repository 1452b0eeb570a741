//! The wait for the package key of a sealed package: evidence of kind 2, and the release that answers it.
//!
//! For every challenge the enclave makes a key pair that is used once, and states it. Whoever owns the package verifies
//! the statement and seals the package key to that pair. Nothing else is answered yet.

use std::collections::HashMap;
use std::sync::Arc;

use chrysalis_attestation::attester::Attester;
use chrysalis_protocol::frame::{Frame, FrameKind};
use chrysalis_protocol::hpke::KemKeyPair;
use chrysalis_protocol::key_release;
use chrysalis_protocol::messages::{CloseCode, EvidenceReq, KeyrelReq, KeyrelResp, State};
use chrysalis_protocol::package::{PackageKey, PublicHeader};
use chrysalis_protocol::statement::{KeyConfig, Kind};

use crate::counters::Counters;
use crate::engine::Event;
use crate::epoch::{Identity, Stated};
use crate::hub::{ConnectionId, Handler, Output};
use crate::lease::Lease;
use crate::limits::Limits;
use crate::reply;
use crate::rng::SystemRng;

/// Answers the owner until the package key is there, then waits for the load.
#[expect(missing_debug_implementations, reason = "it holds keys")]
pub struct KeyWait<'a> {
    identity: &'a Identity,
    package: &'a PublicHeader,
    attester: &'a mut dyn Attester,
    rng: SystemRng,
    limits: Limits,
    counters: Arc<Counters>,
    offers: HashMap<ConnectionId, Offer>,
    released: Option<(PackageKey, Lease)>,
}

/// A key pair that one owner was shown.
struct Offer {
    keys: KemKeyPair,
    statement_digest: [u8; 48],
}

impl<'a> KeyWait<'a> {
    /// Starts to wait.
    pub fn new(
        identity: &'a Identity,
        package: &'a PublicHeader,
        attester: &'a mut dyn Attester,
        limits: Limits,
        counters: Arc<Counters>,
    ) -> Self {
        let (rng, offers) = (SystemRng::default(), HashMap::new());
        Self { identity, package, attester, rng, limits, counters, offers, released: None }
    }

    /// The package key, once it was released, and the terms that came with it.
    pub fn into_released(self) -> Option<(PackageKey, Lease)> {
        self.released
    }

    /// States a fresh key pair for a challenge, and remembers it for this connection.
    fn offer(&mut self, id: ConnectionId, challenge: [u8; 32], now_ms: u64) -> Option<Vec<u8>> {
        let keys = KemKeyPair::generate(&mut self.rng);
        let key_config = KeyConfig { epoch: 0, sealing_key: keys.sealing_key().clone() };
        let mut statement =
            self.identity.statement(Kind::KeyRelease, 0, key_config.digest(), now_ms);
        statement.nonce = challenge;
        let Stated { statement, attested } = Stated::new(self.attester, statement).ok()?;
        self.offers.insert(id, Offer { keys, statement_digest: statement.digest() });
        Some(self.identity.bundle(&statement, &attested, &key_config, None))
    }

    /// Opens a release and checks that it brings the key of this package.
    fn take(
        &mut self,
        id: ConnectionId,
        sealed: &[u8],
        now_ms: u64,
    ) -> Option<(PackageKey, Lease)> {
        let offer = self.offers.remove(&id)?;
        let release = key_release::open(offer.keys, &offer.statement_digest, sealed).ok()?;
        let header = self.package.header();
        let key = PackageKey::new(release.package_key.clone());
        let fits = release.package_id == header.package_id
            && header.model_svn >= release.min_model_svn
            && key.fits(header);
        let lease = Lease::new(release.lease_seconds, release.lease_tokens, now_ms);
        fits.then_some((key, lease))
    }
}

impl Handler for KeyWait<'_> {
    fn frame(&mut self, id: ConnectionId, frame: &Frame<'_>, now_ms: u64, out: &mut Vec<Output>) {
        let stream = frame.stream;
        match frame.kind {
            FrameKind::Hello => {
                let status = self.counters.status(State::AwaitingKey, 0);
                if !reply::hello(id, frame, &self.limits, &status, out) {
                    return;
                }
                let request = KeyrelReq {
                    package_id: self.package.header().package_id,
                    package_digest: self.package.package_digest(),
                };
                reply::send(id, FrameKind::KeyrelReq, 0, &request.to_bytes(), out);
            }
            FrameKind::EvidenceReq => match EvidenceReq::from_bytes(frame.body) {
                Ok(EvidenceReq { kind: Kind::KeyRelease, nonce }) => {
                    match self.offer(id, nonce, now_ms) {
                        Some(bundle) => reply::evidence(id, stream, &bundle, out),
                        None => reply::close(id, stream, CloseCode::Internal, out),
                    }
                }
                Ok(_) => reply::close(id, stream, CloseCode::Busy, out),
                Err(_) => out.push(Output::Reset(id)),
            },
            FrameKind::KeyrelResp => match KeyrelResp::from_bytes(frame.body) {
                Ok(response) => {
                    let released = self.take(id, response.sealed.as_slice(), now_ms);
                    let good = released.is_some();
                    let code = if good { CloseCode::Ok } else { CloseCode::Rejected };
                    self.released = self.released.take().or(released);
                    reply::close(id, stream, code, out);
                }
                Err(_) => out.push(Output::Reset(id)),
            },
            FrameKind::Ping if frame.body.len() == 8 => {
                reply::send(id, FrameKind::Pong, stream, frame.body, out);
                let status = self.counters.status(State::AwaitingKey, 0).to_bytes();
                reply::send(id, FrameKind::Status, 0, &status, out);
            }
            FrameKind::Open | FrameKind::ClientBundleReq => {
                reply::close(id, stream, CloseCode::Busy, out);
            }
            // What belongs to a stream that was closed above.
            FrameKind::HostData | FrameKind::End | FrameKind::Cancel | FrameKind::HostCredit => {}
            _ => out.push(Output::Reset(id)),
        }
    }

    fn closed(&mut self, id: ConnectionId, _out: &mut Vec<Output>) {
        self.offers.remove(&id);
    }

    fn engine(&mut self, _events: Vec<Event>, _now_ms: u64, _out: &mut Vec<Output>) {}

    fn tick(&mut self, _now_ms: u64, _out: &mut Vec<Output>) {}

    fn next_wake_ms(&self) -> Option<u64> {
        None
    }

    fn is_done(&self) -> bool {
        self.released.is_some()
    }
}
