//! What can go wrong on the way to an answer.

use std::io;

use chrysalis_attestation::policy::{Rejection, ReleaseError};
use chrysalis_models::text::TextError;
use chrysalis_protocol::ack::AckError;
use chrysalis_protocol::frame::{FrameError, FrameKind};
use chrysalis_protocol::messages::{CloseCode, MessageError, State};
use chrysalis_protocol::package::ClientBundleError;
use chrysalis_protocol::receipt::ReceiptError;
use chrysalis_protocol::request::RequestError;
use chrysalis_protocol::response::{ErrorCode, ResponseError};

use crate::address::Address;

/// Why there is no verified enclave, no release or no answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// Nobody listens there.
    #[error("cannot connect to {address}: {source}; is the enclave running?")]
    Connect {
        /// Where.
        address: Address,
        /// The system's reason.
        source: io::Error,
    },
    /// The connection broke.
    #[error("the connection broke: {0}")]
    Io(#[from] io::Error),
    /// The other end closed the connection.
    #[error("the enclave closed the connection; an answer that was under way has no final frame")]
    Closed,
    /// The other end is silent.
    #[error("the enclave has not answered for {seconds} s")]
    Silent {
        /// How long.
        seconds: u64,
    },
    /// The other end does not speak the protocol.
    #[error("the other end does not speak this protocol: {0}")]
    Frame(#[from] FrameError),
    /// A frame's body is malformed.
    #[error("the other end sent a malformed message: {0}")]
    Message(#[from] MessageError),
    /// A frame that does not belong here.
    #[error("the other end sent {found:?} where it does not belong")]
    Unexpected {
        /// Its kind.
        found: FrameKind,
    },
    /// The enclave is in another state than the call needs.
    #[error("the enclave is {}: {hint}", state_name(*state))]
    State {
        /// What it says.
        state: State,
        /// What to do.
        hint: &'static str,
    },
    /// The stream was closed with a code.
    #[error("the enclave refused: {}", close_text(*code))]
    Refused {
        /// The code.
        code: CloseCode,
    },
    /// The enclave answered with a sealed error.
    #[error("the enclave refused the request: {}", error_text(*code))]
    Answer {
        /// The code.
        code: ErrorCode,
    },
    /// The evidence was not good enough.
    #[error("the enclave was not accepted (step {step}, {code}): {0}", step = .0.step(), code = .0.code())]
    Rejected(#[from] Rejection),
    /// The request could not be sealed.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// The answer was refused: it is not authentic, or it is not whole.
    #[error("the answer was refused: {0}")]
    Response(#[from] ResponseError),
    /// The package key was not released.
    #[error(transparent)]
    Release(#[from] ReleaseError),
    /// The receipt was refused.
    #[error("the receipt was refused: {0}")]
    Receipt(#[from] ReceiptError),
    /// The receipt is another answer's, or bills what the answer does not say.
    #[error("the receipt is not this answer's: its {field} differ")]
    OtherReceipt {
        /// What it says otherwise.
        field: &'static str,
    },
    /// An ACK could not be sealed.
    #[error("the answer could not be acknowledged: {0}")]
    Ack(#[from] AckError),
    /// The client bundle is not the one that the policy names.
    #[error(
        "the client bundle has BLAKE3 {found}, which the policy does not list (client_bundles)"
    )]
    BundleDigest {
        /// Hex.
        found: String,
    },
    /// The client bundle is malformed.
    #[error("the client bundle was refused: {0}")]
    Bundle(#[from] ClientBundleError),
    /// The tokenizer or the chat template failed.
    #[error(transparent)]
    Text(#[from] TextError),
    /// The prompt holds nothing.
    #[error("the prompt is empty")]
    EmptyPrompt,
}

fn state_name(state: State) -> &'static str {
    match state {
        State::Loading => "loading its model",
        State::AwaitingKey => "waiting for its package key",
        State::Serving => "serving",
        State::Draining => "going down",
    }
}

fn close_text(code: CloseCode) -> &'static str {
    match code {
        CloseCode::Ok => "the stream ended without an answer",
        CloseCode::Busy => "it is busy; try again later",
        CloseCode::KeyUnknown => "its sealing key has changed; fetch evidence and seal again",
        CloseCode::Rejected => {
            "it rejected the request (malformed, a replay, too slow, or not allowed)"
        }
        CloseCode::Draining => "it is going down",
        CloseCode::Internal => "it had a fault",
    }
}

fn error_text(code: ErrorCode) -> &'static str {
    match code {
        ErrorCode::Malformed => "it is malformed",
        ErrorCode::TooLong => {
            "the prompt or --max-tokens is longer than the serving policy or the model allows"
        }
        ErrorCode::Unsupported => "an option is not offered, or outside its range",
        ErrorCode::Policy => "the serving policy forbids it",
        ErrorCode::Busy => "there is no room; try again later",
        ErrorCode::Draining => "it is going down",
        ErrorCode::Internal => "it had a fault",
    }
}
