//! Which chip, and which firmware: the parts of a report whose layout depends on the product.

use std::fmt;

use super::ReportError;

/// A line of processors with endorsement keys of its own.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Product {
    /// EPYC 7003, family 19h models 00h to 0Fh.
    Milan,
    /// EPYC 9004 and 8004, family 19h models 10h to 1Fh and A0h to AFh.
    Genoa,
    /// EPYC 9005, family 1Ah models 00h to 11h.
    Turin,
}

impl Product {
    /// The product's name, as AMD's certificates spell it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Milan => "Milan",
            Self::Genoa => "Genoa",
            Self::Turin => "Turin",
        }
    }

    /// The names that its certificates may have, before a stepping: parts of one line share its
    /// keys.
    #[must_use]
    pub const fn certificate_names(self) -> &'static [&'static str] {
        match self {
            Self::Milan => &["Milan"],
            Self::Genoa => &["Genoa", "Bergamo", "Siena"],
            Self::Turin => &["Turin"],
        }
    }

    /// How many bytes of `chip_id` identify the chip; the others are zero.
    #[must_use]
    pub const fn hwid_len(self) -> usize {
        match self {
            Self::Milan | Self::Genoa => 64,
            Self::Turin => 8,
        }
    }
}

impl fmt::Display for Product {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The CPU's identity, as CPUID gives it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Cpuid {
    /// Combined family.
    pub family: u8,
    /// Combined model.
    pub model: u8,
    /// Stepping.
    pub stepping: u8,
}

impl Cpuid {
    /// The product that the family and model belong to.
    ///
    /// # Errors
    /// [`ReportError::Product`] for a family and model that have no pinned keys here.
    pub const fn product(self) -> Result<Product, ReportError> {
        match (self.family, self.model) {
            (0x19, 0x00..=0x0F) => Ok(Product::Milan),
            (0x19, 0x10..=0x1F | 0xA0..=0xAF) => Ok(Product::Genoa),
            (0x1A, 0x00..=0x11) => Ok(Product::Turin),
            (family, model) => Err(ReportError::Product { family, model }),
        }
    }
}

/// Security patch levels of the platform's firmware.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Tcb {
    /// FPGA-like management controller; present on Turin only, and decides the layout.
    pub fmc: Option<u8>,
    /// Boot loader of the security processor.
    pub bootloader: u8,
    /// Operating system of the security processor.
    pub tee: u8,
    /// SNP firmware.
    pub snp: u8,
    /// Microcode.
    pub microcode: u8,
}

impl Tcb {
    pub(super) fn parse(product: Product, bytes: [u8; 8]) -> Result<Self, ReportError> {
        let tcb = match (product, bytes) {
            (Product::Turin, [fmc, bootloader, tee, snp, .., microcode]) => {
                Self { fmc: Some(fmc), bootloader, tee, snp, microcode }
            }
            (_, [bootloader, tee, .., snp, microcode]) => {
                Self { fmc: None, bootloader, tee, snp, microcode }
            }
        };
        if tcb.to_bytes() == bytes {
            Ok(tcb)
        } else {
            Err(ReportError::TcbReserved { bytes, product })
        }
    }

    /// The eight bytes of a report's field.
    #[must_use]
    pub const fn to_bytes(self) -> [u8; 8] {
        let Self { fmc, bootloader, tee, snp, microcode } = self;
        match fmc {
            Some(fmc) => [fmc, bootloader, tee, snp, 0, 0, 0, microcode],
            None => [bootloader, tee, 0, 0, 0, 0, snp, microcode],
        }
    }

    /// Whether no component is older than in `floor`.
    #[must_use]
    pub fn at_least(self, floor: Self) -> bool {
        self.fmc.unwrap_or(0) >= floor.fmc.unwrap_or(0)
            && self.bootloader >= floor.bootloader
            && self.tee >= floor.tee
            && self.snp >= floor.snp
            && self.microcode >= floor.microcode
    }
}

impl fmt::Display for Tcb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { bootloader, tee, snp, microcode, .. } = self;
        if let Some(fmc) = self.fmc {
            write!(f, "fmc {fmc} ")?;
        }
        write!(f, "boot loader {bootloader} tee {tee} snp {snp} microcode {microcode}")
    }
}

/// Version of the SNP firmware. Ordered by major, minor, build.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Firmware {
    /// Major version of the ABI.
    pub major: u8,
    /// Minor version of the ABI.
    pub minor: u8,
    /// Build number.
    pub build: u8,
}

impl fmt::Display for Firmware {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{} build {}", self.major, self.minor, self.build)
    }
}
