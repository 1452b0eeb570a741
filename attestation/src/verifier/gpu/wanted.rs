//! What a host or a client brings: how to ask NVIDIA for the manifests and statuses that are missing,
//! and which of those at hand are of use to one enclave's evidence. Nothing is believed here: the
//! verification comes after.

use aws_lc_rs::digest::{SHA384, digest};
use chrysalis_protocol::gpu::{Device, GpuEndorsements};

use super::ocsp::Status;
use super::rim::Claimed;
use crate::gpu::certificate::{Certificate, list};
use crate::gpu::der::{INTEGER, NULL, OBJECT_IDENTIFIER, OCTET_STRING, SEQUENCE};
use crate::gpu::{DeviceKind, Report, Runs, VerifiedDevice};

/// A certificate that came without a status.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct WantedStatus {
    /// Whose it is, with its serial number.
    pub certificate: String,
    /// The serial number, in hexadecimal.
    pub serial: String,
    /// The question to the responder: an OCSP request in DER (RFC 6960).
    pub request: Vec<u8>,
}

impl WantedStatus {
    pub(super) fn of(certificate: &Certificate<'_>, issuer: &Certificate<'_>) -> Self {
        let name = |of: &Certificate<'_>| of.common_name().unwrap_or("unnamed").to_owned();
        let serial: String = certificate.serial.iter().map(|byte| format!("{byte:02x}")).collect();
        let algorithm =
            tlv(SEQUENCE, &[tlv(OBJECT_IDENTIFIER, &[SHA_384.to_vec()]), tlv(NULL, &[])]);
        let hash = |bytes| tlv(OCTET_STRING, &[digest(&SHA384, bytes).as_ref().to_vec()]);
        let id = [
            algorithm,
            hash(issuer.subject),
            hash(issuer.point),
            tlv(INTEGER, &[certificate.serial.to_vec()]),
        ];
        // OCSPRequest, TBSRequest, requestList, Request, CertID.
        let request = (0..4).fold(tlv(SEQUENCE, &id), |inner, _| tlv(SEQUENCE, &[inner]));
        let certificate = format!("{} of {} (serial {serial})", name(certificate), name(issuer));
        Self { certificate, serial, request }
    }
}

/// The name under which NVIDIA publishes the manifest of a GPU's driver.
pub(super) fn driver_manifest(device: &VerifiedDevice<'_>) -> Option<String> {
    let (chip, driver) = (device.chip(), device.driver()?);
    // Hoppers are called by their first chip, later ones by their own.
    let kind = if chip.starts_with("GH") { "DRIVER" } else { "CC_DRIVER" };
    Some(format!("NV_GPU_{kind}_{chip}_{driver}"))
}

/// The name under which NVIDIA publishes the manifest of a device's VBIOS.
pub(super) fn vbios_manifest(device: &VerifiedDevice<'_>) -> Option<String> {
    match device.kind() {
        DeviceKind::Gpu => device.report.vbios_manifest().ok(),
        // A switch's report does not say its board; there is one.
        DeviceKind::Switch => {
            let version: String = device.vbios().split('.').collect();
            Some(format!("NV_SWITCH_BIOS_5612_0002_890_{}", version.to_uppercase()))
        }
    }
}

/// Section 0x83 out of manifests and statuses at hand: those that are about the devices of
/// `evidence`, which is section 5 of the same bundle; of several statuses of a certificate the
/// newest.
#[must_use]
pub fn endorsements_of_use(evidence: &[u8], at_hand: &GpuEndorsements<'_>) -> Vec<u8> {
    let devices = Device::parse_all(evidence).unwrap_or_default();
    let mut runs = Vec::new();
    let mut chains: Vec<(usize, &[u8])> = Vec::new();
    for entry in &devices {
        chains.push((1, entry.chain));
        let (report, chain) = (Report::parse(entry.report), list(entry.chain).unwrap_or_default());
        if let (Ok(report), [_, device, ..]) = (report, chain.as_slice())
            && let Ok(found) = Runs::of(&report, device)
        {
            runs.push(found);
        }
    }
    let claimed: Vec<_> = at_hand
        .rims
        .iter()
        .filter_map(|bytes| Some((*bytes, Claimed::read(bytes).ok()?)))
        .filter(|(_, rim)| runs.iter().any(|runs| rim.is_for(runs)))
        .collect();
    chains.extend(claimed.iter().map(|(_, rim)| (0, rim.chain.as_slice())));

    let statuses: Vec<_> = at_hand
        .statuses
        .iter()
        .filter_map(|bytes| Some((*bytes, Status::parse(bytes).ok()?)))
        .collect();
    let mut chosen = Vec::new();
    for (first, chain) in chains {
        let chain = list(chain).unwrap_or_default();
        for (certificate, issuer) in chain.iter().zip(chain.iter().skip(1)).skip(first) {
            let about = statuses.iter().filter(|(_, status)| status.is_about(certificate, issuer));
            chosen.extend(about.max_by_key(|(_, status)| status.made()).map(|(bytes, _)| *bytes));
        }
    }
    let rims = claimed.iter().map(|(bytes, _)| *bytes).collect();
    GpuEndorsements { rims, statuses: chosen }.to_bytes()
}

/// A value of DER.
fn tlv(tag: u8, parts: &[Vec<u8>]) -> Vec<u8> {
    let value = parts.concat();
    let mut out = vec![tag];
    match (u8::try_from(value.len()), u16::try_from(value.len())) {
        (Ok(len @ ..=0x7F), _) => out.push(len),
        (Ok(len), _) => out.extend([0x81, len]),
        // Certificates of the profile are shorter than that.
        (_, len) => {
            out.push(0x82);
            out.extend(len.unwrap_or(u16::MAX).to_be_bytes());
        }
    }
    out.extend(value);
    out
}

const SHA_384: &[u8] = b"\x60\x86\x48\x01\x65\x03\x04\x02\x02";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_have_their_shortest_form() {
        for (len, head) in [
            (0, &[4, 0][..]),
            (0x7F, &[4, 0x7F]),
            (0x80, &[4, 0x81, 0x80]),
            (0xFF, &[4, 0x81, 0xFF]),
            (0x100, &[4, 0x82, 1, 0]),
        ] {
            let out = tlv(OCTET_STRING, &[vec![7; len]]);
            assert_eq!(out, [head, &vec![7; len]].concat());
        }
    }
}
