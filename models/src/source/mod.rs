//! Readers of weight files, for the packager only: what an enclave opens was converted outside.

pub mod gguf;
