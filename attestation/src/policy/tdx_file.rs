//! The table `[tdx]` of an appraisal policy. Without it, TDX is not accepted.

use serde::Deserialize;

use super::file::{Out, from_hex, hex, list, quoted, required, value};
use super::tdx::XFAM_DEFAULT;
use super::{PolicyError, Rtmr3, TdxDemand};
use crate::verifier::TdxPlatformDemand;

/// The table as it is written; what is required is checked afterwards, with better words.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TdxFile {
    rtmr0: Option<Vec<String>>,
    rtmr1: Option<Vec<String>>,
    rtmr2: Option<Vec<String>>,
    rtmr3: Option<Vec<String>>,
    #[serde(default)]
    mr_seam: Vec<String>,
    mr_signer_seam: Option<String>,
    mr_owner: Option<String>,
    mr_owner_config: Option<String>,
    xfam_allowed: Option<u64>,
    #[serde(default)]
    minimum_tcb_evaluation: u32,
    #[serde(default)]
    allow_sw_hardening_needed: bool,
    #[serde(default)]
    allow_dynamic_platform: bool,
    #[serde(default)]
    allow_cached_keys: bool,
}

impl TdxFile {
    pub(super) fn check(self) -> Result<TdxDemand, PolicyError> {
        let rtmr3 = required(self.rtmr3, "tdx.rtmr3", RTMR3)?;
        if rtmr3.is_empty() {
            return Err(PolicyError::Empty { key: "tdx.rtmr3", write: RTMR3 });
        }
        let rtmr3 = rtmr3.iter().map(|text| match text.as_str() {
            "package" => Ok(Rtmr3::Package),
            digits => from_hex("tdx.rtmr3", digits).map(Rtmr3::Value),
        });
        let register = |key, text: Option<String>| {
            text.map_or(Ok([0; 48]), |digits| from_hex::<48>(key, &digits))
        };
        let xfam_allowed = self.xfam_allowed.unwrap_or(XFAM_DEFAULT);
        if i64::try_from(xfam_allowed).is_err() {
            let found = xfam_allowed.to_string();
            return Err(value("tdx.xfam_allowed", &found, "a mask of 63 bits"));
        }
        Ok(TdxDemand {
            machine: TdxPlatformDemand {
                allow_sw_hardening_needed: self.allow_sw_hardening_needed,
                // `dangerous_allow_smt` of the whole policy says it.
                allow_smt: false,
                allow_dynamic_platform: self.allow_dynamic_platform,
                allow_cached_keys: self.allow_cached_keys,
                minimum_tcb_evaluation: self.minimum_tcb_evaluation,
            },
            rtmr0: list(self.rtmr0, "tdx.rtmr0", "rtmr0 = [\"<96 hexadecimal digits>\"]")?,
            rtmr1: list(self.rtmr1, "tdx.rtmr1", "rtmr1 = [\"<96 hexadecimal digits>\"]")?,
            rtmr2: list(self.rtmr2, "tdx.rtmr2", "rtmr2 = [\"<96 hexadecimal digits>\"]")?,
            rtmr3: rtmr3.collect::<Result<_, _>>()?,
            mr_seam: self
                .mr_seam
                .iter()
                .map(|digits| from_hex("tdx.mr_seam", digits))
                .collect::<Result<_, _>>()?,
            mr_signer_seam: register("tdx.mr_signer_seam", self.mr_signer_seam)?,
            mr_owner: register("tdx.mr_owner", self.mr_owner)?,
            mr_owner_config: register("tdx.mr_owner_config", self.mr_owner_config)?,
            xfam_allowed,
            dangerous_root: None,
        })
    }
}

impl TdxDemand {
    /// Without [`Self::dangerous_root`], which no file has.
    pub(super) fn write(&self, out: &mut Out) {
        out.say("# Intel TDX; measurements above are its MRTDs too. Without this table none is accepted.");
        out.say("[tdx]");
        out.list("rtmr0", &self.rtmr0);
        out.list("rtmr1", &self.rtmr1);
        out.list("rtmr2", &self.rtmr2);
        out.say("# \"package\": extended once, with the digest of the package that is served.");
        let values: Vec<_> = self.rtmr3.iter().map(|value| quoted(&name(value))).collect();
        out.key("rtmr3", format_args!("[{}]", values.join(", ")));
        out.say("# TDX modules that are accepted; none: any that Intel calls up to date.");
        out.list("mr_seam", &self.mr_seam);
        out.key("mr_signer_seam", quoted(&hex(&self.mr_signer_seam)));
        out.key("mr_owner", quoted(&hex(&self.mr_owner)));
        out.key("mr_owner_config", quoted(&hex(&self.mr_owner_config)));
        out.say("# Extended CPU features that a guest may have.");
        out.key("xfam_allowed", format_args!("{:#x}", self.xfam_allowed));
        out.say("# The oldest collateral of Intel's that is accepted, by its evaluation number.");
        out.key("minimum_tcb_evaluation", self.machine.minimum_tcb_evaluation);
        out.say("# Each of these accepts a machine that is not simply up to date and closed.");
        out.key("allow_sw_hardening_needed", self.machine.allow_sw_hardening_needed);
        out.key("allow_dynamic_platform", self.machine.allow_dynamic_platform);
        out.key("allow_cached_keys", self.machine.allow_cached_keys);
    }
}

fn name(value: &Rtmr3) -> String {
    match value {
        Rtmr3::Package => "package".to_owned(),
        Rtmr3::Value(value) => hex(value),
    }
}

const RTMR3: &str = "rtmr3 = [\"package\"], or [\"<96 hexadecimal digits>\"]";
