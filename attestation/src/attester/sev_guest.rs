//! Evidence by `/dev/sev-guest`, for kernels before 6.7, which have no configfs-tsm.
//!
//! The bare report only (`SNP_GET_REPORT`). The extended one comes with certificates of the host's,
//! and reading those takes a walk along offsets that the host chose.

use chrysalis_protocol::statement::Tee;
use sev::firmware::guest::Firmware;

use super::{Attester, AttesterError, Evidence};
use crate::report::SignedReport;

/// The guest's SEV-SNP platform, asked by its device.
#[derive(Debug)]
pub(super) struct SevGuest(Firmware);

impl SevGuest {
    pub(super) fn open() -> Result<Self, AttesterError> {
        let device = Firmware::open().map_err(|error| AttesterError::Interface {
            what: "open",
            path: DEVICE.into(),
            reason: error.to_string(),
        })?;
        Ok(Self(device))
    }

    fn report(&mut self, report_data: &[u8; 64]) -> Result<Vec<u8>, AttesterError> {
        let failed = |error: &dyn std::fmt::Display| AttesterError::Interface {
            what: "ask",
            path: DEVICE.into(),
            reason: error.to_string(),
        };
        let asked = self.0.get_report(None, Some(*report_data), Some(0));
        let report = asked.map_err(|error| failed(&error))?;
        let wrong = |reason: String| AttesterError::Report { reason };
        let parsed = SignedReport::parse(&report).map_err(|error| wrong(error.to_string()))?;
        if parsed.report.report_data != *report_data {
            return Err(AttesterError::OtherReport);
        }
        Ok(report)
    }
}

impl Attester for SevGuest {
    fn tee(&self) -> Tee {
        Tee::SevSnp
    }

    fn attest(&mut self, report_data: &[u8; 64]) -> Result<Evidence, AttesterError> {
        Ok(Evidence { report: self.report(report_data)?, endorsements: Vec::new() })
    }

    fn launch_config_digest(&mut self) -> Result<[u8; 32], AttesterError> {
        let report = self.report(&[0; 64])?;
        let parsed = SignedReport::parse(&report);
        let parsed = parsed.map_err(|error| AttesterError::Report { reason: error.to_string() })?;
        Ok(parsed.report.host_data)
    }
}

const DEVICE: &str = "/dev/sev-guest";
