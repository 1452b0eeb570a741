//! The broker's end of the operator's socket.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rustix::process::geteuid;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::time::timeout;

use super::admin::{Answer, TIME, socket_path};
use super::error::BrokerError;
use super::licence::now_unix;
use super::writer::Writer;

/// The socket; its file goes with it.
#[derive(Debug)]
pub struct AdminSocket {
    listener: UnixListener,
    path: PathBuf,
}

impl AdminSocket {
    /// Binds it. The store is ours alone: what lies there was left by a broker that was killed.
    ///
    /// # Errors
    /// [`BrokerError::Admin`].
    pub fn bind(folder: &Path) -> Result<Self, BrokerError> {
        let path = socket_path(folder);
        let bind = || -> io::Result<UnixListener> {
            if path.exists() {
                fs::remove_file(&path)?;
            }
            let listener = UnixListener::bind(&path)?;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
            Ok(listener)
        };
        match bind() {
            Ok(listener) => Ok(Self { listener, path }),
            Err(error) => Err(BrokerError::Admin { path, reason: error.to_string() }),
        }
    }

    /// The next caller that is this user or root. Others get nothing, also in the moment before the file had its mode.
    pub async fn accept(&self) -> Option<UnixStream> {
        let (stream, _) = self.listener.accept().await.ok()?;
        let caller = stream.peer_cred().ok()?.uid();
        (caller == geteuid().as_raw() || caller == 0).then_some(stream)
    }
}

impl Drop for AdminSocket {
    fn drop(&mut self) {
        // The next broker removes what this one could not.
        drop(fs::remove_file(&self.path));
    }
}

/// Answers one caller. Whoever breaks off learns nothing; what was done stays done.
pub async fn answer(mut stream: UnixStream, writer: Writer) {
    let talk = async {
        let mut request = Vec::new();
        (&mut stream).take(REQUEST_MAX).read_to_end(&mut request).await?;
        let answer: Answer = match serde_json::from_slice(&request) {
            Ok(request) => writer.administer(request, now_unix()).await,
            Err(error) => Err(error.to_string()),
        };
        stream.write_all(&serde_json::to_vec(&answer)?).await?;
        stream.shutdown().await
    };
    drop::<Option<io::Result<()>>>(timeout(TIME, talk).await.ok());
}

/// A licence and its policy, in hexadecimal digits.
const REQUEST_MAX: u64 = 4 << 20;
