//! The whole way: a broker with TLS, a real enclave, the host's command between them, and a lease that ends.

use std::process::{Child, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use super::broker::Owner;
use crate::support::{chrysalis, command};

/// An enclave as a process of its own.
struct Served {
    child: Child,
    address: String,
}

impl Served {
    fn start(owner: &Owner) -> Self {
        let address = format!("unix:{}", owner.folder.path("socket"));
        let config = owner.folder.write("launch.config", b"threads = 1\nkv_tokens = 4096\n");
        let args = ["serve", "--package", &owner.package, "--listen", &address];
        let child = command(&[&args[..], &["--config", &config]].concat())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self { child, address }
    }

    /// Whether it ended by itself, and well, within a while.
    fn ends(&mut self) -> bool {
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(60) {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.success();
            }
            thread::sleep(Duration::from_millis(20));
        }
        false
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

#[test]
fn a_waiting_enclave_gets_its_key_over_tls_and_ends_with_its_lease() {
    let owner = Owner::licensed(&[("lease_tokens = 100000000", "lease_tokens = 200")]);
    let (cert, key) = owner.folder.tls();
    let ca = cert.replace("broker.pem", "ca.pem");
    let broker = owner.serve_with(&["--tls-cert", &cert, "--tls-key", &key]);
    let mut served = Served::start(&owner);
    let url = format!("https://{}", broker.address);
    let release = |more: &[&str]| {
        let args = ["release", "--connect", &served.address, "--broker", &url, "--json"];
        chrysalis(&[&args[..], more].concat())
    };
    // The socket is there once the enclave listens.
    let start = Instant::now();
    while !owner.folder.names().contains(&"socket".to_owned()) {
        assert!(start.elapsed() < Duration::from_secs(60));
        thread::sleep(Duration::from_millis(20));
    }
    // A broker that nobody certified is not talked to.
    release(&["--broker-ca", &cert.replace("broker.pem", "README.md")]).refused(4, "--broker-ca");
    let released = release(&["--broker-ca", &ca]).json();
    assert_eq!(released["released"], true);
    broker.stop();
    assert_eq!(owner.releases_in_log(), 1);

    let policy = owner.folder.path("smol.policy.toml");
    let ask = || {
        let args = ["ask", "hello", "--raw", "--max-tokens", "100", "--json"];
        chrysalis(&[&args[..], &["--connect", &served.address, "--policy", &policy]].concat())
    };
    let mut tokens = 0;
    let start = Instant::now();
    loop {
        let outcome = ask();
        if outcome.code != Some(0) {
            let loading = outcome.stderr.contains("loading");
            let over = tokens > 0;
            assert!(loading || over, "{}", outcome.stderr);
            assert!(start.elapsed() < Duration::from_secs(60));
            if over {
                break;
            }
            thread::sleep(Duration::from_millis(20));
            continue;
        }
        tokens += outcome.json()["output_tokens"].as_u64().unwrap();
        assert!(tokens <= 200, "{tokens}");
    }
    assert!(served.ends());
}

#[test]
fn a_host_learns_why_a_broker_refused() {
    let owner = Owner::licensed(&[("[\"simulated\"]", "[\"tdx\"]")]);
    let broker = owner.serve();
    let served = Served::start(&owner);
    let start = Instant::now();
    while !owner.folder.names().contains(&"socket".to_owned()) {
        assert!(start.elapsed() < Duration::from_secs(60));
        thread::sleep(Duration::from_millis(20));
    }
    let url = format!("http://{}", broker.address);
    let args = ["release", "--connect", &served.address, "--broker", &url];
    chrysalis(&args).refused(3, "licence.platform");
    chrysalis(&[&args[..3], &["--broker", "broker"]].concat()).refused(2, "no address of a broker");
}
