//! Text against its originals: token ids against llama.cpp's, chat templates against Python's jinja2, and tokenizers that
//! are small enough to be written here.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "helpers of tests fail and speak as tests do"
)]

use std::path::PathBuf;

use chrysalis_models::source::gguf::{Gguf, Metadata, Value};
use chrysalis_models::text::hf::{self, HfFiles};
use chrysalis_models::text::{
    ChatTemplate, ClientText, GenerationDefaults, Message, TextConfig, TextError, Tokenizer,
    gguf_tokenizer,
};
use serde_json::json;

#[test]
fn the_ids_of_smollm2_are_llama_cpps() {
    compare_with_llama_cpp("smollm2", "data/tokens-smollm2.txt");
}

#[test]
fn the_ids_of_gemma3_are_llama_cpps() {
    compare_with_llama_cpp("gemma3", "data/tokens-gemma3.txt");
}

fn compare_with_llama_cpp(model: &str, recorded: &str) {
    let Some(path) = model_file(model) else {
        println!("skipped: no {model}.gguf; set CHRYSALIS_MODELS to the folder that has it");
        return;
    };
    let gguf = Gguf::open(&path).unwrap();
    let tokenizer = gguf_tokenizer::client_text(gguf.metadata()).unwrap().tokenizer().unwrap();
    let recorded = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests").join(recorded);
    let (mut texts, mut ids) = (0, 0);
    for line in std::fs::read_to_string(recorded).unwrap().lines() {
        let case: serde_json::Value = serde_json::from_str(line).unwrap();
        let text = case["text"].as_str().unwrap();
        let ids_of = |name: &str| -> Vec<u32> {
            let list = case[name].as_array().unwrap();
            list.iter().map(|id| id.as_u64().unwrap() as u32).collect()
        };
        let plain = ids_of("plain");
        assert_eq!(tokenizer.encode(text, false).unwrap(), plain, "plain: {text:?}");
        let around = [ids_of("around"), plain.clone()].concat();
        assert_eq!(tokenizer.encode(text, true).unwrap(), around, "around: {text:?}");
        let parsed = if case["parsed"].is_null() { plain.clone() } else { ids_of("parsed") };
        let mut rendered = tokenizer.encode_rendered(text).unwrap();
        if tokenizer.config().add_bos && rendered.len() > parsed.len() {
            rendered.remove(0);
        }
        assert_eq!(rendered, parsed, "parsed: {text:?}");
        check_streaming(&tokenizer, &plain);
        texts += 1;
        ids += plain.len();
    }
    println!("{model}: {texts} texts, {ids} ids, all equal");
}

/// `$CHRYSALIS_MODELS/NAME.gguf`, or the file that `chrysalis demo` keeps.
fn model_file(model: &str) -> Option<PathBuf> {
    let named = std::env::var_os("CHRYSALIS_MODELS")
        .map(|folder| PathBuf::from(folder).join(format!("{model}.gguf")));
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache"));
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).or_else(home);
    let cached = cache
        .filter(|_| model == "smollm2")
        .map(|cache| cache.join("chrysalis/smollm2-135m-instruct-q4_1.gguf"));
    [named, cached].into_iter().flatten().find(|path| path.is_file())
}

/// The streamed text is the text of all ids; nothing comes out in halves.
fn check_streaming(tokenizer: &Tokenizer, ids: &[u32]) {
    let mut detokenizer = tokenizer.detokenizer(true);
    let mut streamed: String = ids.iter().map(|&id| detokenizer.push(id)).collect();
    streamed.push_str(&detokenizer.finish());
    assert_eq!(streamed, tokenizer.decode(ids, true));
    let bytes: Vec<u8> = ids
        .iter()
        .filter(|&&id| !tokenizer.is_special(id))
        .flat_map(|&id| tokenizer.token_bytes(id).to_vec())
        .collect();
    let whole = String::from_utf8_lossy(&bytes);
    assert!(whole.strip_prefix(' ') == Some(&streamed) || whole == streamed);
}

/// A byte-level tokenizer of 256 bytes, three merges, two control tokens and a user-defined one.
fn tiny_byte_level(pre: &str) -> Metadata {
    let printable = |byte: &u8| matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    let mut tokens: Vec<String> = Vec::new();
    let mut shifted = 0x100;
    for byte in 0..=255u8 {
        let code = if printable(&byte) { u32::from(byte) } else { shifted };
        shifted += u32::from(!printable(&byte));
        tokens.push(char::from_u32(code).unwrap().to_string());
    }
    tokens.extend(["he", "ll", "Ġhe", "<|im_start|>", "<|im_end|>", "<tool>"].map(str::to_owned));
    let mut types = vec![1; 259];
    types.extend([3, 3, 4]);
    let merges = ["h e", "l l", "Ġ he"].map(str::to_owned).to_vec();
    metadata([
        ("model", Value::Text("gpt2".into())),
        ("pre", Value::Text(pre.into())),
        ("tokens", Value::Texts(tokens)),
        ("token_type", Value::Integers(types)),
        ("merges", Value::Texts(merges)),
        ("bos_token_id", Value::Integer(259)),
        ("eos_token_id", Value::Integer(260)),
    ])
}

/// A SentencePiece tokenizer with byte fallback.
fn tiny_sentence_piece(prefix: bool) -> Metadata {
    let mut tokens: Vec<String> = ["<unk>", "<s>", "</s>"].map(str::to_owned).to_vec();
    let mut scores = vec![0.0; 3];
    let mut types = vec![2, 3, 3];
    for byte in 0..=255u8 {
        tokens.push(format!("<0x{byte:02X}>"));
        scores.push(0.0);
        types.push(6);
    }
    for (token, score) in [
        ("▁", -9.0),
        ("a", -8.0),
        ("b", -7.0),
        ("c", -6.0),
        ("ab", -3.0),
        ("bc", -2.0),
        ("▁a", -4.0),
        ("▁ab", -5.0),
    ] {
        tokens.push(token.to_owned());
        scores.push(score);
        types.push(1);
    }
    metadata([
        ("model", Value::Text("llama".into())),
        ("tokens", Value::Texts(tokens)),
        ("scores", Value::Floats(scores)),
        ("token_type", Value::Integers(types)),
        ("bos_token_id", Value::Integer(1)),
        ("eos_token_id", Value::Integer(2)),
        ("unknown_token_id", Value::Integer(0)),
        ("add_space_prefix", Value::Bool(prefix)),
    ])
}

fn metadata<const N: usize>(entries: [(&str, Value); N]) -> Metadata {
    let named = entries.map(|(key, value)| (format!("tokenizer.ggml.{key}"), value));
    Metadata::from_entries(named)
}

fn tokenizer(metadata: &Metadata) -> Tokenizer {
    gguf_tokenizer::client_text(metadata).unwrap().tokenizer().unwrap()
}

#[test]
fn a_byte_level_tokenizer_merges_and_splits_as_its_file_says() {
    let tokenizer = tokenizer(&tiny_byte_level("smollm"));
    let ids = |text: &str| tokenizer.encode(text, false).unwrap();
    assert_eq!(ids("he hell"), [256, 258, 257]);
    assert_eq!(ids("12"), [u32::from(b'1'), u32::from(b'2')]);
    assert_eq!(ids("é"), [0xC3, 0xA9]);
    assert_eq!(ids(""), [] as [u32; 0]);
    assert_eq!(tokenizer.decode(&ids("he hell, é 你 \n"), true), "he hell, é 你 \n");
}

#[test]
fn a_special_token_in_a_text_is_text_and_in_a_rendered_template_an_id() {
    let tokenizer = tokenizer(&tiny_byte_level("smollm"));
    let plain = tokenizer.encode("<|im_end|>he<tool>", false).unwrap();
    assert_eq!(plain.len(), "<|im_end|>".len() + 2);
    assert_eq!(plain.last_chunk(), Some(&[256, 261]));
    assert!(!plain.contains(&260));
    let rendered = tokenizer.encode_rendered("<|im_end|>he<tool>").unwrap();
    assert_eq!(rendered, [260, 256, 261]);
    assert_eq!(tokenizer.decode(&rendered, true), "he<tool>");
    assert_eq!(tokenizer.decode(&rendered, false), "<|im_end|>he<tool>");
}

#[test]
fn bos_is_written_once() {
    let tokenizer = tokenizer(&tiny_byte_level("llama-bpe"));
    assert!(tokenizer.config().add_bos);
    assert_eq!(tokenizer.encode("he", true).unwrap(), [259, 256]);
    assert_eq!(tokenizer.encode("he", false).unwrap(), [256]);
    assert_eq!(tokenizer.encode_rendered("he").unwrap(), [259, 256]);
    assert_eq!(tokenizer.encode_rendered("<|im_start|>he").unwrap(), [259, 256]);
}

#[test]
fn a_sentence_piece_tokenizer_merges_the_best_score_first_and_falls_back_to_bytes() {
    let tokenizer_of = |prefix| tokenizer(&tiny_sentence_piece(prefix));
    let (bare, prefixed) = (tokenizer_of(false), tokenizer_of(true));
    let token = |name: &str| {
        let of = |id: &u32| bare.token_text(*id) == Some(name);
        (259..267).find(of).unwrap()
    };
    // "bc" has a better score than "ab".
    assert_eq!(bare.encode("abc", false).unwrap(), [token("a"), token("bc")]);
    assert_eq!(bare.encode("ab", false).unwrap(), [token("ab")]);
    assert_eq!(bare.encode(" ab", false).unwrap(), [token(" ab")]);
    assert_eq!(prefixed.encode("ab", true).unwrap(), [1, token(" ab")]);
    assert_eq!(bare.encode("é", false).unwrap(), [3 + 0xC3, 3 + 0xA9]);
    assert_eq!(bare.encode("</s>", false).unwrap().first(), Some(&(3 + u32::from(b'<'))));
    assert_eq!(prefixed.encode_rendered("</s>ab").unwrap(), [1, 2, token(" ab")]);
    let ids = prefixed.encode("ab é 你", false).unwrap();
    assert_eq!(prefixed.decode(&ids, true), "ab é 你");
    assert_eq!(bare.decode(&ids, true), " ab é 你");
}

#[test]
fn the_mark_in_an_added_token_is_a_space() {
    let mut text = gguf_tokenizer::client_text(&tiny_sentence_piece(false)).unwrap();
    let mut file: serde_json::Value = serde_json::from_slice(&text.tokenizer_json).unwrap();
    let added = file["added_tokens"].as_array_mut().unwrap();
    let mut marks = added[0].clone();
    marks["id"] = json!(300);
    marks["content"] = json!("▁▁");
    marks["special"] = json!(false);
    added.push(marks);
    text.tokenizer_json = file.to_string().into_bytes();
    assert_eq!(text.tokenizer().unwrap().decode(&[300], true), "  ");
}

#[test]
fn a_stream_of_ids_never_splits_a_character() {
    let tokenizer = tokenizer(&tiny_byte_level("gpt-2"));
    let text = "a é 你 😀 \u{fffd} z";
    let ids = tokenizer.encode(text, false).unwrap();
    let mut detokenizer = tokenizer.detokenizer(true);
    let pieces: Vec<String> = ids.iter().map(|&id| detokenizer.push(id)).collect();
    assert_eq!(pieces.concat(), text);
    assert_eq!(pieces.iter().filter(|piece| piece.is_empty()).count(), 1 + 2 + 3 + 2);
    assert_eq!(detokenizer.finish(), "");
}

#[test]
fn bytes_that_are_no_text_are_shown_as_the_replacement_character() {
    let tokenizer = tokenizer(&tiny_byte_level("gpt-2"));
    let mut detokenizer = tokenizer.detokenizer(true);
    assert_eq!(detokenizer.push(0xFF), "\u{fffd}");
    assert_eq!(detokenizer.push(0xF0), "");
    assert_eq!(detokenizer.push(0x9F), "");
    assert_eq!(detokenizer.push(259), "", "a special token does not end a character");
    assert_eq!(detokenizer.push(u32::from(b'a')), "\u{fffd}a");
    assert_eq!(detokenizer.push(0xE4), "");
    assert_eq!(detokenizer.push(1_000_000), "", "an id without a token has no text");
    assert_eq!(detokenizer.finish(), "\u{fffd}");
    assert_eq!(detokenizer.finish(), "");
}

#[test]
fn an_unknown_kind_is_refused_by_its_name() {
    let kind = metadata([
        ("model", Value::Text("rwkv".into())),
        ("tokens", Value::Texts(vec!["a".into()])),
    ]);
    let refusal = gguf_tokenizer::client_text(&kind).unwrap_err();
    assert!(matches!(&refusal, TextError::UnknownKind(kind) if kind == "rwkv"), "{refusal}");
    let refusal = gguf_tokenizer::client_text(&tiny_byte_level("no-such-pre")).unwrap_err();
    assert!(matches!(&refusal, TextError::UnknownPreTokenizer(pre) if pre == "no-such-pre"));
}

#[test]
fn a_tokenizer_that_contradicts_itself_is_refused() {
    let good = |edit: &dyn Fn(&mut serde_json::Value)| {
        let mut file = json!({
            "version": "1.0",
            "added_tokens": [{"id": 3, "content": "<s>", "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true}],
            "normalizer": null,
            "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true},
            "post_processor": null,
            "decoder": {"type": "ByteLevel"},
            "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"]}
        });
        edit(&mut file);
        Tokenizer::from_json(file.to_string().as_bytes(), TextConfig::default()).map(|_| ())
    };
    good(&|_| {}).unwrap();
    good(&|file| file["model"]["merges"] = json!([["a", "b"]])).unwrap();
    type Edit = fn(&mut serde_json::Value);
    let altered: [(&str, Edit); 17] = [
        ("a merge without a result", |it| {
            it["model"]["merges"] = json!(["b a"]);
        }),
        ("a merge longer than any token", |it| {
            it["model"]["merges"] = json!(["ab ab"]);
        }),
        ("a merge of an unknown token", |it| {
            it["model"]["merges"] = json!(["a x"]);
        }),
        ("a merge of three", |it| {
            it["model"]["merges"] = json!(["a b c"]);
        }),
        ("a merge of one", |it| {
            it["model"]["merges"] = json!([["a"]]);
        }),
        ("two tokens of one id", |it| {
            it["model"]["vocab"] = json!({"a": 0, "b": 0});
        }),
        ("an added token of another's id", |it| {
            it["added_tokens"][0]["id"] = json!(2);
        }),
        ("an id beyond the limit", |it| {
            it["added_tokens"][0]["id"] = json!(u32::MAX);
        }),
        ("a negative id", |it| it["model"]["vocab"]["a"] = json!(-1)),
        ("an unknown unknown", |it| {
            it["model"]["unk_token"] = json!("?");
        }),
        ("an affix", |it| {
            it["model"]["continuing_subword_prefix"] = json!("##");
        }),
        ("dropout", |it| it["model"]["dropout"] = json!(0.5)),
        ("another model", |it| {
            it["model"]["type"] = json!("WordPiece");
        }),
        ("another decoder", |it| it["decoder"]["type"] = json!("CTC")),
        ("a decoder that cuts", |it| {
            it["decoder"] = json!({"type": "Strip", "content": " ", "start": 1, "stop": 9});
        }),
        ("another normalizer", |it| {
            it["normalizer"] = json!({"type": "Precompiled"});
        }),
        ("an empty pattern", |it| {
            let split = json!({"type": "Split", "pattern": {"String": ""}, "behavior": "Isolated", "invert": false});
            it["pre_tokenizer"] = json!({"type": "Sequence", "pretokenizers": [split]});
        }),
    ];
    for (name, edit) in altered {
        assert!(good(&edit).is_err(), "{name}");
    }
}

#[test]
fn every_cut_of_a_tokenizer_is_refused() {
    let json = gguf_tokenizer::client_text(&tiny_byte_level("qwen2")).unwrap().tokenizer_json;
    for len in (0..json.len()).step_by(13) {
        let cut = Tokenizer::from_json(&json[..len], TextConfig::default());
        assert!(matches!(cut, Err(TextError::Json { .. })), "{len}");
    }
    assert!(matches!(
        Tokenizer::from_json(&vec![b' '; (64 << 20) + 1], TextConfig::default()),
        Err(TextError::TooLong { .. })
    ));
}

#[test]
fn an_id_that_the_vocabulary_lacks_is_refused() {
    let mut text = gguf_tokenizer::client_text(&tiny_byte_level("qwen2")).unwrap();
    text.config.eos_token_ids.push(262);
    assert!(matches!(text.tokenizer(), Err(TextError::UnknownToken { .. })));
}

#[test]
fn a_config_survives_its_json() {
    let config = TextConfig {
        bos_token_id: Some(1),
        eos_token_ids: vec![2, 0],
        pad_token_id: None,
        add_bos: true,
        generation: GenerationDefaults {
            temperature: Some(0.6),
            top_k: Some(20),
            ..GenerationDefaults::default()
        },
    };
    assert_eq!(TextConfig::from_json(&config.to_json()).unwrap(), config);
    let many = TextConfig { eos_token_ids: vec![0; 9], ..config };
    assert!(matches!(TextConfig::from_json(&many.to_json()), Err(TextError::TooLong { .. })));
    assert!(TextConfig::from_json(b"{}").is_err());
}

#[test]
fn a_client_bundle_holds_the_text() {
    let mut text = gguf_tokenizer::client_text(&tiny_byte_level("qwen2")).unwrap();
    let bytes = text.to_bundle(None).unwrap();
    assert_eq!(ClientText::from_bundle(&bytes).unwrap(), text);
    text.chat_template = Some("{{ messages }}".to_owned());
    let bytes = text.to_bundle(Some("a licence")).unwrap();
    assert_eq!(ClientText::from_bundle(&bytes).unwrap(), text);
    assert!(ClientText::from_bundle(&bytes[..bytes.len() - 1]).is_err());
}

#[test]
fn a_hugging_face_folder_says_what_the_gguf_says() {
    let from_gguf = gguf_tokenizer::client_text(&tiny_byte_level("llama-bpe")).unwrap();
    let mut file: serde_json::Value = serde_json::from_slice(&from_gguf.tokenizer_json).unwrap();
    file["post_processor"] = json!({"type": "Sequence", "processors": [
        {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": false, "use_regex": true},
        {"type": "TemplateProcessing", "single": [
            {"SpecialToken": {"id": "<|im_start|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]}]});
    let tokenizer = file.to_string();
    let tokenizer_config = json!({"bos_token": {"content": "<|im_start|>"}, "eos_token": "<|im_end|>",
        "chat_template": [{"name": "tools", "template": "x"}, {"name": "default", "template": "hi"}]});
    let generation =
        json!({"eos_token_id": [260, 3], "temperature": 0.5, "top_k": 20, "do_sample": true});
    let (tokenizer_config, generation) = (tokenizer_config.to_string(), generation.to_string());
    let files = HfFiles {
        tokenizer: Some(tokenizer.as_bytes()),
        tokenizer_config: Some(tokenizer_config.as_bytes()),
        generation_config: Some(generation.as_bytes()),
        ..HfFiles::default()
    };
    let text = hf::client_text(&files).unwrap();
    assert_eq!(text.chat_template.as_deref(), Some("hi"));
    assert_eq!(text.config.bos_token_id, Some(259));
    assert_eq!(text.config.eos_token_ids, [260, 3]);
    assert!(text.config.add_bos);
    assert_eq!(text.config.generation.temperature, Some(0.5));
    let ids = text.tokenizer().unwrap().encode("he hell", true).unwrap();
    assert_eq!(ids, from_gguf.tokenizer().unwrap().encode("he hell", true).unwrap());
    assert!(matches!(hf::client_text(&HfFiles::default()), Err(TextError::MissingFile(_))));
}

#[test]
fn templates_render_as_in_python() {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data/chat");
    let cases = std::fs::read_to_string(folder.join("expected.txt")).unwrap();
    for line in cases.lines() {
        let case: serde_json::Value = serde_json::from_str(line).unwrap();
        let source =
            std::fs::read_to_string(folder.join(case["template"].as_str().unwrap())).unwrap();
        let mut template = ChatTemplate::new(&source, Some("<bos>"), Some("<eos>")).unwrap();
        if let Some(now) = case["now"].as_u64() {
            template = template.with_now(now);
        }
        let messages: Vec<Message> = case["messages"]
            .as_array()
            .unwrap()
            .iter()
            .map(|it| Message::new(it["role"].as_str().unwrap(), it["content"].as_str().unwrap()))
            .collect();
        match (
            template.render(&messages, case["prompt"].as_bool().unwrap()),
            case["expected"].as_str(),
        ) {
            (Ok(text), Some(expected)) => assert_eq!(text, expected, "{line}"),
            (Err(TextError::TemplateRefused(message)), None) => {
                assert_eq!(message, case["refused"]);
            }
            (result, _) => panic!("{result:?}: {line}"),
        }
    }
}

#[test]
fn a_variable_reaches_the_template() {
    let source = "{% if enable_thinking is defined and enable_thinking is false %}no{% else %}yes{% endif %}";
    let template = || ChatTemplate::new(source, None, None).unwrap();
    assert_eq!(template().render(&[], true).unwrap(), "yes");
    assert_eq!(template().with_variable("enable_thinking", false).render(&[], true).unwrap(), "no");
}

#[test]
fn a_hostile_template_ends() {
    let render = |source: &str| {
        let template = ChatTemplate::new(source, None, None)?;
        template.render(&[Message::new("user", "x")], true)
    };
    let endless = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}";
    assert!(matches!(render(endless), Err(TextError::TemplateFuel { .. })));
    let long =
        "{% for a in range(9999) %}{{ 'xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx' * 100 }}{% endfor %}";
    assert!(matches!(render(long), Err(TextError::TemplateOutput { .. })));
    let deep = "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}";
    assert!(matches!(render(deep), Err(TextError::Template(_))));
    assert!(matches!(render("{% if %}"), Err(TextError::Template(_))));
    assert!(matches!(render("{{ nothing() }}"), Err(TextError::Template(_))));
    assert!(matches!(render(&"x".repeat((256 << 10) + 1)), Err(TextError::TooLong { .. })));
    assert!(matches!(render(&"{% if x %}".repeat(9000)), Err(TextError::Template(_))));
}

#[test]
fn a_model_without_a_template_says_what_to_do() {
    let text: ClientText = gguf_tokenizer::client_text(&tiny_sentence_piece(true)).unwrap();
    let refusal = text.chat_template(&text.tokenizer().unwrap()).unwrap_err();
    assert!(matches!(refusal, TextError::NoChatTemplate));
    assert!(refusal.to_string().contains("--raw"));
}
