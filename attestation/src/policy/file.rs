//! An appraisal policy as a TOML file: every expectation written out, unknown keys refused.

use std::fmt::Write;

pub(super) use chrysalis_protocol::hex::encode as hex;
use chrysalis_protocol::statement::PadProfile;
use serde::Deserialize;
use thiserror::Error;

use super::gpu::GpuFile;
use super::snp_file::{SnpFile, TcbFloor};
use super::tdx_file::TdxFile;
use super::trust_file::TrustKeys;
use super::{AppraisalPolicy, Dangerous, MaxAge, ServingDemand};

/// Why a file is no appraisal policy.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
#[non_exhaustive]
pub enum PolicyError {
    /// Not TOML, a key that does not exist, or a value of another type.
    #[error("the policy is not a file of this form: {0}")]
    Toml(String),
    /// An expectation is not stated. Nothing is assumed in its place.
    #[error("the policy has no {key}; write {write}")]
    Missing {
        /// The key.
        key: &'static str,
        /// What to write.
        write: &'static str,
    },
    /// A list of reference values is empty, so that nothing could ever be accepted.
    #[error("{key} is empty, so nothing would be accepted; write {write}")]
    Empty {
        /// The key.
        key: &'static str,
        /// What to write.
        write: &'static str,
    },
    /// A value has a form or a length that the key does not take.
    #[error("{key} = {value:?} is not {expected}")]
    Value {
        /// The key.
        key: &'static str,
        /// The value.
        value: String,
        /// What the key takes.
        expected: String,
    },
    /// A file that the policy names cannot be read, or is not what the key takes.
    #[error("{key} = {path:?}: {reason}")]
    File {
        /// The key.
        key: &'static str,
        /// The path, as the policy has it.
        path: String,
        /// What is wrong.
        reason: String,
    },
    /// A key that only goes with another choice of `platform`.
    #[error("{key} goes with platform = {of:?}, not with {platform:?}")]
    Platform {
        /// The key.
        key: &'static str,
        /// The choice that it goes with.
        of: &'static str,
        /// The choice in the file.
        platform: String,
    },
}

impl AppraisalPolicy {
    /// Reads a policy that names no other files.
    ///
    /// # Errors
    /// [`PolicyError`] names the key and says what to write.
    pub fn from_toml(text: &str) -> Result<Self, PolicyError> {
        Self::from_toml_with(text, &mut |_| Err("this program reads no files for it".to_owned()))
    }

    /// Reads a policy and, by `read`, the files that it names, as they are written there.
    ///
    /// # Errors
    /// [`PolicyError`] names the key and says what to write, or what is wrong with the file.
    pub fn from_toml_with(
        text: &str,
        read: &mut dyn FnMut(&str) -> Result<Vec<u8>, String>,
    ) -> Result<Self, PolicyError> {
        let file: File =
            toml::from_str(text).map_err(|error| PolicyError::Toml(error.to_string()))?;
        let serving = required(file.serving, "[serving]", "the table of serving demands")?;
        Ok(Self {
            content_digests: list(file.content_digests, "content_digests", MODEL)?,
            publishers: list(file.publishers, "publishers", PUBLISHER)?,
            client_bundles: list(file.client_bundles, "client_bundles", CLIENT_BUNDLE)?,
            minimum_svn: required(file.minimum_svn, "minimum_svn", "minimum_svn = 0, or higher")?,
            measurements: list(file.measurements, "measurements", MEASUREMENT)?,
            allow_simulated: required(
                file.allow_simulated,
                "allow_simulated",
                "allow_simulated = false; true only to try things out, it proves nothing",
            )?,
            platform: TrustKeys {
                platform: file.platform,
                chip_ids: file.chip_ids,
                registry: file.registry,
                registry_signer: file.registry_signer,
                registry_minimum_version: file.registry_minimum_version,
            }
            .check(read)?,
            max_age: match required(file.max_age, "max_age", MAX_AGE)?.as_str() {
                "fresh" => MaxAge::Fresh,
                "epoch" => MaxAge::Epoch,
                other => return Err(value("max_age", other, "\"fresh\" or \"epoch\"")),
            },
            serving: serving.check()?,
            snp: file.snp.check(
                file.tcb_floor,
                file.required_mitigations,
                file.loaned_key_providers,
                read,
            )?,
            gpu: file.gpu.map(GpuFile::check).transpose()?,
            tdx: file.tdx.map(TdxFile::check).transpose()?,
            dangerous: Dangerous {
                allow_milan: file.dangerous_allow_milan,
                allow_smt: file.dangerous_allow_smt,
                allow_provisional_firmware: file.dangerous_allow_provisional_firmware,
                allow_platform_bits: file.dangerous_allow_platform_bits,
                allow_debug_build: file.dangerous_allow_debug_build,
            },
        })
    }

    /// The policy as a commented file, which [`Self::from_toml`] reads back.
    #[must_use]
    pub fn to_toml(&self) -> String {
        let mut out = Out(String::from(HEAD));
        out.say("");
        self.write_model(&mut out);
        out.say("");
        self.write_platform(&mut out);
        out.say("");
        self.write_options(&mut out);
        out.say("");
        self.serving.write(&mut out);
        if let Some(gpu) = &self.gpu {
            gpu.write(&mut out);
        }
        if let Some(tdx) = &self.tdx {
            out.say("");
            tdx.write(&mut out);
        }
        self.snp.write_table(&mut out);
        self.snp.write_floors(&mut out);
        out.0
    }

    fn write_model(&self, out: &mut Out) {
        out.say("# Models that are accepted: content digests, as `chrysalis inspect` prints them.");
        out.list("content_digests", &self.content_digests);
        out.say("# Who may have signed them: SHA-256 of the Ed25519 public key.");
        out.list("publishers", &self.publishers);
        out.say("# Tokenizer and chat template that are accepted: BLAKE3 of the client bundle.");
        out.list("client_bundles", &self.client_bundles);
        out.say(
            "# The lowest security version of the model; raise it when a package is withdrawn.",
        );
        out.key("minimum_svn", self.minimum_svn);
    }

    fn write_platform(&self, out: &mut Out) {
        out.say("# Enclave images that are accepted: launch measurements.");
        out.list("measurements", &self.measurements);
        out.say("# A simulated platform proves nothing: whoever runs it reads everything.");
        out.key("allow_simulated", self.allow_simulated);
        self.platform.write(out);
        out.say("# \"fresh\": made over our challenge. \"epoch\": as old as the sealing key.");
        let max_age = match self.max_age {
            MaxAge::Fresh => "fresh",
            MaxAge::Epoch => "epoch",
        };
        out.key("max_age", quoted(max_age));
    }

    fn write_options(&self, out: &mut Out) {
        self.snp.write_options(out);
        out.say("\n# Rules that are switched off. Each of these weakens what is proved.");
        out.key("dangerous_allow_milan", self.dangerous.allow_milan);
        out.key("dangerous_allow_smt", self.dangerous.allow_smt);
        out.key("dangerous_allow_provisional_firmware", self.dangerous.allow_provisional_firmware);
        out.key("dangerous_allow_platform_bits", self.dangerous.allow_platform_bits);
        out.key("dangerous_allow_debug_build", self.dangerous.allow_debug_build);
    }
}

impl ServingDemand {
    fn write(&self, out: &mut Out) {
        out.say("# How the enclave has to serve; its serving policy is attested.");
        out.say("[serving]");
        out.say("# \"tick\": length hidden up to a quantum. \"flat\": fully. \"off\": not at all.");
        let profiles: Vec<String> =
            self.pad_profiles.iter().map(|&profile| quoted(profile_name(profile))).collect();
        out.key("pad_profiles", format_args!("[{}]", profiles.join(", ")));
        out.say("# The host chooses these three within the bounds: smaller ones show it more.");
        out.key("min_tick_ms", self.min_tick_ms);
        out.key("max_tick_ms", self.max_tick_ms);
        out.key("min_length_quantum", self.min_length_quantum);
        out.key("min_billing_quantum", self.min_billing_quantum);
        out.key("max_epoch_seconds", self.max_epoch_seconds);
        out.key("max_epoch_requests", self.max_epoch_requests);
        out.say("# Each of these shows something about the text to a host that watches closely.");
        out.key("allow_text_mode", self.allow_text_mode);
        out.key("allow_kv_sharing", self.allow_kv_sharing);
        out.key("allow_spec_decode", self.allow_spec_decode);
        out.key("allow_moe_on_cpu", self.allow_moe_on_cpu);
        out.say(
            "# Embedding look-ups that touch every row hide the prompt's tokens from the host.",
        );
        out.key("require_oblivious_embed", self.require_oblivious_embed);
        out.say("# The most tokens that go out before this client says that it has those before (ack_window).");
        out.say("# Without the key nothing is demanded: a host may withhold an answer that is paid for.");
        match self.max_ack_window {
            Some(tokens) => out.key("max_ack_window", tokens),
            None => out.say("# max_ack_window = 512"),
        }
    }
}

/// A TOML string.
pub(super) fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

pub(super) fn from_hex<const N: usize>(
    key: &'static str,
    text: &str,
) -> Result<[u8; N], PolicyError> {
    let wrong = || value(key, text, &format!("{} hexadecimal digits", N.saturating_mul(2)));
    chrysalis_protocol::hex::decode(text).and_then(|bytes| bytes.try_into().ok()).ok_or_else(wrong)
}

pub(super) fn required<T>(
    value: Option<T>,
    key: &'static str,
    write: &'static str,
) -> Result<T, PolicyError> {
    value.ok_or(PolicyError::Missing { key, write })
}

pub(super) fn list<const N: usize>(
    values: Option<Vec<String>>,
    key: &'static str,
    write: &'static str,
) -> Result<Vec<[u8; N]>, PolicyError> {
    let values = required(values, key, write)?;
    if values.is_empty() {
        return Err(PolicyError::Empty { key, write });
    }
    digests(key, &values)
}

/// A list that may be empty.
pub(super) fn digests<const N: usize>(
    key: &'static str,
    values: &[String],
) -> Result<Vec<[u8; N]>, PolicyError> {
    values.iter().map(|text| from_hex(key, text)).collect()
}

pub(super) fn value(key: &'static str, value: &str, expected: &str) -> PolicyError {
    PolicyError::Value { key, value: value.to_owned(), expected: expected.to_owned() }
}

const fn profile_name(profile: PadProfile) -> &'static str {
    match profile {
        PadProfile::Off => "off",
        PadProfile::Tick => "tick",
        PadProfile::Flat => "flat",
    }
}

/// The file as it is written; what is required is checked afterwards, with better words.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    content_digests: Option<Vec<String>>,
    publishers: Option<Vec<String>>,
    client_bundles: Option<Vec<String>>,
    minimum_svn: Option<u32>,
    measurements: Option<Vec<String>>,
    allow_simulated: Option<bool>,
    platform: Option<String>,
    chip_ids: Option<Vec<String>>,
    registry: Option<String>,
    registry_signer: Option<String>,
    registry_minimum_version: Option<u32>,
    max_age: Option<String>,
    serving: Option<ServingFile>,
    gpu: Option<GpuFile>,
    tdx: Option<TdxFile>,
    #[serde(default)]
    snp: SnpFile,
    #[serde(default)]
    tcb_floor: Vec<TcbFloor>,
    #[serde(default)]
    required_mitigations: u64,
    #[serde(default)]
    loaned_key_providers: Vec<String>,
    #[serde(default)]
    dangerous_allow_milan: bool,
    #[serde(default)]
    dangerous_allow_smt: bool,
    #[serde(default)]
    dangerous_allow_provisional_firmware: bool,
    #[serde(default)]
    dangerous_allow_platform_bits: u64,
    #[serde(default)]
    dangerous_allow_debug_build: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ServingFile {
    pad_profiles: Option<Vec<String>>,
    min_tick_ms: Option<u16>,
    max_tick_ms: Option<u16>,
    min_length_quantum: Option<u16>,
    min_billing_quantum: Option<u16>,
    max_epoch_seconds: Option<u32>,
    max_epoch_requests: Option<u32>,
    allow_text_mode: Option<bool>,
    allow_kv_sharing: Option<bool>,
    allow_spec_decode: Option<bool>,
    allow_moe_on_cpu: Option<bool>,
    require_oblivious_embed: Option<bool>,
    max_ack_window: Option<u32>,
}

impl ServingFile {
    fn check(self) -> Result<ServingDemand, PolicyError> {
        let profiles = required(self.pad_profiles, "serving.pad_profiles", PROFILES)?;
        if profiles.is_empty() {
            return Err(PolicyError::Empty { key: "serving.pad_profiles", write: PROFILES });
        }
        let profile = |name: &String| match name.as_str() {
            "off" => Ok(PadProfile::Off),
            "tick" => Ok(PadProfile::Tick),
            "flat" => Ok(PadProfile::Flat),
            other => Err(value("serving.pad_profiles", other, "\"off\", \"tick\" or \"flat\"")),
        };
        Ok(ServingDemand {
            pad_profiles: profiles.iter().map(profile).collect::<Result<_, _>>()?,
            min_tick_ms: required(self.min_tick_ms, "serving.min_tick_ms", "min_tick_ms = 50")?,
            max_tick_ms: required(self.max_tick_ms, "serving.max_tick_ms", "max_tick_ms = 50")?,
            min_length_quantum: required(
                self.min_length_quantum,
                "serving.min_length_quantum",
                "min_length_quantum = 16",
            )?,
            min_billing_quantum: required(
                self.min_billing_quantum,
                "serving.min_billing_quantum",
                "min_billing_quantum = 64",
            )?,
            max_epoch_seconds: required(
                self.max_epoch_seconds,
                "serving.max_epoch_seconds",
                "max_epoch_seconds = 3600",
            )?,
            max_epoch_requests: required(
                self.max_epoch_requests,
                "serving.max_epoch_requests",
                "max_epoch_requests = 1048576",
            )?,
            allow_text_mode: required(
                self.allow_text_mode,
                "serving.allow_text_mode",
                "allow_text_mode = false",
            )?,
            allow_kv_sharing: required(
                self.allow_kv_sharing,
                "serving.allow_kv_sharing",
                "allow_kv_sharing = false",
            )?,
            allow_spec_decode: required(
                self.allow_spec_decode,
                "serving.allow_spec_decode",
                "allow_spec_decode = false",
            )?,
            allow_moe_on_cpu: required(
                self.allow_moe_on_cpu,
                "serving.allow_moe_on_cpu",
                "allow_moe_on_cpu = false",
            )?,
            require_oblivious_embed: required(
                self.require_oblivious_embed,
                "serving.require_oblivious_embed",
                "require_oblivious_embed = true, or false where speed counts more",
            )?,
            max_ack_window: match self.max_ack_window {
                Some(0) => return Err(value("serving.max_ack_window", "0", "1 or more")),
                window => window,
            },
        })
    }
}

/// A TOML file in the making.
pub(super) struct Out(String);

impl Out {
    pub(super) fn say(&mut self, line: &str) {
        self.0.push_str(line);
        self.0.push('\n');
    }

    pub(super) fn key(&mut self, key: &str, value: impl std::fmt::Display) {
        // Writing to a string cannot fail.
        let _written = writeln!(self.0, "{key} = {value}");
    }

    pub(super) fn list<const N: usize>(&mut self, key: &str, values: &[[u8; N]]) {
        if values.is_empty() {
            return self.key(key, "[]");
        }
        let values: String = values.iter().map(|v| format!("    \"{}\",\n", hex(v))).collect();
        self.key(key, format_args!("[\n{values}]"));
    }

    pub(super) fn names(&mut self, key: &str, names: &[String]) {
        let names: Vec<String> = names.iter().map(|name| quoted(name)).collect();
        self.key(key, format_args!("[{}]", names.join(", ")));
    }
}

const HEAD: &str = "\
# What an enclave must be before anything is sealed to it. A missing expectation is an error, and so
# is a key that does not exist: nothing is assumed, nothing is ignored.
";
const MODEL: &str =
    "content_digests = [\"<96 hexadecimal digits>\"], as `chrysalis inspect` prints them";
const PUBLISHER: &str =
    "publishers = [\"<64 hexadecimal digits>\"], SHA-256 of an Ed25519 public key";
const CLIENT_BUNDLE: &str =
    "client_bundles = [\"<64 hexadecimal digits>\"], as `chrysalis inspect` prints them";
const MEASUREMENT: &str =
    "measurements = [\"<96 hexadecimal digits>\"], the launch measurement of an enclave image";
const MAX_AGE: &str = "max_age = \"fresh\", or \"epoch\"";
const PROFILES: &str = "pad_profiles = [\"tick\", \"flat\"]";
