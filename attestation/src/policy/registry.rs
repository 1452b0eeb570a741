//! The platform registry: machines that somebody vouches for, as a signed file with a date and an
//! end. No software check finds a device on a memory bus, so a third choice beside "any genuine
//! machine" and "these machines" is "those that this signer has looked at". docs/formats.md,
//! section 1.8.

use chrysalis_protocol::codec::{Reader, Writer};

use super::FromFile;
use super::signed_file::{
    FileKind, SignedFile, SignedFileError, SignedRecord, Table, layout, require,
};
use crate::verifier::HardwareId;

/// What a registry says; records ascend, SEV-SNP chips before TDX platforms.
pub type RegistryTable = Table<HardwareId>;

/// A registry whose signature is good.
pub type Registry = SignedFile<HardwareId>;

/// The registry that a policy trusts.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct RegistryTrust {
    /// The file.
    pub file: FromFile<Registry>,
    /// The lowest number of a file that is accepted.
    pub minimum_version: u32,
}

impl SignedRecord for HardwareId {
    const FILE: FileKind = FileKind::Registry;
    /// A file of some 4.7 MB.
    const COUNT_MAX: u32 = 1 << 16;

    fn write(&self, out: &mut Writer) {
        let id = self.as_bytes();
        out.u8(number(self)).zeros(7).bytes(id).zeros(ID_LEN.saturating_sub(id.len()));
    }

    fn read(r: &mut Reader<'_>) -> Result<Self, SignedFileError> {
        let [kind] = r.array().map_err(layout::<Self>)?;
        require(Self::FILE, matches!(kind, 1 | 2), "kind", kind.into(), "not 1 or 2")?;
        r.zeros(7).map_err(layout::<Self>)?;
        let id = if kind == 1 {
            Self::Chip(r.array().map_err(layout::<Self>)?)
        } else {
            let id = r.array().map_err(layout::<Self>)?;
            r.zeros(ID_LEN - 16).map_err(layout::<Self>)?;
            Self::Ppid(id)
        };
        require(Self::FILE, id.is_one(), "id", 0, "which is that of no machine")?;
        Ok(id)
    }

    fn after(&self, last: &Self) -> Result<(), (&'static str, u64)> {
        let key = |id: &Self| (number(id), id.as_bytes().to_vec());
        if key(last) < key(self) {
            return Ok(());
        }
        Err(("id", number(self).into()))
    }
}

const fn number(id: &HardwareId) -> u8 {
    match id {
        HardwareId::Chip(_) => 1,
        HardwareId::Ppid(_) => 2,
    }
}

/// Bytes of an id in a record.
const ID_LEN: usize = 64;
