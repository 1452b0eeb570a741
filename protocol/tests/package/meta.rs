//! One encoding of every meta and every client bundle, and a named refusal for everything else.

use chrysalis_protocol::package::{
    Architecture, ClientBundle, ClientBundleError, Meta, MetaError, tensor_len,
};
use proptest::prelude::*;

use crate::support::{Random, Recipe, architecture};

fn bytes() -> Vec<u8> {
    Recipe::tiny(false).make().meta.to_bytes().unwrap()
}

/// The refusal of the tiny meta with `patch` at byte `at`.
fn patched(at: usize, patch: &[u8]) -> MetaError {
    let mut bytes = bytes();
    bytes[at..at + patch.len()].copy_from_slice(patch);
    Meta::from_bytes(&bytes).expect_err("the meta was read")
}

#[test]
fn a_flipped_bit_is_refused_or_another_meta() {
    let bytes = bytes();
    let meta = Meta::from_bytes(&bytes).unwrap();
    for bit in 0..bytes.len() * 8 {
        let mut flipped = bytes.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        if let Ok(other) = Meta::from_bytes(&flipped) {
            assert_ne!(other, meta, "bit {bit}");
            assert_eq!(other.to_bytes().unwrap(), flipped, "bit {bit}");
        }
    }
    for len in 0..bytes.len() {
        assert!(matches!(Meta::from_bytes(&bytes[..len]), Err(MetaError::Codec(_))), "{len}");
    }
    let longer = [bytes.as_slice(), &[0]].concat();
    assert!(matches!(Meta::from_bytes(&longer), Err(MetaError::Codec(_))));
}

#[test]
fn each_fault_of_the_fixed_part_has_its_name() {
    use MetaError as E;
    assert!(matches!(patched(0, &[0, 0, 0, 2]), E::Version { found: 2, expected: 1 }));
    assert!(matches!(patched(4, &[0, 0, 1, 0]), E::Flags { .. }));
    assert!(matches!(patched(512, &[0; 64]), E::Text { field: "name" }));
    assert!(matches!(patched(512, &[0xFF]), E::Text { field: "name" }));
    assert!(matches!(patched(513, &[0]), E::Text { field: "name" }));
    assert!(matches!(patched(576, b"\n"), E::Text { field: "licence" }));
    assert!(matches!(patched(640, &[0; 8]), E::AbsentNotZero { .. }));
    assert!(matches!(patched(680, &[0; 4]), E::TensorCount { found: 0, .. }));
    assert!(matches!(patched(680, &[0xFF; 4]), E::TensorCount { .. }));
    assert!(matches!(patched(680, &[0, 0, 0, 4]), E::Codec(_)));
    assert!(matches!(patched(767, &[1]), E::Codec(_)));
}

#[test]
fn each_fault_of_a_tensor_record_has_its_name() {
    use MetaError as E;
    // A record: name 64, dtype 2, rank, zero, flags 4, eight dims, offset 8, len 8, zeros 8.
    // The second one is Q8_0 [2, 32] at byte 256.
    let record = |at: usize, patch: &[u8]| patched(768 + 128 + at, patch);
    assert!(matches!(record(0, b"t.0"), E::DuplicateName { tensor: 1 }));
    assert!(matches!(record(64, &[0, 9]), E::Dtype { tensor: 1, found: 9 }));
    assert!(matches!(record(66, &[0]), E::AbsentNotZero { .. }));
    assert!(matches!(record(66, &[3]), E::Dims { tensor: 1, .. }));
    assert!(matches!(record(66, &[9]), E::AbsentNotZero { .. }));
    assert!(matches!(record(67, &[1]), E::Codec(_)));
    assert!(matches!(record(68, &[1]), E::TensorFlags { tensor: 1, .. }));
    assert!(matches!(record(79, &[33]), E::Groups { cols: 33, group: 32, .. }));
    assert!(matches!(record(79, &[64]), E::TensorLen { tensor: 1, .. }));
    assert!(matches!(record(111, &[1]), E::Offset { found: 257, .. }));
    assert!(matches!(record(110, &[2]), E::Offset { expected: 256, .. }));
    assert!(matches!(record(110, &[0]), E::Offset { found: 0, .. }));
    assert!(matches!(record(119, &[67]), E::TensorLen { found: 67, .. }));
    assert!(matches!(record(127, &[1]), E::Codec(_)));
}

#[test]
fn lengths_that_overflow_are_refused() {
    let large = vec![u32::MAX; 8];
    assert!(matches!(tensor_len(0, 0, &large), Err(MetaError::Dims { .. })));
    assert!(matches!(tensor_len(0, 0, &[]), Err(MetaError::Dims { .. })));
    assert!(matches!(tensor_len(0, 0, &[1; 9]), Err(MetaError::Dims { .. })));
    assert!(matches!(tensor_len(0, 0, &[0]), Err(MetaError::Dims { .. })));
    assert_eq!(tensor_len(0, 14, &[3, 512]), Ok(3 * 2 * 210));
    let names = (0..5).map(|i| (format!("{i}"), 0, vec![1 << 19, 1 << 20]));
    let refused = Meta::new(architecture(), "m", "", &[], names);
    assert!(matches!(refused, Err(MetaError::TooLong { tensor: 2, .. })), "{refused:?}");
}

#[test]
fn the_architecture_has_one_encoding() {
    let architecture = architecture();
    let bytes = architecture.to_bytes().unwrap();
    assert_eq!(Architecture::from_bytes(&bytes).as_ref(), Ok(&architecture));
    assert!(
        architecture.is_sliding(0) && !architecture.is_sliding(1) && architecture.is_sliding(2)
    );
    assert!(!architecture.is_sliding(u32::MAX));
    for bit in 0..bytes.len() * 8 {
        let mut flipped = bytes;
        flipped[bit / 8] ^= 1 << (bit % 8);
        if let Ok(other) = Architecture::from_bytes(&flipped) {
            assert_eq!(other.to_bytes().unwrap(), flipped, "bit {bit}");
        }
    }
    let refused = |edit: fn(&mut Architecture)| {
        let mut edited = architecture.clone();
        edit(&mut edited);
        edited.to_bytes().unwrap_err()
    };
    for value in [f32::NAN, f32::INFINITY, -0.0] {
        let edited = Architecture { rms_norm_eps: value, ..architecture.clone() };
        assert!(matches!(edited.to_bytes(), Err(MetaError::Float { .. })));
    }
    assert!(matches!(refused(|a| a.num_layers = 257), MetaError::Range { .. }));
    assert!(matches!(refused(|a| a.activation = 0), MetaError::Range { .. }));
    assert!(matches!(refused(|a| a.rope_local.kind = 4), MetaError::Range { .. }));
    assert!(matches!(refused(|a| a.sliding_layers[7] = 1), MetaError::AbsentNotZero { .. }));
    assert!(matches!(
        refused(|a| a.generation.eos_token_ids = vec![1; 9]),
        MetaError::Range { .. }
    ));
}

#[test]
fn each_fault_of_a_client_bundle_has_its_name() {
    use ClientBundleError as E;
    let entry =
        |kind: u8, value: &[u8]| [&[0, kind, 0, 0, 0, 0, 0, value.len() as u8], value].concat();
    let parse = |entries: &[Vec<u8>]| {
        let bytes = [b"CHRY-CB1".to_vec(), entries.concat()].concat();
        ClientBundle::parse(&bytes).map(|bundle| bundle.tokenizer.to_vec())
    };
    assert_eq!(parse(&[entry(1, b"{}")]), Ok(b"{}".to_vec()));
    assert_eq!(parse(&[]), Err(E::NoTokenizer));
    assert_eq!(parse(&[entry(0, b"x")]), Err(E::Order { found: 0, before: 0 }));
    assert_eq!(parse(&[entry(1, b"x"), entry(1, b"x")]), Err(E::Order { found: 1, before: 1 }));
    assert_eq!(parse(&[entry(3, b"x"), entry(1, b"x")]), Err(E::Order { found: 1, before: 3 }));
    assert_eq!(parse(&[entry(1, b"x"), entry(5, b"x")]), Err(E::UnknownType { found: 5 }));
    assert_eq!(parse(&[entry(1, b"")]), Err(E::Empty { found: 1 }));
    assert_eq!(parse(&[entry(1, b"x"), entry(2, b"a\xFF")]), Err(E::NotUtf8 { found: 2, at: 1 }));
    assert!(matches!(parse(&[vec![0, 1, 0, 1, 0, 0, 0, 1, 9]]), Err(E::Codec(_))));
    assert!(matches!(parse(&[vec![0, 1, 0, 0, 255, 255, 255, 255, 9]]), Err(E::Codec(_))));
    assert!(matches!(ClientBundle::parse(b"CHRY-CB2"), Err(E::Codec(_))));
    let huge = vec![0; chrysalis_protocol::package::CLIENT_BUNDLE_MAX + 1];
    assert!(matches!(ClientBundle::parse(&huge), Err(E::TooLong { .. })));
}

proptest! {
    #[test]
    fn random_bytes_never_make_two_encodings(seed in 1..u64::MAX, edits in 1..6_usize) {
        let mut random = Random(seed);
        let mut bytes = bytes();
        for _ in 0..edits {
            let at = random.next() as usize % bytes.len();
            bytes[at] = random.next() as u8;
        }
        if let Ok(meta) = Meta::from_bytes(&bytes) {
            prop_assert_eq!(meta.to_bytes().unwrap(), bytes);
        }
    }
}
