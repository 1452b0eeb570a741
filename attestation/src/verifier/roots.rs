//! The vendor keys that this program believes, compiled in. `src/roots/README.md` has their origin.

use super::x509::{CertificateError, encode, parse};
use crate::report::{Product, SigningKey};

/// Which set of pinned keys a report is judged by.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Roots {
    /// AMD's keys: a report under them was made by a genuine chip.
    Amd,
    /// This project's published keys: a report under them proves nothing.
    Simulated,
}

/// A pinned key that issues certificates of signing keys.
pub(super) struct Issuer {
    pub(super) name: &'static str,
    /// Its name, in DER.
    pub(super) subject: Vec<u8>,
    /// PKCS#1 RSA public key.
    pub(super) key: Vec<u8>,
    /// Serial number of its certificate.
    pub(super) serial: Vec<u8>,
    pub(super) not_before: u64,
    pub(super) not_after: u64,
}

impl Issuer {
    /// The one issuer of `kind` keys for `product`.
    ///
    /// The simulated issuer serves every product and both kinds: it proves nothing anyway.
    pub(super) fn pinned(
        roots: Roots,
        product: Product,
        kind: SigningKey,
    ) -> Result<Self, CertificateError> {
        let (name, der) = match (roots, product, kind) {
            (Roots::Simulated, _, _) => ("simulated ASK", SIMULATED_ASK),
            (Roots::Amd, Product::Milan, SigningKey::Vcek) => ("ASK of Milan", MILAN_ASK),
            (Roots::Amd, Product::Milan, SigningKey::Vlek) => ("ASVK of Milan", MILAN_ASVK),
            (Roots::Amd, Product::Genoa, SigningKey::Vcek) => ("ASK of Genoa", GENOA_ASK),
            (Roots::Amd, Product::Genoa, SigningKey::Vlek) => ("ASVK of Genoa", GENOA_ASVK),
            (Roots::Amd, Product::Turin, SigningKey::Vcek) => ("ASK of Turin", TURIN_ASK),
            (Roots::Amd, Product::Turin, SigningKey::Vlek) => ("ASVK of Turin", TURIN_ASVK),
        };
        Self::read(name, der)
    }

    /// The root above [`Self::pinned`], which signs revocation lists.
    pub(super) fn ark(roots: Roots, product: Product) -> Result<Self, CertificateError> {
        let (name, der) = match (roots, product) {
            (Roots::Simulated, _) => ("simulated ARK", SIMULATED_ARK),
            (Roots::Amd, Product::Milan) => ("ARK of Milan", MILAN_ARK),
            (Roots::Amd, Product::Genoa) => ("ARK of Genoa", GENOA_ARK),
            (Roots::Amd, Product::Turin) => ("ARK of Turin", TURIN_ARK),
        };
        Self::read(name, der)
    }

    /// Every pinned root.
    pub(super) fn arks() -> Result<[Self; 4], CertificateError> {
        Ok([
            Self::ark(Roots::Amd, Product::Milan)?,
            Self::ark(Roots::Amd, Product::Genoa)?,
            Self::ark(Roots::Amd, Product::Turin)?,
            Self::ark(Roots::Simulated, Product::Genoa)?,
        ])
    }

    fn read(name: &'static str, der: &[u8]) -> Result<Self, CertificateError> {
        let certificate = parse(der)?;
        let tbs = certificate.tbs_certificate();
        let key = tbs.subject_public_key_info().subject_public_key.as_bytes();
        Ok(Self {
            name,
            subject: encode(tbs.subject())?,
            key: key.ok_or(CertificateError::Pinned { name })?.to_vec(),
            serial: tbs.serial_number().as_bytes().to_vec(),
            not_before: tbs.validity().not_before.to_unix_duration().as_secs(),
            not_after: tbs.validity().not_after.to_unix_duration().as_secs(),
        })
    }
}

const MILAN_ARK: &[u8] = include_bytes!("../roots/milan/ark.der");
const MILAN_ASK: &[u8] = include_bytes!("../roots/milan/ask.der");
const MILAN_ASVK: &[u8] = include_bytes!("../roots/milan/asvk.der");
const GENOA_ARK: &[u8] = include_bytes!("../roots/genoa/ark.der");
const GENOA_ASK: &[u8] = include_bytes!("../roots/genoa/ask.der");
const GENOA_ASVK: &[u8] = include_bytes!("../roots/genoa/asvk.der");
const TURIN_ARK: &[u8] = include_bytes!("../roots/turin/ark.der");
const TURIN_ASK: &[u8] = include_bytes!("../roots/turin/ask.der");
const TURIN_ASVK: &[u8] = include_bytes!("../roots/turin/asvk.der");
const SIMULATED_ARK: &[u8] = include_bytes!("../roots/simulated/ark.der");
const SIMULATED_ASK: &[u8] = include_bytes!("../roots/simulated/ask.der");

#[cfg(test)]
mod tests {
    use aws_lc_rs::digest::{SHA256, digest};
    use aws_lc_rs::signature::{RSA_PSS_2048_8192_SHA384, UnparsedPublicKey};

    use super::*;

    #[test]
    fn each_root_signed_itself_and_its_issuers() {
        let sets: [(&[u8], &[&[u8]]); 4] = [
            (MILAN_ARK, &[MILAN_ASK, MILAN_ASVK]),
            (GENOA_ARK, &[GENOA_ASK, GENOA_ASVK]),
            (TURIN_ARK, &[TURIN_ASK, TURIN_ASVK]),
            (SIMULATED_ARK, &[SIMULATED_ASK]),
        ];
        for (ark, issued) in sets {
            let root = Issuer::read("root", ark).expect("a pinned root is a certificate");
            for der in [ark].into_iter().chain(issued.iter().copied()) {
                let certificate = parse(der).expect("a pinned certificate is strict DER");
                let tbs = certificate.tbs_certificate();
                assert_eq!(encode(tbs.issuer()), Ok(root.subject.clone()));
                UnparsedPublicKey::new(&RSA_PSS_2048_8192_SHA384, &root.key)
                    .verify(
                        &encode(tbs).expect("it was parsed"),
                        certificate.signature().as_bytes().expect("whole bytes"),
                    )
                    .expect("the root signed it");
            }
        }
    }

    #[test]
    fn the_fingerprints_are_those_of_the_readme() {
        use crate::verifier::INTEL_ROOT;
        let readme = include_str!("../roots/README.md");
        let pinned: [(&str, &[u8]); 15] = [
            ("intel/root.der", INTEL_ROOT),
            ("milan/ark.der", MILAN_ARK),
            ("milan/ask.der", MILAN_ASK),
            ("milan/asvk.der", MILAN_ASVK),
            ("genoa/ark.der", GENOA_ARK),
            ("genoa/ask.der", GENOA_ASK),
            ("genoa/asvk.der", GENOA_ASVK),
            ("turin/ark.der", TURIN_ARK),
            ("turin/ask.der", TURIN_ASK),
            ("turin/asvk.der", TURIN_ASVK),
            ("simulated/ark.der", SIMULATED_ARK),
            ("simulated/ask.der", SIMULATED_ASK),
            ("nvidia/device_root.der", include_bytes!("../roots/nvidia/device_root.der")),
            ("nvidia/rim_root.der", include_bytes!("../roots/nvidia/rim_root.der")),
            ("simulated/gpu_root.der", include_bytes!("../roots/simulated/gpu_root.der")),
        ];
        for (name, der) in pinned {
            let fingerprint: String =
                digest(&SHA256, der).as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
            assert!(
                readme.contains(&format!("| {name} | {fingerprint} |")),
                "{name} {fingerprint}"
            );
        }
    }
}
