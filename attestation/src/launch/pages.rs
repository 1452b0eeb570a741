//! The running digest of SNP_LAUNCH_UPDATE: one `PAGE_INFO` of 112 bytes for each page (AMD 56860,
//! table "Layout of the PAGE_INFO structure").

use chrysalis_protocol::hash::sha384;

/// What a page is to the firmware.
#[derive(Clone, Copy, Debug)]
pub(super) enum PageKind {
    Normal = 1,
    Vmsa = 2,
    Zero = 3,
    Secrets = 5,
    Cpuid = 6,
}

/// The launch digest so far.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Digest([u8; 48]);

impl Digest {
    pub(super) const fn new() -> Self {
        Self([0; 48])
    }

    pub(super) const fn value(&self) -> [u8; 48] {
        self.0
    }

    /// Adds one page, of which `contents` is the digest; zero for pages that are not measured.
    pub(super) fn page(&mut self, kind: PageKind, gpa: u64, contents: &[u8; 48]) {
        let length = PAGE_INFO_LEN.to_le_bytes();
        // Not an initial migration image; no permissions for VMPL 3, 2 and 1; one reserved byte.
        let flags = [kind as u8, 0, 0, 0, 0, 0];
        self.0 = sha384(&[&self.0, contents, &length, &flags, &gpa.to_le_bytes()]);
    }

    /// Adds pages with contents; the last one is filled up with zeros by nobody: whole pages only.
    pub(super) fn contents(&mut self, kind: PageKind, gpa: u64, bytes: &[u8]) {
        for (page, at) in bytes.chunks_exact(PAGE).zip((gpa..).step_by(PAGE)) {
            self.page(kind, at, &sha384(&[page]));
        }
    }

    /// Adds `pages` pages that the firmware fills with zeros.
    pub(super) fn zeros(&mut self, gpa: u64, pages: u32) {
        for (_, at) in (0..pages).zip((gpa..).step_by(PAGE)) {
            self.page(PageKind::Zero, at, &[0; 48]);
        }
    }
}

/// Bytes of a page.
pub(super) const PAGE: usize = 4096;
/// Bytes of a `PAGE_INFO`.
const PAGE_INFO_LEN: u16 = 0x70;
