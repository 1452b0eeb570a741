//! `chrysalis release`: the owner verifies an enclave that waits for its key, then seals the key to it; or the host lets
//! a key broker do so.

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
use crate::key_broker::Broker;
use crate::{hex, key_file, output, remote};

/// What `--json` prints; who does not verify does not know what was measured.
#[derive(Debug, Serialize)]
struct Report {
    released: bool,
    package_digest: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    content_digest: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    boot_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    measurement: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    simulated: Option<bool>,
}

/// Runs `chrysalis release`.
///
/// # Errors
/// [`CliError::Client`], [`CliError::Exchange`] name the check that failed; the key has not left then.
pub fn run(args: &ReleaseArgs) -> Result<(), CliError> {
    match (&args.broker, &args.key, &args.policy) {
        (Some(broker), _, _) => by_broker(args, &Broker::new(broker, args.broker_ca.as_deref())?),
        (None, Some(key), Some(policy)) => by_owner(args, key, policy),
        _ => Err(CliError::Usage("give --key and --policy, or --broker")),
    }
}

/// As the owner: verify, then seal.
fn by_owner(args: &ReleaseArgs, key: &Path, policy: &Path) -> Result<(), CliError> {
    let policy = remote::policy(policy)?;
    let key = key_file::read(key)?;
    let mut connection = remote::connect(&args.connect, args.endorsements.as_deref())?;
    let terms = ReleaseTerms {
        lease_seconds: args.lease_seconds.unwrap_or(0),
        lease_tokens: args.lease_tokens.unwrap_or(0),
        ..unlimited(&policy)
    };
    let verified = connection.release(&policy, &key, &terms)?;
    let statement = verified.statement();
    let (package, boot) = (hex::encode(&statement.package_digest), hex::encode(&statement.boot_id));
    let measurement = hex::encode(&verified.measurement());
    if args.json {
        return output::json(&Report {
            released: true,
            package_digest: package,
            content_digest: Some(hex::encode(&statement.content_digest)),
            boot_id: Some(boot),
            measurement: Some(measurement),
            simulated: Some(verified.simulated()),
        });
    }
    if verified.simulated() {
        output::note(
            "warning: the platform is simulated; whoever runs the enclave now has the package key",
        );
    }
    output::line(&format!(
        "released the key of package {package} to boot {boot} (measurement {measurement})"
    ))
}

/// As the host: carry challenge, evidence and sealed key between broker and enclave.
fn by_broker(args: &ReleaseArgs, broker: &Broker) -> Result<(), CliError> {
    let mut connection = remote::connect(&args.connect, args.endorsements.as_deref())?;
    let request = connection.awaited_package()?;
    let challenge = broker.challenge(&request)?;
    let evidence = connection.key_evidence(challenge)?;
    let sealed = broker.release(&evidence)?;
    connection.bring_key(sealed)?;
    let package_digest = hex::encode(&request.package_digest);
    if args.json {
        return output::json(&Report {
            released: true,
            package_digest,
            content_digest: None,
            boot_id: None,
            measurement: None,
            simulated: None,
        });
    }
    output::line(&format!("the broker released the key of package {package_digest}"))
}

/// Releases a key on an open connection, without an end.
///
/// # Errors
/// [`CliError::Client`].
pub fn release(
    connection: &mut Connection,
    policy: &AppraisalPolicy,
    key: &PackageKey,
) -> Result<VerifiedKeyRelease, CliError> {
    Ok(connection.release(policy, key, &unlimited(policy))?)
}

/// Terms without an end.
fn unlimited(policy: &AppraisalPolicy) -> ReleaseTerms {
    ReleaseTerms { min_model_svn: policy.minimum_svn, lease_seconds: 0, lease_tokens: 0 }
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
        let connected = remote::connect(&format!("unix:{}", socket.display()), None);
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
