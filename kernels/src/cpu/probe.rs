//! The loops behind [`crate::probe`]: the instructions of the kernels with nothing else around.

use std::hint::black_box;

use super::amx::Amx;
use super::avx512_bf16::Avx512Bf16;
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
    bf16: Option<Avx512Bf16>,
    pool: Pool,
    buffer: Aligned<u8>,
}

impl Probe {
    pub(crate) fn new(options: CpuOptions, bytes: usize) -> Result<Self, DeviceError> {
        let (level, pool) = open(options)?;
        let mut buffer = Aligned::zeroed("probe", bytes)?;
        // Touched, so that the pages are there.
        buffer.fill(1);
        Ok(Self { level, bf16: level.bf16(), pool, buffer })
    }

    pub(crate) fn num_threads(&self) -> usize {
        self.pool.num_threads()
    }

    /// Whether the instruction set sums products of bf16.
    pub(crate) fn has_bf16(&self) -> bool {
        self.bf16.is_some()
    }

    /// Reads the first `bytes` of the buffer of `of`: small ones again and again, of large ones the
    /// next piece at every `turn`, so that a good moment may be short; bytes read. Each thread keeps
    /// to its own part of what may stay in the caches of its core. Turns take different ways.
    pub(crate) fn read(&self, of: &Self, bytes: usize, turn: usize) -> f64 {
        let whole = &of.buffer[..bytes.min(of.buffer.len())];
        let pieces = (whole.len() / PIECE).max(1);
        let bytes = whole.chunks(PIECE).nth(turn % pieces).unwrap_or_default();
        let times = (READ_MIN / bytes.len().max(1)).max(1);
        let parts = if times > 1 { 1 } else { 16 } * self.num_threads();
        let part = bytes.len().div_ceil(parts).next_multiple_of(STRIDE);
        let parts: Vec<_> = bytes.chunks(part.max(1)).collect();
        let way = WAYS[turn % WAYS.len()];
        self.pool.run(parts.len(), &|i, _| self.level.run(Read { bytes: parts[i], times, way }));
        let whole_strides = parts.iter().map(|part| part.len() / STRIDE * STRIDE).sum::<usize>();
        (times * whole_strides) as f64
    }

    /// Sums of byte products in registers; operations done.
    pub(crate) fn int8(&self) -> f64 {
        if let Some(amx) = self.level.amx() {
            return self.tiles(&|| amx.in_registers(VECTORS)) * Amx::OPERATIONS;
        }
        self.tiles(&|| self.level.run(Int8)) * 128.0
    }

    /// Fused multiply-adds in registers; operations done.
    pub(crate) fn f32(&self) -> f64 {
        self.tiles(&|| self.level.run(Float)) * 32.0
    }

    /// Sums of bf16 products in registers; operations done.
    pub(crate) fn bf16(&self) -> Option<f64> {
        let proof = self.bf16?;
        if let Some(amx) = self.level.amx() {
            let products = self.tiles(&|| amx.bf16_in_registers(VECTORS));
            return Some(products * Amx::BF16_OPERATIONS);
        }
        Some(self.tiles(&|| proof.sums::<MANY>(VECTORS)) * 64.0)
    }

    /// Some tiles to a thread, of [`VECTORS`] instructions each; instructions done.
    fn tiles(&self, tile: &(dyn Fn() + Sync)) -> f64 {
        let tiles = 8 * self.num_threads();
        self.pool.run(tiles, &|_, _| tile());
        (tiles * VECTORS) as f64
    }
}

struct Read<'a> {
    bytes: &'a [u8],
    times: usize,
    way: Way,
}

/// How memory is gone through. Which is fastest depends on where it is.
#[derive(Clone, Copy)]
enum Way {
    /// From the first line to the last.
    Plain,
    /// As before, and lines are asked for ahead of time.
    Ahead,
    /// As before, at four places at once.
    Streams,
}

impl Task for Read<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let mut seen = [s.load_b(&[0; 64]); LINES];
        for _ in 0..self.times {
            let bytes = black_box(self.bytes);
            match self.way {
                Way::Plain => read::<S, 1, false>(s, bytes, &mut seen),
                Way::Ahead => read::<S, 1, true>(s, bytes, &mut seen),
                Way::Streams => read::<S, 4, true>(s, bytes, &mut seen),
            }
        }
        let mut out = [0; 64];
        for seen in seen {
            s.store_b(seen, &mut out);
            black_box(&mut out);
        }
    }
}

/// Reads every whole stride.
#[inline(always)]
fn read<S: Simd, const STREAMS: usize, const AHEAD: bool>(
    s: S,
    bytes: &[u8],
    seen: &mut [S::B; LINES],
) {
    let (len, step) = (bytes.len() / STRIDE * (STRIDE / STREAMS), STRIDE / STREAMS);
    let streams: [&[u8]; STREAMS] = std::array::from_fn(|i| &bytes[i * len..][..len]);
    let mut all = *seen;
    for at in (0..len).step_by(step) {
        for (stream, seen) in streams.iter().zip(all.chunks_exact_mut(LINES / STREAMS)) {
            let lines = &stream[at..at + step];
            for (i, seen) in seen.iter_mut().enumerate() {
                if AHEAD {
                    s.prefetch(lines, DISTANCE + 64 * i);
                }
                *seen = s.or_b(*seen, s.load_b(&lines[64 * i..]));
            }
        }
    }
    *seen = all;
}

struct Int8;

impl Task for Int8 {
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        if S::MANY_REGISTERS { int8::<S, MANY>(s) } else { int8::<S, FEW>(s) }
    }
}

#[inline(always)]
fn int8<S: Simd, const CHAINS: usize>(s: S) {
    let mut sums = [s.splat_i(0); CHAINS];
    let bytes = [3u8; 64];
    for _ in 0..VECTORS / CHAINS {
        let w = s.load_b(black_box(&bytes));
        for sum in &mut sums {
            *sum = s.dot::<false>(*sum, w, 0x0102_0304);
        }
    }
    black_box(sums.map(|sum| s.sum_i(sum)));
}

struct Float;

impl Task for Float {
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        if S::MANY_REGISTERS { float::<S, MANY>(s) } else { float::<S, FEW>(s) }
    }
}

#[inline(always)]
fn float<S: Simd, const CHAINS: usize>(s: S) {
    let mut sums = [s.splat(0.0); CHAINS];
    let values = [0.5f32; 16];
    for _ in 0..VECTORS / CHAINS {
        let w = s.load(black_box(&values));
        for sum in &mut sums {
            *sum = s.fma(*sum, w, w);
        }
    }
    black_box(sums.map(|sum| s.sum(sum)));
}

/// Instructions of a tile.
const VECTORS: usize = 480_000;
/// Independent sums: more than latency times ports, and no more than there are registers.
const MANY: usize = 16;
const FEW: usize = 6;
/// Lines that are read together.
const LINES: usize = 8;
const STRIDE: usize = 64 * LINES;
/// How far ahead of the load a line is asked for.
const DISTANCE: usize = 4096;
const WAYS: [Way; 3] = [Way::Plain, Way::Ahead, Way::Streams];
/// Bytes of one run, of a working set that is larger.
const PIECE: usize = 64 << 20;
/// Working sets below this are read more than once, and by each thread in one part.
const READ_MIN: usize = 32 << 20;
