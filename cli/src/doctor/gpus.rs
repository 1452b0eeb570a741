//! Confidential GPUs: is their driver there, and are they in a mode in which an enclave would use them? Each step needs
//! the one before; the enclave asks the same questions, and more (docs/attestation.md, "GPUs").

use std::path::Path;

use chrysalis_runtime::boot::NVML;

use super::{Check, Root};

/// The driver's device files, and what its management library says.
pub(super) fn checks(root: Root<'_>, nvml: Option<&Path>) -> Vec<Check> {
    let mut checks = vec![driver(root)];
    let usual = root.path(NVML.trim_start_matches('/'));
    checks.extend(match nvml {
        Some(path) => library(path),
        None if root.0 == Path::new("/") => library(&usual),
        // Another file system's library is looked at, and not run.
        None => vec![no_library(&usual).unwrap_or_else(|| {
            let found = format!("{} is there", usual.display());
            Check::weak(LIBRARY, found, "it is asked without --root, or where --nvml names it")
        })],
    });
    checks
}

fn driver(root: Root<'_>) -> Check {
    let devices = root.names("dev");
    let count = devices
        .iter()
        .filter(|name| name.strip_prefix("nvidia").is_some_and(|rest| rest.parse::<u32>().is_ok()));
    match count.count() {
        0 => {
            Check::missing("NVIDIA driver", "no /dev/nvidia0", "none is needed to serve on the CPU")
        }
        count => Check::ok("NVIDIA driver", format!("{count} devices")),
    }
}

fn no_library(path: &Path) -> Option<Check> {
    let found = || format!("no {}", path.display());
    let advice = "it comes with the driver; say with --nvml where it lies";
    (!path.exists()).then(|| Check::missing(LIBRARY, found(), advice))
}

#[cfg(not(feature = "gpu"))]
fn library(path: &Path) -> Vec<Check> {
    let unasked = || {
        let found = format!("{} is there, and was not asked", path.display());
        Check::missing(LIBRARY, found, "this build lacks GPUs: build it with --features gpu")
    };
    vec![no_library(path).unwrap_or_else(unasked)]
}

#[cfg(feature = "gpu")]
fn library(path: &Path) -> Vec<Check> {
    use chrysalis_attestation::attester::gpu::Nvml;

    if let Some(missing) = no_library(path) {
        return vec![missing];
    }
    let failed =
        |error: &dyn std::fmt::Display, advice| Check::missing(LIBRARY, error.to_string(), advice);
    let nvml = match Nvml::open(path) {
        Ok(nvml) => nvml,
        Err(error) => return vec![failed(&error, "load the driver first: modprobe nvidia")],
    };
    let told = nvml
        .driver_version()
        .and_then(|driver| Ok((driver, nvml.device_count()?, nvml.settings()?, nvml.ready()?)));
    match told {
        Err(error) => vec![failed(&error, "it takes a driver from 550 on, and GPUs that can")],
        Ok((driver, count, settings, ready)) => {
            let mut checks =
                vec![Check::ok(LIBRARY, format!("driver {driver}, {count} GPUs: gpus = {count}"))];
            checks.extend(modes(settings, ready));
            checks
        }
    }
}

/// What the driver's settings say.
#[cfg(feature = "gpu")]
fn modes(settings: chrysalis_attestation::attester::gpu::Settings, ready: bool) -> [Check; 3] {
    use chrysalis_attestation::attester::gpu::Settings;

    let step = "confidential computing";
    let on = match (settings.cc_feature, settings.multi_gpu) {
        (Settings::ON, Settings::SINGLE) => Check::ok(step, "on, each GPU for itself"),
        (Settings::ON, Settings::ENCRYPTED_NVLINK) => {
            Check::ok(step, "on, the links between the GPUs are encrypted")
        }
        (_, Settings::PROTECTED_PCIE) => Check::weak(
            step,
            "protected PCIe: the links between the GPUs are in clear",
            "gpu_allow_ppcie = 1 in the launch config lets the enclave use them, and clients have to allow it",
        ),
        (Settings::OFF, _) => Check::missing(
            step,
            "off",
            "the host turns it on, for the next reset of the GPU: nvidia_gpu_tools.py --set-cc-mode=on",
        ),
        (feature, mode) => Check::missing(
            step,
            format!("ccFeature {feature}, multiGpuMode {mode}: unknown"),
            "this version knows no such mode, and no enclave of it uses these GPUs",
        ),
    };
    let step = "developer tools";
    let tools = match (settings.dev_tools, settings.environment) {
        (Settings::OFF, Settings::PRODUCTION) => Check::ok(step, "off, in production"),
        (Settings::OFF, environment) => Check::missing(
            step,
            format!("off, in environment {environment}, which is not production"),
            "no enclave uses such GPUs",
        ),
        (mode, _) => Check::missing(
            step,
            format!("on ({mode}): whoever holds the machine reads the GPUs' memory"),
            "the host turns them off: nvidia_gpu_tools.py --set-cc-mode=on instead of devtools",
        ),
    };
    let step = "ready state";
    let state = if ready {
        Check::weak(
            step,
            "the GPUs were told to work already",
            "an enclave of this guest did so, or something else: let nothing run nvidia-smi conf-compute -srs",
        )
    } else {
        Check::ok(step, "not set: the enclave sets it when the GPUs have proved themselves")
    };
    [on, tools, state]
}

const LIBRARY: &str = "management library";

#[cfg(all(test, feature = "gpu"))]
mod tests {
    use chrysalis_attestation::attester::gpu::Settings;

    use super::super::State;
    use super::*;

    #[test]
    fn each_mode_of_the_gpus_is_told_apart() {
        let on = Settings { environment: 2, cc_feature: 1, dev_tools: 0, multi_gpu: 0 };
        use State::{Missing, Ok, Weak};
        for (settings, ready, states) in [
            (on, false, [Ok, Ok, Ok]),
            (on, true, [Ok, Ok, Weak]),
            (Settings { cc_feature: 0, environment: 0, ..on }, false, [Missing, Missing, Ok]),
            (Settings { cc_feature: 0, multi_gpu: 1, ..on }, false, [Weak, Ok, Ok]),
            (Settings { multi_gpu: 2, ..on }, false, [Ok, Ok, Ok]),
            (Settings { multi_gpu: 3, ..on }, false, [Missing, Ok, Ok]),
            (Settings { cc_feature: 2, ..on }, false, [Missing, Ok, Ok]),
            (Settings { dev_tools: 1, environment: 1, ..on }, false, [Ok, Missing, Ok]),
            (Settings { dev_tools: 7, ..on }, false, [Ok, Missing, Ok]),
            (Settings { environment: 1, ..on }, false, [Ok, Missing, Ok]),
        ] {
            let found = modes(settings, ready).map(|check| check.state);
            assert_eq!(found, states, "{settings:?}");
        }
    }
}
