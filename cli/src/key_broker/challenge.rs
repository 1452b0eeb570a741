//! Challenges: random, for one package, answered once, soon, and never more of them than fit a table.

use std::collections::{HashMap, VecDeque};

use chrysalis_protocol::rand_core::CryptoRng;

use super::refusal::Refusal;

/// A challenge may be answered for this long; loading a package's public part and one report take a second.
pub const AGE_MAX_MS: u64 = 120_000;

/// The challenges that were given out.
#[derive(Debug)]
pub struct Challenges {
    open: HashMap<[u8; 32], Challenge>,
    order: VecDeque<[u8; 32]>,
    max: usize,
}

#[derive(Debug)]
struct Challenge {
    package_id: [u8; 16],
    made_ms: u64,
    used: bool,
}

impl Challenges {
    /// A table of at most `max`.
    pub fn new(max: usize) -> Self {
        Self { open: HashMap::new(), order: VecDeque::new(), max }
    }

    /// A new challenge for a package.
    ///
    /// # Errors
    /// [`Refusal::ChallengesFull`]: none that is open is given up for it.
    pub fn give(
        &mut self,
        package_id: [u8; 16],
        now_ms: u64,
        rng: &mut impl CryptoRng,
    ) -> Result<[u8; 32], Refusal> {
        self.forget(now_ms);
        if self.order.len() >= self.max {
            return Err(Refusal::ChallengesFull { max: self.max });
        }
        let mut nonce = [0; 32];
        rng.fill_bytes(&mut nonce);
        self.open.insert(nonce, Challenge { package_id, made_ms: now_ms, used: false });
        self.order.push_back(nonce);
        Ok(nonce)
    }

    /// Uses a challenge up; which package it was for.
    ///
    /// # Errors
    /// The [`Refusal`].
    pub fn take(&mut self, nonce: &[u8; 32], now_ms: u64) -> Result<[u8; 16], Refusal> {
        let challenge = self.open.get_mut(nonce).ok_or(Refusal::ChallengeUnknown)?;
        let age_ms = now_ms.saturating_sub(challenge.made_ms);
        if age_ms > AGE_MAX_MS {
            return Err(Refusal::ChallengeExpired {
                age_s: age_ms / 1_000,
                max_s: AGE_MAX_MS / 1_000,
            });
        }
        if std::mem::replace(&mut challenge.used, true) {
            return Err(Refusal::ChallengeUsed);
        }
        Ok(challenge.package_id)
    }

    /// Forgets those that were told of long enough.
    fn forget(&mut self, now_ms: u64) {
        while let Some(nonce) = self.order.front() {
            let made_ms = self.open.get(nonce).map_or(0, |challenge| challenge.made_ms);
            if now_ms.saturating_sub(made_ms) <= 2 * AGE_MAX_MS {
                return;
            }
            self.open.remove(nonce);
            self.order.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use chrysalis_runtime::rng::SystemRng;

    use super::*;

    #[test]
    fn a_challenge_is_answered_once_and_in_time() {
        let rng = &mut SystemRng::default();
        let mut challenges = Challenges::new(3);
        let first = challenges.give([1; 16], 0, rng).unwrap();
        let second = challenges.give([2; 16], 10, rng).unwrap();
        assert_ne!(first, second);
        assert_eq!(challenges.take(&[0; 32], 20), Err(Refusal::ChallengeUnknown));
        assert_eq!(challenges.take(&second, 20), Ok([2; 16]));
        assert_eq!(challenges.take(&second, 20), Err(Refusal::ChallengeUsed));
        assert_eq!(
            challenges.take(&first, AGE_MAX_MS + 1),
            Err(Refusal::ChallengeExpired { age_s: 120, max_s: 120 })
        );
    }

    #[test]
    fn the_table_is_bounded_and_empties_by_time_only() {
        let rng = &mut SystemRng::default();
        let mut challenges = Challenges::new(2);
        let first = challenges.give([1; 16], 0, rng).unwrap();
        challenges.give([1; 16], 0, rng).unwrap();
        let full = Err(Refusal::ChallengesFull { max: 2 });
        assert_eq!(challenges.give([1; 16], 2 * AGE_MAX_MS, rng), full);
        assert!(challenges.give([1; 16], 2 * AGE_MAX_MS + 1, rng).is_ok());
        assert_eq!(challenges.take(&first, 2 * AGE_MAX_MS + 1), Err(Refusal::ChallengeUnknown));
        assert_eq!((challenges.open.len(), challenges.order.len()), (1, 1));
    }
}
