//! Memory of the CPU device: aligned to cache lines, zeroed at birth, wiped at death, on huge pages
//! where it is large.
#![expect(unsafe_code, reason = "an aligned, page-backed slice cannot be had from Vec")]

use std::alloc::Layout;
use std::fmt;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};

use zeroize::{DefaultIsZeroes, Zeroize};

use crate::device::DeviceError;

/// Types for which every bit pattern, zero included, is a value.
///
/// # Safety
/// The implementor is a plain number without padding.
pub(crate) unsafe trait Plain: DefaultIsZeroes + Send + Sync + 'static {}

// SAFETY: a plain number.
unsafe impl Plain for u8 {}
// SAFETY: a plain number.
unsafe impl Plain for u16 {}
// SAFETY: a plain number.
unsafe impl Plain for i32 {}
// SAFETY: a plain number.
unsafe impl Plain for f32 {}

/// The same memory as bytes.
pub(crate) fn bytes_of<T: Plain>(values: &[T]) -> &[u8] {
    let (start, len) = (values.as_ptr().cast::<u8>(), size_of_val(values));
    // SAFETY: plain numbers have no padding, so each of their bytes may be read; the borrow goes on.
    unsafe { std::slice::from_raw_parts(start, len) }
}

/// A slice that starts on a cache line. Never printed.
pub(crate) struct Aligned<T: Plain> {
    ptr: NonNull<T>,
    len: usize,
    home: Home,
    /// Nothing is left to wipe.
    wiped: bool,
    owned: PhantomData<T>,
}

/// Where the bytes of an [`Aligned`] come from, and go back to.
enum Home {
    Nowhere,
    Heap(Layout),
    Mapping,
    Region { _kept: Arc<Region> },
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

    /// No values.
    pub(crate) fn empty() -> Self {
        let ptr = NonNull::<Line>::dangling().cast();
        Self { ptr, len: 0, home: Home::Nowhere, wiped: true, owned: PhantomData }
    }

    fn reserve(what: &'static str, len: usize, huge: bool) -> Result<Self, DeviceError> {
        let bytes = Self::bytes(what, len)?;
        let out_of_memory = || DeviceError::OutOfMemory { what, bytes, left: None };
        let (ptr, home) = match bytes {
            0 => (NonNull::<Line>::dangling().cast(), Home::Nowhere),
            MAP_MIN.. => (map(bytes, huge).ok_or_else(out_of_memory)?, Home::Mapping),
            _ => {
                let layout = Layout::from_size_align(bytes, LINE).map_err(|_| out_of_memory())?;
                // SAFETY: the layout's size is not zero.
                let ptr = NonNull::new(unsafe { std::alloc::alloc_zeroed(layout) });
                (ptr.ok_or_else(out_of_memory)?, Home::Heap(layout))
            }
        };
        Ok(Self { ptr: ptr.cast(), len, home, wiped: false, owned: PhantomData })
    }

    fn bytes(what: &'static str, len: usize) -> Result<usize, DeviceError> {
        let too_large = DeviceError::OutOfMemory { what, bytes: usize::MAX, left: None };
        len.checked_mul(size_of::<T>())
            .filter(|bytes| *bytes <= isize::MAX as usize)
            .ok_or(too_large)
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
        if !self.wiped {
            // SAFETY: `bytes` bytes were reserved at `start`, and zero is a value of every `T`.
            unsafe { start.write_bytes(0, bytes) };
            // The bytes are about to be freed, so a compiler may drop the write: this keeps it.
            std::hint::black_box(&self[..]);
        }
        match self.home {
            // A region goes with the last of those that lie in it.
            Home::Nowhere | Home::Region { .. } => {}
            // SAFETY: `reserve` allocated it with this layout.
            Home::Heap(layout) => unsafe { std::alloc::dealloc(start, layout) },
            Home::Mapping => unmap(start, bytes),
        }
    }
}

/// Memory for many slices that are read one after the other: huge pages, which hardly any matrix
/// fills alone. A core reads them a third faster than small pages, at whose ends its prefetchers stop.
pub(crate) struct Arena {
    /// The region that is being filled, and how many bytes of it are taken.
    current: Mutex<(Arc<Region>, usize)>,
}

/// A mapping that slices of an [`Arena`] share.
struct Region {
    start: NonNull<u8>,
    bytes: usize,
}

// SAFETY: it owns its mapping, of which slices use disjoint parts.
unsafe impl Send for Region {}
// SAFETY: shared access only reads where it is.
unsafe impl Sync for Region {}

impl Arena {
    pub(crate) fn new() -> Self {
        let empty = Region { start: NonNull::<Line>::dangling().cast(), bytes: 0 };
        Self { current: Mutex::new((Arc::new(empty), 0)) }
    }

    /// `len` zeros, behind those that were asked for before.
    pub(crate) fn zeroed<T: Plain>(
        &self,
        what: &'static str,
        len: usize,
    ) -> Result<Aligned<T>, DeviceError> {
        let bytes = Aligned::<T>::bytes(what, len)?;
        let (region, taken) = &mut *self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if bytes > region.bytes - *taken {
            let whole = bytes.max(REGION_MIN).next_multiple_of(HUGE_PAGE);
            let start = map(whole, true).ok_or(DeviceError::OutOfMemory {
                what,
                bytes: whole,
                left: None,
            })?;
            (*region, *taken) = (Arc::new(Region { start, bytes: whole }), 0);
        }
        // SAFETY: `taken + bytes` lies within the region.
        let ptr = unsafe { region.start.add(*taken) };
        *taken = (*taken + bytes).next_multiple_of(LINE).min(region.bytes);
        let home = Home::Region { _kept: Arc::clone(region) };
        Ok(Aligned { ptr: ptr.cast(), len, home, wiped: false, owned: PhantomData })
    }
}

impl fmt::Debug for Arena {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Arena")
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        if self.bytes > 0 {
            unmap(self.start.as_ptr(), self.bytes);
        }
    }
}

impl<T: Plain> fmt::Debug for Aligned<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Aligned({} values)", self.len)
    }
}

/// Gives `values` a length. Where that takes other memory, what was in the old is wiped, not moved.
pub(crate) fn resize<T: Plain>(values: &mut Vec<T>, len: usize) {
    if values.capacity() < len {
        values.zeroize();
        *values = Vec::with_capacity(len);
    }
    values.resize(len, T::default());
}

/// Memory in equal parts that several threads fill, each part once.
pub(crate) struct Parts<T: Plain> {
    memory: Aligned<T>,
    part_len: usize,
    taken: Vec<AtomicBool>,
}

impl<T: Plain> Parts<T> {
    /// `count` parts of `part_len` zeros.
    pub(crate) fn zeroed(
        arena: &Arena,
        what: &'static str,
        count: usize,
        part_len: usize,
    ) -> Result<Self, DeviceError> {
        let too_large = DeviceError::OutOfMemory { what, bytes: usize::MAX, left: None };
        let len = count.checked_mul(part_len).ok_or(too_large)?;
        let memory = arena.zeroed(what, len)?;
        Ok(Self { memory, part_len, taken: (0..count).map(|_| AtomicBool::new(false)).collect() })
    }

    /// The part `index`: nothing when it was taken before, or is none.
    #[expect(clippy::mut_from_ref, reason = "no part is lent twice: `taken` is never reset")]
    pub(crate) fn take(&self, index: usize) -> Option<&mut [T]> {
        if self.taken.get(index)?.swap(true, Ordering::Relaxed) {
            return None;
        }
        let start = self.memory.ptr.as_ptr().wrapping_add(index * self.part_len);
        // SAFETY: `zeroed` reserved `part_len` values for every `index` below the length of `taken`, zero is a value, and
        // the swap lets one caller ever have this part; `memory` itself is not touched before it is whole and owned.
        Some(unsafe { std::slice::from_raw_parts_mut(start, self.part_len) })
    }

    /// All of it.
    pub(crate) fn whole(mut self) -> Aligned<T> {
        std::mem::replace(&mut self.memory, Aligned::empty())
    }
}

impl<T: Plain> Drop for Parts<T> {
    fn drop(&mut self) {
        // Pages of a part that nobody took were never touched, and there may be more than there is memory.
        let parts = self.memory.chunks_exact_mut(self.part_len.max(1)).zip(&self.taken);
        parts
            .filter(|(_, taken)| taken.load(Ordering::Relaxed))
            .for_each(|(part, _)| part.zeroize());
        self.memory.wiped = true;
    }
}

/// A cache line: what a dangling pointer to no values is aligned to.
#[repr(align(64))]
struct Line;

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

/// Ends a mapping that [`map`] made and nothing borrows any more.
fn unmap(start: *mut u8, bytes: usize) {
    // SAFETY: as the comment of this function says.
    let unmapped = unsafe { munmap(start.cast(), bytes) };
    debug_assert!(unmapped.is_ok(), "an own mapping is unmapped");
}

/// A cache line.
const LINE: usize = 64;
const HUGE_PAGE: usize = 2 << 20;
/// Bytes of a region. What stays unused at its end is never touched, and so costs nothing.
const REGION_MIN: usize = 32 << 20;
/// From here on memory comes in pages of its own.
const MAP_MIN: usize = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_of_an_arena_do_not_overlap_and_outlive_it() {
        let arena = Arena::new();
        let sizes = [1usize, 64, 0, 1000, REGION_MIN - 5000, 7, REGION_MIN + 1, 3];
        let mut slices: Vec<Aligned<u8>> =
            sizes.iter().map(|len| arena.zeroed("test", *len).unwrap()).collect();
        drop(arena);
        for (value, slice) in slices.iter_mut().enumerate() {
            assert!(slice.as_ptr().addr().is_multiple_of(LINE));
            assert!(slice.iter().all(|x| *x == 0));
            slice.fill(value as u8 + 1);
        }
        for (value, slice) in slices.iter().enumerate() {
            assert_eq!(slice.len(), sizes[value]);
            assert!(slice.iter().all(|x| *x == value as u8 + 1));
        }
        assert!(Arena::new().zeroed::<f32>("test", usize::MAX / 2).is_err());
    }

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

    #[test]
    fn a_part_is_lent_once_and_threads_fill_the_whole() {
        let parts = Parts::<u16>::zeroed(&Arena::new(), "test", 100, 7).unwrap();
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    for index in 0..100 {
                        if let Some(part) = parts.take(index) {
                            part.iter_mut().for_each(|x| *x += index as u16);
                        }
                    }
                });
            }
        });
        assert!(parts.take(0).is_none() && parts.take(100).is_none());
        let whole = parts.whole();
        assert!(whole.iter().enumerate().all(|(i, x)| usize::from(*x) == i / 7));
        assert!(Parts::<f32>::zeroed(&Arena::new(), "test", usize::MAX, 2).is_err());
    }
}
