//! A step and the cache as they lie on the device.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use zeroize::{Zeroize, Zeroizing};

use super::driver::Driver;
use super::graphs::{Bucket, Graphs, bucket_of};
use super::params::{CacheLayer, StepParams};
use super::sampling::Drawn;
use crate::batch::Batch;
use crate::device::{CACHE_GROUP, CacheDtype, CacheShape, DeviceError, Rows};

/// The tokens, positions and tables of a step, one copy; what launches depend on is kept on the host.
///
/// In words: `[num_tokens, num_logit_rows, 0, 0]`, then tokens, positions, sequences, prefix sums of tables, rows of logits, the
/// tables, and last what is to be chosen. A step of decode size is laid out for as many tokens as its bucket has, so that the arrays of all steps
/// of a bucket lie at the same place, where the bucket's graph reads them. What is behind the batch's own is zero.
pub struct Step<D: Driver> {
    memory: D::Memory,
    /// Bytes that fit.
    capacity: usize,
    /// What is copied.
    bytes: Zeroizing<Vec<u8>>,
    /// Where each array begins, in words.
    starts: Starts,
    /// Which step this is, among all of all devices.
    pub(super) number: u64,
    /// Tokens that operations are started for: the batch's, or as many as the bucket has while a graph is made.
    pub(super) num_tokens: usize,
    /// The same of rows of logits.
    pub(super) num_logit_rows: usize,
    /// Of each token.
    pub(super) positions: Vec<u32>,
    /// Tokens of each sequence, which come one after the other.
    pub(super) lengths: Vec<usize>,
    /// The last position that operations are started for, the positions' own or that of the bucket.
    reach: u32,
    /// Where the step is of decode size.
    pub(super) bucket: Option<Bucket>,
    pub(super) graphs: Graphs<D>,
    /// What is chosen from its logits.
    pub(super) drawn: Drawn,
}

/// Where each array begins, in words.
#[derive(Clone, Copy, Debug, Default)]
struct Starts {
    tokens: usize,
    positions: usize,
    sequences: usize,
    cu_blocks: usize,
    logit_rows: usize,
    block_tables: usize,
}

impl Starts {
    /// Of a step laid out for so many tokens.
    fn of(tokens: usize) -> Self {
        let positions = HEADER + tokens;
        let sequences = positions + tokens;
        let cu_blocks = sequences + tokens;
        let logit_rows = cu_blocks + tokens + 1;
        let block_tables = logit_rows + tokens;
        Self { tokens: HEADER, positions, sequences, cu_blocks, logit_rows, block_tables }
    }
}

impl<D: Driver> Step<D> {
    /// Of at most `max_tokens` tokens and, together, tables of `max_blocks`; longer ones move to larger memory.
    pub(super) fn new(
        driver: &D,
        max_tokens: usize,
        max_blocks: usize,
    ) -> Result<Self, DeviceError> {
        let blocks = max_blocks.max(8 * max_tokens + 64);
        let arrays = 4 * (Starts::of(bucket_of(max_tokens)).block_tables + blocks);
        let capacity = arrays + Drawn::room(max_tokens);
        let memory = driver.reserve("the tokens of a step", capacity)?;
        Ok(Self {
            memory,
            capacity,
            bytes: Zeroizing::new(Vec::with_capacity(capacity)),
            starts: Starts::default(),
            number: 0,
            num_tokens: 0,
            num_logit_rows: 0,
            positions: Vec::with_capacity(max_tokens),
            lengths: Vec::new(),
            reach: 0,
            bucket: None,
            graphs: Graphs::default(),
            drawn: Drawn::default(),
        })
    }

    /// Lays the batch out; [`Self::send`] copies it.
    pub(super) fn set(&mut self, batch: &Batch) {
        let tokens = batch.num_tokens();
        self.number = NUMBER.fetch_add(1, Ordering::Relaxed);
        (self.num_tokens, self.num_logit_rows) = (tokens, batch.logit_rows.len());
        self.positions.clone_from(&batch.positions);
        self.lengths.clear();
        self.lengths.extend((0..batch.num_sequences()).map(|s| batch.rows(s).len()));
        self.reach = batch.positions.iter().copied().max().unwrap_or(0);
        self.bucket = Bucket::of(batch, self.reach);
        let room = self.bucket.map_or(tokens, |bucket| bucket.tokens);
        let starts = Starts::of(room);
        self.starts = starts;
        let arrays = 4 * (starts.block_tables + batch.block_tables.len());
        self.drawn = Drawn::of(&batch.draws, arrays);
        if self.bytes.capacity() < self.drawn.end() {
            self.bytes = Zeroizing::new(Vec::with_capacity(self.drawn.end()));
        }
        self.bytes.clear();
        self.bytes.resize(arrays, 0);
        let words = self.bytes.as_chunks_mut::<4>().0;
        let mut put = |start: usize, numbers: &[u32]| {
            for (word, number) in words[start..].iter_mut().zip(numbers) {
                *word = number.to_le_bytes();
            }
        };
        put(0, &[tokens as u32, batch.logit_rows.len() as u32]);
        put(starts.tokens, &batch.tokens);
        put(starts.positions, &batch.positions);
        put(starts.cu_blocks, &batch.cu_blocks);
        put(starts.logit_rows, &batch.logit_rows);
        put(starts.block_tables, &batch.block_tables);
        for s in 0..batch.num_sequences() {
            for row in batch.rows(s) {
                put(starts.sequences + row, &[s as u32]);
            }
        }
        self.drawn.lay_out(&batch.draws, &mut self.bytes);
    }

    /// The one copy.
    pub(super) fn send(&mut self, driver: &D) -> Result<(), DeviceError> {
        if self.bytes.len() > self.capacity {
            self.capacity = self.bytes.len().next_power_of_two();
            self.memory = driver.reserve("the tokens of a step", self.capacity)?;
        }
        driver.write(&self.memory, 0, &self.bytes)
    }

    /// From here on operations are started for a whole bucket of so many rows.
    pub(super) fn stretch(&mut self, rows: Rows, bucket: Bucket) {
        (self.num_tokens, self.num_logit_rows) = (rows.tokens, rows.logits);
        self.reach = bucket.reach;
    }

    /// The most spans of `span` positions, counted from zero, that a token sees of which operations are started.
    pub(super) fn max_spans(&self, span: usize, window: Option<usize>) -> usize {
        let all = (self.reach as usize + 1).div_ceil(span);
        // A window that begins within a span ends in one more.
        window.map_or(all, |window| all.min(window.saturating_sub(1).div_ceil(span) + 1))
    }

    pub(super) fn params(&self, driver: &D) -> StepParams {
        let at = |start: usize| driver.address(&self.memory) + 4 * start as u64;
        StepParams {
            num_tokens: at(0),
            tokens: at(self.starts.tokens),
            positions: at(self.starts.positions),
            sequences: at(self.starts.sequences),
            cu_blocks: at(self.starts.cu_blocks),
            block_tables: at(self.starts.block_tables),
        }
    }

    pub(super) fn address(&self, driver: &D) -> u64 {
        driver.address(&self.memory)
    }

    /// Waits, and reads what a kernel left in it.
    pub(super) fn read(&self, driver: &D, at: usize, out: &mut [u8]) -> Result<(), DeviceError> {
        driver.read(&self.memory, at, out)
    }

    pub(super) fn logit_rows(&self, driver: &D) -> u64 {
        driver.address(&self.memory) + 4 * self.starts.logit_rows as u64
    }
}

impl<D: Driver> Drop for Step<D> {
    fn drop(&mut self) {
        self.positions.zeroize();
        self.lengths.zeroize();
    }
}

static NUMBER: AtomicU64 = AtomicU64::new(1);
/// Words before the arrays.
const HEADER: usize = 4;

/// K and V of all layers: values `[layer][block][kv_head][slot][head_dim]`, and scales of bytes.
pub struct Cache<D: Driver> {
    pub(super) shape: CacheShape,
    /// K, V, and where there are some, their scales: memory, and bytes of a block.
    pub(super) planes: Vec<(D::Memory, usize)>,
}

impl<D: Driver> Cache<D> {
    pub(super) fn new(driver: &D, shape: CacheShape) -> Result<Self, DeviceError> {
        let (rows, groups) =
            (shape.block_size * shape.num_kv_heads, shape.head_dim.div_ceil(CACHE_GROUP));
        let blocks: &[usize] = match shape.dtype {
            CacheDtype::F32 => &[4 * rows * shape.head_dim; 2],
            CacheDtype::F16 | CacheDtype::Bf16 => &[2 * rows * shape.head_dim; 2],
            CacheDtype::I8 | CacheDtype::F8 => {
                let (values, scales) = (rows * shape.head_dim, 4 * rows * groups);
                &[values, values, scales, scales]
            }
        };
        let planes = blocks.iter().map(|bytes| {
            let all = shape.num_layers * shape.num_blocks * bytes;
            let memory = driver.reserve("KV cache", all)?;
            driver.zero(&memory, all)?;
            Ok((memory, *bytes))
        });
        Ok(Self { shape, planes: planes.collect::<Result<_, DeviceError>>()? })
    }

    pub(super) fn layer(&self, driver: &D, layer: usize) -> CacheLayer {
        let shape = &self.shape;
        assert!(layer < shape.num_layers, "layer {layer} of {}", shape.num_layers);
        let address = |at: usize| {
            self.planes.get(at).map_or(0, |(memory, bytes)| {
                driver.address(memory) + (layer * shape.num_blocks * bytes) as u64
            })
        };
        CacheLayer {
            k: address(0),
            v: address(1),
            k_scales: address(2),
            v_scales: address(3),
            block_size: shape.block_size as u32,
            num_kv_heads: shape.num_kv_heads as u32,
            head_dim: shape.head_dim as u32,
            kind: match shape.dtype {
                CacheDtype::F32 => 0,
                CacheDtype::F16 => 1,
                CacheDtype::I8 => 2,
                CacheDtype::Bf16 => 3,
                CacheDtype::F8 => 4,
            },
        }
    }
}

impl<D: Driver> fmt::Debug for Step<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Step({} tokens)", self.num_tokens)
    }
}

impl<D: Driver> fmt::Debug for Cache<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Cache({:?})", self.shape)
    }
}
