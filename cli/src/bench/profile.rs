//! Time by operation (`--profile`): counts of [`chrysalis_kernels::profile`], beside the machine's limits.

use std::collections::BTreeMap;
use std::time::Duration;

use chrysalis_kernels::profile::{Operation, Work};
use serde::Serialize;

use super::limits::{Bound, Machine};
use super::measure::Phase;
use crate::error::CliError;
use crate::output;

/// What one run of the engine did.
#[derive(Debug, Default)]
pub struct Run {
    prefill: (Duration, Vec<Operation>),
    decode: (Duration, Vec<Operation>),
}

/// The operations of one row, all of its runs together.
#[derive(Debug, Serialize)]
pub struct Profile {
    prompt: usize,
    batch: usize,
    runs: usize,
    prefill: PhaseProfile,
    decode: PhaseProfile,
}

/// The operations of a phase, longest first.
#[derive(Debug, Serialize)]
struct PhaseProfile {
    seconds: f64,
    operations: Vec<OperationReport>,
}

#[derive(Debug, Serialize)]
struct OperationReport {
    name: String,
    calls: u64,
    seconds: f64,
    share_of_time: f64,
    stored_bytes: u64,
    activation_bytes: u64,
    operations: u64,
    gb_per_s: f64,
    gop_per_s: f64,
    /// Nothing for what has no work of its own.
    share_of_limit: Option<f64>,
    bound: Option<Bound>,
}

impl Run {
    /// The operations of a phase.
    pub fn set(&mut self, phase: Phase, operations: Vec<Operation>) {
        match phase {
            Phase::Prefill => self.prefill.1 = operations,
            Phase::Decode => self.decode.1 = operations,
        }
    }

    /// The time of both phases.
    pub fn lasting(mut self, prefill: Duration, decode: Duration) -> Self {
        (self.prefill.0, self.decode.0) = (prefill, decode);
        self
    }
}

impl Profile {
    /// The sum of the runs of a row, of `(prompt, batch)`, whose steps go over `working_set` bytes.
    pub fn new(
        (prompt, batch): (usize, usize),
        runs: &[Run],
        machine: &Machine,
        working_set: u64,
    ) -> Self {
        let phase = |part: fn(&Run) -> &(Duration, Vec<Operation>)| {
            PhaseProfile::new(&runs.iter().map(part).collect::<Vec<_>>(), machine, working_set)
        };
        Self {
            prompt,
            batch,
            runs: runs.len(),
            prefill: phase(|run| &run.prefill),
            decode: phase(|run| &run.decode),
        }
    }

    /// Prints both phases.
    ///
    /// # Errors
    /// [`CliError::Output`].
    pub fn print(&self) -> Result<(), CliError> {
        for (name, phase) in [("prefill", &self.prefill), ("decode", &self.decode)] {
            output::line(&format!(
                "\n{name} of prompt {}, batch {}: {:.1} ms a run\n{:40} {:>7} {:>9} {:>6} {:>7} {:>8} {:>9}",
                self.prompt,
                self.batch,
                phase.seconds * 1e3 / self.runs.max(1) as f64,
                "operation",
                "calls",
                "ms",
                "time",
                "GB/s",
                "GOP/s",
                "of limit"
            ))?;
            for operation in &phase.operations {
                output::line(&operation.line())?;
            }
        }
        Ok(())
    }
}

impl PhaseProfile {
    fn new(runs: &[&(Duration, Vec<Operation>)], machine: &Machine, working_set: u64) -> Self {
        let seconds: f64 = runs.iter().map(|(time, _)| time.as_secs_f64()).sum();
        let mut sums: BTreeMap<&str, Operation> = BTreeMap::new();
        for operation in runs.iter().flat_map(|(_, operations)| operations) {
            let sum = sums.entry(&operation.name).or_default();
            sum.calls += operation.calls;
            sum.time += operation.time;
            sum.work += operation.work;
        }
        let report = |name: &str, sum: &Operation| {
            let at_once = sum.work.activation_bytes / sum.calls.max(1);
            let limit = machine.seconds(&sum.work, working_set, at_once);
            OperationReport::new(name, sum, seconds, limit)
        };
        let counted: f64 = sums.values().map(|sum| sum.time.as_secs_f64()).sum();
        let mut operations: Vec<_> = sums.iter().map(|(name, sum)| report(name, sum)).collect();
        operations.sort_by(|a, b| f64::total_cmp(&b.seconds, &a.seconds));
        // The scheduler, the sampler, and counting itself.
        let rest = Duration::from_secs_f64((seconds - counted).max(0.0));
        let rest = Operation { time: rest, ..Operation::default() };
        operations.push(report("outside of operations", &rest));
        Self { seconds, operations }
    }
}

impl OperationReport {
    fn new(name: &str, sum: &Operation, phase: f64, (least, bound): (f64, Bound)) -> Self {
        let Work { stored_bytes, activation_bytes, .. } = sum.work;
        let seconds = sum.time.as_secs_f64();
        let limit = (least > 0.0).then_some((least, bound));
        let a_second = |count: u64| count as f64 / seconds.max(1e-9) / 1e9;
        Self {
            name: name.to_owned(),
            calls: sum.calls,
            seconds,
            share_of_time: seconds / phase.max(1e-9),
            stored_bytes,
            activation_bytes,
            operations: sum.work.operations(),
            gb_per_s: a_second(stored_bytes + activation_bytes),
            gop_per_s: a_second(sum.work.operations()),
            share_of_limit: limit.map(|(least, _)| least / seconds.max(1e-9)),
            bound: limit.map(|(_, bound)| bound),
        }
    }

    fn line(&self) -> String {
        let limit =
            self.share_of_limit.zip(self.bound).map_or_else(String::new, |(share, bound)| {
                format!("{:6.1} % {}", share * 100.0, bound.name())
            });
        format!(
            "{:40} {:7} {:9.2} {:4.1} % {:7.1} {:8.1} {limit}",
            self.name,
            self.calls,
            self.seconds * 1e3,
            self.share_of_time * 100.0,
            self.gb_per_s,
            self.gop_per_s
        )
    }
}

#[cfg(test)]
mod tests {
    use chrysalis_kernels::probe::{Limits, Rate, ReadRate};

    use super::*;

    #[test]
    fn runs_are_added_up_and_what_no_operation_took_is_named() {
        let rate = Rate { one: 1e9, all: 1e9 };
        let reads = vec![ReadRate { bytes: 1 << 20, rate }];
        let limits = Limits { threads: 1, reads, int8: rate, f32: rate, bf16: None };
        let machine = Machine(limits);
        let operation = |name: &str, ms| Operation {
            name: name.to_owned(),
            calls: 2,
            time: Duration::from_millis(ms),
            work: Work { stored_bytes: 1_000_000, int8: 10, ..Work::default() },
        };
        let run = |ms| {
            let mut run = Run::default();
            run.set(Phase::Decode, vec![operation("add", ms), operation("gate", 4)]);
            run.lasting(Duration::ZERO, Duration::from_millis(10))
        };
        let decode = Profile::new((1, 1), &[run(1), run(3)], &machine, 1 << 20).decode;
        let seen: Vec<_> = decode
            .operations
            .iter()
            .map(|x| (&*x.name, x.calls, (x.seconds * 1e3).round(), x.bound))
            .collect();
        let memory = Some(Bound::Memory);
        let rest = ("outside of operations", 0, 8.0, None);
        assert_eq!(seen, [("gate", 4, 8.0, memory), ("add", 4, 4.0, memory), rest]);
        let shares: Vec<_> =
            decode.operations.iter().map(|x| (x.share_of_time, x.share_of_limit)).collect();
        assert!((shares[0].0 - 0.4).abs() < 1e-9 && (shares[1].1.unwrap() - 0.5).abs() < 1e-9);
    }
}
