//! The client bundle of a source: tokenizer, chat template, special tokens, licence.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;

use chrysalis_protocol::package::{CLIENT_BUNDLE_MAX, ClientBundle};

use super::PackError;
use crate::source::{Source, SourceError, SourceText};
use crate::text::hf::{HfFiles, client_text as text_of_files};
use crate::text::{ClientText, gguf_tokenizer};

/// The bytes of `NAME.client`.
pub(super) fn make(source: &Source) -> Result<Vec<u8>, PackError> {
    let (text, licence) = match source.text() {
        SourceText::Gguf(metadata) => (gguf_tokenizer::client_text(metadata)?, None),
        SourceText::Folder(folder) => (text_of_folder(folder)?, licence(folder)?),
    };
    let config = text.config.to_json();
    let bundle = ClientBundle {
        tokenizer: &text.tokenizer_json,
        chat_template: text.chat_template.as_deref().filter(|template| !template.is_empty()),
        text_config: Some(&config),
        licence: licence.as_deref().filter(|licence| !licence.is_empty()),
    };
    Ok(bundle.to_bytes()?)
}

fn text_of_folder(folder: &Path) -> Result<ClientText, PackError> {
    let tokenizer = read(folder, "tokenizer.json")?;
    let tokenizer_config = read(folder, "tokenizer_config.json")?;
    let special_tokens_map = read(folder, "special_tokens_map.json")?;
    let generation_config = read(folder, "generation_config.json")?;
    let config = read(folder, "config.json")?;
    let chat_template = read_text(folder, "chat_template.jinja")?;
    Ok(text_of_files(&HfFiles {
        tokenizer: tokenizer.as_deref(),
        tokenizer_config: tokenizer_config.as_deref(),
        special_tokens_map: special_tokens_map.as_deref(),
        generation_config: generation_config.as_deref(),
        config: config.as_deref(),
        chat_template: chat_template.as_deref(),
    })?)
}

/// The licence's text, where the folder has it.
fn licence(folder: &Path) -> Result<Option<String>, SourceError> {
    for name in ["LICENSE", "LICENSE.txt", "LICENSE.md"] {
        if let Some(text) = read_text(folder, name)? {
            return Ok(Some(text));
        }
    }
    Ok(None)
}

fn read_text(folder: &Path, name: &str) -> Result<Option<String>, SourceError> {
    let Some(bytes) = read(folder, name)? else {
        return Ok(None);
    };
    let text = String::from_utf8(bytes).map_err(|_| SourceError::Read {
        path: folder.join(name),
        error: io::Error::from(io::ErrorKind::InvalidData),
    })?;
    Ok(Some(text))
}

/// A file of the folder, if it is there; no larger than a client bundle may be.
fn read(folder: &Path, name: &str) -> Result<Option<Vec<u8>>, SourceError> {
    let path = folder.join(name);
    let wrap = |error| SourceError::Read { path: path.clone(), error };
    let file = match File::open(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file.map_err(wrap)?,
    };
    let (len, max) = (fs::metadata(&path).map_err(wrap)?.len(), CLIENT_BUNDLE_MAX as u64);
    if len > max {
        return Err(SourceError::TooLarge { path, len, max });
    }
    let mut bytes = Vec::new();
    file.take(max).read_to_end(&mut bytes).map_err(wrap)?;
    Ok(Some(bytes))
}
