//! Which platform: what the machine offers, or what somebody names. Simulation is never chosen.

use std::path::{Path, PathBuf};

use chrysalis_protocol::statement::Tee;

use super::tsm::{Configfs, Kernel, REPORTS, Tsm};
use super::{Attester, AttesterError};

/// Where evidence is to come from, simulation apart.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Choice {
    /// Whatever this guest runs on.
    Auto,
    /// AMD SEV-SNP and nothing else.
    Snp,
    /// Intel TDX and nothing else.
    Tdx,
}

/// The kernel's interfaces.
#[derive(Debug)]
pub struct Interfaces {
    root: PathBuf,
}

impl Default for Interfaces {
    /// Those of the running system.
    fn default() -> Self {
        Self::below(Path::new("/"))
    }
}

impl Interfaces {
    /// Those of a tree below `root` that looks like a running system's.
    #[must_use]
    pub fn below(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    /// The platform that `choice` means.
    ///
    /// # Errors
    /// [`AttesterError::NoPlatform`] on a machine without any; otherwise what is missing between
    /// this program and its platform.
    pub fn attester(&self, choice: Choice) -> Result<Box<dyn Attester>, AttesterError> {
        self.attester_by(choice, Box::new(Kernel))
    }

    /// The same, by other file operations than the kernel's.
    ///
    /// # Errors
    /// As [`Self::attester`].
    pub fn attester_by(
        &self,
        choice: Choice,
        fs: Box<dyn Configfs>,
    ) -> Result<Box<dyn Attester>, AttesterError> {
        let attester: Box<dyn Attester> = match Tsm::open(&self.root, fs) {
            Ok(tsm) => Box::new(tsm),
            Err(AttesterError::NoInterface { root }) => self.without_configfs(choice, root)?,
            Err(error) => return Err(error),
        };
        let found = attester.tee();
        match choice {
            Choice::Snp if found != Tee::SevSnp => {
                Err(AttesterError::OtherPlatform { found, wanted: Tee::SevSnp })
            }
            Choice::Tdx if found != Tee::Tdx => {
                Err(AttesterError::OtherPlatform { found, wanted: Tee::Tdx })
            }
            Choice::Auto | Choice::Snp | Choice::Tdx => Ok(attester),
        }
    }

    /// Older kernels have a device for each platform, and nothing else.
    fn without_configfs(
        &self,
        choice: Choice,
        root: PathBuf,
    ) -> Result<Box<dyn Attester>, AttesterError> {
        let has = |device: &str| self.root.join(device).exists();
        #[cfg(feature = "sev-ioctl")]
        if has(SEV_DEVICE) && choice != Choice::Tdx {
            return Ok(Box::new(super::sev_guest::SevGuest::open()?));
        }
        let has_device = has(SEV_DEVICE) || has(TDX_DEVICE);
        if choice == Choice::Auto && !has_device && !self.root.join(REPORTS).exists() {
            return Err(AttesterError::NoPlatform { root });
        }
        Err(AttesterError::NoInterface { root })
    }
}

const SEV_DEVICE: &str = "dev/sev-guest";
const TDX_DEVICE: &str = "dev/tdx_guest";
