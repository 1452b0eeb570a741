//! What the tests of devices share: seeded numbers, and one way to give any device its input.

use chrysalis_kernels::cpu::{ActivationBits, Cpu, CpuOptions, Isa};
use chrysalis_kernels::device::{Device, Upload as _};
use chrysalis_kernels::{Batch, Dtype, WantLogits};

/// A small generator of its own, so that a seed means the same for ever (splitmix64).
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    /// Within ±1.
    pub(crate) fn value(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u32 << 23) as f32 - 1.0
    }

    /// Sums of three, so that a few are much larger than most.
    pub(crate) fn values(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| self.value() * self.value() * 3.0 + self.value()).collect()
    }

    /// A stored matrix of any type: random codes, sensible scales.
    pub(crate) fn matrix(&mut self, dtype: Dtype, rows: usize, cols: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        for _ in 0..rows * cols / dtype.group_len() {
            let mut group: Vec<u8> =
                (0..dtype.group_bytes()).map(|_| self.next().to_le_bytes()[3]).collect();
            let mut half = |at: usize, x: f32| {
                group[at..at + 2].copy_from_slice(&half::f16::from_f32(x).to_le_bytes());
            };
            let scale = 0.02 + 0.01 * self.value();
            match dtype {
                Dtype::F32 => group.copy_from_slice(&self.value().to_le_bytes()),
                Dtype::F16 => half(0, self.value()),
                Dtype::Bf16 => {
                    group.copy_from_slice(&half::bf16::from_f32(self.value()).to_le_bytes());
                }
                Dtype::Q4_0 | Dtype::Q5_0 | Dtype::Q8_0 => half(0, scale),
                Dtype::Q4_1 | Dtype::Q5_1 => {
                    half(0, scale);
                    half(2, -8.0 * scale);
                }
                Dtype::Q4K | Dtype::Q5K => {
                    half(0, scale / 32.0);
                    half(2, scale / 4.0);
                }
                Dtype::Q6K => half(208, scale / 64.0),
                Dtype::F8E4M3 => {
                    group[..4].copy_from_slice(&(scale / 128.0).to_le_bytes());
                    // No weight is not a number.
                    group[4..].iter_mut().for_each(|code| *code ^= u8::from(*code & 0x7f == 0x7f));
                }
            }
            bytes.extend(group);
        }
        bytes
    }
}

/// Every way the fast device can compute on this machine, on two threads.
pub(crate) fn cpus() -> Vec<Cpu> {
    let bits = [ActivationBits::Eight, ActivationBits::Adaptive, ActivationBits::Sixteen];
    let options = Isa::available().into_iter().flat_map(|isa| {
        bits.map(|activation_bits| CpuOptions { threads: Some(2), isa: Some(isa), activation_bits })
    });
    options.map(|options| Cpu::new(options).unwrap()).collect()
}

/// Uploads in pieces that end nowhere in particular.
pub(crate) fn matrix<D: Device>(
    device: &D,
    dtype: Dtype,
    rows: usize,
    cols: usize,
    bytes: &[u8],
) -> D::Matrix {
    let upload = device.begin_matrix(dtype, rows, cols).unwrap();
    for (n, piece) in bytes.chunks(1013).enumerate() {
        upload.write(n * 1013, piece).unwrap();
    }
    upload.finish().unwrap()
}

/// A buffer that holds `values`, `[rows, cols]`, filled as a decoder fills its first one.
pub(crate) fn buffer<D: Device>(device: &D, rows: usize, cols: usize, values: &[f32]) -> D::Buffer {
    let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
    let table = matrix(device, Dtype::F32, rows, cols, &bytes);
    let mut out = device.buffer(rows, cols).unwrap();
    if rows > 0 {
        let tokens: Vec<u32> = (0..rows as u32).collect();
        let mut batch = Batch::default();
        batch.push(&tokens, 0, &[], WantLogits::None);
        let mut step = device.step(rows).unwrap();
        device.set_step(&mut step, &batch);
        device.embed(&step, &table, 1.0, &mut out);
    }
    out
}

/// All of a buffer.
pub(crate) fn read<D: Device>(device: &D, x: &D::Buffer, rows: usize, cols: usize) -> Vec<f32> {
    let mut out = vec![0.0; rows * cols];
    for (t, row) in out.chunks_exact_mut(cols.max(1)).enumerate().take(rows) {
        device.download(x, t, row).unwrap();
    }
    out
}

/// Root of the mean square of the difference, relative to that of what is expected.
pub(crate) fn relative_error(found: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let square = |x: f32| f64::from(x) * f64::from(x);
    let difference: f64 = found.iter().zip(expected).map(|(a, b)| square(a - b)).sum();
    let size: f64 = expected.iter().map(|x| square(*x)).sum();
    (difference / size.max(1e-30)).sqrt()
}

pub(crate) fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}
