//! The broker's clock while it runs: it never goes back, or a licence that is over would come to life again.

use std::sync::atomic::{AtomicU64, Ordering};

use super::refusal::Refusal;

/// A clock may be this much behind what was seen of it, in seconds: time services correct it.
pub const CLOCK_SLACK: u64 = 300;

/// The latest time that was seen, Unix seconds.
#[derive(Debug)]
pub struct Clock(AtomicU64);

impl Clock {
    /// A clock that was at `latest` before.
    pub const fn new(latest: u64) -> Self {
        Self(AtomicU64::new(latest))
    }

    /// The time to judge by: `now`, or a later one that was seen before.
    ///
    /// # Errors
    /// [`Refusal::ClockBack`] when the system's clock was set back by more than a correction.
    pub fn read(&self, now: u64) -> Result<u64, Refusal> {
        let latest = self.0.fetch_max(now, Ordering::Relaxed).max(now);
        if now.saturating_add(CLOCK_SLACK) < latest {
            return Err(Refusal::ClockBack { now, latest });
        }
        Ok(latest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_corrected_clock_stands_still_and_one_that_is_set_back_is_refused() {
        let clock = Clock::new(1_000);
        assert_eq!(clock.read(900), Ok(1_000));
        assert_eq!(clock.read(2_000), Ok(2_000));
        assert_eq!(clock.read(2_000 - CLOCK_SLACK), Ok(2_000));
        let now = 2_000 - CLOCK_SLACK - 1;
        assert_eq!(clock.read(now), Err(Refusal::ClockBack { now, latest: 2_000 }));
        assert_eq!(clock.read(2_001), Ok(2_001));
    }
}
