//! The save area with which each virtual CPU starts (APM volume 2, table B-4): registers at reset,
//! as the monitor sets them, and `SEV_FEATURES`.

use std::fmt;
use std::str::FromStr;

use chrysalis_protocol::hash::sha384;

use super::LaunchError;
use super::pages::{Digest, PAGE, PageKind};

/// Who starts the guest: monitors differ in how they set registers, and in the order of pages.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Monitor {
    /// QEMU with KVM.
    Qemu,
    /// Amazon EC2.
    Ec2,
}

impl Monitor {
    pub(super) const ALL: [Self; 2] = [Self::Qemu, Self::Ec2];
}

impl FromStr for Monitor {
    type Err = LaunchError;

    fn from_str(name: &str) -> Result<Self, LaunchError> {
        match name.to_ascii_lowercase().as_str() {
            "qemu" => Ok(Self::Qemu),
            "ec2" => Ok(Self::Ec2),
            _ => Err(LaunchError::Monitor { name: name.to_owned() }),
        }
    }
}

impl fmt::Display for Monitor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Qemu => "qemu",
            Self::Ec2 => "ec2",
        })
    }
}

/// A virtual CPU's type, of which the measurement holds the CPUID signature (function 1, EAX).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct VcpuType(u32);

impl VcpuType {
    /// The signature of a CPU.
    #[must_use]
    pub const fn signature(self) -> u32 {
        self.0
    }

    /// One type for each signature that has a name.
    pub(super) fn all() -> impl Iterator<Item = Self> {
        TYPES.iter().map(|&(_, signature)| Self(signature))
    }
}

impl FromStr for VcpuType {
    type Err = LaunchError;

    fn from_str(name: &str) -> Result<Self, LaunchError> {
        // QEMU's versions of a model, EPYC-Genoa-v1, differ in features and not in the signature.
        let lower = name.to_ascii_lowercase();
        let model = match lower.rsplit_once("-v") {
            Some((model, version)) if version.parse::<u8>().is_ok() => model,
            _ => lower.strip_suffix("-ibpb").unwrap_or(&lower),
        };
        if let Some((_, signature)) = TYPES.iter().find(|(known, _)| known.to_lowercase() == model)
        {
            return Ok(Self(*signature));
        }
        let hex = lower.strip_prefix("0x").and_then(|hex| u32::from_str_radix(hex, 16).ok());
        hex.map(Self).ok_or_else(|| LaunchError::VcpuType {
            name: name.to_owned(),
            known: TYPES.map(|(name, _)| name).join(", "),
        })
    }
}

impl fmt::Display for VcpuType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match TYPES.iter().find(|&&(_, signature)| signature == self.0) {
            Some((name, _)) => f.write_str(name),
            None => write!(f, "{:#010x}", self.0),
        }
    }
}

/// Digests of the two kinds of save area.
pub(super) struct Vcpus {
    first: [u8; 48],
    others: Option<[u8; 48]>,
}

impl Vcpus {
    pub(super) fn new(
        monitor: Monitor,
        vcpu_type: VcpuType,
        guest_features: u64,
        reset_eip: Option<u32>,
    ) -> Self {
        let digest = |eip| sha384(&[&page(monitor, vcpu_type, guest_features, eip)]);
        Self { first: digest(BOOT_EIP), others: reset_eip.map(digest) }
    }

    /// Adds the save area of virtual CPU `index`.
    pub(super) fn extend(&self, digest: &mut Digest, index: u32) -> Result<(), LaunchError> {
        let page = match index {
            0 => self.first,
            _ => self.others.ok_or(LaunchError::OvmfMissing {
                missing: "reset address for further virtual CPUs",
                advice: "take an image built for SEV-ES, or one virtual CPU",
            })?,
        };
        digest.page(PageKind::Vmsa, VMSA_GPA, &page);
        Ok(())
    }
}

/// A save area: quadwords by their offset, all others zero.
fn page(monitor: Monitor, vcpu_type: VcpuType, guest_features: u64, eip: u32) -> [u8; PAGE] {
    // KVM marks the segments as accessed; Nitro does not, but for the code of further CPUs.
    let (code, stack, task) = match monitor {
        Monitor::Qemu => (0x9B, 0x93, 0x8B),
        Monitor::Ec2 if eip == BOOT_EIP => (0x9A, 0x92, 0x83),
        Monitor::Ec2 => (0x9B, 0x92, 0x83),
    };
    let segment = |selector: u16, attributes: u16, base: u32| {
        [u64::from(selector) | u64::from(attributes) << 16 | 0xFFFF << 32, base.into()]
    };
    let data = segment(0, 0x93, 0);
    let table = segment(0, 0, 0);
    let code = segment(0xF000, code, eip & 0xFFFF_0000);
    let (stack, task, local) = (segment(0, stack, 0), segment(0, task, 0), segment(0, 0x82, 0));
    // ES CS SS DS FS GS GDTR LDTR IDTR TR
    let segments = [data, code, stack, data, data, data, table, local, table, task];
    let mut words: Vec<(usize, u64)> =
        (0..).step_by(8).zip(segments.into_iter().flatten()).collect();
    words.extend([(0xD0, 0x1000), (0x148, 0x40), (0x158, 0x10)]); // EFER.SVME, CR4.MCE, CR0.ET
    words.extend([(0x160, 0x400), (0x168, 0xFFFF_0FF0), (0x170, 2)]); // DR7, DR6, RFLAGS
    words.extend([(0x178, u64::from(eip & 0xFFFF)), (0x268, 0x0007_0406_0007_0406)]); // RIP, PAT
    words.extend([(0x3B0, guest_features), (0x3E8, 1)]); // SEV_FEATURES, XCR0
    if monitor == Monitor::Qemu {
        words.extend([(0x310, vcpu_type.0.into()), (0x408, 0x1F80), (0x410, 0x37F)]); // RDX, MXCSR, FCW
    }
    let mut page = [0; PAGE];
    for (place, offset) in page.chunks_exact_mut(8).zip((0..).step_by(8)) {
        if let Some((_, value)) = words.iter().find(|&&(at, _)| at == offset) {
            place.copy_from_slice(&value.to_le_bytes());
        }
    }
    page
}

/// CPUID signature of a family, model and stepping.
const fn signature(family: u32, model: u32, stepping: u32) -> u32 {
    let (base, extended) = if family > 0xF { (0xF, family.wrapping_sub(0xF)) } else { (family, 0) };
    extended << 20 | (model >> 4) << 16 | base << 8 | (model & 0xF) << 4 | stepping
}

/// QEMU's models of EPYC.
const TYPES: [(&str, u32); 5] = [
    ("EPYC", signature(23, 1, 2)),
    ("EPYC-Rome", signature(23, 49, 0)),
    ("EPYC-Milan", signature(25, 1, 1)),
    ("EPYC-Genoa", signature(25, 17, 0)),
    ("EPYC-Turin", signature(26, 0, 0)),
];

/// `SEV_FEATURES` with SNP active and nothing else, which is what QEMU and EC2 set by themselves.
pub const GUEST_FEATURES: u64 = 1;
/// Where the first virtual CPU starts: the reset vector.
const BOOT_EIP: u32 = 0xFFFF_FFF0;
/// The address at which the firmware measures save areas.
const VMSA_GPA: u64 = 0xFFFF_FFFF_F000;
