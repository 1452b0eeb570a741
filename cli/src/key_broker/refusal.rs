//! Why the broker does not answer with a key, under names that never change (docs/key-broker.md, "Refusals").

use chrysalis_attestation::policy::{Rejection, ReleaseError};

use crate::hex;

/// Why no key was sealed. The host learns the code and the text: neither holds a secret.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Too many calls.
    #[error("too many calls for this {what}; try again in {retry_after_s} s")]
    Rate {
        /// `address`, `package` or `chip`.
        what: &'static str,
        /// When one more would be taken.
        retry_after_s: u64,
    },
    /// The body of a call is no such message.
    #[error("the body is no {expected}")]
    Body {
        /// What it should be.
        expected: &'static str,
    },
    /// The body of a call is too long.
    #[error("the body is longer than {max} bytes")]
    TooLong {
        /// The limit.
        max: usize,
    },
    /// The body of a call did not come.
    #[error("the body did not come within {seconds} s")]
    Slow {
        /// The limit.
        seconds: u64,
    },
    /// No call by this name.
    #[error("there is no such call: POST /v1/challenge, POST /v1/release, GET /v1/health")]
    Call,
    /// As many challenges are open as the broker remembers.
    #[error("{max} challenges are open; try again in a minute")]
    ChallengesFull {
        /// The limit.
        max: usize,
    },
    /// The statement's nonce is none of this broker's, or so old that it is forgotten.
    #[error("the statement's nonce is no challenge of this broker, or one from before its start")]
    ChallengeUnknown,
    /// The challenge was answered before.
    #[error("the challenge was answered before, with other evidence")]
    ChallengeUsed,
    /// The challenge was answered too late.
    #[error("the challenge is {age_s} s old, {max_s} at most")]
    ChallengeExpired {
        /// Its age.
        age_s: u64,
        /// The limit.
        max_s: u64,
    },
    /// The challenge was given out for another package.
    #[error(
        "the challenge was for package {}, the evidence is for {}",
        hex::encode(asked),
        hex::encode(found)
    )]
    ChallengePackage {
        /// The package of the challenge.
        asked: [u8; 16],
        /// The package of the evidence.
        found: [u8; 16],
    },
    /// No licence for this package.
    #[error("there is no licence for package {}", hex::encode(package_id))]
    PackageUnknown {
        /// The package.
        package_id: [u8; 16],
    },
    /// The evidence was not good enough.
    #[error(transparent)]
    Rejected(#[from] Rejection),
    /// The licence was taken back.
    #[error("the licence was revoked")]
    Revoked,
    /// The licence is over.
    #[error("the licence expired at {expires}, it is {now} (Unix seconds)")]
    Expired {
        /// When.
        expires: u64,
        /// The broker's time.
        now: u64,
    },
    /// The licence was replaced between the appraisal and the decision.
    #[error("the licence was replaced in this moment; ask again, with new evidence")]
    Replaced,
    /// The clock was set back while the broker ran.
    #[error(
        "the broker's clock says {now}, and said {latest} before (Unix seconds): its operator has to set it"
    )]
    ClockBack {
        /// The clock.
        now: u64,
        /// What it was.
        latest: u64,
    },
    /// A kind of platform that the licence does not name.
    #[error("the licence is not for platform {found}")]
    Platform {
        /// The kind.
        found: &'static str,
    },
    /// An older model than any floor that was ever set for it.
    #[error("the model's security version is {found}, below the floor {floor}")]
    Svn {
        /// Attested.
        found: u32,
        /// The highest floor so far.
        floor: u32,
    },
    /// All releases are spent.
    #[error("{spent} of {budget} releases are spent")]
    Releases {
        /// So far.
        spent: u64,
        /// Of the licence.
        budget: u64,
    },
    /// All releases to one chip are spent.
    #[error("{spent} of {budget} releases to this chip are spent")]
    ChipReleases {
        /// So far.
        spent: u64,
        /// Of the licence.
        budget: u64,
    },
    /// The tokens of one more lease are not left.
    #[error("{spent} of {budget} tokens are spent, and a lease takes {lease}")]
    Tokens {
        /// So far.
        spent: u64,
        /// Of the licence.
        budget: u64,
        /// Of one release.
        lease: u64,
    },
    /// The key could not be sealed.
    #[error(transparent)]
    Seal(#[from] ReleaseError),
    /// The stored key does not open under the master key and this licence.
    #[error(
        "the stored key does not open: the store was changed, or sealed under another master key"
    )]
    StoredKey,
    /// More waits than the store can take.
    #[error("the broker is busy; try again")]
    Busy,
    /// The store failed; the broker ends.
    #[error("the store failed, and nothing was released")]
    Store,
}

impl Refusal {
    /// The stable name.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Rate { what: "package", .. } => "rate.package",
            Self::Rate { what: "chip", .. } => "rate.chip",
            Self::Rate { .. } => "rate.address",
            Self::Body { .. } => "request.body",
            Self::TooLong { .. } => "request.too_long",
            Self::Slow { .. } => "request.slow",
            Self::Call => "request.call",
            Self::ChallengesFull { .. } => "challenge.full",
            Self::ChallengeUnknown => "challenge.unknown",
            Self::ChallengeUsed => "challenge.used",
            Self::ChallengeExpired { .. } => "challenge.expired",
            Self::ChallengePackage { .. } => "challenge.package",
            Self::PackageUnknown { .. } => "licence.unknown",
            Self::Rejected(rejection) => rejection.code(),
            Self::Revoked => "licence.revoked",
            Self::Expired { .. } => "licence.expired",
            Self::Replaced => "licence.replaced",
            Self::ClockBack { .. } => "clock.back",
            Self::Platform { .. } => "licence.platform",
            Self::Svn { .. } => "licence.svn",
            Self::Releases { .. } => "licence.releases",
            Self::ChipReleases { .. } => "licence.releases_per_chip",
            Self::Tokens { .. } => "licence.token_budget",
            Self::Seal(_) => "key.seal",
            Self::StoredKey => "key.stored",
            Self::Busy => "store.busy",
            Self::Store => "store.failed",
        }
    }

    /// The HTTP status that goes with it.
    pub const fn status(&self) -> u16 {
        match self {
            Self::Rate { .. } => 429,
            Self::Body { .. } => 400,
            Self::TooLong { .. } => 413,
            Self::Slow { .. } => 408,
            Self::Call | Self::PackageUnknown { .. } => 404,
            Self::ChallengeUnknown
            | Self::ChallengeUsed
            | Self::ChallengeExpired { .. }
            | Self::ChallengePackage { .. }
            | Self::Replaced => 409,
            Self::ChallengesFull { .. } | Self::Busy | Self::Store => 503,
            Self::StoredKey | Self::Seal(_) | Self::ClockBack { .. } => 500,
            Self::Rejected(_)
            | Self::Revoked
            | Self::Expired { .. }
            | Self::Platform { .. }
            | Self::Svn { .. }
            | Self::Releases { .. }
            | Self::ChipReleases { .. }
            | Self::Tokens { .. } => 403,
        }
    }
}
