//! Steps of few rows as one launch: the bits of the launches that it stands for.

use chrysalis_kernels::cuda::{Cuda, Driver, Emulated, ProductLimits};
use chrysalis_kernels::device::{
    Activation, Attention, CacheDtype, CacheShape, Device, Input, Linear, RopeParams, RopeStore,
    Rows,
};
use chrysalis_kernels::{Batch, Dtype, WantLogits};

use crate::card::{open, options};
use crate::common::{Random, bits, matrix, read};

/// A decoder's layers.
#[derive(Clone, Copy, Debug)]
struct Shape {
    dtype: Dtype,
    /// Of the product that a layer ends with.
    last: Dtype,
    /// Of v, if it is not the layer's.
    v: Option<Dtype>,
    /// Whether a product is asked for between rotation and attention.
    between: bool,
    cache: CacheDtype,
    cols: usize,
    inner: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    layers: usize,
    /// Biases of q, k and v.
    bias: bool,
    /// Norms of heads.
    norms: bool,
    window: Option<usize>,
    softcap: Option<f32>,
}

const SHAPE: Shape = Shape {
    dtype: Dtype::Bf16,
    last: Dtype::Bf16,
    v: None,
    between: false,
    cache: CacheDtype::F16,
    // No whole number of rings.
    cols: 320,
    inner: 448,
    heads: 4,
    kv_heads: 2,
    head_dim: 64,
    layers: 2,
    bias: false,
    norms: false,
    window: None,
    softcap: None,
};

struct Layer<D: Device> {
    norms: [D::Vector; 2],
    /// q, k, v; o; gate, up; down.
    weights: [D::Matrix; 7],
    biases: [D::Vector; 3],
    heads: [D::Vector; 2],
}

struct Layers<'a, D: Device> {
    device: &'a D,
    shape: Shape,
    table: D::Matrix,
    layers: Vec<Layer<D>>,
    rope: D::Rope,
    cache: D::Cache,
    step: D::Step,
    sum: D::Buffer,
    qkv: [D::Buffer; 3],
    attended: D::Buffer,
    inner: [D::Buffer; 2],
    out: D::Buffer,
}

const TOKENS: usize = 4;
const POSITIONS: usize = 1100;
const BLOCK: usize = 20;
const VOCABULARY: usize = 50;

impl<'a, D: Device> Layers<'a, D> {
    fn new(device: &'a D, shape: Shape) -> Self {
        let mut random = Random(91);
        let (q, kv) = (shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim);
        let layers = (0..shape.layers).map(|_| {
            let mut weight = |dtype, out, cols| {
                let mut bytes = random.matrix(dtype, out, cols);
                if dtype == Dtype::Bf16 {
                    // A sixteenth, so that sums do not grow from layer to layer.
                    bytes.as_chunks_mut::<2>().0.iter_mut().for_each(|x| {
                        let value = half::bf16::from_le_bytes(*x).to_f32() / 16.0;
                        *x = half::bf16::from_f32(value).to_le_bytes();
                    });
                }
                matrix(device, dtype, out, cols, &bytes)
            };
            let Shape { dtype, last, cols, inner, head_dim, .. } = shape;
            let weights = [
                weight(dtype, q, cols),
                weight(dtype, kv, cols),
                weight(shape.v.unwrap_or(dtype), kv, cols),
                weight(dtype, cols, q),
                weight(dtype, inner, cols),
                weight(dtype, inner, cols),
                weight(last, cols, inner),
            ];
            let mut vector = |len| device.vector(&random.values(len)).unwrap();
            Layer {
                norms: [vector(cols), vector(cols)],
                weights,
                biases: [vector(q), vector(kv), vector(kv)],
                heads: [vector(head_dim), vector(head_dim)],
            }
        });
        let layers = layers.collect();
        let cache = CacheShape {
            num_layers: shape.layers,
            num_blocks: TOKENS * POSITIONS.div_ceil(BLOCK),
            block_size: BLOCK,
            num_kv_heads: shape.kv_heads,
            head_dim: shape.head_dim,
            dtype: shape.cache,
        };
        let inv_freq = (0..shape.head_dim / 2).map(|i| 0.7_f32.powi(i as i32)).collect();
        let rope = RopeParams { inv_freq, attention_factor: 1.0, max_positions: POSITIONS };
        let buffer = |cols| device.buffer(TOKENS, cols).unwrap();
        let table = random.matrix(Dtype::F32, VOCABULARY, shape.cols);
        let mut all = Self {
            table: matrix(device, Dtype::F32, VOCABULARY, shape.cols, &table),
            rope: device.rope(&rope).unwrap(),
            cache: device.cache(cache).unwrap(),
            step: device.step(TOKENS).unwrap(),
            sum: buffer(shape.cols),
            qkv: [buffer(q), buffer(kv), buffer(kv)],
            attended: buffer(q),
            inner: [buffer(shape.inner), buffer(shape.inner)],
            out: buffer(shape.cols),
            layers,
            device,
            shape,
        };
        let last = POSITIONS as u32 - 1;
        let plan =
            || [1, 2, 4].into_iter().for_each(|tokens| all.enqueue(&[last; TOKENS][..tokens]));
        device.plan(plan).unwrap();
        all
    }

    /// A step of one token each, at these positions of sequences of their own: what the last layer leaves.
    fn step(&mut self, positions: &[u32]) -> Vec<u32> {
        self.enqueue(positions);
        bits(&read(self.device, &self.sum, positions.len(), self.shape.cols))
    }

    fn enqueue(&mut self, positions: &[u32]) {
        let mut batch = Batch::default();
        let blocks = POSITIONS.div_ceil(BLOCK) as u32;
        for (s, position) in (0..).zip(positions) {
            let table: Vec<u32> = (s * blocks..(s + 1) * blocks).rev().collect();
            batch.push(&[(position * 7 + s) % 50], *position, &table, WantLogits::Last);
        }
        self.device.set_step(&mut self.step, &batch);
        let rows = Rows { tokens: positions.len(), logits: positions.len() };
        let room = Rows { tokens: TOKENS, logits: TOKENS };
        if let Some(rows) = self.device.begin(&mut self.step, rows, room) {
            self.device.embed(&self.step, &self.table, 1.0, &mut self.sum);
            (0..self.shape.layers).for_each(|layer| self.layer(layer, rows.tokens));
            self.device.end(&mut self.step);
        }
    }

    fn layer(&mut self, index: usize, rows: usize) {
        let Self { device, shape, layers, rope, cache, step, sum, qkv, attended, .. } = self;
        let Layer { norms, weights, biases, heads } = &layers[index];
        let normed = Input::Normed { x: sum, weight: &norms[0], eps: 1e-5 };
        let mut outputs = Vec::new();
        for ((out, weight), bias) in qkv.iter_mut().zip(weights).zip(biases) {
            outputs.push(Linear { weight, bias: shape.bias.then_some(bias), out });
        }
        device.linear(rows, normed, &mut outputs);
        let [q, k, v] = qkv;
        let [q_norm, k_norm] = [0, 1].map(|n| shape.norms.then_some(&heads[n]));
        let args = RopeStore { layer: index, q, k, v, q_norm, k_norm, eps: 1e-6, rope, cache };
        device.rope_store(step, args);
        if shape.between {
            let normed = Input::Normed { x: sum, weight: &norms[1], eps: 1e-5 };
            let out = &mut self.inner[0];
            device.linear(rows, normed, &mut [Linear { weight: &weights[4], bias: None, out }]);
        }
        let scale = 1.0 / (shape.head_dim as f32).sqrt();
        let (softcap, window) = (shape.softcap, shape.window);
        let out = &mut *attended;
        device.attention(step, Attention { layer: index, q, cache, scale, softcap, window, out });
        let out = &mut self.out;
        let o = &mut [Linear { weight: &weights[3], bias: None, out }];
        device.linear(rows, Input::Rows(attended), o);
        device.add(rows, Input::Rows(out), sum);
        let normed = Input::Normed { x: sum, weight: &norms[1], eps: 1e-5 };
        let [gate, up] = &mut self.inner;
        let outputs = &mut [
            Linear { weight: &weights[4], bias: None, out: gate },
            Linear { weight: &weights[5], bias: None, out: up },
        ];
        device.linear(rows, normed, outputs);
        let gated = Input::Gated { activation: Activation::Silu, gate, up };
        device.linear(rows, gated, &mut [Linear { weight: &weights[6], bias: None, out }]);
        device.add(rows, Input::Rows(out), sum);
    }
}

fn device<D: Driver>(driver: D, megakernel_rows: usize, few_ahead: usize) -> Cuda<D> {
    let limits =
        ProductLimits { shared: 227 << 10, megakernel_rows, few_ahead, ..ProductLimits::of(80) };
    Cuda::with_limits(driver, limits)
}

/// Steps of one and two tokens, and of more, each several times, with spans of their own and without: the same bits.
fn holds(shape: Shape, multiprocessors: usize) {
    holds_of(shape, || Emulated::with_multiprocessors(multiprocessors));
}

fn holds_of(shape: Shape, emulated: impl Fn() -> Emulated) {
    let devices = [2, 0].map(|rows| device(emulated(), rows, 0));
    let [mut one, mut many] = devices.each_ref().map(|device| Layers::new(device, shape));
    for steps in [&[0][..], &[1], &[0, 255], &[256, 1], &[256], &[2, 257, 3], &[767], &[4, 768]] {
        let (found, expected) = (one.step(steps), many.step(steps));
        assert!(found == expected, "{shape:?}, {steps:?}, {}", emulated().describe());
        assert!(found.iter().all(|x| f32::from_bits(*x).is_finite()), "{shape:?}");
    }
}

#[test]
fn a_step_as_one_launch_has_the_bits_of_many() {
    // More blocks than works, fewer than attention has, and one.
    for multiprocessors in [40, 5, 1] {
        holds(SHAPE, multiprocessors);
    }
    // Whoever comes early where threads take turns in their order comes late here.
    holds_of(SHAPE, || Emulated::with_multiprocessors(3).backwards());
}

#[test]
fn every_form_and_shape_is_one_launch() {
    use Dtype::{Bf16, F8E4M3, F16, Q4_0, Q4_1, Q4K, Q5K, Q6K, Q8_0};
    for dtype in [F16, Q4_0, Q4_1, Q8_0, F8E4M3] {
        holds(Shape { dtype, last: dtype, cols: 384, inner: 640, ..SHAPE }, 7);
    }
    for dtype in [Q4K, Q5K] {
        holds(Shape { dtype, last: dtype, cols: 256, inner: 768, ..SHAPE }, 7);
    }
    for shape in [
        Shape { head_dim: 128, heads: 2, kv_heads: 1, bias: true, ..SHAPE },
        Shape { head_dim: 80, heads: 3, kv_heads: 1, norms: true, softcap: Some(20.0), ..SHAPE },
        Shape { head_dim: 40, heads: 20, kv_heads: 1, window: Some(300), ..SHAPE },
        // What it has no kernel for comes in between.
        Shape { head_dim: 256, heads: 1, kv_heads: 1, ..SHAPE },
        Shape { cache: CacheDtype::I8, ..SHAPE },
        Shape { dtype: Q4K, last: Q6K, cols: 256, inner: 256, ..SHAPE },
        Shape { last: Dtype::F32, ..SHAPE },
        Shape { dtype: Dtype::F32, last: Dtype::F32, ..SHAPE },
        // It waits when rotation is asked for, and is of a launch of its own.
        Shape { dtype: Q4K, last: Q6K, v: Some(Q6K), cols: 256, inner: 256, ..SHAPE },
        Shape { between: true, ..SHAPE },
        // Odd columns, sums in eight parts, more layers than a launch has room for.
        Shape { cols: 200, inner: 328, ..SHAPE },
        Shape { cols: 1024, inner: 2048, layers: 1, ..SHAPE },
        Shape { layers: 23, dtype: Bf16, cols: 64, inner: 64, heads: 1, kv_heads: 1, ..SHAPE },
    ] {
        holds(shape, 6);
    }
}

#[test]
fn what_is_asked_for_ahead_is_copied_later() {
    // The emulator ends where it is not.
    let shape = Shape { cols: 2048, inner: 1024, layers: 1, ..SHAPE };
    let devices = [0, 8192].map(|ahead| device(Emulated::with_multiprocessors(6), 2, ahead));
    let [mut not, mut ahead] = devices.each_ref().map(|device| Layers::new(device, shape));
    assert!(not.step(&[3]) == ahead.step(&[3]));
}

#[test]
fn a_card_starts_all_blocks_at_the_same_time() {
    let card = open(options(32)).unwrap();
    let (card, emulated) = (device(card, 2, 0), device(Emulated::default(), 0, 0));
    let shape = Shape { layers: 1, ..SHAPE };
    assert!(Layers::new(&card, shape).step(&[3]) == Layers::new(&emulated, shape).step(&[3]));
}

/// How often each kernel is started in a step, once it is recorded.
fn started(shape: Shape, positions: &[u32]) -> Vec<(String, u64)> {
    let device = device(Emulated::with_multiprocessors(6), 2, 0);
    let mut layers = Layers::new(&device, shape);
    layers.step(positions);
    let before = device.driver().started();
    layers.step(positions);
    let all = device.driver().started().into_iter();
    all.map(|(name, times)| (name.clone(), times - before.get(&name).unwrap_or(&0)))
        .filter(|(_, times)| *times > 0)
        .collect()
}

#[test]
fn so_many_launches_are_a_step() {
    let case = |shape, positions: &[u32], expected: &[(&str, u64)]| {
        let expected: Vec<_> = expected.iter().map(|(name, n)| ((*name).to_owned(), *n)).collect();
        assert_eq!(started(shape, positions), expected, "{shape:?} {positions:?}");
    };
    let whole = [("angles", 1), ("embed_f32", 1), ("megakernel_bf16", 1)];
    case(SHAPE, &[3], &whole);
    case(SHAPE, &[3, 200], &whole);
    // 115 operations, and 130.
    let small = Shape { cols: 64, inner: 64, heads: 1, kv_heads: 1, ..SHAPE };
    case(Shape { layers: 23, ..small }, &[3], &whole);
    case(Shape { layers: 26, ..small }, &[3], &[whole[0], whole[1], ("megakernel_bf16", 2)]);
    // What is not gathered comes between what is: more spans than multiprocessors, another cache, forms that differ.
    for (shape, position, attention) in [
        (SHAPE, 900, "attention_token_f16_64"),
        (Shape { cache: CacheDtype::I8, ..SHAPE }, 3, "attention_token_i8_64"),
    ] {
        let products = [("linear_few_bf16", 1), ("megakernel_bf16", 2)];
        let attended = [whole[0], (attention, 2), whole[1]];
        case(shape, &[position], &[&attended[..], &products, &[("rope_store", 2)]].concat());
    }
    case(
        Shape { last: Dtype::F16, ..SHAPE },
        &[3],
        &[("angles", 1), ("embed_f32", 1), ("linear_few_f16", 2), ("megakernel_bf16", 2)],
    );
    // Three rows are made by launches of their own.
    assert!(started(SHAPE, &[3, 4, 5]).iter().all(|(name, _)| !name.starts_with("megakernel")));
}
