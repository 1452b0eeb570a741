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
use nvml_wrapper::Nvml;
use nvml_wrapper::error::NvmlError;
use thiserror::Error;

use super::{Attester, AttesterError, Evidence, GpuEvidence};
use crate::gpu::{DeviceError, GpuRoots, SetError, chain_from_pem, set, verify_device};

/// Why the GPUs are not used.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
#[non_exhaustive]
pub enum GpuGateError {
    /// The library is not there, or refuses a call.
    #[error("nvml, {call}: {reason}")]
    Nvml {
        /// What was asked for.
        call: &'static str,
        /// The library's reason.
        reason: String,
    },
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
        let nvml = Nvml::builder().lib_path(path.as_os_str()).init();
        let gpus = Self { nvml: nvml.map_err(failed("opening it"))?, options };
        gpus.attest(challenge)?;
        // "only then nvmlSystemSetConfComputeGpusReadyState(1)". The state is the machine's; the
        // wrapper asks for a device nevertheless.
        let first = gpus.nvml.device_by_index(0).map_err(failed("device"))?;
        first.set_confidential_compute_state(true).map_err(failed("setting the ready state"))?;
        match first.get_confidential_compute_state().map_err(failed("ready state"))? {
            true => Ok(gpus),
            false => Err(GpuGateError::NotReady),
        }
    }

    /// Evidence over the challenge of a statement: every check once more, each time.
    ///
    /// # Errors
    /// [`GpuGateError`] says which check failed.
    pub fn attest(&self, challenge: &[u8; 32]) -> Result<GpuEvidence, GpuGateError> {
        let GpuOptions { count, roots, .. } = self.options;
        // 1. As many as the launch config says.
        let found = self.nvml.device_count().map_err(failed("device count"))?;
        if found != u32::from(count) || count == 0 {
            return Err(GpuGateError::Count { found, expected: count });
        }
        // 2. The settings of the machine.
        let flags = self.flags()?;
        // 3. Reports and certificates, in ascending PCI order.
        let evidence = self.collect(challenge)?;
        let entries: Vec<_> =
            evidence.iter().map(|(report, chain)| Entry { report, chain }).collect();
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
        Ok(GpuEvidence { digest: gpu_digest(&section), section, count, flags })
    }

    /// "CC on, DEVTOOLS off".
    fn flags(&self) -> Result<GpuFlags, GpuGateError> {
        let device = self.nvml.device_by_index(0).map_err(failed("device"))?;
        if device.is_cc_dev_mode_enabled().map_err(failed("settings"))? {
            return Err(GpuGateError::DevTools);
        }
        let cc_on = device.is_cc_enabled().map_err(failed("settings"))?;
        let ppcie = device.is_multi_gpu_protected_pcie_enabled().map_err(failed("settings"))?;
        if ppcie && !self.options.allow_ppcie {
            return Err(GpuGateError::Ppcie);
        }
        // Protected PCIe is a mode of its own, in which the other one is off.
        if !cc_on && !ppcie {
            return Err(GpuGateError::CcOff);
        }
        Ok(GpuFlags { cc_on, ppcie, nvlink_clear: ppcie && self.options.count > 1 })
    }

    /// Report and certificates in DER of each GPU.
    fn collect(&self, challenge: &[u8; 32]) -> Result<Vec<ReportAndChain>, GpuGateError> {
        let mut found = Vec::with_capacity(self.options.count.into());
        for index in 0..u32::from(self.options.count) {
            let device = self.nvml.device_by_index(index).map_err(failed("device"))?;
            let place = device.pci_info().map_err(failed("pci info"))?;
            let report = device.confidential_compute_gpu_attestation_report(*challenge);
            let report = report.map_err(failed("attestation report"))?.attestation_report;
            let chain = device.confidential_compute_gpu_certificate();
            let chain = chain.map_err(failed("certificates"))?.attestation_cert_chain;
            found.push(((place.domain, place.bus, place.device), report, chain));
        }
        found.sort_unstable_by_key(|(place, ..)| *place);
        let in_der = |(index, (_, report, pem)): (usize, (_, _, Vec<u8>))| {
            let chain = chain_from_pem(&pem).ok_or(GpuGateError::Pem { index })?;
            Ok((report, chain))
        };
        found.into_iter().enumerate().map(in_der).collect()
    }
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

fn failed(call: &'static str) -> impl Fn(NvmlError) -> GpuGateError {
    move |error| GpuGateError::Nvml { call, reason: error.to_string() }
}
