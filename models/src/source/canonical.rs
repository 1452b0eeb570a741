//! From the tensors of a file to those of the architecture: each found, of the right shape, and
//! none left over.

use std::collections::BTreeMap;

use chrysalis_kernels::Dtype;
use chrysalis_protocol::package::Architecture;

use super::{SourceError, SourceTensor};
use crate::config::ModelConfig;
use crate::layout::expected_tensors;

/// A tensor as the file has it.
#[derive(Debug)]
pub(super) struct RawTensor {
    /// The file's name for it, for messages.
    pub(super) name: String,
    pub(super) dtype: Dtype,
    pub(super) dims: Vec<u32>,
    /// Its number in the file.
    pub(super) index: usize,
}

/// Where the bytes of a tensor are, and what makes them canonical.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    /// Its number in the file.
    pub(super) raw: usize,
    pub(super) raw_dtype: Dtype,
    pub(super) transform: Transform,
}

/// What makes canonical values of the file's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Transform {
    None,
    /// Gemma's norms.
    AddOne,
    /// Whole rows move within each head: see [`permuted`].
    Unpermute {
        head_dim: u32,
    },
}

/// How a kind of file differs from the canonical form.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Habits {
    /// Norm weights lack the 1 that is added to them.
    pub(super) norms_lack_one: bool,
    /// Rows of q and k are permuted.
    pub(super) permuted: bool,
}

/// Where GGUF's llama architecture keeps row `row`: its pairs of a rotary embedding lie side by
/// side, those of Hugging Face (and ours) half a head apart.
pub(super) const fn permuted(row: usize, head_dim: usize) -> usize {
    let (head, within) = (row / head_dim, row % head_dim);
    let half = head_dim / 2;
    head * head_dim + 2 * (within % half) + within / half
}

/// Places every tensor that the architecture has. `raw` has canonical names for keys;
/// `file_name` makes the file's name of a canonical one.
///
/// # Errors
/// [`SourceError`] names the tensor that is missing, left over or of another shape.
pub(super) fn place(
    architecture: &Architecture,
    habits: Habits,
    mut raw: BTreeMap<String, RawTensor>,
    file_name: impl Fn(&str) -> String,
) -> Result<(Vec<SourceTensor>, Vec<Place>), SourceError> {
    let config = ModelConfig::try_from(architecture)?;
    let mut expected: Vec<(String, Vec<u32>)> = expected_tensors(&config).into_iter().collect();
    expected.sort_by_cached_key(|(name, _)| order(name));
    let (mut tensors, mut places) = (Vec::new(), Vec::new());
    for (name, dims) in expected {
        let missing = || SourceError::MissingTensor(file_name(&name));
        let found = raw.remove(&name).ok_or_else(missing)?;
        if found.dims != dims {
            let (name, found) = (found.name, found.dims);
            return Err(SourceError::Shape { name, expected: dims, found });
        }
        let vector = dims.len() < 2;
        let transform = if vector && habits.norms_lack_one && name.ends_with("norm.weight") {
            Transform::AddOne
        } else if habits.permuted && is_rotated(&name) {
            Transform::Unpermute { head_dim: architecture.head_dim }
        } else {
            Transform::None
        };
        let dtype = if vector { Dtype::F32 } else { found.dtype };
        tensors.push(SourceTensor { name, dtype, dims });
        places.push(Place { raw: found.index, raw_dtype: found.dtype, transform });
    }
    match raw.into_values().next() {
        None => Ok((tensors, places)),
        Some(extra) => Err(SourceError::ExtraTensor(extra.name)),
    }
}

/// q and k, weight and bias; not their norms.
fn is_rotated(name: &str) -> bool {
    [".attn_q.weight", ".attn_k.weight", ".attn_q.bias", ".attn_k.bias"]
        .iter()
        .any(|suffix| name.ends_with(suffix))
}

/// The order of a forward pass: embedding, layers by number, output.
fn order(name: &str) -> (u32, u32, String) {
    let layer = name
        .strip_prefix("blk.")
        .and_then(|rest| rest.split_once('.'))
        .and_then(|(layer, _)| layer.parse().ok());
    let stage = match (name, layer) {
        ("token_embd.weight", _) => 0,
        (_, Some(_)) => 1,
        ("output_norm.weight", _) => 2,
        _ => 3,
    };
    (stage, layer.unwrap_or(0), name.to_owned())
}
