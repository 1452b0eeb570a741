//! What the choice of a token means, step by step (`sampling`), by sorting everything.

use zeroize::Zeroizing;

use super::ops;
use crate::sampling::{Draw, Edit, Weight};

/// The token that `draw` chooses from a row of logits with these edits.
pub fn choose(row: &[f32], draw: &Draw, edits: &[Edit]) -> Option<u32> {
    // 1. to 3.
    let mut row = Zeroizing::new(row.to_vec());
    for edit in edits {
        let logit = &mut row[edit.token as usize];
        *logit = edit.of(*logit);
    }
    let largest = ops::argmax(&row)?;
    if draw.temperature == 0.0 {
        return Some(largest);
    }
    // 4. and 5.
    let max = row[largest as usize];
    let weight = Weight { max, scale: draw.scale(), min_p: 0.0 };
    let distances = row.iter().map(|x| weight.distance(*x));
    // 6. The likeliest token first; `top_k`, `top_p`, `min_p`.
    let mut kept: Zeroizing<Vec<(u32, u32)>> = Zeroizing::new(distances.zip(0..).collect());
    kept.sort_unstable();
    if draw.top_k > 0 {
        kept.truncate(draw.top_k as usize);
    }
    let enough = draw.enough(kept.iter().map(|(distance, _)| weight.share(*distance)).sum());
    let (mut run, mut reached) = (0, 0);
    while run < kept.len() && reached < enough {
        reached += weight.share(kept[run].0);
        run += 1;
    }
    kept.truncate(run);
    let weight = Weight { min_p: draw.min_p, ..weight };
    // 7. By ascending token.
    kept.sort_unstable_by_key(|(_, token)| *token);
    let mut place = draw.place(kept.iter().map(|(distance, _)| weight.share(*distance)).sum());
    for (distance, token) in kept.iter() {
        let share = weight.share(*distance);
        if place < share {
            return Some(*token);
        }
        place -= share;
    }
    None
}
