//! The part of a policy file that says which machines are trusted: `platform` and the keys that go
//! with each choice.

use super::file::{Out, PolicyError, from_hex, hex, quoted, required, value};
use super::snp_file::{ReadFile, from_file};
use super::{PlatformTrust, Registry, RegistryTrust};
use crate::verifier::HardwareId;

/// The keys as they are written.
pub(super) struct TrustKeys {
    pub(super) platform: Option<String>,
    pub(super) chip_ids: Option<Vec<String>>,
    pub(super) registry: Option<String>,
    pub(super) registry_signer: Option<String>,
    pub(super) registry_minimum_version: Option<u32>,
}

impl TrustKeys {
    pub(super) fn check(self, read: ReadFile<'_>) -> Result<PlatformTrust, PolicyError> {
        let platform = required(self.platform.clone(), "platform", PLATFORM)?;
        if !matches!(platform.as_str(), "pinned" | "registry" | "any-genuine") {
            let choices = "\"pinned\", \"registry\" or \"any-genuine\"";
            return Err(value("platform", &platform, choices));
        }
        let keys = [
            ("chip_ids", "pinned", self.chip_ids.is_some()),
            ("registry", "registry", self.registry.is_some()),
            ("registry_signer", "registry", self.registry_signer.is_some()),
            ("registry_minimum_version", "registry", self.registry_minimum_version.is_some()),
        ];
        if let Some((key, of, _)) = keys.into_iter().find(|(_, of, is)| *is && *of != platform) {
            return Err(PolicyError::Platform { key, of, platform });
        }
        match platform.as_str() {
            "pinned" => Ok(PlatformTrust::Pinned(machines(self.chip_ids)?)),
            "registry" => self.registry(read).map(PlatformTrust::Registry),
            _ => Ok(PlatformTrust::AnyGenuine),
        }
    }

    fn registry(self, read: ReadFile<'_>) -> Result<RegistryTrust, PolicyError> {
        let path = required(self.registry, "registry", REGISTRY)?;
        let signer = required(self.registry_signer, "registry_signer", SIGNER)?;
        let signer = from_hex("registry_signer", &signer)?;
        let open = |bytes: &[u8]| Registry::open(bytes, &signer).map_err(|error| error.to_string());
        Ok(RegistryTrust {
            file: from_file("registry", path, read, open)?,
            minimum_version: self.registry_minimum_version.unwrap_or(0),
        })
    }
}

/// `CHIP_ID`s and PPIDs; their lengths tell them apart.
fn machines(chip_ids: Option<Vec<String>>) -> Result<Vec<HardwareId>, PolicyError> {
    let ids = required(chip_ids, "chip_ids", CHIP_IDS)?;
    if ids.is_empty() {
        return Err(PolicyError::Empty { key: "chip_ids", write: CHIP_IDS });
    }
    let id = |text: &String| {
        let id = match text.len() {
            32 => from_hex("chip_ids", text).map(HardwareId::Ppid)?,
            _ => from_hex("chip_ids", text).map(HardwareId::Chip)?,
        };
        let zeros = || value("chip_ids", text, "of one machine: all that hide theirs report zeros");
        id.is_one().then_some(id).ok_or_else(zeros)
    };
    ids.iter().map(id).collect()
}

impl PlatformTrust {
    pub(super) fn write(&self, out: &mut Out) {
        out.say("# \"pinned\": only the chips in chip_ids. \"registry\": those that a signed file lists.");
        out.say("# \"any-genuine\": any chip of the vendor, also one whose holder reads its memory bus,");
        out.say("# which no check can find.");
        match self {
            Self::AnyGenuine => out.key("platform", quoted("any-genuine")),
            Self::Registry(RegistryTrust { file, minimum_version }) => {
                out.key("platform", quoted("registry"));
                out.key("registry", quoted(&file.path));
                out.say("# The Ed25519 key that has to have signed it.");
                out.key("registry_signer", quoted(&hex(file.value.signer())));
                out.say("# Files with a lower number are refused; so are all whose end has come.");
                out.key("registry_minimum_version", minimum_version);
            }
            Self::Pinned(chips) => {
                out.key("platform", quoted("pinned"));
                let ids: String =
                    chips.iter().map(|id| format!("    \"{}\",\n", hex(id.as_bytes()))).collect();
                out.key("chip_ids", format_args!("[\n{ids}]"));
            }
        }
    }
}

const PLATFORM: &str = "platform = \"pinned\" with chip_ids, platform = \"registry\" with registry \
    and registry_signer, or platform = \"any-genuine\"";
const CHIP_IDS: &str =
    "chip_ids = [\"<128 hexadecimal digits>\"] (SEV-SNP), or 32 digits (the PPID, TDX)";
const REGISTRY: &str = "registry = \"<path of a signed registry>\"";
const SIGNER: &str = "registry_signer = \"<64 hexadecimal digits>\", the Ed25519 key that signs it";
