//! The tokenizer of a model, from the bytes of its tokenizer.json.

use tokenizers::{Model as _, OffsetType, PreTokenizer as _};

use super::TextError;
use super::bundle::TextConfig;
use super::detokenizer::{Detokenizer, Pieces};
use super::tokenizer_file::{Parts, check_len};

/// Turns text into token ids and back.
///
/// It never writes what the post-processor of a tokenizer.json says: the one token that stands before a text, BOS, is
/// written by [`TextConfig::add_bos`], once.
pub struct Tokenizer {
    parts: Parts,
    config: TextConfig,
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer")
            .field("num_ids", &self.num_ids())
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

impl Tokenizer {
    /// A tokenizer from the bytes of a tokenizer.json (byte-pair encoding, byte-level or with byte fallback).
    ///
    /// # Errors
    /// When the file is too long, not JSON, of an unsupported kind or contradicts itself; when `config` names an id
    /// that the vocabulary does not have.
    pub fn from_json(json: &[u8], config: TextConfig) -> Result<Self, TextError> {
        let parts = Parts::parse(json)?;
        let tokenizer = Self { parts, config };
        tokenizer.check_id("bos_token_id", tokenizer.config.bos_token_id)?;
        for &id in &tokenizer.config.eos_token_ids {
            tokenizer.check_id("eos_token_ids", Some(id))?;
        }
        Ok(tokenizer)
    }

    /// The ids of a text in which special tokens are text like any other; with `add_special`, BOS before it if the
    /// model wants one.
    ///
    /// # Errors
    /// When the text is longer than [`TEXT_MAX`].
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>, TextError> {
        let ids = self.ids(text, &self.parts.plain)?;
        Ok(if add_special { self.with_bos(ids) } else { ids })
    }

    /// The ids of a rendered chat template: special tokens are parsed, and BOS stands before it if the model wants one
    /// and the template has not written it.
    ///
    /// # Errors
    /// When the text is longer than [`TEXT_MAX`].
    pub fn encode_rendered(&self, text: &str) -> Result<Vec<u32>, TextError> {
        Ok(self.with_bos(self.ids(text, &self.parts.all)?))
    }

    /// The text of these ids, without special tokens if `skip_special`. Bytes that are no UTF-8 become U+FFFD.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> String {
        let mut detokenizer = self.detokenizer(skip_special);
        let mut text: String = ids.iter().map(|&id| detokenizer.push(id)).collect();
        text.push_str(&detokenizer.finish());
        text
    }

    /// A decoder that takes the ids one at a time.
    pub fn detokenizer(&self, skip_special: bool) -> Detokenizer<'_> {
        Detokenizer::new(self, skip_special)
    }

    /// One more than the largest id that has a token.
    pub fn num_ids(&self) -> usize {
        self.parts.pieces.len()
    }

    /// The bytes that a token adds to the text; none for an id without a token.
    pub fn token_bytes(&self, id: u32) -> &[u8] {
        self.parts.pieces.piece(id)
    }

    /// The text of a token, where it is UTF-8: what a chat template knows as `bos_token`.
    pub fn token_text(&self, id: u32) -> Option<&str> {
        let bytes = self.token_bytes(id);
        std::str::from_utf8(bytes).ok().filter(|text| !text.is_empty())
    }

    /// The id of an added (special or user-defined) token.
    pub fn added_token_id(&self, token: &str) -> Option<u32> {
        self.parts.all.get_vocab().get(token).copied()
    }

    /// Whether a token is special: it is skipped by [`Tokenizer::decode`] and never made from plain text.
    pub fn is_special(&self, id: u32) -> bool {
        self.parts.pieces.is_special(id)
    }

    /// The special ids and generation defaults that came with the tokenizer.
    pub fn config(&self) -> &TextConfig {
        &self.config
    }

    pub(super) fn pieces(&self) -> &Pieces {
        &self.parts.pieces
    }

    fn ids(&self, text: &str, added: &tokenizers::AddedVocabulary) -> Result<Vec<u32>, TextError> {
        check_len("text", text.len(), TEXT_MAX)?;
        let failed = |error: tokenizers::Error| TextError::Encode(error.to_string());
        let mut pieces = added.extract_and_normalize(self.parts.normalizer.as_ref(), text);
        if let Some(pre_tokenizer) = &self.parts.pre_tokenizer {
            pre_tokenizer.pre_tokenize(&mut pieces).map_err(failed)?;
        }
        pieces.tokenize(|piece| self.parts.model.tokenize(piece.get())).map_err(failed)?;
        let encoding = pieces.into_encoding(None, 0, OffsetType::None).map_err(failed)?;
        Ok(encoding.get_ids().to_vec())
    }

    fn with_bos(&self, mut ids: Vec<u32>) -> Vec<u32> {
        if let Some(bos) = self.config.bos_token_id
            && self.config.add_bos
            && ids.first() != Some(&bos)
        {
            ids.insert(0, bos);
        }
        ids
    }

    fn check_id(&self, what: &'static str, id: Option<u32>) -> Result<(), TextError> {
        match id {
            Some(id) if self.token_bytes(id).is_empty() => {
                Err(TextError::UnknownToken { what, token: id.to_string() })
            }
            _ => Ok(()),
        }
    }
}

/// The longest text that is tokenised, in bytes.
pub const TEXT_MAX: usize = 4 << 20;
