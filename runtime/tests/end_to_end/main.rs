//! The whole way with nothing played: packed, attested, released, sealed, inferred, sealed, over a socket.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

#[cfg(feature = "gpu")]
mod gpus;
mod honest;
mod hostile;
mod payment;
mod platform;
mod support;
