//! Mode B: a host that withholds an answer gains a window of it and no more; a client that says so gets it all.

use chrysalis_protocol::ack::{ACK_LEN, AckSealer};
use chrysalis_protocol::frame::FrameKind;
use chrysalis_protocol::messages::CloseCode;
use chrysalis_protocol::receipt::{Chain, Receipt, round_up};
use chrysalis_protocol::request::RequestBody;
use chrysalis_protocol::response::{End, FinishReason as Reason, Inner, ResponseOpener};

use super::super::StreamId;
use super::harness::{BOOT, Host, body};
use super::simulate::Dice;
use crate::engine::{FinishReason, SequenceId};
use crate::hub::Handler;
use crate::worker::Command;

const ID: StreamId = (1, 1);

/// A client that reads what its host passes on, and says what it has.
struct Client {
    opener: ResponseOpener,
    sealer: AckSealer,
    sequence: SequenceId,
    read: usize,
    /// Frames read, and ACKs said.
    frames: usize,
    acks: usize,
    tokens: Vec<u32>,
    end: Option<End>,
}

impl Client {
    fn ask(host: &mut Host, id: StreamId, body: &RequestBody) -> Self {
        let (context, sequence) = host.ask(id, body);
        let (opener, sealer) = context.into_parts();
        let sequence = sequence.unwrap();
        let (read, frames, acks, tokens) = (0, 0, 0, Vec::new());
        Self { opener, sealer, sequence, read, frames, acks, tokens, end: None }
    }

    /// Reads so many of the messages that were sent and not read yet.
    fn read(&mut self, host: &Host, id: StreamId, most: usize) {
        for sent in host.sent[&id].iter().skip(self.read).take(most) {
            self.read += 1;
            let mut opened = Vec::new();
            if sent.kind == FrameKind::EnclaveData {
                self.opener.push(&sent.body, &mut opened).unwrap();
            }
            self.frames += opened.len();
            for frame in opened {
                match frame.inner {
                    Inner::Tokens(ids) => self.tokens.extend_from_slice(&ids),
                    Inner::End(end) => self.end = Some(end),
                    _ => {}
                }
            }
        }
    }

    fn ack(&mut self) -> [u8; ACK_LEN] {
        self.acks += 1;
        self.sealer.seal(self.tokens.len() as u32).unwrap()
    }

    fn say(&mut self, host: &mut Host, id: StreamId) {
        let ack = self.ack();
        host.frame(id, FrameKind::HostData, &ack);
    }
}

fn config(profile: usize, window: u32) -> String {
    format!(
        "pad_profile = {profile}\nack_window = {window}\nbilling_quantum = 16\nlength_quantum = 4"
    )
}

fn receipt(host: &Host, number: usize) -> Receipt {
    let mut chain = Chain::new(host.receipt_key, BOOT);
    let verified = host.receipts.iter().map(|bytes| chain.verify_next(bytes).unwrap());
    verified.collect::<Vec<_>>().swap_remove(number)
}

fn pauses(host: &Host) -> Vec<bool> {
    let pause = |command| match command {
        Command::Pause(_, paused) => Some(paused),
        _ => None,
    };
    host.commands().into_iter().filter_map(pause).collect()
}

#[test]
fn a_host_that_withholds_an_answer_is_paid_for_one_window_of_it_and_for_no_prompt() {
    for profile in [0, 1] {
        let mut host = Host::new(&config(profile, 100));
        let client = Client::ask(&mut host, ID, &body(&[5; 500], 4_000));
        for token in 0..1_000 {
            host.tokens(client.sequence, &[token % 900]);
            host.grant(ID, 8);
            host.pass(if profile == 0 { 1 } else { 50 });
        }
        assert!(pauses(&host).contains(&true), "the engine is held back");
        host.grant(ID, 64);
        host.pass(31_000);
        for _ in 0..40 {
            host.grant(ID, 64);
            host.pass(1_000);
        }
        assert_eq!(host.close_code(ID), Some(CloseCode::Ok));
        let paid = receipt(&host, 0);
        assert!(paid.cancelled && paid.last && !paid.failed);
        // A hundred tokens, rounded up; the client that got nothing owes no prompt.
        assert_eq!((paid.output_units, paid.prompt_units), (112, 0), "profile {profile}");
        host.assert_empty();
    }
}

#[test]
fn a_client_that_says_what_it_has_gets_the_whole_answer() {
    for (profile, window) in [(0, 100), (1, 100), (1, 1), (2, 40)] {
        let mut host = Host::new(&config(profile, window));
        let mut client = Client::ask(&mut host, ID, &body(&[5; 20], 200));
        let mut token = 0;
        let mut paused = false;
        for _ in 0..1_000 {
            paused = pauses(&host).last().copied().unwrap_or(paused);
            if token < 200 && !paused {
                host.tokens(client.sequence, &[token]);
                token += 1;
            } else if token == 200 {
                host.finish(client.sequence, FinishReason::Length);
                token += 1;
            }
            host.pass(50);
            client.read(&host, ID, usize::MAX);
            if client.end.is_some() {
                break;
            }
            client.say(&mut host, ID);
            host.grant(ID, 2);
        }
        let end = client.end.unwrap();
        assert_eq!((end.reason, end.output_tokens), (Reason::Length, 200));
        assert_eq!(client.tokens, (0..200).collect::<Vec<_>>());
        let paid = receipt(&host, 0);
        assert_eq!((paid.prompt_units, paid.output_units), (32, 208));
        host.assert_empty();
    }
}

#[test]
fn an_answer_ends_only_when_its_client_was_heard_once_or_waited_for() {
    for heard in [true, false] {
        let mut host = Host::new(&config(0, 100));
        let mut client = Client::ask(&mut host, ID, &body(&[5; 20], 200));
        host.tokens(client.sequence, &[1, 2, 3]);
        host.finish(client.sequence, FinishReason::Stop);
        host.pass(29_000);
        client.read(&host, ID, usize::MAX);
        assert!(client.tokens == [1, 2, 3] && client.end.is_none());
        if heard {
            client.say(&mut host, ID);
        }
        host.pass(2_000);
        client.read(&host, ID, usize::MAX);
        // All of it had gone out: it ended as it did, and only the prompt hangs on the client's word.
        assert_eq!(client.end.unwrap().reason, Reason::Stop);
        let paid = receipt(&host, 0);
        assert_eq!((paid.prompt_units, paid.output_units), (if heard { 32 } else { 0 }, 16));
        assert!(!paid.cancelled);
        host.assert_empty();
    }
}

#[test]
fn an_ack_that_was_changed_repeated_left_out_or_made_up_ends_the_stream_unpaid() {
    type Spoil = fn(&mut Host, &mut Client);
    let spoils: [Spoil; 6] = [
        |host, client| {
            let mut ack = client.ack();
            ack[10] ^= 1;
            host.frame(ID, FrameKind::HostData, &ack);
        },
        |host, client| {
            let ack = client.ack();
            host.frame(ID, FrameKind::HostData, &ack);
            host.frame(ID, FrameKind::HostData, &ack);
        },
        |host, client| {
            client.ack();
            client.say(host, ID);
        },
        |host, client| {
            let ack = client.ack();
            host.frame(ID, FrameKind::HostData, &ack[..ACK_LEN - 1]);
        },
        |host, _| host.frame(ID, FrameKind::HostData, &[]),
        |host, client| {
            let ack = client.sealer.seal(3).unwrap();
            host.frame(ID, FrameKind::HostData, &ack);
        },
    ];
    for spoil in spoils {
        let mut host = Host::new(&config(1, 100));
        let mut client = Client::ask(&mut host, ID, &body(&[5], 200));
        host.tokens(client.sequence, &[1, 2]);
        host.pass(200);
        spoil(&mut host, &mut client);
        assert_eq!(host.close_code(ID), Some(CloseCode::Rejected));
        assert!(host.receipts.is_empty());
        assert_eq!(host.cancelled(), [client.sequence]);
        host.assert_empty();
    }
}

#[test]
fn a_client_says_so_once_for_each_frame_at_most() {
    let mut host = Host::new(&config(1, 100));
    let mut client = Client::ask(&mut host, ID, &body(&[5], 200));
    // ACCEPT alone has gone out.
    client.say(&mut host, ID);
    assert_eq!(host.close_code(ID), None);
    client.say(&mut host, ID);
    assert_eq!(host.close_code(ID), Some(CloseCode::Rejected));
}

#[test]
fn without_a_window_nothing_is_waited_for_and_what_follows_a_request_is_ignored() {
    let mut host = Host::new("pad_profile = 0");
    let mut client = Client::ask(&mut host, ID, &body(&[5; 20], 2_000));
    for token in 0..900 {
        host.tokens(client.sequence, &[token]);
        host.grant(ID, 1);
    }
    client.say(&mut host, ID);
    host.frame(ID, FrameKind::HostData, b"anything");
    host.finish(client.sequence, FinishReason::Stop);
    client.read(&host, ID, usize::MAX);
    assert_eq!(client.end.unwrap().output_tokens, 900);
    assert_eq!(receipt(&host, 0).prompt_units, 64);
}

#[test]
fn a_refusal_waits_for_nobody() {
    let mut host = Host::new(&config(1, 100));
    let sealed = host.seal(&body(&[5, 2_000], 10));
    host.submit(ID, &sealed.bytes);
    host.pass(1_000);
    assert_eq!(host.close_code(ID), Some(CloseCode::Ok));
    let paid = receipt(&host, 0);
    assert!(paid.failed && paid.output_units == 0 && paid.prompt_units == 0);
}

#[test]
fn no_host_is_paid_for_more_than_a_window_beyond_what_its_client_said_over_a_thousand_seeds() {
    let (mut whole, mut cut) = (0, 0);
    for seed in 0..1_000 {
        let mut dice = Dice::new(seed);
        let window = [1, 16, 70, 512][dice.below(4)];
        let mut host = Host::new(&config(dice.below(2), window));
        let length = dice.below(400) as u32;
        let mut client = Client::ask(&mut host, ID, &body(&[5; 100], 600));
        let (mut token, mut acked, mut heard) = (0, 0, false);
        while host.close_code(ID).is_none() {
            for _ in 0..dice.below(80) {
                if token < length {
                    host.tokens(client.sequence, &[token]);
                    token += 1;
                }
            }
            if token == length {
                host.finish(client.sequence, FinishReason::Length);
                token += 1;
            }
            host.grant(ID, 64);
            // From some time on this host passes nothing on, or no ACK.
            for _ in 0..if dice.one_in(40) { 31 } else { 0 } {
                host.pass(1_000);
                host.grant(ID, 64);
            }
            host.pass([0, 50, 500][dice.below(3)]);
            client.read(&host, ID, dice.below(12));
            let may_say = client.end.is_none() && client.acks < client.frames;
            if may_say && dice.one_in(2) && host.close_code(ID).is_none() {
                client.say(&mut host, ID);
                (acked, heard) = (client.tokens.len() as u32, true);
            }
            // However it acts, the next wake lies ahead.
            assert!(host.gateway.next_wake_ms().is_none_or(|wake| wake > host.now), "seed {seed}");
        }
        client.read(&host, ID, usize::MAX);
        assert_eq!(host.close_code(ID), Some(CloseCode::Ok), "seed {seed}");
        let paid = receipt(&host, 0);
        assert!(paid.output_units <= round_up(acked + window, 16), "seed {seed}");
        assert!(heard || paid.prompt_units == 0, "seed {seed}");
        assert!(client.tokens.iter().copied().eq(0..client.tokens.len() as u32), "seed {seed}");
        match client.end.unwrap().reason {
            Reason::Length => whole += 1,
            _ => cut += 1,
        }
        host.assert_empty();
    }
    assert!(whole > 300 && cut > 100, "{whole} whole, {cut} cut");
}
