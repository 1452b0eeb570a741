//! Standard output and the terminal: lines, JSON, spinners. A reader that left (a closed pipe) ends the program quietly.

use std::io::{self, Write};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use crate::error::CliError;

/// Prints a line.
///
/// # Errors
/// [`CliError::Output`].
pub fn line(text: &str) -> Result<(), CliError> {
    writeln!(io::stdout().lock(), "{text}").map_err(CliError::Output)
}

/// Prints text as it is, at once.
///
/// # Errors
/// [`CliError::Output`].
pub fn piece(text: &str) -> Result<(), CliError> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(CliError::Output)
}

/// Prints a value as JSON.
///
/// # Errors
/// [`CliError::Output`].
pub fn json(value: &impl Serialize) -> Result<(), CliError> {
    let text =
        serde_json::to_string_pretty(value).map_err(|error| CliError::Output(error.into()))?;
    line(&text)
}

/// A line for the person at the terminal, not for a script.
pub fn note(text: &str) {
    // A closed standard error takes nothing away from the result.
    drop(writeln!(io::stderr().lock(), "{text}"));
}

/// A spinner for work without a known length; hidden where nobody watches.
pub fn spinner(quiet: bool, message: &str) -> ProgressBar {
    if quiet {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new_spinner();
    bar.set_style(ProgressStyle::default_spinner());
    bar.set_message(message.to_owned());
    bar.enable_steady_tick(Duration::from_millis(120));
    bar
}
