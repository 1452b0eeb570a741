//! What this machine can attest: each step needs the one before.

use chrysalis_attestation::attester::tsm::Configfs;
use chrysalis_attestation::attester::{Choice, Interfaces};
use chrysalis_attestation::policy::{FloorTable, Floors};
use chrysalis_protocol::statement::Tee;

use super::{Check, Root};
use crate::hex;

/// The platform that can attest, and the steps to it.
pub(super) fn evidence(
    root: Root<'_>,
    fs: Box<dyn Configfs>,
) -> (Option<&'static str>, Vec<Check>) {
    let driver = driver(root.has("dev/sev-guest"), root.has("dev/tdx_guest"));
    let mut checks = vec![cpu(root), driver, configfs(root)];
    if !root.has(TSM) {
        return (None, checks);
    }
    let (can, check) = report(root, fs);
    checks.push(check);
    (can, checks)
}

/// Asks the platform for a report, as the enclave does before anything else: over zeros, so that nobody can use it.
fn report(root: Root<'_>, fs: Box<dyn Configfs>) -> (Option<&'static str>, Check) {
    let step = "a report";
    let asked = Interfaces::below(root.0).attester_by(Choice::Auto, fs);
    let asked = asked.and_then(|mut attester| {
        let digest = attester.launch_config_digest()?;
        Ok((attester.tee(), digest))
    });
    match asked {
        Ok((tee, digest)) => {
            let name = if tee == Tee::Tdx { "tdx" } else { "sev-snp" };
            let digest = hex::encode(&digest);
            (Some(name), Check::ok(step, format!("given by {name}; launch config digest {digest}")))
        }
        Err(error) => {
            let advice = "the enclave will fail in the same way: see the kernel's log (dmesg) for the driver's reason";
            (None, Check::missing(step, error.to_string(), advice))
        }
    }
}

/// How long the floors in this program hold: without them no SEV-SNP machine is accepted by it.
pub(super) fn floors(now: u64) -> Check {
    let step = "floors file";
    let later = "name a later one in the policy: [snp] floors, floors_signer (docs/attestation.md, \"Floors\")";
    let floors = match Floors::built_in() {
        Ok(floors) => floors,
        Err(error) => return Check::missing(step, error.to_string(), "this program is damaged"),
    };
    let FloorTable { version, expires, .. } = *floors.table();
    if let Err(error) = floors.holds(0, now) {
        return Check::missing(step, error.to_string(), later);
    }
    let found = format!("version {version}, for {} days more", (expires - now) / DAY);
    if expires - now < DAYS_NEAR * DAY {
        Check::weak(step, found, later)
    } else {
        Check::ok(step, found)
    }
}

fn cpu(root: Root<'_>) -> Check {
    let step = "CPU";
    let info = root.text("proc/cpuinfo").unwrap_or_default();
    let value = |key: &str| {
        let line = info.lines().find(|line| line.starts_with(key))?;
        line.split_once(':').map(|(_, value)| value.trim().to_owned())
    };
    let name = value("model name").unwrap_or_else(|| "unknown".to_owned());
    let flags = value("flags").unwrap_or_default();
    let has = |flag: &str| flags.split(' ').any(|other| other == flag);
    if has("tdx_guest") {
        return Check::ok(step, format!("{name}, a TDX guest"));
    }
    if !has("hypervisor") {
        let found = format!("{name}, not in a virtual machine");
        return Check::missing(
            step,
            found,
            "evidence comes from inside a confidential VM: start one on this host",
        );
    }
    match value("vendor_id").as_deref() {
        Some("AuthenticAMD" | "GenuineIntel") => {
            Check::ok(step, format!("{name}, in a virtual machine"))
        }
        _ => {
            Check::missing(step, name, "only AMD EPYC (SEV-SNP) and Intel Xeon (TDX) give evidence")
        }
    }
}

fn driver(snp: bool, tdx: bool) -> Check {
    let step = "guest driver";
    match (snp, tdx) {
        (true, _) => Check::ok(step, "/dev/sev-guest: an SEV-SNP guest"),
        (_, true) => Check::ok(step, "/dev/tdx_guest: a TDX guest"),
        _ => Check::missing(
            step,
            "neither /dev/sev-guest nor /dev/tdx_guest",
            "this is no confidential VM, or its kernel lacks the driver: CONFIG_SEV_GUEST (module sev-guest) on AMD, \
             CONFIG_TDX_GUEST_DRIVER (module tdx_guest) on Intel; QEMU starts one with -object sev-snp-guest or tdx-guest",
        ),
    }
}

fn configfs(root: Root<'_>) -> Check {
    let step = "reports";
    if root.has(TSM) {
        return Check::ok(step, "/sys/kernel/config/tsm/report is there");
    }
    if root.has("sys/kernel/config") {
        let advice = "the kernel lacks CONFIG_TSM_REPORTS (from 6.7 on), or its driver did not load: modprobe tsm";
        return Check::missing(step, "no /sys/kernel/config/tsm/report", advice);
    }
    let advice = "mount -t configfs none /sys/kernel/config (CONFIG_CONFIGFS_FS)";
    Check::missing(step, "configfs is not mounted", advice)
}

const TSM: &str = "sys/kernel/config/tsm/report";
const DAY: u64 = 86_400;
/// From then on the end is told as near.
const DAYS_NEAR: u64 = 90;

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::io;
    use std::path::{Path, PathBuf};

    use chrysalis_attestation::attester::Attester;
    use chrysalis_attestation::attester::simulated::Simulated;

    use super::super::State;
    use super::*;

    /// A kernel whose platform is the simulated one; it may have forgotten its driver.
    struct Kernel {
        platform: Simulated,
        provider: &'static [u8],
        entries: HashMap<PathBuf, (u64, [u8; 64])>,
    }

    impl Configfs for Kernel {
        fn make(&mut self, entry: &Path) -> io::Result<()> {
            self.entries.insert(entry.to_owned(), (0, [0; 64]));
            Ok(())
        }

        fn write(&mut self, attribute: &Path, bytes: &[u8]) -> io::Result<()> {
            let entry = self.entries.get_mut(attribute.parent().unwrap()).unwrap();
            *entry = (entry.0 + 1, bytes.try_into().unwrap());
            Ok(())
        }

        fn read(&mut self, attribute: &Path) -> io::Result<Vec<u8>> {
            let (generation, data) = self.entries[attribute.parent().unwrap()];
            match attribute.file_name().unwrap().to_str().unwrap() {
                "provider" => Ok(self.provider.to_vec()),
                "generation" => Ok(format!("{generation}\n").into_bytes()),
                "outblob" => Ok(self.platform.attest(&data).unwrap().report),
                _ => Err(io::ErrorKind::NotFound.into()),
            }
        }

        fn remove(&mut self, entry: &Path) -> io::Result<()> {
            self.entries.remove(entry);
            Ok(())
        }
    }

    #[test]
    fn only_a_report_that_was_given_says_that_a_machine_can_attest() {
        let folder = tempfile::tempdir().unwrap();
        let root = Root(folder.path());
        let kernel = |provider| {
            let platform = Simulated::new([0xAB; 32], [0; 48]).unwrap();
            Box::new(Kernel { platform, provider, entries: HashMap::new() })
        };
        let (can, checks) = evidence(root, kernel(b"sev_guest\n"));
        assert_eq!((can, checks.len()), (None, 3), "there is no interface");
        std::fs::create_dir_all(folder.path().join(TSM)).unwrap();
        let (can, checks) = evidence(root, kernel(b"sev_guest\n"));
        assert_eq!((can, checks[3].state), (Some("sev-snp"), State::Ok));
        assert!(checks[3].found.ends_with(&"ab".repeat(32)), "{:?}", checks[3]);
        let (can, checks) = evidence(root, kernel(b"other_guest\n"));
        assert_eq!((can, checks[3].state), (None, State::Missing));
        assert!(checks[3].found.contains("other_guest"), "{:?}", checks[3]);
    }

    #[test]
    fn the_end_of_the_floors_is_told_before_it_comes() {
        let end = Floors::built_in().unwrap().table().expires;
        assert_eq!(floors(end - 90 * DAY).state, State::Ok);
        assert_eq!(floors(end - 90 * DAY + 1).state, State::Weak);
        assert_eq!(floors(end).state, State::Weak);
        assert_eq!(floors(end + 1).state, State::Missing);
        // A clock that is not set.
        assert_eq!(floors(0).state, State::Missing);
    }
}
