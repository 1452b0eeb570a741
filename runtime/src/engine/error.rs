//! What the engine refuses, and what can go wrong in a step. No variant holds a token.

use chrysalis_models::decoder::ModelError;
use thiserror::Error;

/// Why a sequence was not taken.
#[derive(Clone, Debug, Error, PartialEq)]
#[non_exhaustive]
pub enum AddError {
    /// Every place among the waiting sequences is taken.
    #[error("{sequences} sequences are in the engine, at most {max}")]
    Busy {
        /// Sequences in the engine, waiting or running.
        sequences: usize,
        /// What the limits allow.
        max: usize,
    },
    /// A sequence with this identifier has not finished yet.
    #[error("the sequence id is in use")]
    IdInUse,
    /// There is nothing to continue.
    #[error("the prompt is empty")]
    PromptEmpty,
    /// The prompt is longer than the serving limit.
    #[error("the prompt has {tokens} tokens, at most {max}")]
    PromptTooLong {
        /// Tokens in the prompt.
        tokens: usize,
        /// What the limits allow.
        max: usize,
    },
    /// No output is asked for.
    #[error("the output limit is zero")]
    OutputZero,
    /// More output is asked for than the serving limit.
    #[error("an output of {tokens} tokens is asked for, at most {max}")]
    OutputTooLong {
        /// Tokens asked for.
        tokens: usize,
        /// What the limits allow.
        max: usize,
    },
    /// Prompt and output together fit neither the model nor the KV cache, even alone.
    #[error("prompt and output have {tokens} tokens, at most {max}")]
    ContextTooLong {
        /// Prompt and largest output together.
        tokens: usize,
        /// The smaller of the model's context and the whole KV cache.
        max: usize,
    },
    /// A token of the prompt is not in the vocabulary.
    #[error("token {index} of the prompt is not among {vocab_size}")]
    TokenOutOfRange {
        /// Where it stands in the prompt.
        index: usize,
        /// Size of the vocabulary.
        vocab_size: usize,
    },
    /// An entry of the logit bias is not about a token of the vocabulary.
    #[error("entry {index} of the logit bias is not among {vocab_size}")]
    BiasOutOfRange {
        /// Where it stands in the list.
        index: usize,
        /// Size of the vocabulary.
        vocab_size: usize,
    },
    /// More stop tokens than the engine compares.
    #[error("{tokens} stop tokens, at most {max}")]
    TooManyStopTokens {
        /// Stop tokens given.
        tokens: usize,
        /// The most.
        max: usize,
    },
    /// More alternatives for each token than are reported.
    #[error("{wanted} alternatives for each token, at most {max}")]
    TooManyLogprobs {
        /// Alternatives asked for.
        wanted: u8,
        /// The most.
        max: u8,
    },
    /// A sampling parameter is outside its range.
    #[error(transparent)]
    Sampling(#[from] SamplingError),
}

/// A sampling parameter outside its range.
#[derive(Clone, Debug, Error, PartialEq)]
#[non_exhaustive]
pub enum SamplingError {
    /// A number is outside its range, or not a number.
    #[error("{name} is {value}, outside {min}..={max}")]
    OutOfRange {
        /// The parameter.
        name: &'static str,
        /// What was given.
        value: f32,
        /// The smallest allowed.
        min: f32,
        /// The largest allowed.
        max: f32,
    },
    /// Too many entries in the logit bias.
    #[error("the logit bias has {entries} entries, at most {max}")]
    BiasTooLong {
        /// Entries given.
        entries: usize,
        /// The most.
        max: usize,
    },
}

/// Why an engine cannot be built, or a step did not produce what it should have.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum EngineError {
    /// A limit of the engine or of the model leaves no room for any sequence.
    #[error("{name} is zero")]
    LimitZero {
        /// The limit.
        name: &'static str,
    },
    /// The model failed, or lost what it had made; every sequence of the step ended with an error. The engine can go on;
    /// `failures` tells how often in a row this happened.
    #[error("the forward pass failed {failures} times in a row")]
    Forward {
        /// Failed steps in a row, this one included.
        failures: u32,
        /// What the model says.
        source: ModelError,
    },
    /// Blocks that sequences gave up could not be cleared; no step runs until they are.
    #[error("freed blocks could not be cleared")]
    Clear {
        /// What the model says.
        source: ModelError,
    },
    /// The logits of a sequence, for its log-probabilities, could not be read; that sequence ended with an error. The engine
    /// can go on; `failures` tells how often in a row this happened.
    #[error("reading logits failed {failures} times in a row")]
    Logits {
        /// Failed steps in a row, this one included.
        failures: u32,
        /// What the model says.
        source: ModelError,
    },
}
