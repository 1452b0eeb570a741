//! Speculation by prompt lookup: where the last tokens of a sequence stood before, what followed
//! them then is likely to follow again. It costs no second model, and summaries, translations,
//! code and lists repeat themselves. (Yang et al. 2023, arXiv:2304.04487; the same idea is known
//! as prompt lookup decoding.)
//!
//! What a draft says changes no token that is put out: the engine chooses every token from the
//! model's logits as ever, and a draft only lets it compute the logits of several in one step.

/// A guess at the next tokens of a sequence: its own, from an earlier place. Nothing is copied.
/// No `Debug`: where a text repeats itself is a part of it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Draft {
    /// Where the earlier place begins.
    from: usize,
    /// From there to the end of the sequence. A longer draft begins again at `from`.
    period: usize,
    /// Tokens of the draft, at least one.
    pub(super) len: usize,
}

impl Draft {
    /// The token at `index` of the draft. `tokens` are those that it was made of, or more.
    pub(super) fn token(&self, tokens: &[u32], index: usize) -> Option<u32> {
        tokens.get(self.from + index.checked_rem(self.period)?).copied()
    }
}

/// How much of a sequence is worth guessing, after how good the last guesses were.
pub(super) struct Speculation {
    /// Tokens of the next draft.
    len: usize,
    /// Drafts in a row of which nothing was right.
    misses: u32,
    /// Steps without a draft that are still to come.
    pause: u32,
}

impl Default for Speculation {
    fn default() -> Self {
        Self { len: FIRST_LEN, misses: 0, pause: 0 }
    }
}

impl Speculation {
    /// A draft of at most `max` tokens to follow `tokens`.
    pub(super) fn draft(&mut self, tokens: &[u32], max: usize) -> Option<Draft> {
        if self.pause > 0 {
            self.pause -= 1;
            return None;
        }
        let len = self.len.min(max);
        if len == 0 {
            return None;
        }
        let place = lookup(tokens)?;
        let len = if place.alike == 3 { len } else { 1 };
        Some(Draft { from: place.from, period: tokens.len() - place.from, len })
    }

    /// Learns how many tokens of a draft of `len` were right.
    pub(super) fn learn(&mut self, len: usize, right: usize) {
        if right == 0 {
            self.misses = (self.misses + 1).min(MISSES_MAX);
            self.pause = (1 << self.misses) - 2;
            self.len = 1;
            return;
        }
        self.misses = 0;
        // A draft that was right to its end could have been longer.
        self.len = if right == len { self.len.max(len + 2).min(DRAFT_LEN_MAX) } else { right };
    }
}

/// An earlier place where the last tokens stood.
struct Place {
    /// Behind it.
    from: usize,
    /// How many of the last tokens.
    alike: usize,
}

/// The latest place where the last three tokens stood before, or else the last two.
fn lookup(tokens: &[u32]) -> Option<Place> {
    let &[first, second, third] = tokens.last_chunk::<3>()?;
    let start = tokens.len().saturating_sub(LOOK_BACK);
    let (mut pair, mut end) = (None, tokens.len() - 1);
    while let Some(found) = tokens.get(start..end)?.iter().rposition(|&token| token == third) {
        end = start + found;
        let before = |distance: usize| end.checked_sub(distance).and_then(|at| tokens.get(at));
        if before(1) == Some(&second) {
            if before(2) == Some(&first) {
                return Some(Place { from: end + 1, alike: 3 });
            }
            pair.get_or_insert(end + 1);
        }
    }
    pair.map(|from| Place { from, alike: 2 })
}

/// The most tokens of a draft.
pub(super) const DRAFT_LEN_MAX: usize = 8;
/// Tokens of a first draft.
const FIRST_LEN: usize = 3;
/// Misses beyond which the pause grows no further: 14 steps.
const MISSES_MAX: u32 = 4;
/// Tokens, from the end, among which is looked: a bound of the time that it takes.
const LOOK_BACK: usize = 16_384;

#[cfg(test)]
mod tests {
    use super::{DRAFT_LEN_MAX, LOOK_BACK, Speculation, lookup};

    fn draft(tokens: &[u32], max: usize) -> Vec<u32> {
        let mut speculation = Speculation { len: DRAFT_LEN_MAX, ..Speculation::default() };
        let draft = speculation.draft(tokens, max);
        draft.map_or(Vec::new(), |draft| {
            (0..draft.len).map(|index| draft.token(tokens, index).unwrap()).collect()
        })
    }

    #[test]
    fn what_followed_the_last_three_tokens_is_drafted() {
        assert_eq!(draft(&[1, 2, 3, 4, 5, 9, 1, 2, 3], 2), [4, 5]);
        // Two tokens of a nearer place do not count as much as three.
        assert_eq!(draft(&[1, 2, 3, 4, 0, 2, 3, 7, 1, 2, 3], 1), [4]);
        // The later place is taken.
        assert_eq!(draft(&[1, 2, 3, 4, 1, 2, 3, 5, 1, 2, 3], 1), [5]);
    }

    #[test]
    fn two_tokens_do_where_three_never_stood_before() {
        // They say less: only one token is drafted.
        assert_eq!(draft(&[0, 2, 3, 7, 8, 1, 2, 3], 2), [7]);
        assert_eq!(draft(&[2, 3, 7, 1, 2, 3], 1), [7]);
    }

    #[test]
    fn a_text_that_goes_round_is_drafted_round_and_round() {
        assert_eq!(draft(&[5, 5, 5, 5], 4), [5; 4]);
        assert_eq!(draft(&[0, 7, 8, 7, 8, 7, 8], 5), [7, 8, 7, 8, 7]);
    }

    #[test]
    fn there_is_no_draft_without_an_earlier_place() {
        for tokens in [&[][..], &[1], &[1, 1], &[1, 2, 3], &[3, 1, 2, 3], &[1, 2, 3, 4, 5]] {
            assert!(lookup(tokens).is_none(), "{tokens:?}");
        }
        assert!(draft(&[5, 5, 5, 5], 0).is_empty());
    }

    #[test]
    fn the_look_back_is_bounded() {
        let mut tokens: Vec<u32> = (0..LOOK_BACK as u32).collect();
        tokens.extend([0, 1, 2]);
        assert!(lookup(&tokens).is_none());
        tokens.extend([LOOK_BACK as u32 - 3, LOOK_BACK as u32 - 2, LOOK_BACK as u32 - 1]);
        assert!(lookup(&tokens).is_some_and(|place| place.from == LOOK_BACK));
    }

    #[test]
    fn misses_make_drafts_rare_and_hits_make_them_long() {
        let tokens = [5; 8];
        let mut speculation = Speculation::default();
        let mut pauses = Vec::new();
        for _ in 0..8 {
            let mut pause = 0;
            while speculation.draft(&tokens, 9).is_none() {
                pause += 1;
            }
            pauses.push(pause);
            speculation.learn(1, 0);
        }
        assert_eq!(pauses, [0, 0, 2, 6, 14, 14, 14, 14]);
        while speculation.draft(&tokens, 9).is_none() {}
        for (right, next) in [(1, 3), (3, 5), (5, 7), (7, 8), (8, 8), (2, 2)] {
            speculation.learn(speculation.len, right);
            assert!(speculation.draft(&tokens, 9).is_some_and(|draft| draft.len == next));
        }
        // A draft that room made short says nothing against a longer one.
        speculation.len = 6;
        speculation.learn(1, 1);
        assert!(speculation.draft(&tokens, 9).is_some_and(|draft| draft.len == 6));
    }
}
