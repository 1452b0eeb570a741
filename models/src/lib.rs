//! From weight files to logits: one decoder for all models, described by data; text; packaging.

pub mod config;
#[cfg(feature = "decoder")]
pub mod decoder;
#[cfg(feature = "pack")]
pub mod pack;
#[cfg(feature = "pack")]
pub mod source;
#[cfg(feature = "text")]
pub mod text;
#[cfg(feature = "decoder")]
pub mod weights;
