//! The three calls of the broker over HTTP (docs/key-broker.md, "Exchange"). Bodies are the protocol's messages, as bytes;
//! a refusal is a JSON object with a stable code.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::State;
use axum::http::header::{CONTENT_TYPE, RETRY_AFTER};
use axum::http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use axum::routing::{get, post};
use chrysalis_protocol::bundle::BUNDLE_MAX;
use serde::Serialize;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::log::Entry;
use super::refusal::Refusal;
use super::service::{Judged, Service};
use super::spend::{Job, Outcome};
use super::writer::Writer;

/// What the calls share.
#[derive(Clone)]
pub struct Calls {
    /// Decides.
    pub service: Arc<Service>,
    /// Writes what was decided.
    pub writer: Writer,
    /// Appraisals at once.
    pub appraisals: Arc<Semaphore>,
    /// Whether a proxy says who calls.
    pub behind_proxy: bool,
}

/// Whose connection a request came over.
#[derive(Clone, Copy, Debug)]
pub struct Peer(pub SocketAddr);

/// What a refusal says.
#[derive(Serialize)]
struct Refused {
    code: &'static str,
    message: String,
}

/// The calls as a router.
pub fn router(calls: Calls) -> Router {
    Router::new()
        .route("/v1/challenge", post(challenge))
        .route("/v1/release", post(release))
        .route("/v1/health", get(health))
        .fallback(|| async { refused(&Refusal::Call) })
        .method_not_allowed_fallback(|| async { refused(&Refusal::Call) })
        .with_state(calls)
}

async fn health() -> &'static str {
    "ok\n"
}

async fn challenge(State(calls): State<Calls>, request: Request<Body>) -> Response<Body> {
    let answer = async {
        let (_, body) = calls.take(request, CHALLENGE_MAX).await?;
        calls.service.challenge(&body)
    };
    match answer.await {
        Ok(nonce) => bytes(nonce.to_vec()),
        Err(refusal) => refused(&refusal),
    }
}

async fn release(State(calls): State<Calls>, request: Request<Body>) -> Response<Body> {
    let answer = async {
        let (address, body) = calls.take(request, BUNDLE_MAX).await?;
        calls.release(address, body).await
    };
    match answer.await {
        Ok(sealed) => bytes(sealed),
        Err(refusal) => refused(&refusal),
    }
}

impl Calls {
    /// Counts a call, then reads its body.
    async fn take(&self, request: Request<Body>, max: usize) -> Result<(IpAddr, Vec<u8>), Refusal> {
        let peer = request.extensions().get::<Peer>().map(|peer| peer.0.ip());
        let peer = peer.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
        let forwarded = self.behind_proxy.then(|| forwarded(request.headers())).flatten();
        let address = forwarded.unwrap_or(peer);
        self.service.admit(address)?;
        match timeout(BODY_TIME, to_bytes(request.into_body(), max)).await {
            Ok(Ok(body)) => Ok((address, body.into())),
            Ok(Err(_)) => Err(Refusal::TooLong { max }),
            Err(_) => Err(Refusal::Slow { seconds: BODY_TIME.as_secs() }),
        }
    }

    /// Nothing is released that is not in the log.
    async fn release(&self, address: IpAddr, body: Vec<u8>) -> Result<Vec<u8>, Refusal> {
        let permit = Arc::clone(&self.appraisals).acquire_owned().await;
        let service = Arc::clone(&self.service);
        let judged = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            service.judge(&body, address)
        });
        match judged.await.map_err(|_| Refusal::Store)? {
            Judged::Ask(ask) => match self.writer.submit(Job::Release(ask)).await? {
                Outcome::Sealed(sealed) => Ok(sealed.to_vec()),
                Outcome::Refused(refusal) => Err(refusal),
                Outcome::Noted => Err(Refusal::Store),
            },
            Judged::Again(entry, sealed) => {
                self.note(entry).await?;
                Ok(sealed.to_vec())
            }
            // Counted, and summed up in the log: a flood must not fill the disk.
            Judged::Refused(_, refusal @ Refusal::Rate { .. }) => Err(refusal),
            Judged::Refused(entry, refusal) => {
                self.note(entry).await?;
                Err(refusal)
            }
        }
    }

    /// Logs an entry, or counts it where there are too many of its kind.
    async fn note(&self, entry: Box<Entry>) -> Result<(), Refusal> {
        if self.service.has_line(&entry) {
            self.writer.submit(Job::Note(entry)).await?;
        }
        Ok(())
    }
}

/// Who calls, as the nearest proxy says: the last address of the list.
fn forwarded(headers: &HeaderMap) -> Option<IpAddr> {
    let last = headers.get_all("x-forwarded-for").iter().next_back()?;
    last.to_str().ok()?.rsplit(',').next()?.trim().parse().ok()
}

fn bytes(body: Vec<u8>) -> Response<Body> {
    answer(StatusCode::OK, "application/octet-stream", body)
}

fn refused(refusal: &Refusal) -> Response<Body> {
    let status = StatusCode::from_u16(refusal.status()).unwrap_or(StatusCode::FORBIDDEN);
    let body = Refused { code: refusal.code(), message: refusal.to_string() };
    // Two strings: serialising cannot fail.
    let body = serde_json::to_vec(&body).unwrap_or_default();
    let mut response = answer(status, "application/json", body);
    if let Refusal::Rate { retry_after_s, .. } = refusal {
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(*retry_after_s));
    }
    response
}

fn answer(status: StatusCode, kind: &'static str, body: Vec<u8>) -> Response<Body> {
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

/// Longest body of a challenge's call: KEYREL_REQ.
const CHALLENGE_MAX: usize = 64;
/// A body comes within this time, or never.
const BODY_TIME: Duration = Duration::from_secs(20);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_proxy_is_believed_and_nobody_before_it() {
        let headers = |values: &[&'static str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append("x-forwarded-for", HeaderValue::from_static(value));
            }
            headers
        };
        let expected = Some(IpAddr::from([192, 0, 2, 7]));
        assert_eq!(forwarded(&headers(&["192.0.2.7"])), expected);
        assert_eq!(forwarded(&headers(&["10.0.0.1, 192.0.2.7"])), expected);
        assert_eq!(forwarded(&headers(&["10.0.0.1", "192.0.2.7"])), expected);
        assert_eq!(forwarded(&headers(&["192.0.2.7, me"])), None);
        assert_eq!(forwarded(&headers(&[])), None);
    }
}
