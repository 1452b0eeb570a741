//! The other end: connect, verify, seal, stream.
//!
//! [`Connection`] speaks frames to an enclave (or to whoever claims to be one); [`Connection::verify`] turns its evidence
//! into a [`VerifiedEnclave`], and only that can be asked. Prompts are tokenised and answers detokenised here, never in
//! the enclave: [`chat::Chat`] joins the two.
//!
//! docs/howto-application.md shows it in use; `examples/ask.rs` is a whole program.
#![forbid(unsafe_code)]

pub mod address;
pub mod answer;
pub mod chat;
pub mod connection;
pub mod contact;
mod endorse;
mod error;
pub mod receipts;
mod wire;

pub use address::Address;
pub use answer::{Answer, Delta, Summary};
pub use chat::{Chat, ChatRequest};
pub use chrysalis_attestation::policy::{
    AppraisalPolicy, MaxAge, Rejection, ReleaseTerms, VerifiedEnclave, VerifiedKeyRelease,
};
pub use connection::Connection;
pub use contact::Contact;
pub use endorse::Endorsing;
pub use error::ClientError;
pub use receipts::ReceiptFile;
