//! A GGUF file as a [`Source`].

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use chrysalis_kernels::quant::dequantize;

use super::canonical::{self, Habits, RawTensor};
use super::gguf::{Gguf, Metadata};
use super::{Files, Source, SourceError};
use crate::architecture::gguf::{TensorFacts, family, from_gguf};

/// An open GGUF file.
#[derive(Debug)]
pub(super) struct GgufFile {
    path: PathBuf,
    gguf: Gguf<File>,
}

impl GgufFile {
    /// Checks that the file is a whole model.
    pub(super) fn open(path: &Path, gguf: Gguf<File>) -> Result<Source, SourceError> {
        let file = Self { path: path.to_owned(), gguf };
        let mut raw = BTreeMap::new();
        for (index, tensor) in file.gguf.tensors().iter().enumerate() {
            let name = tensor.name.clone();
            let found = RawTensor {
                name: name.clone(),
                dtype: tensor.dtype,
                dims: tensor.dims.clone(),
                index,
            };
            raw.insert(name, found);
        }
        let rope_freqs = raw.remove(ROPE_FREQS);
        let rope_freqs = rope_freqs.map(|tensor| file.read_values(&tensor)).transpose()?;
        let facts = TensorFacts {
            output: raw.contains_key("output.weight"),
            qkv_bias: raw.contains_key("blk.0.attn_q.bias"),
            o_bias: raw.contains_key("blk.0.attn_output.bias"),
            mlp_bias: raw.contains_key("blk.0.ffn_up.bias"),
            rope_freqs,
        };
        let metadata = file.gguf.metadata();
        let architecture = from_gguf(metadata, &facts)?;
        let habits = Habits { permuted: family(metadata)?.permuted_in_gguf, ..Habits::default() };
        let wrap = |error| SourceError::Gguf { path: path.to_owned(), error };
        let name = metadata.text("general.name").map_err(wrap)?.map(str::to_owned);
        let licence = metadata.text("general.license").map_err(wrap)?.map(str::to_owned);
        let (tensors, places) = canonical::place(&architecture, habits, raw, str::to_owned)?;
        Ok(Source {
            name: name.unwrap_or_else(|| super::file_stem(path)),
            licence,
            tensors,
            places,
            architecture,
            files: Files::Gguf(file),
        })
    }

    pub(super) const fn metadata(&self) -> &Metadata {
        self.gguf.metadata()
    }

    pub(super) fn read(
        &self,
        index: usize,
        offset: u64,
        out: &mut [u8],
    ) -> Result<(), SourceError> {
        let wrap = |error| SourceError::Gguf { path: self.path.clone(), error };
        self.gguf.read_tensor(index, offset, out).map_err(wrap)
    }

    /// All values of a small vector.
    fn read_values(&self, tensor: &RawTensor) -> Result<Vec<f32>, SourceError> {
        let shape = |expected| SourceError::Shape {
            name: tensor.name.clone(),
            expected,
            found: tensor.dims.clone(),
        };
        let len = match tensor.dims.as_slice() {
            [len] if *len <= VECTOR_MAX => *len as usize,
            _ => return Err(shape(vec![VECTOR_MAX])),
        };
        let bytes = tensor.dtype.row_bytes(len).ok_or_else(|| shape(vec![VECTOR_MAX]))?;
        let mut raw = vec![0; bytes];
        self.read(tensor.index, 0, &mut raw)?;
        let mut values = vec![0.0; len];
        let convert = |error| SourceError::Convert { name: tensor.name.clone(), error };
        dequantize(tensor.dtype, &raw, &mut values).map_err(convert)?;
        Ok(values)
    }
}

const ROPE_FREQS: &str = "rope_freqs.weight";
const VECTOR_MAX: u32 = 65_536;
