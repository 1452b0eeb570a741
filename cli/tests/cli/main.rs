//! The program from outside, as people and scripts use it: exit codes, messages, files.
#![expect(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail as tests do")]

mod bad_input;
mod help;
mod package;
mod support;
