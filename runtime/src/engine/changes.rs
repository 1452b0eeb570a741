//! What bias and penalties do to the logits of one sequence: a list with one entry for each token that they change.

use chrysalis_kernels::Edit;
use zeroize::{Zeroize, Zeroizing};

use super::sampling::Sampling;

/// Makes the lists. Its memory is reused, and wiped on drop.
pub(super) struct Changes {
    /// One more than the place of each token's edit; zero where it has none, `[vocab_size]`.
    places: Zeroizing<Vec<u32>>,
    edits: Vec<Edit>,
    /// How often the token of each edit occurs in the output.
    counts: Vec<u32>,
}

impl Drop for Changes {
    fn drop(&mut self) {
        self.edits.zeroize();
        self.counts.zeroize();
    }
}

impl Changes {
    /// Reserves all memory, so that no copy stays behind when a list grows.
    pub(super) fn new(vocab_size: usize) -> Self {
        Self {
            places: Zeroizing::new(vec![0; vocab_size]),
            edits: Vec::with_capacity(vocab_size),
            counts: Vec::with_capacity(vocab_size),
        }
    }

    /// Forgets the sequence before, and begins another one, whose next token follows `prompt` and `output`.
    pub(super) fn begin(&mut self, sampling: &Sampling, prompt: &[u32], output: &[u32]) {
        for edit in &self.edits {
            if let Some(place) = self.places.get_mut(edit.token as usize) {
                *place = 0;
            }
        }
        self.edits.clear();
        self.counts.clear();
        for &(token, bias) in &sampling.logit_bias {
            if let Some((edit, _)) = self.edit(token) {
                edit.bias += bias;
            }
        }
        if sampling.repetition_penalty != 1.0 {
            for &token in prompt {
                if let Some((edit, _)) = self.edit(token) {
                    edit.repetition = sampling.repetition_penalty;
                }
            }
        }
        if sampling.penalises() {
            output.iter().for_each(|token| self.put_out(sampling, *token));
        }
    }

    /// Adds a token to the output.
    pub(super) fn put_out(&mut self, sampling: &Sampling, token: u32) {
        if !sampling.penalises() {
            return;
        }
        if let Some((edit, count)) = self.edit(token) {
            occurs(sampling, edit, count);
        }
    }

    /// The list, in no particular order.
    pub(super) fn edits(&self) -> &[Edit] {
        &self.edits
    }

    /// The edit of a token, and how often that occurs.
    fn edit(&mut self, token: u32) -> Option<(&mut Edit, &mut u32)> {
        let place = self.places.get_mut(token as usize)?;
        if *place == 0 {
            self.edits.push(Edit::none(token));
            self.counts.push(0);
            *place = super::saturate(self.edits.len());
        }
        let at = (*place as usize).checked_sub(1)?;
        self.edits.get_mut(at).zip(self.counts.get_mut(at))
    }
}

/// Once more in the output.
fn occurs(sampling: &Sampling, edit: &mut Edit, count: &mut u32) {
    *count += 1;
    edit.repetition = sampling.repetition_penalty;
    edit.lowered = sampling.frequency_penalty * *count as f32 + sampling.presence_penalty;
}

/// The list of one sequence, kept from step to step: its whole history is looked through once. Wiped on drop.
#[derive(Default)]
pub(super) struct Kept {
    edits: Vec<Edit>,
    counts: Vec<u32>,
    /// So many tokens of the output are in it.
    output: Option<usize>,
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.edits.zeroize();
        self.counts.zeroize();
    }
}

impl Kept {
    /// What [`Changes::begin`] lists. The sequence has at most `most` tokens, ever: the list does not grow beyond what it reserves
    /// for them.
    pub(super) fn edits(
        &mut self,
        changes: &mut Changes,
        sampling: &Sampling,
        (prompt, output): (&[u32], &[u32]),
        most: usize,
    ) -> &[Edit] {
        if !sampling.penalises() && sampling.logit_bias.is_empty() {
            return &[];
        }
        let known = self.output.replace(output.len());
        match known.and_then(|known| output.get(known..)) {
            Some(new) if new.len() <= FEW => {
                new.iter().for_each(|token| self.put_out(sampling, *token));
            }
            _ => {
                changes.begin(sampling, prompt, output);
                let most = sampling.logit_bias.len() + most;
                self.take(changes, most.min(changes.places.len()));
            }
        }
        &self.edits
    }

    fn take(&mut self, changes: &Changes, most: usize) {
        self.edits.zeroize();
        self.counts.zeroize();
        self.edits.reserve_exact(most);
        self.counts.reserve_exact(most);
        self.edits.extend_from_slice(&changes.edits);
        self.counts.extend_from_slice(&changes.counts);
    }

    fn put_out(&mut self, sampling: &Sampling, token: u32) {
        if !sampling.penalises() {
            return;
        }
        let place = self.edits.iter().position(|edit| edit.token == token);
        let place = place.unwrap_or_else(|| {
            self.edits.push(Edit::none(token));
            self.counts.push(0);
            self.edits.len() - 1
        });
        if let Some((edit, count)) = self.edits.get_mut(place).zip(self.counts.get_mut(place)) {
            occurs(sampling, edit, count);
        }
    }
}

/// Tokens of which each is looked for in the list: of more the whole history is looked through again.
const FEW: usize = 16;

#[cfg(test)]
mod tests {
    use chrysalis_kernels::reference::choose;
    use chrysalis_kernels::sampling::Draw;

    use super::{Changes, Kept};
    use crate::engine::Sampling;

    /// The greedy token after a history.
    fn token(logits: &[f32], sampling: &Sampling, prompt: &[u32], output: &[u32]) -> u32 {
        let mut changes = Changes::new(logits.len());
        changes.begin(sampling, prompt, output);
        choose(logits, &Draw::greedy(0), changes.edits()).unwrap()
    }

    #[test]
    fn entries_of_the_bias_for_one_token_are_summed() {
        let logit_bias = vec![(2, 50.0), (1, 1.0), (2, 50.0)];
        let sampling = Sampling { logit_bias, ..Sampling::greedy() };
        assert_eq!(token(&[60.0, 0.0, 0.0], &sampling, &[], &[]), 2);
        let mut changes = Changes::new(3);
        changes.begin(&sampling, &[0], &[0]);
        assert_eq!(changes.edits().len(), 2);
    }

    #[test]
    fn repetition_counts_once_over_prompt_and_output_and_pushes_down_on_both_sides_of_zero() {
        let sampling = Sampling { repetition_penalty: 2.0, ..Sampling::greedy() };
        let token = |logits: &[f32]| token(logits, &sampling, &[0, 0, 0], &[1]);
        assert_eq!(token(&[4.0, 3.0, 1.9]), 0);
        assert_eq!(token(&[4.0, 3.0, 2.1]), 2);
        assert_eq!(token(&[-1.0, -1.0, -1.9]), 2);
    }

    #[test]
    fn presence_counts_once_and_frequency_each_time_over_the_output_alone() {
        let presence = Sampling { presence_penalty: 1.0, ..Sampling::greedy() };
        let token = |logits: &[f32], sampling| token(logits, sampling, &[2, 2], &[0, 0, 0, 1]);
        assert_eq!(token(&[5.0, 0.0, 4.1], &presence), 2);
        assert_eq!(token(&[5.0, 0.0, 3.9], &presence), 0);
        let frequency = Sampling { frequency_penalty: 1.0, ..Sampling::greedy() };
        assert_eq!(token(&[5.0, 0.0, 2.1], &frequency), 2);
        assert_eq!(token(&[5.0, 0.0, 1.9], &frequency), 0);
    }

    #[test]
    fn a_list_that_went_on_is_that_of_its_whole_history_and_of_no_other() {
        let sampling = Sampling {
            logit_bias: vec![(3, -1.0), (11, 2.0)],
            repetition_penalty: 1.7,
            presence_penalty: 0.25,
            frequency_penalty: 0.5,
            ..Sampling::default()
        };
        let sorted = |changes: &Changes| {
            let mut edits = changes.edits().to_vec();
            edits.sort_by_key(|edit| edit.token);
            edits
        };
        let mut used = Changes::new(30);
        for end in 0..20 {
            let tokens: Vec<u32> = (0..end + 10).map(|i| i * i % 29).collect();
            let (prompt, output) = tokens.split_at(4);
            let (first, rest) = output.split_at(output.len() / 2);
            used.begin(&sampling, prompt, first);
            rest.iter().for_each(|token| used.put_out(&sampling, *token));
            let mut whole = Changes::new(30);
            whole.begin(&sampling, prompt, output);
            assert!(sorted(&used) == sorted(&whole), "{end}");
            assert!(!whole.edits().is_empty());
        }
        used.begin(&Sampling::default(), &[1, 2], &[3]);
        assert!(used.edits().is_empty());
    }

    #[test]
    fn a_list_that_is_kept_is_the_one_that_would_be_made_and_never_moves() {
        let bias = vec![(3, -1.0), (11, 2.0)];
        let penalties =
            Sampling { repetition_penalty: 1.7, frequency_penalty: 0.5, ..Sampling::default() };
        let only = penalties.clone();
        let both = Sampling { logit_bias: bias.clone(), ..penalties };
        let biased = Sampling { logit_bias: bias, ..Sampling::default() };
        // Token by token, several at once, many at once, and one that was taken back.
        let lengths = [0, 1, 2, 5, 6, 30, 31, 90, 89, 91];
        for sampling in [only, both, biased, Sampling::default()] {
            let tokens: Vec<u32> = (0..100).map(|i| i * i % 29).collect();
            let (prompt, output) = tokens.split_at(9);
            let (mut kept, mut place) = (Kept::default(), None);
            for len in lengths {
                let mut whole = Changes::new(30);
                whole.begin(&sampling, prompt, &output[..len]);
                // Another sequence used the same memory in between.
                let mut shared = Changes::new(30);
                shared.begin(&sampling, &[29, 28, 3], &[29]);
                let parts = (prompt, &output[..len]);
                let edits = kept.edits(&mut shared, &sampling, parts, tokens.len());
                assert!(edits == whole.edits(), "{len}");
                let at = (!edits.is_empty()).then_some(edits.as_ptr());
                assert_eq!(*place.get_or_insert(at), at, "its memory is the same");
            }
        }
    }
}
