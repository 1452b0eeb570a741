//! Weights on the device: records of tiles (`cuda/tiles.cuh`), F32 in rows. Every value is exactly the one that
//! [`quant::dequantize`](crate::quant::dequantize) gives.

use std::fmt;
use std::sync::Arc;

use super::device::count;
use super::driver::Driver;
use super::params::Tiles;
use crate::device::DeviceError;
use crate::dtype::Dtype;

/// How a storage type lies on the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    F32,
    F16,
    Bf16,
    Q8_0,
    Q4_0,
    Q4_1,
    Q4K,
    F8,
    /// All others: a byte a code, codes of scale and minimum for 16.
    Wide,
}

impl Form {
    pub(super) fn of(dtype: Dtype) -> Self {
        match dtype {
            Dtype::F32 => Self::F32,
            Dtype::F16 => Self::F16,
            Dtype::Bf16 => Self::Bf16,
            Dtype::Q8_0 | Dtype::Q5_0 => Self::Q8_0,
            Dtype::Q4_0 => Self::Q4_0,
            Dtype::Q4_1 => Self::Q4_1,
            Dtype::Q4K => Self::Q4K,
            Dtype::F8E4M3 => Self::F8,
            Dtype::Q5_1 | Dtype::Q5K | Dtype::Q6K => Self::Wide,
        }
    }

    /// As the kernels call it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::Q8_0 => "q8_0",
            Self::Q4_0 => "q4_0",
            Self::Q4_1 => "q4_1",
            Self::Q4K => "q4_k",
            Self::F8 => "f8",
            Self::Wide => "wide",
        }
    }

    /// Whether it is multiplied as f16, with rows in f16 (`cuda/tiles.cuh`), or as bf16.
    pub(super) const fn is_half(self) -> bool {
        !matches!(self, Self::F32 | Self::Bf16)
    }

    /// Bytes of 16 rows by 64 columns.
    pub(super) const fn record_bytes(self) -> usize {
        match self {
            Self::F32 => 4096,
            Self::F16 | Self::Bf16 => 2048,
            Self::Q8_0 | Self::F8 => 1088,
            Self::Q4_0 => 576,
            Self::Q4_1 | Self::Q4K => 640,
            Self::Wide => 1280,
        }
    }

    /// Bytes of a matrix, when they can be counted.
    pub(super) fn bytes(self, rows: usize, cols: usize) -> Option<usize> {
        let (rows, cols, bytes) = match self {
            Self::F32 => (rows, cols.div_ceil(RUN), 4 * RUN),
            _ => (rows.div_ceil(64), cols.div_ceil(64), 4 * self.record_bytes()),
        };
        rows.checked_mul(cols)?.checked_mul(bytes)
    }
}

/// F32 rows are this many columns apart, or a multiple.
const RUN: usize = 8;

/// A weight matrix on the device.
pub struct Matrix<D: Driver> {
    pub(super) form: Form,
    pub(super) rows: usize,
    pub(super) cols: usize,
    memory: Arc<D::Memory>,
}

impl<D: Driver> Matrix<D> {
    /// Memory of a matrix, which an upload fills.
    pub(super) fn new(
        driver: &D,
        form: Form,
        rows: usize,
        cols: usize,
    ) -> Result<Self, DeviceError> {
        let what = "weights";
        let too_many = DeviceError::OutOfMemory { what, bytes: usize::MAX, left: None };
        let memory = driver.reserve(what, form.bytes(rows, cols).ok_or(too_many)?)?;
        Ok(Self { form, rows, cols, memory: Arc::new(memory) })
    }

    pub(super) fn memory(&self) -> &Arc<D::Memory> {
        &self.memory
    }

    /// As the kernels take it.
    pub(super) fn params(&self, driver: &D) -> Tiles {
        let records = driver.address(&self.memory);
        Tiles { records, rows: count(self.rows), cols: count(self.cols) }
    }
}

impl<D: Driver> fmt::Debug for Matrix<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Matrix({:?} {} x {})", self.form, self.rows, self.cols)
    }
}
