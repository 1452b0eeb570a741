//! The command line of `chrysalis-enclave`. It reads no environment variable; its one launch-time input is measured.

use std::ffi::OsString;
use std::fs;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use chrysalis_attestation::attester::{Attester, AttesterError, Choice, Interfaces};
use clap::{Parser, ValueEnum};
use rustix::process::{Signal, getppid, set_parent_process_death_signal};

use crate::boot::{BootError, Enclave, EnclaveOptions, NVML, Progress, simulated};
use crate::config::{ConfigError, LaunchConfig};
use crate::harden::{harden, keep_panics_quiet};
use crate::transport::Address;

/// Serve a model package to clients that verify before they seal.
#[derive(Debug, Parser)]
#[command(name = "chrysalis-enclave", version)]
struct Args {
    /// The package to serve, with its blobs and client bundle beside it
    #[arg(long, value_name = "NAME.chry")]
    package: PathBuf,
    /// Where to listen: unix:PATH or vsock:PORT
    #[arg(long, value_name = "ADDR")]
    listen: Address,
    /// Where evidence comes from; nothing is chosen for you
    #[arg(long, value_enum)]
    attester: AttesterKind,
    /// Launch config (key = value lines); its SHA-256 is measured [default: all defaults]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// NVIDIA's management library, an absolute path, opened only where the launch config asks for GPUs
    #[arg(long, value_name = "FILE", default_value = NVML)]
    nvml: PathBuf,
    /// End when the process that started this one ends
    #[arg(long, hide = true)]
    exit_with_parent: bool,
}

/// The platforms that this version can ask for evidence.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum AttesterKind {
    /// The confidential VM that this machine is; an error where it is none
    Auto,
    /// AMD SEV-SNP
    Snp,
    /// Intel TDX
    Tdx,
    /// No hardware: proves nothing, runs anywhere
    Simulated,
}

/// Why the command failed.
#[derive(Debug, thiserror::Error)]
enum CommandError {
    #[error("{path}: {source}")]
    ReadConfig { path: PathBuf, source: io::Error },
    #[error("{path}: {source}")]
    Config { path: PathBuf, source: ConfigError },
    #[error("the process could not be hardened: {0}")]
    Harden(io::Error),
    #[error(transparent)]
    Attester(#[from] AttesterError),
    #[error(transparent)]
    Boot(#[from] BootError),
}

/// Runs the enclave as its binary does, with `args` as its command line (the first is the program's name).
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let args = match Args::try_parse_from(args) {
        Ok(args) => args,
        Err(error) => {
            // Help goes to standard output with code 0, a wrong flag to standard error with code 2.
            drop(error.print());
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    match run(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&error.to_string());
            ExitCode::FAILURE
        }
    }
}

fn run(args: Args) -> Result<(), CommandError> {
    keep_panics_quiet();
    harden().map_err(CommandError::Harden)?;
    if args.exit_with_parent {
        let set = set_parent_process_death_signal(Some(Signal::TERM));
        set.map_err(|error| CommandError::Harden(error.into()))?;
        // The parent may have ended before the signal was asked for.
        if getppid().is_none_or(|parent| parent.is_init()) {
            return Ok(());
        }
    }
    let config = match &args.config {
        None => LaunchConfig::default(),
        Some(path) => {
            let bytes = fs::read(path)
                .map_err(|source| CommandError::ReadConfig { path: path.clone(), source })?;
            LaunchConfig::parse(&bytes)
                .map_err(|source| CommandError::Config { path: path.clone(), source })?
        }
    };
    let attester = attester(args.attester, &config)?;
    let address = args.listen.clone();
    let options = EnclaveOptions {
        config,
        nvml: args.nvml,
        ..EnclaveOptions::new(args.package, args.listen)
    };
    let enclave = Enclave::start(options, attester, move |progress| match progress {
        Progress::Measured(true) => say("RTMR3 is extended with the package's digest"),
        Progress::Measured(false) => say(
            "RTMR3 is not extended: this kernel has no rtmr3:sha384 (Linux 6.16); policies with rtmr3 = [\"package\"] \
             refuse this enclave",
        ),
        Progress::AwaitingKey => {
            say(&format!("listening on {address}, waiting for the package key"));
        }
        Progress::Loading(..) => {}
        Progress::Loaded(report) => say(&report.to_string()),
        Progress::Serving => {
            let memory = fs::read_to_string("/proc/self/status").unwrap_or_default();
            let memory = resident_mib(&memory).map(|mib| format!(", {mib} MiB resident"));
            say(&format!("serving on {address}{}", memory.unwrap_or_default()));
        }
    })?;
    Ok(enclave.wait()?)
}

/// The platform, and a word about it to whoever started the process.
fn attester(kind: AttesterKind, config: &LaunchConfig) -> Result<Box<dyn Attester>, AttesterError> {
    let choice = match kind {
        AttesterKind::Auto => Choice::Auto,
        AttesterKind::Snp => Choice::Snp,
        AttesterKind::Tdx => Choice::Tdx,
        AttesterKind::Simulated => {
            say("attester simulated: the evidence proves nothing about this machine");
            return simulated(config);
        }
    };
    let attester = Interfaces::default().attester(choice)?;
    say(&format!("attester {:?}", attester.tee()));
    Ok(attester)
}

/// Memory that the process has, by its `/proc/self/status` (proc(5)); the host sees it anyway.
fn resident_mib(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kib.div_ceil(1024))
}

/// A named state for whoever started the process; nothing in it comes from a request.
fn say(text: &str) {
    // Nobody need listen.
    drop(writeln!(io::stderr().lock(), "chrysalis-enclave: {text}"));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resident_memory_is_read_where_the_system_tells() {
        let status = "VmHWM:\t  4096 kB\nVmRSS:\t    2049 kB\n";
        assert_eq!(resident_mib(status), Some(3));
        assert_eq!(resident_mib("VmRSS:\tmuch\n"), None);
        assert_eq!(resident_mib(""), None);
        let own = fs::read_to_string("/proc/self/status").unwrap_or_default();
        assert!(resident_mib(&own).is_none_or(|mib| mib > 0));
    }
}
