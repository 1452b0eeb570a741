//! Loading weights: placing (repacking for the kernels) on one core for each storage type, fresh
//! memory included, and the whole load of a sealed package in memory. Opening is in `package.rs`.

#![expect(clippy::panic, clippy::print_stderr, reason = "a bench reports to a terminal")]

use std::error::Error;
use std::io;
use std::thread;

use aws_lc_rs::signature::Ed25519KeyPair;
use chrysalis_benches::architecture;
use chrysalis_kernels::cpu::{Cpu, CpuOptions};
use chrysalis_kernels::device::{Device, DeviceError, Upload as _};
use chrysalis_kernels::reference::Reference;
use chrysalis_kernels::{Batch, Dtype, WantLogits};
use chrysalis_models::config::ModelConfig;
use chrysalis_models::weights::expected_tensors;
use chrysalis_protocol::package::{
    BlobSink, BlobSource, Finished, Meta, Package, PackageError, PackageKey, PackageOptions,
    PackageWriter,
};
use chrysalis_protocol::secret::Secret;
use chrysalis_runtime::load;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};

/// Rows and columns of the matrices that are placed; a row ends at no power of two.
const SHAPE: (usize, usize) = (4096, 2304);
/// What a segment holds: pieces come from a buffer that stays in the cache, as in a load.
const PIECE: usize = 2 << 20;

fn benches(c: &mut Criterion) {
    let done = place(c).map_err(Box::from).and_then(|()| whole(c));
    done.unwrap_or_else(|error: Box<dyn Error>| panic!("{error}"));
}

fn place(c: &mut Criterion) -> Result<(), DeviceError> {
    let cpu = Cpu::new(CpuOptions { threads: Some(1), ..CpuOptions::default() })?;
    let (rows, cols) = SHAPE;
    let mut group = c.benchmark_group("load/place");
    for dtype in Dtype::ALL {
        let row_bytes = dtype.row_bytes(cols).unwrap_or(0);
        // As many whole pairs of panels as a segment has; the last piece may be shorter.
        let piece_rows = PIECE / row_bytes / 32 * 32;
        let piece = stored(dtype, piece_rows * row_bytes);
        assert_placed(&cpu, dtype, &piece[..70 * row_bytes], cols)?;
        group.throughput(Throughput::Bytes((rows * row_bytes) as u64));
        group.bench_function(dtype.name(), |b| {
            b.iter_with_large_drop(|| {
                let upload = cpu.begin_matrix(dtype, rows, cols)?;
                for first in (0..rows).step_by(piece_rows) {
                    let count = piece_rows.min(rows - first);
                    upload.write(first * row_bytes, &piece[..count * row_bytes])?;
                }
                upload.finish()
            });
        });
    }
    group.finish();
    Ok(())
}

/// The rows that come back from the layout are those of the reference, bit for bit.
fn assert_placed(cpu: &Cpu, dtype: Dtype, bytes: &[u8], cols: usize) -> Result<(), DeviceError> {
    let rows = bytes.len() / dtype.row_bytes(cols).unwrap_or(1);
    let found = embedded(cpu, dtype, bytes, rows, cols)?;
    assert!(found == embedded(&Reference, dtype, bytes, rows, cols)?, "{}", dtype.name());
    Ok(())
}

fn embedded<D: Device>(
    device: &D,
    dtype: Dtype,
    bytes: &[u8],
    rows: usize,
    cols: usize,
) -> Result<Vec<u32>, DeviceError> {
    let upload = device.begin_matrix(dtype, rows, cols)?;
    upload.write(0, bytes)?;
    let (table, mut batch) = (upload.finish()?, Batch::default());
    batch.push(&(0..rows as u32).collect::<Vec<_>>(), 0, &[], WantLogits::None);
    let (mut step, mut out) = (device.step(rows)?, device.buffer(rows, cols)?);
    device.set_step(&mut step, &batch);
    device.embed(&step, &table, 1.0, &mut out);
    let mut values = vec![0.0; rows * cols];
    for (t, row) in values.chunks_exact_mut(cols).enumerate() {
        device.download(&out, t, row)?;
    }
    Ok(values.into_iter().map(f32::to_bits).collect())
}

fn whole(c: &mut Criterion) -> Result<(), Box<dyn Error>> {
    let all = thread::available_parallelism().map_or(1, usize::from);
    let key = PackageKey::new(Secret::from([2; 32]));
    let config = ModelConfig::try_from(&architecture())?;
    let mut group = c.benchmark_group("load/whole");
    group.sample_size(20);
    for dtype in [Dtype::Q4_1, Dtype::Q4K, Dtype::Bf16] {
        let Finished { file, sink, .. } = write(dtype, &config, &key)?;
        let package = Package::open(&file, Some(&key))?;
        group.throughput(Throughput::Bytes(package.public().header().data_len));
        for threads in [1, all] {
            let cpu = Cpu::new(CpuOptions { threads: Some(threads), ..CpuOptions::default() })?;
            let load = || {
                let mut segments = 0;
                let source = || Memory(&sink.0);
                let loaded = |count| segments = count;
                let weights = load::weights(&cpu, &config, &package, source, Some(threads), loaded);
                assert_eq!(segments, package.num_segments());
                weights
            };
            eprintln!("{}: {}", dtype.name(), load()?.1);
            let id = BenchmarkId::new(dtype.name(), threads);
            group.bench_function(id, |b| b.iter_with_large_drop(load));
        }
    }
    group.finish();
    Ok(())
}

/// A package whose matrices are all of one type.
fn write(
    dtype: Dtype,
    config: &ModelConfig,
    key: &PackageKey,
) -> Result<Finished<Blob>, PackageError> {
    let tensors = expected_tensors(config).into_iter().map(|(name, dims)| {
        let dtype = if dims.len() == 2 { dtype } else { Dtype::F32 };
        (name, dtype as u16, dims)
    });
    let meta = Meta::new(architecture(), "bench", "", &[], tensors)?;
    let publisher = Ed25519KeyPair::from_seed_unchecked(&[1; 32]);
    let publisher = publisher.map_err(|_| PackageError::Crypto { step: "making a key" })?;
    let options = PackageOptions { key: Some(key), ..PackageOptions::new([1; 16], &publisher) };
    let lens: Vec<_> = meta.tensors.iter().map(|tensor| (tensor.dtype, tensor.len)).collect();
    let mut writer = PackageWriter::new(&options, meta, Blob(Vec::new()))?;
    for (index, (code, len)) in lens.into_iter().enumerate() {
        let dtype = Dtype::from_code(code).unwrap_or(Dtype::F32);
        writer.write(index, &stored(dtype, usize::try_from(len).unwrap_or(0)))?;
    }
    writer.finish()
}

/// Groups of varied bytes; each f16 scale is a number.
fn stored(dtype: Dtype, len: usize) -> Vec<u8> {
    let byte = |i: u64| (i.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as u8;
    let mut bytes: Vec<u8> = (0..len as u64).map(byte).collect();
    for group in bytes.chunks_exact_mut(dtype.group_bytes()) {
        for at in [0, 2, dtype.group_bytes() - 2] {
            if let Some(half) = group.get_mut(at..at + 2) {
                half[1] &= 0x3f;
            }
        }
    }
    bytes
}

#[derive(Clone, Default)]
struct Blob(Vec<u8>);

impl BlobSink for Blob {
    fn append(&mut self, _blob: u32, bytes: &[u8]) -> io::Result<()> {
        self.0.extend_from_slice(bytes);
        Ok(())
    }
}

struct Memory<'a>(&'a [u8]);

impl BlobSource for Memory<'_> {
    fn read_at(&mut self, _blob: u32, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let bytes = self.0.get(start..).and_then(|rest| rest.get(..buf.len()));
        buf.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}

criterion_group!(load_benches, benches);
criterion_main!(load_benches);
