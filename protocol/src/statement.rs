//! What the enclave states about itself, and how the platform's report commits to it
//! (docs/formats.md, sections 1.1 to 1.4).
//!
//! Fixed layouts: one encoding for each value, every bit either hashed or checked.

use thiserror::Error;

use crate::codec::{CodecError, Reader, Writer};
use crate::hash::{sha256, sha384};

pub use crate::key_config::{KEY_CONFIG_LEN, KeyConfig, key_id};
pub use crate::serving_policy::{PadProfile, SERVING_POLICY_LEN, ServingPolicy};

/// Length of a [`Statement`], in bytes.
pub const STATEMENT_LEN: usize = 512;
/// Length of a [`ReportData`], in bytes.
pub const REPORT_DATA_LEN: usize = 64;

/// Why bytes are not a statement, a key configuration, a serving policy or report data.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
#[non_exhaustive]
pub enum StatementError {
    /// A length, a magic or a reserved byte is wrong.
    #[error(transparent)]
    Codec(#[from] CodecError),
    /// No statement has this kind.
    #[error("no statement has the kind {found}")]
    Kind {
        /// What was read.
        found: u8,
    },
    /// No platform has this number.
    #[error("no platform has the number {found:#04x}")]
    Tee {
        /// What was read.
        found: u8,
    },
    /// The report data name another hash function.
    #[error("the report data name the hash {found:#04x}, not SHA-384 (0x02)")]
    Hash {
        /// What was read.
        found: u8,
    },
    /// An undefined flag is set.
    #[error("the flags are {found:#06x}, beyond the defined {defined:#06x}")]
    Flags {
        /// What was read.
        found: u16,
        /// The defined bits.
        defined: u16,
    },
    /// The simulated flag and the platform disagree.
    #[error("the simulated flag is {flag}, yet the platform is {tee:?}")]
    Simulated {
        /// The flag.
        flag: bool,
        /// The platform.
        tee: Tee,
    },
    /// A GPU runs with its developer tools on.
    #[error("a GPU runs with its developer tools on")]
    GpuDevtools,
    /// The GPU fields contradict each other.
    #[error("{count} GPUs contradict the GPU digest, the GPU flags or the demand for one")]
    GpuFields {
        /// The stated number of GPUs.
        count: u16,
    },
    /// The suite is not the one suite there is.
    #[error("the key configuration's {field} is {found:#06x}, not {expected:#06x}")]
    Suite {
        /// Which part of the suite.
        field: &'static str,
        /// What was read.
        found: u16,
        /// The only value there is.
        expected: u16,
    },
    /// The public key is not one of the KEM.
    #[error("the public key is not an X-Wing key")]
    PublicKey,
    /// A field of the serving policy has a value that is not defined.
    #[error("the serving policy's {field} is {found}, which is not defined")]
    Policy {
        /// The field.
        field: &'static str,
        /// What was read.
        found: u32,
    },
}

/// What a statement is for.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[repr(u8)]
pub enum Kind {
    /// It offers a sealing key to clients.
    Serve = 1,
    /// It asks a key broker for a package key.
    KeyRelease = 2,
    /// It refreshes a serve statement for a batch of challenges.
    Freshness = 3,
}

impl TryFrom<u8> for Kind {
    type Error = StatementError;

    fn try_from(found: u8) -> Result<Self, StatementError> {
        match found {
            1 => Ok(Self::Serve),
            2 => Ok(Self::KeyRelease),
            3 => Ok(Self::Freshness),
            _ => Err(StatementError::Kind { found }),
        }
    }
}

/// The platform that isolates the enclave.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[repr(u8)]
pub enum Tee {
    /// AMD SEV-SNP.
    SevSnp = 1,
    /// Intel TDX.
    Tdx = 2,
    /// None: for tests, and only where the caller allows it.
    Simulated = 0xFF,
}

impl TryFrom<u8> for Tee {
    type Error = StatementError;

    fn try_from(found: u8) -> Result<Self, StatementError> {
        match found {
            1 => Ok(Self::SevSnp),
            2 => Ok(Self::Tdx),
            0xFF => Ok(Self::Simulated),
            _ => Err(StatementError::Tee { found }),
        }
    }
}

/// What holds for all GPUs of the enclave. Developer tools have no field: they must be off.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct GpuFlags {
    /// Confidential computing is on.
    pub cc_on: bool,
    /// Several GPUs in protected PCIe mode.
    pub ppcie: bool,
    /// NVLink carries plaintext.
    pub nvlink_clear: bool,
}

/// The enclave's claims; 512 bytes.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Statement {
    /// What the statement is for.
    pub kind: Kind,
    /// The platform.
    pub tee: Tee,
    /// The enclave refuses to run without a GPU.
    pub gpu_required: bool,
    /// The runtime is a debug build.
    pub debug_build: bool,
    /// The epoch of the sealing key.
    pub epoch: u32,
    /// Random, once for each boot.
    pub boot_id: [u8; 16],
    /// Serve: the challenge or zero. Key release: the broker's. Freshness: the Merkle root.
    pub nonce: [u8; 32],
    /// [`KeyConfig::digest`].
    pub key_config_digest: [u8; 48],
    /// Ed25519 key that signs usage receipts.
    pub receipt_key: [u8; 32],
    /// The model's identity.
    pub content_digest: [u8; 48],
    /// The package's identity.
    pub package_digest: [u8; 48],
    /// [`ServingPolicy::digest`].
    pub policy_digest: [u8; 48],
    /// [`gpu_digest`] or zero.
    pub gpu_digest: [u8; 48],
    /// Number of GPUs.
    pub gpu_count: u16,
    /// What holds for all GPUs.
    pub gpu_flags: GpuFlags,
    /// The model's security version.
    pub model_svn: u32,
    /// Serve: the previous serve statement of this boot or zero. Freshness: the one it refreshes.
    pub prev_digest: [u8; 48],
    /// SHA-384 of the runtime's binary; informative.
    pub runtime_digest: [u8; 48],
    /// SHA-256 of the launch configuration; equals the platform's HOST_DATA.
    pub launch_config_digest: [u8; 32],
    /// Time since the boot, in milliseconds.
    pub uptime_ms: u64,
}

impl Statement {
    /// The encoding.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; STATEMENT_LEN] {
        let gpu_digest = &self.gpu_digest;
        self.encode(gpu_digest, self.gpu_count, gpu_flag_bits(self.gpu_flags))
    }

    /// Reads a statement.
    ///
    /// # Errors
    /// [`StatementError`] names the field that is wrong or the fields that contradict each other.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, StatementError> {
        let mut reader = Reader::new(bytes);
        reader.magic(STATEMENT_MAGIC)?;
        let kind = Kind::try_from(reader.u8()?)?;
        let tee = Tee::try_from(reader.u8()?)?;
        let flags = reader.u16()?;
        check_flags(flags, FLAG_GPU_REQUIRED | FLAG_DEBUG_BUILD | FLAG_SIMULATED)?;
        let simulated = flags & FLAG_SIMULATED != 0;
        if simulated != (tee == Tee::Simulated) {
            return Err(StatementError::Simulated { flag: simulated, tee });
        }
        let statement = Self {
            kind,
            tee,
            gpu_required: flags & FLAG_GPU_REQUIRED != 0,
            debug_build: flags & FLAG_DEBUG_BUILD != 0,
            epoch: reader.u32()?,
            boot_id: reader.array()?,
            nonce: reader.array()?,
            key_config_digest: reader.array()?,
            receipt_key: reader.array()?,
            content_digest: reader.array()?,
            package_digest: reader.array()?,
            policy_digest: reader.array()?,
            gpu_digest: reader.array()?,
            gpu_count: reader.u16()?,
            gpu_flags: read_gpu_flags(reader.u16()?)?,
            model_svn: reader.u32()?,
            prev_digest: reader.array()?,
            runtime_digest: reader.array()?,
            launch_config_digest: reader.array()?,
            uptime_ms: reader.u64()?,
        };
        reader.zeros(32)?;
        reader.finish()?;
        statement.check_gpu_fields()?;
        Ok(statement)
    }

    /// SHA-384( `"chrysalis1 statement\0"` || statement ).
    #[must_use]
    pub fn digest(&self) -> [u8; 48] {
        sha384(&[b"chrysalis1 statement\0", &self.to_bytes()])
    }

    /// What the platform's report has to carry for this statement.
    #[must_use]
    pub fn report_data(&self) -> ReportData {
        ReportData { kind: self.kind, epoch: self.epoch, statement_digest: self.digest() }
    }

    /// The challenge for the GPUs' evidence: SHA-256( `"chrysalis1 gpu nonce\0"` || statement with
    /// gpu_digest, gpu_count and gpu_flags zeroed ).
    #[must_use]
    pub fn gpu_challenge(&self) -> [u8; 32] {
        sha256(&[b"chrysalis1 gpu nonce\0", &self.encode(&[0; 48], 0, 0)])
    }

    fn encode(&self, gpu_digest: &[u8; 48], gpu_count: u16, gpu_flags: u16) -> [u8; STATEMENT_LEN] {
        let simulated = self.tee == Tee::Simulated;
        let flags = bit(FLAG_GPU_REQUIRED, self.gpu_required)
            | bit(FLAG_DEBUG_BUILD, self.debug_build)
            | bit(FLAG_SIMULATED, simulated);
        let mut writer = Writer::with_capacity(STATEMENT_LEN);
        writer.bytes(STATEMENT_MAGIC).u8(self.kind as u8).u8(self.tee as u8).u16(flags);
        writer.u32(self.epoch).bytes(&self.boot_id).bytes(&self.nonce);
        writer.bytes(&self.key_config_digest).bytes(&self.receipt_key);
        writer.bytes(&self.content_digest).bytes(&self.package_digest).bytes(&self.policy_digest);
        writer.bytes(gpu_digest).u16(gpu_count).u16(gpu_flags).u32(self.model_svn);
        writer.bytes(&self.prev_digest).bytes(&self.runtime_digest);
        writer.bytes(&self.launch_config_digest).u64(self.uptime_ms);
        writer.into_array()
    }

    fn check_gpu_fields(&self) -> Result<(), StatementError> {
        let count = self.gpu_count;
        let consistent = if count == 0 {
            self.gpu_digest == [0; 48]
                && self.gpu_flags == GpuFlags::default()
                && !self.gpu_required
        } else {
            self.gpu_digest != [0; 48]
        };
        if consistent { Ok(()) } else { Err(StatementError::GpuFields { count }) }
    }
}

/// REPORT_DATA of the platform's report; 64 bytes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct ReportData {
    /// The statement's kind.
    pub kind: Kind,
    /// The statement's epoch.
    pub epoch: u32,
    /// [`Statement::digest`].
    pub statement_digest: [u8; 48],
}

impl ReportData {
    /// The encoding.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; REPORT_DATA_LEN] {
        let mut writer = Writer::with_capacity(REPORT_DATA_LEN);
        writer.bytes(REPORT_DATA_MAGIC).u8(self.kind as u8).u8(HASH_SHA384).zeros(2);
        writer.u32(self.epoch).bytes(&self.statement_digest);
        writer.into_array()
    }

    /// Reads report data.
    ///
    /// # Errors
    /// [`StatementError`] names the field that is wrong.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, StatementError> {
        let mut reader = Reader::new(bytes);
        reader.magic(REPORT_DATA_MAGIC)?;
        let kind = Kind::try_from(reader.u8()?)?;
        let found = reader.u8()?;
        if found != HASH_SHA384 {
            return Err(StatementError::Hash { found });
        }
        reader.zeros(2)?;
        let data = Self { kind, epoch: reader.u32()?, statement_digest: reader.array()? };
        reader.finish()?;
        Ok(data)
    }
}

/// SHA-384( `"chrysalis1 gpu\0"` || evidence ), where the evidence is, for each GPU in ascending
/// PCI order: len u32 | SPDM report | len u32 | certificate chain.
#[must_use]
pub fn gpu_digest(evidence: &[u8]) -> [u8; 48] {
    sha384(&[b"chrysalis1 gpu\0", evidence])
}

/// Refuses bits that are not among the `defined`.
pub(crate) const fn check_flags(found: u16, defined: u16) -> Result<(), StatementError> {
    if found & !defined == 0 { Ok(()) } else { Err(StatementError::Flags { found, defined }) }
}

const fn bit(mask: u16, set: bool) -> u16 {
    if set { mask } else { 0 }
}

const fn gpu_flag_bits(flags: GpuFlags) -> u16 {
    bit(GPU_CC_ON, flags.cc_on)
        | bit(GPU_PPCIE, flags.ppcie)
        | bit(GPU_NVLINK_CLEAR, flags.nvlink_clear)
}

fn read_gpu_flags(found: u16) -> Result<GpuFlags, StatementError> {
    check_flags(found, GPU_CC_ON | GPU_PPCIE | GPU_DEVTOOLS | GPU_NVLINK_CLEAR)?;
    if found & GPU_DEVTOOLS != 0 {
        return Err(StatementError::GpuDevtools);
    }
    Ok(GpuFlags {
        cc_on: found & GPU_CC_ON != 0,
        ppcie: found & GPU_PPCIE != 0,
        nvlink_clear: found & GPU_NVLINK_CLEAR != 0,
    })
}

const STATEMENT_MAGIC: &[u8; 8] = b"CHRY-ST1";
const REPORT_DATA_MAGIC: &[u8; 8] = b"CHRY-RD1";
const HASH_SHA384: u8 = 0x02;
const FLAG_GPU_REQUIRED: u16 = 1;
const FLAG_DEBUG_BUILD: u16 = 1 << 1;
const FLAG_SIMULATED: u16 = 1 << 2;
const GPU_CC_ON: u16 = 1;
const GPU_PPCIE: u16 = 1 << 1;
const GPU_DEVTOOLS: u16 = 1 << 2;
const GPU_NVLINK_CLEAR: u16 = 1 << 3;
