//! This machine's own limits: how fast memory is read and how fast products are summed.
//!
//! A figure of speed is honest as a share of these (docs/benchmarks.md). Each is the best of a few
//! runs, as neighbours on a shared machine only ever make a run slower.

use std::time::{Duration, Instant};

use crate::cpu::Probe;
pub use crate::cpu::{CpuOptions, Isa};
use crate::device::DeviceError;

/// What was measured, with the instruction set of the device that would compute.
#[derive(Clone, Debug, PartialEq)]
pub struct Limits {
    /// Threads of the figures for "all".
    pub threads: usize,
    /// Bytes a second that are read, by the size of what is read again and again; ascending.
    pub reads: Vec<ReadRate>,
    /// 8-bit integer operations a second; a multiply and an add are two.
    pub int8: Rate,
    /// f32 operations a second.
    pub f32: Rate,
    /// bf16 operations a second, summed in f32, where the CPU has an instruction for them.
    pub bf16: Option<Rate>,
}

/// Units a second.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rate {
    /// Of one thread.
    pub one: f64,
    /// Of all threads together.
    pub all: f64,
}

/// How fast a working set is read.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ReadRate {
    /// Size of the working set; all threads share it.
    pub bytes: usize,
    /// Bytes a second.
    pub rate: Rate,
}

impl Limits {
    /// How fast a working set of `bytes` is read: that of the next size measured, or of the largest.
    pub fn read(&self, bytes: u64) -> Rate {
        let next = self.reads.iter().find(|read| read.bytes as u64 >= bytes);
        next.or_else(|| self.reads.last()).map_or(Rate { one: 0.0, all: 0.0 }, |read| read.rate)
    }
}

/// Measures for roughly `budget`, reading working sets of the `sizes`. Everything is measured in
/// several rounds, so that a neighbour's busy second spoils no figure.
///
/// # Errors
/// [`DeviceError`] when threads or memory cannot be had.
pub fn measure(
    options: CpuOptions,
    sizes: &[usize],
    budget: Duration,
) -> Result<Limits, DeviceError> {
    let mut sizes = sizes.to_vec();
    sizes.sort_unstable();
    let all = Probe::new(options, sizes.last().copied().unwrap_or(0))?;
    let one = Probe::new(CpuOptions { threads: Some(1), ..options }, 0)?;
    let slice = budget / (ROUNDS * 2 * (sizes.len() as u32 + 3));
    let raise = |rate: &mut Rate, before: usize, run: &dyn Fn(&Probe, usize) -> f64| {
        rate.one = rate.one.max(best(slice, before, |turn| run(&one, turn)));
        // All threads can do what one can, even if neighbours kept them from showing it.
        rate.all = rate.all.max(best(slice, before, |turn| run(&all, turn))).max(rate.one);
    };
    let none = Rate { one: 0.0, all: 0.0 };
    let reads = sizes.into_iter().map(|bytes| ReadRate { bytes, rate: none }).collect();
    let bf16 = all.has_bf16().then_some(none);
    let mut limits = Limits { threads: all.num_threads(), reads, int8: none, f32: none, bf16 };
    for _ in 0..ROUNDS {
        for ReadRate { bytes, rate } in &mut limits.reads {
            raise(rate, READS_BEFORE, &|probe, turn| probe.read(&all, *bytes, turn));
        }
        raise(&mut limits.int8, 0, &|probe, _| probe.int8());
        raise(&mut limits.f32, 0, &|probe, _| probe.f32());
        if let Some(rate) = &mut limits.bf16 {
            raise(rate, 0, &|probe, _| probe.bf16().unwrap_or(0.0));
        }
    }
    Ok(limits)
}

/// The highest rate of repeated runs; `run` does its work for the n-th time and returns how much it
/// was. The first runs, `before` the others, do not count.
fn best(budget: Duration, before: usize, run: impl Fn(usize) -> f64) -> f64 {
    for turn in 0..before {
        run(turn);
    }
    let (start, mut best) = (Instant::now(), 0.0);
    for turn in before.. {
        let begin = Instant::now();
        let work = run(turn);
        best = f64::max(best, work / begin.elapsed().as_secs_f64().max(1e-9));
        if start.elapsed() > budget {
            break;
        }
    }
    best
}

const ROUNDS: u32 = 4;
/// Reads that put what was read last, by another probe, out of the caches: 256 MiB of a large set.
const READS_BEFORE: usize = 4;
/// From what fits the first cache of a core to what fits none.
pub const READ_SIZES: [usize; 7] =
    [16 << 10, 256 << 10, 2 << 20, 16 << 20, 64 << 20, 256 << 20, 1 << 30];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_limit_is_positive_on_every_instruction_set() {
        for isa in Isa::available() {
            let options = CpuOptions { threads: Some(2), isa: Some(isa), ..CpuOptions::default() };
            let sizes = [1 << 20, 1000, 0, 4 << 20];
            let limits = measure(options, &sizes, Duration::from_millis(30)).unwrap();
            assert_eq!(limits.threads, 2);
            let sizes: Vec<_> = limits.reads.iter().map(|read| read.bytes).collect();
            assert_eq!(sizes, [0, 1000, 1 << 20, 4 << 20]);
            let reads = limits.reads[1..].iter().map(|read| read.rate);
            let rates = reads.chain([limits.int8, limits.f32]).chain(limits.bf16);
            for rate in rates {
                assert!(rate.one > 1e6 && rate.all > 1e6, "{limits:?}");
            }
        }
    }

    #[test]
    fn a_working_set_is_read_as_the_next_size_that_was_measured() {
        let rate = |x| Rate { one: x, all: x };
        let reads = [(16, 3.0), (64, 2.0)].map(|(bytes, x)| ReadRate { bytes, rate: rate(x) });
        let (int8, f32) = (rate(1.0), rate(1.0));
        let limits = Limits { threads: 1, reads: reads.to_vec(), int8, f32, bf16: None };
        for (bytes, expected) in [(0, 3.0), (16, 3.0), (17, 2.0), (64, 2.0), (1000, 2.0)] {
            assert_eq!(limits.read(bytes), rate(expected), "{bytes}");
        }
    }
}
