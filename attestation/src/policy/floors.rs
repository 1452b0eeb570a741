//! The floors file: firmware below which no machine of a product is accepted, as a signed file with
//! a date and an end. docs/formats.md, section 1.7; what is in the default one: `src/floors`.

use chrysalis_protocol::codec::{Reader, Writer};
use thiserror::Error;

use super::signed_file::{
    FileKind, SignedFile, SignedFileError, SignedRecord, Table, layout, require,
};
use crate::report::{Firmware, Product, Tcb};

/// Who signs the floors file of this program: the Ed25519 key that belongs to `src/floors`.
///
/// A development key, until the project has one that is kept offline: see `src/floors/README.md`.
pub const FLOORS_SIGNER: [u8; 32] = *include_bytes!("../floors/signer.pub");

/// What a floors file says; records are in the order of [`Product`].
pub type FloorTable = Table<Floor>;

/// A floors file whose signature is good.
pub type Floors = SignedFile<Floor>;

/// Why a floors file says nothing about a machine now.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
#[non_exhaustive]
pub enum FloorsError {
    /// The file is not one, or not for this time.
    #[error(transparent)]
    File(#[from] SignedFileError),
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
            Self::File(error) => error.code(),
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

impl SignedRecord for Floor {
    const FILE: FileKind = FileKind::Floors;
    const COUNT_MAX: u32 = 3;

    fn write(&self, out: &mut Writer) {
        let Self { product, tcb, firmware, abi, mitigations } = self;
        out.u8(number(*product)).u8(tcb.fmc.unwrap_or(0)).u8(tcb.bootloader).u8(tcb.tee);
        out.u8(tcb.snp).u8(tcb.microcode);
        out.u8(firmware.major).u8(firmware.minor).u8(firmware.build);
        out.u8(abi.major).u8(abi.minor).zeros(5).u64(*mitigations);
    }

    fn read(r: &mut Reader<'_>) -> Result<Self, SignedFileError> {
        let [kind, fmc, bootloader, tee, snp, microcode] = r.array().map_err(layout::<Self>)?;
        let product = match kind {
            1 => Product::Milan,
            3 => Product::Turin,
            _ => {
                require(Self::FILE, kind == 2, "product", kind.into(), "not 1 to 3")?;
                Product::Genoa
            }
        };
        let has_fmc = product == Product::Turin;
        let fmc_fits = has_fmc || fmc == 0;
        require(Self::FILE, fmc_fits, "fmc", fmc.into(), "and the product has none")?;
        let [major, minor, build] = r.array().map_err(layout::<Self>)?;
        let [abi_major, abi_minor] = r.array().map_err(layout::<Self>)?;
        r.zeros(5).map_err(layout::<Self>)?;
        Ok(Self {
            product,
            tcb: Tcb { fmc: has_fmc.then_some(fmc), bootloader, tee, snp, microcode },
            firmware: Firmware { major, minor, build },
            abi: Abi { major: abi_major, minor: abi_minor },
            mitigations: r.u64().map_err(layout::<Self>)?,
        })
    }

    fn after(&self, last: &Self) -> Result<(), (&'static str, u64)> {
        if last.product < self.product {
            return Ok(());
        }
        Err(("product", number(self.product).into()))
    }
}

impl Floors {
    /// The file in this program, signed by [`FLOORS_SIGNER`].
    ///
    /// # Errors
    /// [`SignedFileError`] when this program is damaged.
    pub fn built_in() -> Result<Self, SignedFileError> {
        Self::open(BUILT_IN, &FLOORS_SIGNER)
    }

    /// The floor of `product` at Unix time `now`, by a file numbered `minimum_version` or higher.
    ///
    /// # Errors
    /// [`FloorsError`]: the file does not hold now, is too old, or does not speak of the product.
    pub fn floor(
        &self,
        product: Product,
        minimum_version: u32,
        now: u64,
    ) -> Result<&Floor, FloorsError> {
        self.holds(minimum_version, now)?;
        let FloorTable { version, ref records, .. } = *self.table();
        let floor = records.iter().find(|floor| floor.product == product);
        floor.ok_or(FloorsError::Product { version, product })
    }
}

const fn number(product: Product) -> u8 {
    match product {
        Product::Milan => 1,
        Product::Genoa => 2,
        Product::Turin => 3,
    }
}

const BUILT_IN: &[u8] = include_bytes!("../floors/amd.floors");
