//! The page in which a monitor that boots a kernel directly leaves the hashes of kernel, initrd and
//! command line for the firmware to check (OVMF's `SevHashTable`).

use chrysalis_protocol::hash::sha256;

use super::LaunchError;
use super::ovmf::{Guid, guid};
use super::pages::PAGE;

/// SHA-256 of what is booted.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct KernelHashes {
    kernel: [u8; 32],
    initrd: [u8; 32],
    cmdline: String,
}

impl KernelHashes {
    /// Of a kernel, an initrd (empty where there is none) and the command line, exactly as the
    /// monitor gets it.
    #[must_use]
    pub fn new(kernel: &[u8], initrd: &[u8], cmdline: &str) -> Self {
        Self { kernel: sha256(&[kernel]), initrd: sha256(&[initrd]), cmdline: cmdline.to_owned() }
    }

    /// The command line.
    #[must_use]
    pub fn cmdline(&self) -> &str {
        &self.cmdline
    }

    /// The same kernel, with another command line.
    #[must_use]
    pub(super) fn with_cmdline(&self, cmdline: &str) -> Self {
        Self { cmdline: cmdline.to_owned(), ..self.clone() }
    }

    /// The same kernel, without an initrd.
    #[must_use]
    pub(super) fn without_initrd(&self) -> Self {
        Self { initrd: sha256(&[]), ..self.clone() }
    }

    /// The page with the table at the offset of `gpa` in it; all else is zero.
    pub(super) fn page(&self, gpa: u32) -> Result<[u8; PAGE], LaunchError> {
        // QEMU hashes the command line with its closing zero.
        let cmdline = sha256(&[self.cmdline.as_bytes(), &[0]]);
        let mut table = Vec::with_capacity(TABLE_LEN.into());
        table.extend_from_slice(&TABLE);
        table.extend_from_slice(&TABLE_LEN.to_le_bytes());
        for (guid, hash) in [(CMDLINE, cmdline), (INITRD, self.initrd), (KERNEL, self.kernel)] {
            table.extend_from_slice(&guid);
            table.extend_from_slice(&ENTRY_LEN.to_le_bytes());
            table.extend_from_slice(&hash);
        }
        let offset = usize::try_from(gpa).unwrap_or(usize::MAX) % PAGE;
        let mut page = [0; PAGE];
        let room = page.get_mut(offset..).and_then(|rest| rest.get_mut(..table.len()));
        let damaged = "the hash table does not fit in its page";
        room.ok_or(LaunchError::OvmfTable { table: "hash table", reason: damaged })?
            .copy_from_slice(&table);
        Ok(page)
    }
}

const TABLE: Guid = guid(0x9438_d606, 0x4f22, 0x4cc9, *b"\xb4\x79\xa7\x93\xd4\x11\xfd\x21");
const CMDLINE: Guid = guid(0x97d0_2dd8, 0xbd20, 0x4c94, *b"\xaa\x78\xe7\x71\x4d\x36\xab\x2a");
const INITRD: Guid = guid(0x44ba_f731, 0x3a2f, 0x4bd7, *b"\x9a\xf1\x41\xe2\x91\x69\x78\x1d");
const KERNEL: Guid = guid(0x4de7_9437, 0xabd2, 0x427f, *b"\xb8\x35\xd5\xb1\x72\xd2\x04\x5b");
/// GUID, length, SHA-256.
const ENTRY_LEN: u16 = 50;
/// GUID, length, three entries; the padding to 16 bytes that follows is zero anyway.
const TABLE_LEN: u16 = 168;
