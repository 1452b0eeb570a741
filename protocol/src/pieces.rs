//! A value that is longer than a frame, in pieces: total u32 | offset u32 | bytes.
//!
//! EVIDENCE and CLIENT_BUNDLE frames carry pieces in order, so that the receiver needs one buffer
//! and no map of holes.

use crate::codec::{Reader, Writer};
use crate::frame::BODY_MAX;
use crate::messages::MessageError;

/// The most bytes of the whole in one piece.
pub const PIECE_MAX: usize = BODY_MAX - 8;

/// A part of a whole.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Piece<'a> {
    /// Length of the whole, in bytes.
    pub total: u32,
    /// Where this piece starts.
    pub offset: u32,
    /// The bytes; never none.
    pub bytes: &'a [u8],
}

impl<'a> Piece<'a> {
    /// The encoding.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut writer = Writer::new();
        writer.u32(self.total).u32(self.offset).bytes(self.bytes);
        writer.into_bytes()
    }

    /// Reads a piece.
    ///
    /// # Errors
    /// [`MessageError::PieceRange`] when it is empty or lies outside its whole.
    pub fn from_bytes(body: &'a [u8]) -> Result<Self, MessageError> {
        let mut reader = Reader::new(body);
        let (total, offset) = (reader.u32()?, reader.u32()?);
        let bytes = reader.rest();
        let room = total.saturating_sub(offset) as usize;
        if bytes.is_empty() || bytes.len() > room {
            return Err(MessageError::PieceRange { offset, len: bytes.len(), total });
        }
        Ok(Self { total, offset, bytes })
    }
}

/// Cuts `whole` into pieces, from `start` on. A whole that does not fit a u32 has none.
pub fn pieces(whole: &[u8], start: usize) -> impl Iterator<Item = Piece<'_>> {
    let total = u32::try_from(whole.len()).unwrap_or(0);
    let rest = if total == 0 { &[] } else { whole.get(start..).unwrap_or_default() };
    let offsets = (start..).step_by(PIECE_MAX);
    rest.chunks(PIECE_MAX).zip(offsets).map(move |(bytes, offset)| Piece {
        total,
        offset: offset as u32,
        bytes,
    })
}

/// Joins pieces that come in order.
#[derive(Debug)]
pub struct Assembler {
    limit: u32,
    total: Option<u32>,
    bytes: Vec<u8>,
}

impl Assembler {
    /// Takes a whole of at most `limit` bytes.
    #[must_use]
    pub const fn new(limit: u32) -> Self {
        Self { limit, total: None, bytes: Vec::new() }
    }

    /// Adds the next piece; yields the whole when it is complete, and starts again.
    ///
    /// # Errors
    /// [`MessageError`] when the piece is not the one that follows, or the whole is too large.
    pub fn push(&mut self, piece: &Piece<'_>) -> Result<Option<Vec<u8>>, MessageError> {
        let Piece { total, offset: found, bytes } = *piece;
        let limit = self.limit;
        if total > limit {
            return Err(MessageError::PieceTotal { total, limit });
        }
        let expected = self.bytes.len() as u32;
        if found != expected || *self.total.get_or_insert(total) != total {
            return Err(MessageError::PieceOrder { found, total, expected });
        }
        let room = total.saturating_sub(found) as usize;
        if bytes.is_empty() || bytes.len() > room {
            return Err(MessageError::PieceRange { offset: found, len: bytes.len(), total });
        }
        self.bytes.extend_from_slice(bytes);
        if self.bytes.len() < total as usize {
            return Ok(None);
        }
        self.total = None;
        Ok(Some(core::mem::take(&mut self.bytes)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_whole_comes_back_from_its_pieces() {
        let whole: Vec<u8> = (0..PIECE_MAX * 2 + 9).map(|i| (i % 251) as u8).collect();
        let mut assembler = Assembler::new(1 << 20);
        let mut joined = None;
        for piece in pieces(&whole, 0) {
            assert!(joined.is_none());
            let body = piece.to_bytes();
            assert!(body.len() <= BODY_MAX);
            joined = assembler.push(&Piece::from_bytes(&body).unwrap()).unwrap();
        }
        assert!(joined == Some(whole));
    }

    #[test]
    fn a_gap_a_repeat_a_changed_total_and_a_large_whole_are_refused() {
        let piece = |total, offset, bytes| Piece { total, offset, bytes };
        let mut assembler = Assembler::new(8);
        assert_eq!(assembler.push(&piece(6, 0, b"ab")), Ok(None));
        for wrong in [piece(6, 0, b"ab"), piece(6, 3, b"de"), piece(7, 2, b"cd")] {
            assert!(matches!(assembler.push(&wrong), Err(MessageError::PieceOrder { .. })));
        }
        let large = MessageError::PieceTotal { total: 9, limit: 8 };
        assert_eq!(assembler.push(&piece(9, 2, b"cd")), Err(large));
        assert_eq!(assembler.push(&piece(6, 2, b"cdef")), Ok(Some(b"abcdef".to_vec())));
    }

    #[test]
    fn a_piece_outside_its_whole_is_refused() {
        for (total, offset, bytes) in [(4, 3, &b"ab"[..]), (4, 5, b"a"), (4, 1, b"")] {
            let body = Piece { total, offset, bytes }.to_bytes();
            assert!(matches!(Piece::from_bytes(&body), Err(MessageError::PieceRange { .. })));
        }
    }
}
