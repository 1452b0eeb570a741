//! An appraisal for people and for programs: what was proved, what was not, and the claims.

use chrysalis_protocol::statement::Tee;
use serde::Serialize;

use super::file::hex;
use super::verified::{Appraised, TrustedBy};
use super::{FloorTable, Floors};
use crate::report::Report;
use crate::verifier::VerifiedQuote;
use crate::verifier::gpu::{DeviceFacts, VerifiedGpus};

/// The claims of an appraised enclave, flat, hexadecimal where they are bytes.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
#[expect(missing_docs, reason = "the names are those of docs/formats.md and of AMD's table")]
pub struct Claims {
    pub tee: String,
    pub simulated: bool,
    pub fresh: bool,
    pub epoch: u32,
    pub boot_id: String,
    pub statement_digest: String,
    pub key_config_digest: String,
    pub receipt_key: String,
    pub content_digest: String,
    pub package_digest: String,
    pub model_svn: u32,
    pub publisher_key_id: String,
    pub policy_digest: String,
    pub runtime_digest: String,
    pub launch_config_digest: String,
    pub measurement: String,
    pub product: String,
    /// `CHIP_ID` of an SEV-SNP chip, or the PPID behind a TDX quote.
    pub chip_id: String,
    pub reported_tcb: String,
    /// `any-genuine`, `registry` or `pinned`.
    pub platform: &'static str,
    /// Rules that the policy switches off, by its keys.
    pub waived: Vec<&'static str>,
    pub uptime_ms: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub snp: Option<SnpClaims>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tdx: Option<TdxClaims>,
    /// GPUs, then the switches between them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub gpus: Vec<GpuClaims>,
}

/// What only an SEV-SNP report says.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
#[expect(missing_docs, reason = "the names are those of AMD's table")]
pub struct SnpClaims {
    pub report_version: u32,
    pub guest_policy: String,
    pub platform_info: String,
    pub guest_svn: u32,
    /// Number and last second of the floors file.
    pub floors_version: u32,
    pub floors_expire_unix: u64,
}

/// What only a TDX quote says.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
#[expect(missing_docs, reason = "the names are those of Intel's table")]
pub struct TdxClaims {
    pub tcb_status: String,
    pub tcb_date: String,
    /// Number of the collateral's evaluation.
    pub tcb_evaluation: u32,
    /// Intel's advisories about the patch level.
    pub advisories: Vec<String>,
    pub fmspc: String,
    pub td_attributes: String,
    pub xfam: String,
    pub mr_seam: String,
    pub rtmrs: [String; 4],
}

/// One GPU or switch.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
#[expect(missing_docs, reason = "the names are those of docs/attestation.md")]
pub struct GpuClaims {
    pub chip: String,
    pub serial: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub driver: Option<String>,
    pub vbios: String,
    pub driver_compared: bool,
    pub vbios_compared: bool,
}

/// What an appraisal proved and what it did not, in plain words.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Explanation {
    /// Holds if the vendor's keys and the cryptography hold.
    pub proved: Vec<String>,
    /// Has to be believed, or is known not to hold.
    pub not_proved: Vec<String>,
}

impl Appraised {
    /// The claims, for output.
    #[must_use]
    pub fn claims(&self) -> Claims {
        let statement = self.statement();
        let tee = match self.evidence().tee() {
            Tee::SevSnp => "sev-snp",
            Tee::Tdx => "tdx",
            Tee::Simulated => "simulated",
        };
        Claims {
            tee: tee.to_owned(),
            simulated: self.simulated(),
            fresh: self.fresh(),
            epoch: statement.epoch,
            boot_id: hex(&statement.boot_id),
            statement_digest: hex(&self.statement_digest()),
            key_config_digest: hex(&statement.key_config_digest),
            receipt_key: hex(&statement.receipt_key),
            content_digest: hex(&statement.content_digest),
            package_digest: hex(&statement.package_digest),
            model_svn: statement.model_svn,
            publisher_key_id: hex(&self.package().header().publisher_key_id),
            policy_digest: hex(&statement.policy_digest),
            runtime_digest: hex(&statement.runtime_digest),
            launch_config_digest: hex(&statement.launch_config_digest),
            measurement: hex(&self.measurement()),
            product: self.evidence().product(),
            chip_id: hex(self.hardware_id().as_bytes()),
            reported_tcb: self.evidence().tcb(),
            platform: match self.trusted_by() {
                TrustedBy::Vendor => "any-genuine",
                TrustedBy::Registry { .. } => "registry",
                TrustedBy::Pin => "pinned",
            },
            waived: self.waived().to_vec(),
            uptime_ms: statement.uptime_ms,
            snp: self
                .evidence()
                .snp()
                .zip(self.floors())
                .map(|(v, floors)| snp(v.report(), floors)),
            tdx: self.evidence().tdx().map(tdx),
            gpus: self.gpus().map(gpus).unwrap_or_default(),
        }
    }

    /// What was proved and what was not.
    #[must_use]
    pub fn explain(&self) -> Explanation {
        let statement = self.statement();
        let mut proved = Vec::new();
        let mut not_proved = Vec::new();
        self.explain_machine(&mut proved, &mut not_proved);
        proved.extend([
            format!(
                "The report covers launch measurement {}, which the policy lists.",
                hex(&self.measurement())
            ),
            format!(
                "That image states that it serves the model with content digest {}, security \
                 version {}, signed by publisher {}.",
                hex(&self.content_digest()),
                statement.model_svn,
                hex(&self.package().header().publisher_key_id),
            ),
            format!(
                "The report commits to one public key for epoch {}: only the holder of its private \
                 key can open what is sealed to it.",
                statement.epoch
            ),
            format!("The serving policy (no logging; {:?}) is within the demand.", self.serving),
        ]);
        if self.fresh() {
            proved.push("The evidence was made after, and over, this challenge.".to_owned());
        } else {
            not_proved.push(
                "Freshness: the evidence may be as old as the sealing key's epoch.".to_owned(),
            );
        }
        self.explain_gpus(&mut proved, &mut not_proved);
        not_proved.extend(
            [
                "Physical attacks: a device on the memory bus can read such machines, and no \
                 software check finds it. Trust the holder: pin chips, or name a registry.",
                "What the listed image does: that is for whoever listed its measurement.",
                "Availability, and that the host does not watch when and how long requests run.",
                "Patch levels beyond the floors file and this policy, and that no issuer was revoked \
                 since the policy's lists: the vendors' bulletins and lists are not fetched.",
            ]
            .map(str::to_owned),
        );
        Explanation { proved, not_proved }
    }
}

impl Appraised {
    fn explain_machine(&self, proved: &mut Vec<String>, not_proved: &mut Vec<String>) {
        if self.simulated() {
            not_proved.push(
                "ANYTHING ABOUT THE MACHINE: the platform is simulated, its signing key is public, \
                 and whoever runs it can read every prompt and answer. What follows is only what \
                 the enclave says of itself."
                    .to_owned(),
            );
        } else {
            let vendor = if self.evidence().tdx().is_some() { "Intel" } else { "AMD" };
            proved.push(format!(
                "A genuine {vendor} {} machine ({}...) at patch levels {} signed the report.",
                self.evidence().product(),
                hex(self.hardware_id().as_bytes()).get(..16).unwrap_or_default(),
                self.evidence().tcb(),
            ));
            proved.push(
                "Its guest runs without debugging or migration by the host, and the machine is in \
                 the state that the policy asks for."
                    .to_owned(),
            );
            proved.extend(self.floors().map(|floors| {
                let FloorTable { version, expires, .. } = floors.table();
                format!(
                    "Its firmware is not below the floors file, version {version}, which ends at \
                     Unix time {expires}."
                )
            }));
            match self.trusted_by() {
                TrustedBy::Vendor => not_proved.push(
                    "Who holds the machine: the policy trusts every holder of a genuine one."
                        .to_owned(),
                ),
                TrustedBy::Registry { version, expires } => proved.push(format!(
                    "The machine is one of the platform registry, version {version}, which ends at \
                     Unix time {expires}."
                )),
                TrustedBy::Pin => {
                    proved.push("The machine is one that the policy pins.".to_owned());
                }
            }
        }
        if !self.waived().is_empty() {
            not_proved.push(format!(
                "What these rules would have proved, which the policy switches off: {}.",
                self.waived().join(", ")
            ));
        }
        if let Some(quote) = self.evidence().tdx()
            && quote.tcb_status() != "UpToDate"
        {
            not_proved.push(format!(
                "That the guest's software does what Intel's advisories ask for ({}).",
                quote.advisories().join(", ")
            ));
        }
    }

    fn explain_gpus(&self, proved: &mut Vec<String>, not_proved: &mut Vec<String>) {
        let Some(gpus) = self.gpus() else {
            proved.push("The enclave states that it uses no GPU.".to_owned());
            return;
        };
        let devices = gpus.devices();
        let names: Vec<String> = devices
            .iter()
            .map(|device| {
                let driver =
                    device.driver.as_ref().map_or(String::new(), |d| format!(", driver {d}"));
                format!("{} {} (vbios {}{driver})", device.chip, device.serial, device.vbios)
            })
            .collect();
        let who = if self.simulated() {
            "Simulated devices, which prove nothing,"
        } else {
            "Genuine NVIDIA devices"
        };
        proved.push(format!(
            "{who} signed reports for this statement alone, and the statement commits to them: {}.",
            names.join("; ")
        ));
        if devices.iter().all(|device| device.driver_compared && device.vbios_compared) {
            proved.push("Their firmware and driver measure as NVIDIA's manifests say.".to_owned());
        } else {
            not_proved.push(
                "What firmware and driver the GPUs run: not all were compared with manifests."
                    .to_owned(),
            );
        }
        if !gpus.without_status().is_empty() {
            not_proved.push(format!(
                "That {} certificates of GPUs and manifests were not revoked.",
                gpus.without_status().len()
            ));
        }
        if self.statement().gpu_flags.nvlink_clear {
            not_proved.push("Links between the GPUs carry plaintext.".to_owned());
        }
        not_proved.push(
            "Where the GPUs are: evidence of another genuine GPU can be relayed, until devices and \
             CPUs prove the link between them. What travels there is encrypted to the GPU that \
             reported."
                .to_owned(),
        );
    }
}

fn gpus(gpus: &VerifiedGpus) -> Vec<GpuClaims> {
    let claims = |device: &DeviceFacts| GpuClaims {
        chip: device.chip.clone(),
        serial: device.serial.clone(),
        driver: device.driver.clone(),
        vbios: device.vbios.clone(),
        driver_compared: device.driver_compared,
        vbios_compared: device.vbios_compared,
    };
    gpus.devices().iter().map(claims).collect()
}

fn snp(report: &Report, floors: &Floors) -> SnpClaims {
    SnpClaims {
        report_version: report.version,
        guest_policy: format!("{:#x}", report.policy),
        platform_info: format!("{:#x}", report.platform_info),
        guest_svn: report.guest_svn,
        floors_version: floors.table().version,
        floors_expire_unix: floors.table().expires,
    }
}

fn tdx(quote: &VerifiedQuote) -> TdxClaims {
    let report = quote.report();
    TdxClaims {
        tcb_status: quote.tcb_status().to_owned(),
        tcb_date: quote.tcb_date().to_owned(),
        tcb_evaluation: quote.tcb_evaluation(),
        advisories: quote.advisories().to_vec(),
        fmspc: hex(quote.fmspc()),
        td_attributes: format!("{:#x}", report.td_attributes),
        xfam: format!("{:#x}", report.xfam),
        mr_seam: hex(&report.mr_seam),
        rtmrs: report.rtmrs.map(|rtmr| hex(&rtmr)),
    }
}
