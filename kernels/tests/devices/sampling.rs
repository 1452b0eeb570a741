//! The choice of tokens on every way to compute: what it means, to the last bit, whatever else is chosen with it.

use crate::common::{Random, bits, buffer, cpus, read};
use chrysalis_kernels::device::Device;
use chrysalis_kernels::reference::{Reference, choose};
use chrysalis_kernels::{Batch, Draw, Draws, Edit};

#[test]
fn the_largest_value_is_found_at_its_lowest_column_and_never_beside_what_is_not_finite() {
    for cpu in cpus() {
        for cols in [1, 15, 16, 17, 64, 4_095, 4_096, 4_097, 9_000, 49_152] {
            let (found, expected) = largest(&cpu, cols);
            assert_eq!(found, expected, "{cols} columns, {}", cpu.describe());
        }
    }
    let (found, expected) = largest(&Reference, 64);
    assert_eq!(found, expected);
}

#[test]
fn choices_agree_with_their_meaning() {
    for cpu in cpus() {
        for (seed, cols) in [1, 2, 33, 300, 4_097, 20_000].into_iter().enumerate() {
            let (found, expected) = choices(&cpu, seed as u64, cols, 60);
            assert_eq!(found, expected, "{cols} columns, {}", cpu.describe());
        }
    }
    let (found, expected) = choices(&Reference, 9, 300, 20);
    assert_eq!(found, expected);
}

type Tokens = Vec<Option<u32>>;

/// Greedy tokens of rows of all kinds, then of one of them alone: as they are found, and as they should be.
pub(crate) fn largest<D: Device>(device: &D, cols: usize) -> (Tokens, Tokens) {
    let (values, rows) = rows_with_a_largest(cols);
    let greedy = |rows: std::ops::Range<usize>| {
        let mut draws = Draws::default();
        rows.for_each(|row| draws.push(Draw::greedy(row as u32), &[]));
        draws
    };
    let mut expected: Vec<_> = values.chunks(cols).map(by_hand).collect();
    expected.push(expected[1]);
    let found = [greedy(0..rows), greedy(1..2), greedy(0..0)]
        .map(|draws| sampled(device, cols, &values, &draws));
    (found.concat(), expected)
}

/// Draws of every kind from rows of every kind, then some of them alone.
pub(crate) fn choices<D: Device>(
    device: &D,
    seed: u64,
    cols: usize,
    rows: usize,
) -> (Tokens, Tokens) {
    let mut random = Random(seed);
    let values: Vec<f32> = (0..rows).flat_map(|_| logits(&mut random, cols)).collect();
    let mut draws = Draws::default();
    for row in (0..rows as u32).filter(|row| row % 8 != 7) {
        draws.push(draw(&mut random, row), &edits(&mut random, cols));
    }
    let mut found = sampled(device, cols, &values, &draws);
    let meant = |(draw, edits): (&Draw, &[Edit])| {
        choose(&values[draw.row as usize * cols..][..cols], draw, edits)
    };
    let mut expected: Vec<_> = draws.iter().map(meant).collect();
    for (draw, edits) in draws.iter().step_by(9) {
        let mut alone = Draws::default();
        alone.push(*draw, edits);
        found.extend(sampled(device, cols, &values, &alone));
        expected.push(meant((draw, edits)));
    }
    (found, expected)
}

/// What the device chooses. It leaves the logits as they were.
fn sampled<D: Device>(device: &D, cols: usize, values: &[f32], draws: &Draws) -> Tokens {
    let rows = values.len() / cols;
    let mut x = buffer(device, rows, cols, values);
    let mut batch = Batch::default();
    batch.draws.clone_from(draws);
    let mut step = device.step(1).unwrap();
    device.set_step(&mut step, &batch);
    // As the device has them: on the way there a card changes the bits of what is no number.
    let before = bits(&read(device, &x, rows, cols));
    let mut tokens = vec![Some(7); draws.len()];
    device.sample(&step, &mut x, &mut tokens).unwrap();
    assert!(bits(&read(device, &x, rows, cols)) == before, "logits have changed");
    tokens
}

/// A row: as a model makes them, whole numbers, two values, one value, wide apart, hardly apart, falling, large ones next to
/// each other, or with one that is not finite.
fn logits(random: &mut Random, cols: usize) -> Vec<f32> {
    let row = random.values(cols);
    let each = |f: &dyn Fn(usize, f32) -> f32| {
        row.iter().enumerate().map(|(i, x)| f(i, *x)).collect::<Vec<f32>>()
    };
    match random.next() % 11 {
        0 => each(&|_, x| (x * 3.0).round()),
        1 => each(&|_, x| x.signum()),
        2 => vec![row[0]; cols],
        3 => each(&|_, x| x * 1e37),
        4 => each(&|_, x| 20.0 + x * 1e-5),
        5 => each(&|i, x| x - i as f32 * 0.01),
        6 => each(&|i, x| if i % 4_096 < 960 { 8.0 + x } else { x * 8.0 }),
        7 if random.next().is_multiple_of(2) => {
            let mut row = row;
            row[random.next() as usize % cols] =
                one_of(random, &[f32::NAN, f32::INFINITY, f32::NEG_INFINITY]);
            row
        }
        _ => each(&|_, x| x * 8.0),
    }
}

fn one_of<T: Copy>(random: &mut Random, of: &[T]) -> T {
    of[random.next() as usize % of.len()]
}

fn draw(random: &mut Random, row: u32) -> Draw {
    Draw {
        row,
        temperature: one_of(random, &[0.0, 0.001, 0.3, 0.8, 1.0, 1.0, 2.0, 50.0, 100.0]),
        top_k: one_of(random, &[0, 0, 1, 3, 40, 200, 256, 257, 5_000, u32::MAX]),
        top_p: one_of(random, &[1e-30, 0.1, 0.5, 0.9, 0.95, 0.999, 1.0, 1.0]),
        min_p: one_of(random, &[0.0, 0.0, 0.0, 1e-10, 0.02, 0.3, 1.0]),
        seed: random.next(),
        index: random.next() % 1_000,
    }
}

/// None, a few, or as many as fit, no two for a token.
fn edits(random: &mut Random, cols: usize) -> Vec<Edit> {
    let count = one_of(random, &[0, 0, 1, 7, 300]).min(cols);
    let first = random.next() as usize % cols;
    let edit = |i: usize| Edit {
        token: ((first + i) % cols) as u32,
        bias: one_of(random, &[0.0, 1.5, -100.0, 100.0]),
        repetition: one_of(random, &[1.0, 1.3, 0.01]),
        lowered: one_of(random, &[0.0, 2.5, -0.125]),
    };
    (0..count).map(edit).collect()
}

/// Rows of all kinds: random, small whole numbers, one value, zeros of both signs, the largest at either end, and, one
/// after the other, values that are not finite in every part of a row.
fn rows_with_a_largest(cols: usize) -> (Vec<f32>, usize) {
    let mut random = Random(cols as u64);
    let mut rows = vec![random.values(cols)];
    rows.push(rows[0].iter().map(|x| (x * 2.0).round()).collect());
    rows.push(vec![-3e38; cols]);
    rows.push((0..cols).map(|i| if i % 2 == 0 { -0.0 } else { 0.0 }).collect());
    for at in [0, cols - 1] {
        let mut row = rows[0].clone();
        row[at] = 3e38;
        rows.push(row);
    }
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for at in [0, cols / 3, cols - 1] {
            let mut row = rows[0].clone();
            row[at] = bad;
            rows.push(row);
        }
    }
    (rows.concat(), rows.len())
}

fn by_hand(row: &[f32]) -> Option<u32> {
    let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let finite = row.iter().all(|x| x.is_finite());
    let index = row.iter().position(|x| *x == largest).filter(|_| finite)?;
    Some(index as u32)
}
