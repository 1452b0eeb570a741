//! NVIDIA's management library, opened at run time: the few calls that attestation takes, with the
//! layouts and numbers of `nvml.h` (API version 13, driver 580). The one place where C is called;
//! nothing that it hands back is trusted to be within its bounds, and no value is folded into
//! another: an unknown one reaches whoever judges it.
#![expect(unsafe_code, reason = "the library is C")]

use std::fmt;
use std::os::raw::c_char;
use std::path::Path;
use std::ptr;

use nvml_wrapper_sys::bindings as sys;
use thiserror::Error;

/// Why the library did not answer.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
#[non_exhaustive]
pub enum NvmlError {
    /// A name that the linker would look for in places of the environment's choice.
    #[error("nvml: {path} is no absolute path")]
    Path {
        /// As it was given.
        path: String,
    },
    /// There is no such library, or it lacks a function.
    #[error("nvml, {call}: {reason}")]
    Library {
        /// What was asked for.
        call: &'static str,
        /// The linker's reason.
        reason: String,
    },
    /// The library refused a call.
    #[error("nvml, {call}: {} (code {code})", meaning(*.code))]
    Call {
        /// What was asked for.
        call: &'static str,
        /// `nvmlReturn_t`.
        code: u32,
    },
    /// More bytes than the buffer has that they are in.
    #[error("nvml, {call}: {len} bytes, in a buffer of {limit}")]
    Length {
        /// What was asked for.
        call: &'static str,
        /// What the library says.
        len: u32,
        /// The buffer's length.
        limit: usize,
    },
}

/// `nvmlSystemConfComputeSettings_v1_t`, as the library gives it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Settings {
    /// 2: production; 1: simulation, which developer tools make of it.
    pub environment: u32,
    /// 1: confidential computing is on.
    pub cc_feature: u32,
    /// 0: developer tools are off.
    pub dev_tools: u32,
    /// 0: each GPU for itself; 1: protected PCIe; 2: encrypted NVLink.
    pub multi_gpu: u32,
}

impl Settings {
    /// [`Self::environment`]: production.
    pub const PRODUCTION: u32 = sys::NVML_CC_SYSTEM_ENVIRONMENT_PROD;
    /// [`Self::cc_feature`] and [`Self::dev_tools`]: off.
    pub const OFF: u32 = sys::NVML_CC_SYSTEM_FEATURE_DISABLED;
    /// [`Self::cc_feature`] and [`Self::dev_tools`]: on.
    pub const ON: u32 = sys::NVML_CC_SYSTEM_FEATURE_ENABLED;
    /// [`Self::multi_gpu`]: each for itself.
    pub const SINGLE: u32 = sys::NVML_CC_SYSTEM_MULTIGPU_NONE;
    /// [`Self::multi_gpu`]: several Hoppers together.
    pub const PROTECTED_PCIE: u32 = sys::NVML_CC_SYSTEM_MULTIGPU_PROTECTED_PCIE;
    /// [`Self::multi_gpu`]: several Blackwells together, links encrypted.
    pub const ENCRYPTED_NVLINK: u32 = sys::NVML_CC_SYSTEM_MULTIGPU_NVLE;
}

/// The library, initialised.
pub struct Nvml {
    lib: sys::NvmlLib,
}

impl fmt::Debug for Nvml {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Nvml")
    }
}

impl Nvml {
    /// Opens the library at `path`, an absolute one: by a bare name the linker would look where
    /// `LD_LIBRARY_PATH` says.
    ///
    /// # Errors
    /// [`NvmlError`]: the path, the library, or its start.
    pub fn open(path: &Path) -> Result<Self, NvmlError> {
        if !path.is_absolute() {
            return Err(NvmlError::Path { path: path.display().to_string() });
        }
        // SAFETY: loading runs the library's constructors, and its functions are called by the
        // types of `nvml.h`. The path is the operator's, inside the measured image: whoever puts
        // another library there could as well change this program.
        let lib = unsafe { sys::NvmlLib::new(path) };
        let lib = lib.map_err(|error| NvmlError::Library {
            call: "opening it",
            reason: error.to_string(),
        })?;
        let init = *function("nvmlInit_v2", &lib.nvmlInit_v2)?;
        // SAFETY: `nvmlInit_v2` takes nothing.
        let code = unsafe { init() };
        done("nvmlInit_v2", code)?;
        Ok(Self { lib })
    }

    /// How many GPUs there are.
    ///
    /// # Errors
    /// [`NvmlError`]: there is no answer.
    pub fn device_count(&self) -> Result<u32, NvmlError> {
        let call = "nvmlDeviceGetCount_v2";
        let get = *function(call, &self.lib.nvmlDeviceGetCount_v2)?;
        let mut count = 0;
        // SAFETY: `count` is one writable unsigned int.
        let code = unsafe { get(&raw mut count) };
        done(call, code)?;
        Ok(count)
    }

    /// The machine's settings.
    ///
    /// # Errors
    /// [`NvmlError`]: there is no answer.
    pub fn settings(&self) -> Result<Settings, NvmlError> {
        let call = "nvmlSystemGetConfComputeSettings";
        let get = *function(call, &self.lib.nvmlSystemGetConfComputeSettings)?;
        // Values that are not settings, lest an answer that leaves a field out reads as one.
        let none = u32::MAX;
        let mut settings = sys::nvmlSystemConfComputeSettings_t {
            version: SETTINGS_VERSION,
            environment: none,
            ccFeature: none,
            devToolsMode: none,
            multiGpuMode: none,
        };
        // SAFETY: `settings` is writable and of the layout that its version names.
        let code = unsafe { get(&raw mut settings) };
        done(call, code)?;
        Ok(Settings {
            environment: settings.environment,
            cc_feature: settings.ccFeature,
            dev_tools: settings.devToolsMode,
            multi_gpu: settings.multiGpuMode,
        })
    }

    /// Where a GPU is: PCI domain, bus, device.
    ///
    /// # Errors
    /// [`NvmlError`]: there is no answer.
    pub fn place(&self, index: u32) -> Result<(u32, u32, u32), NvmlError> {
        let call = "nvmlDeviceGetPciInfo_v3";
        let get = *function(call, &self.lib.nvmlDeviceGetPciInfo_v3)?;
        let device = self.device(index)?;
        let mut info = sys::nvmlPciInfo_t {
            busIdLegacy: [0; 16],
            domain: 0,
            bus: 0,
            device: 0,
            pciDeviceId: 0,
            pciSubSystemId: 0,
            busId: [0; 32],
        };
        // SAFETY: `device` is a handle of this library, which is open, and `info` is writable.
        let code = unsafe { get(device, &raw mut info) };
        done(call, code)?;
        Ok((info.domain, info.bus, info.device))
    }

    /// A GPU's report over `nonce`.
    ///
    /// # Errors
    /// [`NvmlError`]: there is no answer, or one that does not fit its buffer.
    pub fn report(&self, index: u32, nonce: &[u8; 32]) -> Result<Vec<u8>, NvmlError> {
        let call = "nvmlDeviceGetConfComputeGpuAttestationReport";
        let get = *function(call, &self.lib.nvmlDeviceGetConfComputeGpuAttestationReport)?;
        let device = self.device(index)?;
        let mut report = Box::new(sys::nvmlConfComputeGpuAttestationReport_t {
            isCecAttestationReportPresent: 0,
            attestationReportSize: 0,
            cecAttestationReportSize: 0,
            nonce: *nonce,
            attestationReport: [0; 0x2000],
            cecAttestationReport: [0; 0x1000],
        });
        // SAFETY: `device` is a handle of this library, which is open, and `report` is writable.
        let code = unsafe { get(device, &raw mut *report) };
        done(call, code)?;
        front(call, &report.attestationReport, report.attestationReportSize)
    }

    /// The certificates of a GPU's attestation key, PEM.
    ///
    /// # Errors
    /// As [`Self::report`].
    pub fn certificates(&self, index: u32) -> Result<Vec<u8>, NvmlError> {
        let call = "nvmlDeviceGetConfComputeGpuCertificate";
        let get = *function(call, &self.lib.nvmlDeviceGetConfComputeGpuCertificate)?;
        let device = self.device(index)?;
        let mut chains = Box::new(sys::nvmlConfComputeGpuCertificate_t {
            certChainSize: 0,
            attestationCertChainSize: 0,
            certChain: [0; 0x1000],
            attestationCertChain: [0; 0x1400],
        });
        // SAFETY: `device` is a handle of this library, which is open, and `chains` is writable.
        let code = unsafe { get(device, &raw mut *chains) };
        done(call, code)?;
        front(call, &chains.attestationCertChain, chains.attestationCertChainSize)
    }

    /// Tells all GPUs to work.
    ///
    /// # Errors
    /// [`NvmlError`]: the library refused.
    pub fn set_ready(&self) -> Result<(), NvmlError> {
        let call = "nvmlSystemSetConfComputeGpusReadyState";
        let set = *function(call, &self.lib.nvmlSystemSetConfComputeGpusReadyState)?;
        // SAFETY: the function takes one unsigned int.
        let code = unsafe { set(sys::NVML_CC_ACCEPTING_CLIENT_REQUESTS_TRUE) };
        done(call, code)
    }

    /// Whether the GPUs were told to work.
    ///
    /// # Errors
    /// [`NvmlError`]: there is no answer.
    pub fn ready(&self) -> Result<bool, NvmlError> {
        let call = "nvmlSystemGetConfComputeGpusReadyState";
        let get = *function(call, &self.lib.nvmlSystemGetConfComputeGpusReadyState)?;
        let mut ready = sys::NVML_CC_ACCEPTING_CLIENT_REQUESTS_FALSE;
        // SAFETY: `ready` is one writable unsigned int.
        let code = unsafe { get(&raw mut ready) };
        done(call, code)?;
        Ok(ready == sys::NVML_CC_ACCEPTING_CLIENT_REQUESTS_TRUE)
    }

    /// The driver's version.
    ///
    /// # Errors
    /// [`NvmlError`]: there is no answer.
    pub fn driver_version(&self) -> Result<String, NvmlError> {
        let call = "nvmlSystemGetDriverVersion";
        let get = *function(call, &self.lib.nvmlSystemGetDriverVersion)?;
        let mut text: [c_char; VERSION_LEN as usize] = [0; VERSION_LEN as usize];
        // SAFETY: `text` has `VERSION_LEN` writable bytes.
        let code = unsafe { get(text.as_mut_ptr(), VERSION_LEN) };
        done(call, code)?;
        let bytes = text.iter().map(|byte| byte.cast_unsigned());
        let shown = bytes.take_while(|byte| *byte != 0).filter(u8::is_ascii_graphic);
        Ok(shown.map(char::from).collect())
    }

    /// The library's name for GPU `index`.
    fn device(&self, index: u32) -> Result<sys::nvmlDevice_t, NvmlError> {
        let call = "nvmlDeviceGetHandleByIndex_v2";
        let get = *function(call, &self.lib.nvmlDeviceGetHandleByIndex_v2)?;
        let mut device = ptr::null_mut();
        // SAFETY: `device` is one writable pointer; it is never followed here.
        let code = unsafe { get(index, &raw mut device) };
        done(call, code)?;
        Ok(device)
    }
}

impl Drop for Nvml {
    fn drop(&mut self) {
        if let Ok(shutdown) = &self.lib.nvmlShutdown {
            // SAFETY: it was initialised by `open`, and no handle is kept.
            unsafe { shutdown() };
        }
    }
}

/// A function that the library may lack.
fn function<'a, F>(
    call: &'static str,
    found: &'a Result<F, impl fmt::Display>,
) -> Result<&'a F, NvmlError> {
    found.as_ref().map_err(|error| NvmlError::Library { call, reason: error.to_string() })
}

const fn done(call: &'static str, code: u32) -> Result<(), NvmlError> {
    match code {
        0 => Ok(()),
        code => Err(NvmlError::Call { call, code }),
    }
}

/// As much of a buffer as the library says that it filled.
fn front(call: &'static str, buffer: &[u8], len: u32) -> Result<Vec<u8>, NvmlError> {
    let filled = usize::try_from(len).ok().and_then(|len| buffer.get(..len));
    filled.map(<[u8]>::to_vec).ok_or(NvmlError::Length { call, len, limit: buffer.len() })
}

const fn meaning(code: u32) -> &'static str {
    match code {
        2 => "an argument is wrong",
        3 => "this machine does not support it",
        4 => "no permission: it takes root",
        9 => "nvidia's driver is not loaded",
        13 => "this library has no such function",
        15 => "the gpu fell off the bus",
        18 => "library and driver are of different versions",
        25 => "the library knows another version of the structure",
        _ => "an error",
    }
}

/// `NVML_STRUCT_VERSION(SystemConfComputeSettings, 1)`: size | version << 24.
const SETTINGS_VERSION: u32 = 20 | 1 << 24;
/// `NVML_SYSTEM_DRIVER_VERSION_BUFFER_SIZE`.
const VERSION_LEN: u32 = 80;

// The layouts of nvml.h, held to by number: bindings that drift do not build.
const _: () = assert!(size_of::<sys::nvmlSystemConfComputeSettings_t>() == 20);
const _: () = assert!(size_of::<sys::nvmlConfComputeGpuAttestationReport_t>() == 12 + 32 + 0x3000);
const _: () = assert!(size_of::<sys::nvmlConfComputeGpuCertificate_t>() == 8 + 0x2400);
const _: () = assert!(size_of::<sys::nvmlPciInfo_t>() == 16 + 5 * 4 + 32);
