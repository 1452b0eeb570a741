//! `chrysalis verify`: an enclave's evidence, kept, and judged again without the enclave.

use std::fs;
use std::process::{Child, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use super::support::{Folder, chrysalis, command};

/// A tiny model, served until the test ends.
pub(crate) struct Served {
    pub(crate) folder: Folder,
    pub(crate) address: String,
    enclave: Child,
}

impl Served {
    pub(crate) fn start() -> Self {
        Self::start_with(&[])
    }

    /// Until it is accepted, or refused by the policy.
    pub(crate) fn start_with(more: &[&str]) -> Self {
        let folder = Folder::new();
        let source = folder.tiny_llama();
        let package = folder.packed(&source, "tiny.chry", &["--open"]);
        let socket = folder.path("enclave.sock");
        let address = format!("unix:{socket}");
        let args = ["serve", "--package", &package, "--listen", &address];
        let args = [&args[..], more].concat();
        let enclave = command(&args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let served = Self { folder, address, enclave };
        let start = Instant::now();
        while !matches!(served.verify(&[]).code, Some(0 | 3)) {
            assert!(start.elapsed() < Duration::from_secs(60), "{:?}", served.verify(&[]));
            thread::sleep(Duration::from_millis(50));
        }
        served
    }

    pub(crate) fn policy(&self) -> String {
        self.folder.path("tiny.policy.toml")
    }

    pub(crate) fn verify(&self, more: &[&str]) -> super::support::Outcome {
        let args = ["verify", "--connect", &self.address, "--policy", &self.policy()];
        chrysalis(&[&args[..], more].concat())
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.enclave.kill().unwrap();
        self.enclave.wait().unwrap();
    }
}

#[test]
fn saved_evidence_is_judged_again_offline() {
    let served = Served::start();
    let file = served.folder.path("evidence.bin");
    let online = served.verify(&["--save", &file, "--json"]);
    let told = online.stderr.clone();
    let online = online.json();
    let nonce = online["challenge"]["nonce"].as_str().unwrap().to_owned();
    let at = online["challenge"]["unix_time"].to_string();
    // A simulated platform passes by this policy, and nothing is claimed of it.
    assert_eq!(online["ear"]["submods"]["cpu"]["ear.status"], "none");
    assert_eq!(online["ear"]["submods"]["cpu"]["ear.trustworthiness-vector"]["hardware"], 0);
    assert_eq!(online["eat"]["eat_nonce"].as_str().unwrap().len(), 43);
    assert_eq!(online["eat"]["measurements"][2]["name"], "model");
    assert!(told.contains(&format!("--nonce {nonce} --at {at}")), "{told}");

    let policy = served.policy();
    let judge = |more: &[&str]| {
        chrysalis(&[&["verify", "--evidence", &file, "--policy", &policy][..], more].concat())
    };
    let again = judge(&["--nonce", &nonce, "--at", &at, "--json"]).json();
    assert_eq!(again, online);
    assert!(judge(&["--nonce", &nonce]).stdout.contains("over, this challenge"));

    judge(&[]).refused(2, "give the challenge");
    judge(&["--nonce", "00"]).refused(2, "64 hexadecimal digits");
    judge(&["--nonce", &"0".repeat(64)]).refused(3, "not over this challenge");
    // Without a challenge only a policy that asks for no freshness accepts it, and that is said.
    let text = fs::read_to_string(&policy).unwrap();
    let text = text.replace("max_age = \"fresh\"", "max_age = \"epoch\"");
    fs::write(&policy, text).unwrap();
    let outcome = judge(&[]);
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    assert!(outcome.stdout.contains("- Freshness: "), "{}", outcome.stdout);

    let mut altered = fs::read(&file).unwrap();
    altered[300] ^= 1;
    fs::write(&file, altered).unwrap();
    assert_eq!(judge(&[]).code, Some(3));
}

#[test]
fn either_an_enclave_or_a_file_is_verified() {
    let outcome = chrysalis(&["verify", "--policy", "p.toml"]);
    outcome.refused(2, "--connect");
    let args = ["verify", "--policy", "p", "--evidence", "e", "--connect", "unix:s"];
    chrysalis(&args).refused(2, "cannot be used with");
}

#[test]
fn files_complete_the_evidence_and_nothing_else_is_taken_from_them() {
    let served = Served::start();
    let endorsed = |path: &str| served.verify(&["--endorsements", path]);
    let genuine = include_bytes!("../../../attestation/src/roots/simulated/vcek.der");
    let certificate = served.folder.write("vcek.der", genuine);
    assert_eq!(endorsed(&certificate).code, Some(0), "{}", endorsed(&certificate).stderr);
    let other = served.folder.write("other.der", b"no certificate");
    endorsed(&other).refused(3, "DER");
    let text = pem(genuine);
    let certificate = served.folder.write("vcek.pem", text.as_bytes());
    assert_eq!(endorsed(&certificate).code, Some(0), "{}", endorsed(&certificate).stderr);
    let two = served.folder.write("two.pem", text.repeat(2).as_bytes());
    endorsed(&two).refused(1, "2 certificates, not one");
    let bare = served.folder.write("bare.pem", genuine);
    endorsed(&bare).refused(1, "not PEM");

    let nowhere = served.folder.path("nowhere.der");
    endorsed(&nowhere).refused(1, "nowhere.der");
    let unknown = served.folder.write("vcek.txt", genuine);
    endorsed(&unknown).refused(1, "neither *.der");
    let json = served.folder.write("collateral.json", b"{}");
    endorsed(&json).refused(1, "the collateral's JSON");
    let section = served.folder.write("collateral.tdx", b"CHRY-TC1");
    endorsed(&section).refused(1, "the input ends inside a field");
    let folder = served.folder.path("certificates");
    fs::create_dir(&folder).unwrap();
    endorsed(&folder).refused(1, "neither *.der");
    fs::write(format!("{folder}/vcek.der"), genuine).unwrap();
    fs::write(format!("{folder}/readme.txt"), "not looked at").unwrap();
    assert_eq!(endorsed(&folder).code, Some(0));
    fs::write(format!("{folder}/vlek.der"), genuine).unwrap();
    endorsed(&folder).refused(1, "another file of this kind");
}

/// A certificate as tools print it.
fn pem(der: &[u8]) -> String {
    const SYMBOLS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let bits: Vec<u8> =
        der.iter().flat_map(|byte| (0..8).rev().map(move |at| byte >> at & 1)).collect();
    let number =
        |bits: &[u8]| bits.iter().chain(&[0; 6]).take(6).fold(0, |all, bit| all << 1 | bit);
    let mut base64: String =
        bits.chunks(6).map(|bits| char::from(SYMBOLS[usize::from(number(bits))])).collect();
    base64.push_str(["", "==", "="][der.len() % 3]);
    let lines: Vec<_> = base64.as_bytes().chunks(64).map(String::from_utf8_lossy).collect();
    format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"))
}
