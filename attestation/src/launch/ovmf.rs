//! What OVMF tells about itself at the end of its image: a table of entries with GUIDs, read from
//! its end, one of which points to the pages that a monitor has to add for SNP.

use super::LaunchError;
use super::pages::{Digest, PAGE, PageKind};

/// A firmware image.
#[derive(Clone, Debug)]
pub struct Ovmf {
    pages: Digest,
    sections: Vec<Section>,
    hash_table_gpa: Option<u32>,
    reset_eip: Option<u32>,
}

/// Pages that the monitor adds beside the image.
#[derive(Clone, Copy, Debug)]
pub(super) struct Section {
    pub(super) kind: SectionKind,
    pub(super) gpa: u64,
    pub(super) pages: u32,
}

/// What those pages are for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum SectionKind {
    Memory,
    Secrets,
    Cpuid,
    SvsmCallingArea,
    KernelHashes,
}

impl Ovmf {
    /// Reads an image and measures its pages, which end at 4 GiB.
    ///
    /// # Errors
    /// [`LaunchError`] names the table that is missing or damaged.
    pub fn parse(image: &[u8]) -> Result<Self, LaunchError> {
        let wrong_length = LaunchError::OvmfLength { len: image.len() };
        let start = u32::try_from(image.len()).ok().filter(|&len| len > 0).map(u32::wrapping_neg);
        let start = start.filter(|&start| start.is_multiple_of(PAGE_U32)).ok_or(wrong_length)?;
        let table = Table::find(image)?;
        let metadata = table.entry(SEV_METADATA)?.ok_or(LaunchError::OvmfMissing {
            missing: "SEV metadata",
            advice: "this image cannot start an SNP guest; take one built for AMD SEV-SNP",
        })?;
        let mut pages = Digest::new();
        pages.contents(PageKind::Normal, start.into(), image);
        Ok(Self {
            pages,
            sections: sections(image, word(metadata, "SEV metadata")?)?,
            hash_table_gpa: table.word(HASH_TABLE, "hash table")?,
            reset_eip: table.word(RESET_BLOCK, "reset block")?.filter(|&eip| eip != 0),
        })
    }

    pub(super) fn pages_digest(&self) -> Digest {
        self.pages.clone()
    }

    pub(super) fn sections(&self) -> &[Section] {
        &self.sections
    }

    /// Where the firmware looks for the hashes of the kernel.
    pub(super) fn hash_table_gpa(&self) -> Result<u32, LaunchError> {
        self.hash_table_gpa.filter(|&gpa| gpa != 0).ok_or(LaunchError::OvmfMissing {
            missing: "table for kernel hashes",
            advice: "build OVMF's AmdSev package, or leave --kernel out",
        })
    }

    /// Where all but the first virtual CPU start, where the firmware says so.
    pub(super) const fn reset_eip(&self) -> Option<u32> {
        self.reset_eip
    }
}

/// The table of GUIDs: entries that are read from the end, each `data, u16 length, GUID`.
struct Table<'a>(&'a [u8]);

impl<'a> Table<'a> {
    /// The table ends 32 bytes before the image does, with an entry of its own.
    fn find(image: &'a [u8]) -> Result<Self, LaunchError> {
        let end = image.len().checked_sub(RESET_VECTOR_LEN).ok_or(LaunchError::OvmfFooter)?;
        let body = image.get(..end).ok_or(LaunchError::OvmfFooter)?;
        let (body, guid) = body.split_last_chunk::<16>().ok_or(LaunchError::OvmfFooter)?;
        let (body, len) = body.split_last_chunk::<2>().ok_or(LaunchError::OvmfFooter)?;
        if *guid != FOOTER {
            return Err(LaunchError::OvmfFooter);
        }
        let entries = usize::from(u16::from_le_bytes(*len)).checked_sub(ENTRY_HEAD);
        let start = entries.and_then(|len| body.len().checked_sub(len));
        let entries = start.and_then(|start| body.get(start..));
        let reason = "its length does not fit in the image";
        entries.map(Self).ok_or(LaunchError::OvmfTable { table: "table of GUIDs", reason })
    }

    /// The data of the entry with this GUID.
    fn entry(&self, wanted: Guid) -> Result<Option<&'a [u8]>, LaunchError> {
        let mut rest = self.0;
        while let Some((before, guid)) = rest.split_last_chunk::<16>() {
            let reason = "an entry's length does not fit";
            let damaged = LaunchError::OvmfTable { table: "table of GUIDs", reason };
            let (before, len) = before.split_last_chunk::<2>().ok_or_else(|| damaged.clone())?;
            let len = usize::from(u16::from_le_bytes(*len)).checked_sub(ENTRY_HEAD);
            let start = len.and_then(|len| before.len().checked_sub(len));
            let (before, data) =
                start.and_then(|start| before.split_at_checked(start)).ok_or(damaged)?;
            if *guid == wanted {
                return Ok(Some(data));
            }
            rest = before;
        }
        Ok(None)
    }

    /// The first word of an entry.
    fn word(&self, guid: Guid, table: &'static str) -> Result<Option<u32>, LaunchError> {
        self.entry(guid)?.map(|data| word(data, table)).transpose()
    }
}

fn word(data: &[u8], table: &'static str) -> Result<u32, LaunchError> {
    let short = LaunchError::OvmfTable { table, reason: "it has fewer than four bytes" };
    data.first_chunk().map(|bytes| u32::from_le_bytes(*bytes)).ok_or(short)
}

/// The SNP metadata, `from_end` bytes before the end: `ASEV`, length, version 1, count, and for
/// each section an address, a length and a kind.
fn sections(image: &[u8], from_end: u32) -> Result<Vec<Section>, LaunchError> {
    let damaged = |reason| LaunchError::OvmfTable { table: "SNP metadata", reason };
    let from_end = usize::try_from(from_end).unwrap_or(usize::MAX);
    let start =
        image.len().checked_sub(from_end).ok_or_else(|| damaged("it begins before the image"))?;
    let mut words = image.get(start..).unwrap_or_default().chunks_exact(4).map(|chunk| {
        let mut bytes = [0; 4];
        bytes.copy_from_slice(chunk);
        bytes
    });
    let mut next = || words.next().ok_or_else(|| damaged("it ends after the image"));
    if next()? != *b"ASEV" {
        return Err(damaged("it does not begin with ASEV"));
    }
    let len = u32::from_le_bytes(next()?);
    if u32::from_le_bytes(next()?) != 1 {
        return Err(damaged("its version is not 1"));
    }
    let count = u32::from_le_bytes(next()?);
    if count.checked_mul(12).and_then(|bytes| bytes.checked_add(16)) != Some(len) {
        return Err(damaged("its length is not that of its sections"));
    }
    let mut sections = Vec::new();
    for _ in 0..count {
        let (gpa, len) = (u32::from_le_bytes(next()?), u32::from_le_bytes(next()?));
        if gpa % PAGE_U32 != 0 || len % PAGE_U32 != 0 || len == 0 {
            return Err(damaged("a section is not in whole pages"));
        }
        let kind = match u32::from_le_bytes(next()?) {
            1 => SectionKind::Memory,
            2 => SectionKind::Secrets,
            3 => SectionKind::Cpuid,
            4 => SectionKind::SvsmCallingArea,
            0x10 => SectionKind::KernelHashes,
            kind => return Err(LaunchError::OvmfSection { kind }),
        };
        let pages = len / PAGE_U32;
        if pages != 1 && !matches!(kind, SectionKind::Memory | SectionKind::SvsmCallingArea) {
            return Err(damaged("a section of one page has several"));
        }
        sections.push(Section { kind, gpa: gpa.into(), pages });
    }
    Ok(sections)
}

/// A GUID as it lies in memory: three little-endian numbers and eight bytes.
pub(super) type Guid = [u8; 16];

/// A GUID by its usual writing.
pub(super) const fn guid(a: u32, b: u16, c: u16, d: [u8; 8]) -> Guid {
    let ([a0, a1, a2, a3], [b0, b1], [c0, c1]) =
        (a.to_le_bytes(), b.to_le_bytes(), c.to_le_bytes());
    let [d0, d1, d2, d3, d4, d5, d6, d7] = d;
    [a0, a1, a2, a3, b0, b1, c0, c1, d0, d1, d2, d3, d4, d5, d6, d7]
}

const FOOTER: Guid = guid(0x96b5_82de, 0x1fb2, 0x45f7, *b"\xba\xea\xa3\x66\xc5\x5a\x08\x2d");
const HASH_TABLE: Guid = guid(0x7255_371f, 0x3a3b, 0x4b04, *b"\x92\x7b\x1d\xa6\xef\xa8\xd4\x54");
const RESET_BLOCK: Guid = guid(0x00f7_71de, 0x1a7e, 0x4fcb, *b"\x89\x0e\x68\xc7\x7e\x2f\xb4\x4e");
const SEV_METADATA: Guid = guid(0xdc88_6566, 0x984a, 0x4798, *b"\xa7\x5e\x55\x85\xa7\xbf\x67\xcc");
/// The reset vector, below 4 GiB, after the table.
const RESET_VECTOR_LEN: usize = 32;
/// Length and GUID of an entry.
const ENTRY_HEAD: usize = 18;
const PAGE_U32: u32 = PAGE as u32;
