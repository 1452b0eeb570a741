//! The launch config: the one input of a launch that is not the image or the package. Its SHA-256 is HOST_DATA (SNP) or
//! the head of MRCONFIGID (TDX) and stands in the statement, so it is measured like the rest.
//!
//! The form is `key = value`, one a line, `#` opens a comment. Every key has a default; a key that is unknown, repeated
//! or out of its range is an error that names the line.

use aws_lc_rs::digest;
use chrysalis_kernels::device::CacheDtype;
use chrysalis_protocol::statement::{PadProfile, ServingPolicy};

use crate::engine::StepShape;
use crate::pacer::Rhythm;

/// What is wrong with a launch config.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// Larger than any launch config is.
    #[error("the launch config has {found} bytes, {limit} at most")]
    TooLong {
        /// Bytes found.
        found: usize,
        /// Bytes allowed.
        limit: usize,
    },
    /// Not text.
    #[error("the launch config is not UTF-8")]
    NotText,
    /// No `key = value`.
    #[error("line {line} of the launch config is no `key = value`")]
    Form {
        /// Counted from 1.
        line: usize,
    },
    /// No such key.
    #[error(
        "line {line} of the launch config: there is no key `{key}`; there are {}",
        known_keys()
    )]
    UnknownKey {
        /// Counted from 1.
        line: usize,
        /// As written.
        key: String,
    },
    /// A key for the second time.
    #[error("line {line} of the launch config sets `{key}` again")]
    Repeated {
        /// Counted from 1.
        line: usize,
        /// As written.
        key: String,
    },
    /// More than one element type for the KV cache.
    #[error("the launch config sets `{first}` and `{second}`: the KV cache has one type")]
    CacheTypes {
        /// A key that is 1.
        first: &'static str,
        /// Another one.
        second: &'static str,
    },
    /// A value that is no number or out of range.
    #[error(
        "line {line} of the launch config: `{key}` is a whole number from {min} to {max}, not `{value}`"
    )]
    Range {
        /// Counted from 1.
        line: usize,
        /// As written.
        key: String,
        /// As written.
        value: String,
        /// Least value.
        min: u32,
        /// Largest value.
        max: u32,
    },
}

/// One key: its name, default and range.
struct Key {
    name: &'static str,
    default: u32,
    min: u32,
    max: u32,
}

const fn key(name: &'static str, default: u32, min: u32, max: u32) -> Key {
    Key { name, default, min, max }
}

const PAD_PROFILE: usize = 0;
const TICK_MS: usize = 1;
const LENGTH_QUANTUM: usize = 2;
const BILLING_QUANTUM: usize = 3;
const MAX_PROMPT: usize = 4;
const MAX_OUTPUT: usize = 5;
const EPOCH_MAX_SECONDS: usize = 6;
const EPOCH_MAX_REQUESTS: usize = 7;
const MIN_MODEL_SVN: usize = 8;
const SPEC_DECODE: usize = 9;
const ACK_WINDOW: usize = 10;
const THREADS: usize = 11;
const MAX_SEQUENCES: usize = 12;
const MAX_WAITING: usize = 13;
const MAX_TOKENS_PER_STEP: usize = 14;
const KV_TOKENS: usize = 15;
const BLOCK_SIZE: usize = 16;
const MAX_PREFILL_WITH_DECODE: usize = 17;
const KV_INT8: usize = 18;
const GPUS: usize = 19;
const GPU_ALLOW_PPCIE: usize = 20;
const KV_BF16: usize = 21;
const KV_FP8: usize = 22;
const CUDA: usize = 23;
const CUDA_MEMORY_MIB: usize = 24;

const KEYS: [Key; 25] = [
    key("pad_profile", 1, 0, 2),
    key("tick_ms", 50, 1, 10_000),
    key("length_quantum", 16, 1, 4_096),
    key("billing_quantum", 64, 1, 65_535),
    key("max_prompt", 131_072, 1, 2_000_000),
    key("max_output", 16_384, 1, 2_000_000),
    key("epoch_max_seconds", 3_600, 1, 86_400),
    key("epoch_max_requests", 1 << 20, 1, 1 << 24),
    key("min_model_svn", 0, 0, u32::MAX),
    key("spec_decode", 0, 0, 1),
    key("ack_window", 0, 0, 2_000_000),
    key("threads", 0, 0, 1_024),
    key("max_sequences", 64, 1, 4_096),
    key("max_waiting", 1_024, 1, 16_384),
    key("max_tokens_per_step", 512, 1, 65_536),
    key("kv_tokens", 32_768, 16, 1 << 28),
    key("block_size", 16, 1, 256),
    key("max_prefill_with_decode", 128, 1, 65_536),
    key("kv_int8", 0, 0, 1),
    key("gpus", 0, 0, 16),
    key("gpu_allow_ppcie", 0, 0, 1),
    key("kv_bf16", 0, 0, 1),
    key("kv_fp8", 0, 0, 1),
    key("cuda", 0, 0, 1),
    key("cuda_memory_mib", 0, 0, 1 << 24),
];

/// A launch config that was read and is within its ranges.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LaunchConfig {
    values: [u32; KEYS.len()],
    digest: [u8; 32],
}

impl Default for LaunchConfig {
    /// The config of an empty file.
    fn default() -> Self {
        Self { values: KEYS.map(|key| key.default), digest: sha256(&[]) }
    }
}

impl LaunchConfig {
    /// Reads a launch config.
    ///
    /// # Errors
    /// [`ConfigError`] names the line and what is wrong with it.
    pub fn parse(bytes: &[u8]) -> Result<Self, ConfigError> {
        if bytes.len() > BYTES_MAX {
            return Err(ConfigError::TooLong { found: bytes.len(), limit: BYTES_MAX });
        }
        let text = std::str::from_utf8(bytes).map_err(|_| ConfigError::NotText)?;
        let mut values: [Option<u32>; KEYS.len()] = [None; KEYS.len()];
        for (index, line) in text.lines().enumerate() {
            let content = line.split('#').next().unwrap_or_default().trim();
            if !content.is_empty() {
                parse_line(index + 1, content, &mut values)?;
            }
        }
        let mut config = Self { digest: sha256(bytes), ..Self::default() };
        for (value, given) in config.values.iter_mut().zip(values) {
            *value = given.unwrap_or(*value);
        }
        let mut types = config.cache_types();
        if let (Some((first, _)), Some((second, _))) = (types.next(), types.next()) {
            return Err(ConfigError::CacheTypes { first, second });
        }
        Ok(config)
    }

    /// SHA-256 of the bytes as they were given: what HOST_DATA must be.
    pub fn digest(&self) -> [u8; 32] {
        self.digest
    }

    /// The policy that the statement commits to.
    pub fn serving_policy(&self) -> ServingPolicy {
        ServingPolicy {
            pad_profile: self.pad_profile(),
            tick_ms: narrow(self.values[TICK_MS]),
            length_quantum: narrow(self.values[LENGTH_QUANTUM]),
            billing_quantum: narrow(self.values[BILLING_QUANTUM]),
            max_prompt: self.values[MAX_PROMPT],
            max_output: self.values[MAX_OUTPUT],
            epoch_max_seconds: self.values[EPOCH_MAX_SECONDS],
            epoch_max_requests: self.values[EPOCH_MAX_REQUESTS],
            min_model_svn: self.values[MIN_MODEL_SVN],
            spec_decode: self.values[SPEC_DECODE] == 1,
            ack_window: self.values[ACK_WINDOW],
            ..ServingPolicy::default()
        }
    }

    /// The rhythm of responses.
    pub fn rhythm(&self) -> Rhythm {
        Rhythm {
            profile: self.pad_profile(),
            tick_ms: u64::from(self.values[TICK_MS]),
            length_quantum: u64::from(self.values[LENGTH_QUANTUM]),
        }
    }

    fn pad_profile(&self) -> PadProfile {
        match self.values[PAD_PROFILE] {
            0 => PadProfile::Off,
            2 => PadProfile::Flat,
            _ => PadProfile::Tick,
        }
    }

    /// Compute threads, or as many as the machine has cores.
    pub fn threads(&self) -> Option<usize> {
        (self.values[THREADS] > 0).then_some(self.values[THREADS] as usize)
    }

    /// Sequences that run at once.
    pub fn max_sequences(&self) -> usize {
        self.values[MAX_SEQUENCES] as usize
    }

    /// Sequences that may wait for their turn.
    pub fn max_waiting(&self) -> usize {
        self.values[MAX_WAITING] as usize
    }

    /// Tokens of one step: prefill chunks and one token of each decoding sequence.
    pub fn max_tokens_per_step(&self) -> usize {
        self.values[MAX_TOKENS_PER_STEP] as usize
    }

    /// How the engine fills its steps. It drafts only if the serving policy says so.
    pub fn step_shape(&self) -> StepShape {
        StepShape {
            max_prefill_with_decode: self.values[MAX_PREFILL_WITH_DECODE],
            max_draft: if self.serving_policy().spec_decode { MAX_DRAFT } else { 0 },
        }
    }

    /// Rows of logits of one step: one for each sequence, and some for drafts.
    pub fn max_logit_rows(&self) -> usize {
        let drafts = if self.step_shape().max_draft > 0 { DRAFT_ROWS } else { 0 };
        self.max_sequences() + drafts
    }

    /// Token positions of the KV cache, over all sequences.
    pub fn kv_tokens(&self) -> usize {
        self.values[KV_TOKENS] as usize
    }

    /// Element type of the KV cache.
    pub fn cache_dtype(&self) -> CacheDtype {
        self.cache_types().next().map_or(CacheDtype::F16, |(_, dtype)| dtype)
    }

    /// The types that keys ask for, with the names of these.
    fn cache_types(&self) -> impl Iterator<Item = (&'static str, CacheDtype)> + use<> {
        let types = [
            (self.values[KV_INT8], "kv_int8", CacheDtype::I8),
            (self.values[KV_BF16], "kv_bf16", CacheDtype::Bf16),
            (self.values[KV_FP8], "kv_fp8", CacheDtype::F8),
        ];
        types.into_iter().filter(|(asked, ..)| *asked == 1).map(|(_, name, dtype)| (name, dtype))
    }

    /// GPUs that have to be there, and to prove themselves before anything is served.
    pub fn gpus(&self) -> u16 {
        narrow(self.values[GPUS])
    }

    /// Whether they may be in protected PCIe mode, which leaves the links between them in clear.
    pub fn gpu_allow_ppcie(&self) -> bool {
        self.values[GPU_ALLOW_PPCIE] == 1
    }

    /// Whether a card computes, not the processor.
    pub fn cuda(&self) -> bool {
        self.values[CUDA] == 1
    }

    /// Bytes of the card's memory that are taken; all that is free but a reserve for its driver, when not given.
    pub fn cuda_memory(&self) -> Option<usize> {
        let mib = self.values[CUDA_MEMORY_MIB] as usize;
        (mib > 0).then_some(mib << 20)
    }

    /// Token positions of one KV block.
    pub fn block_size(&self) -> usize {
        self.values[BLOCK_SIZE] as usize
    }
}

fn parse_line(line: usize, content: &str, values: &mut [Option<u32>]) -> Result<(), ConfigError> {
    let (name, value) = content.split_once('=').ok_or(ConfigError::Form { line })?;
    let (name, value) = (name.trim(), value.trim());
    let known = KEYS.iter().zip(values).find(|(key, _)| key.name == name);
    let Some((key, slot)) = known else {
        return Err(ConfigError::UnknownKey { line, key: name.to_owned() });
    };
    if slot.is_some() {
        return Err(ConfigError::Repeated { line, key: name.to_owned() });
    }
    match value.parse::<u32>() {
        Ok(number) if (key.min..=key.max).contains(&number) => *slot = Some(number),
        _ => {
            return Err(ConfigError::Range {
                line,
                key: name.to_owned(),
                value: value.to_owned(),
                min: key.min,
                max: key.max,
            });
        }
    }
    Ok(())
}

fn known_keys() -> String {
    KEYS.map(|key| key.name).join(", ")
}

/// The ranges of [`KEYS`] keep every value within the narrower type.
fn narrow<T: TryFrom<u32> + Default>(value: u32) -> T {
    T::try_from(value).unwrap_or_default()
}

fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    out.copy_from_slice(digest::digest(&digest::SHA256, bytes).as_ref());
    out
}

/// Drafted tokens of a sequence in a step.
const MAX_DRAFT: u32 = 8;
/// Drafted tokens of a step, over all sequences: with many of them arithmetic bounds a step, and a drafted token costs
/// about what it saves.
const DRAFT_ROWS: usize = 16;
/// No launch config is longer.
const BYTES_MAX: usize = 64 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_config_has_the_defaults() {
        let config = LaunchConfig::parse(b"").unwrap();
        assert_eq!(config, LaunchConfig::default());
        assert_eq!(config.serving_policy().tick_ms, 50);
        assert_eq!(config.threads(), None);
    }

    #[test]
    fn values_are_taken_and_every_byte_is_measured() {
        let config = LaunchConfig::parse(b"# fast\npad_profile = 0\nthreads=2 # both\n").unwrap();
        assert_eq!((config.rhythm().profile, config.threads()), (PadProfile::Off, Some(2)));
        assert_ne!(
            config.digest(),
            LaunchConfig::parse(b"pad_profile = 0\nthreads=2\n").unwrap().digest()
        );
    }

    #[test]
    fn the_engine_drafts_only_where_the_serving_policy_says_so() {
        let shown = |text: &[u8]| {
            let config = LaunchConfig::parse(text).unwrap();
            let extra = config.max_logit_rows() - config.max_sequences();
            (config.serving_policy().spec_decode, config.step_shape().max_draft > 0, extra > 0)
        };
        assert_eq!(shown(b""), (false, false, false));
        assert_eq!(shown(b"spec_decode = 0"), (false, false, false));
        assert_eq!(shown(b"spec_decode = 1"), (true, true, true));
    }

    #[test]
    fn the_kv_cache_holds_bytes_only_when_asked() {
        let dtype = |text: &[u8]| LaunchConfig::parse(text).unwrap().cache_dtype();
        assert_eq!(dtype(b""), CacheDtype::F16);
        assert_eq!(dtype(b"kv_int8 = 0"), CacheDtype::F16);
        assert_eq!(dtype(b"kv_int8 = 1"), CacheDtype::I8);
        assert!(LaunchConfig::parse(b"kv_int8 = 2").is_err());
        assert_eq!(dtype(b"kv_bf16 = 1"), CacheDtype::Bf16);
        assert_eq!(dtype(b"kv_int8 = 0\nkv_fp8 = 1"), CacheDtype::F8);
        let both = LaunchConfig::parse(b"kv_fp8 = 1\nkv_int8 = 1").unwrap_err().to_string();
        assert!(both.contains("`kv_int8` and `kv_fp8`"), "{both}");
    }

    #[test]
    fn what_is_wrong_is_named_with_its_line() {
        let error = |text: &str| LaunchConfig::parse(text.as_bytes()).unwrap_err();
        assert_eq!(error("\nnonsense"), ConfigError::Form { line: 2 });
        assert_eq!(
            error("logging = 1"),
            ConfigError::UnknownKey { line: 1, key: "logging".into() }
        );
        assert_eq!(
            error("threads = 1\nthreads = 1"),
            ConfigError::Repeated { line: 2, key: "threads".into() }
        );
        assert!(matches!(error("tick_ms = 0"), ConfigError::Range { line: 1, .. }));
        assert!(matches!(error("tick_ms = -1"), ConfigError::Range { line: 1, .. }));
        assert_eq!(LaunchConfig::parse(&[0xFF]), Err(ConfigError::NotText));
    }
}
