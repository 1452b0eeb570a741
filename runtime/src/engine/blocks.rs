//! Which KV-cache blocks are free. A block belongs to one sequence at a time, and what was in it
//! is cleared on the device between two owners.

/// The blocks of a model's KV cache.
pub(super) struct BlockPool {
    block_size: usize,
    num_blocks: usize,
    /// A stack: the last block that came back goes out first.
    free: Vec<u32>,
    /// Came back since the device last cleared; some may already be out again.
    released: Vec<u32>,
}

impl BlockPool {
    /// All of `num_blocks` blocks are free and clear.
    pub(super) fn new(num_blocks: usize, block_size: usize) -> Self {
        let mut free: Vec<u32> = (0..).take(num_blocks).collect();
        free.reverse();
        Self { block_size, num_blocks, free, released: Vec::with_capacity(num_blocks) }
    }

    /// Blocks that hold `positions`.
    pub(super) fn blocks_for(&self, positions: usize) -> usize {
        positions.div_ceil(self.block_size)
    }

    /// Positions in the whole pool.
    pub(super) fn num_positions(&self) -> usize {
        self.num_blocks.saturating_mul(self.block_size)
    }

    /// Blocks that no sequence has.
    pub(super) fn num_free(&self) -> usize {
        self.free.len()
    }

    /// Blocks in all.
    pub(super) fn num_blocks(&self) -> usize {
        self.num_blocks
    }

    /// Extends `table` until it holds `positions`; takes all that are missing or none.
    #[must_use]
    pub(super) fn grow(&mut self, table: &mut Vec<u32>, positions: usize) -> bool {
        let missing = self.blocks_for(positions).saturating_sub(table.len());
        let Some(rest) = self.free.len().checked_sub(missing) else {
            return false;
        };
        table.extend(self.free.drain(rest..).rev());
        true
    }

    /// Positions that `table` may grow to with `spare` blocks left over, or has already.
    pub(super) fn room(&self, table: &[u32], spare: usize) -> usize {
        (table.len() + self.free.len().saturating_sub(spare)).saturating_mul(self.block_size)
    }

    /// Takes back the blocks of `table` that lie beyond `positions`.
    pub(super) fn shrink(&mut self, table: &mut Vec<u32>, positions: usize) {
        let kept = self.blocks_for(positions).min(table.len());
        let mut beyond = table.split_off(kept);
        self.release(&mut beyond);
    }

    /// Takes back every block of `table`.
    pub(super) fn release(&mut self, table: &mut Vec<u32>) {
        self.free.extend(table.iter().rev());
        self.released.append(table);
        assert!(self.free.len() <= self.num_blocks, "a block came back twice");
    }

    /// Hands what came back to `clear`; all of it again next time, if that fails. Must succeed
    /// before the next forward pass.
    pub(super) fn clear_released<E>(
        &mut self,
        clear: impl FnOnce(&[u32]) -> Result<(), E>,
    ) -> Result<(), E> {
        if !self.released.is_empty() {
            clear(&self.released)?;
            self.released.clear();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::BlockPool;

    #[test]
    fn a_table_grows_by_whole_blocks_or_not_at_all() {
        let mut pool = BlockPool::new(3, 4);
        let (mut a, mut b) = (Vec::new(), Vec::new());
        assert!(pool.grow(&mut a, 4));
        assert_eq!(a.len(), 1);
        assert!(pool.grow(&mut a, 5));
        assert!(pool.grow(&mut a, 8));
        assert_eq!(a.len(), 2);
        assert!(!pool.grow(&mut b, 5));
        assert_eq!((b.len(), pool.num_free()), (0, 1));
        assert!(pool.grow(&mut b, 1));
        assert!(a.iter().all(|block| !b.contains(block)));
    }

    #[test]
    fn a_table_shrinks_to_what_it_needs_and_leaves_others_what_they_need() {
        let mut pool = BlockPool::new(4, 4);
        let mut table = Vec::new();
        assert_eq!((pool.room(&table, 0), pool.room(&table, 1)), (16, 12));
        assert!(pool.grow(&mut table, 9));
        assert_eq!((pool.room(&table, 1), pool.room(&table, 2)), (12, 12));
        let first = table[0];
        pool.shrink(&mut table, 5);
        assert_eq!((table.len(), pool.num_free()), (2, 2));
        pool.shrink(&mut table, 12);
        pool.shrink(&mut table, 1);
        assert_eq!((&table[..], pool.num_free()), (&[first][..], 3));
        let mut cleared = Vec::new();
        pool.clear_released(|blocks| {
            cleared.extend_from_slice(blocks);
            Ok::<_, ()>(())
        })
        .unwrap();
        assert_eq!(cleared.len(), 2);
    }

    #[test]
    fn a_released_block_is_cleared_once_and_can_be_taken_again() {
        let mut pool = BlockPool::new(2, 1);
        let mut table = Vec::new();
        assert!(pool.grow(&mut table, 2));
        let taken = table.clone();
        pool.release(&mut table);
        assert!(table.is_empty());
        assert!(pool.grow(&mut table, 2));
        assert_eq!(pool.clear_released(|_| Err(())), Err(()));
        let mut cleared = Vec::new();
        let mut clear = |blocks: &[u32]| {
            cleared.extend_from_slice(blocks);
            Ok::<_, ()>(())
        };
        assert_eq!(pool.clear_released(&mut clear), Ok(()));
        assert_eq!(pool.clear_released(&mut clear), Ok(()));
        assert_eq!(cleared, taken);
        assert_eq!(pool.num_positions(), 2);
    }
}
