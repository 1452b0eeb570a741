//! Frames that more than one state of the enclave answers with.

use chrysalis_protocol::frame::{self, Frame, FrameKind};
use chrysalis_protocol::messages::{self, Close, CloseCode, Hello, Status, pieces};

use crate::hub::{ConnectionId, Output};
use crate::limits::Limits;

/// Queues one frame.
pub(crate) fn send(
    id: ConnectionId,
    kind: FrameKind,
    stream: u64,
    body: &[u8],
    out: &mut Vec<Output>,
) {
    let mut bytes = Vec::new();
    frame::write(kind, stream, body, &mut bytes);
    out.push(Output::Send(id, bytes));
}

/// Queues the end of a stream; a busy enclave asks for a second.
pub(crate) fn close(id: ConnectionId, stream: u64, code: CloseCode, out: &mut Vec<Output>) {
    let retry_after_s = u16::from(code == CloseCode::Busy);
    send(id, FrameKind::Close, stream, &Close { code, retry_after_s }.to_bytes(), out);
}

/// Queues an evidence bundle in pieces.
pub(crate) fn evidence(id: ConnectionId, stream: u64, bundle: &[u8], out: &mut Vec<Output>) {
    for piece in pieces(bundle, 0) {
        send(id, FrameKind::Evidence, stream, &piece.to_bytes(), out);
    }
}

/// Answers HELLO with the limits and the status; a peer of another version is reset, and `false` comes back.
pub(crate) fn hello(
    id: ConnectionId,
    frame: &Frame<'_>,
    limits: &Limits,
    status: &Status,
    out: &mut Vec<Output>,
) -> bool {
    if Hello::from_bytes(frame.body).is_err() {
        out.push(Output::Reset(id));
        return false;
    }
    send(id, FrameKind::HelloAck, 0, &wire_limits(limits).to_bytes(), out);
    send(id, FrameKind::Status, 0, &status.to_bytes(), out);
    true
}

fn wire_limits(limits: &Limits) -> messages::Limits {
    let narrow = |value: usize| u32::try_from(value).unwrap_or(u32::MAX);
    messages::Limits {
        connections: narrow(limits.connections),
        streams: narrow(limits.streams),
        stream_bytes: narrow(limits.stream_request_bytes),
        ingress_frames: limits.ingress_frames,
        egress_frames: limits.egress_frames,
    }
}
