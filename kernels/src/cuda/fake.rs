//! NVIDIA's driver library, as the tests have it (`kernels/cuda/host/libcuda.cc`): the emulated kernels behind its functions.
#![expect(unsafe_code, reason = "a library is opened")]

use std::ffi::{CString, c_char, c_int, c_void};
use std::path::Path;

/// The library's folder, for the `LD_LIBRARY_PATH` of other programs.
pub fn fake_driver_folder() -> &'static Path {
    Path::new(LIBRARY).parent().unwrap_or_else(|| Path::new("/"))
}

/// Loads it into this process, where it stays: whoever asks for the driver's library from then on gets it.
///
/// # Panics
/// When it cannot be loaded.
pub fn load_fake_driver() {
    #[expect(clippy::expect_used, reason = "the build made the path and the library")]
    let path = CString::new(LIBRARY).expect("a path without zeros");
    // SAFETY: the path ends in a zero; the library's initialisers list kernels and do nothing else.
    let handle = unsafe { dlopen(path.as_ptr(), NOW) };
    assert!(!handle.is_null(), "{LIBRARY} cannot be loaded");
}

/// Where a driver expects a fat binary: the first word of one, as the fake looks no further.
pub static FAKE_IMAGE: &[u8] = &0xba55_ed50_u32.to_le_bytes();

const LIBRARY: &str = env!("CHRYSALIS_FAKE_CUDA");
/// `RTLD_NOW`.
const NOW: c_int = 2;

// SAFETY: as POSIX has it; the standard library links it.
unsafe extern "C" {
    fn dlopen(path: *const c_char, flags: c_int) -> *mut c_void;
}
