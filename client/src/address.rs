//! Where an enclave is: a socket file, or a port of a guest.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// `unix:PATH` or `vsock:CID:PORT`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A socket file.
    Unix(PathBuf),
    /// A port of the guest with this CID.
    Vsock {
        /// The guest.
        cid: u32,
        /// Its port.
        port: u32,
    },
}

/// Why an address was not understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no address: write unix:PATH or vsock:CID:PORT")]
pub struct AddressError(String);

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let parsed = match text.split_once(':') {
            Some(("unix", path)) if !path.is_empty() => Some(Self::Unix(PathBuf::from(path))),
            Some(("vsock", rest)) => rest.split_once(':').and_then(|(cid, port)| {
                Some(Self::Vsock { cid: cid.parse().ok()?, port: port.parse().ok()? })
            }),
            _ => None,
        };
        parsed.ok_or_else(|| AddressError(text.to_owned()))
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Vsock { cid, port } => write!(f, "vsock:{cid}:{port}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_written() {
        for text in ["unix:/run/x.sock", "vsock:3:5000"] {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), text);
        }
        for text in ["", "unix:", "vsock:5000", "vsock:3:", "vsock::1", "tcp:1:2", "vsock:3:5000:1"]
        {
            assert!(text.parse::<Address>().is_err(), "{text:?}");
        }
    }
}
