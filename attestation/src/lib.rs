//! Evidence: produced inside the enclave ([`attester`]), judged outside (`verifier`, `policy`).
//!
//! docs/attestation.md tells the whole story; docs/threat-model.md has the rules that the default
//! appraisal applies. The enclave builds this crate without the feature `verifier`, and so has no
//! parser of certificates.
#![cfg_attr(not(feature = "gpu"), forbid(unsafe_code))]
#![cfg_attr(
    not(test),
    deny(
        clippy::indexing_slicing,
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::arithmetic_side_effects
    )
)]

pub mod attester;
#[cfg(any(feature = "gpu", feature = "verifier"))]
pub mod gpu;
#[cfg(feature = "verifier")]
pub mod launch;
#[cfg(feature = "verifier")]
pub mod policy;
pub mod quote;
pub mod report;
#[cfg(feature = "verifier")]
pub mod verifier;
