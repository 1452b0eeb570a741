//! Every way to compute on this machine, against the reference and against itself: instruction sets,
//! widths of activations, batches, chunks, numbers of threads.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

#[cfg(feature = "cuda-host")]
mod card;
mod common;
#[cfg(feature = "cuda-host")]
mod cuda;
#[cfg(feature = "cuda-host")]
mod cuda_attention;
#[cfg(feature = "cuda-host")]
mod cuda_decode;
#[cfg(feature = "cuda-host")]
mod cuda_layers;
#[cfg(feature = "cuda-host")]
mod cuda_products;
#[cfg(feature = "cuda-host")]
mod cuda_rows;
mod linear;
mod operations;
mod profile;
mod sampling;
