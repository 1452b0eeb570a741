//! GPU evidence and what vouches for it (docs/formats.md, section 1.4): sections 5 and 0x83 of a
//! bundle.
//!
//! Section 5 is one entry a device: report_len u32 | SPDM report | chain_len u32 | certificates in
//! DER, back to back, the attestation key's first. First the GPUs in ascending PCI order, as many
//! as the statement's gpu_count says, then the NVLink switches between them. The statement's
//! gpu_digest is over these bytes. Lengths are checked here; what a report says is the verifier's
//! matter.

use thiserror::Error;

use crate::codec::{CodecError, Reader, Writer};

/// The most devices: 16 GPUs, and as many switches.
pub const DEVICES_MAX: usize = 32;
/// The longest SPDM report, in bytes (`NVML_CC_GPU_ATTESTATION_REPORT_SIZE`).
pub const REPORT_MAX: usize = 0x2000;
/// The longest certificate chain, in bytes (`NVML_GPU_ATTESTATION_CERT_CHAIN_SIZE`).
pub const CHAIN_MAX: usize = 0x1400;
/// The most reference manifests in section 0x83.
pub const RIMS_MAX: usize = 16;
/// The most certificate statuses in section 0x83.
pub const STATUSES_MAX: usize = 96;

/// Why bytes are not a GPU section.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
#[non_exhaustive]
pub enum GpuSectionError {
    /// A field is cut short, or bytes follow the last one.
    #[error(transparent)]
    Codec(#[from] CodecError),
    /// There are more entries than anything of the kind has.
    #[error("{found} {what}, more than {limit}")]
    Count {
        /// `devices`, `manifests` or `statuses`.
        what: &'static str,
        /// How many there are, or the first number that is too many.
        found: usize,
        /// The most that are read.
        limit: usize,
    },
    /// A report or a chain is empty or too long.
    #[error("a {what} of {len} bytes, not of 1 to {limit}")]
    Length {
        /// `report`, `chain`, `manifest` or `status`.
        what: &'static str,
        /// Its length.
        len: usize,
        /// The longest that is read.
        limit: usize,
    },
    /// Manifests or statuses do not ascend, or one is there twice.
    #[error("{what} {index} does not come after the one before it")]
    Order {
        /// `manifest` or `status`.
        what: &'static str,
        /// Counted from 0.
        index: usize,
    },
}

/// The evidence of one device.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Device<'a> {
    /// `GET_MEASUREMENTS` request and response, as SPDM has them.
    pub report: &'a [u8],
    /// Certificates in DER, back to back.
    pub chain: &'a [u8],
}

impl<'a> Device<'a> {
    /// Reads section 5.
    ///
    /// # Errors
    /// [`GpuSectionError`] names what is wrong with it.
    pub fn parse_all(bytes: &'a [u8]) -> Result<Vec<Self>, GpuSectionError> {
        let mut reader = Reader::new(bytes);
        let mut devices = Vec::new();
        while !reader.is_empty() {
            if devices.len() == DEVICES_MAX {
                let (found, limit) = (DEVICES_MAX.saturating_add(1), DEVICES_MAX);
                return Err(GpuSectionError::Count { what: "devices", found, limit });
            }
            let report = sized(&mut reader, "report", REPORT_MAX)?;
            let chain = sized(&mut reader, "chain", CHAIN_MAX)?;
            devices.push(Self { report, chain });
        }
        Ok(devices)
    }

    /// The encoding of section 5.
    #[must_use]
    pub fn to_bytes(devices: &[Self]) -> Vec<u8> {
        let mut writer = Writer::new();
        for device in devices {
            for part in [device.report, device.chain] {
                writer.u32(part.len() as u32).bytes(part);
            }
        }
        writer.into_bytes()
    }
}

/// Section 0x83: num_manifests u16 | num_statuses u16 | len u32 and bytes of each manifest, then of
/// each status. Both lists ascend by their bytes, none comes twice.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct GpuEndorsements<'a> {
    /// Reference integrity manifests: signed XML.
    pub rims: Vec<&'a [u8]>,
    /// OCSP responses, DER.
    pub statuses: Vec<&'a [u8]>,
}

impl<'a> GpuEndorsements<'a> {
    /// Reads section 0x83.
    ///
    /// # Errors
    /// [`GpuSectionError`] names what is wrong with it.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, GpuSectionError> {
        let mut reader = Reader::new(bytes);
        let (rims, statuses) = (usize::from(reader.u16()?), usize::from(reader.u16()?));
        for (what, found, limit) in
            [("manifests", rims, RIMS_MAX), ("statuses", statuses, STATUSES_MAX)]
        {
            if found > limit {
                return Err(GpuSectionError::Count { what, found, limit });
            }
        }
        let rims = list(&mut reader, "manifest", rims, RIM_MAX)?;
        let statuses = list(&mut reader, "status", statuses, STATUS_MAX)?;
        reader.finish()?;
        Ok(Self { rims, statuses })
    }

    /// The encoding, in the order that it asks for.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let (mut rims, mut statuses) = (self.rims.clone(), self.statuses.clone());
        for values in [&mut rims, &mut statuses] {
            values.sort_unstable();
            values.dedup();
        }
        let mut writer = Writer::new();
        writer.u16(rims.len() as u16).u16(statuses.len() as u16);
        for value in rims.iter().chain(&statuses) {
            writer.u32(value.len() as u32).bytes(value);
        }
        writer.into_bytes()
    }
}

fn list<'a>(
    reader: &mut Reader<'a>,
    what: &'static str,
    count: usize,
    limit: usize,
) -> Result<Vec<&'a [u8]>, GpuSectionError> {
    let mut values: Vec<&[u8]> = Vec::new();
    for index in 0..count {
        let value = sized(reader, what, limit)?;
        if values.last().is_some_and(|previous| *previous >= value) {
            return Err(GpuSectionError::Order { what, index });
        }
        values.push(value);
    }
    Ok(values)
}

fn sized<'a>(
    reader: &mut Reader<'a>,
    what: &'static str,
    limit: usize,
) -> Result<&'a [u8], GpuSectionError> {
    let len = reader.u32()? as usize;
    if len == 0 || len > limit {
        return Err(GpuSectionError::Length { what, len, limit });
    }
    Ok(reader.bytes(len)?)
}

const RIM_MAX: usize = 1 << 16;
const STATUS_MAX: usize = 1 << 13;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sections_come_back_and_every_cut_and_extension_is_refused() {
        let devices = [
            Device { report: b"report 0", chain: b"chain" },
            Device { report: b"report 1", chain: b"chain" },
        ];
        let bytes = Device::to_bytes(&devices);
        assert_eq!(Device::parse_all(&bytes), Ok(devices.to_vec()));
        // A cut between two devices is a shorter list: gpu_count and gpu_digest refuse it.
        for cut in (1..bytes.len()).filter(|cut| *cut != bytes.len() / 2) {
            assert!(Device::parse_all(&bytes[..cut]).is_err(), "cut at {cut}");
        }
        assert!(Device::parse_all(&[&bytes[..], &[0]].concat()).is_err());

        let endorsements =
            GpuEndorsements { rims: vec![b"<a/>", b"<b/>"], statuses: vec![b"\x30\x00"] };
        let bytes = endorsements.to_bytes();
        assert_eq!(GpuEndorsements::parse(&bytes), Ok(endorsements));
        for cut in 0..bytes.len() {
            assert!(GpuEndorsements::parse(&bytes[..cut]).is_err(), "cut at {cut}");
        }
        assert!(GpuEndorsements::parse(&[&bytes[..], &[0]].concat()).is_err());
    }

    #[test]
    fn limits_hold() {
        let device = |report, chain| Device::to_bytes(&[Device { report, chain }]);
        let refused = |what, len, limit| Err(GpuSectionError::Length { what, len, limit });
        let long = vec![0; REPORT_MAX + 1];
        assert_eq!(Device::parse_all(&device(&[], b"c")), refused("report", 0, REPORT_MAX));
        assert_eq!(
            Device::parse_all(&device(&long, b"c")),
            refused("report", REPORT_MAX + 1, REPORT_MAX)
        );
        assert_eq!(
            Device::parse_all(&device(b"r", &long)),
            refused("chain", REPORT_MAX + 1, CHAIN_MAX)
        );
        let many = [Device { report: b"r", chain: b"c" }; DEVICES_MAX + 1];
        assert_eq!(
            Device::parse_all(&Device::to_bytes(&many)),
            Err(GpuSectionError::Count { what: "devices", found: 33, limit: 32 })
        );
        let count = GpuEndorsements::parse;
        assert_eq!(
            count(&[0, 17, 0, 0]),
            Err(GpuSectionError::Count { what: "manifests", found: 17, limit: 16 })
        );
        assert_eq!(
            count(&[0, 0, 0, 97]),
            Err(GpuSectionError::Count { what: "statuses", found: 97, limit: 96 })
        );
        let doubled = [0, 2, 0, 0, 0, 0, 0, 1, b'a', 0, 0, 0, 1, b'a'];
        assert_eq!(count(&doubled), Err(GpuSectionError::Order { what: "manifest", index: 1 }));
    }
}
