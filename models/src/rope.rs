//! Rotary embeddings: the angle per position of each pair, for every scaling that we know.
//!
//! Sources: Su et al. 2021, arXiv:2104.09864; Peng et al. 2023 (YaRN), arXiv:2309.00071; the Llama 3.1
//! release. The meaning of each parameter is that of Hugging Face's `rope_parameters`.

use std::f64::consts::PI;

use chrysalis_kernels::device::RopeParams;
use chrysalis_protocol::package::Rope;

/// Why a rotary embedding cannot be computed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RopeError {
    /// A kind of scaling that is not ours.
    #[error("kind {0} is unknown")]
    Kind(u32),
    /// The rotated part of a head is odd, empty, or wider than the head.
    #[error("{rope_dim} rotated values in a head of {head_dim}")]
    RopeDim {
        /// Values rotated.
        rope_dim: u32,
        /// Values in a head.
        head_dim: usize,
    },
    /// A parameter out of its range.
    #[error("{field} is {value}, not {expected}")]
    Parameter {
        /// Field of [`Rope`].
        field: &'static str,
        /// What it says.
        value: f32,
        /// What it should have been.
        expected: &'static str,
    },
}

/// The rotary embedding of one kind of layer, checked.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct RopeConfig {
    rope_dim: usize,
    theta: f64,
    scaling: Scaling,
}

#[derive(Clone, Debug, PartialEq)]
enum Scaling {
    None,
    /// Every angle divided by `factor`.
    Linear {
        factor: f64,
    },
    /// Long wavelengths divided, short ones kept, a ramp between.
    Llama3 {
        factor: f64,
        low: f64,
        high: f64,
        original_max: f64,
    },
    /// Ramp over the index of the pair, and a factor on the attention.
    Yarn {
        factor: f64,
        beta_fast: f64,
        beta_slow: f64,
        original_max: f64,
        attention_factor: f64,
    },
}

impl RopeConfig {
    /// Checks the parameters of `rope` for heads of `head_dim` values.
    pub(crate) fn new(
        rope: &Rope,
        head_dim: usize,
        max_positions: usize,
    ) -> Result<Self, RopeError> {
        let rope_dim = rope.rope_dim as usize;
        if rope_dim < 2 || !rope_dim.is_multiple_of(2) || rope_dim > head_dim {
            return Err(RopeError::RopeDim { rope_dim: rope.rope_dim, head_dim });
        }
        Ok(Self {
            rope_dim,
            theta: above("theta", rope.theta, 1.0, "above 1")?,
            scaling: Scaling::new(rope, max_positions)?,
        })
    }

    /// The angles for the device, which will be asked for positions below `max_positions`.
    pub(crate) fn params(&self, max_positions: usize) -> RopeParams {
        RopeParams {
            inv_freq: self.inv_freq().into_iter().map(|angle| angle as f32).collect(),
            attention_factor: match self.scaling {
                Scaling::Yarn { attention_factor, .. } => attention_factor as f32,
                _ => 1.0,
            },
            max_positions,
        }
    }

    /// Angle per position of each pair, scaled, `[rope_dim / 2]`.
    fn inv_freq(&self) -> Vec<f64> {
        let plain = (0..self.rope_dim / 2)
            .map(|pair| self.theta.powf(-2.0 * pair as f64 / self.rope_dim as f64));
        match self.scaling {
            Scaling::None => plain.collect(),
            Scaling::Linear { factor } => plain.map(|angle| angle / factor).collect(),
            Scaling::Llama3 { factor, low, high, original_max } => plain
                .map(|angle| {
                    let turns = original_max * angle / (2.0 * PI);
                    let keep = ((turns - low) / (high - low)).clamp(0.0, 1.0);
                    blend(angle, factor, keep)
                })
                .collect(),
            Scaling::Yarn { factor, beta_fast, beta_slow, original_max, .. } => {
                let first = self.pair_of_turns(beta_fast, original_max).floor().max(0.0);
                let last = self
                    .pair_of_turns(beta_slow, original_max)
                    .ceil()
                    .min((self.rope_dim - 1) as f64);
                // Equal ends would divide by zero; the original widens them by this much.
                let width = if first == last { 0.001 } else { last - first };
                plain
                    .enumerate()
                    .map(|(pair, angle)| {
                        let ramp = ((pair as f64 - first) / width).clamp(0.0, 1.0);
                        blend(angle, factor, 1.0 - ramp)
                    })
                    .collect()
            }
        }
    }

    /// Index (not whole) of the pair that makes `turns` turns over the original context.
    fn pair_of_turns(&self, turns: f64, original_max: f64) -> f64 {
        self.rope_dim as f64 * (original_max / (turns * 2.0 * PI)).ln() / (2.0 * self.theta.ln())
    }
}

impl Scaling {
    fn new(rope: &Rope, max_positions: usize) -> Result<Self, RopeError> {
        let factor = || above("factor", rope.factor, 0.0, "above 0");
        let original_max = match rope.original_max_position {
            0 => max_positions as f64,
            given => f64::from(given),
        };
        match rope.kind {
            0 => Ok(Self::None),
            1 => Ok(Self::Linear { factor: factor()? }),
            2 => {
                let low = above("low_freq_factor", rope.low_freq_factor, 0.0, "above 0")?;
                let high = above(
                    "high_freq_factor",
                    rope.high_freq_factor,
                    rope.low_freq_factor,
                    "above low_freq_factor",
                )?;
                Ok(Self::Llama3 { factor: factor()?, low, high, original_max })
            }
            3 => {
                let factor = factor()?;
                let beta_slow = above("beta_slow", rope.beta_slow, 0.0, "above 0")?;
                let beta_fast =
                    above("beta_fast", rope.beta_fast, rope.beta_slow, "above beta_slow")?;
                let attention_factor = if rope.attention_factor == 0.0 {
                    if factor <= 1.0 { 1.0 } else { 0.1 * factor.ln() + 1.0 }
                } else {
                    above("attention_factor", rope.attention_factor, 0.0, "above 0")?
                };
                Ok(Self::Yarn { factor, beta_fast, beta_slow, original_max, attention_factor })
            }
            kind => Err(RopeError::Kind(kind)),
        }
    }
}

/// Between `angle / factor` (`keep` 0) and `angle` (`keep` 1).
fn blend(angle: f64, factor: f64, keep: f64) -> f64 {
    (1.0 - keep) * angle / factor + keep * angle
}

fn above(
    field: &'static str,
    value: f32,
    bound: f32,
    expected: &'static str,
) -> Result<f64, RopeError> {
    if value.is_finite() && value > bound {
        Ok(f64::from(value))
    } else {
        Err(RopeError::Parameter { field, value, expected })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain() -> Rope {
        Rope { theta: 10_000.0, rope_dim: 16, ..Rope::default() }
    }

    fn params(rope: &Rope) -> RopeParams {
        RopeConfig::new(rope, 16, 4096).unwrap().params(64)
    }

    #[test]
    fn plain_angles_fall_from_one_to_almost_one_over_theta() {
        let angles = params(&plain()).inv_freq;
        assert_eq!(angles.len(), 8);
        assert_eq!((angles[0], angles[4]), (1.0, 0.01));
        assert!((angles[7] - 10_000f32.powf(-7.0 / 8.0)).abs() < 1e-9);
    }

    #[test]
    fn linear_scaling_divides_every_angle() {
        let angles = params(&Rope { kind: 1, factor: 4.0, ..plain() }).inv_freq;
        assert_eq!((angles[0], angles[4]), (0.25, 0.0025));
    }

    #[test]
    fn llama3_scaling_keeps_short_waves_and_divides_long_ones() {
        let scaled = params(&Rope {
            kind: 2,
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_position: 32,
            ..plain()
        });
        let ratios: Vec<f32> =
            scaled.inv_freq.iter().zip(params(&plain()).inv_freq).map(|(a, b)| a / b).collect();
        assert_eq!((ratios[0], ratios[2], ratios[7]), (1.0, 0.125, 0.125));
        assert!(0.125 < ratios[1] && ratios[1] < 1.0, "{ratios:?}");
        assert_eq!(scaled.attention_factor, 1.0);
    }

    #[test]
    fn yarn_derives_its_attention_factor_unless_it_is_given() {
        let yarn = Rope {
            kind: 3,
            factor: 4.0,
            beta_fast: 32.0,
            beta_slow: 1.0,
            original_max_position: 1024,
            ..plain()
        };
        assert!((params(&yarn).attention_factor - 1.138_629_4).abs() < 1e-6);
        assert_eq!(params(&Rope { attention_factor: 0.5, ..yarn }).attention_factor, 0.5);
        let angles = params(&yarn).inv_freq;
        assert_eq!((angles[0], angles[7]), (1.0, params(&plain()).inv_freq[7] / 4.0));
    }

    #[test]
    fn a_part_of_a_head_can_turn() {
        assert_eq!(params(&Rope { rope_dim: 4, ..plain() }).inv_freq, [1.0, 0.01]);
    }

    #[test]
    fn an_embedding_that_cannot_be_computed_is_refused_by_name() {
        let llama3 = Rope { kind: 2, factor: 8.0, low_freq_factor: 1.0, ..plain() };
        let cases = [
            (Rope { kind: 4, ..plain() }, "kind 4 is unknown"),
            (Rope { rope_dim: 3, ..plain() }, "3 rotated values in a head of 16"),
            (Rope { theta: 1.0, ..plain() }, "theta is 1, not above 1"),
            (Rope { kind: 1, ..plain() }, "factor is 0, not above 0"),
            (
                Rope { high_freq_factor: 1.0, ..llama3 },
                "high_freq_factor is 1, not above low_freq_factor",
            ),
            (Rope { kind: 3, factor: 2.0, ..plain() }, "beta_slow is 0, not above 0"),
        ];
        for (rope, refusal) in cases {
            assert_eq!(RopeConfig::new(&rope, 16, 64).unwrap_err().to_string(), refusal);
        }
    }
}
