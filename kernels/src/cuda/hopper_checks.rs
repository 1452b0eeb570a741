//! What `hopper.cuh` wraps, as the emulator does it, against the PTX manual's maps and a naive product.
#![expect(unsafe_code, reason = "kernels take addresses")]

use half::{bf16, f16};

use super::driver::{Driver as _, Params};
use super::emulated::{Emulated, Memory};
use super::params::params;
use super::tensor_checks::{device, launch, words};

params! {
    /// `host/hopper_checks.cc`.
    CheckProduct, 56 { a: u64, b: u64, more: u64, begun: u64, half: u64, out: u64, after: u64 }
}

/// Rows of A, and the columns that both have.
const ROWS: usize = 64;
const DEPTH: usize = 128;

/// Numbers that are not the same in both types.
fn value(i: usize, j: usize) -> f32 {
    ((i * 37 + j * 101 + 13) % 251) as f32 / 25.1 - 5.0
}

/// The type of both operands.
#[derive(Clone, Copy)]
struct Pair {
    name: &'static str,
    bits: fn(f32) -> u16,
    value: fn(u16) -> f64,
}

const PAIRS: [Pair; 2] = [
    Pair {
        name: "bf16",
        bits: |x| bf16::from_f32(x).to_bits(),
        value: |bits| bf16::from_bits(bits).to_f64(),
    },
    Pair {
        name: "f16",
        bits: |x| f16::from_f32(x).to_bits(),
        value: |bits| f16::from_bits(bits).to_f64(),
    },
];

impl Pair {
    fn word(self, low: f32, high: f32) -> u32 {
        u32::from((self.bits)(low)) | u32::from((self.bits)(high)) << 16
    }

    fn rounded(self, x: f32) -> f64 {
        (self.value)((self.bits)(x))
    }
}

/// A as its threads hold it, step after step: the register says which half of a warp's rows, and which of the step's columns.
fn fragments(pair: Pair) -> Vec<u32> {
    let mut all = Vec::new();
    for (step, thread) in (0..DEPTH / 16).flat_map(|s| (0..128).map(move |t| (s, t))) {
        for register in 0..4 {
            let row = thread / 32 * 16 + thread % 32 / 4 + register % 2 * 8;
            let k = step * 16 + thread % 4 * 2 + register / 2 * 8;
            all.push(pair.word(value(row, k), value(row, k + 1)));
        }
    }
    all
}

/// B as groups of eight columns by eight k, a column a row of eight: first along k, chunk of 64 after chunk.
fn columns(pair: Pair, count: usize) -> Vec<u32> {
    let mut all = Vec::new();
    for first in (0..count).step_by(8) {
        for (k, column) in
            (0..DEPTH).step_by(8).flat_map(|k| (first..first + 8).map(move |c| (k, c)))
        {
            let b = |k: usize| value(column + 300, k);
            all.extend((k..k + 8).step_by(2).map(|k| pair.word(b(k), b(k + 1))));
        }
    }
    all
}

/// A step is summed in f64 with what was there, and rounded once.
fn expected(pair: Pair, row: usize, column: usize) -> f32 {
    (0..DEPTH).step_by(16).fold(0.0, |sum: f32, first| {
        let products = (first..first + 16)
            .map(|k| pair.rounded(value(row, k)) * pair.rounded(value(column + 300, k)));
        products.fold(f64::from(sum), |sum, x| sum + x) as f32
    })
}

#[test]
fn a_product_from_registers_and_a_descriptor_is_there_when_it_was_waited_for() {
    let more = device(&[1, 2, 3, 4]);
    let counts = [8, 32, 64, 128, 256];
    for (pair, count) in PAIRS.into_iter().flat_map(|pair| counts.map(|count| (pair, count))) {
        let (a, b) = (device(&fragments(pair)), device(&columns(pair, count)));
        let empty = || device(&vec![0; 128 * count / 2]);
        let (begun, half, out, after) = (empty(), empty(), empty(), device(&[0; 4]));
        let at = |memory: &Memory| Emulated::default().address(memory);
        let params = CheckProduct {
            a: at(&a),
            b: at(&b),
            more: at(&more),
            begun: at(&begun),
            half: at(&half),
            out: at(&out),
            after: at(&after),
        };
        let shared = 2 * count * 128 + 32;
        launch(&format!("check_product_{}_{count}", pair.name), 160, shared as u32, &params);
        let floats = |memory| words(memory, 64 * count).into_iter().map(f32::from_bits);
        assert!(floats(&begun).chain(floats(&half)).all(f32::is_nan), "{count} columns, too early");
        for (n, found) in floats(&out).enumerate() {
            let (thread, i) = (n / (count / 2), n % (count / 2));
            let row = thread / 32 * 16 + thread % 32 / 4 + i / 2 % 2 * 8;
            let column = i / 4 * 8 + thread % 4 * 2 + i % 2;
            assert!(row < ROWS);
            assert_eq!(found, expected(pair, row, column), "({row}, {column}) of {count} columns");
        }
        assert_eq!(words(&after, 4), [1, 2, 3, 4], "what was copied over the first chunk");
    }
}
