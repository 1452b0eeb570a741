//! What an operator does to a store: by hand while nobody serves it, and through the broker that does otherwise. The way
//! to the broker is a socket in the store's folder, for the same user only (docs/key-broker.md, "While it runs").

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::error::BrokerError;
use super::licence::{Licensed, timestamp};
use super::log::Head;
use super::packages::Package;
use super::record::LicenceRecord;
use super::store::Store;
use crate::hex;

/// What is asked of a store. Bytes are hexadecimal.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum Request {
    /// Store a licence with its sealed key.
    Add {
        /// The encoding of a [`LicenceRecord`].
        record: String,
        /// The mark of the master key under which its key is sealed.
        mark: String,
    },
    /// Take a licence back.
    Revoke {
        /// Whose.
        package_id: String,
    },
    /// Tell what there is.
    Status,
}

/// What came of it.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Done {
    /// The end of the log.
    pub log_count: u64,
    /// Its hash, hexadecimal.
    pub log_head: String,
    /// All packages, where they were asked for.
    pub packages: Vec<State>,
}

/// A package, as `status --json` prints it.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    pub package_id: String,
    pub model: String,
    pub serial: u64,
    pub revoked: bool,
    pub expires: String,
    pub svn_floor: u32,
    pub releases_spent: u64,
    pub releases: Option<u64>,
    pub tokens_spent: u64,
    pub token_budget: Option<u64>,
}

/// The broker's answer, or why it refused.
pub type Answer = Result<Done, String>;

/// Whoever has the store.
pub enum Keeper {
    /// This process.
    Store(Box<Store>),
    /// A broker that serves, at the other end of this socket.
    Broker(PathBuf),
}

impl Keeper {
    /// Opens a store, or finds the broker that has it.
    ///
    /// # Errors
    /// [`BrokerError`]; [`BrokerError::InUse`] when whoever has the store is no broker that serves.
    pub fn of(folder: &Path) -> Result<Self, BrokerError> {
        match Store::open(folder) {
            Ok(store) => Ok(Self::Store(Box::new(store))),
            Err(BrokerError::InUse { .. }) if socket_path(folder).exists() => {
                Ok(Self::Broker(socket_path(folder)))
            }
            Err(error) => Err(error),
        }
    }

    /// Has something done.
    ///
    /// # Errors
    /// [`BrokerError`] says why it was not done, [`BrokerError::Admin`] that the broker did not answer.
    pub fn ask(&mut self, request: &Request, now: u64) -> Result<Done, BrokerError> {
        match self {
            Self::Store(store) => perform(store, request, now),
            Self::Broker(socket) => {
                let broken = |reason: &dyn std::fmt::Display| BrokerError::Admin {
                    path: socket.clone(),
                    reason: reason.to_string(),
                };
                let answer = call(socket, request).map_err(|error| broken(&error))?;
                let answer: Answer =
                    serde_json::from_slice(&answer).map_err(|error| broken(&error))?;
                answer.map_err(BrokerError::Told)
            }
        }
    }
}

/// Does what is asked, and brings it to the disk.
///
/// # Errors
/// [`BrokerError`]; the store is as it was where [`BrokerError::is_refusal`] says so.
pub fn perform(store: &mut Store, request: &Request, now: u64) -> Result<Done, BrokerError> {
    let mut packages = Vec::new();
    match request {
        Request::Add { record, mark } => {
            let bytes = |text: &str| hex::decode(text).ok_or(BrokerError::Request);
            let record = LicenceRecord::from_bytes(&bytes(record)?);
            let record = record.map_err(|_| BrokerError::Request)?;
            let licensed = Licensed::from_toml(&record.licence, &record.policy);
            let licensed = licensed.map_err(|_| BrokerError::Request)?;
            if !store.has_mark(&bytes(mark)?)? {
                return Err(BrokerError::SealedUnder);
            }
            store.add(&licensed, &record, now)?;
        }
        Request::Revoke { package_id } => {
            let id = hex::decode(package_id).and_then(|bytes| bytes.try_into().ok());
            let unreadable = || BrokerError::PackageId { text: package_id.clone() };
            store.revoke(id.ok_or_else(unreadable)?, now)?;
        }
        Request::Status => {
            packages = store.packages()?.values().map(state).collect();
            packages.sort_by(|a, b| (&a.model, &a.package_id).cmp(&(&b.model, &b.package_id)));
        }
    }
    let Head { count, hash } = store.head();
    Ok(Done { log_count: count, log_head: hex::encode(&hash), packages })
}

fn state(package: &Package) -> State {
    let licence = &package.licensed.licence;
    State {
        package_id: hex::encode(&licence.package_id),
        model: licence.model.clone(),
        serial: licence.serial,
        revoked: package.record.revoked,
        expires: timestamp(licence.expires),
        svn_floor: package.floor,
        releases_spent: package.spent.releases,
        releases: licence.releases,
        tokens_spent: package.spent.tokens,
        token_budget: licence.token_budget,
    }
}

/// One call: the request and the end of it, then the answer and the end of that.
fn call(socket: &Path, request: &Request) -> std::io::Result<Vec<u8>> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(TIME))?;
    stream.set_write_timeout(Some(TIME))?;
    stream.write_all(&serde_json::to_vec(request)?)?;
    stream.shutdown(Shutdown::Write)?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    Ok(answer)
}

/// Where a broker that serves takes its operator's commands.
pub fn socket_path(folder: &Path) -> PathBuf {
    folder.join("admin.sock")
}

/// A call takes no longer, on either side.
pub const TIME: Duration = Duration::from_secs(30);
