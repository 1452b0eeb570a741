//! A matrix on its way: pieces come in any order and from any thread, each pair of panels is
//! repacked once, as soon as its rows are whole.
//!
//! A pair that lies whole in a piece is repacked from there. One that is cut by the end of a piece is
//! gathered first, in memory that is wiped; there are as many of those as threads that load.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Mutex, PoisonError};

use zeroize::Zeroize;

use super::isa::Level;
use super::matrix::{Data, Format, Matrix, PAIR, Quantised};
use super::repack::{Floats, Halves, Quantities, Words};
use crate::arrived::Arrived;
use crate::device::{DeviceError, Upload};
use crate::dtype::Dtype;
use crate::memory::{Arena, Parts};

/// The upload of a [`Matrix`].
pub struct Pending {
    level: Level,
    dtype: Dtype,
    rows: usize,
    cols: usize,
    /// Bytes of a row as stored.
    row_bytes: usize,
    arrived: Arrived,
    /// Pairs of which only some bytes have come.
    cut: Mutex<BTreeMap<usize, Gathered>>,
    target: Target,
}

/// The values by the width of their storage, a pair to a part.
enum Target {
    F32(Parts<f32>),
    F16(Parts<u16>),
    Bf16(Parts<u8>),
    Quantised { format: Format, halves: Parts<u16>, codes: Parts<u8> },
}

/// Stored bytes of a pair; rows beyond the last are zero. Wiped.
struct Gathered {
    bytes: Vec<u8>,
    missing: usize,
}

impl Drop for Gathered {
    fn drop(&mut self) {
        self.bytes.zeroize();
    }
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
        let shape = || DeviceError::Shape { dtype, rows, cols, group: dtype.group_len() };
        let row_bytes = dtype.row_bytes(cols).ok_or_else(shape)?;
        // The last pair is padded when it is gathered.
        let padded = rows.checked_next_multiple_of(PAIR).and_then(|n| n.checked_mul(row_bytes));
        padded.ok_or_else(shape)?;
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
            (_, None) => Target::F16(Parts::zeroed(arena, "weights", pairs, PAIR * cols)?),
        };
        let (arrived, cut) = (Arrived::new(row_bytes * rows), Mutex::default());
        Ok(Self { level, dtype, rows, cols, row_bytes, arrived, cut, target })
    }

    /// Adds a piece to the pair that it is a part of; the pair, when that makes it whole.
    fn gather(&self, pair: usize, offset: usize, piece: &[u8]) -> Option<Gathered> {
        let mut cut = self.cut.lock().unwrap_or_else(PoisonError::into_inner);
        let gathered = cut.entry(pair).or_insert_with(|| Gathered {
            bytes: vec![0; PAIR * self.row_bytes],
            missing: self.row_bytes * PAIR.min(self.rows - pair * PAIR),
        });
        gathered.bytes[offset..][..piece.len()].copy_from_slice(piece);
        gathered.missing -= piece.len();
        if gathered.missing > 0 { None } else { cut.remove(&pair) }
    }

    /// Repacks the 32 stored rows of a pair.
    fn repack(&self, pair: usize, rows: &[u8]) -> Result<(), DeviceError> {
        let row_bytes = self.row_bytes;
        let twice = || DeviceError::UploadTwice { offset: pair * PAIR * row_bytes };
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
        self.arrived.add(offset, bytes.len())?;
        let pair_bytes = PAIR * self.row_bytes;
        let (mut at, mut rest) = (offset, bytes);
        while !rest.is_empty() {
            let (pair, inside) = (at / pair_bytes, at % pair_bytes);
            let (piece, tail) = rest.split_at(rest.len().min(pair_bytes - inside));
            if piece.len() == pair_bytes {
                self.repack(pair, piece)?;
            } else if let Some(whole) = self.gather(pair, inside, piece) {
                self.repack(pair, &whole.bytes)?;
            }
            (at, rest) = (at + piece.len(), tail);
        }
        Ok(())
    }

    fn finish(self) -> Result<Matrix, DeviceError> {
        self.arrived.finish()?;
        let data = match self.target {
            Target::F32(parts) => Data::F32(parts.whole()),
            Target::F16(parts) => Data::F16(parts.whole()),
            Target::Bf16(parts) => Data::Bf16(parts.whole()),
            Target::Quantised { format, halves, codes } => {
                let (halves, codes) = (halves.whole(), codes.whole());
                Data::Quantised(Quantised { format, halves, codes })
            }
        };
        Ok(Matrix { rows: self.rows, cols: self.cols, data })
    }
}
