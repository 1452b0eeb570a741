//! config.json in its old and new forms, and GGUF metadata, make the same architectures.

use chrysalis_models::architecture::from_hugging_face;
use chrysalis_models::source;
use chrysalis_protocol::package::{Architecture, Rope};
use serde_json::{Value, json};

use super::files::Model;
use super::gguf_writer::{GgufWriter, llama};
use chrysalis_kernels::Dtype;

#[test]
fn old_and_new_rope_fields_say_the_same() {
    let scaling = json!({
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192
    });
    let mut old = config("LlamaForCausalLM");
    old["rope_theta"] = json!(500_000.0);
    old["rope_scaling"] = scaling.clone();
    let mut new = config("LlamaForCausalLM");
    new["rope_parameters"] = scaling;
    new["rope_parameters"]["rope_theta"] = json!(500_000.0);
    let architecture = read(&old);
    assert_eq!(architecture, read(&new));
    assert_eq!(
        architecture.rope_global,
        Rope {
            kind: 2,
            theta: 500_000.0,
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_position: 8192,
            rope_dim: 16,
            ..Rope::default()
        }
    );
}

#[test]
fn gemma3_windows_and_ropes_are_the_same_in_old_and_new_files() {
    let mut old = config("Gemma3ForCausalLM");
    old["num_hidden_layers"] = json!(8);
    old["sliding_window"] = json!(32);
    old["sliding_window_pattern"] = json!(6);
    old["rope_theta"] = json!(1e6);
    old["rope_local_base_freq"] = json!(1e4);
    old["rope_scaling"] = json!({"rope_type": "linear", "factor": 8.0});
    let mut new = config("Gemma3ForCausalLM");
    new["num_hidden_layers"] = json!(8);
    new["sliding_window"] = json!(32);
    let kinds = (0..8).map(|i| if i == 5 { "full_attention" } else { "sliding_attention" });
    new["layer_types"] = kinds.collect();
    new["rope_parameters"] = json!({
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}
    });
    let architecture = read(&old);
    assert_eq!(architecture, read(&new));
    assert_eq!((architecture.sliding_window, architecture.sliding_layers[0]), (32, 0b1101_1111));
    assert_eq!((architecture.rope_global.kind, architecture.rope_local.kind), (1, 0));
    assert_eq!(architecture.rope_local.theta, 1e4);
    assert_eq!(architecture.embedding_scale, 8.0);
    assert!(architecture.qk_norm && architecture.sandwich_norms && architecture.tied_embeddings);
    assert_eq!(architecture.activation, 2);
}

#[test]
fn what_a_text_config_leaves_out_is_the_default_of_its_class() {
    let architecture = read(&json!({
        "architectures": ["Gemma3ForConditionalGeneration"],
        "eos_token_id": [1, 106],
        "text_config": {
            "hidden_size": 2560, "intermediate_size": 10240, "model_type": "gemma3_text",
            "num_hidden_layers": 34, "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
            "sliding_window": 1024
        },
        "vision_config": {"hidden_size": 1152}
    }));
    assert_eq!(
        (architecture.num_heads, architecture.num_kv_heads, architecture.head_dim),
        (8, 4, 256)
    );
    assert_eq!(architecture.vocab_size, 262_208);
    assert_eq!(architecture.max_position_embeddings, 131_072);
    assert_eq!(architecture.rope_global.theta, 1e6);
    assert_eq!(architecture.attention_scale, 1.0 / 16.0);
    assert_eq!(architecture.generation.eos_token_ids, [1, 106]);
}

#[test]
fn a_window_of_qwen_is_off_until_it_is_switched_on() {
    let mut config = config("Qwen2ForCausalLM");
    config["sliding_window"] = json!(32);
    config["max_window_layers"] = json!(1);
    assert_eq!(read(&config).sliding_window, 0);
    assert_eq!(read(&config).rope_local, Rope::default());
    config["use_sliding_window"] = json!(true);
    let on = read(&config);
    assert_eq!((on.sliding_window, on.sliding_layers[0]), (32, 0b10));
    assert!(on.qkv_bias && !on.o_bias);
    // A window that no position can leave is none.
    config["sliding_window"] = json!(4096);
    assert_eq!(read(&config).sliding_window, 0);
}

#[test]
fn sampling_comes_from_generation_config_first() {
    let mut config = config("Qwen3ForCausalLM");
    config["eos_token_id"] = json!(9);
    let generation = json!({
        "eos_token_id": [5, 6, 5], "bos_token_id": 4, "temperature": 0.6, "top_k": 20,
        "top_p": 0.95, "repetition_penalty": 1.05
    });
    let said = from_hugging_face(&config, Some(&generation)).unwrap().generation;
    assert_eq!((said.bos_token_id, &said.eos_token_ids[..]), (Some(4), &[5, 6][..]));
    assert_eq!((said.temperature, said.top_p, said.top_k), (0.6, 0.95, 20));
    assert_eq!((said.repetition_penalty, said.min_p), (1.05, 0.0));
    let silent = read(&config).generation;
    assert_eq!((silent.eos_token_ids, silent.temperature), (vec![9], 0.0));
    let sampled = json!({"do_sample": true});
    assert_eq!(from_hugging_face(&config, Some(&sampled)).unwrap().generation.temperature, 1.0);
    let greedy = json!({"do_sample": false, "temperature": 0.6});
    assert_eq!(from_hugging_face(&config, Some(&greedy)).unwrap().generation.temperature, 0.0);
}

#[test]
fn what_the_decoder_does_not_have_is_refused() {
    let cases = [
        ("quantization_config", json!({"quant_method": "gptq"}), "quant_method is gptq"),
        ("quantization_config", json!({"fmt": "e4m3"}), "quant_method is missing"),
        ("quantization_config", json!({"quant_method": "fp8"}), "weight_block_size is missing"),
        (
            "quantization_config",
            json!({"quant_method": "fp8", "weight_block_size": [64, 128]}),
            "weight_block_size is [64, 128]",
        ),
        (
            "quantization_config",
            json!({"quant_method": "fp8", "weight_block_size": [128, 128], "fmt": "e5m2"}),
            "quantization_config.fmt is e5m2",
        ),
        (
            "quantization_config",
            json!({
                "quant_method": "fp8", "weight_block_size": [128, 128],
                "activation_scheme": "static",
            }),
            "activation_scheme is static",
        ),
        ("rope_scaling", json!({"type": "longrope"}), "rope_scaling.rope_type is longrope"),
        ("rope_scaling", json!({"type": "linear"}), "rope_scaling.factor is missing"),
        ("hidden_act", json!("relu"), "hidden_act is relu"),
        ("num_hidden_layers", json!(4_000_000_000_u32), "not between 1 and 256"),
        ("num_attention_heads", json!(7), "hidden_size is 64 for 7 heads"),
        ("num_attention_heads", json!(0), "hidden_size is 64 for 0 heads"),
        ("hidden_size", json!("64"), "not an unsigned 32-bit integer"),
        ("vocab_size", json!(-1), "not an unsigned 32-bit integer"),
        ("vocab_size", json!(null), "vocab_size is missing"),
        ("eos_token_id", json!([1, 2, 3, 4, 5, 6, 7, 8, 9]), "not at most 8 token ids"),
    ];
    for (field, value, expected) in cases {
        let mut config = config("LlamaForCausalLM");
        config[field] = value;
        let error = from_hugging_face(&config, None).unwrap_err().to_string();
        assert!(error.contains(expected), "{error:?} for {expected:?}");
    }
    let unknown = from_hugging_face(&config("MambaForCausalLM"), None).unwrap_err().to_string();
    assert!(unknown.contains("MambaForCausalLM is unknown; known are LlamaForCausalLM, llama"));
}

#[test]
fn every_recorded_model_is_opened() {
    for name in ["llama3", "llama-yarn", "llama-linear", "mistral", "qwen2", "qwen3", "gemma2"] {
        let model = Model::tiny(name);
        source::open(model.write()).unwrap_or_else(|error| panic!("{name}: {error}"));
    }
}

#[test]
fn llama3_factors_of_a_gguf_file_become_parameters() {
    let factor = |freqs: &[f32]| {
        let mut file = llama(Dtype::F16);
        file.f32("llama.rope.freq_base", 500_000.0);
        let bytes = freqs.iter().flat_map(|freq| freq.to_le_bytes()).collect();
        file.tensor("rope_freqs.weight", Dtype::F32, &[freqs.len() as u32], bytes);
        gguf(&file).map(|architecture| architecture.rope_global)
    };
    for wanted in [8.0, 32.0] {
        let rope = factor(&llama3_freqs(wanted)).unwrap();
        assert_eq!((rope.kind, rope.theta, rope.factor), (2, 500_000.0, wanted));
        assert_eq!((rope.low_freq_factor, rope.high_freq_factor), (1.0, 4.0));
        assert_eq!(rope.original_max_position, 8192);
    }
    assert_eq!(factor(&[1.0; 32]).unwrap().kind, 0);
    let mut other = llama3_freqs(8.0);
    other[16] *= 1.01;
    let refused = factor(&other).unwrap_err();
    assert!(
        refused.contains("rope_freqs.weight is not llama3 scaling by 8: factor 16"),
        "{refused}"
    );
    assert!(factor(&[f32::NAN; 32]).is_err());
    assert!(factor(&llama3_freqs(8.0)[..31]).is_err());
}

#[test]
fn scaling_of_gguf_metadata_is_read() {
    let mut yarn = llama(Dtype::F16);
    yarn.text("llama.rope.scaling.type", "yarn")
        .f32("llama.rope.scaling.factor", 4.0)
        .u32("llama.rope.scaling.original_context_length", 32);
    let rope = gguf(&yarn).unwrap().rope_global;
    assert_eq!((rope.kind, rope.factor, rope.original_max_position), (3, 4.0, 32));
    assert_eq!((rope.beta_fast, rope.beta_slow, rope.attention_factor), (32.0, 1.0, 0.0));

    let mut linear = llama(Dtype::F16);
    linear.text("llama.rope.scaling.type", "linear").f32("llama.rope.scaling.factor", 2.0);
    let rope = gguf(&linear).unwrap().rope_global;
    assert_eq!((rope.kind, rope.factor), (1, 2.0));

    let mut long = llama(Dtype::F16);
    long.text("llama.rope.scaling.type", "longrope");
    assert_eq!(
        gguf(&long).unwrap_err(),
        "llama.rope.scaling.type is longrope, which is not supported"
    );
    let mut experts = llama(Dtype::F16);
    experts.u32("llama.expert_count", 8);
    assert!(gguf(&experts).unwrap_err().contains("llama.expert_count is 8"));
}

#[test]
fn tokens_that_end_a_turn_are_found_by_their_spelling() {
    let mut file = llama(Dtype::F16);
    let mut tokens = vec!["x"; 17];
    tokens[0] = "<|endoftext|>";
    tokens[2] = "<|im_end|>";
    tokens[3] = "<|eot_id|>";
    let mut kinds = [1; 17];
    kinds[0] = 3;
    kinds[2] = 3;
    file.texts("tokenizer.ggml.tokens", &tokens).integers("tokenizer.ggml.token_type", &kinds);
    let generation = gguf(&file).unwrap().generation;
    // The third is plain text in this vocabulary.
    assert_eq!((generation.bos_token_id, generation.eos_token_ids), (Some(1), vec![2, 0]));
}

/// Llama 3.1's own loop, with its branches.
fn llama3_freqs(factor: f32) -> Vec<f32> {
    let freqs = (0..32).map(|i| 500_000_f32.powf(-2.0 * i as f32 / 64.0));
    let factors = freqs.map(|freq| {
        let wavelength = 2.0 * std::f32::consts::PI / freq;
        if wavelength < 8192.0 / 4.0 {
            1.0
        } else if wavelength > 8192.0 {
            factor
        } else {
            let smooth = (8192.0 / wavelength - 1.0) / 3.0;
            1.0 / ((1.0 - smooth) / factor + smooth)
        }
    });
    factors.collect()
}

fn gguf(file: &GgufWriter) -> Result<Architecture, String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    std::fs::write(&path, file.build().0).unwrap();
    let source = source::open(&path).map_err(|error| error.to_string())?;
    Ok(source.architecture().clone())
}

fn read(config: &Value) -> Architecture {
    from_hugging_face(config, None).unwrap()
}

fn config(architecture: &str) -> Value {
    json!({
        "architectures": [architecture], "hidden_size": 64, "intermediate_size": 128,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "head_dim": if architecture.starts_with("Llama") { Value::Null } else { json!(16) },
        "vocab_size": 100, "max_position_embeddings": 256
    })
}
