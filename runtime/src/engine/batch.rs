//! From the plan of a step to the batch that the model computes.

use chrysalis_kernels::{Batch, WantLogits};
use zeroize::{Zeroize, Zeroizing};

use super::changes::Changes;
use super::lookup::{DRAFT_LEN_MAX, Draft};
use super::scheduler::{Chunk, Scheduler};
use super::sequence::Sequence;

/// Replaces `batch` by the chunks of `plan`, in its order. The logits of the chunks that are
/// `last` come in the same order, [`Chunk::num_rows`] of each, and for each of them a draw.
pub(super) fn fill(
    batch: &mut Batch,
    plan: &[Chunk],
    scheduler: &mut Scheduler,
    changes: &mut Changes,
) {
    wipe(batch);
    for chunk in plan {
        let Some(sequence) = scheduler.running(chunk.ticket) else {
            continue;
        };
        // A context has fewer than 2^32 positions: `Engine::add` sees to it.
        let start = u32::try_from(chunk.start).unwrap_or(u32::MAX);
        let (tokens, blocks) = (sequence.tokens(), &sequence.blocks);
        if let Some(draft) = &chunk.draft {
            let drafted = with_draft(tokens, draft);
            let drafted = drafted.get(..=draft.len).unwrap_or_default();
            batch.push(drafted, start, blocks, WantLogits::All);
            drafted_draws(batch, sequence, drafted, changes);
            continue;
        }
        let want = if chunk.last { WantLogits::Last } else { WantLogits::None };
        let chunk_tokens = tokens.get(chunk.start..chunk.start + chunk.len);
        batch.push(chunk_tokens.unwrap_or_default(), start, blocks, want);
        if chunk.last {
            let row = super::saturate(batch.draws.len());
            let output = sequence.num_output() as u64;
            let draw = sequence.sampling.draw(row, sequence.seed, output);
            batch.draws.push(draw, sequence.edits(changes));
        }
    }
}

/// The draws after each of `seen`: the last token of the sequence, and a draft after it, which a draw takes for put out as
/// far as it goes.
fn drafted_draws(batch: &mut Batch, sequence: &Sequence, seen: &[u32], changes: &mut Changes) {
    let (sampling, (prompt, output)) = (&sequence.sampling, sequence.parts());
    changes.begin(sampling, prompt, output);
    for (token, index) in seen.iter().zip(0..) {
        if index > 0 {
            changes.put_out(sampling, *token);
        }
        let row = super::saturate(batch.draws.len());
        let draw = sampling.draw(row, sequence.seed, output.len() as u64 + index);
        batch.draws.push(draw, changes.edits());
    }
}

/// The last of `tokens`, then the draft.
fn with_draft(tokens: &[u32], draft: &Draft) -> Zeroizing<[u32; 1 + DRAFT_LEN_MAX]> {
    let mut out = Zeroizing::new([0; 1 + DRAFT_LEN_MAX]);
    let drafted = (0..draft.len).map(|index| draft.token(tokens, index));
    let all = std::iter::once(tokens.last().copied()).chain(drafted);
    for (slot, token) in out.iter_mut().zip(all) {
        *slot = token.unwrap_or_default();
    }
    out
}

/// Forgets the tokens of a batch; its memory is kept.
pub(super) fn wipe(batch: &mut Batch) {
    batch.tokens.zeroize();
    batch.clear();
}
