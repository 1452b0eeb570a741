//! A floors file is read only as its signer wrote it, and says what its source says.

use crate::floors_source;
use crate::simulated::floors_key;
use aws_lc_rs::signature::KeyPair;
use chrysalis_attestation::policy::{FLOORS_SIGNER, FileKind, FloorTable, Floors, SignedFileError};
use chrysalis_attestation::report::{Product, Tcb};

/// Refusals that come before the file is used.
pub(super) const CODES: [&str; 3] = ["floors.layout", "floors.signer", "floors.signature"];

#[test]
fn the_built_in_file_is_its_source_signed_by_the_pinned_key() {
    let floors = Floors::built_in().expect("the program is whole");
    let source = floors_source::read(include_str!("../../../src/floors/amd.toml"));
    assert_eq!(Ok(floors.table().clone()), source);
    assert_eq!(floors.signer(), &FLOORS_SIGNER);
    let milan = floors.floor(Product::Milan, 1, floors.table().issued).expect("it has a floor");
    assert_eq!(milan.tcb.snp, 0x18, "AMD-SB-3019");
}

#[test]
fn every_flipped_bit_cut_and_extension_of_a_floors_file_is_refused() {
    let (file, signer) = signed(|_| {});
    assert!(Floors::open(&file, &signer).is_ok());
    for bit in 0..file.len() * 8 {
        let mut file = file.clone();
        file[bit / 8] ^= 1 << (bit % 8);
        let refused = Floors::open(&file, &signer).expect_err("a flipped bit");
        assert!(CODES.contains(&refused.code()), "bit {bit}: {refused}");
    }
    for len in 0..file.len() {
        assert!(Floors::open(&file[..len], &signer).is_err(), "cut at {len}");
    }
    for byte in 0..=255 {
        assert!(Floors::open(&[&file, &[byte][..]].concat(), &signer).is_err());
    }
    println!("{} flipped bits of a floors file, none accepted", file.len() * 8);
}

#[test]
fn a_file_of_another_signer_is_refused() {
    let (file, signer) = signed(|_| {});
    let refused = Floors::open(&file, &FLOORS_SIGNER).expect_err("another key");
    assert_eq!(
        refused,
        SignedFileError::Signer { file: FileKind::Floors, found: signer, expected: FLOORS_SIGNER }
    );
    // The pinned key's name under somebody else's signature.
    let mut file = file;
    file[32..64].copy_from_slice(&FLOORS_SIGNER);
    assert_eq!(
        Floors::open(&file, &FLOORS_SIGNER),
        Err(SignedFileError::Signature { file: FileKind::Floors })
    );
}

/// A field, and how it is got wrong.
type Wrong = (&'static str, fn(&mut FloorTable));

/// Fields that a signer could get wrong.
const WRONG: &[Wrong] = &[
    ("version", |t| t.version = 0),
    ("count", |t| t.records.clear()),
    ("count", |t| t.records.extend(t.records.clone())),
    ("expires", |t| t.expires = t.issued),
    ("product", |t| t.records[1] = t.records[0]),
    ("product", |t| t.records.swap(0, 1)),
    ("fmc", |t| t.records[1].tcb = Tcb { fmc: Some(1), ..t.records[1].tcb }),
];

#[test]
fn each_field_with_a_value_that_it_cannot_have_is_named() {
    for (name, change) in WRONG {
        let (file, signer) = signed(change);
        match Floors::open(&file, &signer) {
            Err(SignedFileError::Field { field, .. }) => assert_eq!(field, *name),
            other => panic!("{name}: {other:?}"),
        }
    }
    // Bytes behind the records, signed with them.
    let (file, signer) = signed(|_| {});
    let longer = [&file[..file.len() - 64], &[0]].concat();
    let signature = floors_key().sign(&[b"chrysalis1 floors\0", longer.as_slice()].concat());
    let refused = Floors::open(&[&longer, signature.as_ref()].concat(), &signer);
    assert!(matches!(refused, Err(SignedFileError::Layout { .. })), "{refused:?}");
    // A product that is none, and reserved bytes.
    for (at, value) in [(64, 0), (64, 4), (64 + 11, 1), (64 + 15, 1)] {
        let mut file = file.clone();
        file[at] = value;
        let refused = Floors::open(&file, &signer).expect_err("an unknown value");
        assert_eq!(refused.code(), "floors.layout", "{refused}");
    }
}

#[test]
fn what_is_signed_is_read_back() {
    let change = |table: &mut FloorTable| {
        table.version = 0xFFFF_FFFF;
        table.records.remove(0);
        table.records[0].tcb = Tcb { fmc: None, bootloader: 1, tee: 2, snp: 3, microcode: 4 };
        table.records[1].tcb = Tcb { fmc: Some(5), bootloader: 6, tee: 7, snp: 8, microcode: 9 };
        table.records[1].firmware.build = 10;
        table.records[1].abi.major = 11;
        table.records[1].mitigations = 12 << 56;
    };
    let (file, signer) = signed(change);
    let mut expected = Floors::built_in().expect("the program is whole").table().clone();
    change(&mut expected);
    assert_eq!(Floors::open(&file, &signer).expect("it is well formed").table(), &expected);
}

/// The built-in file's content with a change, signed by the key of the tests.
fn signed(change: impl FnOnce(&mut FloorTable)) -> (Vec<u8>, [u8; 32]) {
    let mut table = Floors::built_in().expect("the program is whole").table().clone();
    change(&mut table);
    let signer = floors_key().public_key().as_ref().try_into().expect("32 bytes");
    (table.sign(&floors_key()), signer)
}
