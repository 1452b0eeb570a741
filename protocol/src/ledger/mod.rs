//! The receipts that a host presents, judged together (docs/receipts.md): each by its signature and by what verified
//! evidence says of its boot, all by their chain, and no request paid twice.
//!
//! It lives here, beside the format, and not in a client or a verifier: whoever pays by receipts (a contract's
//! simulator, a fuzz target) needs neither. Which statements are true is the caller's to prove, by an appraisal.

mod fault;

pub use fault::{Fault, LedgerError, Place};

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap, HashSet};

use crate::codec::CodecError;
use crate::receipt::{RECEIPT_LEN, Receipt, ReceiptError, hash};
use crate::statement::{Kind, ServingPolicy, Statement};

/// A fault and where it is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Finding {
    /// The receipt.
    pub place: Place,
    /// What is wrong.
    pub fault: Fault,
}

/// What one payer owes: the last receipt of each of his requests, added up.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[expect(missing_docs, reason = "the names are those of the receipt's fields")]
pub struct Sum {
    pub requests: u64,
    pub cancelled: u64,
    pub failed: u64,
    pub prompt_units: u64,
    pub output_units: u64,
    pub cached_units: u64,
    pub reasoning_units: u64,
}

/// The result.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Account {
    /// Receipts that were read, good or not.
    pub receipts: usize,
    /// By payer tag.
    pub payers: BTreeMap<[u8; 32], Sum>,
    /// By boot: receipts that its key signed.
    pub boots: BTreeMap<[u8; 16], usize>,
    /// In the order of their places; [`FINDINGS_MAX`] at most.
    pub findings: Vec<Finding>,
    /// How many more there are. What they are about is not paid either.
    pub unlisted: usize,
}

/// Findings that are listed: a file of made-up receipts must not fill the memory of whoever judges it.
pub const FINDINGS_MAX: usize = 10_000;

/// Takes receipts one by one; [`Self::close`] tells what they come to. It remembers some 300 bytes of each that a boot
/// signed, and nothing of others.
#[derive(Debug)]
pub struct Ledger {
    boots: HashMap<[u8; 16], Boot>,
    /// Payer tags for which somebody escrowed; without a list everybody is believed to.
    escrowed: Option<HashSet<[u8; 32]>>,
    /// Whether others keep a part of the boot's receipts, so that gaps are no fault.
    partial: bool,
    streams: HashMap<[u8; 32], Stream>,
    payers: BTreeMap<[u8; 32], Sum>,
    receipts: usize,
    findings: Findings,
}

/// What was found so far.
#[derive(Debug, Default)]
struct Findings {
    listed: Vec<Finding>,
    unlisted: usize,
}

/// What evidence says of a boot, and the chain of its receipts.
#[derive(Debug)]
struct Boot {
    receipt_key: [u8; 32],
    content_digest: [u8; 48],
    policy_digest: [u8; 48],
    quantum: u32,
    /// Epochs of the statements that are known, by digest.
    epochs: HashMap<[u8; 48], u32>,
    /// In the order in which they came.
    links: Vec<Link>,
    /// Which of them has a hash.
    by_hash: HashMap<[u8; 32], usize>,
}

/// A receipt's place in the chain.
#[derive(Debug)]
struct Link {
    place: Place,
    previous: [u8; 32],
}

/// The receipts of one sealed request so far.
#[derive(Debug)]
struct Stream {
    place: Place,
    /// The latest one, where others may follow it.
    open: Option<Box<Receipt>>,
}

impl Ledger {
    /// An empty ledger. `escrowed` are the payer tags that somebody vouched for; `partial` says that others keep a part
    /// of the receipts, as when a payer judges his own.
    #[must_use]
    pub fn new(escrowed: Option<HashSet<[u8; 32]>>, partial: bool) -> Self {
        let (boots, streams, payers) = (HashMap::new(), HashMap::new(), BTreeMap::new());
        let findings = Findings::default();
        Self { boots, escrowed, partial, streams, payers, receipts: 0, findings }
    }

    /// Takes a serve statement of *verified* evidence, and the policy that it commits to. A boot has one for each epoch,
    /// and each names the one before.
    ///
    /// # Errors
    /// [`LedgerError`] when it is of another kind, or contradicts another one of its boot.
    pub fn state(
        &mut self,
        statement: &Statement,
        policy: &ServingPolicy,
    ) -> Result<(), LedgerError> {
        if statement.kind != Kind::Serve {
            return Err(LedgerError::Kind { found: statement.kind });
        }
        if policy.digest() != statement.policy_digest {
            return Err(LedgerError::Policy);
        }
        let boot_id = statement.boot_id;
        let boot = self.boots.entry(boot_id).or_insert_with(|| Boot::new(statement, policy));
        let same = [
            ("receipt key", boot.receipt_key == statement.receipt_key),
            ("model", boot.content_digest == statement.content_digest),
            ("serving policy", boot.policy_digest == statement.policy_digest),
            ("epoch", boot.know(statement.digest(), statement.epoch)),
            ("epoch before", boot.know_previous(statement)),
        ];
        match same.into_iter().find(|&(_, same)| !same) {
            Some((field, _)) => Err(LedgerError::Contradiction { boot_id, field }),
            None => Ok(()),
        }
    }

    /// Takes the next receipt of a file. What is wrong with it is found here, or by [`Self::close`].
    pub fn take(&mut self, place: Place, bytes: &[u8]) {
        self.receipts = self.receipts.saturating_add(1);
        if let Err(fault) = self.judge(place, bytes) {
            self.findings.add(place, fault);
        }
    }

    /// Follows the chains and adds up.
    #[must_use]
    pub fn close(mut self) -> Account {
        let (receipts, payers) = (self.receipts, self.payers);
        let mut account = Account { receipts, payers, ..Account::default() };
        for (boot_id, boot) in &self.boots {
            account.boots.insert(*boot_id, boot.links.len());
            boot.follow(self.partial, &mut self.findings);
        }
        self.findings.listed.sort_by_key(|finding| finding.place);
        account.findings = self.findings.listed;
        account.unlisted = self.findings.unlisted;
        account
    }

    fn judge(&mut self, place: Place, bytes: &[u8]) -> Result<(), Fault> {
        let boot_id = boot_of(bytes)?;
        let boot = self.boots.get_mut(&boot_id).ok_or(Fault::Boot { boot_id })?;
        let receipt = Receipt::verify(bytes, &boot.receipt_key).map_err(|error| match error {
            ReceiptError::Signature => Fault::Forged,
            error => Fault::Malformed(error),
        })?;
        boot.link(place, bytes, &receipt)?;
        boot.fits(&receipt)?;
        // Without an escrow it is nobody's: it also takes no request's place.
        if self.escrowed.as_ref().is_some_and(|tags| !tags.contains(&receipt.payer_tag)) {
            return Err(Fault::Payer);
        }
        let payers = &mut self.payers;
        match self.streams.entry(receipt.request_tag) {
            Entry::Vacant(entry) => {
                payers.entry(receipt.payer_tag).or_default().add(&receipt);
                entry.insert(Stream::at(place, receipt));
            }
            Entry::Occupied(mut entry) => {
                // Counts are cumulative: the latest receipt takes the place of the one before.
                let before = entry.get().continued_by(&receipt)?;
                let sum = payers.entry(receipt.payer_tag).or_default();
                sum.remove(before);
                sum.add(&receipt);
                entry.insert(Stream::at(place, receipt));
            }
        }
        Ok(())
    }
}

impl Boot {
    fn new(statement: &Statement, policy: &ServingPolicy) -> Self {
        Self {
            receipt_key: statement.receipt_key,
            content_digest: statement.content_digest,
            policy_digest: statement.policy_digest,
            quantum: policy.billing_quantum.into(),
            epochs: HashMap::new(),
            links: Vec::new(),
            by_hash: HashMap::new(),
        }
    }

    /// Remembers a statement; `false` when its epoch has another one, or it had another epoch.
    fn know(&mut self, digest: [u8; 48], epoch: u32) -> bool {
        let same = |(known, at): (&[u8; 48], &u32)| (*known == digest) == (*at == epoch);
        let fits = self.epochs.iter().all(same);
        if fits {
            self.epochs.insert(digest, epoch);
        }
        fits
    }

    /// The statement before is known by the one that follows it.
    fn know_previous(&mut self, statement: &Statement) -> bool {
        match statement.epoch.checked_sub(1) {
            Some(0) | None => statement.prev_digest == [0; 48],
            Some(epoch) => self.know(statement.prev_digest, epoch),
        }
    }

    /// What the boot signed has its place in the chain, whatever else is wrong with it.
    fn link(&mut self, place: Place, bytes: &[u8], receipt: &Receipt) -> Result<(), Fault> {
        let hash = hash(bytes);
        match self.by_hash.entry(hash) {
            Entry::Occupied(entry) => {
                let first = self.links.get(*entry.get()).map_or(place, |link| link.place);
                Err(Fault::Repeated { first })
            }
            Entry::Vacant(entry) => {
                entry.insert(self.links.len());
                self.links.push(Link { place, previous: receipt.previous });
                Ok(())
            }
        }
    }

    /// A receipt names a statement of its boot, and that statement's epoch, model and quantum.
    fn fits(&self, receipt: &Receipt) -> Result<(), Fault> {
        let stated = *self.epochs.get(&receipt.statement_digest).ok_or(Fault::Statement)?;
        let found = receipt.epoch;
        if found != stated {
            return Err(Fault::Epoch { found, stated });
        }
        if receipt.content_digest != self.content_digest {
            return Err(Fault::Content);
        }
        let (found, stated) = (receipt.quantum, self.quantum);
        if found != stated {
            return Err(Fault::Quantum { found, stated });
        }
        Ok(())
    }

    /// Gaps, forks, and places in files that are not in the order of signing.
    fn follow(&self, partial: bool, findings: &mut Findings) {
        // Which link follows each; and which follow a hash that is not here.
        let mut next: Vec<Option<usize>> = vec![None; self.links.len()];
        let mut begun: HashMap<[u8; 32], Option<usize>> = HashMap::new();
        let mut heads = Vec::new();
        for (at, link) in self.links.iter().enumerate() {
            let before = self.by_hash.get(&link.previous).copied();
            let follower = match before.and_then(|before| next.get_mut(before)) {
                Some(follower) => follower,
                None => begun.entry(link.previous).or_default(),
            };
            if let Some(other) = follower.and_then(|other| self.links.get(other)) {
                findings.add(link.place, Fault::Fork { other: other.place });
                heads.push(at);
                continue;
            }
            *follower = Some(at);
            if before.is_none() {
                heads.push(at);
                if link.previous != [0; 32] && !partial {
                    findings.add(link.place, Fault::Gap);
                }
            }
        }
        for head in heads {
            self.check_order(head, &next, findings);
        }
    }

    /// Along the order of signing, places in one file ascend.
    fn check_order(&self, head: usize, next: &[Option<usize>], findings: &mut Findings) {
        let mut signed: Vec<Place> = Vec::new();
        let mut at = Some(head);
        while let Some(link) = at.and_then(|at| self.links.get(at)) {
            signed.push(link.place);
            at = at.and_then(|at| next.get(at).copied().flatten());
        }
        // From the last signed to the first: whatever stands after one that was signed later is out of order.
        let mut latest: HashMap<usize, Place> = HashMap::new();
        for place in signed.into_iter().rev() {
            match latest.get(&place.file) {
                Some(&after) if after < place => findings.add(place, Fault::Order { after }),
                _ => {
                    latest.insert(place.file, place);
                }
            }
        }
    }
}

impl Findings {
    fn add(&mut self, place: Place, fault: Fault) {
        if self.listed.len() < FINDINGS_MAX {
            self.listed.push(Finding { place, fault });
        } else {
            self.unlisted = self.unlisted.saturating_add(1);
        }
    }
}

impl Stream {
    fn at(place: Place, receipt: Receipt) -> Self {
        Self { place, open: (!receipt.last).then(|| Box::new(receipt)) }
    }

    /// Later receipts of a stream repeat its names and count on; nothing follows the last one. The receipt before.
    fn continued_by(&self, next: &Receipt) -> Result<&Receipt, Fault> {
        let paid_twice = Fault::PaidTwice { first: self.place };
        let before = self.open.as_deref().ok_or(paid_twice)?;
        let same_stream = next.boot_id == before.boot_id && next.serial == before.serial;
        if !same_stream || next.index == before.index {
            return Err(paid_twice);
        }
        let fields = [
            ("index", next.index > before.index),
            ("payer tag", next.payer_tag == before.payer_tag),
            ("statement", next.statement_digest == before.statement_digest),
            ("prompt units", next.prompt_units >= before.prompt_units),
            ("output units", next.output_units >= before.output_units),
        ];
        match fields.into_iter().find(|&(_, continues)| !continues) {
            Some((field, _)) => Err(Fault::Stream { field }),
            None => Ok(before),
        }
    }
}

impl Sum {
    fn add(&mut self, receipt: &Receipt) {
        self.change(receipt, u64::saturating_add);
    }

    fn remove(&mut self, receipt: &Receipt) {
        self.change(receipt, u64::saturating_sub);
    }

    fn change(&mut self, receipt: &Receipt, by: fn(u64, u64) -> u64) {
        let counts: [(&mut u64, u64); 7] = [
            (&mut self.requests, 1),
            (&mut self.cancelled, receipt.cancelled.into()),
            (&mut self.failed, receipt.failed.into()),
            (&mut self.prompt_units, receipt.prompt_units.into()),
            (&mut self.output_units, receipt.output_units.into()),
            (&mut self.cached_units, receipt.cached_units.into()),
            (&mut self.reasoning_units, receipt.reasoning_units.into()),
        ];
        for (sum, units) in counts {
            *sum = by(*sum, units);
        }
    }
}

/// The boot that a receipt names, before anything of it is believed: it picks the key.
fn boot_of(bytes: &[u8]) -> Result<[u8; 16], Fault> {
    let cut = |_: CodecError| Fault::Cut { len: bytes.len() };
    if bytes.len() != RECEIPT_LEN {
        return Err(Fault::Cut { len: bytes.len() });
    }
    let mut reader = crate::codec::Reader::new(bytes);
    reader.bytes(BOOT_OFFSET).and_then(|_| reader.array()).map_err(cut)
}

/// Where a receipt names its boot.
const BOOT_OFFSET: usize = 16;
