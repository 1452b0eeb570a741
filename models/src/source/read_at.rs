//! Reads at an offset that move no cursor, so that a file can be read through a shared reference.

use std::fs::File;
use std::io::{self, Cursor, Read};
use std::os::unix::fs::FileExt;

/// Bytes that can be read at any offset.
pub trait ReadAt {
    /// Fills `out` with the bytes from `offset` on.
    ///
    /// # Errors
    /// When there are not as many, or the operating system fails.
    fn read_exact_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()>;
}

impl ReadAt for File {
    fn read_exact_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        FileExt::read_exact_at(self, out, offset)
    }
}

impl<T: AsRef<[u8]>> ReadAt for Cursor<T> {
    fn read_exact_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let bytes = self.get_ref().as_ref();
        let start = usize::try_from(offset).unwrap_or(usize::MAX).min(bytes.len());
        bytes.get(start..).unwrap_or_default().read_exact(out)
    }
}
