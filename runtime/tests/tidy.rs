//! The rules of docs/architecture.md and CONTRIBUTING.md that a program can check: who may know whom, where a package
//! lives, where `unsafe` stands, how long a file is, and what the enclave must never link.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a rule that cannot be read is a failed test"
)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Our crates, and which of the others each may depend on (tests and benches excepted).
const KNOWS: &[(&str, &[&str])] = &[
    ("protocol", &[]),
    ("attestation", &["protocol"]),
    ("kernels", &[]),
    ("models", &["kernels", "protocol"]),
    ("runtime", &["protocol", "attestation", "kernels", "models"]),
    ("client", &["protocol", "attestation", "models"]),
    ("cli", &["protocol", "attestation", "kernels", "models", "runtime", "client"]),
    ("benches", &["protocol", "attestation", "kernels", "models", "runtime", "client"]),
];

/// Packages with one home, or with the few homes that docs/architecture.md gives them.
const HOMES: &[(&str, &[&str])] = &[
    ("aes-gcm", &["protocol"]),
    ("hpke", &["protocol"]),
    ("blake3", &["protocol"]),
    ("x509-cert", &["attestation"]),
    ("dcap-qvl", &["attestation"]),
    ("sev", &["attestation"]),
    ("nvml-wrapper-sys", &["attestation"]),
    ("cudarc", &["kernels"]),
    ("tokenizers", &["models"]),
    ("minijinja", &["models"]),
    ("safetensors", &["models"]),
    ("criterion", &["benches"]),
    ("indicatif", &["cli"]),
    ("axum", &["cli"]),
    ("hyper", &["cli"]),
    ("redb", &["cli"]),
    ("rustls", &["cli"]),
    ("tokio", &["cli", "client"]),
];

/// What the enclave's own tree must not have: parsers of other people's text and certificates, async runtimes, candle.
const NEVER_IN_THE_ENCLAVE: &[&str] = &[
    "x509-cert",
    "der",
    "dcap-qvl",
    "sev",
    "serde",
    "serde_json",
    "toml",
    "tokenizers",
    "minijinja",
    "safetensors",
    "tokio",
    "axum",
    "hyper",
    "rustls",
    "redb",
    "candle-core",
    "candle-transformers",
    "regex",
    "fancy-regex",
];

/// The only places in which `unsafe` may stand: vector instructions and CUDA, and the calls of NVIDIA's management
/// library, which is C.
const UNSAFE: &[&str] = &["kernels/src", "attestation/src/attester/nvml.rs"];

const FILE_LINES_MAX: usize = 500;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("a workspace above").to_owned()
}

/// Every tracked kind of source file below the root, as (path from the root, text).
fn sources(extensions: &[&str]) -> Vec<(String, String)> {
    fn walk(folder: &Path, extensions: &[&str], found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if path.is_dir() {
                if !name.starts_with('.') && !["target", "corpus", "artifacts"].contains(&&*name) {
                    walk(&path, extensions, found);
                }
            } else if path.extension().is_some_and(|e| extensions.iter().any(|x| e == *x)) {
                found.push(path);
            }
        }
    }
    let mut found = Vec::new();
    walk(&root(), extensions, &mut found);
    found.sort();
    let relative = |path: &Path| path.strip_prefix(root()).unwrap().to_string_lossy().into_owned();
    found.iter().map(|path| (relative(path), fs::read_to_string(path).unwrap())).collect()
}

/// `[dependencies]` of a manifest: package names, as written.
fn dependencies(folder: &str) -> Vec<String> {
    let text = fs::read_to_string(root().join(folder).join("Cargo.toml")).unwrap();
    let mut names = Vec::new();
    let mut inside = false;
    for line in text.lines() {
        if line.starts_with('[') {
            inside = line == "[dependencies]";
        } else if inside
            && !line.trim_start().starts_with('#')
            && let Some(end) = line.find(['.', ' ', '='])
        {
            names.push(line[..end].to_owned());
        }
    }
    names
}

#[test]
fn crates_know_only_whom_they_may() {
    for (folder, allowed) in KNOWS {
        for name in dependencies(folder) {
            if let Some(other) = name.strip_prefix("chrysalis-") {
                assert!(allowed.contains(&other), "{folder} must not know {other}");
            }
        }
    }
}

#[test]
fn packages_stay_in_their_homes() {
    let used: BTreeMap<_, _> = KNOWS.iter().map(|(f, _)| (*f, dependencies(f))).collect();
    for (package, homes) in HOMES {
        for (folder, names) in &used {
            if names.iter().any(|name| name == package) {
                assert!(homes.contains(folder), "{package} lives in {homes:?}, not in {folder}");
            }
        }
    }
}

#[test]
fn the_enclave_links_no_parser_of_foreign_text_and_no_async_runtime() {
    let output = Command::new(env!("CARGO"))
        .args(["tree", "--locked", "-p", "chrysalis-runtime", "--features", "gpu", "-e", "normal"])
        .args(["--prefix", "none"])
        .args(["--format", "{p}"])
        .current_dir(root())
        .output()
        .expect("cargo tree");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let tree = String::from_utf8(output.stdout).unwrap();
    let names: Vec<_> = tree.lines().filter_map(|line| line.split(' ').next()).collect();
    assert!(names.contains(&"chrysalis-kernels"), "cargo tree listed nothing of ours");
    for never in NEVER_IN_THE_ENCLAVE {
        assert!(!names.contains(never), "{never} is in the enclave's dependency tree");
    }
}

#[test]
fn unsafe_stands_in_few_places_and_each_use_has_its_argument() {
    for (path, text) in sources(&["rs"]) {
        let mut argued = false;
        for (index, line) in text.lines().enumerate() {
            let code = line.trim_start();
            if code.starts_with("//") {
                argued |= code.contains("SAFETY:") || code.contains("# Safety");
                continue;
            }
            let uses = ["unsafe {", "unsafe fn", "unsafe impl"].iter().any(|u| code.contains(u));
            if uses && !path.ends_with("tests/tidy.rs") {
                let listed = UNSAFE.iter().any(|place| path.starts_with(place));
                assert!(listed, "{path}:{} uses unsafe", index + 1);
                assert!(argued, "{path}:{} has no SAFETY argument", index + 1);
            }
            // A comment argues for the statement that follows it, attributes included.
            argued = argued && !code.ends_with([';', '}']);
        }
    }
}

#[test]
fn files_say_what_they_are_for_and_fit_on_a_few_screens() {
    for (path, text) in sources(&["rs"]) {
        let first = text.lines().next().unwrap_or_default();
        assert!(first.starts_with("//!") || first.starts_with("#!["), "{path} opens without //!");
        let code = text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
        let lines = code.lines().count();
        assert!(lines <= FILE_LINES_MAX, "{path} has {lines} lines, {FILE_LINES_MAX} at most");
    }
}

#[test]
fn kernels_in_cuda_open_with_their_contract() {
    for (path, text) in sources(&["cu"]) {
        for word in ["// Launch:", "// Bound:", "// Meaning:", "// Source:"] {
            assert!(text.contains(word), "{path} lacks `{word}`");
        }
    }
}

#[test]
fn nothing_is_left_unfinished() {
    let words = ["FIXME", "TODO", "XXX"];
    for (path, text) in sources(&["rs", "cu", "sh", "toml", "py"]) {
        if path.ends_with("tests/tidy.rs") {
            continue;
        }
        for word in words {
            let hit = text
                .lines()
                .position(|line| line.split(|c: char| !c.is_alphanumeric()).any(|w| w == word));
            assert!(hit.is_none(), "{path}:{} has a {word}", hit.unwrap_or(0) + 1);
        }
        assert!(!text.contains("#[ignore"), "{path} ignores a test");
    }
}
