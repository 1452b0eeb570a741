//! The state of an authentic platform: rules 6 to 10 of docs/threat-model.md, "Evidence".

use thiserror::Error;

use super::AppraisalPolicy;
use super::file::hex;
use crate::report::guest_policy as guest;
use crate::report::platform_info as machine;
use crate::report::{Firmware, Product, Report, SigningKey, Tcb};
use crate::verifier::VerifiedReport;

/// Why an authentic platform is not good enough.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
#[non_exhaustive]
pub enum PlatformError {
    /// A product that the policy does not accept.
    #[error("{product} is refused: its host can break its root of trust (MilanLaunchy, BadFuse)")]
    Product {
        /// The product.
        product: Product,
    },
    /// A key loaned to a cloud provider that the policy does not accept.
    #[error("signed by a key loaned to {provider:?}, which the policy does not list")]
    LoanedKey {
        /// The provider.
        provider: String,
    },
    /// Patch levels are not ordered reported <= committed <= current.
    #[error("{lower} is {lower_tcb}, beyond {upper}: {upper_tcb}")]
    TcbOrder {
        /// The field that has to be lower.
        lower: &'static str,
        /// Its value.
        lower_tcb: Tcb,
        /// The field that has to be higher.
        upper: &'static str,
        /// Its value.
        upper_tcb: Tcb,
    },
    /// The firmware that runs can still be rolled back.
    #[error("provisional firmware: committed is {committed}, current is {current}")]
    Provisional {
        /// `COMMITTED_TCB`.
        committed: Tcb,
        /// `CURRENT_TCB`.
        current: Tcb,
    },
    /// Patch levels below the floor.
    #[error("{field} is {found}, below the floor: {floor}")]
    TcbFloor {
        /// The report's field.
        field: &'static str,
        /// Its value.
        found: Tcb,
        /// The floor.
        floor: Tcb,
    },
    /// A bit of the guest policy or the platform information is not as demanded.
    #[error("{rule}: {field} is {value:#x}")]
    Bit {
        /// The stable name of the refusal.
        code: &'static str,
        /// What is demanded.
        rule: &'static str,
        /// The report's field.
        field: &'static str,
        /// Its value.
        value: u64,
    },
    /// The report was asked for at another privilege level.
    #[error("vmpl is {found}, not 0")]
    Vmpl {
        /// The level.
        found: u32,
    },
    /// The guest has a migration agent.
    #[error("report_id_ma is not all ones: the guest has a migration agent")]
    MigrationAgent,
    /// The launch measurement is not among the policy's.
    #[error("measurement {} is not among the policy's {count}", hex(found))]
    Measurement {
        /// `MEASUREMENT`.
        found: [u8; 48],
        /// How many the policy has.
        count: usize,
    },
    /// The host launched the guest with another configuration than the statement names.
    #[error("host_data is {}, the statement's launch_config_digest {}", hex(found), hex(expected))]
    HostData {
        /// `HOST_DATA`.
        found: [u8; 32],
        /// The statement's digest.
        expected: [u8; 32],
    },
    /// Mitigations that the policy requires are missing.
    #[error("{field} is {found:#x}, not a superset of {required:#x}")]
    Mitigations {
        /// The report's field.
        field: &'static str,
        /// Its value.
        found: u64,
        /// The policy's mask.
        required: u64,
    },
}

impl PlatformError {
    /// The stable name of this refusal.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Product { .. } => "platform.product",
            Self::LoanedKey { .. } => "platform.loaned_key",
            Self::TcbOrder { .. } => "platform.tcb_order",
            Self::Provisional { .. } => "platform.provisional_firmware",
            Self::TcbFloor { .. } => "platform.tcb_floor",
            Self::Bit { code, .. } => code,
            Self::Vmpl { .. } => "platform.vmpl",
            Self::MigrationAgent => "platform.migration_agent",
            Self::Measurement { .. } => "platform.measurement",
            Self::HostData { .. } => "platform.host_data",
            Self::Mitigations { .. } => "platform.mitigations",
        }
    }
}

/// Applies the rules, in order, to an authentic report whose host data must be `host_data`.
pub(super) fn appraise(
    policy: &AppraisalPolicy,
    verified: &VerifiedReport,
    host_data: &[u8; 32],
) -> Result<(), PlatformError> {
    let report = verified.report();
    let product = verified.product();

    // 2. and 3. Products and keys that are authentic, but not accepted.
    if product == Product::Milan && !policy.dangerous.allow_milan {
        return Err(PlatformError::Product { product });
    }
    if report.signing_key == SigningKey::Vlek {
        let provider = verified.csp_id().unwrap_or_default().to_owned();
        if !policy.snp.loaned_key_providers.contains(&provider) {
            return Err(PlatformError::LoanedKey { provider });
        }
    }

    // 6. REPORTED <= COMMITTED <= CURRENT; COMMITTED = CURRENT; REPORTED and LAUNCH >= floor.
    tcb_order(report)?;
    let floors = FLOORS.iter().chain(&policy.snp.tcb_floors);
    for &(_, floor) in floors.filter(|(of, _)| *of == product) {
        for (field, found) in
            [("reported_tcb", report.reported_tcb), ("launch_tcb", report.launch_tcb)]
        {
            if !found.at_least(floor) {
                return Err(PlatformError::TcbFloor { field, found, floor });
            }
        }
    }

    // 7. What the guest's owner allowed. 8. The state of the machine.
    bits(policy, report, product)?;

    // 9. Highest privilege, no migration agent, a known image, launched as the statement says.
    if report.vmpl != 0 {
        return Err(PlatformError::Vmpl { found: report.vmpl });
    }
    if report.report_id_ma != [0xFF; 32] {
        return Err(PlatformError::MigrationAgent);
    }
    if !policy.measurements.contains(&report.measurement) {
        let count = policy.measurements.len();
        return Err(PlatformError::Measurement { found: report.measurement, count });
    }
    if report.host_data != *host_data {
        return Err(PlatformError::HostData { found: report.host_data, expected: *host_data });
    }

    // 10. The required mitigations, at launch and now.
    let required = policy.snp.required_mitigations;
    for (field, found) in [
        ("launch_mit_vector", report.launch_mitigations),
        ("current_mit_vector", report.current_mitigations),
    ] {
        if found & required != required {
            return Err(PlatformError::Mitigations { field, found, required });
        }
    }
    Ok(())
}

fn tcb_order(report: &Report) -> Result<(), PlatformError> {
    let reported = ("reported_tcb", report.reported_tcb);
    let committed = ("committed_tcb", report.committed_tcb);
    let current = ("current_tcb", report.current_tcb);
    for ((lower, lower_tcb), (upper, upper_tcb)) in [(reported, committed), (committed, current)] {
        if !upper_tcb.at_least(lower_tcb) {
            return Err(PlatformError::TcbOrder { lower, lower_tcb, upper, upper_tcb });
        }
    }
    if report.committed_tcb != report.current_tcb
        || report.committed_firmware != report.current_firmware
    {
        let (committed, current) = (report.committed_tcb, report.current_tcb);
        return Err(PlatformError::Provisional { committed, current });
    }
    Ok(())
}

/// Rules 7 and 8, each bit with its own name.
fn bits(policy: &AppraisalPolicy, report: &Report, product: Product) -> Result<(), PlatformError> {
    let applies = |when| match when {
        When::Always => true,
        When::NoSmt => !policy.dangerous.allow_smt,
        When::Xts => product != Product::Milan,
        When::Hiding => product == Product::Turin,
        When::PageSwap => report.current_firmware >= PAGE_SWAP_FIRMWARE,
    };
    let fields = [
        ("policy", report.policy, GUEST_RULES),
        ("platform_info", report.platform_info, MACHINE_RULES),
    ];
    for (field, value, rules) in fields {
        for &(when, mask, set, code, rule) in rules {
            if applies(when) && (value & mask != 0) != set {
                return Err(PlatformError::Bit { code, rule, field, value });
            }
        }
    }
    Ok(())
}

/// When a rule applies.
#[derive(Clone, Copy)]
enum When {
    Always,
    /// Unless the policy allows SMT.
    NoSmt,
    /// Where the product has AES-256-XTS.
    Xts,
    /// Where the product can hide ciphertext.
    Hiding,
    /// Where the firmware can forbid page swaps.
    PageSwap,
}

/// When it applies; the bits; whether one of them has to be set, or none; code; the rule in words.
type Rule = (When, u64, bool, &'static str, &'static str);

/// Rule 7.
#[rustfmt::skip]
const GUEST_RULES: &[Rule] = &[
    (When::Always, !guest::KNOWN, false, "guest_policy.unknown", "no unknown bit"),
    (When::Always, guest::RESERVED_ONE, true, "guest_policy.reserved_one", "bit 17 is one"),
    (When::Always, guest::DEBUG, false, "guest_policy.debug", "no debugging by the host"),
    (When::Always, guest::MIGRATE_MA, false, "guest_policy.migrate_ma", "no migration agent"),
    (When::NoSmt, guest::SMT, false, "guest_policy.smt", "no SMT (StackWarp, cache attacks)"),
    (When::Always, guest::CXL_ALLOW, false, "guest_policy.cxl", "no CXL"),
    (When::Xts, guest::MEM_AES_256_XTS, true, "guest_policy.aes_256_xts", "AES-256-XTS memory"),
    (When::Always, guest::RAPL_DIS, true, "guest_policy.rapl", "power readings off"),
    (When::Hiding, guest::CIPHERTEXT_HIDING, true, "guest_policy.ciphertext", "ciphertext hidden"),
    (When::PageSwap, guest::PAGE_SWAP_DISABLE, true, "guest_policy.page_swap", "no page swaps"),
];

/// Rule 8.
#[rustfmt::skip]
const MACHINE_RULES: &[Rule] = &[
    (When::Always, !machine::KNOWN, false, "platform_info.unknown", "no unknown bit"),
    (When::NoSmt, machine::SMT, false, "platform_info.smt", "SMT off"),
    (When::Always, machine::ECC, true, "platform_info.ecc", "ECC memory"),
    (When::Always, machine::RAPL_DIS, true, "platform_info.rapl", "power readings off"),
    (When::Hiding, machine::CIPHERTEXT_HIDING, true, "platform_info.ciphertext", "ciphertext hidden"),
    (When::Always, machine::ALIAS_CHECK_COMPLETE, true, "platform_info.alias", "no aliases (BadRAM)"),
];

/// The firmware that brought `PAGE_SWAP_DISABLE` (Heracles).
const PAGE_SWAP_FIRMWARE: Firmware = Firmware { major: 1, minor: 58, build: 0 };

/// Patch levels below which nothing is accepted. AMD-SB-3019 (EntrySign, CVE-2024-56161): SNP
/// patch level 0x17 on Genoa, 0x18 on Milan.
const FLOORS: [(Product, Tcb); 2] = [
    (Product::Milan, Tcb { fmc: None, bootloader: 0, tee: 0, snp: 0x18, microcode: 0 }),
    (Product::Genoa, Tcb { fmc: None, bootloader: 0, tee: 0, snp: 0x17, microcode: 0 }),
];
