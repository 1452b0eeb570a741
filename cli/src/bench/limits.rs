//! The machine's limits, and how long it needs at least for some work.

use chrysalis_kernels::probe::{Limits, Rate};
use chrysalis_kernels::profile::Work;
use serde::Serialize;

/// The machine, by what was measured.
#[derive(Debug)]
pub struct Machine(pub Limits);

/// What work waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Bound {
    /// Weights and the KV cache.
    Memory,
    /// Activations.
    Cache,
    /// Multiplying and adding.
    Arithmetic,
}

/// The limits, as they are reported.
#[derive(Debug, Serialize)]
pub struct LimitsReport {
    threads: usize,
    /// Of this model's weights, all threads together.
    read_gb_per_s: f64,
    read: Vec<ReadReport>,
    int8: Operations,
    bf16: Option<Operations>,
    f32: Operations,
}

#[derive(Debug, Serialize)]
struct ReadReport {
    bytes: usize,
    one_thread_gb_per_s: f64,
    all_threads_gb_per_s: f64,
}

#[derive(Debug, Serialize)]
struct Operations {
    one_thread_gop_per_s: f64,
    all_threads_gop_per_s: f64,
}

impl Machine {
    /// The least time of some work on all threads, and what decides it. Steps go over `working_set` bytes of weights and
    /// KV cache; activations, of which one operation has `activations`, come from whatever cache holds them.
    pub fn seconds(&self, work: &Work, working_set: u64, activations: u64) -> (f64, Bound) {
        let Limits { int8, bf16, f32, .. } = &self.0;
        let memory = ratio(work.stored_bytes, self.0.read(working_set).all);
        let cache = ratio(work.activation_bytes, self.0.read(activations).all);
        let arithmetic = ratio(work.int8, int8.all)
            + ratio(work.bf16, bf16.unwrap_or(*f32).all)
            + ratio(work.f32, f32.all);
        if arithmetic >= memory.max(cache) {
            (arithmetic, Bound::Arithmetic)
        } else if memory >= cache {
            (memory, Bound::Memory)
        } else {
            (cache, Bound::Cache)
        }
    }

    /// As it is reported, of a model with so many bytes of weights.
    pub fn report(&self, weight_bytes: u64) -> LimitsReport {
        let Limits { threads, reads, int8, f32, bf16 } = &self.0;
        let operations = |rate: &Rate| Operations {
            one_thread_gop_per_s: rate.one / 1e9,
            all_threads_gop_per_s: rate.all / 1e9,
        };
        LimitsReport {
            threads: *threads,
            read_gb_per_s: self.0.read(weight_bytes).all / 1e9,
            read: reads
                .iter()
                .map(|read| ReadReport {
                    bytes: read.bytes,
                    one_thread_gb_per_s: read.rate.one / 1e9,
                    all_threads_gb_per_s: read.rate.all / 1e9,
                })
                .collect(),
            int8: operations(int8),
            bf16: bf16.as_ref().map(operations),
            f32: operations(f32),
        }
    }
}

impl LimitsReport {
    /// For people.
    pub fn lines(&self) -> Vec<String> {
        let read = |read: &ReadReport| {
            let (one, all) = (read.one_thread_gb_per_s, read.all_threads_gb_per_s);
            format!("{} {one:.0}/{all:.0}", size(read.bytes))
        };
        let operations = |rate: &Operations| {
            format!("{:.0}/{:.0}", rate.one_thread_gop_per_s, rate.all_threads_gop_per_s)
        };
        let reads: Vec<_> = self.read.iter().map(read).collect();
        let bf16 = self.bf16.as_ref().map_or_else(|| "none".to_owned(), operations);
        vec![
            format!("limits, one thread/{}: GB/s read of {}", self.threads, reads.join(", ")),
            format!(
                "GOP/s int8 {}, bf16 {bf16}, f32 {}; weights come at {:.1} GB/s",
                operations(&self.int8),
                operations(&self.f32),
                self.read_gb_per_s
            ),
        ]
    }
}

fn ratio(count: u64, rate: f64) -> f64 {
    // No work takes no time, whatever the rate.
    if count == 0 { 0.0 } else { count as f64 / rate.max(1.0) }
}

fn size(bytes: usize) -> String {
    match bytes {
        0..0x10_0000 => format!("{} KiB", bytes >> 10),
        0x10_0000..0x4000_0000 => format!("{} MiB", bytes >> 20),
        _ => format!("{} GiB", bytes >> 30),
    }
}

#[cfg(test)]
mod tests {
    use chrysalis_kernels::probe::ReadRate;

    use super::*;

    fn machine(bf16: Option<f64>) -> Machine {
        let rate = |all| Rate { one: all / 2.0, all };
        let reads = vec![
            ReadRate { bytes: 1000, rate: rate(100.0) },
            ReadRate { bytes: 100_000, rate: rate(10.0) },
        ];
        let limits =
            Limits { threads: 2, reads, int8: rate(40.0), f32: rate(10.0), bf16: bf16.map(rate) };
        Machine(limits)
    }

    #[test]
    fn work_waits_for_the_slowest_of_memory_caches_and_arithmetic() {
        let work = |stored_bytes, activation_bytes, int8, bf16, f32| Work {
            stored_bytes,
            activation_bytes,
            int8,
            bf16,
            f32,
        };
        let cases = [
            (work(0, 0, 0, 0, 0), 0.0, Bound::Arithmetic),
            (work(200, 100, 40, 0, 10), 20.0, Bound::Memory),
            (work(200, 4000, 40, 0, 10), 40.0, Bound::Cache),
            (work(200, 100, 400, 0, 200), 30.0, Bound::Arithmetic),
            (work(0, 0, 0, 100, 0), 5.0, Bound::Arithmetic),
        ];
        for (work, seconds, bound) in cases {
            assert_eq!(
                machine(Some(20.0)).seconds(&work, 50_000, 500),
                (seconds, bound),
                "{work:?}"
            );
        }
        // Without an instruction of its own bf16 is worth an f32.
        assert_eq!(machine(None).seconds(&work(0, 0, 0, 100, 0), 0, 0).0, 10.0);
    }
}
