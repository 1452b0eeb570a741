//! Runs every check in a process of its own, within its time and that of the whole run, and keeps what each said.

use std::env;
use std::error::Error;
use std::ffi::OsString;
use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::args::{Args, Size};
use crate::checks::Listed;
use crate::limits::Limits;
use crate::report::{Ended, Results, Row, State, say};
use crate::subject::image_digest;

/// Whether all of them passed.
pub(crate) fn run(args: &Args, checks: &[Listed]) -> Result<bool, Box<dyn Error>> {
    every_one_is_there(&args.only, checks)?;
    let start = Instant::now();
    let end = start + Duration::from_secs(args.seconds);
    let mut results = Results {
        date: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
        commit: option_env!("CHRYSALIS_COMMIT").unwrap_or("not known"),
        device: args.kind.name(),
        size: format!("{:?}", args.size).to_lowercase(),
        kernel_image: image_digest(),
        complete: false,
        checks: Vec::new(),
    };
    let mut limits = Limits::default();
    results.write(&args.results)?;
    for check in checks.iter().filter(|check| wanted(args, check)) {
        let ended = one(args, check, end, &mut limits)?;
        say(&format!(
            "{} {:?} ({:.1} s) {}",
            ended.check, ended.state, ended.seconds, ended.error
        ))?;
        for row in &ended.rows {
            say(&row.line())?;
        }
        results.checks.push(ended);
        results.write(&args.results)?;
    }
    results.complete = true;
    results.write(&args.results)?;
    let count = |state| results.checks.iter().filter(|check| check.state == state).count();
    say(&format!(
        "{} passed, {} failed, {} crashed, {} too slow, {} skipped, in {:.0} s; commit {}, {}",
        count(State::Passed),
        count(State::Failed),
        count(State::Crashed),
        count(State::TooSlow),
        count(State::Skipped),
        start.elapsed().as_secs_f64(),
        results.commit,
        args.results.display()
    ))?;
    Ok(results.passed())
}

/// Whether all that was asked for is the name of a check, or begins that of one.
fn every_one_is_there(only: &[String], checks: &[Listed]) -> Result<(), String> {
    let missing = only.iter().find(|only| !checks.iter().any(|check| is_within(only, check)));
    let Some(missing) = missing else { return Ok(()) };
    let part = missing.split('/').next().unwrap_or_default();
    let near = checks.iter().filter(|check| is_within(part, check));
    let names: Vec<&str> = near.map(|check| &*check.name).collect();
    Err(format!(
        "there is no check {missing} of this size and device; of {part} there are {}",
        names.join(", ")
    ))
}

fn wanted(args: &Args, check: &Listed) -> bool {
    args.only.is_empty() || args.only.iter().any(|only| is_within(only, check))
}

fn is_within(only: &str, check: &Listed) -> bool {
    let rest = check.name.strip_prefix(only);
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

fn one(
    args: &Args,
    check: &Listed,
    end: Instant,
    limits: &mut Limits,
) -> Result<Ended, Box<dyn Error>> {
    let begun = Instant::now();
    let mut ended = Ended {
        check: check.name.clone(),
        state: State::Skipped,
        seconds: 0.0,
        rows: Vec::new(),
        error: String::new(),
    };
    let left = end.saturating_duration_since(begun);
    if left < Duration::from_secs(3) {
        "out of time".clone_into(&mut ended.error);
        return Ok(ended);
    }
    let Some(mut command) = command(args, check)? else {
        "there is no compute-sanitizer on PATH, or no card".clone_into(&mut ended.error);
        return Ok(ended);
    };
    let child =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    // Times are those of a card; nothing is measured in tiny sizes, on machines that are busy with other things.
    let patience = args.size.pick(30, 1, 1);
    let stop = begun + left.min(Duration::from_secs(patience * check.seconds));
    ended.state = listen(child, stop, &mut ended.rows, &mut ended.error)?;
    for row in &mut ended.rows {
        limits.judge(&check.name, row);
    }
    if ended.state == State::Passed && ended.rows.iter().any(|row| row.ok == Some(false)) {
        ended.state = State::Failed;
    }
    ended.seconds = begun.elapsed().as_secs_f64();
    Ok(ended)
}

/// The process of a check; none, where its tool is not there.
fn command(args: &Args, check: &Listed) -> Result<Option<Command>, Box<dyn Error>> {
    let this = env::current_exe()?;
    let tool = check.name.strip_prefix("sanitizer/");
    let mut command = match tool {
        None => Command::new(this),
        Some(_) if args.kind.name() != "cuda" => return Ok(None),
        Some(tool) => {
            let Some(path) = on_path("compute-sanitizer") else { return Ok(None) };
            let mut command = Command::new(path);
            command.args(["--tool", tool, "--error-exitcode", "9"]).arg(this);
            command
        }
    };
    command.env("RUST_BACKTRACE", "0");
    command.args(["--device", args.kind.name(), "--check", &check.name, "--data"]).arg(&args.data);
    // Under a tool everything is a hundred times slower.
    let size = if tool.is_some() { Size::Tiny } else { args.size };
    command.args(size.pick(Some("--tiny"), Some("--quick"), None));
    Ok(Some(command))
}

fn on_path(name: &str) -> Option<PathBuf> {
    let path: OsString = env::var_os("PATH")?;
    env::split_paths(&path).map(|folder| folder.join(name)).find(|file| file.is_file())
}

/// Reads what the check says until it ends or `stop` comes.
fn listen(
    mut child: Child,
    stop: Instant,
    rows: &mut Vec<Row>,
    error: &mut String,
) -> Result<State, Box<dyn Error>> {
    let (Some(out), Some(err)) = (child.stdout.take(), child.stderr.take()) else {
        return Err("a process without pipes".into());
    };
    let (sender, lines) = mpsc::channel();
    let reader = thread::spawn(move || {
        let lines = BufReader::new(out).lines().map_while(Result::ok);
        lines.for_each(|line| drop(sender.send(line)));
    });
    let complaints = thread::spawn(move || {
        let mut text = Vec::new();
        BufReader::new(err).read_to_end(&mut text).map(|_| text).unwrap_or_default()
    });
    let mut too_slow = false;
    loop {
        match lines.recv_timeout(stop.saturating_duration_since(Instant::now())) {
            // A sanitizer writes there too.
            Ok(line) => rows.extend(serde_json::from_str::<Row>(&line).ok()),
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {
                too_slow = true;
                child.kill()?;
                break;
            }
        }
    }
    let status = child.wait()?;
    drop(reader.join());
    let text = complaints.join().unwrap_or_default();
    *error = String::from_utf8_lossy(&text).trim().chars().take(ERROR_CHARS).collect();
    Ok(match status.success() {
        _ if too_slow => State::TooSlow,
        true => State::Passed,
        false => {
            *error = format!("{status}: {error}");
            State::Crashed
        }
    })
}

/// Of what a check wrote to standard error, the beginning is kept.
const ERROR_CHARS: usize = 1500;
