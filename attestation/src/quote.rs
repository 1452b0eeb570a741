//! A TDX quote: its claims, read strictly from the bytes. Intel's DCAP quote formats 4 and 5
//! ("Intel TDX DCAP Quoting Library API", appendix A; "TDX Module ABI Specification", 348551).
//!
//! Only the layout is read here. Who signed it is the verifier's question. The enclave reads its
//! own quote by the same code: to find its launch configuration and where the quote ends.

use chrysalis_protocol::codec::{CodecError, Reader};
use thiserror::Error;

/// Why bytes are no TDX quote.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
#[non_exhaustive]
pub enum QuoteError {
    /// Cut short, or a reserved byte is not zero.
    #[error("the quote: {0}")]
    Codec(#[from] CodecError),
    /// Neither version 4 nor 5.
    #[error("the quote's version is {version}, not 4 or 5")]
    Version {
        /// Its version.
        version: u16,
    },
    /// Not signed by an ECDSA P-256 attestation key.
    #[error("the attestation key's type is {found}, not 2 (ECDSA P-256)")]
    KeyType {
        /// The type.
        found: u16,
    },
    /// The quote of an SGX enclave, or of something unknown.
    #[error("the quote's TEE type is {found:#x}, not 0x81 (TDX)")]
    TeeType {
        /// The type.
        found: u32,
    },
    /// A quoting enclave that is not Intel's.
    #[error("the quoting enclave's vendor is {found:02x?}, not Intel")]
    Vendor {
        /// The vendor's id.
        found: [u8; 16],
    },
    /// A body that is no TD report, or of another size than its type has.
    #[error(
        "the quote's body has type {kind} and {size} bytes; TD reports are 2: 584, 3: 648, 4: 885"
    )]
    Body {
        /// Its type.
        kind: u16,
        /// Its size.
        size: u32,
    },
    /// The certification data is not a certificate chain.
    #[error("certification data of type {found}, not {expected}")]
    Certification {
        /// The type.
        found: u16,
        /// The type that is read.
        expected: u16,
    },
    /// Bytes after the end.
    #[error("{extra} bytes after the end of the quote")]
    Trailing {
        /// How many.
        extra: usize,
    },
}

impl QuoteError {
    /// The stable name of this refusal.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Codec(_) => "tdx.length",
            Self::Version { .. } => "tdx.version",
            Self::KeyType { .. } => "tdx.key_type",
            Self::TeeType { .. } => "tdx.tee_type",
            Self::Vendor { .. } => "tdx.vendor",
            Self::Body { .. } => "tdx.body",
            Self::Certification { .. } => "tdx.certification",
            Self::Trailing { .. } => "tdx.trailing",
        }
    }
}

/// The claims of a TD report, in its order. Names are Intel's.
#[derive(Clone, Debug, Eq, PartialEq)]
#[expect(missing_docs, reason = "the names are those of Intel's table")]
pub struct TdReport {
    pub tee_tcb_svn: [u8; 16],
    pub mr_seam: [u8; 48],
    pub mr_signer_seam: [u8; 48],
    pub seam_attributes: u64,
    pub td_attributes: u64,
    pub xfam: u64,
    pub mr_td: [u8; 48],
    pub mr_config_id: [u8; 48],
    pub mr_owner: [u8; 48],
    pub mr_owner_config: [u8; 48],
    pub rtmrs: [[u8; 48]; 4],
    pub report_data: [u8; 64],
    /// What TDX 1.5 adds: the TCB that runs now, and the hash of bound service TDs.
    pub later: Option<TdReport15>,
}

/// What a report of TDX 1.5 adds.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[expect(missing_docs, reason = "the names are those of Intel's table")]
pub struct TdReport15 {
    pub tee_tcb_svn2: [u8; 16],
    pub mr_service_td: [u8; 48],
}

/// A quote whose layout is right; not yet verified.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Quote<'a> {
    /// 4 or 5.
    pub version: u16,
    /// The claims.
    pub report: TdReport,
    /// The certificate chain of the platform's key, PEM.
    pub certificates: &'a [u8],
    /// All bytes of the quote, and none after it.
    pub bytes: &'a [u8],
}

impl<'a> Quote<'a> {
    /// Reads a quote that fills `bytes`.
    ///
    /// # Errors
    /// [`QuoteError`] names what is wrong.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, QuoteError> {
        let (quote, rest) = Self::split(bytes)?;
        if !rest.is_empty() {
            return Err(QuoteError::Trailing { extra: rest.len() });
        }
        Ok(quote)
    }

    /// Reads a quote that may have zeros behind it, as some platforms fill their buffers up.
    ///
    /// # Errors
    /// [`QuoteError`] names what is wrong.
    pub fn parse_padded(bytes: &'a [u8]) -> Result<Self, QuoteError> {
        let (quote, rest) = Self::split(bytes)?;
        if rest.iter().any(|&byte| byte != 0) {
            return Err(QuoteError::Trailing { extra: rest.len() });
        }
        Ok(quote)
    }

    fn split(bytes: &'a [u8]) -> Result<(Self, &'a [u8]), QuoteError> {
        let mut r = Reader::new(bytes);
        let version = u16_le(&mut r)?;
        if !matches!(version, 4 | 5) {
            return Err(QuoteError::Version { version });
        }
        let found = u16_le(&mut r)?;
        if found != KEY_TYPE_P256 {
            return Err(QuoteError::KeyType { found });
        }
        let found = u32_le(&mut r)?;
        if found != TEE_TYPE_TDX {
            return Err(QuoteError::TeeType { found });
        }
        // The versions of the quoting and provisioning enclaves: the certificates say more.
        r.bytes(4)?;
        let found = r.array()?;
        if found != INTEL {
            return Err(QuoteError::Vendor { found });
        }
        // The quoting enclave's name for itself.
        r.bytes(20)?;
        let (kind, size) = match version {
            4 => (2, 584),
            _ => (u16_le(&mut r)?, u32_le(&mut r)?),
        };
        let len = match (kind, size) {
            (2, 584) => 584,
            (3, 648) => 648,
            (4, 885) => 885,
            _ => return Err(QuoteError::Body { kind, size }),
        };
        let report = TdReport::parse(r.bytes(len)?)?;
        let signature_len = u32_le(&mut r)? as usize;
        let certificates = certificates(r.bytes(signature_len)?)?;
        let rest = r.rest();
        let bytes = bytes.get(..bytes.len().saturating_sub(rest.len())).unwrap_or_default();
        Ok((Self { version, report, certificates, bytes }, rest))
    }
}

/// Where the report data lie, by the version that the first bytes say; [`Quote::parse`] checks it.
#[must_use]
pub const fn report_data_offset(quote: &[u8]) -> usize {
    if matches!(quote, [5, ..]) { REPORT_DATA_OFFSET_V5 } else { REPORT_DATA_OFFSET_V4 }
}

impl TdReport {
    fn parse(body: &[u8]) -> Result<Self, CodecError> {
        let mut r = Reader::new(body);
        // The fields are read in the order in which they are written here.
        Ok(Self {
            tee_tcb_svn: r.array()?,
            mr_seam: r.array()?,
            mr_signer_seam: r.array()?,
            seam_attributes: u64_le(&mut r)?,
            td_attributes: u64_le(&mut r)?,
            xfam: u64_le(&mut r)?,
            mr_td: r.array()?,
            mr_config_id: r.array()?,
            mr_owner: r.array()?,
            mr_owner_config: r.array()?,
            rtmrs: [r.array()?, r.array()?, r.array()?, r.array()?],
            report_data: r.array()?,
            later: if r.is_empty() {
                None
            } else {
                Some(TdReport15 { tee_tcb_svn2: r.array()?, mr_service_td: r.array()? })
            },
        })
    }

    /// The first 32 bytes of `MRCONFIGID`, where the launch config's digest stands, if the others
    /// are zero.
    #[must_use]
    pub fn launch_config_digest(&self) -> Option<[u8; 32]> {
        let (digest, rest) = self.mr_config_id.split_first_chunk::<32>()?;
        rest.iter().all(|&byte| byte == 0).then_some(*digest)
    }
}

/// Signature, attestation key, and certification data of type 6, which hold the quoting enclave's
/// report and the certificate chain of type 5, which is returned: every length fits, and nothing
/// is left over.
fn certificates(bytes: &[u8]) -> Result<&[u8], QuoteError> {
    let mut r = Reader::new(bytes);
    r.bytes(64 + 64)?;
    let mut inner = Reader::new(certification(&mut r, 6)?);
    r.finish()?;
    inner.bytes(384 + 64)?;
    let authentication_len = u16_le(&mut inner)?;
    inner.bytes(usize::from(authentication_len))?;
    let certificates = certification(&mut inner, 5)?;
    inner.finish()?;
    Ok(certificates)
}

fn certification<'a>(r: &mut Reader<'a>, expected: u16) -> Result<&'a [u8], QuoteError> {
    let found = u16_le(r)?;
    if found != expected {
        return Err(QuoteError::Certification { found, expected });
    }
    let len = u32_le(r)? as usize;
    Ok(r.bytes(len)?)
}

fn u16_le(reader: &mut Reader<'_>) -> Result<u16, CodecError> {
    reader.array().map(u16::from_le_bytes)
}

fn u32_le(reader: &mut Reader<'_>) -> Result<u32, CodecError> {
    reader.array().map(u32::from_le_bytes)
}

fn u64_le(reader: &mut Reader<'_>) -> Result<u64, CodecError> {
    reader.array().map(u64::from_le_bytes)
}

/// Bits of `TDATTRIBUTES` (TDX Module ABI Specification, table 3.23).
pub mod td_attributes {
    /// The host reads and writes the guest's state.
    pub const DEBUG: u64 = 1;
    /// The host profiles the guest.
    pub const PROFILING: u64 = 0b111 << 4;
    /// Instruction counts against single-stepping.
    pub const ICSSD: u64 = 1 << 16;
    /// Service TDs are bound, and described in a longer report.
    pub const SERVTD_EXT: u64 = 1 << 17;
    /// Linear address-space separation.
    pub const LASS: u64 = 1 << 27;
    /// No exception to the guest when the host takes a page away: the guest stops instead.
    pub const SEPT_VE_DISABLE: u64 = 1 << 28;
    /// A migration TD may move the guest.
    pub const MIGRATABLE: u64 = 1 << 29;
    /// Supervisor protection keys.
    pub const PKS: u64 = 1 << 30;
    /// A provisioning agent of TDX Connect.
    pub const TPA: u64 = 1 << 62;
    /// Performance counters in the guest.
    pub const PERFMON: u64 = 1 << 63;
    /// All of these.
    pub const KNOWN: u64 = DEBUG
        | PROFILING
        | ICSSD
        | SERVTD_EXT
        | LASS
        | SEPT_VE_DISABLE
        | MIGRATABLE
        | PKS
        | TPA
        | PERFMON;
}

/// Behind a header of 48 bytes and 520 bytes of the body.
const REPORT_DATA_OFFSET_V4: usize = 48 + 520;
/// Version 5 says in 6 bytes which body follows.
const REPORT_DATA_OFFSET_V5: usize = 48 + 6 + 520;
const KEY_TYPE_P256: u16 = 2;
const TEE_TYPE_TDX: u32 = 0x81;
/// 939a7233-f79c-4ca9-940a-0db3957f0607.
const INTEL: [u8; 16] = *b"\x93\x9a\x72\x33\xf7\x9c\x4c\xa9\x94\x0a\x0d\xb3\x95\x7f\x06\x07";
