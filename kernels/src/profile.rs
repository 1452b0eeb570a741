//! A device that measures another: how often each operation ran, how long, and how much it had to
//! read and to multiply.
//!
//! [`Profiled`] is a device like any other, so nothing else knows of it, and where it is not used it
//! costs nothing. It waits for the inner device after every operation. [`Work`] is what an operation
//! cannot do without: each stored value read once, activations read and written once, two operations
//! to a multiply-add; exponentials and the like are not counted.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::AddAssign;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::batch::Batch;
use crate::device::{
    Attention, CacheShape, Device, DeviceError, Input, Linear, RopeParams, RopeStore, Upload,
};
use crate::dtype::Dtype;

/// What an operation has to do at least.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Work {
    /// Bytes of weights and of the KV cache that are read or written.
    pub stored_bytes: u64,
    /// Bytes of activations that are read and written.
    pub activation_bytes: u64,
    /// Operations on quantised weights.
    pub int8: u64,
    /// Operations on bf16 weights.
    pub bf16: u64,
    /// Other operations.
    pub f32: u64,
}

/// All calls of one operation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Operation {
    /// Name of the operation; of products also `[out_features, in_features]` and the storage type.
    pub name: String,
    /// Calls.
    pub calls: u64,
    /// Time from call to end.
    pub time: Duration,
    /// Work of all calls.
    pub work: Work,
}

/// A device that counts what `D` does.
pub struct Profiled<D> {
    inner: D,
    counts: Mutex<Counts>,
}

#[derive(Default)]
struct Counts {
    operations: BTreeMap<Key, Count>,
    /// The first failure that waiting after an operation brought to light.
    failed: Option<DeviceError>,
}

#[derive(Default)]
struct Count {
    calls: u64,
    time: Duration,
    work: Work,
}

/// Name, and the shape where that says what a product is for.
type Key = (&'static str, Option<Shape>);

/// Shape of products that share an input.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Shape {
    /// Rows of each weight; zero where there are fewer, the last is the rest where there are more.
    rows: [usize; 4],
    cols: usize,
    dtype: &'static str,
}

/// Weights of the inner device, and their size.
#[derive(Debug)]
pub struct Matrix<M> {
    inner: M,
    dtype: Dtype,
    rows: usize,
    cols: usize,
}

/// A matrix on its way to the inner device.
#[derive(Debug)]
pub struct Pending<U> {
    inner: U,
    dtype: Dtype,
    rows: usize,
    cols: usize,
}

/// Activations of the inner device, and their width.
#[derive(Debug)]
pub struct Buffer<B> {
    inner: B,
    cols: usize,
}

/// K and V of the inner device, and their shape.
#[derive(Debug)]
pub struct Cache<C> {
    inner: C,
    shape: CacheShape,
}

/// The step of the inner device, and how far each of its sequences is.
#[derive(Debug)]
pub struct Step<S> {
    inner: S,
    /// First position and tokens of each sequence.
    sequences: Vec<(u64, u64)>,
    tokens: u64,
    logit_rows: u64,
    draws: u64,
}

impl<D: Device> Profiled<D> {
    /// Counts what `inner` does.
    pub fn new(inner: D) -> Self {
        Self { inner, counts: Mutex::default() }
    }

    /// The operations since the last call, longest first.
    pub fn take(&self) -> Vec<Operation> {
        let counts = std::mem::take(&mut self.counts().operations);
        let mut operations: Vec<Operation> = counts
            .into_iter()
            .map(|((name, shape), Count { calls, time, work })| Operation {
                name: shape.map_or_else(|| name.to_owned(), |shape| format!("{name} {shape}")),
                calls,
                time,
                work,
            })
            .collect();
        operations.sort_by_key(|operation| std::cmp::Reverse(operation.time));
        operations
    }

    /// Runs one operation to its end and counts it.
    fn count<T>(&self, key: Key, work: Work, operation: impl FnOnce(&D) -> T) -> T {
        let start = Instant::now();
        let result = operation(&self.inner);
        let finished = self.inner.finish();
        let time = start.elapsed();
        let mut counts = self.counts();
        let count = counts.operations.entry(key).or_default();
        count.calls += 1;
        count.time += time;
        count.work += work;
        if let Err(error) = finished {
            counts.failed.get_or_insert(error);
        }
        result
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<D: Device> Device for Profiled<D> {
    type Buffer = Buffer<D::Buffer>;
    type Matrix = Matrix<D::Matrix>;
    type Vector = D::Vector;
    type Rope = D::Rope;
    type Cache = Cache<D::Cache>;
    type Step = Step<D::Step>;
    type Upload = Pending<D::Upload>;

    fn describe(&self) -> String {
        format!("{}, profiled", self.inner.describe())
    }

    fn buffer(&self, rows: usize, cols: usize) -> Result<Self::Buffer, DeviceError> {
        Ok(Buffer { inner: self.inner.buffer(rows, cols)?, cols })
    }

    fn begin_matrix(
        &self,
        dtype: Dtype,
        rows: usize,
        cols: usize,
    ) -> Result<Self::Upload, DeviceError> {
        Ok(Pending { inner: self.inner.begin_matrix(dtype, rows, cols)?, dtype, rows, cols })
    }

    fn vector(&self, values: &[f32]) -> Result<D::Vector, DeviceError> {
        self.inner.vector(values)
    }

    fn rope(&self, params: &RopeParams) -> Result<D::Rope, DeviceError> {
        self.inner.rope(params)
    }

    fn cache(&self, shape: CacheShape) -> Result<Self::Cache, DeviceError> {
        Ok(Cache { inner: self.inner.cache(shape)?, shape })
    }

    fn step(&self, max_tokens: usize) -> Result<Self::Step, DeviceError> {
        let inner = self.inner.step(max_tokens)?;
        Ok(Step { inner, sequences: Vec::new(), tokens: 0, logit_rows: 0, draws: 0 })
    }

    fn set_step(&self, step: &mut Self::Step, batch: &Batch) {
        step.tokens = batch.num_tokens() as u64;
        step.logit_rows = batch.logit_rows.len() as u64;
        step.draws = batch.draws.len() as u64;
        step.sequences.clear();
        step.sequences.extend((0..batch.num_sequences()).map(|s| {
            let rows = batch.rows(s);
            (u64::from(batch.positions[rows.start]), rows.len() as u64)
        }));
        self.count(("set_step", None), Work::default(), |d| d.set_step(&mut step.inner, batch));
    }

    fn embed(&self, step: &Self::Step, table: &Self::Matrix, scale: f32, out: &mut Self::Buffer) {
        let stored = step.tokens * table.bytes() / (table.rows as u64).max(1);
        let work = Work { stored_bytes: stored, ..elementwise(step.tokens, out.cols, 1, 1) };
        self.count(("embed", None), work, |d| {
            d.embed(&step.inner, &table.inner, scale, &mut out.inner);
        });
    }

    fn linear(&self, rows: usize, input: Input<'_, Self>, outputs: &mut [Linear<'_, Self>]) {
        let (input, cols, mut work) = inner_input(rows as u64, input);
        let dtype = outputs.first().map_or("", |output| output.weight.dtype.name());
        let mut shape = Shape { rows: [0; 4], cols, dtype };
        for (i, output) in outputs.iter().enumerate() {
            shape.rows[i.min(3)] += output.weight.rows;
            if output.weight.dtype.name() != dtype {
                shape.dtype = "mixed";
            }
            work += output.weight.product(rows as u64);
        }
        let mut inner: Vec<Linear<'_, D>> = outputs
            .iter_mut()
            .map(|Linear { weight, bias, out }| Linear {
                weight: &weight.inner,
                bias: *bias,
                out: &mut out.inner,
            })
            .collect();
        self.count(("linear", Some(shape)), work, |d| d.linear(rows, input, &mut inner));
    }

    fn logits(
        &self,
        rows: usize,
        input: Input<'_, Self>,
        weight: &Self::Matrix,
        out: &mut Self::Buffer,
    ) {
        let (input, cols, mut work) = inner_input(rows as u64, input);
        let shape = Shape { rows: [weight.rows, 0, 0, 0], cols, dtype: weight.dtype.name() };
        work += weight.product(rows as u64);
        self.count(("logits", Some(shape)), work, |d| {
            d.logits(rows, input, &weight.inner, &mut out.inner);
        });
    }

    fn rope_store(&self, step: &Self::Step, args: RopeStore<'_, Self>) {
        let RopeStore { layer, q, k, v, q_norm, k_norm, eps, rope, cache } = args;
        let stored_bytes = step.tokens * cache.position_bytes();
        let work = Work { stored_bytes, ..elementwise(step.tokens, q.cols + k.cols, 2, 3) };
        let (q, k, v, cache) = (&mut q.inner, &mut k.inner, &v.inner, &mut cache.inner);
        self.count(("rope_store", None), work, |d| {
            let args = RopeStore { layer, q, k, v, q_norm, k_norm, eps, rope, cache };
            d.rope_store(&step.inner, args);
        });
    }

    fn attention(&self, step: &Self::Step, args: Attention<'_, Self>) {
        let Attention { layer, q, cache, scale, softcap, window, out } = args;
        let mut work = elementwise(step.tokens, q.cols, 2, 0);
        for &(start, tokens) in &step.sequences {
            let seen = positions_seen(start, tokens, window);
            work.f32 += 4 * q.cols as u64 * seen;
            let first = window.map_or(0, |window| (start + 1).saturating_sub(window as u64));
            work.stored_bytes += (start + tokens - first) * cache.position_bytes();
        }
        let (q, cache, out) = (&q.inner, &cache.inner, &mut out.inner);
        self.count(("attention", None), work, |d| {
            d.attention(&step.inner, Attention { layer, q, cache, scale, softcap, window, out });
        });
    }

    fn add(&self, rows: usize, input: Input<'_, Self>, sum: &mut Self::Buffer) {
        let (input, cols, mut work) = inner_input(rows as u64, input);
        work += elementwise(rows as u64, cols, 2, 1);
        self.count(("add", None), work, |d| d.add(rows, input, &mut sum.inner));
    }

    fn select(&self, step: &Self::Step, x: &Self::Buffer, out: &mut Self::Buffer) {
        let work = elementwise(step.logit_rows, x.cols, 2, 0);
        self.count(("select", None), work, |d| d.select(&step.inner, &x.inner, &mut out.inner));
    }

    fn softcap(&self, rows: usize, cap: f32, x: &mut Self::Buffer) {
        let work = elementwise(rows as u64, x.cols, 2, 2);
        self.count(("softcap", None), work, |d| d.softcap(rows, cap, &mut x.inner));
    }

    fn clear_blocks(&self, cache: &mut Self::Cache, blocks: &[u32]) {
        let CacheShape { num_layers, block_size, .. } = cache.shape;
        let positions = (num_layers * block_size * blocks.len()) as u64;
        let work = Work { stored_bytes: positions * cache.position_bytes(), ..Work::default() };
        self.count(("clear_blocks", None), work, |d| d.clear_blocks(&mut cache.inner, blocks));
    }

    fn sample(
        &self,
        step: &Self::Step,
        logits: &mut Self::Buffer,
        out: &mut [Option<u32>],
    ) -> Result<(), DeviceError> {
        // A comparison each; what drawing takes beside is not counted.
        let work = elementwise(step.draws, logits.cols, 1, 1);
        self.count(("sample", None), work, |d| d.sample(&step.inner, &mut logits.inner, out))?;
        self.finish()
    }

    fn download(&self, x: &Self::Buffer, row: usize, out: &mut [f32]) -> Result<(), DeviceError> {
        let work = elementwise(1, out.len(), 2, 0);
        self.count(("download", None), work, |d| d.download(&x.inner, row, out))?;
        self.finish()
    }

    fn finish(&self) -> Result<(), DeviceError> {
        self.inner.finish()?;
        self.counts().failed.take().map_or(Ok(()), Err)
    }
}

/// The input as the inner device knows it, its width, and the work of reading it.
fn inner_input<D: Device>(rows: u64, input: Input<'_, Profiled<D>>) -> (Input<'_, D>, usize, Work) {
    match input {
        Input::Rows(x) => (Input::Rows(&x.inner), x.cols, elementwise(rows, x.cols, 1, 0)),
        Input::Normed { x, weight, eps } => {
            let input = Input::Normed { x: &x.inner, weight, eps };
            (input, x.cols, elementwise(rows, x.cols, 1, 4))
        }
        Input::Gated { activation, gate, up } => {
            let input = Input::Gated { activation, gate: &gate.inner, up: &up.inner };
            (input, up.cols, elementwise(rows, up.cols, 2, 2))
        }
    }
}

/// `rows` of `cols` f32 in each of `buffers`, with `operations` on each value.
fn elementwise(rows: u64, cols: usize, buffers: u64, operations: u64) -> Work {
    let values = rows * cols as u64;
    Work { activation_bytes: 4 * buffers * values, f32: operations * values, ..Work::default() }
}

/// Pairs of a token and a position that it sees, of `tokens` tokens from position `start` on.
pub fn positions_seen(start: u64, tokens: u64, window: Option<usize>) -> u64 {
    let upto = |n: u64| n * (n + 1) / 2;
    let all = upto(start + tokens) - upto(start);
    let beyond = |n: u64| window.map_or(0, |window| upto(n.saturating_sub(window as u64)));
    all - (beyond(start + tokens) - beyond(start))
}

impl<M> Matrix<M> {
    fn bytes(&self) -> u64 {
        (self.dtype.row_bytes(self.cols).unwrap_or(0) * self.rows) as u64
    }

    /// Work of `rows` rows times this matrix, the input apart.
    fn product(&self, rows: u64) -> Work {
        let operations = 2 * rows * (self.rows * self.cols) as u64;
        let work = Work { stored_bytes: self.bytes(), ..elementwise(rows, self.rows, 1, 0) };
        work.with_operations(self.dtype, operations)
    }
}

impl<C> Cache<C> {
    /// Bytes of K and V of one position in one layer.
    fn position_bytes(&self) -> u64 {
        (2 * self.shape.num_kv_heads * self.shape.dtype.head_bytes(self.shape.head_dim)) as u64
    }
}

impl Work {
    /// With `operations` more on weights of this storage type.
    pub fn with_operations(mut self, dtype: Dtype, operations: u64) -> Self {
        match dtype {
            Dtype::F32 | Dtype::F16 => self.f32 += operations,
            Dtype::Bf16 | Dtype::F8E4M3 => self.bf16 += operations,
            _ => self.int8 += operations,
        }
        self
    }

    /// Operations of all kinds.
    pub fn operations(&self) -> u64 {
        self.int8 + self.bf16 + self.f32
    }
}

impl AddAssign for Work {
    fn add_assign(&mut self, other: Self) {
        self.stored_bytes += other.stored_bytes;
        self.activation_bytes += other.activation_bytes;
        self.int8 += other.int8;
        self.bf16 += other.bf16;
        self.f32 += other.f32;
    }
}

impl<U: Upload> Upload for Pending<U> {
    type Matrix = Matrix<U::Matrix>;

    fn write(&self, offset: usize, bytes: &[u8]) -> Result<(), DeviceError> {
        self.inner.write(offset, bytes)
    }

    fn finish(self) -> Result<Self::Matrix, DeviceError> {
        let Self { inner, dtype, rows, cols } = self;
        Ok(Matrix { inner: inner.finish()?, dtype, rows, cols })
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [first, rest @ ..] = self.rows;
        write!(f, "{} [{first}", self.dtype)?;
        for rows in rest.into_iter().filter(|rows| *rows > 0) {
            write!(f, "+{rows}")?;
        }
        write!(f, ", {}]", self.cols)
    }
}

impl<D: Device> fmt::Debug for Profiled<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Profiled({})", self.inner.describe())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_are_counted_one_by_one() {
        for window in [None, Some(1), Some(5), Some(100)] {
            for (start, tokens) in [(0, 0), (0, 1), (0, 17), (3, 4), (7, 1), (120, 9)] {
                let one_by_one: u64 = (start..start + tokens)
                    .map(|p| window.map_or(p + 1, |window: usize| (p + 1).min(window as u64)))
                    .sum();
                assert_eq!(positions_seen(start, tokens, window), one_by_one);
            }
        }
    }
}
