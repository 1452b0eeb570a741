//! What products on tensor cores multiply, from the records that uploads leave: what was stored as bf16, or as f16 sixteen times,
//! each at its place, and zero beyond the matrix.
#![expect(unsafe_code, reason = "kernels take addresses")]
#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use half::{bf16, f16};

use super::driver::{Driver as _, Params};
use super::layout::stored;
use super::params::{Tiles, params};
use super::weights::Form;
use super::{Cuda, Emulated};
use crate::device::{Device as _, Upload as _};
use crate::dtype::Dtype;
use crate::quant::{self, Unpacked};

params! {
    /// `host/tile_checks.cc`.
    CheckTiles, 24 { tiles: Tiles, out: u64 }
}

/// What the lanes of all records have, back in `[rows, cols]`, both to the next multiple of 64.
fn found(dtype: Dtype, rows: usize, cols: usize, bytes: &[u8]) -> Vec<f32> {
    let device = Cuda::new(Emulated::default());
    let upload = device.begin_matrix(dtype, rows, cols).unwrap();
    upload.write(0, bytes).unwrap();
    let matrix = upload.finish().unwrap();
    let driver = device.driver();
    let (blocks, chunks) = (rows.div_ceil(64), cols.div_ceil(64));
    let mut found = vec![0; blocks * chunks * 64 * 64 * 2];
    let out = driver.reserve("a check", found.len()).unwrap();
    let params = CheckTiles { tiles: matrix.params(driver), out: driver.address(&out) };
    let name = format!("check_tiles_{}", matrix.form.name());
    device.launch(&name, [(blocks * chunks * 4) as u32, 1, 1], 32, &params).unwrap();
    driver.read(&out, 0, &mut found).unwrap();
    let half = matrix.form.is_half();
    let number = |bytes: &[u8; 2]| match half {
        true => f16::from_le_bytes(*bytes).to_f32(),
        false => bf16::from_le_bytes(*bytes).to_f32(),
    };
    found.as_chunks().0.iter().map(number).collect()
}

fn to_half(x: f64) -> f64 {
    f16::from_f64(x).to_f64()
}

/// What they should have of the matrix, where it is not bf16: sixteen times a value, rounded once. In groups that have codes of
/// scales, or an f32, so are scale and minimum.
fn multiplied(dtype: Dtype, bytes: &[u8]) -> Vec<f64> {
    let mut all = Vec::new();
    for block in bytes.chunks_exact(dtype.group_bytes()) {
        if dtype == Dtype::F16 {
            all.push(to_half(16.0 * f16::from_le_bytes([block[0], block[1]]).to_f64()));
        } else if dtype == Dtype::F8E4M3 {
            let mut codes = [0.0; 128];
            let ones = [&1.0_f32.to_le_bytes(), &block[4..]].concat();
            quant::dequantize(dtype, &ones, &mut codes).unwrap();
            let scale = f32::from_le_bytes([block[0], block[1], block[2], block[3]]);
            let scale = to_half(16.0 * f64::from(scale));
            all.extend(codes.map(|code| to_half(scale * f64::from(code))));
        } else {
            let mut group = Unpacked::default();
            quant::unpack(dtype, block, &mut group);
            for (at, code) in group.codes[..dtype.group_len()].iter().enumerate() {
                let sub = at / quant::sub_group_len(dtype);
                let [scale, minimum] =
                    [group.scales[sub], group.mins[sub]].map(|x| to_half(16.0 * f64::from(x)));
                let code = f64::from(i32::from(*code) - quant::offset(dtype));
                all.push(to_half(scale * code + minimum));
            }
        }
    }
    all
}

#[test]
fn lanes_multiply_what_was_stored_rounded_once() {
    for dtype in Dtype::ALL.into_iter().filter(|dtype| Form::of(*dtype) != Form::F32) {
        let group = dtype.group_len();
        for (rows, cols) in [(1, 1), (37, 3), (130, 5)] {
            let cols = if group == 1 { cols * 37 } else { cols * group };
            let bytes = stored(dtype, rows, cols);
            let values: Vec<f64> = match dtype {
                Dtype::Bf16 => (bytes.as_chunks().0.iter())
                    .map(|bytes| bf16::from_le_bytes(*bytes).to_f64())
                    .collect(),
                _ => multiplied(dtype, &bytes),
            };
            let padded = cols.next_multiple_of(64);
            for (n, found) in found(dtype, rows, cols, &bytes).into_iter().enumerate() {
                let (row, col) = (n / padded, n % padded);
                let inside = row < rows && col < cols;
                let expected = if inside { values[row * cols + col] } else { 0.0 };
                // Equal as numbers: a zero may have the other sign.
                let same = f64::from(found) == expected || found.is_nan() && expected.is_nan();
                assert!(same, "{dtype:?} {rows} x {cols} at {row}, {col}: {found}, not {expected}");
            }
        }
    }
}
