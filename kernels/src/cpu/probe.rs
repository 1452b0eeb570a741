//! The loops behind [`crate::probe`]: the instructions of the kernels with nothing else around.

use std::hint::black_box;

use super::isa::Level;
use super::pool::Pool;
use super::simd::{Simd, Task};
use super::{CpuOptions, open};
use crate::device::DeviceError;
use crate::memory::Aligned;

/// Threads and a buffer, to measure with.
#[derive(Debug)]
pub(crate) struct Probe {
    level: Level,
    pool: Pool,
    buffer: Aligned<u8>,
}

impl Probe {
    pub(crate) fn new(options: CpuOptions, bytes: usize) -> Result<Self, DeviceError> {
        let (level, pool) = open(options)?;
        let mut buffer = Aligned::zeroed("probe", bytes)?;
        // Touched, so that the pages are there.
        buffer.fill(1);
        Ok(Self { level, pool, buffer })
    }

    pub(crate) fn num_threads(&self) -> usize {
        self.pool.num_threads()
    }

    /// Reads the whole buffer of `of` once; bytes read.
    pub(crate) fn read(&self, of: &Self) -> f64 {
        let piece = of.buffer.len().div_ceil(self.num_threads() * 8).max(64);
        let pieces: Vec<_> = of.buffer.chunks(piece).collect();
        self.pool.run(pieces.len(), &|i, _| self.level.run(Read(pieces[i])));
        of.buffer.len() as f64
    }

    /// Sums of byte products in registers; operations done.
    pub(crate) fn int8(&self) -> f64 {
        let tiles = 8 * self.num_threads();
        self.pool.run(tiles, &|_, _| self.level.run(Int8));
        (tiles * LOOPS * CHAINS * 128) as f64
    }

    /// Fused multiply-adds in registers; operations done.
    pub(crate) fn f32(&self) -> f64 {
        let tiles = 8 * self.num_threads();
        self.pool.run(tiles, &|_, _| self.level.run(Float));
        (tiles * LOOPS * CHAINS * 32) as f64
    }
}

struct Read<'a>(&'a [u8]);

impl Task for Read<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let mut sums = [s.splat_i(0); 4];
        for lines in self.0.chunks_exact(256) {
            s.prefetch(lines, 4096);
            s.prefetch(lines, 4096 + 64);
            s.prefetch(lines, 4096 + 128);
            s.prefetch(lines, 4096 + 192);
            for (i, sum) in sums.iter_mut().enumerate() {
                *sum = s.dot::<false>(*sum, s.load_b(&lines[i * 64..]), 1);
            }
        }
        black_box(sums.map(|sum| s.sum_i(sum)));
    }
}

struct Int8;

impl Task for Int8 {
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let mut sums = [s.splat_i(0); CHAINS];
        let bytes = [3u8; 64];
        for _ in 0..LOOPS {
            let w = s.load_b(black_box(&bytes));
            for sum in &mut sums {
                *sum = s.dot::<false>(*sum, w, 0x0102_0304);
            }
        }
        black_box(sums.map(|sum| s.sum_i(sum)));
    }
}

struct Float;

impl Task for Float {
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let mut sums = [s.splat(0.0); CHAINS];
        let values = [0.5f32; 16];
        for _ in 0..LOOPS {
            let w = s.load(black_box(&values));
            for sum in &mut sums {
                *sum = s.fma(*sum, w, w);
            }
        }
        black_box(sums.map(|sum| s.sum(sum)));
    }
}

/// Independent sums: more than latency times ports.
const CHAINS: usize = 12;
const LOOPS: usize = 20_000;
