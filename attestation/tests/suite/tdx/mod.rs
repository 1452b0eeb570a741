//! TDX: quotes of a made-up vendor through every rule, and recorded ones.

mod appraisal;
mod intel;
mod recorded;

use chrysalis_attestation::policy::{PlatformTrust, Rtmr3, TdxDemand, XFAM_DEFAULT, package_rtmr};
use chrysalis_attestation::quote::{TdReport, td_attributes};
use chrysalis_attestation::verifier::{HardwareId, TdxPlatformDemand};
use chrysalis_protocol::statement::{Statement, Tee};
use intel::PPID;
pub(crate) use intel::{Intel, Made};

use crate::simulated::{LAUNCH_CONFIG, MEASUREMENT, Parts, World};

/// An honest enclave in a TD, every part of which a test may change.
#[derive(Clone)]
pub(crate) struct TdWorld {
    pub world: World,
    pub intel: Intel,
    pub td: TdReport,
}

impl TdWorld {
    pub(crate) fn honest() -> Self {
        let mut world = World::honest();
        world.statement.tee = Tee::Tdx;
        world.policy.allow_simulated = false;
        world.policy.platform = PlatformTrust::Pinned(vec![HardwareId::Ppid(PPID)]);
        world.policy.tdx = Some(demand());
        let mut mr_config_id = [0; 48];
        mr_config_id[..32].copy_from_slice(&LAUNCH_CONFIG);
        let td = TdReport {
            tee_tcb_svn: [1, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1],
            mr_seam: [0x5E; 48],
            mr_signer_seam: [0; 48],
            seam_attributes: 0,
            td_attributes: td_attributes::SEPT_VE_DISABLE,
            xfam: 0x6_02E7,
            mr_td: MEASUREMENT,
            mr_config_id,
            mr_owner: [0; 48],
            mr_owner_config: [0; 48],
            rtmrs: [[0xA0; 48], [0xA1; 48], [0xA2; 48], [0; 48]],
            report_data: [0; 64],
            later: None,
        };
        let mut world = Self { world, intel: Intel::honest(), td };
        world.td.rtmrs[3] = package_rtmr(&world.world.statement.package_digest);
        world
    }

    pub(crate) fn demand(&mut self) -> &mut TdxDemand {
        self.world.policy.tdx.as_mut().expect("the honest policy has one")
    }

    /// The evidence over the statement; the policy learns the root. A second quote is of
    /// another guest, or this one, over another statement.
    pub(crate) fn parts_and(&mut self, other: Option<(&Statement, &TdReport)>) -> (Parts, Vec<u8>) {
        let over = |(statement, td): (&Statement, &TdReport)| TdReport {
            report_data: statement.report_data().to_bytes(),
            ..td.clone()
        };
        let quotes = [Some((&self.world.statement, &self.td)), other];
        let reports: Vec<_> = quotes.into_iter().flatten().map(over).collect();
        let made = self.intel.make(&reports);
        if let Some(demand) = &mut self.world.policy.tdx {
            demand.dangerous_root = Some(made.root);
        }
        let mut quotes = made.quotes.into_iter();
        let parts = Parts {
            report: quotes.next().expect("a quote for the statement"),
            vcek: None,
            collateral: Some(made.collateral.to_bytes()),
            ..self.world.parts()
        };
        (parts, quotes.next().unwrap_or_default())
    }

    pub(crate) fn parts(&mut self) -> Parts {
        self.parts_and(None).0
    }
}

/// What the honest TD meets, and nothing more.
pub(crate) fn demand() -> TdxDemand {
    TdxDemand {
        machine: TdxPlatformDemand::default(),
        rtmr0: vec![[0xA0; 48]],
        rtmr1: vec![[0xA1; 48]],
        rtmr2: vec![[0xA2; 48]],
        rtmr3: vec![Rtmr3::Package],
        mr_seam: Vec::new(),
        mr_signer_seam: [0; 48],
        mr_owner: [0; 48],
        mr_owner_config: [0; 48],
        xfam_allowed: XFAM_DEFAULT,
        dangerous_root: None,
    }
}
