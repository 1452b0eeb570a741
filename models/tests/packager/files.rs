//! Hugging Face folders for tests.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde_json::{Value, json};

/// A folder of a tiny model that can be changed before it is opened.
pub(crate) struct Model {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) config: Value,
    pub(crate) tensors: BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>,
}

impl Model {
    /// A copy of `tests/data/tiny-NAME`.
    pub(crate) fn tiny(name: &str) -> Self {
        let data = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data");
        let data = data.join(format!("tiny-{name}"));
        let bytes = fs::read(data.join("model.safetensors")).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let tensors = file.tensors().into_iter().map(|(name, view)| {
            (name, (view.dtype(), view.shape().to_vec(), view.data().to_vec()))
        });
        Self {
            folder: tempfile::tempdir().unwrap(),
            config: serde_json::from_slice(&fs::read(data.join("config.json")).unwrap()).unwrap(),
            tensors: tensors.collect(),
        }
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Writes config.json and one file of weights.
    pub(crate) fn write(&self) -> &Path {
        self.write_json("config.json", &self.config);
        self.write_weights("model.safetensors", |_| true);
        self.path()
    }

    /// Writes config.json, two files of weights and their index.
    pub(crate) fn write_sharded(&self) -> &Path {
        self.write_json("config.json", &self.config);
        let shard = |name: &str| {
            if name.contains("layers.0") { SHARDS[0] } else { SHARDS[1] }
        };
        for file in SHARDS {
            self.write_weights(file, |name| shard(name) == file);
        }
        let map: BTreeMap<_, _> = self.tensors.keys().map(|name| (name, shard(name))).collect();
        self.write_json("model.safetensors.index.json", &json!({ "weight_map": map }));
        self.path()
    }

    pub(crate) fn write_json(&self, name: &str, value: &Value) {
        fs::write(self.path().join(name), value.to_string()).unwrap();
    }

    /// A tokenizer of four tokens.
    pub(crate) fn write_tokenizer(&self) {
        self.write_json(
            "tokenizer.json",
            &json!({
                "added_tokens": [],
                "normalizer": null,
                "pre_tokenizer": {
                    "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
                    "use_regex": true
                },
                "decoder": {"type": "ByteLevel"},
                "model": {
                    "type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2, "c": 3},
                    "merges": [["a", "b"]]
                }
            }),
        );
    }

    fn write_weights(&self, file: &str, wanted: impl Fn(&str) -> bool) {
        let views = self.tensors.iter().filter(|(name, _)| wanted(name)).map(
            |(name, (dtype, shape, data))| {
                (name.as_str(), TensorView::new(*dtype, shape.clone(), data).unwrap())
            },
        );
        let bytes = safetensors::serialize(views, None).unwrap();
        fs::write(self.path().join(file), bytes).unwrap();
    }
}

pub(crate) const SHARDS: [&str; 2] =
    ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];
