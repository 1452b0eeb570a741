//! Why there is no card to compute on, or what it refused.

use crate::device::DeviceError;

/// Why a card cannot be used, and what to do about it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CardError {
    /// No driver.
    #[error("there is no NVIDIA driver on this machine: no libcuda.so.1 is found")]
    NoDriver,
    /// A driver, and nothing for it to drive.
    #[error(
        "the NVIDIA driver finds {found} cards, and card {wanted} is asked for, counted from 0"
    )]
    NoCard {
        /// Cards that it finds.
        found: i32,
        /// Number asked for.
        wanted: i32,
    },
    /// A card older than the kernels.
    #[error("{name} has compute capability {major}.{minor}, and the kernels need 8.0 at least")]
    Capability {
        /// The card.
        name: String,
        /// Of the card.
        major: i32,
        /// Of the card.
        minor: i32,
    },
    /// A driver older than the kernels.
    #[error(
        "the NVIDIA driver is for CUDA {}.{}, and refuses kernels built with CUDA 13.0 ({code}): it has to be 580 or later",
        .version / 1000,
        .version % 1000 / 10
    )]
    OldDriver {
        /// As the driver says it.
        version: i32,
        /// Its answer.
        code: String,
    },
    /// Less free memory than was planned for.
    #[error("the card has {free} bytes of memory free, and {wanted} are planned for")]
    Memory {
        /// Free bytes.
        free: usize,
        /// Bytes planned for.
        wanted: usize,
    },
    /// A call that the driver refused.
    #[error("{call}: {code}")]
    Call {
        /// The driver's function.
        call: &'static str,
        /// The driver's name for what went wrong.
        code: String,
    },
}

impl From<CardError> for DeviceError {
    fn from(error: CardError) -> Self {
        Self::Failed(error.to_string())
    }
}
