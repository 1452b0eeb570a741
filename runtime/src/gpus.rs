//! The gate in front of the GPUs, at the boot: they prove themselves before anything is loaded or stated.

use chrysalis_attestation::attester::Attester;
#[cfg(feature = "gpu")]
use chrysalis_attestation::attester::AttesterError;
#[cfg(feature = "gpu")]
use chrysalis_protocol::rand_core::Rng as _;

use crate::boot::{BootError, EnclaveOptions};
use crate::rng::SystemRng;

/// The gate: GPUs that the launch config asks for prove themselves before anything is loaded, and are
/// told to work only then.
#[cfg(feature = "gpu")]
pub(crate) fn with_gpus(
    platform: Box<dyn Attester>,
    options: &EnclaveOptions,
    rng: &mut SystemRng,
) -> Result<Box<dyn Attester>, BootError> {
    use chrysalis_attestation::attester::gpu::{GpuOptions, Gpus, WithGpus};
    use chrysalis_attestation::gpu::GpuRoots;
    use chrysalis_protocol::statement::Tee;

    let count = options.config.gpus();
    if count == 0 {
        return Ok(platform);
    }
    // A platform that proves nothing has GPUs that prove nothing, and no other has.
    let simulated = platform.tee() == Tee::Simulated;
    let roots = if simulated { GpuRoots::Simulated } else { GpuRoots::Nvidia };
    let allow_ppcie = options.config.gpu_allow_ppcie();
    let mut challenge = [0; 32];
    rng.fill_bytes(&mut challenge);
    let gpus = Gpus::open(&options.nvml, GpuOptions { count, allow_ppcie, roots }, &challenge)
        .map_err(AttesterError::from)?;
    Ok(Box::new(WithGpus::new(platform, gpus)))
}

#[cfg(not(feature = "gpu"))]
pub(crate) fn with_gpus(
    platform: Box<dyn Attester>,
    options: &EnclaveOptions,
    _rng: &mut SystemRng,
) -> Result<Box<dyn Attester>, BootError> {
    match options.config.gpus() {
        0 => Ok(platform),
        count => Err(BootError::NoGpuSupport { count }),
    }
}

/// Where NVIDIA's driver puts its management library in a Debian or Ubuntu image. A path, not a name: by a name the
/// linker would look where the environment says.
pub const NVML: &str = "/usr/lib/x86_64-linux-gnu/libnvidia-ml.so.1";
