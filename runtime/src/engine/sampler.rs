//! From a row of logits to a token. Pure: the same row, parameters, history and seed give the
//! same token.

use zeroize::{Zeroize, Zeroizing};

use super::error::NotFinite;
use super::random::uniform;
use super::sampling::{LOGIT_BIAS_MAX, Sampling};
use super::sequence::TokenLogprobs;
use super::softmax::{self, Candidate, Weight};

/// What the choice of one token depends on, besides the logits.
#[derive(Clone, Copy)]
pub(super) struct Choice<'a> {
    pub(super) sampling: &'a Sampling,
    pub(super) prompt: &'a [u32],
    /// Its length is the index of the token to choose.
    pub(super) output: &'a [u32],
    pub(super) seed: u64,
    pub(super) logprobs: Option<u8>,
}

/// Chooses tokens; its memory is reused and wiped on drop.
pub(super) struct Sampler {
    /// How often each token occurs in the output at hand; zero between choices, `[vocab_size]`.
    counts: Zeroizing<Vec<u32>>,
    /// Logits that bias and penalties replaced.
    original: Vec<Candidate>,
    candidates: Vec<Candidate>,
    /// Sums of weights of blocks of the row.
    sums: Vec<f64>,
}

impl Drop for Sampler {
    fn drop(&mut self) {
        self.original.zeroize();
        self.candidates.zeroize();
        self.sums.zeroize();
    }
}

impl Sampler {
    /// Reserves all memory, so that no copy stays behind when a list grows.
    pub(super) fn new(vocab_size: usize) -> Self {
        Self {
            counts: Zeroizing::new(vec![0; vocab_size]),
            original: Vec::with_capacity(2 * vocab_size + LOGIT_BIAS_MAX),
            candidates: Vec::with_capacity(vocab_size),
            sums: Vec::with_capacity(vocab_size.div_ceil(BLOCK)),
        }
    }

    /// Chooses a token from `logits`, `[vocab_size]`, which bias, penalties and cuts change in
    /// place.
    ///
    /// # Errors
    /// The row is empty or an element is infinite or not a number, before or after the changes.
    pub(super) fn choose(
        &mut self,
        logits: &mut [f32],
        choice: Choice<'_>,
    ) -> Result<(u32, Option<TokenLogprobs>), NotFinite> {
        let raw_max = softmax::max(logits)?;
        let logprobs = choice.logprobs.map(|count| self.logprobs(logits, raw_max, count));
        self.original.clear();
        self.add_bias(logits, &choice.sampling.logit_bias);
        self.penalise(logits, choice);
        let max = if self.original.is_empty() { raw_max } else { softmax::max(logits)? };
        let token = if choice.sampling.temperature == 0.0 {
            softmax::argmax(logits, max)
        } else {
            let u = uniform(choice.seed, choice.output.len() as u64);
            self.draw(logits, max, choice.sampling, u)
        };
        let token = token.ok_or(NotFinite)?;
        Ok((token, logprobs.map(|logprobs| self.report(logprobs, logits, token))))
    }

    /// The log of the sum of all probabilities, for [`Sampler::report`], and the best tokens.
    fn logprobs(&mut self, logits: &[f32], max: f32, count: u8) -> (f64, TokenLogprobs) {
        let weight = Weight { max, scale: 1.0, min_p: 0.0 };
        let log_sum = f64::from(max) + weight.sum(logits).ln();
        softmax::largest(logits, usize::from(count), &mut self.candidates);
        let alternatives =
            self.candidates.iter().map(|&(id, logit)| (id, (f64::from(logit) - log_sum) as f32));
        (log_sum, TokenLogprobs { logprob: 0.0, alternatives: alternatives.collect() })
    }

    /// Fills in the chosen token's log-probability from its logit before the changes.
    fn report(
        &self,
        (log_sum, mut logprobs): (f64, TokenLogprobs),
        logits: &[f32],
        token: u32,
    ) -> TokenLogprobs {
        let changed = self.original.iter().find(|&&(id, _)| id == token).map(|&(_, logit)| logit);
        let logit = changed.or_else(|| logits.get(token as usize).copied());
        logprobs.logprob = (f64::from(logit.unwrap_or(f32::NAN)) - log_sum) as f32;
        logprobs
    }

    fn add_bias(&mut self, logits: &mut [f32], logit_bias: &[(u32, f32)]) {
        for &(id, bias) in logit_bias {
            if let Some(logit) = logits.get_mut(id as usize) {
                self.original.push((id, *logit));
                *logit += bias;
            }
        }
    }

    /// Repetition first, over prompt and output; then presence and frequency, over the output.
    fn penalise(&mut self, logits: &mut [f32], choice: Choice<'_>) {
        let Sampling { repetition_penalty, presence_penalty, frequency_penalty, .. } =
            *choice.sampling;
        if repetition_penalty != 1.0 {
            self.each_once(&[choice.prompt, choice.output], logits, |logit, _| {
                if logit > 0.0 { logit / repetition_penalty } else { logit * repetition_penalty }
            });
        }
        if presence_penalty != 0.0 || frequency_penalty != 0.0 {
            self.each_once(&[choice.output], logits, |logit, count| {
                logit - frequency_penalty * count as f32 - presence_penalty
            });
        }
    }

    /// Replaces the logit of each token that occurs, knowing how often it does.
    fn each_once(
        &mut self,
        parts: &[&[u32]],
        logits: &mut [f32],
        replace: impl Fn(f32, u32) -> f32,
    ) {
        for &id in parts.iter().copied().flatten() {
            if let Some(count) = self.counts.get_mut(id as usize) {
                *count += 1;
            }
        }
        for &id in parts.iter().copied().flatten() {
            let place = (self.counts.get_mut(id as usize), logits.get_mut(id as usize));
            if let (Some(count @ 1..), Some(logit)) = place {
                self.original.push((id, *logit));
                *logit = replace(*logit, *count);
                *count = 0;
            }
        }
    }

    /// The token at `u` of the probability that is left after temperature and cuts.
    fn draw(&mut self, logits: &mut [f32], max: f32, sampling: &Sampling, u: f64) -> Option<u32> {
        let weight = Weight { max, scale: 1.0 / sampling.temperature, min_p: sampling.min_p };
        let top_k = Some(sampling.top_k as usize).filter(|&k| k > 0 && k < logits.len());
        if top_k.is_none() && sampling.top_p >= 1.0 {
            return self.draw_from_all(logits, weight, u);
        }
        match self.cut(logits, weight, top_k, sampling.top_p) {
            Kept::Few(count) => {
                let kept = self.candidates.get(..count).unwrap_or_default();
                pick(kept.iter().copied(), weight, u * weight.sum_of(kept))
            }
            Kept::Many => self.draw_from_all(logits, weight, u),
        }
    }

    /// Finds the most likely tokens that pass `top_k`, `top_p` and `min_p`.
    fn cut(
        &mut self,
        logits: &mut [f32],
        weight: Weight,
        top_k: Option<usize>,
        top_p: f32,
    ) -> Kept {
        let uncut = Weight { min_p: 0.0, ..weight };
        let share = f64::from(top_p);
        let sum_of_all = top_k.is_none().then(|| uncut.sum(logits));
        let mut count = top_k.unwrap_or(FIRST_LOOK);
        while count <= FEW {
            softmax::largest(logits, count, &mut self.candidates);
            let enough = share * sum_of_all.unwrap_or_else(|| uncut.sum_of(&self.candidates));
            let mut reached = 0.0;
            let last = self.candidates.iter().position(|&(_, logit)| {
                reached += f64::from(uncut.of(logit));
                reached >= enough
            });
            // Without `top_k`, the run may go on beyond the tokens that were looked at.
            if last.is_some() || top_k.is_some() || count >= logits.len() {
                let run = last.map_or(self.candidates.len(), |last| last + 1);
                let likely = |&&(_, logit): &&Candidate| weight.of(logit) > 0.0;
                return Kept::Few(self.candidates.iter().take(run).take_while(likely).count());
            }
            count *= 16;
        }
        softmax::gather(logits, top_k.unwrap_or(logits.len()), &mut self.candidates);
        let enough = share * sum_of_all.unwrap_or_else(|| uncut.sum_of(&self.candidates));
        if let Some((last, floor)) = softmax::boundary(&mut self.candidates, uncut, enough) {
            for (id, logit) in (0..).zip(logits) {
                if *logit < floor || (*logit == floor && id > last) {
                    *logit = f32::NEG_INFINITY;
                }
            }
        }
        Kept::Many
    }

    /// [`pick`] over the whole row, by blocks.
    fn draw_from_all(&mut self, logits: &[f32], weight: Weight, u: f64) -> Option<u32> {
        self.sums.clear();
        self.sums.extend(logits.chunks(BLOCK).map(|block| weight.sum(block)));
        let mut at = u * self.sums.iter().sum::<f64>();
        let mut last = None;
        for ((id, block), &sum) in (0u32..).step_by(BLOCK).zip(logits.chunks(BLOCK)).zip(&self.sums)
        {
            if sum > 0.0 {
                last = Some((id, block));
                if at < sum {
                    break;
                }
                at -= sum;
            }
        }
        let (id, block) = last?;
        pick((id..).zip(block.iter().copied()), weight, at)
    }
}

/// Where the tokens that pass the cuts are.
enum Kept {
    /// So many of the candidates, best first.
    Few(usize),
    /// Those with a weight in the row: the logits of the others are now infinitely small.
    Many,
}

/// The first token at which the sum of weights is above `at`; if rounding leaves none, the last
/// one that has a weight.
fn pick(candidates: impl Iterator<Item = Candidate>, weight: Weight, mut at: f64) -> Option<u32> {
    let mut last = None;
    for (id, logit) in candidates {
        let w = f64::from(weight.of(logit));
        if w > 0.0 {
            last = Some(id);
            if at < w {
                break;
            }
            at -= w;
        }
    }
    last
}

/// Tokens that `top_p` looks at first, when `top_k` does not say.
const FIRST_LOOK: usize = 256;
/// Tokens that are sorted; cuts that leave more are made without.
const FEW: usize = 4_096;
/// Elements summed together when drawing from the whole row.
const BLOCK: usize = 1_024;

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::{Choice, Kept, Sampler};
    use crate::engine::random::uniform;
    use crate::engine::sampling::Sampling;
    use crate::engine::softmax::{Weight, max};

    fn choice(sampling: &Sampling) -> Choice<'_> {
        Choice { sampling, prompt: &[], output: &[], seed: 0, logprobs: None }
    }

    fn token(logits: &[f32], choice: Choice<'_>) -> u32 {
        Sampler::new(logits.len()).choose(&mut logits.to_vec(), choice).unwrap().0
    }

    /// Logits of about the spread of a model's, some of them equal.
    fn row(seed: u64, len: usize) -> Vec<f32> {
        let logit = |i| (uniform(seed, i) + uniform(seed, i + 1) - 1.0) * 12.0;
        (0..len as u64).map(|i| (logit(3 * i) * 64.0).round() as f32 / 64.0 + 0.0).collect()
    }

    /// What is kept, by sorting everything; and how close a decision was.
    fn naive(logits: &[f32], sampling: &Sampling) -> (Vec<u32>, f64) {
        let mut sorted: Vec<(u32, f64)> =
            (0..).zip(logits.iter().map(|&x| f64::from(x / sampling.temperature))).collect();
        sorted.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        let largest = sorted[0].1;
        sorted.iter_mut().for_each(|(_, x)| *x = (*x - largest).exp());
        if sampling.top_k > 0 {
            sorted.truncate(sampling.top_k as usize);
        }
        let sum: f64 = sorted.iter().map(|(_, w)| w).sum();
        let (mut reached, mut closest) = (0.0, f64::INFINITY);
        let mut kept = Vec::new();
        for &(id, w) in &sorted {
            let before = reached / sum;
            closest = closest.min((before - f64::from(sampling.top_p)).abs());
            closest = closest.min((w / f64::from(sampling.min_p) - 1.0).abs());
            if (before < f64::from(sampling.top_p) || kept.is_empty())
                && w >= f64::from(sampling.min_p)
            {
                kept.push(id);
            }
            reached += w;
        }
        (kept, closest)
    }

    #[test]
    fn the_cuts_keep_what_a_full_sort_keeps() {
        let (mut compared, mut many) = (0, 0);
        for seed in 0..600 {
            let pick = |index, of: &[f32]| {
                of[(uniform(seed, (1u64 << 40) + index) * of.len() as f64) as usize]
            };
            let len = pick(0, &[1.0, 2.0, 50.0, 300.0, 1_000.0, 6_000.0, 20_000.0]) as usize;
            let sampling = Sampling {
                temperature: pick(1, &[0.3, 0.8, 1.0, 2.0, 50.0]),
                top_k: pick(2, &[0.0, 0.0, 1.0, 3.0, 40.0, 400.0, 9_000.0]) as u32,
                top_p: pick(3, &[0.1, 0.5, 0.9, 0.999, 1.0]),
                min_p: pick(4, &[0.0, 0.0, 0.02, 0.3, 1.0]),
                ..Sampling::default()
            };
            let mut logits = row(seed, len);
            let (mut expected, closest) = naive(&logits, &sampling);
            if closest < 1e-6 && sampling.min_p < 1.0 {
                continue;
            }
            let weight = Weight {
                max: max(&logits).unwrap(),
                scale: 1.0 / sampling.temperature,
                min_p: sampling.min_p,
            };
            let top_k = Some(sampling.top_k as usize).filter(|&k| k > 0);
            let mut sampler = Sampler::new(len);
            let kept: Vec<u32> = match sampler.cut(&mut logits, weight, top_k, sampling.top_p) {
                Kept::Few(count) => sampler.candidates[..count].iter().map(|c| c.0).collect(),
                Kept::Many => {
                    many += 1;
                    expected.sort_unstable();
                    (0..).zip(&logits).filter(|x| weight.of(*x.1) > 0.0).map(|x| x.0).collect()
                }
            };
            assert!(kept == expected, "seed {seed}");
            compared += 1;
        }
        assert!(compared > 400 && many > 20, "{compared} {many}");
    }

    #[test]
    fn tokens_come_as_often_as_they_are_likely() {
        for (top_k, top_p, min_p) in
            [(0, 1.0, 0.0), (0, 1.0, 0.05), (5, 1.0, 0.0), (0, 0.8, 0.0), (9, 0.9, 0.1)]
        {
            let sampling =
                Sampling { temperature: 1.5, top_k, top_p, min_p, ..Sampling::default() };
            let logits: Vec<f32> = row(5, 40).iter().map(|x| x / 2.0).collect();
            let (kept, _) = naive(&logits, &sampling);
            let weight = |id: u32| f64::from(logits[id as usize] / 1.5).exp();
            let sum: f64 = kept.iter().map(|&id| weight(id)).sum();
            let mut seen = BTreeMap::new();
            let mut sampler = Sampler::new(40);
            let draws = 20_000;
            for seed in 0..draws {
                let choice = Choice { seed, ..choice(&sampling) };
                let token = sampler.choose(&mut logits.clone(), choice).unwrap().0;
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
    fn temperature_zero_takes_the_largest_logit_and_the_lowest_id_among_equals() {
        let greedy = Sampling::greedy();
        assert_eq!(token(&[1.0, 3.0, -2.0, 3.0], choice(&greedy)), 1);
        let many: Vec<f32> = (0..1_000).map(|i| if i % 300 == 299 { 2.0 } else { -1.0 }).collect();
        assert_eq!(token(&many, choice(&greedy)), 299);
    }

    #[test]
    fn bias_comes_before_the_choice() {
        let logit_bias = vec![(2, 50.0), (7, 1.0), (2, 50.0)];
        let sampling = Sampling { logit_bias, ..Sampling::greedy() };
        assert_eq!(token(&[60.0, 0.0, 0.0], choice(&sampling)), 2);
    }

    #[test]
    fn repetition_counts_once_over_prompt_and_output_and_pushes_down_on_both_sides_of_zero() {
        let sampling = Sampling { repetition_penalty: 2.0, ..Sampling::greedy() };
        let history = Choice { prompt: &[0, 0, 0], output: &[1], ..choice(&sampling) };
        assert_eq!(token(&[4.0, 3.0, 1.9], history), 0);
        assert_eq!(token(&[4.0, 3.0, 2.1], history), 2);
        assert_eq!(token(&[-1.0, -1.0, -1.9], history), 2);
    }

    #[test]
    fn presence_counts_once_and_frequency_each_time_over_the_output_alone() {
        let presence = Sampling { presence_penalty: 1.0, ..Sampling::greedy() };
        let history =
            |sampling| Choice { prompt: &[2, 2], output: &[0, 0, 0, 1], ..choice(sampling) };
        assert_eq!(token(&[5.0, 0.0, 4.1], history(&presence)), 2);
        assert_eq!(token(&[5.0, 0.0, 3.9], history(&presence)), 0);
        let frequency = Sampling { frequency_penalty: 1.0, ..Sampling::greedy() };
        assert_eq!(token(&[5.0, 0.0, 2.1], history(&frequency)), 2);
        assert_eq!(token(&[5.0, 0.0, 1.9], history(&frequency)), 0);
    }

    #[test]
    fn logprobs_are_those_of_the_model_before_bias_and_penalties() {
        let sampling = Sampling {
            logit_bias: vec![(3, 90.0)],
            repetition_penalty: 3.0,
            presence_penalty: 1.0,
            ..Sampling::greedy()
        };
        let logits = [1.0f32, 2.5, 2.5, -1.0];
        let sum: f64 = logits.iter().map(|&x| f64::from(x).exp()).sum();
        let expected = logits.map(|x| (f64::from(x) - sum.ln()) as f32);
        let choice = Choice { prompt: &[3], output: &[3], logprobs: Some(3), ..choice(&sampling) };
        let mut sampler = Sampler::new(4);
        let (token, logprobs) = sampler.choose(&mut logits.clone(), choice).unwrap();
        let logprobs = logprobs.unwrap();
        assert_eq!(token, 3);
        assert!((logprobs.logprob - expected[3]).abs() < 1e-6);
        let ids: Vec<u32> = logprobs.alternatives.iter().map(|a| a.0).collect();
        assert_eq!(ids, [1, 2, 0]);
        for &(id, logprob) in &logprobs.alternatives {
            assert!((logprob - expected[id as usize]).abs() < 1e-6);
        }
        let none = Choice { logprobs: Some(0), ..choice };
        let (_, logprobs) = sampler.choose(&mut logits.clone(), none).unwrap();
        assert!(logprobs.unwrap().alternatives.is_empty());
    }

    #[test]
    fn a_choice_leaves_no_trace_in_the_next() {
        let sampling = Sampling {
            repetition_penalty: 1.7,
            frequency_penalty: 0.5,
            top_p: 0.9,
            ..Sampling::default()
        };
        let mut used = Sampler::new(300);
        for seed in 0..50 {
            let logits = row(seed, 300);
            let output: Vec<u32> = (0..seed as u32).map(|i| i * 7 % 300).collect();
            let choice = Choice { output: &output, seed, ..choice(&sampling) };
            let again = used.choose(&mut logits.clone(), choice).unwrap().0;
            assert_eq!(again, token(&logits, choice), "seed {seed}");
        }
    }

    #[test]
    fn a_row_that_is_not_finite_before_or_after_the_changes_is_refused() {
        let greedy = Sampling::greedy();
        let mut sampler = Sampler::new(2);
        assert!(sampler.choose(&mut [0.0, f32::NAN], choice(&greedy)).is_err());
        assert!(sampler.choose(&mut [0.0, f32::NEG_INFINITY], choice(&greedy)).is_err());
        let penalty = Sampling { repetition_penalty: 0.01, ..Sampling::default() };
        let history = Choice { prompt: &[0], ..choice(&penalty) };
        assert!(sampler.choose(&mut [3e38, 0.0], history).is_err());
        assert!(sampler.choose(&mut [0.0, 0.0], history).is_ok());
    }

    #[test]
    fn extreme_logits_and_temperatures_still_give_a_token() {
        for temperature in [0.001, 1.0, 100.0] {
            for top_p in [0.01, 1.0] {
                let sampling = Sampling { temperature, top_p, ..Sampling::default() };
                assert_eq!(token(&[-3e38, 3e38, -3e38], choice(&sampling)), 1);
                assert!(token(&[0.0; 5_000], choice(&sampling)) < 5_000);
            }
        }
    }
}
