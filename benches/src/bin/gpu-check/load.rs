//! Loading: weights from a sealed package in memory to the device, decrypted and measured on the way; and the host's part of an
//! answer.

use std::error::Error;
use std::io;
use std::time::Instant;

use chrysalis_kernels::Dtype;
use chrysalis_models::weights::Weights;
use chrysalis_protocol::hpke::KemKeyPair;
use chrysalis_protocol::package::{
    BlobSource, Finished, Meta, Package, PackageOptions, PackageWriter,
};
use chrysalis_protocol::rand_core::UnwrapErr;
use chrysalis_protocol::request::{
    HEAD_LEN, Head, Options, Prompt, RequestBody, RequestOpener, SealTo, seal,
};
use chrysalis_protocol::response::{Accept, Inner};
use chrysalis_protocol::secret::Secret;
use chrysalis_runtime::load;
use getrandom::SysRng;

use crate::args::Size;
use crate::checks::{Check, Context, Outcome};
use crate::model::{LLAMA_1B, Shape, Strip, TINY};
use crate::real_model::{Blob, key, publisher};
use crate::report::Row;
use crate::subject::Subject;

pub(crate) fn checks<D: Subject>(size: Size) -> Vec<Check> {
    let types = size.pick(&[Dtype::Bf16][..], &[Dtype::Bf16], &[Dtype::Bf16, Dtype::Q4_1]);
    let sealed = |dtype: &Dtype| {
        let dtype = *dtype;
        Check::new(format!("load/sealed-{}", dtype.name()), 90, move |c| sealed::<D>(c, dtype))
    };
    types.iter().map(sealed).collect()
}

/// A package of the layers of a 1B, read from memory by all threads.
fn sealed<D: Subject>(context: &Context<'_, D>, dtype: Dtype) -> Outcome {
    let shape = context.size.pick(TINY, LLAMA_1B.with_layers(8), LLAMA_1B);
    let made = Made::new(&shape, dtype, context.size.pick(1 << 16, 1 << 26, 1 << 26))?;
    let config = shape.config()?;
    for threads in [Some(1), None] {
        let source = || Source(&made.blob.0);
        let (weights, report): (Weights<D>, _) =
            load::weights(&*context.device, &config, &made.package, source, threads, |_| {})?;
        context.device.finish()?;
        drop(weights);
        let rate = report.bytes as f64 / report.wall.as_secs_f64() / 1e9;
        let what = format!("sealed package, {} threads", report.threads);
        context.note(&Row { detail: report.to_string(), ..Row::figure(what, rate, "GB/s") })?;
    }
    Ok(())
}

struct Made {
    package: Package,
    blob: Blob,
}

impl Made {
    fn new(shape: &Shape, dtype: Dtype, strip: usize) -> Result<Self, Box<dyn Error>> {
        let tensors =
            shape.tensors(dtype)?.into_iter().map(|(name, dtype, dims)| (name, dtype as u16, dims));
        let meta = Meta::new(shape.architecture(), shape.name, "", &[], tensors)?;
        let lengths: Vec<_> =
            meta.tensors.iter().map(|tensor| (tensor.dims.len(), tensor.len)).collect();
        let (key, publisher, strip) = (key(), publisher()?, Strip::new(dtype, strip)?);
        let mut options = PackageOptions::new([3; 16], &publisher);
        options.key = Some(&key);
        let mut writer = PackageWriter::new(&options, meta, Blob::default())?;
        for (tensor, (dims, len)) in lengths.into_iter().enumerate() {
            let whole = strip.of(dims);
            let mut left = usize::try_from(len)?;
            while left > 0 {
                let piece = &whole[..whole.len().min(left)];
                writer.write(tensor, piece)?;
                left -= piece.len();
            }
        }
        let Finished { file, sink: blob, .. } = writer.finish()?;
        Ok(Self { package: Package::open(&file, Some(&key))?, blob })
    }
}

struct Source<'a>(&'a [u8]);

impl BlobSource for Source<'_> {
    fn read_at(&mut self, _blob: u32, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let start = usize::try_from(offset).map_err(io::Error::other)?;
        let bytes = self.0.get(start..).and_then(|rest| rest.get(..buf.len()));
        buf.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}

/// Seconds in which a frame with one token of an answer is sealed, of so many.
pub(crate) fn seal_frames(frames: u32) -> Result<f64, Box<dyn Error>> {
    let keys = KemKeyPair::derive(&Secret::from([3; 32]));
    let body = RequestBody {
        stream: true,
        want_logprobs: false,
        max_output: 4096,
        request_id: [9; 16],
        seed: 1,
        options: Options::default(),
        prompt: Prompt::tokens(vec![1, 2, 3]),
    };
    let statement_digest = [7; 48];
    let to = SealTo { statement_digest, key_id: [1; 8], sealing_key: keys.sealing_key() };
    let sealed = seal(&to, &body, &mut UnwrapErr(SysRng))?;
    let (head, rest) = sealed.bytes.split_at_checked(HEAD_LEN).ok_or("no head")?;
    let mut opener = RequestOpener::new(&Head::from_bytes(head)?, &keys, &statement_digest)?;
    opener.push(rest)?;
    let secret = opener.take_response_secret().ok_or("no frame was opened")?;
    let opened = opener.finish()?;
    let mut sealer = secret.into_sealer(&mut UnwrapErr(SysRng));
    let accept = Accept { request_hash: opened.request_hash, boot_id: [2; 16], serial: 1 };
    sealer.seal(&Inner::Accept(accept))?;
    let begun = Instant::now();
    for token in 0..frames {
        sealer.seal(&Inner::Tokens(vec![token].into()))?;
    }
    Ok(begun.elapsed().as_secs_f64() / f64::from(frames))
}
