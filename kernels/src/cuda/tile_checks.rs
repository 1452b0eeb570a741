//! What products on tensor cores multiply, from the records that uploads leave: `bf16` of what was stored, each at its place, and
//! zero beyond the matrix.
#![expect(unsafe_code, reason = "kernels take addresses")]
#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use half::bf16;

use super::driver::{Driver as _, Params};
use super::layout::stored;
use super::params::{Tiles, params};
use super::weights::Form;
use super::{Cuda, Emulated};
use crate::device::{Device as _, Upload as _};
use crate::dtype::Dtype;
use crate::quant;

params! {
    /// `host/tile_checks.cc`.
    CheckTiles, 24 { tiles: Tiles, out: u64 }
}

/// The bf16 that the lanes of all records have, back in `[rows, cols]`, both to the next multiple of 64.
fn multiplied(dtype: Dtype, rows: usize, cols: usize, bytes: &[u8]) -> Vec<bf16> {
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
    found.as_chunks().0.iter().map(|bytes| bf16::from_le_bytes(*bytes)).collect()
}

#[test]
fn lanes_multiply_what_was_stored_rounded_once() {
    for dtype in Dtype::ALL.into_iter().filter(|dtype| Form::of(*dtype) != Form::F32) {
        let group = dtype.group_len();
        for (rows, cols) in [(1, 1), (37, 3), (130, 5)] {
            let cols = if group == 1 { cols * 37 } else { cols * group };
            let bytes = stored(dtype, rows, cols);
            let mut values = vec![0.0; rows * cols];
            quant::dequantize(dtype, &bytes, &mut values).unwrap();
            let found = multiplied(dtype, rows, cols, &bytes);
            let padded = cols.next_multiple_of(64);
            for (n, found) in found.into_iter().enumerate() {
                let (row, col) = (n / padded, n % padded);
                let inside = row < rows && col < cols;
                let value = if inside { values[row * cols + col] } else { 0.0 };
                let expected = bf16::from_f32(value);
                // Equal as numbers: a zero may have the other sign.
                let same = found == expected || found.is_nan() && expected.is_nan();
                assert!(same, "{dtype:?} {rows} x {cols} at {row}, {col}: {found}, not {expected}");
            }
        }
    }
}
