//! What a client needs to speak to a model in text: tokenizer, chat template, special ids, generation defaults.
//!
//! The packager makes a [`ClientText`] from the source; it travels beside the package as the client bundle, whose
//! digest is part of the content digest, and the client makes [`Tokenizer`] and [`ChatTemplate`] from it.

use chrysalis_protocol::package::ClientBundle;
use serde::{Deserialize, Serialize};

use super::TextError;
use super::chat::ChatTemplate;
use super::tokenizer::Tokenizer;
use super::tokenizer_file::check_len;

/// The content of a client bundle, but for the licence.
#[derive(Clone, Debug, PartialEq)]
pub struct ClientText {
    /// The tokenizer.json.
    pub tokenizer_json: Vec<u8>,
    /// The chat template (Jinja); none for base models.
    pub chat_template: Option<String>,
    /// Special ids and generation defaults.
    pub config: TextConfig,
}

/// The special ids of a model and what it was tuned to be asked with.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TextConfig {
    /// Beginning of text.
    pub bos_token_id: Option<u32>,
    /// Every id that ends an answer, at most [`EOS_MAX`], the main one first.
    pub eos_token_ids: Vec<u32>,
    /// Padding.
    pub pad_token_id: Option<u32>,
    /// Whether BOS stands before every text.
    pub add_bos: bool,
    /// Defaults of the sampler.
    pub generation: GenerationDefaults,
}

/// What the model's authors ask with when nothing else is said; none where they are silent.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GenerationDefaults {
    /// Temperature; 0 is greedy.
    pub temperature: Option<f32>,
    /// Nucleus sampling.
    pub top_p: Option<f32>,
    /// Sampling among the k best.
    pub top_k: Option<u32>,
    /// Sampling above a share of the best one's probability.
    pub min_p: Option<f32>,
    /// Divides the logits of what was said before.
    pub repetition_penalty: Option<f32>,
}

impl ClientText {
    /// The bytes of a client bundle with this content and the licence's text.
    ///
    /// # Errors
    /// When a part is too long.
    pub fn to_bundle(&self, licence: Option<&str>) -> Result<Vec<u8>, TextError> {
        let config = self.config.to_json();
        let bundle = ClientBundle {
            tokenizer: &self.tokenizer_json,
            chat_template: self.chat_template.as_deref().filter(|it| !it.is_empty()),
            text_config: Some(&config),
            licence: licence.filter(|it| !it.is_empty()),
        };
        Ok(bundle.to_bytes()?)
    }

    /// The content of a client bundle, whose digest the caller has checked.
    ///
    /// # Errors
    /// When it is no client bundle, or lacks the text config.
    pub fn from_bundle(bytes: &[u8]) -> Result<Self, TextError> {
        let bundle = ClientBundle::parse(bytes)?;
        let config = bundle.text_config.ok_or(TextError::MissingFile("text config"))?;
        Ok(Self {
            tokenizer_json: bundle.tokenizer.to_vec(),
            chat_template: bundle.chat_template.map(str::to_owned),
            config: TextConfig::from_json(config)?,
        })
    }

    /// The tokenizer.
    ///
    /// # Errors
    /// See [`Tokenizer::from_json`].
    pub fn tokenizer(&self) -> Result<Tokenizer, TextError> {
        Tokenizer::from_json(&self.tokenizer_json, self.config.clone())
    }

    /// The chat template, with the names of the special tokens that `tokenizer` knows.
    ///
    /// # Errors
    /// [`TextError::NoChatTemplate`] when the model has none; see also [`ChatTemplate::new`].
    pub fn chat_template(&self, tokenizer: &Tokenizer) -> Result<ChatTemplate, TextError> {
        let source = self.chat_template.as_deref().ok_or(TextError::NoChatTemplate)?;
        let bos = self.config.bos_token_id.and_then(|id| tokenizer.token_text(id));
        let eos = self.config.eos_token_ids.first().copied();
        let eos = eos.and_then(|id| tokenizer.token_text(id));
        ChatTemplate::new(source, bos, eos)
    }
}

impl TextConfig {
    /// The configuration as JSON, the value of field 3 of the client bundle.
    pub fn to_json(&self) -> Vec<u8> {
        // Numbers, bools and lists of them: the writer cannot fail on these.
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// Reads what [`TextConfig::to_json`] wrote.
    ///
    /// # Errors
    /// When it is too long, not this JSON, or has more than [`EOS_MAX`] ends.
    pub fn from_json(json: &[u8]) -> Result<Self, TextError> {
        check_len("text config", json.len(), CONFIG_MAX)?;
        let config: Self = serde_json::from_slice(json)
            .map_err(|source| TextError::Json { file: "text config", source })?;
        check_len("list of end-of-sequence ids", config.eos_token_ids.len(), EOS_MAX)?;
        Ok(config)
    }
}

/// The most end-of-sequence ids of a model.
pub const EOS_MAX: usize = 8;
const CONFIG_MAX: usize = 16 << 10;
