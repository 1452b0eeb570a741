//! The typed bodies of frames (docs/formats.md, section 4).
//!
//! END, CANCEL and DRAIN have empty bodies, DATA carries bytes of a sealed stream, RECEIPT carries
//! a [`crate::receipt::Receipt`], PING and PONG carry eight bytes that come back unchanged.

use thiserror::Error;

use crate::codec::{CodecError, Reader, Writer};
use crate::request;
use crate::statement::{Kind, StatementError};

pub use crate::pieces::{Assembler, PIECE_MAX, Piece, pieces};
pub use crate::status::{State, Status, round_counter};
pub use crate::supply::{BLOB_RANGE_MAX, BlobReq, BlobResp, KeyrelReq, KeyrelResp};

/// The most pieces that answer one CLIENT_BUNDLE_REQ: a mebibyte.
pub const CLIENT_BUNDLE_PIECES: usize = 16;

/// The protocol's version, in HELLO and HELLO_ACK.
pub const VERSION: u16 = 1;

/// Why a frame's body was refused.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
#[non_exhaustive]
pub enum MessageError {
    /// A length or a reserved byte is wrong.
    #[error(transparent)]
    Codec(#[from] CodecError),
    /// The peer speaks another version.
    #[error("the peer speaks version {found}, not {VERSION}")]
    Version {
        /// What was read.
        found: u16,
    },
    /// Evidence of an unknown kind was asked for.
    #[error(transparent)]
    Kind(#[from] StatementError),
    /// No stream ends with this code.
    #[error("no stream ends with the code {found}")]
    CloseCode {
        /// What was read.
        found: u8,
    },
    /// A retry time comes with a code other than BUSY.
    #[error("a retry after {seconds} s comes with {code:?}")]
    Retry {
        /// The retry time.
        seconds: u16,
        /// The code it came with.
        code: CloseCode,
    },
    /// The head of the sealed request is malformed.
    #[error(transparent)]
    Request(#[from] request::HeadError),
    /// No sealed request has this length.
    #[error("no sealed request has {found} bytes")]
    SealedLen {
        /// What was read.
        found: u32,
    },
    /// A piece lies outside its whole, or is empty.
    #[error("a piece of {len} bytes at {offset} of {total}")]
    PieceRange {
        /// Where it starts.
        offset: u32,
        /// Its length.
        len: usize,
        /// The length of the whole.
        total: u32,
    },
    /// A piece is not the one that follows.
    #[error("a piece at {found} of {total}, where {expected} is next")]
    PieceOrder {
        /// Where it starts.
        found: u32,
        /// The length of its whole.
        total: u32,
        /// What is next.
        expected: u32,
    },
    /// The whole is larger than the receiver takes.
    #[error("a whole of {total} bytes, more than {limit}")]
    PieceTotal {
        /// The length of the whole.
        total: u32,
        /// What the receiver takes.
        limit: u32,
    },
    /// A blob range is empty or larger than a frame.
    #[error("a blob range of {len} bytes, not of 1 to {BLOB_RANGE_MAX}")]
    BlobRange {
        /// Its length.
        len: usize,
    },
    /// No enclave is in this state.
    #[error("no enclave is in the state {found}")]
    State {
        /// What was read.
        found: u8,
    },
    /// A counter is not rounded.
    #[error("the counter {found} is not rounded to two digits")]
    Counter {
        /// What was read.
        found: u64,
    },
}

/// HELLO: version u16 | zero u16.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Hello;

impl Hello {
    /// The encoding.
    #[must_use]
    pub fn to_bytes(self) -> Vec<u8> {
        let mut writer = Writer::new();
        writer.u16(VERSION).u16(0);
        writer.into_bytes()
    }

    /// Reads the body.
    ///
    /// # Errors
    /// [`MessageError::Version`] when the peer speaks another one, or [`MessageError::Codec`].
    pub fn from_bytes(body: &[u8]) -> Result<Self, MessageError> {
        let mut reader = Reader::new(body);
        read_version(&mut reader)?;
        reader.finish()?;
        Ok(Self)
    }
}

/// HELLO_ACK: version u16 | zero u16 | the limits, five u32.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Limits {
    /// Connections at a time.
    pub connections: u32,
    /// Streams at a time, over all connections.
    pub streams: u32,
    /// Bytes of sealed requests that may be buffered for each stream.
    pub stream_bytes: u32,
    /// Request frames that may be under way on a stream before CREDIT.
    pub ingress_frames: u32,
    /// Response frames that may be under way on a stream before CREDIT.
    pub egress_frames: u32,
}

impl Limits {
    /// The encoding.
    #[must_use]
    pub fn to_bytes(self) -> Vec<u8> {
        let mut writer = Writer::new();
        writer.u16(VERSION).u16(0).u32(self.connections).u32(self.streams);
        writer.u32(self.stream_bytes).u32(self.ingress_frames).u32(self.egress_frames);
        writer.into_bytes()
    }

    /// Reads the body.
    ///
    /// # Errors
    /// [`MessageError::Version`] when the peer speaks another one, or [`MessageError::Codec`].
    pub fn from_bytes(body: &[u8]) -> Result<Self, MessageError> {
        let mut reader = Reader::new(body);
        read_version(&mut reader)?;
        let limits = Self {
            connections: reader.u32()?,
            streams: reader.u32()?,
            stream_bytes: reader.u32()?,
            ingress_frames: reader.u32()?,
            egress_frames: reader.u32()?,
        };
        reader.finish()?;
        Ok(limits)
    }
}

/// EVIDENCE_REQ: kind u8 | zero 7 | challenge 32.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct EvidenceReq {
    /// Serve: the epoch's evidence, whatever the challenge. Key release: a statement for a key
    /// broker. Freshness: the epoch's evidence with a fresh report over the challenge.
    pub kind: Kind,
    /// The verifier's challenge.
    pub nonce: [u8; 32],
}

impl EvidenceReq {
    /// The encoding.
    #[must_use]
    pub fn to_bytes(self) -> Vec<u8> {
        let mut writer = Writer::new();
        writer.u8(self.kind as u8).zeros(7).bytes(&self.nonce);
        writer.into_bytes()
    }

    /// Reads the body.
    ///
    /// # Errors
    /// [`MessageError`] names the field that is wrong.
    pub fn from_bytes(body: &[u8]) -> Result<Self, MessageError> {
        let mut reader = Reader::new(body);
        let kind = Kind::try_from(reader.u8()?)?;
        reader.zeros(7)?;
        let nonce = reader.array()?;
        reader.finish()?;
        Ok(Self { kind, nonce })
    }
}

/// CLIENT_BUNDLE_REQ: offset u64. At most [`CLIENT_BUNDLE_PIECES`] CLIENT_BUNDLE pieces follow from
/// there; what they leave is asked for again, so that a large bundle never floods a connection.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct ClientBundleReq {
    /// Where to start, in bytes.
    pub offset: u64,
}

impl ClientBundleReq {
    /// The encoding.
    #[must_use]
    pub fn to_bytes(self) -> Vec<u8> {
        self.offset.to_be_bytes().to_vec()
    }

    /// Reads the body.
    ///
    /// # Errors
    /// [`MessageError::Codec`].
    pub fn from_bytes(body: &[u8]) -> Result<Self, MessageError> {
        let mut reader = Reader::new(body);
        let offset = reader.u64()?;
        reader.finish()?;
        Ok(Self { offset })
    }
}

/// OPEN: sealed_len u32 | zero u32 | the head of the sealed request, 1,144 bytes. The whole
/// length is charged before anything is opened; DATA frames bring the rest.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Open {
    /// Length of the sealed request with its head, in bytes.
    pub sealed_len: u32,
    /// The head.
    pub head: request::Head,
}

impl Open {
    /// The encoding.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut writer = Writer::new();
        writer.u32(self.sealed_len).u32(0).bytes(&self.head.to_bytes());
        writer.into_bytes()
    }

    /// Reads the body.
    ///
    /// # Errors
    /// [`MessageError`] names the field that is wrong.
    pub fn from_bytes(body: &[u8]) -> Result<Self, MessageError> {
        let mut reader = Reader::new(body);
        let found = reader.u32()?;
        reader.zeros(4)?;
        let head = request::Head::from_bytes(reader.rest())?;
        if !request::is_sealed_len(found as usize) {
            return Err(MessageError::SealedLen { found });
        }
        Ok(Self { sealed_len: found, head })
    }
}

/// ACCEPT: serial u64. The enclave has sealed its ACCEPT frame and the request counts.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Accept {
    /// The request's number in the boot.
    pub serial: u64,
}

impl Accept {
    /// The encoding.
    #[must_use]
    pub fn to_bytes(self) -> Vec<u8> {
        self.serial.to_be_bytes().to_vec()
    }

    /// Reads the body.
    ///
    /// # Errors
    /// [`MessageError::Codec`].
    pub fn from_bytes(body: &[u8]) -> Result<Self, MessageError> {
        let mut reader = Reader::new(body);
        let serial = reader.u64()?;
        reader.finish()?;
        Ok(Self { serial })
    }
}

/// CREDIT: frames u32.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Credit {
    /// How many more frames may be sent on this stream.
    pub frames: u32,
}

impl Credit {
    /// The encoding.
    #[must_use]
    pub fn to_bytes(self) -> Vec<u8> {
        self.frames.to_be_bytes().to_vec()
    }

    /// Reads the body.
    ///
    /// # Errors
    /// [`MessageError::Codec`].
    pub fn from_bytes(body: &[u8]) -> Result<Self, MessageError> {
        let mut reader = Reader::new(body);
        let frames = reader.u32()?;
        reader.finish()?;
        Ok(Self { frames })
    }
}

/// How a stream ended, as far as the host may know (docs/formats.md, section 5).
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[repr(u8)]
pub enum CloseCode {
    /// With its final frame.
    Ok = 0,
    /// Not taken for want of room: retry later.
    Busy = 1,
    /// The epoch is gone: fetch evidence and seal again.
    KeyUnknown = 2,
    /// Anything else about this request.
    Rejected = 3,
    /// The enclave is going down.
    Draining = 4,
    /// A fault of the enclave.
    Internal = 5,
}

/// CLOSE: code u8 | zero u8 | retry_after_s u16.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Close {
    /// How the stream ended.
    pub code: CloseCode,
    /// With [`CloseCode::Busy`], when to retry, in seconds; otherwise 0.
    pub retry_after_s: u16,
}

impl Close {
    /// An end without a retry time.
    #[must_use]
    pub const fn new(code: CloseCode) -> Self {
        Self { code, retry_after_s: 0 }
    }

    /// The encoding.
    #[must_use]
    pub fn to_bytes(self) -> Vec<u8> {
        let mut writer = Writer::new();
        writer.u8(self.code as u8).u8(0).u16(self.retry_after_s);
        writer.into_bytes()
    }

    /// Reads the body.
    ///
    /// # Errors
    /// [`MessageError`] names the field that is wrong.
    pub fn from_bytes(body: &[u8]) -> Result<Self, MessageError> {
        let mut reader = Reader::new(body);
        let code = match reader.u8()? {
            0 => CloseCode::Ok,
            1 => CloseCode::Busy,
            2 => CloseCode::KeyUnknown,
            3 => CloseCode::Rejected,
            4 => CloseCode::Draining,
            5 => CloseCode::Internal,
            found => return Err(MessageError::CloseCode { found }),
        };
        reader.zeros(1)?;
        let retry_after_s = reader.u16()?;
        reader.finish()?;
        if retry_after_s != 0 && code != CloseCode::Busy {
            return Err(MessageError::Retry { seconds: retry_after_s, code });
        }
        Ok(Self { code, retry_after_s })
    }
}

fn read_version(reader: &mut Reader<'_>) -> Result<(), MessageError> {
    let found = reader.u16()?;
    reader.zeros(2)?;
    if found == VERSION { Ok(()) } else { Err(MessageError::Version { found }) }
}
