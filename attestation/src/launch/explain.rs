//! Which input of a launch would have to be another one to give the digest that was found.
//!
//! A digest tells nothing by itself, but the inputs that people get wrong are few: the number and
//! type of virtual CPUs, a command line with a blank too many, a kernel that was hashed or not. All
//! of their combinations are tried, and the one with the fewest differences is told.

use std::fmt;

use super::kernel::KernelHashes;
use super::pages::Digest;
use super::vmsa::{Monitor, VcpuType};
use super::{Launch, LaunchError, VCPUS_MAX};

/// One input that differs.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Difference {
    /// The flag of `chrysalis measure`.
    pub field: &'static str,
    /// As given.
    pub given: String,
    /// What gives the digest that was found.
    pub found: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { field, given, found } = self;
        write!(f, "{field} is {found}, not {given}")
    }
}

impl Launch<'_> {
    /// The fewest differences from these inputs that give the digest `found`: empty where it is
    /// theirs, `None` where nothing that was tried gives it.
    ///
    /// # Errors
    /// As [`Launch::digest`], for the inputs as they are.
    pub fn explain(&self, found: &[u8; 48]) -> Result<Option<Vec<Difference>>, LaunchError> {
        if self.digest()? == *found {
            return Ok(Some(Vec::new()));
        }
        let mut best: Option<Vec<Difference>> = None;
        for (kernel, said) in self.kernels() {
            for monitor in Monitor::ALL {
                let tried = Launch { kernel: kernel.clone(), monitor, ..self.clone() };
                // Such a kernel cannot be measured with this firmware at all.
                let Ok(before) = tried.before_vcpus() else { continue };
                for guest_features in features(self.guest_features) {
                    for vcpu_type in types(self.vcpu_type) {
                        let tried = Launch { vcpu_type, guest_features, ..tried.clone() };
                        let Some(vcpus) = tried.count(before.clone(), found) else { continue };
                        let tried = Launch { vcpus, ..tried };
                        let differences = self.differences(&tried, said.clone());
                        if best.as_ref().is_none_or(|best| differences.len() < best.len()) {
                            best = Some(differences);
                        }
                    }
                }
            }
        }
        Ok(best)
    }

    /// How many virtual CPUs give `found` after `digest`.
    fn count(&self, mut digest: Digest, found: &[u8; 48]) -> Option<u32> {
        let pages = self.vcpu_pages();
        (1..=VCPUS_MAX).zip(0..).find_map(|(count, index)| {
            pages.extend(&mut digest, index).ok()?;
            (digest.value() == *found).then_some(count)
        })
    }

    /// Kernels near the one that was given, each with how it differs.
    fn kernels(&self) -> Vec<(Option<KernelHashes>, Option<Difference>)> {
        let mut kernels = vec![(self.kernel.clone(), None)];
        let Some(kernel) = &self.kernel else { return kernels };
        let differs = |field, given: &str, found: &str| {
            Some(Difference { field, given: given.to_owned(), found: found.to_owned() })
        };
        let given = format!("{:?}", kernel.cmdline());
        let trimmed = kernel.cmdline().trim();
        for cmdline in [trimmed, "", &format!("{trimmed}\n"), &format!("{trimmed} ")] {
            if cmdline != kernel.cmdline() {
                let said = differs("--cmdline", &given, &format!("{cmdline:?}"));
                kernels.push((Some(kernel.with_cmdline(cmdline)), said));
            }
        }
        let bare = kernel.without_initrd();
        if bare != *kernel {
            kernels.push((Some(bare), differs("--initrd", "this file", "empty")));
        }
        kernels.push((None, differs("--kernel", "hashed", "not hashed (no kernel-hashes=on)")));
        kernels
    }

    fn differences(&self, tried: &Self, kernel: Option<Difference>) -> Vec<Difference> {
        let fields = [
            ("--vcpus", self.vcpus.to_string(), tried.vcpus.to_string()),
            ("--vcpu-type", self.vcpu_type.to_string(), tried.vcpu_type.to_string()),
            ("--vmm", self.monitor.to_string(), tried.monitor.to_string()),
            (
                "--guest-features",
                format!("{:#x}", self.guest_features),
                format!("{:#x}", tried.guest_features),
            ),
        ];
        let fields = fields.into_iter().filter(|(_, given, found)| given != found);
        let fields = fields.map(|(field, given, found)| Difference { field, given, found });
        kernel.into_iter().chain(fields).collect()
    }
}

/// The features as given, and every choice of those that a monitor may turn on.
fn features(given: u64) -> Vec<u64> {
    let mut all = vec![given];
    for choice in 0..1_u64 << OPTIONAL_FEATURES.len() {
        let bits = OPTIONAL_FEATURES.iter().enumerate();
        let chosen = bits.filter(|&(index, _)| choice >> index & 1 == 1).map(|(_, bit)| bit);
        let features = chosen.fold(super::GUEST_FEATURES, |all, &bit| all | 1 << bit);
        if features != given {
            all.push(features);
        }
    }
    all
}

fn types(given: VcpuType) -> Vec<VcpuType> {
    std::iter::once(given).chain(VcpuType::all().filter(|&other| other != given)).collect()
}

/// Bits of `SEV_FEATURES`: alternate injection, debug swap, secure TSC, SMT protection.
const OPTIONAL_FEATURES: [u32; 4] = [4, 5, 9, 15];
