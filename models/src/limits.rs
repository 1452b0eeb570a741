//! The check of a batch before a step: token ids come from a peer, tables from the engine, and a
//! device takes both on trust.

use chrysalis_kernels::batch::Batch;

use crate::decoder::DecoderLimits;

/// Why a batch is not one that a decoder can take.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum BatchError {
    /// More tokens than were reserved for.
    #[error("{found} tokens in a step of at most {limit}")]
    Tokens {
        /// Tokens of the batch.
        found: usize,
        /// Most that fit.
        limit: usize,
    },
    /// More rows of logits than were reserved for.
    #[error("{found} rows of logits in a step of at most {limit}")]
    LogitRows {
        /// Rows asked for.
        found: usize,
        /// Most that fit.
        limit: usize,
    },
    /// A token that the vocabulary does not have. Which one is the client's secret.
    #[error("the token in row {row} is beyond a vocabulary of {limit}")]
    Token {
        /// Its row in the batch.
        row: usize,
        /// Tokens of the vocabulary.
        limit: usize,
    },
    /// A position beyond the model or the cache.
    #[error("position {position} of {limit}")]
    Position {
        /// The position.
        position: u32,
        /// Positions that a sequence can have.
        limit: usize,
    },
    /// A block that the cache does not have.
    #[error("block {block} of {limit}")]
    Block {
        /// The block.
        block: u32,
        /// Blocks of the cache.
        limit: usize,
    },
    /// A block table too short for the positions of its sequence.
    #[error("{found} blocks for a sequence that needs {needed}")]
    Table {
        /// Blocks of its table.
        found: usize,
        /// Blocks up to its last position.
        needed: usize,
    },
    /// A change of a logit that no token of the vocabulary has. Which one is the client's secret.
    #[error("an edit of draw {draw} is beyond a vocabulary of {limit}")]
    Edit {
        /// The draw.
        draw: usize,
        /// Tokens of the vocabulary.
        limit: usize,
    },
    /// Vectors of the batch that do not belong together.
    #[error("the {0} of the batch do not fit its other vectors")]
    Inconsistent(&'static str),
}

/// Checks that every index in `batch` is within its limit. Costs a pass over a few small vectors.
pub(crate) fn check_batch(
    batch: &Batch,
    limits: &DecoderLimits,
    vocab_size: usize,
    max_positions: usize,
) -> Result<(), BatchError> {
    let tokens = batch.num_tokens();
    at_most(tokens, limits.max_tokens, |found, limit| BatchError::Tokens { found, limit })?;
    at_most(batch.logit_rows.len(), limits.max_logit_rows, |found, limit| BatchError::LogitRows {
        found,
        limit,
    })?;
    let beyond = |&token: &u32| token as usize >= vocab_size;
    if let Some(row) = batch.tokens.iter().position(beyond) {
        let limit = vocab_size;
        return Err(BatchError::Token { row, limit });
    }
    below(&batch.positions, max_positions, |position, limit| BatchError::Position {
        position,
        limit,
    })?;
    below(&batch.block_tables, limits.num_blocks, |block, limit| BatchError::Block {
        block,
        limit,
    })?;
    below(&batch.logit_rows, tokens, |_, _| BatchError::Inconsistent("logit rows"))?;
    if !batch.logit_rows.is_sorted_by(|a, b| a < b) {
        return Err(BatchError::Inconsistent("logit rows"));
    }
    for (index, (draw, edits)) in batch.draws.iter().enumerate() {
        if draw.row as usize >= batch.logit_rows.len() {
            return Err(BatchError::Inconsistent("draws"));
        }
        if edits.iter().any(|edit| beyond(&edit.token)) {
            return Err(BatchError::Edit { draw: index, limit: vocab_size });
        }
    }
    if batch.positions.len() != tokens {
        return Err(BatchError::Inconsistent("positions"));
    }
    check_sums(&batch.cu_seqlens_q, tokens, 1, "chunks")?;
    check_sums(&batch.cu_blocks, batch.block_tables.len(), 0, "block tables")?;
    if batch.cu_blocks.len() != batch.cu_seqlens_q.len() {
        return Err(BatchError::Inconsistent("block tables"));
    }
    (0..batch.num_sequences()).try_for_each(|s| check_sequence(batch, s, limits.block_size))
}

/// Prefix sums start at 0, grow by at least `step`, and end at `total`.
fn check_sums(sums: &[u32], total: usize, step: u32, what: &'static str) -> Result<(), BatchError> {
    let whole = match (sums.first(), sums.last()) {
        (None, None) => total == 0,
        (first, last) => first == Some(&0) && last.is_some_and(|&last| last as usize == total),
    };
    let grows = sums.is_sorted_by(|a, b| b.checked_sub(*a).is_some_and(|grown| grown >= step));
    if whole && grows { Ok(()) } else { Err(BatchError::Inconsistent(what)) }
}

/// The positions of sequence `s` follow one another and its table reaches the last of them.
fn check_sequence(batch: &Batch, s: usize, block_size: usize) -> Result<(), BatchError> {
    let positions = &batch.positions[batch.rows(s)];
    if !positions.is_sorted_by(|a, b| a.checked_add(1) == Some(*b)) {
        return Err(BatchError::Inconsistent("positions"));
    }
    let needed = positions.last().map_or(0, |&last| last as usize / block_size + 1);
    let found = batch.blocks(s).len();
    if found < needed { Err(BatchError::Table { found, needed }) } else { Ok(()) }
}

fn at_most(
    found: usize,
    limit: usize,
    error: impl FnOnce(usize, usize) -> BatchError,
) -> Result<(), BatchError> {
    if found > limit { Err(error(found, limit)) } else { Ok(()) }
}

fn below(
    values: &[u32],
    limit: usize,
    error: impl FnOnce(u32, usize) -> BatchError,
) -> Result<(), BatchError> {
    match values.iter().find(|&&value| value as usize >= limit) {
        Some(&value) => Err(error(value, limit)),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use chrysalis_kernels::batch::WantLogits;
    use chrysalis_kernels::device::CacheDtype;
    use chrysalis_kernels::{Draw, Edit};

    use super::*;

    const LIMITS: DecoderLimits = DecoderLimits {
        max_tokens: 8,
        max_logit_rows: 2,
        num_blocks: 4,
        block_size: 4,
        cache_dtype: CacheDtype::F32,
    };

    fn honest() -> Batch {
        let mut batch = Batch::default();
        batch.push(&[1, 2, 3], 3, &[3, 0], WantLogits::Last);
        batch.push(&[9], 0, &[1], WantLogits::Last);
        batch
    }

    fn check(batch: &Batch) -> Result<(), BatchError> {
        check_batch(batch, &LIMITS, 10, 12)
    }

    #[test]
    fn a_batch_beyond_its_limits_is_refused_by_name() {
        type Change = fn(&mut Batch);
        let cases: [(Change, BatchError); 16] = [
            (|b| b.tokens.extend([0; 5]), BatchError::Tokens { found: 9, limit: 8 }),
            (|b| b.logit_rows.push(3), BatchError::LogitRows { found: 3, limit: 2 }),
            (|b| b.tokens[1] = 10, BatchError::Token { row: 1, limit: 10 }),
            (|b| b.positions[3] = 12, BatchError::Position { position: 12, limit: 12 }),
            (|b| b.block_tables[0] = 4, BatchError::Block { block: 4, limit: 4 }),
            (|b| b.cu_blocks[1] = 1, BatchError::Table { found: 1, needed: 2 }),
            (|b| b.logit_rows[1] = 4, BatchError::Inconsistent("logit rows")),
            (|b| b.logit_rows[1] = 2, BatchError::Inconsistent("logit rows")),
            (|b| b.draws.push(Draw::greedy(2), &[]), BatchError::Inconsistent("draws")),
            (
                |b| b.draws.push(Draw::greedy(0), &[Edit::none(9), Edit::none(10)]),
                BatchError::Edit { draw: 0, limit: 10 },
            ),
            (|b| b.positions[1] = 7, BatchError::Inconsistent("positions")),
            (|b| b.positions.push(0), BatchError::Inconsistent("positions")),
            (|b| b.cu_seqlens_q[2] = 5, BatchError::Inconsistent("chunks")),
            (|b| b.cu_seqlens_q[1] = 4, BatchError::Inconsistent("chunks")),
            (|b| b.cu_blocks[1] = 9, BatchError::Inconsistent("block tables")),
            (|b| b.cu_blocks.insert(0, 0), BatchError::Inconsistent("block tables")),
        ];
        assert_eq!(check(&honest()), Ok(()));
        for (change, refusal) in cases {
            let mut batch = honest();
            change(&mut batch);
            assert_eq!(check(&batch), Err(refusal));
        }
    }

    #[test]
    fn an_empty_batch_is_no_error() {
        assert_eq!(check(&Batch::default()), Ok(()));
    }
}
