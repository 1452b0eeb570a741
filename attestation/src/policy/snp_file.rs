//! The part of a policy file that is about SEV-SNP machines: the table `[snp]`, the floors in
//! `[[tcb_floor]]`, and the two older keys beside them. All of it is optional, and stricter.

use serde::Deserialize;

use super::file::{Out, PolicyError, digests, from_hex, hex, quoted, value};
use super::{FLOORS_SIGNER, Floors, FromFile, SnpDemand};
use crate::report::{Product, Tcb};
use crate::verifier::RevocationList;

/// Reads a file that a policy names.
pub(super) type ReadFile<'a> = &'a mut dyn FnMut(&str) -> Result<Vec<u8>, String>;

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct SnpFile {
    floors: Option<String>,
    floors_signer: Option<String>,
    floors_minimum_version: u32,
    revocation_lists: Vec<String>,
    require_revocation_list: bool,
    require_tio: bool,
    vmpl: u32,
    id_key_digests: Vec<String>,
    author_key_digests: Vec<String>,
    minimum_guest_svn: u32,
    family_ids: Vec<String>,
    image_ids: Vec<String>,
}

impl SnpFile {
    pub(super) fn check(
        self,
        tcb_floors: Vec<TcbFloor>,
        required_mitigations: u64,
        loaned_key_providers: Vec<String>,
        read: ReadFile<'_>,
    ) -> Result<SnpDemand, PolicyError> {
        if self.vmpl > 3 {
            return Err(value("snp.vmpl", &self.vmpl.to_string(), "0 to 3"));
        }
        let lists = self.revocation_lists.into_iter().map(|path| {
            from_file("snp.revocation_lists", path, read, |bytes| {
                RevocationList::open(bytes).map_err(|error| error.to_string())
            })
        });
        let revocation_lists = lists.collect::<Result<_, _>>()?;
        Ok(SnpDemand {
            floors: floors(self.floors, self.floors_signer, read)?,
            floors_minimum_version: self.floors_minimum_version,
            tcb_floors: tcb_floors.into_iter().map(TcbFloor::check).collect::<Result<_, _>>()?,
            required_mitigations,
            loaned_key_providers,
            revocation_lists,
            require_revocation_list: self.require_revocation_list,
            require_tio: self.require_tio,
            vmpl: self.vmpl,
            id_key_digests: digests("snp.id_key_digests", &self.id_key_digests)?,
            author_key_digests: digests("snp.author_key_digests", &self.author_key_digests)?,
            minimum_guest_svn: self.minimum_guest_svn,
            family_ids: digests("snp.family_ids", &self.family_ids)?,
            image_ids: digests("snp.image_ids", &self.image_ids)?,
        })
    }
}

fn floors(
    path: Option<String>,
    signer: Option<String>,
    read: ReadFile<'_>,
) -> Result<Option<FromFile<Floors>>, PolicyError> {
    let signer = match (&path, signer) {
        (Some(_), Some(text)) => from_hex("snp.floors_signer", &text)?,
        (_, None) => FLOORS_SIGNER,
        (None, Some(text)) => {
            return Err(value("snp.floors_signer", &text, "of use without the key floors"));
        }
    };
    let open = |bytes: &[u8]| Floors::open(bytes, &signer).map_err(|error| error.to_string());
    path.map(|path| from_file("snp.floors", path, read, open)).transpose()
}

pub(super) fn from_file<T>(
    key: &'static str,
    path: String,
    read: ReadFile<'_>,
    open: impl FnOnce(&[u8]) -> Result<T, String>,
) -> Result<FromFile<T>, PolicyError> {
    match read(&path).and_then(|bytes| open(&bytes)) {
        Ok(value) => Ok(FromFile { path, value }),
        Err(reason) => Err(PolicyError::File { key, path, reason }),
    }
}

impl SnpDemand {
    pub(super) fn write_options(&self, out: &mut Out) {
        out.say("# Optional, and stricter: mitigation bits that a version 5 report must show.");
        out.key("required_mitigations", self.required_mitigations);
        out.say(
            "# Optional: cloud providers whose loaned keys (VLEK) stand in for the chip's own.",
        );
        out.names("loaned_key_providers", &self.loaned_key_providers);
    }

    pub(super) fn write_table(&self, out: &mut Out) {
        out.say("\n# SEV-SNP machines. All of it is optional, and stricter than the rules that always hold.");
        out.say("[snp]");
        out.say(
            "# Signed floors of firmware; without this key, those of the program that verifies.",
        );
        match &self.floors {
            Some(floors) => {
                out.key("floors", quoted(&floors.path));
                out.say("# The Ed25519 key that has to have signed them.");
                out.key("floors_signer", quoted(&hex(floors.value.signer())));
            }
            None => out.say("# floors = \"amd.floors\""),
        }
        out.say("# Floors with a lower number are refused; so are all whose end has come.");
        out.key("floors_minimum_version", self.floors_minimum_version);
        out.say("# AMD's lists of revoked issuers (CRL, DER). One that is here has to be in date.");
        let paths: Vec<String> =
            self.revocation_lists.iter().map(|list| list.path.clone()).collect();
        out.names("revocation_lists", &paths);
        out.key("require_revocation_list", self.require_revocation_list);
        out.say("# Trusted I/O has to be on.");
        out.key("require_tio", self.require_tio);
        out.say(
            "# Who asks for reports: 0, or the level that a measured SVSM leaves to the guest.",
        );
        out.key("vmpl", self.vmpl);
        out.say("# The guest's ID block: SHA-384 of its keys, versions and names; none is demanded by an empty list.");
        out.list("id_key_digests", &self.id_key_digests);
        out.list("author_key_digests", &self.author_key_digests);
        out.key("minimum_guest_svn", self.minimum_guest_svn);
        out.list("family_ids", &self.family_ids);
        out.list("image_ids", &self.image_ids);
    }

    pub(super) fn write_floors(&self, out: &mut Out) {
        for (product, tcb) in &self.tcb_floors {
            out.say("\n# Patch levels, beyond the floors file.\n[[tcb_floor]]");
            out.key("product", quoted(&product.name().to_lowercase()));
            if let Some(fmc) = tcb.fmc {
                out.key("fmc", fmc);
            }
            out.key("bootloader", tcb.bootloader);
            out.key("tee", tcb.tee);
            out.key("snp", tcb.snp);
            out.key("microcode", tcb.microcode);
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TcbFloor {
    product: String,
    fmc: Option<u8>,
    bootloader: u8,
    tee: u8,
    snp: u8,
    microcode: u8,
}

impl TcbFloor {
    fn check(self) -> Result<(Product, Tcb), PolicyError> {
        let Self { product, fmc, bootloader, tee, snp, microcode } = self;
        let product = match (product.as_str(), fmc) {
            ("milan", None) => Product::Milan,
            ("genoa", None) => Product::Genoa,
            ("turin", Some(_)) => Product::Turin,
            (other, _) => {
                let expected = "\"milan\" or \"genoa\" without fmc, or \"turin\" with fmc";
                return Err(value("tcb_floor.product", other, expected));
            }
        };
        Ok((product, Tcb { fmc, bootloader, tee, snp, microcode }))
    }
}
