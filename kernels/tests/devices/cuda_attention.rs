//! Attention of the CUDA kernels, emulated on the host: with caches of 16 and 8 bits on tensor cores, with one of f32 exactly.
//! Against the reference, and against itself in other chunks, batches and divisions of the work.

use std::collections::BTreeSet;

use crate::common::{bits, relative_error};
use crate::operations::{Case, ERROR, cases};
use chrysalis_kernels::cuda::{Cuda, Emulated, ProductLimits};
use chrysalis_kernels::device::{CacheDtype, CacheShape, Device as _};
use chrysalis_kernels::reference::Reference;

/// Queries and weights are rounded to the 16 bits that the tensor cores multiply, f16, or bf16 where the cache is: at most 6e-4
/// and 3e-3 were seen. Where bytes are stored, an f32 that differs in its last bit may become another byte: 6.4e-4 and 7.2e-4.
fn limit(dtype: CacheDtype) -> f64 {
    match dtype {
        CacheDtype::F32 => ERROR,
        CacheDtype::F16 => 1.2e-3,
        CacheDtype::Bf16 => 6e-3,
        CacheDtype::I8 => 2e-3,
        CacheDtype::F8 => 4e-3,
    }
}

/// A card of so many multiprocessors: with none a block goes through all spans, with many each span has blocks of its own.
fn cuda(multiprocessors: usize) -> Cuda<Emulated> {
    Cuda::new(Emulated::with_multiprocessors(multiprocessors))
}

/// The same with Hopper's instructions, or without.
fn with_wgmma(multiprocessors: usize, wgmma: bool) -> Cuda<Emulated> {
    let limits = ProductLimits { wgmma, ..ProductLimits::of(80) };
    Cuda::with_limits(Emulated::with_multiprocessors(multiprocessors), limits)
}

/// Groups of 1 to 40 heads, widths of every kernel and odd ones, windows that begin within a step, soft caps.
fn short_cases() -> Vec<Case> {
    let case = |tokens, (num_heads, num_kv_heads), head_dim, dtype| Case {
        tokens,
        num_heads,
        cache: CacheShape {
            num_layers: 2,
            num_blocks: 9,
            block_size: 16,
            num_kv_heads,
            head_dim,
            dtype,
        },
        rope_dim: head_dim / 4 * 2,
        norms: false,
        softcap: None,
        window: None,
    };
    vec![
        case(70, (1, 1), 8, CacheDtype::Bf16),
        case(75, (9, 3), 64, CacheDtype::F8),
        Case { window: Some(50), ..case(75, (6, 2), 64, CacheDtype::Bf16) },
        case(40, (8, 1), 128, CacheDtype::Bf16),
        Case { window: Some(9), ..case(70, (12, 1), 24, CacheDtype::F8) },
        case(20, (16, 1), 96, CacheDtype::I8),
        Case { softcap: Some(3.0), window: Some(40), ..case(66, (17, 1), 40, CacheDtype::F16) },
        case(17, (40, 1), 16, CacheDtype::F16),
        Case { window: Some(21), ..case(70, (4, 2), 256, CacheDtype::F16) },
        case(34, (3, 1), 200, CacheDtype::F8),
        Case { softcap: Some(5.0), ..case(34, (2, 1), 256, CacheDtype::Bf16) },
        case(20, (2, 1), 250, CacheDtype::I8),
    ]
}

/// Several spans; windows that begin in the first one and later.
fn long_cases() -> Vec<Case> {
    let case = |tokens, num_heads, num_kv_heads, head_dim, dtype, window| Case {
        tokens,
        num_heads,
        cache: CacheShape {
            num_layers: 2,
            num_blocks: 40,
            block_size: 16,
            num_kv_heads,
            head_dim,
            dtype,
        },
        rope_dim: head_dim,
        norms: true,
        softcap: None,
        window,
    };
    vec![
        case(275, 10, 2, 24, CacheDtype::F16, None),
        case(275, 2, 2, 40, CacheDtype::I8, Some(100)),
        case(275, 1, 1, 16, CacheDtype::F32, Some(261)),
        case(600, 1, 1, 16, CacheDtype::F8, Some(300)),
        case(530, 2, 1, 32, CacheDtype::Bf16, None),
        case(290, 1, 1, 256, CacheDtype::F16, Some(270)),
    ]
}

#[test]
fn attention_agrees_with_the_reference() {
    let all = cases().into_iter().chain(short_cases()).chain(long_cases());
    for (n, case) in all.enumerate() {
        let expected = case.chunks(&Reference, &[case.tokens]);
        let found = case.chunks(&cuda(132), &[case.tokens]);
        let error = relative_error(&found, &expected);
        let dtype = case.cache.dtype;
        assert!(error < limit(dtype), "case {n}, {dtype:?}: {error:e}");
    }
}

/// Else the other tests would compare a kernel with itself.
#[test]
fn prompts_take_hopper_s_kernel_where_it_can() {
    let mut taken = BTreeSet::new();
    for (n, case) in cases().into_iter().chain(short_cases()).enumerate() {
        let CacheShape { head_dim, block_size, dtype, .. } = case.cache;
        let can = matches!(dtype, CacheDtype::F16 | CacheDtype::Bf16)
            && head_dim <= 128
            && head_dim % 8 == 0
            && block_size % 16 == 0;
        for wgmma in [false, true] {
            let device = with_wgmma(132, wgmma);
            case.chunks(&device, &[case.tokens]);
            let started = device.driver().started().into_keys();
            let hopper: Vec<_> = started.filter(|name| name.contains("attention_wgmma")).collect();
            assert_eq!(hopper.len(), usize::from(wgmma && can && case.tokens >= 8), "case {n}");
            taken.extend(hopper);
        }
    }
    assert_eq!(taken.len(), 4, "{taken:?}");
}

#[test]
fn attention_is_the_same_however_the_prompt_is_chunked() {
    for (n, case) in cases().into_iter().chain(short_cases()).enumerate() {
        let whole = bits(&case.chunks(&with_wgmma(132, true), &[case.tokens]));
        let without = bits(&case.chunks(&with_wgmma(132, false), &[case.tokens]));
        assert_eq!(whole, without, "case {n}, with and without wgmma");
        let elevens = [vec![11; case.tokens / 11], vec![case.tokens % 11]].concat();
        let ones = vec![1; case.tokens];
        for chunks in [&[1, case.tokens - 1], &elevens[..], &ones] {
            let found = bits(&case.chunks(&with_wgmma(132, true), chunks));
            assert_eq!(found, whole, "case {n}, {} chunks", chunks.len());
        }
    }
}

#[test]
fn long_contexts_are_the_same_in_chunks_in_one_block_and_in_many() {
    for (n, case) in long_cases().into_iter().enumerate() {
        let whole = bits(&case.chunks(&with_wgmma(132, true), &[case.tokens]));
        let without = bits(&case.chunks(&with_wgmma(132, false), &[case.tokens]));
        assert_eq!(whole, without, "case {n}, with and without wgmma");
        let last = [vec![case.tokens - 12], vec![1; 12]].concat();
        let (all, three) = (vec![case.tokens], vec![100, case.tokens - 107, 7]);
        // Where each span has blocks of its own, those come in another order, too.
        let limits = ProductLimits { wgmma: true, ..ProductLimits::of(80) };
        let many = Cuda::with_limits(Emulated::with_multiprocessors(100_000).backwards(), limits);
        let [one, again] = [(); 2].map(|()| with_wgmma(0, true));
        for (device, chunks) in [(one, all), (many, three), (again, last)] {
            let found = bits(&case.chunks(&device, &chunks));
            let chunks = chunks.len();
            assert_eq!(found, whole, "case {n}, {chunks} chunks");
        }
    }
}

#[test]
fn a_sequence_does_not_feel_its_neighbours() {
    for (n, case) in short_cases().into_iter().chain(long_cases().into_iter().take(2)).enumerate() {
        let alone = bits(&case.chunks(&with_wgmma(132, true), &[case.tokens]));
        // Neighbours that share its blocks, and some that do not.
        for others in [&[case.tokens / 2][..], &[3, 1, 9]] {
            let found = bits(&case.with_neighbours(&with_wgmma(132, true), others));
            assert_eq!(found[..alone.len()], alone, "case {n}, {others:?}");
            let width = case.num_heads * case.cache.head_dim;
            let mut rest = &found[alone.len()..];
            for other in others.iter().map(|tokens| tokens * width) {
                assert_eq!(rest[..other], alone[..other], "case {n}, {others:?}");
                rest = &rest[other..];
            }
        }
    }
}

#[test]
fn what_it_cannot_keep_is_said() {
    let mut shape = long_cases()[0].cache;
    shape.head_dim = 257;
    assert!(cuda(1).cache(shape).unwrap_err().to_string().contains("257"));
    shape.head_dim = 64;
    (shape.num_blocks, shape.block_size) = (1 << 28, 16);
    assert!(cuda(1).cache(shape).unwrap_err().to_string().contains("8589934592"));
}
