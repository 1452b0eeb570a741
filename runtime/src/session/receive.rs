//! A sealed request on its way in: charged, decapsulated, opened frame by frame, refused as a replay after the first.

use chrysalis_protocol::frame::Frame;
use chrysalis_protocol::messages::{CloseCode, Open};
use chrysalis_protocol::receipt::payer_tag;
use chrysalis_protocol::request::{HEAD_LEN, RequestOpener};
use chrysalis_protocol::response::ErrorCode;

use super::answer::Answer;
use super::receipts::Meter;
use super::{Gateway, Stream, StreamId};
use crate::counters::Counters;
use crate::hub::Output;
use crate::limits::Limits;
use crate::replay::ReplayError;

/// A request whose final frame has not come.
pub(super) struct Receiving {
    opener: RequestOpener,
    key_id: [u8; 8],
    enc_hash: [u8; 32],
    meter: Meter,
    /// Bytes that are still due by the length that OPEN stated.
    missing: usize,
    /// DATA frames that may still come without a grant of credit.
    frames_left: u32,
    /// Bytes of the budget that this stream holds.
    pub(super) charged: usize,
    last_ms: u64,
    opened_ms: u64,
}

impl Receiving {
    /// Whether its frames come too slowly, each or altogether.
    pub(super) fn is_late(&self, now_ms: u64, limits: &Limits) -> bool {
        now_ms.saturating_sub(self.last_ms) > limits.idle_stream_ms
            || now_ms.saturating_sub(self.opened_ms) > limits.request_ms
    }
}

impl Gateway {
    /// OPEN: the head of a sealed request. Everything that can be refused cheaply is refused before the KEM is used.
    pub(super) fn open(
        &mut self,
        id: StreamId,
        frame: &Frame<'_>,
        now_ms: u64,
        out: &mut Vec<Output>,
    ) {
        let Ok(open) = Open::from_bytes(frame.body) else {
            Counters::add(&self.parts.counters.rejected, 1);
            return self.end(id, CloseCode::Rejected, out);
        };
        if id.1 == 0 || self.streams.contains_key(&id) {
            return out.push(Output::Reset(id.0));
        }
        match self.receive(&open, now_ms) {
            Ok(receiving) => {
                self.request_bytes += receiving.charged;
                self.streams.insert(id, Stream::Receiving(Box::new(receiving)));
            }
            Err(code) => {
                Counters::add(self.refusals(code), 1);
                self.end(id, code, out);
            }
        }
    }

    fn receive(&mut self, open: &Open, now_ms: u64) -> Result<Receiving, CloseCode> {
        let limits = &self.parts.limits;
        let charged = open.sealed_len as usize;
        if self.draining {
            return Err(CloseCode::Draining);
        }
        if charged > limits.stream_request_bytes {
            return Err(CloseCode::Rejected);
        }
        let engine_room = self.parts.config.max_sequences() + self.parts.config.max_waiting();
        if self.streams.len() >= limits.streams.min(engine_room)
            || self.request_bytes + charged > limits.total_request_bytes
        {
            return Err(CloseCode::Busy);
        }
        let key_id = open.head.key_id();
        let epoch = self.parts.epochs.by_key_id(&key_id, now_ms).ok_or(CloseCode::KeyUnknown)?;
        let enc_hash = open.head.enc_hash();
        if epoch.replay.contains(&enc_hash) {
            return Err(CloseCode::Rejected);
        }
        let opener = RequestOpener::new(&open.head, &epoch.keys, &epoch.statement_digest)
            .map_err(|_| CloseCode::Rejected)?;
        let meter = Meter {
            epoch: epoch.number,
            statement_digest: epoch.statement_digest,
            serial: self.next_serial,
            request_tag: open.head.request_tag(),
            payer_tag: payer_tag(&[]),
        };
        self.next_serial += 1;
        let missing = charged.saturating_sub(HEAD_LEN);
        Ok(Receiving {
            opener,
            key_id,
            enc_hash,
            meter,
            missing,
            frames_left: limits.ingress_frames,
            charged,
            last_ms: now_ms,
            opened_ms: now_ms,
        })
    }

    /// DATA: the next bytes. The first frame that opens is the moment at which a replay is refused.
    pub(super) fn data(&mut self, id: StreamId, bytes: &[u8], now_ms: u64, out: &mut Vec<Output>) {
        let receiving = match self.streams.get_mut(&id) {
            Some(Stream::Receiving(receiving)) => receiving,
            Some(Stream::Answering(_)) => return self.ack(id, bytes, now_ms, out),
            // Frames of a stream that was just closed may still be under way.
            None => return,
        };
        receiving.last_ms = now_ms;
        if bytes.len() > receiving.missing || receiving.frames_left == 0 {
            Counters::add(&self.parts.counters.rejected, 1);
            return self.end(id, CloseCode::Rejected, out);
        }
        receiving.missing -= bytes.len();
        receiving.frames_left -= 1;
        let before = receiving.opener.frames_opened();
        let pushed = receiving.opener.push(bytes);
        let is_first = before == 0 && receiving.opener.frames_opened() > 0;
        let (key_id, enc_hash) = (receiving.key_id, receiving.enc_hash);
        if is_first && let Err(code) = self.admit_once(&key_id, &enc_hash, now_ms) {
            Counters::add(self.refusals(code), 1);
            return self.end(id, code, out);
        }
        if pushed.is_err() {
            self.refuse(id, ErrorCode::Malformed, now_ms, out);
        }
    }

    /// DATA after END: what the client says of its answer. Changed, left out or repeated, it ends the stream unpaid.
    fn ack(&mut self, id: StreamId, bytes: &[u8], now_ms: u64, out: &mut Vec<Output>) {
        let Some(Stream::Answering(answer)) = self.streams.get_mut(&id) else {
            return;
        };
        if answer.ack(bytes).is_err() {
            Counters::add(&self.parts.counters.rejected, 1);
            return self.end(id, CloseCode::Rejected, out);
        }
        self.pump(id, now_ms, out);
    }

    /// Takes an encapsulated key into the replay set of its epoch.
    fn admit_once(
        &mut self,
        key_id: &[u8; 8],
        enc_hash: &[u8; 32],
        now_ms: u64,
    ) -> Result<(), CloseCode> {
        let epoch = self.parts.epochs.by_key_id(key_id, now_ms).ok_or(CloseCode::KeyUnknown)?;
        epoch.replay.insert(enc_hash).map_err(|error| match error {
            ReplayError::Seen => CloseCode::Rejected,
            // The next epoch begins with the next tick; this key takes nothing more.
            ReplayError::Full(_) => CloseCode::KeyUnknown,
        })
    }

    /// END: the request is whole, or it is refused.
    pub(super) fn complete(&mut self, id: StreamId, now_ms: u64, out: &mut Vec<Output>) {
        let Some(Stream::Receiving(receiving)) = self.streams.get(&id) else {
            return;
        };
        if !receiving.opener.is_complete() || receiving.missing > 0 {
            return self.refuse(id, ErrorCode::Malformed, now_ms, out);
        }
        let Some(Stream::Receiving(mut receiving)) = self.streams.remove(&id) else {
            return;
        };
        self.request_bytes -= receiving.charged;
        let Some(secret) = receiving.opener.take_response_secret() else {
            return;
        };
        let sealer = secret.into_sealer(&mut self.rng);
        match receiving.opener.finish() {
            Ok(opened) => self.start_answer(id, sealer, opened, receiving.meter, now_ms, out),
            Err(_) => self.start_refusal(
                id,
                sealer,
                receiving.meter,
                (ErrorCode::Malformed, 1),
                now_ms,
                out,
            ),
        }
    }

    /// Refuses a request that is still coming: sealed once its sender has shown to hold the key, plainly before.
    fn refuse(&mut self, id: StreamId, code: ErrorCode, now_ms: u64, out: &mut Vec<Output>) {
        let Some(Stream::Receiving(receiving)) = self.streams.get_mut(&id) else {
            return;
        };
        Counters::add(&self.parts.counters.rejected, 1);
        let meter = receiving.meter.clone();
        match receiving.opener.take_response_secret() {
            Some(secret) => {
                self.forget(id);
                let sealer = secret.into_sealer(&mut self.rng);
                self.start_refusal(id, sealer, meter, (code, 1), now_ms, out);
            }
            None => self.end(id, CloseCode::Rejected, out),
        }
    }

    /// Sends the head of a response and puts its answer on the clock.
    pub(super) fn begin(
        &mut self,
        id: StreamId,
        answer: Answer,
        now_ms: u64,
        out: &mut Vec<Output>,
    ) {
        use chrysalis_protocol::frame::FrameKind;
        crate::reply::send(id.0, FrameKind::EnclaveData, id.1, answer.head(), out);
        self.streams.insert(id, Stream::Answering(Box::new(answer)));
        self.pump(id, now_ms, out);
    }

    fn refusals(&self, code: CloseCode) -> &std::sync::atomic::AtomicU64 {
        let counters = &self.parts.counters;
        match code {
            CloseCode::Busy | CloseCode::Draining => &counters.busy,
            CloseCode::KeyUnknown => &counters.key_unknown,
            _ => &counters.rejected,
        }
    }
}
