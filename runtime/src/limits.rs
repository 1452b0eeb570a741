//! Every limit of the vsock protocol in one table (docs/protocol.md, "Limits"). A peer that passes one is refused by name.

/// What a host may ask of the enclave at once. All of it is the host's to exhaust, never to exceed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Connections at once; one more is closed before anything is allocated for it.
    pub connections: usize,
    /// Streams at once over all connections; one more is closed as busy.
    pub streams: usize,
    /// Time for the rest of a frame once its first byte is there, before the rate rule applies.
    pub frame_grace_ms: u64,
    /// Bytes a second that a started frame must keep up after the grace, averaged.
    pub frame_min_rate: u64,
    /// Sealed request bytes of one stream: the largest padded request and its frame overhead.
    pub stream_request_bytes: usize,
    /// Sealed request bytes of all streams that are still being received.
    pub total_request_bytes: usize,
    /// Request frames of a stream that are taken without a grant of credit: enough for the largest request.
    pub ingress_frames: u32,
    /// Response frames a host may be owed on a stream before it grants more credit.
    pub egress_frames: u32,
    /// Time a response may wait for credit before its stream is closed.
    pub egress_stall_ms: u64,
    /// Time for which an answer with an ACK window waits for its client to say that it has tokens.
    pub ack_wait_ms: u64,
    /// Time from OPEN to END of a request, however slowly its frames come: it holds a part of the budget all that time.
    pub request_ms: u64,
    /// Time between two frames of a request that is still being received.
    pub idle_stream_ms: u64,
    /// Bytes queued for a connection whose host does not read; more resets it.
    pub outbox_bytes: usize,
    /// Time for which a retired epoch key still opens requests.
    pub epoch_grace_ms: u64,
    /// Freshness challenges gathered into one platform report.
    pub freshness_batch: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 64,
            streams: 16_384,
            frame_grace_ms: 5_000,
            frame_min_rate: 1_024,
            stream_request_bytes: (8 << 20) + (64 << 10),
            total_request_bytes: 1 << 30,
            ingress_frames: 256,
            egress_frames: 64,
            egress_stall_ms: 30_000,
            ack_wait_ms: 30_000,
            request_ms: 120_000,
            idle_stream_ms: 30_000,
            // A full batch of freshness evidence, and as much again.
            outbox_bytes: 16 << 20,
            epoch_grace_ms: 600_000,
            freshness_batch: 1_024,
        }
    }
}
