//! Evidence of real Hopper GPUs and a real switch, and manifests as NVIDIA publishes them. Where
//! they are absent, these tests say so and pass.

use std::path::Path;

use chrysalis_attestation::gpu::{
    ChainError, DeviceError, DeviceKind, GpuRoots, VerifiedDevice, chain_from_pem, verify_device,
};
use chrysalis_attestation::verifier::gpu::{Rim, RimError};
use chrysalis_protocol::gpu::Device;

use crate::vectors::{flipped, read, vectors};

/// 2024-06-01, when the manifests of driver 535 were valid.
const JUNE_2024: u64 = 1_717_200_000;
/// 2026-06-01, when the switch's was.
const JUNE_2026: u64 = 1_780_272_000;

#[test]
fn recorded_devices_are_genuine() {
    let Some(folder) = vectors() else { return };
    for (report, chain, kind, chip, serial, driver, vbios) in [
        (
            SDK_GPU,
            SDK_CHAIN,
            DeviceKind::Gpu,
            "GH100",
            "416A5FAFCBD9FA5CA3",
            Some("535.86.09"),
            "96.00.5E.00.01",
        ),
        (
            NVTRUST_GPU,
            NVTRUST_CHAIN,
            DeviceKind::Gpu,
            "GH100",
            "41431D480FE5E87274",
            Some("550.90.07"),
            "96.00.9F.00.01",
        ),
        (
            EXPIRED,
            EXPIRED_CHAIN,
            DeviceKind::Gpu,
            "GH100",
            "41E23D711E1C4FBFAC",
            Some("570.124.03"),
            "96.00.5E.00.04",
        ),
        (
            SWITCH,
            SWITCH_CHAIN,
            DeviceKind::Switch,
            "LS10",
            "50203EB31AD9ED0008",
            None,
            "96.10.55.00.01",
        ),
    ] {
        let device = Recorded::read(&folder, report, chain);
        let verified = device.verify(JUNE_2026).expect(report);
        assert_eq!(verified.kind(), kind);
        assert_eq!((verified.chip(), verified.serial()), (chip, serial));
        assert_eq!((verified.driver(), verified.vbios()), (driver, vbios));
    }
}

#[test]
fn recorded_reports_that_are_not_are_refused() {
    let Some(folder) = vectors() else { return };
    for (report, chain) in
        [(INVALID, SDK_CHAIN), (SWITCH_INVALID, SWITCH_CHAIN), (SDK_GPU, NVTRUST_CHAIN)]
    {
        let device = Recorded::read(&folder, report, chain);
        assert_eq!(device.verify(JUNE_2026).map(drop), Err(DeviceError::Signature), "{report}");
    }
    let mut device = Recorded::read(&folder, NVTRUST_GPU, NVTRUST_CHAIN);
    device.nonce[0] ^= 1;
    let refused = device.verify(JUNE_2026).map(drop).map_err(|error| error.code());
    assert_eq!(refused, Err("gpu.report.nonce"));
    // Under the published key, and before the certificates begin.
    device.nonce[0] ^= 1;
    let simulated = device.under(GpuRoots::Simulated, JUNE_2026).map(drop);
    assert!(matches!(simulated, Err(DeviceError::Chain(ChainError::Root { .. }))));
    let early = device.verify(1_600_000_000).map(drop);
    assert!(matches!(early, Err(DeviceError::Chain(ChainError::Validity { .. }))), "{early:?}");
}

#[test]
fn manifests_behave_as_their_names_say() {
    let Some(folder) = vectors() else { return };
    let gpu = Recorded::read(&folder, SDK_GPU, SDK_CHAIN);
    let gpu = gpu.verify(JUNE_2024).expect("a genuine GPU");
    let rim = rim(&folder, RIM_1, JUNE_2024).expect("a genuine manifest");
    assert_eq!((rim.product(), rim.version()), ("GH100", "96.00.5E.00.01"));
    assert!(rim.is_for(&gpu, gpu.vbios()));
    assert_eq!(rim.compare(&gpu), Ok((12, Vec::new())));
    println!("12 of 12 measurements of the VBIOS");

    let other = super::recorded::rim(&folder, RIM_3, JUNE_2024).expect("a genuine manifest");
    assert!(!other.is_for(&gpu, gpu.vbios()));
    let (compared, differ) = other.compare(&gpu).unwrap();
    println!("a manifest of another VBIOS: {} of {compared} differ", differ.len());
    assert!(!differ.is_empty());

    let switch = Recorded::read(&folder, SWITCH, SWITCH_CHAIN);
    let switch = switch.verify(JUNE_2026).expect("a genuine switch");
    let rim = super::recorded::rim(&folder, SWITCH_RIM, JUNE_2026).expect("a genuine manifest");
    assert!(rim.is_for(&switch, switch.vbios()));
    assert_eq!(rim.compare(&switch), Ok((31, Vec::new())));
    println!("31 of 31 measurements of the switch");
}

#[test]
fn broken_manifests_are_refused_by_the_rule_that_they_break() {
    let Some(folder) = vectors() else { return };
    let sdk = "nvidia/attestation-sdk/";
    let january_2025 = 1_735_732_800;
    for (path, now, code) in [
        ("incorrect_cert_chain_driver_rim.xml", JUNE_2026, "gpu.rim.root"),
        ("incorrect_signature_driver_rim.xml", JUNE_2026, "gpu.rim.signature"),
        ("sample_rims/NV_GPU_DRIVER_GH100_570.124.03_expired.xml", JUNE_2026, "gpu.rim.validity"),
        ("sample_rims/NV_GPU_DRIVER_GH100_570.124.03_expired.xml", january_2025, "gpu.rim.digest"),
        (
            "sample_rims/NV_SWITCH_BIOS_5612_0002_890_9610550001_invalid_signature.xml",
            1_735_732_800,
            "gpu.rim.digest",
        ),
        (
            "sample_rims/NV_GPU_DRIVER_GH100_535.86.09_measurement_mismatch.xml",
            JUNE_2026,
            "gpu.rim.digest",
        ),
        (
            "sample_rims/NV_SWITCH_BIOS_5612_0002_890_9610550001_measurement_mismatch.xml",
            january_2025,
            "gpu.rim.digest",
        ),
        ("../nvtrust/samples/1010_0200_882_96005E0001_PROD.swidtag", JUNE_2026, "gpu.rim.validity"),
    ] {
        let refused = rim(&folder, &format!("{sdk}{path}"), now).map(drop);
        assert_eq!(refused.map_err(|error| error.code()), Err(code), "{path}");
    }
    // This one is signed, and of other measurements than the GPU has.
    let path =
        format!("{sdk}sample_rims/NV_GPU_VBIOS_1010_0200_882_96005E0001_measurement_mismatch.xml");
    let rim = rim(&folder, &path, january_2025).expect("it is signed");
    let gpu = Recorded::read(&folder, SDK_GPU, SDK_CHAIN);
    let (_, differ) = rim.compare(&gpu.verify(january_2025).unwrap()).unwrap();
    assert!(!differ.is_empty());
}

#[test]
fn flipped_bits_of_recorded_evidence_are_refused() {
    let Some(folder) = vectors() else { return };
    let device = Recorded::read(&folder, NVTRUST_GPU, NVTRUST_CHAIN);
    let rim = read(&folder, SWITCH_RIM);
    let bits = [device.report.len() * 8, device.chain.len() * 8, rim.len() * 8];
    let step = super::tampering::step();
    let total = bits.iter().sum::<usize>();
    let count = super::tampering::in_parallel((0..total).step_by(step), |bit| {
        let mut altered = device.clone();
        if bit < bits[0] {
            altered.report = flipped(&device.report, bit);
        } else if bit < bits[0] + bits[1] {
            altered.chain = flipped(&device.chain, bit - bits[0]);
        } else {
            let rim = flipped(&rim, bit - bits[0] - bits[1]);
            assert!(Rim::verify(&rim, GpuRoots::Nvidia, JUNE_2026).is_err(), "manifest, {bit}");
            return;
        }
        assert!(altered.verify(JUNE_2026).is_err(), "bit {bit} of report and chain");
    });
    println!(
        "{count} of {total} flipped bits of a recorded report, chain and manifest, none accepted"
    );
}

/// A report, its chain, and the nonce that it is over.
#[derive(Clone)]
struct Recorded {
    report: Vec<u8>,
    chain: Vec<u8>,
    nonce: [u8; 32],
}

impl Recorded {
    fn read(folder: &Path, report: &str, chain: &str) -> Self {
        let digits = read(folder, report);
        let (pairs, []) = digits.trim_ascii().as_chunks::<2>() else { panic!("{report}") };
        let digit = |byte: u8| char::from(byte).to_digit(16).expect("hexadecimal") as u8;
        let report: Vec<u8> =
            pairs.iter().map(|[high, low]| digit(*high) << 4 | digit(*low)).collect();
        let chain = chain_from_pem(&read(folder, chain)).expect("certificates in PEM");
        let nonce = report[4..36].try_into().expect("32 bytes");
        Self { report, chain, nonce }
    }

    fn verify(&self, now: u64) -> Result<VerifiedDevice<'_>, DeviceError> {
        self.under(GpuRoots::Nvidia, now)
    }

    fn under(&self, roots: GpuRoots, now: u64) -> Result<VerifiedDevice<'_>, DeviceError> {
        let device = Device { report: &self.report, chain: &self.chain };
        verify_device(&device, &self.nonce, roots, Some(now))
    }
}

fn rim(folder: &Path, path: &str, now: u64) -> Result<Rim, RimError> {
    Rim::verify(&read(folder, path), GpuRoots::Nvidia, now)
}

const SDK_GPU: &str =
    "nvidia/attestation-sdk/sample_attestation_data/gpu/hopperAttestationReport.txt";
const SDK_CHAIN: &str = "nvidia/attestation-sdk/sample_attestation_data/gpu/hopperCertChain.txt";
const EXPIRED: &str =
    "nvidia/attestation-sdk/sample_attestation_data/gpu/hopperAttestationReportExpired.txt";
const EXPIRED_CHAIN: &str =
    "nvidia/attestation-sdk/sample_attestation_data/gpu/hopperCertChainExpired.txt";
const INVALID: &str = "nvidia/attestation-sdk/sample_attestation_data/gpu/hopperAttestationReportInvalidSignature.txt";
const SWITCH: &str =
    "nvidia/attestation-sdk/sample_attestation_data/switch/switchAttestationReport.txt";
const SWITCH_INVALID: &str = "nvidia/attestation-sdk/sample_attestation_data/switch/switchAttestationReportInvalidSignature.txt";
const SWITCH_CHAIN: &str =
    "nvidia/attestation-sdk/sample_attestation_data/switch/switchCertChain.txt";
const SWITCH_RIM: &str =
    "nvidia/attestation-sdk/switchVBIOSRim_NV_SWITCH_BIOS_5612_0002_890_9610550001.xml";
const NVTRUST_GPU: &str = "nvidia/nvtrust/samples/hopperAttestationReport.txt";
const NVTRUST_CHAIN: &str = "nvidia/nvtrust/samples/hopperCertChain.txt";
const RIM_1: &str = "nvidia/nvtrust/samples/1010_0200_882_96005E0001_PROD.swidtag";
const RIM_3: &str = "nvidia/nvtrust/samples/1010_0200_882_96005E0003_PROD.swidtag";
