//! `chrysalis pack`: from a GGUF file or a Hugging Face folder to a package, its keys and a policy that fits it.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use chrysalis_models::pack::{self, FileError, PackError, PackOptions, PackSummary};
use chrysalis_models::source::{self, Source};
use chrysalis_protocol::package::{Package, PackageKey, PackageOptions};
use chrysalis_protocol::rand_core::Rng;
use chrysalis_runtime::files::PackageFiles;
use chrysalis_runtime::rng::SystemRng;
use indicatif::ProgressBar;
use serde::Serialize;

use crate::args::{PackArgs, PackDtype};
use crate::error::CliError;
use crate::{hex, key_file, model_cache, output, policy_file};

/// What a package is made with.
#[derive(Clone, Copy, Debug)]
pub struct PackChoices<'a> {
    /// Whether the weights are sealed.
    pub sealed: bool,
    /// Package key file; beside the package when there is none.
    pub key: Option<&'a Path>,
    /// Publisher's key file; beside the package when there is none.
    pub publisher_key: Option<&'a Path>,
    /// Security version.
    pub svn: u32,
    /// How matrices are stored.
    pub dtype: PackDtype,
    /// Replaces a package that is there.
    pub force: bool,
}

impl Default for PackChoices<'_> {
    /// Sealed, as the source has it, never in the place of another package.
    fn default() -> Self {
        Self {
            sealed: true,
            key: None,
            publisher_key: None,
            svn: 1,
            dtype: PackDtype::Keep,
            force: false,
        }
    }
}

/// What was made, and where.
#[derive(Clone, Debug, Serialize)]
pub struct PackReport {
    /// `NAME.chry`.
    pub package: PathBuf,
    /// The model's name.
    pub name: String,
    /// Whether the weights are sealed.
    pub sealed: bool,
    /// The package key's file, when they are.
    pub key: Option<PathBuf>,
    /// Whether that key was made now.
    pub key_made: bool,
    /// The publisher's key file.
    pub publisher_key: PathBuf,
    /// Whether that key was made now.
    pub publisher_key_made: bool,
    /// The appraisal policy that fits.
    pub policy: PathBuf,
    /// The policy accepts a simulated platform, which proves nothing.
    pub policy_allows_simulated: bool,
    /// Identity of the model, hex.
    pub content_digest: String,
    /// Identity of the package, hex.
    pub package_digest: String,
    /// SHA-256 of the publisher's public key, hex.
    pub publisher: String,
    /// Security version.
    pub svn: u32,
    /// BLAKE3 of the client bundle, hex.
    pub client_bundle: String,
    /// Tensors.
    pub tensors: usize,
    /// Every file of the package, `NAME.chry` first.
    pub files: Vec<PathBuf>,
    /// Their bytes.
    pub bytes: u64,
    /// How long it took.
    pub seconds: f64,
}

/// Runs `chrysalis pack`.
///
/// # Errors
/// [`CliError`] names the file, the tensor or the check.
pub fn run(args: &PackArgs) -> Result<(), CliError> {
    let choices = PackChoices {
        sealed: !args.open,
        key: args.key.as_deref(),
        publisher_key: args.publisher_key.as_deref(),
        svn: args.svn,
        dtype: args.dtype,
        force: args.force,
    };
    let report = pack_model(&args.source, &args.output, &choices, args.json)?;
    if args.json { output::json(&report) } else { print(&report) }
}

/// Packs a model and writes the policy that fits. What is not there yet of the two keys is made; a key that is there is
/// used, and no key is ever replaced or removed.
///
/// # Errors
/// [`CliError`]; without a package there is nothing under the names of its files.
pub fn pack_model(
    source: &Path,
    output: &Path,
    choices: &PackChoices<'_>,
    quiet: bool,
) -> Result<PackReport, CliError> {
    let start = Instant::now();
    let policy = policy_file::path(output);
    check_output(output, &policy, choices.force)?;
    let source = source::open(source)?;
    let beside = |file: Option<&Path>, ending| {
        file.map_or_else(|| output.with_extension(ending), Path::to_owned)
    };
    if let Some(folder) = output.parent() {
        fs::create_dir_all(folder).map_err(CliError::io(folder))?;
    }
    let key_path = choices.sealed.then(|| beside(choices.key, "key"));
    let (key, key_made) = match &key_path {
        Some(path) => key_file::read_or_create(path).map(|(key, made)| (Some(key), made))?,
        None => (None, false),
    };
    let publisher_path = beside(choices.publisher_key, "publisher");
    let (publisher, publisher_key_made) = key_file::publisher(&publisher_path)?;

    let mut package_id = [0; 16];
    SystemRng::default().fill_bytes(&mut package_id);
    let mut package = PackageOptions::new(package_id, &publisher);
    (package.model_svn, package.key) = (choices.svn, key.as_ref());
    let mut options = PackOptions::new(package);
    (options.dtype, options.force) = (dtype(choices.dtype), choices.force);
    let packed = with_bar(&source, output, &options, quiet)?;

    let package = reopen(output, key.as_ref())?;
    let header = package.public().header();
    // The one place that decides what the policy of a new package says.
    let fitting = policy_file::fitting(
        packed.content_digest,
        header.publisher_key_id,
        header.model_svn,
        package.meta().client_bundle_hash,
    );
    policy_file::write(&policy, &fitting)?;
    let PackSummary { content_digest, package_digest, files, num_tensors, bytes, .. } = packed;
    Ok(PackReport {
        package: output.to_owned(),
        name: package.meta().name.clone(),
        sealed: choices.sealed,
        key: key_path,
        key_made,
        publisher_key: publisher_path,
        publisher_key_made,
        policy,
        policy_allows_simulated: fitting.allow_simulated,
        content_digest: hex::encode(&content_digest),
        package_digest: hex::encode(&package_digest),
        publisher: hex::encode(&header.publisher_key_id),
        svn: header.model_svn,
        client_bundle: hex::encode(&package.meta().client_bundle_hash),
        tensors: num_tensors,
        files,
        bytes,
        seconds: start.elapsed().as_secs_f64(),
    })
}

fn with_bar(
    source: &Source,
    output: &Path,
    options: &PackOptions<'_>,
    quiet: bool,
) -> Result<PackSummary, PackError> {
    let bar = if quiet { ProgressBar::hidden() } else { ProgressBar::new(0) };
    bar.set_style(model_cache::style("packing"));
    let packed = pack::pack(source, output, options, |progress| {
        bar.set_length(progress.total);
        bar.set_position(progress.done);
    });
    bar.finish_and_clear();
    packed
}

/// Refuses, before any work and before any key is made, what could not be written in the end.
fn check_output(output: &Path, policy: &Path, force: bool) -> Result<(), CliError> {
    if output.extension().is_none_or(|extension| extension != "chry") {
        return Err(PackError::File(FileError::Name(output.to_owned())).into());
    }
    match [output, policy].into_iter().find(|path| path.exists()) {
        Some(path) if !force => Err(CliError::Exists { path: path.to_owned() }),
        _ => Ok(()),
    }
}

/// The package as it lies on the disk: what its readers will see.
fn reopen(output: &Path, key: Option<&PackageKey>) -> Result<Package, CliError> {
    let main = PackageFiles::new(output).main()?;
    Package::open(&main, key).map_err(CliError::package(output))
}

fn dtype(dtype: PackDtype) -> pack::PackDtype {
    match dtype {
        PackDtype::Keep => pack::PackDtype::Keep,
        PackDtype::Bf16 => pack::PackDtype::Bf16,
        PackDtype::Fp8 => pack::PackDtype::Fp8,
        PackDtype::Q8 => pack::PackDtype::Q8,
        PackDtype::Q4 => pack::PackDtype::Q4,
    }
}

fn print(report: &PackReport) -> Result<(), CliError> {
    let made = |made: bool| if made { " (made now)" } else { "" };
    let state = if report.sealed { "sealed" } else { "open: everybody can read the weights" };
    output::line(&format!(
        "{}: {} tensors, {} bytes in {} files, {state}, {:.1} s",
        report.name,
        report.tensors,
        report.bytes,
        report.files.len(),
        report.seconds
    ))?;
    for file in &report.files {
        output::line(&format!("  {}", file.display()))?;
    }
    output::line(&format!("content digest  {}", report.content_digest))?;
    output::line(&format!("package digest  {}", report.package_digest))?;
    output::line(&format!("publisher       {}", report.publisher))?;
    if let Some(key) = &report.key {
        let secret = "keep it secret, and keep it: without it the package cannot be opened";
        output::line(&format!(
            "package key     {}{}; {secret}",
            key.display(),
            made(report.key_made)
        ))?;
    }
    let publisher_key = report.publisher_key.display();
    output::line(&format!("publisher key   {publisher_key}{}", made(report.publisher_key_made)))?;
    output::line(&format!("policy          {}", report.policy.display()))?;
    if report.policy_allows_simulated {
        output::note(
            "\nWARNING: the policy accepts a simulated platform. It is for trying things out: whoever runs the enclave can \
             read everything.",
        );
    }
    let (package, policy) = (report.package.display(), report.policy.display());
    output::note(&format!("\nNext:\n  chrysalis serve --package {package} --listen {EXAMPLE}"));
    if let Some(key) = &report.key {
        let key = key.display();
        output::note(&format!(
            "  chrysalis release --connect {EXAMPLE} --key {key} --policy {policy}"
        ));
    }
    output::note(&format!("  chrysalis ask --connect {EXAMPLE} --policy {policy} \"Hello\""));
    Ok(())
}

/// An address for the commands that are suggested.
const EXAMPLE: &str = "unix:chrysalis.sock";
