//! The command line: names and flags are the contract that scripts rely on.

use std::path::PathBuf;

use clap::{ArgGroup, Args, Parser, Subcommand, ValueEnum};

use crate::key_broker::args::BrokerArgs;
use crate::receipts::ReceiptsArgs;
use crate::relay::RelayArgs;

/// Confidential inference: pack a model, serve it from an enclave, verify, ask.
#[derive(Debug, Parser)]
#[command(name = "chrysalis", version, propagate_version = true, arg_required_else_help = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// The whole way on this machine: fetch a small model, pack, attest, release, seal, infer, and say what was proved
    Demo(DemoArgs),
    /// Turn a GGUF file or a Hugging Face folder into a sealed (or open) package
    Pack(PackArgs),
    /// Show what a package is: config, tensors, digests, sealed or open, licence
    Inspect(InspectArgs),
    /// Start chrysalis-enclave for a package, in the foreground
    Serve(ServeArgs),
    /// As the host: pass clients' connections on to an enclave, and keep the receipts
    Relay(RelayArgs),
    /// As the model's owner: verify an enclave, then seal the package key to it
    Release(ReleaseArgs),
    /// Hold package keys, and release them to enclaves that licences cover
    KeyBroker(BrokerArgs),
    /// Fetch an enclave's evidence and say what it proves and what it does not
    Verify(VerifyArgs),
    /// Compute the SEV-SNP launch measurement of an image from its files, and explain one that differs
    Measure(MeasureArgs),
    /// Say what this machine can attest and serve, what is missing, and what to do about it
    Doctor(DoctorArgs),
    /// Judge the receipts that a host presents for payment; make vouchers
    Receipts(ReceiptsArgs),
    /// Verify an enclave, seal a prompt to it, stream the answer
    Ask(AskArgs),
    /// Measure the bare engine: prefill and decode speed, and the share of the machine's limit
    Bench(BenchArgs),
    /// Measure the model's perplexity over a text
    Eval(EvalArgs),
}

/// `chrysalis demo`.
#[derive(Debug, Args)]
pub struct DemoArgs {
    /// What to ask
    #[arg(default_value = "What does a chrysalis protect? Answer in two sentences.")]
    pub prompt: String,
    /// A GGUF file or a Hugging Face folder instead of SmolLM2-135M-Instruct
    #[arg(long, value_name = "PATH")]
    pub model: Option<PathBuf>,
    /// Where the model and its package are kept [default: chrysalis in the user's cache]
    #[arg(long, value_name = "DIR")]
    pub cache: Option<PathBuf>,
    /// Longest answer, in tokens
    #[arg(long, value_name = "N", default_value_t = 128)]
    pub max_tokens: u32,
    /// What computes
    #[arg(long, value_enum, default_value_t = ComputeDevice::Cpu)]
    pub device: ComputeDevice,
    /// Compute threads [default: all cores]
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,
    /// One JSON object instead of text
    #[arg(long)]
    pub json: bool,
}

/// What computes.
#[derive(Clone, Copy, Debug, ValueEnum, PartialEq, Eq)]
pub enum ComputeDevice {
    /// The processor
    Cpu,
    /// The first NVIDIA card (builds with --features cuda)
    Cuda,
}

/// How `pack` stores weight matrices.
#[derive(Clone, Copy, Debug, ValueEnum, PartialEq, Eq)]
pub enum PackDtype {
    /// As the source has them, exactly
    Keep,
    /// bfloat16
    Bf16,
    /// 8-bit floats (E4M3) in groups of 128; embeddings in bfloat16
    Fp8,
    /// 8-bit groups (Q8_0)
    Q8,
    /// 4-bit groups (Q4_1); embeddings in 8 bits
    Q4,
}

/// `chrysalis pack`.
#[derive(Debug, Args)]
pub struct PackArgs {
    /// A GGUF file or a Hugging Face folder
    pub source: PathBuf,
    /// The package to write: NAME.chry, with its blobs, client bundle and policy beside it
    #[arg(short, long, value_name = "NAME.chry")]
    pub output: PathBuf,
    /// Package key file; made (mode 0600) when it does not exist [default: NAME.key]
    #[arg(long, value_name = "FILE", conflicts_with = "open")]
    pub key: Option<PathBuf>,
    /// Do not seal: the weights are public
    #[arg(long)]
    pub open: bool,
    /// Publisher's Ed25519 key file (PKCS#8); made when it does not exist [default: NAME.publisher]
    #[arg(long, value_name = "FILE")]
    pub publisher_key: Option<PathBuf>,
    /// Security version: policies can refuse lower ones
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub svn: u32,
    /// How weight matrices are stored
    #[arg(long, value_enum, default_value_t = PackDtype::Keep)]
    pub dtype: PackDtype,
    /// Replace a package that is there
    #[arg(long)]
    pub force: bool,
    /// One JSON object instead of text
    #[arg(long)]
    pub json: bool,
}

/// `chrysalis inspect`.
#[derive(Debug, Args)]
pub struct InspectArgs {
    /// The package
    pub package: PathBuf,
    /// Package key file, to look inside a sealed package [default: NAME.key if it is there]
    #[arg(long, value_name = "FILE")]
    pub key: Option<PathBuf>,
    /// One JSON object instead of text
    #[arg(long)]
    pub json: bool,
}

/// `chrysalis serve`.
#[derive(Debug, Args)]
pub struct ServeArgs {
    /// The package to serve
    #[arg(long, value_name = "NAME.chry")]
    pub package: PathBuf,
    /// Where to listen: unix:PATH or vsock:PORT
    #[arg(long, value_name = "ADDR")]
    pub listen: String,
    /// Where evidence comes from
    #[arg(long, value_name = "NAME", default_value = "simulated")]
    pub attester: String,
    /// Launch config: measured, see docs/protocol.md
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// NVIDIA's management library, an absolute path, where the launch config asks for GPUs
    #[arg(long, value_name = "FILE")]
    pub nvml: Option<PathBuf>,
    /// The enclave's binary [default: this program in its enclave role]
    #[arg(long, value_name = "FILE")]
    pub enclave: Option<PathBuf>,
}

/// `chrysalis release`.
#[derive(Debug, Args)]
pub struct ReleaseArgs {
    /// The enclave: unix:PATH or vsock:CID:PORT
    #[arg(long, value_name = "ADDR")]
    pub connect: String,
    /// Package key file
    #[arg(long, value_name = "FILE", required_unless_present = "broker", requires = "policy")]
    pub key: Option<PathBuf>,
    /// Appraisal policy (TOML)
    #[arg(long, value_name = "FILE", requires = "key")]
    pub policy: Option<PathBuf>,
    /// As the host, without a key: let this key broker verify and release (https://HOST:PORT)
    #[arg(long, value_name = "URL", conflicts_with_all = ["key", "policy"])]
    pub broker: Option<String>,
    /// Who certified the broker (PEM) [default: the system's authorities]
    #[arg(long, value_name = "FILE", requires = "broker")]
    pub broker_ca: Option<PathBuf>,
    /// End serving after this many seconds [default: no end]
    #[arg(long, value_name = "N", conflicts_with = "broker", value_parser = clap::value_parser!(u32).range(1..))]
    pub lease_seconds: Option<u32>,
    /// End serving after this many tokens of prompts and answers [default: no end]
    #[arg(long, value_name = "N", conflicts_with = "broker", value_parser = clap::value_parser!(u64).range(1..))]
    pub lease_tokens: Option<u64>,
    /// Certificates, collateral, manifests and statuses that the evidence lacks: a file or a folder of *.der, *.pem,
    /// *.json, *.tdx, *.xml, *.swidtag, *.ocsp
    #[arg(long, value_name = "PATH")]
    pub endorsements: Option<PathBuf>,
    /// One JSON object instead of text
    #[arg(long)]
    pub json: bool,
}

/// How old the platform's evidence may be.
#[derive(Clone, Copy, Debug, ValueEnum, PartialEq, Eq)]
pub enum Age {
    /// Made after, and over, this command's challenge
    Fresh,
    /// Made in the epoch of the sealing key; that the key is alive, the first answer proves
    Epoch,
}

/// `chrysalis verify`.
#[derive(Debug, Args)]
#[command(group(ArgGroup::new("source").required(true).args(["connect", "evidence"])))]
pub struct VerifyArgs {
    /// The enclave: unix:PATH or vsock:CID:PORT
    #[arg(long, value_name = "ADDR")]
    pub connect: Option<String>,
    /// Saved evidence instead of an enclave
    #[arg(long, value_name = "FILE")]
    pub evidence: Option<PathBuf>,
    /// Appraisal policy (TOML)
    #[arg(long, value_name = "FILE")]
    pub policy: PathBuf,
    /// How old the evidence may be [default: as the policy says]
    #[arg(long, value_enum, value_name = "AGE")]
    pub max_age: Option<Age>,
    /// Certificates, collateral, manifests and statuses that the evidence lacks: a file or a folder of *.der, *.pem,
    /// *.json, *.tdx, *.xml, *.swidtag, *.ocsp
    #[arg(long, value_name = "PATH")]
    pub endorsements: Option<PathBuf>,
    /// Write to this folder what NVIDIA has to be asked for about the GPUs: manifests.txt, and OCSP requests
    #[arg(long, value_name = "FOLDER")]
    pub wanted: Option<PathBuf>,
    /// Keep the evidence, whatever it proves
    #[arg(long, value_name = "FILE", conflicts_with = "evidence")]
    pub save: Option<PathBuf>,
    /// The challenge that the saved evidence was made over, 64 hexadecimal digits, as --save told it
    #[arg(long, value_name = "HEX", requires = "evidence")]
    pub nonce: Option<String>,
    /// Judge the saved evidence as of this time, in Unix seconds [default: now]
    #[arg(long, value_name = "SECONDS", requires = "evidence")]
    pub at: Option<u64>,
    /// One JSON object instead of text
    #[arg(long)]
    pub json: bool,
}

/// `chrysalis measure`.
#[derive(Debug, Args)]
pub struct MeasureArgs {
    /// The firmware: an OVMF image built for AMD SEV-SNP
    #[arg(long, value_name = "FILE")]
    pub ovmf: PathBuf,
    /// The kernel, where the monitor boots it directly and hashes it (QEMU: kernel-hashes=on)
    #[arg(long, value_name = "FILE")]
    pub kernel: Option<PathBuf>,
    /// The initrd beside the kernel
    #[arg(long, value_name = "FILE", requires = "kernel")]
    pub initrd: Option<PathBuf>,
    /// The kernel's command line, exactly as the monitor gets it
    #[arg(
        long,
        value_name = "TEXT",
        requires = "kernel",
        default_value = "",
        hide_default_value = true
    )]
    pub cmdline: String,
    /// Number of virtual CPUs
    #[arg(long, value_name = "N")]
    pub vcpus: u32,
    /// Their type: EPYC, EPYC-Rome, EPYC-Milan, EPYC-Genoa, EPYC-Turin, or a CPUID signature as 0x…
    #[arg(long, value_name = "TYPE")]
    pub vcpu_type: String,
    /// Who starts the guest: qemu or ec2
    #[arg(long, value_name = "NAME", default_value = "qemu")]
    pub vmm: String,
    /// SEV_FEATURES of the virtual CPUs, hexadecimal
    #[arg(long, value_name = "HEX", default_value = "0x1")]
    pub guest_features: String,
    /// The launch config: its SHA-256 is HOST_DATA, or the head of MRCONFIGID
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// A measurement to explain: 96 hexadecimal digits
    #[arg(long, value_name = "HEX", conflicts_with = "report")]
    pub expect: Option<String>,
    /// A report (1,184 bytes) or saved evidence (`verify --save`) to compare with, field by field
    #[arg(long, value_name = "FILE")]
    pub report: Option<PathBuf>,
    /// One JSON object instead of text
    #[arg(long)]
    pub json: bool,
}

/// `chrysalis doctor`.
#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// The file system to look at
    #[arg(long, value_name = "DIR", default_value = "/")]
    pub root: PathBuf,
    /// NVIDIA's management library [default: where the driver puts it in a Debian or Ubuntu image]
    #[arg(long, value_name = "FILE")]
    pub nvml: Option<PathBuf>,
    /// One JSON object instead of text
    #[arg(long)]
    pub json: bool,
}

/// `chrysalis ask`.
#[derive(Debug, Args)]
pub struct AskArgs {
    /// The prompt, or - to read it from standard input
    pub prompt: String,
    /// The enclave: unix:PATH or vsock:CID:PORT
    #[arg(long, value_name = "ADDR")]
    pub connect: String,
    /// Appraisal policy (TOML)
    #[arg(long, value_name = "FILE")]
    pub policy: PathBuf,
    /// How old the evidence may be [default: as the policy says]
    #[arg(long, value_enum, value_name = "AGE")]
    pub max_age: Option<Age>,
    /// Voucher to pay with (`chrysalis receipts voucher`); its hash is the receipt's payer tag
    #[arg(long, value_name = "FILE")]
    pub voucher: Option<PathBuf>,
    /// Add the receipt to this file
    #[arg(long, value_name = "FILE")]
    pub receipts: Option<PathBuf>,
    /// Certificates, collateral, manifests and statuses that the evidence lacks: a file or a folder of *.der, *.pem,
    /// *.json, *.tdx, *.xml, *.swidtag, *.ocsp
    #[arg(long, value_name = "PATH")]
    pub endorsements: Option<PathBuf>,
    /// System message
    #[arg(long, value_name = "S", conflicts_with = "raw")]
    pub system: Option<String>,
    /// Longest answer, in tokens
    #[arg(long, value_name = "N", default_value_t = 512)]
    pub max_tokens: u32,
    /// How the next token is chosen
    #[command(flatten)]
    pub sampling: SamplingArgs,
    /// Stop before this text (may be given several times)
    #[arg(long, value_name = "STR")]
    pub stop: Vec<String>,
    /// No chat template: the prompt as it is
    #[arg(long)]
    pub raw: bool,
    /// One JSON object instead of a stream of text
    #[arg(long)]
    pub json: bool,
}

/// Sampling options; what is not given is the package's default.
#[derive(Clone, Debug, Args)]
pub struct SamplingArgs {
    /// 0 is greedy
    #[arg(long, value_name = "T")]
    pub temperature: Option<f32>,
    /// Nucleus: the least set of tokens with this probability
    #[arg(long, value_name = "P")]
    pub top_p: Option<f32>,
    /// Only the K most likely tokens
    #[arg(long, value_name = "K")]
    pub top_k: Option<u32>,
    /// Only tokens at least P times as likely as the likeliest
    #[arg(long, value_name = "P")]
    pub min_p: Option<f32>,
    /// Above 1 discourages repetition
    #[arg(long, value_name = "R")]
    pub repetition_penalty: Option<f32>,
    /// Same seed, same answer [default: random]
    #[arg(long, value_name = "S")]
    pub seed: Option<u64>,
}

/// How `bench` stores K and V.
#[derive(Clone, Copy, Debug, ValueEnum, PartialEq, Eq)]
pub enum KvDtype {
    /// IEEE half
    F16,
    /// IEEE single
    F32,
    /// A byte a value, a scale for 32 of them
    Int8,
    /// bf16; not on CPUs
    Bf16,
    /// E4M3, a scale for 32 values; not on CPUs
    Fp8,
}

/// How finely `bench` rounds activations in products with quantised and BF16 weights.
#[derive(Clone, Copy, Debug, ValueEnum, PartialEq, Eq)]
pub enum ActivationPrecision {
    /// Eight bits, and eight more where a group's values are large: what an enclave does
    Adaptive,
    /// Eight bits, as llama.cpp: faster, and every 25th greedy token of a small model another one
    #[value(name = "8")]
    Eight,
    /// Sixteen bits
    #[value(name = "16")]
    Sixteen,
}

/// `chrysalis bench`.
#[derive(Debug, Args)]
pub struct BenchArgs {
    /// The package
    #[arg(long, value_name = "NAME.chry")]
    pub package: PathBuf,
    /// Package key file [default: NAME.key if it is there]
    #[arg(long, value_name = "FILE")]
    pub key: Option<PathBuf>,
    /// What computes
    #[arg(long, value_enum, default_value_t = ComputeDevice::Cpu)]
    pub device: ComputeDevice,
    /// Compute threads [default: all cores]
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,
    /// Prompt lengths
    #[arg(long, value_name = "N,N", value_delimiter = ',', default_value = "512")]
    pub prompt: Vec<usize>,
    /// Tokens to generate
    #[arg(long, value_name = "N", default_value_t = 64)]
    pub generate: usize,
    /// Sequences at once
    #[arg(long, value_name = "N,N", value_delimiter = ',', default_value = "1")]
    pub batch: Vec<usize>,
    /// Runs of each row; the median is shown
    #[arg(long, value_name = "N", default_value_t = 3)]
    pub repeat: usize,
    /// How the KV cache is stored
    #[arg(long, value_enum, default_value_t = KvDtype::F16)]
    pub kv_dtype: KvDtype,
    /// How finely activations are rounded
    #[arg(long, value_enum, default_value_t = ActivationPrecision::Adaptive)]
    pub activation_bits: ActivationPrecision,
    /// Measure each operation too, in runs of their own
    #[arg(long)]
    pub profile: bool,
    /// One JSON object instead of a table
    #[arg(long)]
    pub json: bool,
}

/// `chrysalis eval`.
#[derive(Debug, Args)]
pub struct EvalArgs {
    /// The package
    #[arg(long, value_name = "NAME.chry")]
    pub package: PathBuf,
    /// Package key file [default: NAME.key if it is there]
    #[arg(long, value_name = "FILE")]
    pub key: Option<PathBuf>,
    /// The text to score
    #[arg(long, value_name = "FILE")]
    pub text: PathBuf,
    /// What computes
    #[arg(long, value_enum, default_value_t = ComputeDevice::Cpu)]
    pub device: ComputeDevice,
    /// Compute threads [default: all cores]
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,
    /// Tokens of one window; a longer text is scored window by window
    #[arg(long, value_name = "N", default_value_t = 2048)]
    pub window: usize,
    /// One JSON object instead of text
    #[arg(long)]
    pub json: bool,
}
