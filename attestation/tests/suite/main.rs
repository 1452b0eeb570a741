//! The whole crate from outside: evidence in, proof or named refusal out.
#![cfg(feature = "verifier")]
#![expect(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "tests fail by panic"
)]

mod appraisal;
mod firmware;
mod launch;
mod policy_file;
mod release;
mod simulated;
mod tampering;
mod totality;
mod vectors;
