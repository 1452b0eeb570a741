//! What the files of a Hugging Face folder say about text.

use serde_json::Value;

use super::TextError;
use super::bundle::{ClientText, EOS_MAX, GenerationDefaults, TextConfig};
use super::tokenizer::Tokenizer;
use super::tokenizer_file::{TOKENIZER_JSON_MAX, check_len};

/// The contents of the files; only the first is required.
#[derive(Clone, Copy, Debug, Default)]
pub struct HfFiles<'a> {
    /// tokenizer.json.
    pub tokenizer: Option<&'a [u8]>,
    /// tokenizer_config.json.
    pub tokenizer_config: Option<&'a [u8]>,
    /// special_tokens_map.json.
    pub special_tokens_map: Option<&'a [u8]>,
    /// generation_config.json.
    pub generation_config: Option<&'a [u8]>,
    /// config.json, asked for the ids that the files above leave out.
    pub config: Option<&'a [u8]>,
    /// chat_template.jinja; it wins over the template in tokenizer_config.json.
    pub chat_template: Option<&'a str>,
}

/// Everything that a Hugging Face folder says about text.
///
/// # Errors
/// When tokenizer.json is missing or refused, or another file is not JSON.
pub fn client_text(files: &HfFiles<'_>) -> Result<ClientText, TextError> {
    let tokenizer_json = files.tokenizer.ok_or(TextError::MissingFile("tokenizer.json"))?;
    check_len("tokenizer.json", tokenizer_json.len(), TOKENIZER_JSON_MAX)?;
    let tokenizer_config = json("tokenizer_config.json", files.tokenizer_config)?;
    let special_tokens = json("special_tokens_map.json", files.special_tokens_map)?;
    let generation = json("generation_config.json", files.generation_config)?;
    let model = json("config.json", files.config)?;
    let tokenizer = Tokenizer::from_json(tokenizer_json, TextConfig::default())?;

    let named = |name: &str| {
        let token = token_of(&tokenizer_config, name).or_else(|| token_of(&special_tokens, name));
        token.and_then(|token| tokenizer.added_token_id(token))
    };
    let numbered = |name: &str| ids_of(&generation, name).chain(ids_of(&model, name));
    let first = first_token(&json("tokenizer.json", Some(tokenizer_json))?);
    let first_id = first.as_deref().and_then(|token| tokenizer.added_token_id(token));
    let bos_token_id = named("bos_token").or_else(|| numbered("bos_token_id").next()).or(first_id);
    let says_add_bos = tokenizer_config.get("add_bos_token").and_then(Value::as_bool);
    let adds_bos = first_id.is_some() && first_id == bos_token_id;

    let mut eos_token_ids: Vec<u32> = Vec::new();
    for id in named("eos_token").into_iter().chain(numbered("eos_token_id")) {
        if !eos_token_ids.contains(&id) && eos_token_ids.len() < EOS_MAX {
            eos_token_ids.push(id);
        }
    }
    let chat_template = files.chat_template.map(str::to_owned);
    Ok(ClientText {
        tokenizer_json: tokenizer_json.to_vec(),
        chat_template: chat_template.or_else(|| template_of(&tokenizer_config)),
        config: TextConfig {
            bos_token_id,
            eos_token_ids,
            pad_token_id: named("pad_token").or_else(|| numbered("pad_token_id").next()),
            add_bos: says_add_bos.unwrap_or(adds_bos) && bos_token_id.is_some(),
            generation: defaults_of(&generation),
        },
    })
}

fn json(file: &'static str, bytes: Option<&[u8]>) -> Result<Value, TextError> {
    let Some(bytes) = bytes else {
        return Ok(Value::Null);
    };
    serde_json::from_slice(bytes).map_err(|source| TextError::Json { file, source })
}

/// A token is named by its text, or by an object that has it as `content`.
fn token_of<'a>(file: &'a Value, name: &str) -> Option<&'a str> {
    let token = file.get(name)?;
    token.as_str().or_else(|| token.get("content")?.as_str())
}

/// One id or a list of ids.
fn ids_of<'a>(file: &'a Value, name: &str) -> impl Iterator<Item = u32> + use<'a> {
    let value = file.get(name);
    let list = value.and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let ids = value.into_iter().chain(list).filter_map(Value::as_u64);
    ids.filter_map(|id| u32::try_from(id).ok())
}

/// The special token that the post-processor writes before a text.
fn first_token(tokenizer: &Value) -> Option<String> {
    let post = tokenizer.get("post_processor")?;
    let list = post.get("processors").and_then(Value::as_array);
    let mut all = std::iter::once(post).chain(list.into_iter().flatten());
    all.find_map(|processor| {
        let token = processor.get("single")?.get(0)?.get("SpecialToken")?;
        token.get("id")?.as_str().map(str::to_owned)
    })
}

/// A template is a string, or a list of named ones of which `default` is taken.
fn template_of(tokenizer_config: &Value) -> Option<String> {
    let template = tokenizer_config.get("chat_template")?;
    if let Some(text) = template.as_str() {
        return Some(text.to_owned());
    }
    let named = template.as_array()?.iter();
    let mut default = named.filter(|it| it.get("name").is_some_and(|name| name == "default"));
    default.next()?.get("template")?.as_str().map(str::to_owned)
}

fn defaults_of(generation: &Value) -> GenerationDefaults {
    let float = |name: &str| generation.get(name).and_then(Value::as_f64).map(|it| it as f32);
    let greedy = generation.get("do_sample") == Some(&Value::Bool(false));
    let top_k = generation.get("top_k").and_then(Value::as_u64);
    GenerationDefaults {
        temperature: if greedy { Some(0.0) } else { float("temperature") },
        top_p: float("top_p"),
        top_k: top_k.and_then(|it| u32::try_from(it).ok()),
        min_p: float("min_p"),
        repetition_penalty: float("repetition_penalty"),
    }
}
