//! From weight files to packages: strict readers, one table of architectures, files that are whole
//! or not there.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod architecture;
mod files;
mod folder;
mod fp8;
mod gguf;
mod gguf_writer;
mod pack;
#[path = "../support/mod.rs"]
mod support;
