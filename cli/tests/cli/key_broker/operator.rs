//! What the broker's operator does wrong is refused by name, and what he does right only ever tightens.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;

use super::broker::Owner;
use super::enclave::Enclave;
use crate::support::chrysalis;

#[test]
fn a_store_and_a_master_key_are_made_once() {
    let owner = Owner::new();
    let mode = |path: &str| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&owner.master()), 0o600);
    assert_eq!(mode(&owner.folder.path("store/audit.log")), 0o600);
    owner.broker(&["init", "--master-key", &owner.master()]).refused(1, "holds a store already");
    let nowhere = owner.folder.path("nowhere");
    chrysalis(&["key-broker", "status", "--store", &nowhere]).refused(1, "holds no store");
    chrysalis(&["key-broker", "log", "--store", &nowhere]).refused(1, "holds no store");
    assert!(!owner.folder.names().contains(&"nowhere".to_owned()));
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
}

#[test]
fn a_store_in_use_is_left_alone() {
    let owner = Owner::licensed(&[]);
    let broker = owner.serve();
    owner.broker(&["status"]).refused(1, "is in use");
    let verified = owner.broker(&["log", "--verify"]).json();
    assert_eq!(verified["compared_with_store"], false);
    broker.stop();
    owner.status();
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
