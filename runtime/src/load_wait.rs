//! The wait for the weights: connections are answered, nothing is served.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::SyncSender;

use chrysalis_protocol::frame::{Frame, FrameKind};
use chrysalis_protocol::messages::{CloseCode, State};
use chrysalis_protocol::package::BlobSource;

use crate::counters::Counters;
use crate::engine::Event;
use crate::hub::{ConnectionId, Handler, Inbound, Output};
use crate::limits::Limits;
use crate::reply;

/// Says that the enclave is loading, until it is not.
#[derive(Debug)]
pub(crate) struct LoadWait {
    pub(crate) limits: Limits,
    pub(crate) counters: Arc<Counters>,
    /// Set by the loader; it also wakes the hub.
    pub(crate) loaded: Arc<AtomicBool>,
}

impl Handler for LoadWait {
    fn frame(&mut self, id: ConnectionId, frame: &Frame<'_>, _now_ms: u64, out: &mut Vec<Output>) {
        let status = self.counters.status(State::Loading, 0);
        match frame.kind {
            FrameKind::Hello => {
                reply::hello(id, frame, &self.limits, &status, out);
            }
            FrameKind::Ping if frame.body.len() == 8 => {
                reply::send(id, FrameKind::Pong, frame.stream, frame.body, out);
                reply::send(id, FrameKind::Status, 0, &status.to_bytes(), out);
            }
            FrameKind::EvidenceReq
            | FrameKind::ClientBundleReq
            | FrameKind::Open
            | FrameKind::KeyrelResp => {
                reply::close(id, frame.stream, CloseCode::Busy, out);
            }
            FrameKind::HostData | FrameKind::End | FrameKind::Cancel | FrameKind::HostCredit => {}
            _ => out.push(Output::Reset(id)),
        }
    }

    fn closed(&mut self, _id: ConnectionId, _out: &mut Vec<Output>) {}

    fn engine(&mut self, _events: Vec<Event>, _now_ms: u64, _out: &mut Vec<Output>) {}

    fn tick(&mut self, _now_ms: u64, _out: &mut Vec<Output>) {}

    fn next_wake_ms(&self) -> Option<u64> {
        None
    }

    fn is_done(&self) -> bool {
        self.loaded.load(Ordering::Acquire)
    }
}

/// Ends the wait for the loader when its thread ends, in whatever way.
pub(crate) struct LoadEnded {
    pub(crate) loaded: Arc<AtomicBool>,
    pub(crate) waker: SyncSender<Inbound>,
}

impl Drop for LoadEnded {
    fn drop(&mut self) {
        self.loaded.store(true, Ordering::Release);
        // A full inbox wakes the hub as well; waiting for room in it could be for ever.
        drop(self.waker.try_send(Inbound::Wake));
    }
}

/// Blobs that are read no further once somebody asked for the end.
pub(crate) struct Stoppable<S> {
    pub(crate) source: S,
    pub(crate) stop: Arc<AtomicBool>,
}

impl<S: BlobSource> BlobSource for Stoppable<S> {
    fn read_at(&mut self, blob: u32, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        if self.stop.load(Ordering::Relaxed) {
            return Err(io::Error::other("the enclave was asked to end"));
        }
        self.source.read_at(blob, offset, buf)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ping_of_another_length_than_eight_ends_its_connection() {
        let (limits, counters) = (Limits::default(), Arc::default());
        let mut wait = LoadWait { limits, counters, loaded: Arc::default() };
        for (body, resets) in [(&[0; 8][..], false), (&[], true), (&[0; 9], true)] {
            let mut out = Vec::new();
            wait.frame(1, &Frame { kind: FrameKind::Ping, stream: 0, body }, 0, &mut out);
            assert_eq!(out.iter().any(|out| matches!(out, Output::Reset(1))), resets);
        }
    }
}
