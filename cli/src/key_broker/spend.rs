//! What a release costs: decided, spent and kept in one transaction of the store.

use std::sync::Arc;

use chrysalis_protocol::key_release::SEALED_LEN;
use redb::{ReadableTable, TableDefinition, WriteTransaction};

use super::error::BrokerError;
use super::licence::{Licensed, Spent};
use super::log::{Entry, Event};
use super::packages::{ById, find};
use super::refusal::Refusal;

/// A release to be decided.
pub struct Ask {
    /// The licence that it falls under.
    pub licensed: Arc<Licensed>,
    /// The model's security version, as the platform proved it.
    pub svn: u32,
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
pub fn decide(
    txn: &WriteTransaction,
    packages: &ById,
    ask: Ask,
) -> Result<(Outcome, Entry), BrokerError> {
    let still = still(packages, &ask);
    let mut entry = ask.entry;
    let licence = &ask.licensed.licence;
    if let Err(refusal) = still {
        refuse(&mut entry, &refusal);
        return Ok((Outcome::Refused(refusal), entry));
    }
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

/// Whether the licence by which evidence was judged is still the package's: it may have been taken back since.
fn still(packages: &ById, ask: &Ask) -> Result<(), Refusal> {
    let judged = &ask.licensed.licence;
    let package = find(packages, &judged.package_id)?;
    if package.record.revoked {
        return Err(Refusal::Revoked);
    }
    if ask.svn < package.floor {
        return Err(Refusal::Svn { found: ask.svn, floor: package.floor });
    }
    if package.licensed.licence.serial != judged.serial {
        return Err(Refusal::Replaced);
    }
    Ok(())
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

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use chrysalis_protocol::package::PackageKey;
    use chrysalis_protocol::secret::Secret;
    use chrysalis_runtime::rng::SystemRng;
    use redb::Database;

    use super::*;
    use crate::key_broker::master::MasterKey;
    use crate::key_broker::record::LicenceRecord;
    use crate::key_broker::store::{Store, database_path};
    use crate::{hex, policy_file};

    /// A store with a licence for two releases, one to a chip.
    fn store(folder: &Path) -> (Store, Arc<Licensed>) {
        let master = MasterKey::read_or_create(&folder.join("master.key")).unwrap().0;
        let mut store = Store::create(&folder.join("store"), &master, 1_000).unwrap();
        let licensed = add(&mut store, &master, [1; 16], 1, 1);
        (store, licensed)
    }

    /// Stores a licence for a package of model `m`.
    fn add(
        store: &mut Store,
        master: &MasterKey,
        package_id: [u8; 16],
        serial: u64,
        svn: u32,
    ) -> Arc<Licensed> {
        let licence = format!(
            "format = 1\nserial = {serial}\npackage_id = \"{}\"\n\
            model = \"m\"\nminimum_svn = {svn}\npolicy = \"p\"\nplatforms = [\"simulated\"]\n\
            expires = 2100-01-01T00:00:00Z\nreleases = 2\nreleases_per_chip = 1\n\
            lease_seconds = \"unlimited\"\nlease_tokens = 10\ntoken_budget = \"unlimited\"\n",
            hex::encode(&package_id)
        );
        let policy = policy_file::fitting([1; 48], [2; 32], 1, [4; 32]).to_toml();
        let licensed = Arc::new(Licensed::from_toml(&licence, &policy).unwrap());
        let key = PackageKey::new(Secret::from([7; 32]));
        let bound = LicenceRecord::bound(&licence, &policy);
        let rng = &mut SystemRng::default();
        let sealed_key = master.seal(&package_id, &bound, &key, rng).unwrap();
        let record = LicenceRecord { revoked: false, licence, policy, sealed_key };
        store.add(&licensed, &record, 1_000).unwrap();
        licensed
    }

    fn ask(licensed: &Arc<Licensed>, chip: u8, statement: u8, answer: u8, now: u64) -> Job {
        let licensed = Arc::clone(licensed);
        let sealed = Box::new([answer; SEALED_LEN]);
        let package_id = "01".repeat(16);
        let named = "ab".repeat(usize::from(statement) + 1);
        let entry = Entry { package_id, statement: named, ..Entry::new(Event::Release, now) };
        let (chip, statement) = ([chip; 64], [statement; 48]);
        Job::Release(Box::new(Ask { licensed, svn: 1, chip, statement, sealed, entry }))
    }

    #[test]
    fn what_is_decided_together_is_decided_in_order_and_paid_once() {
        let folder = tempfile::tempdir().unwrap();
        let (mut store, licensed) = store(folder.path());
        let jobs = vec![
            ask(&licensed, 1, 1, 11, 1_000),
            ask(&licensed, 1, 1, 12, 1_000),
            ask(&licensed, 1, 2, 13, 1_000),
            ask(&licensed, 2, 3, 14, 1_000),
            ask(&licensed, 3, 4, 15, 1_000),
        ];
        let sealed = |answer| Outcome::Sealed(Box::new([answer; SEALED_LEN]));
        let expected = [
            sealed(11),
            // The same statement again: the first answer, whatever was sealed this time.
            sealed(11),
            Outcome::Refused(Refusal::ChipReleases { spent: 1, budget: 1 }),
            sealed(14),
            Outcome::Refused(Refusal::Releases { spent: 2, budget: 2 }),
        ];
        assert_eq!(store.commit(jobs).unwrap(), expected);
        drop(store);
        let store = Store::open(&folder.path().join("store")).unwrap();
        let spent = store.packages().unwrap()[&[1; 16]].spent;
        assert_eq!(spent, Spent { releases: 2, tokens: 20 });
        let answer = store.answers().find(&[3; 48]).unwrap();
        assert_eq!(answer, Some(([1; 16], Box::new([14; SEALED_LEN]))));
        assert_eq!(store.answers().find(&[4; 48]).unwrap(), None);
    }

    #[test]
    fn what_was_judged_by_a_licence_that_is_no_longer_there_is_not_released() {
        let folder = tempfile::tempdir().unwrap();
        let (mut store, first) = store(folder.path());
        let master = MasterKey::read(&folder.path().join("master.key")).unwrap();
        let second = add(&mut store, &master, [1; 16], 2, 1);
        // Another package of the line raises the floor of both.
        let asks = |licensed| vec![ask(licensed, 1, 1, 11, 1_000)];
        assert_eq!(store.commit(asks(&first)).unwrap(), [Outcome::Refused(Refusal::Replaced)]);
        add(&mut store, &master, [2; 16], 1, 2);
        let svn = Outcome::Refused(Refusal::Svn { found: 1, floor: 2 });
        assert_eq!(store.commit(asks(&second)).unwrap(), [svn]);
        store.revoke([1; 16], 1_000).unwrap();
        assert_eq!(store.commit(asks(&second)).unwrap(), [Outcome::Refused(Refusal::Revoked)]);
        assert_eq!(store.packages().unwrap()[&[1; 16]].spent, Spent::default());
    }

    #[test]
    fn answers_are_forgotten_after_a_day_and_what_was_spent_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let (mut store, licensed) = store(folder.path());
        store.commit(vec![ask(&licensed, 1, 1, 11, 1_000)]).unwrap();
        let later = 1_000 + ANSWER_SECONDS;
        let note = |now| vec![Job::Note(Box::new(Entry::new(Event::Start, now)))];
        store.commit(note(later)).unwrap();
        store.commit(note(later)).unwrap();
        assert!(store.answers().find(&[1; 48]).unwrap().is_some());
        store.commit(note(later + 1)).unwrap();
        store.commit(note(later + 1)).unwrap();
        assert!(store.answers().find(&[1; 48]).unwrap().is_none());
        assert_eq!(store.packages().unwrap()[&[1; 16]].spent.releases, 1);
    }

    #[test]
    fn a_store_of_another_format_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        drop(store(folder.path()));
        let path = folder.path().join("store");
        let db = Database::open(database_path(&path)).unwrap();
        let txn = db.begin_write().unwrap();
        {
            let meta: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");
            let mut meta = txn.open_table(meta).unwrap();
            meta.insert("format", 2_u64.to_be_bytes().as_slice()).unwrap();
        }
        txn.commit().unwrap();
        drop(db);
        let refused = Store::open(&path).map(|_| ());
        assert!(matches!(refused, Err(BrokerError::StoreFormat { found: 2, expected: 1 })));
        fs::remove_file(database_path(&path)).unwrap();
        let refused = Store::open(&path).map(|_| ());
        assert!(matches!(refused, Err(BrokerError::NoStore { .. })));
    }
}
