//! The driver's objects, each given back on drop, and its calls as results. Everything here needs its context to be current on the
//! thread; [`Context::enter`] sees to it.
#![expect(unsafe_code, reason = "the driver is a C library")]

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::ptr;

use cudarc::driver::sys;
use zeroize::Zeroize as _;

use super::error::CardError;

/// The answer of a call, as a result.
pub(super) fn check(call: &'static str, code: sys::CUresult) -> Result<(), CardError> {
    if code == sys::CUresult::CUDA_SUCCESS {
        return Ok(());
    }
    Err(CardError::Call { call, code: format!("{code:?}") })
}

/// A card of this machine, by what its driver says.
#[derive(Clone, Debug)]
pub struct CardInfo {
    /// The vendor's name.
    pub name: String,
    /// Compute capability, major and minor.
    pub capability: (i32, i32),
    /// Multiprocessors.
    pub multiprocessors: i32,
    /// Bytes of memory in all.
    pub memory: usize,
    /// The CUDA version of the driver, as 13000.
    pub driver: i32,
    device: c_int,
}

impl CardInfo {
    /// Card `number`, counted from zero.
    ///
    /// # Errors
    /// [`CardError`] says what is missing.
    pub fn of(number: i32) -> Result<Self, CardError> {
        // SAFETY: opening the library runs its initialisers, which is what a driver is opened for.
        if !unsafe { sys::is_culib_present() } {
            return Err(CardError::NoDriver);
        }
        // SAFETY: no condition; the flags have to be zero.
        let begun = unsafe { sys::cuInit(0) };
        if begun == sys::CUresult::CUDA_ERROR_NO_DEVICE {
            return Err(CardError::NoCard { found: 0, wanted: number });
        }
        check("cuInit", begun)?;
        let (mut driver, mut found, mut device, mut memory) = (0, 0, 0, 0);
        // SAFETY: the place is alive.
        check("cuDriverGetVersion", unsafe { sys::cuDriverGetVersion(&raw mut driver) })?;
        // SAFETY: the place is alive.
        check("cuDeviceGetCount", unsafe { sys::cuDeviceGetCount(&raw mut found) })?;
        if !(0..found).contains(&number) {
            return Err(CardError::NoCard { found, wanted: number });
        }
        // SAFETY: the place is alive.
        check("cuDeviceGet", unsafe { sys::cuDeviceGet(&raw mut device, number) })?;
        // SAFETY: the place is alive, the device is the driver's.
        check("cuDeviceTotalMem", unsafe { sys::cuDeviceTotalMem_v2(&raw mut memory, device) })?;
        let mut name: [c_char; 128] = [0; 128];
        // SAFETY: the place is this long.
        let named = unsafe { sys::cuDeviceGetName(name.as_mut_ptr(), 127, device) };
        check("cuDeviceGetName", named)?;
        // SAFETY: the last byte is still zero.
        let name = unsafe { CStr::from_ptr(name.as_ptr()) }.to_string_lossy().into_owned();
        let attribute = |which| {
            let mut value = 0;
            // SAFETY: the place is alive, the device is the driver's.
            let code = unsafe { sys::cuDeviceGetAttribute(&raw mut value, which, device) };
            check("cuDeviceGetAttribute", code).map(|()| value)
        };
        use sys::CUdevice_attribute as Attribute;
        let capability = (
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        );
        if capability.0 < 8 {
            let (major, minor) = capability;
            return Err(CardError::Capability { name, major, minor });
        }
        let multiprocessors = attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?;
        Ok(Self { name, capability, multiprocessors, memory, driver, device })
    }
}

/// The primary context of a card.
#[derive(Debug)]
pub(super) struct Context {
    raw: sys::CUcontext,
    device: c_int,
}

impl Context {
    pub(super) fn new(info: &CardInfo) -> Result<Self, CardError> {
        let mut raw = ptr::null_mut();
        // SAFETY: the place is alive, the device is the driver's.
        let code = unsafe { sys::cuDevicePrimaryCtxRetain(&raw mut raw, info.device) };
        check("cuDevicePrimaryCtxRetain", code)?;
        let context = Self { raw, device: info.device };
        context.enter()?;
        Ok(context)
    }

    /// Makes it this thread's.
    pub(super) fn enter(&self) -> Result<(), CardError> {
        // SAFETY: the context is retained as long as `self` lives.
        check("cuCtxSetCurrent", unsafe { sys::cuCtxSetCurrent(self.raw) })
    }

    /// Free bytes of the card.
    pub(super) fn free(&self) -> Result<usize, CardError> {
        self.enter()?;
        let (mut free, mut total) = (0, 0);
        // SAFETY: both places are alive.
        check("cuMemGetInfo", unsafe { sys::cuMemGetInfo_v2(&raw mut free, &raw mut total) })?;
        Ok(free)
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: it was retained once, and everything in it is gone. A failure leaves nothing to do.
        unsafe { sys::cuDevicePrimaryCtxRelease_v2(self.device) };
    }
}

/// The one queue.
#[derive(Debug)]
pub(super) struct Stream(pub(super) sys::CUstream);

impl Stream {
    pub(super) fn new() -> Result<Self, CardError> {
        let mut raw = ptr::null_mut();
        let flags = sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
        // SAFETY: the place is alive.
        check("cuStreamCreate", unsafe { sys::cuStreamCreate(&raw mut raw, flags) })?;
        Ok(Self(raw))
    }

    pub(super) fn wait(&self) -> Result<(), CardError> {
        // SAFETY: the stream lives as long as `self`.
        check("cuStreamSynchronize", unsafe { sys::cuStreamSynchronize(self.0) })
    }

    pub(super) fn zero(&self, address: u64, bytes: usize) -> Result<(), CardError> {
        // SAFETY: the callers give ranges of the one allocation; device memory is never behind a reference.
        check("cuMemsetD8Async", unsafe { sys::cuMemsetD8Async(address, 0, bytes, self.0) })
    }
}

impl Stream {
    /// Copies within the card.
    pub(super) fn copy(&self, to: u64, from: u64, bytes: usize) -> Result<(), CardError> {
        // SAFETY: the caller gives two ranges of the one allocation that do not meet.
        check("cuMemcpyDtoDAsync", unsafe { sys::cuMemcpyDtoDAsync_v2(to, from, bytes, self.0) })
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // SAFETY: it is destroyed once.
        unsafe { sys::cuStreamDestroy_v2(self.0) };
    }
}

/// The kernels.
#[derive(Debug)]
pub(super) struct Module(sys::CUmodule);

impl Module {
    /// Loads a fat binary.
    pub(super) fn new(image: &'static [u8], driver: i32) -> Result<Self, CardError> {
        let mut raw = ptr::null_mut();
        // SAFETY: the place is alive, and the image is a fat binary, which says how long it is.
        let code = unsafe { sys::cuModuleLoadData(&raw mut raw, image.as_ptr().cast()) };
        match check("cuModuleLoadData", code) {
            Err(CardError::Call { code, .. }) if driver < BUILT_WITH => {
                Err(CardError::OldDriver { version: driver, code })
            }
            loaded => loaded.map(|()| Self(raw)),
        }
    }

    /// Nothing where it has no kernel of this name.
    pub(super) fn function(&self, name: &str) -> Result<Option<Function>, CardError> {
        let Ok(name) = CString::new(name) else {
            return Ok(None);
        };
        let mut raw = ptr::null_mut();
        // SAFETY: the place is alive, the name ends in a zero.
        let code = unsafe { sys::cuModuleGetFunction(&raw mut raw, self.0, name.as_ptr()) };
        if code == sys::CUresult::CUDA_ERROR_NOT_FOUND {
            return Ok(None);
        }
        check("cuModuleGetFunction", code)?;
        Ok(Some(Function(raw)))
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        // SAFETY: it is unloaded once; no kernel of it runs, as the stream was waited for.
        unsafe { sys::cuModuleUnload(self.0) };
    }
}

/// A kernel of a module that is loaded.
#[derive(Clone, Copy, Debug)]
pub(super) struct Function(pub(super) sys::CUfunction);

impl Function {
    pub(super) fn attribute(&self, which: sys::CUfunction_attribute) -> Result<i32, CardError> {
        let mut value = 0;
        // SAFETY: the place is alive, and so is the module.
        let code = unsafe { sys::cuFuncGetAttribute(&raw mut value, which, self.0) };
        check("cuFuncGetAttribute", code).map(|()| value)
    }

    /// Lets its blocks have so much dynamic shared memory.
    pub(super) fn allow_shared(&self, bytes: u32) -> Result<(), CardError> {
        let which = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        let bytes = i32::try_from(bytes).unwrap_or(i32::MAX);
        // SAFETY: the module is loaded.
        check("cuFuncSetAttribute", unsafe { sys::cuFuncSetAttribute(self.0, which, bytes) })
    }

    /// Bytes of its one argument; drivers before CUDA 12.4 cannot say.
    pub(super) fn params(&self, driver: i32) -> Result<Option<usize>, CardError> {
        if driver < 12_040 {
            return Ok(None);
        }
        let (mut offset, mut bytes) = (0, 0);
        // SAFETY: both places are alive, and so is the module.
        let code = unsafe { sys::cuFuncGetParamInfo(self.0, 0, &raw mut offset, &raw mut bytes) };
        check("cuFuncGetParamInfo", code).map(|()| Some(bytes))
    }
}

/// Memory of the card.
#[derive(Debug)]
pub(super) struct Allocation(pub(super) u64);

impl Allocation {
    pub(super) fn new(bytes: usize) -> Result<Self, CardError> {
        let mut address = 0;
        // SAFETY: the place is alive.
        check("cuMemAlloc", unsafe { sys::cuMemAlloc_v2(&raw mut address, bytes) })?;
        Ok(Self(address))
    }
}

impl Drop for Allocation {
    fn drop(&mut self) {
        // SAFETY: it is freed once; nothing uses it any more, as the stream was waited for.
        unsafe { sys::cuMemFree_v2(self.0) };
    }
}

/// Memory of the host that the card copies from and to by itself; wiped on drop.
#[derive(Debug)]
pub(super) struct Pinned {
    start: *mut u8,
    len: usize,
}

// SAFETY: it owns plain bytes, and is borrowed like any.
unsafe impl Send for Pinned {}

impl Pinned {
    /// Zeros.
    pub(super) fn new(len: usize) -> Result<Self, CardError> {
        let mut start: *mut c_void = ptr::null_mut();
        // SAFETY: the place is alive.
        check("cuMemHostAlloc", unsafe { sys::cuMemHostAlloc(&raw mut start, len, 0) })?;
        let start = start.cast::<u8>();
        // SAFETY: the allocation has this many bytes.
        unsafe { start.write_bytes(0, len) };
        Ok(Self { start, len })
    }

    /// Its bytes. Whoever takes them has waited for the copies that were begun.
    pub(super) fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: the allocation has this many bytes, all written once; nobody else has them, by the condition above.
        unsafe { std::slice::from_raw_parts_mut(self.start, self.len) }
    }

    /// Enqueues a copy of its first bytes to the card.
    pub(super) fn send(&self, to: u64, bytes: usize, stream: &Stream) -> Result<(), CardError> {
        assert!(bytes <= self.len, "{bytes} bytes of {}", self.len);
        let from = self.start.cast_const().cast();
        // SAFETY: `from` has as many bytes, and whoever sends keeps them until the copy is over; `to` is a range of the one
        // allocation.
        let code = unsafe { sys::cuMemcpyHtoDAsync_v2(to, from, bytes, stream.0) };
        check("cuMemcpyHtoDAsync", code)
    }

    /// Enqueues a copy from the card to its first bytes.
    pub(super) fn fetch(&self, from: u64, bytes: usize, stream: &Stream) -> Result<(), CardError> {
        assert!(bytes <= self.len, "{bytes} bytes of {}", self.len);
        // SAFETY: the place has as many bytes, which nobody reads until the copy is over; `from` is a range of the one
        // allocation.
        let code = unsafe { sys::cuMemcpyDtoHAsync_v2(self.start.cast(), from, bytes, stream.0) };
        check("cuMemcpyDtoHAsync", code)
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        self.bytes().zeroize();
        // SAFETY: it is freed once, and no copy of it is under way, as the stream was waited for.
        unsafe { sys::cuMemFreeHost(self.start.cast()) };
    }
}

/// A mark in the queue.
#[derive(Debug)]
pub(super) struct Event(sys::CUevent);

// SAFETY: the driver's objects may be used by any thread that has their context.
unsafe impl Send for Event {}

impl Event {
    pub(super) fn new() -> Result<Self, CardError> {
        let mut raw = ptr::null_mut();
        let flags = sys::CUevent_flags::CU_EVENT_DISABLE_TIMING as u32;
        // SAFETY: the place is alive.
        check("cuEventCreate", unsafe { sys::cuEventCreate(&raw mut raw, flags) })?;
        Ok(Self(raw))
    }

    pub(super) fn record(&self, stream: &Stream) -> Result<(), CardError> {
        // SAFETY: both are alive.
        check("cuEventRecord", unsafe { sys::cuEventRecord(self.0, stream.0) })
    }

    /// Whether the queue has passed it.
    pub(super) fn is_over(&self) -> Result<bool, CardError> {
        // SAFETY: it is alive.
        let code = unsafe { sys::cuEventQuery(self.0) };
        if code == sys::CUresult::CUDA_ERROR_NOT_READY {
            return Ok(false);
        }
        check("cuEventQuery", code).map(|()| true)
    }

    pub(super) fn wait(&self) -> Result<(), CardError> {
        // SAFETY: it is alive.
        check("cuEventSynchronize", unsafe { sys::cuEventSynchronize(self.0) })
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: it is destroyed once.
        unsafe { sys::cuEventDestroy_v2(self.0) };
    }
}

/// CUDA's version of the compiler, as the driver numbers them.
const BUILT_WITH: i32 = 13_000;
