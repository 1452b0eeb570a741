//! The way to the card: a few pinned buffers in turn, so that one is filled while others are copied. What was in them is wiped as
//! soon as somebody has waited for the copies.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use super::error::CardError;
use super::raw::{Event, Pinned, Stream};
use crate::cuda::counts::Counts;

/// Pinned buffers for copies to the card. Threads that upload fill different ones at the same time.
#[derive(Debug)]
pub(super) struct Staging {
    buffers: Vec<Mutex<Buffer>>,
    next: AtomicUsize,
}

#[derive(Debug)]
struct Buffer {
    pinned: Pinned,
    /// After the last copy from it.
    copied: Event,
    /// Bytes that are not zero.
    used: usize,
}

impl Staging {
    pub(super) fn new() -> Result<Self, CardError> {
        let buffer = |_| {
            let (pinned, copied) = (Pinned::new(PIECE)?, Event::new()?);
            Ok(Mutex::new(Buffer { pinned, copied, used: 0 }))
        };
        let buffers = (0..BUFFERS).map(buffer).collect::<Result<_, CardError>>()?;
        Ok(Self { buffers, next: AtomicUsize::new(0) })
    }

    /// Copies to an address of the card. It waits only where all buffers are still on their way.
    pub(super) fn send(
        &self,
        stream: &Stream,
        counts: &Counts,
        to: u64,
        bytes: &[u8],
    ) -> Result<(), CardError> {
        let mut to = to;
        for piece in bytes.chunks(PIECE) {
            let turn = self.next.fetch_add(1, Ordering::Relaxed) % BUFFERS;
            let mut buffer = self.buffers[turn].lock().unwrap_or_else(PoisonError::into_inner);
            if buffer.used > 0 && !buffer.copied.is_over()? {
                counts.waited();
                buffer.copied.wait()?;
            }
            let used = std::mem::replace(&mut buffer.used, piece.len());
            let (new, rest) = buffer.pinned.bytes().split_at_mut(piece.len());
            new.copy_from_slice(piece);
            rest[..used.saturating_sub(piece.len())].fill(0);
            buffer.pinned.send(to, piece.len(), stream)?;
            buffer.copied.record(stream)?;
            counts.copied_in(piece.len());
            to += piece.len() as u64;
        }
        Ok(())
    }

    /// Wipes what has been copied.
    pub(super) fn settle(&self) -> Result<(), CardError> {
        for buffer in &self.buffers {
            let mut buffer = buffer.lock().unwrap_or_else(PoisonError::into_inner);
            if buffer.used > 0 && buffer.copied.is_over()? {
                let used = std::mem::take(&mut buffer.used);
                buffer.pinned.bytes()[..used].fill(0);
            }
        }
        Ok(())
    }
}

/// Bytes of a buffer: enough that a copy takes longer than its call.
pub(super) const PIECE: usize = 4 << 20;
const BUFFERS: usize = 4;
