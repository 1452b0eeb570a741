//! The SEV-SNP attestation report: 1,184 bytes, little-endian, versions 3 to 5 (AMD 56860, table
//! 23).
//!
//! Both ends know this one layout: the simulated attester writes it, the verifier reads it. The
//! parser is strict: a report is either exactly what the table says, or it is refused.

mod tcb;

use chrysalis_protocol::codec::{CodecError, Reader, Writer};
use thiserror::Error;

pub use tcb::{Cpuid, Firmware, Product, Tcb};

/// Bytes of a report.
pub const REPORT_LEN: usize = 1_184;
/// Bytes at the front of a report that its signature covers.
pub const SIGNED_LEN: usize = 0x2A0;

/// Bits of the guest policy (AMD 56860, table 9).
pub mod guest_policy {
    /// The guest may run on a machine with SMT enabled.
    pub const SMT: u64 = 1 << 16;
    /// Reserved, must be one.
    pub const RESERVED_ONE: u64 = 1 << 17;
    /// A migration agent may be associated with the guest.
    pub const MIGRATE_MA: u64 = 1 << 18;
    /// The host may debug the guest: read and write its memory.
    pub const DEBUG: u64 = 1 << 19;
    /// The guest runs on one socket only.
    pub const SINGLE_SOCKET: u64 = 1 << 20;
    /// CXL devices or memory may be populated.
    pub const CXL_ALLOW: u64 = 1 << 21;
    /// Memory must be encrypted by AES-256-XTS.
    pub const MEM_AES_256_XTS: u64 = 1 << 22;
    /// Running average power limit must be disabled.
    pub const RAPL_DIS: u64 = 1 << 23;
    /// The ciphertext of DRAM must be hidden.
    pub const CIPHERTEXT_HIDING: u64 = 1 << 24;
    /// The host must not swap or move guest pages.
    pub const PAGE_SWAP_DISABLE: u64 = 1 << 25;
    /// All bits that have a meaning; bits 0 to 15 are the ABI version.
    pub const KNOWN: u64 = (1 << 26) - 1;
}

/// Bits of the platform information (AMD 56860, table 24).
pub mod platform_info {
    /// SMT is enabled.
    pub const SMT: u64 = 1;
    /// Transparent memory encryption is enabled.
    pub const TSME: u64 = 1 << 1;
    /// The DRAM has error correction.
    pub const ECC: u64 = 1 << 2;
    /// Running average power limit is disabled.
    pub const RAPL_DIS: u64 = 1 << 3;
    /// The ciphertext of DRAM is hidden.
    pub const CIPHERTEXT_HIDING: u64 = 1 << 4;
    /// No aliased addresses were found since the last reset (BadRAM).
    pub const ALIAS_CHECK_COMPLETE: u64 = 1 << 5;
    /// Trusted I/O is enabled.
    pub const TIO: u64 = 1 << 7;
    /// All bits that have a meaning.
    pub const KNOWN: u64 =
        SMT | TSME | ECC | RAPL_DIS | CIPHERTEXT_HIDING | ALIAS_CHECK_COMPLETE | TIO;
}

/// Why 1,184 bytes are not an attestation report.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
#[non_exhaustive]
pub enum ReportError {
    /// The length is another one.
    #[error("the report has {len} bytes, not {REPORT_LEN}")]
    Length {
        /// Bytes received.
        len: usize,
    },
    /// The version is not one of 3, 4 and 5; version 2 does not sign the CPU's identity.
    #[error("report version {version} is not 3, 4 or 5")]
    Version {
        /// The version received.
        version: u32,
    },
    /// Reserved bytes of the report are not zero.
    #[error("reserved bytes of the report: {0}")]
    Reserved(#[from] CodecError),
    /// Reserved bytes of a TCB version are not zero.
    #[error("tcb {bytes:02x?} has reserved bytes that are not zero for {product}")]
    TcbReserved {
        /// The eight bytes received.
        bytes: [u8; 8],
        /// The product whose layout was applied.
        product: Product,
    },
    /// The signature algorithm is not ECDSA P-384 with SHA-384.
    #[error("signature algorithm {found} is not 1, ECDSA P-384 with SHA-384")]
    SignatureAlgorithm {
        /// The number received.
        found: u32,
    },
    /// The key that signed is none that we know.
    #[error("signing key {found} is neither 0, VCEK, nor 1, VLEK")]
    SigningKey {
        /// The number received.
        found: u32,
    },
    /// The CPU is of no product that we know.
    #[error("cpu family {family:#04x} model {model:#04x} is no product that has pinned keys")]
    Product {
        /// Combined family.
        family: u8,
        /// Combined model.
        model: u8,
    },
}

impl ReportError {
    /// The stable name of this refusal.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Length { .. } => "report.length",
            Self::Version { .. } => "report.version",
            Self::Reserved(_) => "report.reserved",
            Self::TcbReserved { .. } => "report.tcb_reserved",
            Self::SignatureAlgorithm { .. } => "report.signature_algorithm",
            Self::SigningKey { .. } => "report.signing_key",
            Self::Product { .. } => "report.product",
        }
    }
}

/// Which kind of key signed the report.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum SigningKey {
    /// The chip's own key.
    Vcek,
    /// A key that AMD loaned to a cloud provider; it names no chip.
    Vlek,
}

/// The claims of a report, by the names of AMD's table.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Report {
    /// Layout version, 3 to 5.
    pub version: u32,
    /// The guest's security version, from its ID block.
    pub guest_svn: u32,
    /// What the guest's owner allowed; bits are in [`guest_policy`].
    pub policy: u64,
    /// Family, from the ID block.
    pub family_id: [u8; 16],
    /// Image, from the ID block.
    pub image_id: [u8; 16],
    /// Privilege level that asked for the report, 0 highest.
    pub vmpl: u32,
    /// Firmware that runs now.
    pub current_tcb: Tcb,
    /// The platform's state; bits are in [`platform_info`].
    pub platform_info: u64,
    /// An author key was given at launch.
    pub author_key_en: bool,
    /// The chip hides its identity.
    pub mask_chip_key: bool,
    /// Which kind of key signed.
    pub signing_key: SigningKey,
    /// The guest's own 64 bytes.
    pub report_data: [u8; 64],
    /// Launch measurement.
    pub measurement: [u8; 48],
    /// The host's 32 bytes, fixed at launch.
    pub host_data: [u8; 32],
    /// SHA-384 of the key that signed the ID block.
    pub id_key_digest: [u8; 48],
    /// SHA-384 of the author key.
    pub author_key_digest: [u8; 48],
    /// This guest's report id.
    pub report_id: [u8; 32],
    /// The migration agent's report id; all ones where there is none.
    pub report_id_ma: [u8; 32],
    /// Firmware that the signing key stands for.
    pub reported_tcb: Tcb,
    /// The CPU.
    pub cpuid: Cpuid,
    /// The chip, or zero when masked.
    pub chip_id: [u8; 64],
    /// Firmware that cannot be rolled back below.
    pub committed_tcb: Tcb,
    /// Firmware version that runs now.
    pub current_firmware: Firmware,
    /// Firmware version that cannot be rolled back below.
    pub committed_firmware: Firmware,
    /// Firmware at the guest's launch.
    pub launch_tcb: Tcb,
    /// Mitigations at launch; zero before version 5.
    pub launch_mitigations: u64,
    /// Mitigations now; zero before version 5.
    pub current_mitigations: u64,
}

/// A well-formed report with its signature, not yet believed.
#[derive(Clone, Debug)]
pub struct SignedReport<'a> {
    /// The claims.
    pub report: Report,
    /// The product by [`Report::cpuid`].
    pub product: Product,
    /// The bytes that the signature covers.
    pub signed: &'a [u8],
    /// r then s, big-endian, 48 bytes each.
    pub signature: [u8; 96],
}

impl<'a> SignedReport<'a> {
    /// Reads a report and its signature.
    ///
    /// # Errors
    /// The field that is not as AMD's table says.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, ReportError> {
        let wrong_length = ReportError::Length { len: bytes.len() };
        if bytes.len() != REPORT_LEN {
            return Err(wrong_length);
        }
        let (signed, signature) = bytes.split_at_checked(SIGNED_LEN).ok_or(wrong_length)?;
        let (report, product) = Report::parse(signed)?;
        let mut reader = Reader::new(signature);
        let r = component(&mut reader)?;
        let s = component(&mut reader)?;
        reader.zeros(reader.left())?;
        let mut signature = [0; 96];
        for (to, from) in signature.iter_mut().zip(r.iter().chain(&s)) {
            *to = *from;
        }
        Ok(Self { report, product, signed, signature })
    }
}

/// One integer of the signature, turned to big-endian.
fn component(reader: &mut Reader<'_>) -> Result<[u8; 48], CodecError> {
    let mut value = reader.array::<48>()?;
    reader.zeros(COMPONENT_LEN - 48)?;
    value.reverse();
    Ok(value)
}

impl Report {
    fn parse(signed: &[u8]) -> Result<(Self, Product), ReportError> {
        let mut r = Reader::new(signed);
        let version = u32_le(&mut r)?;
        if !(3..=5).contains(&version) {
            return Err(ReportError::Version { version });
        }
        // The layout of the patch levels depends on a field that comes later.
        let mut ahead = Reader::new(signed);
        ahead.bytes(CPUID_OFFSET)?;
        let product = cpuid(&mut ahead)?.product()?;
        let tcb = |r: &mut Reader<'_>| Tcb::parse(product, r.array()?);

        let guest_svn = u32_le(&mut r)?;
        let policy = u64_le(&mut r)?;
        let family_id = r.array()?;
        let image_id = r.array()?;
        let vmpl = u32_le(&mut r)?;
        let algorithm = u32_le(&mut r)?;
        if algorithm != 1 {
            return Err(ReportError::SignatureAlgorithm { found: algorithm });
        }
        let current_tcb = tcb(&mut r)?;
        let platform_info = u64_le(&mut r)?;
        let flags = u32_le(&mut r)?;
        let signing_key = match flags >> 2 {
            0 => SigningKey::Vcek,
            1 => SigningKey::Vlek,
            found => return Err(ReportError::SigningKey { found }),
        };
        r.zeros(4)?;
        // The fields are read in the order in which they are written here.
        let report = Self {
            version,
            guest_svn,
            policy,
            family_id,
            image_id,
            vmpl,
            current_tcb,
            platform_info,
            author_key_en: flags & 1 != 0,
            mask_chip_key: flags & 2 != 0,
            signing_key,
            report_data: r.array()?,
            measurement: r.array()?,
            host_data: r.array()?,
            id_key_digest: r.array()?,
            author_key_digest: r.array()?,
            report_id: r.array()?,
            report_id_ma: r.array()?,
            reported_tcb: tcb(&mut r)?,
            cpuid: cpuid(&mut r)?,
            chip_id: r.array()?,
            committed_tcb: tcb(&mut r)?,
            current_firmware: firmware(&mut r)?,
            committed_firmware: firmware(&mut r)?,
            launch_tcb: tcb(&mut r)?,
            launch_mitigations: mitigations(&mut r, version)?,
            current_mitigations: mitigations(&mut r, version)?,
        };
        r.zeros(r.left())?;
        Ok((report, product))
    }

    /// The bytes that are signed: everything before the signature.
    #[must_use]
    pub fn to_signed_bytes(&self) -> Vec<u8> {
        let key = match self.signing_key {
            SigningKey::Vcek => 0_u32,
            SigningKey::Vlek => 1,
        };
        let flags =
            u32::from(self.author_key_en) | (u32::from(self.mask_chip_key) << 1) | (key << 2);
        let mut w = Writer::with_capacity(REPORT_LEN);
        w.bytes(&self.version.to_le_bytes())
            .bytes(&self.guest_svn.to_le_bytes())
            .bytes(&self.policy.to_le_bytes())
            .bytes(&self.family_id)
            .bytes(&self.image_id)
            .bytes(&self.vmpl.to_le_bytes())
            .bytes(&1_u32.to_le_bytes())
            .bytes(&self.current_tcb.to_bytes())
            .bytes(&self.platform_info.to_le_bytes())
            .bytes(&flags.to_le_bytes())
            .zeros(4)
            .bytes(&self.report_data)
            .bytes(&self.measurement)
            .bytes(&self.host_data)
            .bytes(&self.id_key_digest)
            .bytes(&self.author_key_digest)
            .bytes(&self.report_id)
            .bytes(&self.report_id_ma)
            .bytes(&self.reported_tcb.to_bytes())
            .bytes(&[self.cpuid.family, self.cpuid.model, self.cpuid.stepping])
            .zeros(21)
            .bytes(&self.chip_id)
            .bytes(&self.committed_tcb.to_bytes());
        for Firmware { major, minor, build } in [self.current_firmware, self.committed_firmware] {
            w.bytes(&[build, minor, major, 0]);
        }
        w.bytes(&self.launch_tcb.to_bytes())
            .bytes(&self.launch_mitigations.to_le_bytes())
            .bytes(&self.current_mitigations.to_le_bytes());
        w.zeros(SIGNED_LEN.saturating_sub(w.len()));
        w.into_bytes()
    }
}

fn u32_le(reader: &mut Reader<'_>) -> Result<u32, CodecError> {
    reader.array().map(u32::from_le_bytes)
}

fn u64_le(reader: &mut Reader<'_>) -> Result<u64, CodecError> {
    reader.array().map(u64::from_le_bytes)
}

fn firmware(reader: &mut Reader<'_>) -> Result<Firmware, CodecError> {
    let [build, minor, major] = reader.array()?;
    reader.zeros(1)?;
    Ok(Firmware { major, minor, build })
}

fn cpuid(reader: &mut Reader<'_>) -> Result<Cpuid, CodecError> {
    let [family, model, stepping] = reader.array()?;
    reader.zeros(21)?;
    Ok(Cpuid { family, model, stepping })
}

/// A mitigation vector; reserved before version 5.
fn mitigations(reader: &mut Reader<'_>, version: u32) -> Result<u64, CodecError> {
    match version {
        5 => u64_le(reader),
        _ => reader.zeros(8).map(|()| 0),
    }
}

/// Bytes of one integer of the signature, little-endian, zero above the 48 bytes of P-384.
const COMPONENT_LEN: usize = 72;
/// Where `CPUID_FAM_ID` lies.
const CPUID_OFFSET: usize = 0x188;
