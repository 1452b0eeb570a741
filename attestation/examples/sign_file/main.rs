//! Makes, signs and shows the signed files that verifiers go by, floors and platform registries:
//! `key NEW.pk8`, `sign KEY.pk8 SOURCE.toml OUT [OUT.pub]`, `show FILE`. docs/attestation.md says
//! when.
#![expect(clippy::print_stdout, reason = "it is a tool for a terminal")]

#[path = "../../tests/suite/floors_source.rs"]
mod floors_source;
mod registry_source;

use std::error::Error;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use chrysalis_attestation::policy::{Floors, Registry, SignedFile, SignedRecord, Table};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments.as_slice() {
        ["key", path] => key(path),
        ["sign", key, source, out] => sign(key, source, out, None),
        ["sign", key, source, out, public] => sign(key, source, out, Some(public)),
        ["show", path] => show(path),
        _ => Err("key NEW.pk8 | sign KEY.pk8 SOURCE.toml OUT [OUT.pub] | show FILE".into()),
    }
}

/// A new private key, in a file that was not there before.
fn key(path: &str) -> Result<(), Box<dyn Error>> {
    let pkcs8 = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new())?;
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(pkcs8.as_ref())?;
    file.sync_all()?;
    let pair = Ed25519KeyPair::from_pkcs8(pkcs8.as_ref())?;
    println!("signer {}", hex(pair.public_key().as_ref()));
    Ok(())
}

/// What the source lists says which file it is.
fn sign(key: &str, source: &str, out: &str, public: Option<&str>) -> Result<(), Box<dyn Error>> {
    let pair = Ed25519KeyPair::from_pkcs8(&fs::read(key)?)?;
    let text = fs::read_to_string(source)?;
    let file = if text.contains("[[platform]]") {
        signed(&registry_source::read(&text)?, &pair)?
    } else {
        signed(&floors_source::read(&text)?, &pair)?
    };
    fs::write(out, &file)?;
    if let Some(public) = public {
        fs::write(public, pair.public_key().as_ref())?;
    }
    println!("signer {}", hex(pair.public_key().as_ref()));
    Ok(())
}

/// Nothing is written that would not be read.
fn signed<R: SignedRecord>(
    table: &Table<R>,
    pair: &Ed25519KeyPair,
) -> Result<Vec<u8>, Box<dyn Error>> {
    let file = table.sign(pair);
    SignedFile::<R>::open(&file, pair.public_key().as_ref().try_into()?)?;
    Ok(file)
}

/// What a file says, and who it says has signed it.
fn show(path: &str) -> Result<(), Box<dyn Error>> {
    let bytes = fs::read(path)?;
    let signer = bytes.get(SIGNER).ok_or("the file is too short")?.try_into()?;
    match Registry::open(&bytes, signer) {
        Ok(registry) => {
            println!("# signed by {}", hex(registry.signer()));
            print!("{}", registry_source::write(registry.table()));
        }
        Err(_) => {
            let floors = Floors::open(&bytes, signer)?;
            println!("signed by {}", hex(floors.signer()));
            println!("{:#?}", floors.table());
        }
    }
    Ok(())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Where the signer's key stands in a file.
const SIGNER: std::ops::Range<usize> = 32..64;
