//! The state of an authentic platform: rules 6 to 10 of docs/threat-model.md, "Evidence".

use thiserror::Error;

use super::file::hex;
use super::{Abi, AppraisalPolicy, Floor, FloorsError};
use crate::report::guest_policy as guest;
use crate::report::platform_info as machine;
use crate::report::{Firmware, Product, Report, SigningKey, Tcb};
use crate::verifier::{RevocationError, VerifiedReport, check_revocation};

/// Why an authentic platform is not good enough.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
#[non_exhaustive]
pub enum PlatformError {
    /// The issuer of the signing key's certificate is revoked, or that cannot be said.
    #[error(transparent)]
    Revocation(#[from] RevocationError),
    /// The floors file says nothing about this machine now.
    #[error(transparent)]
    Floors(#[from] FloorsError),
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
        /// `COMMITTED_TCB`, or the committed version.
        committed: String,
        /// `CURRENT_TCB`, or the current version.
        current: String,
    },
    /// The committed firmware is later than the current one.
    #[error("the committed firmware {committed} is beyond the current one, {current}")]
    FirmwareOrder {
        /// The committed version.
        committed: Firmware,
        /// The current version.
        current: Firmware,
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
    /// Firmware below the floor.
    #[error("the committed firmware is {found}, below the floor: {floor}")]
    FirmwareFloor {
        /// The committed version.
        found: Firmware,
        /// The floor.
        floor: Firmware,
    },
    /// The guest would have run on firmware with an older interface than the floor's.
    #[error("the guest policy demands interface {}.{}, below the floor: {}.{}",
        found.major, found.minor, floor.major, floor.minor)]
    AbiFloor {
        /// What the guest policy demands.
        found: Abi,
        /// The floor.
        floor: Abi,
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
    #[error("vmpl is {found}, not {expected}")]
    Vmpl {
        /// The level.
        found: u32,
        /// The policy's.
        expected: u32,
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
    /// A field of the guest's ID block is not among the policy's.
    #[error("{field} {} is not among the policy's {count}", hex(found))]
    Identity {
        /// The stable name of the refusal.
        code: &'static str,
        /// The report's field.
        field: &'static str,
        /// Its value.
        found: Vec<u8>,
        /// How many the policy has.
        count: usize,
    },
    /// No author key signed the guest's ID key, and the policy demands one.
    #[error("author_key_en is not set, and the policy demands an author key")]
    NoAuthorKey,
    /// The guest is older than the policy accepts.
    #[error("guest_svn is {found}, below {minimum}")]
    GuestSvn {
        /// `GUEST_SVN`.
        found: u32,
        /// The policy's minimum.
        minimum: u32,
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
            Self::Revocation(error) => error.code(),
            Self::Floors(error) => error.code(),
            Self::Product { .. } => "platform.product",
            Self::LoanedKey { .. } => "platform.loaned_key",
            Self::TcbOrder { .. } => "platform.tcb_order",
            Self::Provisional { .. } => "platform.provisional_firmware",
            Self::FirmwareOrder { .. } => "platform.firmware_order",
            Self::TcbFloor { .. } => "platform.tcb_floor",
            Self::FirmwareFloor { .. } => "platform.firmware_floor",
            Self::AbiFloor { .. } => "guest_policy.abi",
            Self::Bit { code, .. } | Self::Identity { code, .. } => code,
            Self::NoAuthorKey => "platform.author_key",
            Self::GuestSvn { .. } => "platform.guest_svn",
            Self::Vmpl { .. } => "platform.vmpl",
            Self::MigrationAgent => "platform.migration_agent",
            Self::Measurement { .. } => "platform.measurement",
            Self::HostData { .. } => "platform.host_data",
            Self::Mitigations { .. } => "platform.mitigations",
        }
    }
}

impl AppraisalPolicy {
    /// Judges the platform of an authentic report that came without a bundle: rules 6 to 10, at
    /// Unix time `now`, with `host_data` as the expected `HOST_DATA`.
    ///
    /// [`Self::appraise`] does this and the rest; an enclave is not verified by this alone.
    ///
    /// # Errors
    /// The first rule that does not hold.
    pub fn appraise_report(
        &self,
        verified: &VerifiedReport,
        host_data: &[u8; 32],
        now: u64,
    ) -> Result<(), PlatformError> {
        appraise(self, verified, host_data, now)
    }
}

/// Applies the rules, in order, at Unix time `now`, to an authentic report whose host data must be
/// `host_data`.
pub(super) fn appraise(
    policy: &AppraisalPolicy,
    verified: &VerifiedReport,
    host_data: &[u8; 32],
    now: u64,
) -> Result<(), PlatformError> {
    let report = verified.report();
    let product = verified.product();
    let snp = &policy.snp;

    // 2. and 3. Products and keys that are authentic, but not accepted.
    if product == Product::Milan && !policy.dangerous.allow_milan {
        return Err(PlatformError::Product { product });
    }
    if report.signing_key == SigningKey::Vlek {
        let provider = verified.csp_id().unwrap_or_default().to_owned();
        if !snp.loaned_key_providers.contains(&provider) {
            return Err(PlatformError::LoanedKey { provider });
        }
    }

    // 4. The issuer of the signing key's certificate, by the lists that the policy has.
    let lists = snp.revocation_lists.iter().map(|list| &list.value);
    let place = (verified.roots(), product);
    check_revocation(lists, snp.require_revocation_list, place, verified.issued_by(), now)?;

    // 6. REPORTED <= COMMITTED <= CURRENT; COMMITTED = CURRENT; REPORTED and LAUNCH >= floor, and
    // so the firmware's version and build.
    order(report)?;
    if !policy.dangerous.allow_provisional_firmware {
        committed(report)?;
    }
    let floors = snp.floors_in_use()?;
    let floor = floors.floor(product, snp.floors_minimum_version, now)?;
    let own = snp.tcb_floors.iter().filter(|(of, _)| *of == product).map(|&(_, tcb)| tcb);
    above(report, floor, own)?;

    // 7. What the guest's owner allowed. 8. The state of the machine.
    let [minor, major, ..] = report.policy.to_le_bytes();
    if (Abi { major, minor }) < floor.abi {
        return Err(PlatformError::AbiFloor { found: Abi { major, minor }, floor: floor.abi });
    }
    bits(policy, report, product)?;

    // 9. Who the guest is.
    guest_identity(policy, report, host_data)?;

    // 10. The required mitigations, at launch and now.
    let required = floor.mitigations | snp.required_mitigations;
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

fn order(report: &Report) -> Result<(), PlatformError> {
    let reported = ("reported_tcb", report.reported_tcb);
    let committed = ("committed_tcb", report.committed_tcb);
    let current = ("current_tcb", report.current_tcb);
    for ((lower, lower_tcb), (upper, upper_tcb)) in [(reported, committed), (committed, current)] {
        if !upper_tcb.at_least(lower_tcb) {
            return Err(PlatformError::TcbOrder { lower, lower_tcb, upper, upper_tcb });
        }
    }
    let (committed, current) = (report.committed_firmware, report.current_firmware);
    if committed > current {
        return Err(PlatformError::FirmwareOrder { committed, current });
    }
    Ok(())
}

fn committed(report: &Report) -> Result<(), PlatformError> {
    let pairs = [
        (report.committed_tcb.to_string(), report.current_tcb.to_string()),
        (report.committed_firmware.to_string(), report.current_firmware.to_string()),
    ];
    match pairs.into_iter().find(|(committed, current)| committed != current) {
        Some((committed, current)) => Err(PlatformError::Provisional { committed, current }),
        None => Ok(()),
    }
}

/// Nothing is below the floors file's `floor`, nor below the policy's `own`.
fn above(
    report: &Report,
    floor: &Floor,
    own: impl Iterator<Item = Tcb>,
) -> Result<(), PlatformError> {
    for tcb in [floor.tcb].into_iter().chain(own) {
        for (field, found) in
            [("reported_tcb", report.reported_tcb), ("launch_tcb", report.launch_tcb)]
        {
            if !found.at_least(tcb) {
                return Err(PlatformError::TcbFloor { field, found, floor: tcb });
            }
        }
    }
    let (found, floor) = (report.committed_firmware, floor.firmware);
    if found < floor {
        return Err(PlatformError::FirmwareFloor { found, floor });
    }
    Ok(())
}

/// Rule 9: the level, no migration agent, a known image, its ID block as demanded, launched as the
/// statement says.
fn guest_identity(
    policy: &AppraisalPolicy,
    report: &Report,
    host_data: &[u8; 32],
) -> Result<(), PlatformError> {
    let snp = &policy.snp;
    if report.vmpl != snp.vmpl {
        return Err(PlatformError::Vmpl { found: report.vmpl, expected: snp.vmpl });
    }
    if report.report_id_ma != [0xFF; 32] {
        return Err(PlatformError::MigrationAgent);
    }
    if !policy.measurements.contains(&report.measurement) {
        let count = policy.measurements.len();
        return Err(PlatformError::Measurement { found: report.measurement, count });
    }
    among("platform.id_key", "id_key_digest", &report.id_key_digest, &snp.id_key_digests)?;
    if !snp.author_key_digests.is_empty() && !report.author_key_en {
        return Err(PlatformError::NoAuthorKey);
    }
    let author = &report.author_key_digest;
    among("platform.author_key", "author_key_digest", author, &snp.author_key_digests)?;
    let (found, minimum) = (report.guest_svn, snp.minimum_guest_svn);
    if found < minimum {
        return Err(PlatformError::GuestSvn { found, minimum });
    }
    if report.host_data != *host_data {
        return Err(PlatformError::HostData { found: report.host_data, expected: *host_data });
    }
    among("platform.family_id", "family_id", &report.family_id, &snp.family_ids)?;
    among("platform.image_id", "image_id", &report.image_id, &snp.image_ids)
}

/// Whether `found` is one of `demanded`, where any is demanded.
fn among<const N: usize>(
    code: &'static str,
    field: &'static str,
    found: &[u8; N],
    demanded: &[[u8; N]],
) -> Result<(), PlatformError> {
    if demanded.is_empty() || demanded.contains(found) {
        return Ok(());
    }
    Err(PlatformError::Identity { code, field, found: found.to_vec(), count: demanded.len() })
}

/// Rules 7 and 8, each bit with its own name.
fn bits(policy: &AppraisalPolicy, report: &Report, product: Product) -> Result<(), PlatformError> {
    let applies = |when| match when {
        When::Always => true,
        When::NoSmt => !policy.dangerous.allow_smt,
        When::Xts => product != Product::Milan,
        When::Hiding => product == Product::Turin,
        When::PageSwap => report.current_firmware >= PAGE_SWAP_FIRMWARE,
        When::Tio => policy.snp.require_tio,
    };
    // A bit that is allowed without being known is as if it were not set; a known one stays.
    let allowed = policy.dangerous.allow_platform_bits & !machine::KNOWN;
    let fields = [
        ("policy", report.policy, GUEST_RULES),
        ("platform_info", report.platform_info & !allowed, MACHINE_RULES),
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
    /// Where the policy demands trusted I/O.
    Tio,
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
    (When::Tio, machine::TIO, true, "platform_info.tio", "trusted I/O on"),
];

/// The firmware that brought `PAGE_SWAP_DISABLE` (Heracles).
const PAGE_SWAP_FIRMWARE: Firmware = Firmware { major: 1, minor: 58, build: 0 };
