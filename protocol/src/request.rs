//! A request sealed to an enclave (docs/formats.md, section 3, request).
//!
//! `CHRY-RQ1` | key_id 8 | suite u16 | flags u16 | zero u32 | enc 1120 | frames. A frame is
//! h u32 | ciphertext; bit 31 of h says that it is the final one, the others are the ciphertext's
//! length. Frame i is sealed at sequence i with AAD `"chrysalis1"` || 0x01 || final. The KEM's
//! `info` carries the digest of the serve statement that the client verified, so an enclave that
//! stated anything else cannot open it.

use rand_core::CryptoRng;
use thiserror::Error;

use crate::ack::{AckOpener, AckSealer};
use crate::codec::{CodecError, Reader, Writer};
use crate::hash::{Sha256, sha256};
use crate::hpke::{ENC_LEN, HpkeError, KemKeyPair, Receiver, SealingKey, Sender, TAG_LEN};
use crate::rand_core;
use crate::receipt::request_tag;
use crate::response::{ResponseOpener, ResponseSecret};
use crate::secret::SecretBytes;

pub use crate::options::{
    GRAMMAR_MAX, LOGIT_BIAS_MAX, LOGPROBS_MAX, Options, STOP_TOKENS_MAX, VOUCHER_MAX,
};
pub use crate::request_body::{
    BodyError, PADDED_MAX, PADDED_MIN, Prompt, RequestBody, TEXT_MAX, is_padded_len, padded_len,
};

/// Length of a request's head, in bytes: the header and the encapsulated key.
pub const HEAD_LEN: usize = HEADER_LEN + ENC_LEN;
/// The longest plaintext of a frame, in bytes; every frame but the last is that long.
pub const FRAME_MAX: usize = 16_384;

/// Why a request's head was refused.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
#[non_exhaustive]
pub enum HeadError {
    /// The length, the magic or a reserved byte is wrong.
    #[error(transparent)]
    Codec(#[from] CodecError),
    /// The suite is not the one suite there is.
    #[error("the suite is {found:#06x}, not {SUITE:#06x}")]
    Suite {
        /// What was read.
        found: u16,
    },
}

/// Why a request was not sealed or opened.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
#[non_exhaustive]
pub enum RequestError {
    /// It was sealed to another key, for another statement, or changed on the way.
    #[error(transparent)]
    Hpke(#[from] HpkeError),
    /// The plaintext is malformed.
    #[error(transparent)]
    Body(#[from] BodyError),
    /// No frame can have this length here.
    #[error("a frame of {len} bytes (final: {last}) after {opened} bytes of plaintext")]
    FrameLen {
        /// Length of the ciphertext.
        len: u32,
        /// Whether it says that it is the final one.
        last: bool,
        /// Plaintext before it.
        opened: usize,
    },
    /// Bytes follow the final frame.
    #[error("{count} bytes follow the final frame")]
    AfterFinal {
        /// How many.
        count: usize,
    },
    /// The final frame has not come.
    #[error("the request ends without a final frame, {opened} bytes were opened")]
    Truncated {
        /// Plaintext so far.
        opened: usize,
    },
    /// An earlier part was refused, so nothing of the request counts.
    #[error("an earlier part of the request was refused")]
    Refused,
}

/// A request's head: all that is known of it before a key is used.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Head {
    key_id: [u8; 8],
    enc: Box<[u8; ENC_LEN]>,
}

impl Head {
    /// Reads a head.
    ///
    /// # Errors
    /// [`HeadError`] names the field that is wrong.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, HeadError> {
        let mut reader = Reader::new(bytes);
        reader.magic(MAGIC)?;
        let key_id = reader.array()?;
        let found = reader.u16()?;
        if found != SUITE {
            return Err(HeadError::Suite { found });
        }
        reader.zeros(2 + 4)?;
        let enc = Box::new(reader.array()?);
        reader.finish()?;
        Ok(Self { key_id, enc })
    }

    /// The encoding.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; HEAD_LEN] {
        let mut writer = Writer::with_capacity(HEAD_LEN);
        writer.bytes(&header(self.key_id)).bytes(self.enc.as_slice());
        writer.into_array()
    }

    /// The name of the key that the request is sealed to.
    #[must_use]
    pub const fn key_id(&self) -> [u8; 8] {
        self.key_id
    }

    /// SHA-256 of the encapsulated key, of which the replay set keeps 16 bytes.
    #[must_use]
    pub fn enc_hash(&self) -> [u8; 32] {
        sha256(&[self.enc.as_slice()])
    }

    /// The tag by which receipts name the request.
    #[must_use]
    pub fn request_tag(&self) -> [u8; 32] {
        request_tag(&self.enc)
    }
}

/// To whom a request is sealed. Only an appraisal has grounds to make one.
#[derive(Clone, Copy, Debug)]
pub struct SealTo<'a> {
    /// Digest of the serve statement.
    pub statement_digest: [u8; 48],
    /// The key's name, see [`crate::statement::KeyConfig::key_id`].
    pub key_id: [u8; 8],
    /// The key.
    pub sealing_key: &'a SealingKey,
}

/// A sealed request, and what opens its response.
#[expect(missing_debug_implementations, reason = "it holds the response's secret")]
pub struct SealedRequest {
    /// The head and the frames.
    pub bytes: Vec<u8>,
    /// Opens the response.
    pub context: RequestContext,
}

/// What a client keeps of a request until its response is open.
#[expect(missing_debug_implementations, reason = "it holds the response's secret")]
pub struct RequestContext {
    request_hash: [u8; 32],
    request_tag: [u8; 32],
    response: ResponseSecret,
    sender: Sender,
}

impl RequestContext {
    /// SHA-256 of the sealed request.
    #[must_use]
    pub const fn request_hash(&self) -> [u8; 32] {
        self.request_hash
    }

    /// The tag by which receipts name the request.
    #[must_use]
    pub const fn request_tag(&self) -> [u8; 32] {
        self.request_tag
    }

    /// Opens the one response there is.
    #[must_use]
    pub fn into_opener(self) -> ResponseOpener {
        self.into_parts().0
    }

    /// Opens the one response there is, and seals what is said of it while it comes.
    #[must_use]
    pub fn into_parts(self) -> (ResponseOpener, AckSealer) {
        (ResponseOpener::new(self.response, self.request_hash), AckSealer::new(self.sender))
    }
}

/// Seals `body`.
///
/// # Errors
/// [`RequestError::Body`] when the enclave would refuse the body.
pub fn seal(
    to: &SealTo<'_>,
    body: &RequestBody,
    rng: &mut impl CryptoRng,
) -> Result<SealedRequest, RequestError> {
    let mut plaintext = body.to_padded()?;
    let header = header(to.key_id);
    let (enc, mut sender) =
        Sender::setup(to.sealing_key, &info(&header, &to.statement_digest), rng)?;
    let head = Head { key_id: to.key_id, enc: Box::new(enc) };
    let response = ResponseSecret::new(sender.export(RESPONSE_LABEL), head.enc.clone());
    let mut writer = Writer::with_capacity(sealed_len(plaintext.len()));
    writer.bytes(&head.to_bytes());
    let mut frames = plaintext.expose_mut().chunks_mut(FRAME_MAX).peekable();
    while let Some(frame) = frames.next() {
        let last = frames.peek().is_none();
        let tag = sender.seal(&aad(last), frame)?;
        let len = frame.len().saturating_add(TAG_LEN) as u32;
        writer.u32(if last { len | FINAL } else { len }).bytes(frame).bytes(&tag);
    }
    let bytes = writer.into_bytes();
    let request_hash = sha256(&[&bytes]);
    let context =
        RequestContext { request_hash, request_tag: head.request_tag(), response, sender };
    Ok(SealedRequest { bytes, context })
}

/// Length of a sealed request whose padded plaintext has `padded` bytes.
#[must_use]
pub const fn sealed_len(padded: usize) -> usize {
    let overhead = padded.div_ceil(FRAME_MAX).saturating_mul(4 + TAG_LEN);
    HEAD_LEN.saturating_add(padded).saturating_add(overhead)
}

/// Whether a sealed request can have `len` bytes.
#[must_use]
pub fn is_sealed_len(len: usize) -> bool {
    let mut sizes = core::iter::successors(Some(PADDED_MIN), |size| size.checked_mul(2));
    sizes.by_ref().take_while(|size| *size <= PADDED_MAX).any(|size| sealed_len(size) == len)
}

/// Opens a request as its bytes come, in whatever portions.
#[expect(missing_debug_implementations, reason = "it holds plaintext")]
pub struct RequestOpener {
    receiver: Receiver,
    response: Option<ResponseSecret>,
    hash: Sha256,
    /// The frame that is coming: h and as much of the ciphertext as is here.
    frame: Vec<u8>,
    plaintext: SecretBytes,
    frames_opened: u32,
    state: OpenerState,
}

#[derive(Clone, Copy, Eq, PartialEq)]
enum OpenerState {
    Open,
    Final,
    Refused,
}

impl RequestOpener {
    /// Decapsulates the head's key. This is the costly step, and it always succeeds for a head
    /// of the right form: whether the request is for `keys` and `statement_digest` shows with
    /// the first frame.
    ///
    /// # Errors
    /// [`RequestError::Hpke`].
    pub fn new(
        head: &Head,
        keys: &KemKeyPair,
        statement_digest: &[u8; 48],
    ) -> Result<Self, RequestError> {
        let receiver =
            Receiver::setup(keys, &head.enc, &info(&header(head.key_id), statement_digest))?;
        let response = ResponseSecret::new(receiver.export(RESPONSE_LABEL), head.enc.clone());
        let mut hash = Sha256::new();
        hash.update(&head.to_bytes());
        Ok(Self {
            receiver,
            response: Some(response),
            hash,
            frame: Vec::new(),
            plaintext: SecretBytes::default(),
            frames_opened: 0,
            state: OpenerState::Open,
        })
    }

    /// Takes the next bytes after the head and opens the frames that they complete.
    ///
    /// # Errors
    /// [`RequestError`] names the check that failed; after that, everything is refused.
    pub fn push(&mut self, bytes: &[u8]) -> Result<(), RequestError> {
        let pushed = self.push_frames(bytes);
        if pushed.is_err() {
            self.state = OpenerState::Refused;
        }
        pushed
    }

    /// How many frames were opened. The replay set is asked when this stops being 0: from then
    /// on the sender is known to have held the sealing key, and errors are sealed.
    #[must_use]
    pub const fn frames_opened(&self) -> u32 {
        self.frames_opened
    }

    /// Whether the final frame was opened.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.state == OpenerState::Final
    }

    /// What seals the response: once, and only after the first frame was opened. It is there
    /// even when a later part is refused, because that refusal is sealed.
    pub const fn take_response_secret(&mut self) -> Option<ResponseSecret> {
        if self.frames_opened == 0 { None } else { self.response.take() }
    }

    /// Reads the whole plaintext.
    ///
    /// # Errors
    /// [`RequestError::Truncated`] when the final frame has not come, [`RequestError::Body`] when
    /// the plaintext is malformed.
    pub fn finish(self) -> Result<OpenedRequest, RequestError> {
        match self.state {
            OpenerState::Refused => Err(RequestError::Refused),
            OpenerState::Open => Err(RequestError::Truncated { opened: self.plaintext.len() }),
            OpenerState::Final => {
                let body = RequestBody::from_padded(self.plaintext.expose())?;
                let acks = AckOpener::new(self.receiver);
                Ok(OpenedRequest { body, request_hash: self.hash.finish(), acks })
            }
        }
    }

    fn push_frames(&mut self, mut bytes: &[u8]) -> Result<(), RequestError> {
        if self.state == OpenerState::Refused {
            return Err(RequestError::Refused);
        }
        self.hash.update(bytes);
        while !bytes.is_empty() {
            if self.state == OpenerState::Final {
                return Err(RequestError::AfterFinal { count: bytes.len() });
            }
            let wanted = match self.frame.first_chunk::<4>() {
                None => 4,
                Some(h) => 4_usize.saturating_add(Length::read(*h).ciphertext()),
            };
            let missing = wanted.saturating_sub(self.frame.len());
            let (here, rest) = bytes.split_at_checked(missing).unwrap_or((bytes, &[]));
            self.frame.extend_from_slice(here);
            bytes = rest;
            self.open_when_complete()?;
        }
        Ok(())
    }

    /// The length is checked as soon as it is there, so that no more than a frame is buffered.
    fn open_when_complete(&mut self) -> Result<(), RequestError> {
        let Some((h, sealed)) = self.frame.split_first_chunk_mut::<4>() else {
            return Ok(());
        };
        let length = Length::read(*h);
        length.check(self.plaintext.len())?;
        if sealed.len() < length.ciphertext() {
            return Ok(());
        }
        let Some((frame, tag)) = sealed.split_last_chunk_mut::<TAG_LEN>() else {
            return Ok(());
        };
        self.receiver.open(&aad(length.last), frame, tag)?;
        self.plaintext.extend(frame);
        zeroize::Zeroize::zeroize(frame);
        self.frame.clear();
        self.frames_opened = self.frames_opened.saturating_add(1);
        if length.last {
            self.state = OpenerState::Final;
        }
        Ok(())
    }
}

/// A request that was opened.
#[expect(missing_debug_implementations, reason = "a prompt is never printed")]
pub struct OpenedRequest {
    /// What the client asks.
    pub body: RequestBody,
    /// SHA-256 of the sealed request, which ACCEPT repeats.
    pub request_hash: [u8; 32],
    /// Opens what the client says of the answer while it comes.
    pub acks: AckOpener,
}

/// The word before a frame's ciphertext.
#[derive(Clone, Copy)]
struct Length {
    last: bool,
    len: u32,
}

impl Length {
    const fn read(h: [u8; 4]) -> Self {
        let h = u32::from_be_bytes(h);
        Self { last: h & FINAL != 0, len: h & !FINAL }
    }

    const fn ciphertext(self) -> usize {
        self.len as usize
    }

    /// Every frame but the final one is full, and with the final one the plaintext has one of the
    /// 14 sizes.
    const fn check(self, opened: usize) -> Result<(), RequestError> {
        let plain = self.ciphertext().saturating_sub(TAG_LEN);
        let total = opened.saturating_add(plain);
        let fits = self.ciphertext() > TAG_LEN && plain <= FRAME_MAX;
        let right =
            if self.last { is_padded_len(total) } else { plain == FRAME_MAX && total < PADDED_MAX };
        if fits && right {
            Ok(())
        } else {
            Err(RequestError::FrameLen { len: self.len, last: self.last, opened })
        }
    }
}

fn header(key_id: [u8; 8]) -> [u8; HEADER_LEN] {
    let mut writer = Writer::with_capacity(HEADER_LEN);
    writer.bytes(MAGIC).bytes(&key_id).u16(SUITE);
    writer.into_array()
}

fn info(header: &[u8; HEADER_LEN], statement_digest: &[u8; 48]) -> Vec<u8> {
    [b"chrysalis1 request\0".as_slice(), header, statement_digest].concat()
}

fn aad(last: bool) -> [u8; 12] {
    let mut writer = Writer::with_capacity(12);
    writer.bytes(b"chrysalis1").u8(0x01).u8(last.into());
    writer.into_array()
}

const MAGIC: &[u8; 8] = b"CHRY-RQ1";
const HEADER_LEN: usize = 24;
const SUITE: u16 = 0x0001;
const FINAL: u32 = 1 << 31;
const RESPONSE_LABEL: &[u8] = b"chrysalis1 response\0";
