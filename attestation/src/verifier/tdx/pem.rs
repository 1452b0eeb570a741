//! The certificate chain inside a quote: PEM (RFC 7468) in one encoding, so that every bit counts.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// The DER of each certificate of a chain, or nothing if the text is not exactly how PEM is written:
/// lines of 64 characters, each ended by one line feed, and one zero byte behind the last at most.
pub(super) fn decode(text: &[u8]) -> Option<Vec<Vec<u8>>> {
    let text = text.strip_suffix(&[0]).unwrap_or(text);
    let text = std::str::from_utf8(text).ok()?;
    let mut chain = Vec::new();
    let mut certificate: Option<String> = None;
    for line in text.lines() {
        match (&mut certificate, line) {
            (none @ None, BEGIN) => *none = Some(String::new()),
            (Some(base64), END) => {
                chain.push(STANDARD.decode(base64).ok()?);
                certificate = None;
            }
            (Some(base64), line) => base64.push_str(line),
            (None, _) => return None,
        }
    }
    // Whatever was read leniently (line lengths, spare bits, carriage returns) shows here.
    let encoded = encode(&chain);
    let same = encoded == text || encoded.strip_suffix('\n') == Some(text);
    (same && certificate.is_none() && !chain.is_empty()).then_some(chain)
}

/// The chain as PEM.
pub(super) fn encode(chain: &[Vec<u8>]) -> String {
    let mut out = String::new();
    for certificate in chain {
        out.push_str(BEGIN);
        for (index, symbol) in STANDARD.encode(certificate).chars().enumerate() {
            if index % 64 == 0 {
                out.push('\n');
            }
            out.push(symbol);
        }
        out.push('\n');
        out.push_str(END);
        out.push('\n');
    }
    out
}

const BEGIN: &str = "-----BEGIN CERTIFICATE-----";
const END: &str = "-----END CERTIFICATE-----";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_length_round_trips() {
        for len in 0..200_u8 {
            let chain = vec![(0..len).collect(), vec![0xFF; usize::from(len)]];
            let text = encode(&chain);
            assert_eq!(decode(text.as_bytes()).as_ref(), Some(&chain), "{len}");
            assert_eq!(decode(format!("{text}\0").as_bytes()), Some(chain));
        }
    }

    #[test]
    fn every_flipped_bit_is_another_chain_or_none() {
        let chain = vec![vec![1, 2, 3, 4], vec![5; 70]];
        let text = encode(&chain).into_bytes();
        for bit in 0..text.len() * 8 {
            let mut flipped = text.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_ne!(decode(&flipped).as_ref(), Some(&chain), "bit {bit}");
        }
        for wrong in ["", "\n", "-----BEGIN CERTIFICATE-----\n", "Zg==\n"] {
            assert_eq!(decode(wrong.as_bytes()), None);
        }
    }
}
