//! The broker's decisions, without sockets: a challenge for a package, and evidence over it against a licence.

use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use chrysalis_attestation::policy::{Challenge, Rejection, VerifiedKeyRelease};
use chrysalis_protocol::bundle::Bundle;
use chrysalis_protocol::key_release::SEALED_LEN;
use chrysalis_protocol::messages::KeyrelReq;
use chrysalis_protocol::statement::Statement;
use chrysalis_runtime::rng::SystemRng;

use super::challenge::Challenges;
use super::clock::Clock;
use super::licence::{now_unix, tee_name};
use super::log::{Entry, Event};
use super::master::MasterKey;
use super::packages::{Packages, find};
use super::rate::{RateLimits, Rates};
use super::record::LicenceRecord;
use super::refusal::Refusal;
use super::spend::{Ask, refuse};
use super::store::{Answers, Store};
use crate::hex;

/// A broker that serves.
pub struct Service {
    packages: Packages,
    master: MasterKey,
    answers: Answers,
    clock: Clock,
    challenges: Mutex<Challenges>,
    rates: Mutex<Rates>,
    limited: AtomicU64,
    start: Instant,
}

/// What evidence came to, before the store is asked.
pub enum Judged {
    /// It is good: the store decides whether a release is left.
    Ask(Box<Ask>),
    /// It was answered before; the entry and the answer.
    Again(Box<Entry>, Box<[u8; SEALED_LEN]>),
    /// It is not; the entry that says why.
    Refused(Box<Entry>, Refusal),
}

impl Service {
    /// A broker over a store.
    pub fn new(store: &Store, master: MasterKey, limits: RateLimits) -> Self {
        Self {
            packages: store.shared(),
            master,
            answers: store.answers(),
            clock: Clock::new(store.last_unix()),
            challenges: Mutex::new(Challenges::new(CHALLENGES_MAX)),
            rates: Mutex::new(Rates::new(limits, CALLERS_MAX)),
            limited: AtomicU64::new(0),
            start: Instant::now(),
        }
    }

    /// Counts a call of an address, before anything is read from it.
    ///
    /// # Errors
    /// [`Refusal::Rate`].
    pub fn admit(&self, address: IpAddr) -> Result<(), Refusal> {
        self.count(|rates, now_us| rates.address(address, now_us))
    }

    /// Whether the log takes one more entry of this kind. What proved something always has its line; strangers, and
    /// those who bring old evidence again, have so many lines a minute, and are only counted beyond.
    pub fn has_line(&self, entry: &Entry) -> bool {
        let proved = !entry.chip.is_empty();
        let line = proved || lock(&self.rates).line(self.now_us());
        if !line {
            self.limited.fetch_add(1, Ordering::Relaxed);
        }
        line
    }

    /// Calls over the limits since this was asked last.
    pub fn take_limited(&self) -> u64 {
        self.limited.swap(0, Ordering::Relaxed)
    }

    /// A challenge for an enclave that waits for a package's key.
    ///
    /// # Errors
    /// The [`Refusal`].
    pub fn challenge(&self, body: &[u8]) -> Result<[u8; 32], Refusal> {
        let request = KeyrelReq::from_bytes(body)
            .map_err(|_| Refusal::Body { expected: "KEYREL_REQ (64 bytes)" })?;
        let now = self.clock.read(now_unix())?;
        find(&self.packages.now(), &request.package_id)?.check_standing(now)?;
        let rng = &mut SystemRng::default();
        lock(&self.challenges).give(request.package_id, self.now_us() / 1_000, rng)
    }

    /// Judges an evidence bundle. Takes milliseconds of computation.
    pub fn judge(&self, bundle: &[u8], address: IpAddr) -> Judged {
        let now = now_unix();
        let mut entry = Entry::new(Event::Release, now);
        entry.address = address.to_string();
        let steps = self.clock.read(now).and_then(|now| self.steps(bundle, now, &mut entry));
        match steps {
            Ok(Step::Ask(ask)) => Judged::Ask(Box::new(Ask { entry, ..*ask })),
            Ok(Step::Again(sealed)) => {
                entry.event = Event::Repeat;
                Judged::Again(Box::new(entry), sealed)
            }
            Err(refusal) => {
                refuse(&mut entry, &refusal);
                Judged::Refused(Box::new(entry), refusal)
            }
        }
    }

    /// 1. statement; 2. an answer that was given; 3. challenge; 4. licence; 5. appraisal; 6. platform and version;
    ///    7. rates; 8. the sealed key.
    fn steps(&self, bytes: &[u8], now: u64, entry: &mut Entry) -> Result<Step, Refusal> {
        // 1. What the evidence says it is; nothing in it is believed yet.
        let bundle = Bundle::parse(bytes).map_err(Rejection::from)?;
        let statement = Statement::from_bytes(bundle.statement).map_err(Rejection::Statement)?;
        let digest = statement.digest();
        entry.statement = hex::encode(&digest);
        entry.package_digest = hex::encode(&statement.package_digest);

        // 2. A call that is made again because its answer was lost.
        if let Some((package_id, sealed)) =
            self.answers.find(&digest).map_err(|_| Refusal::Store)?
        {
            entry.package_id = hex::encode(&package_id);
            // The same digest is the same statement, which was proved then.
            let packages = self.packages.now();
            let package = find(&packages, &package_id)?;
            package.check_standing(now)?;
            let licence = &package.licensed.licence;
            licence.check_enclave(statement.tee, statement.model_svn, package.floor)?;
            return Ok(Step::Again(sealed));
        }

        // 3. Made over a challenge of ours that was not answered yet.
        let nonce = statement.nonce;
        let package_id = lock(&self.challenges).take(&nonce, self.now_us() / 1_000)?;
        entry.package_id = hex::encode(&package_id);

        // 4. The licence stands.
        let packages = self.packages.now();
        let package = find(&packages, &package_id)?;
        let licence = &package.licensed.licence;
        entry.licence_serial = Some(licence.serial);
        package.check_standing(now)?;

        // 5. The evidence is good by the owner's policy, fresh, and for a key release.
        let challenge = Challenge { nonce: Some(nonce), now_unix: now };
        let verified = package.licensed.policy.appraise_key_release(bytes, &challenge)?;
        describe(&verified, entry);
        let found = verified.package().header().package_id;
        if found != package_id {
            return Err(Refusal::ChallengePackage { asked: package_id, found });
        }

        // 6. A platform and a security version that the licence covers.
        let attested = verified.statement();
        licence.check_enclave(attested.tee, attested.model_svn, package.floor)?;

        // 7. Only good evidence counts, so that strangers cannot use up a package's calls.
        self.count(|rates, now_us| {
            rates.package(package_id, now_us)?;
            rates.chip(machine(&verified), now_us)
        })?;

        // 8. The key leaves the store for as long as it takes to seal it.
        let record = &package.record;
        let bound = LicenceRecord::bound(&record.licence, &record.policy);
        let key = self.master.open(&package_id, &bound, &record.sealed_key);
        let key = key.ok_or(Refusal::StoredKey)?;
        let terms = licence.terms(package.floor);
        let sealed = verified.seal(&key, &terms, &mut SystemRng::default())?;
        entry.lease_seconds = licence.lease_seconds;
        entry.lease_tokens = licence.lease_tokens;
        Ok(Step::Ask(Box::new(Ask {
            licensed: package.licensed.clone(),
            svn: attested.model_svn,
            chip: machine(&verified),
            statement: digest,
            sealed: Box::new(sealed),
            entry: Entry::default(),
        })))
    }

    fn count(
        &self,
        call: impl FnOnce(&mut Rates, u64) -> Result<(), Refusal>,
    ) -> Result<(), Refusal> {
        let counted = call(&mut lock(&self.rates), self.now_us());
        if counted.is_err() {
            self.limited.fetch_add(1, Ordering::Relaxed);
        }
        counted
    }

    /// Time that no clock setting changes.
    fn now_us(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_micros()).unwrap_or(u64::MAX)
    }
}

/// How the steps end well.
enum Step {
    Ask(Box<Ask>),
    Again(Box<[u8; SEALED_LEN]>),
}

/// The machine's identity with zeros behind it: kinds of platform have ids of different lengths.
fn machine(verified: &VerifiedKeyRelease) -> [u8; 64] {
    let mut padded = [0; 64];
    for (to, from) in padded.iter_mut().zip(verified.hardware_id().as_bytes()) {
        *to = *from;
    }
    padded
}

/// What the evidence proved, for the log.
fn describe(verified: &VerifiedKeyRelease, entry: &mut Entry) {
    let statement = verified.statement();
    entry.content_digest = hex::encode(&statement.content_digest);
    entry.model_svn = Some(statement.model_svn);
    tee_name(statement.tee).clone_into(&mut entry.platform);
    entry.chip = hex::encode(verified.hardware_id().as_bytes());
    entry.measurement = hex::encode(&verified.measurement());
}

/// A thread that panicked left nothing half-changed in these tables.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Challenges that are remembered at once.
const CHALLENGES_MAX: usize = 16_384;
/// Callers whose rates are remembered at once.
const CALLERS_MAX: usize = 65_536;
