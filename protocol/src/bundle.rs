//! The evidence bundle (docs/formats.md, section 1.5): what a verifier is given, in sections.
//!
//! type u16 | zero u16 | len u32 | value; types ascend, none comes twice, 1 MiB in all. Sections
//! below 0x80 come from the enclave, the others are endorsements that the host adds. This file
//! checks the framing only: what a section holds is checked by the appraisal, step by step.

use thiserror::Error;

use crate::codec::{CodecError, Reader, Writer};

/// The longest bundle, in bytes.
pub const BUNDLE_MAX: usize = 1 << 20;

/// Why bytes are not an evidence bundle.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
#[non_exhaustive]
pub enum BundleError {
    /// A section is cut short or a reserved byte is not zero.
    #[error(transparent)]
    Codec(#[from] CodecError),
    /// The bundle is too long.
    #[error("the bundle has {len} bytes, more than {BUNDLE_MAX}")]
    TooLong {
        /// Its length.
        len: usize,
    },
    /// No section has this type.
    #[error("no section has the type {found:#06x}")]
    UnknownSection {
        /// What was read.
        found: u16,
    },
    /// A type comes twice, or after a greater one.
    #[error("section {found:#06x} comes after section {previous:#06x}")]
    Order {
        /// The type that is out of order.
        found: u16,
        /// The type before it.
        previous: u16,
    },
    /// A section is empty.
    #[error("section {section:#06x} is empty")]
    Empty {
        /// Its type.
        section: u16,
    },
    /// A section that every bundle has is not there.
    #[error("section {section:#06x} is missing")]
    Missing {
        /// Its type.
        section: u16,
    },
}

/// A bundle whose framing is right; every section is still bytes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Bundle<'a> {
    /// The statement.
    pub statement: &'a [u8],
    /// The platform's report over the statement.
    pub report: &'a [u8],
    /// The key configuration.
    pub key_config: &'a [u8],
    /// The serving policy.
    pub policy: &'a [u8],
    /// The GPUs' evidence.
    pub gpu: Option<&'a [u8]>,
    /// The package's header and signature block.
    pub package: &'a [u8],
    /// The freshness batch, see [`crate::freshness::Freshness`].
    pub freshness: Option<&'a [u8]>,
    /// What the host adds.
    pub endorsements: Endorsements<'a>,
}

/// What the host adds to a bundle; nothing in it is believed without a signature.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Endorsements<'a> {
    /// The VCEK or VLEK certificate, DER.
    pub vcek: Option<&'a [u8]>,
    /// TDX collateral.
    pub tdx_collateral: Option<&'a [u8]>,
    /// The GPU's reference measurements and certificate status.
    pub gpu_rim: Option<&'a [u8]>,
    /// Proof that the platform is in a registry.
    pub registry_proof: Option<&'a [u8]>,
}

impl<'a> Bundle<'a> {
    /// Reads the framing of a bundle.
    ///
    /// # Errors
    /// [`BundleError`] names what is wrong with it.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, BundleError> {
        if bytes.len() > BUNDLE_MAX {
            return Err(BundleError::TooLong { len: bytes.len() });
        }
        let mut sections = [None; SECTIONS.len()];
        let mut reader = Reader::new(bytes);
        let mut previous = 0;
        while !reader.is_empty() {
            let found = reader.u16()?;
            reader.zeros(2)?;
            let len = reader.u32()?;
            let value = reader.bytes(len as usize)?;
            let slot = SECTIONS.iter().zip(&mut sections).find(|(section, _)| **section == found);
            let Some((_, slot)) = slot else {
                return Err(BundleError::UnknownSection { found });
            };
            if found <= previous {
                return Err(BundleError::Order { found, previous });
            }
            if value.is_empty() {
                return Err(BundleError::Empty { section: found });
            }
            *slot = Some(value);
            previous = found;
        }
        let [statement, report, key_config, policy, gpu, package, freshness, rest @ ..] = sections;
        let [vcek, tdx_collateral, gpu_rim, registry_proof] = rest;
        let required =
            |section, value: Option<&'a [u8]>| value.ok_or(BundleError::Missing { section });
        Ok(Self {
            statement: required(STATEMENT, statement)?,
            report: required(REPORT, report)?,
            key_config: required(KEY_CONFIG, key_config)?,
            policy: required(POLICY, policy)?,
            gpu,
            package: required(PACKAGE, package)?,
            freshness,
            endorsements: Endorsements { vcek, tdx_collateral, gpu_rim, registry_proof },
        })
    }

    /// The encoding.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let values = [
            Some(self.statement),
            Some(self.report),
            Some(self.key_config),
            Some(self.policy),
            self.gpu,
            Some(self.package),
            self.freshness,
            self.endorsements.vcek,
            self.endorsements.tdx_collateral,
            self.endorsements.gpu_rim,
            self.endorsements.registry_proof,
        ];
        let mut writer = Writer::new();
        for (section, value) in SECTIONS.into_iter().zip(values) {
            if let Some(value) = value {
                writer.u16(section).u16(0).u32(value.len() as u32).bytes(value);
            }
        }
        writer.into_bytes()
    }
}

const STATEMENT: u16 = 1;
const REPORT: u16 = 2;
const KEY_CONFIG: u16 = 3;
const POLICY: u16 = 4;
const PACKAGE: u16 = 6;
/// In the order of [`Bundle`]'s fields: 5 GPU evidence, 7 freshness, then the endorsements.
const SECTIONS: [u16; 11] =
    [STATEMENT, REPORT, KEY_CONFIG, POLICY, 5, PACKAGE, 7, 0x81, 0x82, 0x83, 0x84];
