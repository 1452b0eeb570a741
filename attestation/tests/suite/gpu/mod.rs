//! GPUs: recorded evidence, simulated evidence, and everything that is refused about both.

pub(crate) mod device;
#[cfg(feature = "gpu")]
mod gate;
pub(crate) mod issue;
#[cfg(feature = "gpu")]
pub(crate) mod nvml;
mod ocsp;
mod overfull;
mod recorded;
mod rim;
mod rules;
mod shapes;
mod tampering;
mod world;

pub(crate) use crate::simulated::der;
