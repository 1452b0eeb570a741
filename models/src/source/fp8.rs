//! Weights of a Hugging Face folder in fp8: E4M3 codes, and a scale for each block of 128 by 128 in a tensor of its own, which
//! the name `weight_scale_inv` calls the inverse of what a quantiser multiplied by: value = code * scale.
//!
//! They become groups of [`Dtype::F8E4M3`], each with the scale of the block that it lies in. Nothing is rounded.

use chrysalis_kernels::Dtype;
use chrysalis_kernels::quant::e4m3;

use super::SourceError;

/// What the name of a tensor of scales has behind that of its weights.
pub(super) const SUFFIX: &str = "_scale_inv";

/// The scales of an fp8 tensor.
#[derive(Debug)]
pub(super) struct Blocks {
    /// The file's name of the weights.
    name: String,
    /// Columns of the weights: whole blocks, one at least.
    cols: usize,
    /// `[ceil(rows / 128), cols / 128]`.
    scales: Vec<f32>,
}

/// What a tensor of scales must be, by the dimensions of its weights.
///
/// # Errors
/// [`SourceError::Fp8Columns`] where rows are not whole blocks; [`SourceError::Fp8Vector`] of what is no matrix.
pub(super) fn scale_dims(name: &str, dims: &[u32]) -> Result<[u32; 2], SourceError> {
    let name = || name.to_owned();
    let [rows, cols] = *dims else {
        return Err(SourceError::Fp8Vector { name: name(), dims: dims.to_vec() });
    };
    if !cols.is_multiple_of(BLOCK as u32) {
        return Err(SourceError::Fp8Columns { name: name(), cols, block: BLOCK as u32 });
    }
    Ok([rows.div_ceil(BLOCK as u32), cols / BLOCK as u32])
}

impl Blocks {
    /// # Errors
    /// [`SourceError::Scale`] where a scale is not finite.
    pub(super) fn new(name: String, cols: u32, scales: Vec<f32>) -> Result<Self, SourceError> {
        match scales.iter().position(|scale| !scale.is_finite()) {
            None => Ok(Self { name, cols: cols as usize, scales }),
            Some(block) => {
                let found = scales.get(block).copied().unwrap_or(f32::NAN);
                Err(SourceError::Scale { name, block, found })
            }
        }
    }

    /// First value and number of values of whole rows, given where their groups begin and how many bytes those have.
    pub(super) fn values(&self, offset: u64, len: usize) -> (u64, usize) {
        let (row_bytes, cols) = (self.row_bytes(), self.cols);
        (offset / row_bytes as u64 * cols as u64, len / row_bytes * cols)
    }

    /// Writes the groups of whole rows from the first value `start` on.
    ///
    /// # Errors
    /// [`SourceError::NotANumber`] names the first code that stands for none.
    pub(super) fn write_groups(
        &self,
        start: u64,
        codes: &[u8],
        out: &mut [u8],
    ) -> Result<(), SourceError> {
        let first = (start / self.cols as u64) as usize;
        if let Some(at) = codes.iter().position(|code| e4m3::decode(*code).is_nan()) {
            let (row, col) = (first + at / self.cols, at % self.cols);
            return Err(SourceError::NotANumber { name: self.name.clone(), row, col });
        }
        let rows = codes.chunks_exact(self.cols).zip(out.chunks_exact_mut(self.row_bytes()));
        for (n, (codes, out)) in rows.enumerate() {
            let scales = self.scales.chunks_exact(self.cols / BLOCK).nth((first + n) / BLOCK);
            let groups = out.chunks_exact_mut(Dtype::F8E4M3.group_bytes());
            for ((codes, out), scale) in
                codes.chunks_exact(BLOCK).zip(groups).zip(scales.unwrap_or_default())
            {
                let (scale_bytes, code_bytes) = out.split_at_mut(size_of::<f32>());
                scale_bytes.copy_from_slice(&scale.to_le_bytes());
                code_bytes.copy_from_slice(codes);
            }
        }
        Ok(())
    }

    fn row_bytes(&self) -> usize {
        self.cols / BLOCK * Dtype::F8E4M3.group_bytes()
    }
}

/// Rows, and columns, that share a scale: the columns of a group.
const BLOCK: usize = Dtype::F8E4M3.group_len();
