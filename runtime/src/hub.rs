//! Threads and sockets: every connection's frames flow into one inbox, every answer flows out through a bounded outbox.
//!
//! A connection has a reader and a writer thread. The reader hands over whole frames within the limits or ends the
//! connection; the handler (a pure state machine) never waits for a peer; an outbox that its host does not drain
//! resets the connection.

use std::collections::{HashMap, VecDeque};
use std::io::{self, Read, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use chrysalis_attestation::attester::AttesterError;
use chrysalis_protocol::frame::{self, Frame, FrameKind};

use crate::counters::Counters;
use crate::engine::Event;
use crate::epoch::Stated;
use crate::limits::Limits;
use crate::transport::{Connection, Listener};

/// Number of a connection, unique in a boot.
pub type ConnectionId = u64;

/// What reaches the handler.
#[expect(missing_debug_implementations, reason = "it carries tokens of answers")]
pub enum Inbound {
    /// A peer connected; answers go to this outbox.
    Connected(ConnectionId, Arc<Outbox>),
    /// A whole frame within the limits.
    Frame(ConnectionId, FrameKind, u64, Vec<u8>),
    /// The peer left, or broke the framing.
    Closed(ConnectionId),
    /// The engine made progress.
    Engine(Vec<Event>),
    /// The engine ended: nothing can be answered any more.
    EngineFailed(String),
    /// The platform made the report that it was asked for, or did not.
    Attested(Box<Result<Stated, AttesterError>>),
    /// The model is loaded (or not); the boot goes on.
    Wake,
    /// Stop serving.
    Shutdown,
}

/// What a handler wants done.
#[derive(Debug)]
pub enum Output {
    /// Bytes of one frame for a connection.
    Send(ConnectionId, Vec<u8>),
    /// The peer broke a rule of the framing: end its connection.
    Reset(ConnectionId),
}

/// A state machine behind the connections. Time is an argument; nothing in it waits.
pub trait Handler {
    /// A frame arrived.
    fn frame(&mut self, id: ConnectionId, frame: &Frame<'_>, now_ms: u64, out: &mut Vec<Output>);
    /// A connection ended; its streams are nobody's.
    fn closed(&mut self, id: ConnectionId, out: &mut Vec<Output>);
    /// The engine reported.
    fn engine(&mut self, events: Vec<Event>, now_ms: u64, out: &mut Vec<Output>);
    /// The platform answered the oldest open question for a report; only a handler that asks is told.
    fn attested(
        &mut self,
        _stated: Result<Stated, AttesterError>,
        _now_ms: u64,
        _out: &mut Vec<Output>,
    ) {
    }
    /// Time passed.
    fn tick(&mut self, now_ms: u64, out: &mut Vec<Output>);
    /// When [`tick`](Self::tick) has something to do at the latest.
    fn next_wake_ms(&self) -> Option<u64>;
    /// Whether the hub should hand control back.
    fn is_done(&self) -> bool;
}

/// Why the hub handed control back.
#[derive(Debug, PartialEq, Eq)]
pub enum HubExit {
    /// The handler is done.
    Done,
    /// Somebody asked for the end.
    Shutdown,
    /// The engine ended.
    EngineFailed(String),
}

/// Bytes that wait for a connection's host to read them.
#[derive(Debug)]
pub struct Outbox {
    queue: Mutex<Queue>,
    ready: Condvar,
    limit: usize,
    /// Whom it is for.
    peer: Option<Connection>,
}

#[derive(Debug, Default)]
struct Queue {
    frames: VecDeque<Vec<u8>>,
    bytes: usize,
    closed: bool,
}

impl Outbox {
    fn new(limit: usize, peer: Option<Connection>) -> Self {
        Self { queue: Mutex::default(), ready: Condvar::new(), limit, peer }
    }

    /// Queues a frame; `false` when the host has let too much pile up.
    fn push(&self, frame: Vec<u8>) -> bool {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        if queue.closed || queue.bytes + frame.len() > self.limit {
            return false;
        }
        queue.bytes += frame.len();
        queue.frames.push_back(frame);
        self.ready.notify_one();
        true
    }

    fn close(&self) {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).closed = true;
        self.ready.notify_one();
    }

    /// Ends the connection at once, even while its host leaves a write waiting.
    fn abort(&self) {
        self.close();
        if let Some(peer) = &self.peer {
            peer.shutdown();
        }
    }

    /// Everything queued, or nothing once closed and drained.
    fn take(&self) -> Option<VecDeque<Vec<u8>>> {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        while queue.frames.is_empty() {
            if queue.closed {
                return None;
            }
            queue = self.ready.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
        queue.bytes = 0;
        Some(std::mem::take(&mut queue.frames))
    }
}

/// The inbox and the connections that feed it.
#[derive(Debug)]
pub struct Hub {
    inbox: Receiver<Inbound>,
    outboxes: HashMap<ConnectionId, Arc<Outbox>>,
    counters: Arc<Counters>,
    shared: Arc<Shared>,
    accept: Option<JoinHandle<()>>,
    started: Instant,
}

/// What the threads of all connections know.
#[derive(Debug)]
struct Shared {
    limits: Limits,
    sender: SyncSender<Inbound>,
    stop: AtomicBool,
    /// Connections whose outbox is not written out.
    writers: Mutex<usize>,
    written: Condvar,
}

impl Shared {
    /// Counts a writer until what comes back is dropped.
    fn writer(self: &Arc<Self>) -> Writing {
        *self.writers.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        Writing(Arc::clone(self))
    }

    /// Waits until every closed outbox is written out, a while.
    fn flush(&self) {
        let writers = self.writers.lock().unwrap_or_else(PoisonError::into_inner);
        // Whoever does not read by then has left.
        drop(self.written.wait_timeout_while(writers, FLUSH, |writers| *writers > 0));
    }
}

struct Writing(Arc<Shared>);

impl Drop for Writing {
    fn drop(&mut self) {
        *self.0.writers.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        self.0.written.notify_all();
    }
}

impl Hub {
    /// Starts accepting connections on a listener.
    ///
    /// # Errors
    /// The system's, when no thread can be started.
    pub fn start(listener: Listener, limits: Limits, counters: Arc<Counters>) -> io::Result<Self> {
        let (sender, inbox) = sync_channel(INBOX);
        let shared = Arc::new(Shared {
            limits,
            sender,
            stop: AtomicBool::new(false),
            writers: Mutex::new(0),
            written: Condvar::new(),
        });
        let accepted = Arc::clone(&shared);
        let accept = thread::Builder::new()
            .name("accept".into())
            .spawn(move || accept_loop(&listener, &accepted))?;
        Ok(Self {
            inbox,
            outboxes: HashMap::new(),
            counters,
            shared,
            accept: Some(accept),
            started: Instant::now(),
        })
    }

    /// A way into the inbox, for the engine and the loader.
    pub fn sender(&self) -> SyncSender<Inbound> {
        self.shared.sender.clone()
    }

    /// Milliseconds since the hub started.
    pub fn now_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Feeds a handler until it is done, somebody asks for the end, or the engine ends.
    pub fn drive(&mut self, handler: &mut dyn Handler) -> HubExit {
        let mut out = Vec::new();
        loop {
            if handler.is_done() {
                return HubExit::Done;
            }
            let now = self.now_ms();
            let wait = handler
                .next_wake_ms()
                .map_or(IDLE_MS, |wake| wake.saturating_sub(now).min(IDLE_MS));
            let first = match self.inbox.recv_timeout(Duration::from_millis(wait)) {
                Ok(inbound) => Some(inbound),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => return HubExit::Shutdown,
            };
            // What is already there is handled before the clock is read again.
            for inbound in
                first.into_iter().chain(self.inbox.try_iter().take(ROUND).collect::<Vec<_>>())
            {
                match self.dispatch(handler, inbound, &mut out) {
                    None => {}
                    Some(exit) => return exit,
                }
            }
            handler.tick(self.now_ms(), &mut out);
            self.flush(handler, &mut out);
        }
    }

    fn dispatch(
        &mut self,
        handler: &mut dyn Handler,
        inbound: Inbound,
        out: &mut Vec<Output>,
    ) -> Option<HubExit> {
        let now = self.now_ms();
        match inbound {
            Inbound::Connected(id, outbox) => {
                self.outboxes.insert(id, outbox);
            }
            Inbound::Frame(id, kind, stream, body) => {
                if self.outboxes.contains_key(&id) {
                    handler.frame(id, &Frame { kind, stream, body: &body }, now, out);
                }
            }
            Inbound::Closed(id) => {
                if let Some(outbox) = self.outboxes.remove(&id) {
                    outbox.close();
                    handler.closed(id, out);
                }
            }
            Inbound::Engine(events) => handler.engine(events, now, out),
            Inbound::Attested(stated) => handler.attested(*stated, now, out),
            Inbound::EngineFailed(why) => return Some(HubExit::EngineFailed(why)),
            Inbound::Wake => {}
            Inbound::Shutdown => return Some(HubExit::Shutdown),
        }
        self.flush(handler, out);
        None
    }

    fn flush(&mut self, handler: &mut dyn Handler, out: &mut Vec<Output>) {
        while !out.is_empty() {
            for output in std::mem::take(out) {
                let (id, delivered) = match output {
                    Output::Send(id, bytes) => {
                        (id, self.outboxes.get(&id).is_none_or(|outbox| outbox.push(bytes)))
                    }
                    Output::Reset(id) => (id, false),
                };
                if !delivered && let Some(outbox) = self.outboxes.remove(&id) {
                    Counters::add(&self.counters.resets, 1);
                    outbox.abort();
                    handler.closed(id, out);
                }
            }
        }
    }
}

impl Drop for Hub {
    /// Ends every connection, after what was queued for it went out: a final frame that was sealed also arrives.
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(accept) = self.accept.take() {
            // It has nothing to tell.
            drop(accept.join());
        }
        for inbound in self.inbox.try_iter() {
            if let Inbound::Connected(_, outbox) = inbound {
                outbox.close();
            }
        }
        for outbox in self.outboxes.values() {
            outbox.close();
        }
        self.shared.flush();
    }
}

fn accept_loop(listener: &Listener, shared: &Arc<Shared>) {
    let open = Arc::new(());
    let mut next: ConnectionId = 0;
    while !shared.stop.load(Ordering::Relaxed) {
        let connection = match listener.accept(ACCEPT_WAIT) {
            Ok(Some(connection)) => connection,
            Ok(None) => continue,
            // Out of file descriptors, or a peer that left in between: the next one may do better.
            Err(_) => {
                thread::sleep(Duration::from_millis(50));
                continue;
            }
        };
        if Arc::strong_count(&open) > shared.limits.connections {
            connection.shutdown();
            continue;
        }
        next += 1;
        if start_connection(next, connection, shared, Arc::clone(&open)).is_err() {
            continue;
        }
    }
}

/// Starts both threads of a connection; `held` counts it as open until its reader ends.
fn start_connection(
    id: ConnectionId,
    connection: Connection,
    shared: &Arc<Shared>,
    held: Arc<()>,
) -> io::Result<()> {
    let limits = shared.limits;
    let outbox = Arc::new(Outbox::new(limits.outbox_bytes, Some(connection.try_clone()?)));
    let mut writing = connection.try_clone()?;
    writing.set_write_timeout(Some(Duration::from_millis(limits.egress_stall_ms)))?;
    let (pending, counted) = (Arc::clone(&outbox), shared.writer());
    thread::Builder::new().name("write".into()).spawn(move || {
        let _counted = counted;
        while let Some(frames) = pending.take() {
            if frames.iter().any(|frame| writing.write_all(frame).is_err()) {
                break;
            }
        }
        pending.close();
        writing.shutdown();
    })?;
    let shared = Arc::clone(shared);
    thread::Builder::new().name("read".into()).spawn(move || {
        let _open = held;
        let mut reading = connection;
        let connected = Inbound::Connected(id, Arc::clone(&outbox));
        if shared.sender.send(connected).is_ok() {
            read_frames(&mut reading, id, &shared);
        }
        outbox.close();
        // The hub is gone when this fails, and everything with it.
        drop(shared.sender.send(Inbound::Closed(id)));
    })?;
    Ok(())
}

/// Reads whole frames until the peer leaves, breaks the framing, or is too slow with a frame it began.
fn read_frames(connection: &mut Connection, id: ConnectionId, shared: &Shared) {
    let mut buffer = Vec::with_capacity(READ_BYTES);
    let mut chunk = vec![0; READ_BYTES];
    let mut began: Option<Instant> = None;
    if connection.set_read_timeout(Some(Duration::from_secs(1))).is_err() {
        return;
    }
    while !shared.stop.load(Ordering::Relaxed) {
        match connection.read(&mut chunk) {
            Ok(0) => return,
            Ok(count) => buffer.extend_from_slice(chunk.get(..count).unwrap_or_default()),
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock
                        | io::ErrorKind::TimedOut
                        | io::ErrorKind::Interrupted
                ) => {}
            Err(_) => return,
        }
        let mut consumed = 0;
        while let Some(rest) = buffer.get(consumed..) {
            match frame::split(rest) {
                Ok(Some((whole, rest))) => {
                    let left = rest.len();
                    if shared
                        .sender
                        .send(Inbound::Frame(id, whole.kind, whole.stream, whole.body.to_vec()))
                        .is_err()
                    {
                        return;
                    }
                    consumed = buffer.len() - left;
                }
                Ok(None) => break,
                Err(_) => return,
            }
        }
        if consumed > 0 {
            buffer.drain(..consumed);
            began = None;
        }
        if !buffer.is_empty() {
            let elapsed = began.get_or_insert_with(Instant::now).elapsed();
            if is_too_slow(buffer.len(), elapsed, &shared.limits) {
                return;
            }
        }
    }
}

/// A frame that was begun must be whole within the grace, or keep up the least rate.
fn is_too_slow(bytes: usize, elapsed: Duration, limits: &Limits) -> bool {
    let elapsed_ms = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX);
    let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
    elapsed_ms > limits.frame_grace_ms
        && bytes.saturating_mul(1_000) < elapsed_ms.saturating_mul(limits.frame_min_rate)
}

/// Frames that are handled before the clock is looked at again: a flood of them delays no tick for long.
const ROUND: usize = 64;

/// Frames that may wait for the handler before readers are held back.
const INBOX: usize = 4_096;

/// Longest sleep of an idle hub.
const IDLE_MS: u64 = 1_000;

/// Longest wait for a peer before the accepting thread looks whether it should end.
const ACCEPT_WAIT: Duration = Duration::from_millis(100);

/// Longest wait for hosts to read what was sealed for them, when the enclave ends.
const FLUSH: Duration = Duration::from_secs(2);
const READ_BYTES: usize = 64 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slow_frame_is_cut_off_after_the_grace_only() {
        let limits = Limits::default();
        assert!(!is_too_slow(1, Duration::from_millis(5_000), &limits));
        assert!(is_too_slow(1, Duration::from_millis(5_001), &limits));
        assert!(!is_too_slow(60_000, Duration::from_millis(10_000), &limits));
        assert!(is_too_slow(10_000, Duration::from_millis(10_000), &limits));
    }

    #[test]
    fn an_outbox_takes_no_more_than_its_limit() {
        let outbox = Outbox::new(10, None);
        assert!(outbox.push(vec![0; 6]));
        assert!(!outbox.push(vec![0; 5]));
        assert_eq!(outbox.take().unwrap().len(), 1);
        assert!(outbox.push(vec![0; 10]));
        outbox.close();
        assert!(!outbox.push(vec![0; 1]));
        assert!(outbox.take().is_some());
        assert!(outbox.take().is_none());
    }
}
