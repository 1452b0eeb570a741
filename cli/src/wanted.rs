//! `chrysalis verify --wanted FOLDER`: what NVIDIA has to be asked for before GPUs can be judged. Nothing is fetched here:
//! whoever fetches need not be trusted, and may have another network than whoever verifies.

use std::fs;
use std::path::Path;

use chrysalis_attestation::gpu::GpuRoots;
use chrysalis_attestation::verifier::gpu::verify_gpus;
use chrysalis_protocol::bundle::Bundle;
use chrysalis_protocol::statement::{Statement, Tee};

use crate::error::CliError;
use crate::output;

/// Writes `manifests.txt`, a name on each line, and `SERIAL.ocsp-request` for each certificate without a status.
///
/// # Errors
/// [`CliError::Wanted`] when the evidence is of no GPUs, or not authentic.
pub fn write(folder: &Path, bundle: &[u8], now: u64) -> Result<(), CliError> {
    let wrong = |reason: String| CliError::Wanted { reason };
    let bundle = Bundle::parse(bundle).map_err(|error| wrong(error.to_string()))?;
    let statement = Statement::from_bytes(bundle.statement);
    let statement = statement.map_err(|error| wrong(error.to_string()))?;
    let evidence = bundle.gpu.ok_or_else(|| wrong("the evidence is of no gpus".to_owned()))?;
    let simulated = statement.tee == Tee::Simulated;
    let roots = if simulated { GpuRoots::Simulated } else { GpuRoots::Nvidia };
    let gpus = verify_gpus(evidence, bundle.endorsements.gpu_rim, &statement, roots, now)
        .map_err(|error| wrong(error.to_string()))?;

    let mut names = Vec::new();
    for device in gpus.devices() {
        let driver = device.driver_manifest.as_ref().filter(|_| !device.driver_compared);
        let vbios = device.vbios_manifest.as_ref().filter(|_| !device.vbios_compared);
        names.extend(driver.into_iter().chain(vbios));
    }
    names.sort_unstable();
    names.dedup();
    fs::create_dir_all(folder).map_err(CliError::io(folder))?;
    let list = folder.join("manifests.txt");
    let text: String = names.iter().map(|name| format!("{name}\n")).collect();
    fs::write(&list, text).map_err(CliError::io(&list))?;
    for status in gpus.without_status() {
        let path = folder.join(format!("{}.ocsp-request", status.serial));
        fs::write(&path, &status.request).map_err(CliError::io(&path))?;
    }
    let (manifests, statuses) = (names.len(), gpus.without_status().len());
    output::note(&format!(
        "{}: {manifests} manifests and {statuses} certificate statuses are wanted; docs/attestation.md says how to ask",
        folder.display()
    ));
    Ok(())
}
