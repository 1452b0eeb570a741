//! Do we like this enclave? Reference values and the appraisal: the one source of
//! [`VerifiedEnclave`] and [`VerifiedKeyRelease`]. docs/formats.md, section 1.6.
//!
//! Nothing here has a permissive default: an expectation that a policy does not state is an error
//! that names the missing key, never a check that is left out.

mod appraise;
mod claims;
mod eat;
mod file;
mod floors;
mod gpu;
mod platform;
mod registry;
mod rejection;
mod signed_file;
mod snp_file;
mod tdx;
mod tdx_file;
mod trust_file;
mod verified;

pub use appraise::Challenge;
pub use claims::{Claims, Explanation, GpuClaims, SnpClaims, TdxClaims};
pub use eat::{Ear, Eat, Measurement, Record, Submods, Vector, VerifierId};
pub use file::PolicyError;
pub use floors::{Abi, FLOORS_SIGNER, Floor, FloorTable, Floors, FloorsError};
pub use gpu::{GpuDemand, GpuDemandError};
pub use platform::PlatformError;
pub use registry::{Registry, RegistryTable, RegistryTrust};
pub use rejection::Rejection;
pub use signed_file::{FileKind, SignedFile, SignedFileError, SignedRecord, Table};
pub use tdx::{Rtmr3, TdError, TdxDemand, XFAM_DEFAULT, package_rtmr};
pub use verified::{
    Appraised, ReleaseError, ReleaseTerms, TrustedBy, VerifiedEnclave, VerifiedKeyRelease,
};

use std::borrow::Cow;

use chrysalis_protocol::statement::{PadProfile, ServingPolicy};

use crate::report::{Product, Tcb};
use crate::verifier::{HardwareId, RevocationList};

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
    /// What the GPUs have to be; without it, an enclave that has any is refused.
    pub gpu: Option<GpuDemand>,
    /// What a TDX machine and its guest have to be; nothing where none is accepted.
    pub tdx: Option<TdxDemand>,
    /// Rules that are switched off.
    pub dangerous: Dangerous,
}

/// Which machines are trusted. A choice without a default: no software check finds an interposer
/// on the memory bus, so somebody has to say which machines nobody tampers with.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum PlatformTrust {
    /// Any genuine chip: whoever holds a machine with an interposer is trusted.
    AnyGenuine,
    /// Machines that a signed registry lists: its signer is trusted to have looked at them.
    Registry(RegistryTrust),
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
    /// The signed floors; `None` takes those of this program, [`Floors::built_in`].
    pub floors: Option<FromFile<Floors>>,
    /// The lowest number of a floors file that is accepted.
    pub floors_minimum_version: u32,
    /// Patch levels, beyond the floors file; empty where that suffices.
    pub tcb_floors: Vec<(Product, Tcb)>,
    /// Mitigation bits that a version 5 report has to have, now and at launch, beyond those of the
    /// floors file.
    pub required_mitigations: u64,
    /// Cloud providers whose loaned keys (VLEK) are accepted in place of the chip's own.
    pub loaned_key_providers: Vec<String>,
    /// AMD's lists of revoked issuers; one that is there has to hold.
    pub revocation_lists: Vec<FromFile<RevocationList>>,
    /// Whether there has to be a list of the product's ARK.
    pub require_revocation_list: bool,
    /// Whether trusted I/O has to be on.
    pub require_tio: bool,
    /// The privilege level that asks for reports: 0, or the level below a measured SVSM.
    pub vmpl: u32,
    /// SHA-384 of keys that may have signed the guest's ID block; empty where none has to have.
    pub id_key_digests: Vec<[u8; 48]>,
    /// SHA-384 of author keys; empty where none has to be there.
    pub author_key_digests: Vec<[u8; 48]>,
    /// The lowest security version of the guest, in its ID block.
    pub minimum_guest_svn: u32,
    /// Families in the guest's ID block; empty where any will do.
    pub family_ids: Vec<[u8; 16]>,
    /// Images in the guest's ID block; empty where any will do.
    pub image_ids: Vec<[u8; 16]>,
}

/// Something that a policy takes from a file.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct FromFile<T> {
    /// The path, as the policy has it.
    pub path: String,
    /// What was read.
    pub value: T,
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
    /// The most tokens that may go out unacknowledged; without a number, any serving will do.
    pub max_ack_window: Option<u32>,
}

/// Rules that a policy switches off. All false unless its file says otherwise, by these names.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Dangerous {
    /// Accept Milan, whose root of trust can be broken by its host.
    pub allow_milan: bool,
    /// Accept a machine that runs, and a guest that allows, SMT.
    pub allow_smt: bool,
    /// Accept firmware that can still be rolled back.
    pub allow_provisional_firmware: bool,
    /// Bits of the platform information whose meaning this program does not know, and that may be
    /// set.
    pub allow_platform_bits: u64,
    /// Accept a runtime that says it is a debug build.
    pub allow_debug_build: bool,
}

impl Dangerous {
    /// The keys of the rules that are switched off.
    fn named(&self) -> Vec<&'static str> {
        let Self {
            allow_milan,
            allow_smt,
            allow_provisional_firmware,
            allow_platform_bits,
            allow_debug_build,
        } = *self;
        let keys = [
            (allow_milan, "dangerous_allow_milan"),
            (allow_smt, "dangerous_allow_smt"),
            (allow_provisional_firmware, "dangerous_allow_provisional_firmware"),
            (allow_platform_bits != 0, "dangerous_allow_platform_bits"),
            (allow_debug_build, "dangerous_allow_debug_build"),
        ];
        keys.into_iter().filter_map(|(on, key)| on.then_some(key)).collect()
    }
}

impl SnpDemand {
    /// The floors that machines are judged by.
    fn floors_in_use(&self) -> Result<Cow<'_, Floors>, FloorsError> {
        match &self.floors {
            Some(given) => Ok(Cow::Borrowed(&given.value)),
            None => Ok(Cow::Owned(Floors::built_in()?)),
        }
    }
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
            (
                "ack_window",
                self.max_ack_window.is_none_or(|max| (1..=max).contains(&policy.ack_window)),
            ),
            ("oblivious_embed", !self.require_oblivious_embed || policy.oblivious_embed),
        ];
        demands.into_iter().find(|&(_, met)| !met).map(|(field, _)| field)
    }
}
