//! The result of an appraisal in the words of RATS: claims by the names of RFC 9711 (EAT), and a
//! verdict as draft-ietf-rats-ear (EAR) has it, with the values of draft-ietf-rats-ar4si.
//!
//! Neither is signed: whoever holds the evidence appraises it himself. They are for programs that
//! read results of several verifiers.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use chrysalis_protocol::hash::sha256;
use serde::Serialize;

use super::Challenge;
use super::verified::{Appraised, TrustedBy};

/// Claims of an enclave by their names in RFC 9711; bytes are base64url.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Eat {
    /// Which claims there are, and what they mean: this file.
    pub eat_profile: &'static str,
    /// When the evidence was appraised, in Unix seconds.
    pub iat: u64,
    /// The challenge that the evidence covers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eat_nonce: Option<String>,
    /// The machine: type 1, then SHA-256 of its hardware identity.
    pub ueid: String,
    /// The processor's product.
    pub hwmodel: String,
    /// Patch levels of the processor's firmware.
    pub hwversion: String,
    /// The program that the launch measurement stands for.
    pub swname: &'static str,
    /// Debugging by the host: no policy accepts it, and none can begin after the launch.
    pub dbgstat: &'static str,
    /// Random number of this boot.
    pub bootseed: String,
    /// Seconds since the boot.
    pub uptime: u64,
    /// What was measured.
    pub measurements: Vec<Measurement>,
}

/// One measured thing.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Measurement {
    /// What it is.
    pub name: &'static str,
    /// Its hash function.
    pub alg: &'static str,
    /// Its digest.
    pub val: String,
}

/// A verdict on an enclave.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Ear {
    /// The draft's own profile.
    pub eat_profile: &'static str,
    /// When the evidence was appraised, in Unix seconds.
    pub iat: u64,
    /// Who appraised it.
    #[serde(rename = "ear.verifier-id")]
    pub verifier_id: VerifierId,
    /// Verdicts on the parts.
    pub submods: Submods,
}

/// Who appraised.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct VerifierId {
    /// Whose program.
    pub developer: &'static str,
    /// Which one.
    pub build: &'static str,
}

/// The parts of an enclave.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Submods {
    /// Processor and guest.
    pub cpu: Record,
}

/// The verdict on one part.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Record {
    /// `affirming`, or `none` where nothing is claimed.
    #[serde(rename = "ear.status")]
    pub status: &'static str,
    /// What was found, aspect by aspect.
    #[serde(rename = "ear.trustworthiness-vector")]
    pub vector: Vector,
}

/// AR4SI: 0 claims nothing, 2 is as it should be.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Vector {
    /// The machine is one that the policy knows.
    pub instance_identity: i8,
    /// Guest and platform are set as the policy asks.
    pub configuration: i8,
    /// Only an image that the policy lists was launched.
    pub executables: i8,
    /// A genuine processor at sufficient patch levels.
    pub hardware: i8,
    /// Memory is encrypted and kept from the host.
    pub runtime_opaque: i8,
}

impl Appraised {
    /// The claims by the names of RFC 9711.
    #[must_use]
    pub fn eat(&self, challenge: &Challenge) -> Eat {
        let statement = self.statement();
        let measurement = |name, alg, digest: &[u8]| Measurement { name, alg, val: base64(digest) };
        let identity = sha256(&[self.hardware_id().as_bytes()]);
        Eat {
            eat_profile: PROFILE,
            iat: challenge.now_unix,
            eat_nonce: challenge.nonce.filter(|_| self.fresh()).map(|nonce| base64(&nonce)),
            ueid: base64(&[&[1], identity.as_slice()].concat()),
            hwmodel: self.evidence().product(),
            hwversion: self.evidence().tcb(),
            swname: "chrysalis-enclave",
            dbgstat: "disabled-since-boot",
            bootseed: base64(&statement.boot_id),
            uptime: statement.uptime_ms / 1000,
            measurements: vec![
                measurement("launch", "sha-384", &self.measurement()),
                measurement("launch-config", "sha-256", &statement.launch_config_digest),
                measurement("model", "sha-384", &statement.content_digest),
                measurement("package", "sha-384", &statement.package_digest),
                measurement("statement", "sha-384", &self.statement_digest()),
            ],
        }
    }

    /// The verdict: an appraisal that was passed, in the draft's words. A simulated platform
    /// passes where a policy allows it, and then nothing is claimed of it.
    #[must_use]
    pub fn ear(&self, challenge: &Challenge) -> Ear {
        let claimed = i8::from(!self.simulated()).saturating_mul(2);
        let known = self.trusted_by() != TrustedBy::Vendor;
        let vector = Vector {
            instance_identity: if known { claimed } else { 0 },
            configuration: claimed,
            executables: claimed,
            hardware: claimed,
            runtime_opaque: claimed,
        };
        let status = if self.simulated() { "none" } else { "affirming" };
        Ear {
            eat_profile: "tag:github.com,2023:veraison/ear",
            iat: challenge.now_unix,
            verifier_id: VerifierId {
                developer: "Chrysalis",
                build: concat!("chrysalis-attestation ", env!("CARGO_PKG_VERSION")),
            },
            submods: Submods { cpu: Record { status, vector } },
        }
    }
}

fn base64(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// Names the claims of [`Eat`].
const PROFILE: &str = "tag:chrysalis,2026:enclave#1";
