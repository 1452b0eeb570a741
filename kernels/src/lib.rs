//! The operations of a decoder, on every device we compute on.
//!
//! [`device`] says what a decoder may ask; [`mod@reference`] says in naive f32 Rust what each operation
//! means and is the oracle of all tests; [`cpu`] is the fast device of servers, `cuda` (by feature) that of cards; [`quant`] reads
//! weight groups; [`sampling`] says how a token is chosen; [`probe`] measures the machine's own limits and [`profile`] what a device does with its time.

mod arrived;
pub mod batch;
pub mod cpu;
#[cfg(any(feature = "cuda", feature = "cuda-host"))]
pub mod cuda;
pub mod device;
pub mod dtype;
mod memory;
pub mod probe;
pub mod profile;
pub mod quant;
pub mod reference;
pub mod sampling;

pub use arrived::Arrived;
pub use batch::{Batch, WantLogits};
pub use device::{Device, DeviceError};
pub use dtype::Dtype;
pub use sampling::{Draw, Draws, Edit};
