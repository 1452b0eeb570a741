//! `chrysalis ask`: verify, seal, stream.

use std::io::Read;
use std::path::Path;
use std::time::{Duration, Instant};

use chrysalis_client::{
    AppraisalPolicy, Chat, ChatRequest, Connection, ReceiptFile, Summary, VerifiedEnclave,
};
use chrysalis_models::text::Message;
use chrysalis_protocol::request::Options;
use chrysalis_protocol::response::FinishReason;
use serde::Serialize;

use crate::args::{AskArgs, SamplingArgs};
use crate::error::CliError;
use crate::{hex, output, receipts, remote};

/// What `--json` prints.
#[derive(Debug, Serialize)]
struct Report {
    text: String,
    finish_reason: &'static str,
    prompt_tokens: u32,
    output_tokens: u32,
    time_to_first_token_s: f64,
    tokens_per_s: f64,
    content_digest: String,
    statement_digest: String,
    simulated: bool,
    receipt: String,
}

/// An answer and how long it took.
pub struct Timed {
    /// The end, verified.
    pub summary: Summary,
    /// From the sealing of the request to its first text.
    pub first: Duration,
    /// From the sealing of the request to its last text.
    pub all: Duration,
    /// The text.
    pub text: String,
    /// Whether a stop string ended it.
    pub stopped: bool,
}

/// Runs `chrysalis ask`.
///
/// # Errors
/// [`CliError::Client`] when the enclave is not accepted, refuses, or the answer is not whole.
pub fn run(args: &AskArgs) -> Result<(), CliError> {
    if args.max_tokens == 0 {
        return Err(CliError::Usage("--max-tokens is 1 or more"));
    }
    let policy = remote::policy_of_age(&args.policy, args.max_age)?;
    let mut kept = args.receipts.as_deref().map(receipt_file).transpose()?;
    let mut options = options(&args.sampling);
    if let Some(path) = &args.voucher {
        options.voucher = Some(receipts::voucher(path)?.to_vec().into());
    }
    let prompt = match args.prompt.as_str() {
        "-" => {
            let mut text = String::new();
            let input = std::io::stdin().lock().take(PROMPT_MAX).read_to_string(&mut text);
            input.map_err(CliError::io("standard input".as_ref()))?;
            text
        }
        prompt => prompt.to_owned(),
    };
    let mut connection = remote::connect(&args.connect, args.endorsements.as_deref())?;
    let enclave = connection.verify(&policy)?;
    let chat = chat(&mut connection, &policy)?;
    let request = ChatRequest {
        messages: messages(args.system.as_deref(), prompt),
        raw: args.raw,
        max_tokens: args.max_tokens,
        seed: args.sampling.seed,
        options,
        stop: args.stop.clone(),
    };
    let answer = answer(&mut connection, &enclave, &chat, &request, !args.json)?;
    if let (Some(file), Some(path)) = (&mut kept, &args.receipts) {
        file.add(&answer.summary.receipt_bytes).map_err(CliError::io(path))?;
    }
    if args.json { output::json(&report(&answer, &enclave)) } else { output::line("") }
}

fn receipt_file(path: &Path) -> Result<ReceiptFile, CliError> {
    ReceiptFile::append_to(path).map_err(CliError::io(path))
}

/// The text side of a model, from the bundle that the enclave passes on and the policy names.
///
/// # Errors
/// [`CliError::Client`].
pub fn chat(connection: &mut Connection, policy: &AppraisalPolicy) -> Result<Chat, CliError> {
    let bundle = connection.client_bundle(policy)?;
    Ok(Chat::new(&bundle)?)
}

/// The messages of one question.
pub fn messages(system: Option<&str>, prompt: String) -> Vec<Message> {
    let system = system.map(|system| Message::new("system", system));
    system.into_iter().chain([Message::new("user", prompt)]).collect()
}

/// Seals a question, streams its answer, and reads it to its verified end.
///
/// # Errors
/// [`CliError::Client`], [`CliError::Output`].
pub fn answer(
    connection: &mut Connection,
    enclave: &VerifiedEnclave,
    chat: &Chat,
    request: &ChatRequest,
    show: bool,
) -> Result<Timed, CliError> {
    let body = chat.request(request)?;
    let start = Instant::now();
    let mut answer = connection.ask(enclave, &body)?;
    let (mut first, mut last, mut text) = (None, start, String::new());
    let stopped = chat.stream(&mut answer, &request.stop, |piece| {
        last = Instant::now();
        first.get_or_insert(last);
        text.push_str(piece);
        if show { output::piece(piece) } else { Ok(()) }
    })?;
    let summary = answer.finish()?;
    let first = first.unwrap_or(last);
    Ok(Timed { summary, first: first - start, all: last - start, text, stopped })
}

/// Tokens a second from the sealing of the request to its last text, the prompt's time included.
pub fn tokens_per_s(answer: &Timed) -> f64 {
    f64::from(answer.summary.end.output_tokens) / answer.all.as_secs_f64().max(1e-3)
}

fn report(answer: &Timed, enclave: &VerifiedEnclave) -> Report {
    let end = &answer.summary.end;
    Report {
        text: answer.text.clone(),
        finish_reason: finish_reason(answer),
        prompt_tokens: end.prompt_tokens,
        output_tokens: end.output_tokens,
        time_to_first_token_s: answer.first.as_secs_f64(),
        tokens_per_s: tokens_per_s(answer),
        content_digest: hex::encode(&enclave.content_digest()),
        statement_digest: hex::encode(&enclave.statement_digest()),
        simulated: enclave.simulated(),
        receipt: hex::encode(&answer.summary.receipt_bytes),
    }
}

/// Why an answer ended, as the OpenAI interface names it where it has a name.
pub fn finish_reason(answer: &Timed) -> &'static str {
    match answer.summary.end.reason {
        FinishReason::Stop => "stop",
        // The client itself gave up what came after a stop string.
        FinishReason::Cancelled if answer.stopped => "stop",
        FinishReason::Length => "length",
        FinishReason::Cancelled => "cancelled",
        FinishReason::Error => "error",
    }
}

/// Sampling options of a request.
pub fn options(args: &SamplingArgs) -> Options {
    Options {
        temperature: args.temperature,
        top_p: args.top_p,
        top_k: args.top_k,
        min_p: args.min_p,
        repetition_penalty: args.repetition_penalty,
        ..Options::default()
    }
}

/// No prompt is longer: a request carries 8 MiB.
const PROMPT_MAX: u64 = 16 << 20;
