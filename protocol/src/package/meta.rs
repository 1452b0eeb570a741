//! The meta of a package: architecture, names, and one record for each tensor (docs/formats.md, 2).
//!
//! | off | len | field |
//! | --- | --- | --- |
//! | 0 | 512 | architecture block |
//! | 512 | 64 | name, UTF-8, zero-padded |
//! | 576 | 64 | licence, likewise, may be empty |
//! | 640 | 8 | length of the client bundle |
//! | 648 | 32 | BLAKE3 of the client bundle |
//! | 680 | 4 | number of tensors |
//! | 684 | 84 | zero |
//! | 768 | 128 each | tensor records, in the order of their data |

use std::collections::HashSet;

use super::architecture::Architecture;
use super::error::MetaError;
use super::header::DATA_LEN_MAX;
use crate::codec::{Reader, Writer};

/// Most tensors of a package.
pub const TENSORS_MAX: usize = 65_536;
/// Longest name of a model, a licence or a tensor, in bytes.
pub const NAME_MAX: usize = 64;
/// Longest meta in bytes.
pub const META_LEN_MAX: u64 = 8_389_376;

/// What a package holds, apart from the weights themselves.
#[derive(Clone, Debug, PartialEq)]
pub struct Meta {
    /// What the decoder computes.
    pub architecture: Architecture,
    /// The model's name, 1 to 64 bytes.
    pub name: String,
    /// Its licence, at most 64 bytes (an SPDX identifier where there is one).
    pub licence: String,
    /// Length of the client bundle in bytes; 0 when there is none.
    pub client_bundle_len: u64,
    /// BLAKE3 of the client bundle; zero when there is none.
    pub client_bundle_hash: [u8; 32],
    /// The tensors in the order of their data.
    pub tensors: Vec<TensorRecord>,
}

/// One tensor: its shape, and where its bytes lie in the data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorRecord {
    /// Canonical name, 1 to 64 bytes.
    pub name: String,
    /// Storage type: ggml's number, or from 0x8000 on one of ours.
    pub dtype: u16,
    /// `[rows, cols]` or `[values]`; the last one is contiguous. 1 to 8 dimensions, none zero.
    pub dims: Vec<u32>,
    /// Where it starts in the data, a multiple of 256.
    pub offset: u64,
    /// Its bytes.
    pub len: u64,
    /// Zero; none is defined.
    pub flags: u32,
}

impl Meta {
    /// Lays out the tensors (name, dtype, dims), each at the first multiple of 256 after the one
    /// before, and measures the client bundle.
    ///
    /// # Errors
    /// [`MetaError`], naming the field or the tensor.
    pub fn new(
        architecture: Architecture,
        name: &str,
        licence: &str,
        client_bundle: &[u8],
        tensors: impl IntoIterator<Item = (String, u16, Vec<u32>)>,
    ) -> Result<Self, MetaError> {
        let mut records = Vec::new();
        let mut end = 0;
        for (tensor, (name, dtype, dims)) in tensors.into_iter().enumerate() {
            let offset = aligned(tensor, end)?;
            let len = tensor_len(tensor, dtype, &dims)?;
            end = end_of(tensor, offset, len)?;
            records.push(TensorRecord { name, dtype, dims, offset, len, flags: 0 });
        }
        let meta = Self {
            architecture,
            name: name.to_owned(),
            licence: licence.to_owned(),
            client_bundle_len: u64::try_from(client_bundle.len()).unwrap_or(u64::MAX),
            client_bundle_hash: client_bundle_digest(client_bundle),
            tensors: records,
        };
        meta.check()?;
        Ok(meta)
    }

    /// Bytes of the data that the tensors cover.
    #[must_use]
    pub fn data_len(&self) -> u64 {
        self.tensors.last().map_or(0, |tensor| tensor.offset.saturating_add(tensor.len))
    }

    /// These bytes are the package's client bundle.
    ///
    /// # Errors
    /// [`MetaError::ClientBundleLen`] or [`MetaError::ClientBundleHash`].
    pub fn check_client_bundle(&self, bytes: &[u8]) -> Result<(), MetaError> {
        let found = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        if found != self.client_bundle_len {
            return Err(MetaError::ClientBundleLen { found, expected: self.client_bundle_len });
        }
        let (found, expected) =
            (client_bundle_digest(bytes).into(), self.client_bundle_hash.into());
        if found != expected {
            return Err(MetaError::ClientBundleHash { found, expected });
        }
        Ok(())
    }

    /// The meta's bytes.
    ///
    /// # Errors
    /// What [`Self::from_bytes`] would refuse.
    pub fn to_bytes(&self) -> Result<Vec<u8>, MetaError> {
        self.check()?;
        let count = u32::try_from(self.tensors.len()).unwrap_or(u32::MAX);
        let mut out = Writer::new();
        out.bytes(&self.architecture.to_bytes()?);
        write_text(&mut out, &self.name);
        write_text(&mut out, &self.licence);
        out.u64(self.client_bundle_len).bytes(&self.client_bundle_hash).u32(count).zeros(84);
        for tensor in &self.tensors {
            tensor.write(&mut out);
        }
        Ok(out.into_bytes())
    }

    /// Reads a meta.
    ///
    /// # Errors
    /// [`MetaError`], naming the field or the tensor.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, MetaError> {
        let mut input = Reader::new(bytes);
        let architecture = Architecture::from_bytes(&input.array()?)?;
        let name = read_text("name", &mut input)?;
        let licence = read_text("licence", &mut input)?;
        let client_bundle_len = input.u64()?;
        let client_bundle_hash = input.array()?;
        let count = usize::try_from(input.u32()?).unwrap_or(usize::MAX);
        input.zeros(84)?;
        check_tensor_count(count)?;
        let mut tensors = Vec::new();
        for _ in 0..count {
            // The vector grows with records that were there, never by the count alone.
            tensors.push(TensorRecord::read(&mut input)?);
        }
        input.finish()?;
        let meta =
            Self { architecture, name, licence, client_bundle_len, client_bundle_hash, tensors };
        meta.check()?;
        Ok(meta)
    }

    fn check(&self) -> Result<(), MetaError> {
        check_text("name", &self.name)?;
        if !self.licence.is_empty() {
            check_text("licence", &self.licence)?;
        }
        if self.client_bundle_len == 0 && self.client_bundle_hash != [0; 32] {
            return Err(MetaError::AbsentNotZero { field: "client_bundle_hash" });
        }
        check_tensor_count(self.tensors.len())?;
        let mut names = HashSet::with_capacity(self.tensors.len());
        let mut end = 0;
        for (index, tensor) in self.tensors.iter().enumerate() {
            end = tensor.check(index, end)?;
            if !names.insert(tensor.name.as_str()) {
                return Err(MetaError::DuplicateName { tensor: index });
            }
        }
        Ok(())
    }
}

impl TensorRecord {
    /// Bytes of a record.
    pub const LEN: usize = 128;

    fn write(&self, out: &mut Writer) {
        write_text(out, &self.name);
        out.u16(self.dtype);
        out.u8(u8::try_from(self.dims.len()).unwrap_or(u8::MAX)).zeros(1).u32(self.flags);
        for slot in 0..RANK_MAX {
            out.u32(self.dims.get(slot).copied().unwrap_or(0));
        }
        out.u64(self.offset).u64(self.len).zeros(8);
    }

    fn read(input: &mut Reader<'_>) -> Result<Self, MetaError> {
        let name = read_text("tensor name", input)?;
        let dtype = input.u16()?;
        let rank = usize::from(input.u8()?);
        input.zeros(1)?;
        let flags = input.u32()?;
        let mut slots = [0; RANK_MAX];
        for slot in &mut slots {
            *slot = input.u32()?;
        }
        // A rank above eight leaves no slot for its dimensions: refused below as no dimensions.
        let (dims, unused) = slots.split_at_checked(rank).unwrap_or((&[], &slots));
        if unused.iter().any(|&dim| dim != 0) {
            return Err(MetaError::AbsentNotZero { field: "tensor dimension" });
        }
        let (offset, len) = (input.u64()?, input.u64()?);
        input.zeros(8)?;
        Ok(Self { name, dtype, dims: dims.to_vec(), offset, len, flags })
    }

    /// Checks the record that follows `end` bytes of data, and returns where it ends itself.
    fn check(&self, tensor: usize, end: u64) -> Result<u64, MetaError> {
        check_text("tensor name", &self.name)?;
        if self.flags != 0 {
            return Err(MetaError::TensorFlags { tensor, found: self.flags });
        }
        let expected = tensor_len(tensor, self.dtype, &self.dims)?;
        if self.len != expected {
            return Err(MetaError::TensorLen { tensor, found: self.len, expected });
        }
        let expected = aligned(tensor, end)?;
        if self.offset != expected {
            return Err(MetaError::Offset { tensor, found: self.offset, expected });
        }
        end_of(tensor, self.offset, self.len)
    }
}

/// Values and bytes of a group of the storage type with the number `dtype`, if it is known.
#[must_use]
pub const fn dtype_group(dtype: u16) -> Option<(u32, u32)> {
    match dtype {
        0 => Some((1, 4)),          // F32
        1 | 30 => Some((1, 2)),     // F16, BF16
        2 => Some((32, 18)),        // Q4_0
        3 => Some((32, 20)),        // Q4_1
        6 => Some((32, 22)),        // Q5_0
        7 => Some((32, 24)),        // Q5_1
        8 => Some((32, 34)),        // Q8_0
        12 => Some((256, 144)),     // Q4_K
        13 => Some((256, 176)),     // Q5_K
        14 => Some((256, 210)),     // Q6_K
        0x8000 => Some((128, 132)), // F8_E4M3
        _ => None,
    }
}

/// Bytes of tensor number `tensor` (for the error) with this storage type and these dimensions.
///
/// # Errors
/// [`MetaError::Dtype`], [`MetaError::Dims`], [`MetaError::Groups`].
pub fn tensor_len(tensor: usize, dtype: u16, dims: &[u32]) -> Result<u64, MetaError> {
    let (group, group_bytes) =
        dtype_group(dtype).ok_or(MetaError::Dtype { tensor, found: dtype })?;
    let refused = || MetaError::Dims { tensor, dims: dims.to_vec() };
    let Some((&cols, rows)) = dims.split_last().filter(|_| dims.len() <= RANK_MAX) else {
        return Err(refused());
    };
    if dims.contains(&0) {
        return Err(refused());
    }
    if !cols.is_multiple_of(group) {
        return Err(MetaError::Groups { tensor, cols, group });
    }
    let groups = cols.checked_div(group).map(u64::from);
    let row_bytes = groups.and_then(|groups| groups.checked_mul(u64::from(group_bytes)));
    rows.iter()
        .try_fold(row_bytes.ok_or_else(refused)?, |len, &rows| len.checked_mul(u64::from(rows)))
        .ok_or_else(refused)
}

fn aligned(tensor: usize, end: u64) -> Result<u64, MetaError> {
    end.checked_next_multiple_of(ALIGN).ok_or(MetaError::TooLong { tensor, max: DATA_LEN_MAX })
}

fn end_of(tensor: usize, offset: u64, len: u64) -> Result<u64, MetaError> {
    offset
        .checked_add(len)
        .filter(|&end| end <= DATA_LEN_MAX)
        .ok_or(MetaError::TooLong { tensor, max: DATA_LEN_MAX })
}

/// BLAKE3 of a client bundle, as metas and appraisal policies name it; zero for none.
#[must_use]
pub fn client_bundle_digest(client_bundle: &[u8]) -> [u8; 32] {
    if client_bundle.is_empty() { [0; 32] } else { blake3::hash(client_bundle).into() }
}

fn check_tensor_count(found: usize) -> Result<(), MetaError> {
    if (1..=TENSORS_MAX).contains(&found) {
        return Ok(());
    }
    let (found, max) = (u64::try_from(found).unwrap_or(u64::MAX), TENSORS_MAX as u64);
    Err(MetaError::TensorCount { found, max })
}

fn check_text(field: &'static str, text: &str) -> Result<(), MetaError> {
    let length_fits = (1..=NAME_MAX).contains(&text.len());
    if length_fits && !text.chars().any(char::is_control) {
        Ok(())
    } else {
        Err(MetaError::Text { field })
    }
}

fn write_text(out: &mut Writer, text: &str) {
    out.bytes(text.as_bytes()).zeros(NAME_MAX.saturating_sub(text.len()));
}

/// Zero-padded text; a zero inside stays in the text and is then refused as a control character.
fn read_text(field: &'static str, input: &mut Reader<'_>) -> Result<String, MetaError> {
    let padded = input.bytes(NAME_MAX)?;
    let len = padded.iter().rposition(|&byte| byte != 0).map_or(0, |at| at.saturating_add(1));
    let text = padded.get(..len).and_then(|text| str::from_utf8(text).ok());
    text.map(str::to_owned).ok_or(MetaError::Text { field })
}

const ALIGN: u64 = 256;
const RANK_MAX: usize = 8;
