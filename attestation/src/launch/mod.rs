//! The launch measurement that an image will have on SEV-SNP, computed from its files alone.
//!
//! A policy lists measurements; this is where they come from. Sources: the SNP firmware ABI
//! (AMD 56860, SNP_LAUNCH_UPDATE and its `PAGE_INFO`), the APM's table of the VMSA (24593, B-4), and
//! OVMF's tables for confidential guests. `explain` turns a digest that differs into what differs.

mod explain;
mod kernel;
mod ovmf;
mod pages;
mod vmsa;

use thiserror::Error;

pub use explain::Difference;
pub use kernel::KernelHashes;
pub use ovmf::Ovmf;
pub use vmsa::{GUEST_FEATURES, Monitor, VcpuType};

use ovmf::SectionKind;
use pages::{Digest, PageKind};
use vmsa::Vcpus;

/// Why no launch measurement can be computed.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
#[non_exhaustive]
pub enum LaunchError {
    /// The firmware image has no size that can end at 4 GiB in whole pages.
    #[error("the firmware image has {len} bytes, which is not 1 to 1,048,575 whole pages of 4,096")]
    OvmfLength {
        /// Its length.
        len: usize,
    },
    /// The table of GUIDs is not where OVMF keeps it.
    #[error(
        "the firmware image does not end in OVMF's table of GUIDs: give a combined or CODE image of \
         OVMF for AMD SEV"
    )]
    OvmfFooter,
    /// An entry of the table, or what it points to, does not fit.
    #[error("the firmware's {table} is damaged: {reason}")]
    OvmfTable {
        /// Which table.
        table: &'static str,
        /// What does not fit.
        reason: &'static str,
    },
    /// The firmware was built without something that this launch needs.
    #[error("the firmware has no {missing}: {advice}")]
    OvmfMissing {
        /// What is not there.
        missing: &'static str,
        /// What to do.
        advice: &'static str,
    },
    /// A page kind of the firmware's SNP metadata that this program does not know.
    #[error("the firmware's SNP metadata has a section of unknown kind {kind}")]
    OvmfSection {
        /// The number.
        kind: u32,
    },
    /// The number of virtual CPUs.
    #[error("{vcpus} virtual CPUs: 1 to {limit}")]
    Vcpus {
        /// As asked.
        vcpus: u32,
        /// The largest number.
        limit: u32,
    },
    /// No such virtual CPU.
    #[error("{name:?} is no virtual CPU that is known: {known}, or its CPUID signature as 0x…")]
    VcpuType {
        /// As asked.
        name: String,
        /// The names that are known.
        known: String,
    },
    /// No such monitor.
    #[error("{name:?} is no monitor that is known: qemu or ec2")]
    Monitor {
        /// As asked.
        name: String,
    },
}

/// Everything that a launch measurement depends on.
#[derive(Clone, Debug)]
pub struct Launch<'a> {
    /// The firmware.
    pub ovmf: &'a Ovmf,
    /// What the monitor hashes into the firmware's table, where it boots a kernel directly.
    pub kernel: Option<KernelHashes>,
    /// How many virtual CPUs.
    pub vcpus: u32,
    /// Their type.
    pub vcpu_type: VcpuType,
    /// Who starts the guest.
    pub monitor: Monitor,
    /// `SEV_FEATURES` of each VMSA.
    pub guest_features: u64,
}

impl Launch<'_> {
    /// The value of the report's `MEASUREMENT`.
    ///
    /// # Errors
    /// [`LaunchError`] names what the firmware lacks or the number that is out of range.
    pub fn digest(&self) -> Result<[u8; 48], LaunchError> {
        if !(1..=VCPUS_MAX).contains(&self.vcpus) {
            return Err(LaunchError::Vcpus { vcpus: self.vcpus, limit: VCPUS_MAX });
        }
        let mut digest = self.before_vcpus()?;
        let vcpus = self.vcpu_pages();
        for index in 0..self.vcpus {
            vcpus.extend(&mut digest, index)?;
        }
        Ok(digest.value())
    }

    /// Firmware and its metadata pages, in the order in which the monitor adds them.
    fn before_vcpus(&self) -> Result<Digest, LaunchError> {
        let ovmf = self.ovmf;
        let mut digest = ovmf.pages_digest();
        let cpuid_last = self.monitor == Monitor::Ec2;
        for section in ovmf.sections() {
            match section.kind {
                SectionKind::Memory | SectionKind::SvsmCallingArea => {
                    digest.zeros(section.gpa, section.pages);
                }
                SectionKind::Secrets => digest.page(PageKind::Secrets, section.gpa, &[0; 48]),
                SectionKind::Cpuid if cpuid_last => {}
                SectionKind::Cpuid => digest.page(PageKind::Cpuid, section.gpa, &[0; 48]),
                SectionKind::KernelHashes => match &self.kernel {
                    Some(kernel) => {
                        let page = kernel.page(ovmf.hash_table_gpa()?)?;
                        digest.contents(PageKind::Normal, section.gpa, &page);
                    }
                    None => digest.zeros(section.gpa, section.pages),
                },
            }
        }
        if cpuid_last {
            for section in ovmf.sections().iter().filter(|s| s.kind == SectionKind::Cpuid) {
                digest.page(PageKind::Cpuid, section.gpa, &[0; 48]);
            }
        }
        let hashed = ovmf.sections().iter().any(|s| s.kind == SectionKind::KernelHashes);
        if self.kernel.is_some() && !hashed {
            return Err(LaunchError::OvmfMissing {
                missing: "SNP metadata section for kernel hashes",
                advice: "build OVMF's AmdSev package, or leave --kernel out",
            });
        }
        Ok(digest)
    }

    fn vcpu_pages(&self) -> Vcpus {
        let reset = self.ovmf.reset_eip();
        Vcpus::new(self.monitor, self.vcpu_type, self.guest_features, reset)
    }
}

/// The most virtual CPUs of one guest.
pub const VCPUS_MAX: u32 = 1024;
