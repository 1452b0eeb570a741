//! Rotary embeddings as config.json and GGUF metadata describe them.

use std::f32::consts::TAU;

use chrysalis_protocol::package::Rope;

use super::ArchitectureError;
use super::hugging_face::Fields;
use crate::source::gguf::Metadata;

/// Rotation by `theta` alone; what a kind does not use is zero.
pub(super) fn plain(theta: f32, rope_dim: u32) -> Rope {
    Rope { kind: KIND_DEFAULT, theta, rope_dim, ..Rope::default() }
}

/// Adds the scaling of `rope_scaling` (files of transformers 4) or `rope_parameters` (5).
pub(super) fn scaled(
    plain: Rope,
    scaling: &Fields<'_>,
    max_position: u32,
) -> Result<Rope, ArchitectureError> {
    let kind = match scaling.text("rope_type")? {
        Some(kind) => kind,
        None => scaling.text("type")?.unwrap_or("default"),
    };
    if kind == "default" {
        return Ok(plain);
    }
    let factor = scaling.f32("factor")?;
    let original = scaling.u32("original_max_position_embeddings")?;
    let require = |field: &str, value: Option<f32>| {
        value.ok_or_else(|| ArchitectureError::Missing(scaling.path(field)))
    };
    match kind {
        "linear" => Ok(Rope { kind: KIND_LINEAR, factor: require("factor", factor)?, ..plain }),
        "llama3" => Ok(Rope {
            kind: KIND_LLAMA3,
            factor: require("factor", factor)?,
            low_freq_factor: require("low_freq_factor", scaling.f32("low_freq_factor")?)?,
            high_freq_factor: require("high_freq_factor", scaling.f32("high_freq_factor")?)?,
            original_max_position: original.unwrap_or(max_position),
            ..plain
        }),
        "yarn" => {
            if scaling.bool("truncate")? == Some(false) {
                return Err(unsupported(scaling.path("truncate"), "false"));
            }
            let original_max_position = original.unwrap_or(max_position);
            let stretch = max_position as f32 / original_max_position.max(1) as f32;
            let factor = factor.unwrap_or(stretch);
            Ok(Rope {
                kind: KIND_YARN,
                factor,
                original_max_position,
                beta_fast: scaling.f32("beta_fast")?.unwrap_or(BETA_FAST),
                beta_slow: scaling.f32("beta_slow")?.unwrap_or(BETA_SLOW),
                attention_factor: yarn_attention_factor(scaling, factor)?,
                ..plain
            })
        }
        _ => Err(unsupported(scaling.path("rope_type"), kind)),
    }
}

/// Zero where it is to be derived from the factor.
fn yarn_attention_factor(scaling: &Fields<'_>, factor: f32) -> Result<f32, ArchitectureError> {
    if let Some(given) = scaling.f32("attention_factor")? {
        return Ok(given);
    }
    let mscale = scaling.f32("mscale")?.filter(|mscale| *mscale != 0.0);
    let mscale_all = scaling.f32("mscale_all_dim")?.filter(|mscale| *mscale != 0.0);
    let scale = |mscale: f32| 0.1 * mscale * factor.max(1.0).ln() + 1.0;
    Ok(match (mscale, mscale_all) {
        (Some(mscale), Some(mscale_all)) => scale(mscale) / scale(mscale_all),
        _ => 0.0,
    })
}

/// Adds the scaling of GGUF metadata; `freqs` are the values of `rope_freqs.weight`, by which
/// GGUF files carry llama3 scaling.
pub(super) fn from_gguf(
    plain: Rope,
    metadata: &Metadata,
    prefix: &str,
    max_position: u32,
    freqs: Option<&[f32]>,
) -> Result<Rope, ArchitectureError> {
    let key = |name: &str| format!("{prefix}.rope.{name}");
    let kind = metadata.text(&key("scaling.type"))?.unwrap_or("none");
    if let Some(freqs) = freqs {
        if kind != "none" && kind != "llama3" {
            return Err(unsupported("rope_freqs.weight".to_owned(), "there beside rope.scaling"));
        }
        return llama3_from_freqs(plain, freqs);
    }
    let factor = match metadata.f32(&key("scaling.factor"))? {
        Some(factor) => Some(factor),
        None => metadata.f32(&key("scale_linear"))?,
    };
    let require =
        |value: Option<f32>| value.ok_or_else(|| ArchitectureError::Missing(key("scaling.factor")));
    match kind {
        "none" => match metadata.f32(&key("scale_linear"))?.filter(|factor| *factor != 1.0) {
            Some(factor) => Ok(Rope { kind: KIND_LINEAR, factor, ..plain }),
            None => Ok(plain),
        },
        "linear" => Ok(Rope { kind: KIND_LINEAR, factor: require(factor)?, ..plain }),
        "yarn" => {
            let factor = require(factor)?;
            let original = metadata.u32(&key("scaling.original_context_length"))?;
            let multiplier = match metadata.f32(&key("scaling.yarn_attn_factor"))? {
                Some(multiplier) => Some(multiplier),
                None => metadata.f32(&key("scaling.attn_factor"))?,
            };
            Ok(Rope {
                kind: KIND_YARN,
                factor,
                original_max_position: original.unwrap_or(max_position),
                beta_fast: metadata.f32(&key("scaling.yarn_beta_fast"))?.unwrap_or(BETA_FAST),
                beta_slow: metadata.f32(&key("scaling.yarn_beta_slow"))?.unwrap_or(BETA_SLOW),
                attention_factor: multiplier
                    .filter(|multiplier| *multiplier != 1.0)
                    .map_or(0.0, |multiplier| multiplier * (0.1 * factor.max(1.0).ln() + 1.0)),
                ..plain
            })
        }
        found => Err(unsupported(key("scaling.type"), found)),
    }
}

/// Finds the llama3 parameters whose factors are `freqs`, `[rope_dim / 2]`: the largest factor,
/// with the frequency factors and the original context that all published models have.
fn llama3_from_freqs(plain: Rope, freqs: &[f32]) -> Result<Rope, ArchitectureError> {
    if freqs.len() != plain.rope_dim as usize / 2 {
        return Err(ArchitectureError::Field {
            field: "rope_freqs.weight".to_owned(),
            expected: "one factor for each pair",
            found: format!("a list of {}", freqs.len()),
        });
    }
    let factor = freqs.iter().copied().fold(1.0, f32::max);
    if freqs.iter().all(|freq| (freq - 1.0).abs() <= FACTOR_TOLERANCE) {
        return Ok(plain);
    }
    for (index, found) in freqs.iter().copied().enumerate() {
        let expected = llama3_factor(&plain, factor, index);
        let close = (found - expected).abs() <= FACTOR_TOLERANCE * expected;
        if !close {
            return Err(ArchitectureError::RopeFactors { factor, index, expected, found });
        }
    }
    Ok(Rope {
        kind: KIND_LLAMA3,
        factor,
        low_freq_factor: LOW_FREQ_FACTOR,
        high_freq_factor: HIGH_FREQ_FACTOR,
        original_max_position: ORIGINAL_MAX_POSITION,
        ..plain
    })
}

/// What llama3 scaling divides the frequency of pair `index` by.
fn llama3_factor(plain: &Rope, factor: f32, index: usize) -> f32 {
    let exponent = 2.0 * index as f32 / plain.rope_dim as f32;
    let wavelength = TAU * plain.theta.powf(exponent);
    let turns = ORIGINAL_MAX_POSITION as f32 / wavelength;
    let smooth = (turns - LOW_FREQ_FACTOR) / (HIGH_FREQ_FACTOR - LOW_FREQ_FACTOR);
    let smooth = smooth.clamp(0.0, 1.0);
    1.0 / ((1.0 - smooth) / factor + smooth)
}

fn unsupported(field: String, found: &str) -> ArchitectureError {
    ArchitectureError::Unsupported { field, found: found.to_owned() }
}

const KIND_DEFAULT: u32 = 0;
const KIND_LINEAR: u32 = 1;
const KIND_LLAMA3: u32 = 2;
const KIND_YARN: u32 = 3;

const BETA_FAST: f32 = 32.0;
const BETA_SLOW: f32 = 1.0;

/// Of Llama 3.1, 3.2 and 3.3.
const LOW_FREQ_FACTOR: f32 = 1.0;
const HIGH_FREQ_FACTOR: f32 = 4.0;
const ORIGINAL_MAX_POSITION: u32 = 8_192;

/// Files hold the factors in f32, computed with other roundings than ours.
const FACTOR_TOLERANCE: f32 = 1e-3;
