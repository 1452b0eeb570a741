//! The program from outside, as people and scripts use it: exit codes, messages, files.
#![expect(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail as tests do")]

mod bad_input;
mod card;
mod doctor;
#[path = "../../../attestation/tests/suite/firmware.rs"]
mod firmware;
#[cfg(feature = "gpu")]
mod gpus;
mod help;
mod key_broker;
mod measure;
mod package;
mod receipts;
mod support;
mod verify;
