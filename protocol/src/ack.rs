//! What a client says of an answer while it comes (docs/formats.md, section 3.6): so many tokens are here.
//!
//! An ACK frame is 28 bytes: h u32 = 24 | ciphertext of cumulative_tokens u32 | zero u32. It is sealed by the request's
//! own HPKE context, at the sequence numbers after the request's frames, with AAD `"chrysalis1"` || 0x03 || 0. Whoever
//! carries it can neither read it nor leave one out, repeat one or change their order.

use thiserror::Error;

use crate::codec::{CodecError, Reader, Writer};
use crate::hpke::{HpkeError, Receiver, Sender, TAG_LEN};

/// Length of an ACK frame, in bytes.
pub const ACK_LEN: usize = 4 + PLAIN_LEN + TAG_LEN;

/// Why an ACK was not sealed or opened.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
#[non_exhaustive]
pub enum AckError {
    /// A length or a reserved byte is wrong.
    #[error(transparent)]
    Codec(#[from] CodecError),
    /// The frame has another length.
    #[error("an ACK of {found} bytes, not of {expected}", expected = PLAIN_LEN + TAG_LEN)]
    FrameLen {
        /// What was read.
        found: u32,
    },
    /// It is not the next ACK of this request.
    #[error(transparent)]
    Hpke(#[from] HpkeError),
    /// Fewer tokens than an earlier ACK said.
    #[error("an ACK of {found} tokens after one of {before}")]
    Decreased {
        /// What it says.
        found: u32,
        /// What the one before said.
        before: u32,
    },
    /// More tokens than were sent.
    #[error("an ACK of {found} tokens, of which {sent} were sent")]
    Unsent {
        /// What it says.
        found: u32,
        /// Tokens sent so far.
        sent: u32,
    },
}

/// Seals a request's ACKs, one after another.
#[expect(missing_debug_implementations, reason = "a secret is never printed")]
pub struct AckSealer(Sender);

impl AckSealer {
    pub(crate) const fn new(sender: Sender) -> Self {
        Self(sender)
    }

    /// Says that the first `tokens` output tokens are here.
    ///
    /// # Errors
    /// [`AckError::Hpke`] when the sequence numbers are used up.
    pub fn seal(&mut self, tokens: u32) -> Result<[u8; ACK_LEN], AckError> {
        let mut writer = Writer::with_capacity(PLAIN_LEN);
        writer.u32(tokens).u32(0);
        let mut plain = writer.into_array::<PLAIN_LEN>();
        let tag = self.0.seal(AAD, &mut plain)?;
        let mut writer = Writer::with_capacity(ACK_LEN);
        writer.u32(CIPHERTEXT_LEN).bytes(&plain).bytes(&tag);
        Ok(writer.into_array())
    }
}

/// Opens a request's ACKs, one after another.
#[expect(missing_debug_implementations, reason = "a secret is never printed")]
pub struct AckOpener {
    receiver: Receiver,
    acked: Option<u32>,
}

impl AckOpener {
    pub(crate) const fn new(receiver: Receiver) -> Self {
        Self { receiver, acked: None }
    }

    /// The tokens that the client has by its last ACK; nothing before the first one.
    #[must_use]
    pub const fn acked(&self) -> Option<u32> {
        self.acked
    }

    /// Opens the next ACK, of an answer of which `sent` tokens were sent.
    ///
    /// # Errors
    /// [`AckError`] names the check that failed; no ACK that follows can be opened then.
    pub fn open(&mut self, frame: &[u8], sent: u32) -> Result<u32, AckError> {
        let mut reader = Reader::new(frame);
        let found = reader.u32()?;
        if found != CIPHERTEXT_LEN {
            return Err(AckError::FrameLen { found });
        }
        let mut plain = reader.array::<PLAIN_LEN>()?;
        let tag = reader.array::<TAG_LEN>()?;
        reader.finish()?;
        self.receiver.open(AAD, &mut plain, &tag)?;
        let mut reader = Reader::new(&plain);
        let found = reader.u32()?;
        reader.zeros(4)?;
        let before = self.acked.unwrap_or_default();
        if found < before {
            return Err(AckError::Decreased { found, before });
        }
        if found > sent {
            return Err(AckError::Unsent { found, sent });
        }
        self.acked = Some(found);
        Ok(found)
    }
}

const PLAIN_LEN: usize = 8;
const CIPHERTEXT_LEN: u32 = (PLAIN_LEN + TAG_LEN) as u32;
const AAD: &[u8; 12] = b"chrysalis1\x03\x00";
