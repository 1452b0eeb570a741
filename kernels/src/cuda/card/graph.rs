//! Launches recorded by the driver's stream capture, and started as one.
#![expect(unsafe_code, reason = "the driver is a C library")]

use std::fmt;
use std::ptr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use cudarc::driver::sys;

use super::Shared;
use super::error::CardError;
use super::raw::{Stream, check};

/// A graph that can be started.
pub struct CardGraph {
    raw: sys::CUgraphExec,
    /// Its context lives as long.
    shared: Arc<Shared>,
}

// SAFETY: the driver's objects may be used by any thread that has their context.
unsafe impl Send for CardGraph {}

pub(super) fn begin(shared: &Arc<Shared>) -> Result<(), CardError> {
    shared.context.enter()?;
    // Other threads' calls are no concern of the record, nor is the loading of a kernel.
    let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
    // SAFETY: the stream is alive.
    let code = unsafe { sys::cuStreamBeginCapture_v2(shared.stream.0, mode) };
    check("cuStreamBeginCapture", code)?;
    shared.recording.store(true, Ordering::Relaxed);
    Ok(())
}

pub(super) fn end(shared: &Arc<Shared>) -> Result<CardGraph, CardError> {
    shared.context.enter()?;
    let mut graph = ptr::null_mut();
    // SAFETY: the stream and the place are alive.
    let code = unsafe { sys::cuStreamEndCapture(shared.stream.0, &raw mut graph) };
    shared.recording.store(false, Ordering::Relaxed);
    let late = std::mem::take(&mut *shared.late.lock().unwrap_or_else(PoisonError::into_inner));
    late.into_iter().for_each(|(start, taken)| shared.wipe(start, taken));
    check("cuStreamEndCapture", code)?;
    let mut raw = ptr::null_mut();
    // SAFETY: the place is alive, the graph is the one just made.
    let code = unsafe { sys::cuGraphInstantiateWithFlags(&raw mut raw, graph, 0) };
    // SAFETY: it is destroyed once; what can be started is a copy.
    unsafe { sys::cuGraphDestroy(graph) };
    check("cuGraphInstantiate", code)?;
    Ok(CardGraph { raw, shared: Arc::clone(shared) })
}

impl CardGraph {
    pub(super) fn start(&self, stream: &Stream) -> Result<(), CardError> {
        // SAFETY: both are alive; that the addresses in it are good is the promise of whoever replays it.
        check("cuGraphLaunch", unsafe { sys::cuGraphLaunch(self.raw, stream.0) })
    }
}

impl Drop for CardGraph {
    fn drop(&mut self) {
        if self.shared.context.enter().is_ok() {
            // SAFETY: it is destroyed once; the driver keeps what still runs.
            unsafe { sys::cuGraphExecDestroy(self.raw) };
        }
    }
}

impl fmt::Debug for CardGraph {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CardGraph")
    }
}
