//! `chrysalis measure`: a digest from files, and why a report has another one.

use chrysalis_attestation::attester::simulated::honest_report;
use chrysalis_attestation::report::REPORT_LEN;

use super::firmware::Image;
use super::support::{Folder, Outcome, chrysalis};

struct Files {
    folder: Folder,
    ovmf: String,
    kernel: String,
    config: String,
}

impl Files {
    fn new() -> Self {
        let folder = Folder::new();
        Self {
            ovmf: folder.write("OVMF.fd", &Image::default().build()),
            kernel: folder.write("vmlinuz", b"kernel"),
            config: folder.write("launch.conf", b"threads = 2\n"),
            folder,
        }
    }

    fn measure(&self, vcpus: &str, more: &[&str]) -> Outcome {
        let args = ["measure", "--ovmf", &self.ovmf, "--vcpus", vcpus, "--vcpu-type", "EPYC-Genoa"];
        let kernel = ["--kernel", &self.kernel, "--cmdline", "panic=-1", "--config", &self.config];
        chrysalis(&[&args[..], &kernel, more].concat())
    }

    fn measurement(&self, vcpus: &str) -> String {
        self.measure(vcpus, &["--json"]).json()["measurement"].as_str().unwrap().to_owned()
    }

    /// A report of a guest with two virtual CPUs, and this HOST_DATA.
    fn report(&self, host_data: [u8; 32]) -> String {
        let measurement = self.measurement("2");
        let bytes: Vec<u8> = (0..48)
            .map(|at| u8::from_str_radix(&measurement[2 * at..2 * at + 2], 16).unwrap())
            .collect();
        let mut report = honest_report(host_data, bytes.try_into().unwrap()).to_signed_bytes();
        report.resize(REPORT_LEN, 0);
        self.folder.write("report.bin", &report)
    }
}

#[test]
fn an_image_is_measured_from_its_files() {
    let files = Files::new();
    let json = files.measure("2", &["--json"]).json();
    // The `sev` crate 8.0 says the same of this image; attestation's own tests ask it live.
    assert_eq!(json["measurement"], GOLDEN);
    let host_data = json["host_data"].as_str().unwrap();
    assert_eq!(host_data.len(), 64);
    assert_eq!(json["mrconfigid"], format!("{host_data}{}", "0".repeat(32)));
    let text = files.measure("2", &[]);
    assert_eq!(text.code, Some(0));
    assert!(text.stdout.contains(GOLDEN) && text.stdout.contains(host_data), "{}", text.stdout);
    assert_eq!(files.measure("2", &["--expect", GOLDEN]).code, Some(0));
}

#[test]
fn a_report_that_differs_is_explained_field_by_field() {
    let files = Files::new();
    let report = files.report([0; 32]);
    let outcome = files.measure("3", &["--report", &report]);
    outcome.refused(3, "MEASUREMENT, HOST_DATA differ");
    assert!(outcome.stdout.contains("--vcpus is 2, not 3"), "{}", outcome.stdout);
    assert!(outcome.stdout.contains("the host gave no HOST_DATA"), "{}", outcome.stdout);
    let outcome = files.measure("2", &["--report", &report, "--initrd", &report]);
    outcome.refused(3, "MEASUREMENT, HOST_DATA differ");
    assert!(outcome.stdout.contains("--initrd is empty"), "{}", outcome.stdout);
    let another = files.folder.write("other-kernel", b"another");
    let args = ["--report", &report, "--kernel", &another];
    let same = ["measure", "--ovmf", &files.ovmf, "--vcpus", "2", "--vcpu-type", "0xA10F10"];
    let outcome = chrysalis(&[&same[..], &args].concat());
    outcome.refused(3, "MEASUREMENT differ");
    assert!(outcome.stdout.contains("has other bytes"), "{}", outcome.stdout);
}

#[test]
fn a_report_that_agrees_is_said_to_be_unjudged() {
    let files = Files::new();
    let json = files.measure("2", &["--json"]).json();
    let host_data = json["host_data"].as_str().unwrap();
    let bytes: Vec<u8> =
        (0..32).map(|at| u8::from_str_radix(&host_data[2 * at..2 * at + 2], 16).unwrap()).collect();
    let report = files.report(bytes.try_into().unwrap());
    let outcome = files.measure("2", &["--report", &report]);
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    assert!(outcome.stdout.contains("HOST_DATA: equal"), "{}", outcome.stdout);
    assert!(outcome.stdout.contains("signature was not judged"), "{}", outcome.stdout);
}

#[test]
fn what_cannot_be_measured_is_named() {
    let files = Files::new();
    files.measure("0", &[]).refused(1, "0 virtual CPUs: 1 to 1024");
    files.measure("2", &["--vmm", "xen"]).refused(1, "qemu or ec2");
    files.measure("2", &["--guest-features", "all"]).refused(2, "--guest-features");
    files.measure("2", &["--expect", "00"]).refused(2, "96 hexadecimal digits");
    files.measure("2", &["--report", &files.kernel]).refused(1, "neither an SEV-SNP report");
    files.measure("2", &["--initrd", "/nowhere"]).refused(1, "/nowhere: ");
    let odd = files.folder.write("odd.fd", b"not in pages");
    let args = ["measure", "--ovmf", &odd, "--vcpus", "2", "--vcpu-type", "EPYC"];
    chrysalis(&args).refused(1, "whole pages");
    let zeros = files.folder.write("zeros.fd", &[0; 8192]);
    let args = ["measure", "--ovmf", &zeros, "--vcpus", "2", "--vcpu-type", "EPYC"];
    chrysalis(&args).refused(1, "table of GUIDs");
    let args = ["measure", "--ovmf", &files.ovmf, "--vcpus", "2", "--vcpu-type", "Opteron"];
    chrysalis(&args).refused(1, "EPYC-Turin");
}

/// Of the image of these tests with two virtual CPUs.
const GOLDEN: &str = "84dccb3d53c0308e5ab3c548e2f599b4f27647451717dde5598931eb9d540c0ae9a1a863997e499fd3c7e2658ebcdc6d";
