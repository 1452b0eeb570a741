//! Chat templates: the Jinja that a model's authors publish, run in the client as `transformers` runs it.
//!
//! Bounded by steps and by output. A template that doubles a string can still take memory beyond both: templates come
//! from the client bundle, which the content digest covers.

use std::io::{self, Write};

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde, Value};
use minijinja::{AutoEscape, Environment, Error, ErrorKind};
use serde::Serialize;

use super::TextError;
use super::tokenizer_file::check_len;

/// One message of a conversation.
#[derive(Clone, PartialEq, Eq, Serialize)]
pub struct Message {
    /// Who speaks: `system`, `user` or `assistant`.
    pub role: String,
    /// What is said.
    pub content: String,
}

impl Message {
    /// A message of `role`.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: content.into() }
    }
}

impl std::fmt::Debug for Message {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The content is somebody's secret.
        let mut out = f.debug_struct("Message");
        out.field("role", &self.role).finish_non_exhaustive()
    }
}

/// A compiled chat template.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    bos_token: Option<String>,
    eos_token: Option<String>,
    variables: Vec<(String, Value)>,
}

impl ChatTemplate {
    /// Compiles a template; `bos_token` and `eos_token` are what it may call by these names.
    ///
    /// # Errors
    /// When it is longer than [`TEMPLATE_MAX`] or not valid.
    pub fn new(
        source: &str,
        bos_token: Option<&str>,
        eos_token: Option<&str>,
    ) -> Result<Self, TextError> {
        check_len("chat template", source.len(), TEMPLATE_MAX)?;
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder()
            .trim_blocks(true)
            .lstrip_blocks(true)
            .build()
            .map_err(|error| refusal(&error))?;
        environment.set_syntax(syntax);
        environment.set_auto_escape_callback(|_| AutoEscape::None);
        environment.set_fuel(Some(FUEL));
        environment
            .set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", raise_exception);
        environment.add_filter("tojson", to_json);
        environment.add_template_owned(NAME, source.to_owned()).map_err(|error| refusal(&error))?;
        Ok(Self {
            environment,
            bos_token: bos_token.map(str::to_owned),
            eos_token: eos_token.map(str::to_owned),
            variables: Vec::new(),
        })
    }

    /// Gives the template a clock, as seconds since 1970 in UTC: it may then call `strftime_now`. Templates that show a
    /// date have a fixed one for the case that there is no clock.
    #[must_use]
    pub fn with_now(mut self, unix_seconds: u64) -> Self {
        let now = move |format: &str| strftime(format, unix_seconds);
        self.environment.add_function("strftime_now", now);
        self
    }

    /// Sets a variable that some templates know, for example `enable_thinking`.
    #[must_use]
    pub fn with_variable(mut self, name: &str, value: bool) -> Self {
        self.variables.push((name.to_owned(), Value::from(value)));
        self
    }

    /// The prompt of a conversation; with `add_generation_prompt` it ends where the assistant's answer begins.
    ///
    /// # Errors
    /// When the template refuses the messages, fails, does not end within [`FUEL`] steps or writes more than
    /// [`OUTPUT_MAX`] bytes.
    pub fn render(
        &self,
        messages: &[Message],
        add_generation_prompt: bool,
    ) -> Result<String, TextError> {
        let mut variables = self.variables.clone();
        let mut set = |name: &str, value: Value| variables.push((name.to_owned(), value));
        set("messages", Value::from(Serde(messages)));
        set("add_generation_prompt", Value::from(add_generation_prompt));
        for (name, token) in [("bos_token", &self.bos_token), ("eos_token", &self.eos_token)] {
            if let Some(token) = token {
                set(name, Value::from(token.as_str()));
            }
        }
        let template = self.environment.get_template(NAME).map_err(|error| refusal(&error))?;
        let mut output = Bounded(Vec::new());
        let context = Value::from_pairs(variables);
        template.render_captured_to(context, &mut output).map_err(|error| refusal(&error))?;
        String::from_utf8(output.0).map_err(|error| TextError::Template(error.to_string()))
    }
}

/// A writer that refuses to grow beyond [`OUTPUT_MAX`].
struct Bounded(Vec<u8>);

impl Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len().saturating_add(bytes.len()) > OUTPUT_MAX {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What a template said in `raise_exception`.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Raised(String);

fn raise_exception(message: String) -> Result<String, Error> {
    let error = Error::new(ErrorKind::InvalidOperation, "raise_exception");
    Err(error.with_source(Raised(message)))
}

fn refusal(error: &Error) -> TextError {
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        if let Some(Raised(message)) = cause.downcast_ref::<Raised>() {
            return TextError::TemplateRefused(message.clone());
        }
        if let Some(io) = cause.downcast_ref::<io::Error>()
            && io.kind() == io::ErrorKind::FileTooLarge
        {
            return TextError::TemplateOutput { max: OUTPUT_MAX };
        }
        source = cause.source();
    }
    if error.kind() == ErrorKind::OutOfFuel {
        return TextError::TemplateFuel { limit: FUEL };
    }
    TextError::Template(error.to_string())
}

/// JSON as Python's `json.dumps(value, ensure_ascii=False)` writes it, and with `indent` as it does then.
#[expect(
    clippy::needless_pass_by_value,
    reason = "minijinja hands a filter its arguments by value"
)]
fn to_json(value: &Value, options: Kwargs) -> Result<String, Error> {
    let indent: Option<usize> = options.get("indent")?;
    options.assert_all_used()?;
    let failed = |error: serde_json::Error| {
        Error::new(ErrorKind::BadSerialization, "tojson").with_source(error)
    };
    let mut out = Vec::new();
    match indent {
        None => value
            .serialize(&mut serde_json::Serializer::with_formatter(&mut out, PythonJson))
            .map_err(failed)?,
        Some(width) => {
            let spaces = " ".repeat(width.min(INDENT_MAX));
            let pretty = serde_json::ser::PrettyFormatter::with_indent(spaces.as_bytes());
            value
                .serialize(&mut serde_json::Serializer::with_formatter(&mut out, pretty))
                .map_err(failed)?;
        }
    }
    String::from_utf8(out)
        .map_err(|error| Error::new(ErrorKind::BadSerialization, error.to_string()))
}

/// Python puts a space after commas and colons.
struct PythonJson;

impl serde_json::ser::Formatter for PythonJson {
    fn begin_array_value<W: ?Sized + Write>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        out.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_key<W: ?Sized + Write>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        out.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, out: &mut W) -> io::Result<()> {
        out.write_all(b": ")
    }
}

/// The directives of C's strftime that chat templates use; others stay as they are.
fn strftime(format: &str, unix_seconds: u64) -> String {
    let (days, seconds) = (unix_seconds / 86_400, unix_seconds % 86_400);
    let (year, month, day) = civil(days);
    let name = |names: &[&'static str], index: u64| {
        let index = usize::try_from(index).unwrap_or_default();
        names.get(index).copied().unwrap_or_default()
    };
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(char) = chars.next() {
        if char != '%' {
            out.push(char);
            continue;
        }
        match chars.next() {
            Some('Y') => out.push_str(&format!("{year}")),
            Some('y') => out.push_str(&format!("{:02}", year % 100)),
            Some('m') => out.push_str(&format!("{month:02}")),
            Some('d') => out.push_str(&format!("{day:02}")),
            Some('B') => out.push_str(name(&MONTHS, month.saturating_sub(1))),
            Some('b') => out.extend(name(&MONTHS, month.saturating_sub(1)).chars().take(3)),
            Some('A') => out.push_str(name(&WEEKDAYS, days % 7)),
            Some('a') => out.extend(name(&WEEKDAYS, days % 7).chars().take(3)),
            Some('H') => out.push_str(&format!("{:02}", seconds / 3600)),
            Some('M') => out.push_str(&format!("{:02}", seconds / 60 % 60)),
            Some('S') => out.push_str(&format!("{:02}", seconds % 60)),
            Some('%') => out.push('%'),
            Some(other) => out.extend(['%', other]),
            None => out.push('%'),
        }
    }
    out
}

/// Year, month and day of a day since 1970-01-01, in the Gregorian calendar: eras of 400 years that begin in March.
fn civil(days: u64) -> (u64, u64, u64) {
    let shifted = days.saturating_add(719_468);
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let (month, next) =
        if month_from_march < 10 { (month_from_march + 3, 0) } else { (month_from_march - 9, 1) };
    (era * 400 + year_of_era + next, month, day)
}

const NAME: &str = "chat";
const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
/// From 1970-01-01, which was a Thursday.
const WEEKDAYS: [&str; 7] =
    ["Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday"];
const INDENT_MAX: usize = 16;
/// The longest template that is taken, in bytes.
pub const TEMPLATE_MAX: usize = 256 << 10;
/// The steps that a template may take.
pub const FUEL: u64 = 2_000_000;
/// The longest prompt that a template may write, in bytes.
pub const OUTPUT_MAX: usize = 4 << 20;
