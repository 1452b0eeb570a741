//! The broker is killed at random moments under load: no release is lost, none is made twice, no budget is passed.
//!
//! `CHRYSALIS_BROKER_RELEASES=10000 CHRYSALIS_BROKER_KILLS=100` is the whole check; a test run does a part of it.

use std::collections::{HashMap, HashSet};
use std::env;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, RwLock};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use chrysalis_protocol::hex;

use super::broker::{Client, Owner};
use super::enclave::{Asked, Enclave};

/// What all clients together know.
struct World {
    address: RwLock<SocketAddr>,
    /// Sealed answers by the digest of their statement.
    answers: Mutex<HashMap<[u8; 48], Vec<u8>>>,
    refused: AtomicU64,
    done: AtomicBool,
}

#[test]
fn a_broker_that_is_killed_at_any_moment_loses_nothing_and_never_passes_its_budget() {
    let number =
        |name: &str, default| env::var(name).map_or(default, |text| text.parse::<u64>().unwrap());
    let releases = number("CHRYSALIS_BROKER_RELEASES", 150);
    let kills = number("CHRYSALIS_BROKER_KILLS", 8);
    let budget = format!("releases = {releases}");
    let tokens = format!("token_budget = {}", releases * 1_000);
    let owner = Owner::licensed(&[
        ("releases = 100", &budget),
        ("releases_per_chip = 20", "releases_per_chip = \"unlimited\""),
        ("lease_tokens = 100000000", "lease_tokens = 1000"),
        ("token_budget = 1000000000", &tokens),
    ]);
    let broker = owner.serve();
    let world = World {
        address: RwLock::new(broker.address),
        answers: Mutex::default(),
        refused: AtomicU64::new(0),
        done: AtomicBool::new(false),
    };
    let seed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64;
    println!("seed {seed}");
    let start = Instant::now();
    let killed = thread::scope(|scope| {
        for _ in 0..CLIENTS {
            scope.spawn(|| load(&owner.package, &world));
        }
        kill(&owner, broker, &world, releases, kills, seed)
    });
    let took = start.elapsed();

    let answers = world.answers.into_inner().unwrap();
    assert_eq!(answers.len() as u64, releases, "every release that was paid for was received");
    assert!(world.refused.load(Ordering::Relaxed) >= CLIENTS, "and one more was refused to each");
    let status = &owner.status()[0];
    assert_eq!(status["releases_spent"], releases);
    assert_eq!(status["tokens_spent"], releases * 1_000);
    // Verifying checks that no statement is released twice, and that the counts have no gap.
    assert_eq!(owner.releases_in_log(), releases);
    let received: HashSet<String> = answers.keys().map(|digest| hex::encode(digest)).collect();
    for entry in owner.log().iter().filter(|entry| entry["event"] == "release") {
        let statement = entry["statement"].as_str().unwrap();
        assert!(received.contains(statement), "{entry}");
    }
    println!(
        "{releases} releases, {killed} kills, {:.1} s, {:.0} releases a second",
        took.as_secs_f64(),
        releases as f64 / took.as_secs_f64()
    );
}

/// Kills the broker again and again, spread over the load, and lets the last one end by itself.
fn kill(
    owner: &Owner,
    mut broker: super::broker::Broker,
    world: &World,
    releases: u64,
    kills: u64,
    mut state: u64,
) -> u64 {
    let mut random = move |below: u64| {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    };
    let mut killed = 0;
    while killed < kills {
        // After some progress, so that kills fall on the whole load, and then at any moment.
        let due = releases * killed / (kills + 1);
        let received = || world.answers.lock().unwrap().len() as u64;
        while received() < due && received() < releases {
            thread::sleep(Duration::from_millis(1));
        }
        thread::sleep(Duration::from_micros(random(100_000)));
        broker.kill();
        killed += 1;
        broker = owner.serve();
        *world.address.write().unwrap() = broker.address;
    }
    while !world.done.load(Ordering::Relaxed) {
        thread::sleep(Duration::from_millis(10));
    }
    // What comes now is refused, and the last broker is asked to end.
    thread::sleep(Duration::from_millis(200));
    broker.stop();
    killed
}

/// One host after another asks for a key until the budget is used up. A call that broke off is made again with the same
/// evidence, as the host's command does.
fn load(package: &str, world: &World) {
    let mut enclave = Enclave::of(package);
    while let Some((asked, sealed)) = release(&mut enclave, world) {
        let digest = asked.digest;
        asked.open(&sealed);
        let before = world.answers.lock().unwrap().insert(digest, sealed);
        assert!(before.is_none(), "a statement was answered twice");
    }
    world.refused.fetch_add(1, Ordering::Relaxed);
    world.done.store(true, Ordering::Relaxed);
}

/// Nothing when the budget is used up.
fn release(enclave: &mut Enclave, world: &World) -> Option<(Asked, Vec<u8>)> {
    loop {
        let challenge = patiently(world, |client| client.challenge(enclave)).unwrap();
        let asked = enclave.ask(challenge);
        let reply = patiently(world, |client| client.post("/v1/release", &asked.bundle));
        match (reply.status, reply.code().as_str()) {
            (200, _) => return Some((asked, reply.body)),
            // The broker was killed before it decided, and its challenges with it.
            (409, "challenge.unknown") => {}
            (403, "licence.releases") => return None,
            (status, code) => panic!("{status} {code}"),
        }
    }
}

fn patiently<T>(world: &World, mut call: impl FnMut(&mut Client) -> io::Result<T>) -> T {
    let start = Instant::now();
    loop {
        let address = *world.address.read().unwrap();
        match Client::connect(address).and_then(|mut client| call(&mut client)) {
            Ok(answer) => return answer,
            Err(error) => assert!(start.elapsed() < Duration::from_secs(120), "{error}"),
        }
        thread::sleep(Duration::from_millis(5));
    }
}

const CLIENTS: u64 = 4;
