//! GGUF files: what is honest is read exactly, what is not is refused by name.

use std::io::Cursor;
use std::path::Path;

use chrysalis_kernels::Dtype;
use chrysalis_models::source::gguf::{Gguf, GgufError, Value};
use chrysalis_models::source::{self, Source, SourceError};

use super::gguf_writer::{GgufWriter, LLAMA_TENSORS, Random, Tensor, llama, matrix, string};

#[test]
fn metadata_is_read_by_type() {
    let mut file = GgufWriter::default();
    file.u32("a.u32", 7)
        .f32("a.f32", 0.5)
        .text("a.text", "grüße")
        .texts("a.texts", &["x", "", "y"])
        .integers("a.ints", &[-1, 2])
        .entry("a.bool", 7, &[1])
        .entry("a.u64", 10, &9_u64.to_le_bytes())
        .entry("a.i8", 1, &[0xff])
        .entry("a.f64", 12, &0.25_f64.to_le_bytes());
    for version in [2, 3] {
        file.version = version;
        let gguf = Gguf::read(Cursor::new(file.build().0)).unwrap();
        let metadata = gguf.metadata();
        assert_eq!(metadata.u32("a.u32").unwrap(), Some(7));
        assert_eq!(metadata.f32("a.f32").unwrap(), Some(0.5));
        assert_eq!(metadata.text("a.text").unwrap(), Some("grüße"));
        assert_eq!(metadata.texts("a.texts").unwrap().unwrap(), ["x", "", "y"]);
        assert_eq!(metadata.integers("a.ints").unwrap().unwrap(), [-1, 2]);
        assert_eq!(metadata.bool("a.bool").unwrap(), Some(true));
        assert_eq!(metadata.u32("a.u64").unwrap(), Some(9));
        assert_eq!(metadata.get("a.i8"), Some(&Value::Integer(-1)));
        assert_eq!(metadata.f32("a.f64").unwrap(), Some(0.25));
        assert_eq!(metadata.u32("nothing").unwrap(), None);
        let wrong = metadata.u32("a.i8").unwrap_err();
        assert_eq!(wrong.to_string(), "metadata key a.i8 is not an unsigned 32-bit integer");
        assert!(matches!(metadata.text("a.u32"), Err(GgufError::WrongType { .. })));
    }
}

#[test]
fn every_dtype_is_kept_byte_for_byte() {
    for dtype in Dtype::ALL.into_iter().filter(|dtype| (*dtype as u16) < Dtype::OURS) {
        let file = llama(dtype);
        let source = open(&file).unwrap();
        assert_eq!(source.name(), "tiny llama");
        assert_eq!(source.licence(), Some("apache-2.0"));
        assert_eq!(source.tensors().len(), LLAMA_TENSORS.len());
        let mut bytes = Vec::new();
        for (index, tensor) in source.tensors().iter().enumerate() {
            let stored = file.tensors.iter().find(|stored| stored.name == tensor.name).unwrap();
            source.read(index, &mut bytes).unwrap();
            if tensor.name.contains("attn_q") || tensor.name.contains("attn_k") {
                let expected = unpermuted(&stored.bytes, tensor.row_len());
                assert_eq!(bytes, expected, "{} {dtype:?}", tensor.name);
            } else {
                assert_eq!(bytes, stored.bytes, "{} {dtype:?}", tensor.name);
            }
            let expected = if tensor.dims.len() == 1 { Dtype::F32 } else { dtype };
            assert_eq!(tensor.dtype, expected);
        }
    }
}

#[test]
fn pieces_of_a_tensor_join_to_the_whole() {
    let source = open(&llama(Dtype::Q8_0)).unwrap();
    for (index, tensor) in source.tensors().iter().enumerate() {
        let (mut whole, mut piece, mut joined) = (Vec::new(), Vec::new(), Vec::new());
        source.read(index, &mut whole).unwrap();
        let mut first = 0;
        for count in (1..).step_by(6) {
            let count = tensor.num_rows().saturating_sub(first).min(count);
            source.read_rows(index, first, count, &mut piece).unwrap();
            joined.extend_from_slice(&piece);
            first += count;
            if count == 0 {
                break;
            }
        }
        assert_eq!(joined, whole, "{}", tensor.name);
        let beyond = source.read_rows(index, 1, tensor.num_rows(), &mut piece);
        assert!(matches!(beyond, Err(SourceError::Rows { .. })));
    }
}

#[test]
fn a_file_cut_anywhere_is_refused() {
    let (bytes, head) = small().build();
    Gguf::read(Cursor::new(&bytes)).unwrap();
    for len in 0..bytes.len() {
        let error = Gguf::read(Cursor::new(&bytes[..len])).unwrap_err();
        let named = matches!(
            error,
            GgufError::Truncated { .. } | GgufError::TooMany { .. } | GgufError::OutsideFile { .. }
        );
        assert!(named, "cut to {len} of {head}: {error}");
    }
}

#[test]
fn a_head_with_a_wrong_byte_is_read_or_refused() {
    let (bytes, head) = small().build();
    for at in 0..head {
        for wrong in [0x00, 0x01, 0x7f, 0x80, 0xff] {
            let mut bytes = bytes.clone();
            bytes[at] = wrong;
            // Whatever it says, it says it without a panic, and its tensors are in the file.
            if let Ok(gguf) = Gguf::read(Cursor::new(&bytes)) {
                for (index, tensor) in gguf.tensors().iter().enumerate() {
                    let mut out = vec![0; tensor.len as usize];
                    gguf.read_tensor(index, 0, &mut out).unwrap();
                }
            }
        }
    }
}

#[test]
fn noise_behind_a_magic_is_refused() {
    let mut random = Random(3);
    for _ in 0..2_000 {
        let mut bytes = b"GGUF\x03\0\0\0".to_vec();
        for _ in 0..random.next() % 40 {
            // Small numbers get deeper.
            let word = random.next() >> (random.next() % 64);
            bytes.extend(word.to_le_bytes());
        }
        if let Ok(gguf) = Gguf::read(Cursor::new(&bytes)) {
            assert!(gguf.tensors().iter().all(|tensor| tensor.len < bytes.len() as u64));
        }
    }
}

#[test]
fn each_lie_about_counts_and_values_is_refused_by_name() {
    let array = |kind: u32, count: u64| [&kind.to_le_bytes()[..], &count.to_le_bytes()].concat();
    let huge = 1_u64 << 60;
    refused(vec![
        ("GGUF version 1 is not", Box::new(|file| file.version = 1)),
        ("GGUF version 4 is not", Box::new(|file| file.version = 4)),
        ("metadata pairs are too many", Box::new(move |file| file.extra_pairs = huge)),
        ("tensors are too many", Box::new(move |file| file.extra_tensors = huge)),
        ("array elements are too many", entry(9, array(8, huge))),
        ("array elements are too many", entry(9, array(0, 1 << 23))),
        ("metadata string of", entry(8, huge.to_le_bytes().to_vec())),
        ("the file of", entry(8, 1_000_000_u64.to_le_bytes().to_vec())),
        ("k has the unknown value type 13", entry(13, vec![0; 8])),
        ("k has the unknown value type 9", entry(9, array(9, 1))),
        ("k is not a bool of 0 or 1", entry(7, vec![2])),
        ("k is not an integer below 2^63", entry(10, vec![0xff; 8])),
        ("metadata string at", entry(8, string(&[0xff, 0xfe]))),
        ("metadata key u is there twice", number("u", 1)),
        ("alignment 0 is", number("general.alignment", 0)),
        ("alignment 48 is", number("general.alignment", 48)),
        ("alignment 2147483648 is", number("general.alignment", 1 << 31)),
    ]);
    let error = Gguf::read(Cursor::new(b"GGML\x03\0\0\0")).unwrap_err();
    assert!(matches!(error, GgufError::Magic(_)));
}

#[test]
fn each_lie_about_a_tensor_is_refused_by_name() {
    refused(vec![
        ("tensor t is there twice", tensor(|it| it.name = "t".to_owned())),
        ("tensor name of 300 bytes", tensor(|it| it.name = "x".repeat(300))),
        ("0 dimensions", tensor(|it| it.dims = vec![])),
        ("5 dimensions", tensor(|it| it.dims = vec![1; 5])),
        ("the dimensions [32, 0]", tensor(|it| it.dims = vec![32, 0])),
        ("the dimensions [32, 4294967296]", tensor(|it| it.dims[1] = 1 << 32)),
        ("the size of a tensor overflows", tensor(|it| it.dims = vec![(1 << 32) - 32; 4])),
        ("rows of 33 values are not whole groups of Q8_0", tensor(|it| it.dims[0] = 33)),
        ("stored as Q2_K", tensor(|it| it.code = 10)),
        ("stored as type 99", tensor(|it| it.code = 99)),
        // Ours, and none of ggml's.
        ("stored as type 32768", tensor(|it| it.code = u32::from(Dtype::OURS))),
        ("offset 33 is not aligned to 32", tensor(|it| it.offset = Some(33))),
        ("t and u overlap", tensor(|it| it.offset = Some(32))),
        ("tensor u ends at", tensor(|it| it.offset = Some(64_000))),
        ("the end of a tensor overflows", tensor(|it| it.offset = Some(u64::MAX - 31))),
    ]);
}

#[test]
fn a_tensor_is_not_read_beyond_its_end() {
    let gguf = Gguf::read(Cursor::new(small().build().0)).unwrap();
    let mut out = [0; 35];
    assert!(matches!(gguf.read_tensor(0, 34, &mut out), Err(GgufError::OutsideTensor { .. })));
    assert!(matches!(
        gguf.read_tensor(0, u64::MAX, &mut out),
        Err(GgufError::OutsideTensor { .. })
    ));
}

#[test]
fn a_tensor_too_few_too_many_or_misshapen_is_named() {
    let mut missing = llama(Dtype::F16);
    missing.tensors.retain(|tensor| tensor.name != "blk.0.ffn_up.weight");
    assert_eq!(refusal(&missing), "tensor blk.0.ffn_up.weight is missing");

    let mut extra = llama(Dtype::F16);
    extra.tensor("blk.0.attn_sinks.weight", Dtype::F32, &[4], vec![0; 16]);
    assert_eq!(refusal(&extra), "tensor blk.0.attn_sinks.weight is not part of the architecture");

    let mut layer = llama(Dtype::F16);
    layer.tensor("blk.1.attn_norm.weight", Dtype::F32, &[4], vec![0; 16]);
    assert!(refusal(&layer).contains("blk.1.attn_norm.weight is not part"));

    let mut shape = llama(Dtype::F16);
    let down = shape.tensors.iter_mut().find(|it| it.name.contains("ffn_down")).unwrap();
    down.dims.reverse();
    assert_eq!(
        refusal(&shape),
        "tensor blk.0.ffn_down.weight has the shape [512, 256], not [256, 512]"
    );

    let mut unknown = llama(Dtype::F16);
    unknown.entries.remove(0);
    unknown.text("general.architecture", "mamba");
    let refused = refusal(&unknown);
    assert!(refused.starts_with("architecture mamba is unknown; known are LlamaForCausalLM"));
    assert!(refused.contains("gemma3"), "{refused}");
}

/// Two small tensors and one value of each kind.
fn small() -> GgufWriter {
    let mut file = GgufWriter::default();
    file.u32("u", 1).texts("s", &["ab", "c"]).f32("f", 1.0);
    file.tensor("t", Dtype::Q8_0, &[2, 32], matrix(Dtype::Q8_0, 64, 1));
    file.tensor("u", Dtype::Q8_0, &[2, 32], matrix(Dtype::Q8_0, 64, 2));
    file
}

/// What is done to an honest file.
type Lie = Box<dyn Fn(&mut GgufWriter)>;

/// Each lie is refused with a message that has the text before it.
fn refused(cases: Vec<(&str, Lie)>) {
    for (expected, lie) in cases {
        let mut file = small();
        lie(&mut file);
        let error = Gguf::read(Cursor::new(file.build().0)).unwrap_err().to_string();
        assert!(error.contains(expected), "{error:?} for {expected:?}");
    }
}

fn entry(kind: u32, value: Vec<u8>) -> Lie {
    Box::new(move |file| {
        file.entry("k", kind, &value);
    })
}

fn number(key: &'static str, value: u32) -> Lie {
    Box::new(move |file| {
        file.u32(key, value);
    })
}

fn tensor(change: impl Fn(&mut Tensor) + 'static) -> Lie {
    Box::new(move |file| change(&mut file.tensors[1]))
}

fn open(file: &GgufWriter) -> Result<Source, SourceError> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    std::fs::write(&path, file.build().0).unwrap();
    // The open file outlives its folder.
    source::open(Path::new(&path))
}

fn refusal(file: &GgufWriter) -> String {
    open(file).unwrap_err().to_string()
}

/// The inverse of what llama.cpp's converter does to the rows of q and k: it takes each head as
/// `[2, 32, cols]` and swaps the first two.
fn unpermuted(bytes: &[u8], row_len: usize) -> Vec<u8> {
    let mut out = vec![0; bytes.len()];
    for (head_out, head_in) in out.chunks_mut(64 * row_len).zip(bytes.chunks(64 * row_len)) {
        for half in 0..2 {
            for pair in 0..32 {
                let (to, from) = ((half * 32 + pair) * row_len, (pair * 2 + half) * row_len);
                head_out[to..to + row_len].copy_from_slice(&head_in[from..from + row_len]);
            }
        }
    }
    out
}
