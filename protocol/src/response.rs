//! A sealed response (docs/formats.md, section 3, response).
//!
//! `CHRY-RS1` | response_nonce 32 | frames of 276 bytes: h u32 | ciphertext 272. The keys come
//! from the request's context (RFC 9458, 4.4, with our label). Frame i has nonce nonce0 XOR i and
//! AAD `"chrysalis1"` || 0x02 || final; bit 31 of h says that it is the final one. Exactly the
//! final frame is an END.

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use rand_core::CryptoRng;
use thiserror::Error;
use zeroize::Zeroizing;

use crate::codec::{CodecError, Reader, Writer};
use crate::hash::Prk;
use crate::hpke::ENC_LEN;
use crate::rand_core;
use crate::response_order::Order;
use crate::secret::Secret;

pub use crate::inner::{
    Accept, End, ErrorCode, FinishReason, INNER_LEN, Inner, InnerError, PAYLOAD_MAX, TOKENS_MAX,
    TokenLogprobs, logprobs_max,
};

/// Length of a response's head, in bytes.
pub const HEAD_LEN: usize = 40;
/// Length of a response frame, in bytes.
pub const FRAME_LEN: usize = 4 + CIPHERTEXT_LEN;

/// Why a response was not sealed or opened.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
#[non_exhaustive]
pub enum ResponseError {
    /// The head is malformed.
    #[error(transparent)]
    Codec(#[from] CodecError),
    /// The inner frame is malformed.
    #[error(transparent)]
    Inner(#[from] InnerError),
    /// The frame was not sealed for this request and this place.
    #[error("the frame was refused")]
    Refused,
    /// The frame has another length.
    #[error("a frame of {found} bytes, not of {CIPHERTEXT_LEN}")]
    FrameLen {
        /// What was read.
        found: u32,
    },
    /// Something follows the final frame.
    #[error("the final frame is not the last")]
    AfterFinal,
    /// The final frame has not come.
    #[error("the response ends without a final frame, after {frames} frames")]
    Truncated {
        /// Frames so far.
        frames: u32,
    },
    /// The final frame is no END, or an END is not in the final frame.
    #[error("exactly the final frame is an END (final: {last})")]
    FinalFrame {
        /// Whether the frame is the final one.
        last: bool,
    },
    /// The frame states another number of tokens than came.
    #[error("the frame states {stated} tokens, {counted} came")]
    TokenCount {
        /// The stated number.
        stated: u32,
        /// The tokens that came.
        counted: u32,
    },
    /// END states another hash than that of the output that came.
    #[error("END states another hash than that of the output that came")]
    OutputHash,
    /// More of the prompt was cached than there is.
    #[error("{cached} tokens of a prompt of {prompt} were cached")]
    CachedCount {
        /// Cached prompt tokens.
        cached: u32,
        /// Prompt tokens.
        prompt: u32,
    },
    /// ACCEPT is for another request.
    #[error("another request was accepted")]
    RequestHash,
    /// Output came before ACCEPT, or ACCEPT twice.
    #[error("ACCEPT comes once, before any output")]
    AcceptOrder,
    /// The log probabilities are not those of the tokens before.
    #[error("the log probabilities are of other tokens than came")]
    LogprobsTokens,
    /// Output follows an ERROR, or END contradicts it.
    #[error("an ERROR ends the output, and END says so")]
    AfterError,
    /// Both TOKENS and TEXT came.
    #[error("a response has tokens or text, not both")]
    MixedOutput,
    /// No more frames can be sealed.
    #[error("a response has at most {FRAMES_MAX} frames")]
    TooManyFrames,
}

/// What a request's two ends share, from which its one response is sealed or opened.
#[expect(missing_debug_implementations, reason = "a secret is never printed")]
pub struct ResponseSecret {
    exported: Secret<32>,
    enc: Box<[u8; ENC_LEN]>,
}

impl ResponseSecret {
    pub(crate) const fn new(exported: Secret<32>, enc: Box<[u8; ENC_LEN]>) -> Self {
        Self { exported, enc }
    }

    /// Begins the response under a fresh nonce. `request_hash` is SHA-256 of the sealed request,
    /// which ACCEPT repeats.
    #[must_use]
    pub fn into_sealer(self, rng: &mut impl CryptoRng) -> ResponseSealer {
        let mut nonce = [0; 32];
        rng.fill_bytes(&mut nonce);
        let mut writer = Writer::with_capacity(HEAD_LEN);
        writer.bytes(MAGIC).bytes(&nonce);
        let (head, keys) = (writer.into_array(), self.keys(&nonce));
        ResponseSealer { head, keys, order: Order::default() }
    }

    fn keys(&self, response_nonce: &[u8; 32]) -> Keys {
        let salt = [self.enc.as_slice(), response_nonce].concat();
        let prk = Prk::extract(&salt, self.exported.expose());
        let cipher = cipher(&prk.expand::<32>(&[b"key"]));
        Keys { cipher, nonce0: prk.expand(&[b"nonce"]), next: 0 }
    }
}

/// Seals a response, frame by frame.
#[expect(missing_debug_implementations, reason = "a secret is never printed")]
pub struct ResponseSealer {
    head: [u8; HEAD_LEN],
    keys: Keys,
    order: Order,
}

impl ResponseSealer {
    /// The head, which goes out before the first frame.
    #[must_use]
    pub const fn head(&self) -> &[u8; HEAD_LEN] {
        &self.head
    }

    /// How many frames were sealed.
    #[must_use]
    pub const fn num_frames(&self) -> u32 {
        self.keys.next
    }

    /// How many output tokens were sealed.
    #[must_use]
    pub const fn num_tokens(&self) -> u32 {
        self.order.num_tokens
    }

    /// Whether the final frame was sealed.
    #[must_use]
    pub const fn is_finished(&self) -> bool {
        self.order.finished
    }

    /// Seals the next frame. An END is the final one.
    ///
    /// # Errors
    /// [`ResponseError`], whenever the client would refuse the frame; nothing is sealed then.
    pub fn seal(&mut self, inner: &Inner) -> Result<[u8; FRAME_LEN], ResponseError> {
        let last = matches!(inner, Inner::End(_));
        let stated = self.order.num_tokens.saturating_add(inner.num_tokens());
        let h = if last { CIPHERTEXT_LEN as u32 | FINAL } else { CIPHERTEXT_LEN as u32 };
        let mut writer = Writer::with_capacity(FRAME_LEN);
        inner.encode(self.order.num_tokens, writer.u32(h))?;
        self.order.check(inner, stated, last)?;
        let tag = self.keys.seal(last, writer.since(size_of_val(&h)))?;
        self.order.follow(inner, last);
        writer.bytes(&tag);
        Ok(writer.into_sealed())
    }

    /// The END that fits what was sealed so far: the counts and the hash of the output are filled
    /// in.
    #[must_use]
    pub fn end(
        &self,
        reason: FinishReason,
        prompt_tokens: u32,
        cached_tokens: u32,
        receipt_hash: [u8; 32],
    ) -> Inner {
        Inner::End(End {
            reason,
            prompt_tokens,
            cached_tokens,
            output_tokens: self.order.num_tokens,
            output_hash: self.order.output_hash.finish(),
            receipt_hash,
        })
    }
}

/// A frame that was opened.
#[derive(Clone, PartialEq)]
#[expect(missing_debug_implementations, reason = "an answer is never printed")]
pub struct OpenedFrame {
    /// What it says.
    pub inner: Inner,
    /// Output tokens up to and with this frame.
    pub cumulative_tokens: u32,
}

/// Opens a response as its bytes come, in whatever portions.
#[expect(missing_debug_implementations, reason = "a secret is never printed")]
pub struct ResponseOpener {
    secret: ResponseSecret,
    request_hash: [u8; 32],
    keys: Option<Keys>,
    /// The head or the frame that is coming, as much of it as is here.
    buffer: Vec<u8>,
    order: Order,
    end: Option<End>,
    refused: Option<ResponseError>,
}

impl ResponseOpener {
    pub(crate) fn new(secret: ResponseSecret, request_hash: [u8; 32]) -> Self {
        Self {
            secret,
            request_hash,
            keys: None,
            buffer: Vec::with_capacity(FRAME_LEN),
            order: Order::default(),
            end: None,
            refused: None,
        }
    }

    /// Takes the next bytes and appends the frames that they complete to `opened`.
    ///
    /// # Errors
    /// [`ResponseError`] names the check that failed; after that, everything is refused the same
    /// way. The frames before the refused one were authentic and stay in `opened`.
    pub fn push(
        &mut self,
        bytes: &[u8],
        opened: &mut Vec<OpenedFrame>,
    ) -> Result<(), ResponseError> {
        if let Some(refused) = self.refused {
            return Err(refused);
        }
        let pushed = self.push_frames(bytes, opened);
        self.refused = pushed.err();
        pushed
    }

    /// Whether the final frame was opened.
    #[must_use]
    pub const fn is_finished(&self) -> bool {
        self.order.finished
    }

    /// The end of the response, when there was one.
    ///
    /// # Errors
    /// [`ResponseError::Truncated`] when the final frame has not come: the answer may have been
    /// cut. Any earlier refusal is repeated.
    pub fn finish(self) -> Result<End, ResponseError> {
        if let Some(refused) = self.refused {
            return Err(refused);
        }
        let frames = self.keys.map_or(0, |keys| keys.next);
        self.end.ok_or(ResponseError::Truncated { frames })
    }

    fn push_frames(
        &mut self,
        mut bytes: &[u8],
        opened: &mut Vec<OpenedFrame>,
    ) -> Result<(), ResponseError> {
        while !bytes.is_empty() {
            if self.order.finished {
                return Err(ResponseError::AfterFinal);
            }
            let wanted = if self.keys.is_none() { HEAD_LEN } else { FRAME_LEN };
            let missing = wanted.saturating_sub(self.buffer.len());
            let (here, rest) = bytes.split_at_checked(missing).unwrap_or((bytes, &[]));
            self.buffer.extend_from_slice(here);
            bytes = rest;
            if self.buffer.len() < wanted {
                break;
            }
            match &mut self.keys {
                None => self.keys = Some(self.secret.keys(&read_head(&self.buffer)?)),
                Some(keys) => {
                    let (inner, stated, last) =
                        keys.open_frame(&self.buffer, self.order.num_tokens)?;
                    opened.push(self.take(inner, stated, last)?);
                }
            }
            self.buffer.clear();
        }
        Ok(())
    }

    fn take(
        &mut self,
        inner: Inner,
        stated: u32,
        last: bool,
    ) -> Result<OpenedFrame, ResponseError> {
        self.order.check(&inner, stated, last)?;
        match &inner {
            Inner::Accept(accept) if accept.request_hash != self.request_hash => {
                return Err(ResponseError::RequestHash);
            }
            Inner::End(end) => self.end = Some(*end),
            _ => {}
        }
        self.order.follow(&inner, last);
        Ok(OpenedFrame { inner, cumulative_tokens: stated })
    }
}

/// The response's AEAD with the number of the next frame.
struct Keys {
    cipher: LessSafeKey,
    nonce0: Secret<12>,
    next: u32,
}

impl Keys {
    fn seal(&mut self, last: bool, frame: &mut [u8]) -> Result<[u8; TAG_LEN], ResponseError> {
        let nonce = self.advance()?;
        let tag = self.cipher.seal_in_place_separate_tag(nonce, aad(last), frame);
        let tag = tag.map_err(|_| ResponseError::Refused)?;
        tag.as_ref().try_into().map_err(|_| ResponseError::Refused)
    }

    fn open_frame(
        &mut self,
        frame: &[u8],
        before: u32,
    ) -> Result<(Inner, u32, bool), ResponseError> {
        let mut reader = Reader::new(frame);
        let h = reader.u32()?;
        let (last, found) = (h & FINAL != 0, h & !FINAL);
        if found != CIPHERTEXT_LEN as u32 {
            return Err(ResponseError::FrameLen { found });
        }
        let mut plaintext = Zeroizing::new(reader.array::<INNER_LEN>()?);
        let tag = reader.array::<TAG_LEN>()?;
        let nonce = self.advance()?;
        self.cipher
            .open_in_place_separate_tag(nonce, aad(last), &tag, plaintext.as_mut_slice())
            .map_err(|_| ResponseError::Refused)?;
        let (inner, stated) = Inner::decode(&plaintext, before)?;
        Ok((inner, stated, last))
    }

    fn advance(&mut self) -> Result<Nonce, ResponseError> {
        if self.next >= FRAMES_MAX {
            return Err(ResponseError::TooManyFrames);
        }
        let mut nonce = *self.nonce0.expose();
        for (byte, number) in nonce.iter_mut().rev().zip(self.next.to_le_bytes()) {
            *byte ^= number;
        }
        self.next = self.next.saturating_add(1);
        Ok(Nonce::assume_unique_for_key(nonce))
    }
}

fn read_head(bytes: &[u8]) -> Result<[u8; 32], CodecError> {
    let mut reader = Reader::new(bytes);
    reader.magic(MAGIC)?;
    let nonce = reader.array()?;
    reader.finish()?;
    Ok(nonce)
}

fn aad(last: bool) -> Aad<&'static [u8; 12]> {
    let aad: &[u8; 12] = if last { b"chrysalis1\x02\x01" } else { b"chrysalis1\x02\x00" };
    Aad::from(aad)
}

/// Frames are sealed between a step and the next one: a frame's time counts (docs/benchmarks-gpu.md).
#[expect(clippy::expect_used, reason = "the key is as long as the algorithm's")]
fn cipher(key: &Secret<32>) -> LessSafeKey {
    LessSafeKey::new(UnboundKey::new(&AES_256_GCM, key.expose()).expect("a key of 32 bytes"))
}

const MAGIC: &[u8; 8] = b"CHRY-RS1";
const TAG_LEN: usize = 16;
const CIPHERTEXT_LEN: usize = INNER_LEN + TAG_LEN;
const FINAL: u32 = 1 << 31;
const FRAMES_MAX: u32 = (1 << 31) - 1;
