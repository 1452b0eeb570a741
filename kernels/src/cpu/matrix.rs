//! Weights in the layout of the kernels, and the upload that repacks them.
//!
//! Rows are stored in pairs of panels: 32 rows, two vectors of 16 lanes, one lane to a row (rows
//! beyond the last are zero). Float types keep their values: `[pair][column][32 rows]`. Quantised
//! types keep the width of their codes (4, 5, 6 or 8 bits a value) and the stored form of their
//! scales, so that a pass over the weights reads as many bytes as ggml's file has:
//!
//! - codes `[pair][group of 32][panel]`: eight steps of 64 bytes, byte `4 * lane + i` of step `s` is
//!   column `4 * s + i` of the row `lane`. Narrow types hold the low halves of the codes of step `s`
//!   and `s + 4` in the low and high halves of 64 bytes, then the upper bits of step `s` at bit `s`
//!   of 64 more bytes (5-bit) or the bit pairs of steps `s` and `s + 4` at bits `2 * (s % 4)` of the
//!   first and second 64 (6-bit).
//! - f16 scales `[pair][stored group][panel]`: 16 scales, then 16 minima where the type has them.
//! - K types: before the codes of a pair, `[stored group][panel]` 256 bytes of small scales: for each
//!   sub-group 16 scales and 16 minima (Q6_K: 16 times 16 signed scales).

use zeroize::Zeroize;

use crate::device::{DeviceError, Upload};
use crate::dtype::Dtype;
use crate::memory::{Aligned, Arena};
use crate::quant::{self, Unpacked};

/// Rows of a pair of panels.
pub(super) const PAIR: usize = 32;

/// Weights of a linear layer or an embedding.
#[derive(Debug)]
pub struct Matrix {
    pub(super) dtype: Dtype,
    pub(super) rows: usize,
    pub(super) cols: usize,
    pub(super) data: Data,
}

/// The values by the width of their storage.
#[derive(Debug)]
pub(super) enum Data {
    F32(Aligned<f32>),
    /// f16 or bf16.
    Half(Aligned<u16>),
    Quantised(Quantised),
}

/// Codes and scales.
#[derive(Debug)]
pub(super) struct Quantised {
    pub(super) format: Format,
    pub(super) halves: Aligned<u16>,
    pub(super) codes: Aligned<u8>,
}

/// Sizes of a quantised layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Format {
    pub(super) dtype: Dtype,
    /// Bits of a code.
    pub(super) bits: usize,
    /// Whether groups have a minimum; else codes have an offset.
    pub(super) min: bool,
    /// Groups of 32 columns in a row.
    pub(super) groups: usize,
    /// Groups of 32 in a stored group.
    pub(super) per_stored: usize,
}

impl Format {
    fn new(dtype: Dtype, cols: usize) -> Option<Self> {
        let (bits, min) = match dtype {
            Dtype::Q4_0 => (4, false),
            Dtype::Q4_1 | Dtype::Q4K => (4, true),
            Dtype::Q5_0 => (5, false),
            Dtype::Q5_1 | Dtype::Q5K => (5, true),
            Dtype::Q6K => (6, false),
            Dtype::Q8_0 => (8, false),
            Dtype::F32 | Dtype::F16 | Dtype::Bf16 => return None,
        };
        Some(Self { dtype, bits, min, groups: cols / 32, per_stored: dtype.group_len() / 32 })
    }

    /// Bytes of the codes of a group of 32 in one panel.
    pub(super) fn group_bytes(self) -> usize {
        self.bits * 64
    }

    /// Bytes of the small scales of a pair.
    pub(super) fn small_bytes(self) -> usize {
        if self.per_stored == 1 { 0 } else { self.groups / self.per_stored * 512 }
    }

    /// Bytes of a pair: small scales and codes.
    pub(super) fn pair_bytes(self) -> usize {
        self.small_bytes() + self.groups * 2 * self.group_bytes()
    }

    /// f16 values of one panel in a stored group.
    pub(super) fn halves_len(self) -> usize {
        if self.min { 32 } else { 16 }
    }

    /// f16 values of a pair.
    pub(super) fn pair_halves(self) -> usize {
        self.groups / self.per_stored * 2 * self.halves_len()
    }
}

impl Matrix {
    /// Writes row `row`, dequantised, to `out`.
    pub(super) fn read_row(&self, row: usize, out: &mut [f32]) {
        assert!(row < self.rows && out.len() == self.cols, "row {row} of {}", self.rows);
        let (pair, lane) = (row / PAIR, row % PAIR);
        let first = pair * PAIR * self.cols + lane;
        match &self.data {
            Data::F32(values) => {
                let values = values[first..].iter().step_by(PAIR);
                out.iter_mut().zip(values).for_each(|(out, x)| *out = *x);
            }
            Data::Half(values) => {
                let values = values[first..].iter().step_by(PAIR);
                out.iter_mut().zip(values).for_each(|(out, x)| {
                    *out = match self.dtype {
                        Dtype::Bf16 => half::bf16::from_bits(*x).to_f32(),
                        _ => half::f16::from_bits(*x).to_f32(),
                    };
                });
            }
            Data::Quantised(q) => q.read_row(pair, lane / 16, lane % 16, out),
        }
    }
}

impl Quantised {
    fn read_row(&self, pair: usize, panel: usize, lane: usize, out: &mut [f32]) {
        let format = self.format;
        let pair_codes = &self.codes[pair * format.pair_bytes()..][..format.pair_bytes()];
        let (small, codes) = pair_codes.split_at(format.small_bytes());
        let halves = &self.halves[pair * format.pair_halves()..][..format.pair_halves()];
        let offset = quant::offset(format.dtype);
        for (g, out) in out.chunks_exact_mut(32).enumerate() {
            let codes = &codes[(g * 2 + panel) * format.group_bytes()..][..format.group_bytes()];
            let stored = g / format.per_stored * 2 + panel;
            let halves = &halves[stored * format.halves_len()..][..format.halves_len()];
            let f16 = |at: usize| half::f16::from_bits(halves[at]).to_f32();
            let d = f16(lane);
            let d_min = if format.min { f16(16 + lane) } else { 0.0 };
            for (i, out) in out.iter_mut().enumerate() {
                let (scale, min) = match format.dtype {
                    Dtype::Q4K | Dtype::Q5K => {
                        let small = &small[stored * 256 + g % 8 * 32..][..32];
                        (d * f32::from(small[lane]), -(d_min * f32::from(small[16 + lane])))
                    }
                    Dtype::Q6K => {
                        let sub = g % 8 * 2 + i / 16;
                        let small = small[stored * 256 + sub * 16 + lane];
                        (d * f32::from(small.cast_signed()), 0.0)
                    }
                    _ => (d, d_min),
                };
                let q = (i32::from(code(codes, format.bits, lane, i)) - offset) as f32;
                *out = if format.min { scale * q + min } else { scale * q };
            }
        }
    }
}

/// The code of column `i` of the row `lane` in a packed group.
fn code(codes: &[u8], bits: usize, lane: usize, i: usize) -> u8 {
    let (step, byte) = (i / 4, 4 * lane + i % 4);
    if bits == 8 {
        return codes[step * 64 + byte];
    }
    let low = (codes[step % 4 * 64 + byte] >> (step / 4 * 4)) & 15;
    let high = match bits {
        5 => (codes[256 + byte] >> step) & 1,
        6 => (codes[256 + step / 4 * 64 + byte] >> (step % 4 * 2)) & 3,
        _ => 0,
    };
    low | (high << 4)
}

/// Writes the code of column `i` of the row `lane`; the group was zero.
fn set_code(codes: &mut [u8], bits: usize, lane: usize, i: usize, code: u8) {
    let (step, byte) = (i / 4, 4 * lane + i % 4);
    if bits == 8 {
        codes[step * 64 + byte] = code;
        return;
    }
    codes[step % 4 * 64 + byte] |= (code & 15) << (step / 4 * 4);
    match bits {
        5 => codes[256 + byte] |= (code >> 4) << step,
        6 => codes[256 + step / 4 * 64 + byte] |= (code >> 4) << (step % 4 * 2),
        _ => {}
    }
}

/// A matrix on its way: rows are repacked as they become whole.
#[derive(Debug)]
pub struct Pending {
    matrix: Matrix,
    /// Bytes of a row as stored.
    row_bytes: usize,
    /// Rows repacked so far.
    done: usize,
    /// The row that is not whole yet.
    partial: Partial,
}

/// Bytes of an unfinished row; wiped.
struct Partial(Vec<u8>);

impl std::fmt::Debug for Partial {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl Pending {
    pub(super) fn new(
        arena: &Arena,
        dtype: Dtype,
        rows: usize,
        cols: usize,
    ) -> Result<Self, DeviceError> {
        let shape = || DeviceError::Shape { dtype, rows, cols, group: dtype.group_len() };
        let row_bytes = dtype.row_bytes(cols).ok_or_else(shape)?;
        row_bytes.checked_mul(rows).ok_or_else(shape)?;
        let pairs = rows.div_ceil(PAIR);
        let len = pairs.checked_mul(PAIR).and_then(|rows| rows.checked_mul(cols));
        let len = len.ok_or_else(shape)?;
        let data = match (dtype, Format::new(dtype, cols)) {
            (_, Some(format)) => Data::Quantised(Quantised {
                format,
                halves: arena.zeroed("scales", pairs * format.pair_halves())?,
                codes: arena.zeroed("weights", pairs * format.pair_bytes())?,
            }),
            (Dtype::F32, None) => Data::F32(arena.zeroed("weights", len)?),
            (_, None) => Data::Half(arena.zeroed("weights", len)?),
        };
        let partial = Partial(Vec::with_capacity(row_bytes));
        let matrix = Matrix { dtype, rows, cols, data };
        Ok(Self { matrix, row_bytes, done: 0, partial })
    }

    fn found(&self) -> usize {
        self.done * self.row_bytes + self.partial.0.len()
    }

    fn put_row(&mut self, bytes: &[u8]) {
        let (row, cols) = (self.done, self.matrix.cols);
        let (pair, lane) = (row / PAIR, row % PAIR);
        let first = pair * PAIR * cols + lane;
        match &mut self.matrix.data {
            Data::F32(out) => {
                let out = out[first..].iter_mut().step_by(PAIR);
                out.zip(bytes.as_chunks().0).for_each(|(out, b)| *out = f32::from_le_bytes(*b));
            }
            Data::Half(out) => {
                let out = out[first..].iter_mut().step_by(PAIR);
                out.zip(bytes.as_chunks().0).for_each(|(out, b)| *out = u16::from_le_bytes(*b));
            }
            Data::Quantised(q) => q.put_row(pair, lane / 16, lane % 16, bytes),
        }
        self.done += 1;
    }
}

impl Quantised {
    fn put_row(&mut self, pair: usize, panel: usize, lane: usize, bytes: &[u8]) {
        let format = self.format;
        let dtype = format.dtype;
        let pair_codes = &mut self.codes[pair * format.pair_bytes()..][..format.pair_bytes()];
        let (small, codes) = pair_codes.split_at_mut(format.small_bytes());
        let halves = &mut self.halves[pair * format.pair_halves()..][..format.pair_halves()];
        let mut group = Unpacked::default();
        for (s, block) in bytes.chunks_exact(dtype.group_bytes()).enumerate() {
            quant::unpack(dtype, block, &mut group);
            for (g, values) in group.codes[..dtype.group_len()].chunks_exact(32).enumerate() {
                let g = s * format.per_stored + g;
                let at = (g * 2 + panel) * format.group_bytes();
                let codes = &mut codes[at..][..format.group_bytes()];
                for (i, value) in values.iter().enumerate() {
                    set_code(codes, format.bits, lane, i, *value);
                }
            }
            let stored = s * 2 + panel;
            let half_at = if dtype == Dtype::Q6K { 208 } else { 0 };
            for (i, half) in block[half_at..].as_chunks().0.iter().enumerate() {
                if i * 16 < format.halves_len() {
                    halves[stored * format.halves_len() + i * 16 + lane] =
                        u16::from_le_bytes(*half);
                }
            }
            for sub in 0..if small.is_empty() { 0 } else { 8 } {
                let small = &mut small[stored * 256 + sub * 32..][..32];
                (small[lane], small[16 + lane]) = match dtype {
                    Dtype::Q6K => (block[192 + sub * 2], block[193 + sub * 2]),
                    _ => quant::k_scale_min(&block[4..16], sub),
                };
            }
        }
    }
}

impl Upload for Pending {
    type Matrix = Matrix;

    fn write(&mut self, bytes: &[u8]) -> Result<(), DeviceError> {
        let expected = self.row_bytes * self.matrix.rows;
        let found = self.found() + bytes.len();
        if found > expected {
            return Err(DeviceError::UploadLength { expected, found });
        }
        let mut bytes = bytes;
        if !self.partial.0.is_empty() {
            let (head, tail) =
                bytes.split_at(bytes.len().min(self.row_bytes - self.partial.0.len()));
            self.partial.0.extend_from_slice(head);
            bytes = tail;
            if self.partial.0.len() == self.row_bytes {
                let mut row = std::mem::take(&mut self.partial.0);
                self.put_row(&row);
                row.zeroize();
                self.partial.0 = row;
            }
        }
        while self.row_bytes > 0 && bytes.len() >= self.row_bytes {
            let (row, tail) = bytes.split_at(self.row_bytes);
            self.put_row(row);
            bytes = tail;
        }
        self.partial.0.extend_from_slice(bytes);
        Ok(())
    }

    fn finish(self) -> Result<Matrix, DeviceError> {
        let (expected, found) = (self.row_bytes * self.matrix.rows, self.found());
        if found != expected {
            return Err(DeviceError::UploadLength { expected, found });
        }
        Ok(self.matrix)
    }
}
