//! Big-endian integers and fixed-length fields, read and written one way only.
//!
//! A [`Reader`] never panics and never allocates; each of its methods either yields the whole field
//! or refuses. Formats are specified in docs/formats.md: integers are big-endian, reserved bytes
//! are zero and checked.

use thiserror::Error;
use zeroize::Zeroize;

/// Why bytes are not the encoding that was asked for.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
#[non_exhaustive]
pub enum CodecError {
    /// The input ended inside a field.
    #[error("the input ends inside a field: {needed} bytes needed, {left} left")]
    Short {
        /// Bytes that the field takes.
        needed: usize,
        /// Bytes that were left.
        left: usize,
    },
    /// Bytes follow the last field.
    #[error("{count} bytes follow the last field")]
    Trailing {
        /// How many bytes are left over.
        count: usize,
    },
    /// A reserved byte is not zero.
    #[error("a reserved byte is {value:#04x}, not zero")]
    Reserved {
        /// The byte's value.
        value: u8,
    },
    /// The magic is another one.
    #[error("the magic is {found:02x?}, not {expected:02x?}")]
    Magic {
        /// What was read.
        found: [u8; 8],
        /// What the format starts with.
        expected: [u8; 8],
    },
}

/// Takes fields off the front of a byte slice.
#[derive(Clone, Debug)]
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// A reader at the start of `bytes`.
    #[must_use]
    pub const fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// The next `N` bytes.
    ///
    /// # Errors
    /// [`CodecError::Short`] when fewer are left.
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], CodecError> {
        let Some((head, rest)) = self.rest.split_first_chunk::<N>() else {
            return Err(CodecError::Short { needed: N, left: self.rest.len() });
        };
        self.rest = rest;
        Ok(*head)
    }

    /// The next `len` bytes, borrowed.
    ///
    /// # Errors
    /// [`CodecError::Short`] when fewer are left.
    pub fn bytes(&mut self, len: usize) -> Result<&'a [u8], CodecError> {
        let Some((head, rest)) = self.rest.split_at_checked(len) else {
            return Err(CodecError::Short { needed: len, left: self.rest.len() });
        };
        self.rest = rest;
        Ok(head)
    }

    /// One byte.
    ///
    /// # Errors
    /// [`CodecError::Short`] when none is left.
    pub fn u8(&mut self) -> Result<u8, CodecError> {
        self.array().map(|[byte]| byte)
    }

    /// A big-endian `u16`.
    ///
    /// # Errors
    /// [`CodecError::Short`] when fewer than two bytes are left.
    pub fn u16(&mut self) -> Result<u16, CodecError> {
        self.array().map(u16::from_be_bytes)
    }

    /// A big-endian `u32`.
    ///
    /// # Errors
    /// [`CodecError::Short`] when fewer than four bytes are left.
    pub fn u32(&mut self) -> Result<u32, CodecError> {
        self.array().map(u32::from_be_bytes)
    }

    /// A big-endian `u64`.
    ///
    /// # Errors
    /// [`CodecError::Short`] when fewer than eight bytes are left.
    pub fn u64(&mut self) -> Result<u64, CodecError> {
        self.array().map(u64::from_be_bytes)
    }

    /// The bits of an `f32`; the caller checks that the value makes sense.
    ///
    /// # Errors
    /// [`CodecError::Short`] when fewer than four bytes are left.
    pub fn f32(&mut self) -> Result<f32, CodecError> {
        self.u32().map(f32::from_bits)
    }

    /// Skips `len` reserved bytes.
    ///
    /// # Errors
    /// [`CodecError::Short`] when fewer are left, [`CodecError::Reserved`] when one is not zero.
    pub fn zeros(&mut self, len: usize) -> Result<(), CodecError> {
        let reserved = self.bytes(len)?;
        // All at once: there is nothing to find, mostly.
        if reserved.iter().fold(0, |all, byte| all | byte) == 0 {
            return Ok(());
        }
        let value = reserved.iter().copied().find(|byte| *byte != 0).unwrap_or_default();
        Err(CodecError::Reserved { value })
    }

    /// Skips an eight-byte magic.
    ///
    /// # Errors
    /// [`CodecError::Short`], or [`CodecError::Magic`] when it is another one.
    pub fn magic(&mut self, expected: &[u8; 8]) -> Result<(), CodecError> {
        let found = self.array()?;
        if found == *expected {
            Ok(())
        } else {
            Err(CodecError::Magic { found, expected: *expected })
        }
    }

    /// Everything that is left.
    #[must_use]
    pub const fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// How many bytes are left.
    #[must_use]
    pub const fn left(&self) -> usize {
        self.rest.len()
    }

    /// Whether nothing is left.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// The input is used up.
    ///
    /// # Errors
    /// [`CodecError::Trailing`] when bytes are left.
    pub const fn finish(&self) -> Result<(), CodecError> {
        match self.rest.len() {
            0 => Ok(()),
            count => Err(CodecError::Trailing { count }),
        }
    }
}

/// Appends fields to a buffer that is wiped on drop, because some of them are secret.
#[derive(Default)]
#[expect(missing_debug_implementations, reason = "it may hold plaintext")]
pub struct Writer {
    out: Vec<u8>,
}

impl Writer {
    /// An empty writer.
    #[must_use]
    pub const fn new() -> Self {
        Self { out: Vec::new() }
    }

    /// An empty writer that takes `capacity` bytes without moving them.
    #[must_use]
    pub fn with_capacity(capacity: usize) -> Self {
        Self { out: Vec::with_capacity(capacity) }
    }

    /// Appends one byte.
    pub fn u8(&mut self, value: u8) -> &mut Self {
        self.bytes(&[value])
    }

    /// Appends a big-endian `u16`.
    pub fn u16(&mut self, value: u16) -> &mut Self {
        self.bytes(&value.to_be_bytes())
    }

    /// Appends a big-endian `u32`.
    pub fn u32(&mut self, value: u32) -> &mut Self {
        self.bytes(&value.to_be_bytes())
    }

    /// Appends a big-endian `u64`.
    pub fn u64(&mut self, value: u64) -> &mut Self {
        self.bytes(&value.to_be_bytes())
    }

    /// Appends the bits of an `f32`, big-endian.
    pub fn f32(&mut self, value: f32) -> &mut Self {
        self.u32(value.to_bits())
    }

    /// Appends `bytes`.
    pub fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.out.extend_from_slice(bytes);
        self
    }

    /// Appends `len` zero bytes.
    pub fn zeros(&mut self, len: usize) -> &mut Self {
        self.out.resize(self.out.len().saturating_add(len), 0);
        self
    }

    /// How many bytes were written.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.out.len()
    }

    /// Whether nothing was written.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.out.is_empty()
    }

    /// What was written so far.
    #[must_use]
    pub fn as_slice(&self) -> &[u8] {
        &self.out
    }

    /// What was written; the caller wipes it if it is secret.
    #[must_use]
    pub fn into_bytes(mut self) -> Vec<u8> {
        core::mem::take(&mut self.out)
    }

    /// What was written, followed by zeros up to `N` bytes.
    ///
    /// # Panics
    /// When more than `N` bytes were written: the layout in this crate is wrong.
    #[must_use]
    pub fn into_array<const N: usize>(self) -> [u8; N] {
        padded(&self.out)
    }

    /// The same of what is no secret any more, as it was sealed in place: it is not wiped.
    ///
    /// # Panics
    /// As [`Self::into_array`].
    #[must_use]
    pub(crate) fn into_sealed<const N: usize>(mut self) -> [u8; N] {
        padded(&core::mem::take(&mut self.out))
    }

    /// What was written from byte `start` on, to be sealed in place.
    pub(crate) fn since(&mut self, start: usize) -> &mut [u8] {
        self.out.get_mut(start..).unwrap_or_default()
    }
}

/// These bytes, followed by zeros.
fn padded<const N: usize>(bytes: &[u8]) -> [u8; N] {
    assert!(bytes.len() <= N, "a layout of {N} bytes got {}", bytes.len());
    let mut array = [0; N];
    if let Some(begin) = array.get_mut(..bytes.len()) {
        begin.copy_from_slice(bytes);
    }
    array
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.out.zeroize();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_come_back_in_order() {
        let mut writer = Writer::new();
        writer.u8(1).u16(2).u32(3).u64(4).f32(0.5).zeros(3).bytes(b"end");
        let bytes = writer.into_bytes();
        let mut reader = Reader::new(&bytes);
        assert_eq!(reader.u8(), Ok(1));
        assert_eq!(reader.u16(), Ok(2));
        assert_eq!(reader.u32(), Ok(3));
        assert_eq!(reader.u64(), Ok(4));
        assert_eq!(reader.f32(), Ok(0.5));
        assert_eq!(reader.zeros(3), Ok(()));
        assert_eq!(reader.bytes(3), Ok(&b"end"[..]));
        assert_eq!(reader.finish(), Ok(()));
    }

    #[test]
    fn a_short_input_a_rest_and_a_reserved_byte_are_refused() {
        assert_eq!(Reader::new(&[0; 3]).u32(), Err(CodecError::Short { needed: 4, left: 3 }));
        assert_eq!(Reader::new(&[0]).finish(), Err(CodecError::Trailing { count: 1 }));
        assert_eq!(Reader::new(&[0, 7]).zeros(2), Err(CodecError::Reserved { value: 7 }));
        assert!(matches!(
            Reader::new(b"CHRY-XX1").magic(b"CHRY-ST1"),
            Err(CodecError::Magic { .. })
        ));
    }

    #[test]
    fn an_array_is_filled_up_with_zeros() {
        let mut writer = Writer::new();
        writer.u8(9);
        assert_eq!(writer.into_array::<4>(), [9, 0, 0, 0]);
    }
}
