//! `--endorsements`: a chip's certificate, a platform's collateral, manifests and certificate statuses of GPUs, from files
//! of the kinds that the vendors' services and their clients write.

use std::fs;
use std::path::Path;

use chrysalis_attestation::verifier::{certificate_from_pem, tdx_collateral_from_json};
use chrysalis_client::Endorsing;
use chrysalis_protocol::tdx_collateral::TdxCollateral;

use crate::error::CliError;

/// Reads one file, or all that it knows in a folder: `*.der` or `*.pem` (a VCEK or VLEK), `*.json` (TDX collateral as clients of
/// Intel's service keep it), `*.tdx` (the same as a section of a bundle), and any number of `*.xml` and `*.swidtag`
/// (NVIDIA's manifests) and `*.ocsp` (OCSP responses, DER).
///
/// # Errors
/// [`CliError::Endorsements`] when a file is of no kind, or two are of one of which there is one.
pub fn read(path: Option<&Path>) -> Result<Endorsing, CliError> {
    let mut endorsing = Endorsing::default();
    let Some(path) = path else { return Ok(endorsing) };
    let wrong = |path: &Path, reason: &str| CliError::Endorsements {
        path: path.to_owned(),
        reason: reason.to_owned(),
    };
    if !path.is_dir() {
        if !add(&mut endorsing, path)? {
            return Err(wrong(path, KINDS));
        }
        return Ok(endorsing);
    }
    let mut found = false;
    for entry in fs::read_dir(path).map_err(CliError::io(path))? {
        found |= add(&mut endorsing, &entry.map_err(CliError::io(path))?.path())?;
    }
    if found { Ok(endorsing) } else { Err(wrong(path, KINDS)) }
}

/// Whether the file is of a kind that is known, by its name.
fn add(endorsing: &mut Endorsing, path: &Path) -> Result<bool, CliError> {
    let wrong = |reason: String| CliError::Endorsements { path: path.to_owned(), reason };
    let read = || fs::read(path).map_err(CliError::io(path));
    let several = match path.extension().and_then(|extension| extension.to_str()) {
        Some("xml" | "swidtag") => Some(&mut endorsing.gpu_manifests),
        Some("ocsp") => Some(&mut endorsing.gpu_statuses),
        _ => None,
    };
    if let Some(list) = several {
        let bytes = read()?;
        if bytes.is_empty() {
            return Err(wrong("it is empty".to_owned()));
        }
        list.push(bytes);
        return Ok(true);
    }
    let (slot, bytes) = match path.extension().and_then(|extension| extension.to_str()) {
        Some("der") => (&mut endorsing.vcek, read()?),
        Some("pem") => {
            let certificate = certificate_from_pem(&read()?);
            (&mut endorsing.vcek, certificate.map_err(|error| wrong(error.to_string()))?)
        }
        Some("json") => {
            let text = fs::read_to_string(path).map_err(CliError::io(path))?;
            let collateral = tdx_collateral_from_json(&text);
            let collateral = collateral.map_err(|error| wrong(error.to_string()))?;
            (&mut endorsing.tdx_collateral, collateral.to_bytes())
        }
        Some("tdx") => {
            let bytes = read()?;
            TdxCollateral::parse(&bytes).map_err(|error| wrong(error.to_string()))?;
            (&mut endorsing.tdx_collateral, bytes)
        }
        _ => return Ok(false),
    };
    if bytes.is_empty() {
        return Err(wrong("it is empty".to_owned()));
    }
    if slot.replace(bytes).is_some() {
        return Err(wrong("there is another file of this kind".to_owned()));
    }
    Ok(true)
}

const KINDS: &str = "neither *.der or *.pem (the certificate of an SEV-SNP chip's key) nor *.json or *.tdx (TDX collateral) nor \
                     *.xml or *.swidtag (manifests of GPUs) nor *.ocsp (statuses of their certificates)";
