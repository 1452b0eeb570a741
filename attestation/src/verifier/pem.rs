//! Certificates as PEM (RFC 7468) in one encoding, so that every bit counts: the chain inside a
//! quote, and files that people have.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use thiserror::Error;

/// Why a text is not one certificate.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
#[non_exhaustive]
pub enum PemError {
    /// Not as PEM is written.
    #[error("not PEM of certificates alone, with lines of 64 characters")]
    Form,
    /// Several certificates.
    #[error("{found} certificates, not one: give that of the chip's key alone")]
    Count {
        /// How many there are.
        found: usize,
    },
}

/// The DER of the one certificate in `text`.
///
/// # Errors
/// [`PemError`] says what it is instead.
pub fn certificate_from_pem(text: &[u8]) -> Result<Vec<u8>, PemError> {
    let mut chain = decode(text).ok_or(PemError::Form)?;
    match (chain.len(), chain.pop()) {
        (1, Some(certificate)) => Ok(certificate),
        (found, _) => Err(PemError::Count { found }),
    }
}

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
    // Whatever was read leniently (line lengths, spare bits, carriage returns, a certificate without
    // an end) shows here.
    let encoded = encode(&chain);
    let same = encoded == text || encoded.strip_suffix('\n') == Some(text);
    (same && !chain.is_empty()).then_some(chain)
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
        assert_eq!(certificate_from_pem(&text), Err(PemError::Count { found: 2 }));
        let one = encode(&chain[..1]);
        assert_eq!(certificate_from_pem(one.as_bytes()).as_ref(), Ok(&chain[0]));
        let lines = one.replace('\n', "\r\n");
        assert_eq!(certificate_from_pem(lines.as_bytes()), Err(PemError::Form));
        for wrong in ["", "\n", "-----BEGIN CERTIFICATE-----\n", "Zg==\n"] {
            assert_eq!(decode(wrong.as_bytes()), None);
            assert_eq!(certificate_from_pem(wrong.as_bytes()), Err(PemError::Form));
        }
    }
}
