//! The commands' common way to an enclave: address, policy, connection.

use std::fs;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use chrysalis_client::{Address, AppraisalPolicy, Connection, MaxAge};

use crate::args::Age;
use crate::endorsements;
use crate::error::CliError;

/// Reads an appraisal policy.
///
/// # Errors
/// [`CliError::Policy`] names the key that is wrong or missing.
pub fn policy(path: &Path) -> Result<AppraisalPolicy, CliError> {
    let text = fs::read_to_string(path).map_err(CliError::io(path))?;
    let folder = path.parent().unwrap_or_else(|| Path::new(""));
    let mut read = |name: &str| fs::read(folder.join(name)).map_err(|error| error.to_string());
    AppraisalPolicy::from_toml_with(&text, &mut read)
        .map_err(|source| CliError::Policy { path: path.to_owned(), source })
}

/// Reads an appraisal policy; an age that was asked for on the command line takes the place of its own.
///
/// # Errors
/// As [`policy`].
pub fn policy_of_age(path: &Path, age: Option<Age>) -> Result<AppraisalPolicy, CliError> {
    let mut policy = policy(path)?;
    policy.max_age = match age {
        Some(Age::Fresh) => MaxAge::Fresh,
        Some(Age::Epoch) => MaxAge::Epoch,
        None => policy.max_age,
    };
    Ok(policy)
}

/// The time, in seconds since 1970.
pub fn now_unix() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Connects to an enclave, whose evidence is completed by the files of `--endorsements`.
///
/// # Errors
/// [`CliError::Address`], [`CliError::Client`], [`CliError::Endorsements`].
pub fn connect(address: &str, endorsements: Option<&Path>) -> Result<Connection, CliError> {
    let address: Address = address.parse()?;
    let endorsing = endorsements::read(endorsements)?;
    let mut connection = Connection::open(&address)?;
    connection.endorse(endorsing);
    Ok(connection)
}
