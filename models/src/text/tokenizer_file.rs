//! The checked form of a tokenizer.json: only what the supported models use, everything bounded, nothing that makes
//! the `tokenizers` crate panic (it indexes by what the file says in several places).

use std::collections::HashSet;
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, SeqAccess, Visitor};
use serde_json::Value;
use tokenizers::models::bpe::{BPE, BpeBuilder, Vocab};
use tokenizers::{AddedToken, AddedVocabulary, NormalizerWrapper, PreTokenizerWrapper};

use super::TextError;
use super::detokenizer::Pieces;

/// The parts of a tokenizer.json, ready to run.
pub(super) struct Parts {
    pub(super) normalizer: Option<NormalizerWrapper>,
    pub(super) pre_tokenizer: Option<PreTokenizerWrapper>,
    pub(super) model: BPE,
    /// All added tokens: a special token in the text becomes its id.
    pub(super) all: AddedVocabulary,
    /// Only those that are not special: a special token in the text is text.
    pub(super) plain: AddedVocabulary,
    pub(super) pieces: Pieces,
}

impl Parts {
    pub(super) fn parse(json: &[u8]) -> Result<Self, TextError> {
        check_len("tokenizer.json", json.len(), TOKENIZER_JSON_MAX)?;
        let file: File = serde_json::from_slice(json)
            .map_err(|source| TextError::Json { file: "tokenizer.json", source })?;
        check_part("normalizer", file.normalizer.as_ref(), NORMALIZERS)?;
        check_part("pre_tokenizer", file.pre_tokenizer.as_ref(), PRE_TOKENIZERS)?;
        let joining = Joining::of(file.decoder.as_ref())?;
        let ids = file.ids()?;
        let pieces = pieces(&file, &ids, &joining);
        let normalizer = component("normalizer", file.normalizer)?;
        let pre_tokenizer = component("pre_tokenizer", file.pre_tokenizer)?;
        let all = added(&file.added_tokens, |_| true, normalizer.as_ref())?;
        let plain = added(&file.added_tokens, |added| !added.token.special, normalizer.as_ref())?;
        let model = file.model.build()?;
        Ok(Self { normalizer, pre_tokenizer, model, all, plain, pieces })
    }
}

/// Refuses what is longer than its limit.
pub(super) fn check_len(what: &'static str, len: usize, max: usize) -> Result<(), TextError> {
    if len > max {
        return Err(TextError::TooLong { what, len, max });
    }
    Ok(())
}

#[derive(Deserialize)]
struct File {
    #[serde(default)]
    added_tokens: Vec<Added>,
    normalizer: Option<Value>,
    pre_tokenizer: Option<Value>,
    decoder: Option<Value>,
    model: Model,
}

#[derive(Deserialize)]
struct Added {
    id: u32,
    #[serde(flatten)]
    token: AddedToken,
}

#[derive(Deserialize)]
struct Model {
    /// Old files leave it out; the fields below are BPE's alone.
    #[serde(rename = "type")]
    kind: Option<String>,
    vocab: Vocab,
    merges: Vec<Merge>,
    dropout: Option<f32>,
    unk_token: Option<String>,
    continuing_subword_prefix: Option<String>,
    end_of_word_suffix: Option<String>,
    #[serde(default)]
    fuse_unk: bool,
    #[serde(default)]
    byte_fallback: bool,
    #[serde(default)]
    ignore_merges: bool,
}

struct Merge(String, String);

impl<'de> Deserialize<'de> for Merge {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(MergeVisitor)
    }
}

struct MergeVisitor;

impl<'de> Visitor<'de> for MergeVisitor {
    type Value = Merge;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("two tokens, as a list or joined by a space")
    }

    fn visit_str<E: serde::de::Error>(self, line: &str) -> Result<Merge, E> {
        match line.split_once(' ') {
            Some((left, right)) if !right.contains(' ') => Ok(Merge(left.into(), right.into())),
            _ => Err(E::custom("a merge is not two tokens")),
        }
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Merge, A::Error> {
        let (left, right) = (seq.next_element()?, seq.next_element()?);
        match (left, right, seq.next_element::<String>()?) {
            (Some(left), Some(right), None) => Ok(Merge(left, right)),
            _ => Err(A::Error::custom("a merge is not two tokens")),
        }
    }
}

impl File {
    /// Every id with its token, ascending by id. Model and added tokens may share an id when they share the text.
    fn ids(&self) -> Result<Vec<(u32, &str)>, TextError> {
        let of_model = self.model.vocab.iter().map(|(token, &id)| (id, token.as_str()));
        let of_added =
            self.added_tokens.iter().map(|added| (added.id, added.token.content.as_str()));
        let mut ids: Vec<(u32, &str)> = of_model.chain(of_added).collect();
        ids.sort_unstable();
        ids.dedup();
        for pair in ids.windows(2) {
            if let [(first, one), (second, other)] = pair
                && first == second
            {
                let reason = format!("{one:?} and {other:?} have the same id {first}");
                return Err(bad("added_tokens", reason));
            }
        }
        if let Some(&(id, token)) = ids.last()
            && id >= ID_END
        {
            return Err(TextError::IdTooLarge { token: token.to_owned(), id, max: ID_END });
        }
        Ok(ids)
    }
}

impl Model {
    fn build(self) -> Result<BPE, TextError> {
        if let Some(kind) = self.kind.filter(|kind| kind != "BPE") {
            return Err(TextError::UnsupportedPart { part: "model", kind });
        }
        let affix = [self.continuing_subword_prefix, self.end_of_word_suffix];
        if let Some(affix) = affix.into_iter().flatten().find(|affix| !affix.is_empty()) {
            return Err(bad("model", format!("the affix {affix:?} is not supported")));
        }
        if self.dropout.is_some_and(|dropout| dropout != 0.0) {
            return Err(bad("model", "dropout makes the ids random".to_owned()));
        }
        // The builder writes each merged token into a buffer of the longest token's length.
        let longest = self.vocab.keys().map(String::len).max().unwrap_or(0);
        if let Some(Merge(left, right)) = self.merges.iter().find(|merge| {
            let Merge(left, right) = merge;
            left.len().saturating_add(right.len()) > longest
        }) {
            return Err(bad("model", format!("the merge of {left:?} and {right:?} is no token")));
        }
        let mut builder = BpeBuilder::new();
        if let Some(unknown) = self.unk_token {
            if !self.vocab.contains_key(&unknown) {
                return Err(TextError::UnknownToken {
                    what: "unk_token of tokenizer.json",
                    token: unknown,
                });
            }
            builder = builder.unk_token(unknown);
        }
        let merges = self.merges.into_iter().map(|Merge(left, right)| (left, right));
        builder
            .vocab_and_merges(self.vocab, merges.collect())
            .fuse_unk(self.fuse_unk)
            .byte_fallback(self.byte_fallback)
            .ignore_merges(self.ignore_merges)
            // The cache would keep words of prompts in memory.
            .cache_capacity(0)
            .build()
            .map_err(|error| bad("model", error.to_string()))
    }
}

/// The vocabulary of the added tokens that `keep` chooses, with the ids that the file gives them.
fn added(
    tokens: &[Added],
    keep: impl Fn(&Added) -> bool,
    normalizer: Option<&NormalizerWrapper>,
) -> Result<AddedVocabulary, TextError> {
    let failed = |error: tokenizers::Error| bad("added_tokens", error.to_string());
    // `AddedVocabulary` asks a model for the ids and invents those that it does not know: so it is given a model that
    // knows exactly these.
    let vocab: Vocab = tokens.iter().map(|added| (added.token.content.clone(), added.id)).collect();
    let ids = BpeBuilder::new()
        .vocab_and_merges(vocab, Vec::new())
        .cache_capacity(0)
        .build()
        .map_err(failed)?;
    let mut seen = HashSet::new();
    let chosen: Vec<AddedToken> = tokens
        .iter()
        .filter(|added| keep(added) && seen.insert(added.token.content.as_str()))
        .map(|added| added.token.clone())
        .collect();
    let mut vocabulary = AddedVocabulary::new();
    vocabulary.add_tokens(chosen, &ids, normalizer).map_err(failed)?;
    Ok(vocabulary)
}

/// How tokens join to text.
struct Joining {
    byte_level: bool,
    byte_fallback: bool,
    space_mark: bool,
    strip_first_space: bool,
}

impl Joining {
    fn of(decoder: Option<&Value>) -> Result<Self, TextError> {
        let mut joining = Self {
            byte_level: false,
            byte_fallback: false,
            space_mark: false,
            strip_first_space: false,
        };
        match decoder {
            None => {}
            Some(decoder) if kind_of(decoder) == "Sequence" => {
                for part in list_of(decoder, "decoders") {
                    joining.add(part)?;
                }
            }
            Some(decoder) => joining.add(decoder)?,
        }
        Ok(joining)
    }

    fn add(&mut self, part: &Value) -> Result<(), TextError> {
        let field = |name: &str| part.get(name);
        match kind_of(part) {
            "ByteLevel" => self.byte_level = true,
            "ByteFallback" => self.byte_fallback = true,
            "Fuse" => {}
            "Replace"
                if field("pattern").and_then(|pattern| pattern.get("String"))
                    == Some(&MARK.into())
                    && field("content") == Some(&" ".into()) =>
            {
                self.space_mark = true;
            }
            "Strip"
                if field("content") == Some(&" ".into())
                    && field("start") == Some(&1.into())
                    && field("stop") == Some(&0.into()) =>
            {
                self.strip_first_space = true;
            }
            "Metaspace" if field("replacement").is_none_or(|mark| *mark == MARK) => {
                self.space_mark = true;
                self.strip_first_space = field("prepend_scheme").is_none_or(|it| *it != "never");
            }
            kind @ ("Replace" | "Strip" | "Metaspace") => {
                return Err(bad("decoder", format!("{kind} with these values is not supported")));
            }
            kind => {
                return Err(TextError::UnsupportedPart { part: "decoder", kind: kind.to_owned() });
            }
        }
        Ok(())
    }

    /// The bytes that a token of the model adds to the text.
    fn bytes(&self, token: &str) -> Vec<u8> {
        if self.byte_level {
            let bytes: Option<Vec<u8>> = token.chars().map(byte_of_char).collect();
            return bytes.unwrap_or_else(|| token.as_bytes().to_vec());
        }
        if self.byte_fallback
            && let Some(hex) = token.strip_prefix("<0x").and_then(|it| it.strip_suffix('>'))
            && hex.len() == 2
            && let Ok(byte) = u8::from_str_radix(hex, 16)
        {
            return vec![byte];
        }
        if self.space_mark {
            return token.replace(MARK, " ").into_bytes();
        }
        token.as_bytes().to_vec()
    }
}

fn pieces(file: &File, ids: &[(u32, &str)], joining: &Joining) -> Pieces {
    let mut added: Vec<(u32, bool)> =
        file.added_tokens.iter().map(|added| (added.id, added.token.special)).collect();
    added.sort_unstable();
    let mut pieces = Pieces::new(joining.strip_first_space);
    for &(id, token) in ids {
        while pieces.len() < id as usize {
            pieces.push(&[], false);
        }
        let special =
            added.binary_search_by_key(&id, |&(id, _)| id).ok().and_then(|at| added.get(at));
        match special {
            Some(&(_, special)) if special || joining.byte_level => {
                pieces.push(token.as_bytes(), special);
            }
            // Gemma's file has runs of spaces as added tokens, written with the mark.
            Some(_) => pieces.push(&joining.bytes(token), false),
            None => pieces.push(&joining.bytes(token), false),
        }
    }
    pieces
}

/// The byte for which a character stands in a byte-level vocabulary: printable Latin-1 stands for itself, the other
/// 68 bytes follow from U+0100 on, in order (GPT-2's table).
fn byte_of_char(char: char) -> Option<u8> {
    let printable = |byte: &u8| matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    let code = u32::from(char);
    match u8::try_from(code) {
        Ok(byte) => Some(byte).filter(printable),
        Err(_) => {
            let nth = usize::try_from(code.checked_sub(0x100)?).ok()?;
            (0..=u8::MAX).filter(|byte| !printable(byte)).nth(nth)
        }
    }
}

/// Refuses a component that has a part of a type outside `allowed`, or a pattern that is empty or very long.
fn check_part(
    part: &'static str,
    value: Option<&Value>,
    allowed: &[&str],
) -> Result<(), TextError> {
    let Some(value) = value else {
        return Ok(());
    };
    let kind = kind_of(value);
    if !allowed.contains(&kind) {
        return Err(TextError::UnsupportedPart { part, kind: kind.to_owned() });
    }
    if let Some(pattern) = value.get("pattern") {
        let text = pattern.get("String").or_else(|| pattern.get("Regex"));
        let len = text.and_then(Value::as_str).map_or(0, str::len);
        if len == 0 || len > PATTERN_MAX {
            let reason = format!("a pattern is {len} bytes long, of 1 to {PATTERN_MAX}");
            return Err(bad(part, reason));
        }
    }
    for list in ["normalizers", "pretokenizers"] {
        for inner in list_of(value, list) {
            check_part(part, Some(inner), allowed)?;
        }
    }
    Ok(())
}

fn component<T: serde::de::DeserializeOwned>(
    part: &'static str,
    value: Option<Value>,
) -> Result<Option<T>, TextError> {
    value.map(serde_json::from_value).transpose().map_err(|error| bad(part, error.to_string()))
}

fn kind_of(value: &Value) -> &str {
    value.get("type").and_then(Value::as_str).unwrap_or_default()
}

fn list_of<'a>(value: &'a Value, name: &str) -> &'a [Value] {
    value.get(name).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

fn bad(part: &'static str, reason: String) -> TextError {
    TextError::BadPart { part, reason }
}

const NORMALIZERS: &[&str] =
    &["Sequence", "NFC", "NFD", "NFKC", "NFKD", "Lowercase", "Replace", "Prepend"];
const PRE_TOKENIZERS: &[&str] = &[
    "Sequence",
    "Split",
    "ByteLevel",
    "Digits",
    "Punctuation",
    "Metaspace",
    "Whitespace",
    "WhitespaceSplit",
];
/// SentencePiece's sign for a space.
pub(super) const MARK: &str = "\u{2581}";
/// The largest published tokenizer.json of a supported model has 33 MB.
pub(super) const TOKENIZER_JSON_MAX: usize = 64 << 20;
const PATTERN_MAX: usize = 4096;
/// One more than the largest token id that is taken.
const ID_END: u32 = 1 << 20;
