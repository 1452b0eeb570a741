//! The commands' common way to an enclave: address, policy, connection.

use std::fs;
use std::path::Path;

use chrysalis_client::{Address, AppraisalPolicy, Connection};

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

/// Connects to an enclave.
///
/// # Errors
/// [`CliError::Address`], [`CliError::Client`].
pub fn connect(address: &str) -> Result<Connection, CliError> {
    let address: Address = address.parse()?;
    Ok(Connection::open(&address)?)
}
