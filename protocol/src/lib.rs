//! Every byte that crosses the enclave's boundary, in the order in which it crosses. Pure: no I/O.
#![forbid(unsafe_code)]

pub mod codec;
pub mod package;
pub mod secret;
