//! Frames between the host and the enclave (docs/formats.md, section 4).
//!
//! Layout of the 24-byte header: magic `CHRF` | version u8 = 1 | kind u8 | flags u16 = 0 |
//! stream u64 | len u32 | zero u32. The body follows.

use thiserror::Error;

use crate::codec::{CodecError, Reader};

/// Length of a frame header, in bytes.
pub const HEADER_LEN: usize = 24;
/// The longest body of a frame, in bytes.
pub const BODY_MAX: usize = 65_512;

/// Why bytes are not a frame. The connection is reset.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
#[non_exhaustive]
pub enum FrameError {
    /// The magic is another one.
    #[error("the frame starts with {found:02x?}, not with CHRF")]
    Magic {
        /// What was read.
        found: [u8; 4],
    },
    /// The version is unknown.
    #[error("the frame has version {found}, not {VERSION}")]
    Version {
        /// What was read.
        found: u8,
    },
    /// No frame has this kind.
    #[error("no frame has the kind {found:#04x}")]
    UnknownKind {
        /// What was read.
        found: u8,
    },
    /// The body is longer than a frame may be.
    #[error("the body has {len} bytes, more than {BODY_MAX}")]
    TooLong {
        /// The stated length.
        len: u32,
    },
    /// A reserved byte is not zero.
    #[error(transparent)]
    Codec(#[from] CodecError),
}

/// What a frame is for. Kinds below 0x80 go from the host to the enclave, the others back.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[repr(u8)]
pub enum FrameKind {
    /// Opens a connection: the version.
    Hello = 0x01,
    /// Asks for evidence over a challenge.
    EvidenceReq = 0x02,
    /// Asks for the client bundle from an offset on.
    ClientBundleReq = 0x03,
    /// Opens a stream with the head of a sealed request.
    Open = 0x04,
    /// Bytes of a sealed request.
    HostData = 0x05,
    /// The sealed request is complete.
    End = 0x06,
    /// The answer is no longer wanted.
    Cancel = 0x07,
    /// More response frames may be sent.
    HostCredit = 0x08,
    /// Bytes of a package blob.
    BlobResp = 0x09,
    /// A sealed package key.
    KeyrelResp = 0x0A,
    /// Are you there.
    Ping = 0x0B,
    /// Finish what runs and take nothing new.
    Drain = 0x0C,
    /// Answers HELLO: the limits.
    HelloAck = 0x81,
    /// A piece of an evidence bundle.
    Evidence = 0x82,
    /// A piece of the client bundle.
    ClientBundle = 0x83,
    /// The request was accepted.
    Accept = 0x84,
    /// Bytes of a sealed response.
    EnclaveData = 0x85,
    /// A signed usage receipt.
    Receipt = 0x86,
    /// The stream is over.
    Close = 0x87,
    /// More request bytes may be sent.
    EnclaveCredit = 0x88,
    /// Asks for bytes of a package blob.
    BlobReq = 0x89,
    /// Asks for a package key.
    KeyrelReq = 0x8A,
    /// Answers PING.
    Pong = 0x8B,
    /// Rounded counters.
    Status = 0x8C,
}

impl FrameKind {
    /// Every kind, in the order of its number.
    pub const ALL: [Self; 24] = [
        Self::Hello,
        Self::EvidenceReq,
        Self::ClientBundleReq,
        Self::Open,
        Self::HostData,
        Self::End,
        Self::Cancel,
        Self::HostCredit,
        Self::BlobResp,
        Self::KeyrelResp,
        Self::Ping,
        Self::Drain,
        Self::HelloAck,
        Self::Evidence,
        Self::ClientBundle,
        Self::Accept,
        Self::EnclaveData,
        Self::Receipt,
        Self::Close,
        Self::EnclaveCredit,
        Self::BlobReq,
        Self::KeyrelReq,
        Self::Pong,
        Self::Status,
    ];

    /// Its number on the wire.
    #[must_use]
    pub const fn code(self) -> u8 {
        self as u8
    }

    /// Whether the host sends it; the enclave sends the others.
    #[must_use]
    pub const fn is_from_host(self) -> bool {
        self.code() < 0x80
    }
}

impl TryFrom<u8> for FrameKind {
    type Error = FrameError;

    fn try_from(found: u8) -> Result<Self, FrameError> {
        Self::ALL
            .into_iter()
            .find(|kind| kind.code() == found)
            .ok_or(FrameError::UnknownKind { found })
    }
}

/// A checked frame header.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct FrameHeader {
    /// What the frame is for.
    pub kind: FrameKind,
    /// The stream it belongs to; 0 is the connection itself.
    pub stream: u64,
    /// Length of the body in bytes, at most [`BODY_MAX`].
    pub len: u32,
}

impl FrameHeader {
    /// Reads a header.
    ///
    /// # Errors
    /// [`FrameError`] names the field that is wrong.
    pub fn from_bytes(bytes: &[u8; HEADER_LEN]) -> Result<Self, FrameError> {
        let mut reader = Reader::new(bytes);
        let found = reader.array()?;
        if found != MAGIC {
            return Err(FrameError::Magic { found });
        }
        let found = reader.u8()?;
        if found != VERSION {
            return Err(FrameError::Version { found });
        }
        let kind = FrameKind::try_from(reader.u8()?)?;
        reader.zeros(2)?;
        let stream = reader.u64()?;
        let len = reader.u32()?;
        reader.zeros(4)?;
        if len > BODY_MAX as u32 {
            return Err(FrameError::TooLong { len });
        }
        Ok(Self { kind, stream, len })
    }
}

/// A frame: its header's fields and its body.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Frame<'a> {
    /// What the frame is for.
    pub kind: FrameKind,
    /// The stream it belongs to; 0 is the connection itself.
    pub stream: u64,
    /// The body.
    pub body: &'a [u8],
}

/// Splits the first frame off `bytes`, or yields nothing while it is incomplete.
///
/// # Errors
/// [`FrameError`] when what is there already cannot be a frame.
pub fn split(bytes: &[u8]) -> Result<Option<(Frame<'_>, &[u8])>, FrameError> {
    let Some((header, rest)) = bytes.split_first_chunk::<HEADER_LEN>() else {
        return Ok(None);
    };
    let FrameHeader { kind, stream, len } = FrameHeader::from_bytes(header)?;
    Ok(rest.split_at_checked(len as usize).map(|(body, rest)| (Frame { kind, stream, body }, rest)))
}

/// Appends a frame to `out`.
///
/// # Panics
/// When `body` is longer than [`BODY_MAX`]: the caller splits what may be longer.
pub fn write(kind: FrameKind, stream: u64, body: &[u8], out: &mut Vec<u8>) {
    assert!(body.len() <= BODY_MAX, "a frame body of {} bytes", body.len());
    out.reserve(HEADER_LEN.saturating_add(body.len()));
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&[VERSION, kind.code(), 0, 0]);
    out.extend_from_slice(&stream.to_be_bytes());
    out.extend_from_slice(&(body.len() as u32).to_be_bytes());
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(body);
}

const MAGIC: [u8; 4] = *b"CHRF";
const VERSION: u8 = 1;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_comes_back_and_leaves_the_rest() {
        for kind in FrameKind::ALL {
            let mut bytes = Vec::new();
            write(kind, 0x0102_0304_0506_0708, b"body", &mut bytes);
            let len = bytes.len();
            bytes.extend_from_slice(b"rest");
            let (frame, rest) = split(&bytes).unwrap().unwrap();
            assert_eq!(frame, Frame { kind, stream: 0x0102_0304_0506_0708, body: b"body" });
            assert_eq!(rest, b"rest");
            for cut in 0..len {
                assert_eq!(split(&bytes[..cut]), Ok(None));
            }
        }
    }

    #[test]
    fn every_header_bit_outside_kind_stream_and_length_is_checked() {
        let mut bytes = Vec::new();
        write(FrameKind::Ping, 0, b"", &mut bytes);
        let is_free = |byte| byte == 5 || (8..20).contains(&byte);
        for bit in (0..HEADER_LEN * 8).filter(|bit| !is_free(bit / 8)) {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(split(&flipped).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn an_unknown_kind_and_a_long_body_are_refused() {
        let mut bytes = Vec::new();
        write(FrameKind::Ping, 0, b"", &mut bytes);
        bytes[5] = 0x0D;
        assert_eq!(split(&bytes), Err(FrameError::UnknownKind { found: 0x0D }));
        bytes[5] = 0x0B;
        bytes[16..20].copy_from_slice(&65_513u32.to_be_bytes());
        assert_eq!(split(&bytes), Err(FrameError::TooLong { len: 65_513 }));
    }
}
