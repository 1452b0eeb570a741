//! `chrysalis doctor`: what this machine can attest and serve, what is missing, and what to do about it, step by step.

mod gpus;
mod guest;
mod platform;

use std::fs;
use std::path::{Path, PathBuf};

use chrysalis_attestation::attester::tsm::Kernel;
use chrysalis_kernels::cpu::Isa;
use serde::Serialize;

use crate::args::DoctorArgs;
use crate::error::CliError;
use crate::{output, remote};

/// How a step stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum State {
    /// As it should be.
    Ok,
    /// Works, and protects or serves less than it could.
    Weak,
    /// Not there; what depends on it cannot be had.
    Missing,
}

/// One step.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Check {
    /// What was looked at.
    step: &'static str,
    state: State,
    /// What was found.
    found: String,
    /// What to do, where there is something.
    #[serde(skip_serializing_if = "Option::is_none")]
    advice: Option<&'static str>,
}

impl Check {
    fn ok(step: &'static str, found: impl Into<String>) -> Self {
        Self { step, state: State::Ok, found: found.into(), advice: None }
    }

    fn weak(step: &'static str, found: impl Into<String>, advice: &'static str) -> Self {
        Self { step, state: State::Weak, found: found.into(), advice: Some(advice) }
    }

    fn missing(step: &'static str, found: impl Into<String>, advice: &'static str) -> Self {
        Self { step, state: State::Missing, found: found.into(), advice: Some(advice) }
    }
}

/// Steps of one purpose, in the order in which one builds on the other.
#[derive(Debug, Serialize)]
struct Part {
    name: &'static str,
    checks: Vec<Check>,
}

/// What `--json` prints.
#[derive(Debug, Serialize)]
struct Report {
    /// `sev-snp`, `tdx`, or nothing.
    can_attest: Option<&'static str>,
    parts: Vec<Part>,
}

/// The file system that is looked at: `/`, or a test's.
#[derive(Clone, Copy)]
struct Root<'a>(&'a Path);

impl Root<'_> {
    fn path(&self, path: &str) -> PathBuf {
        self.0.join(path)
    }

    fn has(&self, path: &str) -> bool {
        self.path(path).exists()
    }

    /// A small file's text without its line end.
    fn text(&self, path: &str) -> Option<String> {
        fs::read_to_string(self.path(path)).ok().map(|text| text.trim_end().to_owned())
    }

    /// Names in a folder, sorted.
    fn names(&self, path: &str) -> Vec<String> {
        let entries = fs::read_dir(self.path(path)).into_iter().flatten().flatten();
        let mut names: Vec<_> =
            entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }
}

/// Runs `chrysalis doctor`.
///
/// # Errors
/// [`CliError::Output`]. What is missing is no error: it is the answer.
pub fn run(args: &DoctorArgs) -> Result<(), CliError> {
    let root = Root(&args.root);
    let (can_attest, evidence) = platform::evidence(root, Box::new(Kernel));
    let mut parts = vec![
        Part { name: "evidence of the CPU", checks: evidence },
        Part { name: "evidence of GPUs", checks: gpus::checks(root, args.nvml.as_deref()) },
        Part { name: "judging others", checks: vec![platform::floors(remote::now_unix())] },
        Part { name: "the way out", checks: vec![guest::vsock(root)] },
        Part { name: "the guest", checks: guest::closed(root) },
        Part { name: "speed", checks: vec![compute(Isa::detect()), guest::huge_pages(root)] },
    ];
    parts.extend(cuda_kernels());
    let report = Report { can_attest, parts };
    if args.json { output::json(&report) } else { print(&report) }
}

/// Which kernels the CPU runs.
fn compute(isa: Isa) -> Check {
    let step = "kernels";
    match isa {
        Isa::Amx => Check::ok(step, "AMX, and AVX-512 with VNNI and BF16"),
        Isa::Avx512Bf16 => Check::ok(step, "AVX-512 with VNNI and BF16"),
        Isa::Avx512 => Check::ok(step, "AVX-512 with VNNI; BF16 weights are multiplied as f32"),
        Isa::Avx2 => {
            Check::weak(step, "AVX2", "a CPU with AVX-512 VNNI is two to four times as fast")
        }
        Isa::Scalar => Check::weak(
            step,
            "no vector instructions",
            "give the guest the host's CPU type (QEMU: -cpu host or EPYC-…): it is many times as fast",
        ),
    }
}

/// Which CUDA kernels this binary carries, where it carries some: the digest is of the very bytes.
fn cuda_kernels() -> Option<Part> {
    #[cfg(feature = "cuda")]
    {
        use chrysalis_kernels::cuda::{IMAGE, IMAGE_ARCHS};
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, IMAGE);
        let digest = crate::hex::encode(digest.as_ref());
        let found = format!("sha256 {digest}, {} bytes, for sm_{IMAGE_ARCHS} and PTX", IMAGE.len());
        let advice =
            "none of them has run on a card yet: compare `eval` with the processor's first";
        let checks = vec![Check::weak("CUDA kernels", found, advice), card()];
        Some(Part { name: "GPU kernels", checks })
    }
    #[cfg(not(feature = "cuda"))]
    None
}

/// The first card, asked and not opened.
#[cfg(feature = "cuda")]
fn card() -> Check {
    use chrysalis_kernels::cuda::{CardError, CardInfo};
    let step = "card";
    match CardInfo::of(0) {
        Ok(CardInfo { name, capability: (major, minor), memory, driver, .. }) => Check::ok(
            step,
            format!(
                "{name}, compute capability {major}.{minor}, {} MiB, driver for CUDA {}.{}",
                memory >> 20,
                driver / 1000,
                driver % 1000 / 10
            ),
        ),
        Err(error) => {
            let advice = match error {
                CardError::NoDriver => {
                    "serving is on the CPU; for a card, install NVIDIA's driver 580 or later"
                }
                CardError::NoCard { .. } => {
                    "serving is on the CPU; for a card, pass one to this guest"
                }
                CardError::Capability { .. } => {
                    "serving is on the CPU; the kernels need an A100 or later"
                }
                _ => "serving is on the CPU; nvidia-smi says whether the driver works",
            };
            Check::weak(step, error.to_string(), advice)
        }
    }
}

fn print(report: &Report) -> Result<(), CliError> {
    for part in &report.parts {
        output::line(&format!("{}:", part.name))?;
        for check in &part.checks {
            let mark = match check.state {
                State::Ok => '+',
                State::Weak => '~',
                State::Missing => '-',
            };
            output::line(&format!("  {mark} {}: {}", check.step, check.found))?;
            if let Some(advice) = check.advice {
                output::line(&format!("      {advice}"))?;
            }
        }
    }
    output::line("")?;
    output::line(match report.can_attest {
        Some("tdx") => "This machine can attest: serve with --attester tdx.",
        Some(_) => "This machine can attest: serve with --attester snp.",
        None => {
            "This machine can attest nothing. --attester simulated tries everything out, and proves nothing: whoever \
             runs the machine can read prompts, answers and weights."
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_instruction_set_is_told_apart() {
        assert_eq!(compute(Isa::Avx512Bf16).state, State::Ok);
        assert_eq!(compute(Isa::Avx512).state, State::Ok);
        assert_eq!(compute(Isa::Avx2).state, State::Weak);
        assert!(compute(Isa::Scalar).advice.unwrap().contains("-cpu"));
    }
}
