//! The host's end of the exchange: it carries a challenge and evidence between a broker and a waiting enclave, and learns
//! nothing but who asks for what.

use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::sleep;
use std::time::Duration;

use chrysalis_protocol::key_release::SEALED_LEN;
use chrysalis_protocol::messages::KeyrelReq;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{Method, Request, Uri};
use hyper_util::rt::TokioIo;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::runtime::Runtime;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

/// Why a broker gave no key.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExchangeError {
    /// Not an address of a broker.
    #[error("`{url}` is no address of a broker: write https://HOST:PORT, or http://HOST:PORT")]
    Url {
        /// The text.
        url: String,
    },
    /// Nobody to believe about the broker's certificate.
    #[error("{path}: no certificate to trust the broker by: {reason}; name one with --broker-ca")]
    Roots {
        /// Where it was looked for.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The broker cannot be reached, or broke off.
    #[error("the key broker at {url}: {reason}")]
    Broken {
        /// Where.
        url: String,
        /// What happened.
        reason: String,
    },
    /// The broker refused.
    #[error("the key broker refused ({code}): {message}")]
    Refused {
        /// The HTTP status.
        status: u16,
        /// The stable name.
        code: String,
        /// In words.
        message: String,
    },
    /// What came is no answer of a broker.
    #[error("the key broker's answer is not {expected}")]
    Answer {
        /// What it should be.
        expected: &'static str,
    },
}

/// A broker, by its address.
pub struct Broker {
    url: String,
    host: String,
    port: u16,
    tls: Option<TlsConnector>,
    runtime: Runtime,
}

impl Broker {
    /// A broker at an address; over https its certificate is judged by `ca`, or by the system's authorities.
    ///
    /// # Errors
    /// [`ExchangeError::Url`], [`ExchangeError::Roots`].
    pub fn new(url: &str, ca: Option<&Path>) -> Result<Self, ExchangeError> {
        let wrong = || ExchangeError::Url { url: url.to_owned() };
        let uri: Uri = url.parse().map_err(|_| wrong())?;
        let (port, tls) = match uri.scheme_str() {
            Some("https") => (443, Some(connector(ca)?)),
            Some("http") => (80, None),
            _ => return Err(wrong()),
        };
        let host = uri.host().filter(|_| matches!(uri.path(), "" | "/")).ok_or_else(wrong)?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| broken(url, &error))?;
        Ok(Self {
            url: url.trim_end_matches('/').to_owned(),
            // Brackets of an IPv6 address are the URL's.
            host: host.trim_matches(['[', ']']).to_owned(),
            port: uri.port_u16().unwrap_or(port),
            tls,
            runtime,
        })
    }

    /// Asks for a challenge for an enclave that waits.
    ///
    /// # Errors
    /// [`ExchangeError`].
    pub fn challenge(&self, request: &KeyrelReq) -> Result<[u8; 32], ExchangeError> {
        let answer = self.call("/v1/challenge", request.to_bytes())?;
        answer.try_into().map_err(|_| ExchangeError::Answer { expected: "a challenge of 32 bytes" })
    }

    /// Brings evidence, and the sealed key back. When the answer is lost, the same evidence gets the same answer, and the
    /// owner's budget pays once.
    ///
    /// # Errors
    /// [`ExchangeError`].
    pub fn release(&self, evidence: &[u8]) -> Result<Box<[u8; SEALED_LEN]>, ExchangeError> {
        let answer = self.call("/v1/release", evidence.to_vec())?;
        let sealed: [u8; SEALED_LEN] = answer
            .try_into()
            .map_err(|_| ExchangeError::Answer { expected: "a sealed key of 1,232 bytes" })?;
        Ok(Box::new(sealed))
    }

    /// One call, made again when the broker cannot be reached, breaks off or has no room.
    fn call(&self, path: &str, body: Vec<u8>) -> Result<Vec<u8>, ExchangeError> {
        let body = Bytes::from(body);
        for wait_s in WAITS_S {
            match self.call_once(path, body.clone()) {
                Err(ExchangeError::Broken { .. } | ExchangeError::Refused { status: 503, .. }) => {
                    sleep(Duration::from_secs(wait_s));
                }
                other => return other,
            }
        }
        self.call_once(path, body)
    }

    fn call_once(&self, path: &str, body: Bytes) -> Result<Vec<u8>, ExchangeError> {
        let broken = |reason: &dyn std::fmt::Display| broken(&self.url, reason);
        let call = async {
            let stream = TcpStream::connect((self.host.as_str(), self.port))
                .await
                .map_err(|error| broken(&error))?;
            match &self.tls {
                None => self.send(stream, path, body).await,
                Some(tls) => {
                    let name =
                        ServerName::try_from(self.host.clone()).map_err(|error| broken(&error))?;
                    let stream = tls.connect(name, stream).await.map_err(|error| broken(&error))?;
                    self.send(stream, path, body).await
                }
            }
        };
        let silent = || io::Error::from(io::ErrorKind::TimedOut);
        self.runtime.block_on(timed(call)).unwrap_or_else(|| Err(broken(&silent())))
    }

    async fn send<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
        &self,
        stream: S,
        path: &str,
        body: Bytes,
    ) -> Result<Vec<u8>, ExchangeError> {
        let broken = |error: hyper::Error| broken(&self.url, &error);
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
        // It ends with the sender, and its errors are the sender's.
        let connection = tokio::spawn(connection);
        let request = Request::builder()
            .method(Method::POST)
            .uri(path)
            .header(HOST, format!("{}:{}", self.host, self.port))
            .header(CONTENT_TYPE, "application/octet-stream")
            .body(Full::new(body))
            .map_err(|_| ExchangeError::Url { url: self.url.clone() })?;
        let response = sender.send_request(request).await.map_err(broken)?;
        let status = response.status();
        let body = Limited::new(response.into_body(), ANSWER_MAX).collect().await;
        let expected = "short enough to be one";
        let body = body.map_err(|_| ExchangeError::Answer { expected })?.to_bytes();
        connection.abort();
        if status.is_success() {
            return Ok(body.to_vec());
        }
        let refused: Refused = serde_json::from_slice(&body)
            .map_err(|_| ExchangeError::Answer { expected: "one of a key broker" })?;
        let (code, message) = (refused.code, refused.message);
        Err(ExchangeError::Refused { status: status.as_u16(), code, message })
    }
}

/// What a refusal says.
#[derive(Deserialize)]
struct Refused {
    code: String,
    message: String,
}

async fn timed<T>(call: impl Future<Output = T>) -> Option<T> {
    timeout(CALL, call).await.ok()
}

fn broken(url: &str, reason: &dyn std::fmt::Display) -> ExchangeError {
    ExchangeError::Broken { url: url.to_owned(), reason: reason.to_string() }
}

fn connector(ca: Option<&Path>) -> Result<TlsConnector, ExchangeError> {
    let mut roots = RootCertStore::empty();
    let path = ca.unwrap_or_else(|| Path::new("the system's store"));
    let wrong = |reason: &dyn std::fmt::Display| ExchangeError::Roots {
        path: path.to_owned(),
        reason: reason.to_string(),
    };
    match ca {
        Some(file) => {
            let certificates: Result<Vec<_>, _> =
                CertificateDer::pem_file_iter(file).and_then(|certificates| certificates.collect());
            for certificate in certificates.map_err(|error| wrong(&error))? {
                roots.add(certificate).map_err(|error| wrong(&error))?;
            }
        }
        // Stores hold certificates that this library does not take; one that it takes is enough.
        None => {
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
    }
    if roots.is_empty() {
        return Err(wrong(&"there is none in it"));
    }
    let provider = Arc::new(aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| wrong(&error))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}

/// A call takes no longer.
const CALL: Duration = Duration::from_secs(30);
/// Waits between tries: a broker restarts within seconds.
const WAITS_S: [u64; 4] = [1, 1, 2, 4];
/// The longest answer that is read.
const ANSWER_MAX: usize = 16 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_written() {
        for (url, host, port) in [
            ("http://127.0.0.1:7443", "127.0.0.1", 7443),
            ("http://broker.example/", "broker.example", 80),
            ("http://[::1]:7443", "::1", 7443),
        ] {
            let broker = Broker::new(url, None).unwrap_or_else(|error| panic!("{error}"));
            assert_eq!((broker.host.as_str(), broker.port), (host, port), "{url}");
        }
        for url in ["", "broker:7443", "ftp://broker", "http://broker/v1", "http://"] {
            assert!(matches!(Broker::new(url, None), Err(ExchangeError::Url { .. })), "{url:?}");
        }
    }
}
