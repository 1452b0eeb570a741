//! The replay set of one epoch key: an encapsulated key is opened once, then never again.

use std::collections::HashSet;

/// Why an encapsulated key was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReplayError {
    /// It was taken before: this is a replay.
    #[error("this encapsulated key was already opened")]
    Seen,
    /// The epoch has taken all it may; the next epoch must begin.
    #[error("the epoch has taken its {0} requests")]
    Full(usize),
}

/// 16 bytes of SHA-256(`enc`) of every request that one epoch key opened. Dies with the key.
#[derive(Debug)]
pub struct ReplaySet {
    seen: HashSet<[u8; 16]>,
    capacity: usize,
}

impl ReplaySet {
    /// An empty set that takes at most `capacity` requests.
    pub fn new(capacity: usize) -> Self {
        Self { seen: HashSet::with_capacity(capacity.min(4_096)), capacity }
    }

    /// Takes an encapsulated key by the SHA-256 of its bytes.
    ///
    /// # Errors
    /// [`ReplayError::Seen`] for a replay, [`ReplayError::Full`] at the cap.
    pub fn insert(&mut self, enc_hash: &[u8; 32]) -> Result<(), ReplayError> {
        let tag = tag(enc_hash);
        if self.seen.contains(&tag) {
            return Err(ReplayError::Seen);
        }
        if self.seen.len() >= self.capacity {
            return Err(ReplayError::Full(self.capacity));
        }
        self.seen.insert(tag);
        Ok(())
    }

    /// Whether an encapsulated key was taken.
    pub fn contains(&self, enc_hash: &[u8; 32]) -> bool {
        self.seen.contains(&tag(enc_hash))
    }

    /// Requests taken.
    pub fn len(&self) -> usize {
        self.seen.len()
    }

    /// Whether nothing was taken yet.
    pub fn is_empty(&self) -> bool {
        self.seen.is_empty()
    }

    /// Whether the cap is reached.
    pub fn is_full(&self) -> bool {
        self.seen.len() >= self.capacity
    }
}

fn tag(enc_hash: &[u8; 32]) -> [u8; 16] {
    let mut tag = [0; 16];
    tag.copy_from_slice(&enc_hash[..16]);
    tag
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_encapsulated_key_is_taken_once() {
        let mut set = ReplaySet::new(10);
        assert_eq!(set.insert(&[1; 32]), Ok(()));
        for _ in 0..10_000 {
            assert_eq!(set.insert(&[1; 32]), Err(ReplayError::Seen));
        }
        assert_eq!(set.len(), 1);
    }

    #[test]
    fn a_full_set_takes_nothing_and_still_knows_replays() {
        let mut set = ReplaySet::new(2);
        set.insert(&[1; 32]).unwrap();
        assert!(set.contains(&[1; 32]) && !set.contains(&[2; 32]));
        set.insert(&[2; 32]).unwrap();
        assert!(set.is_full());
        assert_eq!(set.insert(&[3; 32]), Err(ReplayError::Full(2)));
        assert_eq!(set.insert(&[2; 32]), Err(ReplayError::Seen));
    }
}
