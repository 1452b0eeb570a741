//! The fast choice against its meaning, and against chance.

use std::collections::BTreeMap;

use super::{Chooser, Draw, Draws, Edit, uniform};
use crate::reference::choose;

/// Logits of about the spread of a model's, some of them equal.
fn row(seed: u64, len: usize) -> Vec<f32> {
    let logit = |i| (uniform(seed, i) + uniform(seed, i + 1) - 1.0) * 12.0;
    (0..len as u64).map(|i| (logit(3 * i) * 64.0).round() as f32 / 64.0).collect()
}

fn draw(temperature: f32) -> Draw {
    Draw { temperature, ..Draw::greedy(0) }
}

#[test]
fn the_fast_choice_is_what_it_means() {
    let mut chooser = Chooser::default();
    let mut seen = BTreeMap::new();
    for seed in 0..3_000 {
        let pick = |index, of: &[f32]| {
            of[(uniform(seed, (1u64 << 40) + index) * of.len() as f64) as usize]
        };
        let len = pick(0, &[1.0, 2.0, 50.0, 300.0, 1_000.0, 6_000.0, 20_000.0]) as usize;
        let draw = Draw {
            row: 0,
            temperature: pick(1, &[0.0, 0.001, 0.3, 0.8, 1.0, 2.0, 50.0, 100.0]),
            top_k: pick(2, &[0.0, 0.0, 1.0, 3.0, 40.0, 400.0, 5_000.0, 9_000.0]) as u32,
            top_p: pick(3, &[1e-6, 0.1, 0.5, 0.9, 0.999, 1.0]),
            min_p: pick(4, &[0.0, 0.0, 0.02, 0.3, 1.0]),
            seed,
            index: seed % 7,
        };
        let mut logits = row(seed, len);
        match pick(5, &[0.0, 1.0, 2.0, 3.0, 4.0]) as u32 {
            // Nothing but ties; few values; a row that is not finite.
            0 if seed % 3 == 0 => logits.fill(1.5),
            1 => logits.iter_mut().for_each(|x| *x = x.round()),
            2 if seed % 10 == 0 => logits[len / 2] = f32::NEG_INFINITY,
            _ => {}
        }
        let expected = choose(&logits, &draw, &[]);
        assert_eq!(chooser.choose(&logits, &draw), expected, "seed {seed}: {draw:?} of {len}");
        *seen.entry(expected.is_some()).or_insert(0) += 1;
    }
    assert!(seen[&true] > 2_000 && seen[&false] > 10, "{seen:?}");
}

/// What is kept, by f64; and how close a decision was.
fn naive(logits: &[f32], draw: &Draw) -> (Vec<u32>, f64) {
    let mut sorted: Vec<(u32, f64)> =
        (0..).zip(logits.iter().map(|&x| f64::from(x) / f64::from(draw.temperature))).collect();
    sorted.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    let largest = sorted[0].1;
    sorted.iter_mut().for_each(|(_, x)| *x = (*x - largest).exp());
    if draw.top_k > 0 {
        sorted.truncate(draw.top_k as usize);
    }
    let sum: f64 = sorted.iter().map(|(_, w)| w).sum();
    let (mut reached, mut closest) = (0.0, f64::INFINITY);
    let mut kept = Vec::new();
    for &(id, w) in &sorted {
        let before = reached / sum;
        closest = closest.min((before - f64::from(draw.top_p)).abs());
        closest = closest.min((w / f64::from(draw.min_p) - 1.0).abs());
        if (before < f64::from(draw.top_p) || kept.is_empty()) && w >= f64::from(draw.min_p) {
            kept.push(id);
        }
        reached += w;
    }
    (kept, closest)
}

#[test]
fn tokens_come_as_often_as_they_are_likely() {
    for (top_k, top_p, min_p) in
        [(0, 1.0, 0.0), (0, 1.0, 0.05), (5, 1.0, 0.0), (0, 0.8, 0.0), (9, 0.9, 0.1)]
    {
        let draw = Draw { top_k, top_p, min_p, ..draw(1.5) };
        let logits: Vec<f32> = row(5, 40).iter().map(|x| x / 2.0).collect();
        let (kept, closest) = naive(&logits, &draw);
        assert!(closest > 1e-4, "{closest}");
        let weight = |id: u32| f64::from(logits[id as usize] / 1.5).exp();
        let sum: f64 = kept.iter().map(|&id| weight(id)).sum();
        let mut seen = BTreeMap::new();
        let mut chooser = Chooser::default();
        let draws = 20_000;
        for seed in 0..draws {
            let token = chooser.choose(&logits, &Draw { seed, ..draw }).unwrap();
            *seen.entry(token).or_insert(0u32) += 1;
        }
        assert!(seen.keys().all(|id| kept.contains(id)));
        for &id in &kept {
            let share = weight(id) / sum;
            let got = f64::from(*seen.get(&id).unwrap_or(&0)) / draws as f64;
            let five_sigma = 5.0 * (share * (1.0 - share) / draws as f64).sqrt() + 1e-9;
            assert!((got - share).abs() < five_sigma, "token {id}: {got} {share}");
        }
    }
}

#[test]
fn temperature_zero_takes_the_largest_logit_and_the_lowest_token_among_equals() {
    let token = |logits: &[f32]| Chooser::default().choose(logits, &draw(0.0)).unwrap();
    assert_eq!(token(&[1.0, 3.0, -2.0, 3.0]), 1);
    let many: Vec<f32> = (0..1_000).map(|i| if i % 300 == 299 { 2.0 } else { -1.0 }).collect();
    assert_eq!(token(&many), 299);
}

#[test]
fn bias_comes_first_then_repetition_on_both_sides_of_zero_then_what_is_subtracted() {
    let edit = Edit { token: 0, bias: 1.0, repetition: 2.0, lowered: 0.25 };
    assert_eq!(edit.of(4.0), 2.25);
    assert_eq!(edit.of(-4.0), -6.25);
    for x in [0.5, -0.5, 3e38, f32::MIN_POSITIVE] {
        assert_eq!(Edit::none(0).of(x), x);
    }
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        assert!(!edit.of(bad).is_finite());
    }
}

#[test]
fn what_becomes_infinite_by_an_edit_has_no_token() {
    let edit = Edit { repetition: 0.01, ..Edit::none(0) };
    assert_eq!(choose(&[3e38, 0.0], &draw(1.0), &[edit]), None);
    assert!(choose(&[0.0, 0.0], &draw(1.0), &[edit]).is_some());
}

#[test]
fn extreme_logits_and_temperatures_still_give_a_token() {
    let mut chooser = Chooser::default();
    for temperature in [0.001, 1.0, 100.0] {
        for top_p in [0.01, 1.0] {
            let draw = Draw { top_p, ..draw(temperature) };
            assert_eq!(chooser.choose(&[-3e38, 3e38, -3e38], &draw), Some(1));
            assert!(chooser.choose(&[0.0; 5_000], &draw).unwrap() < 5_000);
        }
    }
}

#[test]
fn draws_keep_their_edits_apart_and_are_in_order() {
    let mut draws = Draws::default();
    let edits: Vec<Edit> = (0..9).map(Edit::none).collect();
    draws.push(Draw::greedy(1), &edits[..4]);
    draws.push(Draw::greedy(2), &[]);
    draws.push(Draw::greedy(5), &edits[4..]);
    let found: Vec<_> = draws.iter().map(|(draw, edits)| (draw.row, edits.to_vec())).collect();
    assert_eq!(found, [(1, edits[..4].to_vec()), (2, vec![]), (5, edits[4..].to_vec())]);
    let again = std::panic::AssertUnwindSafe(|| draws.clone().push(Draw::greedy(5), &[]));
    assert!(std::panic::catch_unwind(again).is_err());
    draws.clear();
    assert!(draws.is_empty() && draws.edits().is_empty());
}
