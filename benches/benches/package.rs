//! Loading and making a model package: bytes a second on one core. The limit is what AES-256-GCM
//! and BLAKE3 do one after the other over a segment that stays in the cache.

use std::hint::black_box;
use std::io;

use aws_lc_rs::signature::Ed25519KeyPair;
use chrysalis_benches::architecture;
use chrysalis_protocol::package::{
    BlobSink, BlobSource, Finished, Meta, Package, PackageError, PackageKey, PackageOptions,
    PackageWriter,
};
use chrysalis_protocol::secret::Secret;
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};

/// 64 MiB of bf16: 32 segments.
const DATA_LEN: usize = 64 << 20;
const SEGMENT: usize = 2 << 20;

#[derive(Clone, Default)]
struct Blob(Vec<u8>);

impl BlobSink for Blob {
    fn append(&mut self, _blob: u32, bytes: &[u8]) -> io::Result<()> {
        self.0.extend_from_slice(bytes);
        Ok(())
    }
}

impl BlobSource for Blob {
    fn read_at(&mut self, _blob: u32, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let bytes = self.0.get(start..).and_then(|rest| rest.get(..buf.len()));
        buf.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}

/// A package of one tensor, and the key that opens it.
struct Made {
    package: Package,
    blob: Blob,
}

fn make(data: &[u8], key: Option<&PackageKey>) -> Result<Made, PackageError> {
    let Finished { file, sink: blob, .. } = write(data, key)?;
    Ok(Made { package: Package::open(&file, key)?, blob })
}

fn write(data: &[u8], key: Option<&PackageKey>) -> Result<Finished<Blob>, PackageError> {
    let tensor = ("token_embd.weight".to_owned(), 30, vec![1 << 15, 1 << 10]);
    let meta = Meta::new(architecture(), "bench", "", &[], [tensor])?;
    let publisher = Ed25519KeyPair::from_seed_unchecked(&[1; 32]);
    let publisher = publisher.map_err(|_| PackageError::Crypto { step: "making a key" })?;
    let options = PackageOptions { key, ..PackageOptions::new([1; 16], &publisher) };
    let blob = Blob(Vec::with_capacity(DATA_LEN));
    let mut writer = PackageWriter::new(&options, meta, blob)?;
    for piece in data.chunks(1 << 20) {
        writer.write(0, piece)?;
    }
    writer.finish()
}

fn segments(c: &mut Criterion, data: &[u8], key: &PackageKey) -> Result<(), PackageError> {
    let mut group = c.benchmark_group("package/open_segment");
    group.throughput(Throughput::Bytes(SEGMENT as u64));
    for (name, key) in [("sealed", Some(key)), ("open", None)] {
        let Made { package, blob } = make(data, key)?;
        let mut segment = blob.0[SEGMENT..2 * SEGMENT].to_vec();
        package.open_segment(1, &mut segment)?;
        assert!(segment == data[SEGMENT..2 * SEGMENT], "the segment is the plain data");
        group.bench_function(name, |b| {
            b.iter_batched_ref(
                || blob.0[SEGMENT..2 * SEGMENT].to_vec(),
                |segment| assert!(package.open_segment(1, black_box(segment)).is_ok()),
                BatchSize::NumIterations(4),
            );
        });
    }
    group.finish();
    Ok(())
}

fn whole(c: &mut Criterion, data: &[u8], key: &PackageKey) -> Result<(), PackageError> {
    let mut group = c.benchmark_group("package/64MiB");
    group.throughput(Throughput::Bytes(DATA_LEN as u64)).sample_size(20);
    for (name, key) in [("sealed", Some(key)), ("open", None)] {
        let Made { package, mut blob } = make(data, key)?;
        group.bench_function(format!("read_{name}"), |b| {
            b.iter(|| {
                let mut total = 0;
                let read = package.read_segments(&mut blob, |_, _, bytes| {
                    total += black_box(bytes).len();
                    Ok::<(), PackageError>(())
                });
                assert!(read.is_ok() && total == DATA_LEN);
            });
        });
        let root = package.public().header().data_root;
        group.bench_function(format!("write_{name}"), |b| {
            b.iter(|| {
                let finished = write(data, key);
                assert!(finished.is_ok_and(|made| made.public.header().data_root == root));
            });
        });
    }
    group.finish();
    Ok(())
}

fn benches(c: &mut Criterion) {
    let data: Vec<u8> =
        (0..DATA_LEN as u64).map(|i| (i.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as u8).collect();
    let key = PackageKey::new(Secret::from([2; 32]));
    let done = segments(c, &data, &key).and_then(|()| whole(c, &data, &key));
    assert!(done.is_ok(), "{done:?}");
}

criterion_group!(package, benches);
criterion_main!(package);
