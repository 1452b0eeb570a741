//! What a client asks (docs/formats.md, section 3, request): a head of 64 bytes, options, the
//! prompt, and zeros up to a power of two.
//!
//! Head: `CHRY-RB1` | mode u8 | flags u8 | option_count u16 | body_len u32 | max_output u32 |
//! request_id 16 | seed u64 | zero 20. Options: type u16 | len u16 | value, ascending.

use thiserror::Error;
use zeroize::Zeroizing;

use crate::codec::{CodecError, Reader, Writer};
use crate::options::Options;
use crate::secret::SecretBytes;

/// The shortest padded request, in bytes.
pub const PADDED_MIN: usize = 1 << 10;
/// The longest padded request, in bytes.
pub const PADDED_MAX: usize = 8 << 20;
/// The longest text prompt, in bytes.
pub const TEXT_MAX: usize = 1 << 20;

/// Why a request's plaintext was refused. No variant carries what the client wrote.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
#[non_exhaustive]
pub enum BodyError {
    /// A field is cut short, or the magic or a reserved byte is wrong.
    #[error(transparent)]
    Codec(#[from] CodecError),
    /// No prompt has this mode.
    #[error("no prompt has the mode {found}")]
    Mode {
        /// What was read.
        found: u8,
    },
    /// An undefined flag is set.
    #[error("the flags are {found:#04x}, beyond the defined {FLAGS:#04x}")]
    Flags {
        /// What was read.
        found: u8,
    },
    /// The prompt is empty.
    #[error("the prompt is empty")]
    EmptyPrompt,
    /// A prompt of token ids is not a whole number of them.
    #[error("a prompt of {len} bytes is not a whole number of token ids")]
    PartialToken {
        /// Its length.
        len: usize,
    },
    /// A text prompt is too long.
    #[error("a text prompt of {len} bytes, more than {TEXT_MAX}")]
    TextTooLong {
        /// Its length.
        len: usize,
    },
    /// A text prompt is not UTF-8.
    #[error("the text prompt is not UTF-8")]
    Utf8,
    /// No output is wanted.
    #[error("no output is wanted")]
    NoOutput,
    /// Alternatives are asked for, but no log probabilities.
    #[error("alternatives are asked for without log probabilities")]
    LogprobsFlag,
    /// No option has this type.
    #[error("no option has the type {found}")]
    UnknownOption {
        /// What was read.
        found: u16,
    },
    /// An option comes twice, or after one of a greater type.
    #[error("option {found} comes after option {previous}")]
    OptionOrder {
        /// The option that is out of order.
        found: u16,
        /// The option before it.
        previous: u16,
    },
    /// An option has a length that it cannot have.
    #[error("option {option} has {len} bytes")]
    OptionLen {
        /// The option's type.
        option: u16,
        /// Its length.
        len: usize,
    },
    /// A number is outside its range, or not one.
    #[error("option {option} is outside its range")]
    OptionRange {
        /// The option's type.
        option: u16,
    },
    /// The token ids of an option do not ascend.
    #[error("the token ids of option {option} do not ascend")]
    OptionIds {
        /// The option's type.
        option: u16,
    },
    /// The request is too long to be padded.
    #[error("a request of {len} bytes, more than {PADDED_MAX}")]
    TooLong {
        /// Its length.
        len: usize,
    },
    /// The padded length is not a power of two, or out of range.
    #[error("a padded request of {len} bytes is not one of the 14 sizes")]
    PaddedLen {
        /// Its length.
        len: usize,
    },
}

/// The prompt.
#[derive(Clone, Eq, PartialEq)]
#[expect(missing_debug_implementations, reason = "a prompt is never printed")]
pub enum Prompt {
    /// Token ids; the enclave holds no text.
    Tokens(Zeroizing<Vec<u32>>),
    /// An OpenAI chat-completions request, JSON in UTF-8. What it says is checked where it is
    /// understood; here only its length and that it is UTF-8.
    Text(SecretBytes),
}

impl Prompt {
    /// A prompt of token ids.
    #[must_use]
    pub fn tokens(ids: impl Into<Vec<u32>>) -> Self {
        Self::Tokens(Zeroizing::new(ids.into()))
    }
}

/// A request before it is sealed and after it was opened.
#[derive(Clone, PartialEq)]
#[expect(missing_debug_implementations, reason = "a prompt is never printed")]
pub struct RequestBody {
    /// Tokens are wanted as they come.
    pub stream: bool,
    /// Log probabilities are wanted.
    pub want_logprobs: bool,
    /// The most output tokens; not 0.
    pub max_output: u32,
    /// The client's name for the request; the same when it is sealed again.
    pub request_id: [u8; 16],
    /// The sampler's seed.
    pub seed: u64,
    /// What differs from the package's defaults.
    pub options: Options,
    /// The prompt.
    pub prompt: Prompt,
}

impl RequestBody {
    /// The plaintext, padded to the smallest size that holds it.
    ///
    /// # Errors
    /// [`BodyError`], whenever the enclave would refuse the result.
    pub fn to_padded(&self) -> Result<SecretBytes, BodyError> {
        let (mode, body_len) = match &self.prompt {
            Prompt::Tokens(ids) => (MODE_TOKENS, ids.len().saturating_mul(4)),
            Prompt::Text(text) => (MODE_TEXT, text.len()),
        };
        let (option_count, options) = self.options.to_bytes();
        let len = HEAD_LEN.saturating_add(options.len()).saturating_add(body_len);
        let padded = padded_len(len).ok_or(BodyError::TooLong { len })?;
        let stream = if self.stream { STREAM } else { 0 };
        let want_logprobs = if self.want_logprobs { WANT_LOGPROBS } else { 0 };
        let mut writer = Writer::with_capacity(padded);
        writer.bytes(MAGIC).u8(mode).u8(stream | want_logprobs).u16(option_count);
        writer.u32(body_len as u32).u32(self.max_output).bytes(&self.request_id);
        writer.u64(self.seed).zeros(20).bytes(options.expose());
        match &self.prompt {
            Prompt::Tokens(ids) => {
                for id in ids.iter() {
                    writer.u32(*id);
                }
            }
            Prompt::Text(text) => {
                writer.bytes(text.expose());
            }
        }
        writer.zeros(padded.saturating_sub(len));
        let plaintext = SecretBytes::from(writer.into_bytes());
        // One rule for both ends: what the enclave would refuse is not sealed.
        Self::from_padded(plaintext.expose())?;
        Ok(plaintext)
    }

    /// Reads a padded plaintext.
    ///
    /// # Errors
    /// [`BodyError`] names the check that failed.
    pub fn from_padded(plaintext: &[u8]) -> Result<Self, BodyError> {
        let len = plaintext.len();
        if !is_padded_len(len) {
            return Err(BodyError::PaddedLen { len });
        }
        let mut reader = Reader::new(plaintext);
        reader.magic(MAGIC)?;
        let mode = reader.u8()?;
        let flags = reader.u8()?;
        if flags & !FLAGS != 0 {
            return Err(BodyError::Flags { found: flags });
        }
        let option_count = reader.u16()?;
        let body_len = reader.u32()? as usize;
        let max_output = reader.u32()?;
        if max_output == 0 {
            return Err(BodyError::NoOutput);
        }
        let (request_id, seed) = (reader.array()?, reader.u64()?);
        reader.zeros(20)?;
        let options = Options::read(option_count, &mut reader)?;
        let want_logprobs = flags & WANT_LOGPROBS != 0;
        if options.logprobs.is_some() && !want_logprobs {
            return Err(BodyError::LogprobsFlag);
        }
        let prompt = read_prompt(mode, reader.bytes(body_len)?)?;
        reader.zeros(reader.left())?;
        let stream = flags & STREAM != 0;
        Ok(Self { stream, want_logprobs, max_output, request_id, seed, options, prompt })
    }
}

/// The padded length of a request of `len` bytes; none when it is too long.
#[must_use]
pub fn padded_len(len: usize) -> Option<usize> {
    let padded = len.max(PADDED_MIN).checked_next_power_of_two()?;
    (padded <= PADDED_MAX).then_some(padded)
}

/// Whether `len` is one of the 14 padded lengths.
#[must_use]
pub const fn is_padded_len(len: usize) -> bool {
    len.is_power_of_two() && len >= PADDED_MIN && len <= PADDED_MAX
}

fn read_prompt(mode: u8, body: &[u8]) -> Result<Prompt, BodyError> {
    let len = body.len();
    if len == 0 {
        return Err(BodyError::EmptyPrompt);
    }
    match mode {
        MODE_TOKENS => {
            let (ids, rest) = body.as_chunks::<4>();
            if !rest.is_empty() {
                return Err(BodyError::PartialToken { len });
            }
            Ok(Prompt::tokens(ids.iter().map(|id| u32::from_be_bytes(*id)).collect::<Vec<_>>()))
        }
        MODE_TEXT if len > TEXT_MAX => Err(BodyError::TextTooLong { len }),
        MODE_TEXT if core::str::from_utf8(body).is_err() => Err(BodyError::Utf8),
        MODE_TEXT => Ok(Prompt::Text(body.to_vec().into())),
        found => Err(BodyError::Mode { found }),
    }
}

const MAGIC: &[u8; 8] = b"CHRY-RB1";
const HEAD_LEN: usize = 64;
const MODE_TOKENS: u8 = 1;
const MODE_TEXT: u8 = 2;
const STREAM: u8 = 1;
const WANT_LOGPROBS: u8 = 1 << 1;
const FLAGS: u8 = STREAM | WANT_LOGPROBS;
