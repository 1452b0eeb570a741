//! The command line.

use std::path::PathBuf;

/// What to do, and on which device.
#[derive(Debug)]
pub(crate) struct Args {
    pub(crate) task: Task,
    pub(crate) kind: Kind,
    pub(crate) size: Size,
    /// Parts to run, or checks; all, when empty.
    pub(crate) only: Vec<String>,
    /// Where the small real model lies.
    pub(crate) data: PathBuf,
    pub(crate) results: PathBuf,
    /// Seconds for the whole run.
    pub(crate) seconds: u64,
}

/// What to do.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Task {
    Help,
    /// All checks, each in a process of its own.
    All,
    /// This check, here.
    One(String),
    /// The small real model, on the machine that builds.
    MakeData {
        gguf: PathBuf,
        tokens: PathBuf,
    },
}

/// What is checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A card; in a build for the emulator, one whose driver is a fake over it.
    #[cfg(any(feature = "cuda", feature = "cuda-host"))]
    Card,
    /// The CUDA kernels on the host.
    #[cfg(feature = "cuda-host")]
    Emulated,
    /// The CPU: it shows that the checks themselves are right.
    Cpu,
}

/// How much of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Size {
    /// Seconds in the emulator.
    Tiny,
    /// Two minutes on a card.
    Quick,
    /// Less than eight.
    Full,
}

impl Size {
    /// What fits this size.
    pub(crate) fn pick<T>(self, tiny: T, quick: T, full: T) -> T {
        match self {
            Self::Tiny => tiny,
            Self::Quick => quick,
            Self::Full => full,
        }
    }
}

impl Args {
    pub(crate) fn parse(arguments: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut args = Self {
            task: Task::All,
            kind: Kind::named(Kind::NAMES.first().copied().unwrap_or_default())?,
            size: Size::Full,
            only: Vec::new(),
            data: PathBuf::from("data"),
            results: PathBuf::from("results.json"),
            seconds: 400,
        };
        let mut arguments = arguments.peekable();
        while let Some(flag) = arguments.next() {
            let mut value = || arguments.next().ok_or_else(|| format!("{flag} needs a value"));
            match &*flag {
                "--help" | "-h" => args.task = Task::Help,
                "--tiny" => args.size = Size::Tiny,
                "--quick" => args.size = Size::Quick,
                "--device" => args.kind = Kind::named(&value()?)?,
                "--only" => args.only = parts(&value()?)?,
                "--data" => args.data = value()?.into(),
                "--results" => args.results = value()?.into(),
                "--check" => args.task = Task::One(value()?),
                "--seconds" => {
                    let text = value()?;
                    args.seconds =
                        text.parse().map_err(|_| format!("--seconds {text} is no number"))?;
                }
                "make-data" => {
                    let (gguf, tokens) = (value()?.into(), value()?.into());
                    args.task = Task::MakeData { gguf, tokens };
                }
                _ => return Err(format!("{flag} is not an option; --help lists them")),
            }
        }
        Ok(args)
    }
}

fn parts(list: &str) -> Result<Vec<String>, String> {
    let known = |part: &&str| part.split('/').next().is_some_and(|part| PARTS.contains(&part));
    if let Some(part) = list.split(',').find(|part| !known(part)) {
        return Err(format!("there is no part {part}; there are {}", PARTS.join(", ")));
    }
    Ok(list.split(',').map(str::to_owned).collect())
}

impl Kind {
    /// The first one is the default.
    pub(crate) const NAMES: &'static [&'static str] = &[
        #[cfg(any(feature = "cuda", feature = "cuda-host"))]
        CARD,
        #[cfg(feature = "cuda-host")]
        "emulated",
        "cpu",
    ];

    pub(crate) fn named(name: &str) -> Result<Self, String> {
        match name {
            #[cfg(any(feature = "cuda", feature = "cuda-host"))]
            CARD => Ok(Self::Card),
            #[cfg(feature = "cuda-host")]
            "emulated" => Ok(Self::Emulated),
            "cpu" => Ok(Self::Cpu),
            _ => {
                Err(format!("no device {name} was built in; there are {}", Self::NAMES.join(", ")))
            }
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            #[cfg(any(feature = "cuda", feature = "cuda-host"))]
            Self::Card => CARD,
            #[cfg(feature = "cuda-host")]
            Self::Emulated => "emulated",
            Self::Cpu => "cpu",
        }
    }
}

#[cfg(feature = "cuda")]
const CARD: &str = "cuda";
#[cfg(all(feature = "cuda-host", not(feature = "cuda")))]
const CARD: &str = "fake";

/// In the order in which they run: what is right, then how fast it is.
pub(crate) const PARTS: [&str; 8] =
    ["device", "kernels", "logits", "invariance", "memory", "bench", "load", "sanitizer"];

pub(crate) const HELP: &str = "\
gpu-check [OPTIONS]                     every check, each in a process of its own
gpu-check make-data GGUF TOKENS         the small real model and its expected logits, into --data

--device NAME    what is checked: cuda, emulated, fake (a driver over the emulator) or cpu, as far as built in
--quick          two minutes on a card in place of eight
--tiny           seconds in the emulator; measures nothing
--only PARTS     of device,kernels,logits,invariance,memory,bench,load,sanitizer, or checks: bench/limits
--data FOLDER    of the small real model [data]
--results FILE   what was found, as JSON, written after every check [results.json]
--seconds N      for the whole run: what does not fit is skipped by name [400]
--check NAME     one check, in this process: a line of JSON for each result

Exit status: 0 when every check passed, 1 when one did not, 2 when they could not run.";
