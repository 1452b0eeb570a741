//! The gate in front of the GPUs (docs/formats.md, 1.4.3): nothing is given to a GPU, and no
//! statement is made, before every GPU has proved itself to this enclave.
//!
//! By NVIDIA's management library, opened at run time. The enclave judges what it can without a
//! clock of its own and without a parser of XML: settings, certificates up to the pinned root,
//! signatures, nonce, firmware id. That firmware and driver are the published ones, and that no
//! certificate was revoked, the client judges, who is shown the same bytes.

use std::path::Path;

use chrysalis_protocol::gpu::Device as Entry;
use chrysalis_protocol::statement::{GpuFlags, Tee, gpu_digest};
use thiserror::Error;

pub use super::nvml::{Nvml, NvmlError, Settings};
use super::{Attester, AttesterError, Evidence, GpuEvidence};
use crate::gpu::{DeviceError, GpuRoots, SetError, chain_from_pem, set, verify_device};

/// Why the GPUs are not used.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
#[non_exhaustive]
pub enum GpuGateError {
    /// The library is not there, or refuses a call.
    #[error(transparent)]
    Nvml(#[from] NvmlError),
    /// Another number of GPUs than the launch config says.
    #[error("the machine has {found} gpus, the launch config asks for {expected}")]
    Count {
        /// How many there are.
        found: u32,
        /// How many there have to be.
        expected: u16,
    },
    /// Confidential computing is off.
    #[error("confidential computing is off")]
    CcOff,
    /// Developer tools are on: whoever holds the machine reads the GPUs' memory.
    #[error("the gpus' developer tools are on")]
    DevTools,
    /// The driver does not call this production.
    #[error("the gpus' environment is {found}, not production (2)")]
    Environment {
        /// `environment` of the settings.
        found: u32,
    },
    /// A setting has a value that this program does not know.
    #[error("the gpus' setting {setting} is {found}, which is unknown")]
    Setting {
        /// Its name in `nvml.h`.
        setting: &'static str,
        /// Its value.
        found: u32,
    },
    /// Protected PCIe, which the launch config does not allow.
    #[error("the gpus are in protected pcie mode, and gpu_allow_ppcie is 0")]
    Ppcie,
    /// The certificates are not PEM.
    #[error("the certificates of gpu {index} are not pem")]
    Pem {
        /// Counted from 0, in PCI order.
        index: usize,
    },
    /// A GPU's evidence is not authentic.
    #[error("gpu {index}: {error}")]
    Device {
        /// Counted from 0, in PCI order.
        index: usize,
        /// Why.
        error: DeviceError,
    },
    /// A GPU reports another mode than the driver.
    #[error("gpu {index} reports protected pcie {report}, the driver {driver}")]
    Mode {
        /// Counted from 0, in PCI order.
        index: usize,
        /// In the report.
        report: bool,
        /// By the driver's settings.
        driver: bool,
    },
    /// The GPUs together.
    #[error(transparent)]
    Set(#[from] SetError),
    /// Another GPU stands where one was told to work.
    #[error("gpu {index} is {found}, and was {expected} when it was told to work")]
    Changed {
        /// Counted from 0, in PCI order.
        index: usize,
        /// Its number now.
        found: String,
        /// Its number at the boot.
        expected: String,
    },
    /// The driver did not do as it was told.
    #[error("the gpus are not ready after they were told to be")]
    NotReady,
}

/// What the launch config says of GPUs.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct GpuOptions {
    /// How many there have to be.
    pub count: u16,
    /// Whether they may be in protected PCIe mode, which leaves the links between them in clear.
    pub allow_ppcie: bool,
    /// Which devices are genuine.
    pub roots: GpuRoots,
}

/// GPUs that proved themselves and were told to work. [`Self::open`] is its only source.
#[derive(Debug)]
pub struct Gpus {
    nvml: Nvml,
    options: GpuOptions,
    /// Which ones, by their numbers in NVIDIA's certificates.
    serials: Vec<String>,
}

impl Gpus {
    /// Opens the library at `path` and lets no GPU work that does not prove itself over
    /// `challenge`.
    ///
    /// # Errors
    /// [`GpuGateError`] says which check failed; the GPUs were not told to work then.
    pub fn open(
        path: &Path,
        options: GpuOptions,
        challenge: &[u8; 32],
    ) -> Result<Self, GpuGateError> {
        let nvml = Nvml::open(path)?;
        let (_, serials) = attest(&nvml, options, challenge)?;
        // "only then nvmlSystemSetConfComputeGpusReadyState(1)". A driver keeps the state until it
        // is unloaded, so a second start in one guest may find it set.
        nvml.set_ready()?;
        if !nvml.ready()? {
            return Err(GpuGateError::NotReady);
        }
        Ok(Self { nvml, options, serials })
    }

    /// Evidence over the challenge of a statement: every check once more, each time, and the GPUs
    /// are still those that were told to work.
    ///
    /// # Errors
    /// [`GpuGateError`] says which check failed.
    pub fn attest(&self, challenge: &[u8; 32]) -> Result<GpuEvidence, GpuGateError> {
        let (evidence, serials) = attest(&self.nvml, self.options, challenge)?;
        let both = serials.into_iter().zip(&self.serials).enumerate();
        for (index, (found, expected)) in both {
            if found != *expected {
                return Err(GpuGateError::Changed { index, found, expected: expected.clone() });
            }
        }
        Ok(evidence)
    }
}

/// Every check, and the GPUs' numbers in PCI order.
fn attest(
    nvml: &Nvml,
    options: GpuOptions,
    challenge: &[u8; 32],
) -> Result<(GpuEvidence, Vec<String>), GpuGateError> {
    let GpuOptions { count, roots, .. } = options;
    // 1. As many as the launch config says.
    let found = nvml.device_count()?;
    if found != u32::from(count) || count == 0 {
        return Err(GpuGateError::Count { found, expected: count });
    }
    // 2. The settings of the machine.
    let flags = flags(nvml.settings()?, options)?;
    // 3. Reports and certificates, in ascending PCI order.
    let evidence = collect(nvml, count, challenge)?;
    let entries: Vec<_> = evidence.iter().map(|(report, chain)| Entry { report, chain }).collect();
    // 4. Each is genuine, made for this challenge, and in the mode that the driver says.
    let mut devices = Vec::with_capacity(entries.len());
    for (index, entry) in entries.iter().enumerate() {
        let fault = |error| GpuGateError::Device { index, error };
        let device = verify_device(entry, challenge, roots, None).map_err(fault)?;
        let report = device.report.ppcie().map_err(|error| fault(error.into()))?;
        if let Some(report) = report
            && report != flags.ppcie
        {
            return Err(GpuGateError::Mode { index, report, driver: flags.ppcie });
        }
        devices.push(device);
    }
    // 5. None twice, one driver.
    set::check(&devices, count)?;
    let section = Entry::to_bytes(&entries);
    let serials = devices.iter().map(|device| device.serial().to_owned()).collect();
    Ok((GpuEvidence { digest: gpu_digest(&section), section, count, flags }, serials))
}

/// "CC on, DEVTOOLS off", in production; a value that is not known is none of these.
const fn flags(settings: Settings, options: GpuOptions) -> Result<GpuFlags, GpuGateError> {
    let Settings { environment, cc_feature, dev_tools, multi_gpu } = settings;
    if dev_tools != Settings::OFF {
        return Err(GpuGateError::DevTools);
    }
    let cc_on = match cc_feature {
        Settings::OFF => false,
        Settings::ON => true,
        found => return Err(GpuGateError::Setting { setting: "ccFeature", found }),
    };
    let ppcie = match multi_gpu {
        Settings::SINGLE | Settings::ENCRYPTED_NVLINK => false,
        Settings::PROTECTED_PCIE => true,
        found => return Err(GpuGateError::Setting { setting: "multiGpuMode", found }),
    };
    if ppcie && !options.allow_ppcie {
        return Err(GpuGateError::Ppcie);
    }
    // Protected PCIe is a mode of its own, in which the driver says that the other one is off.
    if !cc_on && !ppcie {
        return Err(GpuGateError::CcOff);
    }
    if environment != Settings::PRODUCTION {
        return Err(GpuGateError::Environment { found: environment });
    }
    Ok(GpuFlags { cc_on, ppcie, nvlink_clear: ppcie && options.count > 1 })
}

/// Report and certificates in DER of each GPU.
fn collect(
    nvml: &Nvml,
    count: u16,
    challenge: &[u8; 32],
) -> Result<Vec<ReportAndChain>, GpuGateError> {
    let mut found = Vec::with_capacity(count.into());
    for index in 0..u32::from(count) {
        let place = nvml.place(index)?;
        found.push((place, nvml.report(index, challenge)?, nvml.certificates(index)?));
    }
    found.sort_unstable_by_key(|(place, ..)| *place);
    let in_der = |(index, (_, report, pem)): (usize, (_, _, Vec<u8>))| {
        let chain = chain_from_pem(&pem).ok_or(GpuGateError::Pem { index })?;
        Ok((report, chain))
    };
    found.into_iter().enumerate().map(in_der).collect()
}

type ReportAndChain = (Vec<u8>, Vec<u8>);

/// A platform with GPUs: every statement is theirs as well.
#[expect(missing_debug_implementations, reason = "a platform need not have one")]
pub struct WithGpus {
    platform: Box<dyn Attester>,
    gpus: Gpus,
}

impl WithGpus {
    /// `platform`, whose statements `gpus` attest, too.
    #[must_use]
    pub fn new(platform: Box<dyn Attester>, gpus: Gpus) -> Self {
        Self { platform, gpus }
    }
}

impl Attester for WithGpus {
    fn tee(&self) -> Tee {
        self.platform.tee()
    }

    fn attest(&mut self, report_data: &[u8; 64]) -> Result<Evidence, AttesterError> {
        self.platform.attest(report_data)
    }

    fn attest_gpus(&mut self, challenge: &[u8; 32]) -> Result<Option<GpuEvidence>, AttesterError> {
        Ok(Some(self.gpus.attest(challenge)?))
    }

    fn launch_config_digest(&mut self) -> Result<[u8; 32], AttesterError> {
        self.platform.launch_config_digest()
    }

    fn measure_package(&mut self, package_digest: &[u8; 48]) -> Result<bool, AttesterError> {
        self.platform.measure_package(package_digest)
    }
}
