//! The CUDA device: our own kernels (`kernels/cuda/*.cu`), compiled when the crate is built, embedded, and so measured with the
//! binary that carries them. Nothing is compiled at run time, and no library of the vendor's but the driver is needed.
//!
//! [`Cuda`] is the device over any [`Driver`]. `Emulated` (feature `cuda-host`) runs the same sources on the host, for tests.
//! [`Card`] is the driver over a card.

mod attention;
mod card;
mod counts;
mod device;
mod driver;
#[cfg(feature = "cuda-host")]
mod emulated;
mod exact;
#[cfg(feature = "cuda-host")]
mod fake;
mod few;
mod gated;
mod graphs;
#[cfg(all(test, feature = "cuda-host"))]
mod hopper_checks;
#[cfg(all(test, feature = "cuda-host"))]
mod layout;
mod params;
mod products;
mod residual;
mod rows;
mod sampling;
mod space;
mod spans;
mod step;
#[cfg(all(test, feature = "cuda-host"))]
mod tensor_checks;
#[cfg(all(test, feature = "cuda-host"))]
mod tile_checks;
mod upload;
mod weights;

pub use card::{Card, CardError, CardGraph, CardInfo, CardMemory, CardOptions};
pub use device::{Buffer, Cuda, Rope, Vector};
pub use driver::{Driver, Launch, Params};
#[cfg(feature = "cuda-host")]
pub use emulated::{Emulated, Graph, Memory};
#[cfg(feature = "cuda-host")]
pub use fake::{FAKE_IMAGE, fake_driver_folder, load_fake_driver};
pub use products::ProductLimits;
pub use step::{Cache, Step};
pub use upload::Pending;
pub use weights::Matrix;

/// The kernels, for every architecture that they were built for: the fat binary that the driver takes.
#[cfg(feature = "cuda")]
pub static IMAGE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/kernels.fatbin"));

/// The architectures that [`IMAGE`] has machine code for, as they were asked for.
#[cfg(feature = "cuda")]
pub const IMAGE_ARCHS: &str = env!("CHRYSALIS_CUDA_ARCHS");

/// Whether there is machine code for this architecture. What runs on the host has all kernels.
fn image_has(arch: &str) -> bool {
    #[cfg(feature = "cuda")]
    let archs = IMAGE_ARCHS;
    #[cfg(not(feature = "cuda"))]
    let archs = arch;
    archs.split(',').any(|other| other == arch)
}
