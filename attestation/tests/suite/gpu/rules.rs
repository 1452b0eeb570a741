//! One altered claim to a row, one named refusal: step 8 of the appraisal over simulated GPUs.
#![expect(clippy::semicolon_if_nothing_returned, reason = "a row is one expression")]

use super::device::SimulatedDevice;
use super::issue::{
    BASIC_CONSTRAINTS, CertificateDraft, Key, device_name, fwid_extension, root_name,
};
use super::ocsp::{StatusDraft, responder};
use super::rim::{RimDraft, Signer};
use super::world::GpuWorld;
use crate::simulated::der::{seq, tlv};
use chrysalis_attestation::policy::AppraisalPolicy;
use chrysalis_protocol::gpu::Device;
use chrysalis_protocol::statement::Statement;

/// The code of the refusal, and what is changed.
pub(super) type Row = (&'static str, fn(&mut GpuWorld));

#[test]
fn honest_gpus_are_accepted() {
    for count in [1, 3] {
        let world = GpuWorld::honest(count);
        let bundle = world.parts().bundle();
        let verified =
            world.world.policy.appraise(&bundle, &world.world.challenge).expect("they are honest");
        let gpus = verified.gpus().expect("GPUs");
        assert_eq!(gpus.devices().len(), usize::from(count));
        assert_eq!(gpus.without_status(), []);
        assert!(gpus.devices().iter().all(|gpu| gpu.driver_compared && gpu.vbios_compared));
        let name = "NV_GPU_VBIOS_1010_0200_882_9600CF0002";
        assert_eq!(gpus.devices()[0].vbios_manifest.as_deref(), Some(name));
        assert_eq!(verified.claims().gpus.len(), usize::from(count));
        let explained = verified.explain();
        assert!(explained.not_proved.iter().any(|line| line.starts_with("Where the GPUs are")));
    }
    assert_eq!(GpuWorld::protected_pcie().appraise(), Ok(()));
}

#[test]
fn what_a_policy_gives_up_is_not_checked_and_is_said() {
    let mut world = GpuWorld::honest(1);
    world.endorsements = |rims, statuses| {
        rims.clear();
        statuses.clear();
    };
    world.demand().require_rims = false;
    world.demand().require_ocsp = false;
    world.demand().drivers.clear();
    world.demand().vbios.clear();
    let bundle = world.parts().bundle();
    let verified = world.world.policy.appraise(&bundle, &world.world.challenge).expect("given up");
    // The device's certificate: roots have no status, and attestation keys are unknown to NVIDIA.
    assert_eq!(verified.gpus().expect("GPUs").without_status().len(), 1);
    let explained = verified.explain().not_proved;
    assert!(explained.iter().any(|line| line.starts_with("What firmware and driver")));
    assert!(explained.iter().any(|line| line.contains("were not revoked")));
}

#[test]
fn a_decoder_that_does_not_run_is_not_compared() {
    let mut world = GpuWorld::honest(1);
    world.devices[0].claims.measurements[35] = [0; 48];
    assert_eq!(world.appraise(), Ok(()));
    world.devices[0].set(11, &[0xAA]);
    assert_eq!(world.appraise().map_err(|error| error.code()), Err("gpu.measurements"));
}

#[test]
fn a_status_by_a_responder_that_the_issuer_named_is_accepted() {
    let mut world = GpuWorld::honest(1);
    world.endorsements = |_, statuses| delegated(statuses, |_| {});
    assert_eq!(world.appraise(), Ok(()));
}

#[test]
fn each_rule_refuses_its_one_altered_claim() {
    let mut count = 0;
    for (table, rows) in [
        ("policy", POLICY),
        ("devices", DEVICES),
        ("certificates", CERTIFICATES),
        ("rims", RIMS),
        ("statuses", STATUSES),
        ("shapes", super::shapes::ROWS),
    ] {
        for (row, (code, change)) in rows.iter().enumerate() {
            let mut world = GpuWorld::honest(2);
            change(&mut world);
            let refused = world.appraise().map_err(|error| (error.step(), error.code()));
            assert_eq!(refused, Err((8, *code)), "row {row} of {table}");
            count += 1;
        }
    }
    for (code, change) in PPCIE {
        let mut world = GpuWorld::protected_pcie();
        change(&mut world);
        assert_eq!(world.appraise().map_err(|error| error.code()), Err(*code));
        count += 1;
    }
    println!("{count} altered claims, each refused by its rule");
}

const POLICY: &[Row] = &[
    ("gpu.not_accepted", |w| w.world.policy.gpu = None),
    ("gpu.evidence_unstated", |w| {
        w.world.policy.gpu = None;
        w.late = |world| {
            world.statement.gpu_count = 0;
            world.statement.gpu_digest = [0; 48];
            world.statement.gpu_flags = Default::default();
        };
    }),
    ("gpu.count", |w| w.demand().count = 1),
    ("gpu.evidence_missing", |w| {
        w.devices.clear();
        w.late = |world| world.statement.gpu_digest = [1; 48];
    }),
    ("gpu.cc_off", |w| w.world.statement.gpu_flags.cc_on = false),
    ("gpu.ppcie", |w| w.world.statement.gpu_flags.ppcie = true),
    ("gpu.nvlink_clear", |w| w.world.statement.gpu_flags.nvlink_clear = true),
    ("gpu.nvlink_unstated", |w| {
        w.world.statement.gpu_flags.ppcie = true;
        w.demand().allow_ppcie = true;
    }),
    ("gpu.ppcie_mismatch", |w| w.devices[1].set(21, &[0xAA])),
    ("gpu.ppcie_mismatch", |w| w.devices[1].claims.opaque.retain(|(kind, _)| *kind != 21)),
    ("gpu.fwid_missing", |w| w.devices[1].claims.opaque.retain(|(kind, _)| *kind != 20)),
    ("gpu.driver", |w| w.demand().drivers = vec!["580.95.06".to_owned()]),
    ("gpu.vbios", |w| w.demand().vbios = vec!["96.00.CF.00.01".to_owned()]),
    ("gpu.rim.missing", |w| w.endorsements = |rims, _| drop(rims.remove(0))),
    ("gpu.rim.missing", |w| w.endorsements = |rims, _| drop(rims.remove(1))),
    ("gpu.ocsp.missing", |w| drop(w.statuses.pop())),
    ("gpu.ocsp.missing", |w| drop(w.statuses.remove(0))),
];

const DEVICES: &[Row] = &[
    ("gpu.digest", |w| w.late = |world| world.statement.gpu_digest[0] ^= 1),
    ("gpu.layout", |w| w.evidence = |all| all[0].0 = vec![0; 0x2001]),
    ("gpu.layout", |w| w.evidence = |all| all[1].1 = Vec::new()),
    ("gpu.missing", |w| drop(w.devices.pop())),
    ("gpu.kind", |w| w.devices.push(SimulatedDevice::gpu(3))),
    ("gpu.kind", |w| w.devices[1] = SimulatedDevice::switch(2, 1, &[1, 2])),
    ("gpu.duplicate", |w| w.evidence = |all| all[1] = all[0].clone()),
    ("gpu.duplicate", |w| w.devices[1] = SimulatedDevice::gpu(1)),
    ("gpu.drivers", |w| w.devices[1].set(3, b"580.95.04\0")),
    ("gpu.report.layout", |w| w.evidence = |all| all[0].0[0] = 0x12),
    ("gpu.report.layout", |w| w.evidence = |all| all[0].0.truncate(95)),
    ("gpu.report.layout", |w| w.evidence = |all| all[0].0.insert(3_000, 0)),
    ("gpu.report.layout", |w| w.devices[0].claims.opaque.push((3, b"again".to_vec()))),
    ("gpu.report.layout", |w| w.devices[0].set(3, b"")),
    ("gpu.report.layout", |w| w.devices[0].set(3, b"580.95.05\0x")),
    ("gpu.report.layout", |w| w.devices[0].set(6, b"")),
    ("gpu.report.layout", |w| w.devices[0].set(20, &[1; 47])),
    ("gpu.report.layout", |w| w.devices[0].set(21, &[0x56])),
    ("gpu.report.layout", |w| w.devices[0].set(22, &[1; 9])),
    // Made for the same enclave's last epoch, and for another boot.
    ("gpu.report.nonce", |w| {
        w.late = |world| {
            world.statement.epoch = 8;
            world.key_config.epoch = 8;
            world.link();
        };
    }),
    ("gpu.report.nonce", |w| w.late = |world| world.statement.boot_id = [1; 16]),
    ("gpu.report.signature", |w| w.evidence = |all| *all[1].0.last_mut().unwrap() ^= 1),
    ("gpu.report.signature", |w| w.evidence = |all| all[1].0[110] ^= 1),
    ("gpu.report.signature", |w| {
        w.evidence = |all| {
            let other = all[0].1.clone();
            all[1].1 = other;
        };
    }),
    ("gpu.report.fwid", |w| w.devices[0].set(20, &[1; 48])),
    ("gpu.topology.switches", |w| w.devices[0].set(22, &[1; 8])),
    ("gpu.measurements", |w| w.devices[1].claims.measurements[8][0] ^= 1),
    ("gpu.measurements", |w| w.devices[1].claims.measurements[63][47] ^= 1),
    ("gpu.measurements", |w| w.devices[1].claims.measurements.truncate(63)),
];

/// Issues the certificates of the first GPU anew.
pub(super) fn reissue(w: &mut GpuWorld, change: fn(&mut CertificateDraft, &mut CertificateDraft)) {
    let gpu = &w.devices[0];
    let name = device_name("GH100 A01 GSP BROM", "410000000000000001");
    let mut device = CertificateDraft::authority(1, &root_name(), &name, gpu.device_key().point());
    let leaf_name = device_name("GH100 A01 GSP FMC LF", "1");
    let mut leaf = CertificateDraft::signer(1, &name, &leaf_name, gpu.attestation_key().point());
    leaf.extensions.push(fwid_extension(gpu.device_key().point(), &[0xF1; 48]));
    change(&mut leaf, &mut device);
    let certificates = [leaf.sign(gpu.device_key()), device.sign(&super::device::root_key())];
    w.devices[0].certificates.splice(..2, certificates);
}

const CERTIFICATES: &[Row] = &[
    ("gpu.certificate.der", |w| w.evidence = |all| all[0].1[0] ^= 1),
    ("gpu.certificate.der", |w| w.evidence = |all| all[0].1.push(0)),
    ("gpu.certificate.der", |w| reissue(w, |leaf, _| leaf.version = 1)),
    ("gpu.certificate.der", |w| reissue(w, |leaf, _| leaf.point[0] = 2)),
    ("gpu.certificate.der", |w| reissue(w, |leaf, _| leaf.not_after = "20261301000000Z")),
    ("gpu.certificate.der", |w| {
        reissue(w, |leaf, _| leaf.extensions.push(leaf.extensions[0].clone()))
    }),
    ("gpu.certificate.length", |w| drop(w.devices[0].certificates.drain(..2))),
    ("gpu.certificate.length", |w| {
        w.evidence = |all| {
            let chain = all[0].1.repeat(3);
            all[0].1 = chain;
        }
    }),
    ("gpu.certificate.root", |w| drop(w.devices[0].certificates.pop())),
    ("gpu.certificate.root", |w| {
        let key = Key::generate();
        let root = CertificateDraft::authority(1, &root_name(), &root_name(), key.point());
        w.devices[0].certificates[2] = root.sign(&key);
    }),
    ("gpu.certificate.critical_extension", |w| {
        reissue(w, |leaf, _| {
            leaf.extensions.push((b"\x55\x1d\x24".to_vec(), true, vec![5, 0]));
        })
    }),
    ("gpu.certificate.issuer", |w| reissue(w, |leaf, _| leaf.issuer = root_name())),
    ("gpu.certificate.issuer", |w| drop(w.devices[0].certificates.remove(1))),
    ("gpu.certificate.signature", |w| {
        let (leaf, other) = (SimulatedDevice::gpu(1), &mut w.devices[0]);
        other.certificates[0] = leaf.certificates[0].clone();
    }),
    ("gpu.certificate.authority", |w| reissue(w, |_, device| drop(device.extensions.remove(0)))),
    ("gpu.certificate.authority", |w| reissue(w, |_, device| drop(device.extensions.remove(1)))),
    ("gpu.certificate.leaf", |w| {
        reissue(w, |leaf, _| {
            leaf.extensions.push((BASIC_CONSTRAINTS.to_vec(), true, seq(&[tlv(0x01, &[0xFF])])));
        })
    }),
    ("gpu.certificate.leaf", |w| reissue(w, |leaf, _| drop(leaf.extensions.remove(0)))),
    // A responder's key signs statuses, and no reports.
    ("gpu.certificate.leaf", |w| {
        reissue(w, |leaf, _| {
            leaf.extensions.extend(responder(&[], &Key::generate()).extensions.pop())
        })
    }),
    // The root certifies other devices as well.
    ("gpu.certificate.kind", |w| {
        reissue(w, |leaf, device| {
            device.subject = device_name("BF3 A01 BROM", "410000000000000001");
            leaf.issuer.clone_from(&device.subject);
        })
    }),
    ("gpu.certificate.validity", |w| reissue(w, |_, device| device.not_after = "20260531235959Z")),
    ("gpu.certificate.validity", |w| reissue(w, |leaf, _| leaf.not_before = "20260601000001Z")),
    ("gpu.certificate.name", |w| {
        reissue(w, |leaf, device| {
            device.subject = seq(&[]);
            leaf.issuer = seq(&[]);
        })
    }),
    ("gpu.certificate.fwid", |w| reissue(w, |leaf, _| drop(leaf.extensions.pop()))),
    ("gpu.certificate.fwid_device", |w| {
        reissue(w, |leaf, _| {
            leaf.extensions.pop();
            leaf.extensions.push(fwid_extension(Key::generate().point(), &[0xF1; 48]));
        })
    }),
    ("gpu.report.fwid", |w| {
        reissue(w, |leaf, device| {
            leaf.extensions.pop();
            leaf.extensions.push(fwid_extension(&device.point, &[0xF2; 48]));
        })
    }),
];

/// Signs the manifest of the driver otherwise.
fn resign(w: &mut GpuWorld, change: fn(&mut Signer)) {
    change(&mut w.signer);
}

/// Replaces text in all manifests after they were signed.
pub(super) fn replaced(rims: &mut [Vec<u8>], from: &str, to: &str) {
    for rim in rims {
        let text = String::from_utf8(rim.clone()).expect("manifests are text");
        assert!(text.contains(from), "{from}");
        *rim = text.replacen(from, to, 1).into_bytes();
    }
}

/// A second signature behind the first.
const WRAPPED: &str = "<ds:Signature/></SoftwareIdentity>";

const RIMS: &[Row] = &[
    ("gpu.endorsements", |w| w.endorsements = |rims, _| rims.push(Vec::new())),
    ("gpu.rim.xml", |w| w.endorsements = |rims, _| rims[0].insert(0, b' ')),
    ("gpu.rim.xml", |w| w.endorsements = |rims, _| rims[0][40] = 0xFF),
    ("gpu.rim.xml", |w| w.endorsements = |rims, _| replaced(rims, " corpus", "  corpus")),
    ("gpu.rim.form", |w| w.endorsements = |rims, _| replaced(rims, "ns0:Entity", "ns0:Entite")),
    ("gpu.rim.form", |w| {
        w.endorsements = |rims, _| replaced(rims, "</ds:X509Data>", "</ds:X509Data>\n ")
    }),
    // The document's signature is not in its digest, and another one in an odd place is.
    ("gpu.rim.form", |w| w.endorsements = |rims, _| replaced(rims, "</SoftwareIdentity>", WRAPPED)),
    ("gpu.rim.digest", |w| {
        let within = |rims: &mut Vec<Vec<u8>>, _: &mut Vec<Vec<u8>>| {
            replaced(rims, "tagCreator\"/>", "tagCreator\"><ds:Signature/></ns0:Entity>");
        };
        w.endorsements = within;
    }),
    ("gpu.rim.form", |w| {
        let second = "</ds:Reference><ds:Reference URI=\"\"><ds:DigestValue>AA==</ds:DigestValue></ds:Reference>";
        w.driver_rim.twist = ("</ds:Reference>", second);
    }),
    ("gpu.rim.form", |w| w.driver_rim.twist = ("Reference URI=\"\"", "Reference URI=\"#a\"")),
    ("gpu.rim.form", |w| {
        w.driver_rim.twist = ("2000/09/xmldsig#enveloped-signature", "2000/09/xmldsig#base64")
    }),
    ("gpu.rim.form", |w| w.driver_rim.twist = ("2006/12/xml-c14n11", "2001/10/xml-exc-c14n#")),
    ("gpu.rim.form", |w| w.driver_rim.twist = ("xmldsig-more#sha384", "xmldsig-more#sha256")),
    ("gpu.rim.xml", |w| w.driver_rim.twist = ("</ns0:Payload>", "<!-- --></ns0:Payload>")),
    ("gpu.rim.xml", |w| w.driver_rim.twist = ("revision=\"r1\"", "revision=\"&#114;1\"")),
    ("gpu.rim.form", |w| w.driver_rim.twist = ("corpus=\"false\"", "corpus=\"true\"")),
    ("gpu.rim.form", |w| w.driver_rim.twist = ("NVIDIA Corporation", "Nvidia Corporation")),
    ("gpu.rim.form", |w| {
        w.driver_rim.twist = ("PayloadType=\"direct\"", "PayloadType=\"indirect\"")
    }),
    ("gpu.rim.form", |w| w.driver_rim.twist = (" name=\"GH100\"", " name=\"GH200\"")),
    ("gpu.rim.form", |w| w.driver_rim.twist = ("ns0:Payload", "ns0:Payloae")),
    // Measurements: the index twice, one left out, and what does not have the form.
    ("gpu.rim.form", |w| w.driver_rim.twist = (" index=\"9\"", " index=\"8\"")),
    ("gpu.rim.form", |w| w.driver_rim.twist = (" index=\"63\"", " index=\"64\"")),
    ("gpu.rim.form", |w| w.driver_rim.twist = (" size=\"48\"", " size=\"32\"")),
    ("gpu.rim.form", |w| w.driver_rim.twist = (" alternatives=\"2\"", " alternatives=\"3\"")),
    ("gpu.rim.form", |w| w.driver_rim.twist = (" active=\"True\"", " active=\"true\"")),
    ("gpu.rim.form", |w| w.driver_rim.twist = (" type=\"Measurement\"", " type=\"Other\"")),
    ("gpu.rim.form", |w| w.driver_rim.twist = ("ns2:Hash0=\"ee", "ns2:Hash0=\"EE")),
    ("gpu.rim.form", |w| w.driver_rim.twist = ("ns2:Hash0=\"eeee", "ns2:Hash0=\"ee")),
    ("gpu.rim.form", |w| {
        w.driver_rim.twist = (" name=\"Measurement_3\"", " name=\"Measurement_3\" note=\"x\"")
    }),
    ("gpu.rim.form", |w| w.driver_rim.twist = ("ns0:Resource", "ns0:Resourcf")),
    ("gpu.rim.form", |w| {
        w.driver_rim.algorithm = "http://www.w3.org/2001/04/xmldsig-more#rsa-sha384"
    }),
    ("gpu.rim.form", |w| w.driver_rim.edition = "CPU"),
    ("gpu.rim.form", |w| w.driver_rim.golden = vec![Vec::new(); 64]),
    ("gpu.rim.root", |w| resign(w, |signer| drop(signer.chain.pop()))),
    ("gpu.rim.validity", |w| {
        resign(w, |signer| {
            signer.leaf.not_after = "20260531235959Z";
            signer.chain[0] = signer.leaf.sign(&signer.authority);
        })
    }),
    ("gpu.rim.certificate", |w| resign(w, |signer| signer.chain.swap(0, 1))),
    // A signer may not certify another signer: the path length of its issuer is 0.
    ("gpu.rim.certificate", |w| {
        resign(w, |signer| {
            let (key, name) = (Key::generate(), root_name());
            let middle = CertificateDraft::authority(11, &signer.leaf.issuer, &name, key.point());
            signer.leaf.issuer = name;
            signer.chain.insert(1, middle.sign(&signer.authority));
            signer.chain[0] = signer.leaf.sign(&key);
        })
    }),
    ("gpu.rim.signature", |w| resign(w, |signer| signer.key = Key::generate())),
    ("gpu.rim.signature", |w| {
        w.endorsements = |rims, _| {
            let digest = "<ds:DigestValue>";
            replaced(rims, digest, digest);
            for rim in rims {
                let text = String::from_utf8(rim.clone()).unwrap();
                let at = text.find(digest).unwrap() + digest.len();
                rim[at] = if rim[at] == b'A' { b'B' } else { b'A' };
            }
        }
    }),
    ("gpu.rim.digest", |w| {
        w.endorsements = |rims, _| replaced(rims, "active=\"False\"", "active=\"True\"")
    }),
    ("gpu.rim.digest", |w| {
        w.endorsements = |rims, _| replaced(rims, "revision=\"r1\"", "revision=\"r2\"")
    }),
    ("gpu.rim.unused", |w| w.driver_rim.version = "580.95.06".to_owned()),
    ("gpu.rim.unused", |w| w.vbios_rim.product = "GB100".to_owned()),
    ("gpu.rim.overlap", |w| {
        let measurements = w.devices[0].claims.measurements.clone();
        w.vbios_rim = RimDraft::new("96.00.CF.00.02", &measurements, &[1, 8]);
    }),
];

/// Every status of a device signed by a responder that the root named.
pub(super) fn delegated(statuses: &mut [Vec<u8>], change: fn(&mut CertificateDraft)) {
    let (root, key) = (super::device::root_key(), Key::generate());
    let mut certificate = responder(&root_name(), &key);
    change(&mut certificate);
    let status = StatusDraft::good(&root_name(), &root, 1);
    statuses[0] = status.sign(&key, Some(&certificate.sign(&root)));
}

const STATUSES: &[Row] = &[
    ("gpu.ocsp.form", |w| w.endorsements = |_, all| all[0].push(0)),
    ("gpu.ocsp.form", |w| w.statuses[0].outcome = 6),
    ("gpu.ocsp.form", |w| w.statuses[0].state = tlv(0x80, &[0])),
    ("gpu.ocsp.form", |w| w.statuses[0].next_update = "20260602000000+"),
    ("gpu.ocsp.unused", |w| w.statuses[0].serial = 99),
    ("gpu.ocsp.unused", |w| w.statuses[0].issuer_name = seq(&[])),
    ("gpu.ocsp.unused", |w| w.statuses[0].issuer_point = Key::generate().point().to_vec()),
    ("gpu.ocsp.signature", |w| w.endorsements = |_, all| *all[0].last_mut().unwrap() ^= 1),
    ("gpu.ocsp.validity", |w| w.statuses[0].this_update = "20260601000001Z"),
    ("gpu.ocsp.validity", |w| w.statuses[0].next_update = "20260531235959Z"),
    ("gpu.ocsp.revoked", |w| w.statuses[0].state = tlv(0xA1, &tlv(0x18, b"20260101000000Z"))),
    ("gpu.ocsp.unknown", |w| w.statuses[0].state = tlv(0x82, &[])),
    ("gpu.ocsp.purpose", |w| {
        w.endorsements = |_, all| delegated(all, |r| drop(r.extensions.pop()))
    }),
    ("gpu.ocsp.responder", |w| w.endorsements = |_, all| delegated(all, |r| r.issuer = seq(&[]))),
    ("gpu.ocsp.responder", |w| {
        w.endorsements = |_, all| delegated(all, |r| r.not_after = "20260531235959Z");
    }),
    ("gpu.ocsp.responder", |w| {
        w.endorsements = |_, all| delegated(all, |r| drop(r.extensions.remove(0)));
    }),
];

const PPCIE: &[Row] = &[
    ("gpu.ppcie", |w| w.demand().allow_ppcie = false),
    ("gpu.nvlink_clear", |w| w.demand().allow_nvlink_clear = false),
    ("gpu.ppcie_mismatch", |w| w.devices[0].set(21, &[0x55])),
    ("gpu.topology.switches", |w| drop(w.devices.pop())),
    ("gpu.topology.switches", |w| w.devices[3].set(22, &[9; 8])),
    ("gpu.topology.switches", |w| w.devices[1].set(22, &[0; 16])),
    ("gpu.topology.gpus", |w| {
        w.devices[3] = SimulatedDevice::switch(4, 0xC3BB_8FD8_3764_14CA, &[0x11, 0x22, 0x33]);
    }),
    ("gpu.topology.different", |w| {
        w.devices[3] = SimulatedDevice::switch(4, 0xC3BB_8FD8_3764_14CA, &[0x11, 0x33]);
    }),
    ("gpu.kind", |w| w.devices.swap(1, 2)),
    ("gpu.vbios", |w| drop(w.demand().vbios.pop())),
    ("gpu.rim.missing", |w| w.switch_rim = None),
    ("gpu.measurements", |w| w.devices[2].claims.measurements[30] = [0; 48]),
    // Index 35 is a decoder's on GPUs alone.
    ("gpu.measurements", |w| {
        w.devices[2].claims.measurements[35] = [0; 48];
        w.devices[2].set(11, &[0x55]);
    }),
    ("gpu.report.layout", |w| w.devices[2].set(26, &[1; 9])),
    ("gpu.report.layout", |w| w.devices[2].claims.opaque.retain(|(kind, _)| *kind != 26)),
];

#[test]
fn the_table_of_a_policy_is_read_back_and_every_key_of_it_has_to_be_there() {
    let policy = GpuWorld::honest(2).world.policy;
    let text = policy.to_toml();
    assert_eq!(AppraisalPolicy::from_toml(&text), Ok(policy));
    for key in [
        "count",
        "drivers",
        "vbios",
        "require_rims",
        "require_ocsp",
        "allow_ppcie",
        "allow_nvlink_clear",
    ] {
        let others = text.lines().filter(|line| !line.starts_with(&format!("{key} = ")));
        let others: Vec<_> = others.collect();
        assert_eq!(others.len() + 1, text.lines().count(), "{key} is there once");
        let refused = AppraisalPolicy::from_toml(&others.join("\n")).expect_err(key);
        assert!(refused.to_string().contains(&format!("gpu.{key}")), "{refused}");
    }
    let none = text.replace("\ncount = 2", "\ncount = 0");
    let refused = AppraisalPolicy::from_toml(&none).expect_err("no gpu");
    assert!(refused.to_string().contains("gpu.count"), "{refused}");
}

#[test]
fn the_order_of_the_gpus_is_part_of_what_is_attested() {
    let world = GpuWorld::honest(2);
    let mut parts = world.parts();
    let section = parts.gpu.take().unwrap();
    let mut devices = Device::parse_all(&section).unwrap();
    devices.reverse();
    parts.gpu = Some(Device::to_bytes(&devices));
    let refused = world.world.appraise(&parts).map_err(|error| error.code());
    assert_eq!(refused, Err("gpu.digest"));
    let statement = Statement::from_bytes(&parts.statement).unwrap();
    assert_eq!(statement.gpu_count, 2);
}
