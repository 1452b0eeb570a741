//! Evidence that gets no key, each kind by its own name; and the honest one, which does.

use std::fs;

use chrysalis_protocol::hex;
use chrysalis_protocol::statement::Kind;

use super::broker::{Client, Owner};
use super::enclave::Enclave;

#[test]
fn an_honest_enclave_gets_the_key_and_the_terms_of_the_licence() {
    let owner = Owner::licensed(&[("lease_seconds = 86400", "lease_seconds = 3600")]);
    let broker = owner.serve();
    let mut enclave = Enclave::of(&owner.package);
    let (asked, reply) = broker.client().exchange(&mut enclave);
    let release = asked.open(reply.sealed());
    assert_eq!(release.package_id, enclave.request().package_id);
    let key = fs::read_to_string(owner.folder.path("smol.key")).unwrap();
    let released = hex::encode(release.package_key.expose());
    assert!(key.contains(&released));
    let terms = (release.min_model_svn, release.lease_seconds, release.lease_tokens);
    assert_eq!(terms, (2, 3_600, 100_000_000));
    broker.stop();
    assert_eq!(owner.releases_in_log(), 1);
    // No secret is in the log or in clear in the store.
    for file in ["store/audit.log", "store/broker.redb"] {
        let bytes = fs::read(owner.folder.path(file)).unwrap();
        let secret = release.package_key.expose();
        assert!(!bytes.windows(32).any(|window| window == secret), "{file}");
        let text = released.as_bytes();
        assert!(!bytes.windows(64).any(|window| window == text), "{file}");
    }
}

#[test]
fn a_challenge_is_good_once_and_for_its_package_only() {
    let owner = Owner::licensed(&[]);
    let source = owner.folder.path("llama");
    let other = owner.folder.packed(&source, "other.chry", &["--svn", "2"]);
    let publisher = ("policy = \"other.policy.toml\"", "policy = \"smol.policy.toml\"");
    // Both packages hold one model; the policy of the first takes the publisher of the second too.
    let policies = ["smol", "other"]
        .map(|name| fs::read_to_string(owner.folder.path(&format!("{name}.policy.toml"))).unwrap());
    let publishers = |text: &str| {
        text.split("publishers = [").nth(1).unwrap().split(']').next().unwrap().to_owned()
    };
    let both = format!("{}{}", publishers(&policies[0]), publishers(&policies[1]));
    let joined = policies[0].replace(&publishers(&policies[0]), &both);
    owner.folder.write("smol.policy.toml", joined.as_bytes());
    let licence = owner.licence("smol", &[("serial = 1", "serial = 2")]);
    owner.add("smol", &licence).json();
    let licence = owner.licence("other", &[publisher]);
    owner.add("other", &licence).json();

    let broker = owner.serve();
    let mut client = broker.client();
    let (mut enclave, mut other) = (Enclave::of(&owner.package), Enclave::of(&other));
    let release = |client: &mut Client, bundle: &[u8]| client.post("/v1/release", bundle).unwrap();

    // Evidence over a nonce that nobody gave.
    let asked = enclave.ask([3; 32]);
    release(&mut client, &asked.bundle).refused(409, "challenge.unknown");
    // Evidence of another package over this package's challenge.
    let challenge = client.challenge(&enclave).unwrap().unwrap();
    let asked = other.ask(challenge);
    release(&mut client, &asked.bundle).refused(409, "challenge.package");
    // That used it up, for its own package too.
    let asked = enclave.ask(challenge);
    release(&mut client, &asked.bundle).refused(409, "challenge.used");
    // A nonce that bought one release buys no other.
    let challenge = client.challenge(&enclave).unwrap().unwrap();
    let first = enclave.ask(challenge);
    release(&mut client, &first.bundle).sealed();
    let second = enclave.ask(challenge);
    release(&mut client, &second.bundle).refused(409, "challenge.used");
    broker.stop();
    assert_eq!(owner.releases_in_log(), 1);
}

#[test]
fn evidence_that_the_policy_refuses_gets_no_key() {
    let owner = Owner::licensed(&[]);
    let broker = owner.serve();
    let mut enclave = Enclave::of(&owner.package);
    let mut client = broker.client();
    let mut state = |change: &dyn Fn(&mut chrysalis_protocol::statement::Statement)| {
        let challenge = client.challenge(&enclave).unwrap().unwrap();
        let asked = enclave.state(challenge, |statement| change(statement));
        client.post("/v1/release", &asked.bundle).unwrap()
    };
    // A statement that serves, one of another model, one of another key.
    state(&|statement| statement.kind = Kind::Serve).refused(403, "statement.kind");
    state(&|statement| statement.content_digest[0] ^= 1).refused(403, "package.content_digest");
    state(&|statement| statement.key_config_digest[0] ^= 1).refused(403, "key_config.digest");
    state(&|statement| statement.launch_config_digest[0] ^= 1).refused(403, "platform.host_data");
    state(&|_| {}).sealed();
    // One flipped bit of an honest bundle.
    let challenge = client.challenge(&enclave).unwrap().unwrap();
    let asked = enclave.ask(challenge);
    let mut bundle = asked.bundle;
    let at = bundle.len() / 2;
    bundle[at] ^= 1;
    let reply = client.post("/v1/release", &bundle).unwrap();
    assert_ne!(reply.status, 200);
    client.post("/v1/release", b"no bundle").unwrap().refused(403, "bundle.framing");
    broker.stop();
    let codes: Vec<_> = owner.log().iter().map(|entry| entry["code"].to_string()).collect();
    for code in ["statement.kind", "key_config.digest", "platform.host_data", "bundle.framing"] {
        assert!(codes.contains(&format!("\"{code}\"")), "{code} is not in {codes:?}");
    }
}

#[test]
fn a_chip_that_is_not_pinned_gets_no_key() {
    let owner = Owner::new();
    let policy = fs::read_to_string(owner.folder.path("smol.policy.toml")).unwrap();
    let pinned = format!("platform = \"pinned\"\nchip_ids = [\"{}\"]", "ab".repeat(64));
    let policy = policy.replace("platform = \"any-genuine\"", &pinned);
    owner.folder.write("smol.policy.toml", policy.as_bytes());
    let licence = owner.licence("smol", &[]);
    owner.add("smol", &licence).json();
    let broker = owner.serve();
    let (_, reply) = broker.client().exchange(&mut Enclave::of(&owner.package));
    reply.refused(403, "chip.not_pinned");
}

#[test]
fn what_the_licence_does_not_cover_gets_no_key() {
    let platform = ("platforms = [\"simulated\"]", "platforms = [\"sev-snp\"]");
    let rows: [(&[(&str, &str)], &str); 5] = [
        (&[platform], "licence.platform"),
        (&[("expires = 20", "expires = 2020-01-01T00:00:00Z #")], "licence.expired"),
        (&[("releases = 100", "releases = 1")], "licence.releases"),
        (&[("releases_per_chip = 20", "releases_per_chip = 1")], "licence.releases_per_chip"),
        (&[("token_budget = 1000000000", "token_budget = 199999999")], "licence.token_budget"),
    ];
    for (changes, code) in rows {
        let owner = Owner::licensed(changes);
        let broker = owner.serve();
        let mut client = broker.client();
        let mut enclave = Enclave::of(&owner.package);
        // Budgets are there for one release; what is over or elsewhere, for none.
        let budget = !matches!(code, "licence.platform" | "licence.expired");
        if budget {
            client.exchange(&mut enclave).1.sealed();
        }
        if code == "licence.expired" {
            client.challenge(&enclave).unwrap().unwrap_err().refused(403, code);
        } else {
            client.exchange(&mut enclave).1.refused(403, code);
        }
        broker.stop();
        assert_eq!(owner.releases_in_log(), u64::from(budget), "{code}");
    }
}

#[test]
fn an_old_model_gets_no_key_once_a_floor_was_raised() {
    let owner = Owner::licensed(&[]);
    let mut enclave = Enclave::of(&owner.package);
    let broker = owner.serve();
    broker.client().exchange(&mut enclave).1.sealed();
    broker.stop();
    // A newer package of the same line raises the floor for all of it.
    let source = owner.folder.path("llama");
    let newer = owner.folder.packed(&source, "newer.chry", &["--svn", "3"]);
    let licence = owner.licence("newer", &[]);
    owner.add("newer", &licence).json();
    let broker = owner.serve();
    let mut client = broker.client();
    client.exchange(&mut enclave).1.refused(403, "licence.svn");
    client.exchange(&mut Enclave::of(&newer)).1.sealed();
}

#[test]
fn a_revoked_licence_gives_no_key_and_no_answer_again() {
    let owner = Owner::licensed(&[]);
    let mut enclave = Enclave::of(&owner.package);
    let broker = owner.serve();
    let (asked, reply) = broker.client().exchange(&mut enclave);
    reply.sealed();
    broker.stop();
    let id = hex::encode(&enclave.request().package_id);
    owner.broker(&["revoke", "--package-id", &id]).json();
    let broker = owner.serve();
    let mut client = broker.client();
    client.challenge(&enclave).unwrap().unwrap_err().refused(403, "licence.revoked");
    client.post("/v1/release", &asked.bundle).unwrap().refused(403, "licence.revoked");
    broker.stop();
    // A licence with a higher serial brings it back.
    let licence = owner.licence("smol", &[("serial = 1", "serial = 2")]);
    owner.add("smol", &licence).json();
    let broker = owner.serve();
    broker.client().exchange(&mut enclave).1.sealed();
}

#[test]
fn a_call_that_is_made_again_gets_the_same_answer_and_pays_once() {
    let owner = Owner::licensed(&[("releases = 100", "releases = 1")]);
    let mut enclave = Enclave::of(&owner.package);
    let broker = owner.serve();
    let (asked, first) = broker.client().exchange(&mut enclave);
    let again = broker.client().post("/v1/release", &asked.bundle).unwrap();
    assert_eq!(first, again);
    broker.kill();
    let broker = owner.serve();
    let later = broker.client().post("/v1/release", &asked.bundle).unwrap();
    assert_eq!(first, later);
    asked.open(later.sealed());
    broker.client().exchange(&mut enclave).1.refused(403, "licence.releases");
    broker.stop();
    assert_eq!(owner.status()[0]["releases_spent"], 1);
    assert_eq!(owner.releases_in_log(), 1);
    let repeats = owner.log().iter().filter(|entry| entry["event"] == "repeat").count();
    assert_eq!(repeats, 2);
}

#[test]
fn calls_that_are_none_are_refused_by_name() {
    let owner = Owner::licensed(&[]);
    let broker = owner.serve_with(&["--rate-address", "12"]);
    let mut client = broker.client();
    assert_eq!(client.call("GET", "/v1/health", "", b"").unwrap().status, 200);
    client.call("GET", "/v1/release", "", b"").unwrap().refused(404, "request.call");
    client.post("/", b"").unwrap().refused(404, "request.call");
    client.post("/v1/challenge", b"short").unwrap().refused(400, "request.body");
    client.post("/v1/challenge", &[0; 64]).unwrap().refused(404, "licence.unknown");
    client.post("/v1/challenge", &[0; 65]).unwrap().refused(413, "request.too_long");
    let mut client = broker.client();
    // A megabyte and a byte: the broker need not read it all before it answers.
    let long = client.post("/v1/release", &vec![0; (1 << 20) + 1]);
    assert!(long.map_or(true, |reply| reply.code() == "request.too_long"));
    let mut client = broker.client();
    let limited = (0..20).map(|_| client.post("/v1/challenge", b"").unwrap()).last().unwrap();
    limited.refused(429, "rate.address");
    broker.stop();
    let log = owner.log();
    let limited = log.iter().find(|entry| entry["event"] == "limited").unwrap();
    assert!(limited["detail"].as_str().unwrap().ends_with(" calls"), "{limited}");
}
