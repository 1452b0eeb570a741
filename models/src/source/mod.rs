//! Readers of weight files, for the packager only: what an enclave opens was converted outside.
//!
//! [`open`] takes a GGUF file or a Hugging Face folder. Whatever the file calls its tensors and
//! orders their rows, a [`Source`] gives them by their canonical names, with their canonical values.

use std::io;
use std::path::{Path, PathBuf};

use chrysalis_kernels::Dtype;
use chrysalis_kernels::quant::{QuantError, dequantize};
use chrysalis_protocol::package::Architecture;

use self::canonical::{Place, Transform};
use self::gguf::{Gguf, GgufError, Metadata};
use self::gguf_file::GgufFile;
use self::hugging_face::Folder;
pub use self::read_at::ReadAt;
use self::safetensors::SafetensorsError;
use crate::architecture::ArchitectureError;
use crate::config::ConfigError;

mod canonical;
mod fp8;
pub mod gguf;
mod gguf_file;
mod hugging_face;
mod read_at;
pub mod safetensors;

/// A model in a weight file: its architecture is one we run, and its tensors are exactly those of
/// that architecture.
#[derive(Debug)]
pub struct Source {
    name: String,
    licence: Option<String>,
    architecture: Architecture,
    tensors: Vec<SourceTensor>,
    /// For each tensor.
    places: Vec<Place>,
    files: Files,
}

/// A tensor by its canonical name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceTensor {
    /// The canonical name.
    pub name: String,
    /// How [`Source::read_rows`] gives its values: as the file has them for matrices, F32 for
    /// vectors.
    pub dtype: Dtype,
    /// `[rows, cols]`, or `[len]`.
    pub dims: Vec<u32>,
}

/// Where the tokenizer and the chat template of a source are.
#[derive(Clone, Copy, Debug)]
pub enum SourceText<'a> {
    /// In the metadata of a GGUF file.
    Gguf(&'a Metadata),
    /// In the files of a Hugging Face folder.
    Folder(&'a Path),
}

/// Why a weight file is no model that we can pack.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SourceError {
    /// Neither a folder nor a file that ends in `.gguf`.
    #[error("{0} is neither a Hugging Face folder nor a .gguf file")]
    Unknown(PathBuf),
    /// The operating system could not read.
    #[error("{path} cannot be read: {error}")]
    Read {
        /// What was read.
        path: PathBuf,
        /// Why not.
        error: io::Error,
    },
    /// A file of a folder is larger than such a file ever is.
    #[error("{path} has {len} bytes, at most {max} are read")]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its bytes.
        len: u64,
        /// The limit.
        max: u64,
    },
    /// A file of a folder is no JSON.
    #[error("{path} is not JSON: {error}")]
    Json {
        /// The file.
        path: PathBuf,
        /// Why not.
        error: serde_json::Error,
    },
    /// The index of a sharded folder is not a map from tensors to files of that folder.
    #[error("{path}: {what}")]
    Index {
        /// The index.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// A safetensors file that is not well-formed.
    #[error("{path}: {error}")]
    Safetensors {
        /// The file.
        path: PathBuf,
        /// The check that failed.
        error: SafetensorsError,
    },
    /// A GGUF file that is not well-formed.
    #[error("{path}: {error}")]
    Gguf {
        /// The file.
        path: PathBuf,
        /// The check that failed.
        error: GgufError,
    },
    /// A model that is not described, or not one we run.
    #[error(transparent)]
    Architecture(#[from] ArchitectureError),
    /// A description that contradicts itself.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A tensor that the architecture needs is not there.
    #[error("tensor {0} is missing")]
    MissingTensor(String),
    /// A tensor that the architecture has no use for.
    #[error("tensor {0} is not part of the architecture")]
    ExtraTensor(String),
    /// Two tensors that stand for the same one.
    #[error("tensor {0} is there twice")]
    DuplicateTensor(String),
    /// A tensor of another shape than the architecture says.
    #[error("tensor {name} has the shape {found:?}, not {expected:?}")]
    Shape {
        /// Its name in the file.
        name: String,
        /// By the architecture.
        expected: Vec<u32>,
        /// In the file.
        found: Vec<u32>,
    },
    /// A model says that its output matrix is its embedding, and has another one.
    #[error("the embeddings are tied, but {0} is not a copy of them")]
    NotTied(String),
    /// Rows that a tensor does not have.
    #[error("tensor {name} has {found} rows, not {wanted}")]
    Rows {
        /// Its canonical name.
        name: String,
        /// The rows there are.
        found: u64,
        /// One more than the last row wanted.
        wanted: u64,
    },
    /// A tensor in fp8 in a folder whose config.json says nothing of it.
    #[error("tensor {0} is in fp8, but config.json has no quantization_config")]
    Fp8Unannounced(String),
    /// A tensor in fp8 that is no matrix.
    #[error("tensor {name} is in fp8 and has the shape {dims:?}: only matrices are")]
    Fp8Vector {
        /// Its name in the file.
        name: String,
        /// Its dimensions.
        dims: Vec<u32>,
    },
    /// A tensor in fp8 whose rows are not whole blocks.
    #[error("tensor {name} is in fp8 and has {cols} columns, not a multiple of {block}")]
    Fp8Columns {
        /// Its name in the file.
        name: String,
        /// Its columns.
        cols: u32,
        /// Columns of a block.
        block: u32,
    },
    /// A tensor in fp8 without its scales.
    #[error("tensor {0} is in fp8, but {0}_scale_inv is missing")]
    MissingScales(String),
    /// Scales of a tensor that is not there, or not in fp8.
    #[error("tensor {0} has scales of no tensor in fp8")]
    ExtraScales(String),
    /// Scales that are neither in f32 nor in bf16.
    #[error("tensor {name} is stored as {found}: scales are F32 or BF16")]
    ScaleDtype {
        /// Its name in the file.
        name: String,
        /// How it is stored.
        found: &'static str,
    },
    /// A scale that is infinite or not a number.
    #[error("tensor {name}: the scale of block {block} is {found}")]
    Scale {
        /// The scaled tensor's name in the file.
        name: String,
        /// Which block, row after row.
        block: usize,
        /// Its scale.
        found: f32,
    },
    /// An fp8 code that stands for no number.
    #[error("tensor {name} is not a number in row {row}, column {col}")]
    NotANumber {
        /// Its name in the file.
        name: String,
        /// Its row.
        row: usize,
        /// Its column.
        col: usize,
    },
    /// Values that could not be converted.
    #[error("tensor {name}: {error}")]
    Convert {
        /// Its canonical name.
        name: String,
        /// Why not.
        error: QuantError,
    },
}

/// Opens a GGUF file or a Hugging Face folder, and checks that it is a model we run and that its
/// tensors are all there and nothing else.
///
/// # Errors
/// [`SourceError`] names the file, the field or the tensor.
pub fn open(path: &Path) -> Result<Source, SourceError> {
    if path.is_dir() {
        return Folder::open(path);
    }
    if path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf")) {
        let wrap = |error| SourceError::Gguf { path: path.to_owned(), error };
        let gguf = Gguf::open(path).map_err(wrap)?;
        return GgufFile::open(path, gguf);
    }
    Err(SourceError::Unknown(path.to_owned()))
}

impl Source {
    /// What the file calls the model; the file's own name where it says nothing.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What the file says of its licence.
    pub fn licence(&self) -> Option<&str> {
        self.licence.as_deref()
    }

    /// The decoder of the model.
    pub const fn architecture(&self) -> &Architecture {
        &self.architecture
    }

    /// The tensors, in the order in which a forward pass uses them.
    pub fn tensors(&self) -> &[SourceTensor] {
        &self.tensors
    }

    /// Where its tokenizer and chat template are.
    pub fn text(&self) -> SourceText<'_> {
        match &self.files {
            Files::Gguf(file) => SourceText::Gguf(file.metadata()),
            Files::Folder(folder) => SourceText::Folder(folder.path()),
        }
    }

    /// Reads all of tensor `index` into `out`, in place of what is in it.
    ///
    /// # Errors
    /// As [`Self::read_rows`].
    pub fn read(&self, index: usize, out: &mut Vec<u8>) -> Result<(), SourceError> {
        let num_rows = self.tensors.get(index).map_or(0, SourceTensor::num_rows);
        self.read_rows(index, 0, num_rows, out)
    }

    /// Reads `count` rows of tensor `index` from row `first` on into `out`, in place of what is in
    /// it. A vector is one row.
    ///
    /// # Errors
    /// [`SourceError::Rows`] beyond the tensor, or what the file's reader says.
    pub fn read_rows(
        &self,
        index: usize,
        first: u32,
        count: u32,
        out: &mut Vec<u8>,
    ) -> Result<(), SourceError> {
        out.clear();
        let (Some(tensor), Some(place)) = (self.tensors.get(index), self.places.get(index)) else {
            return Err(SourceError::MissingTensor(format!("number {index}")));
        };
        let (found, wanted) = (u64::from(tensor.num_rows()), u64::from(first) + u64::from(count));
        if wanted > found {
            return Err(SourceError::Rows { name: tensor.name.clone(), found, wanted });
        }
        if count == 0 {
            return Ok(());
        }
        if tensor.dims.len() < 2 {
            return self.read_vector(tensor, place, out);
        }
        let row_len = tensor.row_len();
        let Transform::Unpermute { head_dim } = place.transform else {
            out.resize(row_len.saturating_mul(count as usize), 0);
            let offset = (row_len as u64).saturating_mul(u64::from(first));
            return self.files.read(place.raw, offset, out);
        };
        // Whole heads are read, and of them the rows that are asked for.
        let (head_dim, first, end) = (head_dim as usize, first as usize, wanted as usize);
        let from = first - first % head_dim;
        let upto = end.next_multiple_of(head_dim).min(found as usize);
        let mut heads = vec![0; row_len.saturating_mul(upto - from)];
        self.files.read(place.raw, (row_len as u64).saturating_mul(from as u64), &mut heads)?;
        for row in first..end {
            let start = (canonical::permuted(row, head_dim) - from) * row_len;
            out.extend_from_slice(heads.get(start..start + row_len).unwrap_or_default());
        }
        Ok(())
    }

    /// Reads a vector: its values in f32, in canonical order.
    fn read_vector(
        &self,
        tensor: &SourceTensor,
        place: &Place,
        out: &mut Vec<u8>,
    ) -> Result<(), SourceError> {
        let len = tensor.num_cols() as usize;
        let convert = |error| SourceError::Convert { name: tensor.name.clone(), error };
        let mut raw = vec![0; place.raw_dtype.row_bytes(len).unwrap_or(0)];
        self.files.read(place.raw, 0, &mut raw)?;
        let mut values = vec![0.0; len];
        dequantize(place.raw_dtype, &raw, &mut values).map_err(convert)?;
        let value = |index: usize| values.get(index).copied().unwrap_or(0.0);
        for index in 0..len {
            let value = match place.transform {
                Transform::None => value(index),
                Transform::AddOne => value(index) + 1.0,
                Transform::Unpermute { head_dim } => {
                    value(canonical::permuted(index, head_dim as usize))
                }
            };
            out.extend_from_slice(&value.to_le_bytes());
        }
        Ok(())
    }
}

impl SourceTensor {
    /// Rows; a vector is one.
    pub fn num_rows(&self) -> u32 {
        if let [rows, _] = *self.dims { rows } else { 1 }
    }

    /// Values in a row.
    pub fn num_cols(&self) -> u32 {
        self.dims.last().copied().unwrap_or(0)
    }

    /// Bytes of a row as [`Source::read_rows`] gives it.
    pub fn row_len(&self) -> usize {
        self.dtype.row_bytes(self.num_cols() as usize).unwrap_or(0)
    }
}

/// The bytes of tensors, by their number in the file.
#[derive(Debug)]
enum Files {
    Gguf(GgufFile),
    Folder(Folder),
}

impl Files {
    fn read(&self, raw: usize, offset: u64, out: &mut [u8]) -> Result<(), SourceError> {
        match self {
            Self::Gguf(file) => file.read(raw, offset, out),
            Self::Folder(folder) => folder.read(raw, offset, out),
        }
    }
}

/// The name of a file or folder without its ending.
fn file_stem(path: &Path) -> String {
    let name = path.canonicalize().ok();
    let name = name.as_deref().unwrap_or(path);
    let stem = if name.is_dir() { name.file_name() } else { name.file_stem() };
    stem.map_or_else(|| "model".to_owned(), |stem| stem.to_string_lossy().into_owned())
}
