//! Nothing of a bundle's GPU sections can be changed, cut or extended.

use std::num::NonZero;
use std::thread;
use std::time::Instant;

use aws_lc_rs::digest::{SHA384, digest};
use chrysalis_attestation::gpu::GpuRoots;
use chrysalis_attestation::verifier::gpu::{endorsements_of_use, verify_gpus};
use chrysalis_protocol::freshness::{Freshness, Tree};
use chrysalis_protocol::gpu::{Device, GpuEndorsements};
use chrysalis_protocol::hpke::KemKeyPair;
use chrysalis_protocol::secret::Secret;
use chrysalis_protocol::statement::{Kind, Statement, gpu_digest};

use super::device::root_key;
use super::issue::root_name;
use super::rim::RimDraft;
use super::world::GpuWorld;
use crate::simulated::der::tlv;
use crate::simulated::{NONCE, NOW, Parts};
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

/// A section of another boot's evidence in place of this one's.
type Swap = fn(&mut Parts, &Parts);
/// What is different, and how.
type Other = (&'static str, fn(&mut GpuWorld));

/// Enclaves with the same GPUs, each accepted by itself.
const OTHERS: [Other; 5] = [
    ("another boot", |w| {
        w.world.statement.boot_id = [1; 16];
        w.world.report.report_id = [1; 32];
    }),
    ("another epoch", |w| {
        w.world.statement.epoch = 8;
        w.world.key_config.epoch = 8;
    }),
    ("another key", |w| {
        let keys = KemKeyPair::derive(&Secret::from([1; 32]));
        w.world.key_config.sealing_key = keys.sealing_key().clone();
    }),
    ("another model", |w| w.world.header.data_root = [9; 32]),
    ("other gpus", |w| {
        let others = GpuWorld::honest(2);
        (w.devices, w.signer, w.statuses) = (others.devices, others.signer, others.statuses);
    }),
];

#[test]
fn no_mixture_of_two_boots_evidence_and_gpus_is_accepted() {
    let swaps: [Swap; 6] = [
        |to, from| to.statement.clone_from(&from.statement),
        |to, from| to.report.clone_from(&from.report),
        |to, from| to.key_config.clone_from(&from.key_config),
        |to, from| to.package.clone_from(&from.package),
        |to, from| to.freshness.clone_from(&from.freshness),
        // What vouches for GPUs goes along: by itself it belongs to no enclave.
        |to, from| {
            to.gpu.clone_from(&from.gpu);
            to.gpu_rim.clone_from(&from.gpu_rim);
        },
    ];
    let mut mixtures = 0;
    let nonces = [NONCE, [0; 32]];
    for ((other, change), nonce) in OTHERS.iter().flat_map(|row| nonces.map(|nonce| (row, nonce))) {
        let mut here = GpuWorld::honest(2);
        here.world.statement.nonce = nonce;
        let honest = fresh(&here);
        change(&mut here);
        let foreign = fresh(&here);
        let mut judge = here.world.clone();
        let models = [&honest, &foreign].map(|parts| {
            Statement::from_bytes(&parts.statement).expect("a statement").content_digest
        });
        judge.policy.content_digests = models.to_vec();
        for taken in 0..1_u32 << swaps.len() {
            let mut parts = honest.clone();
            for (bit, swap) in swaps.iter().enumerate() {
                if taken >> bit & 1 == 1 {
                    swap(&mut parts, &foreign);
                }
            }
            let expected = [&honest, &foreign].iter().any(|of| signed(&parts) == signed(of));
            let found = judge.appraise(&parts);
            assert_eq!(found.is_ok(), expected, "{taken:#08b} of {other}: {found:?}");
            mixtures += usize::from(!expected);
        }
    }
    println!("{mixtures} mixtures of two boots' evidence with GPUs, none accepted");
}

/// Evidence over the challenge itself, or of an epoch and refreshed over a batch in which it is.
fn fresh(world: &GpuWorld) -> Parts {
    let mut parts = world.parts();
    let served = Statement::from_bytes(&parts.statement).expect("a statement");
    if served.nonce != NONCE {
        let tree = Tree::new(&[[1; 32], NONCE]).expect("a batch");
        let (nonce, prev_digest) = (tree.root(), served.digest());
        let statement = Statement { kind: Kind::Freshness, nonce, prev_digest, ..served };
        let (report, _) = world.world.attest(&statement);
        let path = tree.path(1).expect("two leaves");
        let section = Freshness { statement: &statement.to_bytes(), report: &report, path };
        parts.freshness = Some(section.to_bytes());
    }
    parts
}

/// What has to be of one enclave, without the platform's signatures, which differ each time.
fn signed(parts: &Parts) -> [Vec<u8>; 6] {
    let freshness = parts.freshness.as_deref().unwrap_or_default();
    [
        parts.statement.clone(),
        parts.report[..0x2A0].to_vec(),
        parts.key_config.clone(),
        parts.package.clone(),
        // Statement 512, length 4, report.
        freshness.get(..512 + 4 + 0x2A0).unwrap_or_default().to_vec(),
        parts.gpu.clone().unwrap_or_default(),
    ]
}

#[test]
fn of_what_is_at_hand_what_is_of_use_is_taken_and_the_rest_is_asked_for() {
    let mut world = GpuWorld::honest(1);
    let evidence = world.parts().gpu.unwrap();
    let whole = world.parts().gpu_rim.unwrap();
    let mine = GpuEndorsements::parse(&whole).unwrap();
    // A folder of many machines': other versions, other devices, an older status, and other files.
    let stranger = GpuWorld::protected_pcie().parts().gpu_rim.unwrap();
    let mut stranger = GpuEndorsements::parse(&stranger).unwrap();
    stranger.rims.retain(|rim| rim.windows(6).any(|text| text == b"SWITCH"));
    assert_eq!(stranger.rims.len(), 1);
    world.driver_rim.version = "570.1.1".to_owned();
    world.switch_rim = Some(RimDraft { edition: "SWITCH", ..world.vbios_rim.clone() });
    world.vbios_rim.product = "GB100".to_owned();
    world.statuses[0].this_update = "20260530000000Z";
    world.statuses[0].next_update = "20260531000000Z";
    let old = world.parts().gpu_rim.unwrap();
    let old = GpuEndorsements::parse(&old).unwrap();
    let all = GpuEndorsements {
        rims: [&mine.rims[..], &old.rims, &stranger.rims, &[b"<a/>"]].concat(),
        statuses: [&mine.statuses[..], &old.statuses, &stranger.statuses, &[b"0"]].concat(),
    };
    let taken = endorsements_of_use(&evidence, &all);
    let world = GpuWorld { driver_rim: GpuWorld::honest(1).driver_rim, ..world };
    let mut parts = world.parts();
    let statement = Statement::from_bytes(&parts.statement).unwrap();
    parts.gpu_rim = Some(taken);
    // The older manifests were signed by the same signer, and these are accepted whole.
    let evidence = parts.gpu.clone().unwrap();
    let section = parts.gpu_rim.unwrap();
    let verified =
        verify_gpus(&evidence, Some(&section), &statement, GpuRoots::Simulated, NOW).unwrap();
    assert_eq!(verified.without_status(), []);
    assert!(verified.devices()[0].driver_compared && verified.devices()[0].vbios_compared);

    // Nothing at hand: what is wanted has its names, and questions that the statuses answer.
    let none = endorsements_of_use(&evidence, &GpuEndorsements::default());
    let verified =
        verify_gpus(&evidence, Some(&none), &statement, GpuRoots::Simulated, NOW).unwrap();
    let [wanted] = verified.without_status() else { panic!("one device's certificate") };
    let name = "GH100 A01 GSP BROM of Chrysalis simulated GPU root, proves nothing (serial 01)";
    assert_eq!(wanted.certificate, name);
    assert_eq!(wanted.request[..4], [0x30, 0x7E, 0x30, 0x7C]);
    let hash = |bytes: &[u8]| digest(&SHA384, bytes).as_ref().to_vec();
    let id = [hash(&root_name()), hash(root_key().point())].map(|hash| tlv(0x04, &hash)).concat();
    assert!(wanted.request.ends_with(&[id.as_slice(), &[0x02, 0x01, 0x01]].concat()));
    let device = &verified.devices()[0];
    assert_eq!(device.driver_manifest.as_deref(), Some("NV_GPU_DRIVER_GH100_580.95.05"));
    // No section at all says the same as an empty one.
    assert_eq!(
        verify_gpus(&evidence, None, &statement, GpuRoots::Simulated, NOW).as_ref(),
        Ok(&verified)
    );
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
