//! From the plan of a step to the batch that the model computes.

use chrysalis_kernels::{Batch, WantLogits};
use zeroize::Zeroize;

use super::scheduler::{Chunk, Scheduler};

/// Replaces `batch` by the chunks of `plan`, in its order. The logits of the chunks that are
/// `last` come in the same order: row `r` of the batch is that of the `r`-th such chunk.
pub(super) fn fill(batch: &mut Batch, plan: &[Chunk], scheduler: &mut Scheduler) {
    wipe(batch);
    for chunk in plan {
        let Some(sequence) = scheduler.running(chunk.ticket) else {
            continue;
        };
        let tokens = sequence.tokens().get(chunk.start..chunk.start + chunk.len);
        let want = if chunk.last { WantLogits::Last } else { WantLogits::None };
        // A context has fewer than 2^32 positions: `Engine::add` sees to it.
        let start = u32::try_from(chunk.start).unwrap_or(u32::MAX);
        batch.push(tokens.unwrap_or_default(), start, &sequence.blocks, want);
    }
}

/// Forgets the tokens of a batch; its memory is kept.
pub(super) fn wipe(batch: &mut Batch) {
    batch.tokens.zeroize();
    batch.clear();
}
