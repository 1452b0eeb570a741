//! A card that is not there: the kernels' sources compiled for the host, run block after block (`cuda/host`). For tests only:
//! it is slow, and knows nothing of timing, caches or races between blocks.
#![expect(unsafe_code, reason = "kernels are foreign code that takes addresses")]

use std::alloc::{self, Layout};
use std::fmt;
use std::ptr::NonNull;

use super::driver::{Driver, Params};
use crate::device::DeviceError;

/// The driver of no card.
#[derive(Clone, Copy, Debug, Default)]
pub struct Emulated;

/// Memory of the host, filled with ones at birth (as f32, NaN: what nobody wrote shows), wiped at death.
pub struct Memory {
    start: NonNull<u8>,
    layout: Layout,
    len: usize,
}

// SAFETY: it owns plain bytes; only kernels and copies touch them, which the device starts one after the other.
unsafe impl Send for Memory {}
// SAFETY: as above: nothing hands out a reference to the bytes.
unsafe impl Sync for Memory {}

impl Memory {
    fn part(&self, offset: usize, len: usize) -> Result<NonNull<u8>, DeviceError> {
        if offset.checked_add(len).is_none_or(|end| end > self.len) {
            let found = format!("{len} bytes from {offset} on, of {}", self.len);
            return Err(DeviceError::Failed(found));
        }
        // SAFETY: within the allocation, by the check above.
        Ok(unsafe { self.start.add(offset) })
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: the allocation is alive and this long, and nobody else has it.
        unsafe { self.start.as_ptr().write_bytes(0, self.len) };
        // SAFETY: it came from the same allocator with this layout.
        unsafe { alloc::dealloc(self.start.as_ptr(), self.layout) };
    }
}

impl Driver for Emulated {
    type Memory = Memory;

    fn describe(&self) -> String {
        "CUDA kernels, emulated on one thread of the host".to_owned()
    }

    fn reserve(&self, what: &'static str, bytes: usize) -> Result<Memory, DeviceError> {
        let error = || DeviceError::OutOfMemory { what, bytes };
        let layout = Layout::from_size_align(bytes.max(1), ALIGN).map_err(|_| error())?;
        // SAFETY: the layout has at least one byte.
        let start = NonNull::new(unsafe { alloc::alloc(layout) }).ok_or_else(error)?;
        // SAFETY: the allocation has this many bytes.
        unsafe { start.as_ptr().write_bytes(POISON, bytes) };
        Ok(Memory { start, layout, len: bytes })
    }

    fn address(&self, memory: &Memory) -> u64 {
        memory.start.as_ptr().expose_provenance() as u64
    }

    fn write(&self, memory: &Memory, offset: usize, bytes: &[u8]) -> Result<(), DeviceError> {
        let to = memory.part(offset, bytes.len())?;
        // SAFETY: `part` has checked the length; device memory is never behind a reference.
        unsafe { to.as_ptr().copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
        Ok(())
    }

    fn zero(&self, memory: &Memory, bytes: usize) -> Result<(), DeviceError> {
        let start = memory.part(0, bytes)?;
        // SAFETY: `part` has checked the length.
        unsafe { start.as_ptr().write_bytes(0, bytes) };
        Ok(())
    }

    fn read(&self, memory: &Memory, offset: usize, out: &mut [u8]) -> Result<(), DeviceError> {
        let from = memory.part(offset, out.len())?;
        // SAFETY: `part` has checked the length; device memory is never behind a reference.
        unsafe { from.as_ptr().copy_to_nonoverlapping(out.as_mut_ptr(), out.len()) };
        Ok(())
    }

    // SAFETY: the trait's condition is all that it needs: the addresses are the host's.
    unsafe fn launch<P: Params>(
        &self,
        kernel: &str,
        grid: [u32; 3],
        threads: u32,
        shared: u32,
        params: &P,
    ) -> Result<(), DeviceError> {
        let (name, args) = (kernel.as_ptr(), std::ptr::from_ref(params).cast());
        // SAFETY: name and params are as long as said, and the table's entry has the struct's size; what the addresses in it
        // lead to is the caller's promise.
        let code = unsafe {
            let block = [threads, shared];
            chrysalis_emulate(name, kernel.len(), &grid, &block, args, size_of::<P>())
        };
        match code {
            0 => Ok(()),
            1 => Err(DeviceError::Failed(format!("there is no kernel {kernel}"))),
            _ => Err(DeviceError::Failed(format!(
                "{kernel} does not take {threads} threads, {} bytes and {shared} of shared memory",
                size_of::<P>()
            ))),
        }
    }

    fn finish(&self) -> Result<(), DeviceError> {
        Ok(())
    }
}

// SAFETY: as `cuda/host/emulate.cc` defines it.
unsafe extern "C" {
    fn chrysalis_emulate(
        name: *const u8,
        name_len: usize,
        grid: *const [u32; 3],
        block: *const [u32; 2],
        params: *const u8,
        params_len: usize,
    ) -> i32;
}

/// What CUDA's allocations are aligned to.
const ALIGN: usize = 256;
const POISON: u8 = 0xff;

impl fmt::Debug for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Memory({} bytes)", self.len)
    }
}
