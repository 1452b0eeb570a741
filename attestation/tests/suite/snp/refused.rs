//! One altered claim to a row, one named refusal: every rule of docs/threat-model.md, section 4,
//! "SEV-SNP", by its number there.

use super::machines::{
    EC_DH, EC_PUBLIC_KEY, P_256, P_384, algorithm, all_tcbs, compressed_point, cpu, extension,
    firmware, loaned, milan, octet_string, reserved_level, sha256_inside, turin, vcek, without,
};
use crate::simulated::issue::{amd, seq, tlv};
use crate::simulated::revocations::ListDraft;
use crate::simulated::{NOW, Parts, World};
use chrysalis_attestation::attester::simulated::{CHIP_ID, TCB};
use chrysalis_attestation::policy::Abi;
use chrysalis_attestation::report::{Firmware, Product, Tcb, guest_policy, platform_info};
use chrysalis_protocol::statement::Tee;

/// Rule; expected code; what is changed before the report is signed; after it.
pub(super) type Row = (u8, &'static str, fn(&mut World), fn(&mut Parts));

const OLDER: Tcb = Tcb { snp: TCB.snp - 1, ..TCB };

/// Rules 1, 2, 3 and 5: the report itself.
#[rustfmt::skip]
pub(super) const REPORT: &[Row] = &[
    (1, "report.length", |_| {}, |p| p.report.push(0)),
    (1, "report.version", |w| w.report.version = 2, |_| {}),
    (1, "report.version", |w| w.report.version = 6, |_| {}),
    (1, "report.reserved", |_| {}, |p| p.report[0x4C] = 1),
    (1, "report.reserved", |_| {}, |p| p.report[0x18B] = 1),
    (1, "report.reserved", |_| {}, |p| p.report[0x1EB] = 1),
    (1, "report.reserved", |_| {}, |p| p.report[0x1F8] = 1),
    (1, "report.reserved", |_| {}, |p| p.report[0x208] = 1),
    (1, "report.reserved", |_| {}, |p| p.report[0x29F] = 1),
    (1, "report.reserved", |_| {}, |p| p.report[0x2A0 + 48] = 1),
    (1, "report.reserved", |_| {}, |p| p.report[0x2A0 + 72 + 71] = 1),
    (1, "report.reserved", |_| {}, |p| p.report[0x330] = 1),
    (1, "report.reserved", |_| {}, |p| p.report[0x49F] = 1),
    (1, "report.tcb_reserved", |_| {}, |p| p.report[0x182] = 1),
    (2, "report.signature_algorithm", |_| {}, |p| p.report[0x34] = 2),
    (2, "report.signing_key", |_| {}, |p| p.report[0x48] = 7 << 2),
    (2, "report.signing_key", |_| {}, |p| p.report[0x4B] = 0x80),
    (2, "report.mask_chip_key", |w| w.report.mask_chip_key = true, |_| {}),
    (3, "report.product", |w| w.report.cpuid = cpu(0x19, 0x20), |_| {}),
    (3, "report.product", |w| w.report.cpuid = cpu(0x1A, 0x12), |_| {}),
    (3, "report.product", |w| w.report.cpuid = cpu(0x17, 0x31), |_| {}),
    (5, "report.signature", |_| {}, |p| p.report[0x140] ^= 1),
    (5, "report.signature", |_| {}, |p| p.report[0x2A0] ^= 1),
];

/// Rule 4: the certificate of the signing key, and who issued it.
#[rustfmt::skip]
pub(super) const CERTIFICATE: &[Row] = &[
    (4, "certificate.missing", |_| {}, |p| p.vcek = None),
    (4, "certificate.der", |_| {}, |p| p.vcek.as_mut().unwrap().push(0)),
    (4, "certificate.der", |_| {}, |p| p.vcek.as_mut().unwrap().truncate(900)),
    (4, "certificate.der", |w| w.honest_vcek().write_default = true, |_| {}),
    (4, "certificate.version", |w| w.honest_vcek().version = 1, |_| {}),
    (4, "certificate.algorithm", sha256_inside, |_| {}),
    (4, "certificate.issuer", |w| w.honest_vcek().issuer = "SEV-Genoa".to_owned(), |_| {}),
    // Simulated evidence under a statement that says it is genuine.
    (4, "certificate.issuer", |w| w.statement.tee = Tee::SevSnp, |_| {}),
    (4, "certificate.signature", |_| {}, |p| *p.vcek.as_mut().unwrap().last_mut().unwrap() ^= 1),
    (4, "certificate.validity", |w| w.challenge.now_unix = 1_700_000_000, |_| {}),
    (4, "certificate.validity", |w| w.honest_vcek().not_after = "260531235959Z".to_owned(), |_| {}),
    (4, "certificate.validity",
     |w| w.honest_vcek().not_before = "260602000000Z".to_owned(), |_| {}),
    (4, "certificate.subject", |w| w.honest_vcek().subject = "SEV-VLEK".to_owned(), |_| {}),
    (4, "certificate.key",
     |w| w.honest_vcek().spki = seq(&[seq(&[tlv(6, b"\x2b\x65\x70")]), tlv(3, &[0; 33])]), |_| {}),
    (4, "certificate.key", compressed_point, |_| {}),
    (4, "certificate.key", |w| algorithm(w, EC_PUBLIC_KEY, P_256), |_| {}),
    (4, "certificate.key", |w| algorithm(w, EC_DH, P_384), |_| {}),
    (4, "certificate.critical_extension", |w| extension(w, b"\x55\x1d\x1e", true), |_| {}),
    (4, "certificate.extension", |w| extension(w, &amd(&[3, 1]), false), |_| {}),
    (4, "certificate.extension", |w| extension(w, &amd(&[3, 9]), false), |_| {}),
    (4, "certificate.extension", |w| extension(w, &amd(&[5]), false), |_| {}),
    (4, "certificate.extension", |w| without(w, &amd(&[3, 1])), |_| {}),
    (4, "certificate.extension", |w| without(w, &amd(&[3, 2])), |_| {}),
    (4, "certificate.extension", |w| without(w, &amd(&[3, 3])), |_| {}),
    (4, "certificate.extension", |w| without(w, &amd(&[3, 8])), |_| {}),
    (4, "certificate.extension", |w| without(w, &amd(&[4])), |_| {}),
    (4, "certificate.extension", |w| without(w, &amd(&[2])), |_| {}),
    (4, "certificate.extension", reserved_level, |_| {}),
    (4, "certificate.product", |w| vcek(w, "Turin", TCB, &CHIP_ID), |_| {}),
    (4, "certificate.product", |w| w.report.cpuid = cpu(0x19, 0x01), |_| {}),
    (4, "certificate.tcb", |w| vcek(w, "Genoa", OLDER, &CHIP_ID), |_| {}),
    (4, "certificate.tcb", |w| w.report.reported_tcb = OLDER, |_| {}),
    (4, "certificate.chip_id", |w| vcek(w, "Genoa", TCB, &[7; 64]), |_| {}),
    (4, "certificate.chip_id", |w| vcek(w, "Genoa", TCB, &CHIP_ID[..8]), |_| {}),
    (4, "certificate.chip_id", |w| w.report.chip_id[63] ^= 1, |_| {}),
    // Eight bytes identify a Turin; the others have to be zero.
    (4, "certificate.chip_id", |w| { turin(w); w.report.chip_id[8] = 1; }, |_| {}),
    (4, "certificate.chip_id", |w| octet_string(w, &[7; 64]), |_| {}),
    (4, "certificate.chip_id", |w| octet_string(w, &CHIP_ID[..63]), |_| {}),
    (4, "certificate.revoked", |w| w.revoke(&ListDraft::of(&[1, 2])), |_| {}),
    (4, "crl.validity", |w| w.revoke(&ListDraft::between("260601000001Z", "270601000000Z")), |_| {}),
    (4, "crl.validity", |w| w.revoke(&ListDraft::between("250601000000Z", "260531235959Z")), |_| {}),
    (4, "crl.missing", |w| w.policy.snp.require_revocation_list = true, |_| {}),
];

/// Rules 2, 3 and 6 to 10: the state of the platform.
#[rustfmt::skip]
pub(super) const PLATFORM: &[Row] = &[
    (3, "platform.product", milan, |_| {}),
    (2, "platform.loaned_key", loaned, |_| {}),
    (6, "platform.tcb_order", |w| w.report.committed_tcb = OLDER, |_| {}),
    (6, "platform.tcb_order", |w| w.report.current_tcb = OLDER, |_| {}),
    (6, "platform.provisional_firmware", |w| w.report.current_tcb.microcode += 1, |_| {}),
    (6, "platform.provisional_firmware", |w| w.report.current_firmware = firmware(59), |_| {}),
    (6, "platform.tcb_floor", |w| w.report.launch_tcb.snp = 0x16, |_| {}),
    (6, "platform.tcb_floor", |w| all_tcbs(w, Tcb { snp: 0x16, ..TCB }), |_| {}),
    (6, "platform.tcb_floor",
     |w| w.policy.snp.tcb_floors = vec![(Product::Genoa, Tcb { microcode: 0x55, ..TCB })], |_| {}),
    (6, "platform.tcb_floor", |w| w.floors(|t| t.records[1].tcb.bootloader = 11), |_| {}),
    (6, "platform.tcb_floor", |w| w.floors(|t| t.records[1].tcb.tee = 1), |_| {}),
    (6, "platform.tcb_floor", |w| w.floors(|t| t.records[1].tcb.snp = 0x1C), |_| {}),
    (6, "platform.tcb_floor", |w| w.floors(|t| t.records[1].tcb.microcode = 0x55), |_| {}),
    (6, "platform.tcb_floor",
     |w| { turin(w); w.floors(|t| t.records[2].tcb.fmc = Some(2)); }, |_| {}),
    (6, "platform.tcb_floor",
     |w| { milan(w); w.policy.dangerous.allow_milan = true; w.report.launch_tcb.snp = 0x17; }, |_| {}),
    (6, "platform.firmware_order", |w| w.report.committed_firmware = firmware(59), |_| {}),
    (6, "platform.firmware_order",
     |w| { w.report.committed_firmware.build = 2; w.policy.dangerous.allow_provisional_firmware = true; },
     |_| {}),
    (6, "platform.firmware_floor", |w| w.floors(|t| t.records[1].firmware = Firmware { build: 2, ..firmware(58) }), |_| {}),
    (6, "platform.firmware_floor", |w| w.floors(|t| t.records[1].firmware.minor = 59), |_| {}),
    (6, "platform.firmware_floor", |w| w.floors(|t| t.records[1].firmware.major = 2), |_| {}),
    (6, "platform.firmware_floor",
     |w| {
         w.report.committed_firmware.minor = 54;
         w.policy.dangerous.allow_provisional_firmware = true;
     }, |_| {}),
    (6, "floors.expired", |w| w.floors(|t| t.issued = NOW + 1), |_| {}),
    (6, "floors.expired", |w| w.floors(|t| (t.issued, t.expires) = (NOW - 9, NOW - 1)), |_| {}),
    // The file in the program ends as well.
    (6, "floors.expired", |w| w.challenge.now_unix = 1_830_297_601, |_| {}),
    (6, "floors.version", |w| w.policy.snp.floors_minimum_version = 2, |_| {}),
    (6, "floors.product", |w| w.floors(|t| t.records.retain(|f| f.product != Product::Genoa)), |_| {}),
    (7, "guest_policy.abi", |w| w.report.policy -= 1, |_| {}),
    (7, "guest_policy.abi", |w| w.report.policy &= !0xFF00, |_| {}),
    (7, "guest_policy.abi", |w| w.floors(|t| t.records[1].abi = Abi { major: 2, minor: 0 }), |_| {}),
    (7, "guest_policy.abi", |w| w.floors(|t| t.records[1].abi.minor = 56), |_| {}),
    (7, "guest_policy.unknown", |w| w.report.policy |= 1 << 26, |_| {}),
    (7, "guest_policy.unknown", |w| w.report.policy |= 1 << 63, |_| {}),
    (7, "guest_policy.reserved_one", |w| w.report.policy &= !guest_policy::RESERVED_ONE, |_| {}),
    (7, "guest_policy.debug", |w| w.report.policy |= guest_policy::DEBUG, |_| {}),
    (7, "guest_policy.migrate_ma", |w| w.report.policy |= guest_policy::MIGRATE_MA, |_| {}),
    (7, "guest_policy.smt", |w| w.report.policy |= guest_policy::SMT, |_| {}),
    (7, "guest_policy.cxl", |w| w.report.policy |= guest_policy::CXL_ALLOW, |_| {}),
    (7, "guest_policy.aes_256_xts", |w| w.report.policy &= !guest_policy::MEM_AES_256_XTS, |_| {}),
    (7, "guest_policy.rapl", |w| w.report.policy &= !guest_policy::RAPL_DIS, |_| {}),
    (7, "guest_policy.ciphertext",
     |w| { turin(w); w.report.policy &= !guest_policy::CIPHERTEXT_HIDING; }, |_| {}),
    (7, "guest_policy.page_swap", |w| w.report.policy &= !guest_policy::PAGE_SWAP_DISABLE, |_| {}),
    (8, "platform_info.unknown", |w| w.report.platform_info |= 1 << 6, |_| {}),
    (8, "platform_info.smt", |w| w.report.platform_info |= platform_info::SMT, |_| {}),
    (8, "platform_info.ecc", |w| w.report.platform_info &= !platform_info::ECC, |_| {}),
    (8, "platform_info.rapl", |w| w.report.platform_info &= !platform_info::RAPL_DIS, |_| {}),
    (8, "platform_info.ciphertext",
     |w| { turin(w); w.report.platform_info &= !platform_info::CIPHERTEXT_HIDING; }, |_| {}),
    (8, "platform_info.alias",
     |w| w.report.platform_info &= !platform_info::ALIAS_CHECK_COMPLETE, |_| {}),
    (8, "platform_info.tio", |w| w.policy.snp.require_tio = true, |_| {}),
    (8, "platform_info.unknown", |w| w.report.platform_info |= 1 << 63, |_| {}),
    (8, "platform_info.unknown",
     |w| { w.report.platform_info |= 3 << 8; w.policy.dangerous.allow_platform_bits = 1 << 8; }, |_| {}),
    // Known bits keep their rules.
    (8, "platform_info.smt",
     |w| { w.report.platform_info |= platform_info::SMT; w.policy.dangerous.allow_platform_bits = !0; },
     |_| {}),
    (9, "platform.vmpl", |w| w.report.vmpl = 1, |_| {}),
    (9, "platform.vmpl", |w| w.policy.snp.vmpl = 2, |_| {}),
    (9, "platform.migration_agent", |w| w.report.report_id_ma[31] = 0xFE, |_| {}),
    (9, "platform.measurement", |w| w.report.measurement[0] ^= 1, |_| {}),
    (9, "platform.id_key", |w| w.policy.snp.id_key_digests = vec![[1; 48], [2; 48]], |_| {}),
    (9, "platform.author_key", |w| w.policy.snp.author_key_digests = vec![[0; 48]], |_| {}),
    (9, "platform.author_key",
     |w| { w.report.author_key_en = true; w.policy.snp.author_key_digests = vec![[1; 48]]; }, |_| {}),
    (9, "platform.guest_svn", |w| w.policy.snp.minimum_guest_svn = 1, |_| {}),
    (9, "platform.family_id", |w| w.policy.snp.family_ids = vec![[1; 16]], |_| {}),
    (9, "platform.image_id", |w| w.policy.snp.image_ids = vec![[1; 16]], |_| {}),
    (9, "platform.host_data", |w| w.report.host_data[0] ^= 1, |_| {}),
    (9, "platform.host_data", |w| w.statement.launch_config_digest[0] ^= 1, |_| {}),
    (10, "platform.mitigations", |w| w.policy.snp.required_mitigations = 1, |_| {}),
    (10, "platform.mitigations",
     |w| { turin(w); w.report.launch_mitigations = 1; w.policy.snp.required_mitigations = 3; }, |_| {}),
    (10, "platform.mitigations",
     |w| { turin(w); w.report.current_mitigations = 1; w.policy.snp.required_mitigations = 2; },
     |_| {}),
    (10, "platform.mitigations", |w| { turin(w); w.floors(|t| t.records[2].mitigations = 8); }, |_| {}),
    // Demanded twice is not demanded less.
    (10, "platform.mitigations",
     |w| {
         turin(w);
         w.report.launch_mitigations = 0b101;
         w.policy.snp.required_mitigations = 2;
         w.floors(|t| t.records[2].mitigations = 2);
     }, |_| {}),
];
