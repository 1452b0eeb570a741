//! How the enclave serves, as clients are told (docs/formats.md, section 1.2): 128 bytes.

use crate::codec::{Reader, Writer};
use crate::hash::sha384;
use crate::statement::StatementError;

/// Length of a [`ServingPolicy`], in bytes.
pub const SERVING_POLICY_LEN: usize = 128;

/// How response frames are spaced and how many there are.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u8)]
pub enum PadProfile {
    /// Frames as they come; the client must ask for it.
    Off = 0,
    /// One frame each tick; the length is a multiple of the quantum.
    Tick = 1,
    /// One frame each tick, always for the longest output.
    Flat = 2,
}

/// The serving policy; the statement carries its digest.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ServingPolicy {
    /// Spacing and number of response frames.
    pub pad_profile: PadProfile,
    /// Time between response frames, in milliseconds; not 0.
    pub tick_ms: u16,
    /// The number of response frames is a multiple of this; not 0.
    pub length_quantum: u16,
    /// Receipts round tokens up to a multiple of this; not 0.
    pub billing_quantum: u16,
    /// KV blocks are shared between requests that carry the same salt.
    pub kv_sharing: bool,
    /// Speculative decoding is on.
    pub spec_decode: bool,
    /// Requests may carry text instead of token ids.
    pub text_mode: bool,
    /// Embedding look-ups touch every row.
    pub oblivious_embed: bool,
    /// Experts of a mixture run on the CPU.
    pub moe_on_cpu: bool,
    /// The longest prompt, in tokens.
    pub max_prompt: u32,
    /// The longest output, in tokens.
    pub max_output: u32,
    /// The longest life of a sealing key, in seconds.
    pub epoch_max_seconds: u32,
    /// The most requests to one sealing key.
    pub epoch_max_requests: u32,
    /// Tokens that may be unacknowledged; 0 where acknowledgements are not used.
    pub ack_window: u32,
    /// The lowest security version of a model that is served.
    pub min_model_svn: u32,
}

impl Default for ServingPolicy {
    fn default() -> Self {
        Self {
            pad_profile: PadProfile::Tick,
            tick_ms: 50,
            length_quantum: 16,
            billing_quantum: 64,
            kv_sharing: false,
            spec_decode: false,
            text_mode: false,
            oblivious_embed: false,
            moe_on_cpu: false,
            max_prompt: 32_768,
            max_output: 8_192,
            epoch_max_seconds: 3_600,
            epoch_max_requests: 1 << 20,
            ack_window: 0,
            min_model_svn: 0,
        }
    }
}

impl ServingPolicy {
    /// The encoding.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; SERVING_POLICY_LEN] {
        let mut writer = Writer::with_capacity(SERVING_POLICY_LEN);
        writer.bytes(MAGIC).u8(self.pad_profile as u8).u8(FRAME_LOG2).u16(self.tick_ms);
        writer.u16(self.length_quantum).u16(self.billing_quantum);
        writer.u8(self.kv_sharing.into()).u8(self.spec_decode.into()).u8(self.text_mode.into());
        writer.u8(self.oblivious_embed.into()).u8(self.moe_on_cpu.into()).u8(LOGGING_NONE).u16(0);
        writer.u32(self.max_prompt).u32(self.max_output);
        writer.u32(self.epoch_max_seconds).u32(self.epoch_max_requests);
        writer.u32(self.ack_window).u32(self.min_model_svn);
        writer.into_array()
    }

    /// Reads a serving policy.
    ///
    /// # Errors
    /// [`StatementError`] names the field that is wrong.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, StatementError> {
        let mut reader = Reader::new(bytes);
        reader.magic(MAGIC)?;
        let pad_profile = match reader.u8()? {
            0 => PadProfile::Off,
            1 => PadProfile::Tick,
            2 => PadProfile::Flat,
            found => return undefined("pad_profile", found.into()),
        };
        let found = reader.u8()?;
        if found != FRAME_LOG2 {
            return undefined("frame_log2", found.into());
        }
        let tick_ms = not_zero("tick_ms", reader.u16()?)?;
        let length_quantum = not_zero("length_quantum", reader.u16()?)?;
        let billing_quantum = not_zero("billing_quantum", reader.u16()?)?;
        let kv_sharing = boolean("kv_sharing", reader.u8()?)?;
        let spec_decode = boolean("spec_decode", reader.u8()?)?;
        let text_mode = boolean("text_mode", reader.u8()?)?;
        let oblivious_embed = boolean("oblivious_embed", reader.u8()?)?;
        let moe_on_cpu = boolean("moe_on_cpu", reader.u8()?)?;
        let found = reader.u8()?;
        if found != LOGGING_NONE {
            return undefined("logging", found.into());
        }
        reader.zeros(2)?;
        let policy = Self {
            pad_profile,
            tick_ms,
            length_quantum,
            billing_quantum,
            kv_sharing,
            spec_decode,
            text_mode,
            oblivious_embed,
            moe_on_cpu,
            max_prompt: reader.u32()?,
            max_output: reader.u32()?,
            epoch_max_seconds: reader.u32()?,
            epoch_max_requests: reader.u32()?,
            ack_window: reader.u32()?,
            min_model_svn: reader.u32()?,
        };
        reader.zeros(80)?;
        reader.finish()?;
        Ok(policy)
    }

    /// SHA-384( `"chrysalis1 policy\0"` || policy ).
    #[must_use]
    pub fn digest(&self) -> [u8; 48] {
        sha384(&[b"chrysalis1 policy\0", &self.to_bytes()])
    }
}

const fn undefined<T>(field: &'static str, found: u32) -> Result<T, StatementError> {
    Err(StatementError::Policy { field, found })
}

const fn not_zero(field: &'static str, found: u16) -> Result<u16, StatementError> {
    if found == 0 { undefined(field, 0) } else { Ok(found) }
}

fn boolean(field: &'static str, found: u8) -> Result<bool, StatementError> {
    match found {
        0 => Ok(false),
        1 => Ok(true),
        _ => undefined(field, found.into()),
    }
}

const MAGIC: &[u8; 8] = b"CHRY-PO1";
const FRAME_LOG2: u8 = 8;
const LOGGING_NONE: u8 = 0;
