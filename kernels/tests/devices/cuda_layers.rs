//! What a decoder asks of the CUDA device one after the other, of which one launch does several things: the bits of launches that
//! were waited for one by one.

use crate::common::{Random, bits, buffer, matrix, read, relative_error};
use chrysalis_kernels::Dtype;
use chrysalis_kernels::cuda::{Cuda, Driver, Emulated};
use chrysalis_kernels::device::{Activation, Device, Input, Linear};
use chrysalis_kernels::reference::Reference;

/// Values of a run: the gate and what it gates, what comes of them, and the sum that this is added to.
type Seen = [Vec<f32>; 4];

/// A feed-forward layer. `apart`: everything is waited for before the next thing is asked for.
fn feed_forward<D: Device>(
    device: &D,
    (rows, cols, inner): (usize, usize, usize),
    dtype: Dtype,
    bias: bool,
    apart: bool,
) -> Seen {
    let mut random = Random(41);
    let start = random.values(rows * cols);
    let mut sum = buffer(device, rows, cols, &start);
    let norm = device.vector(&random.values(cols)).unwrap();
    let mut weights = |out, cols| {
        let values = random.matrix(dtype, out, cols);
        matrix(device, dtype, out, cols, &values)
    };
    let (gates, ups, downs) = (weights(inner, cols), weights(inner, cols), weights(cols, inner));
    let offsets = bias.then(|| device.vector(&random.values(inner)).unwrap());
    let [mut gate, mut up] = [(); 2].map(|()| device.buffer(rows, inner).unwrap());
    let mut out = device.buffer(rows, cols).unwrap();
    let wait = || {
        if apart {
            device.finish().unwrap();
        }
    };
    let normed = Input::Normed { x: &sum, weight: &norm, eps: 1e-5 };
    let outputs = &mut [
        Linear { weight: &gates, bias: offsets.as_ref(), out: &mut gate },
        Linear { weight: &ups, bias: None, out: &mut up },
    ];
    device.linear(rows, normed, outputs);
    wait();
    let gated = Input::Gated { activation: Activation::Silu, gate: &gate, up: &up };
    device.linear(rows, gated, &mut [Linear { weight: &downs, bias: None, out: &mut out }]);
    // Whoever still needs them has them.
    drop((gates, ups, downs, norm));
    wait();
    device.add(rows, Input::Rows(&out), &mut sum);
    let values = [(&gate, inner), (&up, inner), (&out, cols), (&sum, cols)];
    values.map(|(x, cols)| read(device, x, rows, cols))
}

#[test]
fn what_one_launch_does_has_the_bits_of_what_several_do() {
    // Whole chunks and others, one part and several, more columns than a thread keeps, more rows than a block makes.
    let shapes: [(usize, usize, usize); 6] =
        [(1, 256, 512), (2, 512, 128), (1, 4608, 64), (1, 256, 80), (3, 256, 512), (9, 256, 128)];
    for dtype in [Dtype::Bf16, Dtype::Q4_1, Dtype::Q8_0, Dtype::Q4K, Dtype::F32] {
        for (rows, cols, inner) in shapes {
            if !inner.is_multiple_of(dtype.group_len()) {
                continue;
            }
            for bias in [false, true] {
                let run = |apart| {
                    let device = Cuda::new(Emulated::default());
                    let seen = feed_forward(&device, (rows, cols, inner), dtype, bias, apart);
                    (seen, device.crossings().unwrap().launches)
                };
                let ((together, few), (apart, many)) = (run(false), run(true));
                let gated = rows <= 2 && !bias && inner % 64 == 0;
                // Its own launch: the gate, the sum.
                let saved =
                    u64::from(dtype != Dtype::F32) * (u64::from(gated) + u64::from(rows < 9));
                assert_eq!(many - few, saved, "{dtype:?} {rows} x {cols} x {inner}");
                let what = format!("{dtype:?} {rows} x {cols} x {inner}");
                for (n, (together, apart)) in together.iter().zip(&apart).enumerate() {
                    assert!(bits(together) == bits(apart), "{what}: value {n}");
                }
                let expected = feed_forward(&Reference, (rows, cols, inner), dtype, bias, true);
                for (n, (found, expected)) in together.iter().zip(&expected).enumerate() {
                    let error = relative_error(found, expected);
                    assert!(error < FEED_FORWARD_ERROR, "{what}: value {n} differs by {error}");
                }
            }
        }
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

/// Operations on four buffers in an order drawn by lot, on few multiprocessors or more; what the buffers hold then. `apart`: each
/// is waited for.
fn drawn_by_lot(seed: u64, apart: bool) -> Vec<Vec<u32>> {
    let mut random = Random(seed);
    let mut below = |n: usize| random.next() as usize % n;
    let (processors, cols, rows) = (1 + below(4), 64 * (1 + below(3)), 1 + below(3));
    let device = Cuda::new(Emulated::with_multiprocessors(processors));
    let mut buffers: Vec<_> =
        (0..4).map(|_| buffer(&device, rows, cols, &random.values(rows * cols))).collect();
    let weights = [Dtype::Bf16, Dtype::Bf16, Dtype::F16, Dtype::F32].map(|dtype| {
        let values = random.matrix(dtype, cols, cols);
        matrix(&device, dtype, cols, cols, &values)
    });
    let norm = device.vector(&random.values(cols)).unwrap();
    for _ in 0..12 {
        let mut below = |n: usize| random.next() as usize % n;
        // Two that may be written, two that are read: by lot, or what was written is read and the other way round.
        match below(2) {
            0 => (1..4).rev().for_each(|i| buffers.swap(i, below(i + 1))),
            _ => buffers.swap(0, 2),
        }
        let [out, also, x, other] = &mut buffers[..] else { unreachable!() };
        let (some, first, second) = (1 + below(rows), &weights[below(4)], &weights[below(4)]);
        let input = match below(3) {
            0 => Input::Rows(x),
            1 => Input::Normed { x, weight: &norm, eps: 1e-5 },
            _ => Input::Gated { activation: Activation::GeluTanh, gate: x, up: other },
        };
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
        if apart {
            device.finish().unwrap();
        }
    }
    buffers.iter().map(|x| bits(&read(&device, x, rows, cols))).collect()
}

#[test]
fn whatever_is_asked_in_whatever_order_has_the_bits_of_one_after_the_other() {
    for seed in 1..=60 {
        assert!(drawn_by_lot(seed, false) == drawn_by_lot(seed, true), "{seed}");
    }
}

/// Three products of weights and activations in bf16 one after the other.
const FEED_FORWARD_ERROR: f64 = 2e-2;
