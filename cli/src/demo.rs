//! `chrysalis demo`: the whole way on one machine, each step as its user would take it.

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use chrysalis_client::{ChatRequest, Connection};
use chrysalis_protocol::messages::State;
use chrysalis_protocol::rand_core::Rng;
use chrysalis_protocol::request::Options;
use chrysalis_runtime::compute;
use chrysalis_runtime::rng::SystemRng;
use serde::Serialize;

use crate::args::{ComputeDevice, DemoArgs};
use crate::ask::{self, Timed};
use crate::error::CliError;
use crate::pack::{self, PackChoices};
use crate::{hex, key_file, model_cache, output, policy_file, release, remote, serve, verify};

/// What `--json` prints.
#[derive(Debug, Serialize)]
struct Report {
    package: PathBuf,
    content_digest: String,
    statement_digest: String,
    serving_policy_digest: String,
    key_id: String,
    tee: &'static str,
    prompt: String,
    text: String,
    prompt_tokens: u32,
    output_tokens: u32,
    time_to_first_token_s: f64,
    tokens_per_s: f64,
}

/// Runs `chrysalis demo`.
///
/// # Errors
/// [`CliError`] names the step that failed.
pub fn run(args: &DemoArgs) -> Result<(), CliError> {
    if args.prompt.is_empty() || args.max_tokens == 0 {
        return Err(CliError::Usage("the prompt is not empty and --max-tokens is 1 or more"));
    }
    if args.device == ComputeDevice::Cuda {
        compute::card_is_there()?;
    }
    let cache = model_cache::folder(args.cache.as_deref())?;
    let package = packed(args, &cache)?;
    let policy = remote::policy(&policy_file::path(&package))?;
    let key = key_file::read(&package.with_extension("key"))?;
    let mut enclave = Enclave::start(args, &package)?;

    let mut owner = enclave.connect(State::AwaitingKey)?;
    release::release(&mut owner, &policy, &key)?;
    say(args, "the owner verified the enclave and released the package key");

    let bar = output::spinner(args.json, "the enclave opens and measures its weights");
    let mut client = enclave.connect(State::Serving)?;
    bar.finish_and_clear();
    let verified = client.verify(&policy)?;
    say(args, "the client verified the enclave's evidence\n");

    let chat = ask::chat(&mut client, &policy)?;
    let request = ChatRequest {
        raw: chat.template().is_err(),
        messages: ask::messages(None, args.prompt.clone()),
        max_tokens: args.max_tokens,
        seed: Some(0),
        options: Options { temperature: Some(0.0), ..Options::default() },
        stop: Vec::new(),
    };
    let answer = ask::answer(&mut client, &verified, &chat, &request, !args.json)?;
    if args.json {
        return output::json(&report(args, package, &verified, &answer));
    }
    output::line("\n")?;
    verify::print(&verified)?;
    let claims = verified.claims();
    output::line(&format!(
        "\nmodel (content digest) {}\nserving policy         {}\nsealing key            {} (X-Wing, epoch {})\ntee                    {}",
        claims.content_digest,
        claims.policy_digest,
        hex::encode(&verified.seal_to().key_id),
        claims.epoch,
        claims.tee,
    ))?;
    let end = &answer.summary.end;
    output::line(&format!(
        "\n{} prompt tokens, {} output tokens ({}); first text after {:.2} s, the last after {:.2} s: {:.0} \
         tokens/s, paced in ticks of {} ms",
        end.prompt_tokens,
        end.output_tokens,
        ask::finish_reason(&answer),
        answer.first.as_secs_f64(),
        answer.all.as_secs_f64(),
        ask::tokens_per_s(&answer),
        verified.serving_policy().tick_ms,
    ))
}

/// The package of the demo's model: fetched and packed the first time, found after that.
fn packed(args: &DemoArgs, cache: &Path) -> Result<PathBuf, CliError> {
    let (source, package) = match &args.model {
        Some(path) => {
            let path = fs::canonicalize(path).map_err(CliError::io(path))?;
            let package = cache.join("models").join(name_for(&path)).with_extension("chry");
            (Some(path), package)
        }
        None => (None, cache.join("smollm2-135m-instruct.chry")),
    };
    if package.exists() && policy_file::path(&package).exists() && fits_this_build(&package) {
        say(args, &format!("using the package {}", package.display()));
        return Ok(package);
    }
    let source = match source {
        Some(path) => path,
        None => model_cache::smollm2(cache, args.json)?,
    };
    let choices = PackChoices { force: true, ..PackChoices::default() };
    let report = pack::pack_model(&source, &package, &choices, args.json)?;
    say(args, &format!("packed and sealed {} ({} bytes)", report.name, report.bytes));
    Ok(package)
}

/// A policy names the form of evidence of its build: one of an older build is written again with its package.
fn fits_this_build(package: &Path) -> bool {
    remote::policy(&policy_file::path(package))
        .is_ok_and(|policy| policy.dangerous.allow_debug_build == cfg!(debug_assertions))
}

/// A file name for a model elsewhere: its own name, and a digest of its whole path.
fn name_for(path: &Path) -> String {
    let digest =
        aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, path.as_os_str().as_encoded_bytes());
    let stem = path.file_stem().unwrap_or_default().to_string_lossy().replace('.', "_");
    let tag: String = hex::encode(digest.as_ref()).chars().take(8).collect();
    format!("{stem}-{tag}")
}

fn say(args: &DemoArgs, text: &str) {
    if !args.json {
        output::note(text);
    }
}

fn report(
    args: &DemoArgs,
    package: PathBuf,
    verified: &chrysalis_client::VerifiedEnclave,
    answer: &Timed,
) -> Report {
    let claims = verified.claims();
    Report {
        package,
        content_digest: claims.content_digest,
        statement_digest: claims.statement_digest,
        serving_policy_digest: claims.policy_digest,
        key_id: hex::encode(&verified.seal_to().key_id),
        tee: if claims.simulated { "simulated" } else { "genuine" },
        prompt: args.prompt.clone(),
        text: answer.text.clone(),
        prompt_tokens: answer.summary.end.prompt_tokens,
        output_tokens: answer.summary.end.output_tokens,
        time_to_first_token_s: answer.first.as_secs_f64(),
        tokens_per_s: ask::tokens_per_s(answer),
    }
}

/// The enclave's process and its socket; both end with the demo.
struct Enclave {
    process: Child,
    folder: PathBuf,
    socket: PathBuf,
}

impl Enclave {
    fn start(args: &DemoArgs, package: &Path) -> Result<Self, CliError> {
        // Made here, for this user only: where others could have made it, they could put their own enclave in it.
        let tag = hex::encode(&SystemRng::default().next_u64().to_be_bytes());
        let folder = std::env::temp_dir().join(format!("chrysalis-{tag}"));
        fs::DirBuilder::new().mode(0o700).create(&folder).map_err(CliError::io(&folder))?;
        let socket = folder.join("enclave.sock");
        let mut command = serve::own_enclave()?;
        command.arg("--package").arg(package);
        command.arg("--listen").arg(format!("unix:{}", socket.display()));
        command.args(["--attester", "simulated", "--exit-with-parent"]);
        let mut lines = String::new();
        if let Some(threads) = args.threads {
            lines.push_str(&format!("threads = {threads}\n"));
        }
        if args.device == ComputeDevice::Cuda {
            lines.push_str("cuda = 1\n");
        }
        if !lines.is_empty() {
            let config = folder.join("launch.conf");
            fs::write(&config, lines).map_err(CliError::io(&config))?;
            command.arg("--config").arg(config);
        }
        let stderr = if args.json { Stdio::null() } else { Stdio::inherit() };
        let started = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(stderr).spawn();
        let program = PathBuf::from(command.get_program());
        let process = started.map_err(|source: io::Error| CliError::Start { program, source })?;
        Ok(Self { process, folder, socket })
    }

    /// Connects once the enclave is in a state.
    fn connect(&mut self, state: State) -> Result<Connection, CliError> {
        let process = &mut self.process;
        release::wait_for_state(&self.socket, state, || matches!(process.try_wait(), Ok(None)))
    }
}

impl Drop for Enclave {
    fn drop(&mut self) {
        // It may have ended by itself; either way nothing of it stays.
        drop(self.process.kill());
        drop(self.process.wait());
        drop(fs::remove_dir_all(&self.folder));
    }
}
