//! From the bytes of a package to weights on a device: every tensor checked, none missing, none left
//! over, no readable copy left behind.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use chrysalis_kernels::Arrived;
use chrysalis_kernels::device::{Device, DeviceError, Upload};
use chrysalis_kernels::dtype::Dtype;
use chrysalis_protocol::package::TensorRecord;
use zeroize::Zeroizing;

use crate::config::ModelConfig;
use crate::layout::Supply;
pub use crate::layout::{Layout, expected_tensors};

/// Why the tensors of a package are not the weights of its architecture.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WeightError {
    /// A tensor that the architecture has and the package has not.
    #[error("tensor {name} is missing")]
    Missing {
        /// Its name.
        name: String,
    },
    /// A tensor that the architecture does not have.
    #[error("tensor {name} belongs to no part of the decoder")]
    LeftOver {
        /// Its name.
        name: String,
    },
    /// Two tensors of one name.
    #[error("tensor {name} is there twice")]
    Twice {
        /// Its name.
        name: String,
    },
    /// A tensor of another shape.
    #[error("tensor {name} has the shape {found:?}, not {expected:?}")]
    Shape {
        /// Its name.
        name: String,
        /// Shape of the architecture.
        expected: Vec<u32>,
        /// Shape of the package.
        found: Vec<u32>,
    },
    /// A storage type that does not exist, or not for this tensor.
    #[error("tensor {name} has the storage type {found}, not {expected}")]
    Dtype {
        /// Its name.
        name: String,
        /// What it may be.
        expected: &'static str,
        /// Number of the type in the package.
        found: u16,
    },
    /// Bytes came for a tensor that does not exist.
    #[error("bytes came for tensor {found} of {count}")]
    Index {
        /// Index that came.
        found: usize,
        /// Tensors of the package.
        count: usize,
    },
    /// The device refused a tensor, or the bytes that came were too many, too few or came twice.
    #[error("tensor {name}: {error}")]
    Device {
        /// Its name.
        name: String,
        /// What the device said.
        error: DeviceError,
    },
}

/// What the loader has to know of a tensor before its bytes come.
#[derive(Clone, Copy, Debug)]
pub struct TensorSpec<'a> {
    /// Canonical name.
    pub name: &'a str,
    /// Number of its storage type (see [`Dtype`]).
    pub dtype: u16,
    /// `[rows, cols]` or `[n]`.
    pub dims: &'a [u32],
}

impl<'a> From<&'a TensorRecord> for TensorSpec<'a> {
    fn from(record: &'a TensorRecord) -> Self {
        Self { name: &record.name, dtype: record.dtype, dims: &record.dims }
    }
}

/// Weights of a decoder on device `D`.
pub type Weights<D> = Layout<<D as Device>::Matrix, <D as Device>::Vector>;

/// Takes the tensors of a package, in any order and from any thread, and places them on a device.
///
/// Bytes of a matrix go straight to the device; those of a vector stay in a private buffer until
/// they are whole, and are wiped then.
#[derive(Debug)]
pub struct WeightLoader<'a, D: Device> {
    device: &'a D,
    config: &'a ModelConfig,
    tensors: Vec<Tensor<D>>,
}

/// A tensor that was checked against the table, and where its bytes go.
struct Tensor<D: Device> {
    name: String,
    target: Target<D>,
}

enum Target<D: Device> {
    Matrix(D::Upload),
    Vector(Arrived, Mutex<Zeroizing<Vec<u8>>>),
}

impl<D: Device> std::fmt::Debug for Tensor<D> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tensor").field("name", &self.name).finish_non_exhaustive()
    }
}

struct Loaded<D: Device> {
    matrices: BTreeMap<String, D::Matrix>,
    vectors: BTreeMap<String, D::Vector>,
}

impl<'a, D: Device> WeightLoader<'a, D> {
    /// Checks that `tensors` are exactly those of `config`, each of its shape and of a storage type
    /// that fits, and reserves their memory.
    ///
    /// # Errors
    /// [`WeightError`] names the first tensor that is missing, left over, doubled, of another shape
    /// or type, or that the device has no room for.
    pub fn new(
        device: &'a D,
        config: &'a ModelConfig,
        tensors: &[TensorSpec<'_>],
    ) -> Result<Self, WeightError> {
        let mut expected = expected_tensors(config);
        let dtypes = tensors
            .iter()
            .map(|tensor| check(tensor, &mut expected, config))
            .collect::<Result<Vec<_>, _>>()?;
        if let Some((name, _)) = expected.pop_first() {
            return Err(WeightError::Missing { name });
        }
        let tensors = tensors.iter().zip(dtypes);
        let tensors = tensors.map(|(spec, dtype)| Tensor::begin(device, spec, dtype));
        Ok(Self { device, config, tensors: tensors.collect::<Result<_, _>>()? })
    }

    /// Takes bytes of the tensor at that place of the list given to [`Self::new`], from `offset` on:
    /// each byte once, in pieces of any length.
    ///
    /// # Errors
    /// [`WeightError::Index`], [`WeightError::Device`].
    pub fn write(&self, tensor: usize, offset: u64, bytes: &[u8]) -> Result<(), WeightError> {
        let Some(tensor) = self.tensors.get(tensor) else {
            return Err(WeightError::Index { found: tensor, count: self.tensors.len() });
        };
        let offset = usize::try_from(offset).unwrap_or(usize::MAX);
        let written = match &tensor.target {
            Target::Matrix(upload) => upload.write(offset, bytes),
            Target::Vector(arrived, staging) => arrived.add(offset, bytes.len()).map(|()| {
                let mut staging = staging.lock().unwrap_or_else(PoisonError::into_inner);
                staging[offset..][..bytes.len()].copy_from_slice(bytes);
            }),
        };
        written.map_err(|error| device_error(&tensor.name, error))
    }

    /// Ends the load.
    ///
    /// # Errors
    /// [`WeightError::Device`] names the first tensor whose bytes did not all come.
    pub fn finish(self) -> Result<Weights<D>, WeightError> {
        let mut loaded = Loaded::<D> { matrices: BTreeMap::new(), vectors: BTreeMap::new() };
        for Tensor { name, target } in self.tensors {
            let placed = match target {
                Target::Matrix(upload) => {
                    upload.finish().map(|matrix| drop(loaded.matrices.insert(name.clone(), matrix)))
                }
                Target::Vector(arrived, staging) => arrived
                    .finish()
                    .and_then(|()| vector(self.device, staging))
                    .map(|vector| drop(loaded.vectors.insert(name.clone(), vector))),
            };
            placed.map_err(|error| device_error(&name, error))?;
        }
        Layout::from_supply(self.config, &mut loaded)
    }
}

/// The storage type of a tensor that is expected, with this shape.
fn check(
    spec: &TensorSpec<'_>,
    expected: &mut BTreeMap<String, Vec<u32>>,
    config: &ModelConfig,
) -> Result<Dtype, WeightError> {
    let name = || spec.name.to_owned();
    let Some(dims) = expected.remove(spec.name) else {
        let known = expected_tensors(config).contains_key(spec.name);
        return Err(match known {
            true => WeightError::Twice { name: name() },
            false => WeightError::LeftOver { name: name() },
        });
    };
    if dims != spec.dims {
        let found = spec.dims.to_vec();
        return Err(WeightError::Shape { name: name(), expected: dims, found });
    }
    let wrong = |expected| WeightError::Dtype { name: name(), expected, found: spec.dtype };
    let dtype = Dtype::from_code(spec.dtype).ok_or_else(|| wrong("a known one"))?;
    let [_, cols] = dims[..] else {
        return if dtype == Dtype::F32 { Ok(dtype) } else { Err(wrong("F32, as all vectors")) };
    };
    match dtype.row_bytes(cols as usize) {
        Some(_) => Ok(dtype),
        None => Err(wrong("one whose groups fit a row")),
    }
}

impl<D: Device> Tensor<D> {
    fn begin(device: &D, spec: &TensorSpec<'_>, dtype: Dtype) -> Result<Self, WeightError> {
        let target = match *spec.dims {
            [rows, cols] => Target::Matrix(
                device
                    .begin_matrix(dtype, rows as usize, cols as usize)
                    .map_err(|error| device_error(spec.name, error))?,
            ),
            _ => {
                let bytes = spec.dims.iter().map(|&n| n as usize).product::<usize>() * 4;
                Target::Vector(Arrived::new(bytes), Mutex::new(Zeroizing::new(vec![0; bytes])))
            }
        };
        Ok(Self { name: spec.name.to_owned(), target })
    }
}

fn vector<D: Device>(
    device: &D,
    staging: Mutex<Zeroizing<Vec<u8>>>,
) -> Result<D::Vector, DeviceError> {
    let staging = staging.into_inner().unwrap_or_else(PoisonError::into_inner);
    let words = staging.as_chunks().0.iter();
    let values: Zeroizing<Vec<f32>> =
        Zeroizing::new(words.map(|x| f32::from_le_bytes(*x)).collect());
    device.vector(&values)
}

fn device_error(name: &str, error: DeviceError) -> WeightError {
    WeightError::Device { name: name.to_owned(), error }
}

impl<D: Device> Supply for Loaded<D> {
    type Matrix = D::Matrix;
    type Vector = D::Vector;

    fn matrix(&mut self, name: String, _: usize, _: usize) -> Result<D::Matrix, WeightError> {
        self.matrices.remove(&name).ok_or(WeightError::Missing { name })
    }

    fn vector(&mut self, name: String, _: usize) -> Result<D::Vector, WeightError> {
        self.vectors.remove(&name).ok_or(WeightError::Missing { name })
    }
}

#[cfg(test)]
mod tests {
    use chrysalis_kernels::reference::Reference;

    use super::*;
    use crate::config::tests::tiny;

    /// Every tensor of a model with all options, in f32.
    fn full() -> (ModelConfig, Vec<(String, u16, Vec<u32>)>) {
        let mut a = tiny();
        (a.tied_embeddings, a.qk_norm, a.sandwich_norms) = (false, true, true);
        (a.qkv_bias, a.o_bias, a.mlp_bias) = (true, true, true);
        let config = ModelConfig::try_from(&a).unwrap();
        let tensors =
            expected_tensors(&config).into_iter().map(|(name, dims)| (name, 0, dims)).collect();
        (config, tensors)
    }

    fn loader<'a>(
        config: &'a ModelConfig,
        tensors: &[(String, u16, Vec<u32>)],
    ) -> Result<WeightLoader<'a, Reference>, WeightError> {
        let specs: Vec<TensorSpec<'_>> = tensors
            .iter()
            .map(|(name, dtype, dims)| TensorSpec { name, dtype: *dtype, dims })
            .collect();
        WeightLoader::new(&Reference, config, &specs)
    }

    #[test]
    fn a_model_with_every_option_has_these_tensors() {
        let (_, tensors) = full();
        let first_layer: Vec<&str> =
            tensors.iter().filter_map(|(name, _, _)| name.strip_prefix("blk.0.")).collect();
        assert_eq!(
            first_layer,
            [
                "attn_k.bias",
                "attn_k.weight",
                "attn_k_norm.weight",
                "attn_norm.weight",
                "attn_output.bias",
                "attn_output.weight",
                "attn_q.bias",
                "attn_q.weight",
                "attn_q_norm.weight",
                "attn_v.bias",
                "attn_v.weight",
                "ffn_down.bias",
                "ffn_down.weight",
                "ffn_gate.bias",
                "ffn_gate.weight",
                "ffn_norm.weight",
                "ffn_up.bias",
                "ffn_up.weight",
                "post_attention_norm.weight",
                "post_ffw_norm.weight",
            ]
        );
        assert_eq!(tensors.len(), 2 * first_layer.len() + 3);
    }

    #[test]
    fn tensors_that_are_not_the_models_are_refused_by_name() {
        type Change = fn(&mut Vec<(String, u16, Vec<u32>)>);
        let at = |tensors: &[(String, u16, Vec<u32>)], name: &str| {
            tensors.iter().position(|tensor| tensor.0 == name).unwrap()
        };
        let cases: [(Change, &str); 7] = [
            (|t| drop(t.remove(4)), "tensor blk.0.attn_output.bias is missing"),
            (
                |t| t.push(("blk.2.attn_q.weight".to_owned(), 0, vec![32, 32])),
                "tensor blk.2.attn_q.weight belongs to no part of the decoder",
            ),
            (|t| t.push(t[4].clone()), "tensor blk.0.attn_output.bias is there twice"),
            (
                |t| t[1].2 = vec![32, 16],
                "tensor blk.0.attn_k.weight has the shape [32, 16], not [16, 32]",
            ),
            (
                |t| t[1].1 = 77,
                "tensor blk.0.attn_k.weight has the storage type 77, not a known one",
            ),
            (
                |t| t[1].1 = 12,
                "tensor blk.0.attn_k.weight has the storage type 12, not one whose groups fit a row",
            ),
            (
                |t| t[0].1 = 1,
                "tensor blk.0.attn_k.bias has the storage type 1, not F32, as all vectors",
            ),
        ];
        let (config, tensors) = full();
        assert_eq!(at(&tensors, "blk.0.attn_output.bias"), 4);
        assert!(loader(&config, &tensors).is_ok());
        for (change, refusal) in cases {
            let mut tensors = tensors.clone();
            change(&mut tensors);
            assert_eq!(loader(&config, &tensors).unwrap_err().to_string(), refusal);
        }
    }

    #[test]
    fn every_byte_is_taken_once_in_any_order_and_none_may_be_missing() {
        // Tensor 0 is a bias of 16 values, tensor 1 a matrix of 16 x 32.
        let (config, tensors) = full();
        let begin = || loader(&config, &tensors).unwrap();
        let whole = begin();
        whole.write(1, 48, &[0; 2000]).unwrap();
        whole.write(0, 63, &[0]).unwrap();
        whole.write(0, 0, &[0; 63]).unwrap();
        assert_eq!(
            whole.finish().unwrap_err().to_string(),
            "tensor blk.0.attn_k.weight: upload of 2048 bytes was given 2000"
        );
        type Pieces<'a> = &'a [(usize, u64, usize)];
        let wrong: [(Pieces<'_>, &str); 5] = [
            (&[(0, 0, 4), (0, 3, 1)], "tensor blk.0.attn_k.bias: byte 3 of an upload came twice"),
            (&[(1, 0, 4), (1, 3, 1)], "tensor blk.0.attn_k.weight: byte 3 of an upload came twice"),
            (&[(0, 0, 65)], "tensor blk.0.attn_k.bias: upload of 64 bytes was given 65"),
            (&[(1, 2048, 1)], "tensor blk.0.attn_k.weight: upload of 2048 bytes was given 2049"),
            (&[(tensors.len(), 0, 4)], "bytes came for tensor 43 of 43"),
        ];
        for (pieces, refusal) in wrong {
            let loader = begin();
            let (&(tensor, offset, len), before) = pieces.split_last().unwrap();
            for &(tensor, offset, len) in before {
                loader.write(tensor, offset, &vec![0; len]).unwrap();
            }
            let error = loader.write(tensor, offset, &vec![0; len]).unwrap_err();
            assert_eq!(error.to_string(), refusal, "{pieces:?}");
        }
    }
}
