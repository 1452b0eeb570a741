//! The command line of `chrysalis key-broker`.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Subcommand};

/// `chrysalis key-broker`.
#[derive(Debug, Args)]
pub struct BrokerArgs {
    /// What to do.
    #[command(subcommand)]
    pub command: BrokerCommand,
}

/// What a key broker's operator does.
#[derive(Debug, Subcommand)]
pub enum BrokerCommand {
    /// Make a store and, where it does not exist, a master key
    Init(InitArgs),
    /// Print a licence for a package, with comments, to be edited
    Licence(LicenceArgs),
    /// Store a package's key under a licence, or replace its licence by one with a higher serial
    Add(AddArgs),
    /// Take a licence back: its package gets no key any more
    Revoke(RevokeArgs),
    /// Show licences and what is spent of them
    Status(StatusArgs),
    /// Answer enclaves that wait for keys
    Serve(ServeArgs),
    /// Show the audit log, or verify it
    Log(LogArgs),
}

/// A store and the key under which it lies.
#[derive(Debug, Args)]
pub struct StoreArgs {
    /// The broker's folder
    #[arg(long, value_name = "DIR")]
    pub store: PathBuf,
    /// Master key file: for its owner only, on another disk than the store if you can
    #[arg(long, value_name = "FILE")]
    pub master_key: PathBuf,
}

/// `chrysalis key-broker init`.
#[derive(Debug, Args)]
pub struct InitArgs {
    /// Where.
    #[command(flatten)]
    pub at: StoreArgs,
    /// One JSON object instead of text
    #[arg(long)]
    pub json: bool,
}

/// `chrysalis key-broker licence`.
#[derive(Debug, Args)]
pub struct LicenceArgs {
    /// The package
    #[arg(long, value_name = "NAME.chry")]
    pub package: PathBuf,
    /// The line of models that shares a floor of security versions [default: NAME]
    #[arg(long, value_name = "NAME")]
    pub model: Option<String>,
}

/// `chrysalis key-broker add`.
#[derive(Debug, Args)]
pub struct AddArgs {
    /// Where.
    #[command(flatten)]
    pub at: StoreArgs,
    /// The licence (TOML); it names the appraisal policy beside it
    #[arg(long, value_name = "FILE")]
    pub licence: PathBuf,
    /// The package, whose header says which key is its
    #[arg(long, value_name = "NAME.chry")]
    pub package: PathBuf,
    /// Package key file
    #[arg(long, value_name = "FILE")]
    pub key: PathBuf,
    /// One JSON object instead of text
    #[arg(long)]
    pub json: bool,
}

/// `chrysalis key-broker revoke`.
#[derive(Debug, Args)]
pub struct RevokeArgs {
    /// The broker's folder
    #[arg(long, value_name = "DIR")]
    pub store: PathBuf,
    /// The package: 32 hexadecimal digits
    #[arg(long, value_name = "ID")]
    pub package_id: String,
    /// One JSON object instead of text
    #[arg(long)]
    pub json: bool,
}

/// `chrysalis key-broker status`.
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// The broker's folder
    #[arg(long, value_name = "DIR")]
    pub store: PathBuf,
    /// One JSON object instead of text
    #[arg(long)]
    pub json: bool,
}

/// `chrysalis key-broker serve`.
#[derive(Debug, Args)]
pub struct ServeArgs {
    /// Where.
    #[command(flatten)]
    pub at: StoreArgs,
    /// Where to listen
    #[arg(long, value_name = "IP:PORT", default_value = "127.0.0.1:7443")]
    pub listen: SocketAddr,
    /// Certificate chain of the server (PEM)
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    pub tls_cert: Option<PathBuf>,
    /// Its private key (PEM)
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,
    /// A proxy ends TLS and names the caller in X-Forwarded-For
    #[arg(long, conflicts_with_all = ["tls_cert", "dangerous_plain_http"])]
    pub behind_proxy: bool,
    /// Serve plain HTTP where others can read along: keys stay sealed, but who asks for what is seen
    #[arg(long, conflicts_with = "tls_cert")]
    pub dangerous_plain_http: bool,
    /// Take a clock that is behind the store's last entry: an expired licence may come to life
    #[arg(long)]
    pub dangerous_clock_back: bool,
    /// Calls a minute of one address (IPv6: of one network of 64 bits)
    #[arg(long, value_name = "N", default_value_t = 120, value_parser = clap::value_parser!(u32).range(1..))]
    pub rate_address: u32,
    /// Releases a minute of one package
    #[arg(long, value_name = "N", default_value_t = 600, value_parser = clap::value_parser!(u32).range(1..))]
    pub rate_package: u32,
    /// Releases a minute to one chip
    #[arg(long, value_name = "N", default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..))]
    pub rate_chip: u32,
    /// One JSON object instead of a line of text once it listens
    #[arg(long)]
    pub json: bool,
}

/// `chrysalis key-broker log`.
#[derive(Debug, Args)]
pub struct LogArgs {
    /// The broker's folder
    #[arg(long, value_name = "DIR")]
    pub store: PathBuf,
    /// Check the chain, the counts, and (where no broker runs) the end against the store
    #[arg(long)]
    pub verify: bool,
    /// A head that was noted before: it has to be in the chain
    #[arg(long, value_name = "HASH", requires = "verify")]
    pub head: Option<String>,
    /// JSON: a line an entry, or one object with --verify
    #[arg(long)]
    pub json: bool,
}
