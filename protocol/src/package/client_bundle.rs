//! `NAME.client`: what a client needs to talk to the model (docs/formats.md, section 2).
//!
//! `CHRY-CB1`, then entries type u16 | zero u16 | len u32 | value in ascending order, none twice,
//! none empty. The enclave never opens it in token-id mode; the meta carries its length and hash.

use super::error::ClientBundleError;
use crate::codec::{Reader, Writer};

/// Longest client bundle in bytes.
pub const CLIENT_BUNDLE_MAX: usize = 64 << 20;

/// The parts of a client bundle, borrowed from its bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClientBundle<'a> {
    /// `tokenizer.json`.
    pub tokenizer: &'a [u8],
    /// The chat template; a base model has none.
    pub chat_template: Option<&'a str>,
    /// Special tokens and the like; read by clients only.
    pub text_config: Option<&'a [u8]>,
    /// The licence's text.
    pub licence: Option<&'a str>,
}

impl<'a> ClientBundle<'a> {
    /// The file's bytes.
    ///
    /// # Errors
    /// What [`Self::parse`] would refuse.
    pub fn to_bytes(&self) -> Result<Vec<u8>, ClientBundleError> {
        let mut out = Writer::new();
        out.bytes(MAGIC);
        let entries = [
            (TOKENIZER, Some(self.tokenizer).filter(|tokenizer| !tokenizer.is_empty())),
            (CHAT_TEMPLATE, self.chat_template.map(str::as_bytes)),
            (TEXT_CONFIG, self.text_config),
            (LICENCE, self.licence.map(str::as_bytes)),
        ];
        for (kind, value) in entries {
            let Some(value) = value else { continue };
            out.u16(kind).u16(0).u32(u32::try_from(value.len()).unwrap_or(u32::MAX)).bytes(value);
        }
        let bytes = out.into_bytes();
        ClientBundle::parse(&bytes)?;
        Ok(bytes)
    }

    /// Reads a client bundle; nothing is copied.
    ///
    /// # Errors
    /// [`ClientBundleError`], naming the entry.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, ClientBundleError> {
        if bytes.len() > CLIENT_BUNDLE_MAX {
            return Err(ClientBundleError::TooLong { found: bytes.len(), max: CLIENT_BUNDLE_MAX });
        }
        let mut input = Reader::new(bytes);
        input.magic(MAGIC)?;
        let mut bundle = Self::default();
        let mut before = 0;
        while !input.is_empty() {
            let found = input.u16()?;
            input.zeros(2)?;
            let len = usize::try_from(input.u32()?).unwrap_or(usize::MAX);
            let value = input.bytes(len)?;
            if found <= before {
                return Err(ClientBundleError::Order { found, before });
            }
            if value.is_empty() {
                return Err(ClientBundleError::Empty { found });
            }
            before = found;
            bundle.set(found, value)?;
        }
        if bundle.tokenizer.is_empty() {
            return Err(ClientBundleError::NoTokenizer);
        }
        Ok(bundle)
    }

    fn set(&mut self, found: u16, value: &'a [u8]) -> Result<(), ClientBundleError> {
        let text = || {
            str::from_utf8(value)
                .map_err(|error| ClientBundleError::NotUtf8 { found, at: error.valid_up_to() })
        };
        match found {
            TOKENIZER => self.tokenizer = value,
            CHAT_TEMPLATE => self.chat_template = Some(text()?),
            TEXT_CONFIG => self.text_config = Some(value),
            LICENCE => self.licence = Some(text()?),
            _ => return Err(ClientBundleError::UnknownType { found }),
        }
        Ok(())
    }
}

const MAGIC: &[u8; 8] = b"CHRY-CB1";
const TOKENIZER: u16 = 1;
const CHAT_TEMPLATE: u16 = 2;
const TEXT_CONFIG: u16 = 3;
const LICENCE: u16 = 4;
