//! What `tensor.cuh` wraps, as the emulator does it, against the PTX manual's maps and naive products: everything that the
//! tests say of layouts and tilings stands on these.
#![expect(unsafe_code, reason = "kernels take addresses")]
#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use half::{bf16, f16};

use super::driver::{Driver as _, Launch, Params};
use super::emulated::{Emulated, Memory};
use super::params::params;
use crate::quant::e4m3;

params! {
    /// `host/checks.cc`.
    CheckMultiply, 32 { a: u64, b: u64, c: u64, is_bf16: u64 }
    /// `host/checks.cc`.
    CheckLoad, 24 { from: u64, out: u64, count: u32, transposed: u32 }
    /// `host/checks.cc`.
    CheckCopies, 16 { from: u64, out: u64 }
    /// `host/checks.cc`.
    CheckE4m3, 32 { from: u64, codes: u64, values: u64, count: u64 }
}

#[test]
fn a_product_of_fragments_is_the_product_of_what_they_hold() {
    for is_bf16 in [false, true] {
        let to_bits = |x: f32| match is_bf16 {
            true => bf16::from_f32(x).to_bits(),
            false => f16::from_f32(x).to_bits(),
        };
        let to_float = |bits: u16| match is_bf16 {
            true => bf16::from_bits(bits).to_f64(),
            false => f16::from_bits(bits).to_f64(),
        };
        let value = |i: usize, j: usize| ((i * 37 + j * 101 + 13) % 251) as f32 / 25.1 - 5.0;
        let a: Vec<Vec<u16>> =
            (0..16).map(|i| (0..16).map(|k| to_bits(value(i, k))).collect()).collect();
        let b: Vec<Vec<u16>> =
            (0..16).map(|k| (0..8).map(|j| to_bits(value(k + 16, j))).collect()).collect();
        let c: Vec<Vec<f32>> =
            (0..16).map(|i| (0..8).map(|j| value(i, j + 16)).collect()).collect();
        // The maps of the manual: of A the register says which half of the rows and of k; of B which half of k.
        let pair = |low: u16, high: u16| u32::from(low) | u32::from(high) << 16;
        let (mut words_a, mut words_b, mut words_c) = (Vec::new(), Vec::new(), Vec::new());
        for lane in 0..32 {
            let (group, in_group) = (lane >> 2, lane % 4);
            for i in 0..4 {
                let (row, k) = (group + 8 * (i % 2), 2 * in_group + 8 * (i / 2));
                words_a.push(pair(a[row][k], a[row][k + 1]));
                words_c.push(c[group + 8 * (i / 2)][2 * in_group + i % 2].to_bits());
            }
            for i in 0..2 {
                let k = 2 * in_group + 8 * i;
                words_b.push(pair(b[k][group], b[k + 1][group]));
            }
        }
        let (a_at, b_at, c_at) = (device(&words_a), device(&words_b), device(&words_c));
        launch(
            "check_multiply",
            32,
            0,
            &CheckMultiply {
                a: Emulated::default().address(&a_at),
                b: Emulated::default().address(&b_at),
                c: Emulated::default().address(&c_at),
                is_bf16: is_bf16.into(),
            },
        );
        let found = words(&c_at, 128);
        for lane in 0..32 {
            for i in 0..4 {
                let (row, col) = ((lane >> 2) + 8 * (i / 2), 2 * (lane % 4) + i % 2);
                let products = (0..16).map(|k| to_float(a[row][k]) * to_float(b[k][col]));
                let expected = products.fold(f64::from(c[row][col]), |sum, x| sum + x) as f32;
                let found = f32::from_bits(found[4 * lane + i]);
                assert_eq!(found, expected, "({row}, {col}), bf16: {is_bf16}");
            }
        }
    }
}

#[test]
fn matrices_come_from_shared_memory_as_the_manual_says() {
    let values: Vec<u16> = (0..256).map(|n| n * 3 + 7).collect();
    let from = device(&pairs(&values));
    for (count, transposed) in [(1, false), (2, false), (4, false), (2, true), (4, true)] {
        let out = device(&[0; 128]);
        let (from, at) = (Emulated::default().address(&from), Emulated::default().address(&out));
        let params =
            CheckLoad { from, out: at, count: count as u32, transposed: transposed.into() };
        launch("check_load", 32, 0, &params);
        let found = words(&out, 128);
        for (lane, matrix) in (0..32).flat_map(|lane| (0..count).map(move |m| (lane, m))) {
            // The lane's row, and where in it its pair begins; transposed, its column and where in that.
            let (line, first) = (lane >> 2, 2 * (lane % 4));
            let value = |n: usize| {
                let (row, col) = if transposed { (first + n, line) } else { (line, first + n) };
                values[64 * matrix + 8 * row + col]
            };
            let expected = pairs(&[value(0), value(1)])[0];
            assert_eq!(found[4 * lane + matrix], expected, "lane {lane}, {matrix} of {count}");
        }
    }
}

#[test]
fn copies_are_there_when_they_were_waited_for_and_not_before() {
    let from = device(&(1..=12).collect::<Vec<u32>>());
    let out = device(&[0; 60]);
    let params = CheckCopies {
        from: Emulated::default().address(&from),
        out: Emulated::default().address(&out),
    };
    launch("check_copies", 32, 0, &params);
    let found = words(&out, 60);
    const NONE: u32 = u32::MAX;
    let groups = |there: u32, empty: u32, single: [u32; 4]| {
        let copied = (1..=12).map(|n| if n <= 4 * there { n } else { NONE });
        copied.chain([empty; 4]).chain(single).collect::<Vec<u32>>()
    };
    assert_eq!(found[..20], groups(0, NONE, [NONE; 4]));
    assert_eq!(found[20..40], groups(2, 0, [NONE; 4]));
    assert_eq!(found[40..], groups(3, 0, [1, 0, 0, 0]));
}

#[test]
fn e4m3_is_that_of_the_host() {
    // Every bf16, what lies halfway to the next, and both neighbours of that.
    let words: Vec<u32> = (0..1 << 16)
        .flat_map(|high: u32| [0, 0x7fff, 0x8000, 0x8001].map(|low| high << 16 | low))
        .collect();
    let (from, codes, values) = (device(&words), device(&words), device(&[0; 256]));
    let address = |memory| Emulated::default().address(memory);
    let params = CheckE4m3 {
        from: address(&from),
        codes: address(&codes),
        values: address(&values),
        count: words.len() as u64,
    };
    launch("check_e4m3", 32, 0, &params);
    for (word, found) in words.iter().zip(self::words(&codes, words.len())) {
        assert_eq!(found, u32::from(e4m3::encode(f32::from_bits(*word))), "{word:#x}");
    }
    for (code, found) in (0..=255).zip(self::words(&values, 256)) {
        let (found, expected) = (f32::from_bits(found), e4m3::decode(code));
        let same = found.to_bits() == expected.to_bits() || found.is_nan() && expected.is_nan();
        assert!(same, "{code:#x}: {found} for {expected}");
    }
}

fn pairs(values: &[u16]) -> Vec<u32> {
    let pairs = values.as_chunks::<2>().0.iter();
    pairs.map(|[low, high]| u32::from(*low) | u32::from(*high) << 16).collect()
}

pub(super) fn device(words: &[u32]) -> Memory {
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    let memory = Emulated::default().reserve("a check", bytes.len()).unwrap();
    Emulated::default().write(&memory, 0, &bytes).unwrap();
    memory
}

pub(super) fn words(memory: &Memory, len: usize) -> Vec<u32> {
    let mut bytes = vec![0; 4 * len];
    Emulated::default().read(memory, 0, &mut bytes).unwrap();
    bytes.as_chunks::<4>().0.iter().map(|word| u32::from_le_bytes(*word)).collect()
}

pub(super) fn launch<P: Params>(kernel: &str, threads: u32, shared: u32, params: &P) {
    let launch = Launch { kernel, grid: [1, 1, 1], threads, shared };
    // SAFETY: the addresses are of memory that the caller holds, as long as the kernel's source says.
    unsafe { Emulated::default().launch(&launch, params) }.unwrap();
}
