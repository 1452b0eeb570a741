//! `chrysalis inspect`: what a package is. Without the key of a sealed one that is its signed header, and no more.

use std::path::{Path, PathBuf};

use chrysalis_kernels::dtype::Dtype;
use chrysalis_protocol::package::{
    Architecture, ClientBundle, Meta, MetaError, Package, PublicHeader, Rope,
};
use chrysalis_runtime::files::PackageFiles;
use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::args::InspectArgs;
use crate::error::CliError;
use crate::{hex, key_file, output};

/// What a package is.
#[derive(Clone, Debug, Serialize)]
struct Report {
    package: PathBuf,
    header: HeaderFacts,
    /// Nothing without the key of a sealed package.
    contents: Option<Contents>,
}

/// What everybody can see.
#[derive(Clone, Debug, Serialize)]
struct HeaderFacts {
    sealed: bool,
    content_digest: String,
    package_digest: String,
    publisher: String,
    publisher_public_key: String,
    svn: u32,
    package_id: String,
    data_bytes: u64,
    segments: u64,
    blobs: u64,
}

/// What the key shows.
#[derive(Clone, Debug, Serialize)]
struct Contents {
    name: String,
    licence: String,
    weights: u64,
    config: Map<String, Value>,
    client_bundle: Bundle,
    tensors: Vec<TensorFacts>,
}

#[derive(Clone, Debug, Serialize)]
struct TensorFacts {
    name: String,
    dtype: String,
    dims: Vec<u32>,
    bytes: u64,
}

#[derive(Clone, Debug, Serialize)]
struct Bundle {
    bytes: u64,
    blake3: String,
    /// `none`, `ok`, `missing` or `altered`.
    state: &'static str,
    tokenizer: bool,
    chat_template: bool,
    licence_text: bool,
}

/// Runs `chrysalis inspect`.
///
/// # Errors
/// [`CliError`] names the check that the package failed; for a wrong client bundle after everything else was shown.
pub fn run(args: &InspectArgs) -> Result<(), CliError> {
    let files = PackageFiles::new(&args.package);
    let main = files.main()?;
    let public = PublicHeader::parse(&main).map_err(CliError::package(&args.package))?;
    let beside = args.package.with_extension("key");
    let key_path = match &args.key {
        Some(path) => Some(path.as_path()),
        None if public.header().sealed && beside.exists() => Some(beside.as_path()),
        None => None,
    };
    let key = key_path.map(key_file::read).transpose()?;
    let mut report =
        Report { package: args.package.clone(), header: header_facts(&public), contents: None };
    let mut refused = None;
    if key.is_some() || !public.header().sealed {
        let package =
            Package::open(&main, key.as_ref()).map_err(CliError::package(&args.package))?;
        let (bundle, error) = check_bundle(&args.package, &files, package.meta());
        report.contents = Some(contents(package.meta(), bundle));
        refused = error;
    }
    if args.json {
        output::json(&report)?;
    } else {
        print(&report)?;
    }
    refused.map_or(Ok(()), Err)
}

fn header_facts(public: &PublicHeader) -> HeaderFacts {
    let header = public.header();
    HeaderFacts {
        sealed: header.sealed,
        content_digest: hex::encode(&public.content_digest()),
        package_digest: hex::encode(&public.package_digest()),
        publisher: hex::encode(&header.publisher_key_id),
        publisher_public_key: hex::encode(&public.signature().public_key),
        svn: header.model_svn,
        package_id: hex::encode(&header.package_id),
        data_bytes: header.data_len,
        segments: header.segment_count(),
        blobs: header.blob_count(),
    }
}

fn contents(meta: &Meta, client_bundle: Bundle) -> Contents {
    let values = |dims: &[u32]| dims.iter().map(|&dim| u64::from(dim)).product::<u64>();
    let tensor = |tensor: &chrysalis_protocol::package::TensorRecord| TensorFacts {
        name: tensor.name.clone(),
        dtype: Dtype::from_code(tensor.dtype)
            .map_or_else(|| tensor.dtype.to_string(), |it| format!("{it:?}")),
        dims: tensor.dims.clone(),
        bytes: tensor.len,
    };
    Contents {
        name: meta.name.clone(),
        licence: meta.licence.clone(),
        weights: meta.tensors.iter().map(|tensor| values(&tensor.dims)).sum(),
        config: config(&meta.architecture),
        client_bundle,
        tensors: meta.tensors.iter().map(tensor).collect(),
    }
}

/// The client bundle beside the package, and why it is refused.
fn check_bundle(path: &Path, files: &PackageFiles, meta: &Meta) -> (Bundle, Option<CliError>) {
    let mut bundle = Bundle {
        bytes: meta.client_bundle_len,
        blake3: hex::encode(&meta.client_bundle_hash),
        state: "none",
        tokenizer: false,
        chat_template: false,
        licence_text: false,
    };
    if meta.client_bundle_len == 0 {
        return (bundle, None);
    }
    let bytes = match files.client_bundle() {
        Ok(bytes) => bytes,
        Err(error) => {
            bundle.state = "missing";
            return (bundle, Some(error.into()));
        }
    };
    let path = path.with_extension("client");
    let refused: Result<(), MetaError> = meta.check_client_bundle(&bytes);
    if let Err(source) = refused {
        bundle.state = "altered";
        return (bundle, Some(CliError::ClientBundle { path, source }));
    }
    bundle.state = "ok";
    match ClientBundle::parse(&bytes) {
        Ok(parts) => {
            bundle.tokenizer = !parts.tokenizer.is_empty();
            bundle.chat_template = parts.chat_template.is_some();
            bundle.licence_text = parts.licence.is_some();
            (bundle, None)
        }
        Err(source) => (bundle, Some(CliError::BundleForm { path, source })),
    }
}

/// The architecture, each field under its name; what is off is left out.
fn config(architecture: &Architecture) -> Map<String, Value> {
    let a = architecture;
    let number = |value: u32| (value != 0).then(|| json!(value));
    let float = |value: f32, off: f32| (value.to_bits() != off.to_bits()).then(|| float(value));
    let activation = match a.activation {
        1 => json!("silu"),
        2 => json!("gelu_tanh"),
        3 => json!("gelu_erf"),
        other => json!(other),
    };
    let sliding: Vec<u32> = (0..a.num_layers).filter(|&layer| a.is_sliding(layer)).collect();
    let generation = &a.generation;
    let fields = [
        ("hidden_size", number(a.hidden_size)),
        ("intermediate_size", number(a.intermediate_size)),
        ("num_layers", number(a.num_layers)),
        ("num_heads", number(a.num_heads)),
        ("num_kv_heads", number(a.num_kv_heads)),
        ("head_dim", number(a.head_dim)),
        ("vocab_size", number(a.vocab_size)),
        ("max_position_embeddings", number(a.max_position_embeddings)),
        ("tied_embeddings", Some(json!(a.tied_embeddings))),
        ("qk_norm", Some(json!(a.qk_norm))),
        ("sandwich_norms", Some(json!(a.sandwich_norms))),
        ("qkv_bias", Some(json!(a.qkv_bias))),
        ("o_bias", Some(json!(a.o_bias))),
        ("mlp_bias", Some(json!(a.mlp_bias))),
        ("activation", Some(activation)),
        ("rms_norm_eps", float(a.rms_norm_eps, 0.0)),
        ("embedding_scale", float(a.embedding_scale, 1.0)),
        ("attention_scale", float(a.attention_scale, 0.0)),
        ("attn_logit_softcap", float(a.attn_logit_softcap, 0.0)),
        ("final_logit_softcap", float(a.final_logit_softcap, 0.0)),
        ("sliding_window", number(a.sliding_window)),
        ("sliding_layers", (!sliding.is_empty()).then(|| json!(sliding))),
        ("rope_global", Some(rope(&a.rope_global))),
        ("rope_local", (!sliding.is_empty()).then(|| rope(&a.rope_local))),
        ("bos_token_id", generation.bos_token_id.map(|id| json!(id))),
        ("eos_token_ids", Some(json!(generation.eos_token_ids))),
        ("default_temperature", Some(self::float(generation.temperature))),
        ("default_top_p", float(generation.top_p, 1.0)),
        ("default_top_k", number(generation.top_k)),
        ("default_min_p", float(generation.min_p, 0.0)),
        ("default_repetition_penalty", float(generation.repetition_penalty, 1.0)),
    ];
    fields.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect()
}

fn rope(rope: &Rope) -> Value {
    let kind = match rope.kind {
        0 => json!("default"),
        1 => json!("linear"),
        2 => json!("llama3"),
        3 => json!("yarn"),
        other => json!(other),
    };
    let fields = [
        ("theta", rope.theta),
        ("factor", rope.factor),
        ("low_freq_factor", rope.low_freq_factor),
        ("high_freq_factor", rope.high_freq_factor),
        ("beta_fast", rope.beta_fast),
        ("beta_slow", rope.beta_slow),
        ("attention_factor", rope.attention_factor),
    ];
    let mut out =
        Map::from_iter([("kind".to_owned(), kind), ("rope_dim".to_owned(), json!(rope.rope_dim))]);
    if rope.original_max_position != 0 {
        out.insert("original_max_position".to_owned(), json!(rope.original_max_position));
    }
    out.extend(
        fields
            .into_iter()
            .filter(|field| field.1 != 0.0)
            .map(|(name, value)| (name.to_owned(), float(value))),
    );
    out.into()
}

/// An f32 as people write it: 0.9, not 0.8999999761581421.
fn float(value: f32) -> Value {
    value.to_string().parse::<f64>().map_or(Value::Null, |value| json!(value))
}

fn print(report: &Report) -> Result<(), CliError> {
    let header = &report.header;
    let state = if header.sealed { "sealed" } else { "open: everybody can read the weights" };
    output::line(&format!("{}: {state}", report.package.display()))?;
    let facts = [
        ("content digest", header.content_digest.clone()),
        ("package digest", header.package_digest.clone()),
        ("publisher", format!("{} (the signature is sound)", header.publisher)),
        ("public key", header.publisher_public_key.clone()),
        ("security version", header.svn.to_string()),
        ("package id", header.package_id.clone()),
        (
            "data",
            format!(
                "{} bytes, {} segments, {} blobs",
                header.data_bytes, header.segments, header.blobs
            ),
        ),
    ];
    for (name, value) in facts {
        output::line(&format!("  {name:16}  {value}"))?;
    }
    match &report.contents {
        Some(contents) => print_contents(contents),
        None => output::line(
            "\nSealed: this is all that can be seen without the package key (--key FILE).",
        ),
    }
}

fn print_contents(contents: &Contents) -> Result<(), CliError> {
    let licence = if contents.licence.is_empty() { "not stated" } else { &contents.licence };
    output::line(&format!("\n{}: {} weights, licence {licence}", contents.name, contents.weights))?;
    for (name, value) in &contents.config {
        output::line(&format!("  {name:26}  {value}"))?;
    }
    let bundle = &contents.client_bundle;
    let has = |there: bool, name: &str| {
        if there { format!(", {name}") } else { String::new() }
    };
    output::line(&format!(
        "\nclient bundle: {}, {} bytes{}{}{}",
        bundle.state,
        bundle.bytes,
        has(bundle.tokenizer, "tokenizer"),
        has(bundle.chat_template, "chat template"),
        has(bundle.licence_text, "text of the licence")
    ))?;
    output::line(&format!("\n{} tensors:", contents.tensors.len()))?;
    for tensor in &contents.tensors {
        output::line(&format!(
            "  {:36}  {:6}  {:20}  {:>12}",
            tensor.name,
            tensor.dtype,
            format!("{:?}", tensor.dims),
            tensor.bytes
        ))?;
    }
    Ok(())
}
