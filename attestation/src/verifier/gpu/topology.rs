//! What is linked to what: GPUs that report NVLink switches come with the evidence of exactly
//! these, and every switch leads to as many GPUs as there are.

use std::collections::BTreeSet;

use thiserror::Error;

use super::GpuError;
use crate::gpu::{DeviceKind, SpdmError, VerifiedDevice};

/// Why the links do not fit the devices.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
#[non_exhaustive]
pub enum TopologyError {
    /// A GPU's links lead to other switches than those whose evidence is there.
    #[error("the links of gpu {index} lead to {found} switches that are not the {expected} given")]
    Switches {
        /// Counted from 0.
        index: usize,
        /// How many it reports.
        found: usize,
        /// How many gave evidence.
        expected: usize,
    },
    /// A switch leads to another number of GPUs.
    #[error("switch {index} leads to {found} gpus, not to the {expected} given")]
    Gpus {
        /// Counted from 0, in the order of the section.
        index: usize,
        /// How many it reports.
        found: usize,
        /// How many gave evidence.
        expected: usize,
    },
    /// Two switches lead to different GPUs.
    #[error("switch {index} leads to other gpus than the first switch")]
    Different {
        /// Counted from 0, in the order of the section.
        index: usize,
    },
}

impl TopologyError {
    /// The stable name of this refusal.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Switches { .. } => "gpu.topology.switches",
            Self::Gpus { .. } => "gpu.topology.gpus",
            Self::Different { .. } => "gpu.topology.different",
        }
    }
}

/// Checks the links of GPUs and switches.
pub(super) fn check(devices: &[VerifiedDevice<'_>]) -> Result<(), GpuError> {
    let broken = |index| move |error: SpdmError| GpuError::Device { index, error: error.into() };
    let of = |kind| devices.iter().enumerate().filter(move |(_, device)| device.kind() == kind);
    let expected = of(DeviceKind::Gpu).count();
    let mut switches = BTreeSet::new();
    let mut first: Option<Vec<[u8; 8]>> = None;
    for (index, switch) in of(DeviceKind::Switch) {
        switches.insert(switch.report.switch_pdi().map_err(broken(index))?);
        let gpus = switch.report.linked_gpus().map_err(broken(index))?;
        if gpus.len() != expected {
            return Err(TopologyError::Gpus { index, found: gpus.len(), expected }.into());
        }
        if first.get_or_insert_with(|| gpus.clone()) != &gpus {
            return Err(TopologyError::Different { index }.into());
        }
    }
    for (index, gpu) in of(DeviceKind::Gpu) {
        let linked = gpu.report.linked_switches().map_err(broken(index))?;
        if !linked.iter().eq(switches.iter()) {
            let (found, expected) = (linked.len(), switches.len());
            return Err(TopologyError::Switches { index, found, expected }.into());
        }
    }
    Ok(())
}
