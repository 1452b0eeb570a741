//! The gate in front of the GPUs, in a whole enclave: a fake of NVIDIA's library, a client's policy.

#[path = "../../../attestation/tests/suite/simulated/der.rs"]
#[allow(dead_code, reason = "shared with the verifier's tests")]
mod der;
#[path = "../../../attestation/tests/suite/gpu/device.rs"]
#[allow(dead_code, reason = "shared with the verifier's tests")]
mod device;
#[path = "../../../attestation/tests/suite/gpu/issue.rs"]
#[allow(dead_code, reason = "shared with the verifier's tests")]
mod issue;
#[path = "../../../attestation/tests/suite/gpu/nvml.rs"]
#[allow(dead_code, reason = "shared with the verifier's tests")]
mod nvml;

use chrysalis_attestation::policy::GpuDemand;
use chrysalis_runtime::boot::{BootError, EnclaveOptions, simulated};
use chrysalis_runtime::config::LaunchConfig;
use chrysalis_runtime::transport::Address;
use nvml::{FakeNvml, Machine};

use crate::support::{Model, OPEN, Running, SEALED};

#[test]
fn an_enclave_with_gpus_states_them_and_a_client_judges_them() {
    for sealed in [false, true] {
        let fake = FakeNvml::new(Machine::honest(2));
        let mut model = Model::new(if sealed { &SEALED } else { &OPEN });
        model.policy.gpu = Some(demand());
        let running = start(&model, &fake, CONFIG).unwrap();
        // Before a weight is loaded or a key is asked for.
        assert_eq!(fake.machine.lock().unwrap().ready, [true]);
        if let Some(key) = &model.key {
            running.release(&model, key).unwrap();
        }
        running.wait_until_serving();
        let (_, enclave) = running.verified(&model);
        assert!(enclave.statement().gpu_required && enclave.statement().gpu_flags.cc_on);
        assert_eq!(enclave.gpus().unwrap().devices().len(), 2);
        assert!(enclave.fresh());
        // The gate, the key's statement and the epoch's: two reports each.
        let reports = if sealed { 6 } else { 4 };
        assert_eq!(fake.machine.lock().unwrap().reports, reports);

        // A client that expects none refuses these.
        model.policy.gpu = None;
        let refused = running.connect().verify(&model.policy).unwrap_err().to_string();
        assert!(refused.contains("no [gpu] table"), "{refused}");
    }
}

#[test]
fn an_enclave_does_not_start_where_a_gpu_does_not_prove_itself() {
    let changes: [fn(&mut Machine); 4] = [
        |m| m.settings[1] = 0,
        |m| m.settings[2] = 1,
        |m| m.settings[3] = 1,
        |m| m.stale = Some([0; 32]),
    ];
    for change in changes {
        let mut machine = Machine::honest(2);
        change(&mut machine);
        let fake = FakeNvml::new(machine);
        let model = Model::new(&OPEN);
        let refused = start(&model, &fake, CONFIG).map(drop).unwrap_err();
        assert!(matches!(refused, BootError::Attester(_)), "{refused}");
        assert!(fake.machine.lock().unwrap().ready.is_empty());
    }
}

#[test]
fn without_gpus_in_the_launch_config_the_library_is_not_opened() {
    let fake = FakeNvml::new(Machine::honest(2));
    let model = Model::new(&OPEN);
    let running = start(&model, &fake, "threads = 1").unwrap();
    running.wait_until_serving();
    let (_, enclave) = running.verified(&model);
    assert_eq!((enclave.statement().gpu_count, enclave.gpus()), (0, None));
    assert_eq!(fake.machine.lock().unwrap().reports, 0);
}

fn start(model: &Model, fake: &FakeNvml, config: &str) -> Result<Running, BootError> {
    let socket = model.path.with_file_name("socket");
    let listen = Address::Unix(socket.clone());
    let config = LaunchConfig::parse(config.as_bytes()).unwrap();
    let attester = simulated(&config)?;
    let nvml = fake.library();
    let options =
        EnclaveOptions { config, nvml, ..EnclaveOptions::new(model.path.clone(), listen) };
    Running::start_with(attester, options, &socket)
}

/// Manifests and certificate status are the host's to bring, and this host brings none.
fn demand() -> GpuDemand {
    GpuDemand {
        count: 2,
        drivers: vec!["580.95.05".to_owned()],
        vbios: vec!["96.00.CF.00.02".to_owned()],
        require_rims: false,
        require_ocsp: false,
        allow_ppcie: false,
        allow_nvlink_clear: false,
    }
}

const CONFIG: &str = "pad_profile = 0\nthreads = 1\ngpus = 2\n";
