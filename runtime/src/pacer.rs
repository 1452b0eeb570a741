//! When the frames of one response go out (docs/protocol.md, "Padding and timing").
//!
//! Profile 0 sends frames as they come. Profile 1 sends exactly one frame each tick, from ACCEPT on,
//! and ends only on a multiple of the length quantum. Profile 2 keeps that rhythm up for the whole
//! envelope of `max_output`, one token a tick, whatever the answer's length.

use chrysalis_protocol::statement::PadProfile;

/// The attested rhythm of a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rhythm {
    /// How lengths and times are hidden.
    pub profile: PadProfile,
    /// Milliseconds between two frames.
    pub tick_ms: u64,
    /// A response has a multiple of this many frames.
    pub length_quantum: u64,
}

/// The clockwork of one stream. Pure: time comes in as an argument.
#[derive(Clone, Copy, Debug)]
pub struct Pacer {
    rhythm: Rhythm,
    started_ms: u64,
    sent: u64,
    envelope: u64,
}

impl Pacer {
    /// Starts with the ACCEPT frame at `now_ms` for a request whose output takes at most `max_frames` frames.
    pub fn new(rhythm: Rhythm, max_frames: u64, now_ms: u64) -> Self {
        let quantum = rhythm.length_quantum.max(1);
        let envelope = match rhythm.profile {
            // ACCEPT, the output, END.
            PadProfile::Flat => max_frames.saturating_add(2).next_multiple_of(quantum),
            _ => 0,
        };
        Self { rhythm, started_ms: now_ms, sent: 0, envelope }
    }

    /// Whether a frame must go out now, with something in it or not.
    pub fn is_due(&self, now_ms: u64) -> bool {
        self.rhythm.profile != PadProfile::Off && now_ms >= self.next_ms()
    }

    /// When the next frame is due; for profile 0 that is whenever there is one.
    pub fn next_ms(&self) -> u64 {
        match self.rhythm.profile {
            PadProfile::Off => self.started_ms,
            _ => self.started_ms.saturating_add(self.sent.saturating_mul(self.rhythm.tick_ms)),
        }
    }

    /// Whether frames go out without waiting for a tick.
    pub fn is_immediate(&self) -> bool {
        self.rhythm.profile == PadProfile::Off
    }

    /// Whether the next frame may be the last one.
    pub fn may_end(&self) -> bool {
        let count = self.sent.saturating_add(1);
        match self.rhythm.profile {
            PadProfile::Off => true,
            _ => count.is_multiple_of(self.rhythm.length_quantum.max(1)) && count >= self.envelope,
        }
    }

    /// Counts a frame as sent.
    pub fn advance(&mut self) {
        self.sent = self.sent.saturating_add(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TICK: Rhythm = Rhythm { profile: PadProfile::Tick, tick_ms: 50, length_quantum: 16 };

    fn frames_until_end(mut pacer: Pacer, done_after: u64) -> u64 {
        let mut count = 0;
        loop {
            let ends = count >= done_after && pacer.may_end();
            pacer.advance();
            count += 1;
            if ends {
                return count;
            }
        }
    }

    #[test]
    fn one_frame_is_due_each_tick() {
        let mut pacer = Pacer::new(TICK, 100, 1_000);
        assert!(pacer.is_due(1_000));
        pacer.advance();
        assert!(!pacer.is_due(1_049));
        assert!(pacer.is_due(1_050));
        pacer.advance();
        assert_eq!(pacer.next_ms(), 1_100);
    }

    #[test]
    fn the_number_of_frames_shows_only_the_quantum() {
        for done_after in 1..16 {
            assert_eq!(frames_until_end(Pacer::new(TICK, 500, 0), done_after), 16);
        }
        assert_eq!(frames_until_end(Pacer::new(TICK, 500, 0), 16), 32);
    }

    #[test]
    fn the_flat_profile_has_one_length_for_every_answer() {
        let flat = Rhythm { profile: PadProfile::Flat, ..TICK };
        for done_after in [1, 17, 80, 101] {
            assert_eq!(frames_until_end(Pacer::new(flat, 100, 0), done_after), 112);
        }
    }

    #[test]
    fn profile_zero_waits_for_nothing() {
        let off = Rhythm { profile: PadProfile::Off, ..TICK };
        let pacer = Pacer::new(off, 100, 7);
        assert!(pacer.is_immediate() && pacer.may_end() && !pacer.is_due(u64::MAX));
    }
}
