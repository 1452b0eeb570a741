//! Certificates and collateral that a bundle lacks. The enclave cannot fetch them, and whoever does need not be trusted:
//! each is signed by the vendor, or useless.

use chrysalis_attestation::verifier::gpu::endorsements_of_use;
use chrysalis_protocol::bundle::{Bundle, Endorsements};
use chrysalis_protocol::gpu::GpuEndorsements;

/// What somebody has at hand to complete bundles with.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Endorsing {
    /// The certificate of an SEV-SNP chip's key (VCEK, or VLEK), DER.
    pub vcek: Option<Vec<u8>>,
    /// Collateral of a TDX platform, as docs/formats.md has it.
    pub tdx_collateral: Option<Vec<u8>>,
    /// NVIDIA's manifests of drivers and firmware, of any number of GPUs.
    pub gpu_manifests: Vec<Vec<u8>>,
    /// OCSP responses about certificates of GPUs and manifests.
    pub gpu_statuses: Vec<Vec<u8>>,
}

impl Endorsing {
    /// The bundle with these in it, in place of those that it has; of manifests and statuses those that are of use to
    /// its GPUs, beside those that it has. Bytes that are no bundle stay as they are: the appraisal says what is wrong
    /// with them.
    pub fn complete(&self, bytes: Vec<u8>) -> Vec<u8> {
        if *self == Self::default() {
            return bytes;
        }
        let Ok(bundle) = Bundle::parse(&bytes) else { return bytes };
        let has = bundle.endorsements;
        let gpu_rim = match bundle.gpu {
            Some(evidence) if !(self.gpu_manifests.is_empty() && self.gpu_statuses.is_empty()) => {
                Some(self.of_gpus(evidence, has.gpu_rim))
            }
            _ => None,
        };
        let endorsements = Endorsements {
            vcek: self.vcek.as_deref().or(has.vcek),
            tdx_collateral: self.tdx_collateral.as_deref().or(has.tdx_collateral),
            gpu_rim: gpu_rim.as_deref().or(has.gpu_rim),
            ..has
        };
        Bundle { endorsements, ..bundle }.to_bytes()
    }

    /// Section 0x83 for these GPUs. One of the host's that cannot be read is left out: it is of no use.
    fn of_gpus(&self, evidence: &[u8], has: Option<&[u8]>) -> Vec<u8> {
        let has = has.and_then(|bytes| GpuEndorsements::parse(bytes).ok()).unwrap_or_default();
        let at_hand = GpuEndorsements {
            rims: self.gpu_manifests.iter().map(Vec::as_slice).chain(has.rims).collect(),
            statuses: self.gpu_statuses.iter().map(Vec::as_slice).chain(has.statuses).collect(),
        };
        endorsements_of_use(evidence, &at_hand)
    }
}
