//! Enclaves that only wait for a key: evidence of kind 2 on the simulated platform, as many as a test wants.

use std::fs;

use chrysalis_attestation::attester::Attester;
use chrysalis_attestation::attester::simulated::Simulated;
use chrysalis_protocol::hpke::KemKeyPair;
use chrysalis_protocol::key_release::{self, KeyRelease};
use chrysalis_protocol::messages::KeyrelReq;
use chrysalis_protocol::package::PublicHeader;
use chrysalis_protocol::statement::{KeyConfig, Kind, Statement};
use chrysalis_runtime::boot::SIMULATED_MEASUREMENT;
use chrysalis_runtime::config::LaunchConfig;
use chrysalis_runtime::epoch::{Identity, Stated};
use chrysalis_runtime::rng::SystemRng;

/// What an enclave of a package would state.
pub(super) struct Enclave {
    identity: Identity,
    package: PublicHeader,
    attester: Simulated,
}

/// Evidence, and the key pair that opens what is sealed for it.
pub(super) struct Asked {
    pub(super) bundle: Vec<u8>,
    pub(super) digest: [u8; 48],
    keys: KemKeyPair,
}

impl Enclave {
    pub(super) fn of(package: &str) -> Self {
        let public = PublicHeader::parse(&fs::read(package).unwrap()).unwrap();
        let config = LaunchConfig::default();
        let attester = Simulated::new(config.digest(), SIMULATED_MEASUREMENT).unwrap();
        let identity = Identity {
            tee: attester.tee(),
            boot_id: [7; 16],
            receipt_key: [9; 32],
            content_digest: public.content_digest(),
            package_digest: public.package_digest(),
            model_svn: public.header().model_svn,
            package_head: public.to_bytes().to_vec(),
            policy: config.serving_policy(),
            runtime_digest: [0; 48],
            launch_config_digest: config.digest(),
            gpu_required: false,
        };
        Self { identity, package: public, attester }
    }

    /// What it tells whoever connects.
    pub(super) fn request(&self) -> KeyrelReq {
        KeyrelReq {
            package_id: self.package.header().package_id,
            package_digest: self.package.package_digest(),
        }
    }

    /// Evidence over a challenge.
    pub(super) fn ask(&mut self, challenge: [u8; 32]) -> Asked {
        self.state(challenge, |_| {})
    }

    /// Evidence over a challenge, for a statement that a test changed.
    pub(super) fn state(
        &mut self,
        challenge: [u8; 32],
        change: impl FnOnce(&mut Statement),
    ) -> Asked {
        let keys = KemKeyPair::generate(&mut SystemRng::default());
        let key_config = KeyConfig { epoch: 0, sealing_key: keys.sealing_key().clone() };
        let digest = key_config.digest();
        let mut statement = self.identity.statement(Kind::KeyRelease, 0, digest, 1);
        statement.nonce = challenge;
        change(&mut statement);
        let Stated { statement, attested } = Stated::new(&mut self.attester, statement).unwrap();
        let bundle = self.identity.bundle(&statement, &attested, &key_config, None);
        Asked { bundle, digest: statement.digest(), keys }
    }
}

impl Asked {
    /// Opens what the broker sealed, as the enclave would.
    pub(super) fn open(self, sealed: &[u8]) -> KeyRelease {
        key_release::open(self.keys, &self.digest, sealed).unwrap_or_else(|error| panic!("{error}"))
    }
}
