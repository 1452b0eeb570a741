//! The benches stand in `benches/`, one file a subject; each asserts its result (CONTRIBUTING.md). Here is what they share:
//! seeded numbers, one way to give any device its input, and the machine's limits.

use std::time::Duration;

use chrysalis_kernels::cpu::CpuOptions;
use chrysalis_kernels::device::{Device, DeviceError, Upload as _};
use chrysalis_kernels::{Batch, Dtype, WantLogits, probe, quant};
use chrysalis_protocol::package::{Architecture, Generation, Rope};

/// A small generator of its own, so that a seed means the same for ever (splitmix64).
#[derive(Clone, Debug)]
pub struct Random(pub u64);

impl Random {
    /// The next 64 bits.
    pub fn next_bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    /// Values within ±1.
    pub fn values(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| (self.next_bits() >> 40) as f32 / (1u32 << 23) as f32 - 1.0).collect()
    }

    /// A stored matrix of any type: random codes, scales of about 0.01.
    ///
    /// # Panics
    /// Never: every float type has an encoder.
    pub fn matrix(&mut self, dtype: Dtype, rows: usize, cols: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        if dtype.group_len() == 1 {
            let encoded = quant::quantize(dtype, &self.values(rows * cols), &mut bytes);
            assert!(encoded.is_ok(), "the float types hold any value");
            return bytes;
        }
        let len = dtype.row_bytes(cols).unwrap_or(0) * rows;
        bytes.extend((0..len.div_ceil(8)).flat_map(|_| self.next_bits().to_le_bytes()));
        bytes.truncate(len);
        for group in bytes.chunks_exact_mut(dtype.group_bytes()) {
            if dtype == Dtype::F8E4M3 {
                group[..4].copy_from_slice(&0.01f32.to_le_bytes());
                // Every code is a number.
                group[4..].iter_mut().for_each(|code| *code ^= u8::from(*code & 0x7f == 0x7f));
                continue;
            }
            let scales: &[usize] = match dtype {
                Dtype::Q4_1 | Dtype::Q5_1 | Dtype::Q4K | Dtype::Q5K => &[0, 2],
                Dtype::Q6K => &[208],
                _ => &[0],
            };
            for &at in scales {
                // 0.0098 as f16, or a 32nd of it where it scales scales.
                let scale: u16 = if dtype.group_len() == 256 { 0x0d00 } else { 0x2100 };
                group[at..at + 2].copy_from_slice(&scale.to_le_bytes());
            }
        }
        bytes
    }
}

/// Uploads a stored matrix.
///
/// # Errors
/// Those of the device.
pub fn upload<D: Device>(
    device: &D,
    dtype: Dtype,
    (rows, cols): (usize, usize),
    bytes: &[u8],
) -> Result<D::Matrix, DeviceError> {
    let upload = device.begin_matrix(dtype, rows, cols)?;
    upload.write(0, bytes)?;
    upload.finish()
}

/// A buffer that holds `values`, `[rows, cols]`, filled as a decoder fills its first one.
///
/// # Errors
/// Those of the device.
pub fn buffer<D: Device>(
    device: &D,
    rows: usize,
    cols: usize,
    values: &[f32],
) -> Result<D::Buffer, DeviceError> {
    let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
    let table = upload(device, Dtype::F32, (rows, cols), &bytes)?;
    let step = step(device, rows, 0, &[])?;
    let mut out = device.buffer(rows, cols)?;
    device.embed(&step, &table, 1.0, &mut out);
    Ok(out)
}

/// A step of one sequence: tokens 0, 1, 2, … at positions from `start` on.
///
/// # Errors
/// Those of the device.
pub fn step<D: Device>(
    device: &D,
    tokens: usize,
    start: usize,
    blocks: &[u32],
) -> Result<D::Step, DeviceError> {
    let ids: Vec<u32> = (0..tokens as u32).collect();
    let mut batch = Batch::default();
    batch.push(&ids, start as u32, blocks, WantLogits::Last);
    let mut step = device.step(tokens)?;
    device.set_step(&mut step, &batch);
    Ok(step)
}

/// Row `row` of a buffer.
///
/// # Errors
/// Those of the device.
pub fn read<D: Device>(
    device: &D,
    x: &D::Buffer,
    row: usize,
    cols: usize,
) -> Result<Vec<f32>, DeviceError> {
    let mut out = vec![0.0; cols];
    device.download(x, row, &mut out)?;
    Ok(out)
}

/// Asserts that the difference is small beside what is expected, both as roots of mean squares.
///
/// # Panics
/// When it is not.
pub fn assert_near(what: &str, found: &[f32], expected: &[f32], tolerance: f64) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let square = |x: f32| f64::from(x) * f64::from(x);
    let difference: f64 = found.iter().zip(expected).map(|(a, b)| square(a - b)).sum();
    let size: f64 = expected.iter().map(|x| square(*x)).sum();
    let error = (difference / size.max(1e-30)).sqrt();
    assert!(size > 0.0 && error < tolerance, "{what}: {error:e}");
}

/// Asserts that every bit is the same.
///
/// # Panics
/// When one is not.
pub fn assert_same(what: &str, found: &[f32], expected: &[f32]) {
    let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
    assert_eq!(bits(found), bits(expected), "{what}");
}

/// Whether the benches only show that they run (`--test`): one pass each, nothing is measured.
pub fn is_test() -> bool {
    std::env::args().any(|arg| arg == "--test")
}

/// Prints what the machine can do: a figure without its share of that is a rumour.
///
/// # Errors
/// [`DeviceError`] when threads or memory cannot be had.
#[expect(clippy::print_stderr, reason = "a bench reports to a terminal")]
pub fn print_limits() -> Result<(), DeviceError> {
    if is_test() {
        return Ok(());
    }
    let sizes = [16 << 10, 256 << 20];
    let limits = probe::measure(CpuOptions::default(), &sizes, Duration::from_secs(2))?;
    let giga = |rate: probe::Rate| format!("{:.1}/{:.1}", rate.one / 1e9, rate.all / 1e9);
    eprintln!(
        "limits, one thread/{}: {} GB/s from memory, {} from cache; GOP/s: int8 {}, bf16 {}, f32 {}",
        limits.threads,
        giga(limits.read(u64::MAX)),
        giga(limits.read(0)),
        giga(limits.int8),
        limits.bf16.map_or_else(|| "none".to_owned(), giga),
        giga(limits.f32)
    );
    Ok(())
}

/// The architecture of the packages that benches write: three layers of 1,024.
pub fn architecture() -> Architecture {
    Architecture {
        hidden_size: 1 << 10,
        intermediate_size: 1 << 12,
        num_layers: 3,
        num_heads: 8,
        num_kv_heads: 8,
        head_dim: 128,
        vocab_size: 1 << 15,
        max_position_embeddings: 2048,
        tied_embeddings: true,
        qk_norm: false,
        sandwich_norms: false,
        qkv_bias: false,
        o_bias: false,
        mlp_bias: false,
        activation: 1,
        rms_norm_eps: 1e-6,
        embedding_scale: 1.0,
        attention_scale: 0.1,
        attn_logit_softcap: 0.0,
        final_logit_softcap: 0.0,
        sliding_window: 0,
        sliding_layers: [0; 8],
        rope_global: Rope { theta: 10_000.0, rope_dim: 128, ..Rope::default() },
        rope_local: Rope::default(),
        generation: Generation { top_p: 1.0, repetition_penalty: 1.0, ..Generation::default() },
    }
}
