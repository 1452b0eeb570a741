//! Receipts in a file: 320 bytes each, one after another, in the order in which a connection brought them.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;

use chrysalis_protocol::receipt::RECEIPT_LEN;

/// A file that receipts are added to.
#[derive(Debug)]
pub struct ReceiptFile(File);

impl ReceiptFile {
    /// Opens or creates the file. What a crash left of a receipt at its end is dropped: a whole receipt was never lost
    /// with it.
    ///
    /// # Errors
    /// The system's.
    pub fn append_to(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().create(true).append(true).open(path)?;
        let len = file.metadata()?.len();
        let rest = len % RECEIPT_LEN as u64;
        if rest > 0 {
            file.set_len(len - rest)?;
        }
        Ok(Self(file))
    }

    /// Adds a receipt; when this comes back it is on the disk.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidInput`] for what is no receipt by its length, and the system's.
    pub fn add(&mut self, receipt: &[u8]) -> io::Result<()> {
        if receipt.len() != RECEIPT_LEN {
            let why = format!("{} bytes are no receipt", receipt.len());
            return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
        }
        self.0.write_all(receipt)?;
        self.0.sync_data()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn receipts_are_added_whole_and_a_torn_one_is_dropped() {
        let path = std::env::temp_dir().join(format!("chrysalis-receipts-{}", std::process::id()));
        std::fs::write(&path, [7; RECEIPT_LEN + 100]).unwrap();
        let mut file = ReceiptFile::append_to(&path).unwrap();
        file.add(&[8; RECEIPT_LEN]).unwrap();
        assert!(file.add(&[9; RECEIPT_LEN - 1]).is_err());
        let kept = std::fs::read(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert_eq!(kept, [[7; RECEIPT_LEN], [8; RECEIPT_LEN]].concat());
    }
}
