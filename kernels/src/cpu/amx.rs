//! Products of quantised weights by the tile unit of Intel's servers (AMX-INT8): sixteen rows by sixteen columns at once.
//!
//! A panel's codes of a group lie as the unit wants them: eight rows of 64 bytes, four columns to a word. It leaves exact
//! integer sums, to which scales are applied in the order of `linear.rs`, so a row's results are the same bits as those of
//! the AVX-512 kernels: which of the two a row goes through shows nowhere.
//! Source: Intel 64 and IA-32 Architectures Software Developer's Manual, TDPBSUD, LDTILECFG; Linux,
//! Documentation/arch/x86/xstate.rst, for the permission.
#![expect(unsafe_code, reason = "instructions that not every CPU with AVX-512 has")]

use std::arch::asm;
use std::arch::x86_64::{
    __cpuid_count, __m512, _mm512_add_epi32, _mm512_cvtepi32_ps, _mm512_fmadd_ps, _mm512_loadu_ps,
    _mm512_loadu_si512, _mm512_mul_ps, _mm512_set1_epi32, _mm512_set1_ps, _mm512_storeu_ps,
};
use std::mem::MaybeUninit;

use super::activations::Part;
use super::matrix::PAIR;
use super::scales::RECORD;
use super::simd::LANES;
use super::tile_rows::{self, FineTile, HEAD, Head, TILE_ROWS, Tile, part};

/// A loop of nothing but products in four tiles.
macro_rules! in_registers {
    ($name:ident, $product:literal, $doc:literal) => {
        #[doc = $doc]
        pub(super) fn $name(self, count: usize) {
            let _tiles = self.with(&Config::whole());
            for _ in 0..count / 4 {
                // SAFETY: the tiles are configured, all of one shape.
                unsafe {
                    asm!(
                        concat!($product, " tmm0, tmm4, tmm5"),
                        concat!($product, " tmm1, tmm4, tmm5"),
                        concat!($product, " tmm2, tmm4, tmm5"),
                        concat!($product, " tmm3, tmm4, tmm5"),
                        options(nostack, nomem),
                    );
                }
            }
        }
    };
}

/// Proof that the CPU has AVX-512 F, AMX-INT8 and AMX-BF16, and that the system lets this process use its tiles.
#[derive(Clone, Copy, Debug)]
pub(super) struct Amx(());

impl Amx {
    pub(super) fn detect() -> Option<Self> {
        let features = __cpuid_count(7, 0).edx;
        let tiles = AMX_TILE | AMX_INT8 | AMX_BF16;
        (features & tiles == tiles && is_x86_feature_detected!("avx512f") && permitted())
            .then_some(Self(()))
    }

    /// Operations of a whole product of tiles: 16 rows by 16 columns by 64 bytes. A group of 32 fills half of one.
    pub(super) const OPERATIONS: f64 = 2.0 * 16.0 * 16.0 * 64.0;
    /// The same by 32 bf16.
    pub(super) const BF16_OPERATIONS: f64 = 2.0 * 16.0 * 16.0 * 32.0;

    in_registers!(
        in_registers,
        "tdpbsud",
        "So many whole products of bytes without memory, for the probe."
    );
    in_registers!(bf16_in_registers, "tdpbf16ps", "The same of bf16.");

    /// Makes this thread's tiles ready, for weights with `SUBS` scales to a group.
    pub(super) fn configure<const SUBS: usize>(self) -> Configured<SUBS> {
        Configured(self.with(&Config::new(SUBS)))
    }

    /// Makes this thread's tiles ready.
    pub(super) fn with(self, config: &Config) -> InUse {
        // SAFETY: `self` proves that there are tiles; the configuration is 64 bytes of a valid palette.
        unsafe { asm!("ldtilecfg [{0}]", in(reg) &raw const *config, options(nostack, readonly)) };
        InUse(())
    }
}

/// Tiles that are ready, until this is dropped: without them in use, threads change places without 8 KiB more.
pub(super) struct InUse(());

/// The same, for weights with `SUBS` scales to a group.
pub(super) struct Configured<const SUBS: usize>(InUse);

impl Drop for InUse {
    fn drop(&mut self) {
        // SAFETY: there are tiles, and nothing is read from them from here on.
        unsafe { asm!("tilerelease", options(nostack, nomem)) };
    }
}

impl<const SUBS: usize> Configured<SUBS> {
    /// Adds the products of sixteen rows with a block of a pair of panels to `sums`: of their first records, then of the
    /// second. The first block of a row begins with zeros, whatever the sums are.
    pub(super) fn multiply(&self, block: &Block<'_>, sums: &mut Sums) {
        let groups = block.tiles.len();
        assert!(block.codes.len() >= groups * 2 * PANEL, "codes of the block");
        assert!(block.scales.len() >= groups * RECORD, "scales of the block");
        let within = |tile: &FineTile| {
            let g = tile[Head::GROUP] as usize;
            (block.first..block.first + groups).contains(&g)
                && tile[Head::COUNT] <= TILE_ROWS as i32
        };
        assert!(block.fine.iter().all(within), "second records of the block");
        // SAFETY: the tiles are configured for `SUBS`, which proves the features; the lengths and groups were just checked.
        unsafe { multiply::<SUBS>(block, sums) }
    }
}

/// Sums of sixteen rows with a pair of panels.
#[repr(align(64))]
pub(super) struct Sums(pub(super) [[f32; PAIR]; TILE_ROWS]);

/// One block of groups of a pair of panels, and the rows that it meets.
#[derive(Clone, Copy, Debug)]
pub(super) struct Block<'a> {
    /// The rows' groups of the block.
    pub(super) tiles: &'a [Tile],
    /// Their second records.
    pub(super) fine: &'a [FineTile],
    /// The block's first group.
    pub(super) first: usize,
    /// `[group][panel]` codes, a byte each.
    pub(super) codes: &'a [u8],
    /// Records of the groups' scales.
    pub(super) scales: &'a [f32],
    /// Where in a record the integer sum starts, where it does not start at zero.
    pub(super) start: Option<usize>,
    /// Whether groups have a minimum.
    pub(super) min: bool,
}

/// # Safety
/// The tiles are configured for `SUBS`; the slices of `block` are as [`Configured::multiply`] checks.
#[inline(never)]
#[target_feature(enable = "avx512f")]
unsafe fn multiply<const SUBS: usize>(block: &Block<'_>, carry: &mut Sums) {
    let first = match (block.start, block.min) {
        (None, true) => first::<SUBS, false, true>,
        (None, false) => first::<SUBS, false, false>,
        (Some(_), true) => first::<SUBS, true, true>,
        (Some(_), false) => first::<SUBS, true, false>,
    };
    for panel in 0..2 {
        // SAFETY: the caller's.
        unsafe { first(block, panel, carry) };
    }
    for tile in block.fine {
        for panel in 0..2 {
            // SAFETY: the caller's; the tile is one of the block's.
            unsafe { second::<SUBS>(block, tile, panel, carry) };
        }
    }
}

/// # Safety
/// As [`multiply`]; `panel` is 0 or 1.
#[expect(clippy::needless_range_loop, reason = "indices that become registers")]
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn first<const SUBS: usize, const START: bool, const MIN: bool>(
    block: &Block<'_>,
    panel: usize,
    carry: &mut Sums,
) {
    let mut products: [MaybeUninit<Products>; 2] = [MaybeUninit::uninit(), MaybeUninit::uninit()];
    let mut sums: [__m512; TILE_ROWS] = [_mm512_set1_ps(0.0); TILE_ROWS];
    if block.first > 0 {
        for m in 0..TILE_ROWS {
            // SAFETY: a row of the carry has two panels of 16 values.
            sums[m] = unsafe { _mm512_loadu_ps(carry.0[m].as_ptr().wrapping_add(panel * LANES)) };
        }
    }
    // The unit has a step's time for each product, and its stores another, while scales are applied to the ones before.
    let steps = block.tiles.len() * SUBS;
    let begin = |step: usize| {
        if step < steps {
            let (g, sub) = (step / SUBS, step % SUBS);
            let codes = (2 * g + panel) * PANEL + sub * PANEL / SUBS;
            let (a, b) =
                (&block.tiles[g][sub * 8 / SUBS], block.codes.as_ptr().wrapping_add(codes));
            if step.is_multiple_of(2) {
                // SAFETY: the tile has codes of 16 rows, and there are 8 / `SUBS` lines of weights.
                unsafe { Even::begin(a, b) }
            } else {
                // SAFETY: as before.
                unsafe { Odd::begin(a, b) }
            }
        }
    };
    let store = |step: usize, products: &mut [MaybeUninit<Products>; 2]| {
        if step < steps {
            let out = products[step % 2].as_mut_ptr().cast();
            if step.is_multiple_of(2) {
                // SAFETY: there is room for 16 lines.
                unsafe { Even::store(out) }
            } else {
                // SAFETY: as before.
                unsafe { Odd::store(out) }
            }
        }
    };
    begin(0);
    begin(1);
    store(0, &mut products);
    for step in 0..steps {
        store(step + 1, &mut products);
        begin(step + 2);
        let (g, sub) = (step / SUBS, step % SUBS);
        let tile = &block.tiles[g];
        let scales = block.scales.as_ptr().wrapping_add(g * RECORD + panel * LANES);
        // SAFETY: a record of scales has two times two panels of 16.
        let weight = unsafe { _mm512_loadu_ps(scales.wrapping_add(sub * PAIR)) };
        let products = products[step % 2].as_ptr().cast::<[i32; LANES]>();
        for m in 0..TILE_ROWS {
            // SAFETY: the step's 16 lines of 16 words were written.
            let mut sum = unsafe { _mm512_loadu_si512(products.wrapping_add(m).cast()) };
            if START {
                let start = part(block.start.unwrap_or(Part::SCALE) & 15) + sub * TILE_ROWS;
                sum = _mm512_add_epi32(sum, _mm512_set1_epi32(tile[(start + m) & 255]));
            }
            let scale = f32::from_bits(tile[part(Part::SCALE) + m].cast_unsigned());
            let sum = _mm512_mul_ps(_mm512_cvtepi32_ps(sum), _mm512_set1_ps(scale));
            sums[m] = _mm512_fmadd_ps(sum, weight, sums[m]);
        }
        if MIN && sub + 1 == SUBS {
            // SAFETY: behind the scales of both panels are their minima.
            let min = unsafe { _mm512_loadu_ps(scales.wrapping_add(PAIR)) };
            for m in 0..TILE_ROWS {
                let sum = f32::from_bits(tile[part(Part::SUM) + m].cast_unsigned());
                sums[m] = _mm512_fmadd_ps(min, _mm512_set1_ps(sum), sums[m]);
            }
        }
    }
    for m in 0..TILE_ROWS {
        // SAFETY: a row of the carry has two panels of 16 values.
        unsafe { _mm512_storeu_ps(carry.0[m].as_mut_ptr().wrapping_add(panel * LANES), sums[m]) };
    }
}

/// Adds the second records of one group.
///
/// # Safety
/// As [`multiply`]; `tile` is one of the block's, `panel` is 0 or 1.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn second<const SUBS: usize>(
    block: &Block<'_>,
    tile: &FineTile,
    panel: usize,
    carry: &mut Sums,
) {
    let mut products: MaybeUninit<Products> = MaybeUninit::uninit();
    let g = tile[Head::GROUP] as usize - block.first;
    let codes = block.codes.as_ptr().wrapping_add((2 * g + panel) * PANEL);
    let scales = block.scales.as_ptr().wrapping_add(g * RECORD + panel * LANES);
    let start = part(block.start.unwrap_or(Part::SCALE) & 15);
    for sub in 0..SUBS {
        let (a, b) = (&tile[HEAD + sub * 8 / SUBS], codes.wrapping_add(sub * PANEL / SUBS));
        let out = products.as_mut_ptr().cast();
        if tile[Head::COUNT] > 8 {
            // SAFETY: as in `first`.
            unsafe { Even::begin(a, b) };
            // SAFETY: there is room for 16 lines.
            unsafe { Even::store(out) };
        } else {
            // SAFETY: as in `first`; all records are among the first eight.
            unsafe { Half::begin(a, b) };
            // SAFETY: there is room for 16 lines.
            unsafe { Half::store(out) };
        }
        // SAFETY: a record of scales has two times two panels of 16.
        let weight = unsafe { _mm512_loadu_ps(scales.wrapping_add(sub * PAIR)) };
        for (j, m) in tile_rows::fine_rows(tile).enumerate() {
            let line = products.as_ptr().cast::<[i32; LANES]>().wrapping_add(j & 15);
            // SAFETY: as many lines of 16 words as there are records were written.
            let mut sum = unsafe { _mm512_loadu_si512(line.cast()) };
            if block.start.is_some() {
                let start = tile[HEAD + ((start + sub * TILE_ROWS + j) & 255)];
                sum = _mm512_add_epi32(sum, _mm512_set1_epi32(start));
            }
            let scale = f32::from_bits(tile[HEAD + part(Part::SCALE) + (j & 15)].cast_unsigned());
            let sum = _mm512_mul_ps(_mm512_cvtepi32_ps(sum), _mm512_set1_ps(scale));
            let carry = carry.0[m].as_mut_ptr().wrapping_add(panel * LANES);
            // SAFETY: a row of the carry has two panels of 16 values.
            let before = unsafe { _mm512_loadu_ps(carry) };
            let after = _mm512_fmadd_ps(sum, weight, before);
            // SAFETY: as before.
            unsafe { _mm512_storeu_ps(carry, after) };
        }
    }
}

/// A product that the unit works on: one tile of sums, with tiles of its own for what goes in.
macro_rules! product {
    ($name:ident, $doc:literal, $sums:literal, $rows:literal, $codes:literal) => {
        #[doc = $doc]
        struct $name;

        impl $name {
            /// Multiplies the codes of rows at `a`, 32 bytes apart, with the lines at `b`.
            ///
            /// # Safety
            /// The tiles are configured, and the memory is there: see [`first`].
            #[inline(always)]
            unsafe fn begin(a: *const i32, b: *const u8) {
                // SAFETY: the caller's; no register but the tiles, which only this file uses, is changed.
                unsafe {
                    asm!(
                        concat!("tileloadd ", $rows, ", [{a} + {row} * 1]"),
                        concat!("tileloadd ", $codes, ", [{b} + {line} * 1]"),
                        concat!("tilezero ", $sums),
                        concat!("tdpbsud ", $sums, ", ", $rows, ", ", $codes),
                        a = in(reg) a,
                        b = in(reg) b,
                        row = in(reg) ROW,
                        line = in(reg) LINE,
                        options(nostack, readonly),
                    );
                }
            }

            /// Writes the sums, a line for each row.
            ///
            /// # Safety
            /// As [`Self::begin`], which was the last to use these tiles.
            #[inline(always)]
            unsafe fn store(out: *mut [i32; LANES]) {
                // SAFETY: as in `begin`.
                unsafe {
                    asm!(
                        concat!("tilestored [{out} + {line} * 1], ", $sums),
                        out = in(reg) out,
                        line = in(reg) LINE,
                        options(nostack),
                    );
                }
            }
        }
    };
}

product!(Even, "Of sixteen rows.", "tmm0", "tmm1", "tmm2");
product!(Odd, "The same in other tiles, so that two are on their way.", "tmm3", "tmm4", "tmm5");
product!(Half, "Of the first eight rows.", "tmm6", "tmm7", "tmm2");

/// Integer sums of the rows.
#[repr(align(64))]
struct Products {
    _lines: [[i32; LANES]; TILE_ROWS],
}

/// What LDTILECFG reads: palette 1, and the shapes of eight tiles.
#[repr(C, align(64))]
pub(super) struct Config {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    bytes: [u16; 16],
    rows: [u8; 16],
}

impl Config {
    /// Eight tiles of 16 rows of 64 bytes.
    fn whole() -> Self {
        let mut config = Self::new(1);
        config.bytes[..8].fill(64);
        config.rows[..8].fill(16);
        config
    }

    /// For up to 32 rows of words of bf16: tiles 0 and 1 are the sums of the first 16 with both panels, 2 and 3 those of the
    /// others, 4 and 5 the rows, 6 and 7 the panels.
    pub(super) fn bf16(rows: usize) -> Self {
        let mut config = Self::whole();
        let first = rows.min(16) as u8;
        let second = rows.saturating_sub(16).min(16) as u8;
        config.rows[..8].copy_from_slice(&[first, first, second, second, first, second, 16, 16]);
        if second == 0 {
            for unused in [2, 3, 5] {
                config.bytes[unused] = 0;
            }
        }
        config
    }

    /// Of each [`product!`] sums, activations of a (half) group, and its codes; the last has eight rows.
    fn new(subs: usize) -> Self {
        let mut config =
            Self { palette: 1, start_row: 0, reserved: [0; 14], bytes: [0; 16], rows: [0; 16] };
        let (activations, codes) = if subs == 1 { (32, 8) } else { (16, 4) };
        config.bytes[..8].copy_from_slice(&[
            64,
            activations,
            64,
            64,
            activations,
            64,
            64,
            activations,
        ]);
        config.rows[..8].copy_from_slice(&[16, 16, codes, 16, 16, codes, 8, 8]);
        config
    }
}

/// Asks the system for the tiles: arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA), for the whole process.
#[cfg(target_os = "linux")]
fn permitted() -> bool {
    let mut result: isize = 158;
    // SAFETY: the call reads and writes no memory of ours; the kernel leaves all but the named registers as they were.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") result,
            in("rdi") 0x1023_usize,
            in("rsi") 18_usize,
            out("rcx") _,
            out("r11") _,
            options(nostack),
        );
    }
    result == 0
}

#[cfg(not(target_os = "linux"))]
fn permitted() -> bool {
    false
}

/// Bytes of a panel's codes of one group.
const PANEL: usize = 512;
/// Bytes of a line of codes or of sums.
const LINE: usize = 64;
/// Bytes of a row's codes of one group.
const ROW: usize = 32;
/// Bits of CPUID function 7.
const AMX_TILE: u32 = 1 << 24;
const AMX_INT8: u32 = 1 << 25;
const AMX_BF16: u32 = 1 << 22;
