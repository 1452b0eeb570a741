//! Bytes that no signature covers and fields that nothing else looks at: each shape has one form.
#![expect(clippy::semicolon_if_nothing_returned, reason = "a row is one expression")]

use std::collections::BTreeMap;

use aws_lc_rs::digest::{SHA256, digest};
use chrysalis_protocol::gpu::GpuEndorsements;

use super::device::root_key;
use super::issue::{
    BASIC_CONSTRAINTS, CertificateDraft, ECDSA_SHA384, Key, common_name, device_name,
    fwid_extension, root_name,
};
use super::ocsp::{BASIC, StatusDraft, responder};
use super::overfull::{closed, overfull};
use super::rules::{Row, delegated, reissue, replaced};
use super::world::GpuWorld;
use crate::simulated::der::{bit_string, integer, seq, tlv};

/// `ecdsa-with-SHA256`, whole.
const ECDSA_SHA256: &[u8] = b"\x30\x0a\x06\x08\x2a\x86\x48\xce\x3d\x04\x03\x02";

/// The same bytes with the last `from` in them replaced.
fn patched(bytes: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    let at = bytes.windows(from.len()).rposition(|window| window == from).expect("it is there");
    [&bytes[..at], to, &bytes[at + from.len()..]].concat()
}

/// Gives the first GPU's certificate this name.
fn rename(leaf: &mut CertificateDraft, device: &mut CertificateDraft, name: Vec<u8>) {
    leaf.issuer.clone_from(&name);
    device.subject = name;
}

/// The first GPU's name, under which it certified its attestation key.
fn brom() -> Vec<u8> {
    device_name("GH100 A01 GSP BROM", "410000000000000001")
}

/// Signs the certificate of the first GPU's attestation key with other bytes in it.
fn resign(w: &mut GpuWorld, from: &[u8], to: &[u8]) {
    let gpu = &w.devices[0];
    let leaf = device_name("GH100 A01 GSP FMC LF", "1");
    let mut leaf = CertificateDraft::signer(1, &brom(), &leaf, gpu.attestation_key().point());
    leaf.extensions.push(fwid_extension(gpu.device_key().point(), &[0xF1; 48]));
    let signed = patched(&leaf.signed(), from, to);
    let signature = bit_string(&gpu.device_key().sign_der(&signed));
    let leaf = seq(&[signed, leaf.algorithms[1].to_vec(), signature]);
    w.devices[0].certificates[0] = leaf;
}

pub(super) const ROWS: &[Row] = &[
    // Reports: the length of the blocks, their numbers, a version that is no word.
    ("gpu.report.layout", |w| w.devices[0].claims.twist = |report| report[42] ^= 1),
    ("gpu.report.layout", |w| w.devices[0].claims.twist = |report| report[45] = 9),
    ("gpu.report.layout", |w| w.devices[0].set(3, b"580 95")),
    ("gpu.report.layout", |w| w.devices[0].set(6, &[0, 0xCF, 0, 0x96, 2, 1, 0, 0])),
    ("gpu.report.layout", |w| w.devices[0].claims.twist = |report| report.push(0)),
    // Two names for the same keys.
    ("gpu.duplicate", |w| {
        w.devices[1] = w.devices[0].clone();
        reissue(w, |leaf, device| {
            rename(leaf, device, device_name("GH100 A01 GSP BROM", "420000000000000001"));
        })
    }),
    ("gpu.duplicate", |w| {
        let mut twin = w.devices[0].clone();
        let (key, second) = (twin.attestation_key().point().to_vec(), &w.devices[1]);
        let name = device_name("GH100 A01 GSP BROM", "410000000000000002");
        let mut leaf = CertificateDraft::signer(2, &name, &common_name("another"), &key);
        leaf.extensions.push(fwid_extension(second.device_key().point(), &[0xF1; 48]));
        twin.certificates[0] = leaf.sign(second.device_key());
        twin.certificates[1].clone_from(&second.certificates[1]);
        w.devices[1] = twin;
    }),
    // Certificates.
    ("gpu.certificate.der", |w| resign(w, b"\x02\x01\x01\x30\x0a", b"\x02\x01\x81\x30\x0a")),
    ("gpu.certificate.der", |w| resign(w, b"\x01\x01\xff\x04", b"\x01\x01\x01\x04")),
    ("gpu.certificate.der", |w| resign(w, b"\x03\x02\x07\x80", b"\x03\x02\x08\x80")),
    ("gpu.certificate.der", |w| {
        reissue(w, |_, device| device.extensions[0].2 = seq(&[tlv(0x01, &[1])]))
    }),
    ("gpu.certificate.der", |w| {
        let deep = |leaf: &mut CertificateDraft, _: &mut CertificateDraft| {
            leaf.extensions.push((BASIC_CONSTRAINTS.to_vec(), true, seq(&[integer(0)])));
        };
        reissue(w, deep)
    }),
    ("gpu.certificate.der", |w| reissue(w, |leaf, _| leaf.algorithms[0] = ECDSA_SHA256)),
    ("gpu.certificate.der", |w| reissue(w, |leaf, _| leaf.algorithms[1] = ECDSA_SHA256)),
    ("gpu.certificate.der", |w| {
        reissue(w, |_, device| {
            let limits = seq(&[tlv(0x01, &[0xFF]), integer(1), tlv(0x05, &[])]);
            device.extensions[0] = (BASIC_CONSTRAINTS.to_vec(), true, limits);
        })
    }),
    ("gpu.certificate.der", |w| resign(w, b"\x02\x01\x01\x30", b"\x02\x01\x02\x30")),
    ("gpu.certificate.der", |w| resign(w, b"\x03\x04\x02\x02", b"\x03\x04\x02\x03")),
    ("gpu.certificate.name", |w| {
        reissue(w, |leaf, device| {
            let (one, two) = (common_name("GH100"), brom());
            rename(leaf, device, seq(&[one[2..].to_vec(), two[2..].to_vec()]));
        })
    }),
    ("gpu.certificate.name", |w| {
        reissue(w, |leaf, device| {
            rename(leaf, device, patched(&brom(), b"\x0c\x12GH", b"\x16\x12GH"));
        })
    }),
    // Of the first name: attribute and set of the serial number, of the common name, the name.
    ("gpu.certificate.name", |w| reissue(w, |l, d| rename(l, d, overfull(&brom(), &mut Some(0))))),
    ("gpu.certificate.name", |w| reissue(w, |l, d| rename(l, d, overfull(&brom(), &mut Some(1))))),
    ("gpu.certificate.name", |w| reissue(w, |l, d| rename(l, d, overfull(&brom(), &mut Some(2))))),
    ("gpu.certificate.name", |w| reissue(w, |l, d| rename(l, d, overfull(&brom(), &mut Some(3))))),
    // Manifests: for another kind of device, for nothing, with text between measurements.
    ("gpu.rim.unused", |w| w.driver_rim.edition = "SWITCH"),
    ("gpu.rim.form", |w| w.driver_rim.version.clear()),
    ("gpu.rim.form", |w| w.driver_rim.twist = ("</ns0:Payload>", "x</ns0:Payload>")),
    // What is outside of SignedInfo.
    ("gpu.rim.form", |w| {
        w.endorsements = |rims, _| {
            replaced(rims, "</ds:X509Certificate>", "</ds:X509Certificate>\n");
        }
    }),
    ("gpu.rim.form", |w| {
        w.driver_rim.twist =
            ("xmlns:ns2=\"http://www.w3.org/2001/04/xmlenc#sha384\"", "xmlns:ns2=\"u\"")
    }),
    ("gpu.rim.form", |w| {
        w.endorsements =
            |rims, _| replaced(rims, "<ds:Signature xmlns", "<ds:Signature Id=\"a\" xmlns")
    }),
    ("gpu.rim.form", |w| {
        w.endorsements = |rims, _| replaced(rims, "<ds:KeyInfo>", "<ds:KeyInfo Id=\"a\">")
    }),
    ("gpu.rim.form", |w| {
        w.endorsements =
            |rims, _| replaced(rims, "<ds:X509Certificate>", "<ds:X509Certificate Id=\"a\">")
    }),
    ("gpu.rim.form", |w| {
        w.endorsements = |rims, _| {
            replaced(rims, "<ds:X509Certificate>", "<ds:X509CRL>");
            replaced(rims, "</ds:X509Certificate>", "</ds:X509CRL>");
        }
    }),
    ("gpu.rim.form", |w| {
        w.endorsements = |rims, _| {
            replaced(rims, "<ds:SignatureValue>", "<ds:SignatureValues>");
            replaced(rims, "</ds:SignatureValue>", "</ds:SignatureValues>");
        }
    }),
    // A certificate of no bytes, and a line that is shorter than the others.
    ("gpu.rim.form", |w| {
        w.endorsements = |rims, _| {
            let empty = "<ds:X509Certificate>\n</ds:X509Certificate></ds:X509Data>";
            replaced(rims, "</ds:X509Data>", empty);
        }
    }),
    ("gpu.rim.form", |w| {
        w.endorsements = |rims, _| replaced(rims, "<ds:SignatureValue>", "<ds:SignatureValue>\n")
    }),
    // Statuses.
    ("gpu.ocsp.form", |w| w.statuses[0].responder = 0xA3),
    ("gpu.ocsp.form", |w| w.statuses[0].state = tlv(0x82, &[0])),
    ("gpu.ocsp.responder", |w| {
        w.endorsements = |_, all| {
            delegated(all, |r| r.extensions.push((b"\x55\x1d\x24".to_vec(), true, vec![5, 0])));
        }
    }),
    ("gpu.ocsp.form", |w| {
        w.endorsements = |_, all| {
            let other = [&BASIC[..8], &[2]].concat();
            all[0] = patched(&all[0], BASIC, &other);
        }
    }),
    ("gpu.ocsp.form", |w| {
        w.endorsements = |_, all| all[0] = patched(&all[0], ECDSA_SHA384, ECDSA_SHA256)
    }),
    ("gpu.ocsp.form", |w| w.statuses[0].twist = |id| id[1] = tlv(0x04, &[1; 32])),
    ("gpu.ocsp.form", |w| w.statuses[0].twist = |id| id[2] = tlv(0x04, &[1; 32])),
    ("gpu.ocsp.form", |w| {
        w.statuses[0].twist = |id| id[0] = patched(&id[0], b"\x02\x02\x05\0", b"\x02\x03\x05\0")
    }),
    ("gpu.ocsp.form", |w| {
        w.statuses[0].twist = |id| {
            let oid = tlv(0x06, b"\x60\x86\x48\x01\x65\x03\x04\x02\x02");
            id[0] = seq(&[oid, tlv(0x05, &[0])]);
        }
    }),
];

#[test]
fn a_status_may_name_its_certificate_by_sha_256() {
    let mut world = GpuWorld::honest(1);
    world.statuses[0].twist = |id| {
        let hash = |bytes: &[u8]| tlv(0x04, digest(&SHA256, bytes).as_ref());
        id[0] = patched(&id[0], b"\x02\x02\x05\0", b"\x02\x01\x05\0");
        id[1] = hash(&root_name());
        id[2] = hash(root_key().point());
    };
    assert_eq!(world.appraise(), Ok(()));
}

/// How often each outcome came of a value too many, at the end of one structure after the other.
/// `grow` may give another status in place of one that it takes away.
fn outcomes(
    grow: fn(&mut GpuWorld, &mut Option<usize>) -> Option<Vec<u8>>,
) -> Vec<(&'static str, usize)> {
    let mut outcomes = BTreeMap::new();
    for turn in 0.. {
        let (mut world, mut left) = (GpuWorld::honest(1), Some(turn));
        let status = grow(&mut world, &mut left);
        let mut parts = world.parts();
        let section = parts.gpu_rim.take().expect("what vouches for the GPU");
        let mut endorsements = GpuEndorsements::parse(&section).expect("both lists");
        endorsements.statuses.extend(status.as_deref());
        parts.gpu_rim = Some(endorsements.to_bytes());
        let outcome = world.world.appraise(&parts).map_err(|refused| refused.code());
        if left.is_some() {
            assert_eq!(outcome, Ok(()), "nothing was added");
            break;
        }
        *outcomes.entry(outcome.err().unwrap_or("accepted")).or_default() += 1;
    }
    outcomes.into_iter().collect()
}

#[test]
fn no_structure_of_a_certificate_has_a_value_too_many() {
    let grown = outcomes(|w, left| {
        let gpu = &w.devices[0];
        let subject = device_name("GH100 A01 GSP FMC LF", "1");
        let key = gpu.attestation_key().point();
        let mut leaf = CertificateDraft::signer(1, &brom(), &subject, key);
        leaf.extensions.push(fwid_extension(gpu.device_key().point(), &[0xF1; 48]));
        let signed = overfull(&leaf.signed(), left);
        let algorithm = overfull(leaf.algorithms[1], left);
        let signature = bit_string(&gpu.device_key().sign_der(&signed));
        let leaf = closed(0x30, [signed, algorithm, signature].concat(), left);
        w.devices[0].certificates[0] = leaf;
        None
    });
    // Nobody reads an attestation key's own name: a list of two sets of an attribute each.
    assert_eq!(
        grown,
        [("accepted", 5), ("gpu.certificate.der", 18), ("gpu.certificate.issuer", 5)]
    );
}

#[test]
fn no_structure_of_a_status_has_a_value_too_many() {
    let grown = outcomes(|w, left| {
        w.statuses.remove(0);
        let (root, key) = (root_key(), Key::generate());
        let certificate = responder(&root_name(), &key).sign(&root);
        let status = StatusDraft::good(&root_name(), &root, 1);
        let signed = overfull(&status.signed(), left);
        let signature = bit_string(&key.sign_der(&signed));
        let algorithm = overfull(ECDSA_SHA384, left);
        let certificates = closed(0x30, certificate, left);
        let certificates = closed(0xA0, certificates, left);
        let basic = closed(0x30, [signed, algorithm, signature, certificates].concat(), left);
        let octets = closed(0x04, basic, left);
        let typed = closed(0x30, [tlv(0x06, BASIC), octets].concat(), left);
        let wrapped = closed(0xA0, typed, left);
        Some(closed(0x30, [tlv(0x0A, &[0]), wrapped].concat(), left))
    });
    // Nobody reads the responder's name: a list of a set of an attribute, and what is around it.
    assert_eq!(grown, [("accepted", 4), ("gpu.ocsp.form", 14)]);
}
