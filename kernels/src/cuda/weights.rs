//! Weights on the device: two planes, values and scales, each in whole aligned words (`cuda/weights.cuh` says why), packed from
//! ggml's groups. Every value is exactly the one that [`quant::dequantize`](crate::quant::dequantize) gives.

use std::fmt;
use std::sync::Arc;

use zeroize::Zeroizing;

use super::driver::Driver;
use super::params::Weights;
use crate::arrived::Gathered;
use crate::device::{DeviceError, Upload};
use crate::dtype::Dtype;
use crate::quant::{self, Unpacked};

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
    /// All others: a byte a code, an f32 scale and minimum for 16.
    Wide,
}

impl Form {
    fn of(dtype: Dtype) -> Self {
        match dtype {
            Dtype::F32 => Self::F32,
            Dtype::F16 => Self::F16,
            Dtype::Bf16 => Self::Bf16,
            Dtype::Q8_0 => Self::Q8_0,
            Dtype::Q4_0 => Self::Q4_0,
            Dtype::Q4_1 => Self::Q4_1,
            Dtype::Q4K => Self::Q4K,
            Dtype::Q5_0 | Dtype::Q5_1 | Dtype::Q5K | Dtype::Q6K => Self::Wide,
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
            Self::Wide => "wide",
        }
    }

    fn value_bits(self) -> usize {
        match self {
            Self::F32 => 32,
            Self::F16 | Self::Bf16 => 16,
            Self::Q8_0 | Self::Wide => 8,
            Self::Q4_0 | Self::Q4_1 | Self::Q4K => 4,
        }
    }
}

/// Columns that a kernel takes at once: rows are this much apart, or a multiple.
const RUN: usize = 8;

/// A weight matrix on the device.
pub struct Matrix<D: Driver> {
    pub(super) form: Form,
    pub(super) rows: usize,
    pub(super) cols: usize,
    values: D::Memory,
    scales: Option<D::Memory>,
}

impl<D: Driver> Matrix<D> {
    /// As the kernels take it.
    pub(super) fn params(&self, driver: &D) -> Weights {
        Weights {
            values: driver.address(&self.values),
            scales: self.scales.as_ref().map_or(0, |scales| driver.address(scales)),
            cols: self.cols as u32,
            stride: self.cols.next_multiple_of(RUN) as u32,
        }
    }
}

/// Bytes gathered on the host until the matrix is whole; wiped on drop.
pub struct Pending<D: Driver> {
    pub(super) driver: Arc<D>,
    pub(super) dtype: Dtype,
    pub(super) rows: usize,
    pub(super) cols: usize,
    pub(super) gathered: Gathered,
}

impl<D: Driver> Upload for Pending<D> {
    type Matrix = Matrix<D>;

    fn write(&self, offset: usize, bytes: &[u8]) -> Result<(), DeviceError> {
        self.gathered.write(offset, bytes)
    }

    fn finish(self) -> Result<Matrix<D>, DeviceError> {
        let bytes = self.gathered.finish()?;
        let planes = Planes::pack(self.dtype, self.cols, &bytes);
        let place = |plane: &[u8]| {
            let memory = self.driver.reserve("weights", plane.len())?;
            self.driver.write(&memory, 0, plane).map(|()| memory)
        };
        let values = place(&planes.values)?;
        let scales = if planes.scales.is_empty() { None } else { Some(place(&planes.scales)?) };
        let form = Form::of(self.dtype);
        Ok(Matrix { form, rows: self.rows, cols: self.cols, values, scales })
    }
}

/// Values and scales; wiped on drop.
struct Planes {
    values: Zeroizing<Vec<u8>>,
    scales: Zeroizing<Vec<u8>>,
}

impl Planes {
    /// Packs whole rows of `cols` columns.
    fn pack(dtype: Dtype, cols: usize, bytes: &[u8]) -> Self {
        let form = Form::of(dtype);
        let row_bytes = dtype.row_bytes(cols).unwrap_or(0).max(1);
        let rows = bytes.len() / row_bytes;
        let stride = cols.next_multiple_of(RUN) * form.value_bits() / 8;
        // Reserved before, so that nothing is left behind where a vector has moved from.
        let scales_len = rows * cols / scale_group(form) * scale_bytes(form);
        let mut planes = Self {
            values: Zeroizing::new(Vec::with_capacity(rows * stride)),
            scales: Zeroizing::new(Vec::with_capacity(scales_len)),
        };
        let mut group = Unpacked::default();
        for row in bytes.chunks_exact(row_bytes) {
            let end = planes.values.len() + stride;
            if dtype.group_len() == 1 {
                planes.values.extend_from_slice(row);
            } else {
                for block in row.chunks_exact(dtype.group_bytes()) {
                    quant::unpack(dtype, block, &mut group);
                    planes.push(form, dtype, block, &group);
                }
            }
            planes.values.resize(end, 0);
        }
        planes
    }

    fn push(&mut self, form: Form, dtype: Dtype, block: &[u8], group: &Unpacked) {
        let codes = &group.codes[..dtype.group_len()];
        match form {
            Form::Q8_0 => self.values.extend(codes.iter().map(|code| code ^ 0x80)),
            Form::Wide => self.values.extend_from_slice(codes),
            _ => self.values.extend(codes.as_chunks::<2>().0.iter().map(|[a, b]| a | (b << 4))),
        }
        match form {
            Form::F32 | Form::F16 | Form::Bf16 => {}
            Form::Q8_0 | Form::Q4_0 | Form::Q4_1 | Form::Q4K => {
                self.scales.extend_from_slice(&block[..scale_bytes(form)]);
            }
            Form::Wide => {
                let offset = quant::offset(dtype) as f32;
                for at in (0..codes.len()).step_by(scale_group(form)) {
                    let sub = at / quant::sub_group_len(dtype);
                    let scale = group.scales[sub];
                    let minimum = if offset > 0.0 { -offset * scale } else { group.mins[sub] };
                    self.scales
                        .extend(scale.to_le_bytes().into_iter().chain(minimum.to_le_bytes()));
                }
            }
        }
    }
}

/// Columns of an entry of the plane of scales.
const fn scale_group(form: Form) -> usize {
    match form {
        Form::Q4K => 256,
        Form::Wide => 16,
        _ => 32,
    }
}

/// Bytes of an entry; in ggml's groups of these types they come first.
const fn scale_bytes(form: Form) -> usize {
    match form {
        Form::F32 | Form::F16 | Form::Bf16 => 0,
        Form::Q8_0 | Form::Q4_0 => 2,
        Form::Q4_1 => 4,
        Form::Q4K => 16,
        Form::Wide => 8,
    }
}

impl<D: Driver> fmt::Debug for Matrix<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Matrix({:?} {} x {})", self.form, self.rows, self.cols)
    }
}

impl<D: Driver> fmt::Debug for Pending<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pending({:?} {} x {})", self.dtype, self.rows, self.cols)
    }
}
