//! What is checked: a device, and what only some devices know of themselves.

use chrysalis_kernels::Dtype;
use chrysalis_kernels::cpu::{ActivationBits, Cpu, CpuOptions};
use chrysalis_kernels::device::{CacheDtype, Device, DeviceError};

use crate::report::Row;

/// A device that can be checked.
pub(crate) trait Subject: Device {
    /// The device, with all its memory to give away.
    fn open() -> Result<Self, DeviceError>;

    /// Most that products with such weights may differ from the reference, relative to its root mean square.
    fn product_error(dtype: Dtype) -> f64;

    /// Whether a row of a product with such weights may hold what is not finite.
    fn takes_anything(_dtype: Dtype) -> bool {
        true
    }

    /// Most that attention over such a cache may.
    fn attention_error(dtype: CacheDtype) -> f64 {
        crate::kernels::cache_error(dtype)
    }

    /// Most that its logits may differ from those of f32 arithmetic.
    fn logits_error() -> f64;

    /// What it knows of its card.
    fn facts(&self) -> Result<Vec<Row>, DeviceError> {
        Ok(Vec::new())
    }

    /// Seconds of a copy of so many bytes within the device, the median of several, where there is such a copy.
    fn copy(&self, _bytes: usize) -> Result<Option<f64>, DeviceError> {
        Ok(None)
    }
}

/// SHA-256 of the kernels' image in this binary.
pub(crate) fn image_digest() -> Option<String> {
    #[cfg(feature = "cuda")]
    {
        let digest =
            aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, chrysalis_kernels::cuda::IMAGE);
        Some(digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect())
    }
    #[cfg(not(feature = "cuda"))]
    None
}

/// The oracle of what is too large for the reference: sixteen bits of every activation, all threads.
pub(crate) fn oracle() -> Result<Cpu, DeviceError> {
    let activation_bits = ActivationBits::Sixteen;
    Cpu::new(CpuOptions { activation_bits, ..CpuOptions::default() })
}

impl Subject for Cpu {
    fn open() -> Result<Self, DeviceError> {
        oracle()
    }

    /// Sixteen bits of every activation, one column in the least of shapes.
    fn product_error(_dtype: Dtype) -> f64 {
        2.5e-4
    }

    /// Quantised activations are of finite values.
    fn takes_anything(dtype: Dtype) -> bool {
        dtype.group_len() == 1
    }

    fn logits_error() -> f64 {
        1e-2
    }
}

#[cfg(feature = "cuda-host")]
impl Subject for chrysalis_kernels::cuda::Cuda<chrysalis_kernels::cuda::Emulated> {
    fn open() -> Result<Self, DeviceError> {
        Ok(Self::new(chrysalis_kernels::cuda::Emulated::default()))
    }

    fn product_error(_dtype: Dtype) -> f64 {
        crate::linear::FLOAT_ERROR
    }

    fn logits_error() -> f64 {
        1e-2
    }
}
