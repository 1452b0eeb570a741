//! A whole client: connect, verify, seal, stream.
//!
//! `cargo run -p chrysalis-client --example ask -- unix:/tmp/enclave.sock NAME.policy.toml "Why is the sky blue?"`

use std::error::Error;
use std::fs;
use std::io::{self, Write};

use chrysalis_client::{AppraisalPolicy, Chat, ChatRequest, ClientError, Connection};
use chrysalis_models::text::Message;
use chrysalis_protocol::request::Options;

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [address, policy, prompt] = args.as_slice() else {
        return Err("ADDR, POLICY and PROMPT".into());
    };
    let policy = AppraisalPolicy::from_toml(&fs::read_to_string(policy)?)?;

    let mut connection = Connection::open(&address.parse()?)?;
    // The one source of a `VerifiedEnclave`: without it there is nothing to ask.
    let enclave = connection.verify(&policy)?;
    let chat = Chat::new(&connection.client_bundle(&policy)?)?;
    let request = chat.request(&ChatRequest {
        messages: vec![Message::new("user", prompt)],
        raw: chat.template().is_err(),
        max_tokens: 200,
        seed: None,
        options: Options::default(),
        stop: Vec::new(),
    })?;

    let mut answer = connection.ask(&enclave, &request)?;
    chat.stream(&mut answer, &[], |piece| {
        io::stdout().write_all(piece.as_bytes())?;
        Ok::<_, Failure>(io::stdout().flush()?)
    })?;
    // Only now it is known that the answer is whole.
    let summary = answer.finish()?;
    writeln!(io::stdout(), "\n{} tokens", summary.end.output_tokens)?;
    Ok(())
}

/// What can go wrong while an answer is printed.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error(transparent)]
    Print(#[from] io::Error),
}
