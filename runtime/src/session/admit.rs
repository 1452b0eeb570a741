//! An opened request becomes a sequence of the engine, or a sealed refusal that says why to its sender alone.

use chrysalis_protocol::frame::FrameKind;
use chrysalis_protocol::messages;
use chrysalis_protocol::receipt::payer_tag;
use chrysalis_protocol::request::{OpenedRequest, Options, Prompt, RequestBody};
use chrysalis_protocol::response::{Accept, ErrorCode, ResponseSealer};
use chrysalis_protocol::secret::SecretBytes;
use zeroize::Zeroizing;

use super::acks::Acks;
use super::answer::{Accepted, Answer};
use super::receipts::Meter;
use super::{Gateway, ModelFacts, StreamId};
use crate::counters::Counters;
use crate::engine::{NewSequence, Sampling, SequenceId};
use crate::hub::Output;
use crate::lease::Promise;
use crate::pacer::Pacer;
use crate::reply;
use crate::worker::Command;

impl Gateway {
    /// Checks an opened request, accepts it, and hands its tokens to the engine.
    pub(super) fn start_answer(
        &mut self,
        id: StreamId,
        sealer: ResponseSealer,
        opened: OpenedRequest,
        mut meter: Meter,
        now_ms: u64,
        out: &mut Vec<Output>,
    ) {
        let OpenedRequest { body, request_hash, acks } = opened;
        meter.payer_tag = payer_tag(body.options.voucher.as_ref().map_or(&[], SecretBytes::expose));
        let sequence = SequenceId(meter.serial);
        let policy = &self.parts.identity.policy;
        let window = policy.ack_window;
        // A refusal keeps the rhythm of the answer. Nothing in it depends on the prompt: the room that a prompt leaves
        // would tell its length.
        let longest = policy.max_output.min(self.parts.model.max_context);
        let envelope = frames_of(body.max_output.min(longest), body.want_logprobs);
        let asked =
            sequence_of(sequence, body, &self.parts.model, policy.max_prompt, policy.max_output);
        let (new, promise) = match asked.and_then(|new| self.promise(new)) {
            Ok(promised) => promised,
            Err(code) => {
                Counters::add(&self.parts.counters.rejected, 1);
                return self.start_refusal(id, sealer, meter, (code, envelope), now_ms, out);
            }
        };
        Counters::add(&self.parts.counters.accepted, 1);
        let accept =
            Accept { request_hash, boot_id: self.parts.identity.boot_id, serial: meter.serial };
        let pacer = Pacer::new(self.rhythm, envelope, now_ms);
        let accepted = Accepted {
            accept,
            sequence,
            prompt_tokens: u32::try_from(new.prompt.len()).unwrap_or(u32::MAX),
            wants_logprobs: new.logprobs,
            acks: (window > 0).then(|| Acks::new(acks, window)),
        };
        let credit = self.parts.limits.egress_frames;
        let mut answer = Answer::accepted(sealer, pacer, meter, credit, accepted);
        answer.promise = promise;
        self.by_sequence.insert(sequence, id);
        (self.parts.engine)(Command::Add(Box::new(new)));
        let body = messages::Accept { serial: accept.serial }.to_bytes();
        reply::send(id.0, FrameKind::Accept, id.1, &body, out);
        self.begin(id, answer, now_ms, out);
    }

    /// A sequence within what is left of the lease.
    fn promise(&mut self, mut new: NewSequence) -> Result<(NewSequence, Promise), ErrorCode> {
        let prompt = u32::try_from(new.prompt.len()).unwrap_or(u32::MAX);
        let promised = self.parts.lease.promise(prompt, new.max_output);
        let (output, promise) = promised.ok_or(ErrorCode::Draining)?;
        new.max_output = output;
        Ok((new, promise))
    }

    /// Answers with a sealed error, in the rhythm of every other answer.
    pub(super) fn start_refusal(
        &mut self,
        id: StreamId,
        sealer: ResponseSealer,
        meter: Meter,
        (code, envelope): (ErrorCode, u64),
        now_ms: u64,
        out: &mut Vec<Output>,
    ) {
        let pacer = Pacer::new(self.rhythm, envelope, now_ms);
        let answer = Answer::refused(sealer, pacer, meter, self.parts.limits.egress_frames, code);
        self.begin(id, answer, now_ms, out);
    }
}

/// Frames of the longest answer: one for each token, another one where it comes with log probabilities.
fn frames_of(max_output: u32, want_logprobs: bool) -> u64 {
    u64::from(max_output) * if want_logprobs { 2 } else { 1 }
}

/// The sequence that a request asks for, within what the policy and the model allow.
fn sequence_of(
    id: SequenceId,
    body: RequestBody,
    model: &ModelFacts,
    max_prompt: u32,
    max_output: u32,
) -> Result<NewSequence, ErrorCode> {
    let Prompt::Tokens(prompt) = body.prompt else {
        return Err(ErrorCode::Policy);
    };
    if body.options.grammar.is_some() {
        return Err(ErrorCode::Unsupported);
    }
    let prompt_len = u32::try_from(prompt.len()).map_err(|_| ErrorCode::TooLong)?;
    let room = model.max_context.saturating_sub(prompt_len);
    if prompt_len > max_prompt || room == 0 || body.max_output > max_output {
        return Err(ErrorCode::TooLong);
    }
    let biased = body.options.logit_bias.iter().map(|(token, _)| token);
    if prompt.iter().chain(biased).any(|&token| token as usize >= model.vocab_size) {
        return Err(ErrorCode::Malformed);
    }
    let sampling = sampling_of(&body.options, model);
    sampling.check().map_err(|_| ErrorCode::Unsupported)?;
    let mut stop_token_ids = model.generation.eos_token_ids.clone();
    stop_token_ids.extend(body.options.stop_token_ids.iter());
    Ok(NewSequence {
        id,
        prompt: Zeroizing::new(prompt.to_vec()),
        max_output: body.max_output.min(room),
        sampling,
        seed: body.seed,
        stop_token_ids,
        logprobs: body.want_logprobs.then(|| body.options.logprobs.unwrap_or(0)),
    })
}

/// What the request says, and the package's defaults for what it does not.
fn sampling_of(options: &Options, model: &ModelFacts) -> Sampling {
    let defaults = &model.generation;
    Sampling {
        logit_bias: options.logit_bias.to_vec(),
        repetition_penalty: options.repetition_penalty.unwrap_or(defaults.repetition_penalty),
        presence_penalty: options.presence_penalty.unwrap_or(0.0),
        frequency_penalty: options.frequency_penalty.unwrap_or(0.0),
        temperature: options.temperature.unwrap_or(defaults.temperature),
        top_k: options.top_k.unwrap_or(defaults.top_k),
        top_p: options.top_p.unwrap_or(defaults.top_p),
        min_p: options.min_p.unwrap_or(defaults.min_p),
    }
}
