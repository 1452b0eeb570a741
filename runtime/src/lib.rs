//! The enclave: boot, sessions, engine, sockets. A daemon embeds it with [`boot::Enclave::start`]; the binary
//! `chrysalis-enclave` is a thin shell around it.
//!
//! docs/architecture.md walks a request through the modules: [`transport`] and [`hub`] carry bytes, [`session`] opens
//! and seals, [`worker`] runs the [`engine`] on token ids.

pub mod boot;
pub mod command;
pub mod compute;
pub mod config;
pub mod counters;
pub mod engine;
pub mod epoch;
pub mod files;
mod gpus;
pub mod harden;
pub mod hub;
pub mod key_wait;
pub mod lease;
pub mod limits;
pub mod load;
mod load_wait;
pub mod pacer;
mod platform;
pub mod replay;
mod reply;
pub mod rng;
pub mod session;
pub mod transport;
pub mod worker;
