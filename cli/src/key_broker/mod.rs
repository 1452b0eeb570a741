//! `chrysalis key-broker`: holds package keys for their owner, and seals them to enclaves that his licences cover
//! (docs/key-broker.md).
//!
//! The host between broker and enclave is untrusted: what it carries is evidence, which it cannot make, and sealed keys,
//! which it cannot open. What it can do is ask often, and that is what rates and budgets are for.

mod admin;
mod admin_server;
pub mod args;
mod challenge;
mod clock;
mod commands;
mod error;
mod exchange;
mod http;
mod licence;
mod log;
mod master;
mod packages;
mod peers;
mod rate;
mod record;
mod refusal;
mod serve;
mod service;
mod spend;
mod store;
mod writer;

pub use error::BrokerError;
pub use exchange::{Broker, ExchangeError};

use crate::error::CliError;
use args::{BrokerArgs, BrokerCommand};

/// Runs `chrysalis key-broker`.
///
/// # Errors
/// [`BrokerError`].
pub fn run(args: &BrokerArgs) -> Result<(), CliError> {
    match &args.command {
        BrokerCommand::Init(args) => commands::init(args),
        BrokerCommand::Licence(args) => commands::licence(args),
        BrokerCommand::Add(args) => commands::add(args),
        BrokerCommand::Revoke(args) => commands::revoke(args),
        BrokerCommand::Status(args) => commands::status(args),
        BrokerCommand::Serve(args) => serve::run(args),
        BrokerCommand::Log(args) => commands::log(args),
    }
}
