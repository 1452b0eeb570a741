//! Sealed requests and key releases: what was sealed comes out, everything else is refused.

use chrysalis_protocol::hpke::{HpkeError, KemKeyPair};
use chrysalis_protocol::key_release::{self, KeyRelease};
use chrysalis_protocol::request::{
    FRAME_MAX, HEAD_LEN, Head, OpenedRequest, RequestError, RequestOpener, SealTo, is_sealed_len,
    seal, sealed_len,
};
use chrysalis_protocol::secret::Secret;

use crate::support::{
    SeededRng, body, cuts_and_one_more, flips, key_pair, plain_body, seal_to, statement,
};

#[test]
fn a_request_comes_back_in_whatever_portions() {
    let keys = key_pair();
    for (body, portion) in [(body(), 1), (body(), 7), (plain_body(9_000), 4_096)] {
        let sealed = seal(&seal_to(&keys), &body, &mut SeededRng::new("seal")).unwrap();
        assert!(is_sealed_len(sealed.bytes.len()));
        let head = Head::from_bytes(&sealed.bytes[..HEAD_LEN]).unwrap();
        assert_eq!(head.key_id(), seal_to(&keys).key_id);
        assert_eq!(head.request_tag(), sealed.context.request_tag());
        let mut opener = RequestOpener::new(&head, &keys, &statement().digest()).unwrap();
        assert!(opener.take_response_secret().is_none(), "no frame was opened yet");
        for bytes in sealed.bytes[HEAD_LEN..].chunks(portion) {
            assert!(!opener.is_complete());
            opener.push(bytes).unwrap();
        }
        assert!(opener.is_complete());
        assert!(opener.take_response_secret().is_some());
        assert!(opener.take_response_secret().is_none(), "one response for each request");
        let opened = opener.finish().unwrap();
        assert!(opened.body == body);
        assert_eq!(opened.request_hash, sealed.context.request_hash());
    }
}

#[test]
fn every_flipped_bit_of_a_request_is_refused() {
    let keys = key_pair();
    let sealed = sealed(&keys);
    assert!(open(&keys, &sealed).is_ok());
    for (bit, flipped) in flips(&sealed) {
        assert!(open(&keys, &flipped).is_err(), "bit {bit}");
    }
}

#[test]
fn every_cut_of_a_request_is_refused() {
    let keys = key_pair();
    for cut in cuts_and_one_more(&sealed(&keys)) {
        assert!(open(&keys, &cut).is_err(), "{} bytes", cut.len());
    }
}

#[test]
fn a_request_for_another_key_or_statement_is_refused() {
    let keys = key_pair();
    let body = plain_body(3);
    let to = seal_to(&keys);
    let seal_to = |to: &SealTo<'_>| seal(to, &body, &mut SeededRng::new("seal")).unwrap().bytes;
    assert!(open(&keys, &seal_to(&to)).is_ok());
    let refused = Some(RequestError::Hpke(HpkeError::Refused));
    let other_statement = SealTo { statement_digest: [0; 48], ..to };
    assert_eq!(open(&keys, &seal_to(&other_statement)).err(), refused);
    let other_keys = KemKeyPair::generate(&mut SeededRng::new("other"));
    assert_eq!(open(&other_keys, &seal_to(&to)).err(), refused);
}

#[test]
fn frames_dropped_swapped_doubled_or_replaced_are_refused() {
    let keys = key_pair();
    let body = plain_body(10_000);
    let bytes = seal(&seal_to(&keys), &body, &mut SeededRng::new("seal")).unwrap().bytes;
    let frames: Vec<&[u8]> = bytes[HEAD_LEN..].chunks(4 + FRAME_MAX + 16).collect();
    assert_eq!(frames.len(), 4);
    let join = |order: &[usize]| {
        let frames = order.iter().flat_map(|i| frames[*i]).copied();
        bytes[..HEAD_LEN].iter().copied().chain(frames).collect::<Vec<_>>()
    };
    assert!(open(&keys, &join(&[0, 1, 2, 3])).is_ok());
    for order in [&[0, 2, 1, 3][..], &[1, 2, 3], &[0, 1, 3], &[0, 0, 1, 3], &[3], &[0, 1, 2, 2]] {
        assert!(open(&keys, &join(order)).is_err(), "{order:?}");
    }
    assert_eq!(
        open(&keys, &join(&[0, 1, 2])).err(),
        Some(RequestError::Truncated { opened: 49_152 })
    );
    let longer = open(&keys, &join(&[0, 1, 2, 3, 0])).err();
    assert_eq!(longer, Some(RequestError::AfterFinal { count: 16_404 }));
}

#[test]
fn a_frame_length_is_refused_before_its_ciphertext_is_awaited() {
    let keys = key_pair();
    let sealed = sealed(&keys);
    let last = 1 << 31;
    let wrong = [0, 16, 17, 1_040, 16_401, last, last | 16, last | 1_039, last | 16_401, u32::MAX];
    for h in wrong {
        let head = Head::from_bytes(&sealed[..HEAD_LEN]).unwrap();
        let mut opener = RequestOpener::new(&head, &keys, &statement().digest()).unwrap();
        let refused = opener.push(&h.to_be_bytes());
        let (len, last) = (h & !last, h & last != 0);
        assert_eq!(refused, Err(RequestError::FrameLen { len, last, opened: 0 }));
        assert_eq!(opener.push(&sealed[HEAD_LEN..]), Err(RequestError::Refused));
        assert_eq!(opener.finish().err(), Some(RequestError::Refused));
    }
}

#[test]
fn fourteen_lengths_can_be_sealed() {
    let lengths: Vec<usize> = (10..=23).map(|log2| sealed_len(1 << log2)).collect();
    assert!(lengths.iter().all(|len| is_sealed_len(*len)));
    let all = (0..=*lengths.last().unwrap() + 1).filter(|len| is_sealed_len(*len)).count();
    assert_eq!(all, 14);
    assert!(!is_sealed_len(sealed_len(1 << 24)));
}

#[test]
fn a_key_release_comes_back_and_every_changed_one_is_refused() {
    let (keys, digest) = (key_pair(), statement().digest());
    let release = KeyRelease {
        package_id: [1; 16],
        package_key: Secret::from([2; 32]),
        min_model_svn: 3,
        lease_seconds: 86_400,
        lease_tokens: 1_000_000,
    };
    let mut rng = SeededRng::new("release");
    let sealed = key_release::seal(keys.sealing_key(), &digest, &release, &mut rng).unwrap();
    assert!(key_release::open(keys.clone(), &digest, &sealed) == Ok(release));
    assert!(key_release::open(keys.clone(), &[0; 48], &sealed).is_err(), "another statement");
    for (bit, flipped) in flips(&sealed) {
        assert!(key_release::open(keys.clone(), &digest, &flipped).is_err(), "bit {bit}");
    }
    for cut in cuts_and_one_more(&sealed) {
        assert!(key_release::open(keys.clone(), &digest, &cut).is_err());
    }
}

fn sealed(keys: &KemKeyPair) -> Vec<u8> {
    seal(&seal_to(keys), &body(), &mut SeededRng::new("seal")).unwrap().bytes
}

fn open(keys: &KemKeyPair, sealed: &[u8]) -> Result<OpenedRequest, RequestError> {
    let (head, frames) = sealed.split_at_checked(HEAD_LEN).unwrap_or((sealed, &[]));
    let Ok(head) = Head::from_bytes(head) else {
        return Err(RequestError::Refused);
    };
    let mut opener = RequestOpener::new(&head, keys, &statement().digest())?;
    opener.push(frames)?;
    opener.finish()
}
