//! The pages of the HTTP port: metrics, health, and the admin API.
//!
//! | page            | answer |
//! |-----------------|--------|
//! | `/metrics`      | Prometheus's text format ([`crate::exposition`] lists the names) |
//! | `/health/live`  | 200 as long as the process can answer at all |
//! | `/health/ready` | 200 when the process does what it is there for and every partition is sound; 503 with the reasons otherwise |
//! | `/v1/...`       | [`meta::admin`], here or by the meta that leads ([`relay`]) |
//!
//! # Invariants
//! - Whoever reaches the port holds few descriptors and not for long (`who_is_silent_or_does_not_read_is_cut`).

use std::pin::pin;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::Extension;
use axum::extract::{ConnectInfo, Request};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::util::ServiceExt;

use crate::local::Local;
use crate::opened::Stage;
use crate::relay;

/// Connections at a time: scrapers, probes and operators are few. Others wait, and the kernel has no descriptors for who waits.
pub(crate) const CONNECTIONS_MAX: usize = 64;
/// After accept failed (no more file descriptors, say).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How long connections are put up with.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Patience {
    /// For a request's head to come, from the last answer on.
    head: Duration,
    /// For a connection in all; then its request is the last one, and has as long again until it is cut.
    all: Duration,
}

/// Longer than scrapes are apart where that matters, and as long as the admin API takes over anything.
pub(crate) const PATIENCE: Patience = Patience { head: Duration::from_secs(10), all: Duration::from_secs(60) };

/// What the HTTP port shows: while the process is being opened that, and then all pages.
#[derive(Clone, Default)]
pub(crate) struct Door {
    stage: Stage,
    pages: Arc<OnceLock<Router>>,
}

impl Door {
    pub(crate) fn new(stage: &Stage) -> Door {
        Door { stage: stage.clone(), pages: Arc::default() }
    }

    /// The process is open. Once.
    pub(crate) fn open(&self, pages: Router) {
        self.pages.get_or_init(|| pages);
    }

    /// Serves from the first moment until `stop`, and then until what was asked is answered.
    pub(crate) async fn serve(self, listener: TcpListener, patience: Patience, stop: CancellationToken) {
        let (places, connections) = (Arc::new(Semaphore::new(CONNECTIONS_MAX)), TaskTracker::new());
        loop {
            let accepted = async { (places.clone().acquire_owned().await, listener.accept().await) };
            match stop.run_until_cancelled(accepted).await {
                None => break,
                Some((place, Ok((stream, peer)))) => {
                    let page = self.router().layer(Extension(ConnectInfo(peer)));
                    let stop = stop.clone();
                    connections.spawn(async move {
                        converse(stream, page, patience, stop).await;
                        drop(place);
                    });
                }
                Some((_, Err(error))) => {
                    tracing::warn!(%error, "accept a connection to the HTTP port");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
        drop(listener);
        connections.close();
        connections.wait().await;
    }

    fn router(&self) -> Router {
        let door = self.clone();
        Router::new().fallback(move |request: Request| async move {
            match door.pages.get() {
                Some(pages) => match pages.clone().oneshot(request).await {
                    Ok(page) => page,
                    Err(never) => match never {},
                },
                None => door.opening(request.uri().path()),
            }
        })
    }

    /// Live, but not ready.
    fn opening(&self, path: &str) -> Response {
        let why = format!("not serving yet: {}", self.stage.text());
        match path {
            "/health/live" => "ok\n".into_response(),
            path if path.starts_with("/v1/") => {
                (StatusCode::SERVICE_UNAVAILABLE, Json(serde_json::json!({ "error": why }))).into_response()
            }
            _ => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")).into_response(),
        }
    }
}

/// Answers what comes over one connection.
async fn converse(stream: TcpStream, page: Router, patience: Patience, stop: CancellationToken) {
    let mut builder = Builder::new(TokioExecutor::new()).http1_only();
    builder.http1().timer(TokioTimer::new()).header_read_timeout(patience.head);
    let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(page)));
    tokio::select! {
        _ = connection.as_mut() => return,
        _ = tokio::time::timeout(patience.all, stop.cancelled()) => connection.as_mut().graceful_shutdown(),
    }
    // However it ends: who asked has gone, or is gone now.
    let _ = tokio::time::timeout(patience.all, connection).await;
}

/// All pages of a process that is open.
pub(crate) fn pages(local: Arc<Local>, metrics: metrics_exporter_prometheus::PrometheusHandle) -> Router {
    let (ready, scraped) = (local.clone(), local.clone());
    let admin = match &local.meta {
        Some(meta) => meta::admin::router(meta.clone(), local.clone()),
        None => relay::router(local.clone()),
    };
    Router::new()
        .route("/health/live", get(|| async { "ok\n" }))
        .route("/health/ready", get(move || async move { health(&ready) }))
        .route("/metrics", get(move || async move { exposition(&scraped, &metrics) }))
        .merge(admin)
        .fallback(|| async { (StatusCode::NOT_FOUND, "there is /metrics, /health/live, /health/ready and /v1/...\n") })
}

fn health(local: &Local) -> (StatusCode, String) {
    let faults = local.faults();
    if !local.is_serving() {
        return (StatusCode::SERVICE_UNAVAILABLE, "not serving: starting or stopping\n".to_owned());
    }
    let (status, said) = match faults.is_empty() {
        true => (StatusCode::OK, vec!["ok".to_owned()]),
        false => (StatusCode::SERVICE_UNAVAILABLE, faults),
    };
    (status, said.into_iter().chain(local.remarks()).fold(String::new(), |page, line| page + &line + "\n"))
}

type Page = ([(header::HeaderName, &'static str); 1], String);

fn exposition(local: &Local, metrics: &metrics_exporter_prometheus::PrometheusHandle) -> Page {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], crate::exposition::page(local, metrics))
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use bytes::Bytes;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    const SHORT: Patience = Patience { head: Duration::from_millis(200), all: Duration::from_millis(500) };
    const LONG: Duration = Duration::from_secs(10);

    async fn ask(address: std::net::SocketAddr) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(b"GET /health/live HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        tokio::time::timeout(LONG, stream.read_to_string(&mut answer)).await.unwrap().unwrap();
        answer
    }

    #[tokio::test]
    async fn who_is_silent_or_does_not_read_is_cut() {
        let (door, stop) = (Door::new(&Stage::default()), CancellationToken::new());
        // More than the buffers of a socket take.
        let large = Bytes::from(vec![b'x'; 64 << 20]);
        door.open(Router::new().fallback(move |request: Request| {
            let page = if request.uri().path() == "/large" { large.clone() } else { Bytes::from_static(b"ok\n") };
            std::future::ready(page)
        }));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let serving = tokio::spawn(door.serve(listener, SHORT, stop.clone()));
        let said: [&[u8]; 3] = [b"", b"GET / HTTP/1.1\r\nhost:", b"GET /large HTTP/1.1\r\nhost: x\r\n\r\n"];
        for said in said {
            let mut strangers = Vec::new();
            for _ in 0..CONNECTIONS_MAX {
                let mut stream = TcpStream::connect(address).await.unwrap();
                stream.write_all(said).await.unwrap();
                strangers.push(stream);
            }
            let began = Instant::now();
            assert!(ask(address).await.ends_with("ok\n"), "there is a place again for who waits");
            assert!(began.elapsed() >= SHORT.head / 2, "there was none");
        }
        // An idle connection does not hold up the stop.
        let _idle = TcpStream::connect(address).await.unwrap();
        stop.cancel();
        tokio::time::timeout(LONG, serving).await.unwrap().unwrap();
    }
}
