//! From weight files to logits: one decoder for all models, described by data; text; packaging.

#[cfg(feature = "pack")]
pub mod architecture;
#[cfg(feature = "decoder")]
mod attention;
#[cfg(feature = "decoder")]
pub mod config;
#[cfg(feature = "decoder")]
pub mod decoder;
#[cfg(feature = "decoder")]
mod layout;
#[cfg(feature = "decoder")]
mod limits;
#[cfg(feature = "decoder")]
mod mlp;
#[cfg(feature = "pack")]
pub mod pack;
#[cfg(feature = "decoder")]
mod rope;
#[cfg(feature = "pack")]
pub mod source;
#[cfg(feature = "text")]
pub mod text;
#[cfg(feature = "decoder")]
pub mod weights;
