//! Mode B (docs/formats.md, section 3.6): no more than a window of tokens goes out of which the client has not said
//! that they are here. A host that withholds an answer is paid for that much of it and no more.

use chrysalis_protocol::ack::{ACK_LEN, AckError, AckOpener};

/// What the client of one answer has said.
pub(super) struct Acks {
    opener: AckOpener,
    window: u32,
    frames: u32,
    /// Since when the answer waits for an ACK.
    waits_ms: Option<u64>,
    /// Whether the client is waited for no longer.
    waived: bool,
}

/// Why a portion of ACKs was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Refused;

impl From<AckError> for Refused {
    fn from(_: AckError) -> Self {
        Self
    }
}

impl Acks {
    pub(super) fn new(opener: AckOpener, window: u32) -> Self {
        Self { opener, window, frames: 0, waits_ms: None, waived: false }
    }

    /// Takes whole ACK frames, of an answer of which so many frames and tokens were sent.
    pub(super) fn take(&mut self, bytes: &[u8], frames: u32, tokens: u32) -> Result<(), Refused> {
        let (acks, []) = bytes.as_chunks::<ACK_LEN>() else { return Err(Refused) };
        for ack in acks {
            // A client says so once for each frame at most.
            if self.frames >= frames {
                return Err(Refused);
            }
            self.frames += 1;
            self.opener.open(ack, tokens)?;
            self.waits_ms = None;
        }
        if acks.is_empty() { Err(Refused) } else { Ok(()) }
    }

    /// How many tokens may follow the `sent` first ones.
    pub(super) fn room(&self, sent: u32) -> u32 {
        let open = sent.saturating_sub(self.opener.acked().unwrap_or_default());
        self.window.saturating_sub(open)
    }

    /// Whether the client has shown that anything reached it. Until then it owes no prompt.
    pub(super) fn reached(&self) -> bool {
        self.opener.acked().is_some()
    }

    /// Whether the answer may end: its client was reached, or was waited for long enough.
    pub(super) fn may_end(&self) -> bool {
        self.waived || self.reached()
    }

    /// Waits for the client no longer.
    pub(super) fn waive(&mut self) {
        self.waived = true;
    }

    /// Notes whether the answer waits, since `now_ms` at the latest.
    pub(super) fn wait(&mut self, waits: bool, now_ms: u64) {
        let since = self.waits_ms.unwrap_or(now_ms);
        self.waits_ms = (waits && !self.waived).then_some(since);
    }

    /// When the answer has waited long enough.
    pub(super) fn overdue_ms(&self, limit_ms: u64) -> Option<u64> {
        self.waits_ms.map(|since| since.saturating_add(limit_ms))
    }
}
