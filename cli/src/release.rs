//! `chrysalis release`: the owner verifies an enclave that waits for its key, then seals the key to it.

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use chrysalis_attestation::policy::{AppraisalPolicy, VerifiedKeyRelease};
use chrysalis_client::{Connection, ReleaseTerms};
use chrysalis_protocol::messages::State;
use chrysalis_protocol::package::PackageKey;
use serde::Serialize;

use crate::args::ReleaseArgs;
use crate::error::CliError;
use crate::{hex, key_file, output, remote};

/// What `--json` prints.
#[derive(Debug, Serialize)]
struct Report {
    released: bool,
    package_digest: String,
    content_digest: String,
    boot_id: String,
    measurement: String,
    simulated: bool,
}

/// Runs `chrysalis release`.
///
/// # Errors
/// [`CliError::Client`] names the check that failed; the key has not left then.
pub fn run(args: &ReleaseArgs) -> Result<(), CliError> {
    let policy = remote::policy(&args.policy)?;
    let key = key_file::read(&args.key)?;
    let mut connection = remote::connect(&args.connect)?;
    let verified = release(&mut connection, &policy, &key)?;
    let statement = verified.statement();
    let report = Report {
        released: true,
        package_digest: hex::encode(&statement.package_digest),
        content_digest: hex::encode(&statement.content_digest),
        boot_id: hex::encode(&statement.boot_id),
        measurement: hex::encode(&verified.measurement()),
        simulated: verified.simulated(),
    };
    if args.json {
        return output::json(&report);
    }
    if report.simulated {
        output::note(
            "warning: the platform is simulated; whoever runs the enclave now has the package key",
        );
    }
    output::line(&format!(
        "released the key of package {} to boot {} (measurement {})",
        report.package_digest, report.boot_id, report.measurement
    ))
}

/// Releases a key on an open connection.
///
/// # Errors
/// [`CliError::Client`].
pub fn release(
    connection: &mut Connection,
    policy: &AppraisalPolicy,
    key: &PackageKey,
) -> Result<VerifiedKeyRelease, CliError> {
    let terms =
        ReleaseTerms { min_model_svn: policy.minimum_svn, lease_seconds: 0, lease_tokens: 0 };
    Ok(connection.release(policy, key, &terms)?)
}

/// Waits until an enclave that was just started listens at a socket and is in a state.
///
/// # Errors
/// [`CliError::Client`] when it never does; `alive` says whether its process still runs.
pub fn wait_for_state(
    socket: &Path,
    wanted: State,
    mut alive: impl FnMut() -> bool,
) -> Result<Connection, CliError> {
    let start = Instant::now();
    loop {
        let connected = remote::connect(&format!("unix:{}", socket.display()));
        match connected {
            Ok(connection) if connection.state() == wanted => return Ok(connection),
            Err(error) if start.elapsed() > START_MAX || !alive() => return Err(error),
            Ok(_) if !alive() => return Err(CliError::Enclave("it ended before it served")),
            _ => thread::sleep(Duration::from_millis(20)),
        }
    }
}

/// An enclave listens within this time, or never.
const START_MAX: Duration = Duration::from_secs(30);
