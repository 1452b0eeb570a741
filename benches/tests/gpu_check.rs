//! `gpu-check` itself: its checks pass on devices that are known to be right, what cannot run is said and is no success, and
//! every share is that of the limit which binds.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a report that is not there is a failed test"
)]

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

#[test]
fn every_check_passes_on_the_cpu() {
    all_pass("cpu", &PARTS);
}

#[cfg(feature = "cuda-host")]
#[test]
fn every_check_passes_in_the_emulator() {
    all_pass("emulated", &PARTS);
}

#[cfg(all(feature = "cuda-host", not(feature = "cuda")))]
#[test]
fn what_concerns_the_driver_passes_over_a_fake_one() {
    all_pass("fake", &["device", "memory", "bench", "load"]);
}

const PARTS: [&str; 8] =
    ["device", "kernels", "logits", "invariance", "memory", "bench", "load", "sanitizer"];

fn all_pass(device: &str, parts: &[&str]) {
    let (folder, only) = (tempfile::tempdir().unwrap(), parts.join(","));
    let output =
        check(folder.path(), &["--device", device, "--tiny", "--seconds", "3000", "--only", &only]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}");
    let results = results(folder.path());
    assert_eq!(results["complete"], true);
    let checks = results["checks"].as_array().unwrap();
    for check in checks {
        let name = check["check"].as_str().unwrap();
        // Sanitizers are for cards.
        let state = if name.starts_with("sanitizer/") { "skipped" } else { "passed" };
        assert_eq!(check["state"], state, "{check}");
        assert!(state == "skipped" || !check["rows"].as_array().unwrap().is_empty(), "{name}");
        assert!(text.contains(name));
    }
    for part in parts {
        let begins = |check: &Value| check["check"].as_str().unwrap().starts_with(part);
        assert!(checks.iter().any(begins), "{part} is not there");
    }
    shares_are_of_the_limit_that_binds(checks);
}

fn shares_are_of_the_limit_that_binds(checks: &[Value]) {
    let rows = |check: &str| {
        let found = checks.iter().find(|found| found["check"] == check).unwrap();
        found["rows"].as_array().unwrap().clone()
    };
    let limit = |index: usize| rows("bench/limits")[index]["value"].as_f64().unwrap();
    let (copy, matrix) = (1e9 * limit(0), 1e12 * limit(1));
    let mut shares = 0;
    for row in rows("bench/tiny-BF16").into_iter().filter(|row| row["work"].is_object()) {
        let work = |field: &str| row["work"][field].as_f64().unwrap();
        let (memory, arithmetic) = (work("bytes") / copy, work("operations") / matrix);
        let share = row["share"].as_f64().unwrap() * work("seconds");
        assert!((share / memory.max(arithmetic) - 1.0).abs() < 1e-9, "{row}");
        assert_eq!(row["detail"].as_str().unwrap().contains("[memory]"), memory >= arithmetic);
        shares += 1;
    }
    assert!(shares >= 3, "{shares} shares");
}

#[test]
fn a_check_that_cannot_run_costs_no_other_and_the_exit_status_tells() {
    let folder = tempfile::tempdir().unwrap();
    // Its data is missing.
    let output = check(
        folder.path(),
        &["--device", "cpu", "--quick", "--only", "device,logits", "--seconds", "4"],
    );
    assert_eq!(output.status.code(), Some(1));
    let results = results(folder.path());
    let [facts, real] = [0, 1].map(|index| &results["checks"][index]);
    assert_eq!((&facts["check"], &facts["state"]), (&"device/facts".into(), &"passed".into()));
    assert_eq!((&real["check"], &real["state"]), (&"logits/real-model".into(), &"crashed".into()));
    assert!(real["error"].as_str().unwrap().contains("expected.bin"), "{real}");
    assert!(results["checks"].as_array().unwrap().len() > 2);
}

#[test]
fn no_time_left_is_said_and_is_no_success() {
    let folder = tempfile::tempdir().unwrap();
    let output =
        check(folder.path(), &["--device", "cpu", "--tiny", "--only", "memory", "--seconds", "1"]);
    assert_eq!(output.status.code(), Some(1));
    for check in results(folder.path())["checks"].as_array().unwrap() {
        assert_eq!((&check["state"], &check["error"]), (&"skipped".into(), &"out of time".into()));
    }
}

#[test]
fn what_it_does_not_know_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    for (arguments, said) in [
        (&["--device", "abacus"][..], "no device abacus"),
        (&["--only", "kernels,beauty"], "no part beauty"),
        (
            &["--device", "cpu", "--only", "bench/nothing"],
            "bench/nothing of this size and device; of bench there are bench/limits, ",
        ),
        (&["--fast"], "--fast is not an option"),
        (&["--seconds"], "--seconds needs a value"),
        (&["--device", "cpu", "--check", "kernels/none"], "no check kernels/none"),
    ] {
        let output = check(folder.path(), arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(error.contains(said), "{arguments:?}: {error}");
    }
    assert!(
        String::from_utf8_lossy(&check(folder.path(), &["--help"]).stdout).contains("--only PARTS")
    );
}

fn check(folder: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_gpu-check"))
        .args(arguments)
        .current_dir(folder)
        .output()
        .unwrap()
}

fn results(folder: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(folder.join("results.json")).unwrap()).unwrap()
}
