//! Machines and certificates that the honest one is turned into.

use crate::simulated::World;
use crate::simulated::issue::{amd, bit_string, integer, seq, tlv};
use chrysalis_attestation::attester::simulated::{CHIP_ID, TCB};
use chrysalis_attestation::report::{
    Cpuid, Firmware, SigningKey, Tcb, guest_policy, platform_info,
};

pub(super) fn cpu(family: u8, model: u8) -> Cpuid {
    Cpuid { family, model, stepping: 0 }
}

pub(super) fn firmware(minor: u8) -> Firmware {
    Firmware { major: 1, minor, build: 1 }
}

pub(super) fn all_tcbs(world: &mut World, tcb: Tcb) {
    let report = &mut world.report;
    report.current_tcb = tcb;
    report.reported_tcb = tcb;
    report.committed_tcb = tcb;
    report.launch_tcb = tcb;
    let (name, hwid) = match tcb.fmc {
        Some(_) => ("Turin", report.chip_id[..8].to_vec()),
        None => ("Genoa", report.chip_id.to_vec()),
    };
    world.vcek(name, tcb, &hwid);
}

/// An honest Turin, version 5.
pub(super) fn turin(world: &mut World) {
    world.report.version = 5;
    world.report.cpuid = cpu(0x1A, 0x02);
    world.report.chip_id = [0; 64];
    world.report.chip_id[..8].copy_from_slice(b"turin #1");
    world.report.policy |= guest_policy::CIPHERTEXT_HIDING;
    world.report.platform_info |= platform_info::CIPHERTEXT_HIDING;
    world.report.launch_mitigations = 0b111;
    world.report.current_mitigations = 0b111;
    all_tcbs(world, Tcb { fmc: Some(1), bootloader: 1, tee: 1, snp: 4, microcode: 0x51 });
}

/// A Milan in the best state that a Milan can be in.
pub(super) fn milan(world: &mut World) {
    world.report.cpuid = cpu(0x19, 0x01);
    world.report.policy &= !guest_policy::MEM_AES_256_XTS;
    world.vcek("Milan-B0", TCB, &CHIP_ID);
}

/// The honest platform, signing with a key loaned to a provider.
pub(crate) fn loaned(world: &mut World) {
    world.report.signing_key = SigningKey::Vlek;
    let draft = world.honest_vcek();
    draft.subject = "SEV-VLEK".to_owned();
    draft.extensions.retain(|(oid, ..)| *oid != amd(&[4]));
    draft.extensions.push((amd(&[5]), false, tlv(0x16, b"CN=a-provider")));
}

pub(super) fn vcek(world: &mut World, product: &str, tcb: Tcb, hwid: &[u8]) {
    world.vcek(product, tcb, hwid);
}

pub(super) fn extension(world: &mut World, oid: &[u8], critical: bool) {
    world.honest_vcek().extensions.push((oid.to_vec(), critical, integer(0)));
}

pub(super) fn without(world: &mut World, oid: &[u8]) {
    world.honest_vcek().extensions.retain(|(other, ..)| other != oid);
}

pub(super) fn reserved_level(world: &mut World) {
    world.honest_vcek().extensions.push((amd(&[3, 5]), false, integer(1)));
}

pub(super) fn sha256_inside(world: &mut World) {
    let draft = world.honest_vcek();
    let at = draft.algorithm.windows(2).position(|w| w == b"\x02\x02").expect("sha-384");
    draft.algorithm[at + 1] = 1;
}

/// The honest point, named as one of another kind.
pub(super) fn algorithm(world: &mut World, algorithm: &[u8], curve: &[u8]) {
    let draft = world.honest_vcek();
    let point = draft.spki[draft.spki.len() - 97..].to_vec();
    draft.spki = seq(&[seq(&[tlv(6, algorithm), tlv(6, curve)]), bit_string(&point)]);
}

pub(super) fn compressed_point(world: &mut World) {
    let draft = world.honest_vcek();
    let ec = seq(&[tlv(6, EC_PUBLIC_KEY), tlv(6, P_384)]);
    let point = [&[0, 2], [0x11; 48].as_slice()].concat();
    draft.spki = seq(&[ec, tlv(3, &point)]);
}

/// The honest certificate, with the chip's identity in an OCTET STRING.
pub(super) fn octet_string(world: &mut World, hwid: &[u8]) {
    world.vcek("Genoa", TCB, &tlv(0x04, hwid));
}

/// Contents of object identifiers (RFC 5480).
pub(super) const EC_PUBLIC_KEY: &[u8] = b"\x2a\x86\x48\xce\x3d\x02\x01";
pub(super) const EC_DH: &[u8] = b"\x2b\x81\x04\x01\x0c";
pub(super) const P_384: &[u8] = b"\x2b\x81\x04\x00\x22";
pub(super) const P_256: &[u8] = b"\x2a\x86\x48\xce\x3d\x03\x01\x07";
