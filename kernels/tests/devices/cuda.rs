//! The CUDA kernels, emulated on the host: against the reference, and against themselves in other batches and chunks.
//! What nobody wrote is NaN there.

use crate::common::{Random, bits, buffer, matrix, read, relative_error};
use crate::linear::{FLOAT_ERROR, ONE_BF16_ERROR, embedded, product, with_spikes};
use crate::operations::{Case, ERROR, I8_CACHE_ERROR, all_rows, cases, gate};
use crate::sampling;
use chrysalis_kernels::cuda::{Cuda, Emulated};
use chrysalis_kernels::device::{
    Activation, CacheDtype, CacheShape, Device, DeviceError, Input, Linear, Upload as _,
};
use chrysalis_kernels::reference::{Reference, choose};
use chrysalis_kernels::{Batch, Draw, Dtype, WantLogits};

fn cuda() -> Cuda<Emulated> {
    Cuda::new(Emulated::default())
}

#[test]
fn float_types_take_any_number_of_columns() {
    for dtype in [Dtype::F32, Dtype::F16, Dtype::Bf16] {
        for (out, cols, rows) in [(5, 1, 3), (31, 7, 5), (17, 777, 2), (20, 264, 17)] {
            let mut random = Random(13);
            let weight = random.matrix(dtype, out, cols);
            let x = with_spikes(random.values(rows * cols));
            let expected = product(&Reference, dtype, (out, cols, rows), &weight, &x, None);
            let found = product(&cuda(), dtype, (out, cols, rows), &weight, &x, None);
            let error = relative_error(&found, &expected);
            let limit = if dtype == Dtype::F32 { FLOAT_ERROR } else { 2.0 * ONE_BF16_ERROR };
            assert!(error < limit, "{dtype:?} {out} x {cols}, {rows} rows: {error:e}");
        }
    }
}

#[test]
fn what_is_not_finite_stays_in_its_row() {
    let (out, cols, rows) = (18, 515, 7);
    for dtype in [Dtype::F32, Dtype::F16, Dtype::Bf16] {
        let mut random = Random(17);
        let weight = random.matrix(dtype, out, cols);
        let x = random.values(rows * cols);
        let mut broken = x.clone();
        for (row, value) in [(1, f32::NAN), (4, f32::INFINITY)] {
            broken[row * cols + 300] = value;
        }
        let whole = product(&cuda(), dtype, (out, cols, rows), &weight, &x, None);
        let found = product(&cuda(), dtype, (out, cols, rows), &weight, &broken, None);
        for (row, (found, whole)) in found.chunks(out).zip(whole.chunks(out)).enumerate() {
            if [1, 4].contains(&row) {
                assert!(found.iter().all(|y| !y.is_finite()), "{dtype:?} row {row}");
            } else {
                assert_eq!(bits(found), bits(whole), "{dtype:?} row {row}");
            }
        }
    }
}

#[test]
fn rows_of_every_type_come_back_from_the_packed_layout_exactly() {
    for dtype in Dtype::ALL {
        for (rows, groups) in [(1, 1), (37, 2), (130, 5)] {
            let cols = groups * if dtype.group_len() == 1 { 103 } else { dtype.group_len() };
            let bytes = Random(9).matrix(dtype, rows, cols);
            let last = rows as u32 - 1;
            let tokens = [0, 15, 16, 31, 32, 64, 79, 127].map(|token| last.min(token));
            let found = embedded(&cuda(), dtype, rows, cols, &bytes, &tokens);
            let expected = embedded(&Reference, dtype, rows, cols, &bytes, &tokens);
            // Equal as numbers: a zero may have the other sign.
            assert_eq!(found, expected, "{dtype:?} {rows} x {cols}");
        }
    }
}

#[test]
fn an_input_that_is_made_on_the_way_is_the_one_made_before() {
    let (out, cols, device) = (20, 256, cuda());
    for rows in [1, 9] {
        let mut random = Random(23);
        let (x, y) = (random.values(rows * cols), random.values(rows * cols));
        let (x, y) = (buffer(&device, rows, cols, &x), buffer(&device, rows, cols, &y));
        let norm = device.vector(&random.values(cols)).unwrap();
        let bytes = random.matrix(Dtype::Q4K, out, cols);
        let weight = matrix(&device, Dtype::Q4K, out, cols, &bytes);
        let (activation, gate, up) = (Activation::Silu, &x, &y);
        for input in [
            Input::Normed { x: &x, weight: &norm, eps: 1e-5 },
            Input::Gated { activation, gate, up },
        ] {
            let mut before = buffer(&device, rows, cols, &vec![0.0; rows * cols]);
            device.add(rows, input, &mut before);
            let product = |input| {
                let mut y = device.buffer(rows, out).unwrap();
                device.linear(
                    rows,
                    input,
                    &mut [Linear { weight: &weight, bias: None, out: &mut y }],
                );
                bits(&read(&device, &y, rows, out))
            };
            assert_eq!(product(input), product(Input::Rows(&before)), "{rows} rows");
        }
    }
}

#[test]
fn norms_gates_and_sums_agree_with_the_reference() {
    for (rows, cols) in [1, 15, 100, 576].into_iter().flat_map(|w| [(0, w), (1, w), (7, w)]) {
        let expected = all_rows(&Reference, rows, cols);
        for (n, (found, expected)) in all_rows(&cuda(), rows, cols).iter().zip(expected).enumerate()
        {
            let error = relative_error(found, &expected);
            assert!(error < ERROR, "{rows} x {cols}, result {n}: {error:e}");
        }
    }
}

#[test]
fn gates_are_right_at_the_ends_of_their_range() {
    let x = [-1e9, -200.0, -90.0, -10.0, -1e-3, -0.0, 0.0, 1e-3, 10.0, 90.0, 200.0, 1e9];
    for activation in [Activation::Silu, Activation::GeluTanh, Activation::GeluErf] {
        let expected = gate(&Reference, activation, 1, x.len(), &x, &[1.0; 12]);
        let found = gate(&cuda(), activation, 1, x.len(), &x, &[1.0; 12]);
        for ((x, found), expected) in x.iter().zip(found).zip(expected) {
            let error = (found - expected).abs() / expected.abs().max(1.0);
            assert!(error < 2e-6, "{activation:?}({x}) = {found}, not {expected}");
        }
    }
}

#[test]
fn cleared_blocks_are_zero_and_others_untouched() {
    let device = cuda();
    // Of halves, of bytes with scales, and of blocks that are no whole words.
    let odd = Case {
        tokens: 9,
        num_heads: 1,
        rope_dim: 4,
        norms: false,
        softcap: None,
        window: None,
        cache: CacheShape {
            num_layers: 2,
            num_blocks: 6,
            block_size: 3,
            num_kv_heads: 1,
            head_dim: 5,
            dtype: CacheDtype::I8,
        },
    };
    for case in cases().into_iter().filter(|case| case.tokens == 75).chain([odd]) {
        let clear = |blocks: &[u32]| {
            bits(&case.chunks_after(&device, &[case.tokens - 1, 1], |cache| {
                device.clear_blocks(cache, blocks);
            }))
        };
        let first = clear(&[]);
        assert_eq!(clear(&[0]), first, "a block of nobody's");
        assert_ne!(clear(&case.table()), first);
        let expected = case.chunks_after(&Reference, &[case.tokens - 1, 1], |cache| {
            Reference.clear_blocks(cache, &case.table());
        });
        let found = case.chunks_after(&device, &[case.tokens - 1, 1], |cache| {
            device.clear_blocks(cache, &case.table());
        });
        assert!(relative_error(&found, &expected) < I8_CACHE_ERROR);
    }
}

#[test]
fn selected_rows_are_copied_in_order() {
    let (device, values) = (cuda(), Random(4).values(6 * 20));
    let x = buffer(&device, 6, 20, &values);
    let mut batch = Batch::default();
    batch.push(&[0, 0], 0, &[], WantLogits::Last);
    batch.push(&[0], 0, &[], WantLogits::None);
    batch.push(&[0, 0, 0], 0, &[], WantLogits::All);
    let mut step = device.step(6).unwrap();
    device.set_step(&mut step, &batch);
    let mut out = device.buffer(4, 20).unwrap();
    device.select(&step, &x, &mut out);
    let expected: Vec<f32> =
        [1, 3, 4, 5].iter().flat_map(|t| values[t * 20..(t + 1) * 20].to_vec()).collect();
    assert_eq!(read(&device, &out, 4, 20), expected);
}

#[test]
fn tokens_are_chosen_as_everywhere() {
    for cols in [1, 15, 64, 4_095, 4_096, 4_097, 9_000] {
        let (found, expected) = sampling::largest(&cuda(), cols);
        assert_eq!(found, expected, "{cols} columns");
    }
    let few = [1, 2, 33, 255, 257, 1_000, 4_095, 4_096, 4_097].map(|cols| (cols, 260));
    for (seed, (cols, rows)) in
        few.into_iter().chain([(9_000, 200), (20_001, 120), (151_936, 9), (262_144, 9)]).enumerate()
    {
        let (found, expected) = sampling::choices(&cuda(), 100 + seed as u64, cols, rows);
        assert_eq!(found, expected, "{cols} columns");
    }
}

#[test]
fn draws_that_keep_few_are_one_launch() {
    let (device, cols) = (cuda(), 300);
    let mut x = buffer(&device, 5, cols, &Random(46).values(5 * cols));
    let mut step = device.step(1).unwrap();
    let of = |top_k, top_p| Draw { temperature: 0.8, top_k, top_p, ..Draw::greedy(0) };
    let (few, both, one, none) = (of(256, 0.9), of(257, 0.9), of(0, 0.9), of(0, 1.0));
    for (kinds, expected) in [
        (&[of(1, 1.0)][..], 1),
        (&[few, few], 1),
        (&[both], 5),
        (&[of(257, 1.0)], 4),
        (&[one, few], 5),
        (&[none], 2),
        (&[few, Draw::greedy(0)], 2),
        (&[few, none, Draw::greedy(0), both, one], 6),
    ] {
        let mut batch = Batch::default();
        (0..).zip(kinds).for_each(|(row, draw)| batch.draws.push(Draw { row, ..*draw }, &[]));
        device.set_step(&mut step, &batch);
        let before = device.crossings().unwrap();
        device.sample(&step, &mut x, &mut vec![None; kinds.len()]).unwrap();
        let launches = device.crossings().unwrap().since(before).launches;
        assert_eq!(launches, expected, "{kinds:?}");
    }
}

#[test]
fn many_tokens_far_from_the_likeliest_are_drawn_as_often_as_they_should() {
    let (device, rows, cols) = (cuda(), 100, 1_100);
    let mut row: Vec<f32> = Random(48).values(cols).iter().map(|x| x * 0.1 - 8.0).collect();
    row[700] = 0.0;
    let mut x = buffer(&device, rows, cols, &row.repeat(rows));
    let mut batch = Batch::default();
    let draw = |row| Draw { temperature: 1.0, top_k: 256, seed: 5, ..Draw::greedy(row) };
    for row in 0..rows as u32 {
        batch.draws.push(Draw { index: row.into(), ..draw(row) }, &[]);
    }
    let mut step = device.step(1).unwrap();
    device.set_step(&mut step, &batch);
    let mut found = vec![None; rows];
    device.sample(&step, &mut x, &mut found).unwrap();
    let expected: Vec<_> = batch.draws.iter().map(|(draw, _)| choose(&row, draw, &[])).collect();
    assert_eq!(found, expected);
    // 256 * e^-8 and a little more.
    assert!(found.iter().filter(|token| **token != Some(700)).count() > 3);
}

#[test]
fn a_plan_of_draws_is_for_those_of_every_kind() {
    let (device, cols) = (cuda(), 300);
    let mut x = buffer(&device, 1, cols, &Random(47).values(cols));
    let mut step = device.step(1).unwrap();
    let mut draw = |top_k, plans| {
        let mut batch = Batch::default();
        let draw = Draw { temperature: 1.0, top_k, top_p: 0.5, ..Draw::greedy(0) };
        batch.draws.push(draw, &[]);
        let mut choose = || {
            device.set_step(&mut step, &batch);
            device.sample(&step, &mut x, &mut [None]).unwrap();
        };
        let before = device.crossings().unwrap();
        if plans {
            device.plan(choose).unwrap();
        } else {
            choose();
        }
        device.crossings().unwrap().since(before).reservations
    };
    assert!(draw(1, true) > 0);
    assert_eq!((draw(0, false), draw(300, false)), (0, 0));
}

#[test]
fn what_it_cannot_do_is_said() {
    let device = cuda();
    let error = device.begin_matrix(Dtype::Q4K, 2, 255).unwrap_err();
    assert!(matches!(error, DeviceError::Shape { group: 256, .. }));
    let upload = device.begin_matrix(Dtype::Q8_0, 3, 64).unwrap();
    let twice = upload.write(0, &[0; 9]).and_then(|()| upload.write(8, &[0])).unwrap_err();
    assert!(matches!(twice, DeviceError::UploadTwice { offset: 8 }));
    let short = upload.finish().unwrap_err();
    assert!(matches!(short, DeviceError::UploadLength { expected: 204, found: 9 }));
}
