//! The receipts that a host presents, judged together (docs/receipts.md): each by its signature and by what verified
//! evidence says of its boot, all by their chain, and no request paid twice.
//!
//! It lives here, beside the format, and not in a client or a verifier: whoever pays by receipts (a contract's
//! simulator, a fuzz target) needs neither. Which statements are true is the caller's to prove, by an appraisal.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap, HashSet};

use thiserror::Error;

use crate::codec::CodecError;
use crate::receipt::{RECEIPT_LEN, Receipt, ReceiptError, hash};
use crate::statement::{Kind, ServingPolicy, Statement};

/// Why a statement cannot be used to judge receipts.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
#[non_exhaustive]
pub enum LedgerError {
    /// Only serve statements name what receipts are about.
    #[error("the statement is of kind {found:?}, not of kind Serve")]
    Kind {
        /// Its kind.
        found: Kind,
    },
    /// The policy is not the one that the statement commits to.
    #[error("the serving policy is not the one of the statement")]
    Policy,
    /// Two statements of one boot do not fit together.
    #[error("two statements of boot {boot_id:02x?} differ in their {field}")]
    Contradiction {
        /// The boot.
        boot_id: [u8; 16],
        /// What differs and must not.
        field: &'static str,
    },
}

/// What is wrong with a receipt, or with its place among the others.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
#[non_exhaustive]
pub enum Fault {
    /// Not a whole receipt.
    #[error("{len} bytes are no receipt: it has {RECEIPT_LEN}")]
    Cut {
        /// How many there are.
        len: usize,
    },
    /// No evidence is known of its boot.
    #[error("no evidence is given of its boot {boot_id:02x?}")]
    Boot {
        /// The boot that it names.
        boot_id: [u8; 16],
    },
    /// The boot's key did not sign these bytes.
    #[error("the boot's receipt key did not sign it: it is forged or was altered")]
    Forged,
    /// The boot's key signed it, and yet it is not well-formed.
    #[error("it is signed and malformed: {0}")]
    Malformed(ReceiptError),
    /// It names a statement that no evidence of its boot shows.
    #[error("no evidence is given of the statement that it names")]
    Statement,
    /// Its epoch is not its statement's.
    #[error("it names epoch {found}, its statement is of epoch {stated}")]
    Epoch {
        /// The receipt's.
        found: u32,
        /// The statement's.
        stated: u32,
    },
    /// It is about another model than the boot serves.
    #[error("it names another model than its boot serves")]
    Content,
    /// It rounds by another quantum than the boot's policy says.
    #[error("it rounds to {found} tokens, the boot's policy to {stated}")]
    Quantum {
        /// The receipt's.
        found: u32,
        /// The policy's.
        stated: u32,
    },
    /// The same receipt again.
    #[error("it is receipt {} of file {} again", .first.number, .first.file)]
    Repeated {
        /// Where it was first.
        first: Place,
    },
    /// Another receipt charges the same sealed request.
    #[error("receipt {} of file {} charges the same request already", .first.number, .first.file)]
    PaidTwice {
        /// The receipt that counts.
        first: Place,
    },
    /// It does not continue its stream's receipts.
    #[error("its {field} does not continue the stream's receipt before it")]
    Stream {
        /// What does not.
        field: &'static str,
    },
    /// Nobody escrowed for its payer tag: the host may have asked itself.
    #[error("nobody known owes it: its payer tag is on no list")]
    Payer,
    /// The receipt before it is missing.
    #[error("the receipt before it in its boot is missing")]
    Gap,
    /// It stands in its file after one that was signed later.
    #[error("it stands after receipt {} of its file, which was signed later", .after.number)]
    Order {
        /// The one that was signed later.
        after: Place,
    },
    /// Another receipt continues the chain at the same place: the boot signed twice.
    #[error("receipt {} of file {} has its place in the chain", .other.number, .other.file)]
    Fork {
        /// The other one.
        other: Place,
    },
}

impl Fault {
    /// A stable name.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Cut { .. } => "receipt.cut",
            Self::Boot { .. } => "receipt.boot",
            Self::Forged => "receipt.forged",
            Self::Malformed(_) => "receipt.malformed",
            Self::Statement => "receipt.statement",
            Self::Epoch { .. } => "receipt.epoch",
            Self::Content => "receipt.content",
            Self::Quantum { .. } => "receipt.quantum",
            Self::Repeated { .. } => "receipt.repeated",
            Self::PaidTwice { .. } => "receipt.paid_twice",
            Self::Stream { .. } => "receipt.stream",
            Self::Payer => "receipt.payer",
            Self::Gap => "chain.gap",
            Self::Order { .. } => "chain.order",
            Self::Fork { .. } => "chain.fork",
        }
    }
}

/// Where a receipt stands, both counted from 1.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Place {
    /// The file.
    pub file: usize,
    /// The receipt in its file.
    pub number: usize,
}

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
    /// In the order of their places.
    pub findings: Vec<Finding>,
}

/// Takes receipts one by one; [`Self::close`] tells what they come to.
#[derive(Debug)]
pub struct Ledger {
    boots: HashMap<[u8; 16], Boot>,
    /// Payer tags for which somebody escrowed; without a list everybody is believed to.
    escrowed: Option<HashSet<[u8; 32]>>,
    /// Whether others keep a part of the boot's receipts, so that gaps are no fault.
    partial: bool,
    streams: HashMap<[u8; 32], Stream>,
    receipts: usize,
    findings: Vec<Finding>,
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
    by_hash: HashMap<[u8; 32], Place>,
}

/// A receipt's place in the chain.
#[derive(Debug)]
struct Link {
    place: Place,
    hash: [u8; 32],
    previous: [u8; 32],
}

/// The receipts of one sealed request so far.
#[derive(Debug)]
struct Stream {
    place: Place,
    receipt: Receipt,
}

impl Ledger {
    /// An empty ledger. `escrowed` are the payer tags that somebody vouched for; `partial` says that others keep a part
    /// of the receipts, as when a payer judges his own.
    #[must_use]
    pub fn new(escrowed: Option<HashSet<[u8; 32]>>, partial: bool) -> Self {
        let (boots, streams, findings) = (HashMap::new(), HashMap::new(), Vec::new());
        Self { boots, escrowed, partial, streams, receipts: 0, findings }
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
            self.findings.push(Finding { place, fault });
        }
    }

    /// Follows the chains and adds up.
    #[must_use]
    pub fn close(mut self) -> Account {
        let mut account = Account { receipts: self.receipts, ..Account::default() };
        for (boot_id, boot) in &self.boots {
            account.boots.insert(*boot_id, boot.links.len());
            boot.follow(self.partial, &mut self.findings);
        }
        for stream in self.streams.values() {
            let sum = account.payers.entry(stream.receipt.payer_tag).or_default();
            sum.add(&stream.receipt);
        }
        self.findings.sort_by_key(|finding| finding.place);
        account.findings = self.findings;
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
        match self.streams.entry(receipt.request_tag) {
            Entry::Vacant(entry) => {
                entry.insert(Stream { place, receipt });
            }
            Entry::Occupied(mut entry) => {
                entry.get().continued_by(&receipt)?;
                entry.insert(Stream { place, receipt });
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
            Entry::Occupied(entry) => Err(Fault::Repeated { first: *entry.get() }),
            Entry::Vacant(entry) => {
                entry.insert(place);
                self.links.push(Link { place, hash, previous: receipt.previous });
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
    fn follow(&self, partial: bool, findings: &mut Vec<Finding>) {
        let mut next: HashMap<[u8; 32], &Link> = HashMap::new();
        let mut heads = Vec::new();
        for link in &self.links {
            if let Some(other) = next.get(&link.previous) {
                let fault = Fault::Fork { other: other.place };
                findings.push(Finding { place: link.place, fault });
                heads.push(link);
                continue;
            }
            next.insert(link.previous, link);
            let first = link.previous == [0; 32];
            if first || !self.by_hash.contains_key(&link.previous) {
                heads.push(link);
                if !first && !partial {
                    findings.push(Finding { place: link.place, fault: Fault::Gap });
                }
            }
        }
        for head in heads {
            // The latest place in each file so far, along the order of signing.
            let mut latest: HashMap<usize, Place> = HashMap::new();
            let mut earlier: Vec<Place> = Vec::new();
            let mut at = Some(head);
            while let Some(link) = at {
                earlier.push(link.place);
                at = next.get(&link.hash).copied();
            }
            // From the last signed to the first: whatever stands after one that was signed later is out of order.
            for place in earlier.into_iter().rev() {
                match latest.get(&place.file) {
                    Some(&after) if after < place => {
                        findings.push(Finding { place, fault: Fault::Order { after } });
                    }
                    _ => {
                        latest.insert(place.file, place);
                    }
                }
            }
        }
    }
}

impl Stream {
    /// Later receipts of a stream repeat its names and count on; nothing follows the last one.
    fn continued_by(&self, next: &Receipt) -> Result<(), Fault> {
        let before = &self.receipt;
        let same_stream = next.boot_id == before.boot_id && next.serial == before.serial;
        if before.last || !same_stream || next.index == before.index {
            return Err(Fault::PaidTwice { first: self.place });
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
            None => Ok(()),
        }
    }
}

impl Sum {
    fn add(&mut self, receipt: &Receipt) {
        let adds: [(&mut u64, u64); 7] = [
            (&mut self.requests, 1),
            (&mut self.cancelled, receipt.cancelled.into()),
            (&mut self.failed, receipt.failed.into()),
            (&mut self.prompt_units, receipt.prompt_units.into()),
            (&mut self.output_units, receipt.output_units.into()),
            (&mut self.cached_units, receipt.cached_units.into()),
            (&mut self.reasoning_units, receipt.reasoning_units.into()),
        ];
        for (sum, units) in adds {
            *sum = sum.saturating_add(units);
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
