//! `chrysalis verify`: what an enclave's evidence proves, and what it does not; now, or later from a file.

use std::fs;
use std::path::Path;

use chrysalis_attestation::policy::{Challenge, Claims, Ear, Eat, Explanation, MaxAge};
use chrysalis_client::{AppraisalPolicy, ClientError, VerifiedEnclave};
use serde::Serialize;

use crate::args::VerifyArgs;
use crate::error::CliError;
use crate::{endorsements, hex, output, remote, wanted};

/// What `--json` prints.
#[derive(Debug, Serialize)]
struct Report {
    claims: Claims,
    explanation: Explanation,
    /// What the same evidence is judged by again.
    challenge: Judged,
    /// The claims by their names in RFC 9711.
    eat: Eat,
    /// The verdict in the words of RATS.
    ear: Ear,
}

/// The challenge and the time of an appraisal.
#[derive(Debug, Serialize)]
struct Judged {
    nonce: Option<String>,
    unix_time: u64,
}

/// Runs `chrysalis verify`.
///
/// # Errors
/// [`CliError::Client`] names the step at which the evidence was refused.
pub fn run(args: &VerifyArgs) -> Result<(), CliError> {
    let policy = remote::policy_of_age(&args.policy, args.max_age)?;
    let (bundle, challenge) = match (&args.connect, &args.evidence) {
        (Some(address), _) => {
            let mut connection = remote::connect(address, args.endorsements.as_deref())?;
            connection.serving_evidence(&policy)?
        }
        (None, Some(path)) => saved(path, args, &policy)?,
        (None, None) => return Err(CliError::Usage("give --connect ADDR or --evidence FILE")),
    };
    if let Some(path) = &args.save {
        save(path, &bundle, &challenge)?;
    }
    if let Some(folder) = &args.wanted {
        wanted::write(folder, &bundle, challenge.now_unix)?;
    }
    let enclave = policy.appraise(&bundle, &challenge).map_err(ClientError::from)?;
    if args.json {
        let nonce = challenge.nonce.map(|nonce| hex::encode(&nonce));
        return output::json(&Report {
            claims: enclave.claims(),
            explanation: enclave.explain(),
            challenge: Judged { nonce, unix_time: challenge.now_unix },
            eat: enclave.eat(&challenge),
            ear: enclave.ear(&challenge),
        });
    }
    print(&enclave)
}

/// Evidence from a file, and what it is to be judged by.
fn saved(
    path: &Path,
    args: &VerifyArgs,
    policy: &AppraisalPolicy,
) -> Result<(Vec<u8>, Challenge), CliError> {
    let bundle = fs::read(path).map_err(CliError::io(path))?;
    let bundle = endorsements::read(args.endorsements.as_deref())?.complete(bundle);
    let wrong = CliError::Usage("--nonce is the challenge that --save told: 64 hexadecimal digits");
    let nonce = match &args.nonce {
        Some(text) => Some(hex::decode(text).and_then(|nonce| nonce.try_into().ok()).ok_or(wrong)?),
        None if policy.max_age == MaxAge::Fresh => {
            return Err(CliError::Usage(
                "the policy asks for fresh evidence (max_age = \"fresh\"): give the challenge that --save told with \
                 --nonce, or --max-age epoch",
            ));
        }
        None => None,
    };
    Ok((bundle, Challenge { nonce, now_unix: args.at.unwrap_or_else(remote::now_unix) }))
}

/// Keeps evidence, and tells how to judge it again.
fn save(path: &Path, bundle: &[u8], challenge: &Challenge) -> Result<(), CliError> {
    fs::write(path, bundle).map_err(CliError::io(path))?;
    let nonce = challenge.nonce.map(|nonce| format!(" --nonce {}", hex::encode(&nonce)));
    let (nonce, at) = (nonce.unwrap_or_default(), challenge.now_unix);
    output::note(&format!(
        "saved; judge it again with: --evidence {}{nonce} --at {at}",
        path.display()
    ));
    Ok(())
}

/// Prints the explanation of an appraisal.
///
/// # Errors
/// [`CliError::Output`].
pub fn print(enclave: &VerifiedEnclave) -> Result<(), CliError> {
    let explanation = enclave.explain();
    output::line("accepted by the policy\n\nproved:")?;
    for fact in &explanation.proved {
        output::line(&format!("  + {fact}"))?;
    }
    output::line("\nnot proved:")?;
    for fact in &explanation.not_proved {
        output::line(&format!("  - {fact}"))?;
    }
    Ok(())
}
