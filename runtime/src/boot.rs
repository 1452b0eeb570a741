//! The boot, a chain of proofs: each step takes what the step before it proved, and nothing is served before the last.
//!
//! launch config -> package header and signature -> platform -> (sealed) package key -> package -> weights -> engine
//! -> first epoch attested -> serving.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::SyncSender;
use std::thread::{self, JoinHandle};

use aws_lc_rs::digest;
use chrysalis_attestation::attester::simulated::Simulated;
use chrysalis_attestation::attester::{Attester, AttesterError};
use chrysalis_kernels::device::Device;
use chrysalis_models::decoder::Model;
use chrysalis_protocol::hex;
use chrysalis_protocol::package::{
    Generation, MetaError, Package, PackageError, PackageKey, PublicHeader,
};
use chrysalis_protocol::rand_core::Rng;
use chrysalis_protocol::receipt::{ReceiptError, ReceiptKey};
use chrysalis_protocol::secret::Secret;
use chrysalis_protocol::statement::Tee;

use crate::compute::{self, ComputeError};
use crate::config::LaunchConfig;
use crate::counters::Counters;
use crate::engine::{Engine, EngineError, EngineLimits};
use crate::epoch::{Epoch, Epochs, Identity};
use crate::files::{FileError, PackageFiles};
use crate::gpus::with_gpus;
use crate::hub::{Hub, HubExit, Inbound};
use crate::key_wait::KeyWait;
use crate::lease::Lease;
use crate::limits::Limits;
use crate::load::{self, LoadError, LoadOptions, LoadReport};
use crate::load_wait::{LoadEnded, LoadWait, Stoppable};
use crate::platform::Platform;
use crate::rng::SystemRng;
use crate::session::{Gateway, GatewayParts, ModelFacts, Receipts};
use crate::transport::{Address, Listener};
use crate::worker::Worker;

pub use crate::gpus::NVML;

/// Why an enclave did not start, or stopped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BootError {
    /// A file of the package could not be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// The package was refused.
    #[error("the package was refused: {0}")]
    Package(#[from] PackageError),
    /// The client bundle is not the one that the package names.
    #[error("the client bundle beside the package was refused: {0}")]
    ClientBundle(MetaError),
    /// The package is older than the launch config allows.
    #[error(
        "the package has security version {found}, the launch config asks for {minimum} at least"
    )]
    ModelSvn {
        /// Of the package.
        found: u32,
        /// Of the launch config.
        minimum: u32,
    },
    /// The address could not be bound.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// Where.
        address: Address,
        /// The system's reason.
        source: io::Error,
    },
    /// The platform made no evidence.
    #[error("the platform gave no evidence: {0}")]
    Attester(#[from] AttesterError),
    /// The host launched this guest with another launch config than it was given here.
    #[error(
        "the guest was launched for the config with SHA-256 {}, and was given one with {}: the host \
         sets HOST_DATA or MRCONFIGID to the digest of the file that it gives",
        hex::encode(.launched),
        hex::encode(.given)
    )]
    LaunchConfig {
        /// `HOST_DATA`, or the head of `MRCONFIGID`.
        launched: [u8; 32],
        /// SHA-256 of the launch config.
        given: [u8; 32],
    },
    /// GPUs are asked for, and this build cannot speak to any.
    #[error("the launch config asks for {count} gpus, and this build is without the feature gpu")]
    NoGpuSupport {
        /// How many.
        count: u16,
    },
    /// The weights could not be loaded.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// There is no device to compute on.
    #[error(transparent)]
    Compute(#[from] ComputeError),
    /// A card would see plaintext, and nobody would have proved which it is.
    #[error(
        "the launch config asks for cuda and for no gpus: on this platform the card that computes has to prove itself"
    )]
    UnprovedCard,
    /// The engine could not be made.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The engine ended while serving.
    #[error("the engine failed: {0}")]
    EngineFailed(String),
    /// The receipt key could not be made.
    #[error(transparent)]
    Receipt(#[from] ReceiptError),
    /// A thread could not be started, or ended without a result.
    #[error("a thread of the enclave failed: {0}")]
    Thread(String),
}

/// What an enclave is started with.
#[derive(Clone, Debug)]
pub struct EnclaveOptions {
    /// `NAME.chry`; its blobs and client bundle lie beside it.
    pub package: PathBuf,
    /// Where to listen.
    pub listen: Address,
    /// The launch config.
    pub config: LaunchConfig,
    /// Limits of the sockets and sessions.
    pub limits: Limits,
    /// NVIDIA's management library; looked at only where the launch config asks for GPUs.
    pub nvml: PathBuf,
}

impl EnclaveOptions {
    /// Default config and limits.
    pub fn new(package: PathBuf, listen: Address) -> Self {
        Self {
            package,
            listen,
            config: LaunchConfig::default(),
            limits: Limits::default(),
            nvml: NVML.into(),
        }
    }
}

/// How far a boot is. Nothing in it is secret: the host may see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Progress {
    /// Whether the package's digest stands in the guest's own register; on platforms that have one (TDX: RTMR3).
    Measured(bool),
    /// The socket is bound and the package's key is awaited.
    AwaitingKey,
    /// Segments loaded, of all.
    Loading(u64, u64),
    /// All segments are in place.
    Loaded(LoadReport),
    /// Requests are served.
    Serving,
}

/// A running enclave. Dropping it does not stop it: call [`stop`](Self::stop) or [`wait`](Self::wait).
#[derive(Debug)]
pub struct Enclave {
    thread: JoinHandle<Result<(), BootError>>,
    inbox: SyncSender<Inbound>,
    counters: Arc<Counters>,
}

impl Enclave {
    /// Reads the package's public part, binds the socket, and boots on a thread of its own, with evidence from
    /// `attester`: that of the machine, or the simulated one, which proves nothing.
    ///
    /// # Errors
    /// [`BootError`] for what can be known at once: package, platform, launch config, address.
    pub fn start(
        options: EnclaveOptions,
        attester: Box<dyn Attester>,
        report: impl FnMut(Progress) + Send + 'static,
    ) -> Result<Self, BootError> {
        let counters = Arc::new(Counters::default());
        let boot = Boot::prepare(options, attester, Arc::clone(&counters))?;
        let inbox = boot.hub.sender();
        let thread = thread::Builder::new()
            .name("boot".into())
            .spawn(move || boot.run(report))
            .map_err(|error| BootError::Thread(error.to_string()))?;
        Ok(Self { thread, inbox, counters })
    }

    /// What the enclave has counted so far.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Waits for the end.
    ///
    /// # Errors
    /// Why it ended, unless somebody asked for it.
    pub fn wait(self) -> Result<(), BootError> {
        self.thread.join().unwrap_or_else(|_| Err(BootError::Thread("it panicked".into())))
    }

    /// Asks for the end and waits for it.
    ///
    /// # Errors
    /// Why it had ended before.
    pub fn stop(self) -> Result<(), BootError> {
        // It fails when the enclave has ended, and `wait` says why.
        drop(self.inbox.send(Inbound::Shutdown));
        self.wait()
    }
}

/// What is known before the key is.
struct Boot {
    options: EnclaveOptions,
    files: PackageFiles,
    main: Vec<u8>,
    public: PublicHeader,
    identity: Identity,
    receipt_key: ReceiptKey,
    attester: Box<dyn Attester>,
    measured: bool,
    hub: Hub,
    counters: Arc<Counters>,
}

impl Boot {
    fn prepare(
        options: EnclaveOptions,
        mut attester: Box<dyn Attester>,
        counters: Arc<Counters>,
    ) -> Result<Self, BootError> {
        let files = PackageFiles::new(&options.package);
        let main = files.main()?;
        let public = PublicHeader::parse(&main)?;
        let policy = options.config.serving_policy();
        let (found, minimum) = (public.header().model_svn, policy.min_model_svn);
        if found < minimum {
            return Err(BootError::ModelSvn { found, minimum });
        }
        let (launched, given) = (attester.launch_config_digest()?, options.config.digest());
        if launched != given {
            return Err(BootError::LaunchConfig { launched, given });
        }
        let is_simulated = attester.tee() == Tee::Simulated;
        if options.config.cuda() && options.config.gpus() == 0 && !is_simulated {
            return Err(BootError::UnprovedCard);
        }
        let measured = attester.measure_package(&public.package_digest())?;
        let mut rng = SystemRng::default();
        let attester = with_gpus(attester, &options, &mut rng)?;
        let receipt_key = ReceiptKey::from_seed(&Secret::random(&mut rng))?;
        let mut boot_id = [0; 16];
        rng.fill_bytes(&mut boot_id);
        let identity = Identity {
            tee: attester.tee(),
            boot_id,
            receipt_key: receipt_key.public_key(),
            content_digest: public.content_digest(),
            package_digest: public.package_digest(),
            model_svn: found,
            package_head: public.to_bytes().to_vec(),
            policy,
            runtime_digest: own_digest(),
            launch_config_digest: options.config.digest(),
            gpu_required: options.config.gpus() > 0,
        };
        let listen_error = |source| BootError::Listen { address: options.listen.clone(), source };
        let listener = Listener::bind(&options.listen).map_err(listen_error)?;
        let hub =
            Hub::start(listener, options.limits, Arc::clone(&counters)).map_err(listen_error)?;
        Ok(Self {
            options,
            files,
            main,
            public,
            identity,
            receipt_key,
            attester,
            measured,
            hub,
            counters,
        })
    }

    fn run(mut self, mut report: impl FnMut(Progress) + Send) -> Result<(), BootError> {
        if self.identity.tee == Tee::Tdx {
            report(Progress::Measured(self.measured));
        }
        let (key, lease) = if self.public.header().sealed {
            report(Progress::AwaitingKey);
            match self.await_key()? {
                Some((key, lease)) => (Some(key), lease),
                None => return Ok(()),
            }
        } else {
            (None, Lease::UNLIMITED)
        };
        let package = Package::open(&self.main, key.as_ref())?;
        drop(key);
        let bundle = if package.meta().client_bundle_len == 0 {
            Vec::new()
        } else {
            self.files.client_bundle()?
        };
        package.meta().check_client_bundle(&bundle).map_err(BootError::ClientBundle)?;
        let Some(model) = self.load(&package, &mut report)? else {
            return Ok(());
        };
        let generation = package.meta().architecture.generation.clone();
        drop(package);
        self.serve(model, generation, bundle, lease, &mut report)
    }

    /// Nothing when somebody asked for the end.
    fn await_key(&mut self) -> Result<Option<(PackageKey, Lease)>, BootError> {
        let limits = self.options.limits;
        let counters = Arc::clone(&self.counters);
        let mut wait =
            KeyWait::new(&self.identity, &self.public, &mut *self.attester, limits, counters);
        match self.hub.drive(&mut wait) {
            HubExit::Done => Ok(wait.into_released()),
            HubExit::Shutdown => Ok(None),
            HubExit::EngineFailed(why) => Err(BootError::EngineFailed(why)),
        }
    }

    /// Loads onto the device that the launch config names. Nothing when somebody asked for the end.
    fn load(
        &mut self,
        package: &Package,
        report: &mut (impl FnMut(Progress) + Send),
    ) -> Result<Option<Box<dyn Model>>, BootError> {
        let config = &self.options.config;
        if config.cuda() {
            let card = compute::card(config.cuda_memory())?;
            self.load_onto(card, package, report)
        } else {
            let processor = compute::processor(config.threads())?;
            self.load_onto(processor, package, report)
        }
    }

    /// Loads on a thread of its own, while connections learn that the enclave is loading.
    fn load_onto(
        &mut self,
        device: impl Device,
        package: &Package,
        report: &mut (impl FnMut(Progress) + Send),
    ) -> Result<Option<Box<dyn Model>>, BootError> {
        let config = &self.options.config;
        let options = LoadOptions {
            threads: config.threads(),
            max_tokens: config.max_tokens_per_step().max(config.max_sequences()),
            max_logit_rows: config.max_logit_rows(),
            kv_tokens: config.kv_tokens(),
            block_size: config.block_size(),
            cache_dtype: config.cache_dtype(),
        };
        let counters = Arc::clone(&self.counters);
        let stop = Arc::new(AtomicBool::new(false));
        let files = &self.files;
        let stopped = Arc::clone(&stop);
        let blobs = move || Stoppable { source: files.blobs(), stop: Arc::clone(&stopped) };
        let loaded = Arc::new(AtomicBool::new(false));
        let ended = LoadEnded { loaded: Arc::clone(&loaded), waker: self.hub.sender() };
        let mut wait =
            LoadWait { limits: self.options.limits, counters: Arc::clone(&counters), loaded };
        let hub = &mut self.hub;
        thread::scope(|scope| {
            let loader = scope.spawn(move || {
                let _ended = ended;
                let segments = package.num_segments();
                let decoder = load::decoder(Arc::new(device), package, blobs, options, |count| {
                    Counters::add(&counters.segments_loaded, 1);
                    report(Progress::Loading(count, segments));
                });
                decoder.map(|(decoder, took)| {
                    report(Progress::Loaded(took));
                    decoder
                })
            });
            let exit = hub.drive(&mut wait);
            stop.store(exit != HubExit::Done, Ordering::Relaxed);
            let decoder =
                loader.join().map_err(|_| BootError::Thread("the loader panicked".into()))?;
            match exit {
                HubExit::Done => Ok(Some(Box::new(decoder?) as Box<dyn Model>)),
                _ => Ok(None),
            }
        })
    }

    fn serve(
        self,
        model: Box<dyn Model>,
        generation: Generation,
        bundle: Vec<u8>,
        lease: Lease,
        report: &mut impl FnMut(Progress),
    ) -> Result<(), BootError> {
        let Self { options, identity, receipt_key, mut attester, mut hub, counters, .. } = self;
        let vocab_size = model.vocab_size();
        let engine =
            Engine::new(model, engine_limits(&options.config))?.shaped(options.config.step_shape());
        let max_context = u32::try_from(engine.max_context()).unwrap_or(u32::MAX);
        let facts = ModelFacts { vocab_size, max_context, generation };
        let worker = Worker::start(engine, hub.sender())
            .map_err(|error| BootError::Thread(error.to_string()))?;
        let mut rng = SystemRng::default();
        let first = Epoch::begin(&identity, None, &mut *attester, &mut rng, hub.now_ms())?;
        let platform = Platform::start(attester, hub.sender())
            .map_err(|error| BootError::Thread(error.to_string()))?;
        let mut gateway = Gateway::new(GatewayParts {
            identity,
            limits: options.limits,
            config: options.config,
            platform: Box::new(move |statement| platform.ask(statement)),
            epochs: Epochs::new(first, options.limits.epoch_grace_ms),
            receipts: Receipts::new(receipt_key),
            lease,
            model: facts,
            client_bundle: bundle,
            counters,
            engine: Box::new(move |command| worker.send(command)),
        });
        report(Progress::Serving);
        let exit = hub.drive(&mut gateway);
        // The engine may wait for room in the inbox: the hub goes first, then the gateway can join the engine.
        drop(hub);
        match exit {
            HubExit::Done | HubExit::Shutdown => Ok(()),
            HubExit::EngineFailed(why) => Err(BootError::EngineFailed(why)),
        }
    }
}

fn engine_limits(config: &LaunchConfig) -> EngineLimits {
    let narrow = |value: usize| u32::try_from(value).unwrap_or(u32::MAX);
    let policy = config.serving_policy();
    EngineLimits {
        max_sequences: narrow(config.max_sequences()),
        max_waiting: narrow(config.max_waiting()),
        max_tokens_per_step: narrow(config.max_tokens_per_step()),
        max_prompt: policy.max_prompt,
        max_output: policy.max_output,
    }
}

/// SHA-384 of the running binary; zero where it cannot be read. Informative: the launch measurement is what counts.
fn own_digest() -> [u8; 48] {
    let mut out = [0; 48];
    if let Ok(digest) = File::open("/proc/self/exe").and_then(digest_of) {
        out.copy_from_slice(digest.as_ref());
    }
    out
}

/// Piece by piece: the binary is larger than what the enclave may take beside its weights.
fn digest_of(mut file: File) -> io::Result<digest::Digest> {
    let mut digest = digest::Context::new(&digest::SHA384);
    let mut piece = vec![0; 1 << 16];
    loop {
        match file.read(&mut piece)? {
            0 => return Ok(digest.finish()),
            len => digest.update(piece.get(..len).unwrap_or_default()),
        }
    }
}

/// The simulated platform, launched for `config`. It proves nothing.
///
/// # Errors
/// [`AttesterError::Key`] when the compiled-in key is damaged.
pub fn simulated(config: &LaunchConfig) -> Result<Box<dyn Attester>, AttesterError> {
    Ok(Box::new(Simulated::new(config.digest(), SIMULATED_MEASUREMENT)?))
}

/// Launch measurement that the simulated platform reports: of nothing, like all it says.
pub const SIMULATED_MEASUREMENT: [u8; 48] = *b"CHRYSALIS SIMULATED IMAGE: PROVES NOTHING AT ALL";
