//! Writes GGUF files, honest ones and others.

use chrysalis_kernels::Dtype;
use chrysalis_kernels::quant::quantize;

/// A GGUF file in the making; every field can be made to lie.
#[derive(Clone)]
pub(crate) struct GgufWriter {
    pub(crate) version: u32,
    pub(crate) entries: Vec<(String, Vec<u8>)>,
    pub(crate) tensors: Vec<Tensor>,
    pub(crate) alignment: usize,
    /// Added to the counts of pairs and tensors.
    pub(crate) extra_pairs: u64,
    pub(crate) extra_tensors: u64,
}

#[derive(Clone)]
pub(crate) struct Tensor {
    pub(crate) name: String,
    /// Innermost first, as in the file.
    pub(crate) dims: Vec<u64>,
    pub(crate) code: u32,
    pub(crate) bytes: Vec<u8>,
    /// In place of the honest one.
    pub(crate) offset: Option<u64>,
}

impl Default for GgufWriter {
    fn default() -> Self {
        Self {
            version: 3,
            entries: Vec::new(),
            tensors: Vec::new(),
            alignment: 32,
            extra_pairs: 0,
            extra_tensors: 0,
        }
    }
}

impl GgufWriter {
    pub(crate) fn entry(&mut self, key: &str, kind: u32, value: &[u8]) -> &mut Self {
        let mut bytes = kind.to_le_bytes().to_vec();
        bytes.extend_from_slice(value);
        self.entries.push((key.to_owned(), bytes));
        self
    }

    pub(crate) fn u32(&mut self, key: &str, value: u32) -> &mut Self {
        self.entry(key, 4, &value.to_le_bytes())
    }

    pub(crate) fn f32(&mut self, key: &str, value: f32) -> &mut Self {
        self.entry(key, 6, &value.to_le_bytes())
    }

    pub(crate) fn text(&mut self, key: &str, value: &str) -> &mut Self {
        self.entry(key, 8, &string(value.as_bytes()))
    }

    pub(crate) fn texts(&mut self, key: &str, values: &[&str]) -> &mut Self {
        let mut bytes = 8_u32.to_le_bytes().to_vec();
        bytes.extend((values.len() as u64).to_le_bytes());
        for value in values {
            bytes.extend(string(value.as_bytes()));
        }
        self.entry(key, 9, &bytes)
    }

    pub(crate) fn integers(&mut self, key: &str, values: &[i32]) -> &mut Self {
        let mut bytes = 5_u32.to_le_bytes().to_vec();
        bytes.extend((values.len() as u64).to_le_bytes());
        bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        self.entry(key, 9, &bytes)
    }

    /// `dims` outermost first.
    pub(crate) fn tensor(
        &mut self,
        name: &str,
        dtype: Dtype,
        dims: &[u32],
        bytes: Vec<u8>,
    ) -> &mut Self {
        self.tensors.push(Tensor {
            name: name.to_owned(),
            dims: dims.iter().rev().map(|dim| u64::from(*dim)).collect(),
            code: dtype as u32,
            bytes,
            offset: None,
        });
        self
    }

    /// The file, and how long its head is.
    pub(crate) fn build(&self) -> (Vec<u8>, usize) {
        let mut out = b"GGUF".to_vec();
        out.extend(self.version.to_le_bytes());
        out.extend((self.tensors.len() as u64 + self.extra_tensors).to_le_bytes());
        out.extend((self.entries.len() as u64 + self.extra_pairs).to_le_bytes());
        for (key, value) in &self.entries {
            out.extend(string(key.as_bytes()));
            out.extend(value);
        }
        let mut offset = 0_usize;
        for tensor in &self.tensors {
            out.extend(string(tensor.name.as_bytes()));
            out.extend((tensor.dims.len() as u32).to_le_bytes());
            out.extend(tensor.dims.iter().flat_map(|dim| dim.to_le_bytes()));
            out.extend(tensor.code.to_le_bytes());
            out.extend(tensor.offset.unwrap_or(offset as u64).to_le_bytes());
            offset = (offset + tensor.bytes.len()).next_multiple_of(self.alignment);
        }
        let head = out.len();
        for tensor in &self.tensors {
            out.resize(out.len().next_multiple_of(self.alignment), 0);
            out.extend(&tensor.bytes);
        }
        (out, head)
    }
}

/// A llama of one layer, its matrices stored as `dtype`: 256 wide, 4 heads of 64 and 2 for k and v.
pub(crate) fn llama(dtype: Dtype) -> GgufWriter {
    let mut file = GgufWriter::default();
    file.text("general.architecture", "llama")
        .text("general.name", "tiny llama")
        .text("general.license", "apache-2.0")
        .u32("llama.block_count", 1)
        .u32("llama.context_length", 128)
        .u32("llama.embedding_length", 256)
        .u32("llama.feed_forward_length", 512)
        .u32("llama.attention.head_count", 4)
        .u32("llama.attention.head_count_kv", 2)
        .f32("llama.attention.layer_norm_rms_epsilon", 1e-5)
        .u32("llama.vocab_size", 17)
        .u32("tokenizer.ggml.bos_token_id", 1)
        .u32("tokenizer.ggml.eos_token_id", 2);
    let mut seed = 1;
    for (name, dims) in LLAMA_TENSORS {
        if let [len] = dims {
            let norm = (0..*len).flat_map(|i| (1.0 + i as f32 / 64.0).to_le_bytes()).collect();
            file.tensor(name, Dtype::F32, dims, norm);
        } else {
            seed += 1;
            file.tensor(name, dtype, dims, matrix(dtype, dims[0] * dims[1], seed));
        }
    }
    file
}

pub(crate) const LLAMA_TENSORS: &[(&str, &[u32])] = &[
    ("output_norm.weight", &[256]),
    ("token_embd.weight", &[17, 256]),
    ("blk.0.attn_norm.weight", &[256]),
    ("blk.0.attn_q.weight", &[256, 256]),
    ("blk.0.attn_k.weight", &[128, 256]),
    ("blk.0.attn_v.weight", &[128, 256]),
    ("blk.0.attn_output.weight", &[256, 256]),
    ("blk.0.ffn_norm.weight", &[256]),
    ("blk.0.ffn_gate.weight", &[512, 256]),
    ("blk.0.ffn_up.weight", &[512, 256]),
    ("blk.0.ffn_down.weight", &[256, 512]),
];

/// Bytes of a matrix: real ones where there is an encoder, noise where there is none.
pub(crate) fn matrix(dtype: Dtype, len: u32, seed: u64) -> Vec<u8> {
    let mut random = Random(seed);
    let values: Vec<f32> = (0..len).map(|_| random.next() as u8 as f32 / 255.0 - 0.5).collect();
    let mut bytes = Vec::new();
    if quantize(dtype, &values, &mut bytes).is_err() {
        let len = dtype.row_bytes(len as usize).unwrap();
        bytes = (0..len).map(|_| random.next() as u8).collect();
    }
    bytes
}

pub(crate) fn string(bytes: &[u8]) -> Vec<u8> {
    let mut out = (bytes.len() as u64).to_le_bytes().to_vec();
    out.extend_from_slice(bytes);
    out
}

/// splitmix64.
pub(crate) struct Random(pub u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}
