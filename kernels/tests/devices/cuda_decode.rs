//! Steps of one token a sequence on the CUDA kernels, emulated on the host: what is recorded, where attention turns its own heads and
//! stores K and V and makes the rows of the next product, has the bits of what is not, where other kernels do; and so has a block that
//! goes from work to work, of eight warps or four.

use crate::common::{Random, bits, matrix, read};
use chrysalis_kernels::cuda::{Cuda, Emulated};
use chrysalis_kernels::device::{
    Attention, CacheDtype, CacheShape, Device, Input, Linear, RopeParams, RopeStore, Rows,
};
use chrysalis_kernels::{Batch, Dtype, WantLogits};

/// Heads of a decoder.
#[derive(Clone, Copy, Debug)]
struct Shape {
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    dtype: CacheDtype,
    /// Positions of a cached block.
    block: usize,
    rope_dim: usize,
    norms: bool,
    softcap: Option<f32>,
    window: Option<usize>,
}

const fn shape(heads: usize, kv_heads: usize, head_dim: usize, dtype: CacheDtype) -> Shape {
    let (rope_dim, norms) = (head_dim / 2 * 2, false);
    let (softcap, window) = (None, None);
    Shape { heads, kv_heads, head_dim, dtype, block: 16, rope_dim, norms, softcap, window }
}

/// How it is asked for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum How {
    Launched,
    Recorded,
    /// Recorded, and something comes between rotation and attention, and a product of other rows behind that.
    Between,
    /// Recorded, and a product takes all rows of attention but the last, before one takes all.
    Fewer,
}

/// Sequences of some earlier tokens, which come as one prompt each.
struct Decode<'a> {
    device: &'a Cuda<Emulated>,
    shape: Shape,
    how: How,
    /// Of q, k and v.
    tables: [Matrix; 3],
    norms: [Option<Vector>; 2],
    rope: Rope,
    cache: Cache,
    step: Step,
    qkv: [Buffer; 3],
    out: Buffer,
    /// A product that takes what attention makes, if one does.
    product: Option<(Matrix, Buffer)>,
    /// Other rows as wide as attention's, and what the product makes of them or of fewer.
    other: [Buffer; 2],
}

type Matrix = <Cuda<Emulated> as Device>::Matrix;
type Vector = <Cuda<Emulated> as Device>::Vector;
type Rope = <Cuda<Emulated> as Device>::Rope;
type Cache = <Cuda<Emulated> as Device>::Cache;
type Step = <Cuda<Emulated> as Device>::Step;
type Buffer = <Cuda<Emulated> as Device>::Buffer;

impl<'a> Decode<'a> {
    fn new(device: &'a Cuda<Emulated>, shape: Shape, how: How) -> Self {
        let mut random = Random(61);
        let (q, kv) = (shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim);
        let tables = [q, kv, kv].map(|cols| {
            let values = random.matrix(Dtype::F32, VOCABULARY, cols);
            matrix(device, Dtype::F32, VOCABULARY, cols, &values)
        });
        let mut norm = || {
            let values = random.values(shape.head_dim);
            shape.norms.then(|| device.vector(&values).unwrap())
        };
        let norms = [norm(), norm()];
        let pairs = shape.rope_dim / 2;
        let inv_freq = (0..pairs).map(|i| 0.7_f32.powi(i as i32)).collect();
        let rope = RopeParams { inv_freq, attention_factor: 1.1, max_positions: POSITIONS };
        let cache = CacheShape {
            num_layers: 2,
            num_blocks: SEQUENCES * POSITIONS.div_ceil(shape.block),
            block_size: shape.block,
            num_kv_heads: shape.kv_heads,
            head_dim: shape.head_dim,
            dtype: shape.dtype,
        };
        let mut all = Self {
            tables,
            norms,
            rope: device.rope(&rope).unwrap(),
            cache: device.cache(cache).unwrap(),
            step: device.step(POSITIONS).unwrap(),
            qkv: [q, kv, kv].map(|cols| device.buffer(POSITIONS, cols).unwrap()),
            out: device.buffer(POSITIONS, q).unwrap(),
            product: None,
            other: [q, OUTS].map(|cols| device.buffer(POSITIONS, cols).unwrap()),
            device,
            shape,
            how,
        };
        all.plan();
        all
    }

    /// One whose attention is multiplied by a matrix of this type.
    fn multiplied(device: &'a Cuda<Emulated>, shape: Shape, how: How, dtype: Dtype) -> Self {
        let mut all = Self::new(device, shape, how);
        let cols = shape.heads * shape.head_dim;
        let values = Random(67).matrix(dtype, OUTS, cols);
        let weight = matrix(device, dtype, OUTS, cols, &values);
        all.product = Some((weight, device.buffer(SEQUENCES, OUTS).unwrap()));
        all.plan();
        all
    }

    fn plan(&mut self) {
        let device = self.device;
        let plan = || (1..=SEQUENCES).for_each(|n| self.decode(&vec![POSITIONS as u32 - 1; n]));
        device.plan(plan).unwrap();
    }

    /// Tokens of sequences from a position on.
    fn batch(&self, parts: impl Iterator<Item = (usize, u32, usize)>) -> Batch {
        let (mut batch, blocks) = (Batch::default(), POSITIONS.div_ceil(self.shape.block) as u32);
        for (s, start, tokens) in parts {
            let s = s as u32;
            let table: Vec<u32> = (s * blocks..(s + 1) * blocks).rev().collect();
            let tokens: Vec<u32> = (start..).take(tokens).map(|p| (p * 7 + s) % 50).collect();
            batch.push(&tokens, start, &table, WantLogits::Last);
        }
        batch
    }

    /// Earlier tokens of each sequence.
    fn prompt(&mut self, positions: &[u32]) {
        for (s, end) in positions.iter().enumerate().filter(|(_, end)| **end > 0) {
            let batch = self.batch(std::iter::once((s, 0, *end as usize)));
            self.device.set_step(&mut self.step, &batch);
            self.layer(*end as usize, false);
        }
    }

    /// A token of each sequence, at these positions.
    fn decode(&mut self, positions: &[u32]) {
        let batch = self.batch(positions.iter().enumerate().map(|(s, p)| (s, *p, 1)));
        self.device.set_step(&mut self.step, &batch);
        let rows = Rows { tokens: positions.len(), logits: positions.len() };
        if self.how == How::Launched {
            return self.layer(rows.tokens, true);
        }
        let room = Rows { tokens: SEQUENCES, logits: SEQUENCES };
        if let Some(rows) = self.device.begin(&mut self.step, rows, room) {
            self.layer(rows.tokens, true);
            self.device.end(&mut self.step);
        }
    }

    fn layer(&mut self, rows: usize, attends: bool) {
        let Self { device, shape, how, tables, norms, rope, cache, step, qkv, out, product, other } =
            self;
        for (table, out) in tables.iter().zip(&mut *qkv) {
            device.embed(step, table, 1.0, out);
        }
        let [q, k, v] = qkv;
        let [q_norm, k_norm] = norms.each_ref().map(Option::as_ref);
        let args = RopeStore { layer: 1, q, k, v, q_norm, k_norm, eps: 1e-6, rope, cache };
        device.rope_store(step, args);
        if *how == How::Between {
            device.softcap(rows, 100.0, out);
        }
        if attends {
            let (scale, softcap, window) = (0.3, shape.softcap, shape.window);
            device.attention(step, Attention { layer: 1, q, cache, scale, softcap, window, out });
            if let Some((weight, product)) = product {
                let [rows_of_other, aside] = other;
                let aside = &mut [Linear { weight, bias: None, out: aside }];
                match how {
                    How::Between => device.linear(rows, Input::Rows(rows_of_other), aside),
                    How::Fewer => device.linear(rows - 1, Input::Rows(out), aside),
                    How::Launched | How::Recorded => {}
                }
                let outputs = &mut [Linear { weight, bias: None, out: product }];
                device.linear(rows, Input::Rows(out), outputs);
            }
        }
    }

    fn seen(&self, rows: usize) -> Vec<u32> {
        if let Some((_, product)) = &self.product {
            return bits(&read(self.device, product, rows, OUTS));
        }
        bits(&read(self.device, &self.out, rows, self.shape.heads * self.shape.head_dim))
    }
}

/// Steps on so many multiprocessors, after prompts of these lengths: each is the first of its kind, or one that was recorded.
fn steps(
    shape: Shape,
    how: How,
    product: Option<Dtype>,
    multiprocessors: usize,
    prompts: &[u32],
) -> Vec<Vec<u32>> {
    let driver = Emulated::with_multiprocessors(multiprocessors);
    let device = Cuda::new(if multiprocessors == 2 { driver.backwards() } else { driver });
    let mut decode = match product {
        Some(dtype) => Decode::multiplied(&device, shape, how, dtype),
        None => Decode::new(&device, shape, how),
    };
    decode.prompt(prompts);
    let all = (0..3).map(|n| {
        let positions: Vec<u32> = prompts.iter().map(|end| end + n).collect();
        decode.decode(&positions);
        decode.seen(positions.len())
    });
    all.collect()
}

/// Recorded on few multiprocessors and many, the bits of launches on many.
fn holds(shape: Shape, prompts: &[u32]) {
    holds_with(shape, None, prompts);
}

fn holds_with(shape: Shape, product: Option<Dtype>, prompts: &[u32]) {
    let expected = steps(shape, How::Launched, product, 1000, prompts);
    assert!(expected.iter().flatten().all(|x| f32::from_bits(*x).is_finite()), "{shape:?}");
    for how in [How::Recorded, How::Between, How::Fewer, How::Launched] {
        if how == How::Fewer && product.is_none() {
            continue;
        }
        for multiprocessors in [1, 2, 7, 1000] {
            let found = steps(shape, how, product, multiprocessors, prompts);
            assert!(found == expected, "{shape:?} {product:?} {prompts:?} {multiprocessors}");
        }
    }
}

#[test]
fn attention_turns_its_heads_to_the_same_bits() {
    for dtype in [CacheDtype::F16, CacheDtype::Bf16, CacheDtype::I8, CacheDtype::F8] {
        // Of every width, with less work than the ring has room for and more, of sequences that differ.
        holds(shape(4, 2, 128, dtype), &[130, 3, 0, 64, 40]);
        holds(Shape { block: 20, ..shape(1, 1, 128, dtype) }, &[47]);
        holds(shape(9, 3, 64, dtype), &[17, 254]);
        holds(Shape { block: 32, ..shape(2, 1, 256, dtype) }, &[66, 15, 31]);
        // Heads that fill no lane, that are more than a tile has; caps, windows, norms, some values turned.
        holds(
            Shape { norms: true, softcap: Some(3.0), block: 20, ..shape(20, 1, 40, dtype) },
            &[50, 1],
        );
        holds(Shape { norms: true, rope_dim: 32, ..shape(2, 1, 80, dtype) }, &[33, 100]);
        holds(Shape { window: Some(21), rope_dim: 100, ..shape(2, 2, 200, dtype) }, &[70, 20, 5]);
    }
    holds(shape(4, 2, 128, CacheDtype::F32), &[20, 3]);
    holds(shape(2, 1, 18, CacheDtype::F16), &[140, 15]);
}

#[test]
fn spans_turn_the_same_heads() {
    for dtype in [CacheDtype::F16, CacheDtype::F8] {
        holds(shape(2, 1, 64, dtype), &[254, 600, 511]);
        holds(Shape { window: Some(300), norms: true, ..shape(2, 1, 128, dtype) }, &[510, 40]);
    }
}

#[test]
fn attention_makes_the_rows_of_the_next_product() {
    for dtype in [Dtype::Bf16, Dtype::F16, Dtype::Q8_0] {
        // Three rows, and two tiles of them; heads that fill no sixteen values, and one whose values are no chunk.
        holds_with(shape(4, 2, 128, CacheDtype::F16), Some(dtype), &[130, 3, 40]);
        holds_with(shape(9, 3, 64, CacheDtype::F8), Some(dtype), &[17, 0, 60, 1, 5, 9, 33, 2, 21]);
        holds_with(shape(4, 1, 72, CacheDtype::Bf16), Some(dtype), &[65, 12, 8, 3]);
        holds_with(
            Shape { softcap: Some(3.0), ..shape(32, 2, 4, CacheDtype::I8) },
            Some(dtype),
            &[7; 4],
        );
    }
    // Where f32 is multiplied, where a head has an odd number of values, where spans have blocks of their own.
    holds_with(shape(4, 2, 128, CacheDtype::F16), Some(Dtype::F32), &[30, 3, 40]);
    holds_with(shape(64, 4, 3, CacheDtype::F16), Some(Dtype::Bf16), &[30, 3, 40]);
    holds_with(shape(2, 1, 64, CacheDtype::F16), Some(Dtype::Bf16), &[254, 600, 511]);
}

#[test]
fn attention_and_the_rows_of_the_next_product_are_one_launch() {
    let started = |how, cols: usize, dtype| {
        let device = Cuda::new(Emulated::with_multiprocessors(2));
        let shape = shape(cols / 64, 1, 64, CacheDtype::F16);
        let mut decode = Decode::multiplied(&device, shape, how, dtype);
        decode.decode(&[0, 9, 4, 3, 20]);
        let names = device.driver().started().into_keys();
        let kernels = ["attention", "input", "rope_store"];
        names.filter(|name| kernels.iter().any(|of| name.starts_with(of))).collect::<Vec<_>>()
    };
    let token = "attention_token_f16_64_4";
    assert_eq!(started(How::Recorded, 128, Dtype::Bf16), [token]);
    assert_eq!(started(How::Launched, 128, Dtype::Bf16), [token, "input_tiles", "rope_store"]);
    assert_eq!(started(How::Recorded, 128, Dtype::F32), [token]);
}

#[test]
fn rotation_and_attention_are_one_launch() {
    let started = |how, dtype| {
        let device = Cuda::new(Emulated::default());
        let mut decode = Decode::new(&device, shape(4, 2, 128, dtype), how);
        // Recorded, and found again.
        [0, 1].into_iter().for_each(|position| decode.decode(&[position, 9]));
        let names = device.driver().started().into_iter();
        names
            .filter(|(name, _)| {
                ["attention", "rope_store", "softcap"].iter().any(|of| name.starts_with(of))
            })
            .collect::<Vec<_>>()
    };
    let names = |all: &[&str]| all.iter().map(|name| ((*name).to_owned(), 2)).collect::<Vec<_>>();
    let token = "attention_token_f16_128";
    assert_eq!(started(How::Recorded, CacheDtype::F16), names(&[token]));
    assert_eq!(started(How::Launched, CacheDtype::F16), names(&[token, "rope_store"]));
    assert_eq!(started(How::Between, CacheDtype::F16), names(&[token, "rope_store", "softcap"]));
    let all = names(&["attention_f32", "rope_store"]);
    assert_eq!(started(How::Recorded, CacheDtype::F32), all);
}

const SEQUENCES: usize = 9;
const OUTS: usize = 64;
const POSITIONS: usize = 620;
const VOCABULARY: usize = 50;
