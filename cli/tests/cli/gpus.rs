//! GPUs as an operator has them: `doctor`, `serve`, and `verify` with what NVIDIA publishes. The driver's library is a fake.

#[path = "../../../attestation/tests/suite/simulated/der.rs"]
mod der;
#[path = "../../../attestation/tests/suite/gpu/device.rs"]
#[allow(dead_code, reason = "shared with the verifier's tests")]
mod device;
#[path = "../../../attestation/tests/suite/gpu/issue.rs"]
#[allow(dead_code, reason = "shared with the verifier's tests")]
mod issue;
#[path = "../../../attestation/tests/suite/gpu/nvml.rs"]
#[allow(dead_code, reason = "shared with the verifier's tests")]
mod nvml;
#[path = "../../../attestation/tests/suite/gpu/ocsp.rs"]
#[allow(dead_code, reason = "shared with the verifier's tests")]
mod ocsp;
#[path = "../../../attestation/tests/suite/gpu/rim.rs"]
#[allow(dead_code, reason = "shared with the verifier's tests")]
mod rim;

use std::fs;

use device::root_key;
use issue::{common_name, root_name};
use nvml::{FakeNvml, Machine};
use ocsp::StatusDraft;
use rim::{RimDraft, Signer};
use serde_json::Value;

use super::support::{Folder, chrysalis};
use super::verify::Served;

#[test]
fn doctor_asks_the_driver() {
    let fake = FakeNvml::new(Machine::honest(2));
    let library = fake.library().into_os_string().into_string().unwrap();
    let states = || {
        let report = chrysalis(&["doctor", "--nvml", &library, "--json"]).json();
        let parts = report["parts"].as_array().unwrap().iter();
        let part = parts.into_iter().find(|part| part["name"] == "evidence of GPUs").unwrap();
        let checks = part["checks"].as_array().unwrap().iter().skip(1);
        let said =
            |check: &Value| format!("{}: {}", check["state"], check["found"]).replace('"', "");
        checks.map(said).collect::<Vec<_>>()
    };
    assert_eq!(
        states(),
        [
            "ok: driver 580.95.05, 2 GPUs: gpus = 2",
            "ok: on, each GPU for itself",
            "ok: off, in production",
            "ok: not set: the enclave sets it when the GPUs have proved themselves",
        ]
    );
    fake.machine.lock().unwrap().settings = [1, 1, 1, 0];
    assert!(states()[2].starts_with("missing: on (1)"), "{:?}", states());
    fake.machine.lock().unwrap().fails = Some((2, 3));
    assert!(states()[0].starts_with("missing: nvml, nvmlSystemGetConfComputeSettings"));
    // Nothing was told to work.
    assert!(fake.machine.lock().unwrap().ready.is_empty());
}

#[test]
fn what_is_missing_about_gpus_is_asked_for_given_and_accepted() {
    let fake = FakeNvml::new(Machine::honest(1));
    let library = fake.library().into_os_string().into_string().unwrap();
    let folder = Folder::new();
    let config = folder.write("launch.conf", b"gpus = 1\n");
    let served = Served::start_with(&["--config", &config, "--nvml", &library]);
    served.verify(&[]).refused(3, "no [gpu] table");

    let policy = fs::read_to_string(served.policy()).unwrap() + DEMAND;
    let policy = served.folder.write("gpus.policy.toml", policy.as_bytes());
    let (file, wanted) = (served.folder.path("evidence.bin"), served.folder.path("wanted"));
    let online = ["verify", "--connect", &served.address, "--policy", &policy, "--save", &file];
    let online = chrysalis(&online);
    online.refused(
        3,
        "give NV_GPU_DRIVER_GH100_580.95.05, as NVIDIA publishes it, with --endorsements",
    );
    let nonce = online.stderr.split_once("--nonce ").unwrap().1.get(..64).unwrap().to_owned();

    let at = ["--nonce", &nonce, "--at", "1780272000"];
    let judge = |more: &[&str]| {
        let saved = ["verify", "--evidence", &file, "--policy", &policy];
        chrysalis(&[&saved[..], &at, more].concat())
    };
    judge(&["--wanted", &wanted]).refused(3, "2 manifests and 1 certificate statuses are wanted");
    let names = fs::read_to_string(served.folder.path("wanted/manifests.txt")).unwrap();
    assert_eq!(names, "NV_GPU_DRIVER_GH100_580.95.05\nNV_GPU_VBIOS_1010_0200_882_9600CF0002\n");
    assert!(fs::metadata(served.folder.path("wanted/01.ocsp-request")).unwrap().len() > 100);

    // NVIDIA answers.
    let given = served.folder.path("given");
    fs::create_dir(&given).unwrap();
    let measurements = fake.machine.lock().unwrap().devices[0].claims.measurements.clone();
    let (signer, root) = (Signer::new(), root_key());
    for (version, indices) in [("580.95.05", [8, 9]), ("96.00.CF.00.02", [0, 1])] {
        let rim = RimDraft::new(version, &measurements, &indices).sign(&signer);
        served.folder.write(&format!("given/{version}.xml"), rim.as_bytes());
    }
    // The statuses of the manifests' signers are wanted as soon as the manifests are there.
    let more = judge(&["--endorsements", &given, "--wanted", &wanted]);
    more.refused(
        3,
        "3 certificates of gpus and manifests came without a status: GH100 A01 GSP BROM",
    );
    more.refused(3, "0 manifests and 3 certificate statuses are wanted");
    for serial in [1, 9] {
        let status = StatusDraft::good(&root_name(), &root, serial).sign(&root, None);
        served.folder.write(&format!("given/{serial}.ocsp"), &status);
    }
    let name = common_name("simulated manifests L3");
    let status = StatusDraft::good(&name, &signer.authority, 10).sign(&signer.authority, None);
    served.folder.write("given/10.ocsp", &status);
    let accepted = judge(&["--endorsements", &given]);
    assert_eq!(accepted.code, Some(0), "{}", accepted.stderr);
    assert!(accepted.stdout.contains("measure as NVIDIA's manifests say"), "{}", accepted.stdout);

    served.folder.write("given/empty.ocsp", b"");
    judge(&["--endorsements", &given]).refused(1, "it is empty");
}

/// The table that docs/attestation.md has.
const DEMAND: &str = "
[gpu]
count = 1
drivers = [\"580.95.05\"]
vbios = [\"96.00.CF.00.02\"]
require_rims = true
require_ocsp = true
allow_ppcie = false
allow_nvlink_clear = false
";
