//! What the store keeps of a licence: the texts as they were given, and the package key, sealed and bound to them.

use chrysalis_protocol::codec::{CodecError, Reader, Writer};

use super::master::SEALED_KEY_LEN;

/// A licence, its policy, and its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LicenceRecord {
    /// Whether it was taken back.
    pub revoked: bool,
    /// The licence's TOML.
    pub licence: String,
    /// The appraisal policy's TOML.
    pub policy: String,
    /// The package key under the master key.
    pub sealed_key: [u8; SEALED_KEY_LEN],
}

impl LicenceRecord {
    /// What the sealed key is bound to.
    pub fn bound(licence: &str, policy: &str) -> Vec<u8> {
        let mut writer = Writer::new();
        for text in [licence, policy] {
            writer.u64(text.len() as u64).bytes(text.as_bytes());
        }
        writer.into_bytes()
    }

    /// The encoding: revoked u8 | licence_len u64 | licence | policy_len u64 | policy | sealed key.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut writer = Writer::new();
        writer.u8(u8::from(self.revoked)).bytes(&Self::bound(&self.licence, &self.policy));
        writer.bytes(&self.sealed_key);
        writer.into_bytes()
    }

    /// Reads the encoding.
    ///
    /// # Errors
    /// [`CodecError`]; text that is no UTF-8 reads as empty, which is no licence.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, CodecError> {
        let mut reader = Reader::new(bytes);
        let revoked = reader.u8()? != 0;
        let text = |reader: &mut Reader<'_>| -> Result<String, CodecError> {
            let len = usize::try_from(reader.u64()?).unwrap_or(usize::MAX);
            Ok(String::from_utf8(reader.bytes(len)?.to_vec()).unwrap_or_default())
        };
        let (licence, policy) = (text(&mut reader)?, text(&mut reader)?);
        let sealed_key = reader.array()?;
        reader.finish()?;
        Ok(Self { revoked, licence, policy, sealed_key })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_reads_back_and_every_cut_is_refused() {
        let record = LicenceRecord {
            revoked: true,
            licence: "serial = 1".into(),
            policy: "minimum_svn = 1".into(),
            sealed_key: [5; SEALED_KEY_LEN],
        };
        let bytes = record.to_bytes();
        assert_eq!(LicenceRecord::from_bytes(&bytes), Ok(record));
        for len in 0..bytes.len() {
            assert!(LicenceRecord::from_bytes(&bytes[..len]).is_err(), "{len}");
        }
    }
}
