//! What the process gives up at its start (docs/threat-model.md, "Guest hardening"): core dumps and ptrace.

use std::io;

use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};

/// Refuses core dumps and attached debuggers: keys and prompts are in this memory.
///
/// # Errors
/// The system's.
pub(crate) fn harden() -> io::Result<()> {
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    Ok(())
}
