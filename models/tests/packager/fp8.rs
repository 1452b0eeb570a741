//! Folders in fp8: exactly the model that the scales make of the codes, and what is not whole is refused by name.

use chrysalis_kernels::Dtype;
use chrysalis_kernels::batch::{Batch, WantLogits};
use chrysalis_kernels::cpu::{ActivationBits, Cpu, CpuOptions, Isa};
use chrysalis_kernels::device::{CacheDtype, Device};
use chrysalis_kernels::quant::{dequantize, e4m3, quantize};
use chrysalis_kernels::reference::Reference;
use chrysalis_models::decoder::DecoderLimits;
use chrysalis_models::source::{self, Source};
use safetensors::tensor::Dtype as FileDtype;
use serde_json::json;

use super::files::Model;
use super::support::{decoder, error, step};

#[test]
fn an_fp8_model_is_the_one_that_its_scales_make_of_its_codes() {
    for scale_dtype in [FileDtype::F32, FileDtype::BF16] {
        let (fp8, float) = models(scale_dtype);
        let (fp8, float) =
            (source::open(fp8.write_sharded()).unwrap(), source::open(float.write()).unwrap());
        assert_eq!(fp8.architecture(), float.architecture());
        let kinds: Vec<_> = fp8.tensors().iter().map(|tensor| tensor.dtype).collect();
        assert_eq!(kinds.iter().filter(|dtype| **dtype == Dtype::F8E4M3).count(), 7 * 2);
        assert_eq!(kinds.iter().filter(|dtype| **dtype == Dtype::Bf16).count(), 2);

        let expected = logits(Reference, &float);
        assert_eq!(logits(Reference, &fp8), expected);
        for isa in Isa::available() {
            // An activation is two bf16, each within 2^-17 of it, where the CPU multiplies bf16; else f32.
            let activation_bits = ActivationBits::Sixteen;
            let options = CpuOptions { threads: Some(2), isa: Some(isa), activation_bits };
            let error = error(&logits(Cpu::new(options).unwrap(), &fp8), &expected);
            assert!(error < 1e-4, "{isa:?}: {error:e}");
        }
    }
}

#[test]
fn rows_are_read_from_any_first_one_on() {
    let (fp8, float) = models(FileDtype::F32);
    let (fp8, float) = (source::open(fp8.write()).unwrap(), source::open(float.write()).unwrap());
    let index =
        fp8.tensors().iter().position(|tensor| tensor.name == "blk.1.ffn_gate.weight").unwrap();
    let (mut some, mut expected) = (Vec::new(), Vec::new());
    for (first, count) in [(0, 1), (127, 2), (130, 190), (319, 1)] {
        fp8.read_rows(index, first, count, &mut some).unwrap();
        float.read_rows(index, first, count, &mut expected).unwrap();
        let mut values = vec![0.0; count as usize * HIDDEN];
        dequantize(Dtype::F8E4M3, &some, &mut values).unwrap();
        assert_eq!(bytes(Dtype::F32, &values), expected, "{first}+{count}");
    }
}

#[test]
fn scales_that_are_missing_left_over_or_misshapen_are_named() {
    let norm_scales = "model.norm.weight_scale_inv";
    refused(
        |m| drop(m.tensors.remove(SCALES)),
        &format!("tensor {WEIGHT} is in fp8, but {SCALES} is missing"),
    );
    refused(
        |m| drop(m.tensors.remove(WEIGHT)),
        &format!("tensor {SCALES} has scales of no tensor in fp8"),
    );
    refused(
        |m| drop(m.tensors.insert(norm_scales.to_owned(), m.tensors[SCALES].clone())),
        &format!("tensor {norm_scales} has scales of no tensor in fp8"),
    );
    let shaped = |shape: &[usize]| {
        let stored = vec![0; 4 * shape.iter().product::<usize>()];
        put(SCALES, FileDtype::F32, shape, &stored)
    };
    refused(shaped(&[1, 6]), "has the shape [1, 6], not [3, 2]");
    refused(shaped(&[1]), "has the shape [1], not [3, 2]");
    refused(
        put(SCALES, FileDtype::F16, &[3, 2], &[0; 12]),
        "weight_scale_inv is stored as F16: scales are F32 or BF16",
    );
    let mut infinite = [0; 24];
    infinite[8..12].copy_from_slice(&f32::INFINITY.to_le_bytes());
    refused(
        put(SCALES, FileDtype::F32, &[3, 2], &infinite),
        "up_proj.weight: the scale of block 2 is inf",
    );
}

#[test]
fn fp8_that_is_not_announced_no_matrix_or_not_whole_blocks_is_named() {
    let norm = "model.norm.weight";
    refused(
        put(WEIGHT, FileDtype::F8_E4M3, &[1024, 96], &[0; 1024 * 96]),
        "has 96 columns, not a multiple of 128",
    );
    refused(
        |m| {
            put(norm, FileDtype::F8_E4M3, &[256], &[0; 256])(m);
            put("model.norm.weight_scale_inv", FileDtype::F32, &[2], &[0; 8])(m);
        },
        "model.norm.weight is in fp8 and has the shape [256]: only matrices are",
    );
    refused(
        |m| m.tensors.get_mut(WEIGHT).unwrap().0 = FileDtype::F8_E5M2,
        "up_proj.weight is stored as F8_E5M2",
    );
    refused(
        |m| drop(m.config.as_object_mut().unwrap().remove("quantization_config")),
        "is in fp8, but config.json has no quantization_config",
    );
}

#[test]
fn a_code_that_is_no_number_is_named_when_it_is_read() {
    let (mut model, _) = models(FileDtype::F32);
    for code in [0x7f, 0xff] {
        model.tensors.get_mut(WEIGHT).unwrap().2[200 * HIDDEN + 131] = code;
        let source = source::open(model.write()).unwrap();
        let index = source.tensors().iter().position(|tensor| tensor.name == "blk.1.ffn_up.weight");
        let (index, mut out) = (index.unwrap(), Vec::new());
        source.read_rows(index, 0, 200, &mut out).unwrap();
        let error = source.read_rows(index, 190, 20, &mut out).unwrap_err().to_string();
        assert_eq!(error, format!("tensor {WEIGHT} is not a number in row 200, column 131"));
    }
}

#[test]
fn an_output_matrix_in_fp8_that_copies_the_embedding_is_left_out() {
    let (mut model, _) = models(FileDtype::F32);
    model.config["tie_word_embeddings"] = json!(true);
    let weights = (FileDtype::F8_E4M3, vec![VOCAB, HIDDEN], vec![0x35; VOCAB * HIDDEN]);
    let scales =
        (FileDtype::F32, vec![VOCAB.div_ceil(128), 2], vec![0x3c; VOCAB.div_ceil(128) * 8]);
    for name in ["model.embed_tokens.weight", "lm_head.weight"] {
        model.tensors.insert(name.to_owned(), weights.clone());
        model.tensors.insert(format!("{name}_scale_inv"), scales.clone());
    }
    let source = source::open(model.write()).unwrap();
    assert!(source.tensors().iter().all(|tensor| tensor.name != "output.weight"));
    // Other scales are other weights.
    model.tensors.get_mut("lm_head.weight_scale_inv").unwrap().2[12] ^= 1;
    let error = source::open(model.write()).unwrap_err().to_string();
    assert!(error.contains("lm_head.weight is not a copy"), "{error}");
}

/// A model with this change is refused, and the message says so.
fn refused(change: impl FnOnce(&mut Model), expected: &str) {
    let (mut model, _) = models(FileDtype::F32);
    change(&mut model);
    let error = source::open(model.write()).unwrap_err().to_string();
    assert!(error.contains(expected), "{error:?} for {expected:?}");
}

/// Puts a tensor into a model, in place of one that is there.
fn put(
    name: &str,
    dtype: FileDtype,
    shape: &[usize],
    bytes: &[u8],
) -> impl FnOnce(&mut Model) + use<> {
    let (name, tensor) = (name.to_owned(), (dtype, shape.to_vec(), bytes.to_vec()));
    |model| drop(model.tensors.insert(name, tensor))
}

/// A model of two layers in fp8 with scales of this type, and the same in f32; embedding and output matrix are bf16 in both.
fn models(scale_dtype: FileDtype) -> (Model, Model) {
    let (mut fp8, mut float) = (Model::tiny("qwen3"), Model::tiny("qwen3"));
    for (name, value) in [
        ("hidden_size", json!(HIDDEN)),
        ("intermediate_size", json!(INTERMEDIATE)),
        ("vocab_size", json!(VOCAB)),
        ("tie_word_embeddings", json!(false)),
    ] {
        fp8.config[name] = value.clone();
        float.config[name] = value;
    }
    fp8.config["quantization_config"] = json!({
        "activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8",
        "weight_block_size": [128, 128], "modules_to_not_convert": ["lm_head"],
    });
    fp8.tensors.clear();
    float.tensors.clear();
    let mut random = Random(3);
    let mut outside = vec![("model.norm".to_owned(), vec![HIDDEN])];
    for name in ["model.embed_tokens", "lm_head"] {
        outside.push((name.to_owned(), vec![VOCAB, HIDDEN]));
    }
    for layer in 0..2 {
        let inside = |module: &str| format!("model.layers.{layer}.{module}");
        for (module, len) in [
            ("input_layernorm", HIDDEN),
            ("post_attention_layernorm", HIDDEN),
            ("self_attn.q_norm", 32),
            ("self_attn.k_norm", 32),
        ] {
            outside.push((inside(module), vec![len]));
        }
        for (module, rows, cols) in [
            ("self_attn.q_proj", 128, HIDDEN),
            ("self_attn.k_proj", 64, HIDDEN),
            ("self_attn.v_proj", 64, HIDDEN),
            ("self_attn.o_proj", HIDDEN, 128),
            ("mlp.gate_proj", INTERMEDIATE, HIDDEN),
            ("mlp.up_proj", INTERMEDIATE, HIDDEN),
            ("mlp.down_proj", HIDDEN, INTERMEDIATE),
        ] {
            let name = format!("{}.weight", inside(module));
            put_blocks((&mut fp8, &mut float), &name, (rows, cols), scale_dtype, &mut random);
        }
    }
    for (name, shape) in outside {
        let norm = shape.len() == 1;
        let values = (0..shape.iter().product::<usize>()).map(|_| random.value());
        let values: Vec<f32> = values.map(|x| if norm { 1.0 + x / 4.0 } else { x }).collect();
        let bytes = bytes(Dtype::Bf16, &values);
        for model in [&mut fp8, &mut float] {
            let tensor = (FileDtype::BF16, shape.clone(), bytes.clone());
            model.tensors.insert(format!("{name}.weight"), tensor);
        }
    }
    (fp8, float)
}

/// Random codes and scales to one model, their products to the other. Rows may end within a block.
fn put_blocks(
    (fp8, float): (&mut Model, &mut Model),
    name: &str,
    (rows, cols): (usize, usize),
    scale_dtype: FileDtype,
    random: &mut Random,
) {
    let grid = vec![rows.div_ceil(128), cols / 128];
    let scales: Vec<f32> = (0..grid[0] * grid[1])
        .map(|_| (0.2 + 0.1 * random.value()) / 448.0)
        .map(|scale| match scale_dtype {
            FileDtype::BF16 => f32::from_bits(scale.to_bits() & 0xffff_0000),
            _ => scale,
        })
        .collect();
    let codes: Vec<u8> = (0..rows * cols).map(|_| e4m3::encode(448.0 * random.value())).collect();
    let values = codes.iter().enumerate().flat_map(|(at, code)| {
        let (row, col) = (at / cols, at % cols);
        let scale = scales[row / 128 * grid[1] + col / 128];
        (e4m3::decode(*code) * scale).to_le_bytes()
    });
    float.tensors.insert(name.to_owned(), (FileDtype::F32, vec![rows, cols], values.collect()));
    fp8.tensors.insert(name.to_owned(), (FileDtype::F8_E4M3, vec![rows, cols], codes));
    let stored = if scale_dtype == FileDtype::BF16 { Dtype::Bf16 } else { Dtype::F32 };
    let stored = bytes(stored, &scales);
    fp8.tensors.insert(format!("{name}_scale_inv"), (scale_dtype, grid, stored));
}

fn bytes(dtype: Dtype, values: &[f32]) -> Vec<u8> {
    let mut out = Vec::new();
    quantize(dtype, values, &mut out).unwrap();
    out
}

/// Logits of every token of a short text.
fn logits<D: Device>(device: D, source: &Source) -> Vec<f32> {
    let limits = DecoderLimits {
        max_tokens: 16,
        max_logit_rows: 16,
        num_blocks: 2,
        block_size: 16,
        cache_dtype: CacheDtype::F32,
    };
    let mut model = decoder(device, source, source.architecture(), limits);
    let mut batch = Batch::default();
    let tokens: Vec<u32> = (0..13).map(|n| n * n * 7 % VOCAB as u32).collect();
    batch.push(&tokens, 0, &[1], WantLogits::All);
    step(&mut model, &batch)
}

/// xorshift64.
struct Random(u64);

impl Random {
    /// Within ±1, mostly small.
    fn value(&mut self) -> f32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        let x = (self.0 >> 40) as f32 / (1u32 << 23) as f32 - 1.0;
        x * x * x
    }
}

const WEIGHT: &str = "model.layers.1.mlp.up_proj.weight";
const SCALES: &str = "model.layers.1.mlp.up_proj.weight_scale_inv";
const HIDDEN: usize = 256;
const INTERMEDIATE: usize = 384;
const VOCAB: usize = 150;
