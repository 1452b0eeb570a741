//! Little-endian reads from a GGUF file, each bounded by the bytes that are left in it.

use std::io::Read;

use super::GgufError;

/// Reads forward through the head of a file and knows how many bytes are left.
pub(super) struct Reader<R> {
    inner: R,
    position: u64,
    file_len: u64,
}

impl<R: Read> Reader<R> {
    /// A reader at the start of a file of `file_len` bytes.
    pub(super) const fn new(inner: R, file_len: u64) -> Self {
        Self { inner, position: 0, file_len }
    }

    /// The offset of the next byte.
    pub(super) const fn position(&self) -> u64 {
        self.position
    }

    /// The bytes after the position.
    pub(super) const fn remaining(&self) -> u64 {
        self.file_len.saturating_sub(self.position)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], GgufError> {
        let mut bytes = [0; N];
        self.claim(N as u64)?;
        self.inner.read_exact(&mut bytes).map_err(GgufError::Read)?;
        Ok(bytes)
    }

    pub(super) fn u32(&mut self) -> Result<u32, GgufError> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    pub(super) fn u64(&mut self) -> Result<u64, GgufError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// A string: its length (u64), then that many bytes of UTF-8. Nothing is allocated before the
    /// length was compared with `max` and with the bytes that are left.
    pub(super) fn text(&mut self, what: &'static str, max: u64) -> Result<String, GgufError> {
        let len = self.u64()?;
        if len > max {
            return Err(GgufError::TooLong { what, len, max });
        }
        let offset = self.position;
        self.claim(len)?;
        let mut bytes = vec![0; usize::try_from(len).map_err(|_| GgufError::Overflow(what))?];
        self.inner.read_exact(&mut bytes).map_err(GgufError::Read)?;
        String::from_utf8(bytes).map_err(|_| GgufError::NotUtf8 { what, offset })
    }

    /// Takes `len` bytes off what is left, or says that the file is too short.
    fn claim(&mut self, len: u64) -> Result<(), GgufError> {
        if len > self.remaining() {
            return Err(GgufError::Truncated {
                position: self.position,
                wanted: len,
                file_len: self.file_len,
            });
        }
        self.position = self.position.saturating_add(len);
        Ok(())
    }
}
