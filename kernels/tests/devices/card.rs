//! The driver over a card, on a driver library that runs the emulated kernels: what it computes, counts, refuses and wipes.

use std::process::Command;
use std::sync::Once;

use chrysalis_kernels::cuda::{
    Card, CardError, CardOptions, Cuda, Driver, Emulated, FAKE_IMAGE, load_fake_driver,
};
use chrysalis_kernels::device::{Device, DeviceError};
use chrysalis_kernels::{Batch, Dtype, WantLogits};

use crate::common::{Random, bits, buffer, read};
use crate::linear::product;

fn options(mib: usize) -> CardOptions {
    CardOptions { number: 0, memory: Some(mib << 20) }
}

fn open(options: CardOptions) -> Result<Card, CardError> {
    static LOADED: Once = Once::new();
    LOADED.call_once(load_fake_driver);
    Card::open(FAKE_IMAGE, options)
}

fn card() -> Cuda<Card> {
    Cuda::new(open(options(16)).unwrap())
}

#[test]
fn the_card_computes_what_the_emulator_computes() {
    let (out, cols) = (35, 256);
    for (dtype, rows) in [(Dtype::Bf16, 1), (Dtype::Q4K, 5), (Dtype::F32, 17)] {
        let mut random = Random(3);
        let (weight, x) = (random.matrix(dtype, out, cols), random.values(rows * cols));
        let found = product(&card(), dtype, (out, cols, rows), &weight, &x, None);
        let emulated = Cuda::new(Emulated::default());
        let expected = product(&emulated, dtype, (out, cols, rows), &weight, &x, None);
        assert_eq!(bits(&found), bits(&expected), "{dtype:?}, {rows} rows");
    }
}

#[test]
fn bytes_come_back_as_they_went_through_more_than_all_pinned_buffers() {
    let card = open(options(64)).unwrap();
    let mut random = Random(11);
    let bytes: Vec<u8> = (0..50 << 17).flat_map(|_| random.next().to_le_bytes()).collect();
    let memory = card.reserve("a test", bytes.len()).unwrap();
    let before = card.crossings();
    card.write(&memory, 0, &bytes).unwrap();
    card.write(&memory, 7, &bytes[3..10]).unwrap();
    let mut found = vec![0; bytes.len()];
    card.read(&memory, 0, &mut found).unwrap();
    assert!(found[..7] == bytes[..7] && found[7..14] == bytes[3..10] && found[14..] == bytes[14..]);
    let crossed = card.crossings().since(before);
    let size = bytes.len() as u64;
    assert_eq!((crossed.bytes_in, crossed.bytes_out), (size + 7, size));
    assert_eq!((crossed.copies_in, crossed.copies_out, crossed.reservations), (14, 13, 0));
    assert!(card.write(&memory, bytes.len() - 1, &[0; 2]).is_err());
    assert!(card.read(&memory, usize::MAX, &mut [0; 2]).is_err());
}

#[test]
fn what_is_given_back_is_wiped_before_somebody_else_has_it() {
    let card = open(options(1)).unwrap();
    let first = card.reserve("a test", 1000).unwrap();
    card.write(&first, 0, &[7; 1000]).unwrap();
    let address = card.address(&first);
    assert_eq!(card.given_back(), 0);
    drop(first);
    assert_eq!(card.given_back(), 1);
    let second = card.reserve("a test", 900).unwrap();
    assert_eq!(card.address(&second), address);
    let mut found = [1; 900];
    card.read(&second, 0, &mut found).unwrap();
    assert_eq!(found, [0; 900]);
}

#[test]
fn a_full_card_says_how_much_was_left_of_how_much() {
    let card = open(options(1)).unwrap();
    let kept = card.reserve("KV cache", 600 << 10).unwrap();
    let error = card.reserve("weights", 600 << 10).unwrap_err().to_string();
    assert_eq!(
        error,
        "the device has no room for 614400 bytes (weights): 434176 of 1048576 bytes are left"
    );
    drop(kept);
    card.reserve("weights", 600 << 10).unwrap();
    let more = open(CardOptions { memory: Some(3 << 30), ..options(0) }).unwrap_err();
    assert!(matches!(more, CardError::Memory { wanted: 0xC000_0000, .. }), "{more}");
    assert!(matches!(open(options(0)).unwrap_err(), CardError::Memory { wanted: 0, .. }));
    let other = open(CardOptions { number: 1, ..options(1) }).unwrap_err().to_string();
    assert_eq!(other, "the NVIDIA driver finds 1 cards, and card 1 is asked for, counted from 0");
}

/// The example of a step: it fails somewhere, and the failure has a name; then the card is closed without harm.
fn step() -> Result<Vec<f32>, DeviceError> {
    let device = Cuda::new(open(options(8))?);
    let mut batch = Batch::default();
    batch.push(&[2, 0], 0, &[], WantLogits::None);
    let bytes: Vec<u8> = [1.0_f32, 2.0, 3.0].iter().flat_map(|x| x.to_le_bytes()).collect();
    let upload = device.begin_matrix(Dtype::F32, 3, 1)?;
    chrysalis_kernels::device::Upload::write(&upload, 0, &bytes)?;
    let table = chrysalis_kernels::device::Upload::finish(upload)?;
    let (mut out, mut step) = (device.buffer(2, 1)?, device.step(2)?);
    device.set_step(&mut step, &batch);
    device.embed(&step, &table, 1.0, &mut out);
    let mut found = vec![0.0; 2];
    for (row, x) in found.iter_mut().enumerate() {
        device.download(&out, row, std::slice::from_mut(x))?;
    }
    Ok(found)
}

/// It is also what the test below runs as a process of its own, having said what fails there.
#[test]
fn a_step_succeeds_or_tells_its_error() {
    match step() {
        Ok(found) => println!("found {found:?}"),
        Err(error) => {
            println!("error {error}");
            assert!(std::env::var_os(CHILD).is_some(), "{error}");
        }
    }
}

const CHILD: &str = "FAKE_CUDA_CHILD";

#[test]
fn what_fails_has_a_name_and_nothing_is_left_behind() {
    let run = |variables: &[(&str, &str)]| {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "card::a_step_succeeds_or_tells_its_error", "--nocapture"]);
        let output = command.env(CHILD, "").envs(variables.iter().copied()).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let errors = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{variables:?}: {text}{errors}");
        let found =
            text.lines().find(|line| line.starts_with("found") || line.starts_with("error"));
        found.unwrap_or("nothing").to_owned()
    };
    let fail = |call: &str| run(&[("FAKE_CUDA_FAIL", call)]);
    assert_eq!(run(&[]), "found [3.0, 1.0]");
    let expected = [
        (run(&[("FAKE_CUDA_CARDS", "0")]), "finds 0 cards"),
        (run(&[("FAKE_CUDA_CAPABILITY", "75")]), "no card, emulated has compute capability 7.5"),
        (run(&[("FAKE_CUDA_VERSION", "12040")]), "is for CUDA 12.4, and refuses kernels"),
        (run(&[("FAKE_CUDA_MEMORY", "1000")]), "has 1000 bytes of memory free, and 8388608"),
        (fail("cuInit"), "cuInit: CUDA_ERROR_LAUNCH_FAILED"),
        (fail("cuMemAlloc_v2"), "cuMemAlloc: CUDA_ERROR_OUT_OF_MEMORY"),
        (fail("cuMemHostAlloc:3"), "cuMemHostAlloc: CUDA_ERROR_OUT_OF_MEMORY"),
        (fail("cuStreamCreate"), "cuStreamCreate: CUDA_ERROR_LAUNCH_FAILED"),
        (fail("cuModuleGetFunction"), "cuModuleGetFunction: CUDA_ERROR_LAUNCH_FAILED"),
        (fail("cuLaunchKernelEx"), "cuLaunchKernelEx: CUDA_ERROR_LAUNCH_FAILED"),
        (fail("cuMemcpyHtoDAsync_v2"), "cuMemcpyHtoDAsync: CUDA_ERROR_LAUNCH_FAILED"),
        (fail("cuMemcpyDtoHAsync_v2:2"), "cuMemcpyDtoHAsync: CUDA_ERROR_LAUNCH_FAILED"),
        (fail("cuStreamSynchronize"), "cuStreamSynchronize: CUDA_ERROR_LAUNCH_FAILED"),
        (fail("cuEventRecord:2"), "cuEventRecord: CUDA_ERROR_LAUNCH_FAILED"),
    ];
    for (found, part) in expected {
        assert!(found.starts_with("error") && found.contains(part), "{found}: no {part:?}");
    }
    // Code before sm_90 gets no launches that may begin early, on no card: it does not wait for the kernel before it.
    assert_eq!(run(&[("FAKE_CUDA_CAPABILITY", "80")]), "found [3.0, 1.0]");
    assert_eq!(
        run(&[("FAKE_CUDA_CAPABILITY", "120"), ("FAKE_CUDA_PTX", "80")]),
        "found [3.0, 1.0]"
    );
}

#[test]
fn threads_may_upload_at_the_same_time() {
    let device = card();
    std::thread::scope(|scope| {
        for seed in 0..4 {
            let device = &device;
            scope.spawn(move || {
                let values = Random(seed).values(3000);
                for _ in 0..20 {
                    let x = buffer(device, 3, 1000, &values);
                    assert_eq!(bits(&read(device, &x, 3, 1000)), bits(&values));
                }
            });
        }
    });
}
