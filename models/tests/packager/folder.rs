//! Hugging Face folders: one file or shards, every tensor accounted for.

use std::fs;

use chrysalis_kernels::Dtype;
use chrysalis_models::source::{self, SourceError};
use safetensors::tensor::Dtype as FileDtype;
use serde_json::json;

use super::files::{Model, SHARDS};

#[test]
fn shards_are_the_same_model_as_one_file() {
    let (one, many) = (Model::tiny("qwen3"), Model::tiny("qwen3"));
    let one = source::open(one.write()).unwrap();
    let many = source::open(many.write_sharded()).unwrap();
    assert_eq!(one.tensors(), many.tensors());
    let (mut a, mut b) = (Vec::new(), Vec::new());
    for index in 0..one.tensors().len() {
        one.read(index, &mut a).unwrap();
        many.read(index, &mut b).unwrap();
        assert!(!a.is_empty() && a == b, "{}", one.tensors()[index].name);
    }
}

#[test]
fn an_index_that_lies_is_refused() {
    let model = Model::tiny("qwen3");
    let index = |map: serde_json::Value| {
        model.write_sharded();
        model.write_json("model.safetensors.index.json", &map);
        source::open(model.path()).unwrap_err().to_string()
    };
    assert!(index(json!({})).contains("there is no weight_map"));
    let outside = index(json!({"weight_map": {"x": "../model.safetensors"}}));
    assert!(outside.contains("tensor x names no plain file"), "{outside}");
    let unlisted = index(json!({"weight_map": {"model.norm.weight": SHARDS[1]}}));
    assert!(unlisted.contains("but not listed there"), "{unlisted}");

    model.write_sharded();
    let path = model.path().join("model.safetensors.index.json");
    let honest = fs::read_to_string(&path).unwrap();
    let more = honest
        .replace("{\"weight_map\":{", &format!("{{\"weight_map\":{{\"x\":\"{}\",", SHARDS[0]));
    assert!(
        index(serde_json::from_str(&more).unwrap())
            .contains("tensor x is listed, but not in its file")
    );
}

#[test]
fn a_tensor_missing_left_over_or_misshapen_is_named() {
    let mut model = Model::tiny("llama3");
    let norm = model.tensors.remove("model.layers.1.post_attention_layernorm.weight").unwrap();
    let missing = source::open(model.write()).unwrap_err().to_string();
    assert_eq!(missing, "tensor model.layers.1.post_attention_layernorm.weight is missing");

    let name = "model.layers.1.post_attention_layernorm.weight".to_owned();
    model.tensors.insert(name.clone(), norm.clone());
    model.tensors.insert("model.layers.1.self_attn.sinks".to_owned(), norm);
    let extra = source::open(model.write()).unwrap_err().to_string();
    assert_eq!(extra, "tensor model.layers.1.self_attn.sinks is not part of the architecture");

    model.tensors.remove("model.layers.1.self_attn.sinks");
    let hidden = model.tensors[&name].1[0];
    model.tensors.get_mut(&name).unwrap().1 = vec![1, hidden];
    let shape = source::open(model.write()).unwrap_err().to_string();
    assert_eq!(shape, format!("tensor {name} has the shape [1, {hidden}], not [{hidden}]"));

    model.tensors.get_mut(&name).unwrap().0 = FileDtype::I32;
    let dtype = source::open(model.write()).unwrap_err().to_string();
    assert!(dtype.contains(&format!("tensor {name} is stored as I32")), "{dtype}");
}

#[test]
fn half_precision_stays_and_norms_become_f32() {
    for (file_dtype, dtype) in [(FileDtype::F16, Dtype::F16), (FileDtype::BF16, Dtype::Bf16)] {
        let mut model = Model::tiny("gemma3");
        for (kind, shape, data) in model.tensors.values_mut() {
            *kind = file_dtype;
            // 1.5 in either, little-endian.
            let value: u16 = if dtype == Dtype::F16 { 0x3e00 } else { 0x3fc0 };
            let len = shape.iter().product::<usize>();
            *data = (0..len).flat_map(|_| value.to_le_bytes()).collect();
        }
        let source = source::open(model.write()).unwrap();
        let mut bytes = Vec::new();
        for (index, tensor) in source.tensors().iter().enumerate() {
            source.read(index, &mut bytes).unwrap();
            if tensor.dims.len() == 1 {
                // Gemma's norms: what is stored lacks the one that is added to it.
                assert_eq!(tensor.dtype, Dtype::F32);
                assert!(bytes.chunks(4).all(|value| value == 2.5_f32.to_le_bytes()));
            } else {
                assert_eq!(tensor.dtype, dtype);
                assert_eq!(bytes.len(), tensor.dims.iter().product::<u32>() as usize * 2);
            }
        }
    }
}

#[test]
fn a_repeated_embedding_is_left_out_and_another_output_refused() {
    let mut model = Model::tiny("gemma3");
    let embedding = model.tensors["model.embed_tokens.weight"].clone();
    model.tensors.insert("lm_head.weight".to_owned(), embedding);
    let source = source::open(model.write()).unwrap();
    assert!(source.architecture().tied_embeddings);
    assert!(source.tensors().iter().all(|tensor| tensor.name != "output.weight"));

    *model.tensors.get_mut("lm_head.weight").unwrap().2.last_mut().unwrap() ^= 1;
    let refused = source::open(model.write());
    assert!(matches!(refused, Err(SourceError::NotTied(name)) if name == "lm_head.weight"));
}

#[test]
fn the_language_model_of_a_model_with_pictures_is_taken() {
    let mut model = Model::tiny("gemma3");
    let whole = source::open(model.write()).unwrap().architecture().clone();
    model.config["architectures"] = json!(["Gemma3ForConditionalGeneration"]);
    model.config = json!({
        "architectures": ["Gemma3ForConditionalGeneration"],
        "text_config": model.config,
    });
    let eyes = model.tensors["model.norm.weight"].clone();
    for prefix in ["language_model.model.", "model.language_model."] {
        let tensors = model.tensors.clone().into_iter();
        let mut renamed: std::collections::BTreeMap<_, _> =
            tensors.map(|(name, tensor)| (name.replacen("model.", prefix, 1), tensor)).collect();
        renamed.insert("vision_tower.embeddings.weight".to_owned(), eyes.clone());
        let other =
            Model { config: model.config.clone(), tensors: renamed, ..Model::tiny("gemma3") };
        assert_eq!(*source::open(other.write()).unwrap().architecture(), whole, "{prefix}");
    }
}

#[test]
fn a_cut_safetensors_file_is_refused() {
    let model = Model::tiny("llama3");
    let path = model.write().join("model.safetensors");
    let bytes = fs::read(&path).unwrap();
    for len in [0, 7, 8, 100, bytes.len() - 1] {
        fs::write(&path, &bytes[..len]).unwrap();
        let refused = source::open(model.path());
        assert!(matches!(refused, Err(SourceError::Safetensors { .. })), "cut to {len}");
    }
    let mut huge = bytes;
    huge[..8].copy_from_slice(&(1_u64 << 60).to_le_bytes());
    fs::write(&path, &huge).unwrap();
    assert!(source::open(model.path()).unwrap_err().to_string().contains("is too long"));
}
