//! The operations of a decoder in naive f32 Rust: what they mean, and the oracle of all tests.
//!
//! Nothing here is fast. Weights are dequantised to f32 when they arrive, sums run from the first
//! value to the last, and every other device is compared with this one.

mod choose;
mod ops;

use std::fmt;

pub use choose::choose;
use zeroize::{Zeroize, Zeroizing};

use crate::arrived::Gathered;
use crate::batch::Batch;
use crate::device::{
    Attention, CacheShape, Device, DeviceError, Input, Linear, RopeParams, RopeStore, Upload,
};
use crate::dtype::Dtype;
use crate::quant;

/// The device that computes everything one value at a time.
#[derive(Clone, Copy, Debug, Default)]
pub struct Reference;

/// Activations, `[rows, cols]`; wiped on drop and never printed.
pub struct Buffer {
    rows: usize,
    cols: usize,
    data: Vec<f32>,
}

/// Dequantised weights, `[rows, cols]`.
pub struct Matrix {
    rows: usize,
    cols: usize,
    data: Vec<f32>,
}

/// Weights of a norm or a bias.
pub struct Vector(Vec<f32>);

/// Angles of a rotary embedding.
#[derive(Debug)]
pub struct Rope(RopeParams);

/// K and V of all layers, `[layer, block, slot, head, value]`; wiped on drop.
pub struct Cache {
    shape: CacheShape,
    k: Vec<f32>,
    v: Vec<f32>,
}

/// The batch of the step.
#[derive(Debug, Default)]
pub struct Step {
    batch: Batch,
}

/// Bytes gathered until the matrix is whole; wiped on drop.
pub struct Pending {
    dtype: Dtype,
    rows: usize,
    cols: usize,
    gathered: Gathered,
}

impl Upload for Pending {
    type Matrix = Matrix;

    fn write(&self, offset: usize, bytes: &[u8]) -> Result<(), DeviceError> {
        self.gathered.write(offset, bytes)
    }

    fn finish(self) -> Result<Matrix, DeviceError> {
        let bytes = self.gathered.finish()?;
        let mut data = vec![0.0; self.rows * self.cols];
        quant::dequantize(self.dtype, &bytes, &mut data).map_err(|_| {
            let (expected, found) = (bytes.len(), bytes.len());
            DeviceError::UploadLength { expected, found }
        })?;
        Ok(Matrix { rows: self.rows, cols: self.cols, data })
    }
}

impl Device for Reference {
    type Buffer = Buffer;
    type Matrix = Matrix;
    type Vector = Vector;
    type Rope = Rope;
    type Cache = Cache;
    type Step = Step;
    type Upload = Pending;

    fn describe(&self) -> String {
        "reference, f32, one thread".to_owned()
    }

    fn buffer(&self, rows: usize, cols: usize) -> Result<Buffer, DeviceError> {
        Ok(Buffer { rows, cols, data: vec![0.0; rows * cols] })
    }

    fn begin_matrix(&self, dtype: Dtype, rows: usize, cols: usize) -> Result<Pending, DeviceError> {
        Ok(Pending { dtype, rows, cols, gathered: Gathered::new(dtype, rows, cols)? })
    }

    fn vector(&self, values: &[f32]) -> Result<Vector, DeviceError> {
        Ok(Vector(values.to_vec()))
    }

    fn rope(&self, params: &RopeParams) -> Result<Rope, DeviceError> {
        Ok(Rope(params.clone()))
    }

    fn cache(&self, shape: CacheShape) -> Result<Cache, DeviceError> {
        let len = shape.num_layers * shape.num_blocks * block_len(&shape);
        Ok(Cache { shape, k: vec![0.0; len], v: vec![0.0; len] })
    }

    fn step(&self, _max_tokens: usize) -> Result<Step, DeviceError> {
        Ok(Step::default())
    }

    fn set_step(&self, step: &mut Step, batch: &Batch) {
        step.batch.clone_from(batch);
    }

    fn embed(&self, step: &Step, table: &Matrix, scale: f32, out: &mut Buffer) {
        assert_eq!(table.cols, out.cols, "embedding width");
        for (t, token) in step.batch.tokens.iter().enumerate() {
            let row = table.row(*token as usize);
            for (out, x) in out.row_mut(t).iter_mut().zip(row) {
                *out = x * scale;
            }
        }
    }

    fn logits(&self, rows: usize, input: Input<'_, Self>, weight: &Matrix, out: &mut Buffer) {
        self.linear(rows, input, &mut [Linear { weight, bias: None, out }]);
    }

    fn linear(&self, rows: usize, input: Input<'_, Self>, outputs: &mut [Linear<'_, Self>]) {
        for t in 0..rows {
            let x = input_row(input, t);
            for Linear { weight, bias, out } in &mut *outputs {
                assert_eq!((weight.cols, weight.rows), (x.len(), out.cols), "shape of a product");
                for (j, out) in out.row_mut(t).iter_mut().enumerate() {
                    let bias = bias.map_or(0.0, |bias| bias.0[j]);
                    *out = ops::dot(&x, weight.row(j)) + bias;
                }
            }
        }
    }

    fn rope_store(&self, step: &Step, args: RopeStore<'_, Self>) {
        let shape = args.cache.shape;
        for s in 0..step.batch.num_sequences() {
            let blocks = step.batch.blocks(s);
            for t in step.batch.rows(s) {
                let position = step.batch.positions[t] as usize;
                let heads = args.q.row_mut(t).chunks_exact_mut(shape.head_dim);
                heads.for_each(|q| args.rope.apply(q, position, args.q_norm, args.eps));
                let heads = args.k.row_mut(t).chunks_exact_mut(shape.head_dim);
                heads.for_each(|k| args.rope.apply(k, position, args.k_norm, args.eps));
                let slot = args.cache.slot(args.layer, blocks, position);
                let (k, v) = (&mut args.cache.k[slot.clone()], &mut args.cache.v[slot]);
                for (x, out) in [(args.k.row(t), k), (args.v.row(t), v)] {
                    let heads = out.chunks_exact_mut(shape.head_dim);
                    for (x, out) in x.chunks_exact(shape.head_dim).zip(heads) {
                        ops::store(shape.dtype, x, out);
                    }
                }
            }
        }
    }

    fn attention(&self, step: &Step, args: Attention<'_, Self>) {
        let shape = args.cache.shape;
        let num_heads = args.q.cols / shape.head_dim;
        for s in 0..step.batch.num_sequences() {
            let blocks = step.batch.blocks(s);
            for t in step.batch.rows(s) {
                let position = step.batch.positions[t] as usize;
                let first = args.window.map_or(0, |window| (position + 1).saturating_sub(window));
                for head in 0..num_heads {
                    let kv_head = head * shape.num_kv_heads / num_heads;
                    let values = head * shape.head_dim..(head + 1) * shape.head_dim;
                    let rows = (first..=position).map(|p| {
                        let start = args.cache.slot(args.layer, blocks, p).start;
                        start + kv_head * shape.head_dim..start + (kv_head + 1) * shape.head_dim
                    });
                    let rows: Vec<_> = rows.collect();
                    let q = &args.q.row(t)[values.clone()];
                    let mut scores: Vec<f32> = rows
                        .iter()
                        .map(|row| ops::dot(q, &args.cache.k[row.clone()]) * args.scale)
                        .map(|x| args.softcap.map_or(x, |cap| cap * (x / cap).tanh()))
                        .collect();
                    ops::softmax(&mut scores);
                    let out = &mut args.out.row_mut(t)[values];
                    out.fill(0.0);
                    for (weight, row) in scores.iter().zip(rows) {
                        for (out, v) in out.iter_mut().zip(&args.cache.v[row]) {
                            *out += weight * v;
                        }
                    }
                }
            }
        }
    }

    fn add(&self, rows: usize, input: Input<'_, Self>, sum: &mut Buffer) {
        for t in 0..rows {
            let x = input_row(input, t);
            assert_eq!(x.len(), sum.cols, "width of a sum");
            for (sum, x) in sum.row_mut(t).iter_mut().zip(&*x) {
                *sum += x;
            }
        }
    }

    fn select(&self, step: &Step, x: &Buffer, out: &mut Buffer) {
        for (i, t) in step.batch.logit_rows.iter().enumerate() {
            out.row_mut(i).copy_from_slice(x.row(*t as usize));
        }
    }

    fn softcap(&self, rows: usize, cap: f32, x: &mut Buffer) {
        for t in 0..rows {
            for x in x.row_mut(t) {
                *x = cap * (*x / cap).tanh();
            }
        }
    }

    fn clear_blocks(&self, cache: &mut Cache, blocks: &[u32]) {
        let len = block_len(&cache.shape);
        for layer in 0..cache.shape.num_layers {
            for block in blocks {
                let start = (layer * cache.shape.num_blocks + *block as usize) * len;
                cache.k[start..start + len].fill(0.0);
                cache.v[start..start + len].fill(0.0);
            }
        }
    }

    fn sample(
        &self,
        step: &Step,
        logits: &mut Buffer,
        out: &mut [Option<u32>],
    ) -> Result<(), DeviceError> {
        assert_eq!(step.batch.draws.len(), out.len(), "a token for each draw");
        for (out, (draw, edits)) in out.iter_mut().zip(step.batch.draws.iter()) {
            *out = choose(logits.row(draw.row as usize), draw, edits);
        }
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

/// Row `t` as the operation sees it.
fn input_row(input: Input<'_, Reference>, t: usize) -> Zeroizing<Vec<f32>> {
    Zeroizing::new(match input {
        Input::Rows(x) => x.row(t).to_vec(),
        Input::Normed { x, weight, eps } => {
            assert_eq!(x.cols, weight.0.len(), "norm width");
            let mut row = x.row(t).to_vec();
            ops::rms_norm(&mut row, &weight.0, eps);
            row
        }
        Input::Gated { activation, gate, up } => {
            assert_eq!(gate.cols, up.cols, "gate width");
            let values = gate.row(t).iter().zip(up.row(t));
            values.map(|(gate, up)| ops::activate(activation, *gate) * up).collect()
        }
    })
}

impl Buffer {
    fn row(&self, t: usize) -> &[f32] {
        assert!(t < self.rows, "row {t} of {}", self.rows);
        &self.data[t * self.cols..][..self.cols]
    }

    fn row_mut(&mut self, t: usize) -> &mut [f32] {
        assert!(t < self.rows, "row {t} of {}", self.rows);
        &mut self.data[t * self.cols..][..self.cols]
    }
}

impl Matrix {
    fn row(&self, j: usize) -> &[f32] {
        &self.data[j * self.cols..][..self.cols]
    }
}

impl Rope {
    /// Norm (where there is one), then rotation of pairs `(i, i + rope_dim / 2)`.
    fn apply(&self, head: &mut [f32], position: usize, norm: Option<&Vector>, eps: f32) {
        if let Some(weight) = norm {
            ops::rms_norm(head, &weight.0, eps);
        }
        let half = self.0.inv_freq.len();
        for (i, inv_freq) in self.0.inv_freq.iter().enumerate() {
            let angle = position as f32 * inv_freq;
            let (sin, cos) = angle.sin_cos();
            let (sin, cos) = (sin * self.0.attention_factor, cos * self.0.attention_factor);
            let (a, b) = (head[i], head[i + half]);
            head[i] = a * cos - b * sin;
            head[i + half] = b * cos + a * sin;
        }
    }
}

impl Cache {
    /// Where the K (or V) of all heads of a position lie.
    fn slot(&self, layer: usize, blocks: &[u32], position: usize) -> std::ops::Range<usize> {
        let shape = &self.shape;
        let block = blocks[position / shape.block_size] as usize;
        assert!(layer < shape.num_layers && block < shape.num_blocks, "cache slot");
        let width = shape.num_kv_heads * shape.head_dim;
        let row = (layer * shape.num_blocks + block) * shape.block_size;
        let start = (row + position % shape.block_size) * width;
        start..start + width
    }
}

fn block_len(shape: &CacheShape) -> usize {
    shape.block_size * shape.num_kv_heads * shape.head_dim
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.data.zeroize();
    }
}

impl Drop for Matrix {
    fn drop(&mut self) {
        self.data.zeroize();
    }
}

impl Drop for Cache {
    fn drop(&mut self) {
        self.k.zeroize();
        self.v.zeroize();
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buffer({} x {})", self.rows, self.cols)
    }
}

impl fmt::Debug for Matrix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Matrix({} x {})", self.rows, self.cols)
    }
}

impl fmt::Debug for Vector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Vector({})", self.0.len())
    }
}

impl fmt::Debug for Cache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Cache({:?})", self.shape)
    }
}

impl fmt::Debug for Pending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pending({:?} {} x {})", self.dtype, self.rows, self.cols)
    }
}
