//! What was found: rows of the checks, as JSON and as a table.

use std::io::{self, Write};
use std::path::Path;

use crate::args::Size;
use serde::{Deserialize, Serialize};

/// One result of a check.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Row {
    /// What was looked at.
    pub(crate) what: String,
    /// Whether it is as it should be; none, for a figure without a limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) ok: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) value: Option<f64>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) unit: String,
    /// What the value may be at most, or has to be at least.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) limit: Option<f64>,
    /// What a timed run cannot do without: bytes of memory, operations on the tensor cores; and its seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) work: Option<Timed>,
    /// Of the limit that binds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) share: Option<f64>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) detail: String,
}

/// Work, and how long it took.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Timed {
    pub(crate) bytes: f64,
    pub(crate) operations: f64,
    pub(crate) seconds: f64,
}

impl Row {
    /// A value that must be below a limit; one that is no number is not.
    pub(crate) fn below(what: impl Into<String>, value: f64, limit: f64, unit: &str) -> Self {
        let ok = Some(value < limit);
        let (value, limit) = (Some(value), Some(limit));
        Self { what: what.into(), ok, value, unit: unit.to_owned(), limit, ..Self::default() }
    }

    /// A value that must reach a limit.
    pub(crate) fn least(what: impl Into<String>, value: f64, limit: f64, unit: &str) -> Self {
        let ok = Some(value >= limit);
        let (value, limit) = (Some(value), Some(limit));
        Self { what: what.into(), ok, value, unit: unit.to_owned(), limit, ..Self::default() }
    }

    /// A fact that must hold.
    pub(crate) fn holds(what: impl Into<String>, ok: bool) -> Self {
        Self { what: what.into(), ok: Some(ok), ..Self::default() }
    }

    /// A figure without a limit.
    pub(crate) fn figure(what: impl Into<String>, value: f64, unit: &str) -> Self {
        Self { what: what.into(), value: Some(value), unit: unit.to_owned(), ..Self::default() }
    }

    /// The same, with a limit that only a measurement is held to.
    pub(crate) fn measured(mut self, size: Size) -> Self {
        self.ok = self.ok.filter(|_| size > Size::Tiny);
        self
    }

    /// A text.
    pub(crate) fn text(what: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { what: what.into(), detail: detail.into(), ..Self::default() }
    }

    /// A line of the table.
    pub(crate) fn line(&self) -> String {
        let mark = self.ok.map_or("  ", |ok| if ok { "ok" } else { "NO" });
        let mut line = format!("  {mark} {}", self.what);
        if let Some(value) = self.value {
            line += &format!("  {} {}", number(value), self.unit);
        }
        if let Some(limit) = self.limit {
            line += &format!(" (limit {})", number(limit));
        }
        if let Some(share) = self.share {
            line += &format!("  {:.1} % of the limit", 100.0 * share);
        }
        if !self.detail.is_empty() {
            line += &format!("  {}", self.detail);
        }
        line
    }
}

fn number(value: f64) -> String {
    if value == 0.0 || (0.01..1e6).contains(&value.abs()) {
        format!("{value:.3}")
    } else {
        format!("{value:.2e}")
    }
}

/// How a check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum State {
    Passed,
    /// A result is not as it should be.
    Failed,
    /// The process ended before the check did.
    Crashed,
    /// It was ended at its time limit.
    TooSlow,
    /// It was not begun; the reason is in `error`.
    Skipped,
}

/// A check that ended.
#[derive(Debug, Serialize)]
pub(crate) struct Ended {
    pub(crate) check: String,
    pub(crate) state: State,
    pub(crate) seconds: f64,
    pub(crate) rows: Vec<Row>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) error: String,
}

/// All that is known, written after every check.
#[derive(Debug, Serialize)]
pub(crate) struct Results {
    /// Seconds since 1970.
    pub(crate) date: u64,
    pub(crate) commit: &'static str,
    pub(crate) device: &'static str,
    pub(crate) size: String,
    /// SHA-256 of the kernels' image, where there is one.
    pub(crate) kernel_image: Option<String>,
    pub(crate) complete: bool,
    pub(crate) checks: Vec<Ended>,
}

impl Results {
    /// Writes to a file beside, then takes its name: whoever is cut off leaves the last whole one.
    pub(crate) fn write(&self, path: &Path) -> io::Result<()> {
        let beside = path.with_extension("json.part");
        std::fs::write(&beside, serde_json::to_vec_pretty(self)?)?;
        std::fs::rename(beside, path)
    }

    /// Whether nothing failed, and something passed.
    pub(crate) fn passed(&self) -> bool {
        let bad = [State::Failed, State::Crashed, State::TooSlow];
        self.checks.iter().all(|check| !bad.contains(&check.state))
            && self.checks.iter().any(|check| check.state == State::Passed)
    }
}

/// A line to standard output, at once.
pub(crate) fn say(line: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{line}")?;
    out.flush()
}

/// A line to standard error.
#[expect(clippy::print_stderr, reason = "a program that ends says why")]
pub(crate) fn complain(line: &str) {
    eprintln!("{line}");
}
