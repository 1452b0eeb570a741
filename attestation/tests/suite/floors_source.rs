//! The readable source of a floors file, `src/floors/amd.toml`, for the tool that signs it and for
//! the test that compares the two.

use chrysalis_attestation::policy::{Abi, Floor, FloorTable};
use chrysalis_attestation::report::{Firmware, Product, Tcb};
use serde::Deserialize;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Source {
    version: u32,
    issued: u64,
    expires: u64,
    floor: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    product: String,
    fmc: Option<u8>,
    bootloader: u8,
    tee: u8,
    snp: u8,
    microcode: u8,
    firmware: [u8; 3],
    abi: [u8; 2],
    mitigations: u64,
}

/// What `text` says, or what is wrong with it.
pub(crate) fn read(text: &str) -> Result<FloorTable, String> {
    let source: Source = toml::from_str(text).map_err(|error| error.to_string())?;
    let floors = source.floor.iter().map(floor).collect::<Result<_, _>>()?;
    let Source { version, issued, expires, .. } = source;
    Ok(FloorTable { version, issued, expires, records: floors })
}

fn floor(entry: &Entry) -> Result<Floor, String> {
    let Entry { fmc, bootloader, tee, snp, microcode, mitigations, .. } = *entry;
    let product = match (entry.product.as_str(), fmc) {
        ("milan", None) => Product::Milan,
        ("genoa", None) => Product::Genoa,
        ("turin", Some(_)) => Product::Turin,
        (other, _) => {
            return Err(format!(
                "product = {other:?} is not \"milan\" or \"genoa\" without fmc, or \"turin\" with fmc"
            ));
        }
    };
    let [major, minor, build] = entry.firmware;
    let [abi_major, abi_minor] = entry.abi;
    Ok(Floor {
        product,
        tcb: Tcb { fmc, bootloader, tee, snp, microcode },
        firmware: Firmware { major, minor, build },
        abi: Abi { major: abi_major, minor: abi_minor },
        mitigations,
    })
}
