//! The launch measurement, held to the `sev` crate's on made-up firmware and, where it is
//! installed, on Debian's; and the explanation of one that differs.

use std::fs;

use chrysalis_attestation::launch::{
    Difference, GUEST_FEATURES, KernelHashes, Launch, LaunchError, Monitor, Ovmf, VcpuType,
};
use sev::measurement::snp::{SnpMeasurementArgs, snp_calc_launch_digest};
use sev::measurement::vcpu_types::CpuType;
use sev::measurement::vmsa::{GuestFeatures, VMMType};
use sev::parser::ByteParser;

use super::firmware::Image;

/// One launch, as both programs are told it.
#[derive(Clone, Copy, Debug)]
struct Case {
    vcpus: u32,
    vcpu_type: &'static str,
    monitor: &'static str,
    features: u64,
    /// Kernel, initrd, command line.
    kernel: Option<(&'static [u8], &'static [u8], &'static str)>,
}

const HONEST: Case = Case {
    vcpus: 4,
    vcpu_type: "EPYC-Genoa",
    monitor: "qemu",
    features: GUEST_FEATURES,
    kernel: Some((b"kernel", b"initrd", "console=ttyS0 panic=-1")),
};

fn ours(image: &[u8], case: &Case) -> Result<[u8; 48], LaunchError> {
    let ovmf = Ovmf::parse(image)?;
    launch(&ovmf, case).digest()
}

fn launch<'a>(ovmf: &'a Ovmf, case: &Case) -> Launch<'a> {
    Launch {
        ovmf,
        kernel: case.kernel.map(|(kernel, initrd, line)| KernelHashes::new(kernel, initrd, line)),
        vcpus: case.vcpus,
        vcpu_type: case.vcpu_type.parse().unwrap(),
        monitor: case.monitor.parse().unwrap(),
        guest_features: case.features,
    }
}

fn theirs(image: &[u8], case: &Case) -> [u8; 48] {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        fs::write(&path, bytes).unwrap();
        path
    };
    let digest = snp_calc_launch_digest(SnpMeasurementArgs {
        vcpus: case.vcpus,
        vcpu_type: CpuType::try_from(case.vcpu_type).unwrap(),
        ovmf_file: file("ovmf", image),
        guest_features: GuestFeatures::from_bytes(&case.features.to_le_bytes()).unwrap(),
        kernel_file: case.kernel.map(|(kernel, _, _)| file("kernel", kernel)),
        initrd_file: case.kernel.map(|(_, initrd, _)| file("initrd", initrd)),
        append: case.kernel.map(|(_, _, line)| line),
        ovmf_hash_str: None,
        vmm_type: Some(case.monitor.parse::<VMMType>().unwrap()),
    });
    let bytes: Vec<u8> = digest.unwrap().try_into().unwrap();
    bytes.try_into().unwrap()
}

#[test]
fn the_digest_is_that_of_the_reference() {
    let image = Image::default().build();
    let mut count = 0;
    for vcpus in [1, 2, 64] {
        for vcpu_type in ["EPYC", "EPYC-Rome", "EPYC-Milan-v2", "EPYC-Genoa-v1", "EPYC-Turin"] {
            for monitor in ["qemu", "ec2"] {
                for features in [1, 0x21] {
                    for kernel in [HONEST.kernel, None] {
                        let case = Case { vcpus, vcpu_type, monitor, features, kernel };
                        assert_eq!(ours(&image, &case), Ok(theirs(&image, &case)), "{case:?}");
                        count += 1;
                    }
                }
            }
        }
    }
    println!("{count} launches, each with the reference's digest");
}

#[test]
fn the_digest_of_installed_firmware_is_that_of_the_reference() {
    let Ok(image) = fs::read("/usr/share/ovmf/OVMF.fd") else {
        println!("skipped: no OVMF is installed");
        return;
    };
    let case = Case { kernel: None, ..HONEST };
    assert_eq!(ours(&image, &case), Ok(theirs(&image, &case)));
    let hashed = ours(&image, &HONEST);
    assert!(matches!(hashed, Ok(_) | Err(LaunchError::OvmfMissing { .. })), "{hashed:?}");
}

#[test]
fn a_digest_that_differs_is_explained_by_the_fewest_differences() {
    let ovmf = Ovmf::parse(&Image::default().build()).unwrap();
    let given = launch(&ovmf, &HONEST);
    let explain = |case: &Case| {
        let found = launch(&ovmf, case).digest().unwrap();
        let differences = given.explain(&found).unwrap().expect("an explanation");
        differences.into_iter().map(|Difference { field, .. }| field).collect::<Vec<_>>()
    };
    let (kernel, initrd, line) = HONEST.kernel.unwrap();
    assert_eq!(explain(&HONEST), [""; 0]);
    assert_eq!(explain(&Case { vcpus: 7, ..HONEST }), ["--vcpus"]);
    assert_eq!(explain(&Case { vcpu_type: "EPYC-Turin", ..HONEST }), ["--vcpu-type"]);
    assert_eq!(explain(&Case { monitor: "ec2", ..HONEST }), ["--vmm"]);
    assert_eq!(explain(&Case { features: 0x21, ..HONEST }), ["--guest-features"]);
    assert_eq!(explain(&Case { kernel: None, ..HONEST }), ["--kernel"]);
    let blank = "console=ttyS0 panic=-1\n";
    assert_eq!(explain(&Case { kernel: Some((kernel, initrd, blank)), ..HONEST }), ["--cmdline"]);
    assert_eq!(explain(&Case { kernel: Some((kernel, b"", line)), ..HONEST }), ["--initrd"]);
    let two = Case { vcpus: 1, vcpu_type: "EPYC-Milan", ..HONEST };
    assert_eq!(explain(&two), ["--vcpus", "--vcpu-type"]);
    let other = Case { kernel: Some((b"another", initrd, line)), ..HONEST };
    let found = launch(&ovmf, &other).digest().unwrap();
    assert_eq!(given.explain(&found), Ok(None));
}

#[test]
fn damaged_or_unfit_firmware_is_refused_by_name() {
    let good = Image::default().build();
    let missing = |error| matches!(error, LaunchError::OvmfMissing { .. });
    let damaged = |error| matches!(error, LaunchError::OvmfTable { .. });
    assert!(matches!(ours(&[], &HONEST), Err(LaunchError::OvmfLength { len: 0 })));
    assert!(matches!(ours(&good[1..], &HONEST), Err(LaunchError::OvmfLength { .. })));
    assert_eq!(ours(&[0; 4096], &HONEST), Err(LaunchError::OvmfFooter));
    let image = Image { metadata: false, ..Image::default() };
    assert!(ours(&image.build(), &HONEST).is_err_and(missing));
    let image = Image { hashes: false, ..Image::default() };
    assert!(ours(&image.build(), &HONEST).is_err_and(missing));
    let image = Image { reset: false, ..Image::default() };
    assert!(ours(&image.build(), &HONEST).is_err_and(missing));
    assert!(ours(&image.build(), &Case { vcpus: 1, ..HONEST }).is_ok());
    let image = Image { sections: vec![(0x9000, 4096, 9)], ..Image::default() };
    assert_eq!(ours(&image.build(), &HONEST), Err(LaunchError::OvmfSection { kind: 9 }));
    for (gpa, len, kind) in [(0x9001, 4096, 1), (0x9000, 4095, 1), (0x9000, 0, 1), (0, 8192, 2)] {
        let image = Image { sections: vec![(gpa, len, kind)], ..Image::default() };
        assert!(ours(&image.build(), &HONEST).is_err_and(damaged), "{gpa} {len} {kind}");
    }
    for (from_end, reason) in [(u32::MAX, "before"), (8, "end"), (64, "ASEV")] {
        let image = Image { from_end: Some(from_end), ..Image::default() };
        assert!(ours(&image.build(), &HONEST).is_err_and(damaged), "{reason}");
    }
    for vcpus in [0, 1025] {
        let refused = ours(&good, &Case { vcpus, ..HONEST });
        assert_eq!(refused, Err(LaunchError::Vcpus { vcpus, limit: 1024 }));
    }
}

#[test]
fn no_image_makes_the_reader_panic() {
    let good = Image::default().build();
    // Each byte of the tables, at the end of the image, in turn.
    for index in good.len() - 512..good.len() {
        for value in [0, 1, 0x7F, 0xFF] {
            let mut image = good.clone();
            image[index] = value;
            drop(ours(&image, &Case { vcpus: 1, kernel: None, ..HONEST }));
        }
    }
}

#[test]
fn types_and_monitors_have_names() {
    let signature = |name: &str| name.parse::<VcpuType>().map(VcpuType::signature);
    assert_eq!(signature("epyc-genoa"), Ok(0x00A1_0F10));
    assert_eq!(signature("EPYC-IBPB"), signature("EPYC"));
    assert_eq!(signature("0xB00F21"), Ok(0x00B0_0F21));
    let refused = "Opteron".parse::<VcpuType>().unwrap_err();
    assert!(refused.to_string().contains("EPYC-Genoa"), "{refused}");
    assert_eq!("QEMU".parse(), Ok(Monitor::Qemu));
    assert!("xen".parse::<Monitor>().is_err());
}
