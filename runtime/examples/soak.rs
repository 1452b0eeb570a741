//! Many clients for a long time, some of whom are killed: `cargo run --release -p chrysalis-runtime --example soak --`
//! `--connect unix:PATH --policy FILE [--clients 64] [--seconds 300] [--kill 10] [--max-tokens 64] [--pid PID]`
//!
//! Prints one line of JSON, and fails when a stream of a client that was not killed has no final frame. `--pid` names
//! the enclave, whose memory is then measured. Prompts are token ids below 200, which every vocabulary has.

use std::error::Error;
use std::fs;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use chrysalis_client::{Address, AppraisalPolicy, ClientError, Connection, Delta, VerifiedEnclave};
use chrysalis_protocol::messages::CloseCode;
use chrysalis_protocol::request::{Options, Prompt, RequestBody};

/// What the command line says.
struct Args {
    connect: Address,
    policy: AppraisalPolicy,
    clients: u64,
    seconds: u64,
    kill: u64,
    max_tokens: u32,
    pid: Option<u32>,
}

/// What all clients count.
#[derive(Default)]
struct Totals {
    requests: AtomicU64,
    busy: AtomicU64,
    errors: AtomicU64,
    killed: AtomicU64,
    tokens: AtomicU64,
    first_token_ms: Mutex<Vec<u64>>,
    first_error: Mutex<Option<String>>,
}

#[expect(clippy::print_stdout, reason = "it is a program for a terminal")]
fn main() -> Result<(), Box<dyn Error>> {
    let args = Args::read()?;
    let totals = Totals::default();
    let end = Instant::now() + Duration::from_secs(args.seconds);
    let rss_start = rss_mib(args.pid);
    // Memory is measured again while it works, and once all have left.
    let mut rss_max = rss_start;
    thread::scope(|scope| {
        for client in 0..args.clients {
            let (args, totals) = (&args, &totals);
            scope.spawn(move || run_client(client, args, totals, end));
        }
        while Instant::now() < end {
            thread::sleep(Duration::from_millis(500));
            rss_max = rss_max.max(rss_mib(args.pid));
        }
    });
    let mut first = totals.first_token_ms.into_inner().map_err(|_| "a client panicked")?;
    first.sort_unstable();
    let at = |share: usize| first.get(first.len() * share / 100).copied().unwrap_or_default();
    let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    println!(
        r#"{{"requests":{},"errors":{},"busy":{},"killed":{},"tokens":{},"rss_start_mib":{},"rss_max_mib":{},"rss_end_mib":{},"first_token_p50_ms":{},"first_token_p99_ms":{}}}"#,
        count(&totals.requests),
        count(&totals.errors),
        count(&totals.busy),
        count(&totals.killed),
        count(&totals.tokens),
        json(rss_start),
        json(rss_max),
        json(rss_mib(args.pid)),
        at(50),
        at(99),
    );
    let first_error = totals.first_error.into_inner().map_err(|_| "a client panicked")?;
    first_error.map_or(Ok(()), |error| Err(error.into()))
}

/// One client after the other in this place, until the time is over: the first few places lose theirs again and again.
fn run_client(client: u64, args: &Args, totals: &Totals, end: Instant) {
    let mut dice = client;
    while Instant::now() < end {
        if let Err(error) = run_connection(client, &mut dice, args, totals, end) {
            totals.errors.fetch_add(1, Ordering::Relaxed);
            if let Ok(mut first) = totals.first_error.lock() {
                first.get_or_insert_with(|| format!("client {client}: {error}"));
            }
        }
        // The one that comes after him needs a moment to start, and the enclave one to notice.
        thread::sleep(Duration::from_millis(300));
    }
}

/// Asks on one connection until it is killed or the time is over.
fn run_connection(
    client: u64,
    dice: &mut u64,
    args: &Args,
    totals: &Totals,
    end: Instant,
) -> Result<(), ClientError> {
    let mut connection = Connection::open(&args.connect)?;
    let enclave = connection.verify(&args.policy)?;
    while Instant::now() < end {
        let kill_after = (client < args.kill && roll(dice, 4) == 0).then(|| roll(dice, 20));
        match ask(&mut connection, &enclave, dice, args, totals, kill_after) {
            Ok(true) => {}
            Ok(false) => {
                totals.killed.fetch_add(1, Ordering::Relaxed);
                return Ok(());
            }
            Err(ClientError::Refused { code: CloseCode::Busy }) => {
                totals.busy.fetch_add(1, Ordering::Relaxed);
                thread::sleep(Duration::from_secs(1));
            }
            Err(ClientError::Refused { code: CloseCode::KeyUnknown }) => return Ok(()),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// One question; `false` when the client was killed in the middle of the answer.
fn ask(
    connection: &mut Connection,
    enclave: &VerifiedEnclave,
    dice: &mut u64,
    args: &Args,
    totals: &Totals,
    kill_after: Option<u64>,
) -> Result<bool, ClientError> {
    let prompt: Vec<u32> = (0..1 + roll(dice, 120)).map(|_| 3 + roll(dice, 190) as u32).collect();
    let body = RequestBody {
        stream: true,
        want_logprobs: false,
        max_output: args.max_tokens,
        request_id: [0; 16],
        seed: roll(dice, u64::MAX),
        options: Options::default(),
        prompt: Prompt::tokens(prompt),
    };
    let start = Instant::now();
    let mut answer = connection.ask(enclave, &body)?;
    let mut tokens = 0;
    while let Some(delta) = answer.next_delta()? {
        let Delta::Tokens(ids) = delta else { continue };
        if tokens == 0
            && let Ok(mut first) = totals.first_token_ms.lock()
        {
            first.push(start.elapsed().as_millis() as u64);
        }
        tokens += ids.len() as u64;
        if kill_after.is_some_and(|after| tokens > after) {
            // Who is killed says nothing any more, not even that he gives up: his socket just goes.
            std::mem::forget(answer);
            return Ok(false);
        }
    }
    answer.finish()?;
    totals.requests.fetch_add(1, Ordering::Relaxed);
    totals.tokens.fetch_add(tokens, Ordering::Relaxed);
    Ok(true)
}

impl Args {
    fn read() -> Result<Self, Box<dyn Error>> {
        let mut values = std::collections::HashMap::new();
        let mut args = std::env::args().skip(1);
        while let Some(name) = args.next() {
            let value = args.next().ok_or_else(|| format!("{name} has no value"))?;
            values.insert(name, value);
        }
        let mut take = |name: &str| values.remove(name);
        let connect = take("--connect").ok_or("--connect ADDR")?.parse()?;
        let policy = take("--policy").ok_or("--policy FILE")?;
        let mut number =
            |name, default: u64| take(name).map_or(Ok(default), |value| value.parse::<u64>());
        let read = Self {
            connect,
            policy: AppraisalPolicy::from_toml(&fs::read_to_string(policy)?)?,
            clients: number("--clients", 64)?,
            seconds: number("--seconds", 300)?,
            kill: number("--kill", 10)?,
            max_tokens: u32::try_from(number("--max-tokens", 64)?)?,
            pid: take("--pid").map(|pid| pid.parse()).transpose()?,
        };
        match values.into_keys().next() {
            Some(name) => Err(format!("there is no {name}").into()),
            None => Ok(read),
        }
    }
}

/// Resident memory of a process in MiB.
fn rss_mib(pid: Option<u32>) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{}/status", pid?)).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib / 1024)
}

fn json(value: Option<u64>) -> String {
    value.map_or_else(|| "null".to_owned(), |value| value.to_string())
}

/// SplitMix64, below `bound`.
fn roll(state: &mut u64, bound: u64) -> u64 {
    *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    (z ^ (z >> 31)) % bound
}
