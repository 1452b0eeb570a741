//! Several devices together: the stated number of GPUs, then switches, none twice, one driver.

use thiserror::Error;

use super::{DeviceKind, VerifiedDevice};

/// Why devices are not the stated ones.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
#[non_exhaustive]
pub enum SetError {
    /// A switch stands where a GPU does, or the reverse.
    #[error(
        "device {index} is a {found:?}; the statement has {gpus} gpus, and switches after them"
    )]
    Kind {
        /// Counted from 0.
        index: usize,
        /// What it is.
        found: DeviceKind,
        /// The statement's number of GPUs.
        gpus: u16,
    },
    /// There are fewer devices than GPUs in the statement.
    #[error("evidence of {found} devices, the statement has {gpus} gpus")]
    Count {
        /// How many gave evidence.
        found: usize,
        /// The statement's number of GPUs.
        gpus: u16,
    },
    /// A device is there twice.
    #[error("device {index} is device {first} again: {serial}")]
    Duplicate {
        /// Counted from 0.
        index: usize,
        /// The first of the two.
        first: usize,
        /// The device's number.
        serial: String,
    },
    /// GPUs run different drivers.
    #[error("gpu {index} runs driver {found}, the first one {expected}")]
    Drivers {
        /// Counted from 0.
        index: usize,
        /// Its driver.
        found: String,
        /// The first one's.
        expected: String,
    },
}

impl SetError {
    /// The stable name of this refusal.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Kind { .. } => "gpu.kind",
            Self::Count { .. } => "gpu.missing",
            Self::Duplicate { .. } => "gpu.duplicate",
            Self::Drivers { .. } => "gpu.drivers",
        }
    }
}

/// Checks devices against the statement's number of GPUs.
pub(crate) fn check(devices: &[VerifiedDevice<'_>], gpus: u16) -> Result<(), SetError> {
    if devices.len() < usize::from(gpus) {
        return Err(SetError::Count { found: devices.len(), gpus });
    }
    for (index, device) in devices.iter().enumerate() {
        let found = device.kind();
        let stated = index < usize::from(gpus);
        if stated != (found == DeviceKind::Gpu) {
            return Err(SetError::Kind { index, found, gpus });
        }
        let again = |first: &VerifiedDevice<'_>| first.same_device(device);
        if let Some(first) = devices.iter().take(index).position(again) {
            let serial = device.serial().to_owned();
            return Err(SetError::Duplicate { index, first, serial });
        }
    }
    let drivers = || devices.iter().enumerate().filter_map(|(i, d)| Some((i, d.driver()?)));
    let expected = drivers().next().map(|(_, driver)| driver).unwrap_or_default();
    match drivers().find(|(_, driver)| *driver != expected) {
        None => Ok(()),
        Some((index, found)) => {
            let (found, expected) = (found.to_owned(), expected.to_owned());
            Err(SetError::Drivers { index, found, expected })
        }
    }
}
