//! The first layers of a real model and its output matrix, as stored: packed where the binary is built, with the logits that the
//! reference gives for a text. The key is no secret: what it seals is public.

use std::error::Error;
use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;

use aws_lc_rs::signature::Ed25519KeyPair;
use chrysalis_kernels::device::CacheDtype;
use chrysalis_kernels::reference::Reference;
use chrysalis_kernels::{Batch, WantLogits};
use chrysalis_models::decoder::Model;
use chrysalis_models::source;
use chrysalis_protocol::package::{
    BlobSink, Finished, Meta, Package, PackageKey, PackageOptions, PackageWriter,
};
use chrysalis_protocol::secret::Secret;
use chrysalis_runtime::files::PackageFiles;
use chrysalis_runtime::load::{self, LoadOptions, LoadReport};

use crate::model::BLOCK;
use crate::report::say;

/// What the reference says of a row of logits.
pub(crate) struct Expected {
    /// The likeliest token, and how far it is above the next.
    pub(crate) top: u32,
    pub(crate) margin: f32,
    /// Every so many-th logit, from a column on that moves from row to row.
    pub(crate) some: Vec<f32>,
}

/// A text, and what is expected of it.
pub(crate) struct Recorded {
    pub(crate) tokens: Vec<u32>,
    pub(crate) rows: Vec<Expected>,
}

impl Expected {
    pub(crate) fn of(row: usize, logits: &[f32]) -> Self {
        let (top, margin) = top(logits);
        Self { top, margin, some: columns(row, logits.len()).map(|at| logits[at]).collect() }
    }
}

/// The columns of a row that are kept.
pub(crate) fn columns(row: usize, cols: usize) -> impl Iterator<Item = usize> {
    (row * 31 % STRIDE..cols).step_by(STRIDE)
}

/// The first of the largest, and its distance to the next.
pub(crate) fn top(logits: &[f32]) -> (u32, f32) {
    let (mut best, mut next, mut at) = (f32::NEG_INFINITY, f32::NEG_INFINITY, 0);
    for (column, logit) in (0..).zip(logits) {
        if *logit > best {
            (next, best, at) = (best, *logit, column);
        } else if *logit > next {
            next = *logit;
        }
    }
    (at, best - next)
}

/// Packs the model and records its logits.
pub(crate) fn make(gguf: &Path, tokens: &Path, folder: &Path) -> Result<(), Box<dyn Error>> {
    fs::create_dir_all(folder)?;
    let tokens = fs::read_to_string(tokens)?
        .split_whitespace()
        .take(TOKENS)
        .map(str::parse)
        .collect::<Result<Vec<u32>, _>>()?;
    pack(gguf, folder)?;
    let (mut model, _) = open(Arc::new(Reference), folder, tokens.len(), CacheDtype::F32)?;
    let mut bytes = b"CHRYCHK1".to_vec();
    bytes.extend((tokens.len() as u32).to_le_bytes());
    bytes.extend((model.vocab_size() as u32).to_le_bytes());
    bytes.extend(tokens.iter().flat_map(|token| token.to_le_bytes()));
    logits(&mut model, &tokens, |row, logits| {
        let Expected { top, margin, some } = Expected::of(row, logits);
        bytes.extend(top.to_le_bytes());
        bytes.extend(margin.to_le_bytes());
        bytes.extend(some.iter().flat_map(|logit| logit.to_le_bytes()));
    })?;
    fs::write(folder.join(EXPECTED), bytes)?;
    say(&format!("{}: {} rows of logits", model.describe(), tokens.len()))?;
    Ok(())
}

/// The logits of every token of a text, in chunks.
pub(crate) fn logits(
    model: &mut impl Model,
    tokens: &[u32],
    mut take: impl FnMut(usize, &[f32]),
) -> Result<(), Box<dyn Error>> {
    let blocks: Vec<u32> = (0..tokens.len().div_ceil(BLOCK) as u32).collect();
    let mut row = vec![0.0; model.vocab_size()];
    for (index, chunk) in tokens.chunks(CHUNK).enumerate() {
        let mut batch = Batch::default();
        batch.push(chunk, (index * CHUNK) as u32, &blocks, WantLogits::All);
        model.forward(&batch)?;
        for at in 0..chunk.len() {
            model.logits(at, &mut row)?;
            take(index * CHUNK + at, &row);
        }
    }
    Ok(())
}

/// What `make` recorded.
pub(crate) fn recorded(folder: &Path) -> Result<Recorded, Box<dyn Error>> {
    let path = folder.join(EXPECTED);
    let bytes = fs::read(&path).map_err(|error| format!("{}: {error}", path.display()))?;
    let wrong = || format!("{} is not what make-data wrote", path.display());
    let rest = bytes.strip_prefix(b"CHRYCHK1").ok_or_else(wrong)?;
    let (words, []) = rest.as_chunks::<4>() else { return Err(wrong().into()) };
    let mut words = words.iter().copied();
    let mut word = || words.next().ok_or_else(wrong);
    let rows = u32::from_le_bytes(word()?) as usize;
    let cols = u32::from_le_bytes(word()?) as usize;
    let tokens =
        (0..rows).map(|_| Ok(u32::from_le_bytes(word()?))).collect::<Result<_, String>>()?;
    let row = |row: usize| -> Result<Expected, String> {
        let (top, margin) = (u32::from_le_bytes(word()?), f32::from_le_bytes(word()?));
        let some = columns(row, cols).map(|_| Ok(f32::from_le_bytes(word()?)));
        Ok(Expected { top, margin, some: some.collect::<Result<_, String>>()? })
    };
    let rows = (0..rows).map(row).collect::<Result<_, String>>()?;
    Ok(Recorded { tokens, rows })
}

/// The model on a device, through the reader of packages.
pub(crate) fn open<D: chrysalis_kernels::Device>(
    device: Arc<D>,
    folder: &Path,
    num_tokens: usize,
    cache_dtype: CacheDtype,
) -> Result<(impl Model, LoadReport), Box<dyn Error>> {
    let files = PackageFiles::new(&folder.join(MODEL));
    let package = Package::open(&files.main()?, Some(&key()))?;
    let options = LoadOptions {
        threads: None,
        max_tokens: CHUNK,
        max_logit_rows: CHUNK,
        kv_tokens: num_tokens,
        block_size: BLOCK,
        cache_dtype,
    };
    Ok(load::decoder(device, &package, || files.blobs(), options, |_| {})?)
}

fn pack(gguf: &Path, folder: &Path) -> Result<(), Box<dyn Error>> {
    let source = source::open(gguf)?;
    let mut architecture = source.architecture().clone();
    architecture.num_layers = architecture.num_layers.min(LAYERS);
    let beyond = |name: &str| {
        let layer =
            name.strip_prefix("blk.").and_then(|rest| rest.split('.').next()?.parse::<u32>().ok());
        layer.is_some_and(|layer| layer >= LAYERS)
    };
    let kept: Vec<_> =
        source.tensors().iter().enumerate().filter(|(_, t)| !beyond(&t.name)).collect();
    let tensors = kept.iter().map(|(_, t)| (t.name.clone(), t.dtype as u16, t.dims.clone()));
    let meta =
        Meta::new(architecture, source.name(), source.licence().unwrap_or_default(), &[], tensors)?;
    let (key, publisher) = (key(), publisher()?);
    let mut options = PackageOptions::new([1; 16], &publisher);
    options.key = Some(&key);
    let mut writer = PackageWriter::new(&options, meta, Blob::default())?;
    let mut bytes = Vec::new();
    for (tensor, (index, _)) in kept.iter().enumerate() {
        source.read(*index, &mut bytes)?;
        writer.write(tensor, &bytes)?;
    }
    let Finished { file, sink, .. } = writer.finish()?;
    fs::write(folder.join(MODEL), file)?;
    fs::write(folder.join(MODEL).with_extension("b0000"), sink.0)?;
    Ok(())
}

/// A package's only blob, in memory.
#[derive(Default)]
pub(crate) struct Blob(pub(crate) Vec<u8>);

impl BlobSink for Blob {
    fn append(&mut self, blob: u32, bytes: &[u8]) -> io::Result<()> {
        if blob > 0 {
            return Err(io::Error::other("a second blob"));
        }
        self.0.extend_from_slice(bytes);
        Ok(())
    }
}

pub(crate) fn key() -> PackageKey {
    PackageKey::new(Secret::from([2; 32]))
}

pub(crate) fn publisher() -> Result<Ed25519KeyPair, Box<dyn Error>> {
    Ed25519KeyPair::from_seed_unchecked(&[1; 32]).map_err(|_| "no key of this seed".into())
}

const MODEL: &str = "model.chry";
const EXPECTED: &str = "expected.bin";
/// With SmolLM2's output matrix 44 MB.
const LAYERS: u32 = 6;
/// Of the text.
const TOKENS: usize = 256;
const CHUNK: usize = 64;
/// Of the columns that are kept.
const STRIDE: usize = 96;
