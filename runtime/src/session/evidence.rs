//! Evidence on request: the epoch's, or the epoch's with a fresh report over a batch of challenges.
//!
//! The platform's firmware makes one report at a time and may take long over it. So one is asked for at a time, the
//! session goes on meanwhile, and what is challenged until the answer comes shares the next one.

use chrysalis_attestation::attester::AttesterError;
use chrysalis_protocol::frame::Frame;
use chrysalis_protocol::freshness::{Freshness, Tree};
use chrysalis_protocol::messages::{CloseCode, EvidenceReq};
use chrysalis_protocol::statement::{Kind, Statement};

use super::{Gateway, StreamId};
use crate::counters::Counters;
use crate::epoch::{Draft, Stated};
use crate::hub::{ConnectionId, Output};
use crate::reply;

/// What waits for the platform.
#[derive(Default)]
pub(super) struct Reports {
    /// Gathered for the next batch, the oldest first.
    challenges: Vec<Challenge>,
    asked: Option<Asked>,
    /// The next batch is attested no sooner, unless it is full.
    batch_from_ms: u64,
    /// After a rotation that the platform gave no evidence for, the time of the next try.
    rotate_from_ms: u64,
}

/// A client's challenge that waits for its report.
struct Challenge {
    stream: StreamId,
    nonce: [u8; 32],
    since_ms: u64,
}

/// What the platform was asked to attest.
enum Asked {
    /// A freshness statement over a batch.
    Batch(Box<Batch>),
    /// The next epoch.
    Epoch(Box<Draft>),
}

struct Batch {
    /// Of those that wait no longer, the stream is gone.
    waiting: Vec<Option<Challenge>>,
    tree: Tree,
    statement: Statement,
}

impl Reports {
    /// When the gathered challenges are due; never while the platform is at work.
    fn batch_due_ms(&self) -> Option<u64> {
        let oldest = self.challenges.first().filter(|_| self.asked.is_none())?;
        Some(oldest.since_ms.saturating_add(GATHER_MS).max(self.batch_from_ms))
    }

    /// When an epoch that is due at `epoch_ms` can be followed by the next; never while the platform is at work.
    fn rotation_due_ms(&self, epoch_ms: u64) -> Option<u64> {
        self.asked.is_none().then(|| epoch_ms.max(self.rotate_from_ms))
    }

    /// When time alone changes something.
    pub(super) fn next_ms(&self, epoch_ms: u64) -> Option<u64> {
        let oldest = self.waiting().map(|challenge| challenge.since_ms).min();
        let patience = oldest.map(|since| since.saturating_add(PATIENCE_MS));
        let due = [self.batch_due_ms(), self.rotation_due_ms(epoch_ms), patience];
        due.into_iter().flatten().min()
    }

    fn waiting(&self) -> impl Iterator<Item = &Challenge> {
        let asked = match &self.asked {
            Some(Asked::Batch(batch)) => batch.waiting.as_slice(),
            _ => &[],
        };
        self.challenges.iter().chain(asked.iter().flatten())
    }

    #[cfg(test)]
    pub(super) fn num_waiting(&self) -> usize {
        self.waiting().count()
    }

    /// Takes out the challenges that `gone` picks.
    fn take(&mut self, gone: impl Fn(&Challenge) -> bool) -> Vec<StreamId> {
        let mut taken: Vec<_> =
            self.challenges.extract_if(.., |challenge| gone(challenge)).collect();
        if let Some(Asked::Batch(batch)) = &mut self.asked {
            let late = |entry: &mut Option<Challenge>| entry.take_if(|challenge| gone(challenge));
            taken.extend(batch.waiting.iter_mut().filter_map(late));
        }
        taken.into_iter().map(|challenge| challenge.stream).collect()
    }

    /// A connection that ended waits for nothing.
    pub(super) fn forget(&mut self, id: ConnectionId) {
        self.take(|challenge| challenge.stream.0 == id);
    }
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
                reply::evidence(id.0, id.1, &self.bundle(None), out);
            }
            Ok(EvidenceReq { kind: Kind::Freshness, nonce }) => {
                let most = self.parts.limits.freshness_batch;
                if self.reports.challenges.len() >= most {
                    return reply::close(id.0, id.1, CloseCode::Busy, out);
                }
                let challenge = Challenge { stream: id, nonce, since_ms: now_ms };
                self.reports.challenges.push(challenge);
                // A full batch waits for nobody else.
                if self.reports.challenges.len() == most && self.reports.asked.is_none() {
                    self.ask_batch(now_ms);
                }
            }
            // The key is there: nobody needs to release it again.
            Ok(EvidenceReq { kind: Kind::KeyRelease, .. }) => {
                reply::close(id.0, id.1, CloseCode::Rejected, out);
            }
            Err(_) => out.push(Output::Reset(id.0)),
        }
    }

    fn bundle(&self, freshness: Option<&[u8]>) -> Vec<u8> {
        let epoch = self.parts.epochs.current();
        let identity = &self.parts.identity;
        identity.bundle(&epoch.statement, &epoch.attested, &epoch.key_config, freshness)
    }

    /// Asks the platform for what is due, the next epoch first: without it requests are refused in the end.
    pub(super) fn ask_platform(&mut self, now_ms: u64, out: &mut Vec<Output>) {
        let late = |challenge: &Challenge| now_ms.saturating_sub(challenge.since_ms) >= PATIENCE_MS;
        for (connection, stream) in self.reports.take(late) {
            reply::close(connection, stream, CloseCode::Busy, out);
        }
        let is_due = |due: Option<u64>| due.is_some_and(|due_ms| due_ms <= now_ms);
        let policy = &self.parts.identity.policy;
        if self.parts.epochs.is_due(policy, now_ms) && is_due(self.reports.rotation_due_ms(0)) {
            let current = self.parts.epochs.current();
            let draft = Draft::new(&self.parts.identity, Some(current), &mut self.rng, now_ms);
            let statement = draft.statement().clone();
            self.reports.asked = Some(Asked::Epoch(Box::new(draft)));
            (self.parts.platform)(statement);
        } else if is_due(self.reports.batch_due_ms()) {
            self.ask_batch(now_ms);
        }
    }

    /// One report for all challenges that were gathered.
    fn ask_batch(&mut self, now_ms: u64) {
        let waiting = std::mem::take(&mut self.reports.challenges);
        let nonces: Vec<_> = waiting.iter().map(|challenge| challenge.nonce).collect();
        let Ok(tree) = Tree::new(&nonces) else { return };
        let (identity, epoch) = (&self.parts.identity, self.parts.epochs.current());
        let digest = epoch.key_config.digest();
        let mut statement = identity.statement(Kind::Freshness, epoch.number, digest, now_ms);
        statement.nonce = tree.root();
        statement.prev_digest = epoch.statement_digest;
        // It says what it refreshes: the GPUs answered for their epoch.
        statement.gpu_digest = epoch.statement.gpu_digest;
        statement.gpu_count = epoch.statement.gpu_count;
        statement.gpu_flags = epoch.statement.gpu_flags;
        let asked = statement.clone();
        let waiting = waiting.into_iter().map(Some).collect();
        self.reports.asked = Some(Asked::Batch(Box::new(Batch { waiting, tree, statement })));
        self.reports.batch_from_ms = now_ms.saturating_add(BATCH_EVERY_MS);
        (self.parts.platform)(asked);
    }

    /// The platform answered.
    pub(super) fn take_evidence(
        &mut self,
        stated: Result<Stated, AttesterError>,
        now_ms: u64,
        out: &mut Vec<Output>,
    ) {
        if stated.is_err() {
            Counters::add(&self.parts.counters.internal, 1);
        }
        match (self.reports.asked.take(), stated) {
            (Some(Asked::Batch(batch)), stated) => {
                self.answer_batch(*batch, stated.as_ref().ok(), out);
            }
            (Some(Asked::Epoch(draft)), Ok(stated)) => {
                let next = draft.attested(stated, &self.parts.identity.policy);
                self.parts.epochs.rotate(next, now_ms);
            }
            // The old epoch goes on, and is full when it is full.
            (Some(Asked::Epoch(_)), Err(_)) => {
                self.reports.rotate_from_ms = now_ms.saturating_add(ROTATE_AGAIN_MS);
            }
            (None, _) => {}
        }
    }

    /// Each client gets the one report with its own path. No epoch began since it was asked for.
    fn answer_batch(&self, batch: Batch, stated: Option<&Stated>, out: &mut Vec<Output>) {
        let statement = batch.statement.to_bytes();
        for (index, challenge) in batch.waiting.into_iter().enumerate() {
            let Some(Challenge { stream: (connection, stream), .. }) = challenge else { continue };
            let (Some(stated), Some(path)) = (stated, batch.tree.path(index)) else {
                reply::close(connection, stream, CloseCode::Internal, out);
                continue;
            };
            let section =
                Freshness { statement: &statement, report: &stated.attested.evidence.report, path };
            let bundle = self.bundle(Some(&section.to_bytes()));
            reply::evidence(connection, stream, &bundle, out);
        }
    }
}

/// Challenges are gathered for this long, so that a crowd of clients costs one report.
const GATHER_MS: u64 = 20;

/// Between two batches that are not full: four reports a second, however many clients come one by one.
const BATCH_EVERY_MS: u64 = 250;

/// A challenge that the platform leaves without its report for so long is closed as busy.
const PATIENCE_MS: u64 = 10_000;

/// A platform that gave no evidence is asked again after this long.
const ROTATE_AGAIN_MS: u64 = 1_000;
