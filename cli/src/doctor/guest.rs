//! How closed the guest is (docs/threat-model.md, section 5), as far as its own files tell, and what serving needs of it.

use super::{Check, Root};

/// The socket to the host.
pub(super) fn vsock(root: Root<'_>) -> Check {
    let step = "vsock";
    if root.has("dev/vsock") {
        return Check::ok(step, "/dev/vsock is there");
    }
    let advice = "load vmw_vsock_virtio_transport (CONFIG_VIRTIO_VSOCKETS) and give the guest a CID \
                  (QEMU: -device vhost-vsock-pci,guest-cid=N); unix sockets work without";
    Check::missing(step, "no /dev/vsock", advice)
}

/// What is open that should be shut.
pub(super) fn closed(root: Root<'_>) -> Vec<Check> {
    vec![kernel(root), swap(root), network(root), smt(root), modules(root), lockdown(root)]
}

fn kernel(root: Root<'_>) -> Check {
    let step = "kernel";
    let release = root.text("proc/sys/kernel/osrelease").unwrap_or_default();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) if (major, minor) >= KERNEL_MIN => {
            Check::ok(step, release)
        }
        (Some(Ok(_)), Some(Ok(_))) => Check::weak(
            step,
            release,
            "from 6.9 on a confidential guest whose RDRAND fails stops instead of going on with bad randomness",
        ),
        _ => Check::missing(step, "no /proc/sys/kernel/osrelease", "mount /proc"),
    }
}

fn swap(root: Root<'_>) -> Check {
    let step = "swap";
    let used = root.text("proc/swaps").unwrap_or_default().lines().skip(1).count();
    if used == 0 {
        return Check::ok(step, "off");
    }
    Check::weak(
        step,
        format!("{used} in use"),
        "swapoff -a: keys and prompts would go to the host's disk",
    )
}

fn network(root: Root<'_>) -> Check {
    let step = "network";
    let devices: Vec<_> =
        root.names("sys/class/net").into_iter().filter(|name| name != "lo").collect();
    if devices.is_empty() {
        return Check::ok(step, "no device but the loopback");
    }
    let advice = "an enclave image needs none: vsock is the only way in and out";
    Check::weak(step, devices.join(", "), advice)
}

fn smt(root: Root<'_>) -> Check {
    let step = "SMT";
    match root.text("sys/devices/system/cpu/smt/active").as_deref() {
        Some("0") => Check::ok(step, "no sibling threads in this guest"),
        Some("1") => Check::weak(
            step,
            "active",
            "default policies refuse a report that allows SMT: switch it off in the host's firmware and in the guest policy",
        ),
        _ => Check::weak(
            step,
            "the kernel does not tell",
            "what counts is the report's guest policy",
        ),
    }
}

fn modules(root: Root<'_>) -> Check {
    let step = "kernel modules";
    match root.text("proc/sys/kernel/modules_disabled").as_deref() {
        Some("1") => Check::ok(step, "loading is disabled until the next boot"),
        None => Check::ok(step, "the kernel loads none"),
        Some(_) => Check::weak(
            step,
            "can still be loaded",
            "once all drivers are in: echo 1 > /proc/sys/kernel/modules_disabled",
        ),
    }
}

fn lockdown(root: Root<'_>) -> Check {
    let step = "lockdown";
    let state = root.text("sys/kernel/security/lockdown").unwrap_or_default();
    if state.contains("[confidentiality]") {
        return Check::ok(step, "confidentiality");
    }
    let found = state.split(['[', ']']).nth(1).unwrap_or("the kernel does not tell");
    Check::weak(step, found, "boot with lockdown=confidentiality")
}

/// Weights lie on huge pages where the system gives them.
pub(super) fn huge_pages(root: Root<'_>) -> Check {
    let step = "huge pages";
    let state = root.text("sys/kernel/mm/transparent_hugepage/enabled").unwrap_or_default();
    match state.split(['[', ']']).nth(1) {
        Some(mode @ ("always" | "madvise")) => Check::ok(step, mode),
        Some(mode) => Check::weak(
            step,
            mode,
            "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled: large weights are read faster",
        ),
        None => {
            Check::weak(step, "the kernel has none", "build it with CONFIG_TRANSPARENT_HUGEPAGE")
        }
    }
}

/// The first kernel that does not go on without hardware randomness in a confidential guest.
const KERNEL_MIN: (u32, u32) = (6, 9);
