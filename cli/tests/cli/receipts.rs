//! `chrysalis receipts`: what a host presents is judged by the evidence of its boot.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use serde_json::Value;

use chrysalis_protocol::hex;

use super::support::{Folder, Outcome, chrysalis, command};
use super::verify::Served;

/// An enclave whose host kept two receipts of a payer with a voucher and one of somebody without.
struct Paid {
    served: Served,
    tag: String,
    receipts: Vec<u8>,
}

impl Paid {
    fn new() -> Self {
        let served = Served::start();
        let [voucher, kept] = ["me.voucher", "kept"].map(|name| served.folder.path(name));
        let made = chrysalis(&["receipts", "voucher", &voucher, "--json"]).json();
        assert_eq!(made["made"], true);
        assert_eq!(fs::metadata(&voucher).unwrap().permissions().mode() & 0o777, 0o600);
        let tag = made["payer_tag"].as_str().unwrap().to_owned();
        assert_eq!(chrysalis(&["receipts", "voucher", &voucher]).stdout, format!("{tag}\n"));
        for voucher in [Some(&voucher), Some(&voucher), None] {
            let policy = served.policy();
            let mut args = vec!["ask", "hello", "--raw", "--max-tokens", "3", "--json"];
            args.extend(["--connect", &served.address, "--policy", &policy, "--receipts", &kept]);
            if let Some(voucher) = voucher {
                args.extend(["--voucher", voucher, "--max-age", "epoch"]);
            }
            chrysalis(&args).json();
        }
        let evidence = served.folder.path("boot.evidence");
        let saved = served.verify(&["--max-age", "epoch", "--save", &evidence]);
        assert_eq!(saved.code, Some(0), "{}", saved.stderr);
        let receipts = fs::read(&kept).unwrap();
        assert_eq!(receipts.len(), 3 * 320);
        Self { served, tag, receipts }
    }

    /// Judges changed receipts.
    fn judge(&self, receipts: &[u8], more: &[&str]) -> Outcome {
        let file = self.served.folder.write("presented", receipts);
        let evidence = self.served.folder.path("boot.evidence");
        let policy = self.served.policy();
        let args = ["receipts", "verify", &file, "--evidence", &evidence, "--policy", &policy];
        chrysalis(&[&args[..], more].concat())
    }

    #[track_caller]
    fn finds(&self, receipts: &[u8], more: &[&str], expected: &[(u64, &str)]) {
        let outcome = self.judge(receipts, &[more, &["--json"]].concat());
        outcome.refused(3, "findings");
        let report: Value = serde_json::from_str(&outcome.stdout).unwrap();
        let findings = report["findings"].as_array().unwrap().iter();
        let found: Vec<_> = findings
            .map(|finding| {
                (finding["receipt"].as_u64().unwrap(), finding["code"].as_str().unwrap())
            })
            .collect();
        assert_eq!(found, expected);
    }
}

#[test]
fn receipts_of_a_real_enclave_add_up_and_every_change_is_found() {
    let paid = Paid::new();
    let honest = paid.receipts.clone();
    let report = paid.judge(&honest, &["--json"]).json();
    assert_eq!(report["receipts"], 3);
    assert_eq!(report["payers"].as_array().unwrap().len(), 2);
    let payer = |report: &Value, tag: &str| {
        let payers = report["payers"].as_array().unwrap();
        payers.iter().find(|payer| payer["payer_tag"] == tag).unwrap().clone()
    };
    let mine = payer(&report, &paid.tag);
    assert_eq!((&mine["requests"], &mine["prompt_units"]), (&2.into(), &128.into()));
    let text = paid.judge(&honest, &[]).stdout;
    assert!(text.contains("no voucher") && text.contains("not checked"), "{text}");

    let list = format!("# escrowed\n{} alice\n", paid.tag);
    let list = paid.served.folder.write("list", list.as_bytes());
    paid.finds(&honest, &["--vouchers", &list], &[(3, "receipt.payer")]);
    let text = paid.judge(&honest[..640], &["--vouchers", &list]);
    assert_eq!(text.code, Some(0), "{}", text.stderr);
    assert!(text.stdout.contains("alice") && text.stdout.contains("0 findings"));

    let [first, second, third] = [0, 320, 640].map(|at| &honest[at..at + 320]);
    paid.finds(&[first, third].concat(), &[], &[(2, "chain.gap")]);
    assert_eq!(paid.judge(&[first, third].concat(), &["--partial"]).code, Some(0));
    paid.finds(&[second, first, third].concat(), &[], &[(2, "chain.order")]);
    paid.finds(&[first, second, third, second].concat(), &[], &[(4, "receipt.repeated")]);
    paid.finds(&honest[..700], &[], &[(3, "receipt.cut")]);
    for at in [0, 9, 60, 100, 130, 170, 211, 230, 300] {
        let mut altered = honest.clone();
        altered[640 + at] ^= 1;
        paid.finds(&altered, &[], &[(3, "receipt.forged")]);
    }
    let mut of_another_boot = honest.clone();
    of_another_boot[640 + 20] ^= 1;
    paid.finds(&of_another_boot, &[], &[(3, "receipt.boot")]);

    // Evidence that was altered, or that the policy does not accept, judges nothing.
    let evidence = paid.served.folder.path("boot.evidence");
    let mut bytes = fs::read(&evidence).unwrap();
    bytes[200] ^= 1;
    fs::write(&evidence, bytes).unwrap();
    paid.judge(&honest, &[]).refused(3, "was not accepted");
}

/// A relay, until the test ends.
struct Relay(std::process::Child);

impl Drop for Relay {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

#[test]
fn a_host_keeps_the_receipts_of_what_it_passes_on() {
    let served = Served::start();
    let kept = served.folder.path("kept");
    let listen = format!("unix:{}", served.folder.path("relay"));
    let args = ["relay", "--connect", &served.address, "--listen", &listen, "--json"];
    let args = [&args[..], &["--receipts", &kept]].concat();
    let mut child = command(&args).stdout(std::process::Stdio::piped()).spawn().unwrap();
    let mut said = [0; 1];
    std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut said).unwrap();
    let _relay = Relay(child);
    let policy = served.policy();
    let mut own = Vec::new();
    for _ in 0..2 {
        let args = ["ask", "hello", "--raw", "--max-tokens", "3", "--json"];
        let asked = chrysalis(&[&args[..], &["--connect", &listen, "--policy", &policy]].concat());
        own.push(asked.json()["receipt"].as_str().unwrap().to_owned());
    }
    // One file for each connection, and the same receipts that the clients have.
    let mut files: Vec<_> =
        fs::read_dir(&kept).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let hosts: Vec<String> =
        files.iter().map(|path| hex::encode(&fs::read(path).unwrap())).collect();
    assert_eq!(hosts, own);
    let evidence = served.folder.path("boot.evidence");
    served.verify(&["--max-age", "epoch", "--save", &evidence]);
    let files: Vec<&str> = files.iter().map(|path| path.to_str().unwrap()).collect();
    let args = ["receipts", "verify", "--evidence", &evidence, "--policy", &policy, "--json"];
    let report = chrysalis(&[&args[..], &files].concat()).json();
    assert_eq!((&report["receipts"], &report["findings_unlisted"]), (&2.into(), &0.into()));
    chrysalis(&["relay", "--connect", &served.address, "--listen", "vsock:2:1"])
        .refused(2, "--listen takes unix:PATH");
    chrysalis(&["relay", "--connect", "x", "--listen", &listen]).refused(2, "is no address");
}

#[test]
fn receipts_need_files_evidence_and_lists_that_are_what_they_say() {
    let folder = Folder::new();
    let (file, empty) = (folder.write("r", &[0; 320]), folder.write("e", b""));
    chrysalis(&["receipts", "verify"]).refused(2, "FILE");
    chrysalis(&["receipts", "verify", &file, "--policy", "p"]).refused(2, "--evidence");
    let args = ["receipts", "verify", &file, "--policy", "none", "--evidence", &file];
    chrysalis(&args).refused(1, "none: ");
    let list = folder.write("list", b"0123 short");
    chrysalis(&[&args[..], &["--vouchers", &list]].concat()).refused(1, "line 1 is no payer tag");
    chrysalis(&["receipts", "voucher", &empty]).refused(1, "a voucher: 1 to 256 bytes");
}
