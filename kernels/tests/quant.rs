//! Weight groups against recorded vectors: every type decodes to the exact bits that ggml's own
//! Python package computes (E4M3: the package `ml_dtypes`), and the encoders write its exact bytes.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use chrysalis_kernels::Dtype;
use chrysalis_kernels::quant::{QuantError, dequantize, quantize};

#[test]
fn every_type_decodes_to_the_recorded_bits() {
    for dtype in Dtype::ALL.into_iter().filter(|dtype| *dtype != Dtype::F32) {
        let vector = Vector::open("dequantize", dtype);
        let mut found = vec![0.0; vector.values.len()];
        dequantize(dtype, &vector.bytes, &mut found).unwrap();
        for (i, (found, expected)) in found.iter().zip(&vector.values).enumerate() {
            assert_eq!(found.to_bits(), expected.to_bits(), "{} value {i}", dtype.name());
        }
    }
}

#[test]
fn the_encoders_write_the_recorded_bytes() {
    let simple = [Dtype::F16, Dtype::Bf16, Dtype::Q4_0, Dtype::Q4_1, Dtype::Q8_0, Dtype::F8E4M3];
    for dtype in simple {
        let vector = Vector::open("quantize", dtype);
        let mut found = Vec::new();
        quantize(dtype, &vector.values, &mut found).unwrap();
        assert_eq!(found, vector.bytes, "{}", dtype.name());
    }
}

#[test]
fn a_group_of_e4m3_zeros_or_of_tiny_values_is_read_back() {
    for x in [0.0, -0.0, f32::from_bits(1), f32::MIN_POSITIVE, 1e30] {
        let (mut bytes, mut back) = (Vec::new(), [1.0; 128]);
        quantize(Dtype::F8E4M3, &[x; 128], &mut bytes).unwrap();
        dequantize(Dtype::F8E4M3, &bytes, &mut back).unwrap();
        // Where a 448th of the value is no normal number it is rounded more coarsely.
        assert!(
            back.iter().all(|y| (y - x).abs() <= (x / 1e6).max(448.0 * f32::from_bits(1))),
            "{x:e}"
        );
    }
}

#[test]
fn f32_passes_through() {
    let values = [1.0, -0.0, f32::MIN_POSITIVE, 3.4e38];
    let (mut bytes, mut back) = (Vec::new(), [0.0; 4]);
    quantize(Dtype::F32, &values, &mut bytes).unwrap();
    dequantize(Dtype::F32, &bytes, &mut back).unwrap();
    assert_eq!(values.map(f32::to_bits), back.map(f32::to_bits));
}

#[test]
fn a_wrong_length_is_refused() {
    for dtype in Dtype::ALL {
        let bytes = vec![0; dtype.group_bytes() + 1];
        let mut out = vec![0.0; dtype.group_len()];
        let error = dequantize(dtype, &bytes, &mut out).unwrap_err();
        let (bytes, values) = (bytes.len(), out.len());
        assert_eq!(error, QuantError::Length { dtype, bytes, values });
    }
    assert!(quantize(Dtype::Q8_0, &[0.0; 31], &mut Vec::new()).is_err());
    assert!(quantize(Dtype::Q6K, &[0.0; 256], &mut Vec::new()).is_err());
}

struct Vector {
    bytes: Vec<u8>,
    values: Vec<f32>,
}

impl Vector {
    fn open(kind: &str, dtype: Dtype) -> Self {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data");
        let text = std::fs::read_to_string(format!("{folder}/{kind}_{}.txt", dtype.name()));
        let text = text.unwrap();
        let field = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim();
            let digits = line.as_bytes().as_chunks::<2>().0;
            let byte = |d: &[u8; 2]| u8::from_str_radix(str::from_utf8(d).unwrap(), 16).unwrap();
            digits.iter().map(byte).collect::<Vec<u8>>()
        };
        let values = field("values");
        let values = values.as_chunks::<4>().0.iter();
        Self { bytes: field("bytes"), values: values.map(|b| f32::from_le_bytes(*b)).collect() }
    }
}
