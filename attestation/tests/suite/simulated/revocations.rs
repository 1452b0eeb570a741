//! Issues revocation lists of the simulated platform's root, honest ones and others.

use aws_lc_rs::error::Unspecified;
use aws_lc_rs::rsa::KeyPair;

use super::issue::{Extension, extensions, integer, name, pss_sha384, seq, signed, tlv};

/// A revocation list to be signed.
#[derive(Clone)]
pub(crate) struct ListDraft {
    pub version: Vec<u8>,
    pub issuer: String,
    pub this_update: String,
    /// None at all, or one.
    pub next_update: Option<String>,
    pub serials: Vec<u8>,
    /// Extensions of the list, as of a certificate.
    pub extensions: Vec<Extension>,
    /// Extensions of each entry.
    pub entry_extensions: Vec<Extension>,
    pub algorithm: Vec<u8>,
    /// As of a certificate.
    pub write_default: bool,
}

impl ListDraft {
    /// A whole list of the simulated ARK, with AMD's extension: a CRL number.
    pub(crate) fn of(serials: &[u8]) -> Self {
        Self {
            version: integer(1),
            issuer: "ARK-Simulated".to_owned(),
            this_update: "260501000000Z".to_owned(),
            next_update: Some("270501000000Z".to_owned()),
            serials: serials.to_vec(),
            extensions: vec![(b"\x55\x1d\x14".to_vec(), false, integer(4))],
            entry_extensions: Vec::new(),
            algorithm: pss_sha384(),
            write_default: false,
        }
    }

    /// A whole and empty list for another time.
    pub(crate) fn between(this_update: &str, next_update: &str) -> Self {
        Self {
            this_update: this_update.to_owned(),
            next_update: Some(next_update.to_owned()),
            ..Self::of(&[])
        }
    }

    /// The list, signed by `key`.
    pub(crate) fn sign(&self, key: &KeyPair) -> Result<Vec<u8>, Unspecified> {
        let time = |time: &String| tlv(0x17, time.as_bytes());
        let optional = |some: &[Extension]| match some {
            [] => Vec::new(),
            some => extensions(some, self.write_default),
        };
        let entry_extensions = optional(&self.entry_extensions);
        let entries: Vec<Vec<u8>> = self
            .serials
            .iter()
            .map(|&serial| {
                seq(&[integer(serial), time(&self.this_update), entry_extensions.clone()])
            })
            .collect();
        let tbs = seq(&[
            self.version.clone(),
            self.algorithm.clone(),
            name(&self.issuer),
            time(&self.this_update),
            self.next_update.as_ref().map(time).unwrap_or_default(),
            if entries.is_empty() { Vec::new() } else { seq(&entries) },
            match optional(&self.extensions) {
                none if none.is_empty() => none,
                some => tlv(0xA0, &some),
            },
        ]);
        signed(tbs, key)
    }
}
