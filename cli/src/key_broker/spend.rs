//! What a release costs: decided, spent and kept in one transaction of the store.

use std::sync::Arc;

use chrysalis_protocol::key_release::SEALED_LEN;
use redb::{ReadableTable, TableDefinition, WriteTransaction};

use super::error::BrokerError;
use super::licence::{Licensed, Spent};
use super::log::{Entry, Event};
use super::refusal::Refusal;

/// A release to be decided.
pub struct Ask {
    /// The licence that it falls under.
    pub licensed: Arc<Licensed>,
    /// The chip, as the platform proved it.
    pub chip: [u8; 64],
    /// The digest of the statement, by which it is released once.
    pub statement: [u8; 48],
    /// The sealed answer, which leaves when it is paid for.
    pub sealed: Box<[u8; SEALED_LEN]>,
    /// What the log will say.
    pub entry: Entry,
}

/// What a transaction has to do.
pub enum Job {
    /// Decide a release.
    Release(Box<Ask>),
    /// Log what was decided elsewhere.
    Note(Box<Entry>),
}

/// What came of a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Paid for; or given again, because it was paid for.
    Sealed(Box<[u8; SEALED_LEN]>),
    /// A budget is used up.
    Refused(Refusal),
    /// Logged.
    Noted,
}

/// An answer that was given: the package, and the sealed release.
pub type Answer = ([u8; 16], Box<[u8; SEALED_LEN]>);

/// Spends one release, or finds out why not.
pub fn decide(txn: &WriteTransaction, ask: Ask) -> Result<(Outcome, Entry), BrokerError> {
    let mut entry = ask.entry;
    let licence = &ask.licensed.licence;
    let mut answers = txn.open_table(ANSWERS).map_err(failed)?;
    if let Some(answer) = answers.get(ask.statement).map_err(failed)? {
        // Two calls with the same evidence, side by side.
        entry.event = Event::Repeat;
        return Ok((Outcome::Sealed(read_answer(answer.value())?.1), entry));
    }
    let mut spent = txn.open_table(SPENT).map_err(failed)?;
    let mut chips = txn.open_table(CHIPS).map_err(failed)?;
    let chip_key = (licence.package_id, ask.chip);
    let of_chip = chips.get(chip_key).map_err(failed)?.map_or(0, |count| count.value());
    let so_far = read_spent(&spent, &licence.package_id)?;
    let (after, of_chip) = match licence.spend(so_far, of_chip) {
        Ok(after) => after,
        Err(refusal) => {
            refuse(&mut entry, &refusal);
            return Ok((Outcome::Refused(refusal), entry));
        }
    };
    let counts = (after.releases, after.tokens);
    spent.insert(licence.package_id, counts).map_err(failed)?;
    chips.insert(chip_key, of_chip).map_err(failed)?;
    let answer = [licence.package_id.as_slice(), ask.sealed.as_slice()].concat();
    answers.insert(ask.statement, answer.as_slice()).map_err(failed)?;
    let mut answered = txn.open_table(ANSWERED).map_err(failed)?;
    answered.insert((entry.unix, ask.statement), ()).map_err(failed)?;
    entry.releases_spent = Some(after.releases);
    entry.tokens_spent = Some(after.tokens);
    Ok((Outcome::Sealed(ask.sealed), entry))
}

/// Makes an entry that of a refusal.
pub fn refuse(entry: &mut Entry, refusal: &Refusal) {
    entry.event = Event::Refuse;
    refusal.code().clone_into(&mut entry.code);
    entry.detail = refusal.to_string();
}

/// Answers that nobody can want any more: the enclave's key pair is gone with its connection.
pub fn forget_answers(txn: &WriteTransaction, now: u64) -> Result<(), BrokerError> {
    let mut answered = txn.open_table(ANSWERED).map_err(failed)?;
    let mut answers = txn.open_table(ANSWERS).map_err(failed)?;
    loop {
        let first = answered.first().map_err(failed)?.map(|(key, _)| key.value());
        match first {
            Some((at, statement)) if now.saturating_sub(at) > ANSWER_SECONDS => {
                answered.remove((at, statement)).map_err(failed)?;
                answers.remove(statement).map_err(failed)?;
            }
            _ => return Ok(()),
        }
    }
}

pub fn read_answer(bytes: &[u8]) -> Result<Answer, BrokerError> {
    let damaged = BrokerError::Record { record: "answer" };
    let (package_id, sealed) = bytes.split_first_chunk().ok_or(damaged)?;
    Ok((*package_id, Box::new(to_array(sealed)?)))
}

pub fn read_spent(
    table: &impl ReadableTable<[u8; 16], (u64, u64)>,
    package_id: &[u8; 16],
) -> Result<Spent, BrokerError> {
    let spent = table.get(package_id).map_err(failed)?.map(|spent| spent.value());
    Ok(spent.map_or_else(Spent::default, |(releases, tokens)| Spent { releases, tokens }))
}

/// Bytes of a length that the store always writes.
///
/// # Errors
/// [`BrokerError::Record`].
pub fn to_array<const N: usize>(bytes: &[u8]) -> Result<[u8; N], BrokerError> {
    bytes.try_into().map_err(|_| BrokerError::Record { record: "number" })
}

/// What the database says.
pub fn failed(error: impl std::fmt::Display) -> BrokerError {
    BrokerError::Store(error.to_string())
}

/// An answer is given again for this long; a statement's key pair lives no longer than a connection.
const ANSWER_SECONDS: u64 = 86_400;

/// Releases and tokens, by package.
pub const SPENT: TableDefinition<'_, [u8; 16], (u64, u64)> = TableDefinition::new("spent");
/// Releases, by package and chip.
pub const CHIPS: TableDefinition<'_, ([u8; 16], [u8; 64]), u64> = TableDefinition::new("chips");
/// Package and sealed answer, by statement digest.
pub const ANSWERS: TableDefinition<'_, [u8; 48], &[u8]> = TableDefinition::new("answers");
/// When each answer was given.
pub const ANSWERED: TableDefinition<'_, (u64, [u8; 48]), ()> = TableDefinition::new("answered");
