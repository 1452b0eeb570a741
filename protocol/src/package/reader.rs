//! Opening a package: everything is proved before anything is used, and every byte of a blob is
//! read once (docs/formats.md, section 2, "Load pipeline").

use std::io;
use std::ops::Range;

use subtle::ConstantTimeEq;
use zeroize::{Zeroize, Zeroizing};

use super::error::PackageError;
use super::header::{Header, PUBLIC_LEN, Place, PublicHeader, SIDE_SEGMENT_LOG2};
use super::keys::{Domain, KeySchedule, PackageKey, Position};
use super::meta::Meta;
use super::tree;
use crate::codec::Reader;

/// Gives the bytes of blobs; it is not trusted.
pub trait BlobSource {
    /// Fills `buf` with the bytes of blob `blob` from `offset` on.
    ///
    /// # Errors
    /// Whatever stops it, an end of the blob included.
    fn read_at(&mut self, blob: u32, offset: u64, buf: &mut [u8]) -> io::Result<()>;
}

/// A package whose header, signature, key, meta and segment table belong together.
/// [`Package::open`] is its only source, and only it opens data segments.
#[expect(missing_debug_implementations, reason = "it holds keys, and hashes of private weights")]
pub struct Package {
    public: PublicHeader,
    meta: Meta,
    keys: Option<KeySchedule>,
    chaining_values: Vec<[u8; 32]>,
    tags: Vec<[u8; 16]>,
}

/// The part of a tensor that lies in one segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// The tensor's index in the meta.
    pub tensor: usize,
    /// Where the part starts in the tensor.
    pub offset: u64,
    /// Where it lies in the segment.
    pub range: Range<usize>,
}

impl Package {
    /// Opens the bytes of `NAME.chry`, with the key if the package is sealed.
    ///
    /// 1. The header and the publisher's signature are sound.
    /// 2. The file is exactly as long as the header says.
    /// 3. The header commits to the key.
    /// 4. The meta opens, has its root and is well-formed.
    /// 5. The tensors cover the data.
    /// 6. The table opens and has its root.
    /// 7. Its chaining values join to the data's root. (A single segment has nothing to join: its
    ///    hash is compared when it is opened.)
    ///
    /// # Errors
    /// [`PackageError`], naming the check.
    pub fn open(file: &[u8], key: Option<&PackageKey>) -> Result<Self, PackageError> {
        // 1. The header and the publisher's signature are sound.
        let public = PublicHeader::parse(file)?;
        let header = public.header();
        // 2. The file is exactly as long as the header says.
        let found = u64::try_from(file.len()).unwrap_or(u64::MAX);
        if found != header.file_len() {
            return Err(PackageError::FileLen { found, expected: header.file_len() });
        }
        // 3. The header commits to the key.
        let keys = committed_keys(header, key)?;
        // 4. The meta opens, has its root and is well-formed.
        let (stored_meta, stored_table) = split_file(header, file)?;
        let meta = open_side(keys.as_ref(), Domain::Meta, stored_meta)?;
        let (found, expected) = (blake3::hash(&meta), header.meta_root.into());
        if found != expected {
            return Err(PackageError::MetaRoot { found, expected });
        }
        let meta = Meta::from_bytes(&meta)?;
        // 5. The tensors cover the data.
        if meta.data_len() != header.data_len {
            let (found, expected) = (meta.data_len(), header.data_len);
            return Err(PackageError::DataCover { found, expected });
        }
        // 6. The table opens and has its root.
        let table = open_side(keys.as_ref(), Domain::Table, stored_table)?;
        let (found, expected) = (blake3::hash(&table), header.table_root.into());
        if found != expected {
            return Err(PackageError::TableRoot { found, expected });
        }
        let (chaining_values, tags) = read_table(header, &table)?;
        // 7. Its chaining values join to the data's root.
        let expected = blake3::Hash::from(header.data_root);
        if let Some(found) = tree::join(&chaining_values).filter(|&found| found != expected) {
            return Err(PackageError::DataRoot { found, expected });
        }
        Ok(Self { public, meta, keys, chaining_values, tags })
    }

    /// Header, signature and digests.
    #[must_use]
    pub const fn public(&self) -> &PublicHeader {
        &self.public
    }

    /// What the package holds.
    #[must_use]
    pub const fn meta(&self) -> &Meta {
        &self.meta
    }

    /// How many data segments there are, at least one.
    #[must_use]
    pub fn num_segments(&self) -> u64 {
        self.public.header().segment_count()
    }

    /// Where segment `index` lies among the blobs, and how long it is; nothing beyond the last.
    #[must_use]
    pub fn place(&self, index: u64) -> Option<Place> {
        self.public.header().place(index)
    }

    /// Bytes of the longest segment: what a loader's buffer takes.
    #[must_use]
    pub fn segment_len_max(&self) -> usize {
        self.place(0).map_or(0, |place| place.len)
    }

    /// Opens segment `index` in place: decrypts it, measures it against the table, and checks that
    /// gaps are zero. `bytes` is private memory that was read once. Segments open in any order and
    /// on any thread.
    ///
    /// # Errors
    /// [`PackageError`], naming segment and check; `bytes` is then zero.
    pub fn open_segment(&self, index: u64, bytes: &mut [u8]) -> Result<(), PackageError> {
        let opened = self.check_segment(index, bytes);
        if opened.is_err() {
            bytes.zeroize();
        }
        opened
    }

    /// Reads segment `index` once into `buf`, which is as long as the segment, and opens it.
    ///
    /// # Errors
    /// [`PackageError::Read`], or what [`Self::open_segment`] refuses.
    pub fn read_segment(
        &self,
        index: u64,
        source: &mut dyn BlobSource,
        buf: &mut [u8],
    ) -> Result<(), PackageError> {
        let Place { blob, offset, .. } = self.fitting_place(index, buf.len())?;
        source.read_at(blob, offset, buf).map_err(|source| PackageError::Read {
            segment: index,
            blob,
            source,
        })?;
        self.open_segment(index, buf)
    }

    /// Reads all segments in order and hands on `(tensor, offset in the tensor, bytes)`. Each
    /// segment is read once into a private buffer, and nothing of it is handed on before all of it
    /// was decrypted and measured. The buffer is overwritten by the next segment and wiped at the
    /// end.
    ///
    /// # Errors
    /// What [`Self::read_segment`] refuses, and whatever `each` returns.
    pub fn read_segments<E: From<PackageError>>(
        &self,
        source: &mut dyn BlobSource,
        mut each: impl FnMut(usize, u64, &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut buffer = Zeroizing::new(vec![0; self.segment_len_max()]);
        for index in 0..self.num_segments() {
            let len = self.place(index).map_or(0, |place| place.len);
            let segment = buffer.get_mut(..len).unwrap_or_default();
            self.read_segment(index, source, segment)?;
            for Piece { tensor, offset, range } in self.pieces(index) {
                each(tensor, offset, segment.get(range).unwrap_or_default())?;
            }
        }
        Ok(())
    }

    /// The parts of tensors that lie in segment `index`, in order; none beyond the last segment.
    pub fn pieces(&self, index: u64) -> impl Iterator<Item = Piece> + use<'_> {
        let start = index.checked_shl(self.public.header().segment_log2.into()).unwrap_or(u64::MAX);
        let len = self.place(index).map_or(0, |place| place.len as u64);
        let end = start.saturating_add(len);
        let tensors = &self.meta.tensors;
        let first = tensors.partition_point(|t| t.offset.saturating_add(t.len) <= start);
        let covered = tensors.iter().enumerate().skip(first);
        covered.take_while(move |(_, t)| t.offset < end).filter_map(move |(tensor, t)| {
            let from = t.offset.max(start);
            let to = t.offset.saturating_add(t.len).min(end);
            let in_segment =
                |at: u64| at.checked_sub(start).and_then(|at| usize::try_from(at).ok());
            let range = in_segment(from)?..in_segment(to)?;
            Some(Piece { tensor, offset: from.checked_sub(t.offset)?, range })
        })
    }

    fn check_segment(&self, index: u64, bytes: &mut [u8]) -> Result<(), PackageError> {
        let place = self.fitting_place(index, bytes.len())?;
        let count = self.num_segments();
        let at = usize::try_from(index).ok();
        let entry = at.and_then(|at| self.chaining_values.get(at).zip(self.tags.get(at)));
        let Some((chaining_value, tag)) = entry else {
            return Err(PackageError::SegmentIndex { found: index, count });
        };
        let last = index.saturating_add(1) == count;
        let position = Position { domain: Domain::Data, index, last };
        let opens =
            self.keys.as_ref().is_none_or(|keys| keys.open(place.blob, position, tag, bytes));
        if !opens {
            return Err(PackageError::SegmentSeal { segment: index });
        }
        let header = self.public.header();
        let measured = tree::measure(header.segment_log2, index, bytes);
        let alone_is_root = count != 1 || measured.alone == blake3::Hash::from(header.data_root);
        if !bool::from(measured.chaining_value.ct_eq(chaining_value)) || !alone_is_root {
            return Err(PackageError::SegmentHash { segment: index });
        }
        self.check_gaps(index, bytes)
    }

    /// The bytes that belong to no tensor are zero, as the format says.
    fn check_gaps(&self, index: u64, bytes: &[u8]) -> Result<(), PackageError> {
        let end = bytes.len()..bytes.len();
        let mut done = 0;
        for range in self.pieces(index).map(|piece| piece.range).chain([end]) {
            let gap = bytes.get(done..range.start).unwrap_or_default();
            if gap.iter().any(|&byte| byte != 0) {
                let offset = range.start as u64;
                return Err(PackageError::GapNotZero { segment: index, offset });
            }
            done = range.end;
        }
        Ok(())
    }

    fn fitting_place(&self, index: u64, len: usize) -> Result<Place, PackageError> {
        let Some(place) = self.place(index) else {
            return Err(PackageError::SegmentIndex { found: index, count: self.num_segments() });
        };
        if place.len != len {
            let (found, expected) = (len as u64, place.len as u64);
            return Err(PackageError::SegmentLen { segment: index, found, expected });
        }
        Ok(place)
    }
}

fn committed_keys(
    header: &Header,
    key: Option<&PackageKey>,
) -> Result<Option<KeySchedule>, PackageError> {
    match (header.sealed, key) {
        (false, None) => Ok(None),
        (true, None) => Err(PackageError::KeyMissing),
        // Whoever sent a key believes that the weights are private: they are not.
        (false, Some(_)) => Err(PackageError::KeyUnexpected),
        (true, Some(key)) => {
            let keys = KeySchedule::new(key, &header.package_id, header.blob_count())?;
            if bool::from(keys.commit().ct_eq(&header.key_commit)) {
                Ok(Some(keys))
            } else {
                Err(PackageError::WrongKey)
            }
        }
    }
}

/// The stored meta and the stored table of a file of the right length.
fn split_file<'a>(header: &Header, file: &'a [u8]) -> Result<(&'a [u8], &'a [u8]), PackageError> {
    let layout = |source| PackageError::Layout { part: "zeros before the table", source };
    let len = |len: u64| usize::try_from(len).unwrap_or(usize::MAX);
    let mut input = Reader::new(file);
    input.bytes(PUBLIC_LEN).map_err(layout)?;
    let meta = input.bytes(len(header.stored_len(header.meta_len))).map_err(layout)?;
    let read = file.len().saturating_sub(input.left());
    input.zeros(len(header.table_start()).saturating_sub(read)).map_err(layout)?;
    Ok((meta, input.rest()))
}

/// Opens a stored meta or table.
fn open_side(
    keys: Option<&KeySchedule>,
    domain: Domain,
    stored: &[u8],
) -> Result<Zeroizing<Vec<u8>>, PackageError> {
    let Some(keys) = keys else {
        return Ok(Zeroizing::new(stored.to_vec()));
    };
    let mut plain = Zeroizing::new(Vec::with_capacity(stored.len()));
    let mut segments = stored.chunks(STORED_SIDE_SEGMENT).zip(0_u64..).peekable();
    while let Some((stored, index)) = segments.next() {
        let last = segments.peek().is_none();
        let start = plain.len();
        let opened = stored.split_last_chunk().is_some_and(|(sealed, tag)| {
            plain.extend_from_slice(sealed);
            let bytes = plain.get_mut(start..).unwrap_or_default();
            keys.open(0, Position { domain, index, last }, tag, bytes)
        });
        if !opened {
            return Err(match domain {
                Domain::Table => PackageError::TableSeal { segment: index },
                Domain::Meta | Domain::Data => PackageError::MetaSeal { segment: index },
            });
        }
    }
    Ok(plain)
}

type Table = (Vec<[u8; 32]>, Vec<[u8; 16]>);

fn read_table(header: &Header, table: &[u8]) -> Result<Table, PackageError> {
    let layout = |source| PackageError::Layout { part: "table", source };
    let mut input = Reader::new(table);
    let (mut chaining_values, mut tags) = (Vec::new(), Vec::new());
    for segment in 0..header.segment_count() {
        chaining_values.push(input.array().map_err(layout)?);
        let tag = input.array().map_err(layout)?;
        if !header.sealed && tag != [0; 16] {
            return Err(PackageError::TagPresence { segment });
        }
        tags.push(tag);
    }
    input.finish().map_err(layout)?;
    Ok((chaining_values, tags))
}

/// Two MiB and a tag.
const STORED_SIDE_SEGMENT: usize = (1 << SIDE_SEGMENT_LOG2) + 16;
