//! From the bytes of a package to weights on a device: every tensor checked, none missing, none left
//! over, no readable copy left behind.

use std::collections::BTreeMap;

use chrysalis_kernels::device::{Device, DeviceError, Upload};
use chrysalis_kernels::dtype::Dtype;
use chrysalis_protocol::package::TensorRecord;
use zeroize::{Zeroize, Zeroizing};

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
    /// Bytes came out of order, or for a tensor that does not exist.
    #[error("bytes at {found} of tensor {tensor} came where {expected} was next")]
    Order {
        /// Index of the tensor in the package.
        tensor: usize,
        /// Offset that was next; nothing is next in a tensor that is not being read.
        expected: u64,
        /// Offset that came.
        found: u64,
    },
    /// More bytes than the shape of the tensor has, or fewer.
    #[error("tensor {name} has {expected} bytes and was given {found}")]
    Length {
        /// Its name.
        name: String,
        /// Bytes of its shape.
        expected: u64,
        /// Bytes that came.
        found: u64,
    },
    /// The device refused a tensor.
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

/// Takes the tensors of a package in order and places them on a device.
///
/// Bytes of a matrix go straight to the device; those of a vector stay in a private buffer until
/// they are whole, and are wiped then.
#[derive(Debug)]
pub struct WeightLoader<'a, D: Device> {
    device: &'a D,
    config: &'a ModelConfig,
    tensors: Vec<Tensor>,
    current: Option<Current<D>>,
    next: usize,
    loaded: Loaded<D>,
}

/// A tensor that was checked against the table.
#[derive(Debug)]
struct Tensor {
    name: String,
    dtype: Dtype,
    dims: Vec<u32>,
    bytes: u64,
}

/// The tensor whose bytes are coming.
struct Current<D: Device> {
    received: u64,
    target: Target<D>,
}

enum Target<D: Device> {
    Matrix(D::Upload),
    Vector(Zeroizing<Vec<u8>>),
}

impl<D: Device> std::fmt::Debug for Current<D> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Current").field("received", &self.received).finish_non_exhaustive()
    }
}

#[derive(Debug)]
struct Loaded<D: Device> {
    matrices: BTreeMap<String, D::Matrix>,
    vectors: BTreeMap<String, D::Vector>,
}

impl<'a, D: Device> WeightLoader<'a, D> {
    /// Checks that `tensors` are exactly those of `config`, each of its shape and of a storage type
    /// that fits.
    ///
    /// # Errors
    /// [`WeightError`] names the first tensor that is missing, left over, doubled, or of another
    /// shape or type.
    pub fn new(
        device: &'a D,
        config: &'a ModelConfig,
        tensors: &[TensorSpec<'_>],
    ) -> Result<Self, WeightError> {
        let mut expected = expected_tensors(config);
        let tensors = tensors
            .iter()
            .map(|tensor| Tensor::check(tensor, &mut expected, config))
            .collect::<Result<Vec<_>, _>>()?;
        if let Some((name, _)) = expected.pop_first() {
            return Err(WeightError::Missing { name });
        }
        Ok(Self {
            device,
            config,
            tensors,
            current: None,
            next: 0,
            loaded: Loaded { matrices: BTreeMap::new(), vectors: BTreeMap::new() },
        })
    }

    /// Takes the next bytes: tensors in the order of the list given to [`Self::new`], each from its
    /// first byte to its last, in pieces of any length.
    ///
    /// # Errors
    /// [`WeightError::Order`], [`WeightError::Length`], [`WeightError::Device`].
    pub fn write(&mut self, tensor: usize, offset: u64, bytes: &[u8]) -> Result<(), WeightError> {
        let order = |expected| WeightError::Order { tensor, expected, found: offset };
        if tensor != self.next {
            return Err(order(0));
        }
        let Some(spec) = self.tensors.get(tensor) else {
            return Err(order(0));
        };
        let mut current = match self.current.take() {
            Some(current) => current,
            None => Current::begin(self.device, spec)?,
        };
        if offset != current.received {
            return Err(order(current.received));
        }
        current.write(spec, bytes)?;
        if current.received < spec.bytes {
            self.current = Some(current);
        } else {
            current.finish(self.device, spec, &mut self.loaded)?;
            self.next += 1;
        }
        Ok(())
    }

    /// Ends the load.
    ///
    /// # Errors
    /// [`WeightError::Length`] names the first tensor whose bytes did not all come.
    pub fn finish(mut self) -> Result<Weights<D>, WeightError> {
        if let Some(spec) = self.tensors.get(self.next) {
            return Err(WeightError::Length {
                name: spec.name.clone(),
                expected: spec.bytes,
                found: self.current.map_or(0, |current| current.received),
            });
        }
        Layout::from_supply(self.config, &mut self.loaded)
    }
}

impl Tensor {
    fn check(
        spec: &TensorSpec<'_>,
        expected: &mut BTreeMap<String, Vec<u32>>,
        config: &ModelConfig,
    ) -> Result<Self, WeightError> {
        let name = || spec.name.to_owned();
        let Some(dims) = expected.remove(spec.name) else {
            let known = expected_tensors(config).contains_key(spec.name);
            return Err(match known {
                true => WeightError::Twice { name: name() },
                false => WeightError::LeftOver { name: name() },
            });
        };
        if dims != spec.dims {
            return Err(WeightError::Shape {
                name: name(),
                expected: dims,
                found: spec.dims.to_vec(),
            });
        }
        let wrong = |expected| WeightError::Dtype { name: name(), expected, found: spec.dtype };
        let dtype = Dtype::from_code(spec.dtype).ok_or_else(|| wrong("a known one"))?;
        let (rows, cols) = match dims[..] {
            [rows, cols] => (rows as usize, cols as usize),
            _ if dtype != Dtype::F32 => return Err(wrong("F32, as all vectors")),
            _ => (1, dims.iter().map(|&n| n as usize).product()),
        };
        let row_bytes = dtype.row_bytes(cols).ok_or_else(|| wrong("one whose groups fit a row"))?;
        Ok(Self { name: name(), dtype, bytes: (rows * row_bytes) as u64, dims })
    }

    fn device_error(&self, error: DeviceError) -> WeightError {
        WeightError::Device { name: self.name.clone(), error }
    }
}

impl<D: Device> Current<D> {
    fn begin(device: &D, spec: &Tensor) -> Result<Self, WeightError> {
        let target = match spec.dims[..] {
            [rows, cols] => Target::Matrix(
                device
                    .begin_matrix(spec.dtype, rows as usize, cols as usize)
                    .map_err(|error| spec.device_error(error))?,
            ),
            // At its full length at once: a vector that grows leaves copies behind.
            _ => Target::Vector(Zeroizing::new(Vec::with_capacity(spec.bytes as usize))),
        };
        Ok(Self { received: 0, target })
    }

    fn write(&mut self, spec: &Tensor, bytes: &[u8]) -> Result<(), WeightError> {
        let found = self.received + bytes.len() as u64;
        if found > spec.bytes {
            return Err(WeightError::Length {
                name: spec.name.clone(),
                expected: spec.bytes,
                found,
            });
        }
        self.received = found;
        match &mut self.target {
            Target::Matrix(upload) => upload.write(bytes).map_err(|error| spec.device_error(error)),
            Target::Vector(staging) => {
                staging.extend_from_slice(bytes);
                Ok(())
            }
        }
    }

    fn finish(self, device: &D, spec: &Tensor, loaded: &mut Loaded<D>) -> Result<(), WeightError> {
        match self.target {
            Target::Matrix(upload) => {
                let matrix = upload.finish().map_err(|error| spec.device_error(error))?;
                loaded.matrices.insert(spec.name.clone(), matrix);
            }
            Target::Vector(staging) => {
                let mut values: Vec<f32> = staging
                    .as_chunks::<4>()
                    .0
                    .iter()
                    .map(|&bytes| f32::from_le_bytes(bytes))
                    .collect();
                let vector = device.vector(&values);
                values.zeroize();
                loaded
                    .vectors
                    .insert(spec.name.clone(), vector.map_err(|error| spec.device_error(error))?);
            }
        }
        Ok(())
    }
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
    fn bytes_are_taken_in_order_and_to_the_last() {
        // Tensor 0 is a bias of 16 values, tensor 1 a matrix of 16 x 32.
        let (config, tensors) = full();
        let begin = || loader(&config, &tensors).unwrap();
        let mut whole = begin();
        whole.write(0, 0, &[0; 63]).unwrap();
        whole.write(0, 63, &[0]).unwrap();
        whole.write(1, 0, &[0; 2000]).unwrap();
        assert!(matches!(
            whole.finish().unwrap_err(),
            WeightError::Length { name, expected: 2048, found: 2000 } if name == "blk.0.attn_k.weight"
        ));
        let wrong: [&[(usize, u64, usize)]; 6] = [
            &[(1, 0, 4)],
            &[(0, 4, 4)],
            &[(0, 0, 4), (0, 0, 4)],
            &[(0, 0, 65)],
            &[(0, 0, 64), (0, 64, 1)],
            &[(0, 0, 4), (1, 0, 4)],
        ];
        for pieces in wrong {
            let mut loader = begin();
            let (&(tensor, offset, len), before) = pieces.split_last().unwrap();
            for &(tensor, offset, len) in before {
                loader.write(tensor, offset, &vec![0; len]).unwrap();
            }
            assert!(loader.write(tensor, offset, &vec![0; len]).is_err(), "{pieces:?}");
        }
    }
}
