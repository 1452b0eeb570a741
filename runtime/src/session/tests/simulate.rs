//! A seeded host that is hostile: it drops, repeats, reorders, splits and changes frames, leaves, and bends the clock.
//!
//! Whatever it does, a sealed request reaches the engine at most once, a client gets its whole answer or sees that it
//! is not whole, receipts form a chain, and nothing is left in the session in the end. `CHRYSALIS_SEED` is not read:
//! a failing seed is printed, and `run(seed)` in a test of one's own shows it again.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};

use chrysalis_protocol::bundle::Bundle;
use chrysalis_protocol::frame::FrameKind;
use chrysalis_protocol::freshness::Freshness;
use chrysalis_protocol::messages::{Credit, EvidenceReq};
use chrysalis_protocol::receipt::Chain;
use chrysalis_protocol::request::{HEAD_LEN, RequestContext};
use chrysalis_protocol::response::{Inner, ResponseOpener};
use chrysalis_protocol::statement::{Kind, Statement};

use super::super::StreamId;
use super::evidence;
use super::harness::{BOOT, Host, body, open_body};
use crate::engine::{Event, FinishReason, SequenceId};
use crate::worker::Command;

const SEEDS: u64 = 2_000;

/// Streams of challenges are counted from here.
const CHALLENGES: u64 = 1 << 20;

#[test]
fn no_host_gets_more_than_refusals_out_of_two_thousand_seeds() {
    let mut totals = [0; 3];
    for seed in 0..SEEDS {
        let outcome = std::panic::catch_unwind(|| run(seed));
        let counts = outcome.unwrap_or_else(|_| panic!("seed {seed}"));
        for (total, count) in totals.iter_mut().zip(counts) {
            *total += count;
        }
    }
    // It is not only refusals either.
    let [added, whole, cut] = totals;
    assert!(added > 2 * SEEDS && whole > SEEDS && cut > SEEDS / 2, "{totals:?}");
}

/// SplitMix64.
pub(super) struct Dice(u64);

impl Dice {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub(super) fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    pub(super) fn one_in(&mut self, bound: usize) -> bool {
        self.below(bound) == 0
    }
}

/// The engine: sequences that it was given, with the tokens still to put out.
#[derive(Default)]
struct FakeEngine {
    running: BTreeMap<SequenceId, VecDeque<u32>>,
    /// By the first token of the prompt, which names the request.
    added: HashMap<u32, usize>,
}

impl FakeEngine {
    fn obey(&mut self, host: &Host) {
        for command in host.commands() {
            match command {
                Command::Add(new) => {
                    let request = new.prompt[0];
                    *self.added.entry(request).or_default() += 1;
                    let old = self.running.insert(new.id, answer(request).into());
                    assert!(old.is_none(), "an id was used twice");
                }
                // Events of a cancelled sequence may be under way.
                Command::Cancel(id) if id.0 % 2 == 0 => drop(self.running.remove(&id)),
                Command::Cancel(_) | Command::Pause(..) => {}
            }
        }
    }

    fn step(&mut self, dice: &mut Dice) -> Vec<Event> {
        let ids: Vec<_> = self.running.keys().copied().collect();
        let mut events = Vec::new();
        for id in ids {
            if dice.one_in(3) {
                continue;
            }
            let Some(tokens) = self.running.get_mut(&id) else {
                continue;
            };
            let finished =
                |reason| Event::Finished { id, reason, prompt_tokens: 1, output_tokens: 0 };
            if dice.one_in(60) {
                self.running.remove(&id);
                events.push(finished(FinishReason::Error));
            } else if let Some(token) = tokens.pop_front() {
                events.push(Event::Token { id, token, logprobs: None });
            } else {
                self.running.remove(&id);
                events.push(finished(FinishReason::Length));
            }
        }
        events
    }
}

/// What the engine says to a request.
fn answer(request: u32) -> Vec<u32> {
    (0..request % 40).map(|n| request + n).collect()
}

/// Frames that a host holds for a stream, not sent yet.
struct Held {
    id: StreamId,
    frames: VecDeque<(FrameKind, Vec<u8>)>,
}

struct Client {
    request: u32,
    id: StreamId,
    sealed: Vec<u8>,
    context: RequestContext,
}

struct Simulation {
    host: Host,
    engine: FakeEngine,
    dice: Dice,
    held: Vec<Held>,
    clients: Vec<Client>,
    next_stream: u64,
    /// Streams on which a fresh report was asked for, with their challenges.
    challenged: HashMap<StreamId, [u8; 32]>,
}

fn run(seed: u64) -> [u64; 3] {
    let mut dice = Dice::new(seed);
    let config = format!(
        "pad_profile = {}\nlength_quantum = {}\nepoch_max_requests = {}\nepoch_max_seconds = 40\nmax_sequences = 4\nmax_waiting = 2",
        dice.below(3),
        [1, 4, 16][dice.below(3)],
        [2, 1_000][dice.below(2)],
    );
    let mut simulation = Simulation {
        host: Host::with(&config, |parts| {
            parts.limits.egress_frames = 4;
            parts.limits.epoch_grace_ms = 20_000;
        }),
        engine: FakeEngine::default(),
        dice,
        held: Vec::new(),
        clients: Vec::new(),
        next_stream: 1,
        challenged: HashMap::new(),
    };
    simulation.attack();
    simulation.settle();
    simulation.judge()
}

impl Simulation {
    fn attack(&mut self) {
        for _ in 0..60 {
            match self.dice.below(20) {
                0 | 1 if self.clients.len() < 5 => self.new_client(),
                0..=9 => self.send_held(),
                10..=13 => self.run_engine(),
                14 => self.replay(),
                15 => self.host.now += [1, 50, 1_000, 45_000][self.dice.below(4)],
                16 => self.noise(),
                17 => self.grant_all(),
                18 if self.dice.one_in(2) => self.platform(),
                18 if self.dice.one_in(6) => {
                    let connection = self.dice.below(3) as u64;
                    self.host.close(connection);
                }
                _ => {
                    let ms = self.dice.below(300) as u64;
                    self.host.pass(ms);
                }
            }
            self.engine.obey(&self.host);
        }
    }

    fn new_client(&mut self) {
        let request = 10 + self.clients.len() as u32 * 150 + self.dice.below(100) as u32;
        let sealed = self.host.seal(&body(&[request, 1], 60));
        let id = self.stream();
        self.hold(id, &sealed.bytes);
        self.clients.push(Client { request, id, sealed: sealed.bytes, context: sealed.context });
    }

    fn stream(&mut self) -> StreamId {
        self.next_stream += 1;
        (self.dice.below(3) as u64, self.next_stream)
    }

    fn hold(&mut self, id: StreamId, sealed: &[u8]) {
        let mut frames = VecDeque::from([(FrameKind::Open, open_body(sealed))]);
        let chunk = [200, 700, 5_000][self.dice.below(3)];
        for data in sealed[HEAD_LEN..].chunks(chunk) {
            frames.push_back((FrameKind::HostData, data.to_vec()));
        }
        frames.push_back((FrameKind::End, Vec::new()));
        self.held.push(Held { id, frames });
    }

    /// The next frame of a stream: mostly as it is.
    fn send_held(&mut self) {
        if self.held.is_empty() {
            return;
        }
        let at = self.dice.below(self.held.len());
        let held = &mut self.held[at];
        let id = held.id;
        // Mostly the rest of the request at once.
        let count = if self.dice.one_in(3) { 1 } else { held.frames.len() };
        for _ in 0..count {
            let held = &mut self.held[at];
            if self.dice.one_in(40) && held.frames.len() > 1 {
                held.frames.swap(0, 1);
            }
            let Some((kind, mut body)) = held.frames.pop_front() else {
                break;
            };
            match self.dice.below(60) {
                0 => continue,
                1 => self.host.frame(id, kind, &body),
                2 if !body.is_empty() => {
                    let at = self.dice.below(body.len());
                    body[at] ^= 1 << self.dice.below(8);
                }
                3 => body.truncate(body.len() / 2),
                _ => {}
            }
            self.host.frame(id, kind, &body);
        }
        self.held.retain(|held| !held.frames.is_empty());
    }

    fn replay(&mut self) {
        if self.clients.is_empty() {
            return;
        }
        let at = self.dice.below(self.clients.len());
        let sealed = self.clients[at].sealed.clone();
        let id = self.stream();
        if self.dice.one_in(2) {
            self.host.submit(id, &sealed);
        } else {
            self.hold(id, &sealed);
        }
    }

    /// Frames that belong nowhere.
    fn noise(&mut self) {
        let kinds = FrameKind::ALL;
        // What a host may say at any time; seldom what resets its connection.
        let kind = match self.dice.below(12) {
            0 => kinds[self.dice.below(kinds.len())],
            1 | 2 => FrameKind::Cancel,
            3 => FrameKind::End,
            4 | 5 => return self.challenge(),
            _ => FrameKind::HostData,
        };
        if kind == FrameKind::Drain {
            return;
        }
        let stream = self.dice.below(self.next_stream as usize + 2) as u64;
        let connection = self.dice.below(3) as u64;
        self.host.frame((connection, stream), kind, &[]);
    }

    /// A client asks for a fresh report; some ask together.
    fn challenge(&mut self) {
        for _ in 0..=self.dice.below(6) {
            let nonce = [self.dice.below(256) as u8; 32];
            // No noise hits these streams: what comes back is the answer.
            let id = (self.dice.below(3) as u64, CHALLENGES + self.challenged.len() as u64);
            self.challenged.insert(id, nonce);
            let request = EvidenceReq { kind: Kind::Freshness, nonce };
            self.host.frame(id, FrameKind::EvidenceReq, &request.to_bytes());
        }
    }

    /// The platform is quick, slow or broken, and says what it has.
    fn platform(&mut self) {
        self.host.attest();
        self.host.platform.is_slow = self.dice.one_in(2);
        self.host.platform.is_broken = self.dice.one_in(4);
    }

    fn run_engine(&mut self) {
        let events = self.engine.step(&mut self.dice);
        self.host.events(events);
        self.host.tick();
    }

    fn grant_all(&mut self) {
        for at in 0..self.clients.len() {
            let id = self.clients[at].id;
            let frames = self.dice.below(20) as u32;
            let credit = Credit { frames }.to_bytes();
            self.host.frame(id, FrameKind::HostCredit, &credit);
        }
    }

    /// The host behaves from here on: everything comes to its end.
    fn settle(&mut self) {
        self.host.attest();
        (self.host.platform.is_slow, self.host.platform.is_broken) = (false, false);
        for _ in 0..400 {
            self.engine.obey(&self.host);
            let events = self.engine.step(&mut self.dice);
            self.host.events(events);
            for at in 0..self.clients.len() {
                self.host.grant(self.clients[at].id, 64);
            }
            self.host.pass(50);
            if self.host.gateway.streams.is_empty() {
                break;
            }
        }
        // What the host never finished, or what it asked for twice, runs out of time.
        self.host.pass(31_000);
        self.host.pass(31_000);
        self.host.assert_empty();
    }

    fn judge(self) -> [u64; 3] {
        for (request, count) in &self.engine.added {
            assert_eq!(*count, 1, "request {request} was added {count} times");
        }
        let known: HashSet<_> = self.clients.iter().map(|client| client.request).collect();
        assert!(self.engine.added.keys().all(|request| known.contains(request)));
        let mut chain = Chain::new(self.host.receipt_key, BOOT);
        let mut serials = HashSet::new();
        for receipt in &self.host.receipts {
            let receipt = chain.verify_next(receipt).unwrap();
            assert!(serials.insert(receipt.serial), "two receipts of a request");
        }
        self.judge_evidence();
        let (mut whole, mut cut) = (0, 0);
        let (host, mut dice) = (self.host, self.dice);
        let added = self.engine.added.len() as u64;
        for client in self.clients {
            let tampered = dice.one_in(3);
            if is_whole(&host, client, tampered.then_some(&mut dice)) {
                whole += 1;
            } else {
                cut += 1;
            }
        }
        [added, whole, cut]
    }

    /// Each challenge was answered once at most: by evidence that is fresh for it, or by a close. Reports were made for
    /// epochs and for batches, of which there are four a second at most.
    fn judge_evidence(&self) {
        for (id, nonce) in &self.challenged {
            let sent = self.host.sent.get(id).map_or(&[][..], |sent| sent);
            if sent.iter().any(|sent| sent.kind == FrameKind::Close) {
                assert_eq!(sent.len(), 1, "closed and answered");
            } else if let Some(bundle) = evidence::bundle(&self.host, *id) {
                // Whole appraisals are in tests of their own: their signatures take long.
                let bundle = Bundle::parse(&bundle).unwrap();
                let section = Freshness::parse(bundle.freshness.unwrap()).unwrap();
                let refresh = Statement::from_bytes(section.statement).unwrap();
                let serve = Statement::from_bytes(bundle.statement).unwrap();
                assert_eq!(section.path.root(nonce), refresh.nonce);
                assert_eq!((refresh.epoch, refresh.prev_digest), (serve.epoch, serve.digest()));
                assert_eq!(section.report[0x50..0x90], refresh.report_data().to_bytes());
            }
        }
        let epochs = self.host.gateway.parts.epochs.current().number as usize;
        let seconds = self.host.now as usize / 1_000 + 1;
        let platform = &self.host.platform;
        let most = self.challenged.len().min(4 * seconds) + epochs + platform.failed;
        assert!(platform.asked <= most, "{} reports, {most} at most", platform.asked);
    }
}

/// Opens what came back, changed on the way for some, and says whether it is whole. A whole answer is the right one.
fn is_whole(host: &Host, client: Client, dice: Option<&mut Dice>) -> bool {
    let Client { request, id, context, .. } = client;
    let sent = host.sent.get(&id).map_or(&[][..], |sent| sent);
    let mut frames: Vec<Vec<u8>> = sent
        .iter()
        .filter(|sent| sent.kind == FrameKind::EnclaveData)
        .map(|sent| sent.body.clone())
        .collect();
    if let Some(dice) = dice
        && !frames.is_empty()
    {
        tamper(&mut frames, dice);
    }
    let mut opener: ResponseOpener = context.into_opener();
    let mut tokens = Vec::new();
    let mut failed = false;
    for frame in frames {
        let mut opened = Vec::new();
        let pushed = opener.push(&frame, &mut opened);
        for frame in opened {
            match frame.inner {
                Inner::Tokens(ids) => tokens.extend_from_slice(&ids),
                Inner::Error(_) => failed = true,
                _ => {}
            }
        }
        if pushed.is_err() {
            break;
        }
    }
    let expected = answer(request);
    assert!(expected.starts_with(&tokens), "tokens of somebody else");
    let Ok(end) = opener.finish() else {
        return false;
    };
    use chrysalis_protocol::response::FinishReason as Reason;
    match end.reason {
        Reason::Length => assert_eq!(tokens, expected),
        Reason::Error => assert!(failed),
        Reason::Cancelled | Reason::Stop => {}
    }
    true
}

fn tamper(frames: &mut Vec<Vec<u8>>, dice: &mut Dice) {
    let at = dice.below(frames.len());
    match dice.below(4) {
        0 => drop(frames.remove(at)),
        1 => frames.insert(at, frames[at].clone()),
        2 => frames.swap(at, 0),
        _ => {
            let byte = dice.below(frames[at].len());
            frames[at][byte] ^= 1 << dice.below(8);
        }
    }
}
