//! Which bytes of an upload have come: each once, none beyond the last, none missing in the end.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Mutex, PoisonError};

use zeroize::{Zeroize, Zeroizing};

use crate::device::DeviceError;
use crate::dtype::Dtype;

/// A stored matrix that is kept as it comes, until it is whole; wiped on drop.
pub(crate) struct Gathered {
    arrived: Arrived,
    bytes: Mutex<Zeroizing<Vec<u8>>>,
}

impl Gathered {
    /// Nothing of a matrix of this shape.
    ///
    /// # Errors
    /// [`DeviceError::Shape`] when its columns are not whole groups.
    pub(crate) fn new(dtype: Dtype, rows: usize, cols: usize) -> Result<Self, DeviceError> {
        let expected = dtype
            .row_bytes(cols)
            .and_then(|bytes| bytes.checked_mul(rows))
            .ok_or_else(|| DeviceError::Shape { dtype, rows, cols, group: dtype.group_len() })?;
        let bytes = Mutex::new(Zeroizing::new(vec![0; expected]));
        Ok(Self { arrived: Arrived::new(expected), bytes })
    }

    /// Takes bytes from `offset` on.
    ///
    /// # Errors
    /// Those of [`Arrived::add`].
    pub(crate) fn write(&self, offset: usize, bytes: &[u8]) -> Result<(), DeviceError> {
        self.arrived.add(offset, bytes.len())?;
        let mut whole = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        whole[offset..][..bytes.len()].copy_from_slice(bytes);
        Ok(())
    }

    /// All of the bytes.
    ///
    /// # Errors
    /// Those of [`Arrived::finish`].
    pub(crate) fn finish(self) -> Result<Zeroizing<Vec<u8>>, DeviceError> {
        self.arrived.finish()?;
        Ok(self.bytes.into_inner().unwrap_or_else(PoisonError::into_inner))
    }
}

/// A stored matrix cut into strips of so many rows each, which go on as soon as they are whole.
///
/// A strip that lies whole in a piece goes on from there. One that is cut by the end of a piece is gathered first, in memory
/// that is wiped; there are as many of those as threads that load.
#[derive(Debug)]
pub(crate) struct Strips {
    bytes: usize,
    strip_bytes: usize,
    arrived: Arrived,
    /// Strips of which only some bytes have come.
    cut: Mutex<BTreeMap<usize, Cut>>,
}

/// Stored bytes of a strip; rows beyond the last are zero. Wiped.
struct Cut {
    bytes: Vec<u8>,
    missing: usize,
}

impl Strips {
    /// Nothing of a matrix of this shape, in strips of `strip_rows`.
    ///
    /// # Errors
    /// [`DeviceError::Shape`] when its columns are not whole groups.
    pub(crate) fn new(
        dtype: Dtype,
        rows: usize,
        cols: usize,
        strip_rows: usize,
    ) -> Result<Self, DeviceError> {
        let shape = || DeviceError::Shape { dtype, rows, cols, group: dtype.group_len() };
        let row_bytes = dtype.row_bytes(cols).ok_or_else(shape)?;
        // The last strip is padded when it is gathered.
        let padded = rows.checked_next_multiple_of(strip_rows);
        padded.and_then(|rows| rows.checked_mul(row_bytes)).ok_or_else(shape)?;
        Ok(Self::of(rows * row_bytes, strip_rows * row_bytes))
    }

    fn of(bytes: usize, strip_bytes: usize) -> Self {
        Self { bytes, strip_bytes, arrived: Arrived::new(bytes), cut: Mutex::default() }
    }

    /// Bytes of a strip as stored.
    pub(crate) fn strip_bytes(&self) -> usize {
        self.strip_bytes
    }

    /// Takes bytes from `offset` on. `whole` gets what they make whole: the number of a strip, and the bytes of that and
    /// perhaps of some that follow. Each strip comes once.
    ///
    /// # Errors
    /// Those of [`Arrived::add`] and of `whole`.
    pub(crate) fn write(
        &self,
        offset: usize,
        bytes: &[u8],
        whole: impl Fn(usize, &[u8]) -> Result<(), DeviceError>,
    ) -> Result<(), DeviceError> {
        self.arrived.add(offset, bytes.len())?;
        let (mut at, mut rest) = (offset, bytes);
        while !rest.is_empty() {
            let (strip, inside) = (at / self.strip_bytes, at % self.strip_bytes);
            let piece;
            if inside == 0 && rest.len() >= self.strip_bytes {
                (piece, rest) = rest.split_at(rest.len() / self.strip_bytes * self.strip_bytes);
                whole(strip, piece)?;
            } else {
                (piece, rest) = rest.split_at(rest.len().min(self.strip_bytes - inside));
                if let Some(gathered) = self.gather(strip, inside, piece) {
                    whole(strip, &gathered.bytes)?;
                }
            }
            at += piece.len();
        }
        Ok(())
    }

    /// Adds a piece to the strip that it is a part of; the strip, when that makes it whole.
    fn gather(&self, strip: usize, offset: usize, piece: &[u8]) -> Option<Cut> {
        let mut cut = self.cut.lock().unwrap_or_else(PoisonError::into_inner);
        let gathered = cut.entry(strip).or_insert_with(|| Cut {
            bytes: vec![0; self.strip_bytes],
            missing: self.strip_bytes.min(self.bytes - strip * self.strip_bytes),
        });
        gathered.bytes[offset..][..piece.len()].copy_from_slice(piece);
        gathered.missing -= piece.len();
        if gathered.missing > 0 { None } else { cut.remove(&strip) }
    }

    /// That all of them came.
    ///
    /// # Errors
    /// Those of [`Arrived::finish`].
    pub(crate) fn finish(&self) -> Result<(), DeviceError> {
        self.arrived.finish()
    }
}

impl Drop for Cut {
    fn drop(&mut self) {
        self.bytes.zeroize();
    }
}

impl fmt::Debug for Cut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Cut({} bytes missing)", self.missing)
    }
}

/// The ranges that came, in whatever order.
#[derive(Debug)]
pub struct Arrived {
    expected: usize,
    /// First byte and end of each; they neither overlap nor touch.
    ranges: Mutex<BTreeMap<usize, usize>>,
}

impl Arrived {
    /// Nothing of `expected` bytes.
    pub fn new(expected: usize) -> Self {
        Self { expected, ranges: Mutex::default() }
    }

    /// Notes `len` bytes from `offset` on.
    ///
    /// # Errors
    /// [`DeviceError::UploadLength`] beyond the last byte, [`DeviceError::UploadTwice`]. Nothing is
    /// noted then.
    pub fn add(&self, offset: usize, len: usize) -> Result<(), DeviceError> {
        let (mut start, mut end) = (offset, offset.saturating_add(len));
        if end > self.expected {
            return Err(DeviceError::UploadLength { expected: self.expected, found: end });
        }
        if len == 0 {
            return Ok(());
        }
        let mut ranges = self.ranges.lock().unwrap_or_else(PoisonError::into_inner);
        let before = ranges.range(..end).next_back().map(|(start, end)| (*start, *end));
        if let Some((first, last)) = before {
            if last > start {
                return Err(DeviceError::UploadTwice { offset: start.max(first) });
            }
            if last == start {
                start = first;
            }
        }
        if let Some(last) = ranges.remove(&end) {
            end = last;
        }
        ranges.insert(start, end);
        Ok(())
    }

    /// That all of them came.
    ///
    /// # Errors
    /// [`DeviceError::UploadLength`] with the number that came.
    pub fn finish(&self) -> Result<(), DeviceError> {
        let ranges = self.ranges.lock().unwrap_or_else(PoisonError::into_inner);
        let found = ranges.iter().map(|(start, end)| end - start).sum();
        if found == self.expected {
            Ok(())
        } else {
            Err(DeviceError::UploadLength { expected: self.expected, found })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_in_any_order_make_a_whole_and_leave_one_range() {
        let arrived = Arrived::new(10);
        for (offset, len) in [(4, 2), (0, 1), (8, 2), (1, 3), (0, 0), (10, 0)] {
            arrived.add(offset, len).unwrap();
        }
        let missing = arrived.finish().unwrap_err();
        assert!(matches!(missing, DeviceError::UploadLength { expected: 10, found: 8 }));
        arrived.add(6, 2).unwrap();
        arrived.finish().unwrap();
        assert_eq!(*arrived.ranges.lock().unwrap(), BTreeMap::from([(0, 10)]));
    }

    #[test]
    fn a_byte_that_comes_twice_is_named() {
        for (offset, len, twice) in [(4, 2, 4), (3, 9, 8), (5, 1, 5), (0, 5, 4), (7, 5, 8)] {
            let arrived = Arrived::new(20);
            arrived.add(4, 2).unwrap();
            arrived.add(8, 4).unwrap();
            let error = arrived.add(offset, len).unwrap_err();
            let named = matches!(error, DeviceError::UploadTwice { offset } if offset == twice);
            assert!(named, "{offset}+{len}: {error}");
        }
        let beyond = Arrived::new(20).add(usize::MAX, 2).unwrap_err();
        assert!(matches!(beyond, DeviceError::UploadLength { expected: 20, .. }));
    }

    #[test]
    fn strips_go_on_once_they_are_whole_and_nothing_is_kept() {
        // 7 rows of 5 bytes in strips of 3: two whole ones, and one row padded with zeros.
        let stored: Vec<u8> = (1..=35).collect();
        let mut padded = stored.clone();
        padded.resize(45, 0);
        let cases: [&[(usize, usize)]; 4] = [
            &[(0, 35)],
            &[(15, 35), (0, 15)],
            &[(31, 35), (14, 17), (0, 14), (17, 31)],
            &[(0, 32), (33, 35), (32, 33)],
        ];
        for pieces in cases {
            let strips = Strips::of(35, 15);
            let found = Mutex::new(vec![0; 45]);
            for (start, end) in pieces.iter().copied() {
                let whole = |strip: usize, bytes: &[u8]| {
                    assert!(!bytes.is_empty() && bytes.len().is_multiple_of(15), "{pieces:?}");
                    let mut found = found.lock().unwrap();
                    let place = &mut found[15 * strip..][..bytes.len()];
                    assert!(place.iter().all(|byte| *byte == 0), "strip {strip} twice, {pieces:?}");
                    place.copy_from_slice(bytes);
                    Ok(())
                };
                strips.write(start, &stored[start..end], whole).unwrap();
            }
            strips.finish().unwrap();
            assert_eq!(*found.lock().unwrap(), padded, "{pieces:?}");
            assert!(strips.cut.lock().unwrap().is_empty(), "{pieces:?}");
        }
    }
}
