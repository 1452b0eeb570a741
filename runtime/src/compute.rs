//! The devices that a model can be loaded onto: the processor, and with the feature `cuda` a card.

use chrysalis_kernels::cpu::{Cpu, CpuOptions};
#[cfg(feature = "cuda")]
use chrysalis_kernels::cuda::{Card, CardInfo, CardOptions, Cuda, IMAGE};
use chrysalis_kernels::device::DeviceError;

/// Why a card is not computed on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ComputeError {
    /// A build that has no kernels for cards.
    #[error(
        "a card is asked for, and this build is without the feature cuda: build it with --features cuda"
    )]
    NoCuda,
    /// The device says why.
    #[error(transparent)]
    Device(#[from] DeviceError),
}

/// The processor, with so many threads.
///
/// # Errors
/// [`ComputeError::Device`].
pub fn processor(threads: Option<usize>) -> Result<Cpu, ComputeError> {
    Ok(Cpu::new(CpuOptions { threads, ..CpuOptions::default() })?)
}

/// The first card, with so many bytes of its memory, or all that is free but a reserve for its driver.
///
/// # Errors
/// [`ComputeError::Device`] says what is missing.
#[cfg(feature = "cuda")]
pub fn card(memory: Option<usize>) -> Result<Cuda<Card>, ComputeError> {
    let card = Card::open(IMAGE, CardOptions { number: 0, memory });
    Ok(Cuda::new(card.map_err(DeviceError::from)?))
}

/// A build without the feature `cuda` has none.
///
/// # Errors
/// [`ComputeError::NoCuda`].
#[cfg(not(feature = "cuda"))]
pub fn card(_memory: Option<usize>) -> Result<Cpu, ComputeError> {
    Err(ComputeError::NoCuda)
}

/// Asks for the first card without opening it.
///
/// # Errors
/// [`ComputeError`] says what is missing.
#[cfg(feature = "cuda")]
pub fn card_is_there() -> Result<(), ComputeError> {
    Ok(CardInfo::of(0).map(drop).map_err(DeviceError::from)?)
}

/// A build without the feature `cuda` cannot ask.
///
/// # Errors
/// [`ComputeError::NoCuda`].
#[cfg(not(feature = "cuda"))]
pub fn card_is_there() -> Result<(), ComputeError> {
    Err(ComputeError::NoCuda)
}
