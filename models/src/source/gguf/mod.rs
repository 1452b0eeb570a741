//! GGUF files, versions 2 and 3: a strict reader whose every count and length is bounded by the
//! size of the file before anything is allocated. Tensor bytes are read on demand.
//! Specified by ggml's `docs/gguf.md`.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::path::Path;

use chrysalis_kernels::Dtype;

use self::metadata::bounded;
pub use self::metadata::{Metadata, Value};
use self::reader::Reader;
use super::read_at::ReadAt;

mod metadata;
mod reader;

/// A GGUF file whose head was read and found whole; the tensors' bytes stay in `R`.
#[derive(Debug)]
pub struct Gguf<R> {
    inner: R,
    metadata: Metadata,
    tensors: Vec<GgufTensor>,
}

/// A tensor of a GGUF file; its bytes lie inside the file and overlap no other tensor's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GgufTensor {
    /// The name in the file.
    pub name: String,
    /// How its values are stored.
    pub dtype: Dtype,
    /// The outermost dimension first: `[rows, cols]` or `[len]` (the file has them reversed).
    pub dims: Vec<u32>,
    /// Bytes.
    pub len: u64,
    /// From the start of the file.
    offset: u64,
}

/// Why a file is no GGUF file that we take.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GgufError {
    /// The operating system could not read.
    #[error("the file cannot be read: {0}")]
    Read(io::Error),
    /// The first four bytes are others.
    #[error("not a GGUF file: it starts with {0:02x?}")]
    Magic([u8; 4]),
    /// A version other than 2 and 3.
    #[error("GGUF version {0} is not supported, only 2 and 3")]
    Version(u32),
    /// The file ends inside a field.
    #[error("the file of {file_len} bytes is too short: {wanted} bytes wanted at {position}")]
    Truncated {
        /// Where the field starts.
        position: u64,
        /// The bytes that it needs.
        wanted: u64,
        /// The bytes of the file.
        file_len: u64,
    },
    /// A count above its limit or above what the rest of the file can hold.
    #[error("{count} {what} are too many: at most {max} here")]
    TooMany {
        /// What is counted.
        what: &'static str,
        /// The count in the file.
        count: u64,
        /// The limit.
        max: u64,
    },
    /// A length above its limit.
    #[error("{what} of {len} bytes is too long: at most {max}")]
    TooLong {
        /// What is long.
        what: &'static str,
        /// The length in the file.
        len: u64,
        /// The limit.
        max: u64,
    },
    /// A string that is no UTF-8.
    #[error("{what} at {offset} is not UTF-8")]
    NotUtf8 {
        /// Which string.
        what: &'static str,
        /// Where it starts.
        offset: u64,
    },
    /// Two values for one key.
    #[error("metadata key {0} is there twice")]
    DuplicateKey(String),
    /// Two tensors of one name.
    #[error("tensor {0} is there twice")]
    DuplicateTensor(String),
    /// A value type that GGUF does not have, or an array of arrays.
    #[error("metadata key {key} has the unknown value type {found}")]
    UnknownValueType {
        /// The key.
        key: String,
        /// The number of the type.
        found: u32,
    },
    /// A value of another type than the key must have.
    #[error("metadata key {key} is not {expected}")]
    WrongType {
        /// The key.
        key: String,
        /// What it must be.
        expected: &'static str,
    },
    /// A key that must be there.
    #[error("metadata key {0} is missing")]
    MissingKey(String),
    /// An alignment that is zero, no power of two, or too large.
    #[error("alignment {0} is not a power of two between 1 and 65536")]
    Alignment(u32),
    /// A number that overflows.
    #[error("{0} overflows")]
    Overflow(&'static str),
    /// A tensor stored in a way that we do not read.
    #[error("tensor {name} is stored as {found}, which is not supported")]
    UnsupportedDtype {
        /// The tensor.
        name: String,
        /// ggml's name of the type, or its number.
        found: String,
    },
    /// A tensor without dimensions, with more than four, or with one of zero.
    #[error("tensor {name} has the dimensions {dims:?}")]
    Dimensions {
        /// The tensor.
        name: String,
        /// As the file has them.
        dims: Vec<u64>,
    },
    /// A row that is no whole number of groups.
    #[error("tensor {name}: rows of {cols} values are not whole groups of {dtype}")]
    PartialGroup {
        /// The tensor.
        name: String,
        /// Values in a row.
        cols: u64,
        /// The storage type.
        dtype: &'static str,
    },
    /// A tensor at an offset that is not aligned.
    #[error("tensor {name} at offset {offset} is not aligned to {alignment}")]
    Unaligned {
        /// The tensor.
        name: String,
        /// From the start of the data.
        offset: u64,
        /// What the file promises.
        alignment: u64,
    },
    /// A tensor that reaches beyond the file.
    #[error("tensor {name} ends at {end}, but the file has {file_len} bytes")]
    OutsideFile {
        /// The tensor.
        name: String,
        /// The offset after its last byte.
        end: u64,
        /// The bytes of the file.
        file_len: u64,
    },
    /// Two tensors share bytes.
    #[error("tensors {first} and {second} overlap")]
    Overlap {
        /// The one that starts first.
        first: String,
        /// The other.
        second: String,
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
}

impl Gguf<File> {
    /// Opens a file and reads its head.
    ///
    /// # Errors
    /// [`GgufError`] names the first check that failed.
    pub fn open(path: &Path) -> Result<Self, GgufError> {
        let file = File::open(path).map_err(GgufError::Read)?;
        Self::read(file)
    }
}

impl<R: Read + Seek> Gguf<R> {
    /// Reads the head of a file: metadata and the list of tensors, every one of them checked.
    ///
    /// # Errors
    /// [`GgufError`] names the first check that failed.
    pub fn read(mut inner: R) -> Result<Self, GgufError> {
        let file_len = inner.seek(SeekFrom::End(0)).map_err(GgufError::Read)?;
        inner.seek(SeekFrom::Start(0)).map_err(GgufError::Read)?;
        let mut reader = Reader::new(BufReader::new(inner.by_ref()), file_len);

        let magic = reader.array()?;
        if magic != *b"GGUF" {
            return Err(GgufError::Magic(magic));
        }
        let version = reader.u32()?;
        if !matches!(version, 2 | 3) {
            return Err(GgufError::Version(version));
        }
        let num_tensors = reader.u64()?;
        let num_pairs = reader.u64()?;
        let metadata = Metadata::read(&mut reader, num_pairs)?;
        let alignment = alignment(&metadata)?;

        // A tensor is at least a name length, a count, one dimension, a type and an offset.
        bounded("tensors", num_tensors, 32, TENSORS_MAX, reader.remaining())?;
        let mut tensors = Vec::new();
        let mut names = BTreeSet::new();
        for _ in 0..num_tensors {
            let tensor = read_tensor(&mut reader, alignment)?;
            if !names.insert(tensor.name.clone()) {
                return Err(GgufError::DuplicateTensor(tensor.name));
            }
            tensors.push(tensor);
        }
        let data_start = reader
            .position()
            .checked_next_multiple_of(alignment)
            .ok_or(GgufError::Overflow("the start of the data"))?;
        place(&mut tensors, data_start, file_len)?;
        Ok(Self { inner, metadata, tensors })
    }
}

impl<R> Gguf<R> {
    /// What the file says about its model.
    pub const fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// The tensors, in the order of the file.
    pub fn tensors(&self) -> &[GgufTensor] {
        &self.tensors
    }
}

impl<R: ReadAt> Gguf<R> {
    /// Reads `out.len()` bytes of tensor `index`, from `offset` on.
    ///
    /// # Errors
    /// [`GgufError::OutsideTensor`], or [`GgufError::Read`] when the operating system fails.
    pub fn read_tensor(&self, index: usize, offset: u64, out: &mut [u8]) -> Result<(), GgufError> {
        let wanted = out.len() as u64;
        let tensor = self.tensors.get(index).ok_or(GgufError::Overflow("the tensor index"))?;
        if offset.checked_add(wanted).is_none_or(|end| end > tensor.len) {
            let (name, len) = (tensor.name.clone(), tensor.len);
            return Err(GgufError::OutsideTensor { name, len, offset, wanted });
        }
        let start = tensor.offset.saturating_add(offset);
        self.inner.read_exact_at(start, out).map_err(GgufError::Read)
    }
}

fn alignment(metadata: &Metadata) -> Result<u64, GgufError> {
    let alignment = metadata.u32("general.alignment")?.unwrap_or(32);
    if !alignment.is_power_of_two() || alignment > 65_536 {
        return Err(GgufError::Alignment(alignment));
    }
    Ok(u64::from(alignment))
}

/// Reads a tensor's record; its offset still counts from the start of the data.
fn read_tensor<R: Read>(reader: &mut Reader<R>, alignment: u64) -> Result<GgufTensor, GgufError> {
    let name = reader.text("tensor name", NAME_MAX)?;
    let rank = reader.u32()?;
    if !(1..=4).contains(&rank) {
        return Err(GgufError::TooMany { what: "dimensions", count: u64::from(rank), max: 4 });
    }
    let dims = (0..rank).map(|_| reader.u64()).collect::<Result<Vec<u64>, _>>()?;
    let code = reader.u32()?;
    let offset = reader.u64()?;
    if !offset.is_multiple_of(alignment) {
        return Err(GgufError::Unaligned { name, offset, alignment });
    }
    let known = u16::try_from(code).ok().filter(|code| *code < Dtype::OURS);
    let Some(dtype) = known.and_then(Dtype::from_code) else {
        return Err(GgufError::UnsupportedDtype { name, found: type_name(code) });
    };
    let mut dims32 = Vec::with_capacity(dims.len());
    for dim in dims.iter().rev() {
        match u32::try_from(*dim) {
            Ok(dim) if dim > 0 => dims32.push(dim),
            _ => return Err(GgufError::Dimensions { name, dims }),
        }
    }
    let Some((cols, rows)) = dims.split_first() else {
        return Err(GgufError::Dimensions { name, dims });
    };
    let row_bytes = usize::try_from(*cols).ok().and_then(|cols| dtype.row_bytes(cols));
    let Some(row_bytes) = row_bytes else {
        return Err(GgufError::PartialGroup { name, cols: *cols, dtype: dtype.name() });
    };
    let len = rows.iter().try_fold(row_bytes as u64, |len, dim| len.checked_mul(*dim));
    let len = len.ok_or(GgufError::Overflow("the size of a tensor"))?;
    Ok(GgufTensor { name, dtype, dims: dims32, len, offset })
}

/// Makes offsets count from the start of the file; refuses tensors outside it or in each other.
fn place(tensors: &mut [GgufTensor], data_start: u64, file_len: u64) -> Result<(), GgufError> {
    for tensor in tensors.iter_mut() {
        let offset = data_start.checked_add(tensor.offset);
        let end = offset.and_then(|offset| offset.checked_add(tensor.len));
        let (Some(offset), Some(end)) = (offset, end) else {
            return Err(GgufError::Overflow("the end of a tensor"));
        };
        if end > file_len {
            return Err(GgufError::OutsideFile { name: tensor.name.clone(), end, file_len });
        }
        tensor.offset = offset;
    }
    let mut sorted: Vec<&GgufTensor> = tensors.iter().collect();
    sorted.sort_by_key(|tensor| tensor.offset);
    for pair in sorted.windows(2) {
        if let [first, second] = pair
            && first.offset.saturating_add(first.len) > second.offset
        {
            let (first, second) = (first.name.clone(), second.name.clone());
            return Err(GgufError::Overlap { first, second });
        }
    }
    Ok(())
}

/// ggml's name of a type that we do not read, for the message.
fn type_name(code: u32) -> String {
    let known = UNSUPPORTED_TYPES.iter().find(|(known, _)| *known == code);
    known.map_or_else(|| format!("type {code}"), |(_, name)| (*name).to_owned())
}

const TENSORS_MAX: u64 = 65_536;
const NAME_MAX: u64 = 255;

/// `enum ggml_type` of ggml.h, without the types of [`Dtype`].
const UNSUPPORTED_TYPES: [(u32, &str); 23] = [
    (9, "Q8_1"),
    (10, "Q2_K"),
    (11, "Q3_K"),
    (15, "Q8_K"),
    (16, "IQ2_XXS"),
    (17, "IQ2_XS"),
    (18, "IQ3_XXS"),
    (19, "IQ1_S"),
    (20, "IQ4_NL"),
    (21, "IQ3_S"),
    (22, "IQ2_S"),
    (23, "IQ4_XS"),
    (24, "I8"),
    (25, "I16"),
    (26, "I32"),
    (27, "I64"),
    (28, "F64"),
    (29, "IQ1_M"),
    (34, "TQ1_0"),
    (35, "TQ2_0"),
    (39, "MXFP4"),
    (4, "Q4_2"),
    (5, "Q4_3"),
];
