//! A machine with GPUs that are not there, as NVIDIA's management library shows it. The library is
//! a few lines of C that ask this file over a socket, so that a test is data.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::thread;

use super::device::SimulatedDevice;
use super::issue::base64;

/// What the library says.
pub(crate) struct Machine {
    /// By NVML's index.
    pub devices: Vec<SimulatedDevice>,
    /// PCI bus of each.
    pub buses: Vec<u32>,
    /// environment, ccFeature, devToolsMode, multiGpuMode.
    pub settings: [u32; 4],
    /// Changes a report before it is handed out.
    pub report: fn(usize, Vec<u8>) -> Vec<u8>,
    /// Reports are over this instead of what they were asked for.
    pub stale: Option<[u8; 32]>,
    /// The return code of the op, where it fails.
    pub fails: Option<(u8, u32)>,
    /// How long it says that the op's answer is, whatever it is.
    pub lies: Option<(u8, u32)>,
    /// The states that were set.
    pub ready: Vec<bool>,
    /// Whether it does as it is told.
    pub obeys: bool,
    /// How many reports were asked for.
    pub reports: usize,
}

impl Machine {
    /// GPUs in confidential-computing mode.
    pub(crate) fn honest(gpus: u8) -> Self {
        Self {
            devices: (1..=gpus).map(SimulatedDevice::gpu).collect(),
            buses: (0..gpus).map(|i| 0x10 + u32::from(i)).collect(),
            settings: [2, 1, 0, 0],
            report: |_, report| report,
            stale: None,
            fails: None,
            lies: None,
            ready: Vec::new(),
            obeys: true,
            reports: 0,
        }
    }

    /// The return code and what the call gives.
    fn answer(&mut self, op: u8, index: u8, nonce: &[u8; 32]) -> (u32, Vec<u8>) {
        if let Some((failing, code)) = self.fails
            && failing == op
        {
            return (code, Vec::new());
        }
        let at = usize::from(index);
        let value = match op {
            1 => (self.devices.len() as u32).to_ne_bytes().to_vec(),
            2 => [&[0], self.settings.as_slice()]
                .concat()
                .iter()
                .flat_map(|v| v.to_ne_bytes())
                .collect(),
            3 => self.buses[at].to_ne_bytes().to_vec(),
            4 => {
                self.reports += 1;
                (self.report)(at, self.devices[at].report(&self.stale.unwrap_or(*nonce)))
            }
            5 => pem(&self.devices[at].certificates).into_bytes(),
            6 => {
                self.ready.push(index == 1);
                Vec::new()
            }
            7 => {
                let ready = self.obeys && self.ready.last() == Some(&true);
                u32::from(ready).to_ne_bytes().to_vec()
            }
            // What this library does not have, as NVML says it.
            _ => return (3, Vec::new()),
        };
        (0, value)
    }
}

/// The library of one machine.
pub(crate) struct FakeNvml {
    folder: tempfile::TempDir,
    pub machine: Arc<Mutex<Machine>>,
}

impl FakeNvml {
    /// Builds the library and answers it until the test ends.
    pub(crate) fn new(machine: Machine) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("s");
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/../attestation/tests/suite/gpu/nvml.c");
        let built = Command::new("cc")
            .args(["-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror"])
            .arg(format!("-DSOCKET=\"{}\"", socket.display()))
            .arg("-o")
            .arg(folder.path().join("libnvidia-ml.so.1"))
            .arg(source)
            .status()
            .unwrap();
        assert!(built.success(), "the fake library was not built");
        let listener = UnixListener::bind(&socket).unwrap();
        let machine = Arc::new(Mutex::new(machine));
        let answering = Arc::clone(&machine);
        thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(stream) = stream else { break };
                serve(stream, &answering);
            }
        });
        Self { folder, machine }
    }

    pub(crate) fn library(&self) -> PathBuf {
        self.folder.path().join("libnvidia-ml.so.1")
    }
}

/// One call.
fn serve(mut stream: UnixStream, machine: &Mutex<Machine>) {
    let mut question = [0; 34];
    if stream.read_exact(&mut question).is_err() {
        return;
    }
    let [op, index, nonce @ ..] = question;
    let mut machine = machine.lock().unwrap();
    let (code, value) = machine.answer(op, index, &nonce);
    let len = value.len() as u32;
    let said = machine.lies.filter(|(lying, _)| *lying == op).map_or(len, |(_, said)| said);
    let head = [code, len, said].map(u32::to_ne_bytes).concat();
    drop(stream.write_all(&[head, value].concat()));
}

/// Certificates as NVML returns them.
fn pem(certificates: &[Vec<u8>]) -> String {
    let mut out = String::new();
    for der in certificates {
        out += "-----BEGIN CERTIFICATE-----\n";
        for line in base64(der).as_bytes().chunks(64) {
            out += std::str::from_utf8(line).unwrap();
            out.push('\n');
        }
        out += "-----END CERTIFICATE-----\n";
    }
    out
}
