//! The broker's memory: licences, sealed keys, what was spent, answers that were given, and the end of the audit log.
//!
//! One transaction decides, spends, keeps the answer and writes the log entry, and it is on the disk before any of it
//! leaves. So a broker that is killed at any moment has either released, with the answer there to be given again, or not.

use std::fs::{self, DirBuilder, OpenOptions, Permissions};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use redb::{
    Database, DatabaseError, ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction,
};

use super::error::BrokerError;
use super::licence::Licensed;
use super::log::{self, Entry, Event, Head, LogError, LogFile};
use super::master::MasterKey;
use super::packages::{ById, Package, Packages};
use super::record::LicenceRecord;
use super::spend::{
    ANSWERED, ANSWERS, Answer, CHIPS, Job, Outcome, SPENT, decide, failed, forget_answers,
    read_answer, read_spent, to_array,
};
use crate::hex;

/// Reads answers that were given, while the store is in use.
#[derive(Clone)]
pub struct Answers(Arc<Database>);

/// The store, open in this process alone.
pub struct Store {
    db: Arc<Database>,
    log: LogFile,
    /// The end of the log in the database.
    head: Head,
    /// Entries up to here are on the disk in the log's file; the database may forget them.
    synced: Head,
    last_unix: u64,
    packages: Packages,
}

impl Store {
    /// Makes a store.
    ///
    /// # Errors
    /// [`BrokerError::StoreExists`], and what the disk says.
    pub fn create(folder: &Path, master: &MasterKey, now: u64) -> Result<Self, BrokerError> {
        let path = database_path(folder);
        if path.exists() {
            return Err(BrokerError::StoreExists { path: folder.to_owned() });
        }
        DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(failed)?;
        let log_path = log_path(folder);
        let log = LogFile::create(log_path.clone())
            .map_err(|source| BrokerError::Log { path: log_path, source })?;
        // It gets its name once it is whole: a half-made one is no store.
        let staged = folder.join("broker.partial");
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(true).mode(0o600);
        drop(options.open(&staged).map_err(failed)?);
        let db = Database::create(&staged).map_err(failed)?;
        let txn = begin(&db)?;
        {
            let mut meta = txn.open_table(META).map_err(failed)?;
            meta.insert("format", FORMAT.to_be_bytes().as_slice()).map_err(failed)?;
            meta.insert("master", master.mark().as_slice()).map_err(failed)?;
        }
        open_tables(&txn)?;
        txn.commit().map_err(failed)?;
        fs::rename(&staged, &path).map_err(failed)?;
        fs::File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed)?;
        let (head, synced) = (Head::EMPTY, Head::EMPTY);
        let packages = Packages::default();
        let mut store = Self { db: Arc::new(db), log, head, synced, last_unix: 0, packages };
        store.commit(vec![Job::Note(Box::new(Entry::new(Event::Init, now)))])?;
        Ok(store)
    }

    /// Opens a store, and brings the log's file up to date.
    ///
    /// # Errors
    /// [`BrokerError`] says what is wrong with it.
    pub fn open(folder: &Path) -> Result<Self, BrokerError> {
        let path = database_path(folder);
        if !path.exists() {
            return Err(BrokerError::NoStore { path: folder.to_owned() });
        }
        let db = Database::open(&path).map_err(|error| match error {
            DatabaseError::DatabaseAlreadyOpen => BrokerError::InUse { path: folder.to_owned() },
            error => failed(error),
        })?;
        let txn = db.begin_read().map_err(failed)?;
        let (format, head, synced, last_unix) = {
            let meta = txn.open_table(META).map_err(failed)?;
            let number = |key: &str| -> Result<Option<u64>, BrokerError> {
                let value = meta.get(key).map_err(failed)?;
                value.map(|value| to_array(value.value()).map(u64::from_be_bytes)).transpose()
            };
            let head = |count: &str, hash: &str| -> Result<Head, BrokerError> {
                let found = meta.get(hash).map_err(failed)?;
                let found = found.map(|value| to_array(value.value())).transpose()?;
                Ok(Head { count: number(count)?.unwrap_or(0), hash: found.unwrap_or([0; 32]) })
            };
            (
                number("format")?.ok_or(BrokerError::Record { record: "format" })?,
                head("log_count", "log_hash")?,
                head("synced_count", "synced_hash")?,
                number("last_unix")?.unwrap_or(0),
            )
        };
        if format != FORMAT {
            return Err(BrokerError::StoreFormat { found: format, expected: FORMAT });
        }
        let path = log_path(folder);
        let log_error = |source| BrokerError::Log { path: path.clone(), source };
        let (mut file, written) = LogFile::open(path.clone(), synced).map_err(log_error)?;
        let table = txn.open_table(LOG).map_err(failed)?;
        let mut missing = Vec::new();
        for line in table.range(written.count + 1..).map_err(failed)? {
            missing.push(line.map_err(failed)?.1.value().to_owned());
        }
        file.append(&missing).map_err(log_error)?;
        file.sync().map_err(log_error)?;
        let number = head.count;
        let whole = log::verify(&path, number, None, |_| {}).map_err(log_error)?;
        if whole.head != head {
            let source = LogError::Other { number };
            return Err(BrokerError::Log { path, source });
        }
        drop((table, txn));
        // A store of an earlier version was readable for whoever its folder let in.
        fs::set_permissions(database_path(folder), Permissions::from_mode(0o600))
            .map_err(failed)?;
        let (db, packages) = (Arc::new(db), Packages::default());
        let store = Self { db, log: file, head, synced: head, last_unix, packages };
        store.packages.put(store.packages()?);
        Ok(store)
    }

    /// Whether the store was made under the master key of this mark.
    ///
    /// # Errors
    /// What the database says.
    pub fn has_mark(&self, mark: &[u8]) -> Result<bool, BrokerError> {
        let txn = self.db.begin_read().map_err(failed)?;
        let meta = txn.open_table(META).map_err(failed)?;
        let stored = meta.get("master").map_err(failed)?;
        Ok(stored.is_some_and(|stored| stored.value() == mark))
    }

    /// The time of the last entry, Unix seconds.
    pub const fn last_unix(&self) -> u64 {
        self.last_unix
    }

    /// The end of the log.
    pub const fn head(&self) -> Head {
        self.head
    }

    /// A way to answers that were given.
    pub fn answers(&self) -> Answers {
        Answers(Arc::clone(&self.db))
    }

    /// The packages as their licences stand, for whoever judges.
    pub fn shared(&self) -> Packages {
        self.packages.clone()
    }

    /// All packages, by their ids, and what is spent of them now.
    ///
    /// # Errors
    /// [`BrokerError::Record`] when one is damaged.
    pub fn packages(&self) -> Result<ById, BrokerError> {
        let txn = self.db.begin_read().map_err(failed)?;
        let licences = txn.open_table(LICENCES).map_err(failed)?;
        let floors = txn.open_table(FLOORS).map_err(failed)?;
        let spent = txn.open_table(SPENT).map_err(failed)?;
        let mut packages = ById::new();
        for item in licences.iter().map_err(failed)? {
            let (id, record) = item.map_err(failed)?;
            let (record, licensed) = read_licence(record.value())?;
            let floor = floors.get(licensed.licence.model.as_str()).map_err(failed)?;
            let floor = floor.map_or(0, |floor| floor.value());
            let spent = read_spent(&spent, &id.value())?;
            let licensed = Arc::new(licensed);
            packages.insert(id.value(), Package { record, licensed, floor, spent });
        }
        Ok(packages)
    }

    /// Stores a licence with its sealed key: a new package's, or one with a higher serial and no lower floor.
    ///
    /// # Errors
    /// [`BrokerError::Serial`], [`BrokerError::Floor`].
    pub fn add(
        &mut self,
        licensed: &Licensed,
        record: &LicenceRecord,
        now: u64,
    ) -> Result<(), BrokerError> {
        let licence = &licensed.licence;
        let txn = begin(&self.db)?;
        {
            let mut licences = txn.open_table(LICENCES).map_err(failed)?;
            let stored = licences.get(licence.package_id).map_err(failed)?;
            let stored = stored.map(|stored| read_licence(stored.value())).transpose()?;
            if let Some((_, stored)) = stored {
                let stored = stored.licence;
                if licence.serial <= stored.serial {
                    let (found, stored) = (licence.serial, stored.serial);
                    return Err(BrokerError::Serial { found, stored });
                }
                if licence.model != stored.model {
                    let (found, stored) = (licence.model.clone(), stored.model);
                    return Err(BrokerError::Model { found, stored });
                }
            }
            let mut floors = txn.open_table(FLOORS).map_err(failed)?;
            let model = licence.model.as_str();
            let floor = floors.get(model).map_err(failed)?.map_or(0, |floor| floor.value());
            let found = licence.minimum_svn;
            if found < floor {
                return Err(BrokerError::Floor { model: model.to_owned(), found, floor });
            }
            floors.insert(model, found).map_err(failed)?;
            let id = licence.package_id;
            licences.insert(id, record.to_bytes().as_slice()).map_err(failed)?;
        }
        let entry = Entry {
            package_id: hex::encode(&licence.package_id),
            licence_serial: Some(licence.serial),
            model_svn: Some(licence.minimum_svn),
            ..Entry::new(Event::Licence, now)
        };
        self.change(txn, entry)
    }

    /// Takes a licence back: its package gets no key any more until a licence with a higher serial comes.
    ///
    /// # Errors
    /// [`BrokerError::Unknown`].
    pub fn revoke(&mut self, package_id: [u8; 16], now: u64) -> Result<(), BrokerError> {
        let unknown = || BrokerError::Unknown { package_id: hex::encode(&package_id) };
        let txn = begin(&self.db)?;
        {
            let mut licences = txn.open_table(LICENCES).map_err(failed)?;
            let stored = licences.get(package_id).map_err(failed)?;
            let stored = stored.map(|stored| read_licence(stored.value())).transpose()?;
            let (mut record, _) = stored.ok_or_else(unknown)?;
            record.revoked = true;
            licences.insert(package_id, record.to_bytes().as_slice()).map_err(failed)?;
        }
        let package_id = hex::encode(&package_id);
        let entry = Entry { package_id, ..Entry::new(Event::Revoke, now) };
        self.change(txn, entry)
    }

    /// Brings a changed licence to the disk, and then to whoever judges.
    fn change(&mut self, txn: WriteTransaction, entry: Entry) -> Result<(), BrokerError> {
        self.finish(txn, vec![entry])?;
        self.packages.put(self.packages()?);
        Ok(())
    }

    /// Decides jobs in one transaction; what comes back is on the disk. After an error the store is not used again.
    ///
    /// # Errors
    /// What the disk says; whether the transaction is there, the next start will tell.
    pub fn commit(&mut self, jobs: Vec<Job>) -> Result<Vec<Outcome>, BrokerError> {
        let txn = begin(&self.db)?;
        let packages = self.packages.now();
        let (mut outcomes, mut entries) = (Vec::new(), Vec::new());
        for job in jobs {
            let (outcome, entry) = match job {
                Job::Release(ask) => decide(&txn, &packages, *ask)?,
                Job::Note(entry) => (Outcome::Noted, *entry),
            };
            outcomes.push(outcome);
            entries.push(entry);
        }
        forget_answers(&txn, self.last_unix)?;
        self.finish(txn, entries)?;
        Ok(outcomes)
    }

    /// Forgets what the clock said, so that an older time is taken again.
    ///
    /// # Errors
    /// What the disk says.
    pub fn set_clock_back(&mut self, now: u64) -> Result<(), BrokerError> {
        self.last_unix = now;
        let detail = "--dangerous-clock-back".to_owned();
        let entry = Entry { detail, ..Entry::new(Event::Start, now) };
        self.commit(vec![Job::Note(Box::new(entry))]).map(|_| ())
    }

    /// Logs `entries` in `txn`, commits it, and writes them to the log's file.
    fn finish(&mut self, txn: WriteTransaction, entries: Vec<Entry>) -> Result<(), BrokerError> {
        let mut head = self.head;
        let latest = entries.iter().map(|entry| entry.unix).max().unwrap_or(0);
        let last_unix = self.last_unix.max(latest);
        let mut lines = Vec::new();
        {
            let mut log = txn.open_table(LOG).map_err(failed)?;
            for entry in entries {
                let line = head.link(entry);
                log.insert(head.count, line.as_str()).map_err(failed)?;
                lines.push(line);
            }
            while log.first().map_err(failed)?.is_some_and(|(n, _)| n.value() <= self.synced.count)
            {
                log.pop_first().map_err(failed)?;
            }
            let mut meta = txn.open_table(META).map_err(failed)?;
            for (key, value) in [
                ("log_count", head.count.to_be_bytes().as_slice()),
                ("log_hash", &head.hash),
                ("synced_count", self.synced.count.to_be_bytes().as_slice()),
                ("synced_hash", &self.synced.hash),
                ("last_unix", last_unix.to_be_bytes().as_slice()),
            ] {
                meta.insert(key, value).map_err(failed)?;
            }
        }
        txn.commit().map_err(failed)?;
        (self.head, self.last_unix) = (head, last_unix);
        let due = head.count.saturating_sub(self.synced.count) >= SYNC_EACH;
        let wrote = self.log.append(&lines);
        let wrote = if due { wrote.and_then(|()| self.log.sync()) } else { wrote };
        let path = self.log.path().to_owned();
        wrote.map_err(|source| BrokerError::Log { path, source })?;
        if due {
            self.synced = head;
        }
        Ok(())
    }
}

impl Answers {
    /// The answer that a statement got, and the package that it was for.
    ///
    /// # Errors
    /// What the database says.
    pub fn find(&self, statement: &[u8; 48]) -> Result<Option<Answer>, BrokerError> {
        let txn = self.0.begin_read().map_err(failed)?;
        let answers = txn.open_table(ANSWERS).map_err(failed)?;
        let answer = answers.get(statement).map_err(failed)?;
        answer.map(|answer| read_answer(answer.value())).transpose()
    }
}

/// Tables are made when they are first opened to be written.
fn open_tables(txn: &WriteTransaction) -> Result<(), BrokerError> {
    txn.open_table(LICENCES).map_err(failed)?;
    txn.open_table(FLOORS).map_err(failed)?;
    txn.open_table(SPENT).map_err(failed)?;
    txn.open_table(CHIPS).map_err(failed)?;
    txn.open_table(ANSWERS).map_err(failed)?;
    txn.open_table(ANSWERED).map_err(failed)?;
    txn.open_table(LOG).map_err(failed)?;
    Ok(())
}

/// Where the database lies.
pub fn database_path(folder: &Path) -> PathBuf {
    folder.join("broker.redb")
}

/// Where the audit log lies.
pub fn log_path(folder: &Path) -> PathBuf {
    folder.join("audit.log")
}

fn read_licence(bytes: &[u8]) -> Result<(LicenceRecord, Licensed), BrokerError> {
    let damaged = || BrokerError::Record { record: "licence" };
    let record = LicenceRecord::from_bytes(bytes).map_err(|_| damaged())?;
    let licensed = Licensed::from_toml(&record.licence, &record.policy).map_err(|_| damaged())?;
    Ok((record, licensed))
}

/// Two phases, because what is stored is in part what strangers sent (redb's `set_two_phase_commit` says why).
fn begin(db: &Database) -> Result<WriteTransaction, BrokerError> {
    let mut txn = db.begin_write().map_err(failed)?;
    txn.set_two_phase_commit(true);
    Ok(txn)
}

const FORMAT: u64 = 1;
/// The log's file is brought to the disk after so many entries; until then the database has them.
const SYNC_EACH: u64 = 256;
const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");
const LICENCES: TableDefinition<'_, [u8; 16], &[u8]> = TableDefinition::new("licences");
const FLOORS: TableDefinition<'_, &str, u32> = TableDefinition::new("floors");
const LOG: TableDefinition<'_, u64, &str> = TableDefinition::new("log");
