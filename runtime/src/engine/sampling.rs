//! How the next token is chosen: the parameters of a request and their ranges.

use chrysalis_kernels::Draw;

use super::error::SamplingError;

/// Sampling parameters. They act in the order of the fields, on logits:
/// bias, penalties, temperature, then the cuts, each on what the one before left over. What they mean to the last bit is
/// in [`chrysalis_kernels::sampling`]: the device chooses.
#[derive(Clone, PartialEq)]
#[expect(missing_debug_implementations, reason = "part of a sealed request")]
pub struct Sampling {
    /// `(token, bias)`: added to the token's logit; -100 to 100, at most [`LOGIT_BIAS_MAX`].
    pub logit_bias: Vec<(u32, f32)>,
    /// A token of the prompt or the output has its logit divided by this if positive, multiplied
    /// if negative, once however often it occurs (CTRL, arXiv:1909.05858). 0.01 to 100; 1: off.
    pub repetition_penalty: f32,
    /// Subtracted from the logit of every token that occurs in the output. -2 to 2; 0: off.
    pub presence_penalty: f32,
    /// Subtracted for each time the token occurs in the output. -2 to 2; 0: off.
    pub frequency_penalty: f32,
    /// Divides the logits; 0.001 to 100. 0: the largest logit wins, the lowest id among equals.
    pub temperature: f32,
    /// Only this many of the most likely tokens, the lower id first among equals; 0: all.
    pub top_k: u32,
    /// Only the shortest run of most likely tokens whose share of the probability that `top_k`
    /// left is at least this (arXiv:1904.09751). Above 0, at most 1; 1: all.
    pub top_p: f32,
    /// Only tokens at least this times as likely as the likeliest (arXiv:2407.01082). 0 to 1;
    /// 0: all.
    pub min_p: f32,
}

impl Default for Sampling {
    /// The model's own distribution: nothing is changed, temperature 1.
    fn default() -> Self {
        Self {
            logit_bias: Vec::new(),
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
        }
    }
}

impl Sampling {
    /// The most likely token each time.
    pub fn greedy() -> Self {
        Self { temperature: 0.0, ..Self::default() }
    }

    /// The choice of token `index` of the output from a row of logits, but for bias and penalties.
    pub(super) fn draw(&self, row: u32, seed: u64, index: u64) -> Draw {
        let Self { temperature, top_k, top_p, min_p, .. } = *self;
        Draw { row, temperature, top_k, top_p, min_p, seed, index }
    }

    /// Whether the logits of tokens that were put out change.
    pub(super) fn penalises(&self) -> bool {
        let Self { repetition_penalty, presence_penalty, frequency_penalty, .. } = *self;
        repetition_penalty != 1.0 || presence_penalty != 0.0 || frequency_penalty != 0.0
    }

    /// Checks every range.
    ///
    /// # Errors
    /// The first parameter that is outside its range.
    pub fn check(&self) -> Result<(), SamplingError> {
        if self.logit_bias.len() > LOGIT_BIAS_MAX {
            let entries = self.logit_bias.len();
            return Err(SamplingError::BiasTooLong { entries, max: LOGIT_BIAS_MAX });
        }
        for &(_, bias) in &self.logit_bias {
            within("logit bias", bias, -100.0, 100.0)?;
        }
        within("repetition penalty", self.repetition_penalty, 0.01, 100.0)?;
        within("presence penalty", self.presence_penalty, -2.0, 2.0)?;
        within("frequency penalty", self.frequency_penalty, -2.0, 2.0)?;
        if self.temperature != 0.0 {
            within("temperature", self.temperature, 0.001, 100.0)?;
        }
        within("top_p", self.top_p, f32::MIN_POSITIVE, 1.0)?;
        within("min_p", self.min_p, 0.0, 1.0)
    }
}

fn within(name: &'static str, value: f32, min: f32, max: f32) -> Result<(), SamplingError> {
    if (min..=max).contains(&value) {
        return Ok(());
    }
    Err(SamplingError::OutOfRange { name, value, min, max })
}

/// The most entries of a logit bias.
pub const LOGIT_BIAS_MAX: usize = 1_024;

#[cfg(test)]
mod tests {
    use super::{LOGIT_BIAS_MAX, Sampling};

    #[test]
    fn every_range_is_checked_and_nan_is_in_none() {
        assert!(Sampling::default().check().is_ok());
        assert!(Sampling::greedy().check().is_ok());
        let refused: [fn(&mut Sampling); 13] = [
            |s| s.temperature = -1.0,
            |s| s.temperature = 1e-6,
            |s| s.temperature = f32::NAN,
            |s| s.top_p = 0.0,
            |s| s.top_p = 1.5,
            |s| s.min_p = -0.1,
            |s| s.min_p = f32::NAN,
            |s| s.repetition_penalty = 0.0,
            |s| s.presence_penalty = 2.5,
            |s| s.frequency_penalty = f32::INFINITY,
            |s| s.logit_bias = vec![(0, 101.0)],
            |s| s.logit_bias = vec![(0, f32::NAN)],
            |s| s.logit_bias = vec![(0, 0.0); LOGIT_BIAS_MAX + 1],
        ];
        for (row, alter) in refused.iter().enumerate() {
            let mut sampling = Sampling::default();
            alter(&mut sampling);
            assert!(sampling.check().is_err(), "row {row}");
        }
    }
}
