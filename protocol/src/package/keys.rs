//! Keys, nonces and digests of a package (docs/formats.md, section 2).

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::{digest, hkdf};
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use super::error::PackageError;
use super::header::Header;
use crate::codec::Writer;
use crate::secret::Secret;

/// The key MK that seals a package. Key release carries it; every other key comes from it.
#[derive(Clone)]
#[expect(missing_debug_implementations, reason = "a key is never printed")]
pub struct PackageKey(Secret<32>);

impl PackageKey {
    /// The key with these bytes.
    #[must_use]
    pub const fn new(bytes: Secret<32>) -> Self {
        Self(bytes)
    }

    /// The bytes themselves, for key release and the owner's key file.
    #[must_use]
    pub const fn expose(&self) -> &[u8; 32] {
        self.0.expose()
    }

    /// Whether a sealed package's header commits to this key. An open package commits to none.
    #[must_use]
    pub fn fits(&self, header: &Header) -> bool {
        KeySchedule::key_commit(&KeySchedule::prk(self, &header.package_id))
            .is_ok_and(|commit| header.sealed && commit.ct_eq(&header.key_commit).into())
    }
}

/// The model's identity, the same sealed or not: SHA-384 over `"chrysalis1 content\0" || hash ||
/// meta_len || data_len || meta_root || data_root`.
#[must_use]
pub fn content_digest(header: &Header) -> [u8; 48] {
    let mut input = Writer::new();
    input.bytes(b"chrysalis1 content\0").u16(1).u64(header.meta_len).u64(header.data_len);
    input.bytes(&header.meta_root).bytes(&header.data_root);
    sha384(input.as_slice())
}

/// The package's identity: SHA-384 over `"chrysalis1 package\0" || header`.
#[must_use]
pub fn package_digest(header: &Header) -> [u8; 48] {
    let mut input = Writer::new();
    input.bytes(b"chrysalis1 package\0").bytes(&header.to_bytes());
    sha384(input.as_slice())
}

/// What the publisher signs: `"chrysalis1 pkgsig\0" || package_digest`.
pub(super) fn signed_message(package_digest: &[u8; 48]) -> Vec<u8> {
    let mut message = Writer::new();
    message.bytes(b"chrysalis1 pkgsig\0").bytes(package_digest);
    message.into_bytes()
}

/// Which of a package's three streams a segment belongs to.
#[derive(Clone, Copy)]
#[repr(u32)]
pub(super) enum Domain {
    Data = 1,
    Table = 2,
    Meta = 3,
}

/// Where a segment stands; nonce and associated data bind it there.
#[derive(Clone, Copy)]
pub(super) struct Position {
    pub(super) domain: Domain,
    pub(super) index: u64,
    pub(super) last: bool,
}

/// Every key of one package, made once from MK.
pub(super) struct KeySchedule {
    package_id: [u8; 16],
    data: Vec<LessSafeKey>,
    table: LessSafeKey,
    meta: LessSafeKey,
    commit: [u8; 32],
}

impl KeySchedule {
    /// Derives all keys of a package with `blobs` blobs (at most 1,024).
    pub(super) fn new(
        key: &PackageKey,
        package_id: &[u8; 16],
        blobs: u64,
    ) -> Result<Self, PackageError> {
        let prk = Self::prk(key, package_id);
        let blobs = u32::try_from(blobs).unwrap_or(u32::MAX);
        let data = (0..blobs)
            .map(|blob| cipher(&prk, &[b"chrysalis1 data", &blob.to_be_bytes()]))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            package_id: *package_id,
            data,
            table: cipher(&prk, &[b"chrysalis1 table"])?,
            meta: cipher(&prk, &[b"chrysalis1 meta"])?,
            commit: Self::key_commit(&prk)?,
        })
    }

    /// What the header says about the key.
    pub(super) const fn commit(&self) -> &[u8; 32] {
        &self.commit
    }

    /// Seals a segment in place and returns its tag. `blob` counts for data only.
    pub(super) fn seal(
        &self,
        blob: u32,
        position: Position,
        bytes: &mut [u8],
    ) -> Result<[u8; 16], PackageError> {
        let failed = || PackageError::Crypto { step: "sealing a segment" };
        let key = self.key(position.domain, blob).ok_or_else(failed)?;
        let aad = self.aad(position, bytes.len());
        let tag = key
            .seal_in_place_separate_tag(position.nonce(), Aad::from(aad), bytes)
            .map_err(|_| failed())?;
        tag.as_ref().try_into().map_err(|_| failed())
    }

    /// Opens a segment in place; false when it was not sealed with this key for this place. Then
    /// the bytes are of no use to anybody.
    pub(super) fn open(
        &self,
        blob: u32,
        position: Position,
        tag: &[u8; 16],
        bytes: &mut [u8],
    ) -> bool {
        let aad = Aad::from(self.aad(position, bytes.len()));
        self.key(position.domain, blob).is_some_and(|key| {
            key.open_in_place_separate_tag(position.nonce(), aad, tag, bytes).is_ok()
        })
    }

    fn key(&self, domain: Domain, blob: u32) -> Option<&LessSafeKey> {
        match domain {
            Domain::Data => usize::try_from(blob).ok().and_then(|blob| self.data.get(blob)),
            Domain::Table => Some(&self.table),
            Domain::Meta => Some(&self.meta),
        }
    }

    /// `"chrysalis1 seg\0" || package_id || u32 d || u64 i || u32 len || u8 last`.
    fn aad(&self, position: Position, len: usize) -> [u8; 48] {
        let mut aad = Writer::with_capacity(48);
        aad.bytes(b"chrysalis1 seg\0").bytes(&self.package_id);
        aad.u32(position.domain as u32).u64(position.index);
        // No segment is longer than 4 MiB.
        aad.u32(u32::try_from(len).unwrap_or(u32::MAX)).u8(position.last.into());
        aad.into_array()
    }

    fn prk(key: &PackageKey, package_id: &[u8; 16]) -> hkdf::Prk {
        hkdf::Salt::new(hkdf::HKDF_SHA256, package_id).extract(key.expose())
    }

    fn key_commit(prk: &hkdf::Prk) -> Result<[u8; 32], PackageError> {
        let mut commit = [0; 32];
        expand(prk, &[b"chrysalis1 key commit"], &mut commit)?;
        Ok(commit)
    }
}

impl Position {
    /// `u32 d || u64 i`: unique for a key, because a changed package takes a new `package_id`.
    fn nonce(self) -> Nonce {
        let mut nonce = Writer::with_capacity(12);
        nonce.u32(self.domain as u32).u64(self.index);
        Nonce::assume_unique_for_key(nonce.into_array())
    }
}

fn cipher(prk: &hkdf::Prk, info: &[&[u8]]) -> Result<LessSafeKey, PackageError> {
    let mut key = Zeroizing::new([0; 32]);
    expand(prk, info, &mut key)?;
    UnboundKey::new(&AES_256_GCM, key.as_slice())
        .map(LessSafeKey::new)
        .map_err(|_| PackageError::Crypto { step: "making an AES-256-GCM key" })
}

fn expand(prk: &hkdf::Prk, info: &[&[u8]], out: &mut [u8; 32]) -> Result<(), PackageError> {
    prk.expand(info, hkdf::HKDF_SHA256)
        .and_then(|okm| okm.fill(out))
        .map_err(|_| PackageError::Crypto { step: "expanding a key" })
}

fn sha384(input: &[u8]) -> [u8; 48] {
    let mut out = [0; 48];
    for (to, from) in out.iter_mut().zip(digest::digest(&digest::SHA384, input).as_ref()) {
        *to = *from;
    }
    out
}
