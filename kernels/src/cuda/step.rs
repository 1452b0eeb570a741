//! A step and the cache as they lie on the device.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use zeroize::{Zeroize, Zeroizing};

use super::driver::Driver;
use super::params::{CacheLayer, StepParams};
use crate::batch::Batch;
use crate::device::{CACHE_GROUP, CacheDtype, CacheShape, DeviceError};

/// The tokens, positions and tables of a step, one copy; what launches depend on is kept on the host.
pub struct Step<D: Driver> {
    memory: D::Memory,
    capacity: usize,
    /// Where each array begins, in words; the last one is `logit_rows`.
    starts: [usize; 7],
    /// Which step this is, among all of all devices.
    pub(super) number: u64,
    pub(super) num_tokens: usize,
    pub(super) num_logit_rows: usize,
    /// Of each token.
    pub(super) positions: Vec<u32>,
}

impl<D: Driver> Step<D> {
    pub(super) fn new(driver: &D, max_tokens: usize) -> Result<Self, DeviceError> {
        // Tables of a few blocks for each token; longer ones move to larger memory.
        let capacity = 4 * (8 * max_tokens + 64);
        let memory = driver.reserve("the tokens of a step", capacity)?;
        let (starts, number, num_tokens, num_logit_rows) = ([0; 7], 0, 0, 0);
        let positions = Vec::with_capacity(max_tokens);
        Ok(Self { memory, capacity, starts, number, num_tokens, num_logit_rows, positions })
    }

    pub(super) fn set(&mut self, driver: &D, batch: &Batch) -> Result<(), DeviceError> {
        let count = [batch.num_tokens() as u32];
        let mut sequences = Vec::with_capacity(batch.num_tokens());
        for s in 0..batch.num_sequences() {
            sequences.extend(batch.rows(s).map(|_| s as u32));
        }
        let arrays: [&[u32]; 7] = [
            &count,
            &batch.tokens,
            &batch.positions,
            &sequences,
            &batch.cu_blocks,
            &batch.block_tables,
            &batch.logit_rows,
        ];
        let words = arrays.iter().map(|array| array.len()).sum::<usize>();
        let mut bytes = Zeroizing::new(Vec::with_capacity(4 * words));
        for (start, array) in self.starts.iter_mut().zip(arrays) {
            *start = bytes.len() / 4;
            bytes.extend(array.iter().flat_map(|word| word.to_le_bytes()));
        }
        if bytes.len() > self.capacity {
            self.capacity = bytes.len().next_power_of_two();
            self.memory = driver.reserve("the tokens of a step", self.capacity)?;
        }
        driver.write(&self.memory, 0, &bytes)?;
        self.number = NUMBER.fetch_add(1, Ordering::Relaxed);
        self.num_tokens = batch.num_tokens();
        self.num_logit_rows = batch.logit_rows.len();
        self.positions.clone_from(&batch.positions);
        Ok(())
    }

    pub(super) fn params(&self, driver: &D) -> StepParams {
        let [num_tokens, tokens, positions, sequences, cu_blocks, block_tables, _] =
            self.starts.map(|start| driver.address(&self.memory) + 4 * start as u64);
        StepParams { num_tokens, tokens, positions, sequences, cu_blocks, block_tables }
    }

    pub(super) fn logit_rows(&self, driver: &D) -> u64 {
        driver.address(&self.memory) + 4 * self.starts[6] as u64
    }
}

impl<D: Driver> Drop for Step<D> {
    fn drop(&mut self) {
        self.positions.zeroize();
    }
}

static NUMBER: AtomicU64 = AtomicU64::new(1);

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
            CacheDtype::F16 => &[2 * rows * shape.head_dim; 2],
            CacheDtype::I8 => {
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
