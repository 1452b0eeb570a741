//! Do we like this enclave? Reference values and the appraisal: the one source of
//! [`VerifiedEnclave`] and [`VerifiedKeyRelease`]. docs/formats.md, section 1.6.
//!
//! Nothing here has a permissive default: an expectation that a policy does not state is an error
//! that names the missing key, never a check that is left out.

mod appraise;
mod claims;
mod file;
mod platform;
mod rejection;
mod verified;

pub use appraise::Challenge;
pub use claims::{Claims, Explanation, SnpClaims, TdxClaims};
pub use file::PolicyError;
pub use platform::PlatformError;
pub use rejection::Rejection;
pub use verified::{Appraised, ReleaseError, ReleaseTerms, VerifiedEnclave, VerifiedKeyRelease};

use chrysalis_protocol::statement::{PadProfile, ServingPolicy};

use crate::report::{Product, Tcb};
use crate::verifier::HardwareId;

/// What an enclave must be before a request or a key is sealed to it.
///
/// Written by hand as TOML ([`Self::from_toml`]); [`Self::to_toml`] writes a commented one.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct AppraisalPolicy {
    /// Models: the content digests that are accepted; not empty.
    pub content_digests: Vec<[u8; 48]>,
    /// Publishers: SHA-256 of the Ed25519 keys that may sign a package; not empty.
    pub publishers: Vec<[u8; 32]>,
    /// Tokenizers and chat templates: BLAKE3 of the client bundles that are accepted; not empty.
    /// The enclave never opens a bundle, and a client cannot open a sealed meta that names it.
    pub client_bundles: Vec<[u8; 32]>,
    /// The lowest security version of the model.
    pub minimum_svn: u32,
    /// Enclave images: the launch measurements that are accepted; not empty.
    pub measurements: Vec<[u8; 48]>,
    /// Whether a simulated platform, which proves nothing, is accepted.
    pub allow_simulated: bool,
    /// Which machines are trusted.
    pub platform: PlatformTrust,
    /// How old the evidence may be.
    pub max_age: MaxAge,
    /// How the enclave has to serve.
    pub serving: ServingDemand,
    /// What an SEV-SNP machine has to be, beyond the rules that always hold.
    pub snp: SnpDemand,
    /// Rules that are switched off.
    pub dangerous: Dangerous,
}

/// Which machines are trusted. A choice without a default: no software check finds an interposer
/// on the memory bus, so somebody has to say which machines nobody tampers with.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum PlatformTrust {
    /// Any genuine chip: whoever holds a machine with an interposer is trusted.
    AnyGenuine,
    /// These machines only.
    Pinned(Vec<HardwareId>),
}

/// How old the platform's evidence may be.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum MaxAge {
    /// Made after, and over, the caller's challenge.
    Fresh,
    /// Made in the epoch of the sealing key; that the key is alive, the first answer proves.
    Epoch,
}

/// What an SEV-SNP machine has to be, beyond the rules that always hold. The default demands nothing more.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct SnpDemand {
    /// Patch levels, beyond the compiled-in floors; empty where those suffice.
    pub tcb_floors: Vec<(Product, Tcb)>,
    /// Mitigation bits that a version 5 report has to have, now and at launch; 0 where none.
    pub required_mitigations: u64,
    /// Cloud providers whose loaned keys (VLEK) are accepted in place of the chip's own.
    pub loaned_key_providers: Vec<String>,
}

/// What the attested [`ServingPolicy`] has to be within.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ServingDemand {
    /// The padding profiles that are accepted; not empty.
    pub pad_profiles: Vec<PadProfile>,
    /// The shortest tick of a profile that hides times: the host chooses the launch config, and a tick of a millisecond
    /// hides nothing.
    pub min_tick_ms: u16,
    /// The longest tick.
    pub max_tick_ms: u16,
    /// The fewest frames that the length of a response is rounded up to, where the profile hides it.
    pub min_length_quantum: u16,
    /// The fewest tokens that receipts, which the host reads, round up to.
    pub min_billing_quantum: u16,
    /// The longest life of a sealing key.
    pub max_epoch_seconds: u32,
    /// The most requests to one sealing key.
    pub max_epoch_requests: u32,
    /// Whether the enclave may tokenize text, which shows in its memory accesses.
    pub allow_text_mode: bool,
    /// Whether requests with the same salt may share KV blocks.
    pub allow_kv_sharing: bool,
    /// Whether speculative decoding, whose speed depends on the text, may be on.
    pub allow_spec_decode: bool,
    /// Whether experts may run on the CPU, which shows in its memory accesses.
    pub allow_moe_on_cpu: bool,
    /// Whether embedding look-ups have to touch every row.
    pub require_oblivious_embed: bool,
}

/// Rules that a policy switches off. All false unless its file says otherwise, by these names.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Dangerous {
    /// Accept Milan, whose root of trust can be broken by its host.
    pub allow_milan: bool,
    /// Accept a machine that runs, and a guest that allows, SMT.
    pub allow_smt: bool,
    /// Accept a runtime that says it is a debug build.
    pub allow_debug_build: bool,
}

impl ServingDemand {
    /// The first demand that `policy` does not meet.
    fn unmet(&self, policy: &ServingPolicy) -> Option<&'static str> {
        let padded = policy.pad_profile != PadProfile::Off;
        let demands = [
            ("pad_profile", self.pad_profiles.contains(&policy.pad_profile)),
            ("tick_ms", policy.tick_ms <= self.max_tick_ms),
            ("tick_ms", !padded || policy.tick_ms >= self.min_tick_ms),
            ("length_quantum", !padded || policy.length_quantum >= self.min_length_quantum),
            ("billing_quantum", policy.billing_quantum >= self.min_billing_quantum),
            ("epoch_max_seconds", policy.epoch_max_seconds <= self.max_epoch_seconds),
            ("epoch_max_requests", policy.epoch_max_requests <= self.max_epoch_requests),
            ("text_mode", self.allow_text_mode || !policy.text_mode),
            ("kv_sharing", self.allow_kv_sharing || !policy.kv_sharing),
            ("spec_decode", self.allow_spec_decode || !policy.spec_decode),
            ("moe_on_cpu", self.allow_moe_on_cpu || !policy.moe_on_cpu),
            ("oblivious_embed", !self.require_oblivious_embed || policy.oblivious_embed),
        ];
        demands.into_iter().find(|&(_, met)| !met).map(|(field, _)| field)
    }
}
