//! What a decoder asks of the CUDA device one after the other, of which one launch does several things: the bits of launches that
//! were waited for one by one.

use crate::common::{Random, bits, buffer, matrix, read, relative_error};
use crate::cuda_products::FORMS;
use chrysalis_kernels::Dtype;
use chrysalis_kernels::cuda::{Cuda, Driver, Emulated, ProductLimits};
use chrysalis_kernels::device::{Activation, Device, Input, Linear};
use chrysalis_kernels::reference::Reference;

/// A feed-forward layer, `[rows, cols]` in and out.
struct Layer<D: Device> {
    norm: D::Vector,
    weights: [D::Matrix; 3],
    bias: Option<D::Vector>,
    /// The gate and what it gates.
    inner: [D::Buffer; 2],
    out: D::Buffer,
    sum: D::Buffer,
}

/// Rows, columns, columns within.
type Shape = (usize, usize, usize);

impl<D: Device> Layer<D> {
    /// Weights of a type, and last of another.
    fn new(device: &D, shape: Shape, [dtype, last]: [Dtype; 2], bias: bool) -> Self {
        let (rows, cols, inner) = shape;
        let mut random = Random(41);
        let sum = buffer(device, rows, cols, &random.values(rows * cols));
        let norm = device.vector(&random.values(cols)).unwrap();
        let mut weight = |dtype, out, cols| {
            let values = random.matrix(dtype, out, cols);
            matrix(device, dtype, out, cols, &values)
        };
        let weights =
            [weight(dtype, inner, cols), weight(dtype, inner, cols), weight(last, cols, inner)];
        let bias = bias.then(|| device.vector(&random.values(inner)).unwrap());
        let inners = [(); 2].map(|()| device.buffer(rows, inner).unwrap());
        Self { norm, weights, bias, inner: inners, out: device.buffer(rows, cols).unwrap(), sum }
    }

    /// `wait` comes between things that are asked for.
    fn multiply(&mut self, device: &D, rows: usize, activation: Activation, wait: impl Fn()) {
        let Self { norm, weights: [gates, ups, downs], bias, inner: [gate, up], out, sum } = self;
        let normed = Input::Normed { x: sum, weight: norm, eps: 1e-5 };
        let outputs = &mut [
            Linear { weight: gates, bias: bias.as_ref(), out: gate },
            Linear { weight: ups, bias: None, out: up },
        ];
        device.linear(rows, normed, outputs);
        wait();
        let gated = Input::Gated { activation, gate, up };
        device.linear(rows, gated, &mut [Linear { weight: downs, bias: None, out }]);
        wait();
    }
}

/// What comes of the product, the sum that it is added to, and the gate and what it gates where those are still there.
type Seen = [Vec<f32>; 4];

/// A layer, whose products are asked for so many times. `apart`: everything is waited for before the next thing is asked for.
fn feed_forward<D: Device>(
    device: &D,
    shape: Shape,
    dtype: Dtype,
    bias: bool,
    times: usize,
    apart: bool,
) -> Seen {
    let (rows, cols, inner) = shape;
    let mut layer = Layer::new(device, shape, [dtype; 2], bias);
    let wait = || {
        if apart {
            device.finish().unwrap();
        }
    };
    for _ in 0..times {
        layer.multiply(device, rows, Activation::Silu, wait);
    }
    let Layer { inner: [gate, up], out, mut sum, norm, weights, .. } = layer;
    // Whoever still needs them has them.
    drop((norm, weights));
    device.add(rows, Input::Rows(&out), &mut sum);
    let values = [(&out, cols), (&sum, cols), (&gate, inner), (&up, inner)];
    values.map(|(x, cols)| read(device, x, rows, cols))
}

/// A layer on such a device together and apart: the same bits, so many launches fewer, and what is `gated` is not written.
fn holds<D: Driver>(
    device: impl Fn() -> Cuda<D>,
    shape: Shape,
    dtype: Dtype,
    bias: bool,
    (gated, added): (bool, bool),
) {
    let run = |times, apart| {
        let device = device();
        let seen = feed_forward(&device, shape, dtype, bias, times, apart);
        (seen, device.crossings().unwrap().launches)
    };
    // The second time nothing grows.
    let ((together, few), (apart, many)) = (run(2, false), run(2, true));
    let what = format!("{dtype:?} {shape:?} {bias}");
    // Their own launch: the gates, the sum.
    assert_eq!(many - few, 2 * u64::from(gated) + u64::from(added), "{what}");
    let expected = feed_forward(&Reference, shape, dtype, bias, 1, true);
    for (n, (together, apart)) in together.iter().zip(&apart).enumerate() {
        if gated && n >= 2 {
            assert!(together.iter().all(|x| x.is_nan()), "{what}: value {n}");
        } else {
            assert!(bits(together) == bits(apart), "{what}: value {n}");
        }
        let error = relative_error(apart, &expected[n]);
        assert!(error < FEED_FORWARD_ERROR, "{what}: value {n} differs by {error}");
    }
}

#[test]
fn what_one_launch_does_has_the_bits_of_what_several_do() {
    // Whole chunks and others, one part and several, more columns than a thread keeps, more rows than a block makes.
    let shapes: [Shape; 7] = [
        (1, 256, 512),
        (2, 512, 128),
        (1, 4608, 64),
        (1, 256, 80),
        (3, 256, 512),
        (8, 512, 256),
        (9, 256, 128),
    ];
    for dtype in [Dtype::Bf16, Dtype::Q4_1, Dtype::Q8_0, Dtype::Q4K, Dtype::F32] {
        for shape in shapes {
            let (rows, _, inner) = shape;
            if !inner.is_multiple_of(dtype.group_len()) {
                continue;
            }
            for bias in [false, true] {
                let few = rows <= 8 && dtype != Dtype::F32;
                let device = || Cuda::new(Emulated::default());
                holds(device, shape, dtype, bias, (few && !bias && inner % 64 == 0, few));
            }
        }
    }
}

/// The kernels of Hopper for any number of rows, with whole sums: of 128 rows, or of 256 where there are more.
fn large(multiprocessors: usize, wide: bool) -> Cuda<Emulated> {
    let wide_blocks = if wide { 0 } else { usize::MAX };
    let limits = ProductLimits {
        few_rows: 0,
        some_rows: 0,
        narrow_rows: 0,
        wide_blocks,
        wide_chunks: 0,
        whole_blocks: 0,
        ..ProductLimits::of(90)
    };
    let limits = ProductLimits { wgmma: true, ..limits };
    Cuda::with_limits(Emulated::with_multiprocessors(multiprocessors), limits)
}

/// Those of at most so many rows, 32 or 64.
fn small(group_rows: usize) -> Cuda<Emulated> {
    let all = usize::MAX;
    let limits = ProductLimits {
        few_rows: 0,
        some_rows: if group_rows == 32 { all } else { 0 },
        narrow_rows: all,
        whole_blocks: 0,
        ..ProductLimits::of(90)
    };
    Cuda::with_limits(Emulated::default(), ProductLimits { wgmma: true, ..limits })
}

#[test]
fn some_rows_are_gated_where_they_are_multiplied() {
    for group_rows in [32, 64] {
        for dtype in FORMS {
            holds(|| small(group_rows), (9, 256, 256), dtype, false, (true, false));
        }
        // A row alone, whole groups and bands of rows, and others; sums of two parts.
        for shape in [(1, 64, 64), (64, 64, 192), (70, 512, 128), (33, 64, 320), (290, 64, 64)] {
            holds(|| small(group_rows), shape, Dtype::Bf16, false, (true, false));
        }
        holds(|| small(group_rows), (9, 64, 96), Dtype::Bf16, false, (false, false));
    }
}

#[test]
fn many_rows_are_gated_where_they_are_multiplied() {
    // They leave room for other numbers of stages.
    for dtype in FORMS {
        for (shape, wide) in [((9, 256, 256), false), ((130, 256, 256), true)] {
            holds(|| large(2, wide), shape, dtype, false, (true, false));
        }
    }
    // An odd number of blocks of outs, of which those that go from work to work have one, some or all; a row alone, whole groups and
    // bands of rows, and others; sums of two parts.
    for (shape, processors) in [
        ((1, 64, 64), 132),
        ((270, 512, 128), 2),
        ((128, 64, 192), 132),
        ((129, 128, 192), 132),
        ((512, 64, 192), 1),
        ((600, 64, 320), 4),
    ] {
        for wide in [false, true] {
            holds(|| large(processors, wide), shape, Dtype::Bf16, false, (true, false));
        }
    }
    // What is no gate: with a bias, with outs beyond the last chunk, in parts that are apart.
    holds(|| large(2, false), (9, 64, 128), Dtype::Bf16, true, (false, false));
    holds(|| large(2, false), (9, 64, 96), Dtype::Bf16, false, (false, false));
    let hopper = || Cuda::with_limits(Emulated::default(), ProductLimits::of(90));
    holds(hopper, (70, 512, 128), Dtype::Bf16, false, (false, false));
}

#[test]
fn every_gate_has_the_bits_of_its_kind_and_of_what_takes_it() {
    for activation in [Activation::Silu, Activation::GeluTanh, Activation::GeluErf] {
        for dtypes in [[Dtype::Q8_0, Dtype::Bf16], [Dtype::Bf16, Dtype::F16]] {
            for rows in [5, 20, 140] {
                let outs = [true, false].map(|apart| {
                    let device = match rows {
                        5 => Cuda::new(Emulated::default()),
                        20 => small(32),
                        _ => large(3, true),
                    };
                    let shape @ (_, cols, _) = (rows, 64, 128);
                    let mut layer = Layer::new(&device, shape, dtypes, false);
                    layer.multiply(&device, rows, activation, || {
                        if apart {
                            device.finish().unwrap();
                        }
                    });
                    let read = bits(&read(&device, &layer.out, rows, cols));
                    (read, device.crossings().unwrap().launches)
                });
                let [(apart, many), (together, few)] = outs;
                assert!(apart == together, "{activation:?} {dtypes:?} {rows}");
                assert_eq!(many - few, 1, "{activation:?} {dtypes:?} {rows}");
            }
        }
    }
}

#[test]
fn what_gates_need_is_planned() {
    for device in [large(2, false), large(2, true), small(64)] {
        let shape = (300, 64, 256);
        let mut layer = Layer::new(&device, shape, [Dtype::Bf16; 2], false);
        device.plan(|| layer.multiply(&device, shape.0, Activation::Silu, || ())).unwrap();
        let before = device.crossings().unwrap().reservations;
        for rows in [300, 1, 128, 129, 257, 8] {
            layer.multiply(&device, rows, Activation::Silu, || ());
        }
        device.finish().unwrap();
        assert_eq!(device.crossings().unwrap().reservations, before);
    }
}

/// Whoever writes early where threads and blocks run from the first to the last writes late here.
#[test]
fn threads_and_blocks_in_another_order_make_the_same_bits() {
    let few = ProductLimits::of(80);
    let streams = ProductLimits { few_rows: 0, some_rows: usize::MAX, ..few };
    let tiles = ProductLimits { few_rows: 0, some_rows: 0, ..few };
    let hopper = ProductLimits { wgmma: true, ..tiles };
    let whole = ProductLimits { whole_blocks: 0, wide_blocks: 0, wide_chunks: 0, ..hopper };
    // Sums in parts, apart and joined; tiles of every width.
    for (limits, rows) in
        [(few, 1), (few, 5), (streams, 20), (tiles, 20), (hopper, 40), (hopper, 70), (whole, 130)]
    {
        let [forwards, backwards] = [false, true].map(|backwards| {
            let driver = Emulated::with_multiprocessors(3);
            let driver = if backwards { driver.backwards() } else { driver };
            let device = Cuda::with_limits(driver, limits);
            let seen = feed_forward(&device, (rows, 512, 128), Dtype::Bf16, false, 1, true);
            seen.map(|values| bits(&values))
        });
        assert!(forwards == backwards, "{limits:?} {rows}");
    }
}

/// What a gate is made of is what was asked for: of the same rows, in the same order, by one product that takes nothing else of it.
#[test]
fn a_gate_of_anything_else_is_made_apart() {
    let (rows, cols) = (20, 128);
    let run = |apart: bool, other: usize| {
        let (device, mut random) = (large(2, false), Random(47));
        let x = buffer(&device, rows, cols, &random.values(rows * cols));
        let mut weights = [(); 4].map(|()| {
            matrix(&device, Dtype::Bf16, cols, cols, &random.matrix(Dtype::Bf16, cols, cols))
        });
        if other == 4 {
            let values = random.matrix(Dtype::F32, cols, cols);
            weights[3] = matrix(&device, Dtype::F32, cols, cols, &values);
        }
        let mut inner = [(); 2].map(|()| buffer(&device, rows, cols, &vec![1.0; rows * cols]));
        let mut outs = [(); 2].map(|()| device.buffer(rows, cols).unwrap());
        let launches = || device.crossings().unwrap().launches;
        let before = launches();
        let [gate, up] = &mut inner;
        let outputs = &mut [
            Linear { weight: &weights[0], bias: None, out: gate },
            Linear { weight: &weights[1], bias: None, out: up },
        ];
        device.linear(rows, Input::Rows(&x), outputs);
        if apart {
            device.finish().unwrap();
        }
        let (gate, up) = if other == 1 { (&inner[1], &inner[0]) } else { (&inner[0], &inner[1]) };
        let input = Input::Gated { activation: Activation::Silu, gate, up };
        let rows = if other == 2 { rows - 1 } else { rows };
        let [first, second] = &mut outs;
        match other {
            // Two bf16 for a value.
            3 => device.logits(rows, input, &weights[2], first),
            // In f32; and two that may be a gate themselves.
            4 | 5 => {
                let outputs = &mut [
                    Linear { weight: &weights[2], bias: None, out: first },
                    Linear { weight: &weights[3], bias: None, out: second },
                ];
                device.linear(rows, input, outputs);
            }
            6 => device.add(rows, input, first),
            _ => device.linear(
                rows,
                input,
                &mut [Linear { weight: &weights[2], bias: None, out: first }],
            ),
        }
        device.finish().unwrap();
        let count = launches() - before;
        let seen = outs.each_ref().map(|out| bits(&read(&device, out, rows, cols)));
        (seen, count)
    };
    for other in 0..=6 {
        let ((together, few), (apart, many)) = (run(false, other), run(true, other));
        assert!(together == apart, "{other}");
        assert_eq!(many - few, u64::from(other == 0), "{other}");
    }
}

#[test]
fn a_product_that_reads_what_it_is_added_to_is_added_apart() {
    let outs = [false, true].map(|apart| {
        let (device, mut random, cols) = (Cuda::new(Emulated::default()), Random(43), 192);
        let start = random.values(cols);
        let mut sum = buffer(&device, 1, cols, &start);
        let values = random.matrix(Dtype::Bf16, cols, cols);
        let weight = matrix(&device, Dtype::Bf16, cols, cols, &values);
        let mut out = device.buffer(1, cols).unwrap();
        let output = Linear { weight: &weight, bias: None, out: &mut out };
        device.linear(1, Input::Rows(&sum), &mut [output]);
        if apart {
            device.finish().unwrap();
        }
        device.add(1, Input::Rows(&out), &mut sum);
        let (sum, out) = (read(&device, &sum, 1, cols), read(&device, &out, 1, cols));
        let expected: Vec<f32> = start.iter().zip(&out).map(|(start, out)| start + out).collect();
        assert_eq!(bits(&sum), bits(&expected), "{apart}");
        bits(&out)
    });
    assert_eq!(outs[0], outs[1]);
}

#[test]
fn what_waits_is_no_part_of_a_plan() {
    let (device, mut random, cols) = (Cuda::new(Emulated::default()), Random(44), 192);
    let x = buffer(&device, 1, cols, &random.values(cols));
    let values = random.matrix(Dtype::Bf16, cols, cols);
    let weight = matrix(&device, Dtype::Bf16, cols, cols, &values);
    let mut out = device.buffer(1, cols).unwrap();
    let output = Linear { weight: &weight, bias: None, out: &mut out };
    device.linear(1, Input::Rows(&x), &mut [output]);
    device.plan(|| ()).unwrap();
    // Memory begins as NaN.
    assert!(read(&device, &out, 1, cols).iter().all(|x| x.is_finite()));
}

#[test]
fn logits_hold_no_memory_of_what_is_dropped() {
    let (device, mut random, cols) = (Cuda::new(Emulated::default()), Random(45), 192);
    let x = buffer(&device, 1, cols, &random.values(cols));
    let values = random.matrix(Dtype::Bf16, cols, cols);
    let weight = matrix(&device, Dtype::Bf16, cols, cols, &values);
    let mut out = device.buffer(1, cols).unwrap();
    device.logits(1, Input::Rows(&x), &weight, &mut out);
    let before = device.driver().given_back();
    drop((x, weight, out));
    assert_eq!(device.driver().given_back() - before, 3);
}

/// Operations on four buffers in an order drawn by lot, on few multiprocessors or more, of few rows or as if there were many; what the
/// buffers hold then. `apart`: each is waited for.
fn drawn_by_lot(seed: u64, apart: bool) -> Vec<Vec<u32>> {
    let mut random = Random(seed);
    let mut below = |n: usize| random.next() as usize % n;
    let (processors, cols, rows) = (1 + below(4), 64 * (1 + below(3)), 1 + below(4));
    let device = match below(2) {
        0 => Cuda::new(Emulated::with_multiprocessors(processors)),
        _ => large(processors, false),
    };
    let mut buffers: Vec<_> =
        (0..28).map(|_| buffer(&device, rows, cols, &random.values(rows * cols))).collect();
    let weights = [Dtype::Bf16, Dtype::Bf16, Dtype::F16, Dtype::F32].map(|dtype| {
        let values = random.matrix(dtype, cols, cols);
        matrix(&device, dtype, cols, cols, &values)
    });
    let norm = device.vector(&random.values(cols)).unwrap();
    for _ in 0..12 {
        let mut below = |n: usize| random.next() as usize % n;
        // Two that may be written, two that are read: by lot, or what was written is read and the other way round.
        match below(4) {
            0 => (1..4).rev().for_each(|i| buffers.swap(i, below(i + 1))),
            1 => buffers.swap(0, 2),
            _ => (0..2).for_each(|i| buffers.swap(i, i + 2)),
        }
        let [out, also, x, other] = &mut buffers[..4] else { unreachable!() };
        let (some, first, second) = (1 + below(rows), &weights[below(4)], &weights[below(4)]);
        let input = match below(4) {
            0 => Input::Rows(x),
            1 => Input::Normed { x, weight: &norm, eps: 1e-5 },
            _ => Input::Gated { activation: Activation::GeluTanh, gate: x, up: other },
        };
        let gated = matches!(input, Input::Gated { .. });
        let bias = (below(2) == 0).then_some(&norm);
        match below(7) {
            0 | 1 => device.linear(some, input, &mut [Linear { weight: first, bias, out }]),
            2 | 3 => {
                let second = Linear { weight: second, bias: None, out: also };
                device.linear(
                    some,
                    input,
                    &mut [Linear { weight: first, bias: None, out }, second],
                );
            }
            4 | 5 => device.add(some, input, out),
            _ => device.logits(some, input, first, out),
        }
        // Values stay small.
        if below(4) == 0 {
            device.softcap(rows, 2.0, out);
            device.softcap(rows, 2.0, also);
        }
        if gated {
            // What was gated holds nothing that anybody may read.
            (2..4).for_each(|i| drop(buffers.swap_remove(i)));
        }
        if apart {
            device.finish().unwrap();
        }
    }
    buffers[..4].iter().map(|x| bits(&read(&device, x, rows, cols))).collect()
}

#[test]
fn whatever_is_asked_in_whatever_order_has_the_bits_of_one_after_the_other() {
    for seed in 1..=120 {
        assert!(drawn_by_lot(seed, false) == drawn_by_lot(seed, true), "{seed}");
    }
}

/// Three products of weights and activations in bf16 one after the other.
const FEED_FORWARD_ERROR: f64 = 2e-2;
