//! What the enclave counts. The host sees these numbers rounded to two significant digits, and nothing else.

use std::sync::atomic::{AtomicU64, Ordering};

use chrysalis_protocol::messages::{State, Status};

/// Counters of one boot, shared by the threads that count.
#[derive(Debug, Default)]
pub struct Counters {
    /// Segments of the package that were loaded.
    pub segments_loaded: AtomicU64,
    /// Requests whose ACCEPT frame was sealed.
    pub accepted: AtomicU64,
    /// Requests refused for what they are.
    pub rejected: AtomicU64,
    /// Requests refused for want of room.
    pub busy: AtomicU64,
    /// Requests to an epoch that is gone.
    pub key_unknown: AtomicU64,
    /// Streams that the client or the host cancelled.
    pub cancelled: AtomicU64,
    /// Faults of the enclave.
    pub internal: AtomicU64,
    /// Connections reset for breaking the framing or a limit.
    pub resets: AtomicU64,
    /// Prompt tokens of ended responses.
    pub prompt_tokens: AtomicU64,
    /// Output tokens of ended responses.
    pub output_tokens: AtomicU64,
}

impl Counters {
    /// Adds to a counter.
    pub fn add(counter: &AtomicU64, amount: u64) {
        counter.fetch_add(amount, Ordering::Relaxed);
    }

    /// What the host is told; its encoding rounds every counter.
    pub fn status(&self, state: State, streams: usize) -> Status {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Status {
            state,
            segments_loaded: read(&self.segments_loaded),
            accepted: read(&self.accepted),
            rejected: read(&self.rejected),
            busy: read(&self.busy),
            key_unknown: read(&self.key_unknown),
            cancelled: read(&self.cancelled),
            internal: read(&self.internal),
            resets: read(&self.resets),
            streams: streams as u64,
            prompt_tokens: read(&self.prompt_tokens),
            output_tokens: read(&self.output_tokens),
        }
    }
}
