//! A broker as a process of its own, its folder, and plain HTTP to it.

use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::support::{Folder, Outcome, chrysalis, command};

use super::enclave::{Asked, Enclave};

/// A folder with a sealed package, its licence and a store.
pub(super) struct Owner {
    pub(super) folder: Folder,
    pub(super) package: String,
}

/// A broker that serves, until it is killed or stopped.
pub(super) struct Broker {
    pub(super) address: SocketAddr,
    child: Child,
}

/// What a call came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Reply {
    pub(super) status: u16,
    pub(super) body: Vec<u8>,
}

impl Owner {
    /// A package of security version 2, no licence stored yet.
    pub(super) fn new() -> Self {
        let folder = Folder::new();
        let source = folder.tiny_llama();
        let package = folder.packed(&source, "smol.chry", &["--svn", "2"]);
        let owner = Self { folder, package };
        owner.broker(&["init", "--master-key", &owner.master()]).json();
        owner
    }

    /// The same with a licence that a test changes.
    pub(super) fn licensed(changes: &[(&str, &str)]) -> Self {
        let owner = Self::new();
        let licence = owner.licence("smol", changes);
        owner.add("smol", &licence).json();
        owner
    }

    pub(super) fn store(&self) -> String {
        self.folder.path("store")
    }

    pub(super) fn master(&self) -> String {
        self.folder.path("master.key")
    }

    /// `chrysalis key-broker ARGS --store STORE`.
    pub(super) fn broker(&self, args: &[&str]) -> Outcome {
        let (first, rest) = args.split_first().unwrap();
        let store = self.store();
        let at = ["--store", &store, "--json"];
        let at = if *first == "licence" { &[][..] } else { &at };
        chrysalis(&[&["key-broker", first], rest, at].concat())
    }

    /// The example licence of a package, for the simulated platform, with changes.
    pub(super) fn licence(&self, name: &str, changes: &[(&str, &str)]) -> String {
        let package = self.folder.path(&format!("{name}.chry"));
        let outcome = self.broker(&["licence", "--package", &package, "--model", "smol"]);
        assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
        let mut text = outcome.stdout;
        let simulated = ("[\"sev-snp\", \"tdx\"]", "[\"simulated\"]");
        for (from, to) in [simulated].iter().chain(changes) {
            assert!(text.contains(from), "{from} is not in {text}");
            text = text.replacen(from, to, 1);
        }
        self.folder.write(&format!("{name}.licence.toml"), text.as_bytes())
    }

    pub(super) fn add(&self, name: &str, licence: &str) -> Outcome {
        let path = |kind: &str| self.folder.path(&format!("{name}.{kind}"));
        let (package, key, master) = (path("chry"), path("key"), self.master());
        let args = ["--licence", licence, "--package", &package, "--key", &key];
        self.broker(&[&["add", "--master-key", &master], &args[..]].concat())
    }

    pub(super) fn status(&self) -> Value {
        self.broker(&["status"]).json()
    }

    /// Verifies the log against the store, and counts its releases.
    pub(super) fn releases_in_log(&self) -> u64 {
        let verified = self.broker(&["log", "--verify"]).json();
        verified["releases"].as_u64().unwrap()
    }

    /// The log's entries.
    pub(super) fn log(&self) -> Vec<Value> {
        let text = fs::read_to_string(self.folder.path("store/audit.log")).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    pub(super) fn serve(&self) -> Broker {
        self.serve_with(&["--rate-address", "1000000", "--rate-package", "1000000"])
    }

    pub(super) fn serve_with(&self, args: &[&str]) -> Broker {
        let (store, master) = (self.store(), self.master());
        let all = ["key-broker", "serve", "--store", &store, "--master-key", &master, "--json"];
        let listen = ["--listen", "127.0.0.1:0"];
        let chip = ["--rate-chip", "1000000"];
        Broker::start(command(&[&all[..], &listen, &chip, args].concat()))
    }
}

impl Broker {
    fn start(mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn().unwrap();
        let mut said = String::new();
        let mut lines = BufReader::new(child.stdout.as_mut().unwrap()).lines();
        while !said.ends_with("}\n") {
            let line = lines.next().unwrap_or_else(|| panic!("it ended: {said}")).unwrap();
            said += &line;
            said.push('\n');
        }
        let said: Value = serde_json::from_str(&said).unwrap();
        let url = said["listening"].as_str().unwrap();
        let address = url.split_once("://").unwrap().1.parse().unwrap();
        Self { address, child }
    }

    /// kill -9.
    pub(super) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// SIGTERM, and the wait for its end.
    pub(super) fn stop(mut self) {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, Signal::TERM).unwrap();
        let status = self.child.wait().unwrap();
        assert!(status.success(), "{status}");
    }

    pub(super) fn client(&self) -> Client {
        Client { stream: TcpStream::connect(self.address).unwrap() }
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        // A test that failed leaves nothing running; one that stopped it finds it gone.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// A connection that is kept.
pub(super) struct Client {
    stream: TcpStream,
}

impl Client {
    pub(super) fn connect(address: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(Duration::from_secs(60)))?;
        stream.set_nodelay(true)?;
        Ok(Self { stream })
    }

    pub(super) fn post(&mut self, path: &str, body: &[u8]) -> io::Result<Reply> {
        self.call("POST", path, "", body)
    }

    /// One request and its response (RFC 9112), as far as the broker uses it.
    pub(super) fn call(
        &mut self,
        method: &str,
        path: &str,
        headers: &str,
        body: &[u8],
    ) -> io::Result<Reply> {
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: broker\r\ncontent-length: {}\r\n{headers}\r\n",
            body.len()
        );
        self.stream.write_all(&[head.as_bytes(), body].concat())?;
        let mut bytes = Vec::new();
        let mut piece = [0; 4096];
        loop {
            let read = self.stream.read(&mut piece)?;
            if read == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            bytes.extend_from_slice(&piece[..read]);
            if let Some(reply) = parse(&bytes) {
                return Ok(reply);
            }
        }
    }

    /// A challenge for an enclave.
    pub(super) fn challenge(&mut self, enclave: &Enclave) -> io::Result<Result<[u8; 32], Reply>> {
        let reply = self.post("/v1/challenge", &enclave.request().to_bytes())?;
        Ok(reply.body.as_slice().try_into().map_err(|_| reply.clone()))
    }

    /// Evidence over a fresh challenge, and the broker's answer to it.
    pub(super) fn exchange(&mut self, enclave: &mut Enclave) -> (Asked, Reply) {
        let challenge = self.challenge(enclave).unwrap().unwrap();
        let asked = enclave.ask(challenge);
        let reply = self.post("/v1/release", &asked.bundle).unwrap();
        (asked, reply)
    }
}

impl Reply {
    /// The code of a refusal.
    pub(super) fn code(&self) -> String {
        let body: Value = serde_json::from_slice(&self.body).unwrap_or_default();
        body["code"].as_str().unwrap_or("no code").to_owned()
    }

    #[track_caller]
    pub(super) fn refused(&self, status: u16, code: &str) {
        assert_eq!((self.status, self.code().as_str()), (status, code));
    }

    #[track_caller]
    pub(super) fn sealed(&self) -> &[u8] {
        assert_eq!(self.status, 200, "{}", self.code());
        &self.body
    }
}

/// A whole response with a content length.
fn parse(bytes: &[u8]) -> Option<Reply> {
    let end = bytes.windows(4).position(|window| window == b"\r\n\r\n")?;
    let head = std::str::from_utf8(&bytes[..end]).unwrap().to_ascii_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
    let length: usize = length.unwrap_or("0").parse().unwrap();
    let body = &bytes[end + 4..];
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (body.len() >= length).then(|| Reply { status, body: body.to_vec() })
}
