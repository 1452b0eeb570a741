//! The session: a pure state machine behind all connections. Frames in, frames out; time is an argument.
//!
//! It owns the epochs, the streams and the receipt chain. Plaintext exists from `receive` (a request opens) to `answer`
//! (a response is sealed); the engine behind it sees token ids and numbers only.

mod acks;
mod admit;
mod answer;
mod evidence;
mod receipts;
mod receive;

use std::collections::HashMap;
use std::sync::Arc;

use chrysalis_attestation::attester::AttesterError;
use chrysalis_protocol::frame::{Frame, FrameKind};
use chrysalis_protocol::messages::{CloseCode, Credit, State};
use chrysalis_protocol::package::Generation;
use chrysalis_protocol::receipt::round_up;
use chrysalis_protocol::statement::Statement;

use crate::config::LaunchConfig;
use crate::counters::Counters;
use crate::engine::{Event, SequenceId};
use crate::epoch::{Epochs, Identity, Stated};
use crate::hub::{ConnectionId, Handler, Output};
use crate::lease::Lease;
use crate::limits::Limits;
use crate::pacer::Rhythm;
use crate::reply;
use crate::rng::SystemRng;
use crate::worker::Command;

use answer::Answer;
use evidence::Reports;
pub use receipts::Receipts;
use receive::Receiving;

/// Names a stream: its connection and the host's number.
type StreamId = (ConnectionId, u64);

/// One stream on its way.
enum Stream {
    /// Its sealed request is coming.
    Receiving(Box<Receiving>),
    /// Its answer is going out.
    Answering(Box<Answer>),
}

/// What the model allows, for requests that are checked before the engine sees them.
#[derive(Clone, Debug)]
pub struct ModelFacts {
    /// Tokens of the vocabulary.
    pub vocab_size: usize,
    /// Positions of the longest sequence.
    pub max_context: u32,
    /// Special tokens, and what to sample with where a request does not say.
    pub generation: Generation,
}

/// What a gateway is made of.
#[expect(missing_debug_implementations, reason = "it holds keys")]
pub struct GatewayParts {
    /// What stays the same through the boot.
    pub identity: Identity,
    /// What peers may do.
    pub limits: Limits,
    /// The launch config.
    pub config: LaunchConfig,
    /// The way to the platform: a statement to attest. Its answers come in order, by [`Handler::attested`].
    pub platform: Box<dyn FnMut(Statement) + Send>,
    /// Starts with the first one.
    pub epochs: Epochs,
    /// The receipt chain.
    pub receipts: Receipts,
    /// What the owner's terms leave to be served.
    pub lease: Lease,
    /// The model's limits and defaults.
    pub model: ModelFacts,
    /// The bytes of the client bundle.
    pub client_bundle: Vec<u8>,
    /// Shared with the threads that count.
    pub counters: Arc<Counters>,
    /// The way to the engine.
    pub engine: Box<dyn FnMut(Command) + Send>,
}

/// The session of a serving enclave.
#[expect(missing_debug_implementations, reason = "it holds keys")]
pub struct Gateway {
    parts: GatewayParts,
    rhythm: Rhythm,
    rng: SystemRng,
    streams: HashMap<StreamId, Stream>,
    by_sequence: HashMap<SequenceId, StreamId>,
    reports: Reports,
    request_bytes: usize,
    next_serial: u64,
    draining: bool,
}

impl Gateway {
    /// Starts to serve.
    pub fn new(parts: GatewayParts) -> Self {
        Self {
            rhythm: parts.config.rhythm(),
            parts,
            rng: SystemRng::default(),
            streams: HashMap::new(),
            by_sequence: HashMap::new(),
            reports: Reports::default(),
            request_bytes: 0,
            next_serial: 0,
            draining: false,
        }
    }

    /// When the owner's terms are used up, what runs is finished and nothing new is taken.
    fn end_lease(&mut self, now_ms: u64) {
        let quantum = self.parts.identity.policy.billing_quantum;
        self.draining |= self.parts.lease.is_over(now_ms, quantum);
    }

    fn state(&self) -> State {
        if self.draining { State::Draining } else { State::Serving }
    }

    /// Ends a stream for the host; what the engine still does for it is cancelled.
    fn end(&mut self, id: StreamId, code: CloseCode, out: &mut Vec<Output>) {
        self.forget(id);
        reply::close(id.0, id.1, code, out);
    }

    fn forget(&mut self, id: StreamId) {
        match self.streams.remove(&id) {
            Some(Stream::Receiving(receiving)) => self.request_bytes -= receiving.charged,
            Some(Stream::Answering(answer)) => {
                self.parts.lease.settle(answer.promise, answer.used());
                if let Some(sequence) = answer.sequence
                    && self.by_sequence.remove(&sequence).is_some()
                {
                    (self.parts.engine)(Command::Cancel(sequence));
                }
            }
            None => {}
        }
    }

    /// Sends what is due on a stream, and ends it after its final frame.
    fn pump(&mut self, id: StreamId, now_ms: u64, out: &mut Vec<Output>) {
        let Some(Stream::Answering(answer)) = self.streams.get_mut(&id) else {
            return;
        };
        let mut due = Vec::new();
        let ended = answer.pump(now_ms, &self.parts.identity, &mut self.parts.receipts, &mut due);
        for frame in due {
            reply::send(id.0, FrameKind::EnclaveData, id.1, &frame, out);
        }
        match ended {
            Ok(None) => {
                if let Some((sequence, paused)) = answer.change_pause() {
                    (self.parts.engine)(Command::Pause(sequence, paused));
                }
            }
            Ok(Some(end)) => {
                let counters = &self.parts.counters;
                // In billing units, as receipts have them: an exact count would show a length that padding hides.
                let quantum = self.parts.identity.policy.billing_quantum;
                let units = |tokens| u64::from(round_up(tokens, quantum));
                Counters::add(&counters.prompt_tokens, units(end.prompt_tokens));
                Counters::add(&counters.output_tokens, units(end.output_tokens));
                reply::send(id.0, FrameKind::Receipt, id.1, &end.receipt, out);
                self.end(id, CloseCode::Ok, out);
            }
            Err(_) => {
                Counters::add(&self.parts.counters.internal, 1);
                self.end(id, CloseCode::Internal, out);
            }
        }
    }

    fn credit(&mut self, id: StreamId, frame: &Frame<'_>, now_ms: u64, out: &mut Vec<Output>) {
        let Ok(credit) = Credit::from_bytes(frame.body) else {
            out.push(Output::Reset(id.0));
            return;
        };
        if let Some(Stream::Answering(answer)) = self.streams.get_mut(&id) {
            answer.grant(credit.frames, &self.parts.limits);
            self.pump(id, now_ms, out);
        }
    }

    fn cancel(&mut self, id: StreamId, now_ms: u64, out: &mut Vec<Output>) {
        match self.streams.get_mut(&id) {
            Some(Stream::Answering(answer)) => {
                Counters::add(&self.parts.counters.cancelled, 1);
                if let Some(sequence) = answer.cancel()
                    && self.by_sequence.remove(&sequence).is_some()
                {
                    (self.parts.engine)(Command::Cancel(sequence));
                }
                self.pump(id, now_ms, out);
            }
            Some(Stream::Receiving(_)) => {
                Counters::add(&self.parts.counters.cancelled, 1);
                self.end(id, CloseCode::Rejected, out);
            }
            None => {}
        }
    }

    fn client_bundle(&self, id: StreamId, frame: &Frame<'_>, out: &mut Vec<Output>) {
        use chrysalis_protocol::messages::{CLIENT_BUNDLE_PIECES, ClientBundleReq, pieces};
        let bundle = &self.parts.client_bundle;
        match ClientBundleReq::from_bytes(frame.body).map(|request| usize::try_from(request.offset))
        {
            Ok(Ok(offset)) if offset < bundle.len() => {
                for piece in pieces(bundle, offset).take(CLIENT_BUNDLE_PIECES) {
                    reply::send(id.0, FrameKind::ClientBundle, id.1, &piece.to_bytes(), out);
                }
            }
            Ok(_) => reply::close(id.0, id.1, CloseCode::Rejected, out),
            Err(_) => out.push(Output::Reset(id.0)),
        }
    }

    /// Answers whose client does not say that they reach it end where they are, as if it had cancelled.
    fn expire_unheard(&mut self, now_ms: u64, out: &mut Vec<Output>) {
        let limits = self.parts.limits;
        let unheard = |stream: &Stream| matches!(stream, Stream::Answering(answer) if answer.is_unheard(now_ms, &limits));
        let late: Vec<_> =
            self.streams.iter().filter(|(_, stream)| unheard(stream)).map(|(id, _)| *id).collect();
        for id in late {
            self.cancel(id, now_ms, out);
        }
    }

    /// Streams whose peer is too slow.
    fn expire_streams(&mut self, now_ms: u64, out: &mut Vec<Output>) {
        let limits = self.parts.limits;
        let late: Vec<_> = self
            .streams
            .iter()
            .filter(|(_, stream)| match stream {
                Stream::Receiving(receiving) => receiving.is_late(now_ms, &limits),
                Stream::Answering(answer) => answer.is_stalled(now_ms, limits.egress_stall_ms),
            })
            .map(|(id, _)| *id)
            .collect();
        for id in late {
            self.end(id, CloseCode::Rejected, out);
        }
    }
}

impl Handler for Gateway {
    fn frame(&mut self, id: ConnectionId, frame: &Frame<'_>, now_ms: u64, out: &mut Vec<Output>) {
        let stream = (id, frame.stream);
        let body_len = match frame.kind {
            FrameKind::End | FrameKind::Cancel | FrameKind::Drain => Some(0),
            FrameKind::Ping => Some(8),
            _ => None,
        };
        if body_len.is_some_and(|len| frame.body.len() != len) {
            return out.push(Output::Reset(id));
        }
        self.end_lease(now_ms);
        match frame.kind {
            FrameKind::Hello => {
                let status = self.parts.counters.status(self.state(), self.streams.len());
                reply::hello(id, frame, &self.parts.limits, &status, out);
            }
            FrameKind::EvidenceReq => self.evidence(stream, frame, now_ms, out),
            FrameKind::ClientBundleReq => self.client_bundle(stream, frame, out),
            FrameKind::Open => self.open(stream, frame, now_ms, out),
            FrameKind::HostData => self.data(stream, frame.body, now_ms, out),
            FrameKind::End => self.complete(stream, now_ms, out),
            FrameKind::Cancel => self.cancel(stream, now_ms, out),
            FrameKind::HostCredit => self.credit(stream, frame, now_ms, out),
            FrameKind::Ping => {
                reply::send(id, FrameKind::Pong, frame.stream, frame.body, out);
                let status = self.parts.counters.status(self.state(), self.streams.len());
                reply::send(id, FrameKind::Status, 0, &status.to_bytes(), out);
            }
            FrameKind::Drain => self.draining = true,
            // The key is there already: whoever releases it again learns that it was not needed.
            FrameKind::KeyrelResp => reply::close(id, frame.stream, CloseCode::Rejected, out),
            _ => out.push(Output::Reset(id)),
        }
    }

    fn closed(&mut self, id: ConnectionId, _out: &mut Vec<Output>) {
        let streams: Vec<_> =
            self.streams.keys().filter(|stream| stream.0 == id).copied().collect();
        for stream in streams {
            Counters::add(&self.parts.counters.cancelled, 1);
            self.forget(stream);
        }
        self.reports.forget(id);
    }

    fn engine(&mut self, events: Vec<Event>, now_ms: u64, out: &mut Vec<Output>) {
        let mut touched = Vec::new();
        for event in events {
            let (Event::Token { id, .. } | Event::Progress { id, .. } | Event::Finished { id, .. }) =
                &event;
            let Some(stream) = self.by_sequence.get(id).copied() else {
                continue;
            };
            if matches!(event, Event::Finished { .. }) {
                self.by_sequence.remove(id);
            }
            if let Some(Stream::Answering(answer)) = self.streams.get_mut(&stream) {
                answer.take(event);
                if touched.last() != Some(&stream) {
                    touched.push(stream);
                }
            }
        }
        for stream in touched {
            if matches!(self.streams.get(&stream), Some(Stream::Answering(a)) if a.is_immediate()) {
                self.pump(stream, now_ms, out);
            }
        }
    }

    fn attested(
        &mut self,
        stated: Result<Stated, AttesterError>,
        now_ms: u64,
        out: &mut Vec<Output>,
    ) {
        self.take_evidence(stated, now_ms, out);
    }

    fn tick(&mut self, now_ms: u64, out: &mut Vec<Output>) {
        let due: Vec<_> = self
            .streams
            .iter()
            .filter(
                |(_, stream)| matches!(stream, Stream::Answering(answer) if answer.is_due(now_ms)),
            )
            .map(|(id, _)| *id)
            .collect();
        for id in due {
            self.pump(id, now_ms, out);
        }
        self.expire_unheard(now_ms, out);
        self.expire_streams(now_ms, out);
        self.end_lease(now_ms);
        self.ask_platform(now_ms, out);
        self.parts.epochs.expire(now_ms);
    }

    fn next_wake_ms(&self) -> Option<u64> {
        let ticks = self.streams.values().filter_map(|stream| match stream {
            Stream::Receiving(_) => None,
            Stream::Answering(answer) => answer.next_ms(&self.parts.limits),
        });
        let epoch = self.parts.epochs.due_ms(&self.parts.identity.policy);
        let lease = self.parts.lease.until_ms().filter(|_| !self.draining);
        ticks.chain(lease).chain(self.reports.next_ms(epoch)).min()
    }

    fn is_done(&self) -> bool {
        self.draining && self.streams.is_empty()
    }
}

#[cfg(test)]
mod tests;
