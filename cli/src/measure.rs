//! `chrysalis measure`: the launch measurement that an image will have, from its files; and, field by field, why a report
//! has another one.

use std::fs;
use std::path::Path;

use chrysalis_attestation::launch::{Difference, KernelHashes, Launch, Ovmf};
use chrysalis_attestation::report::{REPORT_LEN, Report, SignedReport};
use chrysalis_protocol::bundle::Bundle;
use chrysalis_runtime::config::LaunchConfig;
use serde::Serialize;

use crate::args::MeasureArgs;
use crate::error::CliError;
use crate::{hex, output};

/// What `--json` prints.
#[derive(Debug, Serialize)]
struct Expected {
    /// MEASUREMENT of an SEV-SNP report.
    measurement: String,
    /// SHA-256 of the launch config: HOST_DATA of an SEV-SNP report.
    #[serde(skip_serializing_if = "Option::is_none")]
    host_data: Option<String>,
    /// The same, as a TDX quote has it.
    #[serde(skip_serializing_if = "Option::is_none")]
    mrconfigid: Option<String>,
    /// Nothing to compare with, nothing compared.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    compared: Vec<Field>,
}

/// One field of a report beside what it should be.
#[derive(Debug, Serialize)]
struct Field {
    name: &'static str,
    expected: String,
    found: String,
    equal: bool,
    /// Where they differ: what would have given the value that was found.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    explanation: Vec<String>,
}

/// Runs `chrysalis measure`.
///
/// # Errors
/// [`CliError`] names the file or number that cannot be measured; [`CliError::Differs`] the fields that differ, after
/// everything was printed.
pub fn run(args: &MeasureArgs) -> Result<(), CliError> {
    let ovmf = Ovmf::parse(&read(&args.ovmf)?)?;
    let launch = launch(args, &ovmf)?;
    let measurement = launch.digest()?;
    let config = args.config.as_deref().map(config_digest).transpose()?;
    let report = args.report.as_deref().map(report).transpose()?;

    let mut compared = Vec::new();
    let found = match (&args.expect, &report) {
        (Some(text), _) => Some(digest(text)?),
        (None, report) => report.as_ref().map(|report| report.measurement),
    };
    if let Some(found) = found {
        compared.push(measurement_field(&launch, measurement, found)?);
    }
    if let (Some(config), Some(report)) = (config, &report) {
        compared.push(host_data_field(config, report.host_data));
    }
    let expected = Expected {
        measurement: hex::encode(&measurement),
        host_data: config.map(|digest| hex::encode(&digest)),
        mrconfigid: config.map(|digest| format!("{}{}", hex::encode(&digest), "0".repeat(32))),
        compared,
    };
    if args.json {
        output::json(&expected)?;
    } else {
        print(&expected, report.is_some())?;
    }
    let differing: Vec<_> =
        expected.compared.iter().filter(|field| !field.equal).map(|field| field.name).collect();
    if differing.is_empty() {
        Ok(())
    } else {
        Err(CliError::Differs { fields: differing.join(", ") })
    }
}

fn launch<'a>(args: &MeasureArgs, ovmf: &'a Ovmf) -> Result<Launch<'a>, CliError> {
    let kernel = match &args.kernel {
        Some(kernel) => {
            let initrd = args.initrd.as_deref().map(read).transpose()?.unwrap_or_default();
            Some(KernelHashes::new(&read(kernel)?, &initrd, &args.cmdline))
        }
        None => None,
    };
    let features = args.guest_features.trim_start_matches("0x");
    let guest_features = u64::from_str_radix(features, 16)
        .map_err(|_| CliError::Usage("--guest-features is a hexadecimal number, like 0x1"))?;
    Ok(Launch {
        ovmf,
        kernel,
        vcpus: args.vcpus,
        vcpu_type: args.vcpu_type.parse()?,
        monitor: args.vmm.parse()?,
        guest_features,
    })
}

/// The digest of a launch config that an enclave would accept.
fn config_digest(path: &Path) -> Result<[u8; 32], CliError> {
    let config = LaunchConfig::parse(&read(path)?)
        .map_err(|source| CliError::Config { path: path.to_owned(), source })?;
    Ok(config.digest())
}

/// The claims of a bare report, or of the report in saved evidence. Their signature is not judged here.
fn report(path: &Path) -> Result<Report, CliError> {
    let bytes = read(path)?;
    let wrong = |reason: String| CliError::Report { path: path.to_owned(), reason };
    let report = if bytes.len() == REPORT_LEN {
        &bytes
    } else {
        Bundle::parse(&bytes).map_err(|error| wrong(error.to_string()))?.report
    };
    Ok(SignedReport::parse(report).map_err(|error| wrong(error.to_string()))?.report)
}

fn digest(text: &str) -> Result<[u8; 48], CliError> {
    hex::decode(text)
        .and_then(|bytes| bytes.try_into().ok())
        .ok_or(CliError::Usage("--expect is a launch measurement: 96 hexadecimal digits"))
}

fn measurement_field(
    launch: &Launch<'_>,
    expected: [u8; 48],
    found: [u8; 48],
) -> Result<Field, CliError> {
    let explanation = match launch.explain(&found)? {
        Some(differences) => differences.iter().map(Difference::to_string).collect(),
        None => vec![
            "no other number or type of virtual CPUs, monitor, feature or command line near this one gives it: the \
             firmware, kernel or initrd has other bytes, or the command line other words"
                .to_owned(),
        ],
    };
    Ok(field("MEASUREMENT", &expected, &found, explanation))
}

fn host_data_field(expected: [u8; 32], found: [u8; 32]) -> Field {
    let explanation = if found == expected {
        Vec::new()
    } else if found == [0; 32] {
        vec![
            "the host gave no HOST_DATA: QEMU takes it as host-data=BASE64 of sev-snp-guest"
                .to_owned(),
        ]
    } else if found == LaunchConfig::default().digest() {
        vec!["it is the digest of the default launch config, of an empty file".to_owned()]
    } else {
        vec![
            "it is the digest of another launch config; a changed comment is another one, too"
                .to_owned(),
        ]
    };
    field("HOST_DATA", &expected, &found, explanation)
}

fn field(name: &'static str, expected: &[u8], found: &[u8], explanation: Vec<String>) -> Field {
    let equal = expected == found;
    Field { name, expected: hex::encode(expected), found: hex::encode(found), equal, explanation }
}

fn print(expected: &Expected, report: bool) -> Result<(), CliError> {
    output::line(&format!("measurement  {}", expected.measurement))?;
    if let Some(digest) = &expected.host_data {
        output::line(&format!("HOST_DATA    {digest}"))?;
    }
    if let Some(digest) = &expected.mrconfigid {
        output::line(&format!("MRCONFIGID   {digest}"))?;
    }
    for field in &expected.compared {
        let verdict = if field.equal { "equal" } else { "differs" };
        output::line(&format!("\n{}: {verdict}", field.name))?;
        if !field.equal {
            output::line(&format!("  expected {}\n  found    {}", field.expected, field.found))?;
        }
        for reason in &field.explanation {
            output::line(&format!("  {reason}"))?;
        }
    }
    if report {
        let caution =
            "\nThe report's signature was not judged: `chrysalis verify --evidence` does that.";
        output::line(caution)?;
    }
    Ok(())
}

fn read(path: &Path) -> Result<Vec<u8>, CliError> {
    fs::read(path).map_err(CliError::io(path))
}
