//! Firmware for tests of launch measurements: OVMF's tables at the end of an image that does nothing.

/// Firmware with OVMF's tables and nothing to run.
pub(crate) struct Image {
    /// Whether there is SNP metadata.
    pub(crate) metadata: bool,
    /// Whether there is a place for hashes of a kernel.
    pub(crate) hashes: bool,
    /// Whether further virtual CPUs have an address to start at.
    pub(crate) reset: bool,
    /// Address, length, kind.
    pub(crate) sections: Vec<(u32, u32, u32)>,
    /// Where the metadata lies, instead of where it does.
    pub(crate) from_end: Option<u32>,
}

impl Default for Image {
    fn default() -> Self {
        let sections = vec![
            (0x0080_0000, 0x9000, 1),
            (0x0080_A000, 0x1000, 3),
            (0x0080_9000, 0x1000, 2),
            (0x0080_B000, 0x2000, 4),
            (0x0080_D000, 0x1000, 0x10),
        ];
        Self { metadata: true, hashes: true, reset: true, sections, from_end: None }
    }
}

impl Image {
    /// The image's bytes.
    pub(crate) fn build(&self) -> Vec<u8> {
        let mut metadata = b"ASEV".to_vec();
        let count = self.sections.len() as u32;
        for word in [16 + 12 * count, 1, count] {
            metadata.extend(word.to_le_bytes());
        }
        for &(gpa, len, kind) in &self.sections {
            metadata.extend([gpa, len, kind].iter().flat_map(|word| word.to_le_bytes()));
        }
        let len = 0x4000_usize;
        // The metadata lies at a fixed place; the table of GUIDs refers to it from the end.
        let metadata_at = len - 1024;
        let from_end = self.from_end.unwrap_or((len - metadata_at) as u32);
        let mut entries = Vec::new();
        let mut entry = |data: &[u8], guid: &str| {
            entries.extend_from_slice(data);
            entries.extend((data.len() as u16 + 18).to_le_bytes());
            entries.extend(guid_bytes(guid));
        };
        if self.hashes {
            let place = [0x0080_DC00_u32.to_le_bytes(), 0x400_u32.to_le_bytes()].concat();
            entry(&place, "7255371f-3a3b-4b04-927b-1da6efa8d454");
        }
        if self.reset {
            entry(&0x0080_B004_u32.to_le_bytes(), "00f771de-1a7e-4fcb-890e-68c77e2fb44e");
        }
        if self.metadata {
            entry(&from_end.to_le_bytes(), "dc886566-984a-4798-a75e-5585a7bf67cc");
        }
        let mut image: Vec<u8> = (0..len).map(|index| (index * 7 % 251) as u8).collect();
        image[metadata_at..][..metadata.len()].copy_from_slice(&metadata);
        let footer = [
            &entries[..],
            &(entries.len() as u16 + 18).to_le_bytes(),
            &guid_bytes("96b582de-1fb2-45f7-baea-a366c55a082d"),
        ]
        .concat();
        let end = len - 32;
        image[end - footer.len()..end].copy_from_slice(&footer);
        assert!(metadata_at + metadata.len() < end - footer.len());
        image
    }
}

/// A GUID in memory order, from its usual writing.
fn guid_bytes(text: &str) -> [u8; 16] {
    let hex: String = text.chars().filter(|&c| c != '-').collect();
    let mut bytes: Vec<u8> =
        (0..16).map(|at| u8::from_str_radix(&hex[2 * at..2 * at + 2], 16).unwrap()).collect();
    bytes[..4].reverse();
    bytes[4..6].reverse();
    bytes[6..8].reverse();
    bytes.try_into().unwrap()
}
