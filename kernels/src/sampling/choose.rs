//! The choice as a CPU makes it: a pass for the largest logit, one for the sum of shares, and a look at the most likely
//! tokens alone where the cuts leave few. What it means is in the module's page, step by step in `reference/choose.rs`.

use zeroize::Zeroize;

use super::row::{self, gather, room};
use super::{Draw, Weight};

/// Memory of choices, reused and wiped on drop.
#[derive(Default)]
pub(crate) struct Chooser {
    /// `distance << 32 | token`.
    keys: Vec<u64>,
    /// Sums of shares of blocks of the row.
    sums: Vec<u64>,
}

impl Drop for Chooser {
    fn drop(&mut self) {
        self.keys.zeroize();
        self.sums.zeroize();
    }
}

/// Where the tokens that pass `top_k` and `top_p` are.
enum Kept {
    /// So many of the keys, in order.
    Few(usize),
    /// Those in the row up to this key.
    UpTo(u64),
}

impl Chooser {
    /// The token of a row whose edits are made.
    #[inline(always)]
    pub(crate) fn choose(&mut self, logits: &[f32], draw: &Draw) -> Option<u32> {
        let max = row::max(logits)?;
        if draw.temperature == 0.0 {
            return u32::try_from(logits.iter().position(|x| *x == max)?).ok();
        }
        let weight = Weight { max, scale: draw.scale(), min_p: draw.min_p };
        let top_k = Some(draw.top_k as usize).filter(|k| *k > 0 && *k < logits.len());
        let kept = if top_k.is_none() && draw.top_p >= 1.0 {
            Kept::UpTo(u64::MAX)
        } else {
            self.cut(logits, Weight { min_p: 0.0, ..weight }, top_k, draw)
        };
        match kept {
            Kept::Few(count) => self.draw_from_few(count, weight, draw),
            Kept::UpTo(last) => self.draw_from_all(logits, weight, last, draw),
        }
    }

    /// Finds the tokens that pass `top_k` and `top_p`.
    #[inline(always)]
    fn cut(&mut self, logits: &[f32], weight: Weight, top_k: Option<usize>, draw: &Draw) -> Kept {
        let share = |key: u64| weight.share((key >> 32) as u32);
        // A match, and not a closure: those are not compiled for the instruction set of their caller.
        let sum_of_all = match top_k {
            None => Some(weight.sum(logits, u32::MAX)),
            Some(_) => None,
        };
        let mut count = top_k.unwrap_or(FIRST_LOOK);
        while count <= FEW {
            self.gather(logits, count, weight);
            self.keys.sort_unstable();
            let sum = || self.keys.iter().map(|key| share(*key)).sum();
            let enough = draw.enough(sum_of_all.unwrap_or_else(sum));
            let mut reached = 0;
            let last = self.keys.iter().position(|key| {
                reached += share(*key);
                reached >= enough
            });
            // Without `top_k`, the run may go on beyond the tokens that were looked at.
            if last.is_some() || top_k.is_some() || count >= logits.len() {
                return Kept::Few(last.map_or(self.keys.len(), |last| last + 1));
            }
            count *= 16;
        }
        self.gather(logits, top_k.unwrap_or(logits.len()), weight);
        let sum = || self.keys.iter().map(|key| share(*key)).sum();
        let enough = draw.enough(sum_of_all.unwrap_or_else(sum));
        Kept::UpTo(boundary(&mut self.keys, share, enough))
    }

    /// The keys of the `count` most likely tokens, in any order.
    #[inline(always)]
    fn gather(&mut self, logits: &[f32], count: usize, weight: Weight) {
        let room = room(count, logits.len());
        if self.keys.capacity() < room {
            // No copy stays behind.
            self.keys.zeroize();
            self.keys = Vec::with_capacity(room);
        }
        gather(logits, count, |x| weight.distance(x), &mut self.keys);
    }

    /// The token at the draw's place in the shares of the first `count` keys.
    fn draw_from_few(&mut self, count: usize, weight: Weight, draw: &Draw) -> Option<u32> {
        let kept = self.keys.get_mut(..count)?;
        kept.sort_unstable_by_key(|key| *key as u32);
        let shares = || kept.iter().map(|key| (*key as u32, weight.share((*key >> 32) as u32)));
        pick(shares(), draw.place(shares().map(|(_, share)| share).sum()))
    }

    /// The token at the draw's place in the shares of the row, of tokens up to the key `last`.
    #[inline(always)]
    fn draw_from_all(
        &mut self,
        logits: &[f32],
        weight: Weight,
        last: u64,
        draw: &Draw,
    ) -> Option<u32> {
        self.sums.clear();
        let num_blocks = logits.len().div_ceil(BLOCK);
        if self.sums.capacity() < num_blocks {
            self.sums = Vec::with_capacity(num_blocks);
        }
        let blocks = || (0u32..).step_by(BLOCK).zip(logits.chunks(BLOCK));
        for (first, block) in blocks() {
            self.sums.push(block_sum(first, block, weight, last));
        }
        let mut at = draw.place(self.sums.iter().sum());
        for ((first, block), sum) in blocks().zip(&self.sums) {
            if at < *sum {
                return pick(shares_up_to(first, block, weight, last), at);
            }
            at -= sum;
        }
        None
    }
}

/// The sum of the shares of tokens up to the key `last`, of a block whose first token is `first`.
#[inline(always)]
fn block_sum(first: u32, block: &[f32], weight: Weight, last: u64) -> u64 {
    // Of those as far as the last one, blocks before its own have all, blocks after it none.
    let (distance, token) = ((last >> 32) as u32, last as u32 as usize);
    if first as usize + block.len() <= token.saturating_add(1) {
        return weight.sum(block, distance.saturating_add(1));
    }
    if first as usize > token {
        return weight.sum(block, distance);
    }
    shares_up_to(first, block, weight, last).map(|(_, share)| share).sum()
}

/// The shares of the tokens of a block, nothing beyond the key `last`.
fn shares_up_to(
    first: u32,
    block: &[f32],
    weight: Weight,
    last: u64,
) -> impl Iterator<Item = (u32, u64)> {
    (first..).zip(block).map(move |(token, x)| {
        let key = u64::from(weight.distance(*x)) << 32 | u64::from(token);
        (token, if key <= last { weight.share((key >> 32) as u32) } else { 0 })
    })
}

/// The token whose share the place lies in, where they are laid end to end.
fn pick(shares: impl Iterator<Item = (u32, u64)>, mut at: u64) -> Option<u32> {
    for (id, share) in shares {
        if at < share {
            return Some(id);
        }
        at -= share;
    }
    None
}

/// The last key of the shortest run of least keys whose shares sum up to `enough`; of all, if they never do. Reorders the
/// keys, and does not sort them.
fn boundary(keys: &mut [u64], share: impl Fn(u64) -> u64, mut enough: u64) -> u64 {
    let mut part = keys;
    while part.len() > 1 {
        let half = part.len() / 2;
        part.select_nth_unstable(half);
        let (best, rest) = part.split_at_mut(half);
        let sum: u64 = best.iter().map(|key| share(*key)).sum();
        if sum >= enough {
            part = best;
        } else {
            enough -= sum;
            part = rest;
        }
    }
    part.first().copied().unwrap_or(u64::MAX)
}

/// Tokens that `top_p` looks at first, when `top_k` does not say.
const FIRST_LOOK: usize = 256;
/// Tokens that are sorted; cuts that leave more are made without.
const FEW: usize = 4_096;
/// Elements summed together when drawing from the whole row.
const BLOCK: usize = 1_024;
