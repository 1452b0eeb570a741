//! The vocabulary in plain Rust: correct everywhere, fast nowhere.

use super::simd::{LANES, Simd, Task};

/// Every CPU has it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scalar;

fn map<A: Copy, B: Copy, C>(a: [A; LANES], b: [B; LANES], f: impl Fn(A, B) -> C) -> [C; LANES] {
    std::array::from_fn(|i| f(a[i], b[i]))
}

fn first<T: Copy, const N: usize>(x: &[T]) -> [T; N] {
    let x = &x[..N];
    std::array::from_fn(|i| x[i])
}

impl Simd for Scalar {
    type F = [f32; 16];
    type I = [i32; 16];
    type B = [u8; 64];
    const MANY_REGISTERS: bool = false;
    const PLAIN: bool = true;

    #[inline(never)]
    fn call<T: Task>(self, task: T) {
        task.run(self);
    }
    fn splat(self, x: f32) -> Self::F {
        [x; 16]
    }
    fn load(self, x: &[f32]) -> Self::F {
        first(x)
    }
    fn store(self, x: Self::F, out: &mut [f32]) {
        out[..16].copy_from_slice(&x);
    }
    fn load_f16(self, x: &[u16]) -> Self::F {
        first::<_, 16>(x).map(|x| half::f16::from_bits(x).to_f32())
    }
    fn store_f16(self, x: Self::F, out: &mut [u16]) {
        out[..16].copy_from_slice(&x.map(|x| half::f16::from_f32(x).to_bits()));
    }
    fn load_bf16_pairs(self, x: &[u8]) -> [Self::F; 2] {
        let words = first::<_, 16>(x.as_chunks().0).map(u32::from_le_bytes);
        [words.map(|x| f32::from_bits(x << 16)), words.map(|x| f32::from_bits(x & 0xffff_0000))]
    }
    fn load_u8(self, x: &[u8]) -> Self::F {
        first::<_, 16>(x).map(f32::from)
    }
    fn load_i8(self, x: &[u8]) -> Self::F {
        first::<_, 16>(x).map(|x| f32::from(x.cast_signed()))
    }
    fn add(self, a: Self::F, b: Self::F) -> Self::F {
        map(a, b, |a, b| a + b)
    }
    fn sub(self, a: Self::F, b: Self::F) -> Self::F {
        map(a, b, |a, b| a - b)
    }
    fn mul(self, a: Self::F, b: Self::F) -> Self::F {
        map(a, b, |a, b| a * b)
    }
    fn div(self, a: Self::F, b: Self::F) -> Self::F {
        map(a, b, |a, b| a / b)
    }
    fn max(self, a: Self::F, b: Self::F) -> Self::F {
        map(a, b, |a, b| if a > b { a } else { b })
    }
    fn min(self, a: Self::F, b: Self::F) -> Self::F {
        map(a, b, |a, b| if a < b { a } else { b })
    }
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        std::array::from_fn(|i| a[i] * b[i] + c[i])
    }
    fn sum(self, x: Self::F) -> f32 {
        x.into_iter().sum()
    }
    fn largest(self, x: Self::F) -> f32 {
        x.into_iter().fold(f32::NEG_INFINITY, f32::max)
    }
    fn round(self, x: Self::F) -> Self::I {
        x.map(|x| x.round_ties_even() as i32)
    }
    fn bits_to_f(self, x: Self::I) -> Self::F {
        x.map(|x| f32::from_bits(x.cast_unsigned()))
    }
    fn splat_i(self, x: i32) -> Self::I {
        [x; 16]
    }
    fn add_i(self, a: Self::I, b: Self::I) -> Self::I {
        map(a, b, i32::wrapping_add)
    }
    fn sub_i(self, a: Self::I, b: Self::I) -> Self::I {
        map(a, b, i32::wrapping_sub)
    }
    fn shl_i<const N: u32>(self, x: Self::I) -> Self::I {
        x.map(|x| x << N)
    }
    fn shr_i<const N: u32>(self, x: Self::I) -> Self::I {
        x.map(|x| x >> N)
    }
    fn max_i(self, a: Self::I, b: Self::I) -> Self::I {
        std::array::from_fn(|i| a[i].max(b[i]))
    }
    fn store_i(self, x: Self::I, out: &mut [i32]) {
        out[..16].copy_from_slice(&x);
    }
    fn magnitude(self, x: Self::F) -> Self::I {
        x.map(|x| x.abs().to_bits().cast_signed())
    }
    fn sum_rows(self, rows: &[[i32; 16]; 16]) -> Self::I {
        rows.map(|row| row.into_iter().sum())
    }
    fn largest_rows(self, rows: &[[i32; 16]; 16]) -> Self::I {
        rows.map(|row| row.into_iter().fold(i32::MIN, i32::max))
    }
    fn sum_i(self, x: Self::I) -> i32 {
        x.into_iter().sum()
    }
    fn pack_i8(self, x: Self::I) -> [i32; 4] {
        std::array::from_fn(|i| {
            i32::from_le_bytes(std::array::from_fn(|j| x[4 * i + j].to_le_bytes()[0]))
        })
    }
    fn to_f(self, x: Self::I) -> Self::F {
        x.map(|x| x as f32)
    }
    fn load_b(self, x: &[u8]) -> Self::B {
        first(x)
    }
    fn store_b(self, x: Self::B, out: &mut [u8]) {
        out[..64].copy_from_slice(&x);
    }
    fn mask_b(self, x: Self::B, mask: u8) -> Self::B {
        x.map(|x| x & mask)
    }
    fn or_b(self, a: Self::B, b: Self::B) -> Self::B {
        std::array::from_fn(|i| a[i] | b[i])
    }
    fn shr_b(self, x: Self::B, by: u32) -> Self::B {
        x.map(|x| x >> by)
    }
    fn shl_b(self, x: Self::B, by: u32) -> Self::B {
        x.map(|x| x << by)
    }
    fn dot<const WIDE: bool>(self, acc: Self::I, w: Self::B, a: i32) -> Self::I {
        let a = a.to_le_bytes().map(|a| i32::from(a.cast_signed()));
        std::array::from_fn(|i| {
            let products = (0..4).map(|j| i32::from(w[4 * i + j]) * a[j]);
            acc[i] + products.sum::<i32>()
        })
    }
    fn flip_b(self, x: Self::B, mask: u8) -> Self::B {
        x.map(|x| x ^ mask)
    }
    fn b_to_f(self, x: Self::B) -> Self::F {
        std::array::from_fn(|i| f32::from_le_bytes(first(&x[4 * i..])))
    }
    fn columns(self, rows: &[u8], stride: usize) -> [Self::B; 4] {
        std::array::from_fn(|j| std::array::from_fn(|at| rows[at / 4 * stride + 4 * j + at % 4]))
    }
    fn sort_b(self, x: Self::B) -> Self::B {
        std::array::from_fn(|at| x[at % 16 * 4 + at / 16])
    }
    fn store_halves(self, x: Self::B, out: &mut [u16], apart: usize) {
        for (i, lane) in x.as_chunks::<4>().0.iter().enumerate() {
            out[i] = u16::from_le_bytes([lane[0], lane[1]]);
            out[apart + i] = u16::from_le_bytes([lane[2], lane[3]]);
        }
    }
    fn prefetch<T>(self, _x: &[T], _at: usize) {}
}
