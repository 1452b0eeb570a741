//! What the program says of itself: names and flags are the contract that scripts rely on.

use super::support::{Outcome, chrysalis, command};

#[test]
fn every_command_explains_its_flags() {
    let all = chrysalis(&["--help"]);
    assert_eq!(all.code, Some(0));
    for (name, flags) in COMMANDS {
        assert!(all.stdout.contains(&format!("\n  {name} ")), "{name} is not in {}", all.stdout);
        let help = chrysalis(&[name, "--help"]);
        assert_eq!(help.code, Some(0), "{name}");
        for flag in flags.split(' ') {
            assert!(
                help.stdout.contains(flag),
                "{flag} is not in the help of {name}: {}",
                help.stdout
            );
        }
    }
}

#[test]
fn a_wrong_command_line_has_exit_code_2() {
    for args in
        [&[][..], &["sing"], &["pack"], &["pack", "x", "-o", "x.chry", "--loud"], &["ask", "hello"]]
    {
        let outcome = chrysalis(args);
        assert_eq!(outcome.code, Some(2), "{args:?}");
        assert!(outcome.stderr.contains("Usage: chrysalis"), "{}", outcome.stderr);
    }
}

#[test]
fn the_program_is_also_the_enclave() {
    let help = chrysalis(&["enclave", "--help"]);
    assert_eq!(help.code, Some(0));
    for flag in ["chrysalis-enclave", "--package", "--listen", "--attester", "--config"] {
        assert!(help.stdout.contains(flag), "{flag} is not in {}", help.stdout);
    }
    // It is a role, not a command that people are offered.
    assert!(!chrysalis(&["--help"]).stdout.contains("\n  enclave "));
}

#[test]
fn the_enclave_takes_no_platform_for_granted() {
    let outcome = chrysalis(&["enclave", "--package", "x.chry", "--listen", "unix:x.sock"]);
    outcome.refused(2, "--attester");
}

#[test]
fn a_reader_that_left_is_no_failure() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let outcome: Outcome = command(&["--version"]).stdout(writer).output().unwrap().into();
    assert_eq!((outcome.code, outcome.stderr.as_str()), (Some(0), ""));
}

/// Each command, and what its help has to name.
const COMMANDS: [(&str, &str); 14] = [
    ("relay", "--connect --listen --receipts --json"),
    ("demo", "[PROMPT] --model --cache --max-tokens --device --threads --json"),
    (
        "pack",
        "<SOURCE> --output --key --open --publisher-key --svn --dtype keep bf16 fp8 q8 q4 --force --json",
    ),
    ("inspect", "<PACKAGE> --key --json"),
    ("serve", "--package --listen --attester --config --nvml --enclave"),
    (
        "release",
        "--connect --key --policy --broker --broker-ca --lease-seconds --lease-tokens --endorsements --json",
    ),
    ("key-broker", "init licence add revoke status serve log"),
    (
        "verify",
        "--connect --evidence --policy --endorsements --wanted --max-age fresh epoch --save --nonce --at --json",
    ),
    ("receipts", "verify voucher"),
    ("doctor", "--root --nvml --json"),
    (
        "measure",
        "--ovmf --kernel --initrd --cmdline --vcpus --vcpu-type --vmm --guest-features --config --expect --report --json",
    ),
    (
        "ask",
        "<PROMPT> --connect --policy --endorsements --max-age --voucher --receipts --system --max-tokens --temperature --top-p --top-k --min-p \
         --repetition-penalty --seed --stop --raw --json",
    ),
    (
        "bench",
        "--package --key --device --threads --prompt --generate --batch --kv-dtype --profile --json",
    ),
    ("eval", "--package --key --text --device --json"),
];
