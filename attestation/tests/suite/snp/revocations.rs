//! A revocation list is read only as a pinned ARK signed it.

use crate::simulated::issue::{integer, pss_sha384, tlv};
use crate::simulated::revocations::ListDraft;
use crate::simulated::{ark_key, ask_key};
use chrysalis_attestation::verifier::RevocationList;

/// Expected code; what is changed before the list is signed; after it.
type File = (&'static str, fn(&mut ListDraft), fn(&mut Vec<u8>));

#[rustfmt::skip]
pub(super) const FILES: &[File] = &[
    ("crl.der", |_| {}, |der| der.push(0)),
    ("crl.der", |_| {}, |der| der.truncate(600)),
    ("crl.der", |_| {}, Vec::clear),
    ("crl.der", |l| l.write_default = true, |_| {}),
    // Version 1 has no number.
    ("crl.der", |l| l.version = Vec::new(), |_| {}),
    ("crl.version", |l| l.version = integer(2), |_| {}),
    ("crl.algorithm", |l| l.algorithm = sha256_inside(), |_| {}),
    ("crl.issuer", |l| l.issuer = "SEV-Simulated".to_owned(), |_| {}),
    ("crl.signature", |_| {}, |der| *der.last_mut().unwrap() ^= 1),
    ("crl.next_update", |l| l.next_update = None, |_| {}),
    // A delta, one of several issuers, and an entry of another issuer.
    ("crl.critical_extension", |l| l.extensions.push((oid(27), true, integer(1))), |_| {}),
    ("crl.critical_extension", |l| l.extensions.push((oid(28), true, tlv(0x30, &[]))), |_| {}),
    ("crl.critical_extension", |l| l.entry_extensions.push((oid(29), true, tlv(0x30, &[]))), |_| {}),
];

#[test]
fn each_list_that_is_not_whole_and_signed_is_refused_by_name() {
    let der = ListDraft::of(&[1]).sign(&ark_key()).expect("the key signs");
    let list = RevocationList::open(&der).expect("the honest row comes first");
    assert_eq!((list.this_update(), list.next_update()), (1_777_593_600, 1_809_129_600));
    for &(code, before, after) in FILES {
        let mut draft = ListDraft::of(&[1]);
        before(&mut draft);
        let mut der = draft.sign(&ark_key()).expect("the key signs");
        after(&mut der);
        let refused = RevocationList::open(&der).expect_err(code);
        assert_eq!(refused.code(), code, "{refused}");
    }
    // What an entry says of its reason is not critical.
    let mut draft = ListDraft::of(&[1]);
    draft.entry_extensions.push((oid(21), false, tlv(0x0A, &[1])));
    assert!(RevocationList::open(&draft.sign(&ark_key()).expect("the key signs")).is_ok());
}

#[test]
fn a_list_that_another_key_signed_is_refused() {
    let der = ListDraft::of(&[]).sign(&ask_key()).expect("the key signs");
    let refused = RevocationList::open(&der).expect_err("the ASK's signature");
    assert_eq!(refused.code(), "crl.signature", "{refused}");
}

#[test]
fn every_flipped_bit_and_every_cut_of_a_list_is_refused() {
    let der = ListDraft::of(&[2, 7]).sign(&ark_key()).expect("the key signs");
    for bit in 0..der.len() * 8 {
        let mut der = der.clone();
        der[bit / 8] ^= 1 << (bit % 8);
        assert!(RevocationList::open(&der).is_err(), "bit {bit}");
    }
    for len in 0..der.len() {
        assert!(RevocationList::open(&der[..len]).is_err(), "cut at {len}");
    }
    println!("{} flipped bits of a revocation list, none accepted", der.len() * 8);
}

/// An extension of RFC 5280, 2.5.29.`number`.
fn oid(number: u8) -> Vec<u8> {
    vec![0x55, 0x1D, number]
}

fn sha256_inside() -> Vec<u8> {
    let mut algorithm = pss_sha384();
    let at = algorithm.windows(2).position(|w| w == b"\x02\x02").expect("sha-384");
    algorithm[at + 1] = 1;
    algorithm
}
