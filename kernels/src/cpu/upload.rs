//! A matrix on its way: pieces come in any order and from any thread, each pair of panels is
//! repacked once, as soon as its rows are whole.

use std::fmt;

use super::f8::{self, Eights};
use super::isa::Level;
use super::matrix::{Data, Format, Matrix, PAIR, Quantised};
use super::repack::{Floats, Halves, Quantities, Words};
use crate::arrived::Strips;
use crate::device::{DeviceError, Upload};
use crate::dtype::Dtype;
use crate::memory::{Arena, Parts};

/// The upload of a [`Matrix`].
pub struct Pending {
    level: Level,
    rows: usize,
    cols: usize,
    dtype: Dtype,
    pairs: Strips,
    target: Target,
}

/// The values by the width of their storage, a pair to a part.
enum Target {
    F32(Parts<f32>),
    F16(Parts<u16>),
    Bf16(Parts<u8>),
    F8 { codes: Parts<u8>, scales: Parts<f32> },
    Quantised { format: Format, halves: Parts<u16>, codes: Parts<u8> },
}

impl fmt::Debug for Pending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pending({:?} {} x {})", self.dtype, self.rows, self.cols)
    }
}

impl Pending {
    pub(super) fn new(
        arena: &Arena,
        level: Level,
        dtype: Dtype,
        rows: usize,
        cols: usize,
    ) -> Result<Self, DeviceError> {
        let strips = Strips::new(dtype, rows, cols, PAIR)?;
        let pairs = rows.div_ceil(PAIR);
        let target = match (dtype, Format::new(dtype, cols)) {
            (_, Some(format)) => Target::Quantised {
                format,
                halves: Parts::zeroed(arena, "scales", pairs, format.pair_halves())?,
                codes: Parts::zeroed(arena, "weights", pairs, format.pair_bytes())?,
            },
            (Dtype::F32, None) => Target::F32(Parts::zeroed(arena, "weights", pairs, PAIR * cols)?),
            (Dtype::Bf16, None) => {
                let pair_bytes = PAIR * 4 * cols.div_ceil(2);
                Target::Bf16(Parts::zeroed(arena, "weights", pairs, pair_bytes)?)
            }
            (Dtype::F8E4M3, None) => Target::F8 {
                codes: Parts::zeroed(arena, "weights", pairs, PAIR * cols)?,
                scales: Parts::zeroed(arena, "scales", pairs, PAIR * (cols / dtype.group_len()))?,
            },
            (_, None) => Target::F16(Parts::zeroed(arena, "weights", pairs, PAIR * cols)?),
        };
        Ok(Self { level, rows, cols, dtype, pairs: strips, target })
    }

    /// Repacks the 32 stored rows of a pair.
    fn repack(&self, pair: usize, rows: &[u8]) -> Result<(), DeviceError> {
        let row_bytes = rows.len() / PAIR;
        let twice = || DeviceError::UploadTwice { offset: pair * rows.len() };
        match &self.target {
            Target::F32(parts) => {
                let out = parts.take(pair).ok_or_else(twice)?;
                self.level.run(Floats { rows, row_bytes, out });
            }
            Target::F16(parts) => {
                let out = parts.take(pair).ok_or_else(twice)?;
                self.level.run(Halves { rows, row_bytes, out });
            }
            Target::Bf16(parts) => {
                let out = parts.take(pair).ok_or_else(twice)?;
                self.level.run(Words { rows, row_bytes, out });
            }
            Target::F8 { codes, scales } => {
                let codes = codes.take(pair).ok_or_else(twice)?;
                let scales = scales.take(pair).ok_or_else(twice)?;
                self.level.run(f8::Repack { rows, row_bytes, codes, scales });
            }
            Target::Quantised { format, halves, codes } => {
                let halves = halves.take(pair).ok_or_else(twice)?;
                let codes = codes.take(pair).ok_or_else(twice)?;
                self.level.run(Quantities { format: *format, rows, row_bytes, halves, codes });
            }
        }
        Ok(())
    }
}

impl Upload for Pending {
    type Matrix = Matrix;

    fn write(&self, offset: usize, bytes: &[u8]) -> Result<(), DeviceError> {
        let pair_bytes = self.pairs.strip_bytes();
        self.pairs.write(offset, bytes, |first, rows| {
            let mut pairs = rows.chunks_exact(pair_bytes).enumerate();
            pairs.try_for_each(|(n, rows)| self.repack(first + n, rows))
        })
    }

    fn finish(self) -> Result<Matrix, DeviceError> {
        self.pairs.finish()?;
        let data = match self.target {
            Target::F32(parts) => Data::F32(parts.whole()),
            Target::F16(parts) => Data::F16(parts.whole()),
            Target::Bf16(parts) => Data::Bf16(parts.whole()),
            Target::F8 { codes, scales } => {
                Data::F8(Eights { codes: codes.whole(), scales: scales.whole() })
            }
            Target::Quantised { format, halves, codes } => {
                let (halves, codes) = (halves.whole(), codes.whole());
                Data::Quantised(Quantised { format, halves, codes })
            }
        };
        Ok(Matrix { rows: self.rows, cols: self.cols, data })
    }
}
