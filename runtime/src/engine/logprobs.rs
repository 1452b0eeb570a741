//! Log-probabilities of a row of logits, for those who asked for them.

use chrysalis_kernels::sampling::{largest, log_sum_exp};

use super::sequence::TokenLogprobs;

/// The log-probability of `token`, and the `count` most likely ones with theirs; nothing when the row is not finite.
pub(super) fn logprobs(logits: &[f32], count: u8, token: u32) -> Option<TokenLogprobs> {
    let log_sum = log_sum_exp(logits)?;
    let of = |token: u32| {
        let logit = logits.get(token as usize).copied();
        (f64::from(logit.unwrap_or(f32::NAN)) - log_sum) as f32
    };
    let mut best = Vec::with_capacity(usize::from(count));
    largest(logits, usize::from(count), &mut best);
    let mut alternatives = Vec::with_capacity(best.len());
    alternatives.extend(best.iter().map(|&token| (token, of(token))));
    zeroize::Zeroize::zeroize(&mut best);
    Some(TokenLogprobs { logprob: of(token), alternatives })
}

#[cfg(test)]
mod tests {
    use super::logprobs;

    #[test]
    fn they_are_those_of_the_softmax_best_first_the_lower_token_among_equals() {
        let logits = [1.0f32, 2.5, 2.5, -1.0];
        let sum: f64 = logits.iter().map(|&x| f64::from(x).exp()).sum();
        let expected = logits.map(|x| (f64::from(x) - sum.ln()) as f32);
        let found = logprobs(&logits, 3, 3).unwrap();
        assert!((found.logprob - expected[3]).abs() < 1e-6);
        let ids: Vec<u32> = found.alternatives.iter().map(|a| a.0).collect();
        assert_eq!(ids, [1, 2, 0]);
        for &(id, logprob) in &found.alternatives {
            assert!((logprob - expected[id as usize]).abs() < 1e-6);
        }
        assert!(logprobs(&logits, 0, 0).unwrap().alternatives.is_empty());
        assert!(logprobs(&[0.0, f32::NAN], 1, 0).is_none());
    }
}
