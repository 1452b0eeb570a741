//! The floors file: firmware below which no machine of a product is accepted, as signed data with a
//! date and an end. docs/formats.md, section 1.7; what is in the default one: `src/floors`.

use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use chrysalis_protocol::codec::{CodecError, Reader, Writer};
use thiserror::Error;

use super::file::hex;
use crate::report::{Firmware, Product, Tcb};

/// Who signs the floors file of this program: the Ed25519 key that belongs to `src/floors`.
///
/// A development key, until the project has one that is kept offline: see `src/floors/README.md`.
pub const FLOORS_SIGNER: [u8; 32] = *include_bytes!("../floors/signer.pub");

/// Why bytes are no floors file, or why it says nothing about a machine now.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
#[non_exhaustive]
pub enum FloorsError {
    /// Too short, too long, another magic, or a reserved byte that is not zero.
    #[error("the floors file: {0}")]
    Layout(#[from] CodecError),
    /// A field has a value that it cannot have.
    #[error("the floors file: {field} is {value}, {rule}")]
    Field {
        /// The field.
        field: &'static str,
        /// Its value.
        value: u64,
        /// What it has to be.
        rule: &'static str,
    },
    /// Signed by somebody else than the policy says.
    #[error("the floors file is signed by {}, not by {}", hex(found), hex(expected))]
    Signer {
        /// The key in the file.
        found: [u8; 32],
        /// The key that the policy, or this program, names.
        expected: [u8; 32],
    },
    /// The signature is not the signer's.
    #[error("the signer did not sign the floors file")]
    Signature,
    /// The caller's time is before the file's date, or after its end.
    #[error("the floors file, version {version}, holds from {issued} to {expires}, not at {now}")]
    Expired {
        /// Its number.
        version: u32,
        /// Its date, Unix time.
        issued: u64,
        /// Its last second, Unix time.
        expires: u64,
        /// The caller's time.
        now: u64,
    },
    /// An older file than the policy accepts.
    #[error("the floors file is version {found}, older than {minimum}")]
    Version {
        /// Its number.
        found: u32,
        /// The policy's `floors_minimum_version`.
        minimum: u32,
    },
    /// The file has no floor for the product.
    #[error("the floors file, version {version}, has none for {product}")]
    Product {
        /// Its number.
        version: u32,
        /// The product.
        product: Product,
    },
}

impl FloorsError {
    /// The stable name of this refusal.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Layout(_) | Self::Field { .. } => "floors.layout",
            Self::Signer { .. } => "floors.signer",
            Self::Signature => "floors.signature",
            Self::Expired { .. } => "floors.expired",
            Self::Version { .. } => "floors.version",
            Self::Product { .. } => "floors.product",
        }
    }
}

/// Version of the SNP firmware's interface, as a guest policy demands it. Ordered by major, minor.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Abi {
    /// Major version.
    pub major: u8,
    /// Minor version.
    pub minor: u8,
}

/// What a machine of one product has to have at least.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Floor {
    /// The product.
    pub product: Product,
    /// Patch levels; with `fmc` exactly for [`Product::Turin`].
    pub tcb: Tcb,
    /// Version and build of the SNP firmware.
    pub firmware: Firmware,
    /// Interface that the guest policy demands of the firmware.
    pub abi: Abi,
    /// Bits of the mitigation vectors that a report has to show, at launch and now.
    pub mitigations: u64,
}

/// What a floors file says.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct FloorTable {
    /// Number of the file, from 1, higher in each later one.
    pub version: u32,
    /// Its date, Unix time: it says nothing about earlier times.
    pub issued: u64,
    /// Its last second, Unix time.
    pub expires: u64,
    /// One floor for each product that is judged, in the order of [`Product`].
    pub floors: Vec<Floor>,
}

impl FloorTable {
    /// The file, signed by `key`.
    #[must_use]
    pub fn sign(&self, key: &Ed25519KeyPair) -> Vec<u8> {
        let mut out = Writer::new();
        out.bytes(MAGIC).u32(self.version).u32(self.floors.len() as u32);
        out.u64(self.issued).u64(self.expires).bytes(key.public_key().as_ref());
        for Floor { product, tcb, firmware, abi, mitigations } in &self.floors {
            out.u8(number(*product)).u8(tcb.fmc.unwrap_or(0)).u8(tcb.bootloader).u8(tcb.tee);
            out.u8(tcb.snp).u8(tcb.microcode);
            out.u8(firmware.major).u8(firmware.minor).u8(firmware.build);
            out.u8(abi.major).u8(abi.minor).zeros(5).u64(*mitigations);
        }
        let signature = key.sign(&message(out.as_slice()));
        out.bytes(signature.as_ref());
        out.into_bytes()
    }

    /// Reads what stands before the signature.
    fn parse(signed: &[u8]) -> Result<(Self, [u8; 32]), FloorsError> {
        let mut r = Reader::new(signed);
        r.magic(MAGIC)?;
        let version = r.u32()?;
        require(version != 0, "version", version.into(), "not 1 or higher")?;
        let count = r.u32()?;
        require((1..=3).contains(&count), "count", count.into(), "not 1 to 3")?;
        let (issued, expires) = (r.u64()?, r.u64()?);
        require(issued < expires, "expires", expires, "not after the file's date")?;
        let signer = r.array()?;
        let mut floors: Vec<Floor> = Vec::new();
        for _ in 0..count {
            let floor = floor(&mut r)?;
            let ascends = floors.last().is_none_or(|last| last.product < floor.product);
            require(ascends, "product", number(floor.product).into(), "not ascending")?;
            floors.push(floor);
        }
        r.finish()?;
        Ok((Self { version, issued, expires, floors }, signer))
    }
}

/// A floors file whose signature is good. [`Self::open`] is its only source; whether it holds now
/// is asked by [`Self::floor`].
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Floors {
    table: FloorTable,
    signer: [u8; 32],
}

impl Floors {
    /// Reads a file that `signer` has to have signed.
    ///
    /// # Errors
    /// [`FloorsError`] names the field, the key or the signature that is wrong.
    pub fn open(bytes: &[u8], signer: &[u8; 32]) -> Result<Self, FloorsError> {
        let short = CodecError::Short { needed: SIGNATURE_LEN, left: bytes.len() };
        let (signed, signature) = bytes.split_last_chunk::<SIGNATURE_LEN>().ok_or(short)?;
        let (table, found) = FloorTable::parse(signed)?;
        if found != *signer {
            return Err(FloorsError::Signer { found, expected: *signer });
        }
        UnparsedPublicKey::new(&ED25519, signer)
            .verify(&message(signed), signature)
            .map_err(|_| FloorsError::Signature)?;
        Ok(Self { table, signer: found })
    }

    /// The file in this program, signed by [`FLOORS_SIGNER`].
    ///
    /// # Errors
    /// [`FloorsError`] when this program is damaged.
    pub fn built_in() -> Result<Self, FloorsError> {
        Self::open(BUILT_IN, &FLOORS_SIGNER)
    }

    /// What the file says.
    #[must_use]
    pub const fn table(&self) -> &FloorTable {
        &self.table
    }

    /// Who signed it.
    #[must_use]
    pub const fn signer(&self) -> &[u8; 32] {
        &self.signer
    }

    /// The floor of `product` at Unix time `now`, by a file numbered `minimum_version` or higher.
    ///
    /// # Errors
    /// [`FloorsError::Expired`], [`FloorsError::Version`], [`FloorsError::Product`].
    pub fn floor(
        &self,
        product: Product,
        minimum_version: u32,
        now: u64,
    ) -> Result<&Floor, FloorsError> {
        let FloorTable { version, issued, expires, ref floors } = self.table;
        if now < issued || now > expires {
            return Err(FloorsError::Expired { version, issued, expires, now });
        }
        if version < minimum_version {
            return Err(FloorsError::Version { found: version, minimum: minimum_version });
        }
        let floor = floors.iter().find(|floor| floor.product == product);
        floor.ok_or(FloorsError::Product { version, product })
    }
}

fn floor(r: &mut Reader<'_>) -> Result<Floor, FloorsError> {
    let [product, fmc, bootloader, tee, snp, microcode] = r.array()?;
    let product = match product {
        1 => Product::Milan,
        2 => Product::Genoa,
        3 => Product::Turin,
        other => return Err(wrong("product", other.into(), "not 1 to 3")),
    };
    let has_fmc = product == Product::Turin;
    require(has_fmc || fmc == 0, "fmc", fmc.into(), "and the product has none")?;
    let [major, minor, build] = r.array()?;
    let [abi_major, abi_minor] = r.array()?;
    r.zeros(5)?;
    Ok(Floor {
        product,
        tcb: Tcb { fmc: has_fmc.then_some(fmc), bootloader, tee, snp, microcode },
        firmware: Firmware { major, minor, build },
        abi: Abi { major: abi_major, minor: abi_minor },
        mitigations: r.u64()?,
    })
}

const fn number(product: Product) -> u8 {
    match product {
        Product::Milan => 1,
        Product::Genoa => 2,
        Product::Turin => 3,
    }
}

fn message(signed: &[u8]) -> Vec<u8> {
    [b"chrysalis1 floors\0", signed].concat()
}

const fn wrong(field: &'static str, value: u64, rule: &'static str) -> FloorsError {
    FloorsError::Field { field, value, rule }
}

const fn require(
    holds: bool,
    field: &'static str,
    value: u64,
    rule: &'static str,
) -> Result<(), FloorsError> {
    if holds { Ok(()) } else { Err(wrong(field, value, rule)) }
}

const MAGIC: &[u8; 8] = b"CHRY-FL1";
const SIGNATURE_LEN: usize = 64;
const BUILT_IN: &[u8] = include_bytes!("../floors/amd.floors");
