//! Makes the keys and certificates of the simulated platform anew, in `src/roots/simulated`.
//!
//! They prove nothing, by design: the private keys are published with the source. Run it from the
//! crate's folder, then write the new fingerprints into `src/roots/README.md`.

#[path = "../tests/suite/simulated/der.rs"]
mod der;
#[path = "../tests/suite/simulated/issue.rs"]
mod issue;

use std::fs;
use std::path::Path;

use aws_lc_rs::encoding::AsDer;
use aws_lc_rs::rsa::{KeyPair, KeySize};
use aws_lc_rs::signature::{ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use chrysalis_attestation::attester::simulated::{CHIP_ID, TCB};
use der::{bit_string, seq, tlv};
use issue::{Draft, pss_sha384};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/roots/simulated");
    let ark = KeyPair::generate(KeySize::Rsa4096)?;
    let ask = KeyPair::generate(KeySize::Rsa4096)?;
    let vcek = EcdsaKeyPair::generate(&ECDSA_P384_SHA384_FIXED_SIGNING)?;
    let point = vcek.public_key().as_ref();
    let files = [
        ("ark.der", authority("ARK-Simulated", "ARK-Simulated", 1, &ark).sign(&ark)?),
        ("ask.der", authority("ARK-Simulated", "SEV-Simulated", 2, &ask).sign(&ark)?),
        ("vcek.der", Draft::vcek("SEV-Simulated", "Genoa", TCB, &CHIP_ID, point).sign(&ask)?),
        ("ark_key.pk8", ark.as_der()?.as_ref().to_vec()),
        ("ask_key.pk8", ask.as_der()?.as_ref().to_vec()),
        ("vcek_key.pk8", vcek.to_pkcs8v1()?.as_ref().to_vec()),
    ];
    for (name, bytes) in files {
        fs::write(folder.join(name), bytes)?;
    }
    Ok(())
}

/// A certificate authority with the RSA key `key`.
fn authority(issuer: &str, subject: &str, serial: u8, key: &KeyPair) -> Draft {
    let rsa_encryption = seq(&[tlv(0x06, b"\x2a\x86\x48\x86\xf7\x0d\x01\x01\x01"), tlv(0x05, &[])]);
    Draft {
        version: 2,
        serial,
        issuer: issuer.to_owned(),
        subject: subject.to_owned(),
        not_before: "260101000000Z".to_owned(),
        not_after: "460101000000Z".to_owned(),
        spki: seq(&[rsa_encryption, bit_string(key.public_key().as_ref())]),
        extensions: vec![
            // basicConstraints: a CA. keyUsage: keyCertSign.
            (b"\x55\x1d\x13".to_vec(), true, seq(&[tlv(0x01, &[0xFF])])),
            (b"\x55\x1d\x0f".to_vec(), true, b"\x03\x02\x02\x04".to_vec()),
        ],
        algorithm: pss_sha384(),
        write_default: false,
    }
}
