//! The options of a request: type u16 | len u16 | value; types ascend, none comes twice.
//!
//! 1 temperature f32, 2 top_p f32, 3 top_k u32, 4 min_p f32, 5 repetition, 6 presence and
//! 7 frequency penalty f32, 8 logit bias (id u32, f32)*, 9 stop token ids u32*, 10 logprobs u8,
//! 11 voucher, 12 cache salt 32, 13 session id 16, 14 grammar. Lists are never empty and their ids
//! ascend, so that there is one encoding of each value.

use core::ops::RangeInclusive;

use zeroize::Zeroizing;

use crate::codec::{Reader, Writer};
use crate::request_body::BodyError;
use crate::secret::{Secret, SecretBytes};

/// The most tokens with a logit bias.
pub const LOGIT_BIAS_MAX: usize = 1024;
/// The most stop tokens.
pub const STOP_TOKENS_MAX: usize = 256;
/// The most alternatives for each token.
pub const LOGPROBS_MAX: u8 = 20;
/// The longest voucher, in bytes.
pub const VOUCHER_MAX: usize = 256;
/// The longest grammar, in bytes.
pub const GRAMMAR_MAX: usize = 65_535;

/// What a request asks for beyond the package's generation defaults.
#[derive(Clone, Default, PartialEq)]
#[expect(missing_debug_implementations, reason = "a request is never printed")]
pub struct Options {
    /// 0 to 100; 0 is greedy.
    pub temperature: Option<f32>,
    /// Above 0, up to 1.
    pub top_p: Option<f32>,
    /// 0 is without limit.
    pub top_k: Option<u32>,
    /// 0 to 1.
    pub min_p: Option<f32>,
    /// 0.01 to 100; 1 is none.
    pub repetition_penalty: Option<f32>,
    /// -100 to 100; 0 is none.
    pub presence_penalty: Option<f32>,
    /// -100 to 100; 0 is none.
    pub frequency_penalty: Option<f32>,
    /// Token ids, ascending, with -100 to 100 to add to their logits.
    pub logit_bias: Zeroizing<Vec<(u32, f32)>>,
    /// Token ids, ascending, that end the output besides the package's.
    pub stop_token_ids: Zeroizing<Vec<u32>>,
    /// Alternatives for each token, at most 20.
    pub logprobs: Option<u8>,
    /// What the payer's escrow is locked to.
    pub voucher: Option<SecretBytes>,
    /// Requests with the same salt may share KV blocks, where the serving policy allows it.
    pub cache_salt: Option<Secret<32>>,
    /// Names a conversation whose KV blocks are worth keeping.
    pub session_id: Option<Secret<16>>,
    /// Constrains the output.
    pub grammar: Option<SecretBytes>,
}

impl Options {
    /// The number of options and their encoding.
    pub(crate) fn to_bytes(&self) -> (u16, SecretBytes) {
        let mut list = List { count: 0, writer: Writer::with_capacity(self.capacity()) };
        list.f32(TEMPERATURE, self.temperature);
        list.f32(TOP_P, self.top_p);
        if let Some(top_k) = self.top_k {
            list.add(TOP_K, &top_k.to_be_bytes());
        }
        list.f32(MIN_P, self.min_p);
        list.f32(REPETITION_PENALTY, self.repetition_penalty);
        list.f32(PRESENCE_PENALTY, self.presence_penalty);
        list.f32(FREQUENCY_PENALTY, self.frequency_penalty);
        if !self.logit_bias.is_empty() {
            let mut value = Writer::with_capacity(self.logit_bias.len().saturating_mul(8));
            for (id, bias) in self.logit_bias.iter() {
                value.u32(*id).f32(*bias);
            }
            list.add(LOGIT_BIAS, value.as_slice());
        }
        if !self.stop_token_ids.is_empty() {
            let mut value = Writer::with_capacity(self.stop_token_ids.len().saturating_mul(4));
            for id in self.stop_token_ids.iter() {
                value.u32(*id);
            }
            list.add(STOP_TOKEN_IDS, value.as_slice());
        }
        if let Some(logprobs) = self.logprobs {
            list.add(LOGPROBS, &[logprobs]);
        }
        list.bytes(VOUCHER, self.voucher.as_ref().map(SecretBytes::expose));
        list.bytes(CACHE_SALT, self.cache_salt.as_ref().map(|salt| salt.expose().as_slice()));
        list.bytes(SESSION_ID, self.session_id.as_ref().map(|id| id.expose().as_slice()));
        list.bytes(GRAMMAR, self.grammar.as_ref().map(SecretBytes::expose));
        (list.count, list.writer.into_bytes().into())
    }

    /// Reads `count` options.
    pub(crate) fn read(count: u16, reader: &mut Reader<'_>) -> Result<Self, BodyError> {
        let mut options = Self::default();
        let mut previous = 0;
        for _ in 0..count {
            let found = reader.u16()?;
            let len = reader.u16()?;
            let value = reader.bytes(len.into())?;
            if found <= previous {
                return Err(BodyError::OptionOrder { found, previous });
            }
            options.set(found, value)?;
            previous = found;
        }
        Ok(options)
    }

    fn set(&mut self, option: u16, value: &[u8]) -> Result<(), BodyError> {
        match option {
            TEMPERATURE => self.temperature = Some(float(option, value, 0.0..=100.0)?),
            TOP_P => self.top_p = Some(float(option, value, f32::MIN_POSITIVE..=1.0)?),
            TOP_K => self.top_k = Some(u32::from_be_bytes(array(option, value)?)),
            MIN_P => self.min_p = Some(float(option, value, 0.0..=1.0)?),
            REPETITION_PENALTY => {
                self.repetition_penalty = Some(float(option, value, 0.01..=100.0)?);
            }
            PRESENCE_PENALTY => self.presence_penalty = Some(float(option, value, SIGNED)?),
            FREQUENCY_PENALTY => self.frequency_penalty = Some(float(option, value, SIGNED)?),
            LOGIT_BIAS => self.logit_bias = logit_bias(option, value)?,
            STOP_TOKEN_IDS => self.stop_token_ids = token_ids(option, value)?,
            LOGPROBS => {
                let [alternatives] = array(option, value)?;
                if alternatives > LOGPROBS_MAX {
                    return Err(BodyError::OptionRange { option });
                }
                self.logprobs = Some(alternatives);
            }
            VOUCHER => self.voucher = Some(bytes(option, value, VOUCHER_MAX)?),
            CACHE_SALT => self.cache_salt = Some(Secret::take(&mut array(option, value)?)),
            SESSION_ID => self.session_id = Some(Secret::take(&mut array(option, value)?)),
            GRAMMAR => self.grammar = Some(bytes(option, value, GRAMMAR_MAX)?),
            found => return Err(BodyError::UnknownOption { found }),
        }
        Ok(())
    }

    /// Enough for every option, so that the writer never moves what it holds.
    fn capacity(&self) -> usize {
        let bytes = |value: &Option<SecretBytes>| value.as_ref().map_or(0, SecretBytes::len);
        let lists = self.logit_bias.len().saturating_mul(8);
        let lists = lists.saturating_add(self.stop_token_ids.len().saturating_mul(4));
        let secrets = bytes(&self.voucher).saturating_add(bytes(&self.grammar));
        lists.saturating_add(secrets).saturating_add(256)
    }
}

struct List {
    count: u16,
    writer: Writer,
}

impl List {
    /// A value too long for its length field gets a length that no option may have.
    fn add(&mut self, option: u16, value: &[u8]) {
        self.count = self.count.saturating_add(1);
        self.writer.u16(option).u16(u16::try_from(value.len()).unwrap_or(0)).bytes(value);
    }

    fn bytes(&mut self, option: u16, value: Option<&[u8]>) {
        if let Some(value) = value {
            self.add(option, value);
        }
    }

    fn f32(&mut self, option: u16, value: Option<f32>) {
        if let Some(value) = value {
            self.add(option, &value.to_bits().to_be_bytes());
        }
    }
}

fn array<const N: usize>(option: u16, value: &[u8]) -> Result<[u8; N], BodyError> {
    value.try_into().map_err(|_| BodyError::OptionLen { option, len: value.len() })
}

/// A range holds no NaN, so a float in a finite range is finite.
fn float(option: u16, value: &[u8], range: RangeInclusive<f32>) -> Result<f32, BodyError> {
    let value = f32::from_bits(u32::from_be_bytes(array(option, value)?));
    if range.contains(&value) { Ok(value) } else { Err(BodyError::OptionRange { option }) }
}

fn bytes(option: u16, value: &[u8], max: usize) -> Result<SecretBytes, BodyError> {
    let len = value.len();
    if len == 0 || len > max {
        return Err(BodyError::OptionLen { option, len });
    }
    Ok(value.to_vec().into())
}

fn token_ids(option: u16, value: &[u8]) -> Result<Zeroizing<Vec<u32>>, BodyError> {
    let (ids, rest) = value.as_chunks::<4>();
    if ids.is_empty() || ids.len() > STOP_TOKENS_MAX || !rest.is_empty() {
        return Err(BodyError::OptionLen { option, len: value.len() });
    }
    let ids: Zeroizing<Vec<_>> =
        Zeroizing::new(ids.iter().map(|id| u32::from_be_bytes(*id)).collect());
    if !ids.is_sorted_by(|a, b| a < b) {
        return Err(BodyError::OptionIds { option });
    }
    Ok(ids)
}

fn logit_bias(option: u16, value: &[u8]) -> Result<Zeroizing<Vec<(u32, f32)>>, BodyError> {
    let (pairs, rest) = value.as_chunks::<8>();
    if pairs.is_empty() || pairs.len() > LOGIT_BIAS_MAX || !rest.is_empty() {
        return Err(BodyError::OptionLen { option, len: value.len() });
    }
    let mut biases = Zeroizing::new(Vec::with_capacity(pairs.len()));
    for pair in pairs {
        let mut reader = Reader::new(pair);
        let id = reader.u32()?;
        biases.push((id, float(option, reader.rest(), SIGNED)?));
    }
    if !biases.is_sorted_by(|(a, _), (b, _)| a < b) {
        return Err(BodyError::OptionIds { option });
    }
    Ok(biases)
}

const SIGNED: RangeInclusive<f32> = -100.0..=100.0;
const TEMPERATURE: u16 = 1;
const TOP_P: u16 = 2;
const TOP_K: u16 = 3;
const MIN_P: u16 = 4;
const REPETITION_PENALTY: u16 = 5;
const PRESENCE_PENALTY: u16 = 6;
const FREQUENCY_PENALTY: u16 = 7;
const LOGIT_BIAS: u16 = 8;
const STOP_TOKEN_IDS: u16 = 9;
const LOGPROBS: u16 = 10;
const VOUCHER: u16 = 11;
const CACHE_SALT: u16 = 12;
const SESSION_ID: u16 = 13;
const GRAMMAR: u16 = 14;
