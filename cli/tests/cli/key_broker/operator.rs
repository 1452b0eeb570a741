//! What the broker's operator does wrong is refused by name, and what he does right only ever tightens.

use std::fs::{self, Permissions};
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;

use chrysalis_protocol::hex;

use super::broker::Owner;
use super::enclave::Enclave;
use crate::support::chrysalis;

#[test]
fn a_store_and_a_master_key_are_made_once() {
    let owner = Owner::new();
    let mode = |path: &str| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&owner.master()), 0o600);
    assert_eq!(mode(&owner.store()), 0o700);
    for file in ["audit.log", "broker.redb"] {
        assert_eq!(mode(&format!("{}/{file}", owner.store())), 0o600, "{file}");
    }
    owner.broker(&["init", "--master-key", &owner.master()]).refused(1, "holds a store already");
    let nowhere = owner.folder.path("nowhere");
    chrysalis(&["key-broker", "status", "--store", &nowhere]).refused(1, "holds no store");
    chrysalis(&["key-broker", "log", "--store", &nowhere]).refused(1, "holds no store");
    assert!(!owner.folder.names().contains(&"nowhere".to_owned()));
    // A log whose store is gone is not written over; what an interrupted `init` left is no obstacle.
    fs::remove_file(owner.folder.path("store/broker.redb")).unwrap();
    let init = || owner.broker(&["init", "--master-key", &owner.master()]);
    init().refused(1, "there is a log already");
    fs::write(owner.folder.path("store/audit.log"), "").unwrap();
    fs::write(owner.folder.path("store/broker.partial"), "half of it").unwrap();
    init().json();
    assert_eq!(owner.releases_in_log(), 0);
}

#[test]
fn a_licence_is_replaced_by_a_newer_one_only_and_no_floor_is_lowered() {
    let owner = Owner::licensed(&[("serial = 1", "serial = 5")]);
    let refused = |changes: &[(&str, &str)], why: &str| {
        let licence = owner.licence("smol", changes);
        owner.add("smol", &licence).refused(1, why);
    };
    refused(&[("serial = 1", "serial = 5")], "serial 5 is not above 5");
    refused(&[("serial = 1", "serial = 4")], "serial 4 is not above 5");
    let next = ("serial = 1", "serial = 6");
    let lower = ("minimum_svn = 2", "minimum_svn = 1");
    refused(&[next, lower], "minimum_svn 1 is below 2");
    refused(&[next, ("minimum_svn = 2", "minimum_svn = 3")], "security version 2, the floor is 3");
    refused(&[next, ("model = \"smol\"", "model = \"free\"")], "stays in its line of models");
    refused(&[next, ("releases = 100", "releases = 0")], "releases is not at least 1");
    refused(&[next, ("smol.policy.toml", "none.policy.toml")], "none.policy.toml");
    let licence = owner.licence("smol", &[next, ("releases = 100", "releases = 7")]);
    owner.add("smol", &licence).json();
    let status = owner.status();
    assert_eq!((&status[0]["serial"], &status[0]["releases"]), (&6.into(), &7.into()));
}

#[test]
fn licence_package_and_key_have_to_be_of_one_package() {
    let owner = Owner::new();
    let source = owner.folder.path("llama");
    owner.folder.packed(&source, "other.chry", &[]);
    let licence = owner.licence("smol", &[]);
    owner.add("other", &licence).refused(1, "the licence is not that of package");
    fs::copy(owner.folder.path("other.key"), owner.folder.path("smol.key")).unwrap();
    owner.add("smol", &licence).refused(1, "the key is not that of package");
    assert_eq!(owner.status().as_array().unwrap().len(), 0);
}

#[test]
fn a_key_opens_under_its_master_key_only() {
    let owner = Owner::licensed(&[]);
    let master = owner.master();
    let kept = fs::read(&master).unwrap();
    fs::set_permissions(&master, Permissions::from_mode(0o644)).unwrap();
    let serve = |master: &str, more: &[&str]| {
        let store = owner.store();
        let all = ["key-broker", "serve", "--store", &store, "--master-key", master];
        chrysalis(&[&all[..], more].concat())
    };
    serve(&master, &[]).refused(1, "mode 644");
    fs::remove_file(&master).unwrap();
    serve(&master, &[]).refused(1, "master.key");
    let other = owner.folder.path("elsewhere");
    chrysalis(&["key-broker", "init", "--store", &other, "--master-key", &master]);
    serve(&master, &[]).refused(1, "is not the master key of this store");
    fs::write(&master, kept).unwrap();
    serve(&master, &["--listen", "0.0.0.0:0"]).refused(1, "is no loopback address");
    serve(&master, &["--listen", "nowhere"]).refused(2, "--listen");
    let missing = owner.folder.path("no.pem");
    serve(&master, &["--tls-cert", &missing, "--tls-key", &missing]).refused(1, "no.pem");
    serve(&master, &["--tls-cert", &missing]).refused(2, "--tls-key");
    let (cert, key) = owner.folder.tls();
    fs::set_permissions(&key, Permissions::from_mode(0o644)).unwrap();
    serve(&master, &["--tls-cert", &cert, "--tls-key", &key]).refused(1, "has mode 644");
}

#[test]
fn a_broker_that_serves_takes_its_operators_commands() {
    let owner = Owner::licensed(&[("releases = 100", "releases = 2")]);
    let mut enclave = Enclave::of(&owner.package);
    let broker = owner.serve();
    let socket = owner.folder.path("store/admin.sock");
    assert_eq!(fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
    let mut client = broker.client();
    let (asked, reply) = client.exchange(&mut enclave);
    reply.sealed();
    assert_eq!(owner.status()[0]["releases_spent"], 1);
    assert_eq!(owner.releases_in_log(), 1);

    // Taken back, and from that answer on nothing is released, new or again.
    let id = hex::encode(&enclave.request().package_id);
    let challenge = client.challenge(&enclave).unwrap().unwrap();
    owner.broker(&["revoke", "--package-id", &id]).json();
    let late = enclave.ask(challenge);
    client.post("/v1/release", &late.bundle).unwrap().refused(403, "licence.revoked");
    client.post("/v1/release", &asked.bundle).unwrap().refused(403, "licence.revoked");
    client.challenge(&enclave).unwrap().unwrap_err().refused(403, "licence.revoked");
    assert_eq!(owner.status()[0]["revoked"], true);
    owner.broker(&["revoke", "--package-id", "00"]).refused(1, "is no package id");
    let unknown = "00".repeat(16);
    owner.broker(&["revoke", "--package-id", &unknown]).refused(1, "no licence for package");

    // A newer licence brings it back, with what was spent; an older one, or another master key's, does not.
    let licence = owner.licence("smol", &[("releases = 100", "releases = 2")]);
    owner.add("smol", &licence).refused(1, "serial 1 is not above 1");
    let serial = ("serial = 1", "serial = 2");
    let licence = owner.licence("smol", &[serial, ("releases = 100", "releases = 2")]);
    let (package, key) = (owner.package.clone(), owner.folder.path("smol.key"));
    let (elsewhere, other) = (owner.folder.path("elsewhere"), owner.folder.path("other.key"));
    chrysalis(&["key-broker", "init", "--store", &elsewhere, "--master-key", &other]);
    let args = ["--licence", &licence, "--package", &package, "--key", &key];
    let add = [&["add", "--master-key", &other], &args[..]].concat();
    owner.broker(&add).refused(1, "not the one of this store");
    owner.add("smol", &licence).json();
    client.exchange(&mut enclave).1.sealed();
    client.exchange(&mut enclave).1.refused(403, "licence.releases");
    broker.kill();

    // A broker that was killed left its socket; the next one, and a command without one, find the store.
    assert!(fs::exists(&socket).unwrap());
    assert_eq!(owner.status()[0]["releases_spent"], 2);
    let broker = owner.serve();
    assert_eq!(owner.status()[0]["serial"], 2);
    broker.stop();
    assert!(!fs::exists(&socket).unwrap());
    assert_eq!(owner.releases_in_log(), 2);
}

#[test]
fn a_raised_floor_holds_from_the_moment_that_it_was_taken() {
    let owner = Owner::licensed(&[]);
    let mut enclave = Enclave::of(&owner.package);
    let source = owner.folder.path("llama");
    owner.folder.packed(&source, "newer.chry", &["--svn", "3"]);
    let licence = owner.licence("newer", &[]);
    let broker = owner.serve();
    let mut client = broker.client();
    let (asked, reply) = client.exchange(&mut enclave);
    reply.sealed();
    owner.add("newer", &licence).json();
    client.exchange(&mut enclave).1.refused(403, "licence.svn");
    // What the old model got before it gets no more either.
    client.post("/v1/release", &asked.bundle).unwrap().refused(403, "licence.svn");
}

#[test]
fn what_is_no_request_of_an_operator_changes_nothing() {
    let owner = Owner::licensed(&[]);
    let broker = owner.serve();
    let before = owner.status();
    for request in ["", "{}", "\"stop\"", "{\"add\":{\"record\":\"00\",\"mark\":\"00\"}}"] {
        let mut stream = UnixStream::connect(owner.folder.path("store/admin.sock")).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("{\"Err\":"), "{request}: {answer}");
    }
    assert_eq!(owner.status(), before);
    broker.stop();
}

#[test]
fn a_log_that_was_changed_stops_the_broker() {
    let owner = Owner::licensed(&[]);
    let mut enclave = Enclave::of(&owner.package);
    let broker = owner.serve();
    let mut client = broker.client();
    for _ in 0..3 {
        client.exchange(&mut enclave).1.sealed();
    }
    broker.stop();
    let head = owner.broker(&["log", "--verify"]).json()["head"].as_str().unwrap().to_owned();
    assert_eq!(owner.broker(&["log", "--verify", "--head", &head]).json()["releases"], 3);
    let other = "00".repeat(32);
    owner.broker(&["log", "--verify", "--head", &other]).refused(1, "no entry has the hash");
    let path = owner.folder.path("store/audit.log");
    let text = fs::read_to_string(&path).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    let without = |gone: usize| -> String {
        let kept = lines.iter().enumerate().filter(|(at, _)| *at != gone);
        kept.flat_map(|(_, line)| [*line, "\n"]).collect()
    };
    for (changed, why) in [
        (text.replacen("\"code\":\"ok\"", "\"code\":\"no\"", 1), "does not follow"),
        (without(2), "has number"),
        (String::new(), "its end is missing"),
        (without(lines.len() - 1), ""),
    ] {
        fs::write(&path, changed).unwrap();
        let outcome = owner.broker(&["log", "--verify"]);
        // What is missing at the end is still in the store, and comes back.
        if why.is_empty() {
            assert_eq!(outcome.json()["head"], head.as_str());
        } else {
            outcome.refused(1, why);
        }
    }
    assert_eq!(fs::read_to_string(&path).unwrap(), text);
}
