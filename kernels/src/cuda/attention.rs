//! Rotation and cache of the CUDA device.

use std::fmt;
use std::sync::{Mutex, PoisonError};

use super::device::{Cuda, count};
use super::driver::Driver;
use super::params::{Angles, Clear, Heads, RopeStoreParams, lists};
use super::residual::Rotation;
use super::step::{Cache, Step};
use crate::device::{CacheShape, DeviceError, RopeParams, RopeStore};

/// Frequencies, and the rotations of the step that was last asked for.
pub struct Rope<D: Driver> {
    inv_freq: D::Memory,
    pairs: usize,
    factor: f32,
    turned: Mutex<Turned<D>>,
}

/// Rotations `[tokens, pairs]` of step `number`.
struct Turned<D: Driver> {
    number: u64,
    memory: Option<D::Memory>,
    bytes: usize,
}

impl<D: Driver> Rope<D> {
    pub(super) fn new(driver: &D, params: &RopeParams) -> Result<Self, DeviceError> {
        let bytes: Vec<u8> = params.inv_freq.iter().flat_map(|x| x.to_le_bytes()).collect();
        let inv_freq = driver.reserve("rotation angles", bytes.len())?;
        driver.write(&inv_freq, 0, &bytes)?;
        let turned = Mutex::new(Turned { number: 0, memory: None, bytes: 0 });
        let (pairs, factor) = (params.inv_freq.len(), params.attention_factor);
        Ok(Self { inv_freq, pairs, factor, turned })
    }

    /// The rotations of this step, computed where the last call was for another one.
    fn turn(&self, device: &Cuda<D>, step: &Step<D>) -> Result<u64, DeviceError> {
        let driver = device.driver();
        let mut turned = self.turned.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes = 8 * step.num_tokens * self.pairs;
        if turned.bytes < bytes || turned.memory.is_none() {
            turned.memory = Some(driver.reserve("rotation angles", bytes)?);
            (turned.bytes, turned.number) = (bytes, 0);
        }
        let out = turned.memory.as_ref().map_or(0, |memory| driver.address(memory));
        if turned.number != step.number {
            let params = Angles {
                step: step.params(driver),
                inv_freq: driver.address(&self.inv_freq),
                out,
                pairs: count(self.pairs),
                factor: self.factor,
            };
            device.launch("angles", [count(step.num_tokens), 1, 1], 128, &params)?;
            turned.number = step.number;
        }
        Ok(out)
    }
}

impl<D: Driver> Cuda<D> {
    /// What the kernels cannot do.
    pub(super) fn check_cache(shape: &CacheShape) -> Result<(), DeviceError> {
        if shape.head_dim > HEAD_DIM_MAX {
            return Err(DeviceError::Failed(format!(
                "heads of {} values: the kernels take {HEAD_DIM_MAX} at most",
                shape.head_dim
            )));
        }
        let rows = shape.num_blocks as u64 * (shape.num_kv_heads * shape.block_size) as u64;
        if rows >= u64::from(u32::MAX) {
            return Err(DeviceError::Failed(format!(
                "a cache of {rows} heads of positions in a layer: the kernels count {} at most",
                u32::MAX - 1
            )));
        }
        Ok(())
    }

    pub(super) fn try_rope_store(
        &self,
        step: &Step<D>,
        args: &RopeStore<'_, Self>,
    ) -> Result<(), DeviceError> {
        let driver = self.driver();
        let shape = args.cache.shape;
        let num_heads = args.q.cols / shape.head_dim;
        assert_eq!(args.q.cols, num_heads * shape.head_dim, "width of q");
        let kv_width = shape.num_kv_heads * shape.head_dim;
        assert_eq!((args.k.cols, args.v.cols), (kv_width, kv_width), "width of k and v");
        assert!(2 * args.rope.pairs <= shape.head_dim, "rotated values of a head");
        for rows in [args.q.rows, args.k.rows, args.v.rows] {
            assert!(step.num_tokens <= rows, "{} tokens of {rows} rows", step.num_tokens);
        }
        if step.num_tokens == 0 {
            return Ok(());
        }
        let params = RopeStoreParams {
            step: step.params(driver),
            cache: args.cache.layer(driver, args.layer),
            heads: Heads {
                q: args.q.address(driver),
                k: args.k.address(driver),
                v: args.v.address(driver),
                q_norm: args.q_norm.map_or(0, |norm| norm.address(driver, shape.head_dim)),
                k_norm: args.k_norm.map_or(0, |norm| norm.address(driver, shape.head_dim)),
                angles: args.rope.turn(self, step)?,
                num_heads: count(num_heads),
                pairs: count(args.rope.pairs),
                eps: args.eps,
                unused: 0,
            },
        };
        let blocks = (num_heads + 2 * shape.num_kv_heads).div_ceil(ROPE_HEADS);
        let grid = [count(step.num_tokens), count(blocks), 1];
        if step.graphs.is_recording() {
            return self.wait_to_turn(Rotation { grid, params });
        }
        self.launch("rope_store", grid, 128, &params)
    }

    pub(super) fn try_clear(&self, cache: &Cache<D>, blocks: &[u32]) -> Result<(), DeviceError> {
        let shape = &cache.shape;
        assert!(blocks.iter().all(|block| (*block as usize) < shape.num_blocks), "block to clear");
        let num_blocks = shape.num_blocks as u64;
        for (memory, bytes) in &cache.planes {
            let (plane, bytes) = (self.driver().address(memory), *bytes as u64);
            for (len, blocks) in lists(blocks) {
                let params = Clear { plane, bytes, num_blocks, blocks };
                self.launch("clear_blocks", [len, count(shape.num_layers), 1], 256, &params)?;
            }
        }
        Ok(())
    }
}

/// Of `attention.cu` and `rope_store.cu`.
const HEAD_DIM_MAX: usize = 256;
/// Heads of a block of `rope_store.cu`.
const ROPE_HEADS: usize = 16;

impl<D: Driver> fmt::Debug for Rope<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Rope({} pairs)", self.pairs)
    }
}
