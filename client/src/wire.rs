//! Whole frames over a blocking stream.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use chrysalis_protocol::frame::{self, FrameKind};
use vsock::{VsockAddr, VsockStream};

use crate::address::Address;
use crate::error::ClientError;

/// A frame that came in.
#[derive(Debug)]
pub(crate) struct Received {
    pub(crate) kind: FrameKind,
    pub(crate) stream: u64,
    pub(crate) body: Vec<u8>,
}

/// The byte stream and what was read beyond the last frame.
#[derive(Debug)]
pub(crate) struct Wire {
    stream: Stream,
    buffer: Vec<u8>,
    chunk: Vec<u8>,
}

#[derive(Debug)]
enum Stream {
    Unix(UnixStream),
    Vsock(VsockStream),
}

impl Wire {
    pub(crate) fn connect(address: &Address) -> Result<Self, ClientError> {
        let failed = |source| ClientError::Connect { address: address.clone(), source };
        let stream = match address {
            Address::Unix(path) => {
                let stream = UnixStream::connect(path).map_err(failed)?;
                stream.set_read_timeout(Some(POLL)).map_err(failed)?;
                stream.set_write_timeout(Some(SILENCE)).map_err(failed)?;
                Stream::Unix(stream)
            }
            Address::Vsock { cid, port } => {
                let stream = VsockStream::connect(&VsockAddr::new(*cid, *port)).map_err(failed)?;
                stream.set_read_timeout(Some(POLL)).map_err(failed)?;
                stream.set_write_timeout(Some(SILENCE)).map_err(failed)?;
                Stream::Vsock(stream)
            }
        };
        Ok(Self { stream, buffer: Vec::new(), chunk: vec![0; CHUNK] })
    }

    pub(crate) fn send(
        &mut self,
        kind: FrameKind,
        stream: u64,
        body: &[u8],
    ) -> Result<(), ClientError> {
        let mut bytes = Vec::new();
        frame::write(kind, stream, body, &mut bytes);
        match &mut self.stream {
            Stream::Unix(stream) => stream.write_all(&bytes),
            Stream::Vsock(stream) => stream.write_all(&bytes),
        }
        .map_err(ended)
    }

    /// The next frame. An enclave that is silent for half a minute is given up.
    pub(crate) fn receive(&mut self) -> Result<Received, ClientError> {
        let start = Instant::now();
        loop {
            if let Some((whole, rest)) = frame::split(&self.buffer)? {
                let received =
                    Received { kind: whole.kind, stream: whole.stream, body: whole.body.to_vec() };
                let used = self.buffer.len() - rest.len();
                self.buffer.drain(..used);
                return Ok(received);
            }
            let read = match &mut self.stream {
                Stream::Unix(stream) => stream.read(&mut self.chunk),
                Stream::Vsock(stream) => stream.read(&mut self.chunk),
            };
            match read {
                Ok(0) => return Err(ClientError::Closed),
                Ok(count) => {
                    self.buffer.extend_from_slice(self.chunk.get(..count).unwrap_or_default());
                }
                Err(error) if is_pause(&error) => {
                    if start.elapsed() > SILENCE {
                        return Err(ClientError::Silent { seconds: SILENCE.as_secs() });
                    }
                }
                Err(error) => return Err(ended(error)),
            }
        }
    }
}

fn is_pause(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted
    )
}

/// A peer that left shows as one thing, whichever way the system says it.
fn ended(error: io::Error) -> ClientError {
    match error.kind() {
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => ClientError::Closed,
        _ => ClientError::Io(error),
    }
}

const POLL: Duration = Duration::from_secs(1);
const SILENCE: Duration = Duration::from_secs(30);
const CHUNK: usize = 64 << 10;
