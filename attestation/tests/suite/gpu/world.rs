//! An honest enclave with GPUs, every part of which a test may change.

use chrysalis_attestation::policy::{GpuDemand, Rejection};
use chrysalis_protocol::gpu::{Device, GpuEndorsements};
use chrysalis_protocol::statement::{GpuFlags, gpu_digest};

use super::device::{SimulatedDevice, root_key};
use super::issue::{common_name, root_name};
use super::ocsp::StatusDraft;
use super::rim::{RimDraft, Signer};
use crate::simulated::{Parts, World};

/// Reports, each with its chain.
pub(crate) type Evidence = Vec<(Vec<u8>, Vec<u8>)>;

/// GPUs, what vouches for them, and the enclave that states them.
pub(crate) struct GpuWorld {
    pub world: World,
    /// GPUs, then switches.
    pub devices: Vec<SimulatedDevice>,
    pub driver_rim: RimDraft,
    pub vbios_rim: RimDraft,
    pub switch_rim: Option<RimDraft>,
    pub signer: Signer,
    /// Of devices and of the manifests' certificates.
    pub statuses: Vec<StatusDraft>,
    /// Changes the statement after the GPUs reported, before it is signed.
    pub late: fn(&mut World),
    /// Changes the devices' evidence before the statement commits to it.
    pub evidence: fn(&mut Evidence),
    /// Changes what the host adds.
    pub endorsements: fn(&mut Vec<Vec<u8>>, &mut Vec<Vec<u8>>),
}

impl GpuWorld {
    /// `gpus` GPUs in confidential-computing mode, and a policy that accepts nothing else.
    pub(crate) fn honest(gpus: u16) -> Self {
        let devices: Vec<_> = (0..gpus).map(|i| SimulatedDevice::gpu(i as u8 + 1)).collect();
        let mut world = World::honest();
        world.statement.gpu_count = gpus;
        world.statement.gpu_flags = GpuFlags { cc_on: true, ppcie: false, nvlink_clear: false };
        world.policy.gpu = Some(GpuDemand {
            count: gpus,
            drivers: vec!["580.95.05".to_owned()],
            vbios: vec!["96.00.cf.00.02".to_owned()],
            require_rims: true,
            require_ocsp: true,
            allow_ppcie: false,
            allow_nvlink_clear: false,
        });
        let measurements = devices[0].claims.measurements.clone();
        let mut gpu_world = Self {
            world,
            driver_rim: RimDraft::new("580.95.05", &measurements, &[8, 9, 34, 35]),
            vbios_rim: RimDraft::new("96.00.CF.00.02", &measurements, &[0, 1, 2, 63]),
            switch_rim: None,
            signer: Signer::new(),
            statuses: Vec::new(),
            devices,
            late: |_| {},
            evidence: |_| {},
            endorsements: |_, _| {},
        };
        gpu_world.state_all();
        gpu_world
    }

    /// Two GPUs in protected PCIe mode behind two switches.
    pub(crate) fn protected_pcie() -> Self {
        let mut world = Self::honest(2);
        let switches = [0x203E_B31A_D9ED_0008_u64, 0xC3BB_8FD8_3764_14CA];
        for gpu in &mut world.devices {
            gpu.set(21, &[0xAA]);
            let links = [switches[1], switches[0], 0, switches[1]];
            gpu.set(22, &links.map(u64::to_le_bytes).concat());
        }
        for (number, pdi) in (3..).zip(switches) {
            world.devices.push(SimulatedDevice::switch(number, pdi, &[0x11, 0x22, 0x11]));
        }
        world.world.statement.gpu_flags =
            GpuFlags { cc_on: false, ppcie: true, nvlink_clear: true };
        let demand = world.demand();
        demand.allow_ppcie = true;
        demand.allow_nvlink_clear = true;
        demand.vbios.push("96.10.55.00.01".to_owned());
        let measurements = world.devices[2].claims.measurements.clone();
        let rim = RimDraft::new("96.10.55.00.01", &measurements, &[0, 1, 30, 35]);
        world.switch_rim = Some(RimDraft { edition: "SWITCH", product: "LS10".to_owned(), ..rim });
        world.state_all();
        world
    }

    pub(crate) fn demand(&mut self) -> &mut GpuDemand {
        self.world.policy.gpu.as_mut().expect("a world with GPUs")
    }

    /// A good status of every certificate.
    fn state_all(&mut self) {
        let (root, authority) = (root_key(), &self.signer.authority);
        let serials = (1..=self.devices.len() as u8).chain([9]);
        self.statuses = serials.map(|s| StatusDraft::good(&root_name(), &root, s)).collect();
        let name = common_name("simulated manifests L3");
        self.statuses.push(StatusDraft::good(&name, authority, 10));
    }

    /// The sections of the bundle.
    pub(crate) fn parts(&self) -> Parts {
        let mut world = self.world.clone();
        world.link();
        let nonce = world.statement.gpu_challenge();
        let mut evidence: Vec<_> =
            self.devices.iter().map(|device| (device.report(&nonce), device.chain())).collect();
        (self.evidence)(&mut evidence);
        let devices: Vec<_> =
            evidence.iter().map(|(report, chain)| Device { report, chain }).collect();
        let section = Device::to_bytes(&devices);
        world.statement.gpu_digest = gpu_digest(&section);
        (self.late)(&mut world);
        let mut parts = world.parts();
        parts.gpu = (!section.is_empty()).then_some(section);
        parts.gpu_rim = Some(self.endorsed());
        parts
    }

    /// Section 0x83.
    fn endorsed(&self) -> Vec<u8> {
        let drafts = [Some(&self.driver_rim), Some(&self.vbios_rim), self.switch_rim.as_ref()];
        let drafts = drafts.into_iter().flatten();
        let mut rims: Vec<_> = drafts.map(|draft| draft.sign(&self.signer).into_bytes()).collect();
        let root = root_key();
        let mut statuses: Vec<_> = self
            .statuses
            .iter()
            .map(|status| {
                let by_root = status.issuer_point == root.point();
                status.sign(if by_root { &root } else { &self.signer.authority }, None)
            })
            .collect();
        (self.endorsements)(&mut rims, &mut statuses);
        let rims = rims.iter().map(Vec::as_slice).collect();
        let statuses = statuses.iter().map(Vec::as_slice).collect();
        GpuEndorsements { rims, statuses }.to_bytes()
    }

    pub(crate) fn appraise(&self) -> Result<(), Rejection> {
        self.world.appraise(&self.parts())
    }
}
