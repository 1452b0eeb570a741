//! From sealed segments to a decoder: each segment read once, decrypted, measured, placed.
//!
//! As many threads as compute take the segments in turn. A thread reads one into a buffer of its own, opens it there,
//! places its pieces on the device and takes the next: segments open in any order, and an upload takes pieces in any
//! order, so that no thread waits for another. Buffers are wiped in the end. The first segment that is refused, in the
//! order of the package, is the error of the load, whoever met it first.

use std::fmt;
use std::io;
use std::ops::AddAssign;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use chrysalis_kernels::device::{CacheDtype, Device, DeviceError};
use chrysalis_models::config::{ConfigError, ModelConfig};
use chrysalis_models::decoder::{Decoder, DecoderLimits, ModelError};
use chrysalis_models::weights::{TensorSpec, WeightError, WeightLoader, Weights};
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
    /// A thread could not be started.
    #[error("a thread of the loader could not be started: {0}")]
    Thread(#[from] io::Error),
    /// A thread ended without a result.
    #[error("a thread of the loader panicked")]
    Panicked,
}

/// How large the decoder's reservations are, and how many threads load.
#[derive(Clone, Copy, Debug)]
pub struct LoadOptions {
    /// Threads that load; all that the process may use, when not given.
    pub threads: Option<usize>,
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

/// What a load took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LoadReport {
    /// Bytes of all segments: as many are read, opened and placed.
    pub bytes: u64,
    /// Threads that loaded.
    pub threads: usize,
    /// Time of each stage.
    pub stages: Stages,
    /// From the reservation of the weights' memory to the last weight in place.
    pub wall: Duration,
}

/// Time of each stage, summed over the threads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stages {
    /// Reading from the source.
    pub read: Duration,
    /// Decrypting, measuring, checking gaps.
    pub open: Duration,
    /// Repacking onto the device.
    pub place: Duration,
}

impl LoadReport {
    /// Bytes in a second of the whole load; zero for a load that took none.
    pub fn bytes_per_second(&self) -> f64 {
        let seconds = self.wall.as_secs_f64();
        if seconds > 0.0 { self.bytes as f64 / seconds } else { 0.0 }
    }
}

impl fmt::Display for LoadReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Stages { read, open, place } = self.stages;
        write!(
            f,
            "{} MB loaded in {:.3} s ({:.2} GB/s) on {} threads, which read for {:.3} s, opened for {:.3} s and placed for {:.3} s",
            self.bytes / 1_000_000,
            self.wall.as_secs_f64(),
            self.bytes_per_second() / 1e9,
            self.threads,
            read.as_secs_f64(),
            open.as_secs_f64(),
            place.as_secs_f64()
        )
    }
}

impl AddAssign for Stages {
    fn add_assign(&mut self, other: Self) {
        self.read += other.read;
        self.open += other.open;
        self.place += other.place;
    }
}

/// Loads every segment of a package onto a device and reserves the decoder. Each thread reads from a source of its own.
/// `loaded` is called after each segment with the number of segments so far.
///
/// # Errors
/// [`LoadError`] names the tensor, the segment or the reservation.
pub fn decoder<D: Device, S: BlobSource>(
    device: Arc<D>,
    package: &Package,
    source: impl Fn() -> S + Sync,
    options: LoadOptions,
    loaded: impl FnMut(u64) + Send,
) -> Result<(Decoder<D>, LoadReport), LoadError> {
    let config = ModelConfig::try_from(&package.meta().architecture)?;
    let (weights, report) = weights(&*device, &config, package, source, options.threads, loaded)?;
    let limits = DecoderLimits {
        max_tokens: options.max_tokens,
        max_logit_rows: options.max_logit_rows,
        num_blocks: options.kv_tokens.div_ceil(options.block_size.max(1)),
        block_size: options.block_size,
        cache_dtype: options.cache_dtype,
    };
    Ok((Decoder::new(device, config, weights, limits)?, report))
}

/// Loads every segment of a package onto a device. See [`decoder`].
///
/// # Errors
/// [`LoadError`] names the tensor or the segment.
pub fn weights<D: Device, S: BlobSource>(
    device: &D,
    config: &ModelConfig,
    package: &Package,
    source: impl Fn() -> S + Sync,
    threads: Option<usize>,
    loaded: impl FnMut(u64) + Send,
) -> Result<(Weights<D>, LoadReport), LoadError> {
    let start = Instant::now();
    let tensors: Vec<_> = package.meta().tensors.iter().map(TensorSpec::from).collect();
    let loader = WeightLoader::new(device, config, &tensors)?;
    let all = || thread::available_parallelism().map_or(1, usize::from);
    let segments = usize::try_from(package.num_segments()).unwrap_or(usize::MAX);
    let threads = threads.unwrap_or_else(all).min(segments).clamp(1, THREADS_MAX);
    let load =
        Load { package, loader: &loader, next: AtomicU64::new(0), loaded: Mutex::new((0, loaded)) };
    let stages = thread::scope(|scope| {
        let spawn = |_| {
            let run = || load.segments(source());
            thread::Builder::new().name("load".into()).spawn_scoped(scope, run)
        };
        let workers: Vec<_> = (0..threads).map(spawn).collect();
        let ends = workers.into_iter().map(|worker| match worker {
            Ok(worker) => worker.join().unwrap_or(Err((u64::MAX, LoadError::Panicked))),
            Err(error) => Err((u64::MAX, error.into())),
        });
        all_or_first(ends.collect())
    })?;
    let weights = loader.finish()?;
    let bytes = package.public().header().data_len;
    Ok((weights, LoadReport { bytes, threads, stages, wall: start.elapsed() }))
}

/// What the threads share.
struct Load<'a, D: Device, F> {
    package: &'a Package,
    loader: &'a WeightLoader<'a, D>,
    /// The segment that nobody has taken yet; beyond the last one when a thread failed.
    next: AtomicU64,
    /// Segments in place, and who wants to know.
    loaded: Mutex<(u64, F)>,
}

/// Why a thread ended, and the segment that it had then.
type Refusal = (u64, LoadError);

impl<D: Device, F: FnMut(u64)> Load<'_, D, F> {
    /// The life of a thread: it takes segments until there is none left, or somebody failed.
    fn segments(&self, source: impl BlobSource) -> Result<Stages, Refusal> {
        let _stop = Stop(&self.next);
        let mut source = Timed { source, time: Duration::ZERO };
        let mut buffer = Zeroizing::new(vec![0; self.package.segment_len_max()]);
        let mut stages = Stages::default();
        loop {
            let index = self.next.fetch_add(1, Ordering::Relaxed);
            let Some(place) = self.package.place(index) else {
                break;
            };
            let segment = buffer.get_mut(..place.len).unwrap_or_default();
            stages += self.segment(index, &mut source, segment).map_err(|error| (index, error))?;
            let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
            loaded.0 += 1;
            let count = loaded.0;
            (loaded.1)(count);
        }
        Ok(stages)
    }

    /// Reads, opens and places one segment. Nothing of it is placed before all of it was measured.
    fn segment<S: BlobSource>(
        &self,
        index: u64,
        source: &mut Timed<S>,
        segment: &mut [u8],
    ) -> Result<Stages, LoadError> {
        let start = Instant::now();
        self.package.read_segment(index, source, segment)?;
        let opened = start.elapsed();
        for piece in self.package.pieces(index) {
            let bytes = segment.get(piece.range).unwrap_or_default();
            self.loader.write(piece.tensor, piece.offset, bytes)?;
        }
        let read = std::mem::take(&mut source.time);
        let place = start.elapsed().saturating_sub(opened);
        Ok(Stages { read, open: opened.saturating_sub(read), place })
    }
}

/// Lets no thread take another segment once its own has come to an end: there is none left, or it failed.
struct Stop<'a>(&'a AtomicU64);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(STOPPED, Ordering::Relaxed);
    }
}

/// A source that knows how long it was read.
struct Timed<S> {
    source: S,
    time: Duration,
}

impl<S: BlobSource> BlobSource for Timed<S> {
    fn read_at(&mut self, blob: u32, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let start = Instant::now();
        let read = self.source.read_at(blob, offset, buf);
        self.time += start.elapsed();
        read
    }
}

/// The sum, or the refusal of the first segment: all before it were taken before it, and each taken one comes to an end,
/// so that it is the same in every run.
fn all_or_first(ends: Vec<Result<Stages, Refusal>>) -> Result<Stages, LoadError> {
    let mut sum = Stages::default();
    let mut refusals = Vec::new();
    for end in ends {
        match end {
            Ok(stages) => sum += stages,
            Err(refusal) => refusals.push(refusal),
        }
    }
    let first = refusals.into_iter().min_by_key(|(segment, _)| *segment);
    first.map_or(Ok(sum), |(_, error)| Err(error))
}

/// Their buffers are part of the memory that a load may take; sixteen cores decrypt faster than any disk reads.
const THREADS_MAX: usize = 16;
/// A number that no segment has, far from the end of its type.
const STOPPED: u64 = u64::MAX / 2;
