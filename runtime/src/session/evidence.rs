//! Evidence on request: the epoch's, or the epoch's with a fresh report over a batch of challenges.

use chrysalis_protocol::frame::Frame;
use chrysalis_protocol::freshness::{Freshness, Tree};
use chrysalis_protocol::messages::{CloseCode, EvidenceReq};
use chrysalis_protocol::statement::Kind;

use super::{Gateway, StreamId};
use crate::counters::Counters;
use crate::epoch::Epoch;
use crate::hub::Output;
use crate::reply;

/// A client's challenge that waits for the next report.
pub(super) struct Challenge {
    pub(super) stream: StreamId,
    nonce: [u8; 32],
    /// When the batch that it is in is attested.
    pub(super) due_ms: u64,
}

impl Gateway {
    pub(super) fn evidence(
        &mut self,
        id: StreamId,
        frame: &Frame<'_>,
        now_ms: u64,
        out: &mut Vec<Output>,
    ) {
        match EvidenceReq::from_bytes(frame.body) {
            Ok(EvidenceReq { kind: Kind::Serve, .. }) => {
                let epoch = self.parts.epochs.current();
                let bundle = self.parts.identity.bundle(
                    &epoch.statement,
                    &epoch.evidence,
                    &epoch.key_config,
                    None,
                );
                reply::evidence(id.0, id.1, &bundle, out);
            }
            Ok(EvidenceReq { kind: Kind::Freshness, nonce }) => {
                if self.challenges.len() >= self.parts.limits.freshness_batch {
                    return reply::close(id.0, id.1, CloseCode::Busy, out);
                }
                let due_ms =
                    self.challenges.first().map_or(now_ms + GATHER_MS, |first| first.due_ms);
                self.challenges.push(Challenge { stream: id, nonce, due_ms });
            }
            // The key is there: nobody needs to release it again.
            Ok(EvidenceReq { kind: Kind::KeyRelease, .. }) => {
                reply::close(id.0, id.1, CloseCode::Rejected, out);
            }
            Err(_) => out.push(Output::Reset(id.0)),
        }
    }

    /// One report for all challenges that were gathered, each client with its own path.
    pub(super) fn refresh(&mut self, now_ms: u64, out: &mut Vec<Output>) {
        if self.challenges.first().is_none_or(|challenge| challenge.due_ms > now_ms) {
            return;
        }
        let batch = std::mem::take(&mut self.challenges);
        let nonces: Vec<_> = batch.iter().map(|challenge| challenge.nonce).collect();
        let Ok(tree) = Tree::new(&nonces) else { return };
        let identity = &self.parts.identity;
        let epoch = self.parts.epochs.current();
        let mut statement =
            identity.statement(Kind::Freshness, epoch.number, epoch.key_config.digest(), now_ms);
        statement.nonce = tree.root();
        statement.prev_digest = epoch.statement_digest;
        let attested = self.parts.attester.attest(&statement.report_data().to_bytes());
        for (index, challenge) in batch.iter().enumerate() {
            let (Ok(fresh), Some(path)) = (&attested, tree.path(index)) else {
                Counters::add(&self.parts.counters.internal, 1);
                reply::close(challenge.stream.0, challenge.stream.1, CloseCode::Internal, out);
                continue;
            };
            let bytes = statement.to_bytes();
            let section = Freshness { statement: &bytes, report: &fresh.report, path }.to_bytes();
            let bundle = identity.bundle(
                &epoch.statement,
                &epoch.evidence,
                &epoch.key_config,
                Some(&section),
            );
            reply::evidence(challenge.stream.0, challenge.stream.1, &bundle, out);
        }
    }

    /// Begins the next epoch. Where the platform gives no evidence the old one goes on, and is full when it is full.
    pub(super) fn rotate(&mut self, now_ms: u64) {
        let parts = &mut self.parts;
        let next = Epoch::begin(
            &parts.identity,
            Some(parts.epochs.current()),
            &mut *parts.attester,
            &mut self.rng,
            now_ms,
        );
        match next {
            Ok(next) => parts.epochs.rotate(next, now_ms),
            Err(_) => {
                Counters::add(&parts.counters.internal, 1);
                self.rotate_from_ms = now_ms.saturating_add(ROTATE_AGAIN_MS);
            }
        }
    }
}

/// Challenges are gathered for this long, so that a crowd of clients costs one report.
const GATHER_MS: u64 = 20;

/// A platform that gave no evidence is asked again after this long.
const ROTATE_AGAIN_MS: u64 = 1_000;
