//! From sealed segments to a decoder: read once, decrypted, measured, placed.
//!
//! One thread reads and opens segments while this one places them on the device, so that decryption and repacking
//! overlap. Two buffers go around between them and are wiped in the end.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use chrysalis_kernels::device::{CacheDtype, Device, DeviceError};
use chrysalis_models::config::{ConfigError, ModelConfig};
use chrysalis_models::decoder::{Decoder, DecoderLimits, ModelError};
use chrysalis_models::weights::{TensorSpec, WeightError, WeightLoader};
use chrysalis_protocol::package::{BlobSource, Package, PackageError};
use zeroize::Zeroizing;

/// Why a package did not become a decoder.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// The architecture is not one that we run.
    #[error("the package's model cannot be run: {0}")]
    Config(#[from] ConfigError),
    /// The tensors are not those of the architecture.
    #[error("the package's tensors do not fit its model: {0}")]
    Weights(#[from] WeightError),
    /// A segment was refused.
    #[error(transparent)]
    Package(#[from] PackageError),
    /// The decoder could not be reserved.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The device failed.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// No thread could be started.
    #[error("the loader's thread could not be started: {0}")]
    Thread(#[from] std::io::Error),
}

/// How large the decoder's reservations are.
#[derive(Clone, Copy, Debug)]
pub struct LoadOptions {
    /// Tokens of a step.
    pub max_tokens: usize,
    /// Rows of logits of a step.
    pub max_logit_rows: usize,
    /// Positions of the KV cache.
    pub kv_tokens: usize,
    /// Positions of a block.
    pub block_size: usize,
    /// Element type of the KV cache.
    pub cache_dtype: CacheDtype,
}

/// Loads every segment of a package onto a device and reserves the decoder. `loaded` is called after each segment.
///
/// # Errors
/// [`LoadError`] names the tensor, the segment or the reservation.
pub fn decoder<D: Device>(
    device: Arc<D>,
    package: &Package,
    source: impl BlobSource + Send,
    options: LoadOptions,
    mut loaded: impl FnMut(u64),
) -> Result<Decoder<D>, LoadError> {
    let config = ModelConfig::try_from(&package.meta().architecture)?;
    let tensors: Vec<_> = package.meta().tensors.iter().map(TensorSpec::from).collect();
    let loader = WeightLoader::new(&*device, &config, &tensors)?;
    let (filled, segments) = sync_channel(BUFFERS);
    let (emptied, buffers) = sync_channel(BUFFERS);
    for _ in 0..BUFFERS {
        // The channel has room for every buffer there is.
        drop(emptied.send(Zeroizing::new(vec![0; package.segment_len_max()])));
    }
    thread::scope(|scope| {
        thread::Builder::new().name("open".into()).spawn_scoped(scope, move || {
            open_segments(package, source, &buffers, &filled);
        })?;
        for (index, segment) in (0..).zip(segments) {
            let segment = segment?;
            for piece in package.pieces(index) {
                let bytes = segment.get(piece.range).unwrap_or_default();
                loader.write(piece.tensor, piece.offset, bytes)?;
            }
            drop(emptied.send(segment));
            loaded(index + 1);
        }
        Ok::<_, LoadError>(())
    })?;
    let weights = loader.finish()?;
    let limits = DecoderLimits {
        max_tokens: options.max_tokens,
        max_logit_rows: options.max_logit_rows,
        num_blocks: options.kv_tokens.div_ceil(options.block_size.max(1)),
        block_size: options.block_size,
        cache_dtype: options.cache_dtype,
    };
    Ok(Decoder::new(device, config, weights, limits)?)
}

type Buffer = Zeroizing<Vec<u8>>;

/// Opens every segment in order; ends early when the other side is gone or a segment is refused.
fn open_segments(
    package: &Package,
    mut source: impl BlobSource,
    buffers: &Receiver<Buffer>,
    filled: &SyncSender<Result<Buffer, PackageError>>,
) {
    for index in 0..package.num_segments() {
        let Ok(mut buffer) = buffers.recv() else {
            return;
        };
        buffer.resize(package.place(index).map_or(0, |place| place.len), 0);
        let opened = package.read_segment(index, &mut source, &mut buffer);
        let refused = opened.is_err();
        if filled.send(opened.map(|()| buffer)).is_err() || refused {
            return;
        }
    }
}

/// One is being opened, one waits, one is being placed.
const BUFFERS: usize = 3;
