//! A card that is not there: the kernels' sources compiled for the host, run block after block (`cuda/host`). For tests only:
//! it is slow, and knows nothing of timing, caches or races between blocks.
#![expect(unsafe_code, reason = "kernels are foreign code that takes addresses")]

use std::alloc::{self, Layout};
use std::collections::BTreeMap;
use std::fmt;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::counts::Counts;
use super::driver::{Driver, Launch, Params};
use crate::device::{Crossings, DeviceError};

/// The driver of no card.
#[derive(Debug)]
pub struct Emulated {
    multiprocessors: usize,
    backwards: bool,
    counts: Counts,
    given_back: Arc<AtomicU64>,
    /// What a record that is being made has so far.
    record: Mutex<Option<Vec<Call>>>,
    started: Mutex<BTreeMap<String, u64>>,
}

/// Launches that were recorded.
pub struct Graph(Vec<Call>);

/// What a record repeats.
enum Call {
    Launch { kernel: String, grid: [u32; 3], threads: u32, shared: u32, params: Vec<u8> },
    Zero { address: u64, bytes: usize },
}

/// Memory of the host, filled with ones at birth (as f32, NaN: what nobody wrote shows), wiped at death.
pub struct Memory {
    start: NonNull<u8>,
    layout: Layout,
    len: usize,
    given_back: Arc<AtomicU64>,
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
        self.given_back.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the allocation is alive and this long, and nobody else has it.
        unsafe { self.start.as_ptr().write_bytes(0, self.len) };
        // SAFETY: it came from the same allocator with this layout.
        unsafe { alloc::dealloc(self.start.as_ptr(), self.layout) };
    }
}

impl Default for Emulated {
    /// As large as a card is.
    fn default() -> Self {
        Self::with_multiprocessors(132)
    }
}

impl Emulated {
    /// One that says that it has so many.
    pub fn with_multiprocessors(multiprocessors: usize) -> Self {
        let (counts, given_back, record, started) = Default::default();
        Self { multiprocessors, backwards: false, counts, given_back, record, started }
    }

    /// The same, whose threads and blocks take turns from the last to the first, and whose copies behind their backs read at once
    /// and write late: what only their order keeps right shows.
    #[must_use]
    pub fn backwards(self) -> Self {
        Self { backwards: true, ..self }
    }

    /// How often each kernel was started, by a record or one by one.
    pub fn started(&self) -> BTreeMap<String, u64> {
        self.started.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn count(&self, kernel: &str) {
        let mut started = self.started.lock().unwrap_or_else(PoisonError::into_inner);
        *started.entry(kernel.to_owned()).or_default() += 1;
    }

    fn record(&self) -> MutexGuard<'_, Option<Vec<Call>>> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Neither copies nor waits belong into a record.
    fn not_recording(&self) -> Result<(), DeviceError> {
        if self.record().is_some() {
            return Err(DeviceError::Failed("a copy while launches are recorded".to_owned()));
        }
        Ok(())
    }

    /// Runs a kernel over this grid; over none, only asks for it.
    ///
    /// # Safety
    /// That of [`Driver::launch`]; nothing where a side of the grid is zero.
    unsafe fn run(
        &self,
        launch: &Launch<'_>,
        grid: [u32; 3],
        params: &[u8],
    ) -> Result<(), DeviceError> {
        let Launch { kernel, threads, shared, .. } = *launch;
        let block = [threads, shared, self.backwards.into()];
        let (name, args) = (kernel.as_ptr(), params.as_ptr());
        // SAFETY: name and params are as long as said, and the table's entry has the struct's size; what the addresses in it
        // lead to is the caller's promise.
        let code =
            unsafe { chrysalis_emulate(name, kernel.len(), &grid, &block, args, params.len()) };
        match code {
            0 => Ok(()),
            1 => Err(DeviceError::Failed(format!("there is no kernel {kernel}"))),
            _ => Err(DeviceError::Failed(format!(
                "{kernel} does not take {threads} threads, {} bytes and {shared} of shared memory",
                params.len()
            ))),
        }
    }
}

impl Driver for Emulated {
    type Memory = Memory;
    type Graph = Graph;

    fn describe(&self) -> String {
        "CUDA kernels, emulated on one thread of the host".to_owned()
    }

    /// Of the cards that have no kernels of their own; it has all kernels.
    fn architecture(&self) -> u32 {
        80
    }

    fn multiprocessors(&self) -> usize {
        self.multiprocessors
    }

    fn reserve(&self, what: &'static str, bytes: usize) -> Result<Memory, DeviceError> {
        let error = || DeviceError::OutOfMemory { what, bytes, left: None };
        let layout = Layout::from_size_align(bytes.max(1), ALIGN).map_err(|_| error())?;
        // SAFETY: the layout has at least one byte.
        let start = NonNull::new(unsafe { alloc::alloc(layout) }).ok_or_else(error)?;
        // SAFETY: the allocation has this many bytes.
        unsafe { start.as_ptr().write_bytes(POISON, bytes) };
        self.counts.reserved();
        Ok(Memory { start, layout, len: bytes, given_back: Arc::clone(&self.given_back) })
    }

    fn given_back(&self) -> u64 {
        self.given_back.load(Ordering::Relaxed)
    }

    fn address(&self, memory: &Memory) -> u64 {
        memory.start.as_ptr().expose_provenance() as u64
    }

    fn write(&self, memory: &Memory, offset: usize, bytes: &[u8]) -> Result<(), DeviceError> {
        self.not_recording()?;
        let to = memory.part(offset, bytes.len())?;
        // SAFETY: `part` has checked the length; device memory is never behind a reference.
        unsafe { to.as_ptr().copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
        self.counts.copied_in(bytes.len());
        Ok(())
    }

    fn zero(&self, memory: &Memory, bytes: usize) -> Result<(), DeviceError> {
        let start = memory.part(0, bytes)?;
        if let Some(calls) = &mut *self.record() {
            calls.push(Call::Zero { address: self.address(memory), bytes });
            return Ok(());
        }
        // SAFETY: `part` has checked the length.
        unsafe { start.as_ptr().write_bytes(0, bytes) };
        Ok(())
    }

    fn read(&self, memory: &Memory, offset: usize, out: &mut [u8]) -> Result<(), DeviceError> {
        self.not_recording()?;
        let from = memory.part(offset, out.len())?;
        // SAFETY: `part` has checked the length; device memory is never behind a reference.
        unsafe { from.as_ptr().copy_to_nonoverlapping(out.as_mut_ptr(), out.len()) };
        self.counts.copied_out(out.len());
        self.counts.waited();
        Ok(())
    }

    fn find(&self, launch: &Launch<'_>, params: usize) -> Result<(), DeviceError> {
        // SAFETY: of no blocks none reads its arguments.
        unsafe { self.run(launch, [0; 3], &vec![0; params]) }
    }

    // SAFETY: the trait's condition is all that it needs: the addresses are the host's.
    unsafe fn launch<P: Params>(&self, launch: &Launch<'_>, params: &P) -> Result<(), DeviceError> {
        let start = std::ptr::from_ref(params).cast();
        // SAFETY: a `Params` has no padding: every byte of it was written.
        let params = unsafe { std::slice::from_raw_parts(start, size_of::<P>()) };
        if let Some(calls) = &mut *self.record() {
            let Launch { grid, threads, shared, .. } = *launch;
            let (kernel, params) = (launch.kernel.to_owned(), params.to_owned());
            calls.push(Call::Launch { kernel, grid, threads, shared, params });
            return Ok(());
        }
        self.counts.launched();
        self.count(launch.kernel);
        // SAFETY: the caller's promise is the same.
        unsafe { self.run(launch, launch.grid, params) }
    }

    fn begin_record(&self) -> Result<(), DeviceError> {
        self.not_recording()?;
        *self.record() = Some(Vec::new());
        Ok(())
    }

    fn end_record(&self) -> Result<Graph, DeviceError> {
        let calls = self.record().take();
        calls.map(Graph).ok_or_else(|| DeviceError::Failed("no record was begun".to_owned()))
    }

    // SAFETY: the trait's condition is all that it needs: the addresses are still good.
    unsafe fn replay(&self, graph: &Graph) -> Result<(), DeviceError> {
        self.counts.replayed();
        for call in &graph.0 {
            match call {
                Call::Launch { kernel, grid, threads, shared, params } => {
                    let (grid, threads, shared) = (*grid, *threads, *shared);
                    let launch = Launch { kernel, grid, threads, shared };
                    self.count(kernel);
                    // SAFETY: whoever recorded it kept the condition, and no address has changed since.
                    unsafe { self.run(&launch, grid, params)? };
                }
                Call::Zero { address, bytes } => {
                    let start = std::ptr::with_exposed_provenance_mut::<u8>(*address as usize);
                    // SAFETY: `zero` has checked the length, and no memory was given back since.
                    unsafe { start.write_bytes(0, *bytes) };
                }
            }
        }
        Ok(())
    }

    fn finish(&self) -> Result<(), DeviceError> {
        self.not_recording()?;
        self.counts.waited();
        Ok(())
    }

    fn crossings(&self) -> Crossings {
        self.counts.all()
    }
}

// SAFETY: as `cuda/host/emulate.cc` defines it.
unsafe extern "C" {
    fn chrysalis_emulate(
        name: *const u8,
        name_len: usize,
        grid: *const [u32; 3],
        block: *const [u32; 3],
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

impl fmt::Debug for Graph {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Graph({} calls)", self.0.len())
    }
}

impl fmt::Debug for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Launch { kernel, .. } => write!(f, "Launch({kernel})"),
            Self::Zero { bytes, .. } => write!(f, "Zero({bytes} bytes)"),
        }
    }
}
