//! Text at the two ends of a request: chat template, tokenizer, detokenizer, stop strings; for clients and the packager.
//!
//! Never in the enclave: the request and its answer are token ids (architecture.md, "A request's bytes").

pub mod bundle;
pub mod chat;
pub mod detokenizer;
#[cfg(feature = "pack")]
pub mod gguf_tokenizer;
#[cfg(feature = "pack")]
pub mod hf;
pub mod stop;
pub mod tokenizer;
mod tokenizer_file;

pub use bundle::{ClientText, GenerationDefaults, TextConfig};
pub use chat::{ChatTemplate, Message};
pub use detokenizer::Detokenizer;
pub use stop::StopMatcher;
pub use tokenizer::Tokenizer;

/// Why a text, a tokenizer or a chat template was refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TextError {
    /// A file or a text is longer than its limit.
    #[error("{what} is {len} bytes long, the limit is {max}")]
    TooLong {
        /// What is too long.
        what: &'static str,
        /// Its length in bytes.
        len: usize,
        /// The limit in bytes.
        max: usize,
    },
    /// A JSON file is not JSON or does not have the expected fields.
    #[error("{file}: {source}")]
    Json {
        /// The file's name.
        file: &'static str,
        /// What the JSON reader says.
        source: serde_json::Error,
    },
    /// A required file is not there.
    #[error("there is no {0}")]
    MissingFile(&'static str),
    /// A part of tokenizer.json has a type that no supported model uses.
    #[error("tokenizer.json: {part} of type {kind:?} is not supported")]
    UnsupportedPart {
        /// The part: model, normalizer, pre_tokenizer or decoder.
        part: &'static str,
        /// The type that the file names.
        kind: String,
    },
    /// A part of tokenizer.json contradicts itself or another one.
    #[error("tokenizer.json: {part}: {reason}")]
    BadPart {
        /// The part: model, added_tokens, normalizer, pre_tokenizer or decoder.
        part: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// A token id lies outside the range that a vocabulary may have.
    #[error("token {token:?} has the id {id}, the limit is {max}")]
    IdTooLarge {
        /// The token.
        token: String,
        /// Its id.
        id: u32,
        /// One more than the largest id that is taken.
        max: u32,
    },
    /// A token is named that the vocabulary does not have.
    #[error("{what} names the token {token:?}, which is not in the vocabulary")]
    UnknownToken {
        /// Who names it.
        what: &'static str,
        /// The token, or its id in decimal.
        token: String,
    },
    /// The tokenizer failed on a text.
    #[error("the tokenizer failed: {0}")]
    Encode(String),
    /// A GGUF file's tokenizer is of a kind that this version does not know.
    #[error("tokenizer kind {0:?} of the GGUF file is not supported (supported: gpt2, llama)")]
    UnknownKind(String),
    /// A GGUF file's pre-tokenizer is one that this version does not know.
    #[error("pre-tokenizer {0:?} of the GGUF file is not supported")]
    UnknownPreTokenizer(String),
    /// Two arrays of a GGUF tokenizer do not fit each other.
    #[error("{what} has {found} entries, the vocabulary has {expected}")]
    LengthMismatch {
        /// The metadata key.
        what: &'static str,
        /// Its number of entries.
        found: usize,
        /// The number of tokens.
        expected: usize,
    },
    /// Two ids of a vocabulary have the same text.
    #[error("the ids {first} and {second} both stand for the token {token:?}")]
    DuplicateToken {
        /// The token.
        token: String,
        /// The id that had it first.
        first: u32,
        /// The id that has it too.
        second: u32,
    },
    /// The metadata of a GGUF file lacks a key or has it with another type.
    #[cfg(feature = "pack")]
    #[error(transparent)]
    Gguf(#[from] crate::source::gguf::GgufError),
    /// A client bundle was refused.
    #[error(transparent)]
    Bundle(#[from] chrysalis_protocol::package::ClientBundleError),
    /// The model has no chat template.
    #[error(
        "this model has no chat template (a base model?); use --raw to send the prompt as it is"
    )]
    NoChatTemplate,
    /// The chat template is not valid or failed while it ran.
    #[error("chat template: {0}")]
    Template(String),
    /// The chat template refused the messages by `raise_exception`.
    #[error("the chat template refuses these messages: {0}")]
    TemplateRefused(String),
    /// The chat template used up its steps.
    #[error("the chat template did not end within {limit} steps")]
    TemplateFuel {
        /// The number of steps that it had.
        limit: u64,
    },
    /// The chat template wrote more than it may.
    #[error("the chat template wrote more than {max} bytes")]
    TemplateOutput {
        /// The limit in bytes.
        max: usize,
    },
}
