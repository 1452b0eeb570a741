//! Safetensors files: the header is the crate's to check, the bytes are read on demand.

use std::io::{self, Read, Seek, SeekFrom};

use chrysalis_kernels::Dtype;
use safetensors::tensor::{Dtype as FileDtype, Metadata};

use super::read_at::ReadAt;

/// A safetensors file whose header was read and found whole; the tensors' bytes stay in `R`.
#[derive(Debug)]
pub struct Safetensors<R> {
    inner: R,
    tensors: Vec<SafeTensor>,
}

/// A tensor of a safetensors file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SafeTensor {
    /// The name in the file.
    pub name: String,
    /// How its values are stored; the file's name of the type where it is none of ours. Of [`Dtype::F8E4M3`] it has the codes
    /// alone, a byte each.
    pub dtype: Result<Dtype, String>,
    /// The outermost dimension first.
    pub dims: Vec<u32>,
    /// Bytes.
    pub len: u64,
    /// From the start of the file.
    offset: u64,
}

/// Why a file is no safetensors file that we take.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SafetensorsError {
    /// The operating system could not read.
    #[error("the file cannot be read: {0}")]
    Read(io::Error),
    /// A header longer than the file or than any header.
    #[error("a header of {len} bytes is too long: at most {max} here")]
    HeaderTooLong {
        /// By the first eight bytes.
        len: u64,
        /// What fits.
        max: u64,
    },
    /// A header that is not well-formed: no JSON, gaps, overlaps, sizes that do not fit shapes.
    #[error("the header is not well-formed: {0}")]
    Header(serde_json::Error),
    /// The tensors do not fill the file.
    #[error("the tensors end at {expected}, but the file has {file_len} bytes")]
    Length {
        /// By the header.
        expected: u64,
        /// The bytes of the file.
        file_len: u64,
    },
    /// A tensor with a dimension of zero or above 32 bits, or with none.
    #[error("tensor {name} has the dimensions {dims:?}")]
    Dimensions {
        /// The tensor.
        name: String,
        /// As the file has them.
        dims: Vec<usize>,
    },
    /// A tensor stored in a way that we do not read.
    #[error("tensor {name} is stored as {found}, which is not supported")]
    UnsupportedDtype {
        /// The tensor.
        name: String,
        /// The file's name of the type.
        found: String,
    },
    /// A read beyond the end of a tensor.
    #[error("tensor {name} has {len} bytes: {wanted} at {offset} are not in it")]
    OutsideTensor {
        /// The tensor.
        name: String,
        /// Its bytes.
        len: u64,
        /// Where the read starts.
        offset: u64,
        /// How many bytes it wants.
        wanted: u64,
    },
    /// There is no tensor of that number.
    #[error("there is no tensor {0}")]
    Index(usize),
}

impl<R: Read + Seek> Safetensors<R> {
    /// Reads the header of a file.
    ///
    /// # Errors
    /// [`SafetensorsError`] names the first check that failed.
    pub fn read(mut inner: R) -> Result<Self, SafetensorsError> {
        let file_len = inner.seek(SeekFrom::End(0)).map_err(SafetensorsError::Read)?;
        inner.seek(SeekFrom::Start(0)).map_err(SafetensorsError::Read)?;
        let mut len = [0; 8];
        inner.read_exact(&mut len).map_err(SafetensorsError::Read)?;
        let len = u64::from_le_bytes(len);
        let max = HEADER_MAX.min(file_len.saturating_sub(8));
        if len > max {
            return Err(SafetensorsError::HeaderTooLong { len, max });
        }
        let mut header = vec![0; len as usize];
        inner.read_exact(&mut header).map_err(SafetensorsError::Read)?;
        // The crate checks that the tensors follow one another without gap or overlap and that
        // each is as long as its shape and type say.
        let header: Metadata = serde_json::from_slice(&header).map_err(SafetensorsError::Header)?;
        let start = len.saturating_add(8);
        let expected = start.saturating_add(header.data_len() as u64);
        if expected != file_len {
            return Err(SafetensorsError::Length { expected, file_len });
        }
        let mut tensors = Vec::new();
        for name in header.offset_keys() {
            let Some(info) = header.info(&name) else {
                continue;
            };
            let dims = info.shape.iter().map(|dim| u32::try_from(*dim).ok().filter(|dim| *dim > 0));
            let Some(dims) = dims.collect::<Option<Vec<u32>>>().filter(|dims| !dims.is_empty())
            else {
                let dims = info.shape.clone();
                return Err(SafetensorsError::Dimensions { name, dims });
            };
            let (from, upto) = info.data_offsets;
            tensors.push(SafeTensor {
                dtype: dtype(info.dtype),
                dims,
                len: (upto as u64).saturating_sub(from as u64),
                offset: start.saturating_add(from as u64),
                name,
            });
        }
        Ok(Self { inner, tensors })
    }
}

impl<R> Safetensors<R> {
    /// The tensors, in the order of the file.
    pub fn tensors(&self) -> &[SafeTensor] {
        &self.tensors
    }
}

impl<R: ReadAt> Safetensors<R> {
    /// Reads `out.len()` bytes of tensor `index`, from `offset` on.
    ///
    /// # Errors
    /// [`SafetensorsError::OutsideTensor`], or [`SafetensorsError::Read`] when the operating
    /// system fails.
    pub fn read_tensor(
        &self,
        index: usize,
        offset: u64,
        out: &mut [u8],
    ) -> Result<(), SafetensorsError> {
        let wanted = out.len() as u64;
        let tensor = self.tensors.get(index).ok_or(SafetensorsError::Index(index))?;
        if offset.checked_add(wanted).is_none_or(|end| end > tensor.len) {
            let (name, len) = (tensor.name.clone(), tensor.len);
            return Err(SafetensorsError::OutsideTensor { name, len, offset, wanted });
        }
        let start = tensor.offset.saturating_add(offset);
        self.inner.read_exact_at(start, out).map_err(SafetensorsError::Read)
    }
}

impl SafeTensor {
    /// The storage type, if it is one of ours.
    ///
    /// # Errors
    /// [`SafetensorsError::UnsupportedDtype`] if not.
    pub fn supported_dtype(&self) -> Result<Dtype, SafetensorsError> {
        self.dtype
            .clone()
            .map_err(|found| SafetensorsError::UnsupportedDtype { name: self.name.clone(), found })
    }
}

fn dtype(dtype: FileDtype) -> Result<Dtype, String> {
    match dtype {
        FileDtype::F32 => Ok(Dtype::F32),
        FileDtype::F16 => Ok(Dtype::F16),
        FileDtype::BF16 => Ok(Dtype::Bf16),
        // Its codes, without scales.
        FileDtype::F8_E4M3 => Ok(Dtype::F8E4M3),
        other => Err(format!("{other:?}")),
    }
}

/// The format's own limit.
const HEADER_MAX: u64 = 100_000_000;
