//! The command line tool `chrysalis`: pack, serve, release, verify, ask, measure. The enclave's program is in it too, so
//! that a demo needs one file.
#![expect(unreachable_pub, reason = "in a program, pub says what a module offers to the others")]

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use chrysalis_protocol::hex;
use clap::Parser;

use crate::args::{Cli, Command};
use crate::error::CliError;

mod args;
mod ask;
mod bench;
mod demo;
mod doctor;
mod endorsements;
mod engine_setup;
mod error;
mod eval;
mod inspect;
mod key_broker;
mod key_file;
mod measure;
mod model_cache;
mod output;
mod pack;
mod policy_file;
mod receipts;
mod relay;
mod release;
mod remote;
mod serve;
mod verify;
mod wanted;

fn main() -> ExitCode {
    if let Some(args) = enclave_args(std::env::args_os()) {
        return chrysalis_runtime::command::main(args);
    }
    match run(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.is_closed_pipe() => ExitCode::SUCCESS,
        Err(error) => {
            output::note(&format!("chrysalis: {}", error.describe()));
            ExitCode::from(error.exit_code())
        }
    }
}

fn run(command: Command) -> Result<(), CliError> {
    match command {
        Command::Demo(args) => demo::run(&args),
        Command::Pack(args) => pack::run(&args),
        Command::Inspect(args) => inspect::run(&args),
        Command::Serve(args) => serve::run(&args),
        Command::Relay(args) => relay::run(&args),
        Command::Release(args) => release::run(&args),
        Command::KeyBroker(args) => key_broker::run(&args),
        Command::Verify(args) => verify::run(&args),
        Command::Measure(args) => measure::run(&args),
        Command::Doctor(args) => doctor::run(&args),
        Command::Receipts(args) => receipts::run(&args),
        Command::Ask(args) => ask::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Eval(args) => eval::run(&args),
    }
}

/// The command line of the enclave's program, when this process was started in its role: under its name, or with
/// `enclave` as the first argument.
fn enclave_args(args: impl IntoIterator<Item = OsString>) -> Option<Vec<OsString>> {
    let mut args = args.into_iter();
    let named = args
        .next()
        .is_some_and(|name| Path::new(&name).file_name().is_some_and(|name| name == ENCLAVE));
    let mut rest: Vec<OsString> = args.collect();
    if !named {
        if rest.first().is_none_or(|first| first != ENCLAVE_ROLE) {
            return None;
        }
        rest.remove(0);
    }
    rest.insert(0, ENCLAVE.into());
    Some(rest)
}

/// The name of the enclave's program.
const ENCLAVE: &str = "chrysalis-enclave";
/// The hidden first argument that stands for that name.
const ENCLAVE_ROLE: &str = "enclave";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_enclave_role_is_taken_by_name_or_by_first_argument_only() {
        let role = |args: &[&str]| {
            let args = enclave_args(args.iter().map(OsString::from))?;
            Some(args.into_iter().map(|arg| arg.into_string().unwrap()).collect::<Vec<_>>())
        };
        let expected = Some(vec![ENCLAVE.to_owned(), "--help".to_owned()]);
        assert_eq!(role(&["chrysalis", "enclave", "--help"]), expected);
        assert_eq!(role(&["/usr/bin/chrysalis-enclave", "--help"]), expected);
        assert_eq!(role(&["chrysalis", "ask", "enclave"]), None);
        assert_eq!(role(&["chrysalis"]), None);
    }
}
