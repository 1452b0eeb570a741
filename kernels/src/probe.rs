//! This machine's own limits: how fast memory is read and how fast products are summed.
//!
//! A figure of speed is honest as a share of these (docs/benchmarks). Each is the best of a few
//! runs, as neighbours on a shared machine only ever make a run slower.

use std::time::{Duration, Instant};

use crate::cpu::Probe;
pub use crate::cpu::{CpuOptions, Isa};
use crate::device::DeviceError;

/// What was measured, with the instruction set of the device that would compute.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    /// Threads of the figures for "all".
    pub threads: usize,
    /// Bytes a second that one thread reads from memory.
    pub read_one: f64,
    /// Bytes a second that all threads read together.
    pub read_all: f64,
    /// 8-bit integer operations a second (a multiply and an add are two) of one thread.
    pub int8_one: f64,
    /// Of all threads together.
    pub int8_all: f64,
    /// f32 operations a second (a multiply and an add are two) of one thread.
    pub f32_one: f64,
    /// Of all threads together.
    pub f32_all: f64,
}

/// Measures for roughly `budget`, on a buffer of `bytes` (256 MiB or more, to be out of caches).
///
/// # Errors
/// [`DeviceError`] when threads or memory cannot be had.
pub fn measure(options: CpuOptions, bytes: usize, budget: Duration) -> Result<Limits, DeviceError> {
    let all = Probe::new(options, bytes)?;
    let one = Probe::new(CpuOptions { threads: Some(1), ..options }, 0)?;
    let slice = budget / 6;
    Ok(Limits {
        threads: all.num_threads(),
        read_one: best(slice, || one.read(&all)),
        read_all: best(slice, || all.read(&all)),
        int8_one: best(slice, || one.int8()),
        int8_all: best(slice, || all.int8()),
        f32_one: best(slice, || one.f32()),
        f32_all: best(slice, || all.f32()),
    })
}

/// The highest rate of repeated runs; `run` does its work and returns how much it was.
fn best(budget: Duration, mut run: impl FnMut() -> f64) -> f64 {
    let (start, mut best) = (Instant::now(), 0.0);
    loop {
        let begin = Instant::now();
        let work = run();
        best = f64::max(best, work / begin.elapsed().as_secs_f64().max(1e-9));
        if start.elapsed() > budget {
            return best;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_limit_is_positive_and_more_threads_are_not_a_loss_of_sense() {
        let options = CpuOptions { threads: Some(2), ..CpuOptions::default() };
        let limits = measure(options, 1 << 20, Duration::from_millis(30)).unwrap();
        assert_eq!(limits.threads, 2);
        let rates = [limits.read_one, limits.read_all, limits.int8_one, limits.f32_one];
        assert!(rates.iter().all(|rate| *rate > 1e6), "{limits:?}");
    }
}
