//! Epochs: a fresh sealing key, the statement that names it, the evidence for both, and the replay set that dies with it.

use chrysalis_attestation::attester::{Attested, Attester, AttesterError, attest_statement};
use chrysalis_protocol::bundle::{Bundle, Endorsements};
use chrysalis_protocol::hpke::KemKeyPair;
use chrysalis_protocol::rand_core::CryptoRng;
use chrysalis_protocol::statement::{GpuFlags, KeyConfig, Kind, ServingPolicy, Statement, Tee};

use crate::replay::ReplaySet;

/// What stays the same through all epochs of a boot.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The platform.
    pub tee: Tee,
    /// Random, once for each boot.
    pub boot_id: [u8; 16],
    /// Verifies this boot's receipts.
    pub receipt_key: [u8; 32],
    /// The model's identity.
    pub content_digest: [u8; 48],
    /// The package's identity.
    pub package_digest: [u8; 48],
    /// The model's security version.
    pub model_svn: u32,
    /// Header and signature block, as clients verify them.
    pub package_head: Vec<u8>,
    /// How this enclave serves.
    pub policy: ServingPolicy,
    /// SHA-384 of the runtime's binary.
    pub runtime_digest: [u8; 48],
    /// SHA-256 of the launch config.
    pub launch_config_digest: [u8; 32],
    /// Whether the launch config asks for GPUs.
    pub gpu_required: bool,
}

impl Identity {
    /// A statement of this boot about one key.
    pub fn statement(
        &self,
        kind: Kind,
        epoch: u32,
        key_config_digest: [u8; 48],
        uptime_ms: u64,
    ) -> Statement {
        Statement {
            kind,
            tee: self.tee,
            gpu_required: self.gpu_required,
            debug_build: cfg!(debug_assertions),
            epoch,
            boot_id: self.boot_id,
            nonce: [0; 32],
            key_config_digest,
            receipt_key: self.receipt_key,
            content_digest: self.content_digest,
            package_digest: self.package_digest,
            policy_digest: self.policy.digest(),
            gpu_digest: [0; 48],
            gpu_count: 0,
            gpu_flags: GpuFlags::default(),
            model_svn: self.model_svn,
            prev_digest: [0; 48],
            runtime_digest: self.runtime_digest,
            launch_config_digest: self.launch_config_digest,
            uptime_ms,
        }
    }

    /// The bundle that carries a statement, its evidence and what it commits to.
    pub fn bundle(
        &self,
        statement: &Statement,
        attested: &Attested,
        key_config: &KeyConfig,
        freshness: Option<&[u8]>,
    ) -> Vec<u8> {
        let endorsement = |kind: u16| {
            attested
                .evidence
                .endorsements
                .iter()
                .find(|(found, _)| *found == kind)
                .map(|(_, value)| &value[..])
        };
        Bundle {
            statement: &statement.to_bytes(),
            report: &attested.evidence.report,
            key_config: &key_config.to_bytes(),
            policy: &self.policy.to_bytes(),
            gpu: attested.gpus.as_deref(),
            package: &self.package_head,
            freshness,
            endorsements: Endorsements {
                vcek: endorsement(0x81),
                tdx_collateral: endorsement(0x82),
                gpu_rim: endorsement(0x83),
                registry_proof: endorsement(0x84),
            },
        }
        .to_bytes()
    }
}

/// A statement and the evidence for it.
#[derive(Clone, Debug)]
pub struct Stated {
    /// With the GPUs' fields, where there are any.
    pub statement: Statement,
    /// The platform's and the GPUs' evidence.
    pub attested: Attested,
}

impl Stated {
    /// Has first the GPUs and then the platform attest `statement`. One that refreshes another has what the GPUs gave
    /// for that one: they answer once for each key.
    ///
    /// # Errors
    /// The attester's.
    pub fn new(
        attester: &mut dyn Attester,
        mut statement: Statement,
    ) -> Result<Self, AttesterError> {
        let attested = if statement.kind == Kind::Freshness {
            let evidence = attester.attest(&statement.report_data().to_bytes())?;
            Attested { evidence, gpus: None }
        } else {
            attest_statement(attester, &mut statement)?
        };
        Ok(Self { statement, attested })
    }
}

/// One epoch.
#[expect(missing_debug_implementations, reason = "it holds the private key")]
pub struct Epoch {
    /// Counted from 1.
    pub number: u32,
    /// The key pair to which requests are sealed.
    pub keys: KemKeyPair,
    /// The public half, as clients get it.
    pub key_config: KeyConfig,
    /// First bytes of the key config's digest: how a request names this epoch.
    pub key_id: [u8; 8],
    /// The serve statement.
    pub statement: Statement,
    /// Its digest, to which every request of the epoch is bound.
    pub statement_digest: [u8; 48],
    /// The platform's and the GPUs' evidence for the statement.
    pub attested: Attested,
    /// What this key has opened.
    pub replay: ReplaySet,
    /// When it began.
    pub began_ms: u64,
}

impl Epoch {
    /// Makes a key, states it, and has the platform attest the statement.
    ///
    /// # Errors
    /// The attester's: without evidence there is no epoch.
    pub fn begin(
        identity: &Identity,
        previous: Option<&Self>,
        attester: &mut dyn Attester,
        rng: &mut impl CryptoRng,
        now_ms: u64,
    ) -> Result<Self, AttesterError> {
        let draft = Draft::new(identity, previous, rng, now_ms);
        let stated = Stated::new(attester, draft.statement.clone())?;
        Ok(draft.attested(stated, &identity.policy))
    }
}

/// An epoch that the platform has not attested yet: nobody is told of its key.
#[expect(missing_debug_implementations, reason = "it holds the private key")]
pub struct Draft {
    keys: KemKeyPair,
    key_config: KeyConfig,
    statement: Statement,
}

impl Draft {
    /// Makes a key and states it.
    pub fn new(
        identity: &Identity,
        previous: Option<&Epoch>,
        rng: &mut impl CryptoRng,
        now_ms: u64,
    ) -> Self {
        let number = previous.map_or(1, |epoch| epoch.number.saturating_add(1));
        let keys = KemKeyPair::generate(rng);
        let key_config = KeyConfig { epoch: number, sealing_key: keys.sealing_key().clone() };
        let mut statement = identity.statement(Kind::Serve, number, key_config.digest(), now_ms);
        statement.prev_digest = previous.map_or([0; 48], |epoch| epoch.statement_digest);
        Self { keys, key_config, statement }
    }

    /// What is to be attested.
    pub fn statement(&self) -> &Statement {
        &self.statement
    }

    /// The epoch, with the evidence that was made for [`Self::statement`]. It is as old as its statement.
    pub fn attested(self, stated: Stated, policy: &ServingPolicy) -> Epoch {
        let Self { keys, key_config, .. } = self;
        let Stated { statement, attested } = stated;
        Epoch {
            number: statement.epoch,
            key_id: key_config.key_id(),
            keys,
            key_config,
            statement_digest: statement.digest(),
            began_ms: statement.uptime_ms,
            statement,
            attested,
            replay: ReplaySet::new(policy.epoch_max_requests as usize),
        }
    }
}

/// The current epoch, and the one before it while its grace lasts.
#[expect(missing_debug_implementations, reason = "it holds private keys")]
pub struct Epochs {
    current: Epoch,
    previous: Option<(Epoch, u64)>,
    grace_ms: u64,
}

impl Epochs {
    /// Starts with the first epoch.
    pub fn new(first: Epoch, grace_ms: u64) -> Self {
        Self { current: first, previous: None, grace_ms }
    }

    /// The epoch that new clients are told of.
    pub fn current(&self) -> &Epoch {
        &self.current
    }

    /// Whether the current epoch has lived its time or taken all its requests.
    pub fn is_due(&self, policy: &ServingPolicy, now_ms: u64) -> bool {
        let age_ms = now_ms.saturating_sub(self.current.began_ms);
        age_ms >= u64::from(policy.epoch_max_seconds) * 1_000 || self.current.replay.is_full()
    }

    /// When the current epoch has lived its time.
    pub fn due_ms(&self, policy: &ServingPolicy) -> u64 {
        self.current.began_ms.saturating_add(u64::from(policy.epoch_max_seconds) * 1_000)
    }

    /// The next epoch begins; the one before the last is forgotten, its key wiped.
    pub fn rotate(&mut self, next: Epoch, now_ms: u64) {
        let retired = std::mem::replace(&mut self.current, next);
        self.previous = Some((retired, now_ms));
    }

    /// Forgets the previous epoch when its grace is over.
    pub fn expire(&mut self, now_ms: u64) {
        if self.previous.as_ref().is_some_and(|(_, at)| now_ms.saturating_sub(*at) >= self.grace_ms)
        {
            self.previous = None;
        }
    }

    /// The epoch that a request names, if its key still lives.
    pub fn by_key_id(&mut self, key_id: &[u8; 8], now_ms: u64) -> Option<&mut Epoch> {
        self.expire(now_ms);
        if self.current.key_id == *key_id {
            return Some(&mut self.current);
        }
        self.previous.as_mut().map(|(epoch, _)| epoch).filter(|epoch| epoch.key_id == *key_id)
    }
}
