//! The audit log: one JSON object a line, each naming the SHA-256 of the line before (docs/key-broker.md, "Audit log").
//!
//! The database holds each entry from the transaction that decided until the file has it for certain, so that neither is
//! ever without the other.

use std::collections::{HashMap, HashSet};
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use chrysalis_protocol::hash::sha256;
use serde::{Deserialize, Serialize};

use super::licence::timestamp;
use crate::hex;

/// What is wrong with a log.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// It could not be read or written.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// There is one already, without the store that it belongs to.
    #[error("there is a log already, whose store is gone: keep it elsewhere, and start anew")]
    Exists,
    /// A line is no entry.
    #[error("line {line} is no entry: {reason}")]
    Form {
        /// Counted from 1.
        line: u64,
        /// What is wrong.
        reason: String,
    },
    /// A line was taken out, put in or moved.
    #[error("line {line} has number {found}")]
    Number {
        /// Counted from 1.
        line: u64,
        /// Its number.
        found: u64,
    },
    /// A line was changed.
    #[error("line {line} does not follow from the line before it: one of them was changed")]
    Chain {
        /// Counted from 1.
        line: u64,
    },
    /// A key was released twice over one statement.
    #[error("line {line} releases again what was released before")]
    Double {
        /// Counted from 1.
        line: u64,
    },
    /// A release is missing, by the package's count.
    #[error("line {line} is release {found} of its package, {expected} were logged before")]
    Count {
        /// Counted from 1.
        line: u64,
        /// As the entry says.
        found: u64,
        /// By the lines before.
        expected: u64,
    },
    /// Lines at the end are missing.
    #[error("it has {found} entries, the store knows of {expected}: its end is missing")]
    Short {
        /// In the file.
        found: u64,
        /// In the store.
        expected: u64,
    },
    /// Another log than the store's.
    #[error("its entry {number} is not the one that the store knows")]
    Other {
        /// The entry.
        number: u64,
    },
    /// The head that was noted elsewhere is not in the chain.
    #[error("no entry has the hash {head}: the log was replaced after that head was noted")]
    Head {
        /// In hexadecimal digits.
        head: String,
    },
}

/// What an entry is about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Event {
    /// A store was made.
    #[default]
    Init,
    /// The broker serves.
    Start,
    /// The broker was asked to end.
    Stop,
    /// A licence was stored.
    Licence,
    /// A licence was taken back.
    Revoke,
    /// A key was sealed; the budget is spent.
    Release,
    /// The answer of an earlier release was given again.
    Repeat,
    /// Nothing was sealed.
    Refuse,
    /// Calls over the rate limits since the last such entry; they are counted, not listed.
    Limited,
}

/// One decision (docs/key-broker.md, "Audit log"). Bytes are hexadecimal; what is not known is left out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// The same as `time`, for the store.
    #[serde(skip)]
    pub unix: u64,
    pub number: u64,
    pub time: String,
    pub event: Event,
    pub code: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub detail: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub address: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub package_id: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub package_digest: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub content_digest: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model_svn: Option<u32>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub platform: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub chip: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub measurement: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub statement: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub licence_serial: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease_seconds: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease_tokens: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub releases_spent: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens_spent: Option<u64>,
    pub previous: String,
}

impl Entry {
    /// An entry of a moment, without place in the log yet.
    pub fn new(event: Event, now: u64) -> Self {
        let (time, code) = (timestamp(now), "ok".to_owned());
        Self { event, unix: now, time, code, ..Self::default() }
    }
}

/// Where a chain ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// Entries so far.
    pub count: u64,
    /// Hash of the last line; zero for none.
    pub hash: [u8; 32],
}

impl Head {
    /// Of an empty log.
    pub const EMPTY: Self = Self { count: 0, hash: [0; 32] };

    /// Puts an entry at the end, as the line that the file gets.
    pub fn link(&mut self, mut entry: Entry) -> String {
        self.count += 1;
        entry.number = self.count;
        entry.previous = hex::encode(&self.hash);
        // Strings, numbers and options of them: serialising cannot fail.
        let line = serde_json::to_string(&entry).unwrap_or_default();
        self.hash = hash(&line);
        line
    }
}

/// What a whole, intact log says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    /// Its end.
    pub head: Head,
    /// Releases, by package id.
    pub releases: HashMap<String, u64>,
    /// Bytes of whole lines.
    pub bytes: u64,
    /// Hash of the line that the caller asked for, where it is there.
    pub noted: Option<[u8; 32]>,
    /// Whether the hash that the caller asked for is a line's.
    pub found: bool,
}

/// Reads a log from its beginning and checks that each line follows from the one before, that no statement got two
/// releases, and that each package's releases are counted without a gap.
///
/// A last line without its line feed was being written when the broker was killed, and is left out: the store has it.
///
/// # Errors
/// [`LogError`] names the first line that is wrong.
pub fn verify(
    path: &Path,
    number: u64,
    wanted: Option<[u8; 32]>,
    mut each: impl FnMut(&Entry),
) -> Result<Summary, LogError> {
    let mut reader = BufReader::new(File::open(path)?);
    let mut summary = Summary {
        head: Head::EMPTY,
        releases: HashMap::new(),
        bytes: 0,
        noted: (number == 0).then_some([0; 32]),
        found: false,
    };
    let mut released = HashSet::new();
    let mut text = String::new();
    loop {
        text.clear();
        let line = summary.head.count + 1;
        let read = reader.read_line(&mut text).map_err(|error| form(line, &error))?;
        let Some(content) = text.strip_suffix('\n') else {
            return Ok(summary);
        };
        let entry: Entry = serde_json::from_str(content).map_err(|error| form(line, &error))?;
        if entry.number != line {
            return Err(LogError::Number { line, found: entry.number });
        }
        if entry.previous != hex::encode(&summary.head.hash) {
            return Err(LogError::Chain { line });
        }
        if entry.event == Event::Release {
            if !released.insert(entry.statement.clone()) {
                return Err(LogError::Double { line });
            }
            let count = summary.releases.entry(entry.package_id.clone()).or_default();
            let (found, expected) = (entry.releases_spent.unwrap_or(0), *count);
            *count += 1;
            if found != *count {
                return Err(LogError::Count { line, found, expected });
            }
        }
        each(&entry);
        summary.head = Head { count: line, hash: hash(content) };
        summary.bytes += read as u64;
        summary.found |= wanted == Some(summary.head.hash);
        if number == line {
            summary.noted = Some(summary.head.hash);
        }
    }
}

/// The file at the end of which entries are written.
#[derive(Debug)]
pub struct LogFile {
    path: PathBuf,
    file: File,
}

impl LogFile {
    /// A new, empty log; also where an earlier attempt left an empty one.
    ///
    /// # Errors
    /// [`LogError::Io`], [`LogError::Exists`].
    pub fn create(path: PathBuf) -> Result<Self, LogError> {
        let file = OpenOptions::new().append(true).create(true).mode(0o600).open(&path)?;
        if file.metadata()?.len() > 0 {
            return Err(LogError::Exists);
        }
        Ok(Self { path, file })
    }

    /// Checks the log up to the entry that the store last knew to be in it, and cuts off a torn last line.
    ///
    /// # Errors
    /// [`LogError`].
    pub fn open(path: PathBuf, synced: Head) -> Result<(Self, Head), LogError> {
        let summary = verify(&path, synced.count, None, |_| {})?;
        if summary.head.count < synced.count {
            let (found, expected) = (summary.head.count, synced.count);
            return Err(LogError::Short { found, expected });
        }
        if summary.noted != Some(synced.hash) {
            return Err(LogError::Other { number: synced.count });
        }
        let file = OpenOptions::new().append(true).open(&path)?;
        file.set_len(summary.bytes)?;
        Ok((Self { path, file }, summary.head))
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes lines at the end.
    ///
    /// # Errors
    /// [`LogError::Io`].
    pub fn append(&mut self, lines: &[String]) -> Result<(), LogError> {
        let text: String = lines.iter().flat_map(|line| [line.as_str(), "\n"]).collect();
        Ok(self.file.write_all(text.as_bytes())?)
    }

    /// Comes back when the file is on the disk.
    ///
    /// # Errors
    /// [`LogError::Io`].
    pub fn sync(&self) -> Result<(), LogError> {
        Ok(self.file.sync_data()?)
    }
}

fn form(line: u64, reason: &dyn std::fmt::Display) -> LogError {
    LogError::Form { line, reason: reason.to_string() }
}

/// The hash by which the next line names this one.
fn hash(line: &str) -> [u8; 32] {
    sha256(&[b"chrysalis1 broker log\0", line.as_bytes()])
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// A log of a start, two releases and a refusal.
    fn written(folder: &Path) -> (PathBuf, Head) {
        let path = folder.join("audit.log");
        let mut file = LogFile::create(path.clone()).unwrap();
        let mut head = Head::EMPTY;
        let release = |statement: &str, spent| Entry {
            package_id: "aa".into(),
            statement: statement.into(),
            releases_spent: Some(spent),
            ..Entry::new(Event::Release, 2)
        };
        let refuse = Entry { code: "licence.svn".into(), ..Entry::new(Event::Refuse, 3) };
        let entries = [Entry::new(Event::Start, 1), release("01", 1), refuse, release("02", 2)];
        for entry in entries {
            let line = head.link(entry);
            file.append(&[line]).unwrap();
        }
        (path, head)
    }

    #[test]
    fn an_honest_log_verifies_and_every_altered_one_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let (path, head) = written(folder.path());
        let summary = verify(&path, 2, Some(head.hash), |_| {}).unwrap();
        assert_eq!((summary.head, summary.found), (head, true));
        assert_eq!(summary.releases["aa"], 2);
        let text = fs::read_to_string(&path).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        // Every byte of every line that another follows.
        let ends: usize = lines[..3].iter().map(|line| line.len() + 1).sum();
        for at in 0..ends {
            let mut bytes = text.clone().into_bytes();
            bytes[at] ^= 1;
            fs::write(&path, bytes).unwrap();
            assert!(verify(&path, 0, None, |_| {}).is_err(), "byte {at}");
        }
        for order in [&[0, 1, 3][..], &[0, 2, 1, 3], &[1, 2, 3], &[0, 1, 1, 2, 3]] {
            let text: String = order.iter().flat_map(|&line| [lines[line], "\n"]).collect();
            fs::write(&path, text).unwrap();
            assert!(verify(&path, 0, None, |_| {}).is_err(), "{order:?}");
        }
    }

    #[test]
    fn a_well_chained_double_or_missing_release_is_found() {
        let folder = tempfile::tempdir().unwrap();
        for (statements, counts, double) in
            [(["01", "01"], [1, 2], true), (["01", "02"], [1, 3], false)]
        {
            let path = folder.path().join(format!("{double}.log"));
            let mut file = LogFile::create(path.clone()).unwrap();
            let mut head = Head::EMPTY;
            for (statement, count) in statements.into_iter().zip(counts) {
                let entry = Entry {
                    statement: statement.into(),
                    releases_spent: Some(count),
                    ..Entry::new(Event::Release, 0)
                };
                let line = head.link(entry);
                file.append(&[line]).unwrap();
            }
            let error = verify(&path, 0, None, |_| {}).unwrap_err();
            assert_eq!(matches!(error, LogError::Double { line: 2 }), double, "{error}");
            assert_eq!(matches!(error, LogError::Count { line: 2, .. }), !double, "{error}");
        }
    }

    #[test]
    fn a_torn_end_is_cut_off_and_a_missing_one_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let (path, head) = written(folder.path());
        let text = fs::read_to_string(&path).unwrap();
        let third = text.lines().take(3).map(|line| line.len() + 1).sum::<usize>();
        let synced = verify(&path, 0, None, |_| {}).unwrap().head;
        assert_eq!(synced, head);
        fs::write(&path, &text[..text.len() - 1]).unwrap();
        let short = LogFile::open(path.clone(), head).unwrap_err();
        assert!(matches!(short, LogError::Short { found: 3, expected: 4 }), "{short}");
        let before = Head { count: 2, hash: hash(text.lines().nth(1).unwrap()) };
        let (file, found) = LogFile::open(path.clone(), before).unwrap();
        assert_eq!((found.count, file.path()), (3, path.as_path()));
        assert_eq!(fs::metadata(&path).unwrap().len(), third as u64);
        let other = LogFile::open(path, Head { count: 2, hash: [1; 32] }).unwrap_err();
        assert!(matches!(other, LogError::Other { number: 2 }), "{other}");
    }
}
