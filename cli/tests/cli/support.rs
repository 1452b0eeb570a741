//! The program as a user starts it, and models that are small enough for a test.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};

/// How a command ended, and what it said.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Outcome {
    /// Standard output as JSON, of a command that succeeded.
    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        assert_eq!(self.code, Some(0), "{}", self.stderr);
        serde_json::from_str(&self.stdout)
            .unwrap_or_else(|error| panic!("{error}: {}", self.stdout))
    }

    /// The command ended with `code` and told why.
    #[track_caller]
    pub(crate) fn refused(&self, code: i32, why: &str) {
        assert_eq!(self.code, Some(code), "{}{}", self.stdout, self.stderr);
        assert!(self.stderr.contains(why), "{why:?} is not in {:?}", self.stderr);
    }
}

impl From<Output> for Outcome {
    fn from(output: Output) -> Self {
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        Self {
            code: output.status.code(),
            stdout: text(output.stdout),
            stderr: text(output.stderr),
        }
    }
}

/// The program, ready to be started.
pub(crate) fn command<S: AsRef<std::ffi::OsStr>>(args: &[S]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_chrysalis"));
    command.args(args).stdin(Stdio::null());
    command
}

/// Runs the program to its end.
pub(crate) fn chrysalis(args: &[&str]) -> Outcome {
    command(args).output().unwrap().into()
}

/// A folder of one test, and paths in it as text.
pub(crate) struct Folder(tempfile::TempDir);

impl Folder {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub(crate) fn path(&self, name: &str) -> String {
        self.0.path().join(name).into_os_string().into_string().unwrap()
    }

    pub(crate) fn write(&self, name: &str, bytes: &[u8]) -> String {
        let path = self.path(name);
        fs::write(&path, bytes).unwrap();
        path
    }

    /// A broker's certificate and its private key, with the authority's `ca.pem` beside them.
    pub(crate) fn tls(&self) -> (String, String) {
        let [cert, key, _] = ["broker.pem", "broker.key", "ca.pem"].map(|name| {
            let from = format!("{}/tests/data/tls/{name}", env!("CARGO_MANIFEST_DIR"));
            let to = self.write(name, &fs::read(from).unwrap());
            fs::set_permissions(&to, fs::Permissions::from_mode(0o600)).unwrap();
            to
        });
        (cert, key)
    }

    /// Names of all files, sorted; of hidden ones too.
    pub(crate) fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.0.path()).unwrap();
        let mut names: Vec<String> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// A Hugging Face folder with a tiny Llama of random weights and a tokenizer of ASCII letters.
    pub(crate) fn tiny_llama(&self) -> String {
        let to = PathBuf::from(self.path("llama"));
        fs::create_dir(&to).unwrap();
        for name in ["config.json", "model.safetensors"] {
            fs::write(to.join(name), recorded(name)).unwrap();
        }
        fs::write(to.join("tokenizer.json"), tokenizer().to_string()).unwrap();
        fs::write(to.join("LICENSE"), "Anybody may do anything with it.\n").unwrap();
        to.into_os_string().into_string().unwrap()
    }

    /// A Llama of 100 MB, all zeros and so no bytes on the disk: one that takes a while to pack.
    pub(crate) fn large_llama(&self) -> String {
        let to = PathBuf::from(self.path("large"));
        fs::create_dir(&to).unwrap();
        let (hidden, inner, layers, vocab) = (512, 4096, 4, 251);
        let config = json!({
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
            "hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers,
            "num_attention_heads": 8, "num_key_value_heads": 8, "head_dim": 64, "vocab_size": vocab,
            "max_position_embeddings": 256, "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
            "tie_word_embeddings": true, "bos_token_id": 1, "eos_token_id": 2,
        });
        fs::write(to.join("config.json"), config.to_string()).unwrap();
        fs::write(to.join("tokenizer.json"), tokenizer().to_string()).unwrap();
        let mut shapes = vec![("model.embed_tokens".to_owned(), vec![vocab, hidden])];
        shapes.push(("model.norm".to_owned(), vec![hidden]));
        for layer in 0..layers {
            let mut add =
                |name: &str, shape| shapes.push((format!("model.layers.{layer}.{name}"), shape));
            for name in ["q_proj", "k_proj", "v_proj", "o_proj"] {
                add(&format!("self_attn.{name}"), vec![hidden, hidden]);
            }
            add("mlp.gate_proj", vec![inner, hidden]);
            add("mlp.up_proj", vec![inner, hidden]);
            add("mlp.down_proj", vec![hidden, inner]);
            add("input_layernorm", vec![hidden]);
            add("post_attention_layernorm", vec![hidden]);
        }
        write_zeros(&to.join("model.safetensors"), &shapes);
        to.into_os_string().into_string().unwrap()
    }

    /// The tiny Llama as package `name`, with more arguments.
    #[track_caller]
    pub(crate) fn packed(&self, source: &str, name: &str, more: &[&str]) -> String {
        let package = self.path(name);
        let outcome = chrysalis(&[&["pack", source, "-o", &package, "--json"], more].concat());
        assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
        package
    }
}

/// A file of the tiny Llama, beside whose weights its logits were recorded from PyTorch.
pub(crate) fn recorded(name: &str) -> Vec<u8> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/tests/data/tiny-llama3");
    fs::read(folder.join(name)).unwrap()
}

/// Gives a model of 251 tokens a tokenizer in which id 5 is written `<t5>`.
pub(crate) fn numbered_tokens(source: &str) {
    let tokens: Vec<String> = (0..251).map(|id| format!("<t{id}>")).collect();
    let mut tokenizer = tokenizer();
    tokenizer["added_tokens"] = added_tokens(&tokens, false);
    tokenizer["model"]["vocab"] = vocab(tokens);
    fs::write(Path::new(source).join("tokenizer.json"), tokenizer.to_string()).unwrap();
}

/// A safetensors file of F32 zeros.
fn write_zeros(path: &Path, shapes: &[(String, Vec<u64>)]) {
    let mut end = 0;
    let header: serde_json::Map<String, Value> = shapes
        .iter()
        .map(|(name, shape)| {
            let start = end;
            end += 4 * shape.iter().product::<u64>();
            let entry = json!({"dtype": "F32", "shape": shape, "data_offsets": [start, end]});
            (format!("{name}.weight"), entry)
        })
        .collect();
    let header = Value::from(header).to_string();
    let mut file = File::create(path).unwrap();
    file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
    file.write_all(header.as_bytes()).unwrap();
    file.set_len(8 + header.len() as u64 + end).unwrap();
}

/// One token for each printable ASCII character and the line feed, in the alphabet of byte-level BPE.
fn tokenizer() -> Value {
    let printable = ('!'..='~').map(String::from);
    let letters = ["\u{120}", "\u{10a}"].map(str::to_owned).into_iter().chain(printable);
    let special = ["<unk>", "<s>", "</s>"].map(str::to_owned);
    json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "post_processor": null,
        "added_tokens": added_tokens(&special, true),
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                  "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
                  "vocab": vocab(special.into_iter().chain(letters)), "merges": []},
    })
}

/// Ids from 0 on.
fn vocab(tokens: impl IntoIterator<Item = String>) -> Value {
    let ids = tokens.into_iter().zip(0..).map(|(token, id)| (token, json!(id)));
    Value::Object(ids.collect())
}

fn added_tokens(tokens: &[String], special: bool) -> Value {
    let added = |(id, token): (usize, &String)| {
        json!({"id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
               "normalized": false, "special": special})
    };
    tokens.iter().enumerate().map(added).collect()
}
