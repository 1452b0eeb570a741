//! The gate in front of the GPUs, held to a fake of NVIDIA's management library: no GPU is told to
//! work, and no evidence is made, on a machine that anything is wrong with.

use std::path::Path;

use chrysalis_attestation::attester::gpu::{GpuGateError, GpuOptions, Gpus, NvmlError, WithGpus};
use chrysalis_attestation::attester::simulated::Simulated;
use chrysalis_attestation::attester::{AttesterError, attest_statement};
use chrysalis_attestation::gpu::{DeviceError, GpuRoots, SetError};
use chrysalis_protocol::gpu::Device;
use chrysalis_protocol::statement::gpu_digest;

use super::device::SimulatedDevice;
use super::nvml::{FakeNvml, Machine};
use super::world::GpuWorld;
use crate::simulated::{LAUNCH_CONFIG, MEASUREMENT, World};

const CHALLENGE: [u8; 32] = [0xC4; 32];

#[test]
fn gpus_that_prove_themselves_are_told_to_work_and_their_evidence_is_in_pci_order() {
    for count in [1, 3] {
        let mut machine = Machine::honest(count);
        machine.buses.reverse();
        let fake = FakeNvml::new(machine);
        let gpus = Gpus::open(&fake.library(), options(count.into()), &CHALLENGE).expect("honest");
        assert_eq!(fake.machine.lock().unwrap().ready, [true]);

        let evidence = gpus.attest(&[7; 32]).expect("they still are");
        assert_eq!(evidence.count, u16::from(count));
        assert!(evidence.flags.cc_on && !evidence.flags.ppcie && !evidence.flags.nvlink_clear);
        assert_eq!(evidence.digest, gpu_digest(&evidence.section));
        let entries = Device::parse_all(&evidence.section).unwrap();
        let machine = fake.machine.lock().unwrap();
        for (entry, device) in entries.iter().zip(machine.devices.iter().rev()) {
            assert_eq!(entry.chain, device.chain());
            assert_eq!(entry.report[4..36], [7; 32]);
        }
        assert_eq!(machine.ready, [true]);
    }
}

#[test]
fn a_statement_that_gpus_and_platform_attest_is_accepted_by_a_client() {
    let fake = FakeNvml::new(Machine::honest(2));
    let mut world = World::honest();
    world.policy.gpu = GpuWorld::honest(2).world.policy.gpu;
    let demand = world.policy.gpu.as_mut().unwrap();
    (demand.require_rims, demand.require_ocsp) = (false, false);
    let platform = Simulated::new(LAUNCH_CONFIG, MEASUREMENT).unwrap();
    let gpus = Gpus::open(&fake.library(), options(2), &CHALLENGE).expect("honest");
    let mut attester = WithGpus::new(Box::new(platform), gpus);

    let mut statement = world.statement.clone();
    let attested = attest_statement(&mut attester, &mut statement).expect("evidence");
    assert_eq!(statement.gpu_count, 2);
    assert_eq!(statement.gpu_challenge(), world.statement.gpu_challenge());
    world.statement = statement;
    let mut parts = world.parts();
    parts.report = attested.evidence.report;
    parts.gpu = attested.gpus;
    assert_eq!(world.appraise(&parts), Ok(()));

    // A machine that turned bad makes no statement.
    fake.machine.lock().unwrap().settings[2] = 1;
    let mut next = world.statement.clone();
    let refused = attest_statement(&mut attester, &mut next).map(drop);
    assert_eq!(refused, Err(AttesterError::Gpu(GpuGateError::DevTools)));
}

#[test]
fn a_machine_with_anything_wrong_is_never_told_to_work() {
    for (name, change, expected) in ROWS {
        let mut machine = Machine::honest(3);
        change(&mut machine);
        let fake = FakeNvml::new(machine);
        let refused = Gpus::open(&fake.library(), options(3), &CHALLENGE).expect_err(name);
        assert!(expected(&refused), "{name}: {refused}");
        assert!(fake.machine.lock().unwrap().ready.is_empty(), "{name}: told to work");
    }
}

#[test]
fn a_driver_that_does_not_do_as_it_is_told_is_refused() {
    let mut machine = Machine::honest(1);
    machine.obeys = false;
    let fake = FakeNvml::new(machine);
    let refused = Gpus::open(&fake.library(), options(1), &CHALLENGE).expect_err("not ready");
    assert_eq!(refused, GpuGateError::NotReady);
    let missing = Gpus::open(Path::new("/nowhere/libnvidia-ml.so.1"), options(1), &CHALLENGE);
    assert!(nvml(&missing.expect_err("no library"), "opening it"));
    // A name is looked for where the environment says, and so is not taken.
    for name in ["libnvidia-ml.so.1", "./libnvidia-ml.so.1"] {
        let refused = Gpus::open(Path::new(name), options(1), &CHALLENGE).expect_err("a name");
        assert_eq!(refused, GpuGateError::Nvml(NvmlError::Path { path: name.to_owned() }));
    }
    let none = Gpus::open(&fake.library(), options(0), &CHALLENGE).expect_err("none asked for");
    assert_eq!(none, GpuGateError::Count { found: 1, expected: 0 });
    let fake = FakeNvml::new(Machine::honest(0));
    let none = Gpus::open(&fake.library(), options(0), &CHALLENGE).expect_err("none is there");
    assert_eq!(none, GpuGateError::Count { found: 0, expected: 0 });
}

#[test]
fn a_machine_that_turns_bad_gives_no_more_evidence() {
    let fake = FakeNvml::new(Machine::honest(1));
    let gpus = Gpus::open(&fake.library(), options(1), &CHALLENGE).expect("honest");
    fake.machine.lock().unwrap().settings[2] = 1;
    assert_eq!(gpus.attest(&CHALLENGE), Err(GpuGateError::DevTools));
    fake.machine.lock().unwrap().settings[2] = 0;
    assert!(gpus.attest(&CHALLENGE).is_ok());
    // Another genuine GPU in the place of the one that was told to work.
    let first =
        std::mem::replace(&mut fake.machine.lock().unwrap().devices, vec![SimulatedDevice::gpu(2)]);
    let refused = gpus.attest(&CHALLENGE).expect_err("another one");
    assert!(matches!(refused, GpuGateError::Changed { index: 0, .. }), "{refused}");
    fake.machine.lock().unwrap().devices = first;
    // A recorded report of the same GPU, over the challenge of an earlier statement.
    fake.machine.lock().unwrap().stale = Some(CHALLENGE);
    assert!(device(&gpus.attest(&[8; 32]).expect_err("stale"), 0, "gpu.report.nonce"));
}

#[test]
fn protected_pcie_is_taken_only_where_the_launch_config_allows_it() {
    let mut machine = Machine::honest(2);
    machine.settings = [2, 0, 0, 1];
    for gpu in &mut machine.devices {
        gpu.set(21, &[0xAA]);
    }
    let fake = FakeNvml::new(machine);
    let refused = Gpus::open(&fake.library(), options(2), &CHALLENGE).expect_err("not allowed");
    assert_eq!(refused, GpuGateError::Ppcie);
    let allowed = GpuOptions { allow_ppcie: true, ..options(2) };
    let gpus = Gpus::open(&fake.library(), allowed, &CHALLENGE).expect("allowed");
    let flags = gpus.attest(&CHALLENGE).expect("honest").flags;
    assert!(!flags.cc_on && flags.ppcie && flags.nvlink_clear);
}

#[test]
fn the_published_key_does_not_stand_for_nvidias() {
    let fake = FakeNvml::new(Machine::honest(1));
    let real = GpuOptions { roots: GpuRoots::Nvidia, ..options(1) };
    let refused = Gpus::open(&fake.library(), real, &CHALLENGE).expect_err("a simulated gpu");
    assert!(device(&refused, 0, "gpu.certificate.root"));
    assert!(fake.machine.lock().unwrap().ready.is_empty());
}

/// What is wrong, how it comes about, and whether an error says so.
type Row = (&'static str, fn(&mut Machine), fn(&GpuGateError) -> bool);

const ROWS: &[Row] = &[
    ("cc off", |m| m.settings[1] = 0, |e| *e == GpuGateError::CcOff),
    ("devtools", |m| m.settings[2] = 1, |e| *e == GpuGateError::DevTools),
    // A value that is not known is not "off".
    ("other devtools", |m| m.settings[2] = 2, |e| *e == GpuGateError::DevTools),
    ("simulation", |m| m.settings[0] = 1, |e| *e == GpuGateError::Environment { found: 1 }),
    ("no environment", |m| m.settings[0] = 0, |e| *e == GpuGateError::Environment { found: 0 }),
    (
        "an unknown feature",
        |m| m.settings[1] = 2,
        |e| *e == GpuGateError::Setting { setting: "ccFeature", found: 2 },
    ),
    (
        "an unknown mode",
        |m| m.settings[3] = 3,
        |e| *e == GpuGateError::Setting { setting: "multiGpuMode", found: 3 },
    ),
    ("ppcie", |m| m.settings[3] = 1, |e| *e == GpuGateError::Ppcie),
    (
        "a device that is no gpu",
        |m| m.devices[1] = SimulatedDevice::switch(2, 1, &[1, 2, 3]),
        |e| matches!(e, GpuGateError::Set(SetError::Kind { index: 1, .. })),
    ),
    ("wrong nonce", |m| m.stale = Some([1; 32]), |e| device(e, 0, "gpu.report.nonce")),
    (
        "stale report of one of several",
        |m| {
            m.report = |index, mut report| {
                if index == 2 {
                    report[4..36].copy_from_slice(&[9; 32]);
                }
                report
            };
        },
        |e| device(e, 2, "gpu.report.nonce"),
    ),
    (
        "a forged report of one of several",
        |m| {
            m.report = |index, mut report| {
                report[200] ^= u8::from(index == 1);
                report
            };
        },
        |e| device(e, 1, "gpu.report.signature"),
    ),
    (
        "a device of nobody's",
        |m| {
            let other = SimulatedDevice::gpu(9);
            m.devices[1].certificates[1] = other.certificates[1].clone();
        },
        |e| device(e, 1, "gpu.certificate.issuer"),
    ),
    (
        "other firmware than certified",
        |m| m.devices[2].set(20, &[1; 48]),
        |e| device(e, 2, "gpu.report.fwid"),
    ),
    (
        "the same gpu twice",
        |m| m.devices[2] = SimulatedDevice::gpu(1),
        |e| matches!(e, GpuGateError::Set(SetError::Duplicate { index: 2, first: 0, .. })),
    ),
    (
        "another driver",
        |m| m.devices[1].set(3, b"580.95.04\0"),
        |e| matches!(e, GpuGateError::Set(SetError::Drivers { index: 1, .. })),
    ),
    (
        "one in protected pcie mode",
        |m| m.devices[1].set(21, &[0xAA]),
        |e| matches!(e, GpuGateError::Mode { index: 1, report: true, driver: false }),
    ),
    (
        "fewer gpus than asked for",
        |m| drop(m.devices.pop()),
        |e| *e == GpuGateError::Count { found: 2, expected: 3 },
    ),
    (
        "certificates that are none",
        |m| m.devices[0].certificates.clear(),
        |e| *e == GpuGateError::Pem { index: 0 },
    ),
    (
        "a report longer than its buffer",
        |m| m.lies = Some((4, 0x2001)),
        |e| too_long(e, REPORT, 0x2001, 0x2000),
    ),
    (
        "certificates longer than their buffer",
        |m| m.lies = Some((5, u32::MAX)),
        |e| too_long(e, CERTIFICATE, u32::MAX, 0x1400),
    ),
    (
        "a report with zeros behind it",
        |m| m.lies = Some((4, 0x2000)),
        |e| device(e, 0, "gpu.report.layout"),
    ),
    ("no count", |m| m.fails = Some((1, 999)), |e| nvml(e, "nvmlDeviceGetCount_v2")),
    ("no settings", |m| m.fails = Some((2, 25)), |e| nvml(e, "nvmlSystemGetConfComputeSettings")),
    ("no place", |m| m.fails = Some((3, 15)), |e| nvml(e, "nvmlDeviceGetPciInfo_v3")),
    ("no report", |m| m.fails = Some((4, 3)), |e| nvml(e, REPORT)),
    ("no certificates", |m| m.fails = Some((5, 3)), |e| nvml(e, CERTIFICATE)),
    (
        "no leave to set the state",
        |m| m.fails = Some((6, 4)),
        |e| nvml(e, "nvmlSystemSetConfComputeGpusReadyState"),
    ),
];

fn options(count: u16) -> GpuOptions {
    GpuOptions { count, allow_ppcie: false, roots: GpuRoots::Simulated }
}

fn device(error: &GpuGateError, expected: usize, code: &str) -> bool {
    let code_of = |error: &DeviceError| error.code();
    matches!(error, GpuGateError::Device { index, error }
        if *index == expected && code_of(error) == code)
}

fn nvml(error: &GpuGateError, expected: &str) -> bool {
    matches!(error, GpuGateError::Nvml(NvmlError::Library { call, .. } | NvmlError::Call { call, .. })
        if *call == expected)
}

fn too_long(error: &GpuGateError, call: &'static str, len: u32, limit: usize) -> bool {
    *error == GpuGateError::Nvml(NvmlError::Length { call, len, limit })
}

const REPORT: &str = "nvmlDeviceGetConfComputeGpuAttestationReport";
const CERTIFICATE: &str = "nvmlDeviceGetConfComputeGpuCertificate";
