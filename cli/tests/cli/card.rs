//! `--device cuda`: on a driver library that runs the kernels on the host, and without any.

use std::path::Path;
use std::process::Command;

#[cfg(feature = "cuda-host")]
use serde_json::Value;

use crate::support::{Folder, Outcome, command};

/// Where there is a driver this has nothing to say.
#[test]
fn without_a_card_every_command_says_what_is_missing() {
    if cfg!(feature = "cuda") && Path::new("/proc/driver/nvidia").exists() {
        return;
    }
    let folder = Folder::new();
    let source = folder.tiny_llama();
    let package = folder.packed(&source, "tiny.chry", &["--open"]);
    let text = folder.write("text.txt", b"hello hello");
    let why = if cfg!(feature = "cuda") {
        "there is no NVIDIA driver on this machine"
    } else {
        "this build is without the feature cuda: build it with --features cuda"
    };
    for args in [
        &["bench", "--package", &package, "--device", "cuda"][..],
        &["eval", "--package", &package, "--text", &text, "--device", "cuda"],
        &["demo", "--device", "cuda"],
    ] {
        // Cargo lets tests find libraries that were built, and the driver's stand-in is one.
        outcome(command(args).env_remove("LD_LIBRARY_PATH")).refused(1, why);
    }
}

#[cfg(feature = "cuda-host")]
#[test]
fn a_package_is_scored_and_measured_on_a_card() {
    let folder = Folder::new();
    let source = folder.tiny_llama();
    let text = folder.write("text.txt", "A caterpillar seals itself away.\n".repeat(3).as_bytes());
    let package = folder.packed(&source, "tiny.chry", &[]);
    let eval = |device: &str, more: &[&str]| {
        let args = ["eval", "--package", &package, "--text", &text, "--device", device];
        outcome(with_driver(&mut command(&[&args[..], more].concat())))
    };
    let (processor, card) = (eval("cpu", &["--json"]).json(), eval("cuda", &["--json"]).json());
    assert!(card["device"].as_str().unwrap().contains("no card, emulated"), "{card}");
    let perplexity = |report: &Value| report["perplexity"].as_f64().unwrap();
    let ratio = perplexity(&card) / perplexity(&processor);
    assert!((ratio - 1.0).abs() < 1e-2, "{card} and {processor}");

    let args = ["bench", "--package", &package, "--device", "cuda", "--json", "--repeat", "1"];
    let args = [&args[..], &["--prompt", "5", "--generate", "6", "--batch", "1,3"]].concat();
    let report = outcome(with_driver(&mut command(&args))).json();
    for row in report["rows"].as_array().unwrap() {
        let crossings = &row["crossings_per_step"];
        for name in ["copies_in", "copies_out", "waits", "launches", "replays"] {
            assert_eq!(crossings[name], 1.0, "{name} of {row}");
        }
        assert_eq!(crossings["reservations"], 0.0, "{row}");
        assert!(row.get("decode_share_of_limit").is_none(), "of a card, by the machine's limits");
    }
    // What does not fit is said before anything runs.
    let args = ["eval", "--package", &package, "--text", &text, "--device", "cuda"];
    let mut small = command(&args);
    with_driver(&mut small).env("FAKE_CUDA_MEMORY", (513 << 20).to_string());
    outcome(&mut small).refused(1, "the device has no room for");
    let mut old = command(&args);
    with_driver(&mut old).env("FAKE_CUDA_CAPABILITY", "75");
    outcome(&mut old).refused(1, "has compute capability 7.5, and the kernels need 8.0 at least");

    let doctor = outcome(with_driver(&mut command(&["doctor", "--json"])));
    assert!(doctor.stdout.contains("no card, emulated, compute capability 9.0"), "{doctor:?}");
}

/// Finds the library that runs the kernels on the host, and 640 MiB of memory, most of it kept for the driver.
#[cfg(feature = "cuda-host")]
fn with_driver(command: &mut Command) -> &mut Command {
    command.env("LD_LIBRARY_PATH", chrysalis_kernels::cuda::fake_driver_folder());
    command.env("FAKE_CUDA_MEMORY", (640 << 20).to_string())
}

fn outcome(command: &mut Command) -> Outcome {
    command.output().unwrap().into()
}
