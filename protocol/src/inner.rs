//! The 256 bytes inside a response frame (docs/formats.md, section 3, response).
//!
//! type u8 | flags u8 | len u16 | cumulative_tokens u32 | payload of at most 248 bytes | zeros.

use thiserror::Error;
use zeroize::Zeroizing;

use crate::codec::{CodecError, Reader, Writer};

/// Length of an inner frame, in bytes.
pub const INNER_LEN: usize = 256;
/// The longest payload, in bytes.
pub const PAYLOAD_MAX: usize = 248;
/// The most token ids in a frame.
pub const TOKENS_MAX: usize = PAYLOAD_MAX / 4;

/// Why 256 bytes are not an inner frame, or why a value does not fit one.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
#[non_exhaustive]
pub enum InnerError {
    /// A field is cut short or a reserved byte is not zero.
    #[error(transparent)]
    Codec(#[from] CodecError),
    /// No inner frame has this type.
    #[error("no inner frame has the type {found}")]
    UnknownType {
        /// What was read.
        found: u8,
    },
    /// The flags are not the ones of this type.
    #[error("an inner frame of type {kind} has the flags {found:#04x}")]
    Flags {
        /// The type.
        kind: u8,
        /// What was read.
        found: u8,
    },
    /// The payload has a length that it cannot have.
    #[error("an inner frame of type {kind} has a payload of {len} bytes")]
    PayloadLen {
        /// The type.
        kind: u8,
        /// Its length.
        len: usize,
    },
    /// The text is not UTF-8.
    #[error("the text is not UTF-8")]
    Utf8,
    /// A log probability is not a finite number.
    #[error("a log probability is not a finite number")]
    Logprob,
    /// The tokens of a log probability frame have different numbers of alternatives.
    #[error("a token has {found} alternatives, the first one {expected}")]
    Alternatives {
        /// Of this token.
        found: usize,
        /// Of the first token.
        expected: usize,
    },
    /// The progress is beyond its end.
    #[error("{done} of {total} prompt tokens were read")]
    Progress {
        /// Prompt tokens that were read.
        done: u32,
        /// Prompt tokens in all.
        total: u32,
    },
    /// No error has this code.
    #[error("no error has the code {found}")]
    ErrorCode {
        /// What was read.
        found: u16,
    },
    /// No output ends for this reason.
    #[error("no output ends for the reason {found}")]
    FinishReason {
        /// What was read.
        found: u8,
    },
    /// The frame would count more tokens than there can be.
    #[error("{cumulative} tokens and {more} more are too many")]
    TooManyTokens {
        /// Tokens so far.
        cumulative: u32,
        /// Tokens in this frame.
        more: u32,
    },
}

/// What a response frame says.
#[derive(Clone, PartialEq)]
#[expect(missing_debug_implementations, reason = "an answer is never printed")]
pub enum Inner {
    /// Nothing; it keeps the tick.
    Dummy,
    /// The request was accepted.
    Accept(Accept),
    /// The next token ids; 1 to 62.
    Tokens(Zeroizing<Vec<u32>>),
    /// The next text, for a text prompt.
    Text {
        /// The text; at most 248 bytes.
        text: Zeroizing<String>,
        /// How many tokens it stands for.
        tokens: u32,
    },
    /// How much of the prompt was read.
    Progress {
        /// Prompt tokens that were read.
        done: u32,
        /// Prompt tokens in all.
        total: u32,
    },
    /// The request failed; END follows.
    Error(ErrorCode),
    /// Log probabilities of the tokens of the frame before, in order.
    Logprobs(Zeroizing<Vec<TokenLogprobs>>),
    /// The output is complete; only in the final frame.
    End(End),
}

/// ACCEPT: request_hash 32 | boot_id 16 | serial u64.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Accept {
    /// SHA-256 of the sealed request.
    pub request_hash: [u8; 32],
    /// The boot.
    pub boot_id: [u8; 16],
    /// The request's number in the boot.
    pub serial: u64,
}

/// A token's log probability and its alternatives.
#[derive(Clone, PartialEq)]
#[expect(missing_debug_implementations, reason = "an answer is never printed")]
pub struct TokenLogprobs {
    /// The token and its log probability.
    pub token: (u32, f32),
    /// The likeliest tokens and theirs, as many as were asked for.
    pub alternatives: Vec<(u32, f32)>,
}

impl zeroize::Zeroize for TokenLogprobs {
    fn zeroize(&mut self) {
        self.token.zeroize();
        self.alternatives.zeroize();
    }
}

/// Why a request failed, as its client is told.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[repr(u16)]
pub enum ErrorCode {
    /// The plaintext is malformed.
    Malformed = 1,
    /// The prompt or the wanted output is longer than the serving policy or the model allows.
    TooLong = 2,
    /// An option or a mode is not offered.
    Unsupported = 3,
    /// The serving policy forbids it.
    Policy = 4,
    /// There is no room.
    Busy = 5,
    /// The enclave is going down.
    Draining = 6,
    /// A fault of the enclave.
    Internal = 7,
}

impl TryFrom<u16> for ErrorCode {
    type Error = InnerError;

    fn try_from(found: u16) -> Result<Self, InnerError> {
        Ok(match found {
            1 => Self::Malformed,
            2 => Self::TooLong,
            3 => Self::Unsupported,
            4 => Self::Policy,
            5 => Self::Busy,
            6 => Self::Draining,
            7 => Self::Internal,
            _ => return Err(InnerError::ErrorCode { found }),
        })
    }
}

/// Why the output ended.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[repr(u8)]
pub enum FinishReason {
    /// A token that ends the output came.
    Stop = 1,
    /// The wanted length was reached.
    Length = 2,
    /// The client or the host cancelled.
    Cancelled = 3,
    /// The request failed; an ERROR frame came before.
    Error = 4,
}

impl TryFrom<u8> for FinishReason {
    type Error = InnerError;

    fn try_from(found: u8) -> Result<Self, InnerError> {
        Ok(match found {
            1 => Self::Stop,
            2 => Self::Length,
            3 => Self::Cancelled,
            4 => Self::Error,
            _ => return Err(InnerError::FinishReason { found }),
        })
    }
}

/// END: reason u8 | zero 3 | prompt u32 | cached u32 | output u32 | output_hash 32 |
/// receipt_hash 32.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct End {
    /// Why the output ended.
    pub reason: FinishReason,
    /// Prompt tokens, exactly.
    pub prompt_tokens: u32,
    /// Prompt tokens that were in the cache, exactly.
    pub cached_tokens: u32,
    /// Output tokens, exactly.
    pub output_tokens: u32,
    /// SHA-256 of the output: its token ids, each u32 big-endian, or its text.
    pub output_hash: [u8; 32],
    /// SHA-256 of the last receipt; zero where there is none.
    pub receipt_hash: [u8; 32],
}

impl Inner {
    /// How many output tokens the frame adds.
    #[must_use]
    pub fn num_tokens(&self) -> u32 {
        match self {
            Self::Tokens(ids) => ids.len() as u32,
            Self::Text { tokens, .. } => *tokens,
            _ => 0,
        }
    }

    /// Writes the encoding, [`INNER_LEN`] bytes, after `before` output tokens. On an error the writer holds anything.
    pub(crate) fn encode(&self, before: u32, writer: &mut Writer) -> Result<(), InnerError> {
        let more = self.num_tokens();
        let cumulative = before
            .checked_add(more)
            .ok_or(InnerError::TooManyTokens { cumulative: before, more })?;
        let (kind, flags, len) = self.kind();
        // Before it is written: a writer that grows leaves plaintext behind.
        if len > PAYLOAD_MAX {
            return Err(InnerError::PayloadLen { kind, len });
        }
        let start = writer.len();
        writer.u8(kind).u8(flags).u16(len as u16).u32(cumulative);
        self.write_payload(writer);
        writer.zeros(PAYLOAD_MAX.saturating_sub(len));
        // One rule for both ends: what the client would refuse is not sealed.
        let written = writer.since(start).as_array();
        Self::decode(written.ok_or(InnerError::PayloadLen { kind, len })?, before)?;
        if let Self::Logprobs(entries) = self {
            check_alternatives(entries)?;
        }
        Ok(())
    }

    /// Reads the frame and the cumulative number of output tokens that it states. That number
    /// counts the tokens of a TEXT frame, so the ones `before` are needed.
    pub(crate) fn decode(frame: &[u8; INNER_LEN], before: u32) -> Result<(Self, u32), InnerError> {
        let mut reader = Reader::new(frame);
        let (kind, found, len) = (reader.u8()?, reader.u8()?, usize::from(reader.u16()?));
        let cumulative = reader.u32()?;
        if found != 0 && kind != LOGPROBS {
            return Err(InnerError::Flags { kind, found });
        }
        if len > PAYLOAD_MAX {
            return Err(InnerError::PayloadLen { kind, len });
        }
        let payload = reader.bytes(len)?;
        reader.zeros(reader.left())?;
        let mut reader = Reader::new(payload);
        let inner = match kind {
            DUMMY => Self::Dummy,
            ACCEPT => Self::Accept(Accept {
                request_hash: reader.array()?,
                boot_id: reader.array()?,
                serial: reader.u64()?,
            }),
            TOKENS => Self::Tokens(read_tokens(&mut reader)?),
            TEXT => {
                let text = reader.bytes(len)?.to_vec();
                let text = String::from_utf8(text).map_err(|_| InnerError::Utf8)?;
                let tokens = cumulative.saturating_sub(before);
                Self::Text { text: Zeroizing::new(text), tokens }
            }
            PROGRESS => {
                let (done, total) = (reader.u32()?, reader.u32()?);
                if done > total {
                    return Err(InnerError::Progress { done, total });
                }
                Self::Progress { done, total }
            }
            ERROR => Self::Error(ErrorCode::try_from(reader.u16()?)?),
            LOGPROBS => Self::Logprobs(read_logprobs(&mut reader, found)?),
            END => Self::End(read_end(&mut reader)?),
            found => return Err(InnerError::UnknownType { found }),
        };
        reader.finish()?;
        Ok((inner, cumulative))
    }

    /// Type, flags, and length of the payload.
    fn kind(&self) -> (u8, u8, usize) {
        match self {
            Self::Dummy => (DUMMY, 0, 0),
            Self::Accept(_) => (ACCEPT, 0, 32 + 16 + 8),
            Self::Tokens(ids) => (TOKENS, 0, ids.len().saturating_mul(4)),
            Self::Text { text, .. } => (TEXT, 0, text.len()),
            Self::Progress { .. } => (PROGRESS, 0, 8),
            Self::Error(_) => (ERROR, 0, 2),
            Self::Logprobs(entries) => {
                let alternatives = entries.first().map_or(0, |first| first.alternatives.len());
                let all = entries.iter().map(|entry| entry.alternatives.len().saturating_add(1));
                let flags = u8::try_from(alternatives).unwrap_or(u8::MAX);
                (LOGPROBS, flags, all.fold(0, usize::saturating_add).saturating_mul(8))
            }
            Self::End(_) => (END, 0, 4 + 3 * 4 + 2 * 32),
        }
    }

    fn write_payload(&self, writer: &mut Writer) {
        match self {
            Self::Dummy => {}
            Self::Accept(accept) => {
                writer.bytes(&accept.request_hash).bytes(&accept.boot_id).u64(accept.serial);
            }
            Self::Tokens(ids) => ids.iter().for_each(|id| {
                writer.u32(*id);
            }),
            Self::Text { text, .. } => {
                writer.bytes(text.as_bytes());
            }
            Self::Progress { done, total } => {
                writer.u32(*done).u32(*total);
            }
            Self::Error(code) => {
                writer.u16(*code as u16);
            }
            Self::Logprobs(entries) => {
                for (id, logprob) in entries
                    .iter()
                    .flat_map(|entry| core::iter::once(&entry.token).chain(&entry.alternatives))
                {
                    writer.u32(*id).f32(*logprob);
                }
            }
            Self::End(end) => {
                writer.u8(end.reason as u8).zeros(3).u32(end.prompt_tokens);
                writer.u32(end.cached_tokens).u32(end.output_tokens);
                writer.bytes(&end.output_hash).bytes(&end.receipt_hash);
            }
        }
    }
}

/// The most tokens in a LOGPROBS frame with so many alternatives for each.
#[must_use]
pub const fn logprobs_max(alternatives: u8) -> usize {
    match (PAYLOAD_MAX / 8).checked_div((alternatives as usize).saturating_add(1)) {
        Some(max) => max,
        None => 0,
    }
}

fn read_tokens(reader: &mut Reader<'_>) -> Result<Zeroizing<Vec<u32>>, InnerError> {
    let len = reader.left();
    let (ids, rest) = reader.bytes(len)?.as_chunks::<4>();
    if ids.is_empty() || !rest.is_empty() {
        return Err(InnerError::PayloadLen { kind: TOKENS, len });
    }
    Ok(Zeroizing::new(ids.iter().map(|id| u32::from_be_bytes(*id)).collect()))
}

fn read_logprobs(
    reader: &mut Reader<'_>,
    alternatives: u8,
) -> Result<Zeroizing<Vec<TokenLogprobs>>, InnerError> {
    if reader.is_empty() {
        return Err(InnerError::PayloadLen { kind: LOGPROBS, len: 0 });
    }
    let mut entries = Zeroizing::new(Vec::new());
    while !reader.is_empty() {
        let token = read_logprob(reader)?;
        let alternatives =
            (0..alternatives).map(|_| read_logprob(reader)).collect::<Result<_, _>>()?;
        entries.push(TokenLogprobs { token, alternatives });
    }
    Ok(entries)
}

fn read_logprob(reader: &mut Reader<'_>) -> Result<(u32, f32), InnerError> {
    let (id, logprob) = (reader.u32()?, reader.f32()?);
    if logprob.is_finite() { Ok((id, logprob)) } else { Err(InnerError::Logprob) }
}

fn read_end(reader: &mut Reader<'_>) -> Result<End, InnerError> {
    let reason = FinishReason::try_from(reader.u8()?)?;
    reader.zeros(3)?;
    Ok(End {
        reason,
        prompt_tokens: reader.u32()?,
        cached_tokens: reader.u32()?,
        output_tokens: reader.u32()?,
        output_hash: reader.array()?,
        receipt_hash: reader.array()?,
    })
}

fn check_alternatives(entries: &[TokenLogprobs]) -> Result<(), InnerError> {
    let expected = entries.first().map_or(0, |first| first.alternatives.len());
    match entries.iter().map(|entry| entry.alternatives.len()).find(|found| *found != expected) {
        Some(found) => Err(InnerError::Alternatives { found, expected }),
        None => Ok(()),
    }
}

const DUMMY: u8 = 0;
const ACCEPT: u8 = 1;
const TOKENS: u8 = 2;
const TEXT: u8 = 3;
const PROGRESS: u8 = 4;
const ERROR: u8 = 5;
const END: u8 = 6;
const LOGPROBS: u8 = 7;
