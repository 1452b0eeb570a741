//! STATUS: what the host may know about the enclave's load. Every counter is rounded to two
//! significant digits on the way out, so that none of them counts a single request or token.

use crate::codec::{Reader, Writer};
use crate::messages::MessageError;

/// What the enclave is doing.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[repr(u8)]
pub enum State {
    /// Reading the package.
    #[default]
    Loading = 1,
    /// Waiting for the package key.
    AwaitingKey = 2,
    /// Serving requests.
    Serving = 3,
    /// Finishing what runs.
    Draining = 4,
}

/// STATUS: state u8 | zero 7 | eleven counters u64.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Status {
    /// What the enclave is doing.
    pub state: State,
    /// Segments of the package that were loaded.
    pub segments_loaded: u64,
    /// Requests that were accepted.
    pub accepted: u64,
    /// Requests that were rejected.
    pub rejected: u64,
    /// Requests that were refused for want of room.
    pub busy: u64,
    /// Requests to an epoch that is gone.
    pub key_unknown: u64,
    /// Streams that the client or the host cancelled.
    pub cancelled: u64,
    /// Faults of the enclave.
    pub internal: u64,
    /// Connections that were reset for a malformed frame.
    pub resets: u64,
    /// Streams that are open.
    pub streams: u64,
    /// Prompt tokens.
    pub prompt_tokens: u64,
    /// Output tokens.
    pub output_tokens: u64,
}

impl Status {
    /// The encoding; it rounds every counter.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let counters = [
            self.segments_loaded,
            self.accepted,
            self.rejected,
            self.busy,
            self.key_unknown,
            self.cancelled,
            self.internal,
            self.resets,
            self.streams,
            self.prompt_tokens,
            self.output_tokens,
        ];
        let mut writer = Writer::new();
        writer.u8(self.state as u8).zeros(7);
        for counter in counters {
            writer.u64(round_counter(counter));
        }
        writer.into_bytes()
    }

    /// Reads the body.
    ///
    /// # Errors
    /// [`MessageError`] names the field that is wrong, or a counter that is not rounded.
    pub fn from_bytes(body: &[u8]) -> Result<Self, MessageError> {
        let mut reader = Reader::new(body);
        let state = match reader.u8()? {
            1 => State::Loading,
            2 => State::AwaitingKey,
            3 => State::Serving,
            4 => State::Draining,
            found => return Err(MessageError::State { found }),
        };
        reader.zeros(7)?;
        let mut counter = || {
            let found = reader.u64()?;
            let rounded = round_counter(found) == found;
            if rounded { Ok(found) } else { Err(MessageError::Counter { found }) }
        };
        let status = Self {
            state,
            segments_loaded: counter()?,
            accepted: counter()?,
            rejected: counter()?,
            busy: counter()?,
            key_unknown: counter()?,
            cancelled: counter()?,
            internal: counter()?,
            resets: counter()?,
            streams: counter()?,
            prompt_tokens: counter()?,
            output_tokens: counter()?,
        };
        reader.finish()?;
        Ok(status)
    }
}

/// `value` rounded down to two significant decimal digits.
#[must_use]
pub fn round_counter(value: u64) -> u64 {
    let unit = 10_u64.saturating_pow(value.checked_ilog10().unwrap_or(0).saturating_sub(1));
    value.saturating_sub(value.checked_rem(unit).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_keep_two_digits() {
        let rounded = [0, 7, 42, 99, 100, 129, 1_999, 123_456, u64::MAX].map(round_counter);
        let expected = [0, 7, 42, 99, 100, 120, 1_900, 120_000, 18_000_000_000_000_000_000];
        assert_eq!(rounded, expected);
    }

    #[test]
    fn an_exact_counter_never_leaves_and_is_never_read() {
        let status = Status { state: State::Serving, accepted: 1_234, ..Status::default() };
        let bytes = status.to_bytes();
        assert_eq!(Status::from_bytes(&bytes).unwrap().accepted, 1_200);
        let mut exact = bytes;
        exact[16..24].copy_from_slice(&1_234u64.to_be_bytes());
        assert_eq!(Status::from_bytes(&exact), Err(MessageError::Counter { found: 1_234 }));
    }
}
