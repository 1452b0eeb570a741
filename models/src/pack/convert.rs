//! Pieces of tensors in the storage type of the package.

use chrysalis_kernels::Dtype;
use chrysalis_kernels::quant::{dequantize, quantize};

use super::PackError;
use crate::source::{Source, SourceTensor};

/// How a package stores matrices. Vectors (norms and biases) are F32 in every package.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PackDtype {
    /// As the source has them, byte for byte.
    #[default]
    Keep,
    /// BF16.
    Bf16,
    /// F8_E4M3, embedding and output matrix BF16; BF16 where rows are not whole groups of 128.
    Fp8,
    /// Q8_0; BF16 where rows are not whole groups of 32.
    Q8,
    /// Q4_1, embedding and output matrix Q8_0; BF16 where rows are not whole groups of 32.
    Q4,
}

/// The storage type of a tensor in the package.
pub(super) fn target(tensor: &SourceTensor, dtype: PackDtype) -> Dtype {
    if tensor.dims.len() < 2 {
        return tensor.dtype;
    }
    let wanted = match dtype {
        PackDtype::Keep => return tensor.dtype,
        PackDtype::Bf16 => Dtype::Bf16,
        PackDtype::Fp8 if OUTSIDE_LAYERS.contains(&tensor.name.as_str()) => Dtype::Bf16,
        PackDtype::Fp8 => Dtype::F8E4M3,
        PackDtype::Q8 => Dtype::Q8_0,
        PackDtype::Q4 if OUTSIDE_LAYERS.contains(&tensor.name.as_str()) => Dtype::Q8_0,
        PackDtype::Q4 => Dtype::Q4_1,
    };
    let whole = wanted.row_bytes(tensor.num_cols() as usize).is_some();
    if whole { wanted } else { Dtype::Bf16 }
}

/// How many rows of a tensor are read at once.
pub(super) fn rows_at_once(tensor: &SourceTensor) -> u32 {
    (VALUES_AT_ONCE / tensor.num_cols().max(1)).max(1)
}

/// Reads and converts, in buffers that it keeps.
#[derive(Debug, Default)]
pub(super) struct Converter {
    raw: Vec<u8>,
    values: Vec<f32>,
    converted: Vec<u8>,
}

impl Converter {
    /// `count` rows of tensor `index` from row `first` on, as the package stores them.
    pub(super) fn read(
        &mut self,
        source: &Source,
        index: usize,
        first: u32,
        count: u32,
        dtype: PackDtype,
    ) -> Result<&[u8], PackError> {
        source.read_rows(index, first, count, &mut self.raw)?;
        let Some(tensor) = source.tensors().get(index) else {
            return Ok(&[]);
        };
        let target = target(tensor, dtype);
        if target == tensor.dtype {
            return Ok(&self.raw);
        }
        let convert = |error| PackError::Convert { name: tensor.name.clone(), error };
        self.values.resize(tensor.num_cols() as usize * count as usize, 0.0);
        dequantize(tensor.dtype, &self.raw, &mut self.values).map_err(convert)?;
        self.converted.clear();
        quantize(target, &self.values, &mut self.converted).map_err(convert)?;
        Ok(&self.converted)
    }
}

const OUTSIDE_LAYERS: [&str; 2] = ["token_embd.weight", "output.weight"];

/// 4 MiB of f32.
const VALUES_AT_ONCE: u32 = 1 << 20;
