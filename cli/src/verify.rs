//! `chrysalis verify`: what an enclave's evidence proves, and what it does not.

use chrysalis_client::VerifiedEnclave;
use serde::Serialize;

use crate::args::VerifyArgs;
use crate::error::CliError;
use crate::{output, remote};

/// What `--json` prints.
#[derive(Debug, Serialize)]
struct Report {
    claims: chrysalis_attestation::policy::Claims,
    explanation: chrysalis_attestation::policy::Explanation,
}

/// Runs `chrysalis verify`.
///
/// # Errors
/// [`CliError::Client`] names the step at which the evidence was refused.
pub fn run(args: &VerifyArgs) -> Result<(), CliError> {
    let policy = remote::policy(&args.policy)?;
    let mut connection = remote::connect(&args.connect)?;
    let enclave = connection.verify(&policy)?;
    if args.json {
        return output::json(&Report { claims: enclave.claims(), explanation: enclave.explain() });
    }
    print(&enclave)
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
