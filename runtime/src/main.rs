//! The binary that runs inside the confidential VM.

use std::process::ExitCode;

fn main() -> ExitCode {
    chrysalis_runtime::command::main(std::env::args_os())
}
