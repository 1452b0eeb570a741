//! What a decoder asks of a compute device: memory, uploads, and the operations with their shapes.
//!
//! The trait is shaped for a queue (a CUDA stream, a graph): an operation is enqueued, returns
//! nothing and asks the device nothing; only [`Device::sample`],
//! [`Device::download`] and [`Device::finish`] wait.
//! Activations are `[rows, cols]`, row-major; what a [`Device::Buffer`] holds inside is the
//! device's own business (f32 on the CPU).
//!
//! *Batch invariance*: every operation computes each row from that row alone, with reductions whose
//! order depends on the shape of the model only: not on the number of rows, not on the neighbours,
//! not on the number of threads. A token's numbers are therefore bit for bit the same in any batch.

use crate::batch::Batch;
use crate::dtype::Dtype;

/// Why a device could not do what it was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DeviceError {
    /// Memory could not be reserved.
    #[error("the device has no room for {bytes} bytes ({what}){}", of_what_is_left(*.left))]
    OutOfMemory {
        /// What the memory was for.
        what: &'static str,
        /// Bytes asked for.
        bytes: usize,
        /// Bytes that are left, and of how many, where memory is planned.
        left: Option<(usize, usize)>,
    },
    /// A matrix whose columns do not divide into the groups of its dtype.
    #[error("a {dtype:?} matrix of {rows} x {cols} does not divide into groups of {group}")]
    Shape {
        /// Storage type asked for.
        dtype: Dtype,
        /// Rows asked for.
        rows: usize,
        /// Columns asked for.
        cols: usize,
        /// Values in a group of this dtype.
        group: usize,
    },
    /// An upload got more or fewer bytes than its shape has.
    #[error("upload of {expected} bytes was given {found}")]
    UploadLength {
        /// Bytes of the whole matrix.
        expected: usize,
        /// Bytes given.
        found: usize,
    },
    /// Bytes of an upload came twice.
    #[error("byte {offset} of an upload came twice")]
    UploadTwice {
        /// The first of them.
        offset: usize,
    },
    /// A KV cache of a type that this device's attention does not read.
    #[error("the {device} device has no KV cache of {dtype:?}")]
    CacheDtype {
        /// The device.
        device: &'static str,
        /// Type asked for.
        dtype: CacheDtype,
    },
    /// The device itself failed (driver, lost card).
    #[error("device failure: {0}")]
    Failed(String),
}

fn of_what_is_left(left: Option<(usize, usize)>) -> String {
    left.map_or_else(String::new, |(left, all)| format!(": {left} of {all} bytes are left"))
}

/// Rows of a step that its operations are given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rows {
    /// Tokens.
    pub tokens: usize,
    /// Tokens whose logits are wanted.
    pub logits: usize,
}

/// Element type of the paged KV cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CacheDtype {
    /// Exact; twice the memory. For comparison with an original implementation.
    F32,
    /// The default.
    F16,
    /// A signed byte a value, and an f32 scale for 32 neighbours of a head of a position: 9/16 of f16's bytes, each value
    /// within 1/254 of its group's largest.
    I8,
    /// f16's bytes, f32's range, eight bits of mantissa.
    Bf16,
    /// E4M3, eight bits of floating point, and an f32 scale for 32 neighbours as [`CacheDtype::I8`] has it: as many bytes,
    /// each value within 1/16 of itself, down to 2^-15 of its group's largest.
    F8,
}

impl CacheDtype {
    /// Bytes that a head of one position takes in K, and again in V.
    pub fn head_bytes(self, head_dim: usize) -> usize {
        match self {
            Self::F32 => 4 * head_dim,
            Self::F16 | Self::Bf16 => 2 * head_dim,
            Self::I8 | Self::F8 => head_dim + size_of::<f32>() * head_dim.div_ceil(CACHE_GROUP),
        }
    }
}

/// Values of a head of K or V that share a scale in [`CacheDtype::I8`] and [`CacheDtype::F8`].
pub(crate) const CACHE_GROUP: usize = 32;

/// Shape of the paged KV cache: for every layer `[num_blocks, block_size, num_kv_heads, head_dim]`, K and V.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheShape {
    /// Layers of the decoder.
    pub num_layers: usize,
    /// Blocks in the pool, shared by all sequences.
    pub num_blocks: usize,
    /// Token positions in a block.
    pub block_size: usize,
    /// Heads of K and V.
    pub num_kv_heads: usize,
    /// Values in a head.
    pub head_dim: usize,
    /// Element type.
    pub dtype: CacheDtype,
}

/// Non-linearity of the gated MLP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `x * sigmoid(x)` (Llama, Qwen).
    Silu,
    /// Tanh approximation of GELU (Gemma).
    GeluTanh,
    /// Exact GELU by erf.
    GeluErf,
}

/// Rotary embedding of one kind of layer. Pair `i` is `(x[i], x[i + rope_dim / 2])` (half-split).
#[derive(Clone, Debug, PartialEq)]
pub struct RopeParams {
    /// Angle per position of each pair, `[rope_dim / 2]`, scaling (linear, llama3, yarn) applied.
    pub inv_freq: Vec<f32>,
    /// Factor on cos and sin (yarn's attention factor, else 1).
    pub attention_factor: f32,
    /// Positions that will be asked for.
    pub max_positions: usize,
}

/// Rows that an operation takes, and what becomes of each on its way there, so that a norm or a gate
/// needs no pass over the activations of its own.
#[derive(Debug)]
pub enum Input<'a, D: Device> {
    /// As they are.
    Rows(&'a D::Buffer),
    /// `x / sqrt(mean(x²) + eps) * weight`.
    Normed {
        /// `[rows, cols]`.
        x: &'a D::Buffer,
        /// `[cols]`.
        weight: &'a D::Vector,
        /// Epsilon of the norm.
        eps: f32,
    },
    /// `activation(gate) * up`. What these rows of both buffers hold afterwards is not defined: a device may never write them
    /// where nothing else was asked for in between.
    Gated {
        /// The non-linearity.
        activation: Activation,
        /// `[rows, cols]`.
        gate: &'a D::Buffer,
        /// `[rows, cols]`.
        up: &'a D::Buffer,
    },
}

impl<D: Device> Clone for Input<'_, D> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<D: Device> Copy for Input<'_, D> {}

/// One output of [`Device::linear`]: `out = x · weightᵀ + bias`.
#[derive(Debug)]
pub struct Linear<'a, D: Device> {
    /// `[out_features, in_features]`.
    pub weight: &'a D::Matrix,
    /// `[out_features]`.
    pub bias: Option<&'a D::Vector>,
    /// `[rows, out_features]`.
    pub out: &'a mut D::Buffer,
}

/// Arguments of [`Device::rope_store`].
#[derive(Debug)]
pub struct RopeStore<'a, D: Device> {
    /// Index into the cache.
    pub layer: usize,
    /// `[tokens, num_heads * head_dim]`, normalised and rotated in place, for [`Device::attention`]: once that has taken them, q and k hold
    /// anything.
    pub q: &'a mut D::Buffer,
    /// `[tokens, num_kv_heads * head_dim]`, normalised and rotated in place.
    pub k: &'a mut D::Buffer,
    /// `[tokens, num_kv_heads * head_dim]`, stored as it is.
    pub v: &'a D::Buffer,
    /// RMSNorm of each q head before rotation, `[head_dim]` (Qwen3, Gemma 3).
    pub q_norm: Option<&'a D::Vector>,
    /// RMSNorm of each k head before rotation, `[head_dim]`.
    pub k_norm: Option<&'a D::Vector>,
    /// Epsilon of both norms.
    pub eps: f32,
    /// Angles of this layer.
    pub rope: &'a D::Rope,
    /// K and V go here, at the slot of each token.
    pub cache: &'a mut D::Cache,
}

/// Arguments of [`Device::attention`].
#[derive(Debug)]
pub struct Attention<'a, D: Device> {
    /// Index into the cache.
    pub layer: usize,
    /// `[tokens, num_heads * head_dim]`, once: it may hold anything afterwards, and so may the k that was turned with it.
    pub q: &'a D::Buffer,
    /// K and V of every position up to and including each token's own.
    pub cache: &'a D::Cache,
    /// Factor on `q · k`.
    pub scale: f32,
    /// `cap * tanh(score / cap)` where set.
    pub softcap: Option<f32>,
    /// A token sees itself and the `window - 1` positions before it, where set.
    pub window: Option<usize>,
    /// `[tokens, num_heads * head_dim]`. Where [`Device::linear`] takes all of these rows as they are, and nothing else was asked for
    /// in between, they may hold anything afterwards.
    pub out: &'a mut D::Buffer,
}

/// What went between host and device, counted from the device's beginning.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Crossings {
    /// Copies to the device.
    pub copies_in: u64,
    /// Their bytes.
    pub bytes_in: u64,
    /// Copies from the device.
    pub copies_out: u64,
    /// Their bytes.
    pub bytes_out: u64,
    /// Times that the host waited for the device.
    pub waits: u64,
    /// Kernels started one by one.
    pub launches: u64,
    /// Records of steps started.
    pub replays: u64,
    /// Reservations of memory.
    pub reservations: u64,
}

impl Crossings {
    /// What came since `earlier`.
    pub fn since(self, earlier: Self) -> Self {
        Self {
            copies_in: self.copies_in - earlier.copies_in,
            bytes_in: self.bytes_in - earlier.bytes_in,
            copies_out: self.copies_out - earlier.copies_out,
            bytes_out: self.bytes_out - earlier.bytes_out,
            waits: self.waits - earlier.waits,
            launches: self.launches - earlier.launches,
            replays: self.replays - earlier.replays,
            reservations: self.reservations - earlier.reservations,
        }
    }
}

/// A matrix on its way to the device: bytes arrive in pieces of any length, in any order and from
/// any thread, and are repacked for the device's kernels as they come.
pub trait Upload: Send + Sync {
    /// What the upload becomes.
    type Matrix;

    /// Takes bytes of the row-major, ggml-grouped storage (see [`Dtype`]), from `offset` on.
    ///
    /// # Errors
    /// [`DeviceError::UploadLength`] beyond the last byte of the shape, [`DeviceError::UploadTwice`].
    fn write(&self, offset: usize, bytes: &[u8]) -> Result<(), DeviceError>;

    /// Ends the upload.
    ///
    /// # Errors
    /// [`DeviceError::UploadLength`] when bytes are missing.
    fn finish(self) -> Result<Self::Matrix, DeviceError>;
}

/// Memory and operations of one compute device. See the module's page for the rules.
///
/// # Panics
/// Operations assert their shapes: a wrong one is the decoder's mistake, never a peer's input.
pub trait Device: Send + Sync + Sized + 'static {
    /// Activations, `[rows, cols]`.
    type Buffer: Send + std::fmt::Debug;
    /// Weights of a linear layer or an embedding, `[rows, cols]`.
    type Matrix: Send + Sync + std::fmt::Debug;
    /// f32 weights of a norm or a bias.
    type Vector: Send + Sync + std::fmt::Debug;
    /// Rotation angles.
    type Rope: Send + Sync + std::fmt::Debug;
    /// Paged K and V of all layers.
    type Cache: Send + std::fmt::Debug;
    /// The tokens, positions and tables of one step, on the device.
    type Step: Send + std::fmt::Debug;
    /// A matrix on its way.
    type Upload: Upload<Matrix = Self::Matrix>;

    /// Human name: instruction set and threads, or the card.
    fn describe(&self) -> String;

    /// Reserves activations of at most `rows` rows.
    ///
    /// # Errors
    /// [`DeviceError::OutOfMemory`].
    fn buffer(&self, rows: usize, cols: usize) -> Result<Self::Buffer, DeviceError>;

    /// Starts the upload of a weight matrix.
    ///
    /// # Errors
    /// [`DeviceError::OutOfMemory`], [`DeviceError::Shape`].
    fn begin_matrix(
        &self,
        dtype: Dtype,
        rows: usize,
        cols: usize,
    ) -> Result<Self::Upload, DeviceError>;

    /// Uploads the weights of a norm or a bias.
    ///
    /// # Errors
    /// [`DeviceError::OutOfMemory`].
    fn vector(&self, values: &[f32]) -> Result<Self::Vector, DeviceError>;

    /// Prepares the angles of a rotary embedding.
    ///
    /// # Errors
    /// [`DeviceError::OutOfMemory`].
    fn rope(&self, params: &RopeParams) -> Result<Self::Rope, DeviceError>;

    /// Reserves the KV cache, zeroed.
    ///
    /// # Errors
    /// [`DeviceError::OutOfMemory`].
    fn cache(&self, shape: CacheShape) -> Result<Self::Cache, DeviceError>;

    /// Reserves room for steps of at most `max_tokens` tokens.
    ///
    /// # Errors
    /// [`DeviceError::OutOfMemory`].
    fn step(&self, max_tokens: usize) -> Result<Self::Step, DeviceError>;

    /// The one copy in: tokens, positions and block tables of the next step.
    fn set_step(&self, step: &mut Self::Step, batch: &Batch);

    /// Before the operations of a forward pass over this step, which has `rows`. Nothing, when the device has recorded the
    /// same pass and has just enqueued the record: no operation follows. Else the rows to give to the operations, between
    /// `rows` and `room`: what more there is comes to nothing, and lets one record serve steps of several sizes.
    ///
    /// A step passes through the same operations on the same memory every time, from here to [`Device::end`].
    fn begin(&self, step: &mut Self::Step, rows: Rows, room: Rows) -> Option<Rows> {
        debug_assert!(
            rows.tokens <= room.tokens && rows.logits <= room.logits,
            "{rows:?} of {room:?}"
        );
        let _ = step;
        Some(rows)
    }

    /// After them.
    fn end(&self, step: &mut Self::Step) {
        let _ = step;
    }

    /// Runs `enqueue`, whose operations reserve what they need while they work, and do nothing else: what a later step finds
    /// reserved, it cannot be refused. Devices that reserve as they go do not run it.
    ///
    /// # Errors
    /// [`DeviceError::OutOfMemory`], or what else an operation could not be.
    fn plan(&self, enqueue: impl FnOnce()) -> Result<(), DeviceError> {
        let _ = enqueue;
        Ok(())
    }

    /// What went between host and device so far, where they are two.
    fn crossings(&self) -> Option<Crossings> {
        None
    }

    /// `out[t] = table[token[t]] * scale`, for every token of the step.
    fn embed(&self, step: &Self::Step, table: &Self::Matrix, scale: f32, out: &mut Self::Buffer);

    /// Several products that share their input (q, k, v; gate, up), in one pass.
    fn linear(&self, rows: usize, input: Input<'_, Self>, outputs: &mut [Linear<'_, Self>]);

    /// The product with the output matrix, `[rows, vocab]`: as [`Device::linear`], with the finest
    /// activations that the device has, because its error shows in every choice of a token.
    fn logits(
        &self,
        rows: usize,
        input: Input<'_, Self>,
        weight: &Self::Matrix,
        out: &mut Self::Buffer,
    );

    /// Norms of the heads, rotation, and the write of K and V to the cache.
    fn rope_store(&self, step: &Self::Step, args: RopeStore<'_, Self>);

    /// Causal attention of every token of the step over its sequence's cache.
    fn attention(&self, step: &Self::Step, args: Attention<'_, Self>);

    /// `sum += input`.
    fn add(&self, rows: usize, input: Input<'_, Self>, sum: &mut Self::Buffer);

    /// `out[i] = x[batch.logit_rows[i]]`: only these rows go through the output matrix.
    fn select(&self, step: &Self::Step, x: &Self::Buffer, out: &mut Self::Buffer);

    /// `x = cap * tanh(x / cap)`.
    fn softcap(&self, rows: usize, cap: f32, x: &mut Self::Buffer);

    /// Zeroes freed blocks in every layer, before another sequence gets them.
    fn clear_blocks(&self, cache: &mut Self::Cache, blocks: &[u32]);

    /// Waits for everything enqueued and chooses the token of each of the step's draws, as [`crate::sampling`] says: the same
    /// on every device. Nothing where there is none. Once for a step; the logits are afterwards what they were. `out` has a place for each draw.
    ///
    /// # Errors
    /// [`DeviceError::Failed`] when an operation since the last wait failed.
    fn sample(
        &self,
        step: &Self::Step,
        logits: &mut Self::Buffer,
        out: &mut [Option<u32>],
    ) -> Result<(), DeviceError>;

    /// Waits for everything enqueued and copies one row out.
    ///
    /// # Errors
    /// [`DeviceError::Failed`] when an operation since the last wait failed.
    fn download(&self, x: &Self::Buffer, row: usize, out: &mut [f32]) -> Result<(), DeviceError>;

    /// Waits for everything enqueued.
    ///
    /// # Errors
    /// [`DeviceError::Failed`] when an operation since the last wait failed.
    fn finish(&self) -> Result<(), DeviceError>;
}
