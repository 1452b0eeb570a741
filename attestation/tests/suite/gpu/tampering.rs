//! Nothing of a bundle's GPU sections can be changed, cut or extended.

use std::num::NonZero;
use std::thread;
use std::time::Instant;

use chrysalis_attestation::gpu::GpuRoots;
use chrysalis_attestation::verifier::gpu::verify_gpus;
use chrysalis_protocol::gpu::{Device, GpuEndorsements};
use chrysalis_protocol::statement::{Statement, gpu_digest};

use super::world::GpuWorld;
use crate::simulated::NOW;
use crate::vectors::flipped;

#[test]
fn every_flipped_bit_of_the_evidence_and_of_what_vouches_for_it_is_refused() {
    let start = Instant::now();
    let world = GpuWorld::honest(1);
    let parts = world.parts();
    let statement = Statement::from_bytes(&parts.statement).unwrap();
    let (evidence, endorsements) = (parts.gpu.unwrap(), parts.gpu_rim.unwrap());
    let verify = |evidence: &[u8], endorsements: &[u8], statement: &Statement| {
        verify_gpus(evidence, Some(endorsements), statement, GpuRoots::Simulated, NOW).map(drop)
    };
    assert_eq!(verify(&evidence, &endorsements, &statement), Ok(()));

    // The statement commits to every bit of the evidence.
    for bit in 0..evidence.len() * 8 {
        let refused = verify(&flipped(&evidence, bit), &endorsements, &statement);
        assert_eq!(refused.map_err(|error| error.code()), Err("gpu.digest"), "bit {bit}");
    }

    // And a host that had the statement's commitment fit would still be refused.
    let step = step();
    let bits = [evidence.len() * 8, endorsements.len() * 8];
    let total = bits[0] + bits[1];
    let count = in_parallel((0..total).step_by(step), |bit| {
        if let Some(bit) = bit.checked_sub(bits[0]) {
            let refused = verify(&evidence, &flipped(&endorsements, bit), &statement);
            assert!(refused.is_err(), "bit {bit} of the endorsements");
        } else {
            let evidence = flipped(&evidence, bit);
            let digest = gpu_digest(&evidence);
            let statement = Statement { gpu_digest: digest, ..statement.clone() };
            assert!(verify(&evidence, &endorsements, &statement).is_err(), "bit {bit}");
        }
    });
    println!(
        "{} flipped bits against the digest, {count} of {total} against the rest, none accepted, \
         in {:.1} s",
        bits[0],
        start.elapsed().as_secs_f32()
    );
}

#[test]
fn cuts_extensions_and_foreign_sections_are_refused() {
    let world = GpuWorld::honest(1);
    let honest = world.parts();
    let foreign = GpuWorld::honest(1).parts();
    let endorsements = honest.gpu_rim.clone().unwrap();
    for len in (0..endorsements.len()).step_by(97) {
        let mut parts = honest.clone();
        parts.gpu_rim = Some(endorsements[..len].to_vec());
        assert!(world.world.appraise(&parts).is_err(), "cut at {len}");
    }
    let mut parts = honest.clone();
    parts.gpu_rim = Some([endorsements.as_slice(), &[0]].concat());
    assert_eq!(world.world.appraise(&parts).map_err(|e| e.code()), Err("gpu.endorsements"));
    // GPUs, and the manifests, of another enclave with the same claims.
    let mut parts = honest.clone();
    parts.gpu.clone_from(&foreign.gpu);
    assert_eq!(world.world.appraise(&parts).map_err(|e| e.code()), Err("gpu.digest"));
    let mut parts = honest.clone();
    parts.gpu_rim.clone_from(&foreign.gpu_rim);
    let refused = world.world.appraise(&parts).map_err(|error| error.code());
    // Another signer of manifests with the same name: its statuses are of other keys.
    assert!(refused.is_ok() || refused == Err("gpu.ocsp.unused"), "{refused:?}");
    // Both lists hold what they held before.
    assert!(GpuEndorsements::parse(&endorsements).is_ok());
    assert_eq!(Device::parse_all(honest.gpu.as_deref().unwrap()).unwrap().len(), 1);
}

/// Every how manieth bit is tried: each one with `CHRYSALIS_ALL_BITS`, otherwise a prime's
/// multiples, so that each bit of a byte has its turn.
pub(super) fn step() -> usize {
    if std::env::var_os("CHRYSALIS_ALL_BITS").is_some() { 1 } else { 331 }
}

/// Runs `check` for each number, on all cores.
pub(super) fn in_parallel(
    numbers: impl Iterator<Item = usize>,
    check: impl Fn(usize) + Sync,
) -> usize {
    let numbers: Vec<usize> = numbers.collect();
    let threads = thread::available_parallelism().map_or(1, NonZero::get);
    let check = &check;
    thread::scope(|scope| {
        for chunk in numbers.chunks(numbers.len().div_ceil(threads).max(1)) {
            scope.spawn(move || chunk.iter().for_each(|number| check(*number)));
        }
    });
    numbers.len()
}
