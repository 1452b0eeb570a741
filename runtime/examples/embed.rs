//! An enclave inside another program: `cargo run -p chrysalis-runtime --example embed -- NAME.chry unix:/tmp/enclave.sock`
//!
//! Evidence comes from the simulated platform, which proves nothing; `Interfaces` finds the machine's own.
//! A sealed package waits for its key (`chrysalis release`); an open one is served at once.

use std::error::Error;

use chrysalis_runtime::boot::{Enclave, EnclaveOptions, Progress, simulated};

#[expect(clippy::print_stdout, reason = "it is a program for a terminal")]
fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let (package, address) = args.next().zip(args.next()).ok_or("NAME.chry and ADDR")?;
    let options = EnclaveOptions::new(package.into(), address.parse()?);
    let attester = simulated(&options.config)?;
    let enclave = Enclave::start(options, attester, |progress| match progress {
        Progress::Loading(..) => {}
        progress => println!("{progress:?}"),
    })?;
    Ok(enclave.wait()?)
}
