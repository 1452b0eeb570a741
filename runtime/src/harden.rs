//! What the process gives up at its start (docs/threat-model.md, "Guest hardening"): core dumps, ptrace, and the words
//! of a panic.

use std::io::{self, Write};
use std::panic;

use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};

/// Refuses core dumps and attached debuggers: keys and prompts are in this memory.
///
/// # Errors
/// The system's.
pub fn harden() -> io::Result<()> {
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    Ok(())
}

/// From now on a panic tells its place and nothing else: the host reads standard error, and the message of a panic may
/// hold a token id (an index that is out of bounds), which is a part of a prompt or of an answer.
pub(crate) fn keep_panics_quiet() {
    panic::set_hook(Box::new(|panic| {
        let mut err = io::stderr().lock();
        // Nobody need listen.
        drop(match panic.location() {
            Some(place) => writeln!(err, "chrysalis-enclave: panic at {place}"),
            None => writeln!(err, "chrysalis-enclave: panic"),
        });
    }));
}

#[cfg(test)]
mod tests {
    use std::env;
    use std::hint::black_box;
    use std::process::Command;

    use super::*;

    /// The hook is the whole process's, so that the panic happens in one of its own.
    const IN_A_CHILD: &str = "CHRYSALIS_TEST_PANICS";

    #[test]
    fn a_panic_tells_its_place_and_not_what_it_is_about() {
        let token = black_box(31_337_usize);
        if env::var_os(IN_A_CHILD).is_some() {
            keep_panics_quiet();
            black_box(vec![0_u32; 3][token]);
        }
        let mut child = Command::new(env::current_exe().unwrap());
        child.args(["--exact", "harden::tests::a_panic_tells_its_place_and_not_what_it_is_about"]);
        let output = child.arg("--nocapture").env(IN_A_CHILD, "1").output().unwrap();
        let told = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success());
        assert!(told.contains("panic at ") && told.contains("harden.rs"), "{told}");
        assert!(!told.contains("31337"), "{told}");
    }
}
