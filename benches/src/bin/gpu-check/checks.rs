//! The list of checks, and what each is given.

use std::error::Error;
use std::io;
use std::ops::Deref;
use std::path::PathBuf;
use std::sync::Arc;

use crate::args::{Args, Size};
use crate::report::{Row, say};
use crate::subject::Subject;
use crate::{bench, invariance, kernels, load, logits, memory};

/// What a check may end with.
pub(crate) type Outcome = Result<(), Box<dyn Error>>;

/// A check.
pub(crate) struct Check {
    /// `part/what`.
    pub(crate) name: String,
    /// When it is ended.
    seconds: u64,
    run: Box<dyn Fn(&Place) -> Outcome>,
}

/// A check as the runner knows it.
#[derive(Clone, Debug)]
pub(crate) struct Listed {
    pub(crate) name: String,
    pub(crate) seconds: u64,
}

/// Where and how much.
pub(crate) struct Place {
    pub(crate) size: Size,
    pub(crate) data: PathBuf,
}

/// What most checks are given: a device, too.
pub(crate) struct Context<'a, D> {
    pub(crate) device: Arc<D>,
    place: &'a Place,
}

impl Check {
    /// One that is given a device.
    pub(crate) fn new<D: Subject>(
        name: impl Into<String>,
        seconds: u64,
        run: impl Fn(&Context<'_, D>) -> Outcome + 'static,
    ) -> Self {
        let opened = move |place: &Place| run(&Context { device: Arc::new(D::open()?), place });
        Self::unopened(name, seconds, opened)
    }

    /// One that opens its devices: a card is opened once at a time.
    pub(crate) fn unopened(
        name: impl Into<String>,
        seconds: u64,
        run: impl Fn(&Place) -> Outcome + 'static,
    ) -> Self {
        Self { name: name.into(), seconds, run: Box::new(run) }
    }

    pub(crate) fn listed(&self) -> Listed {
        Listed { name: self.name.clone(), seconds: self.seconds }
    }

    pub(crate) fn run(&self, args: &Args) -> Outcome {
        (self.run)(&Place { size: args.size, data: args.data.clone() })
    }
}

impl Place {
    /// One result, for whoever reads standard output.
    #[expect(clippy::unused_self, reason = "who runs a check is told by it")]
    pub(crate) fn note(&self, row: &Row) -> Result<(), io::Error> {
        say(&serde_json::to_string(row)?)
    }
}

impl<D> Deref for Context<'_, D> {
    type Target = Place;

    fn deref(&self) -> &Place {
        self.place
    }
}

/// Every check, in the order of the parts.
pub(crate) fn all<D: Subject>(size: Size) -> Vec<Check> {
    let mut checks = vec![Check::new("device/facts", 30, facts::<D>)];
    checks.extend(kernels::checks::<D>(size));
    checks.extend(logits::checks::<D>(size));
    checks.extend(invariance::checks::<D>(size));
    checks.extend(memory::checks::<D>());
    checks.extend(bench::checks::<D>(size));
    checks.extend(load::checks::<D>(size));
    for tool in ["memcheck", "racecheck"] {
        checks.push(Check::new(format!("sanitizer/{tool}"), 60, kernels::small::<D>));
    }
    checks
}

fn facts<D: Subject>(context: &Context<'_, D>) -> Outcome {
    context.note(&Row::text("device", context.device.describe()))?;
    for row in context.device.facts()? {
        context.note(&row)?;
    }
    Ok(())
}
