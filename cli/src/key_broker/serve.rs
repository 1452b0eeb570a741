//! `chrysalis key-broker serve`: connections with deadlines, TLS, and an end that loses nothing.

use std::fs;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use chrysalis_runtime::harden::harden;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde::Serialize;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::{interval, sleep, timeout};
use tokio_rustls::TlsAcceptor;

use super::admin_server::{AdminSocket, answer};
use super::args::ServeArgs;
use super::clock::CLOCK_SLACK;
use super::error::BrokerError;
use super::http::{Calls, Peer, router};
use super::licence::now_unix;
use super::log::{Entry, Event};
use super::master::MasterKey;
use super::peers::Peers;
use super::rate::RateLimits;
use super::service::Service;
use super::spend::Job;
use super::store::Store;
use super::writer::{Writer, WriterThread};
use crate::error::CliError;
use crate::output;

/// What `--json` prints once the broker listens.
#[derive(Serialize)]
struct Listening {
    listening: String,
    packages: usize,
}

/// Runs `chrysalis key-broker serve` until SIGTERM or SIGINT.
///
/// # Errors
/// [`BrokerError`].
pub fn run(args: &ServeArgs) -> Result<(), CliError> {
    let tls = match (&args.tls_cert, &args.tls_key) {
        (Some(cert), Some(key)) => Some(tls(cert, key)?),
        _ => None,
    };
    let plain_is_fine =
        args.behind_proxy || args.dangerous_plain_http || args.listen.ip().is_loopback();
    if tls.is_none() && !plain_is_fine {
        return Err(BrokerError::PlainHttp { address: args.listen }.into());
    }
    harden().map_err(BrokerError::Harden)?;
    let master = MasterKey::read(&args.at.master_key)?;
    let store = open(args, &master)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(BrokerError::Server)?;
    let limits =
        RateLimits { address: args.rate_address, package: args.rate_package, chip: args.rate_chip };
    let count = store.shared().now().len();
    let service = Arc::new(Service::new(&store, master, limits));
    let (writer, thread, failed) = Writer::start(store)?;
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let calls = Calls {
        service,
        writer,
        appraisals: Arc::new(Semaphore::new(cores)),
        behind_proxy: args.behind_proxy,
    };
    let served = runtime.block_on(serve(args, tls, calls, failed, count));
    // Tasks that are still there hold ways to the writer; without them it ends.
    runtime.shutdown_timeout(Duration::from_secs(1));
    finish(served, thread)
}

/// The reason that came first: a store that failed explains everything after it.
fn finish(served: Result<(), CliError>, thread: WriterThread) -> Result<(), CliError> {
    thread.join()?;
    served
}

fn open(args: &ServeArgs, master: &MasterKey) -> Result<Store, CliError> {
    let mut store = Store::open(&args.at.store)?;
    if !store.has_mark(&master.mark())? {
        return Err(BrokerError::MasterKey { path: args.at.master_key.clone() }.into());
    }
    let (now, last) = (now_unix(), store.last_unix());
    if now.saturating_add(CLOCK_SLACK) < last {
        if !args.dangerous_clock_back {
            return Err(BrokerError::ClockBack { now, last }.into());
        }
        store.set_clock_back(now)?;
    }
    Ok(store)
}

async fn serve(
    args: &ServeArgs,
    tls: Option<TlsAcceptor>,
    calls: Calls,
    mut failed: oneshot::Receiver<()>,
    packages: usize,
) -> Result<(), CliError> {
    let listen_error = |source| BrokerError::Listen { address: args.listen, source };
    let listener = TcpListener::bind(args.listen).await.map_err(listen_error)?;
    let address = listener.local_addr().map_err(listen_error)?;
    let mut ends = Ends::new().map_err(BrokerError::Server)?;
    let admin = AdminSocket::bind(&args.at.store)?;
    note(&calls, Entry::new(Event::Start, now_unix())).await;
    announce(args, address, tls.is_some(), packages)?;

    let graceful = GracefulShutdown::new();
    let connections = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let peers = Peers::default();
    // Behind a proxy everybody comes from its address.
    let peer_max = if args.behind_proxy { CONNECTIONS_MAX } else { PEER_CONNECTIONS_MAX };
    let app = router(calls.clone());
    let mut summaries = interval(SUMMARY);
    loop {
        tokio::select! {
            accepted = accept(&listener, &connections) => {
                let (stream, peer, permit) = accepted;
                let Some(place) = peers.enter(peer.ip(), peer_max) else { continue };
                let service = TowerToHyperService::new(app.clone().layer(Extension(Peer(peer))));
                let watcher = graceful.watcher();
                let tls = tls.clone();
                tokio::spawn(async move {
                    let _held = (permit, place);
                    // A peer that breaks off is its own affair.
                    drop(match tls {
                        None => converse(stream, service, watcher).await,
                        Some(tls) => match timeout(HANDSHAKE, tls.accept(stream)).await {
                            Ok(Ok(stream)) => converse(stream, service, watcher).await,
                            _ => Ok(()),
                        },
                    });
                });
            }
            Some(stream) = admin.accept() => {
                tokio::spawn(answer(stream, calls.writer.clone()));
            }
            _ = summaries.tick() => summarise(&calls).await,
            () = ends.wait() => break,
            _ = &mut failed => break,
        }
    }
    drop((listener, admin));
    // What is under way is answered; who only listens is not waited for.
    drop(timeout(GRACE, graceful.shutdown()).await);
    summarise(&calls).await;
    note(&calls, Entry::new(Event::Stop, now_unix())).await;
    Ok(())
}

/// The next connection, once there is room for it.
async fn accept(
    listener: &TcpListener,
    connections: &Arc<Semaphore>,
) -> (TcpStream, SocketAddr, Option<OwnedSemaphorePermit>) {
    // The semaphore is never closed.
    let permit = Arc::clone(connections).acquire_owned().await.ok();
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => return (stream, peer, permit),
            // No more file descriptors, or a peer that left at once.
            Err(_) => sleep(Duration::from_millis(50)).await,
        }
    }
}

fn converse<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    stream: S,
    service: TowerToHyperService<axum::Router>,
    watcher: hyper_util::server::graceful::Watcher,
) -> impl Future<Output = Result<(), hyper::Error>> {
    let mut builder = http1::Builder::new();
    // The time for a request's head is also the time that an idle connection is kept.
    builder.timer(TokioTimer::new()).header_read_timeout(HEAD).max_buf_size(HEAD_MAX);
    watcher.watch(builder.serve_connection(TokioIo::new(stream), service))
}

/// Counts what was refused for its rate.
async fn summarise(calls: &Calls) {
    let count = calls.service.take_limited();
    if count > 0 {
        let detail = format!("{count} calls");
        note(calls, Entry { detail, ..Entry::new(Event::Limited, now_unix()) }).await;
    }
}

/// Logs what nobody waits for; a store that fails ends the broker by itself.
async fn note(calls: &Calls, entry: Entry) {
    drop(calls.writer.submit(Job::Note(Box::new(entry))).await);
}

fn announce(
    args: &ServeArgs,
    address: SocketAddr,
    tls: bool,
    packages: usize,
) -> Result<(), CliError> {
    let listening = format!("{}://{address}", if tls { "https" } else { "http" });
    if args.json {
        return output::json(&Listening { listening, packages });
    }
    output::line(&format!("listening on {listening}, licences for {packages} packages"))
}

/// Signals that ask for the end.
struct Ends {
    terminate: Signal,
    interrupt: Signal,
}

impl Ends {
    fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    async fn wait(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// TLS 1.3 with this certificate. A private key that everybody on the machine can read is refused.
fn tls(cert: &Path, key: &Path) -> Result<TlsAcceptor, BrokerError> {
    let wrong = |path: &Path, reason: &dyn std::fmt::Display| BrokerError::Tls {
        path: path.to_owned(),
        reason: reason.to_string(),
    };
    let chain: Result<Vec<_>, _> =
        CertificateDer::pem_file_iter(cert).and_then(|certificates| certificates.collect());
    let chain = chain.map_err(|error| wrong(cert, &error))?;
    let mode = fs::metadata(key).map_err(|error| wrong(key, &error))?.permissions().mode() & 0o777;
    if mode & 0o007 != 0 {
        return Err(BrokerError::TlsMode { path: key.to_owned(), mode });
    }
    let private = PrivateKeyDer::from_pem_file(key).map_err(|error| wrong(key, &error))?;
    let provider = Arc::new(aws_lc_rs::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| wrong(cert, &error))?
        .with_no_client_auth()
        .with_single_cert(chain, private)
        .map_err(|error| wrong(cert, &error))?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// Connections at once, and so bundles of a megabyte in memory; the next one waits to be accepted.
const CONNECTIONS_MAX: usize = 256;
/// Connections of one network at once; more of them are closed unread.
const PEER_CONNECTIONS_MAX: usize = 32;
/// A handshake takes no longer.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// A request's head takes no longer.
const HEAD: Duration = Duration::from_secs(15);
/// Bytes of a request's head, at most.
const HEAD_MAX: usize = 16 << 10;
/// How often refusals by rate are summed up in the log.
const SUMMARY: Duration = Duration::from_secs(60);
/// How long the end waits for what is under way.
const GRACE: Duration = Duration::from_secs(25);

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::args::{Cli, Command};
    use crate::key_broker::args::BrokerCommand;

    #[test]
    fn a_clock_that_is_behind_the_store_is_refused_until_somebody_says_it_is_right() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name).into_os_string().into_string().unwrap();
        let (store, key) = (path("store"), path("master.key"));
        let (master, _) = MasterKey::read_or_create(Path::new(&key)).unwrap();
        let ahead = now_unix() + 2 * CLOCK_SLACK;
        drop(Store::create(Path::new(&store), &master, ahead).unwrap());
        let tried = |flag: Option<&str>| {
            let args =
                ["chrysalis", "key-broker", "serve", "--store", &store, "--master-key", &key];
            let cli = Cli::parse_from(args.into_iter().chain(flag));
            let Command::KeyBroker(broker) = cli.command else { panic!("another command") };
            let BrokerCommand::Serve(args) = broker.command else { panic!("another command") };
            open(&args, &master).map(|store| store.last_unix())
        };
        let refused = tried(None);
        assert!(matches!(
            refused,
            Err(CliError::Broker(BrokerError::ClockBack { last, .. })) if last == ahead
        ));
        assert!(tried(Some("--dangerous-clock-back")).unwrap() < ahead);
        // It was taken once, and is the store's time from then on.
        assert!(tried(None).unwrap() < ahead);
    }
}
