//! An enclave on a platform that is asked by configfs-tsm, with a stand-in for the kernel behind it.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};

use chrysalis_attestation::attester::simulated::Simulated;
use chrysalis_attestation::attester::tsm::{Configfs, Tsm};
use chrysalis_attestation::attester::{Attester, AttesterError, Evidence};
use chrysalis_attestation::verifier::{Roots, verify_snp};
use chrysalis_client::{ClientError, Endorsing};
use chrysalis_protocol::bundle::Bundle;
use chrysalis_protocol::statement::{Kind, Statement, Tee};
use chrysalis_runtime::boot::{BootError, Progress, SIMULATED_MEASUREMENT};
use chrysalis_runtime::config::LaunchConfig;
use chrysalis_runtime::limits::Limits;

use crate::support::{Model, OPEN, QUICK, Running};

/// Entries that count their writes; reports of an SEV-SNP guest, signed by the published key.
struct Kernel {
    platform: Simulated,
    entries: HashMap<PathBuf, (u64, [u8; 64])>,
}

impl Configfs for Kernel {
    fn make(&mut self, entry: &Path) -> io::Result<()> {
        self.entries.insert(entry.to_owned(), (0, [0; 64]));
        Ok(())
    }

    fn write(&mut self, attribute: &Path, bytes: &[u8]) -> io::Result<()> {
        let entry = self.entries.get_mut(attribute.parent().unwrap()).unwrap();
        *entry = (entry.0 + 1, bytes.try_into().unwrap());
        Ok(())
    }

    fn read(&mut self, attribute: &Path) -> io::Result<Vec<u8>> {
        let (generation, data) = self.entries[attribute.parent().unwrap()];
        match attribute.file_name().unwrap().to_str().unwrap() {
            "provider" => Ok(b"sev_guest\n".to_vec()),
            "generation" => Ok(format!("{generation}\n").into_bytes()),
            "outblob" => Ok(self.platform.attest(&data).unwrap().report),
            _ => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn remove(&mut self, entry: &Path) -> io::Result<()> {
        self.entries.remove(entry);
        Ok(())
    }
}

/// A guest that was launched for `config`.
fn guest(config: &str) -> Result<Box<dyn Attester>, AttesterError> {
    let digest = LaunchConfig::parse(config.as_bytes()).unwrap().digest();
    let platform = Simulated::new(digest, SIMULATED_MEASUREMENT)?;
    let kernel = Kernel { platform, entries: HashMap::new() };
    Ok(Box::new(Tsm::open(Path::new("/"), Box::new(kernel))?))
}

fn start(model: &Model, launched_for: &str) -> Result<Running, BootError> {
    let config = LaunchConfig::parse(QUICK.as_bytes()).unwrap();
    let socket = model.folder.path().join("socket");
    Running::start_on(guest(launched_for)?, &model.path, &socket, config, Limits::default())
}

#[test]
fn an_enclave_states_its_platform_and_serves_its_reports() {
    let model = Model::new(&OPEN);
    let running = start(&model, QUICK).unwrap();
    running.wait_until_serving();
    let mut connection = running.connect();
    let (bundle, challenge) = connection.evidence(Kind::Serve).unwrap();
    let bundle = Bundle::parse(&bundle).unwrap();
    let statement = Statement::from_bytes(bundle.statement).unwrap();
    assert_eq!(statement.tee, Tee::SevSnp);
    assert_eq!(bundle.endorsements.vcek, None);
    let vcek = published_certificate();
    let report = verify_snp(bundle.report, &vcek, Roots::Simulated, challenge.now_unix).unwrap();
    assert_eq!(report.report().report_data, statement.report_data().to_bytes());
    assert_eq!(report.report().host_data, statement.launch_config_digest);

    // A client that lacks the chip's certificate, and one that has it: nobody trusts the published keys for AMD's.
    let refusal = |refused: Result<_, ClientError>| match refused.map(|_| ()) {
        Err(ClientError::Rejected(rejection)) => rejection.code(),
        other => panic!("{other:?}"),
    };
    assert_eq!(refusal(connection.verify(&model.policy)), "certificate.missing");
    connection.endorse(Endorsing { vcek: Some(vcek), ..Endorsing::default() });
    assert_eq!(refusal(connection.verify(&model.policy)), "certificate.issuer");
    running.enclave.stop().unwrap();
}

#[test]
fn a_guest_that_was_launched_for_another_config_does_not_start() {
    let model = Model::new(&OPEN);
    let refused = start(&model, "tick_ms = 1\n").map(|_| ()).unwrap_err();
    assert!(matches!(refused, BootError::LaunchConfig { .. }), "{refused}");
    assert!(refused.to_string().contains("HOST_DATA"));
    assert!(!model.folder.path().join("socket").exists(), "nothing listens");
}

/// A platform with a register of the guest's own, which takes what it is told to take.
struct Registered(Simulated, bool);

impl Attester for Registered {
    fn tee(&self) -> Tee {
        Tee::Tdx
    }

    fn attest(&mut self, report_data: &[u8; 64]) -> Result<Evidence, AttesterError> {
        self.0.attest(report_data)
    }

    fn launch_config_digest(&mut self) -> Result<[u8; 32], AttesterError> {
        self.0.launch_config_digest()
    }

    fn measure_package(&mut self, _package_digest: &[u8; 48]) -> Result<bool, AttesterError> {
        Ok(self.1)
    }
}

#[test]
fn whether_the_register_was_extended_is_told() {
    for taken in [true, false] {
        let model = Model::new(&OPEN);
        let config = LaunchConfig::parse(QUICK.as_bytes()).unwrap();
        let platform = Simulated::new(config.digest(), SIMULATED_MEASUREMENT).unwrap();
        let socket = model.folder.path().join("socket");
        let attester = Box::new(Registered(platform, taken));
        let running =
            Running::start_on(attester, &model.path, &socket, config, Limits::default()).unwrap();
        assert_eq!(running.progress(), Progress::Measured(taken));
        running.wait_until_serving();
        running.enclave.stop().unwrap();
    }
}

/// What the simulated platform gives beside its reports.
fn published_certificate() -> Vec<u8> {
    let mut platform = Simulated::new([0; 32], [0; 48]).unwrap();
    let evidence = platform.attest(&[0; 64]).unwrap();
    evidence.endorsements.into_iter().next().unwrap().1
}
