//! `gpu-check`: a device against the reference and against itself, and how near it comes to the limits of its card. It needs
//! nothing but the driver; scripts/gpu-check leaves it in a folder that runs anywhere. docs/benchmarks-gpu.md says what each
//! check means, and what its figures are shares of.
//!
//! Every check runs in a process of its own, which prints a line of JSON for each result: a kernel that breaks the card's
//! context, hangs or ends the process costs its own check and no other.

mod args;
mod bench;
mod checks;
mod invariance;
mod kernels;
mod limits;
mod load;
mod logits;
mod memory;
mod model;
mod real_model;
mod report;
mod runner;
mod subject;

// What the devices' tests use, and so the same cases.
#[path = "../../../../kernels/tests/devices/common.rs"]
#[allow(
    dead_code,
    unused_imports,
    clippy::unwrap_used,
    reason = "shared with the tests of devices, which use the rest"
)]
mod common;
#[path = "../../../../kernels/tests/devices/linear.rs"]
#[allow(
    dead_code,
    unused_imports,
    clippy::unwrap_used,
    reason = "shared with the tests of devices, which use the rest"
)]
mod linear;
#[path = "../../../../kernels/tests/devices/operations.rs"]
#[allow(
    dead_code,
    unused_imports,
    clippy::unwrap_used,
    reason = "shared with the tests of devices, which use the rest"
)]
mod operations;
#[path = "../../../../kernels/tests/devices/sampling.rs"]
#[allow(
    dead_code,
    unused_imports,
    clippy::unwrap_used,
    reason = "shared with the tests of devices, which use the rest"
)]
mod sampling;

use std::error::Error;
use std::process::ExitCode;

use args::{Args, Kind, Task};
use chrysalis_kernels::cpu::Cpu;
#[cfg(any(feature = "cuda", feature = "cuda-host"))]
use chrysalis_kernels::cuda::{Card, Cuda};
use subject::Subject;

fn main() -> ExitCode {
    let done =
        Args::parse(std::env::args().skip(1)).map_err(Into::into).and_then(|args| run(&args));
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            report::complain(&format!("gpu-check: {error}"));
            ExitCode::from(2)
        }
    }
}

/// Whether all that was to be checked is as it should be.
fn run(args: &Args) -> Result<bool, Box<dyn Error>> {
    match &args.task {
        Task::Help => report::say(args::HELP).map(|()| true).map_err(Into::into),
        Task::MakeData { gguf, tokens } => {
            real_model::make(gguf, tokens, &args.data)?;
            Ok(true)
        }
        Task::All | Task::One(_) => match args.kind {
            Kind::Cpu => on::<Cpu>(args),
            #[cfg(any(feature = "cuda", feature = "cuda-host"))]
            Kind::Card => on::<Cuda<Card>>(args),
            #[cfg(feature = "cuda-host")]
            Kind::Emulated => on::<Cuda<chrysalis_kernels::cuda::Emulated>>(args),
        },
    }
}

fn on<D: Subject>(args: &Args) -> Result<bool, Box<dyn Error>> {
    let checks = checks::all::<D>(args.size);
    match &args.task {
        Task::One(name) => {
            let check = checks.iter().find(|check| check.name == *name);
            let check = check.ok_or_else(|| format!("there is no check {name}"))?;
            check.run(args)?;
            Ok(true)
        }
        _ => {
            let checks: Vec<_> = checks.iter().map(checks::Check::listed).collect();
            runner::run(args, &checks)
        }
    }
}
