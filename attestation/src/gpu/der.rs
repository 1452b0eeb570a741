//! Strict DER (X.690), as much as NVIDIA's certificates and OCSP responses need: single-byte tags
//! and lengths below 2^16 in their shortest form. Total: every input is read or refused.

/// Takes values off the front of DER.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Der<'a> {
    rest: &'a [u8],
}

/// A value, and the bytes that encode it with tag and length.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tlv<'a> {
    pub(crate) tag: u8,
    pub(crate) value: &'a [u8],
    pub(crate) whole: &'a [u8],
}

impl<'a> Der<'a> {
    pub(crate) const fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    pub(crate) const fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// The next value, whatever it is.
    pub(crate) fn any(&mut self) -> Option<Tlv<'a>> {
        let (&[tag, first], rest) = self.rest.split_first_chunk::<2>()?;
        // A tag number above 30 takes more bytes: none of the structures here has one.
        if tag & 0x1F == 0x1F {
            return None;
        }
        let (len, rest) = match (first, rest) {
            (0..=0x7F, rest) => (usize::from(first), rest),
            (0x81, [len @ 0x80..=0xFF, rest @ ..]) => (usize::from(*len), rest),
            (0x82, [high @ 1..=0xFF, low, rest @ ..]) => {
                (usize::from(u16::from_be_bytes([*high, *low])), rest)
            }
            _ => return None,
        };
        let (value, after) = rest.split_at_checked(len)?;
        let whole = self.rest.len().checked_sub(after.len())?;
        let (whole, _) = self.rest.split_at_checked(whole)?;
        self.rest = after;
        Some(Tlv { tag, value, whole })
    }

    /// The next value, which has this tag.
    pub(crate) fn next(&mut self, tag: u8) -> Option<Tlv<'a>> {
        self.any().filter(|tlv| tlv.tag == tag)
    }

    /// The next value if it has this tag; nothing is taken otherwise.
    pub(crate) fn optional(&mut self, tag: u8) -> Option<Tlv<'a>> {
        let mut ahead = *self;
        let tlv = ahead.next(tag)?;
        *self = ahead;
        Some(tlv)
    }

    /// What is in the next value, which has this tag.
    pub(crate) fn inside(&mut self, tag: u8) -> Option<Self> {
        Some(Self::new(self.next(tag)?.value))
    }

    /// Nothing is left.
    pub(crate) fn end(&self) -> Option<()> {
        self.rest.is_empty().then_some(())
    }
}

/// The whole bytes of a BIT STRING.
pub(crate) const fn bit_string<'a>(tlv: Tlv<'a>) -> Option<&'a [u8]> {
    match tlv.value {
        [0, bytes @ ..] => Some(bytes),
        _ => None,
    }
}

/// Unix time of a UTCTime (RFC 5280, 4.1.2.5: 1950 to 2049) or a GeneralizedTime, both in seconds
/// and Z; the time of an OCSP response is a GeneralizedTime.
pub(crate) fn time(tlv: Tlv<'_>) -> Option<u64> {
    let digits = tlv.value.strip_suffix(b"Z")?;
    let (year, digits) = match (tlv.tag, digits.len()) {
        (UTC_TIME, 12) => {
            let (year, digits) = pair(digits)?;
            (if year < 50 { year.checked_add(2000)? } else { year.checked_add(1900)? }, digits)
        }
        (GENERALIZED_TIME, 14) => {
            let (century, digits) = pair(digits)?;
            let (year, digits) = pair(digits)?;
            (century.checked_mul(100)?.checked_add(year)?, digits)
        }
        _ => return None,
    };
    let (month, digits) = pair(digits)?;
    let (day, digits) = pair(digits)?;
    let (hour, digits) = pair(digits)?;
    let (minute, digits) = pair(digits)?;
    let (second, _) = pair(digits)?;
    let leap = (year % 4 == 0 && year % 100 != 0) || year % 400 == 0;
    let days = [31, if leap { 29 } else { 28 }, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let in_month = *days.get(usize::try_from(month.checked_sub(1)?).ok()?)?;
    if !(1..=in_month).contains(&day) || hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    let years = year.checked_sub(1)?;
    let leap_days = (years / 4).checked_sub(years / 100)?.checked_add(years / 400)?;
    let before: u64 = days.iter().take(usize::try_from(month.checked_sub(1)?).ok()?).sum();
    // 719,162 days lie between the first of January of the years 1 and 1970; no time lies before.
    years
        .checked_mul(365)?
        .checked_add(leap_days)?
        .checked_add(before)?
        .checked_add(day.checked_sub(1)?)?
        .checked_sub(719_162)?
        .checked_mul(86_400)?
        .checked_add(hour.checked_mul(3_600)?)?
        .checked_add(minute.checked_mul(60)?)?
        .checked_add(second)
}

/// A number of two digits.
fn pair(digits: &[u8]) -> Option<(u64, &[u8])> {
    let (&[tens @ b'0'..=b'9', ones @ b'0'..=b'9'], rest) = digits.split_first_chunk::<2>()? else {
        return None;
    };
    let digit = |byte: u8| u64::from(byte.wrapping_sub(b'0'));
    Some((digit(tens).checked_mul(10)?.checked_add(digit(ones))?, rest))
}

pub(crate) const BOOLEAN: u8 = 0x01;
pub(crate) const INTEGER: u8 = 0x02;
pub(crate) const BIT_STRING: u8 = 0x03;
pub(crate) const OCTET_STRING: u8 = 0x04;
pub(crate) const NULL: u8 = 0x05;
pub(crate) const OBJECT_IDENTIFIER: u8 = 0x06;
pub(crate) const ENUMERATED: u8 = 0x0A;
pub(crate) const UTF8_STRING: u8 = 0x0C;
pub(crate) const PRINTABLE_STRING: u8 = 0x13;
const UTC_TIME: u8 = 0x17;
pub(crate) const GENERALIZED_TIME: u8 = 0x18;
pub(crate) const SEQUENCE: u8 = 0x30;
pub(crate) const SET: u8 = 0x31;
/// Context tag `[n]` around a value.
pub(crate) const fn explicit(n: u8) -> u8 {
    0xA0 | n
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(tag: u8, text: &str) -> Option<u64> {
        time(Tlv { tag, value: text.as_bytes(), whole: &[] })
    }

    #[test]
    fn times_are_those_of_the_calendar() {
        assert_eq!(at(GENERALIZED_TIME, "19700101000000Z"), Some(0));
        assert_eq!(at(UTC_TIME, "260601000000Z"), Some(1_780_272_000));
        assert_eq!(at(GENERALIZED_TIME, "20260601000001Z"), Some(1_780_272_001));
        assert_eq!(at(GENERALIZED_TIME, "20000229235959Z"), Some(951_868_799));
        assert_eq!(at(GENERALIZED_TIME, "99991231235959Z"), Some(253_402_300_799));
        for wrong in [
            "00000101000000Z",
            "19691231235959Z",
            "20250229000000Z",
            "20251301000000Z",
            "20250100000000Z",
            "20250101240000Z",
            "20250101006000Z",
            "20250101000060Z",
            "2025",
        ] {
            assert_eq!(at(GENERALIZED_TIME, wrong), None, "{wrong}");
        }
        assert_eq!(at(GENERALIZED_TIME, "20260601000000+"), None);
        assert_eq!(at(UTC_TIME, "20260601000000Z"), None);
        assert_eq!(at(UTC_TIME, "690601000000Z"), None);
    }

    #[test]
    fn lengths_have_one_form() {
        for (bytes, value) in [
            (&[4, 0][..], Some(0)),
            (&[4, 1, 9], Some(1)),
            (&[4, 0x81, 1, 9], None),
            (&[4, 0x80, 0, 0], None),
            (&[4, 0x82, 0, 1, 9], None),
            (&[4, 2, 9], None),
            (&[0x1F, 0x81, 0], None),
            (&[0x1F, 1, 9], None),
            (&[], None),
        ] {
            assert_eq!(Der::new(bytes).any().map(|tlv| tlv.value.len()), value, "{bytes:?}");
        }
        let long = [&[4, 0x81, 0x80][..], &[7; 128]].concat();
        assert_eq!(Der::new(&long).any().map(|tlv| tlv.value.len()), Some(128));
    }
}
