//! What a decoder asks of the CUDA device one after the other, of which one launch does several things: the bits of launches that
//! were waited for one by one.

use crate::common::{Random, bits, buffer, matrix, read, relative_error};
use chrysalis_kernels::Dtype;
use chrysalis_kernels::cuda::{Cuda, Emulated};
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
    for apart in [false, true] {
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
    }
}

/// Three products of weights and activations in bf16 one after the other.
const FEED_FORWARD_ERROR: f64 = 2e-2;
