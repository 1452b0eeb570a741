//! Whatever is wrong is named, on standard error and by the exit code, and no half package is left.

use std::fs::{self, File};
use std::os::unix::net::UnixListener;
use std::process::{Command, Stdio};
use std::time::Duration;

use super::support::{Folder, Outcome, chrysalis, command};

#[test]
fn a_file_that_is_no_model_is_named_and_leaves_nothing() {
    let folder = Folder::new();
    let (three, one) = (3_u32.to_le_bytes(), 1_u64.to_le_bytes());
    let gguf_head = [&b"GGUF"[..], &three, &one, &0_u64.to_le_bytes(), &[9]].concat();
    let sources = [
        (folder.path("nowhere"), "nowhere is neither a Hugging Face folder nor a .gguf file"),
        (folder.path("nowhere.gguf"), "nowhere.gguf: "),
        ("/dev/full".to_owned(), "/dev/full is neither"),
        (folder.write("notes.txt", b"hello"), "notes.txt is neither"),
        (folder.write("text.gguf", b"hello there, I am text"), "text.gguf: "),
        (folder.write("cut.gguf", &gguf_head), "cut.gguf: "),
    ];
    for (source, why) in sources {
        refused_and_gone(&folder, &source, why);
    }
}

#[test]
fn a_folder_that_is_no_model_is_named_and_leaves_nothing() {
    let folder = Folder::new();
    let source = folder.tiny_llama();
    let altered = |name: &str, change: &dyn Fn(Vec<u8>) -> Option<Vec<u8>>, why: &str| {
        let path = format!("{source}/{name}");
        let honest = fs::read(&path).unwrap();
        match change(honest.clone()) {
            Some(bytes) => fs::write(&path, bytes).unwrap(),
            None => fs::remove_file(&path).unwrap(),
        }
        refused_and_gone(&folder, &source, why);
        fs::write(&path, honest).unwrap();
    };
    let replaced = |from: &'static str, to: &'static str| {
        move |bytes| {
            let text = String::from_utf8(bytes).unwrap();
            assert!(text.contains(from));
            Some(text.replace(from, to).into_bytes())
        }
    };
    let mamba = replaced("LlamaForCausalLM", "MambaForCausalLM");
    altered("config.json", &mamba, "MambaForCausalLM is unknown");
    let odd = replaced("\"intermediate_size\": 88", "\"intermediate_size\": 96");
    altered("config.json", &odd, "has the shape");
    altered("config.json", &|_| Some(b"{".to_vec()), "config.json");
    altered("tokenizer.json", &|_| None, "there is no tokenizer.json");
    altered("tokenizer.json", &|_| Some(b"{".to_vec()), "tokenizer.json: ");
    altered("model.safetensors", &|_| None, "model.safetensors");
    let cut = |mut bytes: Vec<u8>| {
        bytes.truncate(100_000);
        Some(bytes)
    };
    altered("model.safetensors", &cut, "model.safetensors");
    folder.packed(&source, "tiny.chry", &[]);
}

/// The packer refuses, and leaves neither a package nor parts of one.
#[track_caller]
fn refused_and_gone(folder: &Folder, source: &str, why: &str) {
    chrysalis(&["pack", source, "-o", &folder.path("tiny.chry")]).refused(1, why);
    for name in folder.names() {
        // Keys may have been made already; they serve the next attempt and are never removed.
        let key = name == "tiny.key" || name == "tiny.publisher";
        assert!(key || !name.starts_with("tiny."), "{source} left {name}");
        assert!(!name.ends_with(".partial"), "{source} left {name}");
    }
}

#[test]
fn an_output_that_cannot_be_is_refused_before_keys_are_made() {
    let folder = Folder::new();
    let source = folder.tiny_llama();
    chrysalis(&["pack", &source, "-o", &folder.path("tiny")])
        .refused(1, "tiny does not end in .chry");
    chrysalis(&["pack", &source, "-o", "/dev/full"]).refused(1, "/dev/full does not end in .chry");
    let in_a_file = format!("{source}/config.json/tiny.chry");
    chrysalis(&["pack", &source, "-o", &in_a_file]).refused(1, "config.json");
    folder.write("tiny.policy.toml", b"# somebody wrote this");
    let package = folder.path("tiny.chry");
    chrysalis(&["pack", &source, "-o", &package]).refused(1, "tiny.policy.toml is already there");
    assert_eq!(folder.names(), ["llama", "tiny.policy.toml"]);
    chrysalis(&["pack", &source, "-o", &package, "--open", "--key", "x"])
        .refused(2, "cannot be used with");
}

#[test]
fn a_disk_that_takes_no_more_leaves_no_package() {
    let folder = Folder::new();
    let source = folder.tiny_llama();
    let package = folder.path("tiny.chry");
    // A limit of the size of files stands for a full disk; the signal that goes with it is ignored.
    let script = "trap '' XFSZ; ulimit -f 100; exec \"$0\" \"$@\"";
    let outcome: Outcome = Command::new("sh")
        .args(["-c", script, env!("CARGO_BIN_EXE_chrysalis"), "pack", &source, "-o", &package])
        .output()
        .unwrap()
        .into();
    outcome.refused(1, "File too large");
    assert_eq!(folder.names(), ["llama", "tiny.key", "tiny.publisher"]);
}

#[test]
fn a_result_that_cannot_be_printed_is_a_failure() {
    let folder = Folder::new();
    let source = folder.tiny_llama();
    let package = folder.packed(&source, "tiny.chry", &["--open"]);
    for args in [&["inspect", &package][..], &["inspect", &package, "--json"]] {
        let full = File::options().write(true).open("/dev/full").unwrap();
        let outcome: Outcome = command(args).stdout(full).output().unwrap().into();
        outcome.refused(1, "standard output: No space left on device");
    }
}

#[test]
fn a_killed_packer_leaves_no_package_and_stands_in_nobodys_way() {
    let folder = Folder::new();
    let (source, package) = (folder.large_llama(), folder.path("large.chry"));
    let mut packer = command(&["pack", &source, "-o", &package, "--json"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let blob = folder.path(".large.b0000.partial");
    while !fs::metadata(&blob).is_ok_and(|blob| blob.len() > 0) {
        assert_eq!(packer.try_wait().unwrap(), None, "the packer ended before its first segment");
        std::thread::sleep(Duration::from_millis(1));
    }
    // A second packer of the same package keeps away.
    chrysalis(&["pack", &source, "-o", &package]).refused(1, "another packer is writing");
    packer.kill().unwrap();
    assert_eq!(packer.wait().unwrap().code(), None, "it ended before it was killed");
    let names = folder.names();
    let hidden = |name: &&String| name.starts_with(".large.");
    let named: Vec<_> = names.iter().filter(|name| name.starts_with("large.")).collect();
    assert_eq!(named, ["large.key", "large.publisher"], "{names:?}");
    assert!(names.iter().filter(hidden).count() > 0, "{names:?}");

    folder.packed(&source, "large.chry", &[]);
    assert_eq!(folder.names().iter().filter(hidden).count(), 0, "{:?}", folder.names());
}

#[test]
fn a_key_that_does_not_open_the_package_is_refused() {
    let folder = Folder::new();
    let source = folder.tiny_llama();
    let package = folder.packed(&source, "tiny.chry", &[]);
    folder.packed(&source, "other.chry", &[]);
    let text = folder.write("text.txt", b"hello");
    let no_key = folder.write("no.key", b"hello");
    let (other, missing) = (folder.path("other.key"), folder.path("missing.key"));
    for (key, why) in [
        (&no_key, "does not hold a package key"),
        (&missing, "missing.key: No such file"),
        (&other, "tiny.chry: "),
    ] {
        chrysalis(&["inspect", &package, "--key", key]).refused(1, why);
        chrysalis(&["eval", "--package", &package, "--text", &text, "--key", key]).refused(1, why);
        chrysalis(&["bench", "--package", &package, "--key", key]).refused(1, why);
    }
    // The publisher's key is no package key, and the other way around.
    let publisher = folder.path("tiny.publisher");
    let outcome =
        chrysalis(&["pack", &source, "-o", &folder.path("new.chry"), "--publisher-key", &no_key]);
    outcome.refused(1, "no.key does not hold an Ed25519 key");
    chrysalis(&["pack", &source, "-o", &folder.path("new.chry"), "--key", &publisher])
        .refused(1, "tiny.publisher");
    assert!(!folder.names().contains(&"new.chry".to_owned()));

    fs::remove_file(folder.path("tiny.key")).unwrap();
    chrysalis(&["eval", "--package", &package, "--text", &text])
        .refused(1, "tiny.chry is sealed: give its key with --key FILE");
    chrysalis(&["bench", "--package", &package]).refused(1, "tiny.chry is sealed");
}

#[test]
fn an_altered_package_is_refused_by_every_command() {
    let folder = Folder::new();
    let source = folder.tiny_llama();
    let package = folder.packed(&source, "tiny.chry", &[]);
    let text = folder.write("text.txt", b"hello");
    let eval = || chrysalis(&["eval", "--package", &package, "--text", &text]);
    let inspect = || chrysalis(&["inspect", &package]);
    let altered = |name: &str, change: &dyn Fn(&mut Vec<u8>), check: &dyn Fn()| {
        let path = folder.path(name);
        let honest = fs::read(&path).unwrap();
        let mut bytes = honest.clone();
        change(&mut bytes);
        fs::write(&path, bytes).unwrap();
        check();
        fs::write(&path, honest).unwrap();
    };
    let both = |why: &'static str| {
        move || {
            eval().refused(1, why);
            inspect().refused(1, why);
        }
    };
    altered("tiny.chry", &|bytes| bytes[40] ^= 1, &both("tiny.chry: "));
    altered("tiny.chry", &|bytes| bytes[300] ^= 1, &both("tiny.chry: "));
    altered("tiny.chry", &|bytes| bytes.truncate(600), &both("tiny.chry: "));
    altered("tiny.chry", &|bytes| bytes.truncate(10), &both("tiny.chry: "));
    altered("tiny.chry", &|bytes| *bytes.last_mut().unwrap() ^= 1, &both("tiny.chry: "));
    altered(
        "tiny.client",
        &|bytes| bytes[100] ^= 1,
        &both("tiny.client is not the client bundle of its package"),
    );
    altered(
        "tiny.client",
        &|bytes| bytes.truncate(100),
        &both("tiny.client is not the client bundle of its package"),
    );
    altered("tiny.b0000", &|bytes| bytes[1000] ^= 1, &|| {
        eval().refused(1, "segment 0");
    });
    altered("tiny.b0000", &|bytes| bytes.truncate(1000), &|| {
        eval().refused(1, "blob 0");
    });
    fs::remove_file(folder.path("tiny.b0000")).unwrap();
    eval().refused(1, "blob 0");
    fs::remove_file(folder.path("tiny.client")).unwrap();
    both("tiny.client: No such file")();
    fs::remove_file(&package).unwrap();
    both("tiny.chry: No such file")();
}

#[test]
fn a_text_that_cannot_be_scored_is_named() {
    let folder = Folder::new();
    let source = folder.tiny_llama();
    let package = folder.packed(&source, "tiny.chry", &["--open"]);
    let eval = |text: &str, more: &[&str]| {
        chrysalis(&[&["eval", "--package", &package, "--text", text], more].concat())
    };
    eval(&folder.path("nowhere.txt"), &[]).refused(1, "nowhere.txt: No such file");
    eval(&folder.write("bytes.txt", &[0xFF, 0xFE]), &[]).refused(1, "bytes.txt: ");
    eval(&folder.write("empty.txt", b""), &[]).refused(2, "there is nothing to score");
    let text = folder.write("text.txt", b"hello");
    eval(&text, &["--window", "1"]).refused(2, "--window is 2 or more");
    chrysalis(&["bench", "--package", &package, "--prompt", "0"])
        .refused(2, "--prompt, --batch and --repeat are 1 or more");
}

#[test]
fn an_enclave_that_cannot_start_says_why() {
    let folder = Folder::new();
    let source = folder.tiny_llama();
    let package = folder.packed(&source, "tiny.chry", &["--open"]);
    let socket = folder.path("busy.sock");
    let _busy = UnixListener::bind(&socket).unwrap();
    let listen = format!("unix:{socket}");
    let serve = |package: &str, listen: &str, more: &[&str]| {
        chrysalis(&[&["serve", "--package", package, "--listen", listen], more].concat())
    };
    serve(&package, &listen, &[]).refused(1, "cannot listen on unix:");
    let free = format!("unix:{}", folder.path("free.sock"));
    serve(&folder.path("nowhere.chry"), &free, &[]).refused(1, "nowhere.chry: No such file");
    serve(&package, &free, &["--attester", "wishful"]).refused(2, "wishful");
    serve(&package, "carrier-pigeon", &[]).refused(2, "carrier-pigeon");
    let config = folder.write("launch.conf", b"logging = 1\n");
    serve(&package, &free, &["--config", &config]).refused(1, "there is no key `logging`");
    let missing = folder.path("no-enclave");
    serve(&package, &free, &["--enclave", &missing]).refused(1, "no-enclave could not be started");
}

#[test]
fn a_file_that_a_policy_names_is_looked_for_beside_it() {
    let folder = Folder::new();
    let source = folder.tiny_llama();
    folder.packed(&source, "tiny.chry", &[]);
    let policy = folder.path("tiny.policy.toml");
    let text = fs::read_to_string(&policy).unwrap();
    let named = text.replace("# floors = \"amd.floors\"", "floors = \"amd.floors\"");
    assert_ne!(text, named, "a written policy shows how floors are named");
    fs::write(&policy, &named).unwrap();
    let verify = ["verify", "--connect", "unix:/nowhere", "--policy", &policy];
    chrysalis(&verify).refused(1, "snp.floors = \"amd.floors\": No such file");
    folder.write("amd.floors", b"not floors");
    chrysalis(&verify).refused(1, "snp.floors = \"amd.floors\": the floors file");
    // With the program's own file in its place, it is the address that is wrong.
    folder.write("amd.floors", include_bytes!("../../../attestation/src/floors/amd.floors"));
    chrysalis(&verify).refused(4, "/nowhere");
}
