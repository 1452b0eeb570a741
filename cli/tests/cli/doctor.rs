//! `chrysalis doctor`: each missing thing is named with what to do, and a whole machine is said to be whole.

use std::fs;

use serde_json::Value;

use super::support::{Folder, chrysalis};

/// Files of a machine, as a folder.
struct Machine(Folder);

impl Machine {
    fn bare() -> Self {
        Self(Folder::new())
    }

    /// A closed SEV-SNP guest.
    fn snp() -> Self {
        let machine = Self::bare();
        let flags =
            "vendor_id : AuthenticAMD\nmodel name : AMD EPYC 9554\nflags : fpu hypervisor\n";
        machine.file("proc/cpuinfo", flags);
        machine.file("dev/sev-guest", "");
        machine.file("dev/vsock", "");
        machine.folder("sys/kernel/config/tsm/report");
        machine.file("proc/sys/kernel/osrelease", "6.12.1-chrysalis\n");
        machine.file("proc/sys/kernel/modules_disabled", "1\n");
        machine.file("proc/swaps", "Filename Type Size Used Priority\n");
        machine.file("sys/devices/system/cpu/smt/active", "0\n");
        machine.file("sys/kernel/security/lockdown", "none integrity [confidentiality]\n");
        machine.file("sys/kernel/mm/transparent_hugepage/enabled", "always [madvise] never\n");
        machine.folder("sys/class/net/lo");
        machine
    }

    fn folder(&self, path: &str) {
        fs::create_dir_all(self.0.path(path)).unwrap();
    }

    fn file(&self, path: &str, text: &str) {
        let (folder, _) = path.rsplit_once('/').unwrap();
        self.folder(folder);
        self.0.write(path, text.as_bytes());
    }

    fn without(&self, path: &str) {
        let path = self.0.path(path);
        fs::remove_dir_all(&path).or_else(|_| fs::remove_file(&path)).unwrap();
    }

    fn report(&self) -> Value {
        chrysalis(&["doctor", "--root", &self.0.path(""), "--json"]).json()
    }

    /// State and advice of a step.
    fn step(&self, name: &str) -> (String, String) {
        let report = self.report();
        let parts = report["parts"].as_array().unwrap().iter();
        let checks = parts.flat_map(|part| part["checks"].as_array().unwrap());
        let check = checks.into_iter().find(|check| check["step"] == name).unwrap();
        let text = |key: &str| check[key].as_str().unwrap_or_default().to_owned();
        (text("state"), text("advice"))
    }
}

#[test]
fn a_closed_confidential_guest_lacks_nothing_but_a_kernel_that_answers() {
    let machine = Machine::snp();
    let report = machine.report();
    // A folder is no kernel: what it does not give is told, and that a report was not given.
    assert_eq!(report["can_attest"], Value::Null);
    for part in report["parts"].as_array().unwrap() {
        if part["name"] == "speed" || part["name"] == "evidence of GPUs" {
            continue;
        }
        for check in part["checks"].as_array().unwrap() {
            let expected = if check["step"] == "a report" { "missing" } else { "ok" };
            assert_eq!(check["state"], expected, "{check}");
        }
    }
    let text = chrysalis(&["doctor", "--root", &machine.0.path("")]);
    assert_eq!(text.code, Some(0));
    assert!(text.stdout.contains("provider: No such file"), "{}", text.stdout);
    assert!(text.stdout.contains("+ floors file: version 1"), "{}", text.stdout);
    let entries = fs::read_dir(machine.0.path("sys/kernel/config/tsm/report")).unwrap();
    assert_eq!(entries.count(), 0, "nothing is left behind");
}

#[test]
fn each_missing_step_to_evidence_says_what_to_do() {
    let machine = Machine::snp();
    machine.without("sys/kernel/config/tsm");
    assert_eq!(machine.report()["can_attest"], Value::Null);
    assert!(machine.step("reports").1.contains("CONFIG_TSM_REPORTS"));
    machine.without("sys/kernel/config");
    assert!(machine.step("reports").1.contains("mount -t configfs"));
    machine.without("dev/sev-guest");
    assert!(machine.step("guest driver").1.contains("CONFIG_SEV_GUEST"));
    machine.file("proc/cpuinfo", "vendor_id : AuthenticAMD\nmodel name : EPYC\nflags : fpu\n");
    assert!(machine.step("CPU").1.contains("start one on this host"));
    let bare = chrysalis(&["doctor", "--root", &Machine::bare().0.path("")]);
    assert_eq!(bare.code, Some(0));
    assert!(bare.stdout.contains("can attest nothing"), "{}", bare.stdout);
}

#[test]
fn what_is_open_in_a_guest_is_told() {
    let machine = Machine::snp();
    let opened = [
        ("proc/sys/kernel/osrelease", "6.8.0\n", "kernel"),
        ("proc/swaps", "Filename\n/dev/vda2 partition 1 0 -2\n", "swap"),
        ("sys/class/net/eth0/address", "02:00\n", "network"),
        ("sys/devices/system/cpu/smt/active", "1\n", "SMT"),
        ("proc/sys/kernel/modules_disabled", "0\n", "kernel modules"),
        ("sys/kernel/security/lockdown", "[none] integrity confidentiality\n", "lockdown"),
        ("sys/kernel/mm/transparent_hugepage/enabled", "always madvise [never]\n", "huge pages"),
    ];
    for (path, text, step) in opened {
        assert_eq!(machine.step(step).0, "ok", "{step}");
        machine.file(path, text);
        let (state, advice) = machine.step(step);
        assert_eq!(state, "weak", "{step}");
        assert!(!advice.is_empty(), "{step}");
    }
    machine.without("dev/vsock");
    assert_eq!(machine.step("vsock").0, "missing");
}

#[test]
fn a_machine_without_nvidias_library_is_told_in_a_line() {
    let machine = Machine::snp();
    let (state, advice) = machine.step("management library");
    assert_eq!(state, "missing");
    assert!(advice.contains("--nvml"), "{advice}");
    // Below another root it is looked at, and not run: it is whose that root is.
    let library = "usr/lib/x86_64-linux-gnu/libnvidia-ml.so.1";
    machine.file(library, "no library");
    assert_eq!(machine.step("management library").0, "weak");
    let named = chrysalis(&["doctor", "--nvml", &machine.0.path(library)]).stdout;
    let expected = if cfg!(feature = "gpu") { "modprobe nvidia" } else { "--features gpu" };
    assert!(named.contains(expected), "{named}");
}
