//! Randomness of the operating system. A guest kernel of 6.9 or later panics when RDRAND cannot seed it.

use chrysalis_protocol::rand_core::UnwrapErr;
use getrandom::SysRng;

/// The system's generator; a failure of it ends the process, because nothing safe can follow.
pub type SystemRng = UnwrapErr<SysRng>;
