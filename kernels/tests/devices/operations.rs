//! The operations beside products, on every way to compute: against the reference, and against
//! themselves in other batches, chunks and numbers of threads.

use crate::common::{Random, bits, buffer, cpus, read, relative_error};
use chrysalis_kernels::cpu::{Cpu, CpuOptions, Isa};
use chrysalis_kernels::device::{
    Activation, Attention, CacheDtype, CacheShape, Device, Input, RopeParams, RopeStore,
};
use chrysalis_kernels::reference::Reference;
use chrysalis_kernels::{Batch, WantLogits};

/// Other orders of summation and an exponential within 2e-7.
pub(crate) const ERROR: f64 = 2e-6;
/// The same after K and V were rounded to f16: what differs in the last bit of an f32 may round the
/// other way, by one part in 2,048.
pub(crate) const F16_CACHE_ERROR: f64 = 3e-4;

/// The same for bytes, by one part in 127 of a head's largest value.
pub(crate) const I8_CACHE_ERROR: f64 = 2e-3;

const WIDTHS: [usize; 5] = [1, 15, 16, 100, 576];

#[test]
fn norms_gates_and_sums_agree_with_the_reference() {
    for cpu in cpus() {
        for (rows, cols) in WIDTHS.into_iter().flat_map(|w| [(0, w), (1, w), (67, w)]) {
            let expected = all_rows(&Reference, rows, cols);
            for (found, expected) in all_rows(&cpu, rows, cols).iter().zip(expected) {
                let error = relative_error(found, &expected);
                assert!(error < ERROR, "{rows} x {cols} {}: {error:e}", cpu.describe());
            }
        }
    }
}

#[test]
fn gates_are_right_at_the_ends_of_their_range() {
    let x = [-1e9, -200.0, -90.0, -10.0, -1e-3, -0.0, 0.0, 1e-3, 10.0, 90.0, 200.0, 1e9];
    for cpu in cpus() {
        for activation in [Activation::Silu, Activation::GeluTanh, Activation::GeluErf] {
            let expected = gate(&Reference, activation, 1, x.len(), &x, &[1.0; 12]);
            let found = gate(&cpu, activation, 1, x.len(), &x, &[1.0; 12]);
            for ((x, found), expected) in x.iter().zip(found).zip(expected) {
                let error = (found - expected).abs() / expected.abs().max(1.0);
                assert!(error < 2e-6, "{activation:?}({x}) = {found}, not {expected}");
            }
        }
    }
}

#[test]
fn attention_agrees_with_the_reference() {
    for (n, case) in cases().into_iter().enumerate() {
        let expected = case.chunks(&Reference, &[case.tokens]);
        for cpu in cpus() {
            let found = case.chunks(&cpu, &[case.tokens]);
            let error = relative_error(&found, &expected);
            let limit = match case.cache.dtype {
                CacheDtype::F32 => ERROR,
                CacheDtype::F16 => F16_CACHE_ERROR,
                CacheDtype::I8 => I8_CACHE_ERROR,
                other => panic!("the CPU has no cache of {other:?}"),
            };
            assert!(error < limit, "case {n} {}: {error:e}", cpu.describe());
        }
    }
}

#[test]
fn attention_is_the_same_however_the_prompt_is_chunked() {
    for (n, case) in cases().into_iter().enumerate() {
        for isa in Isa::available() {
            let mut seen = Vec::new();
            for threads in [1, 3] {
                let options =
                    CpuOptions { threads: Some(threads), isa: Some(isa), ..Default::default() };
                let cpu = Cpu::new(options).unwrap();
                let ones = vec![1; case.tokens];
                let sevens = [vec![7; case.tokens / 7], vec![1; case.tokens % 7]].concat();
                for chunks in [&[case.tokens][..], &[1, case.tokens - 1], &sevens, &ones] {
                    seen.push(bits(&case.chunks(&cpu, chunks)));
                }
            }
            assert!(seen.iter().all(|x| *x == seen[0]), "case {n} {isa:?}");
        }
    }
}

#[test]
fn a_sequence_does_not_feel_its_neighbours() {
    let case = &cases()[0];
    for cpu in cpus() {
        let alone = case.chunks(&cpu, &[case.tokens]);
        let both = case.with_neighbours(&cpu, &[case.tokens / 2]);
        assert_eq!(bits(&both[..alone.len()]), bits(&alone));
    }
}

#[test]
fn cleared_blocks_are_zero_and_others_untouched() {
    let case = &cases()[0];
    for cpu in cpus() {
        let first = case.chunks_after(&cpu, &[case.tokens], |_| {});
        // Clearing what the sequence does not use changes nothing.
        let unused = case.chunks_after(&cpu, &[case.tokens - 1, 1], |cache| {
            cpu.clear_blocks(cache, &[0]);
        });
        assert_eq!(bits(&first), bits(&unused));
        // With all of its past zero, only its own value is left, by its softmax weight.
        let used = case.chunks_after(&cpu, &[case.tokens - 1, 1], |cache| {
            cpu.clear_blocks(cache, &case.table());
        });
        assert_ne!(bits(&first), bits(&used));
        let alone = case.last_alone(&cpu);
        assert_eq!(bits(&used[used.len() - alone.len()..]), bits(&alone));
    }
}

#[test]
fn selected_rows_are_copied_in_order() {
    for cpu in cpus() {
        let values = Random(4).values(6 * 20);
        let x = buffer(&cpu, 6, 20, &values);
        let mut batch = Batch::default();
        assert_eq!(batch.push(&[0, 0], 0, &[], WantLogits::Last), 0..1);
        assert_eq!(batch.push(&[0], 0, &[], WantLogits::None), 1..1);
        assert_eq!(batch.push(&[0, 0, 0], 0, &[], WantLogits::All), 1..4);
        let mut step = cpu.step(6).unwrap();
        cpu.set_step(&mut step, &batch);
        let mut out = cpu.buffer(4, 20).unwrap();
        cpu.select(&step, &x, &mut out);
        let expected: Vec<f32> =
            [1, 3, 4, 5].iter().flat_map(|t| values[t * 20..(t + 1) * 20].to_vec()).collect();
        assert_eq!(read(&cpu, &out, 4, 20), expected);
    }
}

pub(crate) fn all_rows<D: Device>(device: &D, rows: usize, cols: usize) -> Vec<Vec<f32>> {
    let mut random = Random(cols as u64);
    let (x, y) = (random.values(rows * cols), random.values(rows * cols));
    let weight = device.vector(&random.values(cols)).unwrap();
    let buffers = || (buffer(device, rows, cols, &x), buffer(device, rows, cols, &y));
    let mut results = Vec::new();
    let (a, mut b) = buffers();
    device.add(rows, Input::Normed { x: &a, weight: &weight, eps: 1e-5 }, &mut b);
    results.push(read(device, &b, rows, cols));
    let (a, mut b) = buffers();
    device.add(rows, Input::Rows(&a), &mut b);
    results.push(read(device, &b, rows, cols));
    device.softcap(rows, 1.5, &mut b);
    results.push(read(device, &b, rows, cols));
    for activation in [Activation::Silu, Activation::GeluTanh, Activation::GeluErf] {
        results.push(gate(device, activation, rows, cols, &x, &y));
    }
    results
}

pub(crate) fn gate<D: Device>(
    device: &D,
    activation: Activation,
    rows: usize,
    cols: usize,
    x: &[f32],
    y: &[f32],
) -> Vec<f32> {
    let (x, y) = (buffer(device, rows, cols, x), buffer(device, rows, cols, y));
    let mut out = buffer(device, rows, cols, &vec![0.0; rows * cols]);
    device.add(rows, Input::Gated { activation, gate: &x, up: &y }, &mut out);
    read(device, &out, rows, cols)
}

/// One sequence through rope, cache and attention.
pub(crate) struct Case {
    pub(crate) tokens: usize,
    pub(crate) num_heads: usize,
    pub(crate) cache: CacheShape,
    pub(crate) rope_dim: usize,
    pub(crate) norms: bool,
    pub(crate) softcap: Option<f32>,
    pub(crate) window: Option<usize>,
}

pub(crate) fn cases() -> Vec<Case> {
    let cache = |block_size, num_kv_heads, head_dim, dtype| CacheShape {
        num_layers: 2,
        num_blocks: 200_usize.div_ceil(block_size) + 3,
        block_size,
        num_kv_heads,
        head_dim,
        dtype,
    };
    let case = |tokens, num_heads, cache, rope_dim| Case {
        tokens,
        num_heads,
        cache,
        rope_dim,
        norms: false,
        softcap: None,
        window: None,
    };
    vec![
        case(75, 9, cache(16, 3, 64, CacheDtype::F16), 64),
        case(50, 4, cache(32, 1, 256, CacheDtype::F32), 256),
        Case {
            norms: true,
            window: Some(20),
            ..case(90, 4, cache(32, 2, 80, CacheDtype::F16), 80)
        },
        Case {
            softcap: Some(5.0),
            window: Some(1),
            ..case(40, 2, cache(5, 2, 24, CacheDtype::F16), 16)
        },
        Case { norms: true, window: Some(33), ..case(70, 8, cache(7, 8, 8, CacheDtype::F32), 8) },
        case(1, 1, cache(16, 1, 16, CacheDtype::F16), 16),
        case(43, 2, cache(48, 1, 18, CacheDtype::F16), 18),
        case(75, 9, cache(16, 3, 64, CacheDtype::I8), 64),
        Case { window: Some(20), ..case(90, 4, cache(32, 2, 80, CacheDtype::I8), 80) },
        Case { softcap: Some(5.0), ..case(40, 2, cache(5, 2, 24, CacheDtype::I8), 16) },
    ]
}

impl Case {
    /// Blocks in an order of their own, block 0 left to others.
    pub(crate) fn table(&self) -> Vec<u32> {
        let blocks = self.tokens.div_ceil(self.cache.block_size);
        (1..=blocks as u32).rev().collect()
    }

    pub(crate) fn chunks<D: Device>(&self, device: &D, chunks: &[usize]) -> Vec<f32> {
        self.chunks_after(device, chunks, |_| {})
    }

    /// Runs the chunks; `before_last` may change the cache before the last one.
    pub(crate) fn chunks_after<D: Device>(
        &self,
        device: &D,
        chunks: &[usize],
        before_last: impl Fn(&mut D::Cache),
    ) -> Vec<f32> {
        let mut cache = device.cache(self.cache).unwrap();
        let (mut first, mut out) = (0, Vec::new());
        for (i, count) in chunks.iter().enumerate().filter(|(_, count)| **count > 0) {
            if i + 1 == chunks.len() {
                before_last(&mut cache);
            }
            let mut batch = Batch::default();
            batch.push(&vec![0; *count], first as u32, &self.table(), WantLogits::None);
            let rows = std::iter::once(first..first + count);
            out.extend(self.step(device, &mut cache, &batch, &rows.collect::<Vec<_>>()));
            first += count;
        }
        assert_eq!(first, self.tokens);
        out
    }

    /// The last token, in a cache that nobody wrote to before.
    pub(crate) fn last_alone<D: Device>(&self, device: &D) -> Vec<f32> {
        let mut cache = device.cache(self.cache).unwrap();
        let (mut batch, last) = (Batch::default(), self.tokens - 1);
        batch.push(&[0], last as u32, &self.table(), WantLogits::None);
        self.step(device, &mut cache, &batch, std::slice::from_ref(&(last..self.tokens)))
    }

    /// The sequence, and copies of so many of its first tokens in the same batch, in blocks of their own.
    pub(crate) fn with_neighbours<D: Device>(&self, device: &D, others: &[usize]) -> Vec<f32> {
        let mut larger = self.cache;
        larger.num_blocks *= 1 + others.len();
        let mut cache = device.cache(larger).unwrap();
        let (mut batch, mut rows) = (Batch::default(), Vec::new());
        for (n, tokens) in [self.tokens].iter().chain(others).enumerate() {
            let table = self.table().into_iter().map(|b| b + (n * self.cache.num_blocks) as u32);
            batch.push(&vec![0; *tokens], 0, &table.collect::<Vec<_>>(), WantLogits::None);
            rows.push(0..*tokens);
        }
        self.step(device, &mut cache, &batch, &rows)
    }

    /// One step whose rows hold the values of the given positions of the sequence.
    fn step<D: Device>(
        &self,
        device: &D,
        cache: &mut D::Cache,
        batch: &Batch,
        rows: &[std::ops::Range<usize>],
    ) -> Vec<f32> {
        let mut random = Random(11);
        let dim = self.cache.head_dim;
        let (q_width, kv_width) = (self.num_heads * dim, self.cache.num_kv_heads * dim);
        let mut input = |width: usize| {
            let all = random.values(self.tokens * width);
            let some: Vec<f32> =
                rows.iter().flat_map(|r| all[r.start * width..r.end * width].to_vec()).collect();
            buffer(device, batch.num_tokens(), width, &some)
        };
        let (mut q, mut k, v) = (input(q_width), input(kv_width), input(kv_width));
        let norm = |values: Vec<f32>| self.norms.then(|| device.vector(&values).unwrap());
        let (q_norm, k_norm) = (norm(random.values(dim)), norm(random.values(dim)));
        let pairs = self.rope_dim / 2;
        let inv_freq = (0..pairs).map(|i| 1e4f32.powf(-(i as f32) / pairs as f32)).collect();
        let rope = RopeParams { inv_freq, attention_factor: 1.1, max_positions: 200 };
        let rope = device.rope(&rope).unwrap();
        let mut step = device.step(batch.num_tokens()).unwrap();
        device.set_step(&mut step, batch);
        let (layer, eps) = (1, 1e-6);
        let (q_norm, k_norm) = (q_norm.as_ref(), k_norm.as_ref());
        let (q_mut, k) = (&mut q, &mut k);
        device.rope_store(
            &step,
            RopeStore { layer, q: q_mut, k, v: &v, q_norm, k_norm, eps, rope: &rope, cache },
        );
        let mut out = device.buffer(batch.num_tokens(), q_width).unwrap();
        let (scale, softcap, window) = (0.3, self.softcap, self.window);
        device.attention(
            &step,
            Attention { layer, q: &q, cache, scale, softcap, window, out: &mut out },
        );
        read(device, &out, batch.num_tokens(), q_width)
    }
}
