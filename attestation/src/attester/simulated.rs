//! A platform that is not there: genuine report format, private key known to everybody.
//!
//! **Simulation proves nothing.** The key that signs these reports lies in the repository, in
//! clear, for anybody to sign anything with. It exists so that every step of the protocol can be
//! run and attacked on a machine without a confidential VM. A verifier accepts it only where the
//! platform in the statement is "simulated" *and* its policy says `allow_simulated = true`, and
//! the simulated roots never stand in for AMD's.

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair};
use chrysalis_protocol::codec::Writer;
use chrysalis_protocol::statement::Tee;

use super::{Attester, AttesterError, ENDORSEMENT_VCEK, Evidence};
use crate::report::{
    Cpuid, Firmware, REPORT_LEN, Report, SigningKey, Tcb, guest_policy, platform_info,
};

/// The simulated chip's identity.
pub const CHIP_ID: [u8; 64] = *b"CHRYSALIS SIMULATED CHIP: PROVES NOTHING. KEY IS PUBLIC. 0000001";

/// Patch levels of the simulated platform.
pub const TCB: Tcb = Tcb { fmc: None, bootloader: 10, tee: 0, snp: 0x1B, microcode: 0x54 };

/// The simulated platform.
#[expect(missing_debug_implementations, reason = "it holds a private key, though a public one")]
pub struct Simulated {
    key: EcdsaKeyPair,
    vcek: Vec<u8>,
    report: Report,
}

impl Simulated {
    /// A platform that launched an image with `measurement`, given `host_data` by its host.
    ///
    /// # Errors
    /// [`AttesterError::Key`] when the compiled-in key is damaged.
    pub fn new(host_data: [u8; 32], measurement: [u8; 48]) -> Result<Self, AttesterError> {
        let report = honest_report(host_data, measurement);
        Self::from_parts(report, VCEK_KEY, VCEK.to_vec())
    }

    /// A platform that claims whatever `report` says, signed by the PKCS#8 key `key`.
    ///
    /// # Errors
    /// [`AttesterError::Key`] when `key` is not a P-384 key.
    pub fn from_parts(report: Report, key: &[u8], vcek: Vec<u8>) -> Result<Self, AttesterError> {
        let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P384_SHA384_FIXED_SIGNING, key)
            .map_err(|_| AttesterError::Key)?;
        Ok(Self { key, vcek, report })
    }
}

impl Attester for Simulated {
    fn tee(&self) -> Tee {
        Tee::Simulated
    }

    fn attest(&mut self, report_data: &[u8; 64]) -> Result<Evidence, AttesterError> {
        self.report.report_data = *report_data;
        let signed = self.report.to_signed_bytes();
        let signature =
            self.key.sign(&SystemRandom::new(), &signed).map_err(|_| AttesterError::Sign)?;
        let (r, s) = signature.as_ref().split_at_checked(48).ok_or(AttesterError::Sign)?;
        let mut report = Writer::with_capacity(REPORT_LEN);
        report.bytes(&signed);
        for component in [r, s] {
            let little_endian: Vec<u8> = component.iter().rev().copied().collect();
            report.bytes(&little_endian).zeros(24);
        }
        report.zeros(REPORT_LEN.saturating_sub(report.len()));
        Ok(Evidence {
            report: report.into_bytes(),
            endorsements: vec![(ENDORSEMENT_VCEK, self.vcek.clone())],
        })
    }

    fn launch_config_digest(&mut self) -> Result<[u8; 32], AttesterError> {
        Ok(self.report.host_data)
    }
}

/// The claims of an up-to-date Genoa machine in the state that the default rules ask for.
#[must_use]
pub fn honest_report(host_data: [u8; 32], measurement: [u8; 48]) -> Report {
    let firmware = Firmware { major: 1, minor: 58, build: 1 };
    Report {
        version: 3,
        guest_svn: 0,
        policy: 0x0137
            | guest_policy::RESERVED_ONE
            | guest_policy::MEM_AES_256_XTS
            | guest_policy::RAPL_DIS
            | guest_policy::PAGE_SWAP_DISABLE,
        family_id: [0; 16],
        image_id: [0; 16],
        vmpl: 0,
        current_tcb: TCB,
        platform_info: platform_info::ECC
            | platform_info::RAPL_DIS
            | platform_info::ALIAS_CHECK_COMPLETE,
        author_key_en: false,
        mask_chip_key: false,
        signing_key: SigningKey::Vcek,
        report_data: [0; 64],
        measurement,
        host_data,
        id_key_digest: [0; 48],
        author_key_digest: [0; 48],
        report_id: [0x5A; 32],
        report_id_ma: [0xFF; 32],
        reported_tcb: TCB,
        cpuid: Cpuid { family: 0x19, model: 0x11, stepping: 1 },
        chip_id: CHIP_ID,
        committed_tcb: TCB,
        current_firmware: firmware,
        committed_firmware: firmware,
        launch_tcb: TCB,
        launch_mitigations: 0,
        current_mitigations: 0,
    }
}

/// PUBLIC private key of the simulated VCEK, PKCS#8.
const VCEK_KEY: &[u8] = include_bytes!("../roots/simulated/vcek_key.pk8");
/// Certificate of [`VCEK_KEY`] under the simulated ASK, DER.
const VCEK: &[u8] = include_bytes!("../roots/simulated/vcek.der");
