//! The key-value section of a GGUF file: read strictly, asked for by type.

use std::collections::BTreeMap;
use std::io::Read;

use super::GgufError;
use super::reader::Reader;

/// Everything that a GGUF file says about its model beside the tensors.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Metadata {
    entries: BTreeMap<String, Value>,
}

/// A value of the key-value section; integers of any width become `i64`, floats become `f64`
/// (arrays of them `f32`).
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// An integer of any width and sign (a u64 above `i64::MAX` is refused).
    Integer(i64),
    /// A float of either width.
    Float(f64),
    /// A bool; only the bytes 0 and 1 are taken.
    Bool(bool),
    /// A string.
    Text(String),
    /// An array of integers.
    Integers(Vec<i64>),
    /// An array of floats.
    Floats(Vec<f32>),
    /// An array of bools.
    Bools(Vec<bool>),
    /// An array of strings.
    Texts(Vec<String>),
}

impl Metadata {
    /// Metadata of these entries, for tests and for conversions that need no file.
    pub fn from_entries(entries: impl IntoIterator<Item = (String, Value)>) -> Self {
        Self { entries: entries.into_iter().collect() }
    }

    /// The value of a key, whatever its type.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.entries.get(key)
    }

    /// Every key, ascending.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// The string of a key, if the key is there.
    ///
    /// # Errors
    /// [`GgufError::WrongType`] when its value is something else.
    pub fn text(&self, key: &str) -> Result<Option<&str>, GgufError> {
        self.typed(key, "a string", |value| match value {
            Value::Text(text) => Some(text.as_str()),
            _ => None,
        })
    }

    /// The integer of a key, if the key is there.
    ///
    /// # Errors
    /// [`GgufError::WrongType`] when its value is no integer or none that fits 32 bits unsigned.
    pub fn u32(&self, key: &str) -> Result<Option<u32>, GgufError> {
        self.typed(key, "an unsigned 32-bit integer", |value| match value {
            Value::Integer(integer) => u32::try_from(*integer).ok(),
            _ => None,
        })
    }

    /// The float of a key, if the key is there; an integer is taken as well.
    ///
    /// # Errors
    /// [`GgufError::WrongType`] when its value is something else.
    pub fn f32(&self, key: &str) -> Result<Option<f32>, GgufError> {
        self.typed(key, "a float", |value| match value {
            Value::Float(float) => Some(*float as f32),
            Value::Integer(integer) => Some(*integer as f32),
            _ => None,
        })
    }

    /// The bool of a key, if the key is there.
    ///
    /// # Errors
    /// [`GgufError::WrongType`] when its value is something else.
    pub fn bool(&self, key: &str) -> Result<Option<bool>, GgufError> {
        self.typed(key, "a bool", |value| match value {
            Value::Bool(bool) => Some(*bool),
            _ => None,
        })
    }

    /// The array of strings of a key, if the key is there.
    ///
    /// # Errors
    /// [`GgufError::WrongType`] when its value is something else.
    pub fn texts(&self, key: &str) -> Result<Option<&[String]>, GgufError> {
        self.typed(key, "an array of strings", |value| match value {
            Value::Texts(texts) => Some(texts.as_slice()),
            _ => None,
        })
    }

    /// The array of integers of a key, if the key is there.
    ///
    /// # Errors
    /// [`GgufError::WrongType`] when its value is something else.
    pub fn integers(&self, key: &str) -> Result<Option<&[i64]>, GgufError> {
        self.typed(key, "an array of integers", |value| match value {
            Value::Integers(integers) => Some(integers.as_slice()),
            _ => None,
        })
    }

    /// The array of floats of a key, if the key is there.
    ///
    /// # Errors
    /// [`GgufError::WrongType`] when its value is something else.
    pub fn floats(&self, key: &str) -> Result<Option<&[f32]>, GgufError> {
        self.typed(key, "an array of floats", |value| match value {
            Value::Floats(floats) => Some(floats.as_slice()),
            _ => None,
        })
    }

    /// The array of bools of a key, if the key is there.
    ///
    /// # Errors
    /// [`GgufError::WrongType`] when its value is something else.
    pub fn bools(&self, key: &str) -> Result<Option<&[bool]>, GgufError> {
        self.typed(key, "an array of bools", |value| match value {
            Value::Bools(bools) => Some(bools.as_slice()),
            _ => None,
        })
    }

    /// The value that a key must have: `metadata.require("k", metadata.u32("k")?)`.
    ///
    /// # Errors
    /// [`GgufError::MissingKey`] when there is none.
    pub fn require<T>(&self, key: &str, value: Option<T>) -> Result<T, GgufError> {
        value.ok_or_else(|| GgufError::MissingKey(key.to_owned()))
    }

    fn typed<'a, T>(
        &'a self,
        key: &str,
        expected: &'static str,
        pick: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, GgufError> {
        let Some(value) = self.entries.get(key) else {
            return Ok(None);
        };
        pick(value).map(Some).ok_or_else(|| GgufError::WrongType { key: key.to_owned(), expected })
    }

    /// Reads `count` pairs.
    pub(super) fn read<R: Read>(reader: &mut Reader<R>, count: u64) -> Result<Self, GgufError> {
        // A pair is at least a key length, one byte of key, a type and one byte of value.
        bounded("metadata pairs", count, 14, PAIRS_MAX, reader.remaining())?;
        let mut entries = BTreeMap::new();
        for _ in 0..count {
            let key = reader.text("metadata key", KEY_MAX)?;
            let kind = reader.u32()?;
            let value = read_value(reader, &key, kind)?;
            if reader.position() > METADATA_MAX {
                let len = reader.position();
                return Err(GgufError::TooLong { what: "metadata", len, max: METADATA_MAX });
            }
            if entries.insert(key.clone(), value).is_some() {
                return Err(GgufError::DuplicateKey(key));
            }
        }
        Ok(Self { entries })
    }
}

fn read_value<R: Read>(reader: &mut Reader<R>, key: &str, kind: u32) -> Result<Value, GgufError> {
    match kind {
        KIND_FLOAT32 | KIND_FLOAT64 => Ok(Value::Float(read_float(reader, kind)?)),
        KIND_BOOL => Ok(Value::Bool(read_bool(reader, key)?)),
        KIND_TEXT => Ok(Value::Text(reader.text("metadata string", TEXT_MAX)?)),
        KIND_ARRAY => read_array(reader, key),
        _ => Ok(Value::Integer(read_integer(reader, key, kind)?)),
    }
}

/// An array grows as its elements are read, so a count that lies costs no memory.
fn read_array<R: Read>(reader: &mut Reader<R>, key: &str) -> Result<Value, GgufError> {
    let kind = reader.u32()?;
    let count = reader.u64()?;
    let element = element_len(kind)
        .ok_or_else(|| GgufError::UnknownValueType { key: key.to_owned(), found: kind })?;
    bounded("array elements", count, element, ELEMENTS_MAX, reader.remaining())?;
    match kind {
        KIND_FLOAT32 | KIND_FLOAT64 => {
            repeat(count, || read_float(reader, kind).map(|float| float as f32)).map(Value::Floats)
        }
        KIND_BOOL => repeat(count, || read_bool(reader, key)).map(Value::Bools),
        KIND_TEXT => repeat(count, || reader.text("array string", TEXT_MAX)).map(Value::Texts),
        _ => repeat(count, || read_integer(reader, key, kind)).map(Value::Integers),
    }
}

fn repeat<T>(
    count: u64,
    mut next: impl FnMut() -> Result<T, GgufError>,
) -> Result<Vec<T>, GgufError> {
    (0..count).map(|_| next()).collect()
}

fn read_integer<R: Read>(reader: &mut Reader<R>, key: &str, kind: u32) -> Result<i64, GgufError> {
    Ok(match kind {
        0 => i64::from(u8::from_le_bytes(reader.array()?)),
        1 => i64::from(i8::from_le_bytes(reader.array()?)),
        2 => i64::from(u16::from_le_bytes(reader.array()?)),
        3 => i64::from(i16::from_le_bytes(reader.array()?)),
        4 => i64::from(reader.u32()?),
        5 => i64::from(i32::from_le_bytes(reader.array()?)),
        10 => i64::try_from(reader.u64()?).map_err(|_| GgufError::WrongType {
            key: key.to_owned(),
            expected: "an integer below 2^63",
        })?,
        11 => i64::from_le_bytes(reader.array()?),
        found => {
            return Err(GgufError::UnknownValueType { key: key.to_owned(), found });
        }
    })
}

fn read_float<R: Read>(reader: &mut Reader<R>, kind: u32) -> Result<f64, GgufError> {
    if kind == KIND_FLOAT32 {
        Ok(f64::from(f32::from_le_bytes(reader.array()?)))
    } else {
        Ok(f64::from_le_bytes(reader.array()?))
    }
}

fn read_bool<R: Read>(reader: &mut Reader<R>, key: &str) -> Result<bool, GgufError> {
    match reader.array()? {
        [0] => Ok(false),
        [1] => Ok(true),
        [_] => Err(GgufError::WrongType { key: key.to_owned(), expected: "a bool of 0 or 1" }),
    }
}

/// The least bytes an element takes; nothing for unknown types and for arrays of arrays.
const fn element_len(kind: u32) -> Option<u64> {
    match kind {
        0 | 1 | KIND_BOOL => Some(1),
        2 | 3 => Some(2),
        4 | 5 | KIND_FLOAT32 => Some(4),
        KIND_TEXT | 10 | 11 | KIND_FLOAT64 => Some(8),
        _ => None,
    }
}

/// Refuses a count above `max`, or one whose elements could not fit the rest of the file.
pub(super) const fn bounded(
    what: &'static str,
    count: u64,
    element_len: u64,
    max: u64,
    remaining: u64,
) -> Result<(), GgufError> {
    if count > max {
        return Err(GgufError::TooMany { what, count, max });
    }
    let fit = remaining / element_len;
    if count > fit {
        return Err(GgufError::TooMany { what, count, max: fit });
    }
    Ok(())
}

const KIND_FLOAT32: u32 = 6;
const KIND_BOOL: u32 = 7;
const KIND_TEXT: u32 = 8;
const KIND_ARRAY: u32 = 9;
const KIND_FLOAT64: u32 = 12;

const PAIRS_MAX: u64 = 65_536;
const KEY_MAX: u64 = 65_535;
const TEXT_MAX: u64 = 64 << 20;
const ELEMENTS_MAX: u64 = 1 << 24;
const METADATA_MAX: u64 = 256 << 20;
