//! DER with a value too many at the end of one of its structures.

use super::der::tlv;

/// A structure around `inner`, with a value too many at its end if it is the one whose turn it is:
/// `left` counts the structures before it.
pub(crate) fn closed(tag: u8, mut inner: Vec<u8>, left: &mut Option<usize>) -> Vec<u8> {
    if *left == Some(0) {
        inner.extend([0x05, 0]);
    }
    *left = left.and_then(|left| left.checked_sub(1));
    tlv(tag, &inner)
}

/// The same DER, each structure of it [`closed`]; those in octet strings as well, but for digests.
pub(crate) fn overfull(mut der: &[u8], left: &mut Option<usize>) -> Vec<u8> {
    let mut out = Vec::new();
    while let [tag, first, after @ ..] = der {
        let wide = usize::from(first.saturating_sub(0x80));
        let len = after[..wide].iter().fold(0, |len, byte| len << 8 | usize::from(*byte));
        let len = if wide == 0 { usize::from(*first) } else { len };
        let (value, rest) = after[wide..].split_at(len);
        if tag & 0x20 != 0 || *tag == 0x04 && len != 48 {
            let inner = overfull(value, left);
            out.extend(closed(*tag, inner, left));
        } else {
            out.extend(tlv(*tag, value));
        }
        der = rest;
    }
    out
}
