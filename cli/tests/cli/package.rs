//! A package from a weight file: made, looked at, measured.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use chrysalis_attestation::policy::AppraisalPolicy;
use serde_json::Value;

use super::support::{Folder, Outcome, chrysalis, command, numbered_tokens, recorded};

#[test]
fn a_sealed_package_comes_with_keys_and_a_policy_that_fits() {
    let folder = Folder::new();
    let source = folder.tiny_llama();
    let package = folder.path("tiny.chry");
    let report = chrysalis(&["pack", &source, "-o", &package, "--svn", "7", "--json"]).json();
    assert_eq!(
        folder.names(),
        [
            "llama",
            "tiny.b0000",
            "tiny.chry",
            "tiny.client",
            "tiny.key",
            "tiny.policy.toml",
            "tiny.publisher"
        ]
    );
    for key in ["tiny.key", "tiny.publisher"] {
        let mode = fs::metadata(folder.path(key)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{key}");
    }
    assert_eq!(report["sealed"], true);
    assert_eq!(report["key_made"], true);
    assert_eq!(report["svn"], 7);
    assert_eq!(report["files"].as_array().unwrap().len(), 3);

    let policy = fs::read_to_string(folder.path("tiny.policy.toml")).unwrap();
    assert!(policy.starts_with("# WARNING: this policy accepts a simulated platform"), "{policy}");
    for fact in ["content_digest", "publisher", "client_bundle"] {
        let value = report[fact].as_str().unwrap();
        assert!(policy.contains(&format!("\"{value}\"")), "{fact} {value} is not in {policy}");
    }
    let policy = AppraisalPolicy::from_toml(&policy).unwrap();
    assert_eq!((policy.minimum_svn, policy.allow_simulated), (7, true));
}

#[test]
fn a_sealed_package_shows_its_header_and_with_the_key_the_rest() {
    let folder = Folder::new();
    let source = folder.tiny_llama();
    let package = folder.packed(&source, "tiny.chry", &[]);
    let key = folder.path("elsewhere.key");
    fs::rename(folder.path("tiny.key"), &key).unwrap();

    let closed = chrysalis(&["inspect", &package, "--json"]).json();
    assert_eq!(
        (&closed["header"]["sealed"], &closed["contents"]),
        (&Value::Bool(true), &Value::Null)
    );
    let text = chrysalis(&["inspect", &package]);
    assert_eq!(text.code, Some(0));
    assert!(
        text.stdout.contains("all that can be seen without the package key"),
        "{}",
        text.stdout
    );
    assert!(!text.stdout.contains("token_embd"), "{}", text.stdout);

    let open = chrysalis(&["inspect", &package, "--key", &key, "--json"]).json();
    assert_eq!(open["header"], closed["header"]);
    let contents = &open["contents"];
    assert_eq!(contents["config"]["hidden_size"], 64);
    assert_eq!(contents["config"]["rope_global"]["kind"], "llama3");
    assert_eq!(contents["client_bundle"]["state"], "ok");
    assert_eq!(contents["client_bundle"]["licence_text"], true);
    let tensors = contents["tensors"].as_array().unwrap();
    let embedding = tensors.iter().find(|tensor| tensor["name"] == "token_embd.weight").unwrap();
    assert_eq!(embedding["dims"], serde_json::json!([251, 64]));
    assert_eq!(embedding["dtype"], "F32");
    let text = chrysalis(&["inspect", &package, "--key", &key]);
    assert!(text.stdout.contains("token_embd.weight"), "{}", text.stdout);
}

#[test]
fn sealed_or_open_a_model_has_one_content_digest() {
    let folder = Folder::new();
    let source = folder.tiny_llama();
    let sealed = folder.packed(&source, "sealed.chry", &[]);
    let open = folder.packed(&source, "open.chry", &["--open"]);
    let [sealed, open] = [sealed, open].map(|path| chrysalis(&["inspect", &path, "--json"]).json());
    assert_eq!(sealed["header"]["content_digest"], open["header"]["content_digest"]);
    assert_ne!(sealed["header"]["package_digest"], open["header"]["package_digest"]);
    assert_eq!(sealed["contents"], open["contents"]);
    assert!(!folder.names().contains(&"open.key".to_owned()));
}

#[test]
fn a_package_is_replaced_only_by_force_and_keys_never() {
    let folder = Folder::new();
    let source = folder.tiny_llama();
    let package = folder.packed(&source, "tiny.chry", &[]);
    let all = || {
        folder
            .names()
            .into_iter()
            .filter(|name| name != "llama")
            .map(|name| fs::read(folder.path(&name)))
    };
    let bytes = || all().map(Result::unwrap).collect::<Vec<_>>();
    let before = bytes();
    chrysalis(&["pack", &source, "-o", &package]).refused(1, "tiny.chry is already there");
    assert_eq!(bytes(), before);

    let (key, publisher) = (folder.path("tiny.key"), folder.path("tiny.publisher"));
    let keys = || [fs::read(&key).unwrap(), fs::read(&publisher).unwrap()];
    let keys_before = keys();
    let report =
        chrysalis(&["pack", &source, "-o", &package, "--force", "--dtype", "q8", "--json"]).json();
    assert_eq!(
        (&report["key_made"], &report["publisher_key_made"]),
        (&Value::Bool(false), &Value::Bool(false))
    );
    assert_eq!(keys(), keys_before);
    let policy = fs::read_to_string(folder.path("tiny.policy.toml")).unwrap();
    assert!(policy.contains(report["content_digest"].as_str().unwrap()));
}

#[test]
fn matrices_are_stored_as_asked() {
    let folder = Folder::new();
    let source = folder.tiny_llama();
    for (dtype, matrix, embedding) in [
        ("keep", "F32", "F32"),
        ("bf16", "Bf16", "Bf16"),
        ("q8", "Q8_0", "Q8_0"),
        ("q4", "Q4_1", "Q8_0"),
    ] {
        let package =
            folder.packed(&source, &format!("{dtype}.chry"), &["--open", "--dtype", dtype]);
        let report = chrysalis(&["inspect", &package, "--json"]).json();
        let tensors = report["contents"]["tensors"].as_array().unwrap();
        let stored =
            |name| tensors.iter().find(|tensor| tensor["name"] == name).unwrap()["dtype"].clone();
        assert_eq!(stored("blk.0.attn_q.weight"), matrix, "{dtype}");
        assert_eq!(stored("token_embd.weight"), embedding, "{dtype}");
        assert_eq!(stored("blk.0.attn_norm.weight"), "F32", "{dtype}");
    }
}

#[test]
fn perplexity_is_the_same_sealed_or_open_and_on_any_number_of_threads() {
    let folder = Folder::new();
    let source = folder.tiny_llama();
    let text = folder.write(
        "text.txt",
        "A caterpillar seals itself away, and what leaves has wings.\n".repeat(9).as_bytes(),
    );
    let sealed = folder.packed(&source, "sealed.chry", &[]);
    let open = folder.packed(&source, "open.chry", &["--open"]);
    let eval = |package: &str, threads: &str| {
        chrysalis(&["eval", "--package", package, "--text", &text, "--threads", threads, "--json"])
            .json()
    };
    let report = eval(&sealed, "1");
    // 540 characters are 540 tokens, in windows of the model's 256 positions; the first of each is not scored.
    assert_eq!(
        (&report["tokens"], &report["tokens_scored"], &report["windows"]),
        (&540.into(), &537.into(), &3.into())
    );
    for other in [eval(&open, "1"), eval(&sealed, "2")] {
        assert_eq!(other["perplexity"], report["perplexity"]);
    }
    let outcome = chrysalis(&["eval", "--package", &sealed, "--text", &text]);
    assert!(outcome.stdout.starts_with("perplexity "), "{}{}", outcome.stdout, outcome.stderr);
}

#[test]
fn perplexity_is_that_of_the_recorded_logits() {
    let folder = Folder::new();
    let source = folder.tiny_llama();
    let data = recorded("logits.f32");
    let tokens = String::from_utf8(recorded("tokens.txt")).unwrap();
    let tokens: Vec<usize> = tokens.split_whitespace().map(|id| id.parse().unwrap()).collect();
    let logits: Vec<f64> =
        data.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes).into()).collect();
    let nll =
        |(row, &next): (&[f64], &usize)| row.iter().map(|x| x.exp()).sum::<f64>().ln() - row[next];
    let rows = logits.chunks(logits.len() / tokens.len());
    let total: f64 = rows.zip(&tokens[1..]).map(nll).sum();
    let expected = (total / (tokens.len() - 1) as f64).exp();

    // Every id has a text of its own, so that the recorded ids can be written down.
    numbered_tokens(&source);
    let text: String = tokens.iter().map(|id| format!("<t{id}>")).collect();
    let text = folder.write("text.txt", text.as_bytes());
    let package = folder.packed(&source, "tiny.chry", &[]);
    let report = chrysalis(&["eval", "--package", &package, "--text", &text, "--json"]).json();
    assert_eq!(report["tokens_scored"], tokens.len() - 1);
    let found = report["perplexity"].as_f64().unwrap();
    // The KV cache is f16; everything else is f32.
    assert!((found / expected - 1.0).abs() < 2e-3, "{found}, not {expected}");
}

#[test]
fn the_bench_measures_every_row() {
    let folder = Folder::new();
    let source = folder.tiny_llama();
    let package = folder.packed(&source, "tiny.chry", &["--open", "--dtype", "q8"]);
    let args = [
        "--prompt",
        "8,32",
        "--generate",
        "4",
        "--batch",
        "1,3",
        "--repeat",
        "2",
        "--threads",
        "2",
        "--kv-dtype",
        "f32",
        "--profile",
    ];
    let report =
        chrysalis(&[&["bench", "--package", &package, "--json"], &args[..]].concat()).json();
    let positive = |value: &Value| assert!(value.as_f64().unwrap() > 0.0, "{value} in {report}");
    let rows = report["rows"].as_array().unwrap();
    assert_eq!(rows.len(), 4);
    for row in rows {
        assert_eq!((&row["generate"], &row["threads"]), (&4.into(), &2.into()));
        for phase in ["prefill", "decode"] {
            for figure in ["tokens_per_s", "limit_tokens_per_s", "share_of_limit"] {
                positive(&row[format!("{phase}_{figure}")]);
            }
        }
    }
    for (object, field) in [
        ("limits", "read_gb_per_s"),
        ("memory", "weight_bytes"),
        ("memory", "kv_bytes"),
        ("memory", "resident_bytes"),
        ("memory", "peak_resident_bytes"),
    ] {
        positive(&report[object][field]);
    }
    positive(&report["load_seconds"]);
    positive(&report["limits"]["int8"]["all_threads_gop_per_s"]);
    assert_eq!(report["limits"]["read"].as_array().unwrap().len(), 7);

    let profiles = report["profiles"].as_array().unwrap();
    assert_eq!(profiles.len(), 4);
    // The widest batch of the longest prompt: decode is three steps of two layers, twice.
    let operations = profiles[3]["decode"]["operations"].as_array().unwrap();
    let attention = operations.iter().find(|operation| operation["name"] == "attention").unwrap();
    assert_eq!(attention["calls"], 2 * 3 * 2);
    positive(&attention["share_of_limit"]);
    let shares: f64 = operations.iter().map(|x| x["share_of_time"].as_f64().unwrap()).sum();
    assert!((shares - 1.0).abs() < 0.05, "{shares}");
}

#[test]
fn a_reader_that_leaves_ends_the_program_quietly() {
    let folder = Folder::new();
    let source = folder.tiny_llama();
    let package = folder.packed(&source, "tiny.chry", &["--open"]);
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let outcome: Outcome = command(&["inspect", &package]).stdout(writer).output().unwrap().into();
    assert_eq!((outcome.code, outcome.stderr.as_str()), (Some(0), ""));
}
