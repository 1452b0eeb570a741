//! Which bytes of an upload have come: each once, none beyond the last, none missing in the end.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use zeroize::Zeroizing;

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
}
