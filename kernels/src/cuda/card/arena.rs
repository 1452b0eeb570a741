//! A plan of memory that was allocated once: what is taken and what is free. It touches no memory.

use std::collections::BTreeMap;

/// Free pieces of a range that begins at zero.
#[derive(Debug)]
pub(super) struct Arena {
    /// Length of each free piece, by its start. No two of them touch.
    free: BTreeMap<usize, usize>,
    /// Bytes in all.
    len: usize,
}

/// What reservations are multiples of.
pub(super) const GRAIN: usize = 256;

impl Arena {
    pub(super) fn new(len: usize) -> Self {
        let len = len / GRAIN * GRAIN;
        Self { free: if len > 0 { BTreeMap::from([(0, len)]) } else { BTreeMap::new() }, len }
    }

    /// Takes `bytes`, rounded up, from the smallest piece that has them; where it begins, and how much it is.
    pub(super) fn take(&mut self, bytes: usize) -> Option<(usize, usize)> {
        let bytes = bytes.max(1).checked_next_multiple_of(GRAIN)?;
        let fits = self.free.iter().filter(|(_, len)| **len >= bytes);
        let (&start, &len) = fits.min_by_key(|(_, len)| **len)?;
        self.free.remove(&start);
        if len > bytes {
            self.free.insert(start + bytes, len - bytes);
        }
        Some((start, bytes))
    }

    /// Gives a piece back that was taken, and joins it with its free neighbours.
    pub(super) fn give_back(&mut self, start: usize, bytes: usize) {
        let (mut start, mut len) = (start, bytes);
        if let Some(behind) = self.free.remove(&(start + len)) {
            len += behind;
        }
        if let Some((&before, &before_len)) = self.free.range(..start).next_back()
            && before + before_len == start
        {
            self.free.remove(&before);
            (start, len) = (before, before_len + len);
        }
        self.free.insert(start, len);
    }

    /// Free bytes, and all bytes.
    pub(super) fn left(&self) -> (usize, usize) {
        (self.free.values().sum(), self.len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_never_overlap_and_all_come_together_again() {
        let mut arena = Arena::new(100 * GRAIN + 7);
        let mut state = 1_u64;
        let mut random = |n: usize| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 33) as usize % n
        };
        let mut taken: Vec<(usize, usize)> = Vec::new();
        for _ in 0..5000 {
            if random(2) == 0 {
                if let Some(piece) = arena.take(random(20 * GRAIN)) {
                    assert!(piece.0 % GRAIN == 0 && piece.0 + piece.1 <= 100 * GRAIN);
                    assert!(taken.iter().all(|t| piece.0 + piece.1 <= t.0 || t.0 + t.1 <= piece.0));
                    taken.push(piece);
                }
            } else if !taken.is_empty() {
                let (start, len) = taken.swap_remove(random(taken.len()));
                arena.give_back(start, len);
            }
            let used: usize = taken.iter().map(|(_, len)| len).sum();
            assert_eq!(arena.left(), (100 * GRAIN - used, 100 * GRAIN));
        }
        taken.drain(..).for_each(|(start, len)| arena.give_back(start, len));
        assert_eq!(arena.take(100 * GRAIN), Some((0, 100 * GRAIN)));
        assert_eq!(arena.take(0), None);
    }

    #[test]
    fn what_does_not_fit_is_refused_and_nothing_is_lost() {
        let mut arena = Arena::new(10 * GRAIN);
        assert_eq!(arena.take(GRAIN + 1), Some((0, 2 * GRAIN)));
        assert_eq!(arena.take(9 * GRAIN), None);
        assert_eq!(arena.take(usize::MAX), None);
        assert_eq!(arena.left(), (8 * GRAIN, 10 * GRAIN));
    }
}
