//! `chrysalis serve`: becomes the enclave's program, in the foreground. Signals and the exit status are its own.

use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

use crate::args::ServeArgs;
use crate::error::CliError;
use crate::{ENCLAVE, ENCLAVE_ROLE};

/// Runs `chrysalis serve`; comes back only when the enclave's program does not start.
///
/// # Errors
/// [`CliError::Start`].
pub fn run(args: &ServeArgs) -> Result<(), CliError> {
    let mut command = match &args.enclave {
        Some(program) => Command::new(program),
        None => own_enclave()?,
    };
    command.arg("--package").arg(&args.package);
    command.arg("--listen").arg(&args.listen);
    command.arg("--attester").arg(&args.attester);
    if let Some(config) = &args.config {
        command.arg("--config").arg(config);
    }
    if let Some(nvml) = &args.nvml {
        command.arg("--nvml").arg(nvml);
    }
    let source = command.exec();
    Err(CliError::Start { program: command.get_program().into(), source })
}

/// This program in its enclave role.
///
/// # Errors
/// [`CliError::Start`] when the system does not tell where it lies.
pub fn own_enclave() -> Result<Command, CliError> {
    let program = || PathBuf::from(ENCLAVE);
    let own =
        std::env::current_exe().map_err(|source| CliError::Start { program: program(), source })?;
    let mut command = Command::new(own);
    command.arg(ENCLAVE_ROLE);
    Ok(command)
}
