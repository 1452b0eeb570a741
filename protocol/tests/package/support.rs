//! Small packages from fixed inputs, and blobs in memory.

use std::io;

use aws_lc_rs::signature::Ed25519KeyPair;
use chrysalis_protocol::package::{
    Architecture, BlobSink, BlobSource, Finished, Generation, Header, Meta, Package, PackageError,
    PackageKey, PackageOptions, PackageWriter, PublicHeader, Rope, SignatureBlock,
};
use chrysalis_protocol::secret::Secret;

/// Blobs in memory.
#[derive(Clone, Default)]
pub(crate) struct Blobs(pub(crate) Vec<Vec<u8>>);

impl BlobSink for Blobs {
    fn append(&mut self, blob: u32, bytes: &[u8]) -> io::Result<()> {
        let blob = blob as usize;
        assert!(blob + 1 >= self.0.len(), "blobs come in ascending order");
        self.0.resize(blob + 1, Vec::new());
        self.0[blob].extend_from_slice(bytes);
        Ok(())
    }
}

impl BlobSource for Blobs {
    fn read_at(&mut self, blob: u32, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let end = || io::Error::from(io::ErrorKind::UnexpectedEof);
        let blob = self.0.get(blob as usize).ok_or_else(end)?;
        let start = offset as usize;
        buf.copy_from_slice(blob.get(start..start + buf.len()).ok_or_else(end)?);
        Ok(())
    }
}

/// A package in memory, with what is needed to open and to compare it.
pub(crate) struct Made {
    pub(crate) file: Vec<u8>,
    pub(crate) blobs: Blobs,
    pub(crate) public: PublicHeader,
    pub(crate) meta: Meta,
    pub(crate) tensors: Vec<Vec<u8>>,
    pub(crate) key: Option<PackageKey>,
}

impl Made {
    pub(crate) fn open(&self) -> Result<Package, PackageError> {
        Package::open(&self.file, self.key.as_ref())
    }

    /// The plain data: tensors at their offsets, zeros between.
    pub(crate) fn data(&self) -> Vec<u8> {
        let mut data = Vec::new();
        for (record, bytes) in self.meta.tensors.iter().zip(&self.tensors) {
            data.resize(record.offset as usize, 0);
            data.extend_from_slice(bytes);
        }
        data
    }

    /// The same package after `edit`, signed again: what a hostile publisher can do.
    pub(crate) fn signed_again(&self, edit: impl FnOnce(&mut Header)) -> Vec<u8> {
        let mut header = self.public.header().clone();
        edit(&mut header);
        sign_into(&self.file, &header)
    }
}

/// `file` with this header and a signature that verifies.
pub(crate) fn sign_into(file: &[u8], header: &Header) -> Vec<u8> {
    let digest = chrysalis_protocol::package::package_digest(header);
    let message = [b"chrysalis1 pkgsig\0".as_slice(), &digest].concat();
    let signature = publisher().sign(&message).as_ref().try_into().unwrap();
    let block = SignatureBlock { public_key: self_public_key(), signature };
    let mut file = file.to_vec();
    file[..256].copy_from_slice(&header.to_bytes());
    file[256..360].copy_from_slice(&block.to_bytes());
    file
}

fn self_public_key() -> [u8; 32] {
    use aws_lc_rs::signature::KeyPair;
    publisher().public_key().as_ref().try_into().unwrap()
}

pub(crate) fn publisher() -> Ed25519KeyPair {
    Ed25519KeyPair::from_seed_unchecked(&[0x11; 32]).unwrap()
}

pub(crate) fn key(byte: u8) -> PackageKey {
    PackageKey::new(Secret::from([byte; 32]))
}

pub(crate) type Shape = (u16, Vec<u32>);

/// One package; tensor bytes come from `seed`, and go in by pieces of `piece` bytes.
pub(crate) struct Recipe {
    pub(crate) package_id: [u8; 16],
    pub(crate) segment_log2: u8,
    pub(crate) blob_log2: u8,
    pub(crate) key: Option<PackageKey>,
    pub(crate) shapes: Vec<Shape>,
    pub(crate) seed: u64,
    pub(crate) piece: usize,
}

impl Recipe {
    /// 3 tensors, 2 of them with a gap behind, in one segment.
    pub(crate) fn tiny(sealed: bool) -> Self {
        Self {
            package_id: [0xA5; 16],
            segment_log2: 20,
            blob_log2: 20,
            key: sealed.then(|| key(0x22)),
            shapes: vec![(0, vec![3, 5]), (8, vec![2, 32]), (30, vec![7])],
            seed: 1,
            piece: 13,
        }
    }

    /// 3 segments and a short one in 2 blobs.
    pub(crate) fn small(sealed: bool) -> Self {
        let shapes = vec![(0, vec![300, 1000]), (0, vec![9]), (1, vec![700, 1500])];
        Self { shapes, blob_log2: 21, piece: 100_000, ..Self::tiny(sealed) }
    }

    pub(crate) fn make(self) -> Made {
        let tensors = self.shapes.iter().enumerate();
        let named = tensors.map(|(i, (dtype, dims))| (format!("t.{i}"), *dtype, dims.clone()));
        let meta =
            Meta::new(architecture(), "tiny", "Apache-2.0", b"client bundle", named).unwrap();
        let mut random = Random(self.seed);
        let tensors: Vec<_> = meta.tensors.iter().map(|t| random.bytes(t.len as usize)).collect();
        let publisher = publisher();
        let options = PackageOptions {
            model_svn: 3,
            segment_log2: self.segment_log2,
            blob_log2: self.blob_log2,
            key: self.key.as_ref(),
            ..PackageOptions::new(self.package_id, &publisher)
        };
        let mut writer = PackageWriter::new(&options, meta.clone(), Blobs::default()).unwrap();
        for (index, bytes) in tensors.iter().enumerate() {
            for piece in bytes.chunks(self.piece) {
                writer.write(index, piece).unwrap();
            }
        }
        let Finished { public, file, sink: blobs } = writer.finish().unwrap();
        Made { file, blobs, public, meta, tensors, key: self.key }
    }
}

/// xorshift64*: the same bytes on every machine.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    pub(crate) fn bytes(&mut self, len: usize) -> Vec<u8> {
        let words = (0..len.div_ceil(8)).flat_map(|_| self.next().to_be_bytes());
        words.take(len).collect()
    }
}

pub(crate) fn architecture() -> Architecture {
    let rope = Rope { theta: 10_000.0, rope_dim: 4, ..Rope::default() };
    Architecture {
        hidden_size: 8,
        intermediate_size: 16,
        num_layers: 3,
        num_heads: 2,
        num_kv_heads: 1,
        head_dim: 4,
        vocab_size: 10,
        max_position_embeddings: 64,
        tied_embeddings: true,
        qk_norm: false,
        sandwich_norms: true,
        qkv_bias: false,
        o_bias: true,
        mlp_bias: false,
        activation: 2,
        rms_norm_eps: 1e-6,
        embedding_scale: 1.0,
        attention_scale: 0.5,
        attn_logit_softcap: 50.0,
        final_logit_softcap: 0.0,
        sliding_window: 16,
        sliding_layers: [0b101, 0, 0, 0, 0, 0, 0, 0],
        rope_global: Rope { kind: 1, factor: 8.0, ..rope },
        rope_local: rope,
        generation: Generation {
            bos_token_id: Some(2),
            eos_token_ids: vec![1, 9],
            temperature: 0.7,
            top_p: 0.95,
            min_p: 0.0,
            repetition_penalty: 1.0,
            top_k: 40,
        },
    }
}

/// The variant's name, as vector files state it.
pub(crate) fn name_of(error: &PackageError) -> String {
    let text = format!("{error:?}");
    text.split(|c: char| !c.is_alphanumeric()).next().unwrap().to_owned()
}

/// The error of an open that has to be refused.
pub(crate) fn refusal(file: &[u8], key: Option<&PackageKey>) -> PackageError {
    match Package::open(file, key) {
        Ok(_) => panic!("the package was opened"),
        Err(error) => error,
    }
}
