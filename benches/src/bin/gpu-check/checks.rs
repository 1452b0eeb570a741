//! The list of checks, and what each is given.

use std::error::Error;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use crate::args::{Args, Size};
use crate::report::{Row, say};
use crate::subject::Subject;
use crate::{bench, invariance, kernels, load, logits, memory};

/// What a check may end with.
pub(crate) type Outcome = Result<(), Box<dyn Error>>;

/// A check on device `D`.
pub(crate) struct Check<D> {
    /// `part/what`.
    pub(crate) name: String,
    /// When it is ended.
    seconds: u64,
    run: Run<D>,
}

type Run<D> = Box<dyn Fn(&Context<D>) -> Outcome>;

/// A check as the runner knows it.
#[derive(Clone, Debug)]
pub(crate) struct Listed {
    pub(crate) name: String,
    pub(crate) seconds: u64,
}

/// What a check is given.
pub(crate) struct Context<D> {
    pub(crate) device: Arc<D>,
    pub(crate) size: Size,
    pub(crate) data: PathBuf,
}

impl<D: Subject> Check<D> {
    pub(crate) fn new(
        name: impl Into<String>,
        seconds: u64,
        run: impl Fn(&Context<D>) -> Outcome + 'static,
    ) -> Self {
        Self { name: name.into(), seconds, run: Box::new(run) }
    }

    pub(crate) fn listed(&self) -> Listed {
        Listed { name: self.name.clone(), seconds: self.seconds }
    }

    /// Opens the device and runs it.
    pub(crate) fn run(&self, args: &Args) -> Outcome {
        let device = Arc::new(D::open()?);
        (self.run)(&Context { device, size: args.size, data: args.data.clone() })
    }
}

impl<D> Context<D> {
    /// One result, for whoever reads standard output.
    pub(crate) fn note(&self, row: &Row) -> Result<(), io::Error> {
        say(&serde_json::to_string(row)?)
    }
}

/// Every check, in the order of the parts.
pub(crate) fn all<D: Subject>(size: Size) -> Vec<Check<D>> {
    let mut checks = vec![Check::new("device/facts", 30, facts)];
    checks.extend(kernels::checks(size));
    checks.extend(logits::checks(size));
    checks.extend(invariance::checks(size));
    checks.extend(memory::checks());
    checks.extend(bench::checks(size));
    checks.extend(load::checks(size));
    for tool in ["memcheck", "racecheck"] {
        checks.push(Check::new(format!("sanitizer/{tool}"), 60, kernels::small));
    }
    checks
}

fn facts<D: Subject>(context: &Context<D>) -> Outcome {
    context.note(&Row::text("device", context.device.describe()))?;
    for row in context.device.facts()? {
        context.note(&row)?;
    }
    Ok(())
}
