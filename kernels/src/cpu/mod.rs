//! The fast device of servers: f32 activations, integer dot products for quantised weights, bf16 ones for BF16 and E4M3.
//!
//! Every output element is computed wholly by one thread in an order that depends on the shape of the
//! model alone. Results may differ between instruction sets and widths of activations, never
//! between batches, chunks, tilings or numbers of threads.

mod activations;
mod amx;
mod amx_bf16;
mod attention;
mod avx2;
mod avx512;
mod avx512_bf16;
mod bf16;
mod buffers;
mod cache;
mod choose;
mod f8;
mod float;
mod input;
mod isa;
mod linear;
mod matrix;
mod pool;
mod probe;
mod products;
mod repack;
mod rope;
mod rows;
mod scalar;
mod scales;
mod simd;
mod tile_rows;
mod tiles;
mod upload;

use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::batch::Batch;
use crate::device::{
    Attention, CacheShape, Device, DeviceError, Input, Linear, RopeParams, RopeStore,
};
use crate::dtype::Dtype;
use crate::memory::{self, Aligned, Arena};
use crate::sampling::Chooser;
use activations::Activations;
use attention::{AttentionTile, Shared};
pub use buffers::{Buffer, Step, Vector};
pub use cache::Cache;
use cache::Layer;
use input::Source;
pub use isa::Isa;
use isa::Level;
pub use matrix::Matrix;
use pool::Pool;
pub(crate) use probe::Probe;
pub use rope::Rope;
use tiles::Grid;
pub use upload::Pending;

/// How the device computes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CpuOptions {
    /// Threads that work, the caller's included; all that the process may use, when not given.
    pub threads: Option<usize>,
    /// Instruction set; the best one, when not given.
    pub isa: Option<Isa>,
    /// Precision of activations in products with quantised and BF16 weights.
    pub activation_bits: ActivationBits,
}

/// Bits of an activation in integer dot products, with one scale to a group of 32. In bf16 dot products an activation is
/// the nearest bf16, and with [`Sixteen`](Self::Sixteen) the sum of two.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ActivationBits {
    /// As llama.cpp: relative error of a product about 0.5 %. On a 135M model every 25th greedy token differs from the
    /// float model's.
    Eight,
    /// Eight, and eight more for groups whose values are large against their row, where nearly all of the error is.
    /// The output matrix takes sixteen.
    #[default]
    Adaptive,
    /// As exact as f32 for most purposes.
    Sixteen,
}

/// The device. See the module's page.
pub struct Cpu {
    level: Level,
    pool: Pool,
    bits: ActivationBits,
    /// Weights lie in it.
    arena: Arena,
    /// Operations come one at a time.
    shared: Mutex<Common>,
    workers: Vec<Mutex<Worker>>,
}

/// Memory that operations reuse; wiped on drop.
struct Common {
    activations: Activations,
    /// Inputs of products with float weights that had to be made.
    made: Vec<f32>,
    splits: Vec<usize>,
    /// Records of attention, by span.
    partial: Vec<f32>,
    /// Rows and span of each row of them.
    spans: Vec<(std::ops::Range<usize>, usize)>,
    /// Logits that edits replaced.
    replaced: Vec<f32>,
    /// Tokens drawn.
    chosen: Vec<i32>,
}

impl Drop for Common {
    fn drop(&mut self) {
        zeroize::Zeroize::zeroize(&mut self.partial);
        zeroize::Zeroize::zeroize(&mut self.made);
        zeroize::Zeroize::zeroize(&mut self.replaced);
        zeroize::Zeroize::zeroize(&mut self.chosen);
    }
}

/// Memory of one thread, on cache lines of its own.
#[repr(align(256))]
struct Worker {
    linear: linear::Scratch,
    attention: attention::Scratch,
    input: input::Scratch,
    chooser: Chooser,
}

impl Cpu {
    /// Starts the threads.
    ///
    /// # Errors
    /// [`DeviceError::Failed`] when the CPU lacks the instruction set or threads cannot be started.
    pub fn new(options: CpuOptions) -> Result<Self, DeviceError> {
        let (level, pool) = open(options)?;
        let worker = |_| {
            Ok(Mutex::new(Worker {
                linear: linear::Scratch::new()?,
                attention: attention::Scratch::default(),
                input: input::Scratch::default(),
                chooser: Chooser::default(),
            }))
        };
        let workers = (0..pool.num_threads()).map(worker).collect::<Result<_, DeviceError>>()?;
        let shared = Common {
            activations: Activations::new()?,
            made: Vec::new(),
            splits: Vec::new(),
            partial: Vec::new(),
            spans: Vec::new(),
            replaced: Vec::new(),
            chosen: Vec::new(),
        };
        Ok(Self {
            level,
            pool,
            bits: options.activation_bits,
            arena: Arena::new(),
            shared: Mutex::new(shared),
            workers,
        })
    }

    fn worker(&self, worker: usize) -> MutexGuard<'_, Worker> {
        lock(&self.workers[worker])
    }

    /// Calls `work(t, row, worker)` for each of the first `rows` rows, on several threads where it pays.
    fn each_row(
        &self,
        rows: usize,
        out: &mut Buffer,
        work: &(dyn Fn(usize, &mut [f32], usize) + Sync),
    ) {
        assert!(rows <= out.rows, "{rows} rows of {}", out.rows);
        let width = out.cols;
        let small = rows < 2 || rows * width < SMALL;
        if small {
            for (t, row) in out.data.chunks_exact_mut(width.max(1)).take(rows).enumerate() {
                work(t, row, 0);
            }
            return;
        }
        let mut shared = lock(&self.shared);
        let step = rows.div_ceil(4 * self.pool.num_threads());
        shared.splits.clear();
        shared.splits.extend((0..rows).step_by(step));
        shared.splits.push(rows);
        let grid = Grid::new(&mut out.data, width, &shared.splits, width);
        tiles::for_each(&self.pool, false, &mut [grid], &|_, mut tile, worker| {
            for t in tile.rows.clone() {
                work(t, tile.row(t), worker);
            }
        });
    }
}

impl Device for Cpu {
    type Buffer = Buffer;
    type Matrix = Matrix;
    type Vector = Vector;
    type Rope = Rope;
    type Cache = Cache;
    type Step = Step;
    type Upload = Pending;

    fn describe(&self) -> String {
        let (isa, threads) = (self.level.isa(), self.pool.num_threads());
        let bits = match self.bits {
            ActivationBits::Eight => "8-bit",
            ActivationBits::Adaptive => "adaptive",
            ActivationBits::Sixteen => "16-bit",
        };
        format!("cpu, {isa:?}, {threads} threads, {bits} activations")
    }

    fn buffer(&self, rows: usize, cols: usize) -> Result<Buffer, DeviceError> {
        Buffer::new(rows, cols)
    }

    fn begin_matrix(&self, dtype: Dtype, rows: usize, cols: usize) -> Result<Pending, DeviceError> {
        Pending::new(&self.arena, self.level, dtype, rows, cols)
    }

    fn vector(&self, values: &[f32]) -> Result<Vector, DeviceError> {
        let mut data = Aligned::zeroed("norm or bias", values.len())?;
        data.copy_from_slice(values);
        Ok(Vector(data))
    }

    fn rope(&self, params: &RopeParams) -> Result<Rope, DeviceError> {
        Ok(Rope::new(params))
    }

    fn cache(&self, shape: CacheShape) -> Result<Cache, DeviceError> {
        Cache::new(shape)
    }

    fn step(&self, max_tokens: usize) -> Result<Step, DeviceError> {
        let mut step = Step::default();
        step.splits.reserve(max_tokens + 1);
        step.sequences.reserve(max_tokens);
        Ok(step)
    }

    fn set_step(&self, step: &mut Step, batch: &Batch) {
        step.set(batch);
    }

    fn embed(&self, step: &Step, table: &Matrix, scale: f32, out: &mut Buffer) {
        assert_eq!(table.cols, out.cols, "embedding width");
        self.each_row(step.batch.num_tokens(), out, &|t, row, _| {
            table.read_row(step.batch.tokens[t] as usize, row);
            row.iter_mut().for_each(|x| *x *= scale);
        });
    }

    fn linear(&self, rows: usize, input: Input<'_, Self>, outputs: &mut [Linear<'_, Self>]) {
        self.products(self.bits, rows, input, outputs);
    }

    fn logits(&self, rows: usize, input: Input<'_, Self>, weight: &Matrix, out: &mut Buffer) {
        let bits = match self.bits {
            ActivationBits::Eight => ActivationBits::Eight,
            ActivationBits::Adaptive | ActivationBits::Sixteen => ActivationBits::Sixteen,
        };
        self.products(bits, rows, input, &mut [Linear { weight, bias: None, out }]);
    }

    fn rope_store(&self, step: &Step, args: RopeStore<'_, Self>) {
        let RopeStore { layer, q, k, v, q_norm, k_norm, eps, rope, cache } = args;
        let (batch, shape) = (&step.batch, cache.layout.shape);
        let (head_dim, angles) = (shape.head_dim, rope.at(&self.pool, &batch.positions));
        assert_eq!(shape.num_kv_heads * head_dim, k.cols, "K width");
        for (heads, norm) in [(q, q_norm), (&mut *k, k_norm)] {
            let norm = norm.map(|norm| &norm.0[..]);
            self.each_row(batch.num_tokens(), heads, &|t, row, _| {
                let (cos, sin) = angles.row(t);
                self.level.run(rows::Rotate { row, head_dim, norm, eps, cos, sin });
            });
        }
        let store = cache::Store { batch, k: &k.data, v: &v.data, layer };
        store.run(&self.pool, self.level, cache);
    }

    fn attention(&self, step: &Step, args: Attention<'_, Self>) {
        let Cache { layout, data } = args.cache;
        match data {
            cache::Data::F32(data) => {
                self.attend(step, Layer::new(*layout, data, args.layer), args);
            }
            cache::Data::F16(data) => {
                self.attend(step, Layer::new(*layout, data, args.layer), args);
            }
            cache::Data::I8(data) => {
                self.attend(step, Layer::new(*layout, data, args.layer), args);
            }
        }
    }

    fn add(&self, rows: usize, input: Input<'_, Self>, sum: &mut Buffer) {
        let source = Source::new(self, rows, input);
        assert_eq!(source.cols, sum.cols, "width of a sum");
        self.each_row(rows, sum, &|t, sum, worker| {
            source.with(t, worker, |x| self.level.run(rows::Add { x, sum }));
        });
    }

    fn select(&self, step: &Step, x: &Buffer, out: &mut Buffer) {
        for (i, t) in step.batch.logit_rows.iter().enumerate() {
            out.row_mut(i).copy_from_slice(x.row(*t as usize));
        }
    }

    fn softcap(&self, rows: usize, cap: f32, x: &mut Buffer) {
        self.each_row(rows, x, &|_, x, _| self.level.run(rows::Softcap { cap, x }));
    }

    fn clear_blocks(&self, cache: &mut Cache, blocks: &[u32]) {
        cache.clear(blocks);
    }

    fn sample(
        &self,
        step: &Step,
        logits: &mut Buffer,
        out: &mut [Option<u32>],
    ) -> Result<(), DeviceError> {
        self.choose(&step.batch.draws, logits, out);
        Ok(())
    }

    fn download(&self, x: &Buffer, row: usize, out: &mut [f32]) -> Result<(), DeviceError> {
        out.copy_from_slice(x.row(row));
        Ok(())
    }

    fn finish(&self) -> Result<(), DeviceError> {
        Ok(())
    }
}

impl Cpu {
    fn attend<T: cache::Element>(
        &self,
        step: &Step,
        cache: Layer<'_, T>,
        args: Attention<'_, Self>,
    ) {
        let Attention { q, scale, softcap, window, out, .. } = args;
        let shape = cache.layout.shape;
        let (dim, num_kv_heads) = (shape.head_dim, shape.num_kv_heads);
        let num_heads = q.cols / dim;
        assert_eq!((q.cols, num_heads * dim), (out.cols, out.cols), "width of attention");
        let group = num_heads / num_kv_heads;
        assert_eq!(group * num_kv_heads, num_heads, "heads share K and V evenly");
        let positions = &step.batch.positions[..];
        let (q, work) = (&q.data[..], positions.iter().map(|p| *p as usize + 1).sum::<usize>());
        let shared = Shared { cache, positions, q, num_heads, scale, softcap, window };
        let small = work * out.cols < SMALL;
        if !small && step.sequences.len() * num_kv_heads < 4 * self.pool.num_threads() {
            return self.attend_by_spans(step, shared, out);
        }
        let grid = Grid::new(&mut out.data, out.cols, &step.splits, group * dim);
        tiles::for_each(&self.pool, small, &mut [grid], &|_, mut out, worker| {
            let part = step.part(out.rows.clone(), out.cols.start / dim..out.cols.end / dim);
            let scratch = &mut self.worker(worker).attention;
            let spans = attention::spans(positions, part.rows.clone(), window);
            let len = attention::record_len(dim) * group;
            let mut records = std::mem::take(&mut scratch.records);
            memory::resize(&mut records, part.rows.len() * len);
            let rows = part.rows.clone();
            self.level.run(AttentionTile { shared, part, spans, records: &mut records, scratch });
            for (row, records) in rows.zip(records.chunks_exact(len)) {
                self.level.run(attention::Finish { head_dim: dim, records, out: out.row(row) });
            }
            scratch.records = records;
        });
    }

    /// Few tokens: every span of every K and V head is a tile of its own.
    fn attend_by_spans<T: cache::Element>(
        &self,
        step: &Step,
        shared: Shared<'_, T>,
        out: &mut Buffer,
    ) {
        let (dim, positions) = (shared.cache.layout.shape.head_dim, shared.positions);
        let group = shared.num_heads / shared.cache.layout.shape.num_kv_heads;
        let len = attention::record_len(dim);
        let Common { splits, partial, spans, .. } = &mut *lock(&self.shared);
        spans.clear();
        for rows in step.splits.windows(2).map(|ends| ends[0]..ends[1]) {
            let seen = attention::spans(positions, rows.clone(), shared.window);
            spans.extend(seen.map(|span| (rows.clone(), span)));
        }
        splits.clear();
        splits.extend(0..=spans.len());
        let tile_width = TOKENS_PER_TILE * group * len;
        let width = tile_width * shared.cache.layout.shape.num_kv_heads;
        memory::resize(partial, spans.len() * width);
        let grid = Grid::new(partial, width, splits, tile_width);
        tiles::for_each(&self.pool, false, &mut [grid], &|_, mut tile, worker| {
            let (row, first) = (tile.rows.start, tile.cols.start / tile_width * group);
            let (rows, span) = &spans[row];
            let part = step.part(rows.clone(), first..first + group);
            let scratch = &mut self.worker(worker).attention;
            let (spans, records) = (*span..span + 1, tile.row(row));
            self.level.run(AttentionTile { shared, part, spans, records, scratch });
        });
        for kv_head in 0..shared.cache.layout.shape.num_kv_heads {
            let cols = kv_head * group * dim..(kv_head + 1) * group * dim;
            let mut rest = &mut partial[..];
            for same in spans.chunk_by(|a, b| a.0 == b.0) {
                let (these, others) = rest.split_at_mut(same.len() * width);
                rest = others;
                let mut tiles = these
                    .chunks_exact_mut(width)
                    .map(|row| &mut row[kv_head * tile_width..][..same[0].0.len() * group * len]);
                let Some(records) = tiles.next() else { continue };
                for span in tiles {
                    let records = &mut *records;
                    self.level.run(attention::Join { head_dim: dim, records, span });
                }
                for (row, records) in same[0].0.clone().zip(records.chunks_exact(group * len)) {
                    let out = &mut out.row_mut(row)[cols.clone()];
                    self.level.run(attention::Finish { head_dim: dim, records, out });
                }
            }
        }
    }
}

/// The instruction set and the threads that the options ask for.
fn open(options: CpuOptions) -> Result<(Level, Pool), DeviceError> {
    let isa = options.isa.unwrap_or_else(Isa::detect);
    let missing = || DeviceError::Failed(format!("this CPU has no {isa:?}"));
    let level = Level::new(isa).ok_or_else(missing)?;
    let all = || std::thread::available_parallelism().map_or(1, usize::from);
    let threads = options.threads.unwrap_or_else(all).clamp(1, THREADS_MAX);
    let pool = Pool::new(threads).map_err(|error| DeviceError::Failed(error.to_string()))?;
    Ok((level, pool))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl fmt::Debug for Cpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Cpu({})", self.describe())
    }
}

/// Tokens of a sequence that attention takes together.
const TOKENS_PER_TILE: usize = 4;
/// Values below which an operation stays on the caller's thread.
const SMALL: usize = 16_384;
const THREADS_MAX: usize = 1024;
