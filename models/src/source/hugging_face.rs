//! A Hugging Face folder as a [`Source`]: config.json, and one safetensors file or the shards that
//! model.safetensors.index.json names.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use chrysalis_kernels::Dtype;
use chrysalis_kernels::quant::dequantize;
use chrysalis_protocol::package::Architecture;
use serde_json::Value;

use super::canonical::{self, Habits, RawTensor};
use super::fp8::{self, Blocks};
use super::safetensors::Safetensors;
use super::{Files, Source, SourceError};
use crate::architecture::{Family, family_of, from_hugging_face, has_fp8_blocks};

/// An open folder.
#[derive(Debug)]
pub(super) struct Folder {
    path: PathBuf,
    shards: Vec<(PathBuf, Safetensors<File>)>,
    /// Where each tensor is.
    places: Vec<Place>,
}

/// Where a tensor is.
#[derive(Debug)]
struct Place {
    shard: usize,
    /// Its number there.
    number: usize,
    /// What its values are multiplied by, if it is in fp8.
    blocks: Option<Blocks>,
}

impl Folder {
    /// Checks that the folder is a whole model.
    pub(super) fn open(path: &Path) -> Result<Source, SourceError> {
        let config = read_json(&path.join("config.json"))?;
        let generation_path = path.join("generation_config.json");
        let generation =
            generation_path.exists().then(|| read_json(&generation_path)).transpose()?;
        let architecture = from_hugging_face(&config, generation.as_ref())?;
        let family = family_of(&config)?;

        let mut folder = Self { path: path.to_owned(), shards: Vec::new(), places: Vec::new() };
        folder.open_shards()?;
        let fp8 = has_fp8_blocks(&config)?;
        let mut raw = folder.raw_tensors(family, fp8)?;
        if architecture.tied_embeddings {
            folder.drop_copy_of_embedding(&architecture, &mut raw)?;
        }
        let habits = Habits { norms_lack_one: family.norms_lack_one, ..Habits::default() };
        let named = |name: &str| file_name(family, name);
        let (tensors, places) = canonical::place(&architecture, habits, raw, named)?;
        Ok(Source {
            name: super::file_stem(path),
            licence: licence(path),
            tensors,
            places,
            architecture,
            files: Files::Folder(folder),
        })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes of a tensor, in fp8 those of whole rows, in the layout of its storage type.
    pub(super) fn read(
        &self,
        index: usize,
        offset: u64,
        out: &mut [u8],
    ) -> Result<(), SourceError> {
        let missing = || SourceError::MissingTensor(format!("number {index}"));
        let Place { shard, number, blocks } = self.places.get(index).ok_or_else(missing)?;
        let Some(blocks) = blocks else {
            return self.read_stored((*shard, *number), offset, out);
        };
        let (start, len) = blocks.values(offset, out.len());
        let mut codes = vec![0; len];
        self.read_stored((*shard, *number), start, &mut codes)?;
        blocks.write_groups(start, &codes, out)
    }

    /// Bytes of a tensor as they are in the file.
    fn read_stored(
        &self,
        (shard, number): (usize, usize),
        offset: u64,
        out: &mut [u8],
    ) -> Result<(), SourceError> {
        let missing = || SourceError::MissingTensor(format!("number {number}"));
        let (path, file) = self.shards.get(shard).ok_or_else(missing)?;
        let wrap = |error| SourceError::Safetensors { path: path.clone(), error };
        file.read_tensor(number, offset, out).map_err(wrap)
    }

    fn open_shards(&mut self) -> Result<(), SourceError> {
        let single = self.path.join("model.safetensors");
        let index_path = self.path.join("model.safetensors.index.json");
        if single.exists() || !index_path.exists() {
            return self.open_shard(single);
        }
        let index = shard_index(&index_path)?;
        let files: BTreeSet<&String> = index.values().collect();
        for file in files {
            self.open_shard(self.path.join(file))?;
        }
        // The index and the shards must tell the same.
        let mut found = BTreeMap::new();
        for (path, shard) in &self.shards {
            let file = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            for tensor in shard.tensors() {
                if index.get(&tensor.name).map(String::as_str) != Some(file) {
                    let what = format!("tensor {} is in {file}, but not listed there", tensor.name);
                    return Err(SourceError::Index { path: index_path, what });
                }
                found.insert(&tensor.name, ());
            }
        }
        match index.keys().find(|name| !found.contains_key(name)) {
            None => Ok(()),
            Some(name) => {
                let what = format!("tensor {name} is listed, but not in its file");
                Err(SourceError::Index { path: index_path, what })
            }
        }
    }

    fn open_shard(&mut self, path: PathBuf) -> Result<(), SourceError> {
        let file =
            File::open(&path).map_err(|error| SourceError::Read { path: path.clone(), error })?;
        let shard = Safetensors::read(file)
            .map_err(|error| SourceError::Safetensors { path: path.clone(), error })?;
        self.shards.push((path, shard));
        Ok(())
    }

    /// The tensors of the decoder under canonical names; those under none keep their own. With `fp8` some may be in that,
    /// and have their scales beside them.
    fn raw_tensors(
        &mut self,
        family: &Family,
        fp8: bool,
    ) -> Result<BTreeMap<String, RawTensor>, SourceError> {
        let (mut raw, mut scales) = (BTreeMap::new(), BTreeMap::new());
        for (shard, (path, file)) in self.shards.iter().enumerate() {
            for (number, tensor) in file.tensors().iter().enumerate() {
                let scaled = tensor.name.strip_suffix(fp8::SUFFIX).filter(|_| fp8);
                let Some(key) = canonical_name(family, scaled.unwrap_or(&tensor.name)) else {
                    continue;
                };
                let wrap = |error| SourceError::Safetensors { path: path.clone(), error };
                let dtype = tensor.supported_dtype().map_err(wrap)?;
                let (name, dims) = (tensor.name.clone(), tensor.dims.clone());
                if dtype == Dtype::F8E4M3 && !fp8 {
                    return Err(SourceError::Fp8Unannounced(name));
                }
                let index = self.places.len();
                self.places.push(Place { shard, number, blocks: None });
                let found = RawTensor { name, dtype, dims, index };
                let of_kind = if scaled.is_some() { &mut scales } else { &mut raw };
                if let Some(twice) = of_kind.insert(key, found) {
                    return Err(SourceError::DuplicateTensor(twice.name));
                }
            }
        }
        for (key, tensor) in raw.iter().filter(|(_, tensor)| tensor.dtype == Dtype::F8E4M3) {
            let missing = || SourceError::MissingScales(tensor.name.clone());
            let blocks = self.blocks(tensor, &scales.remove(key).ok_or_else(missing)?)?;
            if let Some(place) = self.places.get_mut(tensor.index) {
                place.blocks = Some(blocks);
            }
        }
        match scales.into_values().next() {
            None => Ok(raw),
            Some(extra) => Err(SourceError::ExtraScales(extra.name)),
        }
    }

    /// The scales of an fp8 tensor.
    fn blocks(&self, tensor: &RawTensor, scales: &RawTensor) -> Result<Blocks, SourceError> {
        let expected = fp8::scale_dims(&tensor.name, &tensor.dims)?;
        if scales.dims != expected {
            let (name, found) = (scales.name.clone(), scales.dims.clone());
            return Err(SourceError::Shape { name, expected: expected.to_vec(), found });
        }
        if !matches!(scales.dtype, Dtype::F32 | Dtype::Bf16) {
            return Err(SourceError::ScaleDtype {
                name: scales.name.clone(),
                found: scales.dtype.name(),
            });
        }
        let len = expected.iter().map(|dim| *dim as usize).product();
        let mut stored = vec![0; scales.dtype.row_bytes(len).unwrap_or(0)];
        self.read(scales.index, 0, &mut stored)?;
        let mut values = vec![0.0; len];
        let convert = |error| SourceError::Convert { name: scales.name.clone(), error };
        dequantize(scales.dtype, &stored, &mut values).map_err(convert)?;
        Blocks::new(tensor.name.clone(), expected[1] * Dtype::F8E4M3.group_len() as u32, values)
    }

    /// Files of tied models may repeat the embedding as output matrix. A copy is left out, as
    /// `transformers` does; anything else means that the model is not tied.
    fn drop_copy_of_embedding(
        &self,
        architecture: &Architecture,
        raw: &mut BTreeMap<String, RawTensor>,
    ) -> Result<(), SourceError> {
        let Some(output) = raw.remove("output.weight") else {
            return Ok(());
        };
        let Some(embedding) = raw.get("token_embd.weight") else {
            return Ok(());
        };
        let not_tied = || SourceError::NotTied(output.name.clone());
        if (output.dtype, &output.dims) != (embedding.dtype, &embedding.dims) {
            return Err(not_tied());
        }
        let row = embedding.dtype.row_bytes(architecture.hidden_size as usize).unwrap_or(0);
        let rows = u64::from(architecture.vocab_size);
        let mut left = (row as u64).saturating_mul(rows);
        let piece = (COMPARE_LEN / row.max(1)).max(1) * row;
        let (mut one, mut two) = (vec![0; piece], vec![0; piece]);
        let mut offset = 0;
        while left > 0 {
            let len = left.min(piece as u64);
            let (Some(one), Some(two)) = (one.get_mut(..len as usize), two.get_mut(..len as usize))
            else {
                break;
            };
            self.read(embedding.index, offset, one)?;
            self.read(output.index, offset, two)?;
            if one != two {
                return Err(not_tied());
            }
            offset += len;
            left -= len;
        }
        Ok(())
    }
}

/// The canonical name of a tensor; its own where it has none, so that it will be found to be left
/// over; nothing for what is not of the decoder.
fn canonical_name(family: &Family, name: &str) -> Option<String> {
    // Of a model with pictures we take the language model.
    let inner = ["language_model.", "model.language_model."]
        .iter()
        .find_map(|prefix| name.strip_prefix(prefix));
    let inner = match inner {
        Some(rest) if rest.starts_with("model.") || rest.starts_with("lm_head.") => rest.to_owned(),
        Some(rest) => format!("model.{rest}"),
        None => name.to_owned(),
    };
    if family.pictures.iter().any(|prefix| inner.starts_with(prefix))
        || inner.ends_with(".rotary_emb.inv_freq")
    {
        return None;
    }
    let outside = OUTSIDE_LAYERS.iter().find(|(theirs, _)| *theirs == inner);
    if let Some((_, ours)) = outside {
        return Some((*ours).to_owned());
    }
    let inside = inner.strip_prefix("model.layers.").and_then(|rest| rest.split_once('.'));
    let known = inside.and_then(|(layer, theirs)| {
        let (module, leaf) = theirs.rsplit_once('.')?;
        let (_, ours) = modules(family).find(|(known, _)| *known == module)?;
        Some(format!("blk.{layer}.{ours}.{leaf}"))
    });
    Some(known.unwrap_or(inner))
}

/// The file's name of a canonical one, for messages.
fn file_name(family: &Family, name: &str) -> String {
    if let Some((theirs, _)) = OUTSIDE_LAYERS.iter().find(|(_, ours)| *ours == name) {
        return (*theirs).to_owned();
    }
    let inside = name.strip_prefix("blk.").and_then(|rest| rest.split_once('.'));
    let known = inside.and_then(|(layer, ours)| {
        let (module, leaf) = ours.rsplit_once('.')?;
        let (theirs, _) = modules(family).find(|(_, known)| *known == module)?;
        Some(format!("model.layers.{layer}.{theirs}.{leaf}"))
    });
    known.unwrap_or_else(|| name.to_owned())
}

/// The modules of a layer, theirs and ours.
fn modules(family: &Family) -> impl Iterator<Item = (&'static str, &'static str)> {
    let norms = if family.sandwich_norms { &SANDWICH_NORMS[..] } else { &PLAIN_NORMS[..] };
    MODULES.iter().chain(norms).copied()
}

/// What the folder's README says in its front matter.
fn licence(path: &Path) -> Option<String> {
    let mut readme = String::new();
    let file = File::open(path.join("README.md")).ok()?;
    file.take(README_MAX).read_to_string(&mut readme).ok()?;
    let matter = readme.strip_prefix("---")?.split("\n---").next()?;
    let line = matter.lines().find_map(|line| line.strip_prefix("license:"))?;
    let licence = line.trim().trim_matches(['"', '\'']);
    (!licence.is_empty()).then(|| licence.to_owned())
}

/// The file of each tensor; a file is a plain name in the same folder.
fn shard_index(path: &Path) -> Result<BTreeMap<String, String>, SourceError> {
    let index = read_json(path)?;
    let wrong = |what: String| SourceError::Index { path: path.to_owned(), what };
    let map = index.get("weight_map").and_then(Value::as_object);
    let map = map.ok_or_else(|| wrong("there is no weight_map".to_owned()))?;
    let mut files = BTreeMap::new();
    for (tensor, file) in map {
        let file = file.as_str().filter(|file| is_plain_name(file));
        let file = file.ok_or_else(|| wrong(format!("tensor {tensor} names no plain file")))?;
        files.insert(tensor.clone(), file.to_owned());
    }
    Ok(files)
}

fn is_plain_name(file: &str) -> bool {
    file.ends_with(".safetensors") && !file.contains(['/', '\\']) && !file.starts_with('.')
}

fn read_json(path: &Path) -> Result<Value, SourceError> {
    let wrap = |error| SourceError::Read { path: path.to_owned(), error };
    let len = fs::metadata(path).map_err(wrap)?.len();
    if len > JSON_MAX {
        return Err(SourceError::TooLarge { path: path.to_owned(), len, max: JSON_MAX });
    }
    let bytes = fs::read(path).map_err(wrap)?;
    serde_json::from_slice(&bytes)
        .map_err(|error| SourceError::Json { path: path.to_owned(), error })
}

const OUTSIDE_LAYERS: [(&str, &str); 3] = [
    ("model.embed_tokens.weight", "token_embd.weight"),
    ("model.norm.weight", "output_norm.weight"),
    ("lm_head.weight", "output.weight"),
];
const MODULES: [(&str, &str); 10] = [
    ("input_layernorm", "attn_norm"),
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.o_proj", "attn_output"),
    ("self_attn.q_norm", "attn_q_norm"),
    ("self_attn.k_norm", "attn_k_norm"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
];
const PLAIN_NORMS: [(&str, &str); 1] = [("post_attention_layernorm", "ffn_norm")];
const SANDWICH_NORMS: [(&str, &str); 3] = [
    ("post_attention_layernorm", "post_attention_norm"),
    ("pre_feedforward_layernorm", "ffn_norm"),
    ("post_feedforward_layernorm", "post_ffw_norm"),
];

const JSON_MAX: u64 = 64 << 20;
const README_MAX: u64 = 1 << 20;
const COMPARE_LEN: usize = 1 << 20;
