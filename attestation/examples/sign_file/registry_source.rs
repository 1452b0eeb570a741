//! The readable source of a platform registry: `version`, `issued`, `expires` (Unix time), and for
//! each machine a `[[platform]]` with its `chip_id` (SEV-SNP) or `ppid` (TDX).

use chrysalis_attestation::policy::RegistryTable;
use chrysalis_attestation::verifier::HardwareId;
use serde::Deserialize;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Source {
    version: u32,
    issued: u64,
    expires: u64,
    platform: Vec<Platform>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Platform {
    chip_id: Option<String>,
    ppid: Option<String>,
}

/// What `text` says, in the order of a file, or what is wrong with it.
pub(crate) fn read(text: &str) -> Result<RegistryTable, String> {
    let source: Source = toml::from_str(text).map_err(|error| error.to_string())?;
    let mut records = source.platform.iter().map(id).collect::<Result<Vec<_>, _>>()?;
    records.sort_by_key(|id| (matches!(id, HardwareId::Ppid(_)), id.as_bytes().to_vec()));
    let Source { version, issued, expires, .. } = source;
    Ok(RegistryTable { version, issued, expires, records })
}

/// The source of a registry.
pub(crate) fn write(table: &RegistryTable) -> String {
    let RegistryTable { version, issued, expires, records } = table;
    let head = format!("version = {version}\nissued = {issued}\nexpires = {expires}\n");
    records.iter().fold(head, |text, id| {
        let key = if matches!(id, HardwareId::Ppid(_)) { "ppid" } else { "chip_id" };
        format!("{text}\n[[platform]]\n{key} = \"{}\"\n", crate::hex(id.as_bytes()))
    })
}

fn id(platform: &Platform) -> Result<HardwareId, String> {
    match (&platform.chip_id, &platform.ppid) {
        (Some(text), None) => bytes(text).map(HardwareId::Chip),
        (None, Some(text)) => bytes(text).map(HardwareId::Ppid),
        _ => Err("a platform has either chip_id or ppid".to_owned()),
    }
}

fn bytes<const N: usize>(text: &str) -> Result<[u8; N], String> {
    let wrong = || format!("{text:?} is not {} hexadecimal digits", 2 * N);
    if text.len() != 2 * N || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(wrong());
    }
    let pairs = (0..N).map(|at| u8::from_str_radix(&text[2 * at..2 * at + 2], 16));
    let bytes = pairs.collect::<Result<Vec<_>, _>>().map_err(|_| wrong())?;
    bytes.try_into().map_err(|_| wrong())
}
