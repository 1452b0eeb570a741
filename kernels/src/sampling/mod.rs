//! How a token is chosen from a row of logits: the parameters, and the arithmetic that all devices share.
//!
//! A choice is a function of the row and its [`Draw`] alone, and the same token on every device, because requests replay by
//! their seed. So nothing here depends on the order in which it is done: what is summed are integers.
//!
//! 1. Each [`Edit`] replaces one logit.
//! 2. A row that is empty, or has an infinity or a NaN now, has no token.
//! 3. At temperature 0 the largest logit wins, the lowest token among equals.
//! 4. The *distance* of a token: how far its logit lies below the largest, over the temperature, rounded to a multiple of
//!    2^-18 (f32, to nearest, ties to even), at most 31.
//! 5. Its *share*: `e^-distance` by the polynomial of `weight.rs`, rounded to a multiple of 2^-39. Beyond a distance of
//!    27.4 that is nothing.
//! 6. Tokens come in the order of their distances, the lower one first among equals. `top_k` keeps the first so many;
//!    `top_p` the shortest run from the first on whose shares sum up to that part of the sum of what `top_k` kept; `min_p`
//!    those that are at least so likely as the first.
//! 7. A number in `[0, 1)` of 53 bits, by seed and index (`random.rs`), times the sum of the shares that are left is a place
//!    in them, laid end to end by ascending token: the token that lies there is chosen.

mod choose;
mod random;
mod row;
mod weight;

use std::fmt;

use zeroize::Zeroize;

pub(crate) use choose::Chooser;
pub use random::uniform;
pub use row::{largest, log_sum_exp};
pub(crate) use weight::Weight;

/// How the token of one row is chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Draw {
    /// The row of logits.
    pub row: u32,
    /// Divides the logits; 0: the largest.
    pub temperature: f32,
    /// Tokens kept; 0: all.
    pub top_k: u32,
    /// Part of the probability kept, above 0; 1: all.
    pub top_p: f32,
    /// Least probability kept, as a part of the largest; 0: all.
    pub min_p: f32,
    /// Of the sequence.
    pub seed: u64,
    /// Of the token in the sequence's output.
    pub index: u64,
}

/// A change of one logit before the choice: first `bias` is added; then it is divided by `repetition` if above zero, else
/// multiplied by it; then `lowered` is subtracted.
#[derive(Clone, Copy, PartialEq)]
pub struct Edit {
    /// Whose logit.
    pub token: u32,
    /// 0: none.
    pub bias: f32,
    /// 1: none.
    pub repetition: f32,
    /// 0: none.
    pub lowered: f32,
}

/// The choices of a step, in ascending order of their rows, at most one for a row. Never printed, wiped on drop.
#[derive(Clone, Default, PartialEq)]
pub struct Draws {
    draws: Vec<Draw>,
    /// Of all of them, end to end.
    edits: Vec<Edit>,
    /// Where the edits of each end.
    ends: Vec<u32>,
}

impl Draw {
    /// The largest logit of a row.
    pub fn greedy(row: u32) -> Self {
        Self { row, temperature: 0.0, top_k: 0, top_p: 1.0, min_p: 0.0, seed: 0, index: 0 }
    }

    /// One over the temperature.
    pub(crate) fn scale(&self) -> f32 {
        1.0 / self.temperature
    }

    /// `top_p` as a multiple of 2^-32.
    pub(crate) fn part(&self) -> u64 {
        (f64::from(self.top_p) * (1u64 << 32) as f64) as u64
    }

    /// What the shares of the run that `top_p` keeps sum up to, at least, when all sum up to `total`.
    pub(crate) fn enough(&self, total: u64) -> u64 {
        ((u128::from(total) * u128::from(self.part())) >> 32).max(1) as u64
    }

    /// The number of 53 bits.
    pub(crate) fn bits(&self) -> u64 {
        random::bits(self.seed, self.index)
    }

    /// A place below `total`.
    pub(crate) fn place(&self, total: u64) -> u64 {
        ((u128::from(total) * u128::from(self.bits())) >> 53) as u64
    }
}

impl Edit {
    /// No change.
    pub fn none(token: u32) -> Self {
        Self { token, bias: 0.0, repetition: 1.0, lowered: 0.0 }
    }

    /// The logit that replaces `x`. What is not finite stays so.
    pub fn of(&self, x: f32) -> f32 {
        let x = x + self.bias;
        let x = if x > 0.0 { x / self.repetition } else { x * self.repetition };
        x - self.lowered
    }
}

impl Draws {
    /// Forgets everything, keeps the memory.
    pub fn clear(&mut self) {
        self.edits.zeroize();
        self.draws.clear();
        self.ends.clear();
    }

    /// Appends a choice, with at most one edit for a token.
    ///
    /// # Panics
    /// When the row does not come after the last one, or the edits exceed `u32` counts.
    #[expect(clippy::expect_used, reason = "bounded by the vocabulary and the rows of a step")]
    pub fn push(&mut self, draw: Draw, edits: &[Edit]) {
        assert!(self.draws.last().is_none_or(|last| last.row < draw.row), "rows ascend");
        self.draws.push(draw);
        // What grows leaves no copy behind.
        if self.edits.capacity() - self.edits.len() < edits.len() {
            let mut grown = Vec::with_capacity(2 * (self.edits.len() + edits.len()));
            grown.extend_from_slice(&self.edits);
            self.edits.zeroize();
            self.edits = grown;
        }
        self.edits.extend_from_slice(edits);
        self.ends.push(u32::try_from(self.edits.len()).expect("fewer than 2^32 edits in a step"));
    }

    /// Choices.
    pub fn len(&self) -> usize {
        self.draws.len()
    }

    /// Whether nothing is to be chosen.
    pub fn is_empty(&self) -> bool {
        self.draws.is_empty()
    }

    /// Each choice with its edits.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&Draw, &[Edit])> {
        let mut begin = 0;
        self.draws.iter().zip(&self.ends).map(move |(draw, end)| {
            let edits = &self.edits[begin..*end as usize];
            begin = *end as usize;
            (draw, edits)
        })
    }

    /// The edits of all choices, end to end.
    pub fn edits(&self) -> &[Edit] {
        &self.edits
    }
}

impl Drop for Draws {
    fn drop(&mut self) {
        self.edits.zeroize();
    }
}

impl zeroize::DefaultIsZeroes for Edit {}

impl Default for Edit {
    /// Zeros: what is left of a change that was wiped.
    fn default() -> Self {
        Self { token: 0, bias: 0.0, repetition: 0.0, lowered: 0.0 }
    }
}

impl fmt::Debug for Edit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Edit")
    }
}

impl fmt::Debug for Draws {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Draws({}, {} edits)", self.draws.len(), self.edits.len())
    }
}

#[cfg(test)]
mod tests;
