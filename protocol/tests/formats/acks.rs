//! What a client says of an answer: each ACK opens once, in its place, for its request.

use chrysalis_protocol::ack::{ACK_LEN, AckError, AckOpener, AckSealer};
use chrysalis_protocol::hpke::HpkeError;
use chrysalis_protocol::request::{HEAD_LEN, Head, RequestOpener, seal};

use crate::support::{
    SeededRng, cuts_and_one_more, flips, key_pair, plain_body, seal_to, statement,
};

const REFUSED: Result<u32, AckError> = Err(AckError::Hpke(HpkeError::Refused));

/// Both ends of a request that was sealed and opened.
fn ends(name: &str) -> (AckSealer, AckOpener) {
    let keys = key_pair();
    let sealed = seal(&seal_to(&keys), &plain_body(9_000), &mut SeededRng::new(name)).unwrap();
    let head = Head::from_bytes(&sealed.bytes[..HEAD_LEN]).unwrap();
    let mut opener = RequestOpener::new(&head, &keys, &statement().digest()).unwrap();
    opener.push(&sealed.bytes[HEAD_LEN..]).unwrap();
    (sealed.context.into_parts().1, opener.finish().unwrap().acks)
}

#[test]
fn acks_come_back_in_their_order() {
    let (mut sealer, mut opener) = ends("seal");
    assert_eq!(opener.acked(), None);
    for tokens in [0, 0, 62, 100, 100, 512] {
        assert_eq!(opener.open(&sealer.seal(tokens).unwrap(), 512), Ok(tokens));
        assert_eq!(opener.acked(), Some(tokens));
    }
}

#[test]
fn every_flipped_bit_and_every_cut_of_an_ack_is_refused() {
    let ack = ends("seal").0.seal(7).unwrap();
    assert_eq!(ends("seal").1.open(&ack, 7), Ok(7));
    for (bit, flipped) in flips(&ack) {
        assert!(ends("seal").1.open(&flipped, u32::MAX).is_err(), "bit {bit}");
    }
    for cut in cuts_and_one_more(&ack) {
        assert!(ends("seal").1.open(&cut, u32::MAX).is_err(), "{} bytes", cut.len());
    }
}

#[test]
fn an_ack_left_out_repeated_or_of_another_request_is_refused() {
    let (mut sealer, mut opener) = ends("seal");
    let acks: Vec<[u8; ACK_LEN]> = (1..4).map(|tokens| sealer.seal(tokens).unwrap()).collect();
    assert_eq!(opener.open(&acks[0], 9), Ok(1));
    assert_eq!(opener.open(&acks[0], 9), REFUSED);
    assert_eq!(opener.open(&acks[2], 9), REFUSED);
    let other = ends("another seal").0.seal(1).unwrap();
    assert_eq!(ends("seal").1.open(&other, 9), REFUSED);
    assert_eq!(opener.acked(), Some(1));
}

#[test]
fn an_ack_says_no_less_than_before_and_no_more_than_was_sent() {
    let (mut sealer, mut opener) = ends("seal");
    assert_eq!(opener.open(&sealer.seal(5).unwrap(), 5), Ok(5));
    let decreased = AckError::Decreased { found: 4, before: 5 };
    assert_eq!(opener.open(&sealer.seal(4).unwrap(), 5), Err(decreased));
    let unsent = AckError::Unsent { found: 7, sent: 6 };
    assert_eq!(opener.open(&sealer.seal(7).unwrap(), 6), Err(unsent));
}

#[test]
fn a_request_that_is_still_coming_takes_no_ack_for_a_frame() {
    let keys = key_pair();
    let sealed = seal(&seal_to(&keys), &plain_body(3), &mut SeededRng::new("seal")).unwrap();
    let head = Head::from_bytes(&sealed.bytes[..HEAD_LEN]).unwrap();
    let ack = sealed.context.into_parts().1.seal(1).unwrap();
    let mut opener = RequestOpener::new(&head, &keys, &statement().digest()).unwrap();
    assert!(opener.push(&ack).is_err());
}
