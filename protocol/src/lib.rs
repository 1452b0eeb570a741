//! Every byte that crosses the enclave's boundary, in the order in which it crosses. Pure: no I/O.
#![forbid(unsafe_code)]
#![cfg_attr(
    not(test),
    deny(
        clippy::indexing_slicing,
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::arithmetic_side_effects
    )
)]

pub mod codec;
pub mod package;
pub mod secret;

/// The randomness traits that this crate's functions take; the caller owns the source.
pub use hpke::rand_core;
