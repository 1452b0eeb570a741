//! The vocabulary of the kernels: vectors of 16 f32, 16 i32 and 64 bytes, on every instruction set.
//!
//! A kernel is one generic function over [`Simd`], inlined whole into a [`Task`] that runs inside a
//! function compiled for the instruction set. A vector is always 16 lanes wide, two registers on
//! AVX2, so that memory layouts and orders of summation are the same everywhere.

/// Lanes of a vector.
pub(super) const LANES: usize = 16;

/// Work that is compiled once for each instruction set. `run` must be `#[inline(always)]`.
pub(super) trait Task {
    fn run<S: Simd>(self, simd: S);
}

/// The operations. All are lane by lane unless they say otherwise.
pub(super) trait Simd: Copy + Send + Sync + 'static {
    /// 16 f32.
    type F: Copy;
    /// 16 i32.
    type I: Copy;
    /// 64 unsigned bytes.
    type B: Copy;
    /// Whether the registers hold tiles of 4 rows by 2 vectors, or only half of that.
    const MANY_REGISTERS: bool;
    /// Whether there is one plain kernel for everything: slow, and quick to compile.
    const PLAIN: bool = false;
    /// Whether [`Simd::dot`] takes codes above 127 without being told.
    const DOT_TAKES_ALL: bool = true;

    /// Runs a task as a function of its own, so that no function becomes too large to compile well.
    fn call<T: Task>(self, task: T);

    fn splat(self, x: f32) -> Self::F;
    /// The first 16 values; there must be as many.
    fn load(self, x: &[f32]) -> Self::F;
    fn store(self, x: Self::F, out: &mut [f32]);
    fn load_f16(self, x: &[u16]) -> Self::F;
    fn store_f16(self, x: Self::F, out: &mut [u16]);
    /// 16 words of two bf16: the low halves, and the high ones.
    fn load_bf16_pairs(self, x: &[u8]) -> [Self::F; 2];
    /// 16 unsigned bytes as f32.
    fn load_u8(self, x: &[u8]) -> Self::F;
    /// 16 signed bytes as f32.
    fn load_i8(self, x: &[u8]) -> Self::F;

    fn add(self, a: Self::F, b: Self::F) -> Self::F;
    fn sub(self, a: Self::F, b: Self::F) -> Self::F;
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;
    fn div(self, a: Self::F, b: Self::F) -> Self::F;
    fn max(self, a: Self::F, b: Self::F) -> Self::F;
    fn min(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a * b + c`, rounded once (the scalar set rounds twice).
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// Sum of the lanes, in one fixed order.
    fn sum(self, x: Self::F) -> f32;
    /// Largest lane.
    fn largest(self, x: Self::F) -> f32;
    /// Nearest integers, ties to even.
    fn round(self, x: Self::F) -> Self::I;
    /// The same bits.
    fn bits_to_f(self, x: Self::I) -> Self::F;

    fn splat_i(self, x: i32) -> Self::I;
    fn add_i(self, a: Self::I, b: Self::I) -> Self::I;
    fn sub_i(self, a: Self::I, b: Self::I) -> Self::I;
    fn shl_i<const N: u32>(self, x: Self::I) -> Self::I;
    /// Arithmetic shift.
    fn shr_i<const N: u32>(self, x: Self::I) -> Self::I;
    fn max_i(self, a: Self::I, b: Self::I) -> Self::I;
    fn store_i(self, x: Self::I, out: &mut [i32]);
    /// The bits without the sign: as integers in the order of the magnitudes, and above all of them what is not a number.
    fn magnitude(self, x: Self::F) -> Self::I;
    /// Sum of the lanes. Exact.
    fn sum_i(self, x: Self::I) -> i32;
    /// Lane `i` is the sum of row `i`. Exact.
    fn sum_rows(self, rows: &[[i32; LANES]; LANES]) -> Self::I;
    /// Lane `i` is the largest of row `i`.
    fn largest_rows(self, rows: &[[i32; LANES]; LANES]) -> Self::I;
    /// 16 values within -128..128 as bytes, four to a word, in order.
    fn pack_i8(self, x: Self::I) -> [i32; 4];
    /// To the nearest f32.
    fn to_f(self, x: Self::I) -> Self::F;

    /// The first 64 bytes; there must be as many.
    fn load_b(self, x: &[u8]) -> Self::B;
    fn store_b(self, x: Self::B, out: &mut [u8]);
    /// Each byte `and` the mask.
    fn mask_b(self, x: Self::B, mask: u8) -> Self::B;
    fn or_b(self, a: Self::B, b: Self::B) -> Self::B;
    /// Shifts pairs of bytes right; the caller masks what crosses over.
    fn shr_b(self, x: Self::B, by: u32) -> Self::B;
    /// As [`Simd::shr_b`], to the left.
    fn shl_b(self, x: Self::B, by: u32) -> Self::B;
    /// In lane `i`: `acc + w[4i..4i + 4] · a`, where `a` is four signed bytes. `WIDE` when codes
    /// above 127 occur. Exact.
    fn dot<const WIDE: bool>(self, acc: Self::I, w: Self::B, a: i32) -> Self::I;
    /// Each byte `xor` the mask.
    fn flip_b(self, x: Self::B, mask: u8) -> Self::B;
    /// The same bits, four bytes to a lane.
    fn b_to_f(self, x: Self::B) -> Self::F;
    /// Turns columns of words into vectors: lane `i` of vector `j` is the word `j` (four bytes) of the row that starts
    /// `i * stride` bytes behind the start. Reads 16 bytes of each of 16 rows; they must be there.
    fn columns(self, rows: &[u8], stride: usize) -> [Self::B; 4];
    /// Sorts bytes by their place in a lane: byte `4 * i + j` goes to `16 * j + i`.
    fn sort_b(self, x: Self::B) -> Self::B;
    /// Stores the low halves of the lanes, then `apart` values behind the start the high ones.
    fn store_halves(self, x: Self::B, out: &mut [u16], apart: usize);
    /// Asks for the cache line `at` bytes behind the start, which will be read soon.
    fn prefetch<T>(self, x: &[T], at: usize);

    /// `e^x`: relative error below 2e-7 for -87 < x < 88; 0 below, the value at 88 above.
    #[inline(always)]
    fn exp(self, x: Self::F) -> Self::F {
        // e^x = 2^n * e^r, |r| <= ln 2 / 2, and a polynomial of degree 6 (Cephes, expf).
        let x = self.min(self.max(x, self.splat(-104.0)), self.splat(88.0));
        let n = self.round(self.mul(x, self.splat(std::f32::consts::LOG2_E)));
        let n_f = self.to_f(n);
        let r = self.fma(n_f, self.splat(-0.693_359_4), x);
        let r = self.fma(n_f, self.splat(2.121_944_4e-4), r);
        let mut p = self.splat(1.987_569_1e-4);
        for c in [1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
            p = self.fma(p, r, self.splat(c));
        }
        let p = self.fma(self.mul(p, r), r, self.add(r, self.splat(1.0)));
        // 2^n in two factors, so that results below 2^-126 fade out instead of wrapping.
        let half = self.shr_i::<1>(n);
        let bias = self.splat_i(127);
        let (a, b) = (self.add_i(half, bias), self.add_i(self.sub_i(n, half), bias));
        let a = self.bits_to_f(self.shl_i::<23>(a));
        self.mul(self.mul(p, a), self.bits_to_f(self.shl_i::<23>(b)))
    }

    /// `tanh(x) = 1 - 2 / (e^2x + 1)`; absolute error below 2e-7.
    #[inline(always)]
    fn tanh(self, x: Self::F) -> Self::F {
        let x = self.min(self.max(x, self.splat(-20.0)), self.splat(20.0));
        let e = self.exp(self.add(x, x));
        let one = self.splat(1.0);
        self.sub(one, self.div(self.splat(2.0), self.add(e, one)))
    }
}

/// The bytes that [`Simd::columns`] reads: from the start of the first row to byte 16 of the last.
#[inline(always)]
pub(super) fn sixteen_rows(rows: &[u8], stride: usize) -> &[u8] {
    let len = stride.checked_mul(LANES - 1).and_then(|len| len.checked_add(16));
    &rows[..len.unwrap_or(usize::MAX)]
}
