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
mod floors_source;
mod gpu;
mod launch;
mod policy_file;
mod registry;
mod release;
mod simulated;
mod snp;
mod tampering;
mod tdx;
mod totality;
mod tsm;
mod vectors;
