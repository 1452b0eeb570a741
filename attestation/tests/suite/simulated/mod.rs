//! An honest enclave on the simulated platform, every part of which a test may change.

pub(crate) mod der;
pub(crate) mod issue;
pub(crate) mod revocations;

use aws_lc_rs::rsa::KeyPair as RsaKeyPair;
use aws_lc_rs::signature::{
    ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _,
};
use chrysalis_attestation::attester::Attester;
use chrysalis_attestation::attester::simulated::{CHIP_ID, Simulated, TCB, honest_report};
use chrysalis_attestation::policy::{
    AppraisalPolicy, Challenge, Dangerous, FloorTable, Floors, FromFile, MaxAge, PlatformTrust,
    Rejection, ServingDemand, SnpDemand,
};
use chrysalis_attestation::report::{Report, Tcb};
use chrysalis_attestation::verifier::{HardwareId, RevocationList};
use chrysalis_protocol::bundle::{Bundle, Endorsements};
use chrysalis_protocol::hash::{sha256, sha384};
use chrysalis_protocol::hpke::KemKeyPair;
use chrysalis_protocol::package::{
    Header, PackageKey, SignatureBlock, content_digest, package_digest,
};
use chrysalis_protocol::secret::Secret;
use chrysalis_protocol::statement::{
    GpuFlags, KeyConfig, Kind, PadProfile, ServingPolicy, Statement, Tee,
};
use issue::Draft;
use revocations::ListDraft;

/// 2026-06-01.
pub(crate) const NOW: u64 = 1_780_272_000;
pub(crate) const NONCE: [u8; 32] = [0xC4; 32];
pub(crate) const MEASUREMENT: [u8; 48] = [0x3E; 48];
pub(crate) const LAUNCH_CONFIG: [u8; 32] = [0x1A; 32];

/// The enclave's side: claims that fit together, until a test changes one.
#[derive(Clone)]
pub(crate) struct World {
    pub statement: Statement,
    pub key_config: KeyConfig,
    pub serving: ServingPolicy,
    pub header: Header,
    pub report: Report,
    /// A certificate other than the published one.
    pub draft: Option<Draft>,
    /// What the verifier knows and wants.
    pub policy: AppraisalPolicy,
    pub challenge: Challenge,
}

/// The sections of a bundle, as bytes.
#[derive(Clone)]
pub(crate) struct Parts {
    pub statement: Vec<u8>,
    pub report: Vec<u8>,
    pub key_config: Vec<u8>,
    pub policy: Vec<u8>,
    pub gpu: Option<Vec<u8>>,
    pub package: Vec<u8>,
    pub freshness: Option<Vec<u8>>,
    pub vcek: Option<Vec<u8>>,
    pub gpu_rim: Option<Vec<u8>>,
    pub collateral: Option<Vec<u8>>,
}

impl World {
    /// An enclave that serves, and a policy that accepts it.
    pub(crate) fn honest() -> Self {
        let kem = sealing_keys();
        let header = header();
        let mut world = Self {
            statement: Statement {
                kind: Kind::Serve,
                tee: Tee::Simulated,
                gpu_required: false,
                debug_build: false,
                epoch: 7,
                boot_id: [0xB0; 16],
                nonce: NONCE,
                key_config_digest: [0; 48],
                receipt_key: [0x9E; 32],
                content_digest: [0; 48],
                package_digest: [0; 48],
                policy_digest: [0; 48],
                gpu_digest: [0; 48],
                gpu_count: 0,
                gpu_flags: GpuFlags::default(),
                model_svn: header.model_svn,
                prev_digest: [0; 48],
                runtime_digest: [0x44; 48],
                launch_config_digest: LAUNCH_CONFIG,
                uptime_ms: 1_000,
            },
            key_config: KeyConfig { epoch: 7, sealing_key: kem.sealing_key().clone() },
            serving: ServingPolicy::default(),
            report: honest_report(LAUNCH_CONFIG, MEASUREMENT),
            draft: None,
            policy: policy(&header),
            header,
            challenge: Challenge { nonce: Some(NONCE), now_unix: NOW },
        };
        world.link();
        world
    }

    /// The statement commits to the sections as they are now.
    pub(crate) fn link(&mut self) {
        self.statement.key_config_digest = self.key_config.digest();
        self.statement.policy_digest = self.serving.digest();
        self.statement.package_digest = package_digest(&self.header);
        self.statement.content_digest = content_digest(&self.header);
    }

    /// The published certificate again, as a draft to be changed.
    pub(crate) fn vcek(&mut self, product: &str, tcb: Tcb, hwid: &[u8]) -> &mut Draft {
        let point = vcek_key();
        let point = point.public_key().as_ref();
        self.draft.insert(Draft::vcek("SEV-Simulated", product, tcb, hwid, point))
    }

    /// The honest certificate as a draft to be changed.
    pub(crate) fn honest_vcek(&mut self) -> &mut Draft {
        self.vcek("Genoa", TCB, &CHIP_ID)
    }

    /// The evidence of this enclave.
    pub(crate) fn parts(&self) -> Parts {
        let (report, vcek) = self.attest(&self.statement);
        Parts {
            statement: self.statement.to_bytes().to_vec(),
            report,
            key_config: self.key_config.to_bytes().to_vec(),
            policy: self.serving.to_bytes().to_vec(),
            gpu: None,
            package: sign_package(&self.header),
            freshness: None,
            vcek: Some(vcek),
            gpu_rim: None,
            collateral: None,
        }
    }

    /// A report over `statement`, and the certificate.
    pub(crate) fn attest(&self, statement: &Statement) -> (Vec<u8>, Vec<u8>) {
        let vcek = match &self.draft {
            Some(draft) => draft.sign(&ask_key()).expect("the key signs"),
            None => include_bytes!("../../../src/roots/simulated/vcek.der").to_vec(),
        };
        let mut attester = Simulated::from_parts(self.report.clone(), VCEK_KEY, vcek)
            .expect("the published key is a key");
        let evidence = attester.attest(&statement.report_data().to_bytes()).expect("it signs");
        let [(_, vcek)] = evidence.endorsements.try_into().expect("one certificate");
        (evidence.report, vcek)
    }

    /// A floors file like the one in the program, but for one change, signed by a key of the tests.
    pub(crate) fn floors(&mut self, change: impl FnOnce(&mut FloorTable)) {
        let mut table = Floors::built_in().expect("the program is whole").table().clone();
        change(&mut table);
        let file = table.sign(&floors_key());
        let signer = floors_key().public_key().as_ref().try_into().expect("32 bytes");
        let value = Floors::open(&file, &signer).expect("it was just signed");
        self.policy.snp.floors = Some(FromFile { path: "test.floors".to_owned(), value });
    }

    /// A revocation list that the verifier has.
    pub(crate) fn revoke(&mut self, list: &ListDraft) {
        let der = list.sign(&ark_key()).expect("the key signs");
        let value = RevocationList::open(&der).expect("it was just signed");
        let path = "test.crl".to_owned();
        self.policy.snp.revocation_lists.push(FromFile { path, value });
    }

    pub(crate) fn appraise(&self, parts: &Parts) -> Result<(), Rejection> {
        self.policy.appraise(&parts.bundle(), &self.challenge).map(|_| ())
    }
}

impl Parts {
    pub(crate) fn bundle(&self) -> Vec<u8> {
        let bundle = Bundle {
            statement: &self.statement,
            report: &self.report,
            key_config: &self.key_config,
            policy: &self.policy,
            gpu: self.gpu.as_deref(),
            package: &self.package,
            freshness: self.freshness.as_deref(),
            endorsements: Endorsements {
                vcek: self.vcek.as_deref(),
                gpu_rim: self.gpu_rim.as_deref(),
                tdx_collateral: self.collateral.as_deref(),
                ..Endorsements::default()
            },
        };
        bundle.to_bytes()
    }
}

/// The policy that accepts the honest enclave and nothing else.
pub(crate) fn policy(header: &Header) -> AppraisalPolicy {
    AppraisalPolicy {
        content_digests: vec![content_digest(header)],
        publishers: vec![header.publisher_key_id],
        client_bundles: vec![[0; 32]],
        minimum_svn: header.model_svn,
        measurements: vec![MEASUREMENT],
        allow_simulated: true,
        platform: PlatformTrust::Pinned(vec![HardwareId::Chip(CHIP_ID)]),
        max_age: MaxAge::Fresh,
        serving: ServingDemand {
            pad_profiles: vec![PadProfile::Tick, PadProfile::Flat],
            min_tick_ms: 50,
            max_tick_ms: 50,
            min_length_quantum: 16,
            min_billing_quantum: 64,
            max_epoch_seconds: 3_600,
            max_epoch_requests: 1 << 20,
            allow_text_mode: false,
            allow_kv_sharing: false,
            allow_spec_decode: false,
            allow_moe_on_cpu: false,
            require_oblivious_embed: false,
            max_ack_window: None,
        },
        snp: SnpDemand::default(),
        gpu: None,
        tdx: None,
        dangerous: Dangerous::default(),
    }
}

pub(crate) fn sealing_keys() -> KemKeyPair {
    KemKeyPair::derive(&Secret::from([0x5E; 32]))
}

pub(crate) fn package_key() -> PackageKey {
    PackageKey::new(Secret::from([0x4D; 32]))
}

fn header() -> Header {
    Header {
        sealed: false,
        segment_log2: 21,
        blob_log2: 34,
        package_id: [0x1D; 16],
        data_len: 1 << 22,
        meta_len: 4_096,
        model_svn: 3,
        meta_root: [1; 32],
        data_root: [2; 32],
        table_root: [3; 32],
        key_commit: [0; 32],
        publisher_key_id: sha256(&[publisher().public_key().as_ref()]),
    }
}

pub(crate) fn sign_package(header: &Header) -> Vec<u8> {
    let publisher = publisher();
    let message = [b"chrysalis1 pkgsig\0".as_slice(), &package_digest(header)].concat();
    let signature = publisher.sign(&message);
    let block = SignatureBlock {
        public_key: publisher.public_key().as_ref().try_into().expect("32 bytes"),
        signature: signature.as_ref().try_into().expect("64 bytes"),
    };
    [header.to_bytes().as_slice(), &block.to_bytes()].concat()
}

/// What a statement commits to a key configuration by, for bytes that are none.
pub(crate) fn key_config_digest(bytes: &[u8]) -> [u8; 48] {
    sha384(&[b"chrysalis1 keyconfig\0", bytes])
}

fn publisher() -> Ed25519KeyPair {
    Ed25519KeyPair::from_seed_unchecked(&[0x70; 32]).expect("any seed is a key")
}

fn vcek_key() -> EcdsaKeyPair {
    EcdsaKeyPair::from_pkcs8(&ECDSA_P384_SHA384_FIXED_SIGNING, VCEK_KEY).expect("a P-384 key")
}

/// Signs floors files of the tests.
pub(crate) fn floors_key() -> Ed25519KeyPair {
    Ed25519KeyPair::from_seed_unchecked(&[0xF1; 32]).expect("any seed is a key")
}

pub(crate) fn ark_key() -> RsaKeyPair {
    RsaKeyPair::from_pkcs8(include_bytes!("../../../src/roots/simulated/ark_key.pk8"))
        .expect("the published key is a key")
}

pub(crate) fn ask_key() -> RsaKeyPair {
    RsaKeyPair::from_pkcs8(include_bytes!("../../../src/roots/simulated/ask_key.pk8"))
        .expect("the published key is a key")
}

const VCEK_KEY: &[u8] = include_bytes!("../../../src/roots/simulated/vcek_key.pk8");
