//! Makes the root of simulated GPUs anew, in `src/roots/simulated`.
//!
//! It proves nothing, by design: its private key is published with the source. Write the new
//! fingerprint into `src/roots/README.md`.
#![expect(clippy::unwrap_used, reason = "the code is shared with tests, which fail by panic")]
#![expect(dead_code, reason = "the tests issue more kinds of certificates")]

#[path = "../tests/suite/simulated/der.rs"]
mod der;
#[path = "../tests/suite/gpu/issue.rs"]
mod issue;

use std::fs;
use std::path::Path;

use aws_lc_rs::signature::{ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair};
use issue::{CertificateDraft, Key, root_name};

fn main() -> std::io::Result<()> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/roots/simulated");
    let bytes = EcdsaKeyPair::generate(&ECDSA_P384_SHA384_FIXED_SIGNING).unwrap();
    let bytes = bytes.to_pkcs8v1().unwrap();
    let key = Key::from_pkcs8(bytes.as_ref());
    let root = CertificateDraft::authority(1, &root_name(), &root_name(), key.point()).sign(&key);
    fs::write(folder.join("gpu_root.der"), root)?;
    fs::write(folder.join("gpu_root_key.pk8"), bytes.as_ref())
}
