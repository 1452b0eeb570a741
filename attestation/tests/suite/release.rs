//! A package key goes only to an enclave that was appraised for that package, for that purpose.

use std::convert::Infallible;

use crate::simulated::{World, package_key, policy, sealing_keys};
use chrysalis_attestation::policy::{MaxAge, Rejection, ReleaseError, ReleaseTerms};
use chrysalis_protocol::hash::Prk;
use chrysalis_protocol::key_release;
use chrysalis_protocol::package::PackageKey;
use chrysalis_protocol::rand_core::{TryCryptoRng, TryRng};
use chrysalis_protocol::secret::Secret;
use chrysalis_protocol::statement::Kind;

const TERMS: ReleaseTerms = ReleaseTerms { min_model_svn: 3, lease_seconds: 60, lease_tokens: 0 };

#[test]
fn the_appraised_enclave_opens_the_key_of_its_package() {
    let world = asking();
    let bundle = world.parts().bundle();
    let verified =
        world.policy.appraise_key_release(&bundle, &world.challenge).expect("it is honest");
    let sealed = verified.seal(&package_key(), &TERMS, &mut Counter(0)).expect("its key");
    let digest = world.statement.digest();
    let opened = key_release::open(sealing_keys(), &digest, &sealed).expect("for this enclave");
    assert_eq!(opened.package_id, world.header.package_id);
    assert!(opened.package_key.expose() == package_key().expose());
    assert_eq!((opened.min_model_svn, opened.lease_seconds), (3, 60));
    assert!(key_release::open(sealing_keys(), &[0; 48], &sealed).is_err());
}

#[test]
fn another_packages_key_is_not_sealed() {
    let world = asking();
    let bundle = world.parts().bundle();
    let verified =
        world.policy.appraise_key_release(&bundle, &world.challenge).expect("it is honest");
    let other = PackageKey::new(Secret::from([1; 32]));
    let refused = verified.seal(&other, &TERMS, &mut Counter(0));
    assert_eq!(refused.map(|_| ()), Err(ReleaseError::Key { package_id: world.header.package_id }));
}

#[test]
fn a_serve_statement_gets_no_key_and_a_release_statement_no_request() {
    let world = World::honest();
    let bundle = world.parts().bundle();
    let refused = world.policy.appraise_key_release(&bundle, &world.challenge).map(|_| ());
    let (found, expected) = (Kind::Serve, Kind::KeyRelease);
    assert_eq!(refused, Err(Rejection::Kind { found, expected }));

    let world = asking();
    let (found, expected) = (Kind::KeyRelease, Kind::Serve);
    assert_eq!(world.appraise(&world.parts()), Err(Rejection::Kind { found, expected }));
}

#[test]
fn a_key_release_is_always_fresh() {
    let mut world = asking();
    world.policy.max_age = MaxAge::Epoch;
    world.challenge.nonce = None;
    let bundle = world.parts().bundle();
    let refused = world.policy.appraise_key_release(&bundle, &world.challenge).map(|_| ());
    assert_eq!(refused, Err(Rejection::ChallengeMissing));
    world.challenge.nonce = Some([0; 32]);
    let refused = world.policy.appraise_key_release(&bundle, &world.challenge).map(|_| ());
    assert_eq!(refused, Err(Rejection::Stale));
}

/// An enclave that asks for the key of a sealed package.
fn asking() -> World {
    let mut world = World::honest();
    world.header.sealed = true;
    let prk = Prk::extract(&world.header.package_id, package_key().expose());
    world.header.key_commit = *prk.expand::<32>(&[b"chrysalis1 key commit"]).expose();
    world.statement.kind = Kind::KeyRelease;
    world.link();
    world.policy = policy(&world.header);
    world
}

/// Numbers that are not random: the tests are to be the same each time.
struct Counter(u64);

impl TryRng for Counter {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        self.try_next_u64().map(|value| value as u32)
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        self.0 += 1;
        Ok(self.0)
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Infallible> {
        for byte in bytes {
            *byte = self.try_next_u64()? as u8;
        }
        Ok(())
    }
}

impl TryCryptoRng for Counter {}
