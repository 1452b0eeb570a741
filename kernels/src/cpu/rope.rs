//! Angles of a rotary embedding: those of the step's own positions, computed once a step for all layers that share them.
//!
//! A table of every position would hold 32 MiB for a head of 256 values and 32,768 positions; a step has 512 at most.

use std::fmt;
use std::sync::{Mutex, MutexGuard};

use super::lock;
use super::pool::Pool;
use super::tiles::{self, Grid};
use crate::device::RopeParams;
use crate::memory::Aligned;

/// A rotary embedding, and the angles that were asked for last.
pub struct Rope {
    params: RopeParams,
    angles: Mutex<Angles>,
}

/// Cosines and sines of some positions.
pub(super) struct Angles {
    positions: Vec<u32>,
    half: usize,
    /// `[positions, 2, half]`: cosines, then sines. There may be room for more positions.
    values: Aligned<f32>,
    splits: Vec<usize>,
}

impl Rope {
    pub(super) fn new(params: &RopeParams) -> Self {
        let (params, half) = (params.clone(), params.inv_freq.len());
        let (positions, splits) = (Vec::new(), Vec::new());
        let angles = Angles { positions, half, values: Aligned::empty(), splits };
        Self { params, angles: Mutex::new(angles) }
    }

    /// Angles of these positions, a row each. They depend on nothing else: what was asked for before shows only in the
    /// time that it takes.
    ///
    /// # Panics
    /// When a position is not below `max_positions`, or there is no memory.
    pub(super) fn at(&self, pool: &Pool, positions: &[u32]) -> MutexGuard<'_, Angles> {
        let mut angles = lock(&self.angles);
        if angles.positions != positions {
            angles.set(&self.params, pool, positions);
        }
        angles
    }
}

impl Angles {
    /// Cosines and sines of row `t`, `[half]` each.
    pub(super) fn row(&self, t: usize) -> (&[f32], &[f32]) {
        self.values[2 * t * self.half..][..2 * self.half].split_at(self.half)
    }

    fn set(&mut self, params: &RopeParams, pool: &Pool, positions: &[u32]) {
        let known = positions.iter().all(|position| (*position as usize) < params.max_positions);
        assert!(known, "a position is below {}", params.max_positions);
        let (rows, width) = (positions.len(), 2 * self.half);
        // Should it panic on the way, nothing is taken for the angles of these positions.
        self.positions.clear();
        if self.values.len() < rows * width {
            let room = Aligned::zeroed("rotation angles", rows * width);
            assert!(room.is_ok(), "memory for rotation angles");
            self.values = room.unwrap_or_else(|_| Aligned::empty());
        }
        let step = rows.div_ceil(4 * pool.num_threads()).max(1);
        self.splits.clear();
        self.splits.extend((0..rows).step_by(step));
        self.splits.push(rows);
        let grid = Grid::new(&mut self.values, width, &self.splits, width.max(1));
        let small = rows * self.half < SMALL_ANGLES;
        tiles::for_each(pool, small, &mut [grid], &|_, mut tile, _| {
            for t in tile.rows.clone() {
                fill(params, positions[t], tile.row(t));
            }
        });
        self.positions.extend_from_slice(positions);
    }
}

/// The angles as an original implementation has them: position times frequency in f32.
fn fill(params: &RopeParams, position: u32, row: &mut [f32]) {
    let (cos, sin) = row.split_at_mut(params.inv_freq.len());
    for ((cos, sin), inv_freq) in cos.iter_mut().zip(sin).zip(&params.inv_freq) {
        let (s, c) = (position as f32 * inv_freq).sin_cos();
        (*sin, *cos) = (s * params.attention_factor, c * params.attention_factor);
    }
}

impl fmt::Debug for Rope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Rope({} pairs)", self.params.inv_freq.len())
    }
}

/// Angles below which the caller computes all of them.
const SMALL_ANGLES: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn angles_are_those_of_each_position_whatever_was_asked_for_before() {
        let inv_freq: Vec<f32> = (0..40).map(|i| 1e6f32.powf(-(i as f32) / 40.0)).collect();
        let params = RopeParams { inv_freq, attention_factor: 1.3, max_positions: 32_768 };
        for threads in [1, 3] {
            let (pool, rope) = (Pool::new(threads).unwrap(), Rope::new(&params));
            let many: Vec<u32> = (0..300).map(|i| i * 109).collect();
            for positions in [&[7][..], &[32_767, 0, 7, 7], &many, &[7], &[], &many, &many[1..]] {
                let angles = rope.at(&pool, positions);
                for (t, position) in positions.iter().enumerate() {
                    let (cos, sin) = angles.row(t);
                    for (i, inv_freq) in params.inv_freq.iter().enumerate() {
                        let angle = *position as f32 * inv_freq;
                        assert_eq!(cos[i].to_bits(), (angle.cos() * 1.3).to_bits());
                        assert_eq!(sin[i].to_bits(), (angle.sin() * 1.3).to_bits());
                    }
                }
            }
            // As many as the longest step had, however many positions there may be.
            assert_eq!(lock(&rope.angles).values.len(), 300 * 80);
        }
    }

    #[test]
    #[should_panic(expected = "a position is below 10")]
    fn a_position_beyond_the_last_is_refused() {
        let params = RopeParams { inv_freq: vec![1.0], attention_factor: 1.0, max_positions: 10 };
        drop(Rope::new(&params).at(&Pool::new(1).unwrap(), &[9, 10]));
    }
}
