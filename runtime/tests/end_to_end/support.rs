//! A tiny model in a package, an enclave that serves it on a socket file, and clients.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use aws_lc_rs::signature::Ed25519KeyPair;
use chrysalis_attestation::attester::Attester;
use chrysalis_attestation::policy::{
    AppraisalPolicy, Dangerous, MaxAge, PlatformTrust, ReleaseTerms, ServingDemand, SnpDemand,
    VerifiedEnclave,
};
use chrysalis_client::{Address, ClientError, Connection, Delta, Summary};
use chrysalis_kernels::cpu::{Cpu, CpuOptions};
use chrysalis_kernels::device::CacheDtype;
use chrysalis_models::{pack, source};
use chrysalis_protocol::messages::State;
use chrysalis_protocol::package::{Package, PackageKey, PackageOptions};
use chrysalis_protocol::request::{Options, Prompt, RequestBody};
use chrysalis_protocol::secret::Secret;
use chrysalis_protocol::statement::PadProfile;
use chrysalis_runtime::boot::{
    BootError, Enclave, EnclaveOptions, Progress, SIMULATED_MEASUREMENT, simulated,
};
use chrysalis_runtime::config::LaunchConfig;
use chrysalis_runtime::engine::{
    Engine, EngineLimits, Event, NewSequence, Sampling, SequenceId, StepStatus,
};
use chrysalis_runtime::files::PackageFiles;
use chrysalis_runtime::limits::Limits;
use chrysalis_runtime::load::{self, LoadOptions};
use chrysalis_runtime::transport;
use tempfile::TempDir;

/// A package on the disk, its key, and the policy that fits it.
pub(crate) struct Model {
    pub(crate) folder: TempDir,
    pub(crate) path: PathBuf,
    pub(crate) key: Option<PackageKey>,
    pub(crate) policy: AppraisalPolicy,
}

/// What is packed.
pub(crate) struct Pack<'a> {
    pub(crate) recorded: &'a str,
    pub(crate) sealed: bool,
    /// With a tokenizer, and a licence of this many bytes.
    pub(crate) licence: Option<usize>,
}

pub(crate) const SEALED: Pack<'_> = Pack { recorded: "tiny-llama3", sealed: true, licence: None };

pub(crate) const OPEN: Pack<'_> = Pack { recorded: "tiny-llama3", sealed: false, licence: None };

impl Model {
    pub(crate) fn new(what: &Pack<'_>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let source = folder.path().join("source");
        fs::create_dir(&source).unwrap();
        let recorded =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/tests/data").join(what.recorded);
        for name in ["config.json", "model.safetensors"] {
            fs::copy(recorded.join(name), source.join(name)).unwrap();
        }
        if let Some(len) = what.licence {
            fs::write(source.join("tokenizer.json"), tokenizer()).unwrap();
            fs::write(source.join("LICENSE"), "x".repeat(len)).unwrap();
        }
        let path = folder.path().join("model.chry");
        let key = what.sealed.then(|| key(5));
        let publisher = Ed25519KeyPair::from_seed_unchecked(&[6; 32]).unwrap();
        let mut package = PackageOptions::new([9; 16], &publisher);
        package.key = key.as_ref();
        let mut options = pack::PackOptions::new(package);
        options.without_text = what.licence.is_none();
        let source = source::open(&source).unwrap();
        pack::pack(&source, &path, &options, |_| {}).unwrap();

        let package =
            Package::open(&PackageFiles::new(&path).main().unwrap(), key.as_ref()).unwrap();
        let policy = AppraisalPolicy {
            content_digests: vec![package.public().content_digest()],
            publishers: vec![package.public().header().publisher_key_id],
            client_bundles: vec![package.meta().client_bundle_hash],
            minimum_svn: 1,
            measurements: vec![SIMULATED_MEASUREMENT],
            allow_simulated: true,
            platform: PlatformTrust::AnyGenuine,
            max_age: MaxAge::Fresh,
            serving: ServingDemand {
                pad_profiles: vec![PadProfile::Off, PadProfile::Tick],
                min_tick_ms: 1,
                max_tick_ms: 50,
                min_length_quantum: 1,
                min_billing_quantum: 1,
                max_epoch_seconds: 3_600,
                max_epoch_requests: 1 << 20,
                allow_text_mode: false,
                allow_kv_sharing: false,
                allow_spec_decode: false,
                allow_moe_on_cpu: false,
                require_oblivious_embed: false,
                max_ack_window: None,
            },
            snp: SnpDemand::default(),
            gpu: None,
            tdx: None,
            dangerous: Dangerous {
                allow_debug_build: cfg!(debug_assertions),
                ..Dangerous::default()
            },
        };
        Self { folder, path, key, policy }
    }

    /// Flips a bit in the middle of one of its files.
    pub(crate) fn damage(&self, ending: &str) {
        let path = self.path.with_extension(ending);
        let mut bytes = fs::read(&path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 0x10;
        fs::write(path, bytes).unwrap();
    }

    /// What the engine says by itself, greedily, one prompt after the other.
    pub(crate) fn bare(&self, prompts: &[Vec<u32>], max_output: u32) -> Vec<Vec<u32>> {
        let files = PackageFiles::new(&self.path);
        let package = Package::open(&files.main().unwrap(), self.key.as_ref()).unwrap();
        let device = Cpu::new(CpuOptions { threads: Some(1), ..CpuOptions::default() });
        let options = LoadOptions {
            threads: Some(2),
            max_tokens: 64,
            max_logit_rows: 1,
            kv_tokens: 256,
            block_size: 16,
            cache_dtype: CacheDtype::F16,
        };
        let device = Arc::new(device.unwrap());
        let loaded = load::decoder(device, &package, || files.blobs(), options, |_| {});
        let (decoder, _) = loaded.unwrap();
        let limits = EngineLimits {
            max_sequences: 1,
            max_waiting: 0,
            max_tokens_per_step: 64,
            max_prompt: 256,
            max_output: 256,
        };
        let mut engine = Engine::new(Box::new(decoder), limits).unwrap();
        let eos = &package.meta().architecture.generation.eos_token_ids;
        let answer = |prompt: &Vec<u32>| {
            let new = NewSequence {
                id: SequenceId(0),
                prompt: prompt.clone().into(),
                max_output,
                sampling: Sampling { temperature: 0.0, ..Sampling::default() },
                seed: 0,
                stop_token_ids: eos.clone(),
                logprobs: None,
            };
            engine.add(new).unwrap();
            let mut events = Vec::new();
            while engine.step(&mut events).unwrap() != StepStatus::Idle {}
            let tokens = events.iter().filter_map(|event| match event {
                Event::Token { token, .. } => Some(*token),
                _ => None,
            });
            tokens.collect()
        };
        prompts.iter().map(answer).collect()
    }
}

/// An enclave in this process.
pub(crate) struct Running {
    pub(crate) enclave: Enclave,
    pub(crate) address: Address,
    progress: Mutex<Receiver<Progress>>,
}

/// Frames as they come, small reservations.
pub(crate) const QUICK: &str = "pad_profile = 0\nthreads = 2\nkv_tokens = 8192\nmax_sequences = 32";

impl Running {
    /// Starts an enclave, and releases its key where it waits for one.
    pub(crate) fn serving(model: &Model, config: &str) -> Self {
        let running = Self::start(model, config).unwrap();
        if let Some(key) = &model.key {
            running.release(model, key).unwrap();
        }
        running.wait_until_serving();
        running
    }

    /// Starts an enclave; a sealed one then waits for its key.
    pub(crate) fn start(model: &Model, config: &str) -> Result<Self, BootError> {
        let socket = model.folder.path().join("socket");
        Self::start_at(&model.path, &socket, config, Limits::default())
    }

    pub(crate) fn start_at(
        package: &Path,
        socket: &Path,
        config: &str,
        limits: Limits,
    ) -> Result<Self, BootError> {
        let config = LaunchConfig::parse(config.as_bytes()).unwrap();
        let attester = simulated(&config)?;
        Self::start_on(attester, package, socket, config, limits)
    }

    pub(crate) fn start_on(
        attester: Box<dyn Attester>,
        package: &Path,
        socket: &Path,
        config: LaunchConfig,
        limits: Limits,
    ) -> Result<Self, BootError> {
        let listen = transport::Address::Unix(socket.to_owned());
        let options =
            EnclaveOptions { config, limits, ..EnclaveOptions::new(package.to_owned(), listen) };
        Self::start_with(attester, options, socket)
    }

    pub(crate) fn start_with(
        attester: Box<dyn Attester>,
        options: EnclaveOptions,
        socket: &Path,
    ) -> Result<Self, BootError> {
        let (report, progress) = channel();
        // A test that ended needs no reports.
        let enclave =
            Enclave::start(options, attester, move |step| report.send(step).unwrap_or_default())?;
        Ok(Self {
            enclave,
            address: Address::Unix(socket.to_owned()),
            progress: Mutex::new(progress),
        })
    }

    pub(crate) fn release(&self, model: &Model, key: &PackageKey) -> Result<(), ClientError> {
        let mut owner = Connection::open(&self.address)?;
        owner.release(&model.policy, key, &TERMS).map(|_| ())
    }

    /// The next thing that the boot tells.
    pub(crate) fn progress(&self) -> Progress {
        self.progress.lock().unwrap().recv_timeout(Duration::from_secs(20)).unwrap()
    }

    pub(crate) fn wait_until_serving(&self) {
        while self.progress() != Progress::Serving {}
    }

    pub(crate) fn connect(&self) -> Connection {
        let start = Instant::now();
        loop {
            let connection = Connection::open(&self.address).unwrap();
            if connection.state() == State::Serving {
                return connection;
            }
            assert!(start.elapsed() < Duration::from_secs(20));
            thread::sleep(Duration::from_millis(5));
        }
    }

    pub(crate) fn verified(&self, model: &Model) -> (Connection, VerifiedEnclave) {
        let mut connection = self.connect();
        let enclave = connection.verify(&model.policy).unwrap();
        (connection, enclave)
    }
}

pub(crate) const TERMS: ReleaseTerms =
    ReleaseTerms { min_model_svn: 1, lease_seconds: 0, lease_tokens: 0 };

pub(crate) fn key(byte: u8) -> PackageKey {
    PackageKey::new(Secret::from([byte; 32]))
}

/// Greedy.
pub(crate) fn body(prompt: &[u32], max_output: u32) -> RequestBody {
    RequestBody {
        stream: true,
        want_logprobs: false,
        max_output,
        request_id: [0; 16],
        seed: 0,
        options: Options {
            temperature: Some(0.0),
            repetition_penalty: Some(1.0),
            ..Options::default()
        },
        prompt: Prompt::tokens(prompt),
    }
}

/// Asks and reads to the end.
pub(crate) fn ask(
    connection: &mut Connection,
    enclave: &VerifiedEnclave,
    body: &RequestBody,
) -> Result<(Vec<u32>, Summary), ClientError> {
    let mut answer = connection.ask(enclave, body)?;
    let mut tokens = Vec::new();
    while let Some(delta) = answer.next_delta()? {
        if let Delta::Tokens(ids) = delta {
            tokens.extend_from_slice(&ids);
        }
    }
    Ok((tokens, answer.finish()?))
}

/// Prompts of different lengths, from 1 token up.
pub(crate) fn prompts(count: u32) -> Vec<Vec<u32>> {
    let prompt = |n: u32| (0..1 + n * 7 % 90).map(move |at| 3 + (n * 31 + at * 17) % 240);
    (0..count).map(|n| prompt(n).collect()).collect()
}

/// A byte-level tokenizer of printable ASCII.
fn tokenizer() -> String {
    let letters = ["<unk>", "<s>", "</s>", "\u{120}", "\u{10a}"].map(str::to_owned);
    let tokens = letters.into_iter().chain(('!'..='~').map(String::from));
    let vocab: Vec<_> = tokens.zip(0..).map(|(token, id)| format!("{token:?}:{id}")).collect();
    let byte_level =
        r#"{"type":"ByteLevel","add_prefix_space":false,"trim_offsets":true,"use_regex":true}"#;
    format!(
        r#"{{"version":"1.0","truncation":null,"padding":null,"normalizer":null,"post_processor":null,
        "added_tokens":[],"pre_tokenizer":{byte_level},"decoder":{byte_level},
        "model":{{"type":"BPE","dropout":null,"unk_token":null,"continuing_subword_prefix":null,
        "end_of_word_suffix":null,"fuse_unk":false,"byte_fallback":false,"vocab":{{{}}},"merges":[]}}}}"#,
        vocab.join(",")
    )
}
