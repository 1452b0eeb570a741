//! Authentic evidence of a CPU, whoever made it.

use chrysalis_protocol::statement::Tee;

use super::{Roots, VerifiedQuote, VerifiedReport};

/// An authentic report or quote.
#[derive(Clone, Debug)]
pub enum PlatformEvidence {
    /// AMD SEV-SNP, or the simulated platform.
    Snp(Box<VerifiedReport>),
    /// Intel TDX.
    Tdx(Box<VerifiedQuote>),
}

/// Which machine: what a policy pins.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum HardwareId {
    /// `CHIP_ID` of an SEV-SNP report.
    Chip([u8; 64]),
    /// The PPID of the certificate behind a TDX quote.
    Ppid([u8; 16]),
}

impl HardwareId {
    /// The bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Chip(id) => id,
            Self::Ppid(id) => id,
        }
    }

    /// Whether it names a machine. Zeros do not: a chip whose host hides its identity
    /// (`MASK_CHIP_ID`) reports them, and so does every other such chip.
    #[must_use]
    pub fn is_one(&self) -> bool {
        self.as_bytes().iter().any(|&byte| byte != 0)
    }
}

impl PlatformEvidence {
    /// The platform.
    #[must_use]
    pub fn tee(&self) -> Tee {
        match self {
            Self::Snp(report) if report.roots() == Roots::Simulated => Tee::Simulated,
            Self::Snp(_) => Tee::SevSnp,
            Self::Tdx(_) => Tee::Tdx,
        }
    }

    /// The SEV-SNP report.
    #[must_use]
    pub const fn snp(&self) -> Option<&VerifiedReport> {
        match self {
            Self::Snp(report) => Some(report),
            Self::Tdx(_) => None,
        }
    }

    /// The TDX quote.
    #[must_use]
    pub const fn tdx(&self) -> Option<&VerifiedQuote> {
        match self {
            Self::Snp(_) => None,
            Self::Tdx(quote) => Some(quote),
        }
    }

    /// The launch measurement: `MEASUREMENT`, or `MRTD`.
    #[must_use]
    pub const fn measurement(&self) -> [u8; 48] {
        match self {
            Self::Snp(report) => report.report().measurement,
            Self::Tdx(quote) => quote.report().mr_td,
        }
    }

    /// The machine.
    #[must_use]
    pub const fn hardware_id(&self) -> HardwareId {
        match self {
            Self::Snp(report) => HardwareId::Chip(report.report().chip_id),
            Self::Tdx(quote) => HardwareId::Ppid(*quote.ppid()),
        }
    }

    /// The product, in words.
    #[must_use]
    pub fn product(&self) -> String {
        match self {
            Self::Snp(report) => report.product().name().to_owned(),
            Self::Tdx(quote) => quote
                .fmspc()
                .iter()
                .fold("TDX ".to_owned(), |name, byte| format!("{name}{byte:02x}")),
        }
    }

    /// The patch levels, in words.
    #[must_use]
    pub fn tcb(&self) -> String {
        match self {
            Self::Snp(report) => report.report().reported_tcb.to_string(),
            Self::Tdx(quote) => format!("{} ({})", quote.tcb_status(), quote.tcb_date()),
        }
    }

    /// Whether `later` was made by the same guest, not by another one with the same image.
    ///
    /// An SEV-SNP report names its guest. A TDX quote does not: there the machine, the platform's
    /// software and every measurement have to be the same, and the boot id in both statements,
    /// which only this guest's reports cover, does the rest.
    #[must_use]
    pub fn same_guest(&self, later: &Self) -> bool {
        match (self, later) {
            (Self::Snp(one), Self::Snp(other)) => {
                let (one, other) = (one.report(), other.report());
                one.report_id == other.report_id && one.chip_id == other.chip_id
            }
            (Self::Tdx(one), Self::Tdx(other)) => {
                let mut expected = other.report().clone();
                expected.report_data = one.report().report_data;
                *one.report() == expected && one.ppid() == other.ppid()
            }
            _ => false,
        }
    }
}
