//! What this machine can attest: each step needs the one before.

use super::{Check, Root};

/// The platform that can attest, and the steps to it.
pub(super) fn evidence(root: Root<'_>) -> (Option<&'static str>, Vec<Check>) {
    let mut checks = Vec::new();
    let snp = root.has("dev/sev-guest");
    let tdx = root.has("dev/tdx_guest");
    checks.push(cpu(root));
    checks.push(driver(snp, tdx));
    checks.push(configfs(root));
    let can = match (snp, tdx, root.has(TSM)) {
        (true, _, true) => Some("sev-snp"),
        (_, true, true) => Some("tdx"),
        _ => None,
    };
    (can, checks)
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
