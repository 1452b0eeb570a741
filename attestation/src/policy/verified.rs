//! What an appraisal proves, as types: they have no other source, so a client that forgot to
//! verify, or an owner who forgot to, does not compile.

use std::ops::Deref;

use chrysalis_protocol::key_release::{self, KeyRelease, KeyReleaseError, SEALED_LEN};
use chrysalis_protocol::package::{PackageKey, PublicHeader};
use chrysalis_protocol::rand_core::CryptoRng;
use chrysalis_protocol::request::SealTo;
use chrysalis_protocol::secret::Secret;
use chrysalis_protocol::statement::{KeyConfig, ServingPolicy, Statement, Tee};
use thiserror::Error;

use super::Floors;
use super::file::hex;
use crate::verifier::gpu::VerifiedGpus;
use crate::verifier::{HardwareId, PlatformEvidence};

/// The facts of an appraisal that found nothing wrong. Seals nothing by itself.
#[derive(Clone, Debug)]
pub struct Appraised {
    pub(super) statement: Statement,
    pub(super) key_config: KeyConfig,
    pub(super) serving: ServingPolicy,
    pub(super) package: PublicHeader,
    pub(super) evidence: PlatformEvidence,
    pub(super) floors: Option<Floors>,
    pub(super) gpus: Option<VerifiedGpus>,
    pub(super) fresh: bool,
    pub(super) trusted_by: TrustedBy,
    pub(super) waived: Vec<&'static str>,
}

/// Why this machine is trusted, beyond that it is genuine.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum TrustedBy {
    /// For no other reason.
    Vendor,
    /// A registry lists it.
    Registry {
        /// The registry's number.
        version: u32,
        /// Its last second, Unix time.
        expires: u64,
    },
    /// The policy names it.
    Pin,
}

impl Appraised {
    /// The enclave's statement.
    #[must_use]
    pub const fn statement(&self) -> &Statement {
        &self.statement
    }

    /// The statement's digest: the enclave's name in this epoch.
    #[must_use]
    pub fn statement_digest(&self) -> [u8; 48] {
        self.statement.digest()
    }

    /// How the enclave serves.
    #[must_use]
    pub const fn serving_policy(&self) -> &ServingPolicy {
        &self.serving
    }

    /// The package's header, signed by an accepted publisher.
    #[must_use]
    pub const fn package(&self) -> &PublicHeader {
        &self.package
    }

    /// The model's identity.
    #[must_use]
    pub const fn content_digest(&self) -> [u8; 48] {
        self.statement.content_digest
    }

    /// The platform's report or quote: authentic, and within the policy.
    #[must_use]
    pub const fn evidence(&self) -> &PlatformEvidence {
        &self.evidence
    }

    /// The floors that an SEV-SNP machine was judged by.
    #[must_use]
    pub const fn floors(&self) -> Option<&Floors> {
        self.floors.as_ref()
    }

    /// The GPUs and the switches between them, where there are any.
    #[must_use]
    pub const fn gpus(&self) -> Option<&VerifiedGpus> {
        self.gpus.as_ref()
    }

    /// The launch measurement of the enclave's image.
    #[must_use]
    pub const fn measurement(&self) -> [u8; 48] {
        self.evidence.measurement()
    }

    /// The machine.
    #[must_use]
    pub const fn hardware_id(&self) -> HardwareId {
        self.evidence.hardware_id()
    }

    /// Why the machine is trusted.
    #[must_use]
    pub const fn trusted_by(&self) -> TrustedBy {
        self.trusted_by
    }

    /// Rules that the policy switched off, by its keys.
    #[must_use]
    pub fn waived(&self) -> &[&'static str] {
        &self.waived
    }

    /// Whether the platform is simulated, and nothing about hardware is proved.
    #[must_use]
    pub fn simulated(&self) -> bool {
        self.statement.tee == Tee::Simulated
    }

    /// Whether the evidence was made over the caller's challenge.
    #[must_use]
    pub const fn fresh(&self) -> bool {
        self.fresh
    }
}

/// An enclave that passed verification and appraisal; requests may be sealed to it.
/// [`AppraisalPolicy::appraise`](super::AppraisalPolicy::appraise) is its only source.
#[derive(Clone, Debug)]
pub struct VerifiedEnclave(Appraised);

impl VerifiedEnclave {
    pub(super) const fn new(appraised: Appraised) -> Self {
        Self(appraised)
    }

    /// What [`chrysalis_protocol::request::seal`] takes: this enclave's key, in this epoch.
    #[must_use]
    pub fn seal_to(&self) -> SealTo<'_> {
        SealTo {
            statement_digest: self.0.statement.digest(),
            key_id: self.0.key_config.key_id(),
            sealing_key: &self.0.key_config.sealing_key,
        }
    }

    /// The Ed25519 key that signs this boot's receipts.
    #[must_use]
    pub const fn receipt_key(&self) -> [u8; 32] {
        self.0.statement.receipt_key
    }
}

impl Deref for VerifiedEnclave {
    type Target = Appraised;

    fn deref(&self) -> &Appraised {
        &self.0
    }
}

/// An enclave that passed verification and appraisal and asked for a package key; only from this
/// can the owner seal one.
/// [`AppraisalPolicy::appraise_key_release`](super::AppraisalPolicy::appraise_key_release) is its
/// only source.
#[derive(Clone, Debug)]
pub struct VerifiedKeyRelease(Appraised);

/// The owner's terms for the use of a package key.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct ReleaseTerms {
    /// The lowest security version of the model that may be served.
    pub min_model_svn: u32,
    /// How long the key may be used, in seconds; 0 is without limit.
    pub lease_seconds: u32,
    /// How many tokens may be served with it; 0 is without limit.
    pub lease_tokens: u64,
}

/// Why a package key was not released.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
#[non_exhaustive]
pub enum ReleaseError {
    /// The key is another package's, or the package is not sealed.
    #[error("the key does not open package {}", hex(package_id))]
    Key {
        /// The attested package.
        package_id: [u8; 16],
    },
    /// Sealing failed.
    #[error(transparent)]
    Seal(#[from] KeyReleaseError),
}

impl VerifiedKeyRelease {
    pub(super) const fn new(appraised: Appraised) -> Self {
        Self(appraised)
    }

    /// Seals `package_key` to the enclave's one-time key, for the attested package only.
    ///
    /// # Errors
    /// [`ReleaseError::Key`] when the key does not open the attested package.
    pub fn seal(
        &self,
        package_key: &PackageKey,
        terms: &ReleaseTerms,
        rng: &mut impl CryptoRng,
    ) -> Result<[u8; SEALED_LEN], ReleaseError> {
        let header = self.0.package.header();
        let package_id = header.package_id;
        if !package_key.fits(header) {
            return Err(ReleaseError::Key { package_id });
        }
        let release = KeyRelease {
            package_id,
            package_key: Secret::fill(|out| out.copy_from_slice(package_key.expose())),
            min_model_svn: terms.min_model_svn,
            lease_seconds: terms.lease_seconds,
            lease_tokens: terms.lease_tokens,
        };
        let to = &self.0.key_config.sealing_key;
        Ok(key_release::seal(to, &self.0.statement.digest(), &release, rng)?)
    }
}

impl Deref for VerifiedKeyRelease {
    type Target = Appraised;

    fn deref(&self) -> &Appraised {
        &self.0
    }
}
