//! The whole way with nothing played: packed, attested, released, sealed, inferred, sealed, over a socket.

mod honest;
mod hostile;
mod support;
