//! Base64 (RFC 4648) and the one form of PEM that NVML returns: certificates in lines of 64.

/// Decodes standard base64 with padding. Unused bits are zero, and nothing else may stand in it.
pub(crate) fn base64(text: impl Iterator<Item = u8>) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    let (mut bits, mut count, mut padding) = (0_u32, 0_u32, 0_usize);
    for byte in text {
        let value = match byte {
            b'A'..=b'Z' => byte.wrapping_sub(b'A'),
            b'a'..=b'z' => byte.wrapping_sub(b'a').wrapping_add(26),
            b'0'..=b'9' => byte.wrapping_sub(b'0').wrapping_add(52),
            b'+' => 62,
            b'/' => 63,
            b'=' => {
                padding = padding.checked_add(1)?;
                continue;
            }
            _ => return None,
        };
        if padding != 0 {
            return None;
        }
        bits = (bits << 6) | u32::from(value);
        count = count.checked_add(6)?;
        if count >= 8 {
            count = count.checked_sub(8)?;
            out.push(u8::try_from((bits >> count) & 0xFF).ok()?);
            bits &= (1_u32 << count).checked_sub(1)?;
        }
    }
    // What is left of the bits says how many digits the last group has.
    let whole = matches!((count, padding), (0, 0) | (4, 2) | (2, 1));
    (whole && bits == 0).then_some(out)
}

/// The certificates of a PEM file, in DER, back to back. Zeros at its end are NVML's buffer.
#[must_use]
pub fn chain_from_pem(pem: &[u8]) -> Option<Vec<u8>> {
    let text = std::str::from_utf8(pem).ok()?.trim_end_matches('\0');
    let mut der = Vec::new();
    let mut body: Option<String> = None;
    for line in text.lines() {
        body = match (line, body) {
            (BEGIN, None) => Some(String::new()),
            (END, Some(body)) => {
                der.extend(base64(body.bytes())?);
                None
            }
            ("", None) => None,
            (line, Some(body)) => Some(body + line),
            (_, None) => return None,
        };
    }
    (body.is_none() && !der.is_empty()).then_some(der)
}

const BEGIN: &str = "-----BEGIN CERTIFICATE-----";
const END: &str = "-----END CERTIFICATE-----";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_has_one_encoding() {
        let decode = |text: &str| base64(text.bytes());
        for (text, bytes) in [
            ("", &b""[..]),
            ("Zg==", b"f"),
            ("Zm8=", b"fo"),
            ("Zm9v", b"foo"),
            ("+/+/", b"\xfb\xff\xbf"),
        ] {
            assert_eq!(decode(text).as_deref(), Some(bytes), "{text}");
        }
        for text in [
            "Zh==", "Zm9=", "Zg=", "Zg", "Z", "=", "====", "Zg==Zg==", "Zm9v\n", "Z===",
            "Zm9v====", "Zm=8",
        ] {
            assert_eq!(decode(text), None, "{text}");
        }
    }

    #[test]
    fn pem_is_certificates_and_nothing_else() {
        let pem = |text: &str| chain_from_pem(text.as_bytes());
        let one = format!("{BEGIN}\nZm9v\nZg==\n{END}");
        assert_eq!(pem(&one).as_deref(), Some(&b"foof"[..]));
        assert_eq!(pem(&format!("{one}\n{one}\n\0\0")).as_deref(), Some(&b"fooffoof"[..]));
        for wrong in [
            "",
            "Zm9v",
            &one[..30],
            &format!("{BEGIN}\n{one}"),
            &format!("{one}\nx"),
            &format!("{one}\n{BEGIN}\nZm9v"),
        ] {
            assert_eq!(pem(wrong), None, "{wrong}");
        }
    }
}
