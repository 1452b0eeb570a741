//! Why a command of the key broker failed, in words for its operator.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use super::licence::LicenceError;
use super::log::LogError;

/// Why the broker did not start, stopped, or did not take a licence.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BrokerError {
    /// There is no store there.
    #[error("{path} holds no store of a key broker: make one with `chrysalis key-broker init`")]
    NoStore {
        /// The folder.
        path: PathBuf,
    },
    /// A store is there already.
    #[error("{path} holds a store already; it is never replaced")]
    StoreExists {
        /// The folder.
        path: PathBuf,
    },
    /// Another process has the store, and is no broker that serves.
    #[error("{path} is in use by another command; try again")]
    InUse {
        /// The folder.
        path: PathBuf,
    },
    /// The broker that has the store does not answer its operator.
    #[error("{path}: {reason}")]
    Admin {
        /// The socket.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The broker that has the store refused.
    #[error("{0}")]
    Told(String),
    /// Not a request of this version's commands.
    #[error("the request is not one that this broker knows: is it of another version?")]
    Request,
    /// A package key that this store's broker could not open.
    #[error("the given master key is not the one of this store")]
    SealedUnder,
    /// A store of another format.
    #[error("the store has format {found}, this program writes {expected}")]
    StoreFormat {
        /// Its format.
        found: u64,
        /// Ours.
        expected: u64,
    },
    /// The database failed.
    #[error("the store: {0}")]
    Store(String),
    /// A record of the store is no such record.
    #[error("the store's {record} is damaged")]
    Record {
        /// Which.
        record: &'static str,
    },
    /// The store was sealed under another master key.
    #[error("{path} is not the master key of this store")]
    MasterKey {
        /// The key's file.
        path: PathBuf,
    },
    /// The master key can be read by others.
    #[error("{path} has mode {mode:o}: a master key is for its owner only (chmod 600)")]
    MasterMode {
        /// The key's file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// The clock is behind what the store has seen.
    #[error(
        "the clock says {now}, the store's last entry is of {last} (Unix seconds): set the clock, or give \
         --dangerous-clock-back if the old one was wrong"
    )]
    ClockBack {
        /// The clock.
        now: u64,
        /// The store.
        last: u64,
    },
    /// A licence was refused.
    #[error("{path}: {source}")]
    Licence {
        /// Its file.
        path: PathBuf,
        /// The key that is wrong or missing.
        source: LicenceError,
    },
    /// A licence that is not newer than the stored one.
    #[error(
        "serial {found} is not above {stored}, the stored licence's: a licence is only replaced by a newer one"
    )]
    Serial {
        /// Of the file.
        found: u64,
        /// In the store.
        stored: u64,
    },
    /// A package that would leave its line of models, and the line's floor with it.
    #[error(
        "the package is of model {stored:?}, not {found:?}: a package stays in its line of models"
    )]
    Model {
        /// Of the file.
        found: String,
        /// In the store.
        stored: String,
    },
    /// A licence below a floor that was set before.
    #[error(
        "minimum_svn {found} is below {floor}, the highest floor that model {model:?} had: a floor is never lowered"
    )]
    Floor {
        /// The line of models.
        model: String,
        /// Of the file.
        found: u32,
        /// In the store.
        floor: u32,
    },
    /// The package is older than its licence's floor.
    #[error(
        "the package has security version {found}, the floor is {floor}: no release would ever pass"
    )]
    PackageSvn {
        /// Of the package.
        found: u32,
        /// The floor.
        floor: u32,
    },
    /// Licence, package and key are not of one package.
    #[error("the {what} is not that of package {package_id}")]
    OtherPackage {
        /// `key` or `licence`.
        what: &'static str,
        /// The package.
        package_id: String,
    },
    /// No licence for this package.
    #[error("the store has no licence for package {package_id}")]
    Unknown {
        /// The package.
        package_id: String,
    },
    /// Text that names no package.
    #[error("{text:?} is no package id: 32 hexadecimal digits, as `chrysalis inspect` prints them")]
    PackageId {
        /// The text.
        text: String,
    },
    /// The audit log was refused.
    #[error("{path}: {source}")]
    Log {
        /// Its file.
        path: PathBuf,
        /// What is wrong with it.
        source: LogError,
    },
    /// The address could not be bound.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// The system's reason.
        source: io::Error,
    },
    /// Plain HTTP where others can read along.
    #[error(
        "{address} is no loopback address: give --tls-cert and --tls-key, or --behind-proxy where a proxy ends TLS, or \
         --dangerous-plain-http"
    )]
    PlainHttp {
        /// Where.
        address: SocketAddr,
    },
    /// The server's private key can be read by everybody.
    #[error(
        "{path} has mode {mode:o}: others must not read the server's private key (chmod o-rwx)"
    )]
    TlsMode {
        /// The key's file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// Certificate or key of the server are no such thing.
    #[error("{path}: {reason}")]
    Tls {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// Core dumps could not be switched off.
    #[error("the process could not be hardened: {0}")]
    Harden(io::Error),
    /// The runtime of the server failed.
    #[error("the server failed: {0}")]
    Server(io::Error),
    /// The store failed while serving; what had not been answered was not released.
    #[error("the store failed while serving: {0}")]
    Stopped(String),
}

impl BrokerError {
    /// Whether nothing failed: what was asked for is not allowed, and was not done.
    pub const fn is_refusal(&self) -> bool {
        matches!(
            self,
            Self::Request
                | Self::SealedUnder
                | Self::Serial { .. }
                | Self::Model { .. }
                | Self::Floor { .. }
                | Self::Unknown { .. }
                | Self::PackageId { .. }
        )
    }
}
