//! The packages as their licences stand now. Whoever judges looks here; the one thread that writes the store puts what it
//! changed here, before it says that it did.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use super::licence::{Licensed, Spent};
use super::record::LicenceRecord;
use super::refusal::Refusal;

/// Packages by their ids.
pub type ById = HashMap<[u8; 16], Package>;

/// One package of the store.
#[derive(Clone, Debug)]
pub struct Package {
    /// Its licence, key and state.
    pub record: LicenceRecord,
    /// The licence, read.
    pub licensed: Arc<Licensed>,
    /// The highest floor that its line of models ever had.
    pub floor: u32,
    /// What was spent when it was read.
    pub spent: Spent,
}

/// All packages, shared.
#[derive(Clone, Debug, Default)]
pub struct Packages(Arc<RwLock<Arc<ById>>>);

impl Packages {
    /// As they are now.
    pub fn now(&self) -> Arc<ById> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Puts others in their place.
    pub fn put(&self, packages: ById) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(packages);
    }
}

impl Package {
    /// Whether the licence was neither taken back nor is over.
    ///
    /// # Errors
    /// [`Refusal::Revoked`], [`Refusal::Expired`].
    pub fn check_standing(&self, now: u64) -> Result<(), Refusal> {
        if self.record.revoked {
            return Err(Refusal::Revoked);
        }
        self.licensed.licence.check_time(now)
    }
}

/// A package of the store.
///
/// # Errors
/// [`Refusal::PackageUnknown`].
pub fn find<'a>(packages: &'a ById, package_id: &[u8; 16]) -> Result<&'a Package, Refusal> {
    let package_id = *package_id;
    packages.get(&package_id).ok_or(Refusal::PackageUnknown { package_id })
}
