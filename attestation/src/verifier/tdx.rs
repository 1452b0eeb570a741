//! Is this TDX quote authentic? docs/threat-model.md, section 4, "TDX".

use crate::quote::TdReport;

/// A quote whose signatures, certificates and collateral are good.
///
/// Good means: made by the quoting enclave of a machine that Intel certified, for a guest with
/// these claims. Whether those are wanted is for [`crate::policy`] to say.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct VerifiedQuote {
    pub(super) report: TdReport,
    pub(super) ppid: [u8; 16],
    pub(super) fmspc: [u8; 6],
    pub(super) tcb_status: String,
    pub(super) tcb_date: String,
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
}
