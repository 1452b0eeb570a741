//! The appraisal: docs/formats.md, section 1.6, step by step, stopping at the first failure.

use chrysalis_protocol::bundle::Bundle;
use chrysalis_protocol::codec::Reader;
use chrysalis_protocol::freshness::Freshness;
use chrysalis_protocol::hash::sha384;
use chrysalis_protocol::package::{Header, PublicHeader, SignatureBlock, content_digest};
use chrysalis_protocol::statement::{
    KeyConfig, Kind, ReportData, ServingPolicy, Statement, StatementError, Tee,
};

use super::verified::{Appraised, TrustedBy, VerifiedEnclave, VerifiedKeyRelease};
use super::{
    AppraisalPolicy, MaxAge, PlatformError, PlatformTrust, RegistryTrust, Rejection, Table,
    TdxDemand, gpu, platform, tdx,
};
use crate::quote;
use crate::verifier::{
    HardwareId, PlatformEvidence, Roots, TdxPlatformDemand, verify_snp, verify_tdx,
};

/// What the caller knows when evidence arrives.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Challenge {
    /// The random value that was sent for the evidence to cover.
    pub nonce: Option<[u8; 32]>,
    /// The caller's time, Unix seconds; certificates are judged by it.
    pub now_unix: u64,
}

impl AppraisalPolicy {
    /// Judges the evidence of an enclave that offers a sealing key.
    ///
    /// 1. bundle framing; 2. statement layout, kind, platform; 3. `report_data`; 4. platform
    ///    evidence; 5. key configuration, serving policy and package are those of the statement;
    ///    6. serving policy within the demand; 7. model, its version, its publisher; 8. GPUs;
    ///    9. which machine; 10. freshness; 11. the proof.
    ///
    /// # Errors
    /// The [`Rejection`] of the first step that fails.
    pub fn appraise(
        &self,
        bundle: &[u8],
        challenge: &Challenge,
    ) -> Result<VerifiedEnclave, Rejection> {
        self.steps(bundle, challenge, Kind::Serve, self.max_age).map(VerifiedEnclave::new)
    }

    /// Judges the evidence of an enclave that asks for a package key: the same steps, for a
    /// key-release statement, and always fresh.
    ///
    /// # Errors
    /// The [`Rejection`] of the first step that fails.
    pub fn appraise_key_release(
        &self,
        bundle: &[u8],
        challenge: &Challenge,
    ) -> Result<VerifiedKeyRelease, Rejection> {
        self.steps(bundle, challenge, Kind::KeyRelease, MaxAge::Fresh).map(VerifiedKeyRelease::new)
    }

    fn steps(
        &self,
        bundle: &[u8],
        challenge: &Challenge,
        kind: Kind,
        max_age: MaxAge,
    ) -> Result<Appraised, Rejection> {
        // 1. Bundle framing.
        let bundle = Bundle::parse(bundle)?;

        // 2. Statement layout, reserved bytes zero, kind, tee.
        let statement = Statement::from_bytes(bundle.statement).map_err(Rejection::Statement)?;
        let judge = self.statement(&statement, kind)?;

        // 3. REPORT_DATA = magic, kind, epoch, digest.
        report_data(bundle.report, &statement)?;

        // 4. TEE evidence.
        let evidence = self.evidence(&bundle, bundle.report, judge, &statement, challenge)?;

        // 5. KeyConfig, policy, package header hashes.
        let key_config = key_config(bundle.key_config, &statement)?;
        let serving = serving_policy(bundle.policy, &statement)?;
        let (header, signature) = package(bundle.package, &statement)?;

        // 6. Policy within the caller's demand.
        if let Some(field) = self.serving.unmet(&serving) {
            return Err(Rejection::Serving { field });
        }

        // 7. content_digest in the caller's set, model_svn >= minimum, publisher signature.
        let package = self.model(header, signature, &statement)?;

        // 8. GPU evidence and flags.
        let gpus = gpu::appraise(self, &bundle, &statement, judge.roots(), challenge.now_unix)?;

        // 9. Platform trust choice.
        let trusted_by = self.machine(evidence.hardware_id(), challenge.now_unix)?;

        // 10. Freshness.
        let fresh = self.freshness(&bundle, &statement, &evidence, challenge, max_age)?;

        // 11. The proof.
        let floors = match evidence.snp() {
            Some(_) => Some(self.snp.floors_in_use().map_err(PlatformError::Floors)?.into_owned()),
            None => None,
        };
        let waived = self.dangerous.named();
        Ok(Appraised {
            statement,
            key_config,
            serving,
            package,
            evidence,
            floors,
            gpus,
            fresh,
            trusted_by,
            waived,
        })
    }

    /// Step 2, behind the layout: purpose and platform.
    fn statement(&self, statement: &Statement, expected: Kind) -> Result<Judge<'_>, Rejection> {
        if statement.kind != expected {
            return Err(Rejection::Kind { found: statement.kind, expected });
        }
        if statement.debug_build && !self.dangerous.allow_debug_build {
            return Err(Rejection::DebugBuild);
        }
        match statement.tee {
            Tee::SevSnp => Ok(Judge::Snp(Roots::Amd)),
            Tee::Simulated if self.allow_simulated => Ok(Judge::Snp(Roots::Simulated)),
            Tee::Simulated => Err(Rejection::Simulated),
            tee @ Tee::Tdx => self.tdx.as_ref().map(Judge::Tdx).ok_or(Rejection::Tee { tee }),
        }
    }

    /// Step 4: `report` is authentic, and made on a platform that is good enough.
    fn evidence(
        &self,
        bundle: &Bundle<'_>,
        report: &[u8],
        judge: Judge<'_>,
        statement: &Statement,
        challenge: &Challenge,
    ) -> Result<PlatformEvidence, Rejection> {
        let now = challenge.now_unix;
        match judge {
            Judge::Snp(roots) => {
                let certificate = bundle.endorsements.vcek.ok_or(Rejection::EndorsementMissing)?;
                let report = verify_snp(report, certificate, roots, now)?;
                platform::appraise(self, &report, &statement.launch_config_digest, now)?;
                Ok(PlatformEvidence::Snp(Box::new(report)))
            }
            Judge::Tdx(demand) => {
                let collateral = bundle.endorsements.tdx_collateral;
                let collateral = collateral.ok_or(Rejection::CollateralMissing)?;
                let allow_smt = self.dangerous.allow_smt;
                let machine = TdxPlatformDemand { allow_smt, ..demand.machine };
                let quote = verify_tdx(report, collateral, demand.root(), now, &machine)?;
                tdx::appraise(self, demand, &quote, statement)?;
                Ok(PlatformEvidence::Tdx(Box::new(quote)))
            }
        }
    }

    /// Step 7: which model, how old, signed by whom.
    fn model(
        &self,
        header: Header,
        signature: SignatureBlock,
        statement: &Statement,
    ) -> Result<PublicHeader, Rejection> {
        if !self.content_digests.contains(&statement.content_digest) {
            let (found, count) = (statement.content_digest, self.content_digests.len());
            return Err(Rejection::Model { found, count });
        }
        if statement.model_svn < self.minimum_svn {
            let (found, minimum) = (statement.model_svn, self.minimum_svn);
            return Err(Rejection::ModelSvn { found, minimum });
        }
        let package = PublicHeader::from_parts(header, signature)
            .map_err(|error| Rejection::PublisherSignature { reason: error.to_string() })?;
        let found = package.header().publisher_key_id;
        if !self.publishers.contains(&found) {
            return Err(Rejection::Publisher { found, count: self.publishers.len() });
        }
        Ok(package)
    }

    /// Step 9: the machine is one that the policy trusts.
    fn machine(&self, found: HardwareId, now: u64) -> Result<TrustedBy, Rejection> {
        match &self.platform {
            PlatformTrust::AnyGenuine => Ok(TrustedBy::Vendor),
            PlatformTrust::Registry(RegistryTrust { file, minimum_version }) => {
                file.value.holds(*minimum_version, now)?;
                let Table { version, expires, ref records, .. } = *file.value.table();
                if !records.contains(&found) {
                    return Err(Rejection::Unregistered { found, version, count: records.len() });
                }
                Ok(TrustedBy::Registry { version, expires })
            }
            PlatformTrust::Pinned(machines) => {
                if !found.is_one() || !machines.contains(&found) {
                    return Err(Rejection::Chip { found, count: machines.len() });
                }
                Ok(TrustedBy::Pin)
            }
        }
    }

    /// Step 10: the statement itself, or a freshness statement over it, covers the challenge.
    /// Whether the challenge was covered; without one, [`MaxAge::Epoch`] is content.
    fn freshness(
        &self,
        bundle: &Bundle<'_>,
        statement: &Statement,
        evidence: &PlatformEvidence,
        challenge: &Challenge,
        max_age: MaxAge,
    ) -> Result<bool, Rejection> {
        let Some(nonce) = challenge.nonce else {
            return match max_age {
                MaxAge::Epoch => Ok(false),
                MaxAge::Fresh => Err(Rejection::ChallengeMissing),
            };
        };
        // Zero stands for "no challenge" in a statement, so it is none here either.
        if statement.nonce == nonce && nonce != [0; 32] {
            return Ok(true);
        }
        let (Kind::Serve, Some(section)) = (statement.kind, bundle.freshness) else {
            return Err(Rejection::Stale);
        };
        let section = Freshness::parse(section)?;
        let refresh = Statement::from_bytes(section.statement).map_err(Rejection::Statement)?;
        // The same enclave, in the same epoch, states the same, later, over the batch's root.
        let expected = Statement {
            kind: Kind::Freshness,
            nonce: section.path.root(&nonce),
            prev_digest: statement.digest(),
            uptime_ms: refresh.uptime_ms.max(statement.uptime_ms),
            ..statement.clone()
        };
        if refresh.nonce != expected.nonce {
            return Err(Rejection::Stale);
        }
        if refresh != expected {
            return Err(Rejection::FreshnessMismatch);
        }
        report_data(section.report, &refresh)?;
        let judge = self.statement(&refresh, Kind::Freshness)?;
        let fresh = self.evidence(bundle, section.report, judge, &refresh, challenge)?;
        if !evidence.same_guest(&fresh) {
            return Err(Rejection::FreshnessMismatch);
        }
        Ok(true)
    }
}

/// By whose keys, and by which demand, evidence is judged.
#[derive(Clone, Copy)]
enum Judge<'a> {
    Snp(Roots),
    Tdx(&'a TdxDemand),
}

impl Judge<'_> {
    /// Genuine, or simulated: the platform's GPUs are the one or the other with it.
    const fn roots(self) -> Roots {
        match self {
            Self::Snp(roots) => roots,
            Self::Tdx(_) => Roots::Amd,
        }
    }
}

/// Step 3: the report's 64 bytes commit to this statement.
fn report_data(report: &[u8], statement: &Statement) -> Result<(), Rejection> {
    let mut reader = Reader::new(report);
    let offset = match statement.tee {
        Tee::Tdx => quote::report_data_offset(report),
        Tee::SevSnp | Tee::Simulated => SNP_REPORT_DATA_OFFSET,
    };
    let bytes = reader.bytes(offset).and_then(|_| reader.array::<64>());
    let bytes = bytes.map_err(|error| Rejection::ReportData(StatementError::Codec(error)))?;
    let found = ReportData::from_bytes(&bytes).map_err(Rejection::ReportData)?;
    let expected = statement.report_data();
    let fields = [
        ("kind", found.kind == expected.kind),
        ("epoch", found.epoch == expected.epoch),
        ("digest", found.statement_digest == expected.statement_digest),
    ];
    match fields.into_iter().find(|&(_, equal)| !equal) {
        Some((field, _)) => Err(Rejection::ReportDataMismatch { field }),
        None => Ok(()),
    }
}

/// Step 5: the sealing key that the statement commits to. The digest is compared before anything
/// is read out of the bytes; so too below.
fn key_config(bytes: &[u8], statement: &Statement) -> Result<KeyConfig, Rejection> {
    let section = "key_config";
    if sha384(&[b"chrysalis1 keyconfig\0", bytes]) != statement.key_config_digest {
        return Err(Rejection::Digest { section });
    }
    let key_config = KeyConfig::from_bytes(bytes)
        .map_err(|error| Rejection::Layout { section, reason: error.to_string() })?;
    if key_config.epoch != statement.epoch {
        let (found, expected) = (key_config.epoch, statement.epoch);
        return Err(Rejection::KeyEpoch { found, expected });
    }
    Ok(key_config)
}

fn serving_policy(bytes: &[u8], statement: &Statement) -> Result<ServingPolicy, Rejection> {
    let section = "policy";
    if sha384(&[b"chrysalis1 policy\0", bytes]) != statement.policy_digest {
        return Err(Rejection::Digest { section });
    }
    ServingPolicy::from_bytes(bytes)
        .map_err(|error| Rejection::Layout { section, reason: error.to_string() })
}

fn package(bytes: &[u8], statement: &Statement) -> Result<(Header, SignatureBlock), Rejection> {
    let section = "package";
    let layout = |reason: String| Rejection::Layout { section, reason };
    let mut reader = Reader::new(bytes);
    let header = reader.array().map_err(|error| layout(error.to_string()))?;
    if sha384(&[b"chrysalis1 package\0", &header]) != statement.package_digest {
        return Err(Rejection::Digest { section });
    }
    let header = Header::from_bytes(&header).map_err(|error| layout(error.to_string()))?;
    let signature = reader.array().map_err(|error| layout(error.to_string()))?;
    let signature =
        SignatureBlock::from_bytes(&signature).map_err(|error| layout(error.to_string()))?;
    reader.finish().map_err(|error| layout(error.to_string()))?;
    if content_digest(&header) != statement.content_digest {
        return Err(Rejection::Digest { section: "content" });
    }
    if header.model_svn != statement.model_svn {
        let (found, expected) = (header.model_svn, statement.model_svn);
        return Err(Rejection::PackageSvn { found, expected });
    }
    Ok((header, signature))
}

/// Where `REPORT_DATA` lies in an SEV-SNP report.
const SNP_REPORT_DATA_OFFSET: usize = 0x50;
