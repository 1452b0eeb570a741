//! The report of an NVIDIA device: SPDM 1.1 `GET_MEASUREMENTS` request and `MEASUREMENTS` response
//! (DMTF DSP0274), as the driver hands them out together.
//!
//! request 37: version 0x11, code 0xE0, 0x01 signed, 0xFF all blocks, nonce 32, slot 0 |
//! response: 0x11, 0x60, 0, 0, num_blocks u8, record_len u24, blocks, nonce 32, opaque_len u16,
//! opaque data | ECDSA P-384 signature 96. Integers are little-endian. A block is index u8,
//! specification 1 (DMTF), len u16 = 51, type 1 (digest of mutable firmware), len u16 = 48, digest.
//! Opaque data are NVIDIA's: type u16 | len u16 | value, none twice.

use chrysalis_protocol::codec::{CodecError, Reader};
use thiserror::Error;

/// Why bytes are not the report of a device.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
#[non_exhaustive]
pub enum SpdmError {
    /// A field is cut short, or bytes follow the last one.
    #[error("the report: {0}")]
    Codec(#[from] CodecError),
    /// A field has the one value that it has in no report.
    #[error("the report's {field} is {found:#x}, not {expected:#x}")]
    Field {
        /// The field.
        field: &'static str,
        /// What was read.
        found: u32,
        /// The only value there is.
        expected: u32,
    },
    /// Measurement blocks do not count up from 1.
    #[error("measurement block {found} stands where {expected} does")]
    Index {
        /// The block's index.
        found: u8,
        /// The one that is due.
        expected: usize,
    },
    /// An opaque field comes twice.
    #[error("opaque field {kind} comes twice")]
    Twice {
        /// Its type.
        kind: u16,
    },
    /// An opaque field is not there.
    #[error("opaque field {kind} is missing")]
    Missing {
        /// Its type.
        kind: u16,
    },
    /// An opaque field has another form than its type says.
    #[error("opaque field {kind} of {len} bytes is not of the form of its type")]
    Form {
        /// Its type.
        kind: u16,
        /// Its length.
        len: usize,
    },
}

/// A report, taken apart; nothing about it is proved yet.
#[derive(Clone, Debug)]
pub(crate) struct Report<'a> {
    /// The nonce of the request.
    pub(crate) nonce: [u8; 32],
    /// Digest of block 1, of block 2, and so on; a manifest counts from 0.
    pub(crate) measurements: Vec<[u8; 48]>,
    opaque: Vec<(u16, &'a [u8])>,
    /// What the signature is over.
    pub(crate) signed: &'a [u8],
    /// r || s.
    pub(crate) signature: &'a [u8],
}

impl<'a> Report<'a> {
    /// Reads a report.
    pub(crate) fn parse(bytes: &'a [u8]) -> Result<Self, SpdmError> {
        let left = bytes.len();
        let short = CodecError::Short { needed: SIGNATURE_LEN, left };
        let (signed, signature) = left
            .checked_sub(SIGNATURE_LEN)
            .and_then(|at| bytes.split_at_checked(at))
            .ok_or(short)?;
        let mut reader = Reader::new(signed);
        constant(&mut reader, "request", &[0x11, 0xE0, 0x01, 0xFF])?;
        let nonce = reader.array()?;
        constant(&mut reader, "slot", &[0])?;

        constant(&mut reader, "response", &[0x11, 0x60, 0, 0])?;
        let num_blocks = reader.u8()?;
        let [a, b, c] = reader.array()?;
        let record_len = u32::from_le_bytes([a, b, c, 0]);
        let expected = u32::from(num_blocks).saturating_mul(BLOCK_LEN);
        if record_len != expected {
            let field = "record length";
            return Err(SpdmError::Field { field, found: record_len, expected });
        }
        let measurements = (0..usize::from(num_blocks))
            .map(|index| block(&mut reader, index.saturating_add(1)))
            .collect::<Result<_, _>>()?;
        // The device's own random value.
        reader.array::<32>()?;
        let opaque_len = u16::from_le_bytes(reader.array()?);
        let opaque = opaque(reader.bytes(opaque_len.into())?)?;
        reader.finish()?;
        Ok(Self { nonce, measurements, opaque, signed, signature })
    }

    /// An opaque field, if it is there.
    fn find(&self, kind: u16) -> Option<&'a [u8]> {
        self.opaque.iter().find(|(found, _)| *found == kind).map(|(_, value)| *value)
    }

    fn get(&self, kind: u16) -> Result<&'a [u8], SpdmError> {
        self.find(kind).ok_or(SpdmError::Missing { kind })
    }

    /// A text: printable ASCII, filled up with zeros.
    fn text(&self, kind: u16) -> Result<String, SpdmError> {
        let value = self.get(kind)?;
        let text = match value.iter().position(|byte| *byte == 0) {
            Some(end) => value.get(..end).unwrap_or_default(),
            None => value,
        };
        let zeros = value.iter().skip(text.len()).all(|byte| *byte == 0);
        let printable = text.iter().all(u8::is_ascii_graphic);
        if !zeros || !printable || text.is_empty() {
            return Err(SpdmError::Form { kind, len: value.len() });
        }
        Ok(text.iter().map(|byte| char::from(*byte)).collect())
    }

    /// The driver's version; a switch has none.
    pub(crate) fn driver(&self) -> Result<String, SpdmError> {
        self.text(DRIVER_VERSION)
    }

    /// The VBIOS version as manifests write it: of a GPU two little-endian integers, of a switch
    /// text.
    pub(crate) fn vbios(&self) -> Result<String, SpdmError> {
        match self.get(VBIOS_VERSION)? {
            [d, c, b, a, e, 0, 0, 0] => Ok(format!("{a:02X}.{b:02X}.{c:02X}.{d:02X}.{e:02X}")),
            _ => self.text(VBIOS_VERSION),
        }
    }

    /// The name under which NVIDIA publishes the manifest of the VBIOS.
    pub(crate) fn vbios_manifest(&self) -> Result<String, SpdmError> {
        let (project, sku, chip) =
            (self.text(PROJECT)?, self.text(PROJECT_SKU)?, self.text(CHIP_SKU)?);
        let version: String = self.vbios()?.split('.').collect();
        Ok(format!("NV_GPU_VBIOS_{project}_{sku}_{chip}_{version}").to_uppercase())
    }

    /// SHA-384 of the firmware that holds the attestation key. Drivers below 550 do not report it.
    pub(crate) fn fwid(&self) -> Result<Option<[u8; 48]>, SpdmError> {
        self.find(FWID).map(|value| form(FWID, value)).transpose()
    }

    /// A state that is told by one byte: 0xAA on, 0x55 off.
    fn state(&self, kind: u16) -> Result<Option<bool>, SpdmError> {
        match self.find(kind) {
            None => Ok(None),
            Some([0xAA]) => Ok(Some(true)),
            Some([0x55]) => Ok(Some(false)),
            Some(value) => Err(SpdmError::Form { kind, len: value.len() }),
        }
    }

    /// Whether the GPU is in protected PCIe mode. Drivers below 550 do not report it.
    pub(crate) fn ppcie(&self) -> Result<Option<bool>, SpdmError> {
        self.state(PPCIE_STATUS)
    }

    /// Whether the GPU's first video decoder runs; its firmware's measurement counts only then.
    pub(crate) fn nvdec0(&self) -> Result<bool, SpdmError> {
        Ok(self.state(NVDEC0_STATUS)?.unwrap_or(true))
    }

    /// The switches that a GPU's links lead to, each once, ascending; empty where it has none.
    pub(crate) fn linked_switches(&self) -> Result<Vec<[u8; 8]>, SpdmError> {
        let value = self.find(PDI).unwrap_or_default();
        let (pdis, []) = value.as_chunks::<8>() else {
            return Err(SpdmError::Form { kind: PDI, len: value.len() });
        };
        // A GPU writes the numbers of its switches in the other byte order than they themselves.
        Ok(unique(pdis.iter().map(|pdi| u64::from_le_bytes(*pdi).to_be_bytes())))
    }

    /// A switch's own number.
    pub(crate) fn switch_pdi(&self) -> Result<[u8; 8], SpdmError> {
        form(PDI, self.get(PDI)?)
    }

    /// The GPUs that a switch's ports lead to, each once, ascending. The field has room for eight,
    /// and behind them says which port leads to which.
    pub(crate) fn linked_gpus(&self) -> Result<Vec<[u8; 8]>, SpdmError> {
        let value = self.get(SWITCH_GPU_PDIS)?;
        let (pdis, []) = value.as_chunks::<8>() else {
            return Err(SpdmError::Form { kind: SWITCH_GPU_PDIS, len: value.len() });
        };
        Ok(unique(pdis.iter().take(SWITCH_GPUS_MAX).copied()))
    }
}

/// Without doubles and zeros, ascending.
fn unique(pdis: impl Iterator<Item = [u8; 8]>) -> Vec<[u8; 8]> {
    let mut pdis: Vec<_> = pdis.filter(|pdi| *pdi != [0; 8]).collect();
    pdis.sort_unstable();
    pdis.dedup();
    pdis
}

fn form<const N: usize>(kind: u16, value: &[u8]) -> Result<[u8; N], SpdmError> {
    value.try_into().map_err(|_| SpdmError::Form { kind, len: value.len() })
}

/// Bytes of which each has one value.
fn constant(
    reader: &mut Reader<'_>,
    field: &'static str,
    expected: &[u8],
) -> Result<(), SpdmError> {
    for &expected in expected {
        let found = reader.u8()?;
        if found != expected {
            let (found, expected) = (found.into(), expected.into());
            return Err(SpdmError::Field { field, found, expected });
        }
    }
    Ok(())
}

fn block(reader: &mut Reader<'_>, expected: usize) -> Result<[u8; 48], SpdmError> {
    let found = reader.u8()?;
    if usize::from(found) != expected {
        return Err(SpdmError::Index { found, expected });
    }
    constant(reader, "measurement block", &[1, 51, 0, 1, 48, 0])?;
    Ok(reader.array()?)
}

fn opaque(bytes: &[u8]) -> Result<Vec<(u16, &[u8])>, SpdmError> {
    let mut reader = Reader::new(bytes);
    let mut fields: Vec<(u16, &[u8])> = Vec::new();
    while !reader.is_empty() {
        let kind = u16::from_le_bytes(reader.array()?);
        let len = u16::from_le_bytes(reader.array()?);
        if fields.iter().any(|(found, _)| *found == kind) {
            return Err(SpdmError::Twice { kind });
        }
        fields.push((kind, reader.bytes(len.into())?));
    }
    Ok(fields)
}

const SIGNATURE_LEN: usize = 96;
const BLOCK_LEN: u32 = 55;
const SWITCH_GPUS_MAX: usize = 8;
const DRIVER_VERSION: u16 = 3;
const VBIOS_VERSION: u16 = 6;
const NVDEC0_STATUS: u16 = 11;
const CHIP_SKU: u16 = 15;
const PROJECT: u16 = 17;
const PROJECT_SKU: u16 = 18;
const FWID: u16 = 20;
const PPCIE_STATUS: u16 = 21;
/// Of a switch its own number, of a GPU those of the switches at its links.
const PDI: u16 = 22;
const SWITCH_GPU_PDIS: u16 = 26;
