//! The layout of every type, held to the one written value by value.

use super::*;
use crate::cpu::isa::{Isa, Level};
use crate::cpu::matrix::{Data, Matrix, PAIR};
use crate::cpu::upload::Pending;
use crate::device::{DeviceError, Upload as _};
use crate::memory::Arena;
use crate::quant::{self, Unpacked};

#[test]
fn every_type_is_repacked_as_value_by_value_whatever_the_pieces() {
    for isa in Isa::available() {
        let level = Level::new(isa).unwrap();
        for dtype in Dtype::ALL {
            let mut random = Random(dtype as u64 + 1);
            for (rows, units) in SHAPES {
                let cols = units * if dtype.group_len() == 1 { 1 } else { 32 };
                let cols = cols.next_multiple_of(dtype.group_len());
                let row_bytes = dtype.row_bytes(cols).unwrap();
                let stored: Vec<u8> =
                    (0..rows * row_bytes).map(|_| random.below(256) as u8).collect();
                let expected = meaning(dtype, rows, cols, &stored);
                for longest in [1 + row_bytes / 3, 40 * row_bytes + 1, stored.len() + 1] {
                    let pending = Pending::new(&Arena::new(), level, dtype, rows, cols).unwrap();
                    upload(&pending, &stored, longest, &mut random);
                    let found = values(&pending.finish().unwrap());
                    assert!(found == expected, "{isa:?} {dtype:?} {rows} x {cols}, {longest}");
                }
            }
        }
    }
}

#[test]
fn threads_may_bring_the_pieces() {
    let (dtype, rows, cols) = (Dtype::Q5K, 1000, 256);
    let row_bytes = dtype.row_bytes(cols).unwrap();
    let mut random = Random(7);
    let stored: Vec<u8> = (0..rows * row_bytes).map(|_| random.below(256) as u8).collect();
    let pending =
        Pending::new(&Arena::new(), Level::new(Isa::detect()).unwrap(), dtype, rows, cols).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (pending, stored) = (&pending, &stored);
            scope.spawn(move || {
                for (n, piece) in stored.chunks(5003).enumerate().skip(thread).step_by(4) {
                    pending.write(n * 5003, piece).unwrap();
                }
            });
        }
    });
    assert!(values(&pending.finish().unwrap()) == meaning(dtype, rows, cols, &stored));
}

#[test]
fn a_byte_too_few_too_many_or_twice_is_refused() {
    let level = Level::new(Isa::Scalar).unwrap();
    let pending = Pending::new(&Arena::new(), level, Dtype::F16, 70, 3).unwrap();
    pending.write(6, &[1; 400]).unwrap();
    let twice = pending.write(0, &[0; 7]).unwrap_err();
    assert!(matches!(twice, DeviceError::UploadTwice { offset: 6 }));
    let long = pending.write(419, &[0; 2]).unwrap_err();
    assert!(matches!(long, DeviceError::UploadLength { expected: 420, found: 421 }));
    let short = pending.finish().unwrap_err();
    assert!(matches!(short, DeviceError::UploadLength { expected: 420, found: 400 }));
}

/// Brings `stored` in pieces of random length, in a random order.
fn upload(pending: &Pending, stored: &[u8], longest: usize, random: &mut Random) {
    let mut pieces = Vec::new();
    let mut at = 0;
    while at < stored.len() {
        let len = (1 + random.below(longest)).min(stored.len() - at);
        pieces.push(at..at + len);
        at += len;
    }
    while !pieces.is_empty() {
        let piece = pieces.swap_remove(random.below(pieces.len()));
        pending.write(piece.start, &stored[piece]).unwrap();
    }
}

/// The layout of `matrix.rs`, one value after the other; rows beyond the last are zero bytes.
fn meaning(dtype: Dtype, rows: usize, cols: usize, stored: &[u8]) -> (Vec<u8>, Vec<u16>) {
    let (row_bytes, pairs) = (dtype.row_bytes(cols).unwrap(), rows.div_ceil(PAIR));
    let mut stored = stored.to_vec();
    stored.resize(pairs * PAIR * row_bytes, 0);
    if dtype == Dtype::F8E4M3 {
        return eights(cols, &stored);
    }
    let Some(format) = Format::new(dtype, cols) else {
        let width = dtype.group_bytes();
        // BF16: two columns to a word.
        let of_word = if dtype == Dtype::Bf16 { 2 } else { 1 };
        let words = cols.div_ceil(of_word);
        let mut out = vec![0; pairs * PAIR * words * of_word * width];
        for (at, value) in stored.chunks_exact(width).enumerate() {
            let (row, col) = (at / cols, at % cols);
            let word = (row / PAIR * words + col / of_word) * PAIR + row % PAIR;
            let to = word * of_word + col % of_word;
            out[to * width..][..width].copy_from_slice(value);
        }
        return (out, Vec::new());
    };
    let mut codes = vec![0; pairs * format.pair_bytes()];
    let mut halves = vec![0; pairs * format.pair_halves()];
    for (row, bytes) in stored.chunks_exact(row_bytes).enumerate() {
        let codes = &mut codes[row / PAIR * format.pair_bytes()..][..format.pair_bytes()];
        let halves = &mut halves[row / PAIR * format.pair_halves()..][..format.pair_halves()];
        put_row(format, row % PAIR, bytes, codes, halves);
    }
    (codes, halves)
}

/// The layout of `f8.rs`.
fn eights(cols: usize, stored: &[u8]) -> (Vec<u8>, Vec<u16>) {
    let group_bytes = Dtype::F8E4M3.group_bytes();
    let groups = cols / 128;
    let mut codes = vec![0; stored.len() / group_bytes * 128];
    let mut scales = vec![0; codes.len() / 64];
    for (at, group) in stored.chunks_exact(group_bytes).enumerate() {
        let (row, g) = (at / groups, at % groups);
        let to = (row / PAIR * groups + g) * PAIR + row % PAIR;
        (scales[2 * to], scales[2 * to + 1]) =
            (u16::from_le_bytes(read(group, 0)), u16::from_le_bytes(read(group, 2)));
        for (i, code) in group[4..].iter().enumerate() {
            let four = row / PAIR * cols / 4 + (128 * g + i) / 4;
            codes[(four * PAIR + row % PAIR) * 4 + i % 4] = *code;
        }
    }
    (codes, scales)
}

fn put_row(format: Format, row: usize, bytes: &[u8], codes: &mut [u8], halves: &mut [u16]) {
    let (dtype, panel, lane) = (format.dtype, row / LANES, row % LANES);
    let (small, codes) = codes.split_at_mut(format.small_bytes());
    let mut group = Unpacked::default();
    for (s, block) in bytes.chunks_exact(dtype.group_bytes()).enumerate() {
        quant::unpack(dtype, block, &mut group);
        for (g, values) in group.codes[..dtype.group_len()].chunks_exact(32).enumerate() {
            let g = s * format.per_stored + g;
            let codes = &mut codes[(g * 2 + panel) * format.group_bytes()..];
            for (i, value) in values.iter().enumerate() {
                set_code(codes, format.bits, lane, i, *value);
            }
        }
        let stored = s * 2 + panel;
        let half_at = if dtype == Dtype::Q6K { 208 } else { 0 };
        for i in 0..format.halves_len() / LANES {
            let half = read(&block[half_at..], 2 * i);
            halves[stored * format.halves_len() + i * LANES + lane] = u16::from_le_bytes(half);
        }
        for sub in 0..if small.is_empty() { 0 } else { 8 } {
            let small = &mut small[stored * 256 + sub * 32..][..32];
            (small[lane], small[16 + lane]) = match dtype {
                Dtype::Q6K => (block[192 + sub * 2], block[193 + sub * 2]),
                _ => quant::k_scale_min(&block[4..16], sub),
            };
        }
    }
}

/// Writes the code of column `i` of the row `lane`; the group was zero.
fn set_code(codes: &mut [u8], bits: usize, lane: usize, i: usize, code: u8) {
    let (step, byte) = (i / 4, 4 * lane + i % 4);
    if bits == 8 {
        codes[step * 64 + byte] = code;
        return;
    }
    codes[step % 4 * 64 + byte] |= (code & 15) << (step / 4 * 4);
    match bits {
        5 => codes[256 + byte] |= (code >> 4) << step,
        6 => codes[256 + step / 4 * 64 + byte] |= (code >> 4) << (step % 4 * 2),
        _ => {}
    }
}

/// All values as they lie in memory: bytes, and scales where there are any, by halves.
fn values(matrix: &Matrix) -> (Vec<u8>, Vec<u16>) {
    match &matrix.data {
        Data::F32(x) => (x.iter().flat_map(|x| x.to_le_bytes()).collect(), Vec::new()),
        Data::F16(x) => (x.iter().flat_map(|x| x.to_le_bytes()).collect(), Vec::new()),
        Data::Bf16(x) => (x.to_vec(), Vec::new()),
        Data::F8(x) => {
            let scales =
                x.scales.iter().flat_map(|x| [x.to_bits() as u16, (x.to_bits() >> 16) as u16]);
            (x.codes.to_vec(), scales.collect())
        }
        Data::Quantised(q) => (q.codes.to_vec(), q.halves.to_vec()),
    }
}

/// xorshift64.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 33) as usize % n
    }
}

/// Rows, and columns of a float type or groups of 32: tails of pairs, panels and blocks.
const SHAPES: [(usize, usize); 8] =
    [(1, 1), (31, 3), (32, 4), (33, 7), (64, 8), (100, 9), (17, 50), (0, 8)];
