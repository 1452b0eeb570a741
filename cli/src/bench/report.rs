//! What `chrysalis bench` found, as a table and as JSON.

use std::fs;

use chrysalis_kernels::profile::Work;
use serde::Serialize;

use super::cost::{ModelCost, PerToken};
use super::limits::{Bound, LimitsReport, Machine};
use super::measure::Speeds;
use super::profile::Profile;
use crate::engine_setup::LoadFigures;
use crate::error::CliError;
use crate::output;

/// All of it.
#[derive(Debug, Serialize)]
pub struct Report {
    /// The package's path.
    pub package: String,
    /// The decoder and its device.
    pub device: String,
    /// From the opened header to a decoder that is ready.
    pub load_seconds: f64,
    /// The stages of loading the weights.
    pub load: LoadFigures,
    /// Before the limits were measured.
    pub memory: Memory,
    /// What a token costs.
    #[serde(flatten)]
    pub cost: PerToken,
    /// What the machine can do, where it is what computes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limits: Option<LimitsReport>,
    /// Every prompt length with every batch.
    pub rows: Vec<Row>,
    /// The operations of each row, where they were asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub profiles: Option<Vec<Profile>>,
}

/// One row of the table.
#[derive(Debug, Serialize)]
pub struct Row {
    prompt: usize,
    generate: usize,
    batch: usize,
    prefill_tokens_per_s: f64,
    decode_tokens_per_s: f64,
    #[serde(flatten)]
    limits: Option<RowLimits>,
    /// Of the last run.
    #[serde(skip_serializing_if = "Option::is_none")]
    crossings_per_step: Option<CrossingsPerStep>,
}

/// What the processor could do at most.
#[derive(Debug, Serialize)]
struct RowLimits {
    threads: usize,
    prefill_limit_tokens_per_s: f64,
    decode_limit_tokens_per_s: f64,
    prefill_share_of_limit: f64,
    decode_share_of_limit: f64,
    prefill_bound: Bound,
    decode_bound: Bound,
}

/// What went between host and device in a decode step, on average.
#[derive(Debug, Serialize)]
struct CrossingsPerStep {
    copies_in: f64,
    bytes_in: f64,
    copies_out: f64,
    bytes_out: f64,
    waits: f64,
    launches: f64,
    replays: f64,
    reservations: f64,
}

impl CrossingsPerStep {
    fn of(run: &Speeds) -> Option<Self> {
        let each = |count: u64| count as f64 / run.steps.max(1) as f64;
        run.crossed.map(|crossed| Self {
            copies_in: each(crossed.copies_in),
            bytes_in: each(crossed.bytes_in),
            copies_out: each(crossed.copies_out),
            bytes_out: each(crossed.bytes_out),
            waits: each(crossed.waits),
            launches: each(crossed.launches),
            replays: each(crossed.replays),
            reservations: each(crossed.reservations),
        })
    }

    fn line(&self) -> String {
        format!(
            "       a decode step: {:.2} copies in ({:.0} bytes), {:.2} out ({:.0} bytes), {:.2} waits, {:.2} launches, \
             {:.2} graphs, {:.2} reservations",
            self.copies_in,
            self.bytes_in,
            self.copies_out,
            self.bytes_out,
            self.waits,
            self.launches,
            self.replays,
            self.reservations
        )
    }
}

/// Memory of the process; `resident` and `peak` where the system tells.
#[derive(Debug, Serialize)]
pub struct Memory {
    weight_bytes: u64,
    kv_bytes: u64,
    resident_bytes: Option<u64>,
    peak_resident_bytes: Option<u64>,
}

impl Row {
    /// The median of the runs of `(prompt, generate, batch)`.
    pub fn new(
        (prompt, generate, batch): (usize, usize, usize),
        runs: &[Speeds],
        cost: &ModelCost,
        machine: Option<&Machine>,
    ) -> Self {
        let rate = |count: usize, seconds: f64| count as f64 / seconds.max(1e-9);
        let prefill = median(runs.iter().map(|run| rate(run.prompted, run.prefill.as_secs_f64())));
        let decode = median(runs.iter().map(|run| rate(run.decoded, run.decode.as_secs_f64())));

        let limits = machine.map(|machine| {
            RowLimits::new((prompt, generate, batch), (prefill, decode), cost, machine)
        });
        Self {
            prompt,
            generate,
            batch,
            prefill_tokens_per_s: prefill,
            decode_tokens_per_s: decode,
            limits,
            crossings_per_step: runs.last().and_then(CrossingsPerStep::of),
        }
    }

    fn lines(&self) -> Vec<String> {
        let Self { prompt, generate, batch, .. } = self;
        let (prefill, decode) = (self.prefill_tokens_per_s, self.decode_tokens_per_s);
        let line = match &self.limits {
            Some(limits) => format!(
                "{prompt:6} {generate:8} {batch:5} {:7} {prefill:15.1} {:8.1} % {:10} {decode:13.1} {:8.1} % {}",
                limits.threads,
                limits.prefill_share_of_limit * 100.0,
                limits.prefill_bound.name(),
                limits.decode_share_of_limit * 100.0,
                limits.decode_bound.name()
            ),
            None => format!(
                "{prompt:6} {generate:8} {batch:5} {:7} {prefill:15.1} {:21} {decode:13.1}",
                "-", ""
            ),
        };
        let crossings = self.crossings_per_step.as_ref().map(CrossingsPerStep::line);
        std::iter::once(line).chain(crossings).collect()
    }
}

impl RowLimits {
    fn new(
        (prompt, generate, batch): (usize, usize, usize),
        (prefill, decode): (f64, f64),
        cost: &ModelCost,
        machine: &Machine,
    ) -> Self {
        let rate = |count: usize, seconds: f64| count as f64 / seconds.max(1e-9);
        let (context, sequences) = (prompt as u64, batch as u64);
        let least = |work: Work| machine.seconds(&work, work.stored_bytes, 0);
        let (seconds, prefill_bound) = least(cost.pass(sequences, 0, context));
        let prefill_limit = rate(prompt * batch, seconds);
        // The first token comes from the prefill.
        let steps = (context..context + generate as u64 - 1)
            .map(|context| least(cost.pass(sequences, context, 1)));
        let (seconds, decode_bound) = steps
            .reduce(|(sum, _), (seconds, bound)| (sum + seconds, bound))
            .unwrap_or((0.0, Bound::Memory));
        let decode_limit = rate((generate - 1) * batch, seconds);
        Self {
            threads: machine.0.threads,
            prefill_limit_tokens_per_s: prefill_limit,
            decode_limit_tokens_per_s: decode_limit,
            prefill_share_of_limit: prefill / prefill_limit,
            decode_share_of_limit: decode / decode_limit,
            prefill_bound,
            decode_bound,
        }
    }
}

impl Memory {
    /// Of the process as it is now.
    pub fn now(weight_bytes: u64, kv_bytes: u64) -> Self {
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        Self {
            weight_bytes,
            kv_bytes,
            resident_bytes: field(&status, "VmRSS:"),
            peak_resident_bytes: field(&status, "VmHWM:"),
        }
    }

    fn line(&self, load_seconds: f64) -> String {
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        let seen = |bytes: Option<u64>| {
            bytes.map_or_else(|| "?".to_owned(), |bytes| format!("{:.0}", mib(bytes)))
        };
        format!(
            "loaded in {load_seconds:.2} s; MiB: weights {:.0}, kv cache {:.0}, resident {}, at most {}",
            mib(self.weight_bytes),
            mib(self.kv_bytes),
            seen(self.resident_bytes),
            seen(self.peak_resident_bytes)
        )
    }
}

impl Report {
    /// Prints it for people.
    ///
    /// # Errors
    /// [`CliError::Output`].
    pub fn print(&self) -> Result<(), CliError> {
        output::line(&self.device)?;
        output::line(&self.memory.line(self.load_seconds))?;
        output::line(&self.cost.line())?;
        for line in self.limits.iter().flat_map(LimitsReport::lines) {
            output::line(&line)?;
        }
        output::line(
            "prompt generate batch threads   prefill tok/s  of limit              decode tok/s  of limit",
        )?;
        for row in &self.rows {
            for line in row.lines() {
                output::line(&line)?;
            }
        }
        for profile in self.profiles.iter().flatten() {
            profile.print()?;
        }
        Ok(())
    }
}

impl Bound {
    /// For people.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Cache => "cache",
            Self::Arithmetic => "arithmetic",
        }
    }
}

/// A field of `/proc/self/status`, in bytes (proc(5)).
fn field(status: &str, name: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().strip_suffix(" kB")?.parse::<u64>().ok()?.checked_mul(1024)
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<_> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_of_the_process_are_found_by_their_whole_name() {
        let status = "Name:\tchrysalis\nVmHWM:\t   2048 kB\nVmRSS:\t    12 kB\n";
        assert_eq!(field(status, "VmRSS:"), Some(12 << 10));
        assert_eq!(field(status, "VmHWM:"), Some(2 << 20));
        assert_eq!(field(status, "VmSwap:"), None);
        assert_eq!(field("VmRSS:\tmuch\n", "VmRSS:"), None);
    }
}
