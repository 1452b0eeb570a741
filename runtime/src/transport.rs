//! Where the enclave listens: a vsock port in a guest, a unix socket elsewhere. Bytes without meaning.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vsock::{VMADDR_CID_ANY, VMADDR_CID_HOST, VsockAddr, VsockListener, VsockStream};

/// Address to listen on: `unix:PATH` or `vsock:PORT`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A socket file.
    Unix(PathBuf),
    /// A port of this guest.
    Vsock(u32),
}

/// Why an address was not understood.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no address: write unix:PATH or vsock:PORT")]
pub struct AddressError(String);

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let error = || AddressError(text.to_owned());
        match text.split_once(':') {
            Some(("unix", path)) if !path.is_empty() => Ok(Self::Unix(PathBuf::from(path))),
            Some(("vsock", port)) => port.parse().map(Self::Vsock).map_err(|_| error()),
            _ => Err(error()),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Vsock(port) => write!(f, "vsock:{port}"),
        }
    }
}

/// A bound listener.
#[derive(Debug)]
pub enum Listener {
    /// On a socket file.
    Unix(UnixListener),
    /// On a vsock port.
    Vsock(VsockListener),
}

impl Listener {
    /// Binds. A stale socket file, on which nobody answers, is replaced; a live one is an error.
    ///
    /// # Errors
    /// The system's, and `AddrInUse` for a socket that somebody serves.
    pub fn bind(address: &Address) -> io::Result<Self> {
        match address {
            Address::Unix(path) => {
                if let Ok(found) = std::fs::symlink_metadata(path) {
                    if !found.file_type().is_socket() {
                        return Err(io::Error::new(
                            io::ErrorKind::AlreadyExists,
                            "there is a file that is no socket",
                        ));
                    }
                    if UnixStream::connect(path).is_ok() {
                        return Err(io::Error::new(
                            io::ErrorKind::AddrInUse,
                            "somebody already serves this socket",
                        ));
                    }
                    std::fs::remove_file(path)?;
                }
                UnixListener::bind(path).map(Self::Unix)
            }
            Address::Vsock(port) => {
                VsockListener::bind(&VsockAddr::new(VMADDR_CID_ANY, *port)).map(Self::Vsock)
            }
        }
    }

    /// Waits for the next peer, a while. A vsock peer that is not the host (CID 2) is dropped unanswered.
    ///
    /// # Errors
    /// The system's.
    pub fn accept(&self, wait: Duration) -> io::Result<Option<Connection>> {
        let descriptor = match self {
            Self::Unix(listener) => listener.as_fd(),
            Self::Vsock(listener) => listener.as_fd(),
        };
        let wait = Timespec::try_from(wait).map_err(io::Error::other)?;
        if poll(&mut [PollFd::from_borrowed_fd(descriptor, PollFlags::IN)], Some(&wait))? == 0 {
            return Ok(None);
        }
        match self {
            Self::Unix(listener) => {
                listener.accept().map(|(stream, _)| Some(Connection::Unix(stream)))
            }
            Self::Vsock(listener) => {
                let (stream, peer) = listener.accept()?;
                Ok((peer.cid() == VMADDR_CID_HOST).then_some(Connection::Vsock(stream)))
            }
        }
    }
}

/// One connected byte stream.
#[derive(Debug)]
pub enum Connection {
    /// Over a socket file.
    Unix(UnixStream),
    /// Over vsock.
    Vsock(VsockStream),
}

impl Connection {
    /// A host's connection to a guest's port.
    ///
    /// # Errors
    /// The system's.
    pub fn to_guest(cid: u32, port: u32) -> io::Result<Self> {
        VsockStream::connect(&VsockAddr::new(cid, port)).map(Self::Vsock)
    }

    /// A second handle, so that one thread reads and another writes.
    ///
    /// # Errors
    /// The system's.
    pub fn try_clone(&self) -> io::Result<Self> {
        match self {
            Self::Unix(stream) => stream.try_clone().map(Self::Unix),
            Self::Vsock(stream) => stream.try_clone().map(Self::Vsock),
        }
    }

    /// Longest wait of a read; none waits for ever.
    ///
    /// # Errors
    /// The system's.
    pub fn set_read_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        match self {
            Self::Unix(stream) => stream.set_read_timeout(timeout),
            Self::Vsock(stream) => stream.set_read_timeout(timeout),
        }
    }

    /// Longest wait of a write; none waits for ever.
    ///
    /// # Errors
    /// The system's.
    pub fn set_write_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        match self {
            Self::Unix(stream) => stream.set_write_timeout(timeout),
            Self::Vsock(stream) => stream.set_write_timeout(timeout),
        }
    }

    /// Ends both directions; readers and writers of every handle wake.
    pub fn shutdown(&self) {
        // A connection that the peer already ended has nothing left to shut down.
        drop(match self {
            Self::Unix(stream) => stream.shutdown(Shutdown::Both),
            Self::Vsock(stream) => stream.shutdown(Shutdown::Both),
        });
    }
}

impl Read for Connection {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Unix(stream) => stream.read(buffer),
            Self::Vsock(stream) => stream.read(buffer),
        }
    }
}

impl Write for Connection {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        match self {
            Self::Unix(stream) => stream.write(buffer),
            Self::Vsock(stream) => stream.write(buffer),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Unix(stream) => stream.flush(),
            Self::Vsock(stream) => stream.flush(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_written() {
        for text in ["unix:/run/chrysalis.sock", "vsock:5000"] {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), text);
        }
        for text in ["", "unix:", "vsock:", "vsock:-1", "tcp:1", "/run/x", "vsock:5000x"] {
            assert_eq!(text.parse::<Address>(), Err(AddressError(text.to_owned())));
        }
    }

    #[test]
    fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let address = Address::Unix(folder.path().join("socket"));
        drop(Listener::bind(&address).unwrap());
        let live = Listener::bind(&address).unwrap();
        assert_eq!(Listener::bind(&address).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        drop(live);
    }

    #[test]
    fn a_file_in_the_place_of_the_socket_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("precious");
        std::fs::write(&path, "a letter").unwrap();
        let error = Listener::bind(&Address::Unix(path.clone())).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(std::fs::read(path).unwrap(), b"a letter");
    }
}
