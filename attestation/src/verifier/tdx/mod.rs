//! Is this TDX quote authentic, and does Intel call its platform up to date? docs/threat-model.md,
//! section 4, "TDX".
//!
//! Signatures, certificates, revocation and patch levels are `dcap-qvl`'s matter. Around it stands
//! what it leaves open: one encoding of a quote, named refusals, and what its strict policy asks.

mod collateral;
mod crypto;

use chrysalis_protocol::tdx_collateral::{TdxCollateral, TdxCollateralError};
use dcap_qvl::verify::QuoteVerifier;
use dcap_qvl::{PckCertFlag, Policy, QuoteClaims, QuotePolicy, TcbStatus};
use serde::Deserialize;
use thiserror::Error;

use collateral::into_qvl;
pub use collateral::{CollateralError, tdx_collateral_from_json};
use crypto::AwsLc;

use super::pem;
use crate::quote::{Quote, QuoteError, TdReport, td_attributes};

/// Why a quote is not authentic, or its platform not up to date.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
#[non_exhaustive]
pub enum TdxError {
    /// The quote is not well formed.
    #[error(transparent)]
    Quote(#[from] QuoteError),
    /// The collateral is not well formed.
    #[error(transparent)]
    Collateral(#[from] TdxCollateralError),
    /// Attributes that no guest may have, whatever a policy says.
    #[error("td_attributes are {value:#x}: {rule}")]
    Attributes {
        /// The stable name of the refusal.
        code: &'static str,
        /// What is demanded.
        rule: &'static str,
        /// The attributes.
        value: u64,
    },
    /// The chain in the quote is not three certificates in PEM that end in the root.
    #[error("the quote's certificate chain is not PEM of three certificates up to the root")]
    Chain,
    /// Collateral or certificates are of another time than the caller's.
    #[error("not valid at this time: {reason}")]
    Time {
        /// What is not.
        reason: String,
    },
    /// A signature, a certificate or a binding between them is wrong.
    #[error("not authentic: {reason}")]
    Authenticity {
        /// What is wrong.
        reason: String,
    },
    /// The platform's id is not one.
    #[error("the certificate's PPID has {len} bytes, not 16")]
    Ppid {
        /// Its length.
        len: usize,
    },
    /// Intel does not call the platform up to date.
    #[error("the platform is not up to date by Intel's word: {found}{}", listed(.advisories))]
    TcbStatus {
        /// The word.
        found: String,
        /// Intel's advisories about it.
        advisories: Vec<String>,
    },
    /// The collateral is older than the policy wants.
    #[error("the collateral is of evaluation {found}, before {minimum}")]
    Evaluation {
        /// Its `tcbEvaluationDataNumber`.
        found: u32,
        /// The policy's minimum.
        minimum: u32,
    },
    /// The platform is configured in a way that the policy does not accept, or does not say how.
    #[error("the platform's certificate {says} {flag}")]
    Configuration {
        /// The stable name of the refusal.
        code: &'static str,
        /// `says that`, or `does not say whether`.
        says: &'static str,
        /// What, and which key of the policy accepts it.
        flag: &'static str,
    },
    /// Something else that the strict policy of `dcap-qvl` asks for.
    #[error("the strict policy: {reason}")]
    Strict {
        /// What.
        reason: String,
    },
}

impl TdxError {
    /// The stable name of this refusal.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Quote(error) => error.code(),
            Self::Collateral(_) => "tdx.collateral",
            Self::Attributes { code, .. } | Self::Configuration { code, .. } => code,
            Self::Chain => "tdx.certificate_chain",
            Self::Time { .. } => "tdx.time",
            Self::Authenticity { .. } => "tdx.authenticity",
            Self::Ppid { .. } => "tdx.ppid",
            Self::TcbStatus { .. } => "tdx.tcb_status",
            Self::Evaluation { .. } => "tdx.tcb_evaluation",
            Self::Strict { .. } => "tdx.strict",
        }
    }
}

/// What is asked of the platform below the guest. The default is the strictest.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct TdxPlatformDemand {
    /// Accept `SWHardeningNeeded`: up to date, and the guest's software has to do something too.
    pub allow_sw_hardening_needed: bool,
    /// Accept a machine that runs SMT.
    pub allow_smt: bool,
    /// Accept a machine that packages can be added to.
    pub allow_dynamic_platform: bool,
    /// Accept a machine whose root keys Intel's registration service keeps.
    pub allow_cached_keys: bool,
    /// The lowest `tcbEvaluationDataNumber` of the collateral.
    pub minimum_tcb_evaluation: u32,
}

/// A quote whose signatures, certificates and collateral are good. [`verify_tdx`] is its only
/// source.
///
/// Good means: made by the quoting enclave of a machine that Intel certified and calls up to date,
/// for a guest with these claims. Whether those are wanted is for [`crate::policy`] to say.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct VerifiedQuote {
    report: TdReport,
    ppid: [u8; 16],
    fmspc: [u8; 6],
    tcb_status: String,
    tcb_date: String,
    tcb_evaluation: u32,
    advisories: Vec<String>,
}

impl VerifiedQuote {
    /// The claims.
    #[must_use]
    pub const fn report(&self) -> &TdReport {
        &self.report
    }

    /// The platform's id (PPID), from the certificate of its key.
    #[must_use]
    pub const fn ppid(&self) -> &[u8; 16] {
        &self.ppid
    }

    /// Family, model, stepping and SKU (FMSPC) of the platform.
    #[must_use]
    pub const fn fmspc(&self) -> &[u8; 6] {
        &self.fmspc
    }

    /// Intel's word for the platform's patch level, as `UpToDate`.
    #[must_use]
    pub fn tcb_status(&self) -> &str {
        &self.tcb_status
    }

    /// The date of that patch level.
    #[must_use]
    pub fn tcb_date(&self) -> &str {
        &self.tcb_date
    }

    /// The lower `tcbEvaluationDataNumber` of the two parts of the collateral.
    #[must_use]
    pub const fn tcb_evaluation(&self) -> u32 {
        self.tcb_evaluation
    }

    /// Intel's advisories about that patch level: what software has to do something about.
    #[must_use]
    pub fn advisories(&self) -> &[String] {
        &self.advisories
    }
}

/// Verifies a TDX quote with the collateral of section 0x82, at Unix time `now`, under the root
/// certificate `root` ([`INTEL_ROOT`]).
///
/// # Errors
/// The first check that fails, in the order of the numbers in the source.
pub fn verify_tdx(
    quote: &[u8],
    collateral: &[u8],
    root: &[u8],
    now: u64,
    demand: &TdxPlatformDemand,
) -> Result<VerifiedQuote, TdxError> {
    // 1. Layout, version 4 or 5, a TD's and not an enclave's, nothing behind it.
    let quote = Quote::parse(quote)?;
    let collateral = TdxCollateral::parse(collateral)?;

    // 2. The chain in its one encoding, and the root at its end.
    let chain = pem::decode(quote.certificates).ok_or(TdxError::Chain)?;
    let [_, _, last] = chain.as_slice() else { return Err(TdxError::Chain) };
    if last != root {
        return Err(TdxError::Chain);
    }

    // 3. Certificates, revocation, signatures, the quoting enclave, patch levels. A debugged guest
    // or one with service TDs is authentic; the policy refuses it, by name.
    let pce_id = pce_id(&collateral.tcb_info);
    let claims = QuoteVerifier::<AwsLc>::new_with_config(root.to_vec())
        .allow_debug(true)
        .allow_service_td(true)
        .verify_with_policy(quote.bytes, into_qvl(collateral), now, &QuotePolicy::claims_only(now))
        .map_err(|error| refused(format!("{error:#}"), quote.report.td_attributes))?;
    // The library looks at the ends of revocation lists only, and at half of a platform's name.
    if claims.latest_issue_date > now {
        let reason = format!("some of it is of {}, in the future", claims.latest_issue_date);
        return Err(TdxError::Time { reason });
    }
    let own: String = claims.platform.pck.pce_id.iter().map(|b| format!("{b:02x}")).collect();
    if pce_id != Some(own) {
        let reason = "the TCB info is for another PCE than the platform's".to_owned();
        return Err(TdxError::Authenticity { reason });
    }

    // 4. Attributes that no guest may have.
    attributes(quote.report.td_attributes)?;

    // 5. Up to date, by collateral that is recent enough, on a machine that is set up as demanded.
    platform(&claims, now, demand)?;
    let len = claims.platform.pck.ppid.len();
    let ppid = <[u8; 16]>::try_from(claims.platform.pck.ppid.as_slice());
    Ok(VerifiedQuote {
        report: quote.report,
        tcb_evaluation: claims.tcb.eval_data_number,
        advisories: claims.tcb.advisory_ids,
        ppid: ppid.map_err(|_| TdxError::Ppid { len })?,
        fmspc: claims.platform.pck.fmspc,
        tcb_status: claims.tcb.status.to_string(),
        tcb_date: claims.platform.tcb_level.tcb_date,
    })
}

/// Rule 3, by the words of the library: it has one kind of error. Its last check is of attributes.
fn refused(reason: String, value: u64) -> TdxError {
    let says = |words: &[&str]| words.iter().any(|word| reason.contains(word));
    if says(&["SEPT_VE_DISABLE", "TD migration", "bits in TD attributes"])
        && let Err(error) = attributes(value)
    {
        return error;
    }
    if says(&["No matching TCB level", "below minimum required", "status is invalid: Revoked"]) {
        return TdxError::TcbStatus { found: reason, advisories: Vec::new() };
    }
    if says(&["expired", "Expired", "in the future", "NotValidYet"]) {
        return TdxError::Time { reason };
    }
    TdxError::Authenticity { reason }
}

/// Rule 4.
fn attributes(value: u64) -> Result<(), TdxError> {
    #[rustfmt::skip]
    let rules = [
        (value & !td_attributes::KNOWN == 0, "tdx.attributes_reserved", "no unknown bit"),
        (value & td_attributes::MIGRATABLE == 0, "tdx.migratable", "no migration"),
        (value & td_attributes::SEPT_VE_DISABLE != 0, "tdx.sept_ve_disable", "SEPT_VE_DISABLE is one"),
    ];
    match rules.into_iter().find(|&(holds, ..)| !holds) {
        Some((_, code, rule)) => Err(TdxError::Attributes { code, rule, value }),
        None => Ok(()),
    }
}

/// Rule 5: first what has a name of ours, then all that the strict policy asks.
fn platform(claims: &QuoteClaims, now: u64, demand: &TdxPlatformDemand) -> Result<(), TdxError> {
    let status = claims.tcb.status;
    let hardening = status == TcbStatus::SWHardeningNeeded && demand.allow_sw_hardening_needed;
    if status != TcbStatus::UpToDate && !hardening {
        let advisories = claims.tcb.advisory_ids.clone();
        return Err(TdxError::TcbStatus { found: status.to_string(), advisories });
    }
    let (found, minimum) = (claims.tcb.eval_data_number, demand.minimum_tcb_evaluation);
    if found < minimum {
        return Err(TdxError::Evaluation { found, minimum });
    }
    let pck = &claims.platform.pck;
    #[rustfmt::skip]
    let flags = [
        (pck.smt_enabled, demand.allow_smt, "tdx.smt", "SMT is on (dangerous_allow_smt)"),
        (pck.dynamic_platform, demand.allow_dynamic_platform, "tdx.dynamic_platform", "packages can be added (allow_dynamic_platform)"),
        (pck.cached_keys, demand.allow_cached_keys, "tdx.cached_keys", "Intel keeps its root keys (allow_cached_keys)"),
    ];
    for (set, allowed, code, flag) in flags {
        let says = match set {
            PckCertFlag::False => continue,
            PckCertFlag::True => "says that",
            // Certificates of Intel's processor authority have no such flags.
            PckCertFlag::Undefined => "does not say whether",
        };
        if !allowed {
            return Err(TdxError::Configuration { code, says, flag });
        }
    }
    let mut strict = QuotePolicy::strict(now)
        .allow_smt(demand.allow_smt)
        .allow_dynamic_platform(demand.allow_dynamic_platform)
        .allow_cached_keys(demand.allow_cached_keys)
        .min_tcb_eval_data_number(minimum);
    if hardening {
        strict = strict.allow_status(TcbStatus::SWHardeningNeeded);
    }
    strict.validate(claims).map_err(|error| TdxError::Strict { reason: format!("{error:#}") })
}

/// The PCE that TCB info is for, in lower case.
fn pce_id(tcb_info: &str) -> Option<String> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct For {
        pce_id: String,
    }
    serde_json::from_str::<For>(tcb_info).ok().map(|info| info.pce_id.to_ascii_lowercase())
}

fn listed(ids: &[String]) -> String {
    if ids.is_empty() { String::new() } else { format!(" ({})", ids.join(", ")) }
}

/// Intel's SGX root certificate, DER; it signs for TDX too.
pub const INTEL_ROOT: &[u8] = include_bytes!("../../roots/intel/root.der");
