//! Certificates and collateral that a bundle lacks. The enclave cannot fetch them, and whoever does need not be trusted:
//! each is signed by the vendor, or useless.

use chrysalis_protocol::bundle::{Bundle, Endorsements};

/// What somebody has at hand to complete bundles with.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Endorsing {
    /// The certificate of an SEV-SNP chip's key (VCEK, or VLEK), DER.
    pub vcek: Option<Vec<u8>>,
    /// Collateral of a TDX platform, as docs/formats.md has it.
    pub tdx_collateral: Option<Vec<u8>>,
}

impl Endorsing {
    /// The bundle with these in it, in place of those that it has. Bytes that are no bundle stay as they are: the
    /// appraisal says what is wrong with them.
    pub fn complete(&self, bytes: Vec<u8>) -> Vec<u8> {
        if *self == Self::default() {
            return bytes;
        }
        let Ok(bundle) = Bundle::parse(&bytes) else { return bytes };
        let has = bundle.endorsements;
        let endorsements = Endorsements {
            vcek: self.vcek.as_deref().or(has.vcek),
            tdx_collateral: self.tdx_collateral.as_deref().or(has.tdx_collateral),
            ..has
        };
        Bundle { endorsements, ..bundle }.to_bytes()
    }
}
