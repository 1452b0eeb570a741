//! Why a command failed, in words for the person who gave it, and the exit code for the script that did.

use std::io;
use std::path::{Path, PathBuf};

use chrysalis_attestation::launch::LaunchError;
use chrysalis_attestation::policy::PolicyError;
use chrysalis_client::ClientError;
use chrysalis_client::address::AddressError;
use chrysalis_kernels::device::DeviceError;
use chrysalis_models::decoder::ModelError;
use chrysalis_models::pack::PackError;
use chrysalis_models::source::SourceError;
use chrysalis_models::text::TextError;
use chrysalis_protocol::ledger::LedgerError;
use chrysalis_protocol::package::{ClientBundleError, MetaError, PackageError};
use chrysalis_runtime::compute::ComputeError;
use chrysalis_runtime::config::ConfigError;
use chrysalis_runtime::engine::{AddError, EngineError};
use chrysalis_runtime::files::FileError;
use chrysalis_runtime::load::LoadError;

use crate::key_broker::{BrokerError, ExchangeError};
use crate::model_cache::FetchError;

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CliError {
    /// A file could not be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// A file is there and was not to be replaced.
    #[error("{path} is already there: name another output, or replace it with --force")]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// A package, or the key for it, was refused.
    #[error("{path}: {source}")]
    Package {
        /// The package's main file.
        path: PathBuf,
        /// The check that failed.
        source: PackageError,
    },
    /// A sealed package and no key.
    #[error("{package} is sealed: give its key with --key FILE")]
    KeyNeeded {
        /// The package.
        package: PathBuf,
    },
    /// A key file does not hold such a key.
    #[error("{path} does not hold {expected}")]
    KeyFile {
        /// The file.
        path: PathBuf,
        /// What it should hold.
        expected: &'static str,
    },
    /// No key could be made.
    #[error("the system's generator made no key")]
    KeyGeneration,
    /// The client bundle is not the one that the package names.
    #[error("{path} is not the client bundle of its package: {source}")]
    ClientBundle {
        /// The bundle.
        path: PathBuf,
        /// The check that failed.
        source: MetaError,
    },
    /// The client bundle is well-measured and yet no bundle.
    #[error("{path}: {source}")]
    BundleForm {
        /// The bundle.
        path: PathBuf,
        /// The entry that is wrong.
        source: ClientBundleError,
    },
    /// A file is no appraisal policy.
    #[error("{path}: {source}")]
    Policy {
        /// The file.
        path: PathBuf,
        /// The key that is wrong or missing.
        source: PolicyError,
    },
    /// A file completes no evidence.
    #[error("{path}: {reason}")]
    Endorsements {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Nothing can be asked for.
    #[error("--wanted: {reason}")]
    Wanted {
        /// Why.
        reason: String,
    },
    /// A file is no launch config.
    #[error("{path}: {source}")]
    Config {
        /// The file.
        path: PathBuf,
        /// The line that is wrong.
        source: ConfigError,
    },
    /// No launch measurement can be computed.
    #[error(transparent)]
    Launch(#[from] LaunchError),
    /// A file is neither a report nor evidence with one.
    #[error(
        "{path} is neither an SEV-SNP report of 1,184 bytes nor saved evidence with one: {reason}"
    )]
    Report {
        /// The file.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// A report is of another launch than the one that was computed.
    #[error("the launch is another one: {fields} differ")]
    Differs {
        /// The fields.
        fields: String,
    },
    /// Arguments that do not go together.
    #[error("{0}")]
    Usage(&'static str),
    /// The enclave's program did not start.
    #[error("{program} could not be started: {source}")]
    Start {
        /// The program.
        program: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// Something is wrong with receipts; each finding was said.
    #[error("{count} findings: these receipts are not to be paid as they are")]
    Receipts {
        /// How many findings.
        count: usize,
    },
    /// Evidence that contradicts the other evidence of its boot, or is about no served model.
    #[error("{path}: {source}")]
    Ledger {
        /// The bundle.
        path: PathBuf,
        /// What is wrong with it.
        source: LedgerError,
    },
    /// A list of payer tags that is none.
    #[error("{path}: line {line} is no payer tag: 64 hexadecimal digits, and a name if you like")]
    Vouchers {
        /// The list.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
    },
    /// Standard output took no more.
    #[error("standard output: {0}")]
    Output(io::Error),
    /// A file of a package could not be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// A package did not become a decoder.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The compute device failed.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// There is no such device to compute on.
    #[error(transparent)]
    Compute(#[from] ComputeError),
    /// A forward pass failed.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The engine failed.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The engine refused a sequence.
    #[error(transparent)]
    Add(#[from] AddError),
    /// The source is no model that can be packed.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The package was not made.
    #[error(transparent)]
    Pack(#[from] PackError),
    /// A tokenizer or chat template was refused, or could not do its work.
    #[error(transparent)]
    Text(#[from] TextError),
    /// The demo's model could not be had.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// An address that cannot be read.
    #[error(transparent)]
    Address(#[from] AddressError),
    /// The way to an answer failed.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The key broker did not start, stopped, or took no licence.
    #[error(transparent)]
    Broker(#[from] BrokerError),
    /// A key broker gave no key.
    #[error(transparent)]
    Exchange(#[from] ExchangeError),
    /// The enclave's process is not there.
    #[error("the enclave failed: {0}")]
    Enclave(&'static str),
}

impl CliError {
    /// Wraps the system's reason with the file.
    pub fn io(path: &Path) -> impl FnOnce(io::Error) -> Self + '_ {
        move |source| Self::Io { path: path.to_owned(), source }
    }

    /// Wraps a refusal with the package.
    pub fn package(path: &Path) -> impl FnOnce(PackageError) -> Self + '_ {
        move |source| Self::Package { path: path.to_owned(), source }
    }

    /// The exit code: 2 for arguments that do not go together, as for those that cannot be read; 3 for evidence that was
    /// refused or is of another launch; 4 for an enclave that could not be reached or closed; 1 for everything else.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(_) | Self::Address(_) | Self::Exchange(ExchangeError::Url { .. }) => 2,
            Self::Exchange(ExchangeError::Refused { .. })
            | Self::Client(ClientError::Rejected(_) | ClientError::BundleDigest { .. })
            | Self::Differs { .. }
            | Self::Receipts { .. }
            | Self::Ledger { .. } => 3,
            Self::Client(
                ClientError::Connect { .. }
                | ClientError::Closed
                | ClientError::Silent { .. }
                | ClientError::State { .. }
                | ClientError::Refused { .. },
            )
            | Self::Exchange(_) => 4,
            _ => 1,
        }
    }

    /// Whether the reader of standard output left, which is no failure of ours.
    pub fn is_closed_pipe(&self) -> bool {
        matches!(self, Self::Output(error) if error.kind() == io::ErrorKind::BrokenPipe)
    }

    /// The error and its causes in one line, each said once.
    pub fn describe(&self) -> String {
        let mut text = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            let said = error.to_string();
            if !text.contains(&said) {
                text.push_str(": ");
                text.push_str(&said);
            }
            cause = error.source();
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use chrysalis_attestation::policy::Rejection;

    use super::*;

    #[test]
    fn each_kind_of_failure_has_its_exit_code() {
        assert_eq!(CliError::Usage("no").exit_code(), 2);
        assert_eq!(CliError::from(ClientError::from(Rejection::Simulated)).exit_code(), 3);
        assert_eq!(CliError::from(ClientError::Closed).exit_code(), 4);
        assert_eq!(CliError::KeyGeneration.exit_code(), 1);
    }

    #[test]
    fn a_cause_is_said_once() {
        let error = CliError::io(Path::new("model"))(io::Error::other("it is gone"));
        assert_eq!(error.describe(), "model: it is gone");
        let source = DeviceError::Failed("it burns".into());
        let error = CliError::Engine(EngineError::Forward { failures: 1, source: source.into() });
        assert!(error.describe().ends_with("it burns"), "{}", error.describe());
    }

    #[test]
    fn only_a_closed_pipe_is_quiet() {
        let output = |kind| CliError::Output(io::Error::from(kind));
        assert!(output(io::ErrorKind::BrokenPipe).is_closed_pipe());
        assert!(!output(io::ErrorKind::StorageFull).is_closed_pipe());
    }
}
