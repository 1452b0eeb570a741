//! Rows on their way into a product of the CUDA kernels, emulated: norms, gates, rows as they are, and what is added in front of a norm,
//! each with the bits of a row alone, whichever kernel made it.

use crate::common::{Random, bits, buffer, matrix, read};
use chrysalis_kernels::Dtype;
use chrysalis_kernels::cuda::{Cuda, Emulated, ProductLimits};
use chrysalis_kernels::device::{Activation, Device, Input, Linear};

const OUTS: usize = 6;

/// Whose kernels for products never make rows themselves; `shared` memory of a block, and multiprocessors.
fn apart(shared: usize, multiprocessors: usize) -> Cuda<Emulated> {
    let limits = ProductLimits { few_rows: 0, shared, ..ProductLimits::of(80) };
    Cuda::with_limits(Emulated::with_multiprocessors(multiprocessors), limits)
}

/// Which of the kernels for rows were started.
fn started(device: &Cuda<Emulated>) -> Vec<String> {
    let names = device.driver().started().into_keys();
    names.filter(|name| name.contains("tiles") && !name.starts_with("linear")).collect()
}

/// What the rows' inputs are made of.
struct Values {
    rows: usize,
    cols: usize,
    /// Rows, what gates or is added to them, and the weights of the norm.
    parts: [Vec<f32>; 3],
    dtype: Dtype,
    weight: Vec<u8>,
}

/// Which input, of [`Values`].
#[derive(Clone, Copy, Debug, PartialEq)]
enum Made {
    Rows,
    Gated(Activation),
    Normed,
    /// After the rows, or their norm, were added.
    Summed {
        normed: bool,
    },
}

impl Values {
    fn new(rows: usize, cols: usize, dtype: Dtype) -> Self {
        let mut random = Random(31);
        let parts = [rows * cols, rows * cols, cols].map(|len| random.values(len));
        Self { rows, cols, parts, dtype, weight: random.matrix(dtype, OUTS, cols) }
    }

    /// One of them.
    fn row(&self, row: usize) -> Self {
        let [x, y, norm] = &self.parts;
        let part = |x: &Vec<f32>| x[row * self.cols..][..self.cols].to_vec();
        let parts = [part(x), part(y), norm.clone()];
        Self { rows: 1, parts, weight: self.weight.clone(), ..*self }
    }

    /// The input, made by a kernel of its own.
    fn before(&self, made: Made) -> Self {
        let (device, Self { rows, cols, parts: [x, y, norm], .. }) =
            (Cuda::new(Emulated::default()), self);
        let [x, y] = [x, y].map(|values| buffer(&device, *rows, *cols, values));
        let mut sum = buffer(&device, *rows, *cols, &vec![0.0; rows * cols]);
        let input = match made {
            Made::Gated(activation) => Input::Gated { activation, gate: &x, up: &y },
            _ => Input::Rows(&x),
        };
        device.add(*rows, input, &mut sum);
        let sum = read(&device, &sum, *rows, *cols);
        Self { parts: [sum.clone(), sum, norm.clone()], weight: self.weight.clone(), ..*self }
    }

    /// The products, with finer rows or not, and the sums.
    fn run(&self, device: &Cuda<Emulated>, made: Made, fine: bool) -> Vec<[Vec<u32>; 2]> {
        let Self { rows, cols, parts: [x, y, norm], dtype, weight } = self;
        let (rows, cols) = (*rows, *cols);
        let (x, mut y) = (buffer(device, rows, cols, x), buffer(device, rows, cols, y));
        let norm = device.vector(norm).unwrap();
        let weight = matrix(device, *dtype, OUTS, cols, weight);
        let mut out = device.buffer(rows, OUTS).unwrap();
        if let Made::Summed { normed } = made {
            let more = Input::Normed { x: &x, weight: &norm, eps: 1e-5 };
            device.add(rows, if normed { more } else { Input::Rows(&x) }, &mut y);
        }
        let input = match made {
            Made::Rows => Input::Rows(&x),
            Made::Gated(activation) => Input::Gated { activation, gate: &x, up: &y },
            Made::Normed => Input::Normed { x: &x, weight: &norm, eps: 1e-6 },
            Made::Summed { .. } => Input::Normed { x: &y, weight: &norm, eps: 1e-6 },
        };
        if fine {
            device.logits(rows, input, &weight, &mut out);
        } else {
            let output = Linear { weight: &weight, bias: None, out: &mut out };
            device.linear(rows, input, &mut [output]);
        }
        let (out, sums) = (read(device, &out, rows, OUTS), read(device, &y, rows, cols));
        let row = |x: &[f32], len: usize, t: usize| bits(&x[t * len..][..len]);
        (0..rows).map(|t| [row(&out, OUTS, t), row(&sums, cols, t)]).collect()
    }
}

#[test]
fn norms_and_sums_have_the_bits_of_a_row_alone() {
    // Columns one by one and in fours, below a chunk, of more than a block holds at once; two rows to a block, of which one is not there.
    for (rows, cols) in [(3, 1), (9, 63), (5, 260), (3, 4096), (5, 4099), (3, 5376), (9, 8196)] {
        for (dtype, fine) in [(Dtype::Bf16, false), (Dtype::F16, true)] {
            let values = Values::new(rows, cols, dtype);
            for made in
                [Made::Normed, Made::Summed { normed: false }, Made::Summed { normed: true }]
            {
                let alone = |t| values.row(t).run(&Cuda::new(Emulated::default()), made, fine);
                let expected: Vec<_> = (0..rows).flat_map(alone).collect();
                for (name, shared, multiprocessors) in
                    [("1", 163 << 10, 132), ("2", 163 << 10, 1), ("1", 0, 1)]
                {
                    let device = apart(shared, multiprocessors);
                    let found = values.run(&device, made, fine);
                    assert!(found == expected, "{rows} x {cols}, {made:?}, {name}, {fine}");
                    assert_eq!(started(&device), [format!("normed_tiles_{name}")]);
                }
            }
        }
    }
}

#[test]
fn gates_and_rows_have_the_bits_of_those_made_before() {
    for (rows, cols) in [(1, 1), (9, 63), (17, 260), (3, 1100), (9, 2052)] {
        for (dtype, fine) in [(Dtype::Bf16, true), (Dtype::F16, false)] {
            let values = Values::new(rows, cols, dtype);
            for made in [
                Made::Rows,
                Made::Gated(Activation::Silu),
                Made::Gated(Activation::GeluTanh),
                Made::Gated(Activation::GeluErf),
            ] {
                // Added to nothing, and then taken by blocks that make one row for themselves.
                let before = values.before(made);
                let alone =
                    |t| before.row(t).run(&Cuda::new(Emulated::default()), Made::Rows, fine);
                let expected: Vec<_> = (0..rows).flat_map(alone).map(|[out, _]| out).collect();
                // A value for a thread, or as many as it holds.
                for multiprocessors in [132, 0] {
                    let device = apart(163 << 10, multiprocessors);
                    let found = values.run(&device, made, fine).into_iter().map(|[out, _]| out);
                    assert!(
                        found.eq(expected.iter().cloned()),
                        "{rows} x {cols}, {made:?}, {fine}"
                    );
                    assert_eq!(started(&device), ["input_tiles"]);
                }
            }
        }
    }
}
