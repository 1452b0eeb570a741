//! Every byte that crosses the enclave's boundary, in the order in which it crosses. Pure: no I/O.
//!
//! docs/formats.md specifies the layouts. A connection carries [`frame`]s with typed
//! [`messages`]; a [`bundle`] carries the [`statement`] and what proves it; a [`request`] is
//! sealed to the key that the statement names, and its [`response`] comes back sealed; a
//! [`receipt`] says what it cost; [`key_release`] brings a package key in.
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

pub mod ack;
pub mod bundle;
pub mod codec;
pub mod frame;
pub mod freshness;
pub mod gpu;
pub mod hash;
pub mod hex;
pub mod hpke;
pub mod key_release;
pub mod ledger;
pub mod messages;
pub mod package;
pub mod receipt;
pub mod request;
pub mod response;
pub mod secret;
pub mod statement;
pub mod tdx_collateral;

mod inner;
mod key_config;
mod options;
mod pieces;
mod request_body;
mod response_order;
mod serving_policy;
mod status;
mod supply;

/// The randomness traits that this crate's functions take; the caller owns the source.
pub use ::hpke::rand_core;
