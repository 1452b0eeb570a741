//! A tokenizer.json from the metadata of a GGUF file, with the ids that llama.cpp gives.
//!
//! Two kinds: `gpt2` is byte-level BPE whose merges are in the file; `llama` is SentencePiece, whose merges follow
//! from the scores. One difference on purpose: a text never becomes a control token by merging.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::{Value, json};

use super::TextError;
use super::bundle::{ClientText, EOS_MAX, GenerationDefaults, TextConfig};
use super::tokenizer_file::MARK;
use crate::source::gguf::Metadata;

/// Everything that a GGUF file says about text.
///
/// # Errors
/// When a key is missing or has another type, when the kind or the pre-tokenizer is not known, or when the vocabulary
/// contradicts itself.
pub fn client_text(metadata: &Metadata) -> Result<ClientText, TextError> {
    let kind = metadata.require(MODEL, metadata.text(MODEL)?)?;
    let vocabulary = Vocabulary::read(metadata)?;
    let (file, add_bos) = match kind {
        "gpt2" => byte_level(&vocabulary, metadata)?,
        "llama" => sentence_piece(&vocabulary, metadata)?,
        other => return Err(TextError::UnknownKind(other.to_owned())),
    };
    let tokenizer_json = serde_json::to_vec(&file)
        .map_err(|source| TextError::Json { file: "tokenizer.json", source })?;
    Ok(ClientText {
        tokenizer_json,
        chat_template: metadata.text("tokenizer.chat_template")?.map(str::to_owned),
        config: config(&vocabulary, metadata, add_bos)?,
    })
}

fn config(
    vocabulary: &Vocabulary<'_>,
    metadata: &Metadata,
    default_add_bos: bool,
) -> Result<TextConfig, TextError> {
    let bos_token_id = metadata.u32("tokenizer.ggml.bos_token_id")?;
    let add_bos = metadata.bool("tokenizer.ggml.add_bos_token")?;
    let mut eos_token_ids = Vec::new();
    for key in ["eos_token_id", "eot_token_id", "eom_token_id"] {
        eos_token_ids.extend(metadata.u32(&format!("tokenizer.ggml.{key}"))?);
    }
    // Files often name one end only, and chat models have two.
    let by_name = ENDS.iter().filter_map(|end| vocabulary.ids.get(end).copied());
    eos_token_ids.extend(by_name.filter(|&id| vocabulary.type_of(id) == CONTROL));
    let mut seen = Vec::new();
    eos_token_ids.retain(|id| {
        let new = !seen.contains(id);
        seen.push(*id);
        new
    });
    eos_token_ids.truncate(EOS_MAX);
    Ok(TextConfig {
        bos_token_id,
        eos_token_ids,
        pad_token_id: metadata.u32("tokenizer.ggml.padding_token_id")?,
        add_bos: add_bos.unwrap_or(default_add_bos) && bos_token_id.is_some(),
        generation: GenerationDefaults::default(),
    })
}

/// The tokens of a file, their ids and types.
struct Vocabulary<'a> {
    tokens: &'a [String],
    ids: BTreeMap<&'a str, u32>,
    types: Option<&'a [i64]>,
}

impl<'a> Vocabulary<'a> {
    fn read(metadata: &'a Metadata) -> Result<Self, TextError> {
        let tokens = metadata.require(TOKENS, metadata.texts(TOKENS)?)?;
        let types = metadata.integers(TYPES)?;
        if let Some(types) = types {
            check_count(TYPES, types.len(), tokens.len())?;
        }
        let mut ids = BTreeMap::new();
        for (id, token) in (0u32..).zip(tokens) {
            if let Some(first) = ids.insert(token.as_str(), id) {
                return Err(TextError::DuplicateToken { token: token.clone(), first, second: id });
            }
        }
        Ok(Self { tokens, ids, types })
    }

    fn type_of(&self, id: u32) -> i64 {
        let of_id = |types: &[i64]| types.get(id as usize).copied();
        self.types.and_then(of_id).unwrap_or(NORMAL)
    }

    /// Tokens that are found in a text before it is split: control tokens where they are asked for, the user's always.
    fn added(&self) -> Vec<AddedOut<'a>> {
        let ids = (0u32..).zip(self.tokens);
        ids.filter(|&(id, token)| {
            matches!(self.type_of(id), UNKNOWN | CONTROL | USER_DEFINED) && !token.is_empty()
        })
        .map(|(id, token)| AddedOut {
            id,
            content: token,
            single_word: false,
            lstrip: false,
            rstrip: false,
            normalized: false,
            special: self.type_of(id) != USER_DEFINED,
        })
        .collect()
    }
}

fn byte_level<'a>(
    vocabulary: &Vocabulary<'a>,
    metadata: &'a Metadata,
) -> Result<(FileOut<'a>, bool), TextError> {
    let pre = metadata.text(PRE)?.unwrap_or("default");
    let style = PreStyle::of(pre).ok_or_else(|| TextError::UnknownPreTokenizer(pre.to_owned()))?;
    let merges = metadata.require(MERGES, metadata.texts(MERGES)?)?;
    let merges: Option<Vec<(&str, &str)>> =
        merges.iter().map(|merge| merge.split_once(' ')).collect();
    let merges = merges.ok_or_else(|| TextError::BadPart {
        part: "model",
        reason: "a merge is not two tokens".to_owned(),
    })?;
    let mut steps: Vec<Value> = style
        .splits
        .iter()
        .map(|regex| {
            json!({"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": false})
        })
        .collect();
    steps.push(json!({
        "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false
    }));
    let file = FileOut {
        version: "1.0",
        truncation: (),
        padding: (),
        added_tokens: vocabulary.added(),
        normalizer: if style.nfc { json!({"type": "NFC"}) } else { Value::Null },
        pre_tokenizer: json!({"type": "Sequence", "pretokenizers": steps}),
        post_processor: (),
        decoder: json!({
            "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false
        }),
        model: ModelOut {
            kind: "BPE",
            unk_token: None,
            fuse_unk: false,
            byte_fallback: false,
            ignore_merges: style.whole_words,
            vocab: vocabulary.ids.clone(),
            merges,
        },
    };
    Ok((file, style.add_bos))
}

fn sentence_piece<'a>(
    vocabulary: &Vocabulary<'a>,
    metadata: &'a Metadata,
) -> Result<(FileOut<'a>, bool), TextError> {
    let scores = metadata.require(SCORES, metadata.floats(SCORES)?)?;
    check_count(SCORES, scores.len(), vocabulary.tokens.len())?;
    let prefix = metadata.bool("tokenizer.ggml.add_space_prefix")?.unwrap_or(true);
    let mark_spaces = json!({"type": "Replace", "pattern": {"String": " "}, "content": MARK});
    let normalizer = if prefix {
        let prepend = json!({"type": "Prepend", "prepend": MARK});
        json!({"type": "Sequence", "normalizers": [prepend, mark_spaces]})
    } else {
        mark_spaces
    };
    let mut decoders = vec![
        json!({"type": "Replace", "pattern": {"String": MARK}, "content": " "}),
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
    ];
    if prefix {
        decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    let unknown = metadata.u32("tokenizer.ggml.unknown_token_id")?;
    let unknown = unknown.and_then(|id| vocabulary.tokens.get(id as usize));
    let file = FileOut {
        version: "1.0",
        truncation: (),
        padding: (),
        added_tokens: vocabulary.added(),
        normalizer,
        pre_tokenizer: Value::Null,
        post_processor: (),
        decoder: json!({"type": "Sequence", "decoders": decoders}),
        model: ModelOut {
            kind: "BPE",
            unk_token: unknown.map(String::as_str),
            fuse_unk: true,
            byte_fallback: true,
            ignore_merges: false,
            vocab: vocabulary.ids.clone(),
            merges: merges_of_scores(vocabulary, scores),
        },
    };
    Ok((file, true))
}

/// The merges that SentencePiece makes: the best score first, whatever the two parts are. Parts of one token are
/// ordered by their ids, as the published tokenizer.json files have them.
fn merges_of_scores<'a>(vocabulary: &Vocabulary<'a>, scores: &[f32]) -> Vec<(&'a str, &'a str)> {
    let mut merges: Vec<(f32, u32, u32, u32)> = Vec::new();
    for ((id, token), &score) in (0u32..).zip(vocabulary.tokens).zip(scores) {
        if !matches!(vocabulary.type_of(id), NORMAL | UNUSED) {
            continue;
        }
        for (at, _) in token.char_indices().skip(1) {
            let (left, right) = token.split_at(at);
            if let (Some(&left), Some(&right)) =
                (vocabulary.ids.get(left), vocabulary.ids.get(right))
            {
                merges.push((score, id, left, right));
            }
        }
    }
    merges.sort_unstable_by(|one, other| {
        let by_score = other.0.total_cmp(&one.0);
        by_score.then_with(|| (one.1, one.2, one.3).cmp(&(other.1, other.2, other.3)))
    });
    let text = |id: u32| vocabulary.tokens.get(id as usize).map(String::as_str);
    merges.into_iter().filter_map(|(_, _, left, right)| text(left).zip(text(right))).collect()
}

fn check_count(what: &'static str, found: usize, expected: usize) -> Result<(), TextError> {
    if found != expected {
        return Err(TextError::LengthMismatch { what, found, expected });
    }
    Ok(())
}

/// How a byte-level tokenizer cuts a text before it merges.
struct PreStyle {
    /// Applied one after the other; each match and each gap is a piece of its own.
    splits: &'static [&'static str],
    /// A piece that is a token is taken whole, without merging.
    whole_words: bool,
    /// Whether BOS stands before a text when the file does not say.
    add_bos: bool,
    nfc: bool,
}

impl PreStyle {
    /// The style of a value of `tokenizer.ggml.pre`.
    fn of(name: &str) -> Option<Self> {
        let style = |splits, whole_words, add_bos, nfc| Self { splits, whole_words, add_bos, nfc };
        Some(match name {
            "default" => {
                style(&[PUNCTUATION, GPT2, r"\p{N}+", "[0-9][0-9][0-9]"], false, false, false)
            }
            "gpt-2" | "phi-2" | "olmo" | "mpt" => style(&[GPT2], false, false, false),
            "smollm" | "starcoder" | "refact" | "command-r" | "codeshell" => {
                style(&[r"\p{N}", GPT2], false, false, false)
            }
            "llama3" | "llama-v3" | "llama-bpe" | "falcon3" => style(&[LLAMA3], true, true, false),
            "qwen2" | "deepseek-r1-qwen" => style(&[QWEN2], false, false, true),
            "stablelm2" => style(&[QWEN2], false, false, false),
            "tekken" => style(&[TEKKEN], true, true, false),
            _ => return None,
        })
    }
}

#[derive(Serialize)]
struct FileOut<'a> {
    version: &'static str,
    truncation: (),
    padding: (),
    added_tokens: Vec<AddedOut<'a>>,
    normalizer: Value,
    pre_tokenizer: Value,
    post_processor: (),
    decoder: Value,
    model: ModelOut<'a>,
}

#[derive(Serialize)]
struct AddedOut<'a> {
    id: u32,
    content: &'a str,
    single_word: bool,
    lstrip: bool,
    rstrip: bool,
    normalized: bool,
    special: bool,
}

#[derive(Serialize)]
struct ModelOut<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    unk_token: Option<&'a str>,
    fuse_unk: bool,
    byte_fallback: bool,
    ignore_merges: bool,
    vocab: BTreeMap<&'a str, u32>,
    merges: Vec<(&'a str, &'a str)>,
}

const MODEL: &str = "tokenizer.ggml.model";
const PRE: &str = "tokenizer.ggml.pre";
const TOKENS: &str = "tokenizer.ggml.tokens";
const TYPES: &str = "tokenizer.ggml.token_type";
const SCORES: &str = "tokenizer.ggml.scores";
const MERGES: &str = "tokenizer.ggml.merges";

// Token types of GGUF; a byte token (6) stands for a byte that no other token has.
const NORMAL: i64 = 1;
const UNKNOWN: i64 = 2;
const CONTROL: i64 = 3;
const USER_DEFINED: i64 = 4;
const UNUSED: i64 = 5;

/// Tokens that end an answer whatever the file says, if it has them as control tokens.
const ENDS: &[&str] = &[
    "<|im_end|>",
    "<|eot_id|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<|eom_id|>",
    "<|end|>",
];

// The expressions of the models' published tokenizer.json files.
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// What llama.cpp cuts first where a file does not say how its text was cut.
const PUNCTUATION: &str = r"[\p{P}\$\+<=>\^~\|]+";
