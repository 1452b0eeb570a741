//! What was written comes back, cut by tensor, and is hashed as `b3sum` would.

use std::collections::HashMap;
use std::io;

use chrysalis_protocol::package::{
    BlobSource, ClientBundle, PackageError, PackageOptions, PackageWriter, PublicHeader,
};
use proptest::prelude::*;

use crate::support::{Blobs, Made, Recipe, Shape, key, publisher};

/// All tensors of a package, read in order.
fn read(made: &Made, source: &mut dyn BlobSource) -> Result<Vec<Vec<u8>>, PackageError> {
    let package = made.open()?;
    let mut tensors = vec![Vec::new(); package.meta().tensors.len()];
    package.read_segments(source, |tensor, offset, bytes| -> Result<(), PackageError> {
        assert_eq!(tensors[tensor].len() as u64, offset, "pieces come in order");
        tensors[tensor].extend_from_slice(bytes);
        Ok(())
    })?;
    Ok(tensors)
}

fn shape() -> impl Strategy<Value = Shape> {
    let rows = prop_oneof![3 => 1..50_u32, 1 => 100..600_u32];
    let dtype = prop::sample::select(vec![0, 1, 2, 3, 6, 7, 8, 12, 13, 14, 30, 0x8000]);
    (dtype, rows, 1..9_u32, any::<bool>()).prop_map(|(dtype, rows, groups, flat)| match dtype {
        0 | 1 | 30 if flat => (dtype, vec![rows * 7]),
        0 | 1 | 30 => (dtype, vec![rows, groups * 131]),
        12..=14 => (dtype, vec![rows, groups * 256]),
        0x8000 => (dtype, vec![rows, groups * 128]),
        _ => (dtype, vec![rows, groups * 32]),
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn a_package_comes_back_as_it_was_written(
        shapes in prop::collection::vec(shape(), 1..12),
        sealed: bool,
        blob_log2 in 20..23_u8,
        seed in 1..u64::MAX,
        piece in 1_000..3_000_000_usize,
    ) {
        let made = Recipe { shapes, blob_log2, seed, piece, ..Recipe::tiny(sealed) }.make();
        let header = made.public.header();
        prop_assert_eq!(blake3::Hash::from(header.data_root), blake3::hash(&made.data()));
        prop_assert_eq!(made.blobs.0.len() as u64, header.blob_count());
        prop_assert_eq!(made.file.len() as u64, header.file_len());
        let package = made.open().unwrap();
        prop_assert_eq!(package.meta(), &made.meta);
        prop_assert_eq!(package.public(), &made.public);
        prop_assert!(read(&made, &mut made.blobs.clone()).unwrap() == made.tensors);
    }
}

/// One F16 tensor and one BF16 value, so that the data has any even number of bytes.
fn of_len(len: usize, sealed: bool) -> Made {
    let shapes = vec![(1, vec![(len / 2) as u32])];
    Recipe { shapes, piece: 1 << 20, ..Recipe::tiny(sealed) }.make()
}

#[test]
fn the_data_root_is_the_plain_hash_around_every_segment_boundary() {
    for segments in [1, 2, 3, 4, 5, 8] {
        for (difference, sealed) in [(-2, true), (0, false), (2, false), (1024, true)] {
            let len = ((segments << 20) + difference) as usize;
            let made = of_len(len, sealed);
            let root = blake3::Hash::from(made.public.header().data_root);
            assert_eq!(root, blake3::hash(&made.data()), "{len} bytes");
            assert!(read(&made, &mut made.blobs.clone()).unwrap() == made.tensors, "{len} bytes");
        }
    }
}

#[test]
fn sealing_changes_the_package_and_not_the_content() {
    let (open, sealed) = (Recipe::small(false).make(), Recipe::small(true).make());
    assert_eq!(open.public.content_digest(), sealed.public.content_digest());
    assert_ne!(open.public.package_digest(), sealed.public.package_digest());
    let sizes = |made: &Made| made.blobs.0.iter().map(Vec::len).collect::<Vec<_>>();
    assert_eq!(sizes(&open), sizes(&sealed), "segments are sealed in place");
    assert_eq!(open.blobs.0.concat(), open.data());
    assert!(open.blobs.0 != sealed.blobs.0);
}

#[test]
fn every_byte_of_a_blob_is_read_once() {
    struct Once(Blobs, HashMap<(u32, u64), usize>);
    impl BlobSource for Once {
        fn read_at(&mut self, blob: u32, offset: u64, buf: &mut [u8]) -> io::Result<()> {
            assert_eq!(self.1.insert((blob, offset), buf.len()), None, "a segment was read again");
            self.0.read_at(blob, offset, buf)?;
            // A host that changes what it gave: whoever read again would read this.
            let start = offset as usize;
            self.0.0[blob as usize][start..start + buf.len()].fill(0xEE);
            Ok(())
        }
    }
    for sealed in [false, true] {
        let made = Recipe::small(sealed).make();
        let mut source = Once(made.blobs.clone(), HashMap::new());
        assert!(read(&made, &mut source).unwrap() == made.tensors);
        let total: usize = source.1.values().sum();
        assert_eq!(total as u64, made.public.header().data_len);
    }
}

#[test]
fn segments_open_on_many_threads_in_any_order() {
    let made = Recipe::small(true).make();
    let package = made.open().unwrap();
    let data = made.data();
    std::thread::scope(|scope| {
        for index in (0..package.num_segments()).rev() {
            let (package, data, mut blobs) = (&package, &data, made.blobs.clone());
            scope.spawn(move || {
                let mut segment = vec![0; package.place(index).unwrap().len];
                package.read_segment(index, &mut blobs, &mut segment).unwrap();
                assert!(segment == data[(index as usize) << 20..][..segment.len()]);
                for piece in package.pieces(index) {
                    let record = &package.meta().tensors[piece.tensor];
                    let start = (record.offset + piece.offset) as usize;
                    assert!(segment[piece.range.clone()] == data[start..start + piece.range.len()]);
                }
            });
        }
    });
    assert_eq!(package.pieces(package.num_segments()).count(), 0);
}

#[test]
fn what_the_loader_refuses_ends_the_reading() {
    #[derive(Debug)]
    struct Full;
    impl From<PackageError> for Full {
        fn from(error: PackageError) -> Self {
            panic!("{error}")
        }
    }
    let mut made = Recipe::small(true).make();
    let mut calls = 0;
    let read = made.open().unwrap().read_segments(&mut made.blobs, |_, _, _| {
        calls += 1;
        Err(Full)
    });
    assert!(read.is_err());
    assert_eq!(calls, 1);
}

#[test]
fn a_public_header_travels_as_evidence() {
    let made = Recipe::tiny(true).make();
    let evidence = made.public.to_bytes();
    assert_eq!(PublicHeader::from_evidence(&evidence).unwrap(), made.public);
    assert_eq!(PublicHeader::parse(&made.file).unwrap(), made.public);
    for bit in 0..evidence.len() * 8 {
        let mut flipped = evidence;
        flipped[bit / 8] ^= 1 << (bit % 8);
        assert!(PublicHeader::from_evidence(&flipped).is_err(), "bit {bit}");
    }
    for len in 0..evidence.len() {
        assert!(PublicHeader::from_evidence(&evidence[..len]).is_err(), "{len} bytes");
    }
    assert!(PublicHeader::from_evidence(&[evidence.as_slice(), &[0]].concat()).is_err());
}

#[test]
fn a_header_fits_its_key_only() {
    let (open, sealed) = (Recipe::tiny(false).make(), Recipe::tiny(true).make());
    assert!(key(0x22).fits(sealed.public.header()));
    assert!(!key(0x23).fits(sealed.public.header()));
    assert!(!key(0x22).fits(open.public.header()));
}

#[test]
fn a_writer_takes_the_announced_bytes_in_order_and_no_others() {
    let made = Recipe::tiny(true).make();
    let publisher = publisher();
    let options = PackageOptions::new([1; 16], &publisher);
    let mut writer = PackageWriter::new(&options, made.meta, Blobs::default()).unwrap();
    let refused = writer.write(1, &[0]).unwrap_err();
    assert!(matches!(refused, PackageError::TensorOrder { found: 1, expected: 0 }));
    let refused = writer.write(0, &[0; 61]).unwrap_err();
    assert!(matches!(refused, PackageError::TensorOverrun { found: 61, expected: 60, .. }));
    writer.write(0, &[0; 60]).unwrap();
    let refused = writer.write(0, &[]).unwrap_err();
    assert!(matches!(refused, PackageError::TensorOrder { found: 0, expected: 1 }));
    let refused = writer.finish().err().unwrap();
    assert!(matches!(refused, PackageError::Unfinished { found: 60, .. }));
}

#[test]
fn a_full_disk_is_an_error_that_names_the_segment() {
    struct Full;
    impl chrysalis_protocol::package::BlobSink for Full {
        fn append(&mut self, _: u32, _: &[u8]) -> io::Result<()> {
            Err(io::ErrorKind::StorageFull.into())
        }
    }
    let made = of_len(3 << 20, false);
    let publisher = publisher();
    let mut options = PackageOptions::new([1; 16], &publisher);
    options.segment_log2 = 20;
    let mut writer = PackageWriter::new(&options, made.meta.clone(), Full).unwrap();
    let refused = writer.write(0, &made.tensors[0]).unwrap_err();
    assert!(matches!(refused, PackageError::Write { segment: 0, blob: 0, .. }));
}

#[test]
fn options_out_of_bounds_are_refused() {
    let made = of_len(1 << 20, false);
    let publisher = publisher();
    let refused = |segment_log2, blob_log2| {
        let options =
            PackageOptions { segment_log2, blob_log2, ..PackageOptions::new([1; 16], &publisher) };
        PackageWriter::new(&options, made.meta.clone(), Blobs::default()).err().unwrap()
    };
    assert!(matches!(refused(19, 34), PackageError::SegmentLog2 { found: 19 }));
    assert!(matches!(refused(255, 34), PackageError::SegmentLog2 { found: 255 }));
    assert!(matches!(refused(21, 20), PackageError::BlobLog2 { found: 20, .. }));
    assert!(matches!(refused(21, 35), PackageError::BlobLog2 { found: 35, .. }));
}

#[test]
fn a_client_bundle_comes_back_and_belongs_to_its_meta() {
    let bundle = ClientBundle {
        tokenizer: b"{}",
        chat_template: Some("{{ messages }}"),
        text_config: None,
        licence: Some("free"),
    };
    let bytes = bundle.to_bytes().unwrap();
    assert_eq!(ClientBundle::parse(&bytes), Ok(bundle));
    let made = Recipe::tiny(false).make();
    made.meta.check_client_bundle(b"client bundle").unwrap();
    made.meta.check_client_bundle(b"client bundlf").unwrap_err();
    made.meta.check_client_bundle(b"client bundle\0").unwrap_err();
}
