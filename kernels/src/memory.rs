//! Memory of the CPU device: aligned to cache lines, zeroed at birth, wiped at death, on huge pages
//! where it is large.
#![expect(unsafe_code, reason = "an aligned, page-backed slice cannot be had from Vec")]

use std::alloc::Layout;
use std::fmt;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};

use crate::device::DeviceError;

/// Types for which every bit pattern, zero included, is a value.
///
/// # Safety
/// The implementor is a plain number without padding.
pub(crate) unsafe trait Plain: Copy + Send + Sync + 'static {}

// SAFETY: a plain number.
unsafe impl Plain for u8 {}
// SAFETY: a plain number.
unsafe impl Plain for u16 {}
// SAFETY: a plain number.
unsafe impl Plain for i32 {}
// SAFETY: a plain number.
unsafe impl Plain for f32 {}

/// A slice that starts on a cache line. Never printed.
pub(crate) struct Aligned<T: Plain> {
    ptr: NonNull<T>,
    len: usize,
    owned: PhantomData<T>,
}

// SAFETY: it owns plain numbers, as `Box<[T]>` does.
unsafe impl<T: Plain> Send for Aligned<T> {}
// SAFETY: shared access only reads.
unsafe impl<T: Plain> Sync for Aligned<T> {}

impl<T: Plain> Aligned<T> {
    /// `len` zeros, on huge pages where there are many.
    pub(crate) fn zeroed(what: &'static str, len: usize) -> Result<Self, DeviceError> {
        Self::reserve(what, len, true)
    }

    /// `len` zeros of which only a part will be used, here and there: no page is filled for its
    /// neighbours' sake. The first answer of a cold KV cache comes in 0.1 s instead of 0.55.
    pub(crate) fn zeroed_sparse(what: &'static str, len: usize) -> Result<Self, DeviceError> {
        Self::reserve(what, len, false)
    }

    fn reserve(what: &'static str, len: usize, huge: bool) -> Result<Self, DeviceError> {
        let too_large = || DeviceError::OutOfMemory { what, bytes: usize::MAX };
        let bytes = len.checked_mul(size_of::<T>()).ok_or_else(too_large)?;
        let ptr = match bytes {
            0 => Some(NonNull::<Line>::dangling().cast()),
            MAP_MIN.. => map(bytes, huge),
            _ => {
                let layout = layout(bytes).ok_or_else(too_large)?;
                // SAFETY: the layout's size is not zero.
                NonNull::new(unsafe { std::alloc::alloc_zeroed(layout) })
            }
        };
        let ptr = ptr.ok_or(DeviceError::OutOfMemory { what, bytes })?;
        Ok(Self { ptr: ptr.cast(), len, owned: PhantomData })
    }
}

impl<T: Plain> Deref for Aligned<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: `zeroed` reserved `len` values, zero is a value, and `self` owns them.
        unsafe { std::slice::from_raw_parts(self.ptr.as_ptr(), self.len) }
    }
}

impl<T: Plain> DerefMut for Aligned<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as in `deref`, and `self` is borrowed alone.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.as_ptr(), self.len) }
    }
}

impl<T: Plain> Drop for Aligned<T> {
    fn drop(&mut self) {
        let bytes = self.len * size_of::<T>();
        let start = self.ptr.as_ptr().cast::<u8>();
        // SAFETY: `bytes` bytes were reserved at `start`, and zero is a value of every `T`.
        unsafe { start.write_bytes(0, bytes) };
        // The bytes are about to be freed, so a compiler may drop the write: this keeps it.
        std::hint::black_box(&self[..]);
        if bytes >= MAP_MIN {
            // SAFETY: `map` made exactly this mapping, and nothing borrows it any more.
            let unmapped = unsafe { munmap(start.cast(), bytes) };
            debug_assert!(unmapped.is_ok(), "an own mapping is unmapped");
        } else if let Some(layout) = layout(bytes).filter(|_| bytes > 0) {
            // SAFETY: `zeroed` allocated it with this layout.
            unsafe { std::alloc::dealloc(start, layout) };
        }
    }
}

impl<T: Plain> fmt::Debug for Aligned<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Aligned({} values)", self.len)
    }
}

/// A cache line: what a dangling pointer to no values is aligned to.
#[repr(align(64))]
struct Line;

fn layout(bytes: usize) -> Option<Layout> {
    Layout::from_size_align(bytes, 64).ok()
}

fn map(bytes: usize, huge: bool) -> Option<NonNull<u8>> {
    let (protection, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE);
    // SAFETY: a new anonymous mapping at an address of the kernel's choice aliases nothing.
    let start = unsafe { mmap_anonymous(std::ptr::null_mut(), bytes, protection, flags) }.ok()?;
    // Huge pages are a wish; without them everything is right, only slower.
    let advice = if huge { Advice::LinuxHugepage } else { Advice::LinuxNoHugepage };
    // SAFETY: the range is the mapping just made; the advice does not change its contents.
    let _wish = unsafe { madvise(start, bytes, advice) };
    NonNull::new(start.cast())
}

/// From here on memory comes in pages of its own.
const MAP_MIN: usize = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_aligned_and_zero_at_every_size() {
        for len in [0, 1, 63, 64, 1000, (1 << 20) - 1, 1 << 20, (3 << 20) + 5] {
            for reserve in [Aligned::<u8>::zeroed, Aligned::zeroed_sparse] {
                let mut memory = reserve("test", len).unwrap();
                assert_eq!(memory.len(), len);
                assert!(memory.as_ptr().addr().is_multiple_of(64));
                assert!(memory.iter().all(|x| *x == 0));
                memory.fill(1);
            }
        }
        assert!(Aligned::<f32>::zeroed("test", usize::MAX / 2).is_err());
    }
}
