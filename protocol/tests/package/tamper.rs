//! Every flipped bit, every cut and every foreign part is refused by a named check.

use std::collections::BTreeMap;

use blake3::hazmat::HasherExt;
use chrysalis_protocol::package::{Package, PackageError, PackageKey};

use crate::support::{Made, Random, Recipe, key, name_of, refusal, sign_into};

fn key_of(made: &Made) -> Option<&PackageKey> {
    made.key.as_ref()
}

/// Reads the whole package and expects a refusal.
fn load(made: &Made) -> PackageError {
    let package = made.open().unwrap();
    package
        .read_segments(&mut made.blobs.clone(), |_, _, _| Ok::<(), PackageError>(()))
        .expect_err("the package was loaded")
}

/// The names of the checks that refused each bit of the package file, by its parts.
fn flips(made: &Made) -> BTreeMap<&'static str, Vec<String>> {
    let header = made.public.header();
    let tags = if header.sealed { 16 } else { 0 };
    let meta_end = 512 + header.meta_len as usize + tags;
    let table = meta_end.next_multiple_of(512);
    let mut names: BTreeMap<_, Vec<String>> = BTreeMap::new();
    for bit in 0..made.file.len() * 8 {
        let mut file = made.file.clone();
        file[bit / 8] ^= 1 << (bit % 8);
        let part = match bit / 8 {
            at if at < 256 => "header",
            at if at < 360 => "signature",
            at if at < 512 || (meta_end..table).contains(&at) => "zeros",
            at if at < table => "meta",
            _ => "table",
        };
        names.entry(part).or_default().push(name_of(&refusal(&file, key_of(made))));
    }
    names.values_mut().for_each(|names| {
        names.sort();
        names.dedup();
    });
    names
}

#[test]
fn every_flipped_bit_of_an_open_package_file_is_refused() {
    let names = flips(&Recipe::tiny(false).make());
    assert_eq!(names["meta"], ["MetaRoot"]);
    assert_eq!(names["table"], ["TableRoot"]);
    assert_eq!(names["zeros"], ["Layout"]);
    assert_eq!(names["signature"], ["Layout", "PublisherKeyId", "Signature", "SignatureAlgorithm"]);
    assert_eq!(names.len(), 5);
}

#[test]
fn every_flipped_bit_of_a_sealed_package_file_is_refused() {
    let names = flips(&Recipe::tiny(true).make());
    assert_eq!(names["meta"], ["MetaSeal"]);
    assert_eq!(names["table"], ["TableSeal"]);
    assert_eq!(names["zeros"], ["Layout"]);
    for check in ["Layout", "Flags", "Aead", "Hash", "SegmentLog2", "BlobLog2", "Signature"] {
        assert!(names["header"].iter().any(|name| name == check), "{check}: {names:?}");
    }
    for check in ["DataLen", "MetaLen", "SegmentCount", "BlobCount", "PublisherKeyId"] {
        assert!(names["header"].iter().any(|name| name == check), "{check}: {names:?}");
    }
}

#[test]
fn every_cut_and_every_added_byte_is_refused() {
    for sealed in [false, true] {
        let made = Recipe::tiny(sealed).make();
        for len in 0..made.file.len() {
            let name = name_of(&refusal(&made.file[..len], key_of(&made)));
            assert_eq!(name, if len < 512 { "Layout" } else { "FileLen" }, "{len} bytes");
        }
        for added in [vec![0], vec![0; 512], made.file.clone()] {
            let file = [made.file.clone(), added].concat();
            assert_eq!(name_of(&refusal(&file, key_of(&made))), "FileLen");
        }
    }
}

#[test]
fn every_flipped_bit_of_a_small_segment_is_refused() {
    for (sealed, check) in [(false, "SegmentHash"), (true, "SegmentSeal")] {
        let made = Recipe::tiny(sealed).make();
        let package = made.open().unwrap();
        for bit in 0..made.blobs.0[0].len() * 8 {
            let mut segment = made.blobs.0[0].clone();
            segment[bit / 8] ^= 1 << (bit % 8);
            let error = package.open_segment(0, &mut segment).unwrap_err();
            assert_eq!(name_of(&error), check, "bit {bit}");
            assert!(segment.iter().all(|&byte| byte == 0), "a refused segment is wiped");
        }
    }
}

#[test]
fn flipped_bits_of_large_segments_are_refused_by_name_and_number() {
    for (sealed, check) in [(false, "SegmentHash"), (true, "SegmentSeal")] {
        let made = Recipe::small(sealed).make();
        let package = made.open().unwrap();
        let mut random = Random(5);
        for trial in 0..64 {
            let index = trial % package.num_segments();
            let mut segment = vec![0; package.place(index).unwrap().len];
            let place = package.place(index).unwrap();
            let start = place.offset as usize;
            let stored = &made.blobs.0[place.blob as usize][start..start + place.len];
            segment.copy_from_slice(stored);
            let bit = random.next() as usize % (segment.len() * 8);
            segment[bit / 8] ^= 1 << (bit % 8);
            let error = package.open_segment(index, &mut segment).unwrap_err();
            assert_eq!(name_of(&error), check);
            assert!(error.to_string().contains(&format!("segment {index}")), "{error}");
        }
    }
}

#[test]
fn swapped_segments_are_refused() {
    for (sealed, check) in [(false, "SegmentHash"), (true, "SegmentSeal")] {
        let mut made = Recipe::small(sealed).make();
        let (first, second) = made.blobs.0[0].split_at_mut(1 << 20);
        first.swap_with_slice(second);
        assert_eq!(name_of(&load(&made)), check);
    }
}

#[test]
fn segments_of_another_package_with_the_same_key_are_refused() {
    let mut made = Recipe::small(true).make();
    let other = Recipe { package_id: [0xA6; 16], ..Recipe::small(true) }.make();
    assert_eq!(made.public.content_digest(), other.public.content_digest());
    made.blobs = other.blobs.clone();
    assert!(matches!(load(&made), PackageError::SegmentSeal { segment: 0 }));
    // Its meta and table do not fit either.
    let table_start = made.file.len() - (4 * 48 + 16);
    let mut file = made.file.clone();
    file[table_start..].copy_from_slice(&other.file[table_start..]);
    let error = refusal(&file, key_of(&made));
    assert!(matches!(error, PackageError::TableSeal { segment: 0 }));
    let mut file = made.file.clone();
    file[512..table_start].copy_from_slice(&other.file[512..table_start]);
    let error = refusal(&file, key_of(&made));
    assert!(matches!(error, PackageError::MetaSeal { segment: 0 }));
}

#[test]
fn other_weights_under_the_same_key_and_package_id_are_refused() {
    let mut made = Recipe::small(true).make();
    made.blobs = Recipe { seed: 9, ..Recipe::small(true) }.make().blobs;
    assert!(matches!(load(&made), PackageError::SegmentSeal { segment: 0 }));
}

#[test]
fn a_short_or_missing_blob_is_refused() {
    let mut made = Recipe::small(true).make();
    made.blobs.0[1].pop();
    assert!(matches!(load(&made), PackageError::Read { segment: 3, blob: 1, .. }));
    made.blobs.0.pop();
    assert!(matches!(load(&made), PackageError::Read { segment: 2, blob: 1, .. }));
}

#[test]
fn a_buffer_of_another_length_and_an_unknown_segment_are_refused() {
    let made = Recipe::small(true).make();
    let package = made.open().unwrap();
    let error = package.open_segment(0, &mut [0; 7]).unwrap_err();
    assert!(matches!(error, PackageError::SegmentLen { segment: 0, found: 7, .. }));
    for index in [4, u64::MAX] {
        let error = package.open_segment(index, &mut []).unwrap_err();
        assert!(matches!(error, PackageError::SegmentIndex { count: 4, .. }));
    }
}

#[test]
fn a_wrong_a_missing_and_a_needless_key_are_refused() {
    let (open, sealed) = (Recipe::tiny(false).make(), Recipe::tiny(true).make());
    assert!(matches!(refusal(&sealed.file, Some(&key(0x23))), PackageError::WrongKey));
    assert!(matches!(refusal(&sealed.file, None), PackageError::KeyMissing));
    assert!(matches!(refusal(&open.file, Some(&key(0x22))), PackageError::KeyUnexpected));
}

#[test]
fn a_header_with_a_signature_of_another_header_is_refused() {
    let made = Recipe::tiny(true).make();
    let other = Recipe { seed: 2, ..Recipe::tiny(true) }.make();
    let mut file = made.file.clone();
    file[256..360].copy_from_slice(&other.file[256..360]);
    assert!(matches!(refusal(&file, key_of(&made)), PackageError::Signature));
}

#[test]
fn a_hostile_publisher_is_refused_by_each_later_check() {
    let made = Recipe::small(false).make();
    let refused = |file: &[u8]| name_of(&refusal(file, None));
    assert_eq!(refused(&made.signed_again(|h| h.data_root[0] ^= 1)), "DataRoot");
    assert_eq!(refused(&made.signed_again(|h| h.meta_root[0] ^= 1)), "MetaRoot");
    assert_eq!(refused(&made.signed_again(|h| h.table_root[0] ^= 1)), "TableRoot");
    assert_eq!(refused(&made.signed_again(|h| h.data_len -= 1)), "DataCover");
    assert_eq!(refused(&made.signed_again(|h| h.key_commit[0] = 1)), "KeyCommitPresence");
    assert_eq!(refused(&made.signed_again(|h| h.meta_len += 512)), "FileLen");
    assert_eq!(refused(&made.signed_again(|h| h.data_len = u64::MAX)), "DataLen");
    assert_eq!(refused(&made.signed_again(|h| h.meta_len = u64::MAX)), "MetaLen");
    assert_eq!(
        refused(&made.signed_again(|h| (h.data_len, h.blob_log2) = (1 << 41, 21))),
        "TooManyBlobs"
    );
    let tagged = with_table(&made, |table| table[47] = 1);
    assert_eq!(refused(&tagged), "TagPresence");
    let other_value = with_table(&made, |table| table[48] ^= 1);
    assert_eq!(refused(&other_value), "DataRoot");
}

/// The open package with an edited table and the root that goes with it.
fn with_table(made: &Made, edit: impl FnOnce(&mut [u8])) -> Vec<u8> {
    let mut file = made.file.clone();
    let start = file.len() - 48 * made.public.header().segment_count() as usize;
    edit(&mut file[start..]);
    let mut header = made.public.header().clone();
    header.table_root = blake3::hash(&file[start..]).into();
    sign_into(&file, &header)
}

#[test]
fn bytes_hidden_between_tensors_are_refused() {
    let made = Recipe::tiny(false).make();
    // Tensor 0 has 60 bytes: the gap is 60..256.
    for at in [60, 255] {
        let mut data = made.data();
        data[at] = 1;
        let value = blake3::Hasher::new().update(&data).finalize_non_root();
        let mut file = with_table(&made, |table| table[..32].copy_from_slice(&value));
        let mut header =
            chrysalis_protocol::package::Header::from_bytes(file[..256].try_into().unwrap())
                .unwrap();
        header.data_root = blake3::hash(&data).into();
        file = sign_into(&file, &header);
        let package = Package::open(&file, None).unwrap();
        let error = package.open_segment(0, &mut data).unwrap_err();
        assert!(matches!(error, PackageError::GapNotZero { segment: 0, offset: 256 }));
    }
}

#[test]
fn a_single_segment_is_held_to_the_data_root_too() {
    let made = Recipe::tiny(false).make();
    let file = made.signed_again(|header| header.data_root[0] ^= 1);
    let package = Package::open(&file, None).unwrap();
    let error = package.open_segment(0, &mut made.data()).unwrap_err();
    assert!(matches!(error, PackageError::SegmentHash { segment: 0 }));
}
