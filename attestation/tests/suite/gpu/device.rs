//! GPUs that are not there: real keys, certificates of NVIDIA's profile under a root whose private
//! key is published, and reports that claim whatever a test wants.

use std::sync::Arc;

use super::issue::{CertificateDraft, Key, device_name, fwid_extension, root_name};

/// What a report says, field by field.
#[derive(Clone)]
pub(crate) struct Claims {
    pub measurements: Vec<[u8; 48]>,
    /// NVIDIA's opaque data by their type.
    pub opaque: Vec<(u16, Vec<u8>)>,
    /// Changes the report before it is signed.
    pub twist: fn(&mut Vec<u8>),
}

/// A device that reports.
#[derive(Clone)]
pub(crate) struct SimulatedDevice {
    key: Arc<Key>,
    device: Arc<Key>,
    pub claims: Claims,
    /// The certificates, leaf first, and the names and keys to issue others by.
    pub certificates: Vec<Vec<u8>>,
}

impl SimulatedDevice {
    /// A GH100 with driver 580.95.05 and VBIOS 96.00.CF.00.02; `number` is its serial number.
    pub(crate) fn gpu(number: u8) -> Self {
        let mut gpu = Self::new("GH100 A01 GSP", number);
        gpu.claims.opaque.extend([
            (6, vec![0x00, 0xCF, 0x00, 0x96, 0x02, 0, 0, 0]),
            (15, b"882\0".to_vec()),
            (17, b"1010\0".to_vec()),
            (18, b"0200\0".to_vec()),
            (3, b"580.95.05\0".to_vec()),
            (11, vec![0x55]),
            (21, vec![0x55]),
        ]);
        gpu
    }

    /// An LS10 with the number `pdi`, which leads to GPUs.
    pub(crate) fn switch(number: u8, pdi: u64, gpus: &[u64]) -> Self {
        let mut switch = Self::new("LS_10 A01 FSP", number);
        let mut linked: Vec<u8> = gpus.iter().flat_map(|gpu| gpu.to_be_bytes()).collect();
        linked.resize(64, 0);
        // Which port leads to which, which is no number of a GPU.
        linked.resize(128, 1);
        switch.claims.opaque.extend([
            (6, b"96.10.55.00.01".to_vec()),
            (22, pdi.to_be_bytes().to_vec()),
            (26, linked),
        ]);
        switch
    }

    fn new(chip: &str, number: u8) -> Self {
        let [key, device] = [(); 2].map(|()| Arc::new(Key::generate()));
        let fwid = [0xF0 | number; 48];
        let measurements = (0..64_u8).map(|i| [i; 48]).collect();
        let claims = Claims { measurements, opaque: vec![(20, fwid.to_vec())], twist: |_| {} };
        let root = root_key();
        let serial = format!("41{number:016X}");
        let name = device_name(&format!("{chip} BROM"), &serial);
        let draft = CertificateDraft::authority(number, &root_name(), &name, device.point());
        let mut leaf = CertificateDraft::signer(
            number,
            &name,
            &device_name(&format!("{chip} FMC LF"), &format!("{number:040X}")),
            key.point(),
        );
        leaf.extensions.push(fwid_extension(device.point(), &fwid));
        let certificates = vec![leaf.sign(&device), draft.sign(&root), ROOT.to_vec()];
        Self { key, device, claims, certificates }
    }

    /// The device's own key, which certifies the attestation key.
    pub(crate) fn device_key(&self) -> &Key {
        &self.device
    }

    /// The attestation key.
    pub(crate) fn attestation_key(&self) -> &Key {
        &self.key
    }

    /// Replaces an opaque field.
    pub(crate) fn set(&mut self, kind: u16, value: &[u8]) {
        self.claims.opaque.retain(|(found, _)| *found != kind);
        self.claims.opaque.push((kind, value.to_vec()));
    }

    /// The certificates, back to back.
    pub(crate) fn chain(&self) -> Vec<u8> {
        self.certificates.concat()
    }

    /// A signed report over `nonce`.
    pub(crate) fn report(&self, nonce: &[u8; 32]) -> Vec<u8> {
        let mut report = vec![0x11, 0xE0, 0x01, 0xFF];
        report.extend(nonce);
        report.extend([0, 0x11, 0x60, 0, 0, self.claims.measurements.len() as u8]);
        let record_len = self.claims.measurements.len() as u32 * 55;
        report.extend(&record_len.to_le_bytes()[..3]);
        for (index, digest) in self.claims.measurements.iter().enumerate() {
            report.extend([index as u8 + 1, 1, 51, 0, 1, 48, 0]);
            report.extend(digest);
        }
        report.extend([0x5A; 32]);
        let mut opaque = Vec::new();
        for (kind, value) in &self.claims.opaque {
            opaque.extend(kind.to_le_bytes());
            opaque.extend((value.len() as u16).to_le_bytes());
            opaque.extend(value);
        }
        report.extend((opaque.len() as u16).to_le_bytes());
        report.extend(opaque);
        (self.claims.twist)(&mut report);
        let signature = self.key.sign_fixed(&report);
        report.extend(signature);
        report
    }
}

pub(crate) fn root_key() -> Key {
    Key::from_pkcs8(include_bytes!("../../../src/roots/simulated/gpu_root_key.pk8"))
}

pub(crate) const ROOT: &[u8] = include_bytes!("../../../src/roots/simulated/gpu_root.der");
