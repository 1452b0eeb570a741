//! The driver over a card: NVIDIA's driver library, found at run time, and nothing else of the vendor's.
//!
//! All memory is one allocation, planned by [`arena`] and made when the card is opened; copies go through pinned buffers
//! ([`staging`]); there is one stream.

mod arena;
mod error;
mod graph;
mod raw;
mod staging;

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Instant;

use cudarc::driver::sys;

use self::arena::Arena;
pub use self::error::CardError;
pub use self::graph::CardGraph;
pub use self::raw::CardInfo;
use self::raw::{Allocation, Context, Function, Module, Pinned, Stream, check};
use self::staging::{PIECE, Staging};
use super::counts::Counts;
use super::driver::{Driver, Launch, Params};
use crate::device::{Crossings, DeviceError};

/// Which card, and how much of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CardOptions {
    /// Counted from zero, as the driver counts.
    pub number: i32,
    /// Bytes of its memory; all that is free but a reserve for the driver, when not given.
    pub memory: Option<usize>,
}

/// A card, with our kernels loaded and its memory taken.
pub struct Card {
    shared: Arc<Shared>,
}

/// Memory of the card, wiped by the card and given back on drop.
pub struct CardMemory {
    shared: Arc<Shared>,
    start: usize,
    /// Bytes asked for.
    len: usize,
    /// Bytes taken.
    taken: usize,
}

/// What everything of a card holds on to. Fields are dropped in this order.
struct Shared {
    info: CardInfo,
    counts: Counts,
    arena: Mutex<Arena>,
    given_back: AtomicU64,
    functions: RwLock<HashMap<String, Found>>,
    recording: AtomicBool,
    /// Given back while a record was made: wiped and free when it ends.
    late: Mutex<Vec<(usize, usize)>>,
    outgoing: Mutex<Pinned>,
    staging: Staging,
    module: Module,
    memory: Allocation,
    stream: Stream,
    context: Context,
}

/// A kernel, and what it was found to take.
#[derive(Clone, Copy, Debug)]
struct Found {
    function: Function,
    threads: u32,
    /// Bytes of its argument, where the driver says it.
    params: Option<usize>,
    /// Dynamic shared memory that was allowed so far.
    shared: u32,
    /// Whether its code waits for the kernel before it, and so may begin while that ends.
    waits: bool,
}

#[expect(unsafe_code, reason = "the driver's objects are pointers")]
// SAFETY: the driver's objects may be used by any thread that has their context, which every call sees to.
unsafe impl Send for Shared {}
#[expect(unsafe_code, reason = "the driver's objects are pointers")]
// SAFETY: as above; the driver locks its own, and ours are behind locks.
unsafe impl Sync for Shared {}

impl Card {
    /// Opens a card: takes its memory and loads the kernels.
    ///
    /// # Errors
    /// [`CardError`] says what is missing.
    pub fn open(image: &'static [u8], options: CardOptions) -> Result<Self, CardError> {
        let info = CardInfo::of(options.number)?;
        let context = Context::new(&info)?;
        let stream = Stream::new()?;
        let module = Module::new(image, info.driver)?;
        let (staging, outgoing) = (Staging::new()?, Mutex::new(Pinned::new(PIECE)?));
        let free = context.free()?;
        let reserve = RESERVE_MIN.max(info.memory / RESERVE_PART);
        let wanted = options.memory.unwrap_or_else(|| free.saturating_sub(reserve));
        if wanted == 0 || wanted > free {
            return Err(CardError::Memory { free, wanted });
        }
        let memory = Allocation::new(wanted)?;
        let arena = Mutex::new(Arena::new(wanted));
        let shared = Shared {
            info,
            counts: Counts::default(),
            arena,
            given_back: AtomicU64::new(0),
            functions: RwLock::default(),
            recording: AtomicBool::new(false),
            late: Mutex::default(),
            outgoing,
            staging,
            module,
            memory,
            stream,
            context,
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// What its driver says of it.
    pub fn info(&self) -> &CardInfo {
        &self.shared.info
    }

    /// Bytes that nobody has reserved, and bytes in all.
    pub fn left(&self) -> (usize, usize) {
        self.shared.arena().left()
    }

    /// Seconds in which the driver copies so many bytes from one place of the card to another, one of `times` copies in a row:
    /// the limit that other figures are shares of.
    ///
    /// # Errors
    /// [`DeviceError`].
    pub fn copy_seconds(&self, bytes: usize, times: u32) -> Result<f64, DeviceError> {
        let [from, to] = [self.reserve("a copy", bytes)?, self.reserve("a copy", bytes)?];
        let (from, to) = (from.part(0, bytes)?, to.part(0, bytes)?);
        let Shared { stream, .. } = &*self.shared;
        self.shared.enter_outside()?;
        stream.copy(to, from, bytes)?;
        stream.wait()?;
        let begun = Instant::now();
        for _ in 0..times {
            stream.copy(to, from, bytes)?;
        }
        stream.wait()?;
        Ok(begun.elapsed().as_secs_f64() / f64::from(times.max(1)))
    }
}

impl Shared {
    fn arena(&self) -> MutexGuard<'_, Arena> {
        self.arena.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Before anything that a record cannot have.
    fn enter_outside(&self) -> Result<(), DeviceError> {
        if self.recording.load(Ordering::Relaxed) {
            return Err(DeviceError::Failed("a copy while launches are recorded".to_owned()));
        }
        Ok(self.context.enter()?)
    }

    /// Enqueues the wiping of a piece, and frees it for whoever comes after that in the queue.
    fn wipe(&self, start: usize, taken: usize) {
        let wiped = self.context.enter();
        let wiped = wiped.and_then(|()| self.stream.zero(self.memory.0 + start as u64, taken));
        // A piece that could not be wiped is lost to this process rather than shown to the next owner.
        if wiped.is_ok() {
            self.arena().give_back(start, taken);
        }
    }

    fn find(&self, launch: &Launch<'_>, params: usize) -> Result<Found, DeviceError> {
        let Launch { kernel, threads, shared, .. } = *launch;
        let functions = self.functions.read().unwrap_or_else(PoisonError::into_inner);
        let known = functions.get(kernel).copied();
        drop(functions);
        let mut found = match known {
            Some(found) => found,
            None => self.look_up(kernel)?,
        };
        if threads > found.threads || found.params.is_some_and(|bytes| bytes != params) {
            return Err(DeviceError::Failed(format!(
                "{kernel} does not take {threads} threads and {params} bytes"
            )));
        }
        if known.is_none() || shared > found.shared {
            if shared > found.shared {
                found.function.allow_shared(shared).map_err(|error| {
                    DeviceError::Failed(format!("{kernel} with {shared} bytes: {error}"))
                })?;
                found.shared = shared;
            }
            let mut functions = self.functions.write().unwrap_or_else(PoisonError::into_inner);
            functions.insert(kernel.to_owned(), found);
        }
        Ok(found)
    }

    fn look_up(&self, kernel: &str) -> Result<Found, DeviceError> {
        let missing = || DeviceError::Failed(format!("there is no kernel {kernel}"));
        let function = self.module.function(kernel)?.ok_or_else(missing)?;
        let which = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK;
        let threads = u32::try_from(function.attribute(which)?).unwrap_or(0);
        let params = function.params(self.info.driver)?;
        // Machine code that the driver made of PTX for sm_80, on whatever card, waits for nothing.
        let which = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_PTX_VERSION;
        let waits = function.attribute(which)? >= 90;
        Ok(Found { function, threads, params, shared: 0, waits })
    }
}

impl CardMemory {
    /// The address of a part.
    fn part(&self, offset: usize, len: usize) -> Result<u64, DeviceError> {
        if offset.checked_add(len).is_none_or(|end| end > self.len) {
            let found = format!("{len} bytes from {offset} on, of {}", self.len);
            return Err(DeviceError::Failed(found));
        }
        Ok(self.shared.memory.0 + (self.start + offset) as u64)
    }
}

impl Driver for Card {
    type Memory = CardMemory;
    type Graph = CardGraph;

    fn describe(&self) -> String {
        let CardInfo { name, capability: (major, minor), driver, .. } = &self.shared.info;
        let (_, all) = self.left();
        let (cuda, cuda_minor) = (driver / 1000, driver % 1000 / 10);
        format!(
            "{name}, compute capability {major}.{minor}, driver for CUDA {cuda}.{cuda_minor}, {} MiB planned",
            all >> 20
        )
    }

    fn architecture(&self) -> u32 {
        let (major, minor) = self.shared.info.capability;
        u32::try_from(10 * major + minor).unwrap_or(0)
    }

    fn multiprocessors(&self) -> usize {
        usize::try_from(self.shared.info.multiprocessors).unwrap_or(0)
    }

    fn reserve(&self, what: &'static str, bytes: usize) -> Result<CardMemory, DeviceError> {
        let mut arena = self.shared.arena();
        let Some((start, taken)) = arena.take(bytes) else {
            return Err(DeviceError::OutOfMemory { what, bytes, left: Some(arena.left()) });
        };
        self.shared.counts.reserved();
        Ok(CardMemory { shared: Arc::clone(&self.shared), start, len: bytes, taken })
    }

    fn given_back(&self) -> u64 {
        self.shared.given_back.load(Ordering::Relaxed)
    }

    fn address(&self, memory: &CardMemory) -> u64 {
        self.shared.memory.0 + memory.start as u64
    }

    fn write(&self, memory: &CardMemory, offset: usize, bytes: &[u8]) -> Result<(), DeviceError> {
        let to = memory.part(offset, bytes.len())?;
        let Shared { staging, stream, counts, .. } = &*self.shared;
        self.shared.enter_outside()?;
        Ok(staging.send(stream, counts, to, bytes)?)
    }

    fn zero(&self, memory: &CardMemory, bytes: usize) -> Result<(), DeviceError> {
        let start = memory.part(0, bytes)?;
        self.shared.context.enter()?;
        if bytes == 0 { Ok(()) } else { Ok(self.shared.stream.zero(start, bytes)?) }
    }

    fn read(&self, memory: &CardMemory, offset: usize, out: &mut [u8]) -> Result<(), DeviceError> {
        let mut from = memory.part(offset, out.len())?;
        let Shared { outgoing, stream, counts, .. } = &*self.shared;
        self.shared.enter_outside()?;
        let mut pinned = outgoing.lock().unwrap_or_else(PoisonError::into_inner);
        for piece in out.chunks_mut(PIECE) {
            pinned.fetch(from, piece.len(), stream)?;
            counts.copied_out(piece.len());
            stream.wait()?;
            counts.waited();
            let bytes = &mut pinned.bytes()[..piece.len()];
            piece.copy_from_slice(bytes);
            bytes.fill(0);
            from += piece.len() as u64;
        }
        drop(pinned);
        if out.is_empty() { self.finish() } else { Ok(self.shared.staging.settle()?) }
    }

    fn find(&self, launch: &Launch<'_>, params: usize) -> Result<(), DeviceError> {
        self.shared.context.enter()?;
        self.shared.find(launch, params).map(drop)
    }

    #[expect(unsafe_code, reason = "kernels take addresses")]
    // SAFETY: the trait's condition is all that it needs.
    unsafe fn launch<P: Params>(&self, launch: &Launch<'_>, params: &P) -> Result<(), DeviceError> {
        let shared = &*self.shared;
        shared.context.enter()?;
        let Found { function, waits, .. } = shared.find(launch, size_of::<P>())?;
        // It may begin while the one before it ends: every kernel waits for that before it touches what others write.
        let mut early = sys::CUlaunchAttribute {
            id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
            pad: [0; 4],
            value: sys::CUlaunchAttributeValue { pad: [0; 64] },
        };
        early.value.programmaticStreamSerializationAllowed = 1;
        let Launch { grid: [x, y, z], threads, .. } = *launch;
        let config = sys::CUlaunchConfig {
            gridDimX: x,
            gridDimY: y,
            gridDimZ: z,
            blockDimX: threads,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: launch.shared,
            hStream: shared.stream.0,
            attrs: &raw mut early,
            numAttrs: waits.into(),
        };
        let mut arguments = [std::ptr::from_ref(params).cast_mut().cast()];
        let arguments = arguments.as_mut_ptr();
        // SAFETY: the driver copies the argument, which is the kernel's by `find`, before it returns; what the addresses in it
        // lead to is the caller's promise.
        let code = unsafe {
            sys::cuLaunchKernelEx(&raw const config, function.0, arguments, std::ptr::null_mut())
        };
        if !shared.recording.load(Ordering::Relaxed) {
            shared.counts.launched();
        }
        check("cuLaunchKernelEx", code)
            .map_err(|error| DeviceError::Failed(format!("{}: {error}", launch.kernel)))
    }

    fn begin_record(&self) -> Result<(), DeviceError> {
        Ok(graph::begin(&self.shared)?)
    }

    fn end_record(&self) -> Result<CardGraph, DeviceError> {
        Ok(graph::end(&self.shared)?)
    }

    #[expect(unsafe_code, reason = "kernels take addresses")]
    // SAFETY: the trait's condition is all that it needs.
    unsafe fn replay(&self, graph: &CardGraph) -> Result<(), DeviceError> {
        self.shared.enter_outside()?;
        self.shared.counts.replayed();
        Ok(graph.start(&self.shared.stream)?)
    }

    fn finish(&self) -> Result<(), DeviceError> {
        self.shared.enter_outside()?;
        self.shared.stream.wait()?;
        self.shared.counts.waited();
        Ok(self.shared.staging.settle()?)
    }

    fn crossings(&self) -> Crossings {
        self.shared.counts.all()
    }
}

impl Drop for CardMemory {
    fn drop(&mut self) {
        self.shared.given_back.fetch_add(1, Ordering::Relaxed);
        if self.shared.recording.load(Ordering::Relaxed) {
            let mut late = self.shared.late.lock().unwrap_or_else(PoisonError::into_inner);
            late.push((self.start, self.taken));
        } else {
            self.shared.wipe(self.start, self.taken);
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        let (_, all) = self.arena().left();
        // The fields' own drops need the context, and that nothing runs any more. Where the driver refuses, the end of the
        // process frees everything.
        let wiped = self.context.enter().and_then(|()| self.stream.zero(self.memory.0, all));
        drop(wiped.and_then(|()| self.stream.wait()));
    }
}

/// What is left to the driver, at least: graphs, local memory, whatever it keeps.
const RESERVE_MIN: usize = 512 << 20;
/// Or this part of the card.
const RESERVE_PART: usize = 32;

impl fmt::Debug for Card {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Card({})", self.describe())
    }
}

impl fmt::Debug for CardMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CardMemory({} bytes)", self.len)
    }
}
