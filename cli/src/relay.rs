//! `chrysalis relay`: the host's way between clients and an enclave. Bytes pass as they are; receipts, which the host reads
//! anyway, are kept on the way (docs/howto-daemon.md, "Receipts").

use std::fs;
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use chrysalis_client::{Address, ReceiptFile};
use chrysalis_protocol::frame::{self, FrameKind};
use chrysalis_runtime::transport::{self, Connection, Listener};
use clap::Args;
use serde::Serialize;

use crate::error::CliError;
use crate::output;

/// `chrysalis relay`.
#[derive(Debug, Args)]
pub struct RelayArgs {
    /// The enclave: unix:PATH or vsock:CID:PORT
    #[arg(long, value_name = "ADDR")]
    pub connect: String,
    /// Where clients come: unix:PATH
    #[arg(long, value_name = "ADDR")]
    pub listen: String,
    /// Keep receipts in this folder: a file for each connection, in the order of signing
    #[arg(long, value_name = "DIR")]
    pub receipts: Option<PathBuf>,
    /// One JSON object instead of a line of text once it listens
    #[arg(long)]
    pub json: bool,
}

/// What `--json` prints.
#[derive(Serialize)]
struct Listening {
    listening: String,
}

/// Runs `chrysalis relay`, until a signal ends it.
///
/// # Errors
/// [`CliError::Address`], and [`CliError::Io`] for what cannot be bound or made.
pub fn run(args: &RelayArgs) -> Result<(), CliError> {
    let enclave: Address = args.connect.parse()?;
    let Address::Unix(path) = args.listen.parse()? else {
        return Err(CliError::Usage("--listen takes unix:PATH"));
    };
    if let Some(folder) = &args.receipts {
        fs::create_dir_all(folder).map_err(CliError::io(folder))?;
    }
    let listener =
        Listener::bind(&transport::Address::Unix(path.clone())).map_err(CliError::io(&path))?;
    if args.json {
        output::json(&Listening { listening: args.listen.clone() })?;
    } else {
        output::line(&format!("listening on {}, for {enclave}", args.listen))?;
    }
    let open = Arc::new(AtomicUsize::new(0));
    for number in 1_u64.. {
        while open.load(Ordering::Relaxed) >= CONNECTIONS_MAX {
            thread::sleep(PAUSE);
        }
        let client = loop {
            match listener.accept(POLL) {
                Ok(Some(client)) => break client,
                Ok(None) => {}
                // No more file descriptors, or a peer that left at once.
                Err(_) => thread::sleep(PAUSE),
            }
        };
        open.fetch_add(1, Ordering::Relaxed);
        let (enclave, open) = (enclave.clone(), Arc::clone(&open));
        let kept = args.receipts.as_deref().map(|folder| file(folder, number));
        thread::spawn(move || {
            if let Err(error) = pass(&client, &enclave, kept.as_deref()) {
                output::note(&format!("chrysalis: connection {number}: {error}"));
            }
            client.shutdown();
            open.fetch_sub(1, Ordering::Relaxed);
        });
    }
    Ok(())
}

/// A new file for a connection; it is made with its first receipt.
fn file(folder: &Path, number: u64) -> PathBuf {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis());
    folder.join(format!("{now}-{number}.receipts"))
}

/// Passes a connection on until one of its ends is gone.
fn pass(client: &Connection, enclave: &Address, kept: Option<&Path>) -> io::Result<()> {
    let enclave = match enclave {
        Address::Unix(path) => Connection::Unix(UnixStream::connect(path)?),
        Address::Vsock { cid, port } => Connection::to_guest(*cid, *port)?,
    };
    for end in [client, &enclave] {
        end.set_write_timeout(Some(STALL))?;
    }
    let (mut from_client, mut to_client) = (client.try_clone()?, client.try_clone()?);
    let (mut from_enclave, mut to_enclave) = (enclave.try_clone()?, enclave.try_clone()?);
    thread::scope(|scope| {
        scope.spawn(|| {
            // Whoever broke off, the other direction sees the end too.
            drop(io::copy(&mut from_client, &mut to_enclave));
            enclave.shutdown();
        });
        let passed = back(&mut from_enclave, &mut to_client, kept);
        enclave.shutdown();
        client.shutdown();
        passed
    })
}

/// The way back, frame by frame: a receipt is on the disk before the client has it.
fn back(from: &mut impl Read, to: &mut impl Write, kept: Option<&Path>) -> io::Result<()> {
    let (mut bytes, mut piece) = (Vec::new(), vec![0; PIECE]);
    let mut receipts = None;
    loop {
        let read = match from.read(&mut piece) {
            Ok(0) => return Ok(()),
            Ok(read) => read,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) if error.kind() == ErrorKind::ConnectionReset => return Ok(()),
            Err(error) => return Err(error),
        };
        bytes.extend_from_slice(piece.get(..read).unwrap_or_default());
        let mut used = 0;
        while let Some((frame, rest)) = frame::split(bytes.get(used..).unwrap_or_default())
            .map_err(|error| io::Error::new(ErrorKind::InvalidData, error))?
        {
            if let (FrameKind::Receipt, Some(path)) = (frame.kind, kept) {
                if receipts.is_none() {
                    receipts = Some(ReceiptFile::append_to(path)?);
                }
                if let Some(file) = &mut receipts {
                    file.add(frame.body)?;
                }
            }
            used = bytes.len() - rest.len();
        }
        let whole: Vec<u8> = bytes.drain(..used).collect();
        match to.write_all(&whole) {
            Err(error) if error.kind() == ErrorKind::BrokenPipe => return Ok(()),
            written => written?,
        }
    }
}

/// Connections at once: as many as an enclave takes.
const CONNECTIONS_MAX: usize = 64;
const PAUSE: Duration = Duration::from_millis(50);
const POLL: Duration = Duration::from_secs(1);
/// A peer that takes nothing for this long is gone.
const STALL: Duration = Duration::from_secs(30);
const PIECE: usize = 64 << 10;

#[cfg(test)]
mod tests {
    use chrysalis_protocol::receipt::RECEIPT_LEN;

    use super::*;

    /// Gives bytes in pieces of a size.
    struct Pieces<'a>(&'a [u8], usize);

    impl Read for Pieces<'_> {
        fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
            let (now, rest) = self.0.split_at(self.1.min(self.0.len()));
            out[..now.len()].copy_from_slice(now);
            self.0 = rest;
            Ok(now.len())
        }
    }

    #[test]
    fn bytes_pass_unchanged_and_receipts_are_kept_however_they_come() {
        let folder = tempfile::tempdir().unwrap();
        let mut sent = Vec::new();
        frame::write(FrameKind::EnclaveData, 1, &[5; 300], &mut sent);
        frame::write(FrameKind::Receipt, 1, &[6; RECEIPT_LEN], &mut sent);
        frame::write(FrameKind::Receipt, 2, &[7; RECEIPT_LEN], &mut sent);
        for size in [1, 7, 100, 100_000] {
            let path = folder.path().join(size.to_string());
            let mut passed = Vec::new();
            back(&mut Pieces(&sent, size), &mut passed, Some(&path)).unwrap();
            assert_eq!(passed, sent);
            assert_eq!(fs::read(&path).unwrap(), [[6; RECEIPT_LEN], [7; RECEIPT_LEN]].concat());
        }
    }

    #[test]
    fn what_is_no_frame_ends_the_connection_and_a_connection_without_receipts_leaves_no_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("kept");
        let error = back(&mut Pieces(&[0; 24], 24), &mut Vec::new(), Some(&path)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidData);
        assert!(!path.exists());
        // A receipt of another length is none.
        let mut sent = Vec::new();
        frame::write(FrameKind::Receipt, 1, &[6; RECEIPT_LEN - 1], &mut sent);
        assert!(back(&mut Pieces(&sent, 400), &mut Vec::new(), Some(&path)).is_err());
        assert_eq!(fs::read(&path).unwrap(), b"");
    }
}
