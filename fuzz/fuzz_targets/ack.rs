//! ACKs: whatever is done to them, the enclave reads a prefix of what the client said, in its order, or refuses.
//!
//! The input is the window that the enclave has sent, and edits: offset u16, then the byte to put there.
#![no_main]

use chrysalis_fuzz::exchange;
use chrysalis_protocol::ack::ACK_LEN;
use libfuzzer_sys::fuzz_target;

const SAID: [u32; 6] = [0, 1, 1, 62, 500, 70_000];

fuzz_target!(|bytes: &[u8]| {
    let (sealed, opener) = exchange();
    let mut sealer = sealed.context.into_parts().1;
    let mut acks: Vec<u8> =
        SAID.iter().flat_map(|&tokens| sealer.seal(tokens).expect("there are few")).collect();
    let honest = acks.clone();
    let sent = match bytes.first_chunk::<4>() {
        Some(sent) => u32::from_be_bytes(*sent),
        None => u32::MAX,
    };
    for edit in bytes.get(4..).unwrap_or_default().as_chunks::<3>().0 {
        let offset = usize::from(u16::from_be_bytes([edit[0], edit[1]]));
        let len = acks.len();
        match acks.get_mut(offset) {
            Some(byte) => *byte = edit[2],
            // Move, repeat or leave out whole ones.
            None if len > 0 => {
                let at = offset % len / ACK_LEN * ACK_LEN;
                let end = (at + ACK_LEN).min(len);
                match edit[2] % 3 {
                    0 => drop(acks.drain(at..end)),
                    1 if acks.len() < 4_096 => acks.extend_from_within(at..end),
                    _ => acks[at..].rotate_left(end - at),
                }
            }
            None => {}
        }
    }
    let mut opener = opener.finish().expect("it is whole").acks;
    // The first bytes as they came; then what follows an ACK that was refused.
    let mut opened = Vec::new();
    for ack in acks.chunks(ACK_LEN) {
        match opener.open(ack, sent) {
            Ok(tokens) => opened.push(tokens),
            Err(_) => break,
        }
    }
    assert!(opened.iter().zip(SAID).all(|(opened, said)| *opened == said));
    assert!(opened.len() <= SAID.len());
    assert!(opened.iter().all(|tokens| *tokens <= sent));
    assert_eq!(opener.acked(), opened.last().copied());
    if acks == honest && sent >= 70_000 {
        assert_eq!(opened, SAID);
    }
});
